//! Waiting for a node, counted in time during which this process ran.
//!
//! A limit is cut into slices, each with a timer of its own. A timer that fires late says that we did not run: then the
//! answer may lie in the socket unread, and what the clock says is no evidence against the node. Invariants: a wait ends
//! as timed out only after a slice that ended on time, and after as many slices as the limit has, each of which counts
//! once however long it took; one that lasts [`STRETCH_MAX`] times its limit is void. Absent on purpose: what a limit
//! should be (`pace`).

use crate::clock::{Clock, Time};
use crate::topology::ProbeFailure;
use std::pin::pin;
use std::time::Duration;

/// Slices of one limit.
const SLICES: u32 = 16;
/// A slice that ends later than this (or than twice its length) did not end on time.
const LATE_MAX: Duration = Duration::from_millis(20);
/// How many times its limit a wait may last.
const STRETCH_MAX: u32 = 4;

/// Waits for `work`, at most for `limit` of our own running time.
///
/// # Errors
/// `TimedOut`, or `Starved` when this process was kept from running.
pub(super) async fn wait<T>(clock: &Clock, limit: Duration, work: impl Future<Output = T>) -> Result<T, ProbeFailure> {
    let mut work = pin!(work);
    let mut meter = Meter::new(limit, clock.now());
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(meter.slice) => if let Some(end) = meter.slice_ended(clock.now()) { return Err(end) }
        }
    }
}

/// Counts slices.
#[derive(Debug)]
struct Meter {
    slice: Duration,
    void_at: Time,
    slice_began: Time,
    slices: u32,
}

impl Meter {
    fn new(limit: Duration, now: Time) -> Self {
        let slice = (limit / SLICES).max(Duration::from_millis(1));
        Self { slice, void_at: now + limit * STRETCH_MAX, slice_began: now, slices: 0 }
    }

    /// Whether the wait is over, and how.
    fn slice_ended(&mut self, now: Time) -> Option<ProbeFailure> {
        let late = now.since(self.slice_began).saturating_sub(self.slice);
        self.slice_began = now;
        self.slices += 1;
        if self.slices >= SLICES && late <= LATE_MAX.max(self.slice) {
            return Some(ProbeFailure::TimedOut);
        }
        (now >= self.void_at).then_some(ProbeFailure::Starved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(320);

    /// What a wait ends with whose slices take so long, ms, the last one again and again; and after how long.
    fn ends(slices: &[u64]) -> (ProbeFailure, u64) {
        let start = Time::ZERO + Duration::from_secs(1);
        let (mut meter, mut now) = (Meter::new(LIMIT, start), start);
        for at in 0..1000 {
            now = now + Duration::from_millis(slices[at.min(slices.len() - 1)]);
            if let Some(end) = meter.slice_ended(now) {
                return (end, u64::try_from(now.since(start).as_millis()).unwrap());
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn a_pause_of_ours_does_not_count() {
        assert_eq!(ends(&[20]), (ProbeFailure::TimedOut, 320));
        assert_eq!(ends(&[21]), (ProbeFailure::TimedOut, 336));
        // Stopped for 700 ms in the middle: the node gets its 320 ms all the same.
        assert_eq!(ends(&[20, 700, 20]), (ProbeFailure::TimedOut, 1000));
        // Stopped when it was about to end: the answer may be there, one more slice finds it.
        let mut slices = [20; 17];
        slices[15] = 700;
        assert_eq!(ends(&slices), (ProbeFailure::TimedOut, 1020));
    }

    #[test]
    fn who_hardly_runs_does_not_judge() {
        assert_eq!(ends(&[90]), (ProbeFailure::Starved, 1350));
        assert_eq!(ends(&[20, 5000]), (ProbeFailure::Starved, 5020));
    }

    #[tokio::test]
    async fn an_answer_that_is_there_is_taken() {
        let clock = Clock::manual();
        assert_eq!(wait(&clock, LIMIT, async { 7 }).await, Ok(7));
        let never = std::future::pending::<()>();
        assert_eq!(wait(&clock, LIMIT, never).await, Err(ProbeFailure::TimedOut));
    }
}
