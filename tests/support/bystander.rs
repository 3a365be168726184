//! A client that has nothing to do with the trouble and must not notice it.
//!
//! It reads and writes in a loop on its own thread while a test misbehaves. Invariant: any error, wrong
//! answer or wait beyond the limit it sees fails the test. Absent on purpose: retries.

use super::proxy::Proxy;
use super::rawclient::RawClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than any scheduling hiccup of a busy test machine, shorter than a hang.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The client and its thread.
pub struct Bystander {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<usize, String>>>,
}

impl Bystander {
    /// Logs in and starts.
    pub fn start(proxy: &Proxy) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut client, asked) = (proxy.client(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !asked.load(Ordering::SeqCst) {
                round(&mut client, rounds)?;
                rounds += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(rounds)
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops; fails the test if anything was not as it should be.
    pub fn assert_untouched(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("stopped once");
        match thread.join().expect("the bystander does not panic") {
            Ok(rounds) => assert!(rounds > 0, "the bystander never got a turn"),
            Err(what) => panic!("a client that did nothing wrong was disturbed: {what}"),
        }
    }
}

fn round(client: &mut RawClient, number: usize) -> Result<(), String> {
    let started = Instant::now();
    for sql in [format!("SELECT {number}"), format!("BEGIN; SELECT {number} FOR UPDATE; COMMIT")] {
        let answer = client.simple(&sql).map_err(|gone| format!("{sql}: {gone:?}"))?;
        if answer.rows != [[Some(number.to_string())]] {
            return Err(format!("{sql}: {answer:?}"));
        }
    }
    if started.elapsed() > ANSWER_MAX { Err(format!("round {number} took {:?}", started.elapsed())) } else { Ok(()) }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
