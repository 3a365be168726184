//! Backends that belong to one client for their whole life, outside of all pools.
//!
//! For replication connections, which nobody can share. Invariants: each holds a place of its node's
//! budget from before its connect to its end; a node never has more of them than
//! `replication_connections_max`, and always fewer than its budget, so that pools keep a place; a fence
//! of the node reaches each one, also one whose connect was under way. Absent on purpose: what flows
//! through them (`session`), and tries after a failure (the caller's).

use super::connector::{fact_of, is_full};
use super::set::Shared;
use super::{BackendPlace, BackendView, DiscardReason, PoolSet};
use crate::backend::{Backend, BackendControl, ConnectError, Login, connect};
use crate::clock::Time;
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};
use crate::ids::{BackendId, NodeId, PoolKey};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// Who asks for a backend of its own, of which node.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The node.
    pub node: NodeId,
    /// Its fence generation in the snapshot that chose it.
    pub fence: u64,
    /// Role.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// More startup parameters.
    pub parameters: Vec<(String, String)>,
}

/// Why there is none.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DedicatedError {
    /// The node has as many as it may have.
    #[error("the node has {0} replication connections, and may not have more")]
    Full(usize),
    /// The node did not let us in.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl DedicatedError {
    /// May the same wish be fulfilled a little later?
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Connect(err) if !err.is_final() && !is_full(err))
    }
}

impl Classify for DedicatedError {
    fn fault(&self) -> Fault {
        match self {
            Self::Full(_) => Fault::Proxy,
            Self::Connect(err) => err.fault(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Full(_) => Retry::Later,
            Self::Connect(err) => err.retry(),
        }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::Full(0) => ClientError::fatal(
                SqlState::FEATURE_NOT_SUPPORTED,
                "replication connections are not passed through this proxy",
            )
            .hint("Raise [pool] replication_connections_max, or connect to the node itself."),
            Self::Full(limit) => {
                let message = format!("too many replication connections to the node already ({limit})");
                ClientError::fatal(SqlState::TOO_MANY_CONNECTIONS, message)
                    .hint("Raise [pool] replication_connections_max, which stays below the node's budget.")
            }
            Self::Connect(err) => err.client(),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Full(_) => "replication_full",
            Self::Connect(err) => err.label(),
        }
    }
}

/// A place of a node's budget; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    node: NodeId,
}

impl Place {
    pub(super) fn new(shared: Arc<Shared>, node: NodeId) -> Self {
        Self { shared, node }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.node(self.node).budget.give_back();
        self.shared.offer_places(self.node);
    }
}

/// One of a node's dedicated backends, counted.
#[derive(Debug)]
struct Seat {
    shared: Arc<Shared>,
    node: NodeId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.node(self.node).dedicated.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a fence reaches a dedicated backend.
#[derive(Debug)]
pub(super) struct Reach {
    key: PoolKey,
    fence: u64,
    opened: Time,
    control: Arc<BackendControl>,
    fenced: CancellationToken,
}

impl Reach {
    fn fence(&self) {
        self.control.fence();
        self.fenced.cancel();
    }
}

/// A backend of one client.
#[derive(Debug)]
pub struct Dedicated {
    backend: Backend,
    reason: DiscardReason,
    fenced: CancellationToken,
    place: Place,
    _seat: Seat,
}

impl PoolSet {
    /// Waits for a place of the node's budget.
    pub async fn place(&self, node: NodeId) -> Place {
        let shared = &self.shared;
        let budget = &shared.node(node).budget;
        if budget.take_one() || shared.evict(node, |_| true) {
            return Place::new(Arc::clone(shared), node);
        }
        let claim = budget.claim();
        // One that became free in between is not missed.
        shared.offer_places(node);
        match claim.await {
            Ok(place) => place,
            // Claims are dropped with the set only.
            Err(_) => std::future::pending().await,
        }
    }

