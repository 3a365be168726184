//! Tests of `show`: shapes that others rely on, and values of a made-up moment.

use super::super::explain::explain;
use super::super::table::{Kind, Value};
use super::*;
use crate::backend::{BackendControl, Target};
use crate::catalog::{self, Catalog};
use crate::client::{ClientIdentity, ClientKind, ClientView, Holding, PinRecord, Replication};
use crate::clock::Time;
use crate::config::Config;
use crate::failover::controller::{
    BrainSummary, CandidateStatus, ClusterStatus, FailoverStatus, HoldStatus, LeaseStatus, NodeStatus, OutlookStatus,
    RecentEvent, StandingStatus,
};
use crate::ids::{BackendId, Epoch, NodeId, PoolKey, SessionId};
use crate::net::{Peer, Stream};
use crate::pool::{BackendPlace, BackendView, PoolStats, Totals};
use crate::topology::{Role, Topology};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// PgBouncer 1.25's columns; exporters break when one is added, renamed or moved.
const FROZEN: &[(&str, &str)] = &[
    (
        "databases",
        "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode \
         load_balance_hosts max_connections current_connections max_client_connections current_client_connections \
         paused disabled",
    ),
    (
        "pools",
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel \
         sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
    ),
    (
        "stats",
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
         total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
         total_bind_count total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv \
         avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count \
         avg_bind_count avg_client_login_count",
    ),
    (
        "stats_totals",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time client_parse_count server_parse_count bind_count client_login_count",
    ),
    (
        "clients",
        "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us \
         close_needed ptr link remote_pid tls application_name prepared_statements id",
    ),
    (
        "servers",
        "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us \
         close_needed ptr link remote_pid tls application_name prepared_statements id",
    ),
    ("lists", "list items"),
    (
        "users",
        "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
         max_user_client_connections current_client_connections",
    ),
    ("config", "key value default changeable"),
    ("state", "key value"),
    ("version", "version"),
];

const CONFIG: &str = "[cluster]\nname = \"c\"\nmonitor_user = \"m\"\nfailover = \"manual\"\nstate_dir = \"/tmp\"\n\
    [[node]]\nname = \"pg1\"\naddress = \"10.0.0.1\"\n[[node]]\nname = \"pg2\"\naddress = \"10.0.0.2\"\n\
    [[auth.user]]\nname = \"ann\"\npassword = \"very-secret\"\n";

/// A backend needs a socket for its severer; any will do.
async fn control(port: u16) -> Arc<BackendControl> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stream = Stream::tcp(tokio::net::TcpStream::connect(address).await.unwrap(), address).unwrap();
    let target = Target::plain("10.0.0.1", port);
    Arc::new(BackendControl::new(4711, Box::from(&[0u8; 4][..]), target, stream.severer().unwrap()))
}

fn at(second: u64) -> Time {
    Time::ZERO + Duration::from_secs(second)
}

fn client(id: u64, user: &str, kind: ClientKind) -> ClientView {
    let identity = ClientIdentity {
        user: user.into(),
        database: "app".into(),
        peer: Peer::Tcp(([10, 9, 8, 7], 5555).into()),
        kind,
        application_name: "psql".into(),
        tls: Some("TLSv1.3/x".into()),
        since: at(10),
    };
    let identity = Arc::new(identity);
    ClientView { id: SessionId(id), pid: 1, identity, holding: None, waiting: None, pins: Vec::new() }
}

/// At second 99: a read that went to the second node.
fn decisions() -> Arc<crate::decision::Decisions> {
    let identity = client(1, "ann", ClientKind::Session).identity;
    let session = crate::client::CancelRegistry::default().register(crate::wire::PROTOCOL_3_0, (*identity).clone());
    let decisions = crate::decision::Decisions::default();
    decisions.note(crate::decision::Decision {
        at: at(99),
        session,
        statement: crate::decision::Excerpt::of(b"SELECT 1"),
        access: crate::sql::Access::Read,
        why: Some(crate::sql::Why::Statement("select")),
        outcome: Ok((NodeId(1), crate::route::Reason::Read)),
        attempt: 0,
        shadow: false,
    });
    Arc::new(decisions)
}

