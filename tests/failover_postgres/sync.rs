//! Synchronous replication: nothing that was acknowledged is lost, or nobody is promoted.
//!
//! Invariant: every bound holds on a slow machine with two cores. Absent on purpose: the rig itself (`rig`, `load`).

use crate::load::{Load, ids_on, lost, print};
use crate::rig::{LIMIT, Plan, pause};
use crate::support::wait_for;
use pgregent::demo::cluster::Shutdown;

fn synchronous() -> Plan {
    let mut plan = Plan::new();
    let names = "ANY 1 (pg1, pg2, pg3)".to_owned();
    plan.cluster.settings.push(("synchronous_standby_names".to_owned(), names));
    plan
}

#[test]
fn a_killed_synchronous_primary_loses_nothing() {
    let rig = synchronous().start();
    let load = Load::start(&rig, 4, 2);
    pause(800);
    rig.node("pg1").kill9().unwrap();
    wait_for("another primary", LIMIT, || {
        let control = rig.control();
        control["primary"].is_string() && control["primary"] != "pg1"
    });
    pause(800);
    let (writers, readers) = load.stop();
    print(&rig, "synchronous, kill -9", &writers, &readers);
    let primary = rig.control()["primary"].as_str().unwrap().to_owned();
    assert_eq!(lost(&writers, rig.node(&primary)), 0, "of {} acknowledged rows", writers.acked.len());
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    rig.assert_log_clean(&[]);
}

#[test]
fn a_synchronous_standby_that_is_missing_too_holds_the_failover() {
    let rig = synchronous().start();
    let load = Load::start(&rig, 3, 1);
    pause(500);
    // It may have acknowledged alone, a moment before.
    rig.node("pg3").stop(Shutdown::Immediate).unwrap();
    pause(300);
    rig.node("pg1").kill9().unwrap();
    wait_for("the failover is held", LIMIT, || rig.log().contains("synchronous replication"));
    pause(1500);
    let control = rig.control();
    println!("synchronous, one standby down: {}", control["holds"]);
    assert!(!control["primary"].is_string(), "{control}");
    assert!(control["holds"].to_string().contains("ANY 1 of 2"), "{control}");
    // Back, it is asked where it stands; now somebody can be promoted.
    rig.node("pg3").start().unwrap();
    wait_for("another primary", LIMIT, || rig.control()["primary"].is_string());
    pause(500);
    let (writers, readers) = load.stop();
    print(&rig, "synchronous, one standby down", &writers, &readers);
    let primary = rig.control()["primary"].as_str().unwrap().to_owned();
    assert_ne!(primary, "pg1");
    assert_eq!(lost(&writers, rig.node(&primary)), 0, "{} rows on {primary}", ids_on(rig.node(&primary)).len());
    rig.assert_log_clean(&["held"]);
}

#[test]
fn what_commits_waited_for_is_known_after_a_restart() {
    let rig = Plan::new().start();
    // The setting is the operator's, and only the primary has it.
    rig.node("pg1").psql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (pg2, pg3)'").unwrap();
    rig.node("pg1").psql("SELECT pg_reload_conf()").unwrap();
    wait_for("the proxy knows", LIMIT, || rig.node_status("pg3")["candidate"]["sync_member"] == true);
    // Until the position after which the new setting counts is reached everywhere.
    pause(3500);
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    rig.kill_proxy();
    rig.node("pg3").stop(Shutdown::Immediate).unwrap();
    rig.node("pg1").kill9().unwrap();
    rig.start_proxy();
    wait_for("the failover is held", LIMIT, || rig.log().contains("synchronous replication (ANY 1 of 2)"));
    pause(500);
    assert!(!rig.control()["primary"].is_string(), "{}", rig.control());
    rig.node("pg3").start().unwrap();
    wait_for("another primary", LIMIT, || rig.control()["primary"].is_string());
    assert_ne!(rig.control()["primary"], "pg1");
    assert_eq!(rig.client().value("SELECT count(*) FROM ledger WHERE id = -1"), "1");
    rig.assert_log_clean(&["held"]);
}
