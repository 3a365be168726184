//! The HTTP endpoints over real sockets, with made-up pools and topology.
//!
//! Absent on purpose: what the values mean (unit tests of `admin` judge that).

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

use pgregent::admin::{AdminDeps, HttpLimits, NodeAddress, Phase, Readiness, log, serve_limited};
use pgregent::clock::{Clock, Time};
use pgregent::config::LogConfig;
use pgregent::failover::controller::{BrainSummary, ClusterStatus, HoldStatus, LeaseStatus, StandingStatus};
use pgregent::ids::{Epoch, Lsn, NodeId, TimelineId};
use pgregent::metrics::Metrics;
use pgregent::route::outlier::Outlier;
use pgregent::route::{Service, Vitals, WHOLE};
use pgregent::topology::{Health, Role, Topology, TopologyPublisher, Writes, topology_channel};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// No single exchange of these tests may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the control plane believes.
fn control() -> ClusterStatus {
    let hold = |kind| HoldStatus { kind, node: Some("pg3".into()), needs_person: false, text: "a sentence".into() };
    let lease = LeaseStatus { primary: "pg1".into(), epoch: Epoch(7), left_ms: 1_500 };
    let standing = StandingStatus {
        lease: Some(lease),
        right: None,
        lack: None,
        highest_epoch: Epoch(7),
        pending: None,
        ordered: false,
        quorum_lost_and_kept: false,
    };
    ClusterStatus {
        failover: BrainSummary { state: "stable", mode: "automatic", paused: true, ..BrainSummary::default() },
        holds: vec![hold("not_classified"), hold("not_classified")],
        standing: Some(standing),
        ..ClusterStatus::default()
    }
}

/// A running HTTP service and everything that moves it.
struct Admin {
    address: SocketAddr,
    publisher: TopologyPublisher,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    pools_panic: Arc<AtomicBool>,
    clock: Clock,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

impl Admin {
    async fn start(limits: HttpLimits) -> Self {
        Self::start_with(limits, json!({ "pools": [] })).await
    }

