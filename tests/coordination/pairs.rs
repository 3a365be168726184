//! Two proxies in front of the same three nodes, on each store that they can share.
//!
//! The contract: both route writes to the same primary, or not at all; exactly one of them changes it; the other
//! follows within moments; a proxy that was frozen over a change never writes to the old primary again; while the store
//! does not answer, writes stop within a lease, reads on standbys go on (with voters it is the standbys that are away),
//! and both come back by themselves. Each test has its own cluster and prints what it measured (`--nocapture`).

use crate::pair::{LIMIT, Pair};
use crate::support::etcd::Etcd;
use crate::support::wait_for;
use crate::{LEASE, OUTAGE_MAX};
use std::time::Instant;

/// Which store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Voters,
    Etcd,
}

/// Two proxies and what they agree through.
struct Setup {
    pair: Pair,
    etcd: Option<Etcd>,
}

impl Setup {
    fn start(kind: Kind) -> Self {
        match kind {
            Kind::Voters => {
                let pair = Pair::start("voters", &[("cluster", "failover_min_gap = \"0s\"")]);
                // Incarnations must have been seen for a lease before locks on them count at once.
                std::thread::sleep(LEASE + LEASE / 2);
                Self { pair, etcd: None }
            }
            Kind::Etcd => {
                let etcd = Etcd::start(3);
                let endpoints = format!("endpoints = {:?}", etcd.endpoints());
                let pair = Pair::start("etcd", &[("etcd", &endpoints), ("cluster", "failover_min_gap = \"0s\"")]);
                Self { pair, etcd: Some(etcd) }
            }
        }
    }

    /// Takes the store away, but not the primary; or gives it back.
    fn outage(&self, on: bool) {
        match &self.etcd {
            Some(etcd) => (0..3).for_each(|member| etcd.freeze(member, on)),
            None => {
                for node in ["pg2", "pg3"].map(|name| self.pair.node(name)) {
                    if on { node.freeze() } else { node.thaw() }.unwrap();
                }
            }
        }
    }
}

/// Each of these on each store.
macro_rules! on_both_stores {
    ($($name:ident),* $(,)?) => {
        mod voters {
            $(#[test] fn $name() { super::$name(&super::Setup::start(super::Kind::Voters)); })*
        }
        mod etcd {
            $(#[test] fn $name() { super::$name(&super::Setup::start(super::Kind::Etcd)); })*
        }
    };
}

on_both_stores!(
    one_of_two_proxies_promotes_and_the_other_follows,
    a_frozen_proxy_delays_a_failover_by_its_lease_at_most,
    without_the_store_writes_stop_within_a_lease_reads_go_on_and_both_come_back,
    a_proxy_killed_in_the_middle_of_a_change_leaves_it_to_the_other,
);

fn one_of_two_proxies_promotes_and_the_other_follows(setup: &Setup) {
    let pair = &setup.pair;
    for proxy in [0, 1] {
        pair.until_written(proxy);
        assert_eq!(pair.status(proxy)["coordination"], if setup.etcd.is_some() { "etcd" } else { "voters" });
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
    // The other standby streams from the new primary, and both proxies read there.
    let other = if a["primary"] == "pg2" { "pg3" } else { "pg2" };
    for proxy in [0, 1] {
        wait_for("reads on the other standby", LIMIT, || pair.node_status(proxy, other)["accepts_reads"] == true);
    }
    let conninfo = pair.node(other).psql("SHOW primary_conninfo").unwrap();
    for mark in ["pgregent.epoch=", "pgregent.timeline=2"] {
        assert_eq!(conninfo.contains(mark), setup.etcd.is_none(), "only voters read it: {conninfo}");
    }
    // The old primary comes back as one: it is fenced (with voters over the session that holds its lock), by whichever
    // proxy sees it first.
    pair.node("pg1").start().unwrap();
    let on = || pair.node("pg1").psql("SHOW default_transaction_read_only").is_ok_and(|on| on == "on");
    wait_for("the old primary is read-only", LIMIT, on);
    wait_for("that is told", LIMIT, || [0, 1].iter().any(|proxy| pair.log(*proxy).contains("fenced_sql")));
    pair.until_written(0);
    pair.until_written(1);
}

fn a_frozen_proxy_delays_a_failover_by_its_lease_at_most(setup: &Setup) {
    let pair = &setup.pair;
    let mut client = pair.client(1);
    wait_for("a write", LIMIT, || client.simple("INSERT INTO ledger DEFAULT VALUES").is_ok());
    pair.freeze(1);
    let began = Instant::now();
    pair.node("pg1").kill9().unwrap();
    pair.until_written(0);
    let took = began.elapsed();
    println!("the other proxy frozen, kill -9 to a write: {took:?}");
    assert!(took > LEASE / 2, "the frozen proxy's lease was not waited for: {took:?}");
    let lease = if setup.etcd.is_some() { LEASE * 2 } else { LEASE };
    assert!(took < lease + OUTAGE_MAX);
    pair.thaw(1);
    // Its old session: the write waits for the new primary, or its fate is said to be unknown.
    let late = client.simple("INSERT INTO ledger (id) VALUES (-7)").is_ok();
    wait_for("the thawed proxy follows", LIMIT, || pair.status(1)["primary"] == pair.status(0)["primary"]);
    let primary = pair.status(0)["primary"].as_str().unwrap().to_owned();
    let found = pair.node(&primary).psql_in("app", "SELECT count(*) FROM ledger WHERE id = -7").unwrap();
    assert!(!late || found == "1", "an acknowledged row is not on the primary");
    pair.until_written(1);
}

fn without_the_store_writes_stop_within_a_lease_reads_go_on_and_both_come_back(setup: &Setup) {
    let pair = &setup.pair;
    pair.until_written(0);
    let mut reader = pair.client(0);
    setup.outage(true);
    let began = Instant::now();
    wait_for("writes are held", LIMIT, || pair.status(0)["writes"] != "open");
    let took = began.elapsed();
    println!("no store: writes stop after {took:?}");
    assert!(took < LEASE + LEASE / 4, "writes went on for {took:?}");
    wait_for("it is said why", LIMIT, || pair.status(0)["holds"].to_string().contains("must answer, and these do not"));
    if setup.etcd.is_some() {
        wait_for("a read", LIMIT, || reader.simple("SELECT 1").is_ok());
    }
    setup.outage(false);
    let back = pair.until_written(0);
    println!("the store is back: a write after {back:?}");
    assert_eq!(pair.status(0)["primary"], "pg1");
    assert_eq!(pair.status(0)["failover"]["failovers"], 0);
}

fn a_proxy_killed_in_the_middle_of_a_change_leaves_it_to_the_other(setup: &Setup) {
    let pair = &setup.pair;
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

#[test]
fn a_proxy_that_starts_without_etcd_serves_reads() {
    let setup = Setup::start(Kind::Etcd);
    let pair = &setup.pair;
    setup.outage(true);
    pair.restart(1);
    let mut reader = pair.client(1);
    wait_for("a read", LIMIT, || reader.simple("SELECT 1").is_ok());
    assert_ne!(pair.status(1)["writes"], "open");
    setup.outage(false);
    pair.until_written(1);
}
