//! How many reads may run again: a share of the requests, so that an outage does not double the load.
//!
//! A read that was cut off is work a second time. One that a dying node left costs nothing more, because that node does
//! no work any more; a cluster that cancels or loses everything must not be asked everything twice for long. So a rerun
//! is paid from what requests and time have earned. Invariants: over any span no more reruns are granted than the share
//! of that span's requests, the floor, and one burst; no lock, and requests cost nothing (they are counted anyway).
//! Absent on purpose: what falls under it (`session`), and a clock: time is an argument.

use crate::clock::Time;
use std::sync::atomic::{AtomicU64, Ordering};

/// Reruns per second that are granted whatever the share, so that a quiet proxy can move its reads.
pub const RERUNS_PER_SECOND: u64 = 10;
/// Seconds of the floor that can be saved up.
const SAVED_SECONDS: u64 = 10;
/// One rerun, in thousandths.
const RERUN: u64 = 1000;

/// What there is to spend.
#[derive(Debug, Default)]
pub struct RetryBudget {
    /// Of all that was ever earned, in thousandths of a rerun; what was not saved counts as spent.
    spent: AtomicU64,
    /// Reruns granted.
    granted: AtomicU64,
    /// The share that `spent` goes by, plus one; 0: none yet.
    share: AtomicU64,
}

/// What is earned by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earning {
    /// The time, on any clock that never goes back.
    pub now: Time,
    /// Requests so far, reruns included.
    pub requests: u64,
    /// The share of requests that may run again, in percent.
    pub percent: u64,
    /// Requests under way: if all of them are lost at once, each may run again.
    pub in_flight: u64,
}

impl RetryBudget {
    /// May one more read run again? Then it is paid for.
    pub fn take(&self, by: &Earning) -> bool {
        let own = by.requests.saturating_sub(self.granted.load(Ordering::Relaxed));
        let shares = own.saturating_mul(by.percent).saturating_mul(RERUN / 100);
        let floor = by.now.as_nanos() / 1_000 * RERUNS_PER_SECOND * RERUN / 1_000_000;
        let earned = shares.saturating_add(floor);
        let saved_max = (SAVED_SECONDS * RERUNS_PER_SECOND).saturating_add(by.in_flight).saturating_mul(RERUN);
        let share = by.percent.saturating_add(1);
        let before = self.share.load(Ordering::Relaxed);
        if before != share && self.share.swap(share, Ordering::Relaxed) != share && before != 0 {
            // Another share has earned something else since the beginning: it counts from here.
            self.spent.store(earned, Ordering::Relaxed);
        }
        let paid = self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| {
            let spent = spent.max(earned.saturating_sub(saved_max));
            (spent + RERUN <= earned).then_some(spent + RERUN)
        });
        if paid.is_ok() {
            self.granted.fetch_add(1, Ordering::Relaxed);
        }
        paid.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64, requests: u64) -> Earning {
        let now = Time::from_nanos((1_000_000 + millis) * 1_000_000);
        Earning { now, requests, percent: 20, in_flight: 0 }
    }

    fn take_all(budget: &RetryBudget, by: &Earning) -> u64 {
        // What runs again is a request as well.
        (0..1_000_000).take_while(|again| budget.take(&Earning { requests: by.requests + again, ..*by })).count() as u64
    }

    #[test]
    fn a_quiet_proxy_has_its_floor() {
        let budget = RetryBudget::default();
        assert_eq!(take_all(&budget, &at(0, 0)), SAVED_SECONDS * RERUNS_PER_SECOND);
        assert_eq!(take_all(&budget, &at(0, 0)), 0);
        assert_eq!(take_all(&budget, &at(1_000, 0)), RERUNS_PER_SECOND);
        assert_eq!(take_all(&budget, &at(1_050, 0)), 0, "half a rerun is none");
        assert_eq!(take_all(&budget, &at(1_100, 0)), 1);
    }

    #[test]
    fn whatever_is_lost_in_an_outage_no_more_than_the_share_runs_again() {
        let budget = RetryBudget::default();
        let (mut requests, mut own, mut reruns) = (0, 0, 0);
        for millis in 0..10_000 {
            // Every millisecond ten requests, and all of them and their reruns are lost.
            requests += 10;
            own += 10;
            let granted = take_all(&budget, &at(millis, requests));
            requests += granted;
            reruns += granted;
        }
        let floor = RERUNS_PER_SECOND * (10 + SAVED_SECONDS);
        assert!(reruns <= own / 5 + floor, "{reruns} reruns of {own} requests");
        assert!(reruns >= own / 5, "{reruns} reruns of {own} requests");
    }

    #[test]
    fn all_that_is_under_way_may_run_again_once() {
        let budget = RetryBudget::default();
        let busy = Earning { in_flight: 5_000, ..at(0, 1_000_000) };
        assert_eq!(take_all(&budget, &busy), 5_000 + SAVED_SECONDS * RERUNS_PER_SECOND);
        assert_eq!(take_all(&budget, &busy), 0);
    }

    #[test]
    fn another_share_after_a_reload_earns_from_then_on() {
        let budget = RetryBudget::default();
        let busy = Earning { percent: 100, ..at(0, 1_000_000) };
        let spent = take_all(&budget, &busy);
        let smaller = Earning { percent: 0, ..busy };
        assert_eq!(take_all(&budget, &smaller), 0);
        assert_eq!(take_all(&budget, &Earning { percent: 0, ..at(2_000, 2_000_000) }), 2 * RERUNS_PER_SECOND);
        let larger = |requests| Earning { percent: 10, ..at(2_000, requests + spent + 2 * RERUNS_PER_SECOND) };
        assert_eq!(take_all(&budget, &larger(2_000_000)), 0, "nothing is earned behindhand");
        assert_eq!(take_all(&budget, &larger(2_000_500)), 50);
    }
}
