//! Opens backends for a pool: parallel but capped, with a backoff of tens of milliseconds.
//!
//! Invariants: at most `connects_max` connects per node are under way; each holds a place of the
//! node's budget from before it starts; a login the node refuses for good fails the waiters at once,
//! everything else is tried again until their deadlines. Absent on purpose: choosing a node.

use super::{CheckoutError, Pool};
use crate::backend::{Backend, ConnectError, Login, connect};
use crate::clock::Time;
use crate::ids::NodeId;
use crate::topology::Fact;
use parking_lot::Mutex;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

/// First pause after a failed connect.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How connecting to one node goes.
#[derive(Debug, Default)]
pub struct Connecting {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    failures: u32,
    not_before: Time,
}

impl Connecting {
    /// Starts a connect if fewer than `limit` are under way; the answer is how long to wait first.
    fn start(&self, limit: usize, now: Time) -> Option<Duration> {
        let mut state = self.state.lock();
        if state.under_way >= limit {
            return None;
        }
        state.under_way += 1;
        Some(state.not_before.since(now))
    }

    fn ended(&self, ok: bool, now: Time) {
        let mut state = self.state.lock();
        state.under_way -= 1;
        if ok {
            state.failures = 0;
            state.not_before = Time::ZERO;
        } else {
            let pause = BACKOFF_FIRST.saturating_mul(1 << state.failures.min(6)).min(BACKOFF_MAX);
            state.failures = state.failures.saturating_add(1);
            state.not_before = now + pause;
        }
    }
}

impl Pool {
    /// Opens as many backends as waiters need and limits allow.
    pub(super) fn open_more(self: &Arc<Self>) {
        while self.reserve_connect() {
            let pool = Arc::clone(self);
            self.shared.tracker.spawn(async move { pool.open_one().await });
        }
    }

    /// Takes a place in the pool, in the budget and among the node's connects, or none of them.
    fn reserve_connect(self: &Arc<Self>) -> bool {
        let node = self.shared.node(self.key.node);
        {
            let mut state = self.state.lock();
            let total = state.controls.len() + state.connecting;
            let wanted = state.waiters.len() > state.connecting && total < self.shared.settings().size;
            if state.closing || !wanted {
                return false;
            }
            state.connecting += 1;
        }
        let mut placed = node.budget.take(self);
        if !placed && self.shared.evict_for(self) {
            placed = node.budget.take(self);
        }
        if !placed {
            self.state.lock().connecting -= 1;
        }
        placed
    }

    async fn open_one(self: Arc<Self>) {
        let shared = &self.shared;
        let node = shared.node(self.key.node);
        let limit = shared.settings().connects_max;
        let pause = loop {
            if let Some(pause) = node.connecting.start(limit, shared.clock.now()) {
                break pause;
            }
            node.connect_ended.notified().await;
        };
        tokio::time::sleep(pause).await;
        let fence = self.state.lock().fence;
        let started = shared.clock.now();
        shared.connect_started(self.key.node);
        let outcome = self.connect().await;
        let now = shared.clock.now();
        let fine = outcome.as_ref().is_ok_and(|_| true) || outcome.as_ref().is_err_and(ConnectError::is_final);
        node.connecting.ended(fine, now);
        node.connect_ended.notify_one();
        shared.connect_ended(self.key.node, outcome.as_ref().err(), now.since(started));
        match outcome {
            Ok(backend) => self.admit(Box::new(backend), fence, now),
            Err(err) => self.connect_failed(err),
        }
    }

    async fn connect(&self) -> Result<Backend, ConnectError> {
        let shared = &self.shared;
        let settings = shared.settings();
        let login = Login {
            user: Arc::clone(&self.key.user),
            database: Arc::clone(&self.key.database),
            credential: shared.credential(&self.key.user),
        };
        let target = &shared.node(self.key.node).target;
        let id = shared.next_backend();
        connect(
            self.key.node,
            id,
            target,
            &login,
            settings.prepared_statements_max,
            settings.connect_timeout,
            &shared.clock,
        )
        .await
    }

    fn connect_failed(self: &Arc<Self>, err: ConnectError) {
        if let Some(fact) = fact_of(self.key.node, &err) {
            self.shared.facts.send(fact);
        }
        tracing::debug!(node = %self.shared.node(self.key.node).name, user = %self.key.user, database = %self.key.database, "connect failed: {err}");
        let wakers = {
            let mut state = self.state.lock();
            state.connecting -= 1;
            let wakers =
                if err.is_final() { state.waiters.fail_all(&CheckoutError::Rejected(err.clone())) } else { Vec::new() };
            state.last_error = Some(err);
            wakers
        };
        wakers.into_iter().for_each(Waker::wake);
        // Tries again, after the node's backoff, while anyone waits.
        self.place_freed();
    }
}

fn fact_of(node: NodeId, err: &ConnectError) -> Option<Fact> {
    match err {
        ConnectError::Refused => Some(Fact::ConnectRefused(node)),
        ConnectError::TimedOut | ConnectError::Unreachable(_) => Some(Fact::ConnectTimedOut(node)),
        ConnectError::Lost => Some(Fact::BackendLost(node)),
        ConnectError::Rejected(rejection) if rejection.sqlstate.starts_with("57P") => Some(Fact::ShutdownSaid(node)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_short_grows_and_ends_with_success() {
        let connecting = Connecting::default();
        let now = Time::from_nanos(1_000_000_000);
        assert_eq!(connecting.start(1, now), Some(Duration::ZERO));
        assert_eq!(connecting.start(1, now), None);
        connecting.ended(false, now);
        assert_eq!(connecting.start(1, now), Some(BACKOFF_FIRST));
        for _ in 0..20 {
            connecting.ended(false, now);
            connecting.start(1, now);
        }
        connecting.ended(false, now);
        assert_eq!(connecting.start(1, now), Some(BACKOFF_MAX));
        connecting.ended(true, now);
        assert_eq!(connecting.start(1, now), Some(Duration::ZERO));
    }
}
