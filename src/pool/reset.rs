//! Makes a backend forget a session whose state was more than tracked settings.
//!
//! Invariants: bounded in time; a backend whose reset did not end exactly as expected is discarded.
//! Absent on purpose: deciding when (the session's matter).

use super::{DiscardReason, Pool, Totals};
use crate::backend::{Backend, Settings, simple_query};
use crate::wire::TxStatus;
use std::sync::Arc;
use std::time::Duration;

/// How long a reset may take.
const RESET_LIMIT: Duration = Duration::from_secs(5);

impl Pool {
    /// Runs DISCARD ALL on a backend that is clean otherwise, after the end of its transaction, and puts it back.
    pub(super) async fn reset(self: Arc<Self>, mut backend: Box<Backend>, used: Totals) {
        self.state.lock().totals.add(used);
        let asking = async {
            if backend.tx != TxStatus::Idle {
                simple_query(&mut backend, "ROLLBACK", |_| {}).await?;
            }
            simple_query(&mut backend, "DISCARD ALL", |_| {}).await
        };
        if matches!(tokio::time::timeout(RESET_LIMIT, asking).await, Ok(Ok(()))) {
            backend.tx = TxStatus::Idle;
            backend.settings = Arc::new(Settings::default());
            backend.statements.forget_all();
            backend.sequences_of = None;
            self.release(backend, self.shared.clock.now(), Totals::default());
        } else {
            self.discard(backend, DiscardReason::Dirty, Totals::default());
        }
    }
}