/// Read at second 70: a function, and a view that reaches an unlogged table.
fn catalog() -> Arc<Catalog> {
    let mut rows = catalog::Rows::default();
    rows.add(catalog::Kind::Function(catalog::Nature::Reads), "public", "total", "").unwrap();
    rows.add(catalog::Kind::Unlogged, "public", "u", "public.u").unwrap();
    rows.add(catalog::Kind::View, "public", "v", "SELECT 1 FROM public.u").unwrap();
    let settings = crate::route::classifier_settings(&Config::parse(CONFIG, "test").unwrap().route);
    Arc::new(Catalog::new(Arc::new(catalog::build(rows, &settings, true)), at(70)))
}

/// Taken at second 99: paused, the second node would be promoted, the third never answered; a failover 40 s ago.
fn picture() -> ClusterStatus {
    let hold = |kind, node: Option<&str>, text: &str| HoldStatus {
        kind,
        node: node.map(str::to_owned),
        needs_person: kind == "paused",
        text: text.to_owned(),
    };
    let candidate = |in_question, why: Option<&str>| CandidateStatus {
        condition: "answering",
        misses: 0,
        trouble_ms: None,
        evidence: None,
        priority: 100,
        maintenance: false,
        sync_member: false,
        detached: false,
        position: Some("0/3000060".to_owned()),
        behind_bytes: Some(0),
        in_question,
        veto: why.map(|_| "not_healthy"),
        why: why.map(str::to_owned),
        rank: None,
        before: None,
    };
    let node = |name: &str, candidate| NodeStatus {
        name: name.to_owned(),
        history: Some("1@0/3000060 2".to_owned()),
        candidate: Some(candidate),
        ..NodeStatus::default()
    };
    ClusterStatus {
        taken_at: at(99),
        primary: Some("pg1".to_owned()),
        epoch: Epoch(4),
        failover: BrainSummary {
            state: "stable",
            mode: "automatic",
            paused: true,
            failovers: 1,
            last_failover: Some(FailoverStatus {
                from: Some("pg2".to_owned()),
                to: "pg1".to_owned(),
                epoch: Epoch(4),
                cause: "it refuses connections".to_owned(),
                took_ms: 87,
                done_at: at(59),
                age_ms: 40_000,
                missing_bytes: 0,
            }),
            ..BrainSummary::default()
        },
        holds: vec![hold("paused", None, "paused by an operator")],
        outlook: OutlookStatus {
            candidate: Some("pg2".to_owned()),
            holds: vec![hold("paused", None, "paused by an operator"), hold("min_gap", None, "too recent")],
            gap_left_ms: 20_000,
            ..OutlookStatus::default()
        },
        standing: Some(StandingStatus {
            lease: Some(LeaseStatus { primary: "pg1".to_owned(), epoch: Epoch(4), left_ms: 1_900 }),
            right: None,
            lack: None,
            highest_epoch: Epoch(4),
            pending: None,
            ordered: false,
            quorum_lost_and_kept: false,
        }),
        nodes: vec![
            node("pg1", candidate(false, None)),
            node("pg2", candidate(true, None)),
            node("pg3", candidate(true, Some("it does not answer"))),
        ],
        recent: vec![RecentEvent {
            at_s: 59.0,
            age_ms: 40_000,
            level: "info",
            kind: "promote",
            node: Some("pg1".to_owned()),
            text: "done".to_owned(),
            took_ms: Some(31.25),
        }],
        ..ClusterStatus::default()
    }
}

