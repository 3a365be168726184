//! The route lease as the data plane sees it: an epoch and a deadline that the control plane moves.
//!
//! Invariants: a permit allows writes of its own epoch only, before its deadline only.

use crate::clock::Time;
use crate::ids::Epoch;
use std::sync::atomic::{AtomicU64, Ordering};

/// Until when writes of which epoch may be forwarded, and commit replies believed.
#[derive(Debug)]
pub struct WritePermit {
    epoch: AtomicU64,
    deadline: AtomicU64,
}

impl Default for WritePermit {
    fn default() -> Self {
        Self { epoch: AtomicU64::new(0), deadline: AtomicU64::new(0) }
    }
}

impl WritePermit {
    /// Allows writes of `epoch` before `deadline`.
    pub fn extend(&self, epoch: Epoch, deadline: Time) {
        self.deadline.store(0, Ordering::SeqCst);
        self.epoch.store(epoch.0, Ordering::SeqCst);
        self.deadline.store(deadline.as_nanos(), Ordering::SeqCst);
    }

    /// Allows nothing from now on.
    pub fn revoke(&self) {
        self.deadline.store(0, Ordering::SeqCst);
    }

    /// May a write of `epoch` be forwarded, or its reply believed, at `now`?
    /// `now` is only called for when the deadline is not "never".
    pub fn allows(&self, epoch: Epoch, now: impl FnOnce() -> Time) -> bool {
        let deadline = self.deadline.load(Ordering::Acquire);
        let fits = self.epoch.load(Ordering::Acquire) == epoch.0;
        fits && deadline != 0 && (deadline == u64::MAX || now().as_nanos() < deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_for_its_epoch_and_until_its_deadline() {
        let permit = WritePermit::default();
        let at = |nanos| move || Time::from_nanos(nanos);
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
}
