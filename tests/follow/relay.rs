//! A TCP relay on loopback that can be shut: what is behind it then seems not to be there.
//!
//! Invariants: shutting ends every connection through it; a shut relay accepts and closes at once. Absent on purpose:
//! delay, and anything about what flows.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes read at once.
const CHUNK_BYTES: usize = 4096;

/// The relay. Its threads end with the test process.
pub struct Relay {
    pub port: u16,
    shut: Arc<AtomicBool>,
}

impl Relay {
    pub fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, shut) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let closed = Arc::clone(&shut);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten().filter(|_| !closed.load(Ordering::SeqCst)) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                join(client, server, &closed);
            }
        });
        Self { port, shut }
    }

    pub fn shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::SeqCst);
    }
}

fn join(client: TcpStream, server: TcpStream, shut: &Arc<AtomicBool>) {
    let (Ok(back), Ok(forth)) = (client.try_clone(), server.try_clone()) else { return };
    for (from, to) in [(client, forth), (server, back)] {
        let shut = Arc::clone(shut);
        std::thread::spawn(move || pump(from, to, &shut));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, shut: &AtomicBool) {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(count) = from.read(&mut chunk)
        && count > 0
        && !shut.load(Ordering::SeqCst)
        && to.write_all(&chunk[..count]).is_ok()
    {}
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
