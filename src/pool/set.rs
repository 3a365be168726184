//! All pools of the proxy.
//!
//! Invariants: one pool per key; a pool nobody uses goes away; the map's lock is taken when a session
//! first meets a pool, never per statement. Absent on purpose: which node to use.

use super::budget::Budget;
use super::connector::Connecting;
use super::dedicated::{Reaches, Seats};
use super::maintain;
use super::totals::Retired;
use super::{Pool, PoolStats};
use crate::auth::NodeCredential;
use crate::backend::Target;
use crate::clock::Clock;
use crate::config::PoolConfig;
use crate::ids::{BackendId, NodeId, PoolKey};
use crate::metrics::Metrics;
use crate::route::Standings;
use crate::topology::{FactSender, Role, TopologyReader};
use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a set of pools needs.
#[derive(Debug)]
pub struct PoolDeps {
    /// The nodes, by index.
    pub nodes: Vec<PoolNode>,
    /// `[pool]`
    pub config: PoolConfig,
    /// Time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where facts about nodes go.
    pub facts: FactSender,
    /// How each node does.
    pub standings: Arc<Standings>,
    /// Where fences come from.
    pub topology: TopologyReader,
}

/// A node as the pools see it.
#[derive(Debug)]
pub struct PoolNode {
    /// Configured name.
    pub name: Arc<str>,
    /// Where it listens.
    pub target: Target,
    /// Backends over all pools.
    pub budget: usize,
}

#[derive(Debug)]
pub(super) struct NodeState {
    pub name: Arc<str>,
    pub target: Target,
    pub budget: Budget,
    pub connecting: Connecting,
    pub connect_ended: Notify,
    /// How many of its backends belong to one client each.
    pub dedicated: Seats,
}

#[derive(Debug)]
pub(super) struct Shared {
    nodes: Vec<NodeState>,
    config: ArcSwap<PoolConfig>,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    credentials: Mutex<HashMap<Arc<str>, NodeCredential>>,
    next_backend: AtomicU64,
    pub dedicated: Mutex<Reaches>,
    generation: AtomicU64,
    pub retired: Mutex<Retired>,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub facts: FactSender,
    pub standings: Arc<Standings>,
    pub topology: TopologyReader,
    pub tracker: TaskTracker,
    pub stop: CancellationToken,
}

/// All pools.
#[derive(Clone, Debug)]
pub struct PoolSet {
    pub(super) shared: Arc<Shared>,
}

