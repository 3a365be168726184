//! Standbys end or fall silent; an old primary comes back.
//!
//! Invariant: every bound holds on a slow machine with two cores. Absent on purpose: the rig itself (`rig`, `load`).

use crate::load::{Load, print};
use crate::rig::{LIMIT, Plan, pause};
use crate::support::wait_for;
use pgregent::demo::cluster::{Rejoined, Shutdown};
use std::time::Duration;

/// A read on a frozen standby waits until silence is decided, then moves.
const SILENT_READ_MAX: Duration = Duration::from_secs(8);

#[test]
fn a_killed_standby_costs_no_read() {
    let rig = Plan::new().start();
    let load = Load::start(&rig, 2, 4);
    pause(600);
    rig.node("pg3").kill9().unwrap();
    pause(1200);
    let (writers, readers) = load.stop();
    print(&rig, "standby killed", &writers, &readers);
    writers.assert_only(&[]);
    readers.assert_only(&[]);
    assert!(readers.slowest < Duration::from_secs(3), "{:?}", readers.slowest);
    rig.node("pg3").start().unwrap();
    rig.wait_reads_on(&["pg2", "pg3"]);
    assert_eq!(rig.control()["epoch"], 1);
    rig.assert_log_clean(&[]);
}

#[test]
fn a_frozen_standby_delays_reads_no_longer_than_its_detection() {
    let rig = Plan::new().start();
    let load = Load::start(&rig, 2, 4);
    pause(600);
    rig.node("pg3").freeze().unwrap();
    wait_for("pg3 is down", LIMIT, || rig.node_status("pg3")["health"] == "down");
    pause(600);
    let (writers, readers) = load.stop();
    print(&rig, "standby frozen", &writers, &readers);
    writers.assert_only(&[]);
    readers.assert_only(&[]);
    assert!(readers.slowest < SILENT_READ_MAX, "a read took {:?}", readers.slowest);
    rig.node("pg3").thaw().unwrap();
    rig.wait_reads_on(&["pg2", "pg3"]);
    rig.assert_log_clean(&[]);
}

#[test]
fn an_old_primary_is_used_only_after_a_rewind() {
    let rig = Plan::new().start();
    let mut client = rig.client();
    client.simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    let old = rig.node("pg1");
    old.kill9().unwrap();
    wait_for("another primary", LIMIT, || {
        let control = rig.control();
        control["primary"].is_string() && control["primary"] != "pg1"
    });
    client.simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    old.start().unwrap();
    wait_for("the old primary is quarantined", LIMIT, || rig.log().contains("quarantined"));
    let load = Load::start(&rig, 2, 3);
    pause(1000);
    let (writers, readers) = load.stop();
    print(&rig, "old primary back", &writers, &readers);
    writers.assert_only(&[]);
    readers.assert_only(&[]);
    assert!(!readers.ports.contains_key(&old.port().to_string()), "reads on the old primary: {:?}", readers.ports);
    assert_eq!(rig.app_backends("pg1"), "0");
    let status = rig.node_status("pg1");
    println!("old primary back: {} {}", status["role"], status["note"]);
    assert!(status["note"].as_str().unwrap_or_default().contains("pg_rewind"), "{status}");

    old.stop(Shutdown::Fast).unwrap();
    let primary = rig.control()["primary"].as_str().unwrap().to_owned();
    assert!(!matches!(old.rejoin(rig.node(&primary)).unwrap(), Rejoined::Rebuilt { .. }));
    rig.wait_reads_on(&["pg1"]);
    let load = Load::start(&rig, 2, 3);
    pause(600);
    let (writers, readers) = load.stop();
    print(&rig, "old primary rewound", &writers, &readers);
    readers.assert_only(&[]);
    assert!(readers.ports.contains_key(&old.port().to_string()), "no read on the rewound node: {:?}", readers.ports);
    rig.assert_log_clean(&["quarantined"]);
}
