//! Metrics, health, cluster state and a status page over HTTP.
//!
//! Invariants: one request per connection, so that every connection has one deadline; health
//! answers read a snapshot and nothing else; whatever renders or calls a closure runs on a blocking
//! thread, so that the control plane's thread is not delayed; request bodies are ignored.
//! Absent on purpose: TLS, authentication, compression, and every method but GET and HEAD.

use super::guard::{GuardedListener, HttpLimits};
use super::ready::{self, NotReady, Readiness, WritesNow};
use super::report::{Around, ClusterReport};
use super::{decisions, gauges, page};
use crate::clock::Clock;
use crate::decision::Decisions;
use crate::failover::controller::ClusterStatus;
use crate::ids::NodeId;
use crate::metrics::{Metrics, TEXT_FORMAT};
use crate::route::Vitals;
use crate::topology::{Topology, TopologyReader};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Scrapes, reports and pages made at once; more wait within their connection's deadline.
pub const RENDERS_MAX: usize = 2;

/// Every endpoint: path, and what it tells.
pub(super) const ENDPOINTS: [(&str, &str); 11] = [
    ("/", "status page"),
    ("/metrics", "metrics in the Prometheus text format"),
    ("/health/live", "200: this process runs"),
    ("/health/ready", "200: this proxy serves clients and some node can take work"),
    ("/vip/ready", "200: the virtual address may point here"),
    ("/primary", "200: a writable primary is reachable through this proxy"),
    ("/replica", "200: a readable standby is reachable through this proxy"),
    ("/api/v1/cluster", "the cluster as this proxy sees it, JSON"),
    ("/api/v1/failover", "where the failover machine stands, what it would do and what it did last, JSON"),
    ("/api/v1/pools", "the pools of this proxy, JSON"),
    ("/api/v1/decisions", "where statements went last and why, JSON; ?user= database= node= class= reason= limit="),
];

/// A node's name and where it is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// Configured name.
    pub name: Arc<str>,
    /// `host:port`.
    pub address: String,
}

/// Gives a JSON value on demand; called on a blocking thread, so it may take a lock but must not wait for clients.
pub type JsonSource = Box<dyn Fn() -> Value + Send + Sync>;

/// Gives what the control plane believes, as of now; must return at once.
pub type StatusSource = Box<dyn Fn() -> ClusterStatus + Send + Sync>;

/// Gives how each node does; must return at once.
pub type VitalsSource = Box<dyn Fn() -> Vec<Vitals> + Send + Sync>;

/// What the endpoints read.
pub struct AdminDeps {
    /// Name of the cluster, for titles.
    pub cluster: Arc<str>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Called before each scrape, to copy figures that others count (pool sizes, dropped facts).
    pub before_scrape: Box<dyn Fn(&Metrics) + Send + Sync>,
    /// The snapshot.
    pub topology: TopologyReader,
    /// How the nodes do, by `NodeId::index`.
    pub vitals: VitalsSource,
    /// What the control plane believes; the cluster's JSON has it as `control`.
    pub status: StatusSource,
    /// The pools' JSON.
    pub pools: JsonSource,
    /// Where statements went last.
    pub decisions: Arc<Decisions>,
    /// Where this proxy is in its life.
    pub readiness: Readiness,
    /// The configured nodes, by `NodeId::index`.
    pub nodes: Vec<NodeAddress>,
    /// The clock that freshness and permits are measured by.
    pub clock: Clock,
}

/// Serves the endpoints on `listener` until `stop`, then lets requests under way finish for a moment.
pub async fn serve(listener: TcpListener, deps: AdminDeps, stop: CancellationToken) {
    serve_limited(listener, deps, HttpLimits::default(), stop).await;
}

/// [`serve`] with other limits.
pub async fn serve_limited(listener: TcpListener, deps: AdminDeps, limits: HttpLimits, stop: CancellationToken) {
    let listener = GuardedListener::new(listener, limits, stop.clone());
    let shared = Arc::new(Shared { deps, renders: Arc::new(Semaphore::new(RENDERS_MAX)) });
    let serving = axum::serve(listener, router(shared)).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(%error, "the HTTP listener ended");
    }
}

struct Shared {
    deps: AdminDeps,
    renders: Arc<Semaphore>,
}

type Deps = State<Arc<Shared>>;

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/vip/ready", get(ready))
        .route("/primary", get(primary))
        .route("/replica", get(standby))
        .route("/api/v1/cluster", get(cluster))
        .route("/api/v1/failover", get(failover))
        .route("/api/v1/pools", get(pools))
        .route("/api/v1/decisions", get(latest_decisions))
        .fallback(unknown_path)
        .layer(middleware::map_response(common_headers))
        .with_state(shared)
}