impl PoolSet {
    /// Makes an empty set and starts its upkeep on the current runtime.
    #[must_use]
    pub fn start(deps: PoolDeps) -> Self {
        let nodes = deps
            .nodes
            .into_iter()
            .map(|node| NodeState {
                name: node.name,
                target: node.target,
                budget: Budget::new(node.budget),
                connecting: Connecting::default(),
                connect_ended: Notify::new(),
                dedicated: Seats::default(),
            })
            .collect();
        let shared = Arc::new(Shared {
            nodes,
            config: ArcSwap::from_pointee(deps.config),
            pools: Mutex::new(HashMap::new()),
            credentials: Mutex::new(HashMap::new()),
            next_backend: AtomicU64::new(1),
            dedicated: Mutex::default(),
            generation: AtomicU64::new(0),
            retired: Mutex::default(),
            clock: deps.clock,
            metrics: deps.metrics,
            facts: deps.facts,
            standings: deps.standings,
            topology: deps.topology,
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        shared.tracker.spawn(maintain::follow_fences(Arc::clone(&shared)));
        shared.tracker.spawn(maintain::expire_waiters(Arc::clone(&shared)));
        shared.tracker.spawn(maintain::sweep_idle(Arc::clone(&shared)));
        Self { shared }
    }

    /// The pool for this key, made if need be.
    #[must_use]
    pub fn pool(&self, key: &PoolKey) -> Arc<Pool> {
        let mut pools = self.shared.pools.lock();
        if let Some(pool) = pools.get(key) {
            return Arc::clone(pool);
        }
        let fence = self.shared.topology.load().node(key.node).map_or(0, |view| view.fence);
        let pool = Arc::new(Pool::new(key.clone(), Arc::clone(&self.shared), fence, self.shared.clock.now()));
        pools.insert(key.clone(), Arc::clone(&pool));
        pool
    }

    /// Notes by what this user can log in to nodes, as its latest login told; replaces what was known, unless that
    /// login told nothing (trust, peer, cert).
    pub fn set_credential(&self, user: &Arc<str>, credential: NodeCredential) {
        let mut credentials = self.shared.credentials.lock();
        match credentials.get(user) {
            Some(_) if credential == NodeCredential::None => return,
            // The one that is there has its keys already.
            Some(known) if *known == credential => return,
            _ => {}
        }
        credentials.insert(Arc::clone(user), credential);
    }

    /// Uses other limits from now on (reload).
    pub fn reconfigure(&self, config: PoolConfig, budgets: &[usize]) {
        for (node, budget) in self.shared.nodes.iter().zip(budgets) {
            node.budget.resize(*budget);
        }
        self.shared.config.store(Arc::new(config));
        // What has grown is used at once; what has shrunk is closed as it becomes idle.
        for pool in self.shared.snapshot() {
            pool.open_more();
        }
        for node in (0..).map(NodeId).take(self.shared.nodes.len()) {
            self.shared.offer_places(node);
        }
    }

    /// Closes the idle backends of a database on every node.
    pub fn vacate(&self, database: &str) {
        for pool in self.shared.snapshot().into_iter().filter(|pool| *pool.key.database == *database) {
            pool.close_idle();
        }
    }

    /// Closes the idle backends of a node.
    pub fn vacate_node(&self, node: NodeId) {
        for pool in self.shared.snapshot().into_iter().filter(|pool| pool.key.node == node) {
            pool.close_idle();
        }
    }

    /// What a backend begins with has changed: those that exist are closed when they are next idle.
    pub fn outdate(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        for pool in self.shared.snapshot() {
            pool.close_idle();
        }
    }

    /// The process id by which the client knows itself whose session has the backend that the node knows by
    /// `pid`, or had it last.
    #[must_use]
    pub fn session_pid(&self, node: NodeId, pid: i32) -> Option<i32> {
        let pools = self.shared.snapshot();
        pools.iter().filter(|pool| pool.key.node == node).find_map(|pool| pool.session_pid(pid))
    }

    /// Counts of every pool.
    #[must_use]
    pub fn stats(&self) -> Vec<(PoolKey, PoolStats)> {
        self.shared.snapshot().iter().map(|pool| (pool.key.clone(), pool.stats())).collect()
    }

    /// Places taken and the limit, of a node's budget.
    #[must_use]
    pub fn budget(&self, node: NodeId) -> (usize, usize) {
        self.shared.node(node).budget.usage()
    }

    /// Closes everything and waits for the upkeep to end.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        for pool in self.shared.snapshot() {
            pool.close();
        }
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }
}

impl Shared {
    pub fn node(&self, node: NodeId) -> &NodeState {
        &self.nodes[node.index()]
    }

    pub fn settings(&self) -> arc_swap::Guard<Arc<PoolConfig>> {
        self.config.load()
    }

    pub fn next_backend(&self) -> BackendId {
        BackendId(self.next_backend.fetch_add(1, Ordering::Relaxed))
    }

    pub fn credential(&self, user: &str) -> NodeCredential {
        self.credentials.lock().get(user).cloned().unwrap_or(NodeCredential::None)
    }

    /// The number of times that what backends begin with has changed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The primary has refused this credential. True if it was the latest: it is forgotten; false if
    /// a login has brought another one meanwhile.
    pub fn forget_credential(&self, user: &str, refused: &NodeCredential) -> bool {
        let mut credentials = self.credentials.lock();
        match credentials.get_mut(user) {
            Some(known) if known == refused => {
                *known = NodeCredential::Outdated;
                true
            }
            Some(NodeCredential::Outdated) | None => true,
            Some(_) => false,
        }
    }

    /// Does this node take writes, as far as is known?
    pub fn is_primary(&self, node: NodeId) -> bool {
        self.topology.load().node(node).is_some_and(|view| view.role == Role::Primary)
    }

    pub fn snapshot(&self) -> Vec<Arc<Pool>> {
        self.pools.lock().values().cloned().collect()
    }

    /// Forgets pools that hold nothing and were not asked for lately.
    pub fn forget_unused(&self, unused: impl Fn(&Pool) -> bool) {
        // A pool that a session still holds must stay where fences reach it.
        self.pools.lock().retain(|_, pool| {
            let kept = Arc::strong_count(pool) > 1 || !unused(pool);
            if !kept {
                let totals = pool.state.lock().totals;
                self.retired.lock().add(&pool.key.database, totals);
            }
            kept
        });
    }
}
