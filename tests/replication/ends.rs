//! What is said on a replication connection, and every way in which one ends.
//!
//! Invariants: a raw client sees the very messages. Absent on purpose: PostgreSQL's programs (`programs`).

use crate::support::message;
use crate::support::rawclient::{Gone, Login, RawClient};
use crate::support::{cluster, wait_for};
use crate::{LIMIT, REPLICATOR, Rig, refused};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A long statement that has not been answered yet.
fn sleeping(rig: &Rig) -> RawClient {
    let mut client = rig.replicate("database");
    client.send(&message::query("SELECT pg_sleep(600)")).unwrap();
    let busy =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND query LIKE '%pg_sleep(600)%'";
    wait_for("the statement runs", LIMIT, || rig.sql("postgres", busy) != "0");
    client
}

#[test]
fn commands_are_answered_by_the_node_that_was_asked_for() {
    let rig = Rig::start(1, |spec| spec);
    let identity = rig.sql("postgres", "SELECT system_identifier FROM pg_control_system()");
    for mode in ["true", "on", "yes", "1", "database"] {
        let mut client = rig.replicate(mode);
        assert_eq!(client.value("IDENTIFY_SYSTEM"), identity);
        assert_eq!(client.value("SHOW wal_level"), "logical");
        let unknown = refused(client.simple("NO_SUCH_COMMAND"));
        let mut direct = RawClient::login(rig.cluster.nodes()[0].port(), &rig.login(mode)).unwrap();
        assert_eq!(unknown, refused(direct.simple("NO_SUCH_COMMAND")));
        assert_eq!(client.value("IDENTIFY_SYSTEM"), identity);
    }
    // SQL works in a database, and startup parameters have arrived there.
    let login =
        rig.login("database").with("application_name", "mine").with("options", "-c geqo=off -c pgregent.node=pg2");
    let mut client = RawClient::login(rig.proxy.port, &login).unwrap();
    assert_eq!(client.value("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(client.value("SELECT current_setting('application_name') || current_setting('geqo')"), "mineoff");
    assert_eq!(client.value("SELECT coalesce(current_setting('pgregent.node', true), 'not told')"), "not told");
    let hot =
        client.greeting.iter().find(|message| message.tag == b'S' && message.body.starts_with(b"in_hot_standby\0"));
    assert!(hot.is_some_and(|message| message.body.ends_with(b"\0on\0")), "its own parameters are told");
    assert_eq!(rig.replicate("database").value("SELECT pg_is_in_recovery()"), "f", "the primary by default");
    // The node's own refusal, word by word; ours where it is ours.
    let app = |mode: &str| Login::new(cluster::APP_USER, cluster::APP_PASSWORD, "app").with("replication", mode);
    let through = refused(RawClient::login(rig.proxy.port, &app("true")));
    let direct = refused(RawClient::login(rig.cluster.nodes()[0].port(), &app("true")));
    assert_eq!(through, direct);
    assert_eq!((through.severity(), through.sqlstate()), ("FATAL", "42501"));
    let nowhere = rig.login("true").with("options", "-c pgregent.node=pg9");
    assert_eq!(refused(RawClient::login(rig.proxy.port, &nowhere)).sqlstate(), "22023");
    assert_eq!(refused(RawClient::login(rig.proxy.port, &app("perhaps"))).sqlstate(), "22023");
    let wrong = Login::new(REPLICATOR, "wrong", "app").with("replication", "true");
    assert_eq!(refused(RawClient::login(rig.proxy.port, &wrong)).sqlstate(), "28P01");
    drop(client);
    rig.assert_nothing_open();
}

#[test]
fn a_cancel_reaches_its_backend_and_half_a_close_is_half_a_close() {
    let rig = Rig::start(0, |spec| spec);
    let mut client = sleeping(&rig);
    let (pid, secret) = client.cancel_key.clone();
    let mut other = TcpStream::connect(("127.0.0.1", rig.proxy.port)).unwrap();
    other.write_all(&message::cancel(pid, &secret)).unwrap();
    assert_eq!(refused(client.answer()).sqlstate(), "57014");
    assert_eq!(client.value("SHOW wal_level"), "logical", "it goes on afterwards");
    // Much to read for a client that has said its last word: everything comes, then the end.
    client.send(&message::query("SELECT repeat('x', 1000) FROM generate_series(1, 20000)")).unwrap();
    client.send(&message::frame(b'X', b"")).unwrap();
    client.stream().shutdown(Shutdown::Write).unwrap();
    let rows = client.answer().unwrap().rows;
    assert_eq!((rows.len(), rows[19_999][0].as_ref().map(String::len)), (20_000, Some(1000)));
    assert_eq!(client.read(), Err(Gone::Closed));
    rig.assert_nothing_open();
}

#[test]
fn a_fence_ends_it_and_the_next_one_goes_to_the_new_primary() {
    let rig =
        Rig::start(1, |spec| spec.set("cluster.failover", "\"automatic\"").set("cluster.failover_min_gap", "\"0s\""));
    let mut client = sleeping(&rig);
    rig.cluster.nodes()[0].freeze().unwrap();
    client.read_timeout(LIMIT);
    let told = refused(client.answer());
    assert_eq!((told.severity(), told.sqlstate()), ("FATAL", "57P01"), "{told:?}");
    assert_eq!(client.read(), Err(Gone::Closed));
    let mut again = None;
    wait_for("the new primary takes replication connections", LIMIT, || {
        again = RawClient::login(rig.proxy.port, &rig.login("database")).ok();
        again.is_some()
    });
    let mut again = again.unwrap();
    assert_eq!(again.value("SELECT pg_is_in_recovery()"), "f");
    assert_eq!(rig.metric("pgregent_replication_ends_total{reason=\"fenced\"}"), 1);
    assert_eq!(rig.metric("pgregent_replication_connections{node=\"pg1\"}"), 0);
    assert_eq!(rig.metric("pgregent_replication_connections{node=\"pg2\"}"), 1);
}

#[test]
fn a_drain_ends_it_and_says_so() {
    let rig = Rig::start(0, |spec| spec.set("server.drain_timeout", "\"60s\""));
    let (mut quiet, mut busy) = (rig.replicate("true"), sleeping(&rig));
    let started = Instant::now();
    rig.proxy.signal("TERM");
    for client in [&mut quiet, &mut busy] {
        let told = refused(client.answer());
        assert_eq!((told.severity(), told.sqlstate()), ("FATAL", "57P01"));
        assert_eq!(client.read(), Err(Gone::Closed));
    }
    wait_for("the proxy ends", LIMIT, || !rig.proxy.is_running());
    assert!(started.elapsed() < Duration::from_secs(30), "nobody waits for the drain timeout");
}

#[test]
fn they_count_against_the_budget_and_leave_places_for_others() {
    let rig = Rig::start(0, |spec| {
        spec.set("pool.node_budget", "3").set("pool.size", "3").set("pool.replication_connections_max", "50")
    });
    // One less than the budget, whatever the limit says.
    let (first, second) = (rig.replicate("true"), rig.replicate("true"));
    let full = refused(RawClient::login(rig.proxy.port, &rig.login("true")));
    assert_eq!((full.severity(), full.sqlstate()), ("FATAL", "53300"));
    assert!(full.field(b'H').contains("replication_connections_max"), "{full:?}");
    let mut app = rig.proxy.client();
    assert_eq!(app.value("SELECT 1"), "1", "one place is left for sessions");
    drop(second);
    // All other places are taken by transactions: it waits for one to end.
    wait_for("the place is free", LIMIT, || rig.metric("pgregent_replication_connections{node=\"pg1\"}") == 1);
    let mut more = rig.proxy.client();
    app.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
    more.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.replicate("true").value("SHOW wal_level"));
        std::thread::sleep(Duration::from_millis(700));
        assert!(!waiting.is_finished());
        app.simple("COMMIT").unwrap();
        assert_eq!(waiting.join().unwrap(), "logical");
    });
    more.simple("COMMIT").unwrap();
    drop(first);
    rig.assert_nothing_open();
    assert_eq!(app.value("SELECT 2"), "2");
}

#[test]
fn a_client_that_reads_nothing_is_cut_and_memory_stays_bounded() {
    let rig = Rig::start(0, |spec| spec.set("server.client_write_timeout", "\"2s\""));
    let memory = || rig.metric("process_resident_memory_bytes");
    let before = memory();
    let mut client = rig.replicate("database");
    client.send(&message::query("SELECT repeat('x', 1000000) FROM generate_series(1, 500)")).unwrap();
    let stalled = "pgregent_replication_ends_total{reason=\"client_stalled\"}";
    let started = Instant::now();
    wait_for("the client is cut", LIMIT, || rig.metric(stalled) == 1);
    assert!(started.elapsed() >= Duration::from_millis(1900));
    assert!(memory() < before + (32 << 20), "{before} -> {}", memory());
    rig.assert_nothing_open();
}
