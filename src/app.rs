//! The composition root: start, reload, drain.
//!
//! Invariants: sockets are bound before anything else starts, so that a wrong address is said at once;
//! the control plane has its own thread; the order of stopping is written in one function. Absent on
//! purpose: rules of any kind.

mod counted;

use crate::admin::console::{Carried, Console, ORDERS_MAX, Order, OrderRequest, Sources};
use crate::admin::{AdminDeps, NodeAddress, Phase, Readiness, VitalsSource};
use crate::auth::hba::Hba;
use crate::auth::{
    AuthQuery, Candidates, LoginLimiter, LoginLimits, Memberships, NodeLink, Protection, SecretSource, Secrets,
};
use crate::backend::Target;
use crate::client::{Access, Admission, AuthDeps, Hashing, Inquirer, Signal};
use crate::clock::Clock;
use crate::config::{Config, Report};
use crate::failover::controller::{ControlChannel, ControlDeps, ControlHandle, ControlThread, spawn};
use crate::failover::event::Command;
use crate::failover::{Machine, Policy};
use crate::ids::NodeId;
use crate::metrics::Metrics;
use crate::monitor::{self, catalogs::CatalogDeps};
use crate::net::{Listener, NodeTls, TlsAcceptor, bind, bind_unix};
use crate::pool::{PoolDeps, PoolNode, PoolSet};
use crate::route::{Reason, Service, Standings, classifier_settings};
use crate::serve::{Server, accept};
use crate::session::{SessionDeps, Tunables, watch_nodes};
use crate::topology::{
    FactReceiver, FactSender, Role, Topology, TopologyPublisher, TopologyReader, fact_channel, topology_channel,
};
use anyhow::{Context, Result};
use arc_swap::{ArcSwap, ArcSwapOption};
use counted::Counted;
use futures::future::BoxFuture;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the control plane may take to hear of an order.
const CONTROL_LIMIT: Duration = Duration::from_secs(5);
/// After the drain: how long sessions may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Runs the proxy until it is told to stop.
///
/// # Errors
/// What kept it from starting.
pub fn run(path: &Path, config: Config) -> Result<()> {
    let config = Arc::new(config);
    raise_descriptor_limit();
    let runtime = data_runtime(&config)?;
    let outcome = runtime.block_on(async {
        let app = App::start(path.to_owned(), config)?;
        app.serve().await
    });
    // A name lookup that hangs must not keep the process.
    runtime.shutdown_timeout(GOODBYE);
    outcome
}

fn data_runtime(config: &Config) -> Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = if config.server.workers > 0 { config.server.workers } else { cores.saturating_sub(1).max(1) };
    // One thread needs no scheduler that wakes others: it saves the futex and half the epoll calls.
    let mut builder = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder
        .enable_all()
        .thread_name("pgregent-data")
        .worker_threads(workers)
        .build()
        .context("the data plane's threads could not be started")
}

/// Each client and each backend costs descriptors; the soft limit is often only 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// Everything that runs.
struct App {
    path: PathBuf,
    config: Arc<Config>,
    server: Arc<Server>,
    listeners: Vec<Listener>,
    control: ControlThread,
    readiness: Readiness,
    stop_admin: CancellationToken,
    /// What operators order in the console.
    orders: mpsc::Receiver<OrderRequest>,
    generation: u64,
}

impl App {
    fn start(path: PathBuf, config: Arc<Config>) -> Result<Self> {
        for node in &config.nodes {
            if let Some(why) = NodeTls::new(&node.tls).problem() {
                anyhow::bail!("[[node]] {}: TLS cannot be used as configured: {why}", node.name);
            }
        }
        let listeners = listen(&config)?;
        let admin = admin_listener(&config)?;
        let names: Vec<Arc<str>> = config.nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        let reasons: Vec<&'static str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        let metrics = Metrics::new(&names, &reasons);
        count_panics(&metrics);
        let clock = Clock::machine();
        let (publisher, topology) = topology_channel(Topology::starting(&names));
        let (facts, fact_receiver) = fact_channel();
        let channel = ControlChannel::default();
        let (server, orders) = make_server(&config, &clock, &metrics, &topology, &facts, channel.handle())?;
        let readiness = Readiness::new();
        let stop_admin = CancellationToken::new();
        let admin = admin.map(|listener| AdminParts {
            listener,
            server: Arc::clone(&server),
            readiness: readiness.clone(),
            stop: stop_admin.clone(),
            config: Arc::clone(&config),
        });
        let catalogs = CatalogDeps {
            config: Arc::clone(&server.running),
            table: Arc::clone(&server.deps.catalogs),
            topology,
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
            classifier: classifier_settings,
        };
        let control = start_control(&config, &clock, &metrics, publisher, fact_receiver, channel, (catalogs, admin))?;
        for (node, configured) in (0..).map(NodeId).zip(&config.nodes).filter(|(_, node)| node.drain) {
            tracing::info!(node = %configured.name, "draining, as configured");
            server.deps.standings.of(node).set_service(Service::Draining);
        }
        tokio::spawn(watch_nodes(Arc::clone(&server.deps), server.draining.clone()));
        Ok(Self { path, config, server, listeners, control, readiness, stop_admin, orders, generation: 0 })
    }