/// At second 100: one client holds a backend, pinned since 40; one waits since 97.5; one replicates.
async fn moment() -> Snapshot {
    let (used, free) = (control(5432).await, control(5432).await);
    let mut busy = client(1, "ann", ClientKind::Session);
    busy.holding = Some(Holding { node: NodeId(0), control: Arc::clone(&used), since: at(90) });
    let pin = |reason, statement: &str, second| PinRecord { reason, statement: statement.into(), since: at(second) };
    busy.pins = vec![pin("temp_table", "CREATE TEMP TABLE t …", 40), pin("listen", "LISTEN x", 60)];
    let mut waiting = client(2, "ann", ClientKind::Session);
    waiting.waiting = Some(Time::ZERO + Duration::from_millis(97_500));
    let key = PoolKey { node: NodeId(0), database: "app".into(), user: "ann".into() };
    let backend =
        |id, place, control| BackendView { id: BackendId(id), key: key.clone(), place, control, opened: at(50) };
    let mut topology = Topology::starting(&["pg1".into(), "pg2".into()]);
    topology.nodes[0].role = Role::Primary;
    topology.primary = Some(NodeId(0));
    let totals = Totals {
        checkouts: 7,
        statements: 9,
        sent: 100,
        received: 200,
        busy: Duration::from_millis(3),
        waited: Duration::from_micros(4),
    };
    Snapshot {
        now: at(100),
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
        clients: vec![busy, waiting, client(3, "rep", ClientKind::Replication(Replication::Logical))],
        backends: vec![backend(21, BackendPlace::Active, used), backend(22, BackendPlace::Idle(at(95)), free)],
        pools: vec![(key, PoolStats { idle: 1, active: 1, connecting: 2, waiting: 1 })],
        totals: vec![("app".into(), totals)],
        budgets: vec![(5, 90), (0, 90)],
        topology: Arc::new(topology),
        decisions: decisions(),
        vitals: vec![crate::route::Vitals::UNKNOWN; 2],
        catalogs: vec![("app".into(), catalog()), ("none".into(), Arc::default())],
        learned: vec![(
            Arc::from([&b"select f(\x01) from t where a in (\x01) and b like "[..], &[b'x'; 300]].concat()),
            crate::route::Lesson { reason: "read_only", since: at(40), until: at(640), times: 2 },
        )],
        control: Arc::new(picture()),
        config: Arc::new(Config::parse(CONFIG, "test").unwrap()),
    }
}

/// One value of a command's answer, as text.
fn told(snapshot: &Snapshot, name: &str, flavour: Flavour, row: usize, column: &str) -> String {
    let report = find(name).unwrap().report(flavour);
    let place = report.columns.iter().position(|known| known.name == column).unwrap_or_else(|| panic!("{column}"));
    match &(report.rows)(snapshot)[row][place] {
        Value::Null => "NULL".to_owned(),
        Value::Text(text) => text.clone(),
        Value::Number(number) => number.to_string(),
    }
}

#[test]
fn pgbouncers_columns_are_frozen() {
    for (name, columns) in FROZEN {
        let report = find(name).unwrap().report(Flavour::Bouncer);
        let got: Vec<_> = report.columns.iter().map(|column| column.name).collect();
        assert_eq!(got, columns.split_whitespace().collect::<Vec<_>>(), "{name}");
    }
}

#[tokio::test]
async fn rows_fit_their_columns_in_both_databases() {
    let snapshot = moment().await;
    for show in SHOWS {
        for flavour in [Flavour::Own, Flavour::Bouncer] {
            let report = show.report(flavour);
            let rows = (report.rows)(&snapshot);
            assert!(!rows.is_empty(), "{}", show.name);
            for row in rows {
                assert_eq!(row.len(), report.columns.len(), "{} {flavour:?}", show.name);
                for (column, value) in report.columns.iter().zip(&row) {
                    let fits = match value {
                        Value::Null => true,
                        Value::Text(_) => column.kind == Kind::Text,
                        Value::Number(number) => match column.kind {
                            Kind::Int4 => i32::try_from(*number).is_ok(),
                            kind => kind == Kind::Int8,
                        },
                    };
                    assert!(fits, "{} {flavour:?} {}: {value:?}", show.name, column.name);
                }
            }
        }
        assert_eq!(find(&show.name.to_uppercase()).map(|found| found.name), Some(show.name));
    }
}

