//! The faults: what is done to the cluster, what must come of it, and what is undone afterwards.
//!
//! Invariants: a row touches servers only through the rig's own handles, so that the guardians know all of it.
//! Absent on purpose: judgement (`run`, `oracle`).

use crate::run::Scene;
use crate::support::rawclient::RawClient;
use crate::support::rig::{login, pause};
use pgregent::demo::cluster::Shutdown;
use std::process::Command;
use std::time::Duration;

/// What must come of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Another node becomes primary, once.
    Failover,
    /// Nobody is promoted.
    Stay,
    /// The primary may stay or be replaced, once.
    Either,
    /// Nobody is promoted while it lasts, since rows that were acknowledged might be missing everywhere.
    Refuse,
}

/// What a row is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Three nodes and a proxy.
    Common,
    /// The same; the primary's WAL is on a small disk.
    SmallWal,
    /// Three nodes and two proxies that share the right to change the primary.
    TwoProxies,
    /// Two nodes, a witness and two proxies that share the right.
    Witness,
    /// Three nodes and two proxies that share it through an etcd of one member.
    Etcd,
    /// The same; writes go on when etcd is gone.
    EtcdKept,
}

impl Stage {
    /// How many proxies it has.
    pub fn proxies(self) -> usize {
        match self {
            Self::Common | Self::SmallWal => 1,
            Self::TwoProxies | Self::Witness | Self::Etcd | Self::EtcdKept => 2,
        }
    }
}

/// The most that a time may be.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub median: Duration,
    pub worst: Duration,
}

/// A fault.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub stage: Stage,
    /// Links are cut: every host needs a network namespace.
    pub network: bool,
    /// With or without synchronous replication.
    pub expect: fn(bool) -> Expect,
    /// How long the fault lasts where no failover is waited for.
    pub hold_ms: u64,
    pub fault: fn(&Scene),
    pub undo: fn(&Scene),
    /// No acknowledged row may be lost even with asynchronous replication.
    pub lossless: bool,
    pub bar: Option<Bar>,
    /// One of those that are repeated by the hundred.
    pub quick: bool,
    /// What clients may be told besides 08007.
    pub errors: &'static [&'static str],
    /// The proxy that is asked what it thinks.
    pub observer: usize,
}

const KILL: Bar = Bar { median: Duration::from_millis(500), worst: Duration::from_secs(1) };
const SILENCE: Bar = Bar { median: Duration::from_secs(4), worst: Duration::from_secs(4) };

const ROW: Row = Row {
    name: "",
    stage: Stage::Common,
    network: false,
    expect: |_| Expect::Stay,
    hold_ms: 3000,
    fault: |_| (),
    undo: |_| (),
    lossless: false,
    bar: None,
    quick: false,
    errors: &[],
    observer: 0,
};
const FAILOVER: Row = Row { expect: |_| Expect::Failover, ..ROW };
const CUT: Row = Row { network: true, hold_ms: 6000, ..ROW };

/// Sends one process a signal.
fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

fn kill_one_backend(scene: &Scene) {
    let victim = "SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend' LIMIT 1";
    signal(scene.primary().psql(victim).unwrap().parse().unwrap(), "KILL");
}

/// Takes every connection slot that an ordinary role can have.
pub fn exhaust(scene: &Scene) {
    let address = (scene.primary().address(), scene.primary().port()).into();
    let mut sessions = scene.sessions.borrow_mut();
    while let Ok(session) = RawClient::login_at(address, &login()) {
        sessions.push(session);
        assert!(sessions.len() < 1000, "connections have no limit");
    }
}

fn promote_by_hand(scene: &Scene) {
    scene.spoiled.borrow_mut().insert(scene.standbys[0].clone());
    scene.standby(0).promote().unwrap();
}

/// A planned change by somebody who does not know of the proxy, which may be faster.
fn change_by_hand(scene: &Scene) {
    scene.primary().stop(Shutdown::Fast).unwrap();
    let _ = scene.standby(0).psql("SELECT pg_promote(false)");
    pause(2000);
    if scene.rig.control()["primary"] != scene.standbys[0] {
        scene.spoiled.borrow_mut().insert(scene.standbys[0].clone());
    }
}

