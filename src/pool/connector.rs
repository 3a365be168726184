//! Opens backends for a pool: parallel but capped, with a backoff of tens of milliseconds.
//!
//! Invariants: at most `connects_max` connects per node are under way; each holds a place of the
//! node's budget from before it starts; a login the node refuses for good fails the waiters at once,
//! everything else is tried again until their deadlines; a proof that the primary refuses is not shown again; a login refused for lack of room (a role's
//! CONNECTION LIMIT, say) slows its own pool only. Absent on purpose: choosing a node.

use super::set::NodeState;
use super::{CheckoutError, Pool};
use crate::auth::{AuthError, NodeCredential, NodeRefusal};
use crate::backend::{Backend, ConnectError, Login, connect};
use crate::clock::Time;
use crate::error::SqlState;
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
    backoff: Backoff,
}

/// A pause that grows with each round of failures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
    not_before: Time,
}

impl Backoff {
    /// Did the last attempt fail?
    pub fn is_failing(self) -> bool {
        self.failures > 0
    }

    /// How long to wait before the next attempt.
    pub fn pause(self, now: Time) -> Duration {
        self.not_before.since(now)
    }

    /// An attempt failed. Attempts made side by side fail together and count once.
    pub fn failed(&mut self, now: Time) {
        if now < self.not_before {
            return;
        }
        let pause = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(6)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + pause;
    }
}

impl Connecting {
    /// Starts a connect if fewer than `limit` are under way; the answer is how long to wait first.
    pub(super) fn start(&self, limit: usize, now: Time) -> Option<Duration> {
        let mut state = self.state.lock();
        if state.under_way >= limit {
            return None;
        }
        state.under_way += 1;
        Some(state.backoff.pause(now))
    }

    pub(super) fn ended(&self, ok: bool, now: Time) {
        let mut state = self.state.lock();
        state.under_way -= 1;
        if ok { state.backoff = Backoff::default() } else { state.backoff.failed(now) }
    }
}

impl Pool {
    /// Opens as many backends as waiters need and limits allow.
    pub(super) fn open_more(self: &Arc<Self>) {
        while self.reserve_connect() {
            self.spawn_open();
        }
    }

    /// Opens a backend in a place of the budget that the caller hands over; false if none is needed.
    pub(super) fn open_in_place(self: &Arc<Self>) -> bool {
        let wanted = self.note_connecting();
        if wanted {
            self.node().budget.forget(self);
            self.spawn_open();
        }
        wanted
    }

    fn node(&self) -> &NodeState {
        self.shared.node(self.key.node)
    }

    fn spawn_open(self: &Arc<Self>) {
        let pool = Arc::clone(self);
        self.shared.tracker.spawn(async move {
            let stopped = pool.shared.stop.clone();
            tokio::select! {
                () = Arc::clone(&pool).open_one() => {}
                // Nobody counts any more.
                () = stopped.cancelled() => {}
            }
        });
    }

    /// Takes a place in the pool and in the budget, or none of them.
    fn reserve_connect(self: &Arc<Self>) -> bool {
        if !self.note_connecting() {
            return false;
        }
        let placed = self.node().budget.take(self, self.shared.clock.now());
        if !placed && self.shared.evict_for(self) {
            // The place of the evicted backend is ours; the wish is fulfilled.
            self.node().budget.forget(self);
            return true;
        }
        if !placed {
            self.state.lock().connecting -= 1;
        }
        placed
    }

    /// Takes a place in the pool, if one more backend is needed.
    fn note_connecting(&self) -> bool {
        let size = self.shared.settings().size;
        let mut state = self.state.lock();
        // While the node refuses this login one attempt at a time tells enough.
        let connecting_max = if state.backoff.is_failing() { 1 } else { usize::MAX };
        let wanted = state.waiters.len() > state.connecting
            && state.total() < size
            && state.connecting < connecting_max
            && !state.closing;
        state.connecting += usize::from(wanted);
        wanted
    }

