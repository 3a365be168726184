//! Standbys that are killed and cancelled under load.
//!
//! Contract: sixteen clients that read, in every way of speaking, see no error and no wrong row. Absent on purpose: the
//! death of the primary (`failover_postgres`).

use super::conflicts::impatient;
use super::*;
use crate::support::proxy::ProxySpec;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const CLIENTS: usize = 16;
const READ: &str = "SELECT sum(id), count(*) FROM steady WHERE id > 0";

fn read_on(proxy: &Proxy, mode: Mode, done: &AtomicBool, reads: &AtomicU64) {
    let mut client = proxy.client();
    while !done.load(Ordering::Relaxed) {
        let answer = say(&mut client, mode, READ).unwrap_or_else(|gone| panic!("{mode:?}: {gone:?}"));
        assert_eq!(answer.rows, [[Some("500500".to_owned()), Some("1000".to_owned())]], "{mode:?}");
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn clients_that_read_do_not_notice_that_standbys_die() {
    let cluster = impatient();
    let mut superuser = cluster.superuser("app");
    let set_up =
        "CREATE TABLE steady AS SELECT i AS id, 0 AS n FROM generate_series(1, 1000) i; GRANT ALL ON steady TO app";
    superuser.simple(set_up).unwrap();
    cluster.wait_replayed();
    let proxy = ProxySpec::in_front_of(&cluster).start_splitting();
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut sweep = || {
        superuser.simple("UPDATE steady SET n = n + 1").unwrap();
        superuser.simple("VACUUM steady").unwrap();
    };
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (proxy, done, reads) = (&proxy, &done, &reads);
            scope.spawn(move || read_on(proxy, MODES[number % MODES.len()], done, reads));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for node in [1, 2, 1, 2] {
                (0..10).for_each(|_| {
                    sweep();
                    std::thread::sleep(Duration::from_millis(50));
                });
                cluster.kill(node);
                (0..10).for_each(|_| sweep());
                cluster.revive(node);
                std::thread::sleep(Duration::from_millis(500));
            }
        }));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    println!("reads: {}, reruns: {:?}", reads.load(Ordering::Relaxed), reruns(&proxy));
    let moved: u64 = ["backend_lost", "shutdown", "fenced", "connect"].iter().map(|why| reruns_for(&proxy, why)).sum();
    assert!(moved > 0, "{:?}", reruns(&proxy));
    proxy.assert_serving();
}
