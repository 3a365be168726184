//! Two standbys promoted apart to the same timeline number, on real servers: numbers say that they belong together.
//!
//! Invariant: every bound holds on a slow machine with two cores. Absent on purpose: the rules (scenarios and the
//! simulation test those).

use crate::rig::{LIMIT, Plan, Rig, pause, since};
use crate::support::wait_for;
use pgregent::demo::cluster::Shutdown;
use std::fs;
use std::time::{Duration, Instant};

/// How long a stranger is watched.
const WATCH: Duration = Duration::from_secs(4);

fn history(rig: &Rig, node: &str) -> String {
    rig.node_status(node)["history"].as_str().unwrap_or_default().to_owned()
}

/// It is told why, and takes no reads, for as long as it is watched.
fn takes_no_reads(rig: &Rig, node: &str) {
    let until = Instant::now() + WATCH;
    while Instant::now() < until {
        let status = rig.node_status(node);
        assert_eq!(status["accepts_reads"], false, "{status}");
        let port = rig.client().simple("SELECT inet_server_port()").unwrap().rows[0][0].clone().unwrap();
        assert_ne!(rig.name_of(&port), node);
        pause(50);
    }
}

#[test]
fn a_stranger_on_the_same_timeline_number_is_recognised() {
    let rig = Plan::new().start();
    let stranger = rig.node("pg3");
    let write = |id: i32| rig.client().simple(&format!("INSERT INTO ledger (id) VALUES ({id})")).unwrap();
    stranger.stop(Shutdown::Fast).unwrap();
    write(-1);
    rig.node("pg1").kill9().unwrap();
    rig.wait_primary("pg2");
    write(-2);
    // So that the stranger's WAL ends behind the primary's, and PostgreSQL has nothing against its streaming.
    rig.node("pg2").psql("SELECT pg_switch_wal()").unwrap();
    write(-3);
    rig.kill_proxy();
    stranger.start().unwrap();
    stranger.promote().unwrap();
    rig.start_proxy();
    rig.wait_primary("pg2");
    let began = Instant::now();
    wait_for("the stranger is recognised", LIMIT, || rig.log().contains("of another line than the primary's"));
    println!("histories: recognised {} after the primary, {}", since(began), rig.node_status("pg3")["note"]);
    wait_for("writes flow", LIMIT, || rig.control()["writes"] == "open");
    write(-4);
    let (ours, its) = (history(&rig, "pg2"), history(&rig, "pg3"));
    println!("histories: pg2 {ours}, pg3 {its}");
    assert!(ours.ends_with(" 2") && its.ends_with(" 2") && ours != its, "{ours}, {its}");
    wait_for("it is made read-only", LIMIT, || rig.log().contains("fenced_sql"));
    takes_no_reads(&rig, "pg3");
    // Made a standby of the primary as it is.
    stranger.follow(rig.node("pg2")).unwrap();
    stranger.stop(Shutdown::Fast).unwrap();
    fs::write(stranger.data_dir().join("standby.signal"), "").unwrap();
    stranger.start().unwrap();
    wait_for("it is seen as a standby", LIMIT, || rig.node_status("pg3")["observed_role"] == "standby");
    takes_no_reads(&rig, "pg3");
    let streams = stranger.psql("SELECT status FROM pg_stat_wal_receiver").unwrap_or_default();
    println!("histories: as a standby {streams:?}, {}", rig.node_status("pg3")["note"]);
    assert_eq!(rig.node_status("pg3")["candidate"]["veto"], "other_line");
    // A new copy is one of ours.
    stranger.rebuild_from(rig.node("pg2")).unwrap();
    rig.wait_reads_on(&["pg3"]);
    assert_eq!(history(&rig, "pg3"), ours);
    write(-5);
    // No connection for it stays.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgregent history'";
    wait_for("no history is being asked for", LIMIT, || rig.node("pg2").psql(open).is_ok_and(|count| count == "0"));
    rig.assert_log_clean(&["quarantined", "split_brain"]);
}
