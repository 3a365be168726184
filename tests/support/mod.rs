//! What the tests that need sockets share: clusters, proxies, raw clients, scripted faults.
//!
//! Invariants: free loopback ports only; every process and directory is watched by a guardian that
//! cleans up when the test process ends, however it ends. Absent on purpose: assertions about the
//! proxy's behaviour; those live in the tests.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod bystander;
pub mod cluster;
pub mod drivers;
pub mod etcd;
pub mod fakenode;
pub mod guard;
pub mod load;
pub mod message;
pub mod net;
pub mod pki;
pub mod proxy;
pub mod rawclient;
pub mod rig;
pub mod rights;
pub mod scram;
pub mod script;
pub mod tlsclient;

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Ports already given out: two tests that ask at once must not get the same one.
static PORTS_GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A loopback port that was free a moment ago and was not given to another test of this process.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        if PORTS_GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return port;
        }
    }
}

/// Asks until the answer is yes; fails the test after `limit`.
pub fn wait_for(what: &str, limit: Duration, mut asked: impl FnMut() -> bool) {
    let started = Instant::now();
    while !asked() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A small repeatable sequence of numbers (a linear congruential generator with Knuth's constants for MMIX).
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
