//! The control plane's own thread and runtime, and the handle by which others talk to it.
//!
//! Invariants: everything of the control plane runs on one current-thread runtime in one thread, so
//! that saturated workers cannot delay a probe; stopping waits for every task, in a written order;
//! commands are bounded. Absent on purpose: the data plane (it shares only the topology channel and
//! facts).

use super::status::{ClusterStatus, Recent};
use super::view::HoldLog;
use super::{Brain, ControlMetrics, Controller};
use crate::clock::{Clock, Time};
use crate::config::{Config, CoordinationKind, FailoverMode};
use crate::coordination::voters::{self, VotersStore};
use crate::coordination::{EtcdStore, SingleStore, Store};
use crate::failover::event::Command;
use crate::failover::execute::Executor;
use crate::failover::hooks::Hooks;
use crate::failover::standing::Standing;
use crate::monitor::Monitor;
use crate::monitor::freshness::Freshness;
use crate::topology::{FactReceiver, TopologyPublisher};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Commands that may wait for the controller; more wait in [`ControlHandle::send`].
const REQUESTS_MAX: usize = 16;
/// How long file work under way may keep the thread from ending.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long the store may take to let go of a lease in the end.
const RELEASE_LIMIT: Duration = Duration::from_millis(500);

/// Makes the futures that run on the control plane's runtime beside it (the HTTP server, say). They
/// are dropped when the control plane stops.
pub type Services = Box<dyn FnOnce(ControlHandle) -> Vec<BoxFuture<'static, ()>> + Send>;

/// What the control plane is given.
pub struct ControlDeps {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// The clock that data and control plane share: freshness compares their times.
    pub clock: Clock,
    /// The one publisher.
    pub publisher: TopologyPublisher,
    /// What live traffic sees.
    pub facts: FactReceiver,
    /// Counters.
    pub metrics: Arc<dyn ControlMetrics>,
    /// What else runs on the thread.
    pub services: Services,
    /// By which others talk to it.
    pub channel: ControlChannel,
}

/// The way to the control plane, made before it, so that whatever it needs may hold a handle already.
#[derive(Debug)]
pub struct ControlChannel {
    handle: ControlHandle,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<ClusterStatus>>,
}

impl Default for ControlChannel {
    fn default() -> Self {
        let (requests, requests_rx) = mpsc::channel(REQUESTS_MAX);
        let (status_tx, status) = watch::channel(Arc::new(ClusterStatus::default()));
        Self { handle: ControlHandle { requests, status }, requests: requests_rx, status: status_tx }
    }
}

impl ControlChannel {
    /// To give to whoever needs it.
    #[must_use]
    pub fn handle(&self) -> ControlHandle {
        self.handle.clone()
    }
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The machine refused, with its reason.
    #[error("{0}")]
    Refused(String),
    /// The control plane has stopped.
    #[error("the control plane has stopped")]
    Stopped,
}

/// A command on its way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Result<String, CommandError>>,
}

/// Sends commands and shows status; the only way to change anything.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<ClusterStatus>>,
}

impl ControlHandle {
    /// Gives a command and returns what the machine said to it (that it was accepted, not that it is done).
    ///
    /// # Errors
    /// When it was refused, or the control plane has stopped.
    pub async fn send(&self, command: Command) -> Result<String, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { command, reply }).await.map_err(|_| CommandError::Stopped)?;
        answer.await.map_err(|_| CommandError::Stopped)?
    }

    /// The present status, to look at and to wait for changes of. Ages in it are as of its making
    /// ([`ClusterStatus::at`]).
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<ClusterStatus>> {
        self.status.clone()
    }

    /// Waits until the control plane has stopped, for whatever reason; the write permit is revoked then.
    pub async fn stopped(&self) {
        self.requests.closed().await;
    }
}

