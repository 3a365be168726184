//! The route lease as the data plane sees it: an epoch and a deadline that the control plane moves.
//!
//! Invariants: a permit allows writes of its own epoch only, before its deadline only; moving the deadline of the same
//! epoch, in either direction, closes the permit for no moment; whoever waits for a permit is woken when it is extended.
//! One task writes it (the publisher's), any number read it. Absent on purpose: who may extend it, and until when.

use crate::clock::Time;
use crate::ids::Epoch;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// The deadline of a permit that allows nothing.
const CLOSED: u64 = 0;

/// Until when writes of which epoch may be forwarded, and replies of its primary believed.
///
/// Why a reader never takes one epoch's deadline for another's: a change of epoch stores `CLOSED`, then the epoch, then
/// the deadline; a reader loads the epoch, the deadline, and the epoch again, and wants its own both times. The stores
/// are releases and the loads acquires, so whoever sees one of these stores sees those before it.
///
/// * The reader's epoch is the new one: its first load has seen it, and with it the `CLOSED` stored before; its deadline
///   is that one or a later one, never the old epoch's.
/// * The reader's epoch is the old one: had it loaded the new deadline, it had seen the new epoch with it, and its last
///   load (which comes after an acquire, so is not done before it) would show that one or a later one. Epochs do not
///   come back, so it does not match.
///
/// The same epoch's deadline is moved by one store: a reader sees the old deadline or the new one, and nothing between.
#[derive(Debug, Default)]
pub struct WritePermit {
    epoch: AtomicU64,
    deadline: AtomicU64,
    extended: Arc<Notify>,
}

impl WritePermit {
    /// Allows writes of `epoch` before `deadline`, which may be earlier than the one before.
    pub fn extend(&self, epoch: Epoch, deadline: Time) {
        if self.epoch.load(Ordering::Relaxed) != epoch.0 {
            self.deadline.store(CLOSED, Ordering::Release);
            self.epoch.store(epoch.0, Ordering::Release);
        }
        self.deadline.store(deadline.as_nanos(), Ordering::Release);
        self.extended.notify_waiters();
    }

    /// Allows nothing from now on. (Sequentially consistent, so that what its caller does next comes after it for everybody.)
    pub fn revoke(&self) {
        self.deadline.store(CLOSED, Ordering::SeqCst);
    }

    /// May a write of `epoch` be forwarded, or a reply believed that has been read by `now`?
    /// `now` is only called for when the deadline is not "never".
    pub fn allows(&self, epoch: Epoch, now: impl FnOnce() -> Time) -> bool {
        let before = self.epoch.load(Ordering::Acquire);
        let deadline = self.deadline.load(Ordering::Acquire);
        let after = self.epoch.load(Ordering::Acquire);
        let fits = before == epoch.0 && after == epoch.0 && deadline != CLOSED;
        fits && (deadline == u64::MAX || now().as_nanos() < deadline)
    }

    /// Ends with the next [`Self::extend`] after this call: ask for it first, look whether the permit allows what you
    /// want then, and wait if it does not.
    pub fn extended(&self) -> OwnedNotified {
        Arc::clone(&self.extended).notified_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn at(nanos: u64) -> impl FnOnce() -> Time {
        move || Time::from_nanos(nanos)
    }

    #[test]
    fn a_permit_is_for_its_epoch_and_until_its_deadline() {
        let permit = WritePermit::default();
        assert!(!permit.allows(Epoch(0), at(0)));
        permit.extend(Epoch(7), Time::from_nanos(100));
        assert!(permit.allows(Epoch(7), at(99)));
        assert!(!permit.allows(Epoch(7), at(100)));
        assert!(!permit.allows(Epoch(8), at(1)));
        permit.extend(Epoch(8), Time::NEVER);
        assert!(permit.allows(Epoch(8), at(u64::MAX)));
        permit.revoke();
        assert!(!permit.allows(Epoch(8), at(1)));
    }

    #[test]
    fn a_deadline_can_be_moved_to_an_earlier_one() {
        let permit = WritePermit::default();
        permit.extend(Epoch(7), Time::NEVER);
        permit.extend(Epoch(7), Time::from_nanos(50));
        assert!(permit.allows(Epoch(7), at(49)) && !permit.allows(Epoch(7), at(50)));
    }

    #[test]
    fn the_clock_is_read_only_where_the_deadline_asks_for_it() {
        let permit = WritePermit::default();
        let unread = || panic!("the clock was read");
        assert!(!permit.allows(Epoch(7), unread));
        permit.extend(Epoch(7), Time::NEVER);
        assert!(permit.allows(Epoch(7), unread) && !permit.allows(Epoch(6), unread));
    }

    /// Reads the permit on two threads while another one changes it; gives what they saw wrong.
    fn race(rounds: u64, change: impl Fn(&WritePermit, u64), wrong: impl Fn(&WritePermit) -> bool + Sync) -> bool {
        let (permit, done) = (WritePermit::default(), AtomicBool::new(false));
        change(&permit, 0);
        thread::scope(|scope| {
            let look = || {
                let mut seen = false;
                while !done.load(Ordering::Relaxed) {
                    seen |= wrong(&permit);
                }
                seen
            };
            let readers = [scope.spawn(look), scope.spawn(look)];
            for round in 1..=rounds {
                change(&permit, round);
            }
            done.store(true, Ordering::Relaxed);
            readers.into_iter().any(|reader| reader.join().unwrap())
        })
    }

    #[test]
    fn extending_closes_the_permit_for_no_moment() {
        let extend = |permit: &WritePermit, round| permit.extend(Epoch(7), Time::from_nanos(1000 + round));
        let closed = race(3_000_000, extend, |permit| !permit.allows(Epoch(7), at(999)));
        assert!(!closed, "a permit that was only extended was seen closed");
    }

    /// Epoch `e` lasts until `10 * e`: at that time it must not be allowed, whatever is stored at the moment.
    #[test]
    fn no_epoch_gets_the_deadline_of_another() {
        let change = |permit: &WritePermit, round| permit.extend(Epoch(round), Time::from_nanos(10 * round));
        let later = race(3_000_000, change, |permit| {
            let present = permit.epoch.load(Ordering::Relaxed);
            permit.allows(Epoch(present), at(10 * present))
        });
        assert!(!later, "an epoch was allowed until the deadline of a later one");
        let change = |permit: &WritePermit, round| permit.extend(Epoch(round), Time::from_nanos(u64::MAX - 1 - round));
        let earlier = race(3_000_000, change, |permit| {
            let next = permit.epoch.load(Ordering::Relaxed) + 1;
            permit.allows(Epoch(next), at(u64::MAX - 1 - next))
        });
        assert!(!earlier, "an epoch was allowed until the deadline of an earlier one");
    }

    #[tokio::test]
    async fn who_waits_is_woken_even_if_the_permit_is_extended_before_the_wait() {
        let permit = WritePermit::default();
        let woken = permit.extended();
        permit.extend(Epoch(7), Time::from_nanos(5));
        let limit = std::time::Duration::from_secs(5);
        tokio::time::timeout(limit, woken).await.expect("woken by the extension");
    }
}
