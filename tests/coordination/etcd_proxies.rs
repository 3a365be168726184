//! Two proxies and three nodes on a real etcd (`coordination = "etcd"`).
//!
//! The contract is that of `voters`: exactly one proxy changes the primary and both route to the new one; without
//! etcd writes stop within a lease and reads go on. Absent on purpose: the store alone (`etcd`).

use crate::pair::{LIMIT, Pair};
use crate::support::etcd::Etcd;
use crate::support::wait_for;
use std::time::{Duration, Instant};

/// Lease of the tests, as shipped.
const LEASE: Duration = Duration::from_secs(2);
/// On a slow, busy machine; an idle one needs well under a second.
const OUTAGE_MAX: Duration = Duration::from_secs(8);

fn start(etcd: &Etcd) -> Pair {
    let endpoints = format!("endpoints = {:?}", etcd.endpoints());
    Pair::start("etcd", &[("etcd", &endpoints), ("cluster", "failover_min_gap = \"0s\"")])
}

#[test]
fn one_of_two_proxies_promotes_and_the_other_follows() {
    let etcd = Etcd::start(3);
    let pair = start(&etcd);
    for proxy in [0, 1] {
        pair.until_written(proxy);
        assert_eq!(pair.status(proxy)["coordination"], "etcd");
    }
    let began = Instant::now();
    pair.node("pg1").kill9().unwrap();
    let (first, second) = (pair.until_written(0), pair.until_written(1));
    println!("kill -9 to a write: {first:?} through one proxy, {second:?} more through the other");
    assert!(began.elapsed() < OUTAGE_MAX);
    let (a, b) = (pair.status(0), pair.status(1));
    assert_eq!(a["primary"], b["primary"]);
    assert_ne!(a["primary"], "pg1");
    assert_eq!(a["epoch"], b["epoch"]);
    let done = [0, 1].map(|proxy| pair.log(proxy).matches("\"failover_done\"").count());
    assert_eq!(done.iter().sum::<usize>(), 1, "exactly one proxy promotes: {done:?}");
    let other = if a["primary"] == "pg2" { "pg3" } else { "pg2" };
    for proxy in [0, 1] {
        wait_for("reads on the other standby", LIMIT, || pair.node_status(proxy, other)["accepts_reads"] == true);
    }
}

#[test]
fn a_frozen_proxy_delays_a_failover_by_its_lease_at_most() {
    let etcd = Etcd::start(1);
    let pair = start(&etcd);
    pair.until_written(1);
    pair.freeze(1);
    let began = Instant::now();
    pair.node("pg1").kill9().unwrap();
    pair.until_written(0);
    let took = began.elapsed();
    println!("the other proxy frozen, kill -9 to a write: {took:?}");
    assert!(took > LEASE / 2, "the frozen proxy's lease was not waited for: {took:?}");
    assert!(took < LEASE + OUTAGE_MAX);
    pair.thaw(1);
    wait_for("the thawed proxy follows", LIMIT, || pair.status(1)["primary"] == pair.status(0)["primary"]);
    pair.until_written(1);
}

#[test]
fn without_etcd_writes_stop_within_a_lease_reads_go_on_and_both_come_back() {
    let mut etcd = Etcd::start(1);
    let pair = start(&etcd);
    pair.until_written(0);
    let mut reader = pair.client(0);
    etcd.kill(0);
    let began = Instant::now();
    wait_for("writes are held", LIMIT, || pair.status(0)["writes"] != "open");
    let took = began.elapsed();
    println!("etcd killed: writes stop after {took:?}");
    assert!(took < LEASE + LEASE / 4, "writes went on for {took:?}");
    wait_for("it is said why", LIMIT, || pair.status(0)["holds"].to_string().contains("http://127.0.0.1"));
    reader.simple("SELECT 1").unwrap();
    etcd.restart(0);
    let back = pair.until_written(0);
    println!("etcd back: a write after {back:?}");
    assert_eq!(pair.status(0)["primary"], "pg1");
    assert_eq!(pair.status(0)["failover"]["failovers"], 0);
}

#[test]
fn a_proxy_killed_in_the_middle_of_a_change_leaves_it_to_the_other() {
    let etcd = Etcd::start(1);
    let pair = start(&etcd);
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
