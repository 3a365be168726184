//! SIGHUP: what is applied, what needs a restart, what is refused.
//!
//! Invariants: each change is waited for in the log before its effect is tested. Absent on purpose: which setting can be reloaded (config).

use crate::support::cluster;
use crate::support::proxy::Proxy;
use crate::support::wait_for;
use crate::{Census, LATE_MAX, login, make_role, refused, try_login, with_role};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Changes the config file and waits until the proxy has said so in its log.
fn reload(proxy: &Proxy, change: impl Fn(String) -> String, said: &str) {
    let text = fs::read_to_string(proxy.config()).unwrap();
    fs::write(proxy.config(), change(text)).unwrap();
    let before = proxy.log().matches(said).count();
    proxy.signal("HUP");
    wait_for(said, LATE_MAX, || proxy.log().matches(said).count() > before);
}

fn replace(from: &'static str, to: &'static str) -> impl Fn(String) -> String {
    move |text| {
        assert!(text.contains(from), "{from} in {text}");
        text.replace(from, to)
    }
}

#[test]
fn pools_grow_and_shrink() {
    let proxy = with_role("sized").set("pool.size", "1").set("pool.queue_timeout", "\"20s\"").start_ready();
    let mut clients: Vec<_> = (0..3).map(|_| login(&proxy, "sized")).collect();
    let mut census = Census::new();
    clients[0].simple("BEGIN; SELECT 1").unwrap();
    let (held, rest) = clients.split_at_mut(1);
    thread::scope(|scope| {
        let waiting: Vec<_> = rest
            .iter_mut()
            .map(|client| {
                scope.spawn(|| {
                    client.simple("BEGIN; SELECT 1").unwrap();
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(census.of("sized"), 1);
        // Those who wait get the new backends; nobody else need come.
        reload(&proxy, replace("size = 1\n", "size = 3\n"), "pool.size: 1 -> 3 (applied by reload)");
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(census.of("sized"), 3);
    reload(&proxy, replace("size = 3\n", "size = 2\n"), "pool.size: 3 -> 2 (applied by reload)");
    assert_eq!(census.of("sized"), 3, "transactions are not disturbed");
    for client in held.iter_mut().chain(rest) {
        client.simple("COMMIT").unwrap();
    }
    wait_for("the pool shrinks", LATE_MAX, || census.of("sized") == 2);
    reload(&proxy, replace("size = 2\n", "size = 1\n"), "pool.size: 2 -> 1 (applied by reload)");
    wait_for("idle backends beyond the size are closed", LATE_MAX, || census.of("sized") == 1);
}

#[test]
fn limits_and_users_are_applied_and_the_rest_is_named() {
    make_role("hired");
    let proxy = with_role("fired")
        .set("pool.size", "1")
        .set("pool.queue_timeout", "\"1h\"")
        .set("server.max_client_connections", "100")
        .start_ready();
    assert!(try_login(proxy.port, "hired", "app-secret").is_err());
    let mut veteran = login(&proxy, "fired");
    reload(&proxy, |text| text.replace("\"fired\"", "\"hired\""), "auth.user.hired.password: added");
    assert_eq!(login(&proxy, "hired").value("SELECT 1"), "1");
    assert_eq!(refused(try_login(proxy.port, "fired", "app-secret")).sqlstate(), "28P01");
    assert_eq!(veteran.value("SELECT 'goes on'"), "goes on");

    let change = |text: String| text.replace("\"1h\"", "\"300ms\"").replace("name = \"test\"", "name = \"renamed\"");
    reload(&proxy, change, "pool.queue_timeout: 1h -> 300ms (applied by reload)");
    assert!(proxy.log().contains("cluster.name: test -> renamed (needs a restart)"), "{}", proxy.log());
    let (mut first, mut second) = (login(&proxy, "hired"), login(&proxy, "hired"));
    first.simple("BEGIN; SELECT 1").unwrap();
    let started = Instant::now();
    assert_eq!(refused(second.simple("SELECT 2")).sqlstate(), "53300");
    assert!(started.elapsed() < LATE_MAX);
    // What needs a restart is named again as long as it differs.
    reload(&proxy, |text| text, "cluster.name: test -> renamed (needs a restart)");
}

#[test]
fn a_broken_file_changes_nothing() {
    let proxy = with_role("sturdy").set("pool.size", "2").start_ready();
    let mut client = login(&proxy, "sturdy");
    let said = "the config was not reloaded";
    reload(&proxy, |text| text.replace("size = 2\n", "size = 0\nsizzle = 3\n"), said);
    let log = proxy.log();
    assert!(log.contains("sizzle") && log.contains("size"), "all problems at once: {log}");
    assert_eq!(client.value("SELECT 1"), "1");
    assert_eq!(login(&proxy, "sturdy").value("SELECT 2"), "2");
    // A file that is valid but names what cannot be read is refused as a whole, too.
    let missing =
        |text: String| text.replace("size = 0\nsizzle = 3\n", "size = 1\n") + "\n[auth]\nuserlist = \"/nonexistent\"\n";
    reload(&proxy, missing, said);
    let mut clients: Vec<_> = (0..2).map(|_| login(&proxy, "sturdy")).collect();
    for client in &mut clients {
        client.simple("BEGIN; SELECT 1").unwrap();
    }
    assert_eq!(Census::new().of("sturdy"), 2, "the size is still 2");
    drop(clients);
    assert_eq!(cluster::shared().superuser("app").value("SELECT 1"), "1");
}

#[test]
fn a_raised_limit_of_clients_admits_those_who_wait() {
    let spec =
        with_role("queueing").set("server.max_client_connections", "1").set("server.accept_queue_timeout", "\"1h\"");
    let proxy = spec.start_ready();
    let mut inside = login(&proxy, "queueing");
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| login(&proxy, "queueing").value("SELECT 1"))).collect();
        thread::sleep(Duration::from_millis(300));
        let change = replace("max_client_connections = 1\n", "max_client_connections = 3\n");
        reload(&proxy, change, "server.max_client_connections: 1 -> 3 (applied by reload)");
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), "1"));
    });
    assert_eq!(inside.value("SELECT 2"), "2");
}