#[tokio::test]
async fn values_are_those_of_the_moment() {
    let snapshot = moment().await;
    let own = |name: &str, row, column: &str| told(&snapshot, name, Flavour::Own, row, column);
    let bouncer = |name: &str, row, column: &str| told(&snapshot, name, Flavour::Bouncer, row, column);
    let pins: Vec<_> = ["session", "node", "reason", "since", "address"].map(|column| own("pins", 0, column)).to_vec();
    assert_eq!(pins, ["1", "pg1", "temp_table", "60", "10.9.8.7:5555"]);
    assert_eq!(own("pins", 1, "statement"), "LISTEN x");
    let states: Vec<_> = (0..3).map(|row| own("clients", row, "state")).collect();
    assert_eq!(states, ["active", "waiting", "idle"]);
    assert_eq!((own("clients", 0, "backend_pid"), own("clients", 0, "state_s")), ("4711".into(), "10".into()));
    assert_eq!(own("clients", 2, "kind"), "replication");
    assert_eq!((bouncer("clients", 0, "link"), bouncer("servers", 0, "link")), ("s21".into(), "c1".into()));
    assert_eq!((bouncer("clients", 1, "wait"), bouncer("clients", 1, "wait_us")), ("2".into(), "500000".into()));
    assert_eq!(bouncer("clients", 2, "replication"), "logical");
    assert_eq!(bouncer("clients", 0, "connect_time"), "2001-09-09 01:45:10 UTC");
    assert_eq!((own("servers", 1, "state"), own("backends", 1, "idle_s")), ("idle".into(), "5".into()));
    assert_eq!((bouncer("pools", 0, "cl_active"), bouncer("pools", 0, "cl_waiting")), ("1".into(), "1".into()));
    assert_eq!((bouncer("pools", 0, "sv_login"), bouncer("pools", 0, "maxwait")), ("2".into(), "2".into()));
    assert_eq!((own("pools", 0, "node"), own("pools", 0, "waiting")), ("pg1".into(), "1".into()));
    assert_eq!((own("nodes", 0, "role"), own("nodes", 0, "backends")), ("primary".into(), "5".into()));
    let histories = (own("nodes", 1, "history"), own("candidates", 2, "history"));
    assert_eq!(histories, ("1@0/3000060 2".into(), "1@0/3000060 2".into()));
    assert_eq!((own("nodes", 1, "lag_bytes"), own("nodes", 0, "address")), ("NULL".into(), "10.0.0.1:5432".into()));
    assert_eq!(
        (bouncer("databases", 0, "host"), bouncer("databases", 1, "name")),
        ("10.0.0.1".into(), "pgbouncer".into())
    );
    assert_eq!(bouncer("databases", 0, "current_client_connections"), "3");
    assert_eq!((own("stats", 0, "total_query_count"), own("stats", 0, "total_xact_time")), ("9".into(), "3000".into()));
    assert_eq!((own("stats", 0, "total_received"), own("stats", 0, "avg_recv")), ("100".into(), "NULL".into()));
    assert_eq!((bouncer("lists", 6, "items"), bouncer("lists", 9, "items")), ("3".into(), "1".into()));
}

#[tokio::test]
async fn catalogs_are_told_with_reasons() {
    let snapshot = moment().await;
    let row = |row| {
        ["database", "state", "loaded", "functions", "relation", "reason"]
            .map(|column| told(&snapshot, "catalog", Flavour::Own, row, column))
    };
    assert_eq!(row(0), ["app", "known", "30", "1", "NULL", "NULL"]);
    assert_eq!(row(1), ["app", "known", "30", "NULL", "public.u", "relation public.u is unlogged"]);
    assert_eq!(row(2)[4..], ["public.v", "view public.v reaches public.u, which is unlogged"]);
    assert_eq!(row(3), ["none", "unknown", "NULL", "NULL", "NULL", "NULL"]);
}

