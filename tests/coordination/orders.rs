//! FAILOVER in the console of one of two proxies: the other gives way, or is waited out.
//!
//! Invariant: a row that was acknowledged after the order was carried out is on the new primary, whichever proxy
//! acknowledged it. Absent on purpose: one proxy (`failover_postgres`), what else the console says.

use crate::pair::{LIMIT, Pair};
use crate::support::message;
use crate::support::rawclient::{Login, RawClient};
use crate::support::wait_for;
use crate::{LEASE, OUTAGE_MAX};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Sessions that write through the proxy that was frozen, at the moment it goes on.
const SESSIONS: i64 = 16;

fn order(pair: &Pair, proxy: usize, sql: &str) {
    let mut console = pair.login(proxy, &Login::new("app", "app", "pgregent"));
    console.simple(sql).unwrap_or_else(|gone| panic!("{sql}: {gone:?}"));
}

fn both_follow(pair: &Pair, primary: &str) {
    for proxy in [0, 1] {
        wait_for("both proxies follow", LIMIT, || pair.status(proxy)["primary"] == primary);
    }
    assert_eq!(pair.status(0)["epoch"], pair.status(1)["epoch"]);
}

fn rows_on(pair: &Pair, node: &str, condition: &str) -> Vec<i64> {
    let rows = pair.node(node).psql_in("app", &format!("SELECT id FROM ledger WHERE {condition}")).unwrap();
    rows.lines().map(|line| line.parse().unwrap()).collect()
}

/// Says stop when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_order_at_one_proxy_makes_the_other_give_way() {
    let pair = Pair::start("voters", &[]);
    for proxy in [0, 1] {
        pair.until_written(proxy);
    }
    // Incarnations must have been seen for a lease before locks on them count at once.
    std::thread::sleep(LEASE + LEASE / 2);
    let standing = pair.status(1)["standing"].clone();
    assert_eq!(standing["lease"]["primary"], "pg1", "{standing}");
    let metrics = pair.http(1, "/metrics");
    let left = metrics.lines().find_map(|line| line.strip_prefix("pgregent_lease_seconds ")).unwrap();
    assert!((0.1..=LEASE.as_secs_f64()).contains(&left.parse::<f64>().unwrap()), "{left}");
    let stop = AtomicBool::new(false);
    let (acked, took) = std::thread::scope(|scope| {
        let mut client = pair.client(1);
        let stop = &stop;
        let writing = scope.spawn(move || {
            let mut acked = Vec::new();
            for id in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if client.simple(&format!("INSERT INTO ledger (id) VALUES (-{id})")).is_ok() {
                    acked.push((-id, Instant::now()));
                }
            }
            acked
        });
        // Whatever fails below, the writer must end.
        let _end = Ends(stop);
        std::thread::sleep(LEASE / 2);
        let began = Instant::now();
        order(&pair, 0, "FAILOVER TO pg2");
        both_follow(&pair, "pg2");
        let took = began.elapsed();
        pair.until_written(0);
        pair.until_written(1);
        std::thread::sleep(LEASE / 2);
        stop.store(true, Ordering::Relaxed);
        (writing.join().unwrap(), took)
    });
    let gap = acked.windows(2).map(|pair| pair[1].1.duration_since(pair[0].1)).max().unwrap();
    println!("ordered at the other proxy: both follow after {took:?}; longest gap between two writes {gap:?}");
    assert!(took < OUTAGE_MAX && gap < OUTAGE_MAX);
    let on_new = rows_on(&pair, "pg2", "id < 0");
    let lost = acked.iter().filter(|(id, _)| !on_new.contains(id)).count();
    println!("{lost} of {} rows acknowledged by the other proxy are lost", acked.len());
    let done = [0, 1].map(|proxy| pair.log(proxy).matches("\"failover_done\"").count());
    assert_eq!(done, [1, 0], "the proxy that was asked acts");
    assert_eq!(pair.status(0)["failover"]["last_failover"]["to"], "pg2");
}

#[test]
fn an_order_waits_out_a_frozen_proxy_which_never_writes_to_the_old_primary_again() {
    let pair = Pair::start("voters", &[]);
    for proxy in [0, 1] {
        pair.until_written(proxy);
    }
    let mut clients: Vec<RawClient> = (0..SESSIONS).map(|_| pair.client(1)).collect();
    for client in &mut clients {
        client.simple("SELECT 1 FOR UPDATE").unwrap();
    }
    std::thread::sleep(LEASE + LEASE / 2);
    pair.freeze(1);
    let began = Instant::now();
    order(&pair, 0, "FAILOVER TO pg2");
    pair.until_written(0);
    let took = began.elapsed();
    println!("ordered while the other proxy is frozen: a write after {took:?}");
    assert_eq!(pair.status(0)["primary"], "pg2");
    assert!(took > LEASE / 2, "the frozen proxy's lease was not waited for: {took:?}");
    assert!(took < LEASE + OUTAGE_MAX);
    // Half of them are there before it goes on, the others come right after.
    let half = clients.len() / 2;
    let (before, after) = clients.split_at_mut(half);
    let insert = |id: i64| message::query(&format!("INSERT INTO ledger (id) VALUES (-{id})"));
    for (id, client) in (1..).zip(before.iter_mut()) {
        client.send(&insert(id)).unwrap();
    }
    pair.thaw(1);
    for (id, client) in (1 + SESSIONS / 2..).zip(after.iter_mut()) {
        client.send(&insert(id)).unwrap();
    }
    let mut acked = Vec::new();
    for (id, client) in (1..).zip(&mut clients) {
        match client.answer() {
            Ok(_) => acked.push(-id),
            Err(gone) => println!("row -{id}: {gone:?}"),
        }
    }
    let (on_old, on_new) = (rows_on(&pair, "pg1", "id < 0"), rows_on(&pair, "pg2", "id < 0"));
    println!(
        "{} of {SESSIONS} acknowledged after the thaw; {} on the new primary, {} on the old",
        acked.len(),
        on_new.len(),
        on_old.len()
    );
    assert_eq!(on_old, Vec::<i64>::new(), "rows were written to the old primary");
    assert_eq!(acked.len(), usize::try_from(SESSIONS).unwrap(), "they wait until the proxy knows the new primary");
    assert!(acked.iter().all(|id| on_new.contains(id)), "acknowledged {acked:?}, on the new primary {on_new:?}");
    both_follow(&pair, "pg2");
    pair.until_written(1);
    assert!(began.elapsed() < Duration::from_secs(60));
}