/// The running thread.
#[derive(Debug)]
pub struct ControlThread {
    /// To give to whoever needs it.
    pub handle: ControlHandle,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ControlThread {
    /// Stops the control plane and waits for it: writes close, actions under way are given up, probe
    /// sessions and services end, the state file's lock is freed.
    ///
    /// # Errors
    /// When the thread had panicked.
    pub fn stop(mut self) -> io::Result<()> {
        self.stop.cancel();
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Err(_)) => Err(io::Error::other("the control plane had panicked")),
            _ => Ok(()),
        }
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts the control plane on a thread of its own. Blocks briefly for the state files.
///
/// # Errors
/// When the state directory cannot be used (another proxy holds it, say) or no thread can be made.
pub fn spawn<B: Brain>(deps: ControlDeps, brain: B) -> io::Result<ControlThread> {
    let (store, executor) = open_store(&deps.config, &deps.clock)?;
    let handle = deps.channel.handle();
    let stop = CancellationToken::new();
    let parts = Parts { store, executor };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (thread_handle, thread_stop) = (handle.clone(), stop.clone());
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        runtime.block_on(Box::pin(run(deps, brain, parts, thread_handle, thread_stop)));
        runtime.shutdown_timeout(STOP_LIMIT);
    })?;
    Ok(ControlThread { handle, stop, thread: Some(thread) })
}

/// Opens the configured store, and the executor, whose sessions are the store's where locks decide.
fn open_store(config: &Arc<Config>, clock: &Clock) -> io::Result<(Arc<dyn Store>, Arc<Executor>)> {
    let cluster = &config.cluster;
    match cluster.coordination {
        CoordinationKind::Single => {
            let store = SingleStore::open(&cluster.state_dir, &cluster.name).map_err(io::Error::other)?;
            Ok((Arc::new(store), Arc::new(Executor::new(config, None).map_err(io::Error::other)?)))
        }
        CoordinationKind::Voters => {
            let locks = voters::lock_sessions(config);
            let executor = Arc::new(Executor::new(config, Some(Arc::clone(&locks))).map_err(io::Error::other)?);
            let chooser = Arc::clone(&executor) as Arc<dyn voters::Chooser>;
            Ok((Arc::new(VotersStore::new(config, clock, locks, chooser, rand::random())), executor))
        }
        CoordinationKind::Etcd => {
            let store = EtcdStore::new(config, clock).map_err(io::Error::other)?;
            Ok((Arc::new(store), Arc::new(Executor::new(config, None).map_err(io::Error::other)?)))
        }
    }
}

/// What `spawn` made for the thread.
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    pub(super) executor: Arc<Executor>,
}

pub(super) async fn run<B: Brain>(
    deps: ControlDeps,
    brain: B,
    parts: Parts,
    handle: ControlHandle,
    stop: CancellationToken,
) {
    let mut services = JoinSet::new();
    for service in (deps.services)(handle) {
        services.spawn(service);
    }
    let store = parts.store.task().map(|task| AbortOnDropHandle::new(tokio::spawn(task)));
    // Whoever only follows acts on no node.
    if deps.config.cluster.failover != FailoverMode::Follow {
        let executor = Arc::clone(&parts.executor);
        services.spawn(async move { executor.keep_sessions().await });
    }
    let nodes = deps.config.nodes.len();
    let monitor = Monitor::start(&deps.config, &deps.clock, deps.facts.write_demand());
    let controller = Controller {
        brain,
        monitor,
        hooks: Arc::new(Hooks::new(&deps.config)),
        config: deps.config,
        clock: deps.clock,
        publisher: deps.publisher,
        demand: deps.facts.write_demand(),
        facts: deps.facts,
        facts_ended: false,
        freshness: Freshness::new(nodes),
        executor: parts.executor,
        standing: parts.store.standing().map(unread),
        store: parts.store,
        metrics: deps.metrics,
        requests: deps.channel.requests,
        stop,
        status: deps.channel.status,
        actions: JoinSet::new(),
        under_way: HashMap::new(),
        wake_at: None,
        plan: None,
        published: None,
        open_to: None,
        permitted: None,
        reports: vec![None; nodes],
        failures: vec![None; nodes],
        words: vec![None; nodes],
        recent: Recent::default(),
        hold_log: HoldLog::default(),
        status_at: Time::ZERO,
        status_due: true,
    };
    // The controller ends its actions, revokes the permit and ends the monitor; then the services go. The
    // store, which the controller had, lets go of what it holds, so that no other proxy waits for it to run out.
    controller.run().await;
    services.shutdown().await;
    if let Some(store) = store {
        let _ = tokio::time::timeout(RELEASE_LIMIT, store).await;
    }
}

/// The machine must hear that others share the store before it does anything.
fn unread(mut standing: watch::Receiver<Standing>) -> watch::Receiver<Standing> {
    standing.mark_changed();
    standing
}
