//! Follow mode with the real thing: Patroni promotes, and the proxy follows without a hand of its own.
//!
//! `make follow` runs every case and prints a line for each: from Patroni's promotion (the moment in which the new
//! primary says in its log that it accepts connections) to the first write that a client's session, connected before,
//! was acknowledged there; acknowledged writes that are missing in the end; whether two nodes took writes at once. Two
//! short cases run with all other tests. Patroni comes from PyPI (`tests/drivers/setup.sh`): where it is missing the
//! tests fail, unless `PGREGENT_TEST_WITHOUT` names `patroni`. Absent on purpose: Patroni's own decisions.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[path = "../faults/oracle.rs"]
mod oracle;
mod owner;
mod patroni;
mod relay;
mod repmgr;
#[path = "../support/mod.rs"]
mod support;

use patroni::{Ensemble, TTL, wait_patroni};
use std::time::{Duration, Instant, SystemTime};
use support::drivers::left_out;
use support::load::{Clients, Load, lost};
use support::rig::pause;
use support::wait_for;

/// Clients at work during every case.
const CLIENTS: Clients = Clients { writers: 4, readers: 2, thinking: Duration::from_millis(5) };
/// From the promotion to the first write, on a slow and busy machine.
const FOLLOWED_MAX: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_secs(86_400);

/// What must come of a case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Another node leads, and nothing acknowledged is lost.
    MovedLossless,
    /// Another node leads.
    Moved,
    /// The primary stays, or is primary again.
    Stays,
    /// Patroni may do either.
    Either,
}

/// Something that happens to the ensemble.
struct Case {
    name: &'static str,
    expect: Expect,
    /// What happens; the names are those of the primary and of a standby.
    fault: fn(&Ensemble, &str, &str),
}

const SWITCHOVER: Case = Case {
    name: "patronictl switchover",
    expect: Expect::MovedLossless,
    fault: |all, primary, standby| switch_over(all, primary, standby),
};
const CRASH: Case = Case {
    name: "PostgreSQL killed, Patroni alive",
    expect: Expect::Moved,
    fault: |all, primary, _| all.rig.node(primary).kill9_all().unwrap(),
};

const LONG: &[Case] = &[
    SWITCHOVER,
    CRASH,
    Case {
        name: "PostgreSQL and Patroni killed",
        expect: Expect::Moved,
        fault: |all, primary, _| {
            all.kill_member(primary);
            all.rig.node(primary).kill9_all().unwrap();
        },
    },
    Case {
        name: "both frozen for longer than the time to live, then back",
        expect: Expect::Moved,
        fault: |all, primary, _| {
            all.freeze_member(primary, true);
            all.rig.node(primary).freeze().unwrap();
            wait_patroni("another leader", || all.leader().is_some_and(|leader| leader != primary));
            pause(2000);
            all.rig.node(primary).thaw().unwrap();
            pause(1000);
            all.freeze_member(primary, false);
        },
    },
    Case {
        name: "Patroni killed, its PostgreSQL goes on",
        expect: Expect::Moved,
        fault: |all, primary, _| {
            all.kill_member(primary);
            wait_patroni("another leader", || all.leader().is_some_and(|leader| leader != primary));
        },
    },
    Case {
        name: "REST API unreachable, switchover",
        expect: Expect::MovedLossless,
        fault: |all, primary, standby| {
            all.shut_rest(true);
            pause(4000);
            switch_over(all, primary, standby);
        },
    },
    Case {
        name: "REST API unreachable for 6 s",
        expect: Expect::Stays,
        fault: |all, _, _| {
            all.shut_rest(true);
            pause(6000);
        },
    },
    Case {
        name: "Patroni paused, primary killed, resumed",
        expect: Expect::Either,
        fault: |all, primary, _| {
            all.ctl(&["pause", "--wait"]);
            all.rig.node(primary).kill9_all().unwrap();
            pause(3000);
            assert_eq!(all.rig.control()["writes"], "held", "{}", all.rig.control());
            all.ctl(&["resume", "--wait"]);
            wait_patroni("somebody leads", || all.leader().is_some());
        },
    },
    Case {
        name: "Patroni paused, primary stopped, standby promoted by hand",
        expect: Expect::MovedLossless,
        fault: |all, primary, standby| {
            all.ctl(&["pause", "--wait"]);
            all.rig.node(primary).psql("CHECKPOINT").unwrap();
            stop(all, primary);
            all.rig.node(standby).promote().unwrap();
            wait_patroni("it leads", || all.leader().as_deref() == Some(standby));
            all.ctl(&["resume", "--wait"]);
        },
    },
    Case {
        name: "there and back again",
        expect: Expect::Stays,
        fault: |all, primary, standby| {
            switch_over(all, primary, standby);
            wait_for("the proxy follows", TTL, || all.rig.control()["primary"] == standby);
            all.wait_healthy();
            switch_over(all, standby, primary);
        },
    },
];