    async fn start_with(limits: HttpLimits, pools: Value) -> Self {
        let names: [Arc<str>; 3] = ["pg1".into(), "pg2".into(), "pg3".into()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (publisher, topology) = topology_channel(Topology::starting(&names));
        let metrics = Metrics::new(&names, &[]);
        let (readiness, clock, stop) = (Readiness::new(), Clock::manual(), CancellationToken::new());
        let pools_panic = Arc::new(AtomicBool::new(false));
        let panic = Arc::clone(&pools_panic);
        let deps = AdminDeps {
            // The second starts slowly, the third was drained and ejected.
            vitals: Box::new(|| {
                let fine = Vitals::UNKNOWN;
                let second = Vitals { in_flight: 3, share: WHOLE / 2, ..fine };
                let third = Vitals { service: Service::Draining, ejected: Some(Outlier::Slow), ..fine };
                vec![fine, second, third]
            }),
            cluster: "main".into(),
            metrics: Arc::clone(&metrics),
            before_scrape: Box::new(|metrics| metrics.control.facts_dropped(42)),
            topology,
            status: Box::new(control),
            decisions: Arc::default(),
            pools: Box::new(move || {
                assert!(!panic.load(Ordering::SeqCst), "asked to");
                pools.clone()
            }),
            readiness: readiness.clone(),
            nodes: (1..=3)
                .map(|n| NodeAddress { name: format!("pg{n}").into(), address: format!("10.0.0.{n}:5432") })
                .collect(),
            clock: clock.clone(),
        };
        let task = tokio::spawn(serve_limited(listener, deps, limits, stop.clone()));
        Self { address, publisher, readiness, metrics, pools_panic, clock, stop, task }
    }

    /// Serving: pg1 is primary at epoch 7, pg2 a readable standby, pg3 down.
    fn healthy(&self) {
        self.readiness.set(Phase::Serving);
        self.publisher.permit().extend(Epoch(7), Time::NEVER);
        self.publisher.publish(self.topology());
    }

    fn topology(&self) -> Topology {
        let mut topology = Topology::starting(&["pg1".into(), "pg2".into(), "pg3".into()]);
        topology.epoch = Epoch(7);
        topology.primary = Some(NodeId(0));
        topology.writes = Writes::Open;
        let now = self.clock.now();
        let [first, second, third] = &mut *topology.nodes else { panic!("three nodes") };
        (first.role, first.health, first.fresh_as_of) = (Role::Primary, Health::Healthy, Time::NEVER);
        (first.timeline, first.lsn, first.accepts_reads) = (Some(TimelineId(3)), Some(Lsn(0x3000060)), true);
        (second.role, second.health, second.accepts_reads) = (Role::Standby, Health::Healthy, true);
        (second.lag_bytes, second.replay_lag) = (Some(96), Some(Duration::from_millis(12)));
        second.fresh_as_of = now - Duration::from_millis(250);
        (third.health, third.note) = (Health::Down, Some("refuses connections".into()));
        topology
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends these bytes and reads until the end.
    async fn raw(&self, request: &str) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the answer ends").unwrap();
        Answer::parse(&bytes)
    }

    async fn get(&self, path: &str) -> Answer {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    async fn status(&self, path: &str) -> u16 {
        self.get(path).await.status
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

#[tokio::test]
async fn every_listed_endpoint_answers_get_and_head_and_nothing_else() {
    let admin = Admin::start(HttpLimits::default()).await;
    admin.healthy();
    let missing = admin.get("/nowhere").await;
    assert_eq!(missing.status, 404);
    let paths: Vec<&str> =
        missing.body.lines().filter(|line| line.starts_with('/')).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(paths.len(), 11, "{}", missing.body);
    for path in paths {
        let got = admin.get(path).await;
        assert_eq!(got.status, 200, "{path}: {}", got.body);
        assert!(got.head.contains("\r\nconnection: close"), "{path}: {}", got.head);
        assert!(got.head.contains("\r\ncache-control: no-store"), "{path}: {}", got.head);
        assert!(!got.body.is_empty(), "{path}");
        let headed = admin.raw(&format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!((headed.status, &*headed.body), (200, ""), "{path}");
        let posted = admin.raw(&format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")).await;
        assert_eq!(posted.status, 405, "{path}");
    }
}

#[tokio::test]
async fn readiness_follows_phase_and_topology() {
    let admin = Admin::start(HttpLimits::default()).await;
    let check = async |what: &str, expected: [u16; 5]| {
        let mut got = [0; 5];
        for (place, path) in ["/health/live", "/health/ready", "/vip/ready", "/primary", "/replica"].iter().enumerate()
        {
            got[place] = admin.status(path).await;
        }
        assert_eq!(got, expected, "{what}");
    };
    check("starting", [200, 503, 503, 503, 503]).await;
    assert_eq!(admin.get("/health/ready").await.json()["reason"], "starting");
    admin.readiness.set(Phase::Serving);
    check("no node", [200, 503, 503, 503, 503]).await;
    assert_eq!(admin.get("/health/ready").await.json()["reason"], "no_node");
    admin.healthy();
    check("healthy", [200, 200, 200, 200, 200]).await;
    let mut held = admin.topology();
    held.writes = Writes::Held { why: "the primary is lost".into() };
    admin.publisher.publish(held.clone());
    check("writes held", [200, 200, 200, 503, 200]).await;
    assert_eq!(admin.get("/primary").await.json()["why"], "the primary is lost");
    held.nodes[0].accepts_reads = false;
    held.nodes[1].accepts_reads = false;
    admin.publisher.publish(held);
    check("writes held, no reads", [200, 503, 503, 503, 503]).await;
    admin.healthy();
    admin.publisher.permit().revoke();
    check("no permit", [200, 200, 200, 503, 200]).await;
    admin.healthy();
    admin.readiness.set(Phase::Draining);
    check("draining", [200, 503, 503, 503, 503]).await;
    assert_eq!(admin.get("/vip/ready").await.json()["reason"], "draining");
}

#[tokio::test]
async fn failover_is_told_as_json_and_as_metrics() {
    let admin = Admin::start(HttpLimits::default()).await;
    admin.healthy();
    let told = admin.get("/api/v1/failover").await.json();
    assert_eq!(told, serde_json::to_value(control()).unwrap());
    let hold = json!({ "kind": "not_classified", "node": "pg3", "needs_person": false, "text": "a sentence" });
    assert_eq!(told["holds"][0], hold);
    assert_eq!(told["standing"]["lease"]["left_ms"], 1_500);
    let text = admin.get("/metrics").await.body;
    for line in [
        r#"pgregent_failover_state{state="stable"} 1"#,
        "pgregent_failover_paused 1",
        r#"pgregent_holds{kind="not_classified"} 2"#,
        "pgregent_lease_seconds 1.5",
    ] {
        assert!(text.lines().any(|have| have == line), "missing: {line}\n{text}");
    }
}

#[tokio::test]
async fn the_cluster_is_told_as_json() {
    let admin = Admin::start_with(HttpLimits::default(), json!([{ "database": "app" }])).await;
    admin.healthy();
    let answer = admin.get("/api/v1/cluster").await;
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let unknown = json!({
        "lag_bytes": null, "replay_lag_ms": null, "timeline": null, "lsn": null, "fresh_age_ms": null, "note": null,
        "service": "enabled", "ejected": null, "in_flight": 0, "read_latency_ms": null, "share_percent": 100,
    });
    let node = |name: &str, address: &str, known: Value| {
        let mut node = unknown.as_object().unwrap().clone();
        node.extend(known.as_object().unwrap().clone());
        node.insert("name".into(), name.into());
        node.insert("address".into(), address.into());
        Value::Object(node)
    };
    let expected = json!({
        "cluster": "main", "version": env!("CARGO_PKG_VERSION"), "phase": "serving",
        "epoch": 7, "primary": "pg1", "writes": "open", "why": null,
        "control": serde_json::to_value(control()).unwrap(),
        "nodes": [
            node("pg1", "10.0.0.1:5432", json!({ "role": "primary", "health": "healthy", "accepts_reads": true,
                "timeline": 3, "lsn": "0/3000060", "fresh_age_ms": 0 })),
            node("pg2", "10.0.0.2:5432", json!({ "role": "standby", "health": "healthy", "accepts_reads": true,
                "in_flight": 3, "share_percent": 50, "lag_bytes": 96, "replay_lag_ms": 12, "fresh_age_ms": 250 })),
            node("pg3", "10.0.0.3:5432", json!({ "role": "unassigned", "health": "down", "accepts_reads": false,
                "service": "draining", "ejected": "slow", "note": "refuses connections" })),
        ],
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(admin.get("/api/v1/pools").await.json(), json!([{ "database": "app" }]));
    let mut refused = admin.topology();
    refused.primary = None;
    refused.writes = Writes::Refused { why: "two primaries".into() };
    admin.publisher.publish(refused);
    let told = admin.get("/api/v1/cluster").await.json();
    let told = [&told["primary"], &told["writes"], &told["why"]];
    assert_eq!(told, [&Value::Null, &"refused".into(), &"two primaries".into()]);
}

#[tokio::test]
async fn a_scrape_shows_the_snapshot_and_what_others_counted() {
    let admin = Admin::start(HttpLimits::default()).await;
    admin.healthy();
    admin.metrics.clients.connections.inc();
    let answer = admin.get("/metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    for line in [
        "pgregent_connections_total 1",
        "pgregent_facts_dropped_total 42",
        "pgregent_epoch 7",
        r#"pgregent_writes{state="open"} 1"#,
        r#"pgregent_node_up{node="pg2"} 1"#,
        r#"pgregent_node_up{node="pg3"} 0"#,
        r#"pgregent_node_accepts_reads{node="pg3"} 0"#,
        r#"pgregent_node_role{node="pg1",role="primary"} 1"#,
        r#"pgregent_node_role{node="pg1",role="standby"} 0"#,
        r#"pgregent_node_role{node="pg3",role="unassigned"} 1"#,
        r#"pgregent_lag_bytes{node="pg2"} 96"#,
        r#"pgregent_lag_bytes{node="pg3"} NaN"#,
        r#"pgregent_replay_lag_seconds{node="pg2"} 0.012"#,
        r#"pgregent_fresh_age_seconds{node="pg2"} 0.25"#,
        r#"pgregent_fresh_age_seconds{node="pg1"} 0"#,
        r#"pgregent_fresh_age_seconds{node="pg3"} NaN"#,
    ] {
        assert!(answer.body.lines().any(|have| have == line), "missing: {line}\n{}", answer.body);
    }
}

#[tokio::test]
async fn the_page_shows_hostile_texts_as_text() {
    const EVIL: &str = "<script>alert('1')</script>\"&";
    let admin = Admin::start_with(HttpLimits::default(), json!({ EVIL: EVIL })).await;
    admin.healthy();
    let mut topology = admin.topology();
    topology.nodes[0].name = EVIL.into();
    topology.nodes[1].note = Some(EVIL.into());
    topology.writes = Writes::Held { why: EVIL.into() };
    admin.publisher.publish(topology);
    let page = admin.get("/").await;
    assert!(page.head.contains("content-type: text/html; charset=utf-8"), "{}", page.head);
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    assert!(page.body.contains("http-equiv=\"refresh\""), "{}", page.body);
    assert!(!page.body.contains("<script"), "{}", page.body);
    // Primary, node name, note, why, and the pools' JSON as key and as value.
    assert_eq!(page.body.matches("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;").count(), 6, "{}", page.body);
    assert!(page.body.contains("10.0.0.2:5432"), "{}", page.body);
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_is_cut() {
    let limits = HttpLimits { connection_time_max: Duration::from_millis(300), ..HttpLimits::default() };
    let admin = Admin::start(limits).await;
    let mut slow = admin.connect().await;
    let began = Instant::now();
    let mut read = Vec::new();
    loop {
        let wrote = slow.write_all(b"G").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if wrote.is_err() || matches!(slow.try_read_buf(&mut read), Ok(0)) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the slow client is still connected");
    }
    assert!(began.elapsed() >= Duration::from_millis(250), "cut too early: {:?}", began.elapsed());
    assert_eq!(admin.status("/health/live").await, 200);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut() {
    let limits = HttpLimits { connection_time_max: Duration::from_millis(300), ..HttpLimits::default() };
    // More than the socket buffers of both sides hold.
    let admin = Admin::start_with(limits, json!("x".repeat(32 << 20))).await;
    let mut lazy = admin.connect().await;
    lazy.write_all(b"GET /api/v1/pools HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let port = admin.address.port();
    let began = Instant::now();
    while connections(port) == 0 || began.elapsed() < Duration::from_millis(100) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(began.elapsed() < PATIENCE, "never connected");
    }
    while connections(port) > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(began.elapsed() < PATIENCE, "the lazy client is still connected");
    }
    drop(lazy);
}

#[tokio::test]
async fn a_full_house_does_not_lock_out_health_checks() {
    let limits =
        HttpLimits { connections_max: 8, connection_time_max: Duration::from_secs(600), ..HttpLimits::default() };
    let admin = Admin::start(limits).await;
    let mut hanging = Vec::new();
    for _ in 0..40 {
        let mut stream = admin.connect().await;
        stream.write_all(b"GET /health/live HTTP/1.1\r\n").await.unwrap();
        hanging.push(stream);
    }
    assert_eq!(admin.status("/health/live").await, 200);
    let began = Instant::now();
    while connections(admin.address.port()) > 8 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(began.elapsed() < PATIENCE, "{} connections are left", connections(admin.address.port()));
    }
    assert!(connections(admin.address.port()) >= 1, "the newest ones may stay");
}

#[tokio::test]
async fn an_oversized_request_is_cut() {
    let admin = Admin::start(HttpLimits::default()).await;
    let mut stream = admin.connect().await;
    let header = format!("X: {}\r\n", "x".repeat(1000));
    let mut sent = b"GET /health/live HTTP/1.1\r\n".to_vec();
    (0..200).for_each(|_| sent.extend_from_slice(header.as_bytes()));
    let _ = stream.write_all(&sent).await;
    let mut answer = Vec::new();
    // An end or a reset, and soon: no waiting for the time limit.
    let ended = timeout(Duration::from_secs(3), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "still connected");
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(admin.status("/health/live").await, 200);
}

#[tokio::test]
async fn a_thousand_requests_leave_nothing_behind() {
    let admin = Admin::start(HttpLimits::default()).await;
    admin.healthy();
    for round in 0..1000 {
        let path = ["/health/ready", "/metrics", "/api/v1/cluster", "/"][round % 4];
        assert_eq!(admin.status(path).await, 200);
    }
    let began = Instant::now();
    while connections(admin.address.port()) > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(began.elapsed() < PATIENCE, "{} connections are left", connections(admin.address.port()));
    }
}

#[tokio::test]
async fn a_panic_behind_one_answer_harms_no_other() {
    let admin = Admin::start(HttpLimits::default()).await;
    admin.pools_panic.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(admin.status("/api/v1/pools").await, 500);
    }
    assert_eq!(admin.status("/api/v1/cluster").await, 200);
    assert_eq!(admin.metrics.process.panics.get(), 5);
    admin.pools_panic.store(false, Ordering::SeqCst);
    assert_eq!(admin.status("/api/v1/pools").await, 200);
}

#[tokio::test]
async fn the_stop_does_not_wait_for_slow_clients() {
    let limits = HttpLimits { stop_grace: Duration::from_millis(100), ..HttpLimits::default() };
    let mut admin = Admin::start(limits).await;
    let mut slow = admin.connect().await;
    slow.write_all(b"GET / HTT").await.unwrap();
    assert_eq!(admin.status("/health/live").await, 200);
    admin.stop.cancel();
    timeout(Duration::from_secs(3), &mut admin.task).await.expect("serve ends soon").unwrap();
    assert!(TcpStream::connect(admin.address).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn something_that_is_not_http_is_turned_away() {
    let admin = Admin::start(HttpLimits::default()).await;
    let mut stream = admin.connect().await;
    // A PostgreSQL SSLRequest.
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(3), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "still connected");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    assert_eq!(admin.status("/health/live").await, 200);
}

#[test]
fn logging_is_set_up_once_and_with_a_filter_that_can_be_read() {
    let config = |filter: &str| LogConfig {
        json: true,
        filter: filter.to_owned(),
        slow_statement: None,
        failed_statements: false,
    };
    let unreadable = log::init(&config("pgregent=loud")).unwrap_err();
    assert!(unreadable.to_string().contains("pgregent=loud"), "{unreadable}");
    log::init(&config("error")).unwrap();
    assert!(matches!(log::init(&config("error")), Err(log::LogError::AlreadySet)));
}

/// Sockets of this port that were accepted and not closed by us (proc(5), `/proc/net/tcp`).
fn connections(port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of_port = format!(":{port:04X}");
    let ours = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().is_some_and(|local| local.ends_with(&of_port));
        local && words.nth(1).is_some_and(|state| [ESTABLISHED, CLOSE_WAIT].contains(&state))
    };
    table.lines().filter(ours).count()
}
