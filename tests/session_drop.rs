//! A session that is dropped after any number of polls leaves no dirty idle backend.
//!
//! A session's future is polled N times while its client sends scripted traffic, then dropped, for every N
//! until the script runs to its end. After each, the next session, on the only backend the pool may
//! have, must find a clean one: the old one if it was clean, a new one otherwise; both must occur. Absent on
//! purpose: the accept loop and the login; what is polled is the session itself.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

use pgregent::auth::{NodeCredential, NodePassword};
use pgregent::backend::{Settings, Target};
use pgregent::client::{ClientIdentity, ClientKind};
use pgregent::clock::{Clock, Time};
use pgregent::config::{Config, Secret};
use pgregent::ids::Epoch;
use pgregent::metrics::Metrics;
use pgregent::net::{NodeTls, Stream};
use pgregent::pool::{PoolDeps, PoolNode, PoolSet};
use pgregent::route::{Reason, Standings};
use pgregent::session::{Identity, Session, SessionDeps};
use pgregent::topology::{Health, Role, Topology, TopologyPublisher, Writes, fact_channel, topology_channel};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use support::cluster::{self, APP_PASSWORD, APP_USER};
use support::message::*;
use support::rawclient::{Gone, RawClient};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The script must have run to its end by then.
const POLLS_MAX: usize = 2000;
/// Every number of polls up to this one is tried.
const DENSE: usize = 200;
/// How often the script is played in one session.
const PASSES: usize = 6;
/// The user whose session is dropped; nobody else's backends are looked at.
const IDENTITY: &str = APP_USER;

/// A data plane without listeners: sessions are begun by hand.
struct Plane {
    deps: Arc<SessionDeps>,
    listener: TcpListener,
    _publisher: TopologyPublisher,
}

fn open_topology(names: &[Arc<str>]) -> Topology {
    let mut topology = Topology::starting(names);
    topology.epoch = Epoch(1);
    topology.primary = Some(topology.nodes[0].id);
    topology.writes = Writes::Open;
    let node = &mut topology.nodes[0];
    (node.role, node.health) = (Role::Primary, Health::Healthy);
    (node.accepts_reads, node.fresh_as_of) = (true, Time::NEVER);
    topology
}

impl Plane {
    async fn start(port: u16) -> Self {
        let text = format!(
            "cluster.failover = \"manual\"\npool.size = 1\n[[node]]\nname = \"pg1\"\naddress = \"127.0.0.1:{port}\"\n\
             [[auth.user]]\nname = \"{APP_USER}\"\npassword = \"{APP_PASSWORD}\"\n"
        );
        let config = Config::parse(&text, "test.toml").expect("a valid configuration");
        let names: Vec<Arc<str>> = vec!["pg1".into()];
        let reasons: Vec<&'static str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        let (clock, metrics) = (Clock::machine(), Metrics::new(&names, &reasons));
        let (publisher, topology) = topology_channel(Topology::starting(&names));
        publisher.publish(open_topology(&names));
        publisher.permit().extend(Epoch(1), Time::NEVER);
        let (facts, receiver) = fact_channel();
        drop(receiver);
        let standings = Arc::new(Standings::new(config.nodes.len()));
        let pools = PoolSet::start(PoolDeps {
            standings: Arc::clone(&standings),
            nodes: vec![PoolNode {
                name: "pg1".into(),
                target: Target { host: "127.0.0.1".into(), port, tls: NodeTls::new(&config.nodes[0].tls) },
                budget: config.nodes[0].budget,
            }],
            config: config.pool.clone(),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            facts: facts.clone(),
            topology: topology.clone(),
        });
        pools.set_credential(&IDENTITY.into(), NodeCredential::Password(NodePassword::new(Secret::new(APP_PASSWORD))));
        let deps = Arc::new(SessionDeps::new(&config, pools, standings, topology, facts, metrics, clock));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self { deps, listener, _publisher: publisher }
    }

    /// A session, and the client's end of its connection.
    async fn begin(&self) -> (Box<Session>, RawClient) {
        let port = self.listener.local_addr().unwrap().port();
        let client = RawClient::tcp(port);
        let (tcp, peer) = self.listener.accept().await.unwrap();
        let stream = Stream::tcp(tcp, peer).unwrap();
        let identity = Identity { user: IDENTITY.into(), database: APP_USER.into(), port: None };
        let known = ClientIdentity {
            user: Arc::clone(&identity.user),
            database: Arc::clone(&identity.database),
            peer: stream.peer(),
            kind: ClientKind::Session,
            application_name: "".into(),
            tls: None,
            since: self.deps.clock.now(),
        };
        let handle = self.deps.registry.register(PROTOCOL_3_0, known);
        let (deps, token) = (Arc::clone(&self.deps), CancellationToken::new());
        let session = Session::begin(deps, identity, Settings::default(), handle, stream, token).await;
        (Box::new(session.map_err(|(error, _)| error).expect("the node is there")), client)
    }
}

