//! The primary ends: killed, stopped, frozen, crashed.
//!
//! Invariant: every bound holds on a slow machine with two cores. Absent on purpose: the rig itself (`rig`, `load`).

use crate::load::{Load, ids_on, lost, print};
use crate::rig::{LIMIT, Plan, Rig, outcome, pause};
use crate::support::rawclient::RawClient;
use crate::support::wait_for;
use pgregent::demo::cluster::Shutdown;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// On a slow, busy machine; an idle one needs well under a second.
const OUTAGE_MAX: Duration = Duration::from_secs(8);
/// Silence is decided after `probe_fall` misses of at most a `probe_timeout` each.
const SILENT_OUTAGE_MAX: Duration = Duration::from_secs(15);
/// Asynchronous replication: what may be missing after a kill, per run.
const LOST_MAX: usize = 20;
/// Time to warm up, and to go on after the change.
const WARM_MS: u64 = 800;

/// Clients that write.
const WRITERS: usize = 4;

/// Sessions that do nothing while the primary changes.
struct Bystanders {
    idle: Vec<RawClient>,
    in_transaction: Vec<RawClient>,
}

impl Bystanders {
    fn new(rig: &Rig) -> Self {
        let mut idle: Vec<RawClient> = (0..4).map(|_| rig.client()).collect();
        for (index, client) in idle.iter_mut().enumerate() {
            assert_eq!(client.value("SELECT 6 * 7"), "42");
            client.simple(&format!("SET application_name = 'idle{index}'")).unwrap();
        }
        let mut in_transaction: Vec<RawClient> = (0..3).map(|_| rig.client()).collect();
        for (index, client) in in_transaction.iter_mut().enumerate() {
            client.simple(&format!("BEGIN; INSERT INTO ledger (id) VALUES (-{})", index + 1)).unwrap();
        }
        Self { idle, in_transaction }
    }

    /// Idle sessions noticed nothing; open transactions got 40001 once.
    fn check(mut self) {
        for (index, client) in self.idle.iter_mut().enumerate() {
            assert_eq!(client.value("SHOW application_name"), format!("idle{index}"));
            client.simple(&format!("INSERT INTO ledger (id) VALUES (-10{index})")).unwrap();
        }
        for (index, client) in self.in_transaction.iter_mut().enumerate() {
            assert_eq!(outcome(&client.simple("SELECT count(*) FROM ledger")), "40001");
            client.simple("ROLLBACK").unwrap();
            assert_eq!(client.value(&format!("SELECT count(*) FROM ledger WHERE id = -{}", index + 1)), "0");
            client.simple(&format!("INSERT INTO ledger (id) VALUES (-{})", index + 1)).unwrap();
        }
    }
}

/// Runs a change of primary under load, and checks what all kinds of death have in common.
fn change(title: &str, rig: &Rig, outage_max: Duration, fault: impl FnOnce()) {
    let bystanders = Bystanders::new(rig);
    let load = Load::start(rig, WRITERS, 3);
    pause(WARM_MS);
    let began = Instant::now();
    fault();
    wait_for("another primary", LIMIT, || {
        let control = rig.control();
        control["primary"].is_string() && control["primary"] != "pg1"
    });
    println!("{title}: another primary after {:.3} s", began.elapsed().as_secs_f64());
    pause(WARM_MS);
    bystanders.check();
    let (writers, readers) = load.stop();
    print(rig, title, &writers, &readers);
    rig.print_parts(title);
    let primary = rig.control()["primary"].as_str().unwrap().to_owned();
    let missing = lost(&writers, rig.node(&primary));
    println!("{title}: {missing} of {} acknowledged rows lost", writers.acked.len());
    // 08007: the write was under way. Everything else waits.
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    assert!(writers.write_gap() < outage_max, "no write for {:?}", writers.write_gap());
    assert!(readers.read_gap() < outage_max, "no read for {:?}", readers.read_gap());
    assert!(missing <= LOST_MAX, "{missing} acknowledged rows are not on {primary}");
    assert_eq!(rig.control()["failover"]["failovers"], 1);
}

#[test]
fn a_killed_primary_is_replaced() {
    let rig = Plan::new().start();
    change("kill -9", &rig, OUTAGE_MAX, || rig.node("pg1").kill9().unwrap());
    rig.assert_log_clean(&[]);
}