    async fn serve(mut self) -> Result<()> {
        let accepting = TaskTracker::new();
        let stop_accepting = CancellationToken::new();
        for listener in std::mem::take(&mut self.listeners) {
            tracing::info!(address = %listener, "listening");
            accepting.spawn(accept(Arc::clone(&self.server), listener, stop_accepting.clone()));
        }
        self.readiness.set(Phase::Serving);
        let mut signals = Signals::new()?;
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    // Whoever sent the signal reads the log.
                    Asked::Reload => drop(self.reload()),
                    Asked::Stop => break,
                },
                Some((order, reply)) = self.orders.recv() => {
                    let carried = match order {
                        Order::Reload => self.reload(),
                        Order::Serve(node, service) => self.set_service(node, service).await,
                    };
                    // The client may have left meanwhile.
                    let _ = reply.send(carried);
                }
            }
        }
        stop_accepting.cancel();
        accepting.close();
        accepting.wait().await;
        self.stop(&mut signals).await;
        Ok(())
    }

    /// The order of stopping: no new clients, sessions drained, pools closed, control plane, admin.
    async fn stop(self, signals: &mut Signals) {
        self.readiness.set(Phase::Draining);
        tracing::info!("draining; a second signal stops at once");
        let sessions = &self.server.tracker;
        sessions.close();
        self.server.draining.cancel();
        self.signal_sessions(Signal::Drain);
        let drained = tokio::select! {
            () = sessions.wait() => true,
            () = tokio::time::sleep(self.server.config.load().drain_timeout) => false,
            () = signals.stop() => false,
        };
        if !drained {
            self.signal_sessions(Signal::Kill);
            if tokio::time::timeout(GOODBYE, sessions.wait()).await.is_err() {
                tracing::warn!(connections = sessions.len(), "stopping although connections are open");
            }
        }
        if tokio::time::timeout(GOODBYE, self.server.deps.pools.close()).await.is_err() {
            tracing::warn!("stopping although backends are being reset");
        }
        self.stop_admin.cancel();
        if tokio::task::spawn_blocking(|| self.control.stop()).await.is_err() {
            tracing::error!("the control plane did not stop cleanly");
        }
        tracing::info!("stopped");
    }

    fn signal_sessions(&self, signal: Signal) {
        for handle in self.server.deps.registry.sessions() {
            handle.signal(signal);
        }
    }

    /// An operator wants a node to serve so. The control plane is told first: where it cannot be, nothing changes.
    async fn set_service(&self, node: NodeId, service: Service) -> Carried {
        let command = Command::Maintain { node, on: service == Service::Maintenance };
        let told = tokio::time::timeout(CONTROL_LIMIT, self.control.handle.send(command)).await;
        match told {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("The control plane says: {error}.")),
            Err(_) => return Err("The control plane does not answer.".to_owned()),
        }
        self.server.deps.standings.of(node).set_service(service);
        tracing::info!(node = %self.config.nodes[node.index()].name, service = service.word(), "ordered by an operator");
        Ok(())
    }

    /// Reads the config file again. The answer is for the client that asked; the log has it in any case.
    fn reload(&mut self) -> Carried {
        let outcome = self.reload_file();
        if let Err(why) = &outcome {
            tracing::error!("the config was not reloaded: {why}");
        }
        outcome
    }

    fn reload_file(&mut self) -> Carried {
        let report = Report::of_file(&self.path);
        let next = match report.into_result() {
            Ok(next) => Arc::new(next),
            Err(problems) => return Err(format!("\n{problems}")),
        };
        let changes = self.config.changes(&next);
        if changes.is_empty() {
            // Files that the config names (a userlist) are read again all the same.
            tracing::info!("reload: no setting has changed");
        }
        let next = Arc::new(self.keep_what_needs_a_restart(&next));
        let running = self.server.auth.load_full();
        let kept = LoginMemory { mock_seed: running.mock_seed, limiter: Arc::clone(&running.limiter) };
        let auth = match auth_deps(&next, &self.server.deps.clock, &self.server.deps.topology, kept) {
            Ok(auth) => auth,
            Err(error) => return Err(format!("{error:#}")),
        };
        let tls = match TlsAcceptor::new(&next.tls) {
            Ok(tls) => tls.map(Arc::new),
            Err(error) => return Err(format!("[tls]: {error}")),
        };
        for change in &changes {
            tracing::info!("reload: {change}");
        }
        if next.tls.identities != self.config.tls.identities || next.tls.authorities != self.config.tls.authorities {
            tracing::info!("reload: new certificates are in use");
        }
        self.generation += 1;
        auth.limiter.set_limits(login_limits(&next));
        self.server.auth.store(Arc::new(auth));
        self.server.tls.store(tls);
        self.server.config.store(Arc::new(next.server.clone()));
        self.server.admission.resize(&next.server);
        let budgets: Vec<usize> = next.nodes.iter().map(|node| node.budget).collect();
        self.server.deps.pools.reconfigure(next.pool.clone(), &budgets);
        self.server.deps.tunables.store(Arc::new(Tunables::new(&next, self.generation)));
        self.server.running.store(Arc::clone(&next));
        self.drain_as_configured(&next);
        self.server.deps.catalogs.wake();
        self.config = next;
        Ok(())
    }

    /// What the file says anew about draining counts; what an operator ordered otherwise stays.
    fn drain_as_configured(&self, next: &Config) {
        for ((node, before), after) in (0..).map(NodeId).zip(&self.config.nodes).zip(&next.nodes) {
            let standing = self.server.deps.standings.of(node);
            match (before.drain, after.drain, standing.service()) {
                (false, true, Service::Enabled) => standing.set_service(Service::Draining),
                (true, false, Service::Draining) => standing.set_service(Service::Enabled),
                _ => {}
            }
        }
    }

    /// The new config, with the running values where only a restart applies new ones.
    fn keep_what_needs_a_restart(&self, next: &Config) -> Config {
        let running = &self.config;
        let mut kept = next.clone();
        kept.nodes.clone_from(&running.nodes);
        for node in &mut kept.nodes {
            if let Some(next) = next.nodes.iter().find(|next| next.name == node.name) {
                node.weight = next.weight;
                node.drain = next.drain;
                node.zone.clone_from(&next.zone);
            }
        }
        kept.cluster = running.cluster.clone();
        kept.admin.listen = running.admin.listen;
        kept.log.json = running.log.json;
        kept.log.filter.clone_from(&running.log.filter);
        kept.server.listen.clone_from(&running.server.listen);
        kept.server.workers = running.server.workers;
        kept.server.unix_socket_dir.clone_from(&running.server.unix_socket_dir);
        kept.server.unix_socket_permissions = running.server.unix_socket_permissions;
        if next.pool.node_budget != running.pool.node_budget {
            for node in kept.nodes.iter_mut().filter(|node| node.budget == running.pool.node_budget) {
                node.budget = next.pool.node_budget;
            }
        }
        kept
    }
}

