//! Makes a backend forget a session whose state was more than tracked settings.
//!
//! Invariants: bounded in time; a backend whose reset did not end exactly as expected is discarded.
//! Absent on purpose: deciding when (the session's matter).

use super::{DiscardReason, Pool, Totals};
use crate::backend::{Backend, Settings, simple_query};
use std::sync::Arc;
use std::time::Duration;

/// How long a reset may take.
const RESET_LIMIT: Duration = Duration::from_secs(5);

impl Pool {
    /// Runs DISCARD ALL on a backend that was used so much and is clean otherwise, and puts it back.
    pub(super) async fn reset(self: Arc<Self>, mut backend: Box<Backend>, used: Totals) {
        self.state.lock().totals.add(used);
        let asking = simple_query(&mut backend, "DISCARD ALL", |_| {});
        if matches!(tokio::time::timeout(RESET_LIMIT, asking).await, Ok(Ok(()))) {
            backend.settings = Arc::new(Settings::default());
            backend.statements.forget_all();
            backend.sequences_of = None;
            self.release(backend, self.shared.clock.now(), Totals::default());
        } else {
            self.discard(backend, DiscardReason::Dirty, Totals::default());
        }
    }
}
