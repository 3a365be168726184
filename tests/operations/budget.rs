//! Several pools share one node's budget.
//!
//! Invariants: PostgreSQL's own count of connections per role is what is believed. Absent on purpose: which node is chosen.

use crate::support::rawclient::RawClient;
use crate::support::{cluster, wait_for};
use crate::{Census, LATE_MAX, login, make_role, refused, with_role};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing here may take longer than this, whoever else is busy.
const SOON: Duration = Duration::from_secs(3);

fn served_soon(client: &mut RawClient) {
    let started = Instant::now();
    assert_eq!(client.value("SELECT 'soon'"), "soon");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn idle_pools_give_their_places_to_waiting_ones() {
    make_role("give_b");
    let spec = with_role("give_a").user("give_b", "app-secret").set("pool.size", "3").set("pool.node_budget", "3");
    let proxy = spec.start_ready();
    let mut census = Census::new();
    let mut many: Vec<_> = (0..3).map(|_| login(&proxy, "give_a")).collect();
    for client in &mut many {
        client.simple("BEGIN; SELECT 1").unwrap();
    }
    assert_eq!(census.of("give_a"), 3, "the whole budget");
    // All are in use: the other pool waits, and is served as soon as the first is idle.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut client = login(&proxy, "give_b");
            served_soon(&mut client);
            client
        });
        thread::sleep(Duration::from_millis(400));
        assert!(!waiting.is_finished());
        many[0].simple("COMMIT").unwrap();
        let started = Instant::now();
        let mut other = waiting.join().unwrap();
        assert!(started.elapsed() < SOON);
        assert_eq!((census.of("give_a"), census.of("give_b")), (2, 1));
        // What was idle before anyone asked is given, too.
        served_soon(&mut many[0]);
        for client in &mut many[1..] {
            client.simple("COMMIT").unwrap();
        }
        served_soon(&mut other);
    });
    assert!(census.of("give\\_%") <= 3);
}

#[test]
fn a_busy_pool_does_not_starve_others_and_the_budget_holds() {
    make_role("busy_b");
    make_role("busy_c");
    let spec = with_role("busy_a").user("busy_b", "app-secret").user("busy_c", "app-secret");
    let proxy = spec.set("pool.size", "2").set("pool.node_budget", "2").start_ready();
    let over = AtomicBool::new(false);
    let mut census = Census::new();
    thread::scope(|scope| {
        let busy: Vec<_> = (0..6)
            .map(|_| {
                let mut client = login(&proxy, "busy_a");
                let over = &over;
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        client.simple("SELECT pg_sleep(0.01)").unwrap();
                    }
                })
            })
            .collect();
        // Three pools and two places: nobody may own one for good.
        for role in ["busy_b", "busy_c", "busy_b", "busy_c"] {
            let started = Instant::now();
            let mut client = login(&proxy, role);
            served_soon(&mut client);
            assert!(started.elapsed() < 2 * SOON);
            for _ in 0..5 {
                assert!(census.of("busy\\_%") <= 2);
            }
        }
        over.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn waiting_too_long_is_said_and_harms_nothing() {
    let proxy = with_role("late").set("pool.size", "1").set("pool.queue_timeout", "\"500ms\"").start_ready();
    let (mut first, mut second) = (login(&proxy, "late"), login(&proxy, "late"));
    first.simple("BEGIN; SELECT 1").unwrap();
    for _ in 0..2 {
        let started = Instant::now();
        let fields = refused(second.simple("SELECT 2"));
        assert_eq!((fields.severity(), fields.sqlstate()), ("ERROR", "53300"));
        assert!(fields.field(b'H').contains("size"), "{fields:?}");
        assert!(started.elapsed() >= Duration::from_millis(450) && started.elapsed() < LATE_MAX);
    }
    first.simple("COMMIT").unwrap();
    assert_eq!(second.value("SELECT 3"), "3");
}

#[test]
fn a_roles_connection_limit_is_waited_for_and_then_told() {
    cluster::shared()
        .superuser("app")
        .simple("CREATE ROLE limited LOGIN CONNECTION LIMIT 1 PASSWORD 'app-secret'")
        .unwrap();
    let spec = cluster_proxy().user("limited", "app-secret").set("pool.queue_timeout", "\"700ms\"");
    let proxy = spec.start_ready();
    let mut first = login(&proxy, "limited");
    first.simple("BEGIN; SELECT 1").unwrap();
    let mut second = login(&proxy, "limited");
    let fields = refused(second.simple("SELECT 2"));
    assert_eq!(fields.sqlstate(), "53300");
    assert!(fields.field(b'D').contains("too many connections for role \"limited\""), "{fields:?}");
    // Others are not slowed down by these attempts.
    let started = Instant::now();
    assert_eq!(proxy.client().value("SELECT 3"), "3");
    assert!(started.elapsed() < SOON);
    // One backend serves both in turn.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| second.value("SELECT 4"));
        thread::sleep(Duration::from_millis(100));
        first.simple("COMMIT").unwrap();
        assert_eq!(waiting.join().unwrap(), "4");
    });
    wait_for("the other is served again", LATE_MAX, || first.simple("SELECT 5").is_ok());
}

fn cluster_proxy() -> crate::support::proxy::ProxySpec {
    crate::support::proxy::ProxySpec::new(&[cluster::shared().primary()])
}
