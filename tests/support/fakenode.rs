//! A node that lies: it stands in front of a real peer, passes everything on, and breaks what a rule
//! says, for statements that carry a marker.
//!
//! In front of a node it plays a node that dies or talks nonsense; in front of a proxy it plays a
//! client that splits its bytes anywhere. Invariants: a rule fires at most once per arming; every
//! message with a marker that reached the real peer is counted, so that a test can prove that a write
//! was sent once. Absent on purpose: answers of its own, except the bytes a rule injects.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::message::{GSSENC_REQUEST, SSL_REQUEST};

/// Bursts up to this size are chopped; longer ones, and what follows right behind one, go in packets: megabytes byte
/// by byte prove nothing more.
const CHOP_BYTES_MAX: usize = 2 << 10;
/// Pause between chopped writes, so that they arrive apart.
const CHOP_PAUSE: Duration = Duration::from_micros(30);

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends after this many bytes of the answer.
    CutAnswer(usize),
    /// The connection ends before the marked message reaches the peer.
    CutRequest,
    /// This many bytes, from the marked message's first on, reach the peer; then the connection ends.
    CutRequestAt(usize),
    /// The answer comes this much later.
    Delay(Duration),
    /// The answer's byte at this position is inverted.
    Flip(usize),
    /// These bytes come instead of the answer; the connection stays open.
    Inject(Vec<u8>),
    /// These bytes come instead of the answer, then the connection ends.
    InjectAndCut(Vec<u8>),
    /// Nothing comes; the connection stays open.
    Swallow,
}

struct Rule {
    marker: Vec<u8>,
    fault: Fault,
    /// How often it may still fire; shared by the nodes that were given the same rule.
    times: Arc<AtomicUsize>,
}

impl Rule {
    /// Takes one of the remaining times, if any.
    fn take(&self) -> bool {
        self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1)).is_ok()
    }
}

#[derive(Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    markers: Mutex<HashMap<String, usize>>,
    wires: Mutex<Vec<Arc<Wire>>>,
    fired: AtomicUsize,
    accepted: AtomicUsize,
    chop: AtomicBool,
    refusing: AtomicBool,
    stopping: AtomicBool,
}

/// A proxied connection.
struct Wire {
    near: TcpStream,
    far: TcpStream,
    armed: Mutex<Option<Armed>>,
    /// So many bytes may still reach the peer.
    left: Mutex<Option<usize>>,
}

struct Armed {
    fault: Fault,
    answered: usize,
}

/// The liar.
pub struct ChaosNode {
    /// Where it listens (loopback).
    pub port: u16,
    state: Arc<State>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChaosNode {
    /// Starts in front of the peer at a loopback port; passes everything on until told otherwise.
    pub fn in_front_of(peer: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || accept_loop(&listener, peer, &shared));
        Self { port, state }
    }

    /// The same, splitting all bytes in both directions into single-byte writes.
    pub fn chopping(peer: u16) -> Self {
        let node = Self::in_front_of(peer);
        node.state.chop.store(true, Ordering::SeqCst);
        node
    }

    /// Breaks the next `times` messages that contain `marker`.
    pub fn rule(&self, marker: &str, fault: Fault, times: usize) {
        Self::rule_for_any(std::slice::from_ref(self), marker, &fault, times);
    }

    /// Breaks the next `times` messages that contain `marker`, counted over all these nodes.
    pub fn rule_for_any(nodes: &[Self], marker: &str, fault: &Fault, times: usize) {
        let times = Arc::new(AtomicUsize::new(times));
        for node in nodes {
            let rule = Rule { marker: marker.as_bytes().to_vec(), fault: fault.clone(), times: Arc::clone(&times) };
            locked(&node.state.rules).push(rule);
        }
    }

    /// Forgets all rules, also those that were armed and have not fired.
    pub fn calm(&self) {
        locked(&self.state.rules).clear();
        for wire in locked(&self.state.wires).iter() {
            locked(&wire.armed).take();
            locked(&wire.left).take();
        }
    }