/// One request per connection, nothing cached, nothing fetched from elsewhere.
async fn common_headers(mut response: Response) -> Response {
    const COMMON: [(HeaderName, &str); 5] = [
        (header::CONNECTION, "close"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    for (name, value) in COMMON {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Shared {
    fn writes(&self, topology: &Topology) -> WritesNow {
        ready::writes_now(topology, &self.deps.topology, &self.deps.clock)
    }

    fn scrape(&self) -> String {
        let deps = &self.deps;
        (deps.before_scrape)(&deps.metrics);
        let topology = deps.topology.snapshot();
        gauges::show(&deps.metrics, &topology, &(deps.vitals)(), &self.writes(&topology), deps.clock.now());
        gauges::show_failover(&deps.metrics, &(deps.status)());
        deps.metrics.render()
    }

    fn report(&self) -> ClusterReport {
        let deps = &self.deps;
        let topology = deps.topology.snapshot();
        let around = Around {
            cluster: &deps.cluster,
            phase: deps.readiness.phase(),
            writes: self.writes(&topology),
            now: deps.clock.now(),
            vitals: (deps.vitals)(),
            control: serde_json::to_value((deps.status)()).unwrap_or_default(),
        };
        ClusterReport::new(&topology, around, |place| deps.nodes.get(place).map_or("", |node| &node.address))
    }
}

/// Runs `make` on a blocking thread, a few at a time.
async fn blocking<T: Send + 'static>(
    shared: Arc<Shared>,
    make: impl FnOnce(&Shared) -> T + Send + 'static,
) -> Result<T, Response> {
    let failed = || plain(StatusCode::INTERNAL_SERVER_ERROR, "this answer could not be made; see the log\n");
    let Ok(permit) = Arc::clone(&shared.renders).acquire_owned().await else { return Err(failed()) };
    let made = {
        let shared = Arc::clone(&shared);
        // The permit goes along: a client that leaves does not stop the work it asked for.
        tokio::task::spawn_blocking(move || {
            let made = make(&shared);
            drop(permit);
            made
        })
    };
    made.await.map_err(|error| {
        if error.is_panic() {
            shared.deps.metrics.process.panics.inc();
        }
        tracing::error!(%error, "an HTTP answer could not be made");
        failed()
    })
}

async fn metrics(State(shared): Deps) -> Response {
    match blocking(shared, Shared::scrape).await {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(failed) => failed,
    }
}

async fn live() -> Response {
    Json(json!({ "live": true })).into_response()
}

async fn ready(State(shared): Deps) -> Response {
    let deps = &shared.deps;
    let topology = deps.topology.snapshot();
    match ready::ready(deps.readiness.phase(), &topology, &shared.writes(&topology)) {
        Ok(()) => Json(json!({ "ready": true })).into_response(),
        Err(why) => not_ready(why),
    }
}

async fn primary(State(shared): Deps) -> Response {
    let topology = shared.deps.topology.snapshot();
    if let Err(why) = ready::serving(shared.deps.readiness.phase()) {
        return not_ready(why);
    }
    let writes = shared.writes(&topology);
    let epoch = topology.epoch.0;
    if let Some(name) = ready::writable_primary(&topology, &writes) {
        return Json(json!({ "primary": &*name, "epoch": epoch, "writes": "open" })).into_response();
    }
    let (word, why) = match &writes {
        WritesNow::Open => ("open", "the primary is not a configured node"),
        WritesNow::Held(why) => ("held", &**why),
        WritesNow::Refused(why) => ("refused", &**why),
    };
    unavailable(json!({ "primary": null, "epoch": epoch, "writes": word, "reason": "no_primary", "why": why }))
}

async fn standby(State(shared): Deps) -> Response {
    let topology = shared.deps.topology.snapshot();
    if let Err(why) = ready::serving(shared.deps.readiness.phase()) {
        return not_ready(why);
    }
    let standbys = ready::readable_standbys(&topology, &(shared.deps.vitals)());
    let names: Vec<&str> = standbys.iter().map(|name| &**name).collect();
    if names.is_empty() {
        return unavailable(json!({ "standbys": names, "reason": "no_standby", "why": "No standby takes reads." }));
    }
    Json(json!({ "standbys": names })).into_response()
}

async fn cluster(State(shared): Deps) -> Response {
    match blocking(shared, Shared::report).await {
        Ok(report) => Json(report).into_response(),
        Err(failed) => failed,
    }
}

async fn failover(State(shared): Deps) -> Response {
    match blocking(shared, |shared| (shared.deps.status)()).await {
        Ok(status) => Json(status).into_response(),
        Err(failed) => failed,
    }
}

async fn pools(State(shared): Deps) -> Response {
    match blocking(shared, |shared| (shared.deps.pools)()).await {
        Ok(pools) => Json(pools).into_response(),
        Err(failed) => failed,
    }
}

async fn latest_decisions(State(shared): Deps, filter: Result<Query<decisions::Filter>, QueryRejection>) -> Response {
    let Query(filter) = match filter {
        Ok(filter) => filter,
        Err(rejection) => return plain(StatusCode::BAD_REQUEST, &format!("{}\n", rejection.body_text())),
    };
    let listed = blocking(shared, move |shared| {
        let (deps, now) = (&shared.deps, shared.deps.clock.now());
        let name_of =
            |node: NodeId| deps.nodes.get(node.index()).map_or_else(String::new, |node| node.name.to_string());
        decisions::list(&deps.decisions, &filter, now, name_of)
    });
    match listed.await {
        Ok(list) => Json(list).into_response(),
        Err(failed) => failed,
    }
}

async fn status_page(State(shared): Deps) -> Response {
    match blocking(shared, |shared| page::render(&shared.report(), &(shared.deps.pools)())).await {
        Ok(text) => Html(text).into_response(),
        Err(failed) => failed,
    }
}

async fn unknown_path() -> Response {
    let list: String = ENDPOINTS.iter().map(|(path, tells)| format!("{path:<16} {tells}\n")).collect();
    plain(StatusCode::NOT_FOUND, &format!("There is nothing here. There is:\n\n{list}"))
}

fn not_ready(why: NotReady) -> Response {
    unavailable(json!({ "ready": false, "reason": why.word(), "why": why.sentence() }))
}

fn unavailable(body: Value) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

fn plain(status: StatusCode, text: &str) -> Response {
    (status, text.to_owned()).into_response()
}
