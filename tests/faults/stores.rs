//! Faults of what several proxies agree through: etcd, witnesses, and the voters' memory.
//!
//! Invariants: as for the other rows; what a row kills it starts again. Absent on purpose: members of etcd one by one
//! (`tests/coordination` does that).

use crate::rows::{Bar, Expect, PAIR, Row, Stage};
use crate::run::Scene;
use crate::support::rig::{ETCD, WITNESS, pause};
use pgregent::demo::cluster::Shutdown;
use std::time::Duration;

/// Writes may stay away for as long as a proxy on a busy machine is late with them, but for no lease.
const UNNOTICED: Bar = Bar { median: Duration::from_millis(1500), worst: Duration::from_millis(1500) };

const IN_ETCD: Row = Row { stage: Stage::Etcd, network: true, ..PAIR };
const IN_ETCD_STAY: Row = Row { expect: |_| Expect::Stay, lossless: true, ..IN_ETCD };
const WITNESSED: Row = Row { stage: Stage::Witness, network: true, ..PAIR };
const WITNESSED_STAY: Row = Row { expect: |_| Expect::Stay, lossless: true, ..WITNESSED };

fn kill_etcd(scene: &Scene) {
    scene.rig.etcd().kill(0);
}

fn start_etcd(scene: &Scene) {
    scene.rig.etcd().restart(0);
}

fn start_witness(scene: &Scene) {
    scene.rig.witness().start().unwrap();
}

pub const STORES: &[Row] = &[
    Row { name: "etcd: postmaster killed", fault: |scene| scene.primary().kill9().unwrap(), ..IN_ETCD },
    Row {
        name: "etcd: frozen for 1 s",
        fault: |scene| scene.rig.etcd().freeze(0, true),
        undo: |scene| scene.rig.etcd().freeze(0, false),
        hold_ms: 1000,
        bar: Some(UNNOTICED),
        ..IN_ETCD_STAY
    },
    Row {
        name: "etcd: frozen for 10 s",
        fault: |scene| scene.rig.etcd().freeze(0, true),
        undo: |scene| scene.rig.etcd().freeze(0, false),
        hold_ms: 10_000,
        ..IN_ETCD_STAY
    },
    Row { name: "etcd: killed, back after 6 s", fault: kill_etcd, undo: start_etcd, hold_ms: 6000, ..IN_ETCD_STAY },
    // Promoted as soon as etcd is back, and not before.
    Row {
        name: "etcd: killed, and the primary",
        expect: |_| Expect::Refuse,
        fault: |scene| {
            kill_etcd(scene);
            scene.primary().kill9().unwrap();
        },
        undo: start_etcd,
        hold_ms: 6000,
        ..IN_ETCD
    },
    Row {
        name: "etcd: one proxy cut off from it",
        fault: |scene| scene.net().cut_both("proxy1", ETCD),
        hold_ms: 8000,
        ..IN_ETCD_STAY
    },
    Row {
        name: "etcd: one proxy cut off from it, primary killed",
        fault: |scene| {
            scene.net().cut_both("proxy1", ETCD);
            scene.primary().kill9().unwrap();
        },
        ..IN_ETCD
    },
    Row {
        name: "etcd: killed for 6 s, keep_primary",
        stage: Stage::EtcdKept,
        fault: kill_etcd,
        undo: start_etcd,
        hold_ms: 6000,
        bar: Some(UNNOTICED),
        ..IN_ETCD_STAY
    },
    Row { name: "witness: postmaster killed", fault: |scene| scene.primary().kill9().unwrap(), ..WITNESSED },
    Row {
        name: "witness: away for 6 s",
        fault: |scene| scene.rig.witness().kill9_all().unwrap(),
        undo: start_witness,
        hold_ms: 6000,
        bar: Some(UNNOTICED),
        ..WITNESSED_STAY
    },
    Row {
        name: "witness: away, and the primary",
        expect: |_| Expect::Refuse,
        fault: |scene| {
            scene.rig.witness().kill9_all().unwrap();
            scene.primary().kill9().unwrap();
        },
        undo: start_witness,
        hold_ms: 6000,
        ..WITNESSED
    },
    Row {
        name: "witness: one proxy cut off from most voters",
        fault: |scene| {
            scene.net().cut_both("proxy1", WITNESS);
            scene.net().cut_both("proxy1", &scene.standbys[0]);
        },
        hold_ms: 8000,
        ..WITNESSED_STAY
    },
    // It forgets who had its lock, while the change needs it.
    Row {
        name: "witness: restarted during a failover",
        fault: |scene| {
            scene.primary().kill9().unwrap();
            pause(100);
            scene.rig.witness().stop(Shutdown::Immediate).unwrap();
            start_witness(scene);
        },
        ..WITNESSED
    },
    Row {
        name: "two proxies: a standby restarted during a failover",
        stage: Stage::TwoProxies,
        fault: |scene| {
            scene.primary().kill9().unwrap();
            pause(100);
            scene.standby(1).stop(Shutdown::Fast).unwrap();
            scene.standby(1).start().unwrap();
        },
        ..PAIR
    },
];
