//! A TCP connection's way from one proxy to one server, which can be made to fail.
//!
//! Invariants: bytes are never changed, only held back, and in order; what was held back flows once the link is open
//! again. Absent on purpose: knowledge of what flows.

use crate::support::free_port;
use pgregent::coordination::conformance::Way;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How often a connection looks whether it may go on.
const LOOK: Duration = Duration::from_millis(2);

/// What passes.
#[derive(Clone, Copy)]
struct Passage {
    questions: bool,
    answers: bool,
    late: Duration,
    connects: bool,
}

const OPEN: Passage = Passage { questions: true, answers: true, late: Duration::ZERO, connects: true };

struct Shared {
    passage: Mutex<Passage>,
    /// Both ends of each connection.
    open: Mutex<Vec<TcpStream>>,
}

/// The way.
pub struct Link {
    /// Where it begins, on loopback.
    pub port: u16,
    shared: Arc<Shared>,
}

impl Link {
    /// Begins at a free port and leads to this one.
    pub fn to(port: u16) -> Self {
        let (from, shared) = (free_port(), Arc::new(Shared { passage: Mutex::new(OPEN), open: Mutex::default() }));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, from)).unwrap();
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if !accepting.passage.lock().unwrap().connects {
                    continue;
                }
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                accepting.pass(near, far);
            }
        });
        Self { port: from, shared }
    }

    /// Changes how it behaves, for open connections too.
    pub fn set(&self, way: Way) {
        let mut passage = self.shared.passage.lock().unwrap();
        match way {
            Way::Open => *passage = OPEN,
            Way::Late(late) => passage.late = late,
            Way::Mute => passage.questions = false,
            Way::Deaf => passage.answers = false,
            Way::Cut => passage.connects = false,
        }
        if way == Way::Cut {
            for end in self.shared.open.lock().unwrap().drain(..) {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Shared {
    fn pass(self: &Arc<Self>, near: TcpStream, far: TcpStream) {
        for end in [&near, &far] {
            end.set_nodelay(true).unwrap();
            self.open.lock().unwrap().push(end.try_clone().unwrap());
        }
        let (near_out, far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        self.pump(near, far_out, |passage| passage.questions.then_some(Duration::ZERO));
        self.pump(far, near_out, |passage| passage.answers.then_some(passage.late));
    }

    /// Moves bytes one way; `passes` says whether they may pass, and how long after they came.
    fn pump(
        self: &Arc<Self>,
        mut from: TcpStream,
        mut to: TcpStream,
        passes: impl Fn(&Passage) -> Option<Duration> + Send + 'static,
    ) {
        let (came, comes) = mpsc::channel::<(Instant, Vec<u8>)>();
        let shared = Arc::clone(self);
        thread::spawn(move || {
            for (at, bytes) in comes {
                while passes(&shared.passage.lock().unwrap()).is_none_or(|late| at.elapsed() < late) {
                    thread::sleep(LOOK);
                }
                if to.write_all(&bytes).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                if came.send((Instant::now(), bytes[..read].to_vec())).is_err() {
                    break;
                }
            }
        });
    }
}
