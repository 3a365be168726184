//! The guard around a backend in use.
//!
//! Invariants: dropping discards (the safe thing happens by accident); only [`Checkout::release`]
//! reuses, and only what is clean. Absent on purpose: spawning from `drop`.

use super::{DiscardReason, Pool, Totals};
use crate::backend::Backend;
use crate::clock::Time;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Exclusive use of a backend.
#[derive(Debug)]
pub struct Checkout {
    backend: Option<Box<Backend>>,
    pool: Arc<Pool>,
    since: Time,
    used: Totals,
}

impl Checkout {
    pub(super) fn new(backend: Box<Backend>, pool: Arc<Pool>, since: Time) -> Self {
        Self { backend: Some(backend), pool, since, used: Totals::default() }
    }

    /// When it was checked out.
    #[must_use]
    pub fn since(&self) -> Time {
        self.since
    }

    /// The pool it belongs to.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Counts bytes that were written to the node.
    pub fn count_sent(&mut self, bytes: usize) {
        self.used.sent += bytes as u64;
    }

    /// Counts bytes that were read from the node.
    pub fn count_received(&mut self, bytes: usize) {
        self.used.received += bytes as u64;
    }

    /// Counts a statement that was answered.
    pub fn count_statement(&mut self) {
        self.used.statements += 1;
    }

    fn used(&self, now: Time) -> Totals {
        Totals { busy: now.since(self.since), ..self.used }
    }

    fn used_now(&self) -> Totals {
        self.used(self.pool.shared.clock.now())
    }

    /// Gives the backend back for reuse; one that is not clean is discarded.
    pub fn release(mut self, now: Time) {
        if let Some(backend) = self.backend.take() {
            if backend.is_clean() {
                self.pool.release(backend, now, self.used(now));
            } else {
                let reason = if backend.control.is_fenced() { DiscardReason::Fenced } else { DiscardReason::Dirty };
                self.pool.discard(backend, reason, self.used(now));
            }
        }
    }

    /// Has the backend forget all session state (DISCARD ALL), in the background, and reuses it then.
    pub fn reset(mut self) {
        if let Some(backend) = self.backend.take() {
            let (pool, used) = (Arc::clone(&self.pool), self.used_now());
            self.pool.shared.tracker.spawn(async move { pool.reset(backend, used).await });
        }
    }

    /// Closes the backend.
    pub fn discard(mut self, reason: DiscardReason) {
        if let Some(backend) = self.backend.take() {
            self.pool.discard(backend, reason, self.used_now());
        }
    }
}

impl Deref for Checkout {
    type Target = Backend;

    #[allow(clippy::expect_used, reason = "the backend leaves only by value")]
    fn deref(&self) -> &Backend {
        self.backend.as_deref().expect("a checkout holds its backend until it is consumed")
    }
}

impl DerefMut for Checkout {
    #[allow(clippy::expect_used, reason = "the backend leaves only by value")]
    fn deref_mut(&mut self) -> &mut Backend {
        self.backend.as_deref_mut().expect("a checkout holds its backend until it is consumed")
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let Some(backend) = self.backend.take() {
            self.pool.discard(backend, DiscardReason::Abandoned, self.used_now());
        }
    }
}