    /// How often a fault was carried out.
    pub fn fired(&self) -> usize {
        self.state.fired.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Counts messages that contain `marker` from now on.
    pub fn watch(&self, marker: &str) {
        locked(&self.state.markers).entry(marker.to_owned()).or_insert(0);
    }

    /// How many messages with a watched marker were passed on to the peer.
    pub fn passed(&self, marker: &str) -> usize {
        locked(&self.state.markers).get(marker).copied().unwrap_or(0)
    }

    /// Cuts every connection; new ones are closed at once until [`Self::up`].
    pub fn down(&self) {
        self.state.refusing.store(true, Ordering::SeqCst);
        self.cut_all();
    }

    /// Accepts again.
    pub fn up(&self) {
        self.state.refusing.store(false, Ordering::SeqCst);
    }

    /// Cuts every connection once.
    pub fn cut_all(&self) {
        for wire in locked(&self.state.wires).drain(..) {
            wire.cut();
        }
    }
}

impl Drop for ChaosNode {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        self.cut_all();
        // Wakes the accept loop, which then sees that it should stop.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Wire {
    fn cut(&self) {
        let _ = self.near.shutdown(Shutdown::Both);
        let _ = self.far.shutdown(Shutdown::Both);
    }
}

fn accept_loop(listener: &TcpListener, peer: u16, state: &Arc<State>) {
    for near in listener.incoming() {
        if state.stopping.load(Ordering::SeqCst) {
            return;
        }
        state.accepted.fetch_add(1, Ordering::SeqCst);
        let Ok(near) = near else { continue };
        if state.refusing.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", peer)) else { continue };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let wire = Arc::new(Wire { near, far, armed: Mutex::new(None), left: Mutex::new(None) });
        {
            let mut wires = locked(&state.wires);
            wires.push(Arc::clone(&wire));
            // `down` may have passed between the check above and this line.
            if state.refusing.load(Ordering::SeqCst) {
                wire.cut();
            }
        }
        let (asking, asked) = (Arc::clone(&wire), Arc::clone(state));
        thread::spawn(move || {
            // A peer that takes no more may still have something to say; its end is seen where answers pass.
            if pass_requests(&asking, &asked).is_ok() {
                asking.cut();
            }
        });
        let (answering, state) = (wire, Arc::clone(state));
        thread::spawn(move || {
            let _ = pass_answers(&answering, &state);
            answering.cut();
            locked(&state.wires).retain(|other| !Arc::ptr_eq(other, &answering));
        });
    }
}

/// Passes whole messages to the peer, so that a rule acts before the first byte of the marked one leaves. An error
/// is the peer's; the end of the near side is none.
fn pass_requests(wire: &Wire, state: &State) -> std::io::Result<()> {
    let mut splitter = Splitter::default();
    let mut long = false;
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = (&wire.near).read(&mut chunk).unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        if state.chop.load(Ordering::SeqCst) {
            write_in_pieces(&wire.far, &chunk[..count], &mut long)?;
            continue;
        }
        splitter.buffer.extend(&chunk[..count]);
        while let Some(message) = splitter.next() {
            if arm(wire, state, &message) {
                return Ok(());
            }
            (&wire.far).write_all(&message)?;
        }
    }
}

/// Applies the first rule whose marker is in the message; true: cut now.
fn arm(wire: &Wire, state: &State, message: &[u8]) -> bool {
    let contains = |marker: &[u8]| message.windows(marker.len()).any(|window| window == marker);
    let rules = locked(&state.rules);
    if let Some(rule) = rules.iter().find(|rule| contains(&rule.marker) && rule.take()) {
        match rule.fault {
            Fault::CutRequest => {
                state.fired.fetch_add(1, Ordering::SeqCst);
                return true;
            }
            Fault::CutRequestAt(at) => *locked(&wire.left) = Some(at),
            _ => {}
        }
        *locked(&wire.armed) = Some(Armed { fault: rule.fault.clone(), answered: 0 });
    }
    drop(rules);
    if let Some(left) = locked(&wire.left).as_mut() {
        let Some(rest) = left.checked_sub(message.len()) else {
            state.fired.fetch_add(1, Ordering::SeqCst);
            // Whether the peer takes them makes no difference.
            let _ = (&wire.far).write_all(&message[..*left]);
            return true;
        };
        *left = rest;
    }
    for (marker, count) in locked(&state.markers).iter_mut() {
        *count += usize::from(contains(marker.as_bytes()));
    }
    false
}

