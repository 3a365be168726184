//! Replay that needs what a read holds.
//!
//! Contract: whatever replay cancels, no client that reads sees it. Absent on purpose: connections that replay ends
//! (nobody drops a database here).

use super::*;
use crate::support::cluster::Cluster;
use crate::support::proxy::ProxySpec;
use crate::support::wait_for;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Standbys that let nobody hold up replay.
pub fn impatient() -> Cluster {
    let cluster = Cluster::start();
    for node in 1..cluster.ports.len() {
        let mut superuser = cluster.superuser_on(node, "postgres");
        for setting in ["max_standby_streaming_delay = 0", "hot_standby_feedback = off"] {
            superuser.simple(&format!("ALTER SYSTEM SET {setting}")).unwrap();
        }
        superuser.simple("SELECT pg_reload_conf()").unwrap();
    }
    cluster
}

/// How often replay has cancelled somebody, over all standbys.
fn cancelled(cluster: &Cluster) -> u64 {
    let of = |node| -> u64 {
        let sql = "SELECT coalesce(sum(conflicts), 0) FROM pg_stat_database";
        cluster.superuser_on(node, "postgres").value(sql).parse().unwrap()
    };
    (1..cluster.ports.len()).map(of).sum()
}

/// Reads while `trouble` makes replay cancel them; nobody sees an error.
fn read_through(cluster: &Cluster, proxy: &Proxy, sql: &str, right: &str, mut trouble: impl FnMut()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for mode in MODES {
            let done = &done;
            scope.spawn(move || {
                let mut client = proxy.client();
                while !done.load(Ordering::Relaxed) {
                    let answer = say(&mut client, mode, sql).unwrap_or_else(|gone| panic!("{mode:?}: {gone:?}"));
                    assert_eq!(answer.rows, [[Some(right.to_owned())]], "{mode:?}");
                }
            });
        }
        let before = cancelled(cluster);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("replay cancels reads", Duration::from_secs(60), || {
                trouble();
                cancelled(cluster) >= before + 4
            });
        }));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    println!("cancelled by replay: {}, reruns: {:?}", cancelled(cluster), reruns(proxy));
}

#[test]
fn reads_that_replay_cancels_run_elsewhere() {
    let cluster = impatient();
    let mut superuser = cluster.superuser("app");
    let set_up =
        "CREATE TABLE swept AS SELECT i AS id FROM generate_series(1, 1000) i; CREATE TABLE locked AS SELECT 1 AS id;
        GRANT ALL ON swept, locked TO app";
    superuser.simple(set_up).unwrap();
    cluster.wait_replayed();
    let proxy = ProxySpec::in_front_of(&cluster).set("route.read_functions", r#"["pg_sleep"]"#).start_splitting();
    // The snapshot of each read needs rows that VACUUM removes.
    read_through(&cluster, &proxy, "SELECT count(*) FROM swept, pg_sleep(0.3)", "1000", || {
        superuser.simple("UPDATE swept SET id = id").unwrap();
        superuser.simple("VACUUM swept").unwrap();
        std::thread::sleep(Duration::from_millis(200));
    });
    // The lock that ALTER TABLE takes is replayed.
    read_through(&cluster, &proxy, "SELECT count(*) FROM locked, pg_sleep(0.3)", "1", || {
        superuser
            .simple(
                "BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE; ALTER TABLE locked SET (fillfactor = 90); COMMIT",
            )
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));
    });
    assert!(reruns_for(&proxy, "conflict") > 0, "{:?}", reruns(&proxy));
    proxy.assert_serving();
}
