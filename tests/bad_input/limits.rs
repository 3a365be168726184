//! Too many, too slow, too late: limits and what clients are told when they meet one.
//!
//! Each wait has a named setting, a small value here, and both ends are checked: not before, not much
//! after. Absent on purpose: fairness of the queue, a unit test of the pool.

use crate::sqlstate;
use crate::support::bystander::Bystander;
use crate::support::cluster::{self, app_login};
use crate::support::fakenode::ChaosNode;
use crate::support::message::query;
use crate::support::proxy::ProxySpec;
use crate::support::rawclient::{Answer, Gone, RawClient};
use crate::support::wait_for;
use std::thread;
use std::time::{Duration, Instant};

/// A busy machine may be this late.
const LATE_MAX: Duration = Duration::from_secs(9);

#[test]
fn clients_beyond_the_limit_wait_and_are_then_told() {
    let proxy = ProxySpec::in_front_of(cluster::shared())
        .set("server.max_client_connections", "3")
        .set("server.accept_queue", "2")
        .set("server.accept_queue_timeout", "\"1500ms\"")
        .start_ready();
    // The connections that found the proxy ready may still be on their way out.
    let mut inside = Vec::new();
    wait_for("three clients are inside", LATE_MAX, || {
        inside.extend(RawClient::login(proxy.port, &app_login()).ok());
        inside.len() == 3
    });
    let started = Instant::now();
    let outcome = RawClient::login(proxy.port, &app_login());
    let waited = started.elapsed();
    match outcome.map(|_| ()) {
        Err(Gone::Refused(fields)) => {
            assert_eq!((fields.severity(), fields.sqlstate()), ("FATAL", "53300"));
            assert!(!fields.field(b'H').is_empty(), "a hint says what to do: {fields:?}");
        }
        other => panic!("expected a refusal: {other:?}"),
    }
    assert!(waited >= Duration::from_millis(1300) && waited < LATE_MAX, "{waited:?}");
    // Who waits is served as soon as there is room.
    thread::scope(|scope| {
        let waiting =
            scope.spawn(|| RawClient::login(proxy.port, &app_login()).map(|mut client| client.value("SELECT 5")));
        thread::sleep(Duration::from_millis(300));
        inside.pop();
        assert_eq!(waiting.join().unwrap(), Ok("5".to_owned()));
    });
    for client in &mut inside {
        assert_eq!(client.value("SELECT 'inside'"), "inside");
    }
}

#[test]
fn waiting_for_a_backend_ends() {
    let spec = ProxySpec::in_front_of(cluster::shared()).set("pool.size", "1").set("pool.queue_timeout", "\"1s\"");
    let proxy = spec.start_ready();
    let (mut holder, mut waiting) = (proxy.client(), proxy.client());
    holder.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
    let started = Instant::now();
    let outcome = waiting.simple("SELECT 1 FOR UPDATE");
    let waited = started.elapsed();
    assert!(["53300", "57P03"].contains(&sqlstate(&outcome).as_str()), "{outcome:?}");
    assert!(waited >= Duration::from_millis(800) && waited < LATE_MAX, "{waited:?}");
    // The wait in front of a BEGIN, a batch, a pipeline ends as well, and the session goes on.
    waiting.send(&[query("SELECT 1 FOR UPDATE"), query("SELECT 2 FOR UPDATE")].concat()).unwrap();
    for _ in 0..2 {
        assert!(waiting.answer().is_err());
    }
    holder.simple("COMMIT").unwrap();
    assert_eq!(waiting.value("SELECT 3 FOR UPDATE"), "3");
}

#[test]
fn a_client_that_stops_reading_is_cut_and_costs_little() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("server.client_write_timeout", "\"2s\"").start_ready();
    let bystander = Bystander::start(&proxy);
    let before = resident_kib(proxy.pid());
    let mut lazy: Vec<RawClient> = (0..3).map(|_| proxy.client()).collect();
    for client in &mut lazy {
        client.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 400000)")).unwrap();
    }
    thread::sleep(Duration::from_secs(1));
    let grown = resident_kib(proxy.pid()).saturating_sub(before);
    assert!(grown < 30 << 10, "three results of 400 MB grew the proxy by {grown} KiB");
    thread::sleep(Duration::from_secs(4));
    for client in &mut lazy {
        let got = client.read_to_end().expect("cut").len();
        assert!(got < 100 << 20, "the whole result was sent");
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn all_nodes_down_at_start() {
    let nodes: Vec<ChaosNode> = cluster::shared().ports.iter().map(|port| ChaosNode::in_front_of(*port)).collect();
    nodes.iter().for_each(ChaosNode::down);
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    let proxy = ProxySpec::new(&ports).set("pool.queue_timeout", "\"1s\"").start();
    let started = Instant::now();
    let outcome = RawClient::login(proxy.port, &app_login()).and_then(|mut client| client.simple("SELECT 1"));
    assert!(["57P03", "08006"].contains(&sqlstate(&outcome).as_str()), "{outcome:?}");
    assert!(started.elapsed() < LATE_MAX);
    let ready = proxy.http("/health/ready").map(|(status, _)| status);
    assert_eq!((proxy.http("/health/live").map(|(status, _)| status), ready), (Ok(200), Ok(503)));
    // Nobody restarts the proxy when the nodes come.
    nodes.iter().for_each(ChaosNode::up);
    let ask = || RawClient::login(proxy.port, &app_login()).and_then(|mut client| client.simple("SELECT 2 FOR UPDATE"));
    wait_for("the proxy serves", Duration::from_secs(20), || ask().is_ok());
    proxy.assert_serving();
}

#[test]
fn a_wrong_node_password_is_told() {
    let spec = ProxySpec::in_front_of(cluster::shared()).user("stranger", "secret").set("pool.queue_timeout", "\"2s\"");
    let proxy = spec.start_ready();
    let bystander = Bystander::start(&proxy);
    let mut login = app_login();
    (login.user, login.password) = ("stranger".to_owned(), "secret".to_owned());
    // The proxy knows this user, the nodes do not.
    let outcome: Result<Answer, Gone> =
        RawClient::login(proxy.port, &login).and_then(|mut client| client.simple("SELECT 1"));
    assert!(["28P01", "28000", "08006"].contains(&sqlstate(&outcome).as_str()), "{outcome:?}");
    bystander.assert_untouched();
}