fn switch_over(all: &Ensemble, from: &str, to: &str) {
    all.ctl(&["switchover", "test", "--leader", from, "--candidate", to, "--force"]);
}

/// Stops a node that Patroni started.
fn stop(all: &Ensemble, name: &str) {
    let text = std::fs::read_to_string(all.rig.node(name).data_dir().join("postmaster.pid")).unwrap();
    let pid = text.lines().next().unwrap();
    assert!(std::process::Command::new("kill").args(["-INT", pid]).status().unwrap().success());
    wait_for("it has stopped", TTL, || all.rig.node(name).processes().is_empty());
}

/// The last moment in which a node said that it accepts connections, in milliseconds of the day.
fn accepted(log: &str) -> Option<u64> {
    let line = log.lines().rfind(|line| line.ends_with("database system is ready to accept connections"))?;
    let mut parts = line.split(' ').nth(1)?.split([':', '.']).map(|part| part.parse::<u64>().ok());
    let mut part = || parts.next().flatten();
    Some(((part()? * 60 + part()?) * 60 + part()?) * 1000 + part()?)
}

/// Runs a case and judges it.
fn run(all: &Ensemble, case: &Case) {
    all.wait_healthy();
    let rig = &all.rig;
    let primary = rig.control()["primary"].as_str().unwrap().to_owned();
    let standby = if primary == "pg2" { "pg3" } else { "pg2" };
    let load = Load::of(rig, &CLIENTS);
    pause(600);
    let began = (Instant::now(), SystemTime::now());
    (case.fault)(all, &primary, standby);
    let settled = || {
        let control = rig.control();
        let moved = control["primary"] != primary.as_str();
        control["writes"] == "open" && (case.expect == Expect::Either || moved == (case.expect != Expect::Stays))
    };
    wait_patroni(case.name, settled);
    pause(1500);
    all.mend();
    all.wait_healthy();
    pause(500);
    let (writers, readers) = load.stop();
    let control = rig.control();
    let now = control["primary"].as_str().unwrap().to_owned();
    let (node, moved) = (rig.node(&now), now != primary);
    let first = writers.acked.iter().filter(|write| write.node == node.port().to_string() && write.first_session);
    let first = first.map(|write| write.at).filter(|at| *at > began.0).min();
    let since = first.filter(|_| moved).map(|at| after(at, began, accepted(&all.log(&now)).unwrap()));
    let (gap, missing) = (writers.write_gap(), lost(&writers, node));
    println!(
        "{:<58} {primary} to {now}: promotion to write {} ms, longest gap {:.3} s, lost {missing} of {}, errors {:?} {:?}",
        case.name,
        since.map_or_else(|| "-".to_owned(), |since| since.as_millis().to_string()),
        gap.as_secs_f64(),
        writers.acked.len(),
        writers.errors,
        readers.errors
    );
    let wanted = case.expect == Expect::Either || moved == (case.expect != Expect::Stays);
    assert!(wanted, "{}: {control}", case.name);
    assert_eq!(oracle::violations(&writers.acked), Vec::<String>::new(), "{}", case.name);
    assert_eq!(control["failover"]["failovers"], 0, "{}: the proxy promoted", case.name);
    assert!(missing == 0 || matches!(case.expect, Expect::Moved | Expect::Either), "{}: {missing} lost", case.name);
    assert!(since.is_none_or(|since| since < FOLLOWED_MAX), "{}: {since:?}", case.name);
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
}

/// How long after that time of the day.
fn after(at: Instant, began: (Instant, SystemTime), day_ms: u64) -> Duration {
    let moment = began.1 + (at - began.0);
    let of_day = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() % DAY.as_millis();
    Duration::from_millis(u64::try_from(of_day).unwrap().saturating_sub(day_ms))
}

fn run_all(cases: &[Case]) {
    if left_out("patroni") {
        println!("SKIPPED: PGREGENT_TEST_WITHOUT leaves Patroni out");
        return;
    }
    let all = Ensemble::start();
    for case in cases {
        run(&all, case);
    }
}

#[test]
fn patroni_promotes_and_the_proxy_follows() {
    run_all(&[SWITCHOVER, CRASH]);
}

#[test]
#[ignore = "takes minutes: make follow"]
fn every_case_with_patroni() {
    let wanted = std::env::var("CASES").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').filter(|part| !part.is_empty()).collect();
    let all = Ensemble::start();
    for case in LONG.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part))) {
        run(&all, case);
    }
}