struct Signals {
    terminate: UnixSignal,
    interrupt: UnixSignal,
    reload: UnixSignal,
}

impl Signals {
    fn new() -> Result<Self> {
        let watch = |kind| signal(kind).context("signals cannot be watched");
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            reload: watch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.reload.recv() => Asked::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

/// What the operating system asks of us.
#[derive(PartialEq, Eq)]
enum Asked {
    Stop,
    Reload,
}

fn listen(config: &Config) -> Result<Vec<Listener>> {
    let bound = |address: &std::net::SocketAddr| {
        bind(*address).with_context(|| format!("[server] listen: cannot listen on {address}"))
    };
    let mut listeners = config.server.listen.iter().map(bound).collect::<Result<Vec<_>>>()?;
    if let Some(directory) = &config.server.unix_socket_dir {
        let port = listeners.first().and_then(Listener::port).unwrap_or_default();
        let unix = bind_unix(directory, port, config.server.unix_socket_permissions);
        let told = || format!("[server] unix_socket_dir: cannot listen in {}", directory.display());
        listeners.push(unix.with_context(told)?);
    }
    Ok(listeners)
}

fn admin_listener(config: &Config) -> Result<Option<std::net::TcpListener>> {
    let Some(address) = config.admin.listen else { return Ok(None) };
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("[admin] listen: cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

fn count_panics(metrics: &Arc<Metrics>) {
    let metrics = Arc::clone(metrics);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        metrics.process.panics.inc();
        before(info);
    }));
}

fn make_server(
    config: &Arc<Config>,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    topology: &TopologyReader,
    facts: &FactSender,
    control: ControlHandle,
) -> Result<(Arc<Server>, mpsc::Receiver<OrderRequest>)> {
    let nodes = config.nodes.iter().map(|node| PoolNode {
        name: Arc::clone(&node.name),
        target: Target { host: node.host.as_str().into(), port: node.port, tls: NodeTls::new(&node.tls) },
        budget: node.budget,
    });
    let standings = Arc::new(Standings::new(config.nodes.len()));
    let pools = PoolSet::start(PoolDeps {
        nodes: nodes.collect(),
        config: config.pool.clone(),
        clock: clock.clone(),
        metrics: Arc::clone(metrics),
        facts: facts.clone(),
        standings: Arc::clone(&standings),
        topology: topology.clone(),
    });
    let deps =
        SessionDeps::new(config, pools, standings, topology.clone(), facts.clone(), Arc::clone(metrics), clock.clone());
    let limiter = Arc::new(LoginLimiter::new(login_limits(config)));
    let memory = LoginMemory { mock_seed: rand::random(), limiter };
    let running = Arc::new(ArcSwap::new(Arc::clone(config)));
    let sources = Sources {
        registry: Arc::clone(&deps.registry),
        pools: deps.pools.clone(),
        topology: topology.clone(),
        standings: Arc::clone(&deps.standings),
        catalogs: Arc::clone(&deps.catalogs),
        decisions: Arc::clone(&deps.decisions),
        learned: Arc::clone(&deps.learned),
        control,
        config: Arc::clone(&running),
        clock: clock.clone(),
    };
    let (order, orders) = mpsc::channel(ORDERS_MAX);
    let server = Server {
        deps: Arc::new(deps),
        running,
        console: Console::new(sources, order, config.server.client_write_timeout),
        auth: ArcSwap::from_pointee(auth_deps(config, clock, topology, memory)?),
        tls: ArcSwapOption::new(TlsAcceptor::new(&config.tls).context("[tls]")?.map(Arc::new)),
        config: ArcSwap::from_pointee(config.server.clone()),
        admission: Admission::new(&config.server),
        tracker: TaskTracker::new(),
        draining: CancellationToken::new(),
    };
    Ok((Arc::new(server), orders))
}

/// What logins remember beyond a reload.
struct LoginMemory {
    mock_seed: [u8; 32],
    limiter: Arc<LoginLimiter>,
}

fn login_limits(config: &Config) -> LoginLimits {
    let limit = |count: u32| (count > 0).then_some(count);
    LoginLimits {
        per_address: limit(config.auth.failed_logins_per_address),
        per_user: limit(config.auth.failed_logins_per_user),
    }
}

fn auth_deps(config: &Arc<Config>, clock: &Clock, topology: &TopologyReader, memory: LoginMemory) -> Result<AuthDeps> {
    let (secrets, rules) = login_files(config).map_err(|problems| anyhow::anyhow!(problems.join("\n")))?;
    let link = NodeLink::protected(&config.auth, candidates(config, topology), protection(config));
    let query = AuthQuery::new(&config.auth, &link);
    Ok(AuthDeps {
        access: rules.map_or(Access::Method(config.auth.method), Access::Rules),
        secrets: SecretSource::new(secrets, query),
        inquirer: Inquirer::new(Memberships::new(&link)),
        limiter: memory.limiter,
        hashing: Hashing::new(),
        mock_seed: memory.mock_seed,
        clock: clock.clone(),
    })
}

/// What the files that `[auth]` names hold, or all that is wrong with them.
pub(crate) fn login_files(config: &Config) -> Result<(Secrets, Option<Hba>), Vec<String>> {
    let (secrets, rules) = (Secrets::from_config(&config.auth), Hba::from_config(&config.auth));
    match (secrets, rules) {
        (Ok(secrets), Ok(rules)) => Ok((secrets, rules)),
        (secrets, rules) => Err([secrets.err(), rules.err()].into_iter().flatten().flatten().collect()),
    }
}

/// How `auth_query` connects to each of them.
fn protection(config: &Config) -> Protection {
    let nodes = config.nodes.iter();
    let known: Vec<_> = nodes.map(|node| ((node.host.clone(), node.port), NodeTls::new(&node.tls))).collect();
    // Only nodes of the config are candidates.
    Arc::new(move |wanted| known.iter().find(|(node, _)| node == wanted).map_or(NodeTls::NEVER, |(_, tls)| tls.clone()))
}

/// Where `auth_query` may run: the primary first, then any node that takes reads, then any.
fn candidates(config: &Arc<Config>, topology: &TopologyReader) -> Candidates {
    let (config, topology) = (Arc::clone(config), topology.clone());
    Arc::new(move || {
        let snapshot = topology.load();
        let rank = |index: usize| match snapshot.nodes.get(index) {
            Some(view) if view.role == Role::Primary => 0,
            Some(view) if view.accepts_reads => 1,
            _ => 2,
        };
        let mut order: Vec<usize> = (0..config.nodes.len()).collect();
        order.sort_by_key(|index| rank(*index));
        order.into_iter().map(|index| (config.nodes[index].host.clone(), config.nodes[index].port)).collect()
    })
}

struct AdminParts {
    listener: std::net::TcpListener,
    server: Arc<Server>,
    readiness: Readiness,
    stop: CancellationToken,
    config: Arc<Config>,
}

fn start_control(
    config: &Arc<Config>,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    publisher: TopologyPublisher,
    facts: FactReceiver,
    channel: ControlChannel,
    (catalogs, admin): (CatalogDeps, Option<AdminParts>),
) -> Result<ControlThread> {
    let services = move |handle: ControlHandle| -> Vec<BoxFuture<'static, ()>> {
        let mut services: Vec<BoxFuture<'static, ()>> = vec![Box::pin(monitor::catalogs::keep(catalogs))];
        services.extend(admin.map(|parts| Box::pin(serve_admin(parts, handle)) as BoxFuture<'static, ()>));
        services
    };
    let deps = ControlDeps {
        config: Arc::clone(config),
        clock: clock.clone(),
        publisher,
        facts,
        metrics: Arc::new(Counted(Arc::clone(metrics))),
        services: Box::new(services),
        channel,
    };
    let machine = Machine::new(Policy::from_config(config), clock.now());
    spawn(deps, machine).context("the control plane could not be started")
}

async fn serve_admin(parts: AdminParts, handle: ControlHandle) {
    let listener = match tokio::net::TcpListener::from_std(parts.listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin port cannot be served"),
    };
    let deps = Arc::clone(&parts.server.deps);
    let (facts, clock) = (deps.facts.clone(), deps.clock.clone());
    let addresses = parts.config.nodes.iter();
    let admin = AdminDeps {
        cluster: parts.config.cluster.name.as_str().into(),
        metrics: Arc::clone(&deps.metrics),
        before_scrape: Box::new(move |metrics| metrics.control.facts_dropped(facts.dropped())),
        topology: deps.topology.clone(),
        vitals: vitals_of(&deps),
        status: Box::new(move || handle.status().borrow().at(clock.now())),
        pools: pools_json(&deps, &parts.config),
        decisions: Arc::clone(&deps.decisions),
        readiness: parts.readiness,
        nodes: addresses
            .map(|node| NodeAddress { name: Arc::clone(&node.name), address: format!("{}:{}", node.host, node.port) })
            .collect(),
        clock: deps.clock.clone(),
    };
    crate::admin::serve(listener, admin, parts.stop).await;
}

fn vitals_of(deps: &Arc<SessionDeps>) -> VitalsSource {
    let deps = Arc::clone(deps);
    Box::new(move || {
        let (now, slow_start) = (deps.clock.now(), deps.tunables.load().balancing.slow_start);
        deps.standings.iter().map(|(_, standing)| standing.vitals(now, slow_start)).collect()
    })
}

fn pools_json(deps: &Arc<SessionDeps>, config: &Arc<Config>) -> Box<dyn Fn() -> serde_json::Value + Send + Sync> {
    let (deps, config) = (Arc::clone(deps), Arc::clone(config));
    Box::new(move || {
        let pools = deps.pools.stats().into_iter().map(|(key, stats)| {
            serde_json::json!({
                "node": &*config.nodes[key.node.index()].name, "database": &*key.database, "user": &*key.user,
                "idle": stats.idle, "active": stats.active, "connecting": stats.connecting, "waiting": stats.waiting,
            })
        });
        serde_json::json!({ "pools": pools.collect::<Vec<_>>() })
    })
}