fn isolate(scene: &Scene) {
    for host in others(scene) {
        scene.net().cut_both(&scene.primary, &host);
    }
}

fn flap(scene: &Scene) {
    for _ in 0..3 {
        scene.net().cut_both("proxy1", &scene.primary);
        pause(1000);
        scene.net().mend();
        pause(1000);
    }
}

fn others(scene: &Scene) -> Vec<String> {
    let proxies = (1..=scene.rig.addresses().len()).map(|number| format!("proxy{number}"));
    scene.standbys.iter().cloned().chain(proxies).collect()
}

/// Fills the small disk, and makes the primary want more of it.
fn fill_wal(scene: &Scene) {
    crate::disk::fill(&scene.primary().data_dir().join("pg_wal"));
    let more = "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000)) FROM generate_series(1, 20)";
    let mut tries = 0;
    while scene.primary().psql(&format!("{more}; SELECT pg_switch_wal()")).is_ok() {
        tries += 1;
        assert!(tries < 50, "the disk is not full");
    }
}

/// The primary falls silent, and soon after so does a proxy, which may have begun to act.
fn freeze_with_proxy(scene: &Scene) {
    scene.primary().freeze().unwrap();
    pause(300);
    scene.rig.signal_proxy(0, "STOP");
}

/// The primary is killed, and a proxy stops within its first steps.
fn kill_with_proxy(scene: &Scene) {
    scene.primary().kill9().unwrap();
    pause(40);
    scene.rig.signal_proxy(0, "STOP");
}

fn lose_two(sync: bool) -> Expect {
    if sync { Expect::Refuse } else { Expect::Failover }
}

/// On the servers themselves.
const SERVERS: &[Row] = &[
    Row {
        name: "kill -9 of the postmaster",
        fault: |scene| scene.primary().kill9().unwrap(),
        bar: Some(KILL),
        quick: true,
        ..FAILOVER
    },
    Row { name: "fast stop", fault: |scene| scene.primary().stop(Shutdown::Fast).unwrap(), lossless: true, ..FAILOVER },
    Row {
        name: "immediate stop",
        fault: |scene| scene.primary().stop(Shutdown::Immediate).unwrap(),
        quick: true,
        ..FAILOVER
    },
    Row {
        name: "everything frozen for 1 s",
        fault: |scene| scene.primary().freeze().unwrap(),
        undo: |scene| scene.primary().thaw().unwrap(),
        hold_ms: 1000,
        lossless: true,
        ..ROW
    },
    Row {
        name: "everything frozen",
        fault: |scene| scene.primary().freeze().unwrap(),
        bar: Some(SILENCE),
        quick: true,
        ..FAILOVER
    },
    Row {
        name: "postmaster alone frozen for 5 s",
        fault: |scene| signal(scene.primary().pid().unwrap(), "STOP"),
        hold_ms: 5000,
        lossless: true,
        ..ROW
    },
    // Older sessions go on: it takes connect_probe_fail to give it up.
    Row {
        name: "postmaster alone frozen for good",
        fault: |scene| signal(scene.primary().pid().unwrap(), "STOP"),
        ..FAILOVER
    },
    Row { name: "max_connections exhausted", fault: exhaust, hold_ms: 5000, lossless: true, ..ROW },
    Row { name: "one backend killed (crash restart)", fault: kill_one_backend, lossless: true, ..ROW },
    Row {
        name: "killed and restarted at once",
        expect: |_| Expect::Either,
        fault: |scene| {
            scene.primary().kill9().unwrap();
            scene.primary().start().unwrap();
        },
        ..ROW
    },
    Row {
        name: "killed, returns after the promotion",
        fault: |scene| scene.primary().kill9().unwrap(),
        undo: |scene| scene.primary().start().unwrap(),
        ..FAILOVER
    },
    // It comes back in the middle of its own replacement.
    Row {
        name: "everything frozen for 2.7 s",
        expect: |_| Expect::Either,
        fault: |scene| {
            scene.primary().freeze().unwrap();
            pause(2700);
            scene.primary().thaw().unwrap();
        },
        ..ROW
    },
    Row {
        name: "max_connections exhausted, then killed",
        fault: |scene| {
            exhaust(scene);
            pause(1000);
            scene.primary().kill9().unwrap();
        },
        errors: &["53300"],
        ..FAILOVER
    },
    Row {
        name: "killed, a standby frozen",
        fault: |scene| {
            scene.standby(0).freeze().unwrap();
            scene.primary().kill9().unwrap();
        },
        ..FAILOVER
    },
    Row {
        name: "a standby promoted by hand, primary alive",
        fault: promote_by_hand,
        undo: |scene| scene.standby(0).stop(Shutdown::Immediate).unwrap(),
        lossless: true,
        errors: &["57P03"],
        ..ROW
    },
    Row {
        name: "primary stopped, standby promoted by hand",
        expect: |_| Expect::Either,
        fault: change_by_hand,
        undo: |scene| {
            // Two nodes were promoted: somebody has to say which one goes.
            if scene.spoiled.borrow().contains(&scene.standbys[0]) {
                scene.standby(0).stop(Shutdown::Immediate).unwrap();
            }
        },
        errors: &["57P03"],
        ..ROW
    },
    Row {
        name: "primary and a standby lost together",
        expect: lose_two,
        fault: |scene| {
            scene.standby(0).kill9_all().unwrap();
            scene.primary().kill9().unwrap();
        },
        undo: |scene| scene.standby(0).start().unwrap(),
        hold_ms: 4000,
        ..ROW
    },
    Row {
        name: "WAL disk full",
        stage: Stage::SmallWal,
        expect: |_| Expect::Either,
        fault: fill_wal,
        undo: |scene| crate::disk::empty(&scene.primary().data_dir().join("pg_wal")),
        hold_ms: 10_000,
        errors: &["53100", "57P03"],
        ..ROW
    },
];