#[tokio::test]
async fn explain_route_goes_by_the_catalog_of_the_database_it_names() {
    let mut snapshot = moment().await;
    let because = |snapshot: &Snapshot, text: &str| {
        let rows = explain(snapshot, text);
        ["statement is a", "because", "catalog"].map(|item| match rows.iter().find(|row| row[0] == Value::from(item)) {
            Some(row) => format!("{:?}", row[1]),
            None => String::new(),
        })
    };
    for (text, said) in [
        (
            "(DATABASE app) SELECT total()",
            ["read", "function public.total is a read by its volatility", "that of app, read 30 s ago"],
        ),
        (
            "( database \"app\" ) TABLE v",
            ["write", "view public.v reaches public.u, which is unlogged", "that of app, read 30 s ago"],
        ),
        ("SELECT total()", ["write", "function total is not known to be a read", "none"]),
        ("(DATABASE other) SELECT total()", ["write", "function total is not known to be a read", "none"]),
        ("(SELECT 1)", ["read", "select", "none"]),
    ] {
        let got = because(&snapshot, text);
        for (got, said) in got.iter().zip(said) {
            assert!(got.contains(said), "{text}: {got} is not {said}");
        }
    }
    snapshot.catalogs.truncate(1);
    assert!(because(&snapshot, "SELECT total()")[0].contains("read"), "the only one");
}

#[tokio::test]
async fn settings_are_told_without_secrets() {
    let snapshot = moment().await;
    for flavour in [Flavour::Own, Flavour::Bouncer] {
        let report = find("config").unwrap().report(flavour);
        let rows = (report.rows)(&snapshot);
        assert!(rows.len() > 10);
        assert!(!format!("{rows:?}").contains("very-secret"), "{rows:?}");
    }
    let row = |key: &str, flavour| {
        let rows = (find("config").unwrap().report(flavour).rows)(&snapshot);
        rows.into_iter().find(|row| row[0] == Value::from(key)).unwrap()
    };
    assert_eq!(row("pool.size", Flavour::Own)[1..], ["20", "20", "yes"].map(Value::from));
    assert_eq!(row("query_wait_timeout", Flavour::Bouncer)[1], Value::from("30"));
    assert_eq!(row("max_client_conn", Flavour::Bouncer)[1], Value::from("10000"));
}

#[tokio::test]
async fn learned_statements_are_shown_without_their_literals() {
    let snapshot = moment().await;
    let shown = told(&snapshot, "learned", Flavour::Own, 0, "statement");
    assert!(shown.starts_with("select f(?) from t where a in (?)") && shown.ends_with("xx…"), "{shown}");
    assert!(shown.len() < 210, "{shown}");
    for (column, value) in [("reason", "read_only"), ("since", "60"), ("expires", "540"), ("times", "2")] {
        assert_eq!(told(&snapshot, "learned", Flavour::Own, 0, column), value);
    }
}

#[tokio::test]
async fn failover_is_told_as_of_the_answer() {
    let snapshot = moment().await;
    let own = |name: &str, row, column: &str| told(&snapshot, name, Flavour::Own, row, column);
    let rows = (find("failover").unwrap().report(Flavour::Own).rows)(&snapshot);
    for (item, value) in [
        ("state", "stable"),
        ("paused", "yes"),
        ("primary", "pg1"),
        ("epoch", "4"),
        ("lease_left_ms", "900"),
        ("would_promote", "pg2"),
        ("holds", "paused"),
        ("would_be_held", "paused, min_gap"),
        ("failover_gap_left_ms", "19000"),
        ("last_took_ms", "87"),
        ("last_age_ms", "41000"),
    ] {
        assert!(rows.contains(&vec![Value::from(item), Value::from(value)]), "{item}: {rows:?}");
    }
    assert!(rows.contains(&vec![Value::from("right_left_ms"), Value::Null]), "{rows:?}");
    let whens: Vec<_> = (0..3).map(|row| own("holds", row, "when")).collect();
    assert_eq!(whens, ["now", "at a failover", "at a failover"]);
    assert_eq!((own("holds", 0, "needs_person"), own("holds", 2, "needs_person")), ("yes".into(), "no".into()));
    let verdicts: Vec<_> = (0..3).map(|row| own("candidates", row, "verdict")).collect();
    assert_eq!(verdicts, ["is the primary", "would be promoted", "no: it does not answer"]);
    let event: Vec<_> = ["age_ms", "kind", "node", "took_ms"].map(|column| own("events", 0, column)).to_vec();
    assert_eq!(event, ["41000", "promote", "pg1", "31.2"]);
}