    async fn open_one(self: Arc<Self>) {
        let shared = &self.shared;
        let node = self.node();
        let pause = self.state.lock().backoff.pause(shared.clock.now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let limit = shared.settings().connects_max;
        let pause = loop {
            if let Some(pause) = node.connecting.start(limit, shared.clock.now()) {
                break pause;
            }
            node.connect_ended.notified().await;
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let fence = self.state.lock().fence;
        let generation = shared.generation();
        let started = shared.clock.now();
        shared.connect_started(self.key.node);
        let credential = shared.credential(&self.key.user);
        let outcome = self.connect(credential.clone()).await;
        let now = shared.clock.now();
        // A node that answers is fine, whatever it thinks of this login.
        let fine = outcome.as_ref().err().is_none_or(|err| err.is_final() || is_full(err));
        node.connecting.ended(fine, now);
        node.connect_ended.notify_one();
        shared.connect_ended(self.key.node, outcome.as_ref().err(), now.since(started));
        match outcome {
            Ok(mut backend) => {
                backend.generation = generation;
                backend.statements.limit_bytes(shared.settings().prepared_bytes_max);
                self.admit(Box::new(backend), fence, now);
            }
            Err(err) => self.connect_failed(err, &credential),
        }
    }

    async fn connect(&self, credential: NodeCredential) -> Result<Backend, ConnectError> {
        let shared = &self.shared;
        let settings = shared.settings();
        let login = Login {
            user: Arc::clone(&self.key.user),
            database: Arc::clone(&self.key.database),
            credential,
            parameters: Vec::new(),
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

    /// What the waiters are told at once; `None`: the next attempt may do better.
    fn failure_of(&self, err: &ConnectError, credential: &NodeCredential) -> Option<CheckoutError> {
        if !err.is_final() {
            return None;
        }
        if !is_outdated(err) {
            return Some(CheckoutError::Rejected(err.clone()));
        }
        if *credential != NodeCredential::Outdated && !self.shared.is_primary(self.key.node) {
            // A standby may not have heard of the new password yet: the primary knows.
            return Some(CheckoutError::NodeGone);
        }
        if !self.shared.forget_credential(&self.key.user, credential) {
            return None;
        }
        tracing::info!(user = %self.key.user, "the primary refuses the user's latest proof: its password was changed");
        let why = NodeRefusal::KeysDoNotFit;
        let told = match credential {
            // The proof was a client's: that one has to come again.
            NodeCredential::ScramKeys(_) => {
                ConnectError::Auth(Arc::new(AuthError::Node { user: (*self.key.user).into(), why }))
            }
            _ => err.clone(),
        };
        Some(CheckoutError::Rejected(told))
    }

    /// Does nobody hold a backend of this pool that could be waited for, and does the pool belong to a standby, whose
    /// reads another node can take?
    fn is_hopeless(&self) -> bool {
        self.state.lock().controls.is_empty() && !self.shared.is_primary(self.key.node)
    }

    fn connect_failed(self: &Arc<Self>, err: ConnectError, credential: &NodeCredential) {
        if let Some(fact) = fact_of(self.key.node, &err) {
            self.shared.facts.send(fact);
        }
        tracing::debug!(node = %self.shared.node(self.key.node).name, user = %self.key.user, database = %self.key.database, "connect failed: {err}");
        let failure =
            self.failure_of(&err, credential).or_else(|| self.is_hopeless().then_some(CheckoutError::NodeGone));
        let wakers = {
            let mut state = self.state.lock();
            state.connecting -= 1;
            if is_full(&err) || matches!(failure, Some(CheckoutError::NodeGone)) {
                state.backoff.failed(self.shared.clock.now());
            }
            state.last_error = Some(err);
            failure.map(|failure| state.waiters.fail_all(&failure)).unwrap_or_default()
        };
        wakers.into_iter().for_each(Waker::wake);
        // Tries again, after the node's backoff, while anyone waits.
        self.place_freed();
    }
}

/// Does the node hold another password than the credential proves (it was changed)?
fn is_outdated(err: &ConnectError) -> bool {
    match err {
        ConnectError::Rejected(rejection) => &*rejection.sqlstate == SqlState::INVALID_PASSWORD.0,
        ConnectError::Auth(why) => matches!(**why, AuthError::Node { why: NodeRefusal::KeysDoNotFit, .. }),
        _ => false,
    }
}

/// Does the node lack room for this login only (SQLSTATE class 53)?
pub(super) fn is_full(err: &ConnectError) -> bool {
    matches!(err, ConnectError::Rejected(rejection) if rejection.sqlstate.starts_with("53"))
}

pub(super) fn fact_of(node: NodeId, err: &ConnectError) -> Option<Fact> {
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
        connecting.ended(false, now);
        assert_eq!(connecting.start(1, now), Some(BACKOFF_FIRST), "one failure among many at once counts once");
        let mut now = now;
        for _ in 0..20 {
            now = now + BACKOFF_MAX;
            connecting.ended(false, now);
            connecting.start(1, now);
        }
        assert_eq!(connecting.state.lock().backoff.pause(now), BACKOFF_MAX);
        connecting.ended(true, now);
        assert_eq!(connecting.start(1, now), Some(Duration::ZERO));
    }
}