/// On the links between hosts.
const LINKS: &[Row] = &[
    Row {
        name: "primary cut off from everybody",
        fault: isolate,
        bar: Some(SILENCE),
        quick: true,
        ..Row { network: true, ..FAILOVER }
    },
    Row {
        name: "nothing the primary sends arrives",
        fault: |scene| others(scene).iter().for_each(|host| scene.net().cut(&scene.primary, host)),
        bar: Some(SILENCE),
        ..Row { network: true, ..FAILOVER }
    },
    Row {
        name: "nothing sent to the primary arrives",
        fault: |scene| others(scene).iter().for_each(|host| scene.net().cut(host, &scene.primary)),
        bar: Some(SILENCE),
        ..Row { network: true, ..FAILOVER }
    },
    Row { name: "proxy | primary, both ways", fault: |scene| scene.net().cut_both("proxy1", &scene.primary), ..CUT },
    Row { name: "proxy | primary, a second on, a second off", fault: flap, lossless: true, ..CUT },
    Row { name: "proxy > primary", fault: |scene| scene.net().cut("proxy1", &scene.primary), ..CUT },
    Row { name: "primary > proxy", fault: |scene| scene.net().cut(&scene.primary, "proxy1"), ..CUT },
    Row {
        name: "primary | both standbys, both ways",
        fault: |scene| scene.standbys.iter().for_each(|host| scene.net().cut_both(&scene.primary, host)),
        lossless: true,
        ..CUT
    },
    Row {
        name: "primary > both standbys",
        fault: |scene| scene.standbys.iter().for_each(|host| scene.net().cut(&scene.primary, host)),
        lossless: true,
        ..CUT
    },
    Row {
        name: "both standbys > primary",
        fault: |scene| scene.standbys.iter().for_each(|host| scene.net().cut(host, &scene.primary)),
        lossless: true,
        ..CUT
    },
    Row {
        name: "proxy | one standby, both ways",
        fault: |scene| scene.net().cut_both("proxy1", &scene.standbys[0]),
        lossless: true,
        ..CUT
    },
    Row {
        name: "proxy > one standby",
        fault: |scene| scene.net().cut("proxy1", &scene.standbys[0]),
        lossless: true,
        ..CUT
    },
    Row {
        name: "one standby > proxy",
        fault: |scene| scene.net().cut(&scene.standbys[0], "proxy1"),
        lossless: true,
        ..CUT
    },
    Row {
        name: "proxy | both standbys, both ways",
        fault: |scene| scene.standbys.iter().for_each(|host| scene.net().cut_both("proxy1", host)),
        lossless: true,
        ..CUT
    },
    Row {
        name: "proxy | one standby, both ways, primary killed",
        fault: |scene| {
            scene.net().cut_both("proxy1", &scene.standbys[0]);
            scene.primary().kill9().unwrap();
        },
        ..Row { network: true, ..FAILOVER }
    },
    Row {
        name: "primary | one standby, both ways",
        fault: |scene| scene.net().cut_both(&scene.primary, &scene.standbys[0]),
        lossless: true,
        ..CUT
    },
    Row { name: "slow links that lose 5 %, for a minute", fault: slow, hold_ms: 60_000, lossless: true, ..CUT },
    Row {
        name: "proxy | all nodes, both ways",
        fault: |scene| {
            for node in scene.rig.cluster.nodes() {
                scene.net().cut_both("proxy1", node.name());
            }
        },
        ..CUT
    },
];

