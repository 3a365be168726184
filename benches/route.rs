//! What choosing a node costs, with one primary and two standbys, by every balance algorithm.
//!
//! Absent on purpose: loading the snapshot from the reader (one atomic load, measured with it below).

use criterion::Criterion;
use pgregent::clock::Time;
use pgregent::ids::{Epoch, NodeId};
use pgregent::route::{BALANCES, Dice, Wishes, choose};
use pgregent::sql::Access;
use pgregent::topology::{Health, Role, Topology, Writes, topology_channel};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

/// When the standbys are fresh as of.
const FRESH: Time = Time::from_nanos(1_000_000);
const WEIGHTS: [u32; 3] = [100, 100, 100];

fn topology() -> Topology {
    let mut topology = Topology::starting(&["pg1".into(), "pg2".into(), "pg3".into()]);
    topology.epoch = Epoch(1);
    topology.primary = Some(NodeId(0));
    topology.writes = Writes::Open;
    for view in &mut topology.nodes {
        view.health = Health::Healthy;
        view.role = if view.id == NodeId(0) { Role::Primary } else { Role::Standby };
        view.accepts_reads = true;
        view.fresh_as_of = FRESH;
    }
    topology
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let topology = topology();
    let load = [AtomicUsize::new(3), AtomicUsize::new(5), AtomicUsize::new(4)];
    let load_of = |node: NodeId| load[node.index()].load(Ordering::Relaxed);
    let wishes = |access, floor| Wishes { access, split: true, floor, avoid: None };
    let mut dice = Dice::new(7);

    let mut group = criterion.benchmark_group("route");
    let mut case = |name: &str, wishes: Wishes, balance| {
        group.bench_function(name, |bench| {
            bench.iter(|| choose(black_box(&wishes), black_box(&topology), &WEIGHTS, balance, load_of, &mut dice));
        });
    };
    case("write", wishes(Access::Write, FRESH), BALANCES[0]);
    for balance in BALANCES {
        case(&format!("read_{:?}", balance.kind()), wishes(Access::Read, FRESH), *balance);
    }
    let later = Time::from_nanos(FRESH.as_nanos() + 1);
    case("read_not_fresh", wishes(Access::Read, later), BALANCES[0]);

    let (_publisher, reader) = topology_channel(topology.clone());
    let read = wishes(Access::Read, FRESH);
    group.bench_function("read_with_snapshot", |bench| {
        bench.iter(|| choose(black_box(&read), &reader.load(), &WEIGHTS, BALANCES[0], load_of, &mut dice));
    });
    group.finish();
    criterion.final_summary();
}
