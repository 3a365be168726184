//! The tour judges: in front of a stand-in that fails over but never splits reads, exactly the claims about
//! reads fail.
//!
//! Real PostgreSQL, about 20 s. Absent on purpose: the real proxy; `make demo TOUR=1` plays it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use pgregent::demo::cluster::{Cluster, ClusterOptions, Port};
use pgregent::demo::tour::{self, Stage};
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(20);

/// Forwards every connection to the primary. When that dies: promotes the second node, lets the third follow.
struct StandIn {
    port: Port,
    stopped: Arc<AtomicBool>,
    brain: Option<JoinHandle<()>>,
}

impl StandIn {
    fn start(cluster: &Arc<Cluster>) -> Self {
        let port = Port::reserve().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).unwrap();
        let target = Arc::new(AtomicU16::new(cluster.nodes()[0].port()));
        let stopped = Arc::new(AtomicBool::new(false));
        let accepting = Arc::clone(&target);
        spawn(move || {
            for client in listener.incoming().flatten() {
                let target = Arc::clone(&accepting);
                spawn(move || forward(client, &target));
            }
        });
        let (cluster, stop) = (Arc::clone(cluster), Arc::clone(&stopped));
        let brain = spawn(move || {
            let [first, second, third] = cluster.nodes() else { panic!("three nodes") };
            while first.is_running() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                sleep(TICK);
            }
            target.store(0, Ordering::SeqCst);
            second.promote().unwrap();
            third.follow(second).unwrap();
            target.store(second.port(), Ordering::SeqCst);
        });
        Self { port, stopped, brain: Some(brain) }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.brain.take().unwrap().join().unwrap();
    }
}

/// Waits for a primary, then moves bytes both ways until one side ends.
fn forward(client: TcpStream, target: &AtomicU16) {
    let node = loop {
        let port = target.load(Ordering::SeqCst);
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(node) if port != 0 => break node,
            _ => sleep(TICK),
        }
    };
    let (mut from_node, mut to_client) = (node.try_clone().unwrap(), client.try_clone().unwrap());
    let (mut from_client, mut to_node) = (client, node);
    let back = spawn(move || {
        let _ = io::copy(&mut from_node, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut from_client, &mut to_node);
    let _ = to_node.shutdown(Shutdown::Both);
    back.join().unwrap();
}

#[test]
fn a_proxy_that_never_splits_reads_fails_exactly_the_claims_about_reads() {
    let settings = vec![("synchronous_standby_names".to_owned(), "ANY 1 (pg1, pg2, pg3)".to_owned())];
    let cluster = Arc::new(Cluster::start(ClusterOptions { settings, ..ClusterOptions::default() }).unwrap());
    let stand_in = StandIn::start(&cluster);
    let stage =
        Stage { cluster: Arc::clone(&cluster), port: stand_in.port.number(), admin_port: None, synchronous: false };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let failed = runtime.block_on(tour::failed_claims(stage)).unwrap();
    // Commits wait for either standby, and the one that is promoted may be the other: a loss is possible,
    // and within the claim.
    let about_reads = failed.iter().filter(|claim| claim.contains("standbys") && claim.contains("served reads"));
    assert_eq!(about_reads.count(), 2, "{failed:#?}");
    assert_eq!(failed.len(), 2, "{failed:#?}");
}