fn pass_answers(wire: &Wire, state: &State) -> std::io::Result<()> {
    let mut long = false;
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = (&wire.far).read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        let mut bytes = chunk[..count].to_vec();
        match spoil(wire, state, &mut bytes) {
            Spoiled::Pass => {}
            Spoiled::PassAndCut => {
                (&wire.near).write_all(&bytes)?;
                return Ok(());
            }
            Spoiled::Wait(pause) => thread::sleep(pause),
        }
        if state.chop.load(Ordering::SeqCst) {
            write_in_pieces(&wire.near, &bytes, &mut long)?;
        } else {
            (&wire.near).write_all(&bytes)?;
        }
    }
}

enum Spoiled {
    Pass,
    PassAndCut,
    Wait(Duration),
}

/// Carries out the armed fault on a piece of the answer.
fn spoil(wire: &Wire, state: &State, bytes: &mut Vec<u8>) -> Spoiled {
    let mut slot = locked(&wire.armed);
    let Some(armed) = slot.as_mut() else { return Spoiled::Pass };
    let before = armed.answered;
    armed.answered += bytes.len();
    let first = before == 0;
    let fire = || {
        state.fired.fetch_add(1, Ordering::SeqCst);
    };
    let ended = matches!(bytes.as_slice(), [.., b'Z', 0, 0, 0, 5, _]);
    let spoiled = match &armed.fault {
        Fault::CutAnswer(at) if *at < armed.answered => {
            bytes.truncate(at - before);
            fire();
            Spoiled::PassAndCut
        }
        Fault::Flip(at) if (before..armed.answered).contains(at) => {
            bytes[at - before] ^= 0xFF;
            fire();
            Spoiled::Pass
        }
        Fault::Inject(instead) => {
            *bytes = if first { instead.clone() } else { Vec::new() };
            if first {
                fire();
            }
            Spoiled::Pass
        }
        Fault::InjectAndCut(instead) => {
            bytes.clone_from(instead);
            fire();
            Spoiled::PassAndCut
        }
        Fault::Swallow => {
            bytes.clear();
            if first {
                fire();
            }
            Spoiled::Pass
        }
        Fault::Delay(pause) if first => {
            fire();
            Spoiled::Wait(*pause)
        }
        Fault::CutAnswer(_) | Fault::CutRequest | Fault::CutRequestAt(_) | Fault::Flip(_) | Fault::Delay(_) => {
            Spoiled::Pass
        }
    };
    if ended {
        // What follows on this wire answers another client, who must not meet this fault.
        *slot = None;
    }
    spoiled
}

/// `long`: the burst before was a long one.
fn write_in_pieces(mut to: &TcpStream, bytes: &[u8], long: &mut bool) -> std::io::Result<()> {
    let was_long = std::mem::replace(long, bytes.len() > CHOP_BYTES_MAX);
    if was_long || *long {
        return to.write_all(bytes);
    }
    for byte in bytes {
        to.write_all(std::slice::from_ref(byte))?;
        thread::sleep(CHOP_PAUSE);
    }
    Ok(())
}

/// Splits a client's bytes into whole messages; what is no message passes through as it is.
#[derive(Default)]
struct Splitter {
    buffer: Vec<u8>,
    started: bool,
}

impl Splitter {
    fn next(&mut self) -> Option<Vec<u8>> {
        let tag = usize::from(self.started);
        let length = self.buffer.get(tag..tag + 4)?;
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        if length < 4 {
            return Some(std::mem::take(&mut self.buffer));
        }
        if self.buffer.len() < tag + length {
            return None;
        }
        let rest = self.buffer.split_off(tag + length);
        let message = std::mem::replace(&mut self.buffer, rest);
        if !self.started {
            let code = message.get(4..8).map_or(0, |code| u32::from_be_bytes(code.try_into().unwrap_or_default()));
            self.started = code != SSL_REQUEST && code != GSSENC_REQUEST;
        }
        Some(message)
    }
}