/// Everything that can make a backend dirty, in steps: what is sent, and up to which message is read then.
fn script(round: usize) -> Vec<(Vec<u8>, u8)> {
    let insert = format!("INSERT INTO dropped VALUES ({round})");
    vec![
        (query("SELECT 1"), b'Z'),
        (query("SET work_mem = '5MB'"), b'Z'),
        (query(&format!("BEGIN; {insert}")), b'Z'),
        ([parse("p", "SELECT $1::int"), bind("", "p", &[Some(b"1")]), execute("", 0), flush()].concat(), b'C'),
        (sync(), b'Z'),
        (query("SELECT 1/0"), b'Z'),
        (query("ROLLBACK"), b'Z'),
        (query("COPY dropped FROM STDIN"), b'G'),
        ([copy_data(b"1\n"), copy_data(b"x")].concat(), 0),
        ([copy_data(b"\n"), copy_done()].concat(), b'Z'),
        ([parse("", &insert), bind("", "", &[]), execute("", 0)].concat(), 0),
        ([parse("", "SELECT 1/0"), bind("", "", &[]), execute("", 0), sync()].concat(), b'Z'),
        (query("SELECT repeat('r', 300000) FROM generate_series(1, 3)"), b'Z'),
        (query("SET ROLE app_group"), b'Z'),
        (query("SELECT current_user FOR UPDATE"), b'Z'),
        (query("CREATE TEMP TABLE dropped_temp (i int)"), b'Z'),
        (query("SELECT pg_advisory_lock(77)"), b'Z'),
        (query("DO $$ BEGIN PERFORM set_config('app.who', 'hidden', false); END $$"), b'Z'),
        (function_call(1397, &[b"-42"]), b'Z'),
        (query("PREPARE q AS SELECT 1"), b'Z'),
        (query("DISCARD ALL"), b'Z'),
    ]
}

fn play(mut client: RawClient, round: usize) {
    let _ = client.read_until(b'Z');
    for (bytes, until) in (0..PASSES).flat_map(|_| script(round)).chain([(terminate(), 0)]) {
        // In two pieces, so that the session is polled in the middle of messages too.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        if client.send(first).is_err() || client.send(second).is_err() {
            return;
        }
        if until != 0 && client.read_until(until).is_err() {
            return;
        }
    }
    let _ = client.read_to_end();
}

/// Polls at most so often, then drops; did it run to its end?
async fn run_for(session: Box<Session>, polls: usize) -> bool {
    let mut life = Box::pin(session.run());
    let mut left = polls;
    let ended = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match life.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    drop(life);
    ended
}

/// What the next session finds, and on which backend process.
const STATE: &str = "SELECT pg_backend_pid(), current_setting('work_mem'), current_user, nullif(current_setting('app.who', true), ''), \
    (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), to_regclass('dropped_temp'), \
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    (SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL)";

fn look(client: &mut RawClient) -> Result<Vec<Option<String>>, Gone> {
    client.read_until(b'Z')?;
    let answer = client.simple(STATE)?;
    client.send(&terminate())?;
    let _ = client.read_to_end();
    Ok(answer.rows[0].clone())
}

async fn assert_clean(plane: &Plane, what: &str) -> String {
    let (session, mut client) = plane.begin().await;
    let served = tokio::spawn(session.run());
    let row = tokio::task::spawn_blocking(move || look(&mut client)).await.unwrap();
    served.await.unwrap();
    let row = row.unwrap_or_else(|gone| panic!("{what}: {gone:?}"));
    let clean = ["4MB", "app", "NULL", "0", "NULL", "0"].map(str::to_owned);
    let seen: Vec<String> = row[1..7].iter().map(|value| value.clone().unwrap_or_else(|| "NULL".into())).collect();
    assert_eq!(seen, clean, "{what}: the next session found a dirty backend");
    row[0].clone().unwrap()
}

#[test]
fn a_session_dropped_after_any_poll_leaves_no_dirty_backend() {
    let port = cluster::shared().primary();
    let mut superuser = cluster::shared().superuser("app");
    superuser.simple("CREATE TABLE dropped (i int); GRANT ALL ON dropped TO app, app_group").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut reused, mut replaced, mut whole) = (0, 0, None);
    runtime.block_on(async {
        let plane = Plane::start(port).await;
        let mut before = assert_clean(&plane, "at first").await;
        let mut polls = 0;
        while whole.is_none() {
            polls += if polls < DENSE { 1 } else { 50 };
            assert!(polls <= POLLS_MAX, "the script does not come to its end");
            let (session, client) = plane.begin().await;
            let player = tokio::task::spawn_blocking(move || play(client, polls));
            if run_for(session, polls).await {
                whole = Some(polls);
            }
            player.await.unwrap();
            let pid = assert_clean(&plane, &format!("after {polls} polls")).await;
            *if pid == before { &mut reused } else { &mut replaced } += 1;
            before = pid;
        }
        let closing = tokio::time::timeout(Duration::from_secs(10), plane.deps.pools.close()).await;
        assert!(closing.is_ok(), "something of the pools is still under way");
    });
    assert!(reused > 0 && replaced > 0, "reused {reused}, replaced {replaced}: nothing was tested");
    assert!(whole.is_some_and(|polls| polls > DENSE), "the script ended after {whole:?} polls: too short to cut");
    // Rolled back or never committed: whatever was inserted in a transaction or a batch of the script.
    let stored = superuser.value("SELECT count(*) FROM dropped");
    assert_eq!(stored, "0", "an unfinished transaction was committed");
    support::wait_for("no backend stays in a transaction", Duration::from_secs(10), || {
        superuser.value("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND xact_start IS NOT NULL") == "0"
    });
}