/// A long and bad way between all hosts: late by 100 ms there and back, give or take 20, and five of a hundred lost.
pub fn slow(scene: &Scene) {
    scene.net().slow(50, 10, 5);
}

/// With a second proxy. What each of them is told and when may differ; what clients may be told does not.
pub const PAIR: Row = Row { stage: Stage::TwoProxies, observer: 1, errors: &["57P03"], ..FAILOVER };

const PROXIES: &[Row] = &[
    Row { name: "two proxies: postmaster killed", fault: |scene| scene.primary().kill9().unwrap(), ..PAIR },
    Row { name: "two proxies: everything frozen", fault: |scene| scene.primary().freeze().unwrap(), ..PAIR },
    Row { name: "two proxies: primary frozen, then a proxy", fault: freeze_with_proxy, ..PAIR },
    Row { name: "two proxies: killed, a proxy frozen meanwhile", fault: kill_with_proxy, ..PAIR },
    Row {
        name: "two proxies: killed, a proxy killed meanwhile",
        fault: |scene| {
            scene.primary().kill9().unwrap();
            pause(40);
            scene.rig.kill_proxy();
        },
        undo: |scene| scene.rig.start_proxy(),
        errors: &["57P03", "closed", "login closed"],
        ..PAIR
    },
    Row {
        name: "two proxies: one alone with the primary",
        network: true,
        fault: |scene| {
            for host in ["proxy2"].into_iter().chain(scene.standbys.iter().map(String::as_str)) {
                scene.net().cut_both(&scene.primary, host);
                scene.net().cut_both("proxy1", host);
            }
        },
        ..PAIR
    },
    Row {
        name: "two proxies: one cut off from the primary",
        network: true,
        expect: |_| Expect::Stay,
        hold_ms: 6000,
        fault: |scene| scene.net().cut_both("proxy1", &scene.primary),
        ..PAIR
    },
    Row {
        name: "two proxies: primary and standbys cut apart",
        network: true,
        expect: |_| Expect::Stay,
        hold_ms: 6000,
        fault: |scene| scene.standbys.iter().for_each(|host| scene.net().cut_both(&scene.primary, host)),
        lossless: true,
        ..PAIR
    },
    Row {
        name: "two proxies: slow links that lose 5 %, for a minute",
        network: true,
        expect: |_| Expect::Stay,
        hold_ms: 60_000,
        fault: slow,
        lossless: true,
        ..PAIR
    },
    // No majority of voters: writes stop with the lease.
    Row {
        name: "two proxies: both standbys lost",
        expect: |_| Expect::Stay,
        hold_ms: 5000,
        fault: |scene| (0..2).for_each(|index| scene.standby(index).kill9_all().unwrap()),
        undo: |scene| (0..2).for_each(|index| scene.standby(index).start().unwrap()),
        lossless: true,
        ..PAIR
    },
    Row {
        name: "two proxies: one frozen for 4 s",
        expect: |_| Expect::Stay,
        hold_ms: 4000,
        fault: |scene| scene.rig.signal_proxy(0, "STOP"),
        lossless: true,
        ..PAIR
    },
];

/// The whole matrix.
pub fn all() -> Vec<Row> {
    [SERVERS, LINKS, PROXIES, crate::stores::STORES].concat()
}

/// A row with everything as usual.
pub fn named(name: &'static str) -> Row {
    Row { name, ..ROW }
}
