//! A cluster of one node for tests that restart it or change its rules.
//!
//! Invariants: each cluster belongs to the test that starts it. Absent on purpose: standbys, failover.

use crate::support::cluster::APP_PASSWORD;
use crate::support::proxy::ProxySpec;
use crate::support::wait_for;
use crate::{LATE_MAX, try_login};
use pgregent::demo::cluster::{Cluster, ClusterOptions, Node, Shutdown};
use std::thread;
use std::time::{Duration, Instant};

/// Starts it.
pub fn start() -> Cluster {
    let app_password = APP_PASSWORD.to_owned();
    Cluster::start(ClusterOptions { standbys: 0, auth_query: true, app_password, ..ClusterOptions::default() }).unwrap()
}

/// The usual proxy in front of it.
pub fn proxy(cluster: &Cluster) -> ProxySpec {
    let password = format!("{:?}", cluster.passwords().monitor);
    ProxySpec::new(&[node(cluster).port()]).set("cluster.monitor_password", &password)
}

/// Its node.
pub fn node(cluster: &Cluster) -> &Node {
    &cluster.nodes()[0]
}

#[test]
fn a_restart_of_the_node_is_waited_for_and_soon_over() {
    let cluster = start();
    let node = node(&cluster);
    let proxy = proxy(&cluster).start_ready();
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1"), "1");
    }
    // Down and up between two statements: nobody is told.
    for how in [Shutdown::Fast, Shutdown::Immediate] {
        node.stop(how).unwrap();
        node.start().unwrap();
        let started = Instant::now();
        for client in &mut clients {
            assert_eq!(client.value("SELECT 2"), "2", "{how:?}");
        }
        let took = started.elapsed();
        eprintln!("after a {how:?} restart the first statements took {took:?}");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    // Down for a while: statements and logins wait and are served soon after.
    node.stop(Shutdown::Fast).unwrap();
    thread::scope(|scope| {
        let waiting: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| client.value("SELECT 3"))).collect();
        let newcomer = scope.spawn(|| proxy.client().value("SELECT 4"));
        thread::sleep(Duration::from_millis(1500));
        node.start().unwrap();
        let started = Instant::now();
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), "3"));
        let took = started.elapsed();
        eprintln!("after a pause the first statements took {took:?}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(newcomer.join().unwrap(), "4");
    });
    wait_for("logins work", LATE_MAX, || try_login(proxy.port, "app", APP_PASSWORD).is_ok());
}
