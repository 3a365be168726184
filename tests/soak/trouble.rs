//! What goes wrong on the nodes while clients work: backends are killed, a standby is restarted.
//!
//! Invariant: when these threads have ended, every node runs again. Absent on purpose: the primary's death.

use pgregent::demo::cluster::{Cluster, Node, Shutdown};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two kills.
const KILL_EVERY: Duration = Duration::from_millis(700);
/// Between two restarts of a standby, at most; a short run has one.
const RESTART_EVERY: Duration = Duration::from_secs(90);

fn pause(stop: &AtomicBool, time: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < time {
        if stop.load(Ordering::SeqCst) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    !stop.load(Ordering::SeqCst)
}

/// Terminates a backend of the application now and then, in turn on each node.
pub fn kill_backends(cluster: &Cluster, stop: &AtomicBool) {
    let mut turn = 0;
    while pause(stop, KILL_EVERY) {
        turn += 1;
        let node = &cluster.nodes()[turn % cluster.nodes().len()];
        // A node that is being restarted refuses.
        let _ = node.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' ORDER BY state <> 'active', random() LIMIT 1",
        );
    }
}

/// Restarts the standbys in turn.
pub fn restart_standbys(cluster: &Cluster, stop: &AtomicBool, lasting: Duration) {
    let mut turn = 0;
    while pause(stop, RESTART_EVERY.min(lasting / 2)) {
        let node = cluster.node(["pg2", "pg3"][turn % 2]).unwrap();
        turn += 1;
        node.stop(Shutdown::Immediate).unwrap_or_else(|error| panic!("{} stops: {error}", node.name()));
        std::thread::sleep(Duration::from_millis(500));
        node.start().unwrap_or_else(|error| panic!("{} starts: {error}", node.name()));
    }
}

/// Backends of the application on a node.
pub fn app_backends(node: &Node) -> u64 {
    node.psql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'").unwrap().trim().parse().unwrap()
}
