//! How the pools of one node share its budget.
//!
//! A backend that nobody in its own pool needs gives its place to the pool that has wanted one longest.
//! A busy pool yields too, but only to one that would still be the smaller, so that shares become equal
//! and stay so; a pool that has nothing at all is helped after [`STARVED_AFTER`] whatever the shares
//! are. A place that is yielded goes straight to the pool it is meant for. Invariants: no lock of a pool
//! is taken while another one is held; `used` never exceeds the limit on the way. Absent on purpose:
//! opening backends (`connector`).

use super::dedicated::Place;
use super::set::Shared;
use super::{DiscardReason, Pool};
use crate::backend::Backend;
use crate::clock::Time;
use crate::ids::NodeId;
use std::sync::Arc;
use std::time::Duration;

/// A pool without any backend gets one from a busy pool after this.
const STARVED_AFTER: Duration = Duration::from_millis(200);

/// What a pool has and needs, for comparing shares.
#[derive(Clone, Copy, Debug)]
struct Share {
    backends: usize,
    waiting: bool,
    wants: bool,
}

impl Share {
    /// Should a pool like this give one of its backends to `other`, which has wanted one for `wanted_for`?
    fn yields_to(self, other: Self, wanted_for: Duration) -> bool {
        other.wants
            && (!self.waiting
                || other.backends + 1 < self.backends
                || other.backends == 0 && wanted_for >= STARVED_AFTER)
    }
}

impl Pool {
    fn share(&self) -> Share {
        let size = self.shared.settings().size;
        let state = self.state.lock();
        let backends = state.controls.len() + state.connecting;
        Share {
            backends,
            waiting: !state.waiters.is_empty(),
            wants: !state.closing && state.waiters.len() > state.connecting && backends < size,
        }
    }

    /// The pool that should have the place of a backend which this pool could hand out now.
    pub(super) fn should_yield(self: &Arc<Self>, now: Time) -> Option<Arc<Pool>> {
        let budget = &self.shared.node(self.key.node).budget;
        if !budget.is_wanted() {
            return None;
        }
        for (other, since) in budget.wanting_beside(self) {
            let share = other.share();
            if !share.wants {
                budget.forget(&other);
            } else if self.share().yields_to(share, now.since(since)) {
                return Some(other);
            }
        }
        None
    }

    /// Closes this backend and lets the other pool open one in its place.
    pub(super) fn yield_to(self: &Arc<Self>, other: &Arc<Pool>, backend: Box<Backend>) {
        self.end(backend, DiscardReason::Idle);
        self.shared.node(self.key.node).budget.forget(other);
        if !other.open_in_place() {
            self.shared.node(self.key.node).budget.give_back();
            self.shared.offer_places(self.key.node);
        }
        // It may want more than this one place, and so stands in the queue again.
        other.open_more();
        self.open_more();
    }
}

impl Shared {
    /// Closes the backend of another pool of the node that has been idle longest; its place is the caller's.
    pub fn evict_for(&self, pool: &Arc<Pool>) -> bool {
        self.evict(pool.key.node, |other| !Arc::ptr_eq(other, pool))
    }

    /// Closes the backend of these pools of the node that has been idle longest; its place is the caller's.
    pub fn evict(&self, node: NodeId, of: impl Fn(&Arc<Pool>) -> bool) -> bool {
        let mut others: Vec<(Time, Arc<Pool>)> = self
            .snapshot()
            .into_iter()
            .filter(|other| other.key.node == node && of(other))
            .filter_map(|other| Some((other.idle_since()?, other)))
            .collect();
        others.sort_by_key(|(since, _)| *since);
        others.iter().any(|(_, other)| other.evict_idle())
    }

    /// Lets those who want a place of the node have what is free: claims first, then the pools, the
    /// oldest wish first.
    pub fn offer_places(self: &Arc<Self>, node: NodeId) {
        while let Some(claim) = self.node(node).budget.next_claim() {
            // Whoever has left meanwhile drops the place, which gives it back.
            drop(claim.send(Place::new(Arc::clone(self), node)));
        }
        while let Some(pool) = self.node(node).budget.next_wanting() {
            pool.open_more();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(backends: usize, waiting: bool) -> Share {
        Share { backends, waiting, wants: waiting }
    }

    #[test]
    fn a_pool_without_waiters_yields_to_whoever_wants() {
        assert!(share(1, false).yields_to(share(9, true), Duration::ZERO));
        assert!(!share(1, false).yields_to(share(0, false), STARVED_AFTER));
    }

    #[test]
    fn busy_pools_yield_until_shares_are_equal() {
        assert!(share(10, true).yields_to(share(0, true), Duration::ZERO));
        assert!(share(6, true).yields_to(share(4, true), Duration::ZERO));
        assert!(!share(5, true).yields_to(share(5, true), STARVED_AFTER));
        assert!(!share(5, true).yields_to(share(4, true), STARVED_AFTER), "it would only change sides");
    }

    #[test]
    fn a_pool_that_has_nothing_does_not_wait_long() {
        assert!(!share(1, true).yields_to(share(0, true), Duration::ZERO));
        assert!(share(1, true).yields_to(share(0, true), STARVED_AFTER));
    }
}
