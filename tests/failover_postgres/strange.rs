//! What operators and bad luck do: promotion by hand, two primaries, full servers, restarts.
//!
//! Invariant: every bound holds on a slow machine with two cores. Absent on purpose: the rig itself (`rig`, `load`).

use crate::load::{Load, lost, print};
use crate::rig::{LIMIT, Plan, outcome, pause, since};
use crate::support::rawclient::RawClient;
use crate::support::wait_for;
use pgregent::demo::cluster::Shutdown;
use std::time::{Duration, Instant};

#[test]
fn a_promotion_by_hand_is_adopted() {
    let rig = Plan::new().start_following();
    let load = Load::start(&rig, 3, 2);
    pause(500);
    rig.node("pg1").stop(Shutdown::Fast).unwrap();
    pause(1000);
    assert!(!rig.control()["primary"].is_string(), "follow mode promoted: {}", rig.control());
    rig.node("pg2").promote().unwrap();
    rig.wait_primary("pg2");
    pause(500);
    let (writers, readers) = load.stop();
    print(&rig, "promoted by hand", &writers, &readers);
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    assert_eq!(lost(&writers, rig.node("pg2")), 0);
    rig.assert_log_clean(&["held"]);
}

#[test]
fn two_writable_primaries_get_no_writes() {
    let rig = Plan::new().start();
    let load = Load::start(&rig, 2, 2);
    pause(500);
    rig.node("pg3").promote().unwrap();
    wait_for("writes are refused", LIMIT, || rig.control()["writes"] == "refused");
    let mut client = rig.client();
    let began = Instant::now();
    let refused = client.simple("INSERT INTO ledger (id) VALUES (-1)");
    println!("two primaries: {refused:?} after {}", since(began));
    assert_eq!(outcome(&refused), "57P03");
    assert!(began.elapsed() < Duration::from_secs(2));
    pause(300);
    let (writers, readers) = load.stop();
    print(&rig, "two primaries", &writers, &readers);
    println!("two primaries: {} {:?}", rig.control()["writes_why"], rig.control()["holds"]);
    writers.assert_only(&["57P03", "08007"]);
    readers.assert_only(&[]);
    // The operator ends it.
    rig.node("pg3").stop(Shutdown::Immediate).unwrap();
    rig.wait_primary("pg1");
    client.simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    rig.assert_log_clean(&["split_brain", "quarantined"]);
}

#[test]
fn a_full_primary_is_not_given_up() {
    let mut plan = Plan::new();
    plan.cluster.max_connections = 25;
    let rig = plan.start();
    let mut client = rig.client();
    client.simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    let mut direct = Vec::new();
    while let Ok(session) = RawClient::login(rig.node("pg1").port(), &rig.login()) {
        direct.push(session);
        assert!(direct.len() < 100);
    }
    // The monitor connects anew only when its session is gone; the limit keeps it from being first.
    rig.node("pg1").psql("ALTER ROLE pgregent CONNECTION LIMIT 0").unwrap();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'pgregent'";
    rig.node("pg1").psql(end).unwrap();
    wait_for("53300 for the monitor", LIMIT, || rig.node_status("pg1")["probe_failure"] == "too_many_connections");
    pause(2000);
    client.simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    println!("full: {} {}", rig.node_status("pg1")["probe_failure"], rig.node_status("pg1")["health"]);
    assert_eq!(rig.node_status("pg1")["probe_failure"], "too_many_connections");
    let control = rig.control();
    assert_eq!((&control["primary"], &control["failover"]["failovers"]), (&"pg1".into(), &0.into()));
    rig.node("pg1").psql("ALTER ROLE pgregent CONNECTION LIMIT -1").unwrap();
    drop(direct);
    wait_for("the monitor is back", LIMIT, || rig.node_status("pg1")["probe_failure"].is_null());
    rig.assert_log_clean(&[]);
}

#[test]
fn a_full_standby_is_promoted_over_the_session_that_was_kept() {
    let mut plan = Plan::new();
    (plan.cluster.max_connections, plan.cluster.standbys) = (25, 1);
    let rig = plan.start();
    let mut client = rig.client();
    client.simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    wait_for("a read on the standby", LIMIT, || client.value("SELECT pg_is_in_recovery()") == "t");
    let mut direct = Vec::new();
    while let Ok(session) = RawClient::login(rig.node("pg2").port(), &rig.login()) {
        direct.push(session);
        assert!(direct.len() < 100);
    }
    pause(2000);
    let began = Instant::now();
    rig.node("pg1").kill9().unwrap();
    rig.wait_primary("pg2");
    client.simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    println!("a full standby: kill -9 to a write {}", since(began));
    assert!(RawClient::login(rig.node("pg2").port(), &rig.login()).is_err(), "it was not full");
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(direct);
    rig.assert_log_clean(&[]);
}

#[test]
fn a_restarted_proxy_remembers_who_is_primary() {
    let rig = Plan::new().start();
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    rig.node("pg1").kill9().unwrap();
    wait_for("another primary", LIMIT, || {
        let control = rig.control();
        control["primary"].is_string() && control["primary"] != "pg1"
    });
    let (primary, epoch) = (rig.control()["primary"].as_str().unwrap().to_owned(), rig.control()["epoch"].clone());
    rig.assert_log_clean(&[]);
    rig.kill_proxy();
    // The old primary is back, and the new one is away: nobody but it may be primary.
    rig.node("pg1").start().unwrap();
    rig.node(&primary).freeze().unwrap();
    rig.start_proxy();
    pause(2000);
    assert!(!rig.control()["primary"].is_string(), "{}", rig.control());
    rig.node(&primary).thaw().unwrap();
    rig.wait_primary(&primary);
    assert_eq!(rig.control()["epoch"], epoch);
    rig.client().simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    assert_eq!(rig.app_backends("pg1"), "0");
    rig.assert_log_clean(&["quarantined", "held"]);
}

#[test]
fn clients_wait_while_all_nodes_are_down() {
    let rig = Plan::new().start();
    let load = Load::start(&rig, 2, 2);
    pause(500);
    // The standbys first: nobody is left to be promoted.
    for name in ["pg3", "pg2", "pg1"] {
        rig.node(name).stop(Shutdown::Immediate).unwrap();
    }
    pause(2000);
    for name in ["pg1", "pg2", "pg3"] {
        rig.node(name).start().unwrap();
    }
    let up = Instant::now();
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    println!("all down: first write {} after the nodes were up", since(up));
    rig.wait_reads_on(&["pg2", "pg3"]);
    pause(300);
    let (writers, readers) = load.stop();
    print(&rig, "all down", &writers, &readers);
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    assert_eq!(lost(&writers, rig.node("pg1")), 0);
    rig.assert_log_clean(&["held"]);
}