    /// Opens a backend for one client. Dropped before it is done, it leaves nothing behind.
    ///
    /// # Errors
    /// [`DedicatedError`].
    pub async fn dedicate(&self, wish: &Wish) -> Result<Dedicated, DedicatedError> {
        let shared = &self.shared;
        let seat = take_seat(shared, wish.node)?;
        let place = self.place(wish.node).await;
        let backend = open(shared, wish).await?;
        shared.backend_taken(wish.node);
        let fenced = CancellationToken::new();
        let reach = Reach {
            key: PoolKey { node: wish.node, database: Arc::clone(&wish.database), user: Arc::clone(&wish.user) },
            fence: wish.fence,
            opened: backend.opened,
            control: Arc::clone(&backend.control),
            fenced: fenced.clone(),
        };
        shared.dedicated.lock().insert(backend.id, reach);
        // A fence that was published before it could be reached.
        shared.fence_dedicated();
        Ok(Dedicated { backend, reason: DiscardReason::Abandoned, fenced, place, _seat: seat })
    }
}

fn take_seat(shared: &Arc<Shared>, node: NodeId) -> Result<Seat, DedicatedError> {
    let state = shared.node(node);
    let (_, budget) = state.budget.usage();
    let limit = shared.settings().replication_connections_max.min(budget.saturating_sub(1));
    let taken = |count: usize| (count < limit).then_some(count + 1);
    match state.dedicated.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken) {
        Ok(_) => Ok(Seat { shared: Arc::clone(shared), node }),
        Err(_) => Err(DedicatedError::Full(limit)),
    }
}

/// A connect that is under way, for the limits that all connects to the node keep.
struct Turn<'a> {
    shared: &'a Shared,
    node: NodeId,
    started: Time,
    outcome: Result<(), ConnectError>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = self.shared.clock.now();
        let state = self.shared.node(self.node);
        // A node that answers is fine, whatever it thinks of this login.
        let fine = self.outcome.as_ref().err().is_none_or(|err| err.is_final() || is_full(err));
        state.connecting.ended(fine, now);
        state.connect_ended.notify_one();
        self.shared.connect_ended(self.node, self.outcome.as_ref().err(), now.since(self.started));
    }
}

async fn open(shared: &Shared, wish: &Wish) -> Result<Backend, ConnectError> {
    let state = shared.node(wish.node);
    let settings = shared.settings().clone();
    let pause = loop {
        if let Some(pause) = state.connecting.start(settings.connects_max, shared.clock.now()) {
            break pause;
        }
        state.connect_ended.notified().await;
    };
    shared.connect_started(wish.node);
    // Until the node has answered: whoever drops this gave up on it.
    let outcome = Err(ConnectError::TimedOut);
    let mut turn = Turn { shared, node: wish.node, started: shared.clock.now(), outcome };
    tokio::time::sleep(pause).await;
    turn.started = shared.clock.now();
    let login = Login {
        user: Arc::clone(&wish.user),
        database: Arc::clone(&wish.database),
        credential: shared.credential(&wish.user),
        parameters: wish.parameters.clone(),
    };
    let (id, limit) = (shared.next_backend(), settings.connect_timeout);
    let opened = connect(wish.node, id, &state.target, &login, 0, limit, &shared.clock).await;
    turn.outcome = opened.as_ref().map(|_| ()).map_err(Clone::clone);
    if let Some(fact) = opened.as_ref().err().and_then(|err| fact_of(wish.node, err)) {
        shared.facts.send(fact);
    }
    opened
}

impl Dedicated {
    /// Cancelled when the node is fenced; nothing that it says afterwards may be believed.
    #[must_use]
    pub fn fenced(&self) -> &CancellationToken {
        &self.fenced
    }

    /// It will be closed for this reason; without one it counts as abandoned.
    pub fn ends_for(&mut self, reason: DiscardReason) {
        self.reason = reason;
    }
}

impl Deref for Dedicated {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl DerefMut for Dedicated {
    fn deref_mut(&mut self) -> &mut Backend {
        &mut self.backend
    }
}

impl Drop for Dedicated {
    fn drop(&mut self) {
        let shared = &self.place.shared;
        shared.dedicated.lock().remove(&self.backend.id);
        shared.backend_released(self.place.node);
        shared.backend_removed(self.place.node, self.reason);
    }
}

impl Shared {
    /// Applies the nodes' fence generations to dedicated backends.
    pub fn fence_dedicated(&self) {
        let snapshot = self.topology.snapshot();
        for reach in self.dedicated.lock().values() {
            if snapshot.node(reach.key.node).is_some_and(|view| view.fence != reach.fence) {
                reach.fence();
            }
        }
    }
}

impl Shared {
    /// All dedicated backends, for people.
    pub fn dedicated_backends(&self) -> Vec<BackendView> {
        let view = |(id, reach): (&BackendId, &Reach)| BackendView {
            id: *id,
            key: reach.key.clone(),
            place: BackendPlace::Dedicated,
            control: Arc::clone(&reach.control),
            opened: reach.opened,
        };
        self.dedicated.lock().iter().map(view).collect()
    }
}

/// Dedicated backends by number.
pub(super) type Reaches = hashbrown::HashMap<BackendId, Reach>;

/// A node's number of dedicated backends.
pub(super) type Seats = AtomicUsize;
