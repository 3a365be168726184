//! DRAIN NODE, MAINTENANCE NODE and ENABLE NODE on real servers: where reads go, what is left open, who may, what is shown.
//!
//! Absent on purpose: promotion (`scenarios` has a node in maintenance that is not promoted).

use super::{LIMIT, column, console, login, refused, spec};
use crate::support::cluster::{self, Cluster};
use crate::support::fakenode::{ChaosNode, Fault};
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::{Login, RawClient};
use crate::support::wait_for;

/// How many of so many reads each node answered.
fn reads(cluster: &Cluster, client: &mut RawClient, count: usize) -> [usize; 3] {
    let mut counts = [0; 3];
    for _ in 0..count {
        let port = client.value("SELECT inet_server_port()");
        let node = cluster.ports.iter().position(|known| known.to_string() == port).unwrap();
        counts[node] += 1;
    }
    counts
}

fn node(operator: &mut RawClient, name: &str, what: &str) -> Option<String> {
    column(operator, "SHOW NODES", |row| row[0].as_deref() == Some(name), what)
}

fn told(proxy: &Proxy, name: &str) -> serde_json::Value {
    let (status, text) = proxy.http("/api/v1/cluster").unwrap();
    assert_eq!(status, 200, "{text}");
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    told["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap().clone()
}

fn metric(proxy: &Proxy, line: &str) -> bool {
    proxy.http("/metrics").unwrap().1.lines().any(|known| known == line)
}

fn proxy() -> Proxy {
    let proxy = spec().start_splitting();
    let (mut operator, mut client) = (console(&proxy, "pgregent"), proxy.client());
    wait_for("both standbys take reads", LIMIT, || {
        let yes = |operator: &mut RawClient, name| node(operator, name, "reads").as_deref() == Some("yes");
        yes(&mut operator, "pg2") && yes(&mut operator, "pg3")
    });
    wait_for("both are read", LIMIT, || reads(cluster::shared(), &mut client, 20)[1..].iter().all(|count| *count > 0));
    proxy
}

#[test]
fn a_drained_standby_takes_no_new_reads_and_keeps_no_idle_backend() {
    let cluster = cluster::shared();
    let proxy = proxy();
    let (mut operator, mut client) = (console(&proxy, "pgregent"), proxy.client());
    // A transaction that runs there goes on.
    let mut inside = loop {
        let mut inside = proxy.client();
        inside.simple("BEGIN READ ONLY").unwrap();
        if inside.value("SELECT inet_server_port()") == cluster.ports[1].to_string() {
            break inside;
        }
        inside.simple("COMMIT").unwrap();
    };
    operator.simple("DRAIN NODE PG2").unwrap();
    let counts = reads(cluster, &mut client, 50);
    assert_eq!(counts, [0, 0, 50]);
    assert_eq!(inside.value("SELECT inet_server_port()"), cluster.ports[1].to_string());
    inside.simple("COMMIT").unwrap();
    wait_for("no backend is left", LIMIT, || node(&mut operator, "pg2", "backends").as_deref() == Some("0"));
    assert_eq!(node(&mut operator, "pg2", "service").as_deref(), Some("draining"));
    assert_eq!(told(&proxy, "pg2")["service"], "draining");
    assert!(metric(&proxy, "pgregent_node_service{node=\"pg2\",service=\"draining\"} 1"));
    let verdict = column(&mut operator, "EXPLAIN ROUTE SELECT 1", |row| row[0].as_deref() == Some("node pg2"), "value");
    assert_eq!(verdict.as_deref(), Some("no: draining, by an operator"));

    operator.simple("MAINTENANCE NODE pg3").unwrap();
    assert_eq!(reads(cluster, &mut client, 20), [20, 0, 0], "the primary is the fallback");
    // The primary takes writes whatever it is, and nobody is promoted in its place.
    operator.simple("MAINTENANCE NODE pg1").unwrap();
    client.simple("SELECT 1 FOR UPDATE").unwrap();
    assert_eq!(
        (told(&proxy, "pg1")["role"].as_str(), told(&proxy, "pg3")["service"].as_str()),
        (Some("primary"), Some("maintenance"))
    );
    for name in ["pg1", "pg2", "pg3"] {
        operator.simple(&format!("ENABLE NODE {name}")).unwrap();
    }
    wait_for("both are read again", LIMIT, || {
        let counts = reads(cluster, &mut client, 50);
        counts[0] == 0 && counts[1] > 0 && counts[2] > 0
    });
}

#[test]
fn orders_are_for_console_users_and_nodes_must_exist() {
    let proxy = spec().start_ready();
    let mut reader = RawClient::login(proxy.port, &Login::new("other", "other-secret", "pgregent")).unwrap();
    for order in ["DRAIN NODE pg2", "MAINTENANCE NODE pg2", "ENABLE NODE pg2"] {
        let error = refused(reader.simple(order));
        assert_eq!(error.sqlstate(), "42501", "{order}");
    }
    let mut operator = RawClient::login(proxy.port, &login("pgbouncer")).unwrap();
    assert_eq!(refused(operator.simple("DRAIN NODE pg9")).sqlstate(), "42704");
}

/// What the file says holds from the start, and a reload takes it back.
#[test]
fn the_file_drains_too() {
    let cluster = cluster::shared();
    let proxy = spec().start_splitting();
    let text = std::fs::read_to_string(proxy.config()).unwrap();
    let drained = text.replace("name = \"pg3\"\n", "name = \"pg3\"\ndrain = true\n");
    assert_ne!(text, drained);
    let (mut operator, mut client) = (console(&proxy, "pgregent"), proxy.client());
    std::fs::write(proxy.config(), drained).unwrap();
    operator.simple("RELOAD").unwrap();
    assert_eq!(node(&mut operator, "pg3", "service").as_deref(), Some("draining"));
    assert_eq!(reads(cluster, &mut client, 30)[2], 0);
    std::fs::write(proxy.config(), text).unwrap();
    operator.simple("RELOAD").unwrap();
    assert_eq!(node(&mut operator, "pg3", "service").as_deref(), Some("enabled"));
}

/// A standby whose backends die of reads is left out for a while; no client is told an error, and nothing fails over.
#[test]
fn a_standby_that_fails_is_ejected_for_a_while() {
    let cluster = cluster::shared();
    let fake = ChaosNode::in_front_of(cluster.ports[1]);
    let ports = [cluster.ports[0], fake.port, cluster.ports[2]];
    let proxy = ProxySpec::new(&ports).set("admin.console_users", "[\"app\"]").start_splitting();
    let (mut operator, mut client) = (console(&proxy, "pgregent"), proxy.client());
    wait_for("both are read", LIMIT, || reads(cluster, &mut client, 20)[1..].iter().all(|count| *count > 0));
    fake.rule("fatal_to_it", Fault::CutRequest, usize::MAX);
    wait_for("it is ejected", LIMIT, || {
        assert_eq!(client.value("SELECT 'fatal_to_it'"), "fatal_to_it");
        node(&mut operator, "pg2", "ejected").as_deref() == Some("failing")
    });
    fake.calm();
    assert_eq!(told(&proxy, "pg2")["ejected"], "failing");
    assert!(metric(&proxy, "pgregent_ejections_total{node=\"pg2\",reason=\"failing\"} 1"));
    assert_eq!(reads(cluster, &mut client, 30)[1], 0);
    assert_eq!(node(&mut operator, "pg1", "role").as_deref(), Some("primary"));
    wait_for("it is read again", LIMIT, || reads(cluster, &mut client, 20)[1] > 0);
}
