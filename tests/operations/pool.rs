//! One pool: its size, its fairness, its idle backends.
//!
//! Invariants: PostgreSQL's own count of connections per role is what is believed. Absent on purpose: several pools (budget).

use crate::support::cluster;
use crate::support::message::{batch, bind, execute, parse, sync};
use crate::support::rawclient::{Gone, RawClient};
use crate::support::wait_for;
use crate::{Census, LATE_MAX, login, with_role};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Runs clients at once until the time is over; what each got done, and the most backends seen.
fn load(clients: Vec<RawClient>, roles: &str, time: Duration, sql: &str) -> (Vec<usize>, usize) {
    let over = AtomicBool::new(false);
    let mut census = Census::new();
    thread::scope(|scope| {
        let over = &over;
        let run = |mut client: RawClient| {
            scope.spawn(move || {
                let mut served = 0;
                while !over.load(Ordering::Relaxed) {
                    client.simple(sql).unwrap();
                    served += 1;
                }
                served
            })
        };
        let threads: Vec<_> = clients.into_iter().map(run).collect();
        let started = Instant::now();
        let mut most = 0;
        while started.elapsed() < time {
            most = most.max(census.of(roles));
            thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
        (threads.into_iter().map(|thread| thread.join().unwrap()).collect(), most)
    })
}

#[test]
fn two_backends_serve_many_clients_alike() {
    let proxy = with_role("fair").set("pool.size", "2").start_ready();
    let clients = (0..16).map(|_| login(&proxy, "fair")).collect();
    let (served, most) = load(clients, "fair", Duration::from_secs(2), "SELECT pg_sleep(0.004)");
    assert_eq!(most, 2, "the size is reached and never exceeded");
    let (least, best) = (served.iter().min().unwrap(), served.iter().max().unwrap());
    assert!(*least >= 5 && *best <= 2 * least, "{served:?}");
}

#[test]
fn many_clients_at_once_are_served_soon() {
    let proxy = with_role("rush").set("pool.size", "20").start_ready();
    let started = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..64).map(|_| scope.spawn(|| login(&proxy, "rush").value("SELECT pg_sleep(0.3)"))).collect();
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    });
    let took = started.elapsed();
    // Four rounds of 0.3 s on 20 backends. One connect after the other would be seen here.
    assert!(took < Duration::from_millis(1200) + LATE_MAX / 3, "{took:?}");
    assert_eq!(Census::new().of("rush"), 20);
}

#[test]
fn the_backend_used_last_is_used_first() {
    let proxy = with_role("lifo").set("pool.size", "4").start_ready();
    let mut clients: Vec<_> = (0..4).map(|_| login(&proxy, "lifo")).collect();
    for client in &mut clients {
        client.simple("BEGIN; SELECT 1").unwrap();
    }
    for client in &mut clients {
        client.simple("COMMIT").unwrap();
    }
    assert_eq!(Census::new().of("lifo"), 4);
    // For a second after it wrote a client prefers the backend it wrote on.
    std::thread::sleep(Duration::from_millis(1_100));
    let pids: Vec<_> = clients.iter_mut().map(|client| client.value("SELECT pg_backend_pid()")).collect();
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
}

#[test]
fn idle_and_old_backends_are_closed() {
    let proxy = with_role("aging").set("pool.idle_timeout", "\"300ms\"").start_ready();
    let mut client = login(&proxy, "aging");
    assert_eq!(client.value("SELECT 1"), "1");
    let mut census = Census::new();
    assert_eq!(census.of("aging"), 1);
    wait_for("the idle backend is closed", LATE_MAX, || census.of("aging") == 0);
    assert_eq!(client.value("SELECT 2"), "2");

    let proxy = with_role("old").set("pool.lifetime", "\"1s\"").start_ready();
    let mut client = login(&proxy, "old");
    let first = client.value("SELECT pg_backend_pid()");
    let started = Instant::now();
    wait_for("another backend", LATE_MAX, || client.value("SELECT pg_backend_pid()") != first);
    assert!(started.elapsed() > Duration::from_millis(700));
}

#[test]
fn dead_idle_backends_are_noticed_before_they_are_used() {
    let proxy = with_role("mortal").set("pool.size", "3").start_ready();
    let mut superuser = cluster::shared().superuser("app");
    superuser.simple("CREATE TABLE mortal_rows (n int); GRANT ALL ON mortal_rows TO mortal").unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| login(&proxy, "mortal")).collect();
    for round in 0..10 {
        // All three exist, idle; then all are ended, and at once the next write comes.
        for client in &mut clients {
            client.simple("BEGIN; SELECT 1").unwrap();
        }
        for client in &mut clients {
            client.simple("COMMIT").unwrap();
        }
        let ended = superuser
            .value("SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = 'mortal'");
        assert_eq!(ended, "3");
        let client = &mut clients[round % 3];
        client.simple(&format!("INSERT INTO mortal_rows VALUES ({round})")).unwrap();
        assert_eq!(client.value("SELECT 5"), "5");
    }
    assert_eq!(superuser.value("SELECT count(*) FROM mortal_rows"), "10", "each write ran once");
    assert_eq!(Census::new().of("mortal"), 1);
}

/// With `pinning = "refuse"` what cannot move is refused, in both protocols, and a transaction fails by it.
#[test]
fn what_would_pin_can_be_refused() {
    let proxy = with_role("loose").set("pool.pinning", "\"refuse\"").start_ready();
    let mut client = login(&proxy, "loose");
    let code = |outcome: Result<_, Gone>| match outcome {
        Err(Gone::Refused(fields)) => fields.sqlstate().to_owned(),
        Err(gone) => format!("{gone:?}"),
        Ok(_) => "fine".to_owned(),
    };
    assert_eq!(code(client.simple("LISTEN heard")), "0A000");
    assert_eq!(code(client.simple("SELECT pg_advisory_xact_lock(1)")), "fine");
    assert_eq!(code(client.simple("BEGIN")), "fine");
    assert_eq!(code(client.simple("CREATE TEMP TABLE t (i int)")), "0A000");
    assert_eq!(code(client.simple("SELECT 1")), "25P02");
    assert_eq!(code(client.simple("ROLLBACK")), "fine");
    let lock = [parse("", "SELECT pg_advisory_lock(1)"), bind("", "", &[]), execute("", 0), sync()];
    client.send(&batch(&lock)).unwrap();
    assert_eq!(code(client.answer()), "0A000");
    assert_eq!(client.value("SELECT 1"), "1");
}
