//! The control plane against real PostgreSQL servers, with the least-privilege monitor role.
//!
//! Invariants: each test has servers of its own. Absent on purpose: clients and the data plane.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod brain;
mod cluster;
#[path = "../support/rights.rs"]
mod rights;

use brain::FirstStandby;
use cluster::{Cluster, Shape};
use pgregent::clock::{Clock, Time};
use pgregent::config::Config;
use pgregent::failover::controller::{
    Brain, CommandError, ControlChannel, ControlDeps, ControlThread, NoMetrics, spawn,
};
use pgregent::failover::event::{Command, Outcome};
use pgregent::failover::execute::Executor;
use pgregent::failover::{Machine, Policy};
use pgregent::ids::{Epoch, Lsn, NodeId, TimelineId};
use pgregent::monitor::{Aim, Monitor, Report};
use pgregent::topology::{
    FactSender, NodeReport, ProbeFailure, Role, Sign, SignKind, SyncState, Topology, TopologyReader, WriteSign,
    fact_channel, topology_channel,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

fn now() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "tests measure")]
    Instant::now()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The next outcome of a node that satisfies `wanted`.
async fn until(
    monitor: &mut Monitor,
    node: u16,
    wanted: impl Fn(&Result<NodeReport, ProbeFailure>) -> bool,
) -> Result<NodeReport, ProbeFailure> {
    let search = async {
        loop {
            if let Report::Probed { observation, .. } = monitor.report().await
                && observation.node == NodeId(node)
                && wanted(&observation.outcome)
            {
                return observation.outcome;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("no such outcome in time")
}

#[test]
fn a_probe_tells_primary_from_standby_and_a_kill_is_noticed_at_once() {
    let cluster = Cluster::start(Shape { standbys: 1, ..Shape::default() });
    cluster.sql(0, "INSERT INTO t SELECT generate_series(1, 100)");
    runtime().block_on(async {
        let clock = Clock::machine();
        let (_facts, receiver) = fact_channel();
        let mut monitor = Monitor::start(&cluster.config(), &clock, receiver.write_demand());
        let primary = until(&mut monitor, 0, Result::is_ok).await.unwrap();
        let caught_up = |outcome: &Result<NodeReport, _>| {
            outcome.as_ref().is_ok_and(|r| r.replay_lsn >= primary.flush_lsn && r.receiver.is_some())
        };
        let standby = until(&mut monitor, 1, caught_up).await.unwrap();

        assert!(!primary.in_recovery && standby.in_recovery);
        assert_eq!(primary.system_id, standby.system_id);
        assert_eq!(primary.system_id.to_string(), cluster.sql(0, "SELECT system_identifier FROM pg_control_system()"));
        assert_eq!((primary.timeline.0, standby.timeline.0), (1, 1));
        assert_eq!(primary.version_num / 10_000, 15);
        assert!(primary.receiver.is_none() && !standby.replay_paused);
        assert_ne!(primary.incarnation, standby.incarnation);
        let (ours, theirs) = (primary.sync.unwrap(), standby.sync.unwrap());
        assert_eq!((ours.standby_names.as_str(), theirs.standbys.len()), ("", 0));
        let [streaming] = ours.standbys.as_slice() else { panic!("{ours:?}") };
        assert_eq!((streaming.streaming, streaming.sync_state), (true, SyncState::Async));
        assert!(streaming.flush_lsn.is_some() && !streaming.application_name.is_empty(), "{streaming:?}");
        let receiver = standby.receiver.unwrap();
        assert!(receiver.streaming);
        assert_eq!(receiver.upstream, format!("127.0.0.1:{}", cluster.ports[0]));
        assert!(receiver.last_message_age < Duration::from_secs(60));

        let killed = now();
        cluster.kill(0);
        let first = until(&mut monitor, 0, Result::is_err).await.unwrap_err();
        let lost = killed.elapsed();
        assert_eq!(first, ProbeFailure::SessionLost);
        let second = until(&mut monitor, 0, Result::is_err).await.unwrap_err();
        let refused = killed.elapsed();
        assert_eq!(second, ProbeFailure::Refused);
        println!("after kill -9: session lost {lost:?}, refused {refused:?}");
        assert!(refused < Duration::from_millis(200), "{refused:?}");
        monitor.stop().await;
    });
}

/// The next outcome of the write probe.
async fn written(monitor: &mut Monitor) -> WriteSign {
    let search = async {
        loop {
            if let Report::Signed(Sign { what: SignKind::Write(sign), .. }) = monitor.report().await {
                return sign;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("no write probe in time")
}

#[test]
fn the_write_probe_commits_on_the_primary_and_says_why_it_cannot() {
    let cluster = Cluster::start(Shape { standbys: 1, ..Shape::default() });
    cluster.sql(0, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    cluster.sql(0, "SELECT pg_reload_conf()");
    let next_xid = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
    runtime().block_on(async {
        let clock = Clock::machine();
        let (_facts, receiver) = fact_channel();
        let mut monitor = Monitor::start(&cluster.config(), &clock, receiver.write_demand());
        let aim = |primary| Aim { round: 1, primary: Some(NodeId(primary)), standbys: vec![false; 2], goal: Lsn(0) };
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = cluster.sql(0, next_xid);
        monitor.set_aim(aim(0));
        // Although no standby can ever confirm a commit.
        assert_eq!(written(&mut monitor).await, WriteSign::Committed);
        assert_eq!(written(&mut monitor).await, WriteSign::Committed);
        assert_ne!(cluster.sql(0, next_xid), before);
        // A standby is never written to; one that is taken for the primary says what it is.
        monitor.set_aim(aim(1));
        let other = loop {
            match written(&mut monitor).await {
                WriteSign::Committed => {}
                other => break other,
            }
        };
        assert_eq!(other, WriteSign::ReadOnly);
        // A right that was taken away, and a backend that does not move: the node knows of no commit that waits.
        cluster.sql(0, "ALTER SYSTEM RESET synchronous_standby_names");
        cluster.sql(0, "SELECT pg_reload_conf()");
        cluster.sql(0, "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM public");
        monitor.set_aim(aim(0));
        let other = loop {
            match written(&mut monitor).await {
                WriteSign::Committed | WriteSign::ReadOnly => {}
                other => break other,
            }
        };
        assert!(matches!(&other, WriteSign::Forbidden(why) if why.contains("permission denied")), "{other:?}");
        monitor.stop().await;
    });
}

#[test]
fn a_stopped_backend_is_no_hung_disk() {
    let cluster = Cluster::start(Shape { standbys: 0, ..Shape::default() });
    runtime().block_on(async {
        let clock = Clock::machine();
        let (_facts, receiver) = fact_channel();
        let mut monitor = Monitor::start(&cluster.config(), &clock, receiver.write_demand());
        monitor.set_aim(Aim { round: 1, primary: Some(NodeId(0)), standbys: vec![false], goal: Lsn(0) });
        assert_eq!(written(&mut monitor).await, WriteSign::Committed);
        let mine = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgregent write probe'";
        let pid = cluster.sql(0, mine);
        let signal = |s: &str| assert!(std::process::Command::new("kill").args([s, &pid]).status().unwrap().success());
        signal("-STOP");
        while written(&mut monitor).await != WriteSign::Pending {}
        let report = until(&mut monitor, 0, Result::is_ok).await.unwrap();
        assert_eq!(report.pending_write, None);
        signal("-CONT");
        while written(&mut monitor).await != WriteSign::Committed {}
        monitor.stop().await;
    });
}

#[test]
fn failures_are_told_apart() {
    let cluster = Cluster::start(Shape { standbys: 0, ..Shape::default() });
    runtime().block_on(async {
        let clock = Clock::machine();
        let (_facts, receiver) = fact_channel();
        let mut config = (*cluster.config()).clone();
        config.cluster.monitor_password = pgregent::config::Secret::new("wrong");
        let mut monitor = Monitor::start(&Arc::new(config.clone()), &clock, receiver.write_demand());
        let rejected = until(&mut monitor, 0, Result::is_err).await.unwrap_err();
        assert!(matches!(&rejected, ProbeFailure::Rejected(why) if why.contains("28P01")), "{rejected:?}");
        monitor.stop().await;

        // SIGSTOP: connects succeed, nothing answers.
        config.cluster.probe_timeout = Duration::from_millis(200);
        let pid = cluster.postmaster(0);
        let signal = |s: &str| assert!(std::process::Command::new("kill").args([s, &pid]).status().unwrap().success());
        signal("-STOP");
        let mut monitor = Monitor::start(&Arc::new(config), &clock, receiver.write_demand());
        let frozen = until(&mut monitor, 0, Result::is_err).await.unwrap_err();
        signal("-CONT");
        assert_eq!(frozen, ProbeFailure::TimedOut);
        monitor.stop().await;
    });
}

/// Detach both, promote one, repoint the other; returns how long each step took.
async fn fail_over(cluster: &Cluster, executor: &Executor) -> [Duration; 3] {
    let epoch = Epoch(2);
    let began = now();
    let (first, second) = tokio::join!(executor.detach(NodeId(1), epoch), executor.detach(NodeId(2), epoch));
    let detached = began.elapsed();
    let (Outcome::Detached { flush_lsn, replay_lsn }, Outcome::Detached { .. }) = (&first, &second) else {
        panic!("{first:?} {second:?}")
    };
    assert!(flush_lsn.0 > 0 && replay_lsn.0 > 0);
    assert_eq!(cluster.sql(1, "SELECT count(*) FROM pg_stat_wal_receiver"), "0");
    assert_eq!(executor.promote(NodeId(1), epoch).await, Outcome::Done);
    let promoted = began.elapsed();
    assert_eq!(executor.repoint(NodeId(2), NodeId(1), epoch, TimelineId(2)).await, Outcome::Done);
    let repointed = began.elapsed();
    [detached, promoted - detached, repointed - promoted]
}

#[test]
fn detach_promote_repoint_takes_no_retry_interval() {
    for retry_interval in ["5s", "200ms"] {
        let cluster = Cluster::start(Shape { retry_interval, ..Shape::default() });
        cluster.sql(0, "INSERT INTO t VALUES (1)");
        let before = cluster.sql(2, "SHOW primary_conninfo");
        runtime().block_on(async {
            let config = cluster.config();
            std::fs::create_dir_all(&config.cluster.state_dir).unwrap();
            let executor = Executor::new(&config, None).unwrap();
            cluster.kill(0);
            let steps = fail_over(&cluster, &executor).await;
            println!("wal_retrieve_retry_interval = {retry_interval}: detach, promote, repoint {steps:?}");
            assert!(steps.iter().sum::<Duration>() < Duration::from_secs(2), "{steps:?}");

            cluster.sql(1, "INSERT INTO t VALUES (2)");
            let wait = now();
            while cluster.sql(2, "SELECT count(*) FROM t WHERE id = 2") != "1" {
                assert!(wait.elapsed() < PATIENCE, "the repointed standby does not follow");
            }
            let changed = |port: u16| format!("port={port}");
            let after = cluster.sql(2, "SHOW primary_conninfo");
            assert_eq!(
                after,
                before.replace(&changed(cluster.ports[0]), &changed(cluster.ports[1])),
                "only the port changed"
            );
            assert_eq!(cluster.sql(1, "SELECT active FROM pg_replication_slots WHERE slot_name = 'slot_2'"), "t");

            // Idempotent, and not for an older epoch.
            assert_eq!(executor.promote(NodeId(1), Epoch(2)).await, Outcome::Done);
            assert_eq!(executor.repoint(NodeId(2), NodeId(1), Epoch(2), TimelineId(2)).await, Outcome::Done);
            let stale = executor.promote(NodeId(2), Epoch(1)).await;
            assert!(matches!(&stale, Outcome::Failed(why) if why.contains("epoch 2")), "{stale:?}");
            assert_eq!(cluster.sql(2, "SELECT pg_is_in_recovery()"), "t");
        });
    }
}

#[test]
fn promoting_in_the_moment_the_receiver_dies_does_not_sleep_out_the_retry_interval() {
    // Without a detach before and without nudges about every third of these takes 5 s.
    let mut took = Vec::new();
    for _ in 0..6 {
        let cluster = Cluster::start(Shape { standbys: 1, ..Shape::default() });
        runtime().block_on(async {
            let config = cluster.config();
            std::fs::create_dir_all(&config.cluster.state_dir).unwrap();
            let executor = Executor::new(&config, None).unwrap();
            // A session that is open already lets the promotion arrive earliest.
            assert_eq!(executor.repoint(NodeId(1), NodeId(0), Epoch(1), TimelineId(1)).await, Outcome::Done);
            cluster.sql(0, "INSERT INTO t SELECT generate_series(1, 1000)");
            cluster.kill(0);
            let began = now();
            assert_eq!(executor.promote(NodeId(1), Epoch(2)).await, Outcome::Done);
            took.push(began.elapsed());
        });
    }
    println!("promote without detach: {took:?}");
    assert!(took.iter().all(|t| *t < Duration::from_secs(2)), "{took:?}");
}

#[test]
fn a_restart_between_detach_and_repoint_loses_no_connection_string() {
    let cluster = Cluster::start(Shape { may_make_slots: false, ..Shape::default() });
    runtime().block_on(async {
        let config = cluster.config();
        std::fs::create_dir_all(&config.cluster.state_dir).unwrap();
        let first = Executor::new(&config, None).unwrap();
        for node in [1, 2] {
            let outcome = first.detach(NodeId(node), Epoch(2)).await;
            assert!(matches!(outcome, Outcome::Detached { .. }), "{outcome:?}");
        }
        drop(first);
        let second = Executor::new(&config, None).unwrap();
        assert_eq!(second.promote(NodeId(1), Epoch(2)).await, Outcome::Done);
        assert_eq!(second.repoint(NodeId(2), NodeId(1), Epoch(2), TimelineId(2)).await, Outcome::Done);
        // Without REPLICATION no slot can be made: the standby streams without one.
        assert_eq!(cluster.sql(2, "SHOW primary_slot_name"), "");
        assert!(cluster.sql(2, "SHOW primary_conninfo").contains("password="));

        // Even with nothing remembered, another standby's string is a template.
        std::fs::remove_file(config.cluster.state_dir.join("main.upstreams.json")).unwrap();
        cluster.sql(2, "ALTER SYSTEM SET primary_conninfo = ''");
        cluster.sql(2, "SELECT pg_reload_conf()");
        let third = Executor::new(&config, None).unwrap();
        let outcome = third.repoint(NodeId(2), NodeId(1), Epoch(2), TimelineId(2)).await;
        assert!(matches!(&outcome, Outcome::Failed(why) if why.contains("no connection string")), "{outcome:?}");
    });
}

/// A running control plane with a scripted brain.
struct Plane {
    thread: ControlThread,
    reader: TopologyReader,
    facts: FactSender,
    clock: Clock,
}

fn control_plane<B: Brain>(cluster: &Cluster, brain: impl FnOnce(&Config, Time) -> B) -> Plane {
    let config = cluster.config();
    let names: Vec<_> = config.nodes.iter().map(|node| Arc::clone(&node.name)).collect();
    let (publisher, reader) = topology_channel(Topology::starting(&names));
    let (facts, receiver) = fact_channel();
    let clock = Clock::machine();
    let brain = brain(&config, clock.now());
    let deps = ControlDeps {
        config,
        clock: clock.clone(),
        publisher,
        facts: receiver,
        metrics: Arc::new(NoMetrics),
        services: Box::new(|_| vec![]),
        channel: ControlChannel::default(),
    };
    Plane { thread: spawn(deps, brain).unwrap(), reader, facts, clock }
}

async fn snapshot_until(reader: &mut TopologyReader, wanted: impl Fn(&Topology) -> bool) -> Arc<Topology> {
    let search = async {
        loop {
            let snapshot = reader.snapshot();
            if wanted(&snapshot) {
                return snapshot;
            }
            reader.changed().await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, search).await;
    found.unwrap_or_else(|_| panic!("not reached: {:#?}", reader.snapshot()))
}

#[test]
fn freshness_follows_writes_within_milliseconds() {
    let cluster = Cluster::start(Shape::default());
    let mut plane = control_plane(&cluster, |config, _| FirstStandby::new(config.nodes.len()));
    runtime().block_on(async {
        let port = cluster.ports[0];
        let login = format!("host=127.0.0.1 port={port} user=postgres password=postgres dbname=postgres");
        let (client, connection) = tokio_postgres::connect(&login, tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let both = |t: &Topology| t.nodes.iter().filter(|n| n.role == Role::Standby && n.accepts_reads).count() == 2;
        snapshot_until(&mut plane.reader, both).await;
        let mut took = Vec::new();
        for id in 0..50i64 {
            client.execute("INSERT INTO t VALUES ($1)", &[&id]).await.unwrap();
            let written: Time = plane.clock.now();
            plane.facts.wrote(written, None);
            let fresh = |t: &Topology| t.nodes.iter().all(|n| n.fresh_as_of >= written);
            snapshot_until(&mut plane.reader, fresh).await;
            took.push(plane.clock.now().since(written));
            for node in [1, 2] {
                // What freshness claims, the standby shows; psql is slow, so only now and then.
                if id % 25 == 0 {
                    assert_eq!(cluster.sql(node, &format!("SELECT count(*) FROM t WHERE id = {id}")), "1");
                }
            }
        }
        took.sort();
        println!("both standbys fresh after a write: median {:?}, worst {:?}", took[25], &took[45..]);
        assert!(took[25] < Duration::from_millis(50), "{took:?}");
        connection.abort();
    });
    plane.thread.stop().unwrap();
}

#[test]
fn a_killed_primary_is_replaced_and_the_permit_never_spans_the_change() {
    let cluster = Cluster::start(Shape::default());
    let mut plane = control_plane(&cluster, |config, _| FirstStandby::new(config.nodes.len()));
    runtime().block_on(async {
        let first = snapshot_until(&mut plane.reader, |t| t.primary == Some(NodeId(0))).await;
        assert!(plane.reader.permit().allows(first.epoch, || plane.clock.now()));
        let handle = plane.thread.handle.clone();
        assert_eq!(handle.send(Command::Pause).await, Ok("noted".to_owned()));
        let refused = handle.send(Command::Failover { to: None }).await;
        assert_eq!(refused, Err(CommandError::Refused("not by hand".to_owned())));

        // Writes that are merely held leave what is under way its permit.
        assert_eq!(handle.send(Command::Resume).await, Ok("noted".to_owned()));
        snapshot_until(&mut plane.reader, |t| t.primary.is_none()).await;
        assert!(plane.reader.permit().allows(first.epoch, || plane.clock.now()));
        snapshot_until(&mut plane.reader, |t| t.primary == Some(NodeId(0))).await;

        let killed = now();
        cluster.kill(0);
        let held = snapshot_until(&mut plane.reader, |t| t.primary.is_none()).await;
        assert!(!plane.reader.permit().allows(held.epoch, || plane.clock.now()));
        let second = snapshot_until(&mut plane.reader, |t| t.primary == Some(NodeId(1))).await;
        println!("kill -9 to the new primary published: {:?}", killed.elapsed());
        assert_eq!(second.epoch, Epoch(2));
        assert!(plane.reader.permit().allows(Epoch(2), || plane.clock.now()));
        assert!(!plane.reader.permit().allows(Epoch(1), || plane.clock.now()));
        assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());

        let written = plane.clock.now();
        plane.facts.wrote(written, None);
        snapshot_until(&mut plane.reader, |t| t.nodes[2].fresh_as_of >= written && t.nodes[2].accepts_reads).await;
        println!("third node follows the new primary after {:?}", killed.elapsed());
        let mut status = handle.status();
        let seen = status.wait_for(|s| s.recent.iter().any(|e| e.kind == "repoint")).await.unwrap().clone();
        assert_eq!((seen.primary.as_deref(), seen.epoch, seen.writes), (Some("pg2"), Epoch(2), "open"));
        println!("{}", serde_json::to_string_pretty(&*seen).unwrap());
    });
    plane.thread.stop().unwrap();
    assert!(!plane.reader.permit().allows(Epoch(2), || plane.clock.now()), "nobody guards the permit any more");
    let stored = std::fs::read_to_string(cluster.dir.with_extension("state").join("main.json")).unwrap();
    assert!(stored.contains("\"pg2\""), "{stored}");
}

#[test]
fn the_machine_replaces_a_killed_primary() {
    let cluster = Cluster::start(Shape::default());
    let mut plane = control_plane(&cluster, |config, now| Machine::new(Policy::from_config(config), now));
    runtime().block_on(async {
        snapshot_until(&mut plane.reader, |t| t.primary == Some(NodeId(0))).await;
        let handle = plane.thread.handle.clone();
        let refused = handle.send(Command::Failover { to: Some(NodeId(0)) }).await;
        assert!(matches!(refused, Err(CommandError::Refused(_))), "{refused:?}");
        let killed = now();
        cluster.kill(0);
        let next = snapshot_until(&mut plane.reader, |t| t.primary.is_some_and(|p| p != NodeId(0))).await;
        println!("machine: kill -9 to the new primary published: {:?}", killed.elapsed());
        let primary = next.primary.unwrap();
        assert!(plane.reader.permit().allows(next.epoch, || plane.clock.now()));
        cluster.sql(primary.index(), "INSERT INTO t VALUES (7)");
        let written = plane.clock.now();
        plane.facts.wrote(written, None);
        let other = 3 - primary.index();
        snapshot_until(&mut plane.reader, |t| t.nodes[other].fresh_as_of >= written && t.nodes[other].accepts_reads)
            .await;
        assert_eq!(cluster.sql(other, "SELECT count(*) FROM t WHERE id = 7"), "1");
        let mut status = handle.status();
        let seen = status.wait_for(|s| s.failover.failovers == 1).await.unwrap().clone();
        assert_eq!(seen.failover.state, "stable");
    });
    plane.thread.stop().unwrap();
}
