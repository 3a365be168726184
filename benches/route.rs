//! What choosing a node costs, with one primary and two or fifteen standbys, by every balance algorithm.
//!
//! Absent on purpose: loading the snapshot from the reader (one atomic load, measured with it below).

use criterion::Criterion;
use pgregent::clock::Time;
use pgregent::ids::{Epoch, NodeId};
use pgregent::route::{BALANCES, Balance, Balancing, Dice, Share, Standings, Wishes, choose};
use pgregent::sql::Access;
use pgregent::topology::{Floor, Health, Role, Topology, Writes, topology_channel};
use std::hint::black_box;
use std::time::Duration;

const NOW: Time = Time::from_nanos(90_000_000_000);
const SLOW_START: Duration = Duration::from_secs(10);
/// When the standbys are fresh as of.
const FRESH: Time = Time::from_nanos(1_000_000);

fn topology(nodes: usize) -> Topology {
    let names: Vec<_> = (1..=nodes).map(|number| format!("pg{number}").into()).collect();
    let mut topology = Topology::starting(&names);
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

fn balancing(algorithm: &'static dyn Balance) -> Balancing {
    let nodes = [Share { weight: 100, local: true }; 16];
    Balancing { algorithm, nodes: nodes.into(), slow_start: SLOW_START }
}

/// All of them measured a moment ago.
fn standings(nodes: usize) -> Standings {
    let standings = Standings::new(nodes);
    for (node, standing) in standings.iter() {
        standing.answered(Duration::from_micros(900 + 10 * u64::from(node.0)), NOW - Duration::from_millis(5));
        (0..3 + node.0 % 3).for_each(|_| standing.begin());
    }
    standings
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let (topology, many) = (topology(3), topology(16));
    let standings = standings(16);
    let vitals = |node: NodeId| standings.of(node).vitals(black_box(NOW), SLOW_START);
    let wishes = |access, flushed| Wishes { floor: Floor { flushed, ..Floor::default() }, ..Wishes::new(access) };
    let mut dice = Dice::new(7);

    let mut group = criterion.benchmark_group("route");
    let mut case = |name: &str, topology: &Topology, wishes: Wishes, algorithm| {
        let balancing = balancing(algorithm);
        group.bench_function(name, |bench| {
            bench.iter(|| choose(black_box(&wishes), black_box(topology), &balancing, vitals, &mut dice));
        });
    };
    case("write", &topology, wishes(Access::Write, FRESH), BALANCES[0]);
    for balance in BALANCES {
        case(&format!("read_{:?}", balance.kind()), &topology, wishes(Access::Read, FRESH), *balance);
        case(&format!("read_{:?}_of_16", balance.kind()), &many, wishes(Access::Read, FRESH), *balance);
    }
    let later = Time::from_nanos(FRESH.as_nanos() + 1);
    case("read_not_fresh", &topology, wishes(Access::Read, later), BALANCES[0]);

    let (_publisher, reader) = topology_channel(topology.clone());
    let read = wishes(Access::Read, FRESH);
    group.bench_function("read_with_snapshot", |bench| {
        let balancing = balancing(BALANCES[0]);
        bench.iter(|| choose(black_box(&read), &reader.load(), &balancing, vitals, &mut dice));
    });
    group.bench_function("record_an_answer", |bench| {
        let standing = standings.of(NodeId(1));
        bench.iter(|| standing.answered(black_box(Duration::from_millis(1)), black_box(NOW)));
    });
    group.finish();
    criterion.final_summary();
}
