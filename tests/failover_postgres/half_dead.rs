//! A primary that lives but cannot do its work: no commit ends, or no new session begins.
//!
//! Invariants: what looks alike but is harmless changes nothing. A hung disk is played by a backend that was stopped
//! while it held the lock on writing WAL, which looks the same from outside. Absent on purpose: full disks (`faults`).

use crate::support::load::{Load, lost, print};
use crate::support::rawclient::RawClient;
use crate::support::rig::{LIMIT, Plan, Rig, pause, since};
use crate::support::wait_for;
use std::process::Command;
use std::time::{Duration, Instant};

/// Commits without end; most of the time it writes or flushes WAL.
const BUSY: &str =
    "DO $$ BEGIN LOOP PERFORM pg_logical_emit_message(true, 'busy', repeat('x', 100)); COMMIT; END LOOP; END $$";
/// Attempts to stop a backend while it holds the lock; most succeed.
const TRIES: u32 = 200;

fn signal(pid: &str, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), pid]).status().unwrap().success());
}

fn new_primary(rig: &Rig) -> String {
    wait_for("another primary", LIMIT, || {
        let primary = rig.control()["primary"].clone();
        primary.is_string() && primary != "pg1"
    });
    rig.control()["primary"].as_str().unwrap().to_owned()
}

/// Stops a backend of pg1 while it writes WAL; its pid.
fn hang_commits(rig: &Rig) -> String {
    let node = rig.node("pg1");
    let mut busy = RawClient::login(node.port(), &rig.login()).unwrap();
    let pid = busy.value("SELECT pg_backend_pid()");
    std::thread::spawn(move || drop(busy.simple(BUSY)));
    pause(300);
    for _ in 0..TRIES {
        signal(&pid, "STOP");
        pause(20);
        let held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('WALWrite', 'WALInsert')";
        let mut other = RawClient::login(node.port(), &rig.login()).unwrap();
        other.read_timeout(Duration::from_millis(700));
        let hangs = other.simple("SELECT pg_logical_emit_message(true, 'test', '')").is_err();
        if hangs {
            println!("stopped {pid}; {} backends wait for WAL", node.psql(held).unwrap());
            return pid;
        }
        signal(&pid, "CONT");
        pause(7);
    }
    panic!("no commit hung");
}

#[test]
fn a_primary_whose_commits_hang_is_replaced() {
    let mut plan = Plan::new();
    plan.cluster.fsync = true;
    plan.settings.push(("cluster", "write_probe_warn = \"1s\"\nwrite_probe_fail = \"3s\"".to_owned()));
    let rig = plan.start();
    let load = Load::start(&rig, 2, 2);
    pause(800);
    let pid = hang_commits(&rig);
    let began = Instant::now();
    let primary = new_primary(&rig);
    println!("commits hang: {primary} is primary after {}", since(began));
    assert!(began.elapsed() > Duration::from_secs(1), "a stall was taken for a hung disk");
    pause(1500);
    let (writers, readers) = load.stop();
    signal(&pid, "CONT");
    print(&rig, "commits hang", &writers, &readers);
    rig.print_parts("commits hang");
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    assert_eq!(lost(&writers, rig.node(&primary)), 0);
    assert!(rig.log().contains("writes_hang") && rig.log().contains("WAL cannot be written"), "{}", rig.log());
    rig.assert_log_clean(&["quarantined", "held"]);
}

#[test]
fn a_primary_whose_postmaster_stands_still_is_replaced_after_a_while() {
    let mut plan = Plan::new();
    plan.settings.push(("cluster", "connect_probe_fail = \"4s\"".to_owned()));
    let rig = plan.start();
    let mut client = rig.client();
    client.simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    let postmaster = rig.node("pg1").pid().unwrap().to_string();
    let began = Instant::now();
    signal(&postmaster, "STOP");
    pause(2000);
    // Sessions that exist go on meanwhile.
    client.simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    assert_eq!(rig.control()["primary"], "pg1");
    println!("postmaster stopped: {} {:?}", since(began), rig.control()["holds"]);
    let primary = new_primary(&rig);
    println!("postmaster stopped: {primary} is primary after {}", since(began));
    assert!(began.elapsed() > Duration::from_secs(4));
    client.simple("INSERT INTO ledger (id) VALUES (-3)").unwrap();
    assert_eq!(rig.node(&primary).psql_in("app", "SELECT count(*) FROM ledger WHERE id < 0").unwrap(), "3");
    signal(&postmaster, "CONT");
    rig.print_parts("postmaster stopped");
    assert!(rig.log().contains("it serves no new connections"), "{}", rig.log());
    rig.assert_log_clean(&["quarantined", "held"]);
}

#[test]
fn a_proxy_that_hardly_runs_gives_nobody_up() {
    let rig = Plan::new().start();
    let unharmed = |what: &str| {
        let control = rig.control();
        assert_eq!((&control["primary"], &control["failover"]["failovers"]), (&"pg1".into(), &0.into()), "{what}");
        assert!(!rig.log().contains("node_down"), "{what}: {}", rig.log());
    };
    for span in [1500, 4000] {
        rig.signal_proxy(0, "STOP");
        pause(span);
        rig.signal_proxy(0, "CONT");
        pause(2000);
        unharmed(&format!("stopped for {span} ms"));
    }
    // It gets a twentieth of a processor, in slices that are far apart.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        rig.signal_proxy(0, "STOP");
        pause(190);
        rig.signal_proxy(0, "CONT");
        pause(10);
    }
    pause(2000);
    unharmed("starved");
    let probes = rig.http("/metrics");
    println!("{}", probes.lines().filter(|l| l.starts_with("pgregent_probes_total")).collect::<Vec<_>>().join("\n"));
    rig.assert_log_clean(&[]);
}