#[test]
fn a_killed_primary_is_replaced_with_the_default_retrieve_interval() {
    let mut plan = Plan::new();
    plan.cluster.wal_retrieve_retry_interval = Duration::from_secs(5);
    let rig = plan.start();
    change("kill -9, 5 s retrieve interval", &rig, OUTAGE_MAX, || rig.node("pg1").kill9().unwrap());
    rig.wait_reads_on(&["pg2", "pg3"]);
    rig.assert_log_clean(&[]);
}

#[test]
fn a_primary_stopped_fast_is_replaced() {
    let rig = Plan::new().start();
    change("fast stop", &rig, OUTAGE_MAX, || rig.node("pg1").stop(Shutdown::Fast).unwrap());
    rig.assert_log_clean(&[]);
}

#[test]
fn a_primary_stopped_at_once_is_replaced() {
    let rig = Plan::new().start();
    change("immediate stop", &rig, OUTAGE_MAX, || rig.node("pg1").stop(Shutdown::Immediate).unwrap());
    rig.assert_log_clean(&[]);
}

#[test]
fn a_frozen_primary_is_replaced_and_never_written_again() {
    let rig = Plan::new().start();
    let load = Load::start(&rig, WRITERS, 3);
    pause(WARM_MS);
    let freezing = Instant::now();
    rig.node("pg1").freeze().unwrap();
    // Process by process: for some milliseconds some backends still acknowledge, and others no longer send.
    let frozen = Instant::now();
    wait_for("another primary", LIMIT, || {
        let control = rig.control();
        control["primary"].is_string() && control["primary"] != "pg1"
    });
    println!("frozen: another primary after {:.3} s", frozen.elapsed().as_secs_f64());
    pause(WARM_MS);
    rig.node("pg1").thaw().unwrap();
    wait_for("the thawed primary is quarantined", LIMIT, || {
        let log = rig.log();
        log.contains("quarantined")
    });
    pause(WARM_MS);
    let (writers, readers) = load.stop();
    print(&rig, "frozen", &writers, &readers);
    rig.print_parts("frozen");
    let primary = rig.control()["primary"].as_str().unwrap().to_owned();
    let during = writers.acked.iter().filter(|write| (freezing..=frozen).contains(&write.at)).count();
    assert!(lost(&writers, rig.node(&primary)) <= during, "more is lost than the freeze itself explains");
    // What was under way at the freeze may be on the old primary; nothing else may.
    let on_old = ids_on(rig.node("pg1"));
    let before: BTreeSet<i64> = writers.acked.iter().filter(|write| write.at < frozen).map(|write| write.id).collect();
    let late: Vec<_> = on_old.iter().filter(|id| !writers.unknown.contains(id) && !before.contains(id)).collect();
    // An acknowledgement may have been on its way to the client while the node froze.
    assert!(late.len() <= WRITERS, "the given up primary was written after the freeze: {late:?}");
    assert_eq!(rig.app_backends("pg1"), "0");
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    assert!(writers.write_gap() < SILENT_OUTAGE_MAX, "{:?}", writers.write_gap());
    rig.assert_log_clean(&["quarantined"]);
}

#[test]
fn a_primary_that_crashes_and_restarts_stays_primary() {
    let rig = Plan::new().start();
    let load = Load::start(&rig, WRITERS, 3);
    pause(WARM_MS);
    let victim = "SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend' LIMIT 1";
    let pid = rig.node("pg1").psql(victim).unwrap();
    let crashed = Instant::now();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    pause(200);
    let mut client = rig.client();
    client.simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    println!("crash restart: a write {:.3} s after the crash", crashed.elapsed().as_secs_f64());
    rig.wait_primary("pg1");
    pause(WARM_MS);
    let (writers, readers) = load.stop();
    print(&rig, "crash restart", &writers, &readers);
    let control = rig.control();
    assert_eq!((&control["primary"], &control["failover"]["failovers"]), (&"pg1".into(), &0.into()));
    assert_eq!(lost(&writers, rig.node("pg1")), 0);
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    assert!(writers.write_gap() < OUTAGE_MAX, "{:?}", writers.write_gap());
    rig.assert_log_clean(&[]);
}
