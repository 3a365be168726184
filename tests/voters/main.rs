//! Two proxies in front of the same three nodes, coordinated by the nodes themselves (`coordination = "voters"`).
//!
//! The contract: both route writes to the same primary, or not at all; exactly one of them changes it; the other
//! follows within moments; a proxy that was frozen over a change never writes to the old primary again; without a
//! majority of voters writes stop within a lease, reads go on, and both come back by themselves. Each test has its
//! own cluster and prints what it measured (`--nocapture`). Absent on purpose: the rules (`scenarios`, unit tests
//! and the simulation test those) and faults of the network (`faults`).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[path = "../support/mod.rs"]
mod support;

mod orders;
mod pair;

use pair::{LIMIT, Pair};
use std::time::{Duration, Instant};
use support::wait_for;

/// Lease of the tests, as shipped.
const LEASE: Duration = Duration::from_secs(2);
/// On a slow, busy machine; an idle one needs well under a second.
const OUTAGE_MAX: Duration = Duration::from_secs(8);

#[test]
fn one_of_two_proxies_promotes_and_the_other_follows() {
    let pair = Pair::start("voters", &[]);
    for proxy in [0, 1] {
        pair.until_written(proxy);
        assert_eq!(pair.status(proxy)["coordination"], "voters");
    }
    // Incarnations must have been seen for a lease before locks on them count at once.
    std::thread::sleep(LEASE + LEASE / 2);
    let began = Instant::now();
    pair.node("pg1").kill9().unwrap();
    let first = pair.until_written(0);
    let second = pair.until_written(1);
    println!(
        "kill -9 to a write: {first:?} through one proxy, {second:?} more through the other, {:?} in all",
        began.elapsed()
    );
    assert!(began.elapsed() < OUTAGE_MAX);
    let (a, b) = (pair.status(0), pair.status(1));
    assert_eq!(a["primary"], b["primary"]);
    assert_ne!(a["primary"], "pg1");
    assert_eq!(a["epoch"], b["epoch"]);
    let done = [0, 1].map(|proxy| pair.log(proxy).matches("\"failover_done\"").count());
    assert_eq!(done.iter().sum::<usize>(), 1, "exactly one proxy promotes: {done:?}");
    // The other standby streams from the new primary, and both proxies read there.
    let primary = a["primary"].as_str().unwrap().to_owned();
    let other = if primary == "pg2" { "pg3" } else { "pg2" };
    for proxy in [0, 1] {
        wait_for("reads on the other standby", LIMIT, || pair.node_status(proxy, other)["accepts_reads"] == true);
    }
    let conninfo = pair.node(other).psql("SHOW primary_conninfo").unwrap();
    assert!(conninfo.contains("pgregent.epoch="), "{conninfo}");
    // The old primary comes back as one: it is fenced over the session that holds its lock, by whichever proxy sees it first.
    pair.node("pg1").start().unwrap();
    let on = || pair.node("pg1").psql("SHOW default_transaction_read_only").is_ok_and(|on| on == "on");
    wait_for("the old primary is read-only", LIMIT, on);
    wait_for("that is told", LIMIT, || [0, 1].iter().any(|proxy| pair.log(*proxy).contains("fenced_sql")));
    pair.until_written(0);
    pair.until_written(1);
}

#[test]
fn a_frozen_proxy_delays_a_failover_by_its_lease_at_most() {
    let pair = Pair::start("voters", &[]);
    let mut client = pair.client(1);
    client.simple("INSERT INTO ledger DEFAULT VALUES").unwrap();
    std::thread::sleep(LEASE + LEASE / 2);
    pair.freeze(1);
    let began = Instant::now();
    pair.node("pg1").kill9().unwrap();
    pair.until_written(0);
    let took = began.elapsed();
    println!("the other proxy frozen, kill -9 to a write: {took:?}");
    assert!(took > LEASE / 2, "the frozen proxy's lease was not waited for: {took:?}");
    assert!(took < LEASE + OUTAGE_MAX);
    pair.thaw(1);
    // Its old session: the write waits for the new primary, or its fate is said to be unknown.
    let late = client.simple("INSERT INTO ledger (id) VALUES (-7)").is_ok();
    wait_for("the thawed proxy follows", LIMIT, || pair.status(1)["primary"] == pair.status(0)["primary"]);
    let primary = pair.status(0)["primary"].as_str().unwrap().to_owned();
    let found = pair.node(&primary).psql_in("app", "SELECT count(*) FROM ledger WHERE id = -7").unwrap();
    assert!(!late || found == "1", "an acknowledged row is not on the primary");
    pair.until_written(1);
}

#[test]
fn without_a_majority_writes_stop_within_a_lease_and_come_back() {
    let pair = Pair::start("voters", &[("cluster", "failover_min_gap = \"0s\"")]);
    let mut client = pair.client(0);
    client.simple("INSERT INTO ledger DEFAULT VALUES").unwrap();
    for node in ["pg2", "pg3"] {
        pair.node(node).freeze().unwrap();
    }
    let began = Instant::now();
    wait_for("writes are held", LIMIT, || pair.status(0)["writes"] != "open");
    let took = began.elapsed();
    println!("two of three voters silent: writes stop after {took:?}");
    assert!(took < LEASE * 2, "writes went on for {took:?}");
    wait_for("it is said why", LIMIT, || pair.status(0)["holds"].to_string().contains("voters must answer"));
    for node in ["pg2", "pg3"] {
        pair.node(node).thaw().unwrap();
    }
    let back = pair.until_written(0);
    println!("voters back: a write after {back:?}");
    assert_eq!(pair.status(0)["primary"], "pg1");
    assert_eq!(pair.status(0)["failover"]["failovers"], 0);
}

#[test]
fn a_proxy_killed_in_the_middle_of_a_change_leaves_it_to_the_other() {
    let pair = Pair::start("voters", &[]);
    for proxy in [0, 1] {
        pair.until_written(proxy);
    }
    pair.node("pg1").kill9().unwrap();
    let other = pair.kill_the_acting_proxy();
    let began = Instant::now();
    pair.until_written(other);
    println!("acting proxy killed: a write through the other after {:?}", began.elapsed());
    assert!(began.elapsed() < OUTAGE_MAX * 2);
}
