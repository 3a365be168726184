//! Read your writes, while one standby replays late and the other is paused for a while.
//!
//! Invariant: every bound holds on a slow machine with two cores. Absent on purpose: the rig itself (`rig`, `load`).

use crate::rig::{Plan, login, pause};
use crate::support::rawclient::RawClient;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SESSIONS: u64 = 4;

#[derive(Default)]
struct Reads {
    stale: u64,
    total: u64,
    on_standby: u64,
    later_on_standby: u64,
    later: u64,
}

fn session(address: SocketAddr, primary: &str, number: u64, stop: &AtomicBool) -> Reads {
    let mut client = RawClient::login_at(address, &login()).unwrap();
    let mut reads = Reads::default();
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        last += 1;
        let id = number * 1_000_000 + last;
        client.simple(&format!("INSERT INTO ledger (id) VALUES ({id})")).unwrap();
        for round in 0..4 {
            let sql = format!("SELECT inet_server_port(), count(*) FROM ledger WHERE id = {id}");
            let answer = client.simple(&sql).unwrap();
            let (port, found) = (answer.rows[0][0].as_deref().unwrap(), answer.rows[0][1].as_deref().unwrap());
            reads.total += 1;
            reads.stale += u64::from(found != "1");
            reads.on_standby += u64::from(port != primary);
            if round > 0 {
                reads.later += 1;
                reads.later_on_standby += u64::from(port != primary);
            }
            // A client that thinks a little between its statements.
            pause(15);
        }
    }
    reads
}

#[test]
fn sessions_always_read_what_they_wrote() {
    let rig = Plan::new().start();
    let late = rig.node("pg3");
    late.psql("ALTER SYSTEM SET recovery_min_apply_delay = '300ms'").unwrap();
    late.psql("SELECT pg_reload_conf()").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let primary = rig.node("pg1").port().to_string();
    let threads: Vec<_> = (1..=SESSIONS)
        .map(|number| {
            let (stop, primary, address) = (Arc::clone(&stop), primary.clone(), rig.address());
            std::thread::spawn(move || session(address, &primary, number, &stop))
        })
        .collect();
    pause(2500);
    rig.node("pg2").psql("SELECT pg_wal_replay_pause()").unwrap();
    pause(1500);
    rig.node("pg2").psql("SELECT pg_wal_replay_resume()").unwrap();
    pause(2000);
    stop.store(true, Ordering::Relaxed);
    let mut whole = Reads::default();
    for thread in threads {
        let reads = thread.join().unwrap();
        whole.stale += reads.stale;
        whole.total += reads.total;
        whole.on_standby += reads.on_standby;
        whole.later += reads.later;
        whole.later_on_standby += reads.later_on_standby;
    }
    println!(
        "read your writes: {} stale of {} reads, {} % by standbys ({} % of those after the first)",
        whole.stale,
        whole.total,
        whole.on_standby * 100 / whole.total,
        whole.later_on_standby * 100 / whole.later
    );
    assert_eq!(whole.stale, 0);
    assert!(whole.on_standby > 0, "no standby ever took a read");
    rig.assert_log_clean(&[]);
}
