//! A small model of a cluster: the machine's actions are carried out on it, faults strike it.
//!
//! Invariants: all randomness comes from the caller, so that a failure can be repeated. Absent on
//! purpose: judgement (`watch`).

use crate::watch::{NODES, SYSTEM, Watch, address, name};
use pgregent::clock::Time;
use pgregent::config::FailoverMode;
use pgregent::failover::action::{Action, Plan};
use pgregent::failover::event::{Event, Outcome, Record};
use pgregent::ids::{Epoch, Lsn, NodeId, TimelineId};
use pgregent::topology::{NodeReport, Observation, ProbeFailure, ReceiverView, Role, Writes};
use proptest::prelude::*;
use std::time::Duration;

/// One model node: its WAL is the list of the writes it holds.
#[derive(Clone, Debug)]
struct Server {
    up: bool,
    frozen: bool,
    /// The proxy reaches it.
    near: bool,
    primary: bool,
    timeline: u32,
    wal: Vec<u32>,
    upstream: Option<u16>,
    streaming: bool,
    heard: Time,
    incarnation: i64,
}

impl Server {
    fn answers(&self) -> bool {
        self.up && self.near && !self.frozen
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Nothing,
    Kill(u16),
    Start(u16),
    Freeze(u16),
    Thaw(u16),
    Cut(u16),
    Join(u16),
    /// The next action fails, although it may have been carried out.
    Lie(bool),
}

fn fault() -> impl Strategy<Value = Fault> {
    let node = 0..NODES;
    prop_oneof![
        20 => Just(Fault::Nothing),
        3 => node.clone().prop_map(Fault::Kill),
        4 => node.clone().prop_map(Fault::Start),
        1 => node.clone().prop_map(Fault::Freeze),
        2 => node.clone().prop_map(Fault::Thaw),
        1 => node.clone().prop_map(Fault::Cut),
        2 => node.prop_map(Fault::Join),
        1 => any::<bool>().prop_map(Fault::Lie),
    ]
}

const TICK: Duration = Duration::from_millis(100);
/// Faults come once per second on average, so that a change is usually, not always, let finish.
const FAULT_TICKS: usize = 5;
const HEAL_TICKS: usize = 1200;

struct World {
    watch: Watch,
    servers: Vec<Server>,
    alarm: Option<Time>,
    lie: Option<bool>,
    next_write: u32,
    primaries_seen: Vec<NodeId>,
}

impl World {
    fn new() -> Self {
        let mut watch = Watch::new(FailoverMode::Automatic);
        let (epoch, timeline) = (Epoch(1), TimelineId(1));
        watch.recall(Some(Record {
            system_id: SYSTEM,
            epoch,
            primary: name(0),
            timeline,
            promoted: true,
            given_up: Vec::new(),
        }));
        let server = |i: u16| Server {
            up: true,
            frozen: false,
            near: true,
            primary: i == 0,
            timeline: 1,
            wal: Vec::new(),
            upstream: (i > 0).then_some(0),
            streaming: false,
            heard: watch.now,
            incarnation: 1,
        };
        let servers = (0..NODES).map(server).collect();
        Self { watch, servers, alarm: None, lie: None, next_write: 0, primaries_seen: Vec::new() }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Nothing => {}
            Fault::Kill(n) => self.servers[usize::from(n)].up = false,
            Fault::Start(n) => {
                let server = &mut self.servers[usize::from(n)];
                server.incarnation += i64::from(!server.up);
                server.up = true;
            }
            Fault::Freeze(n) => self.servers[usize::from(n)].frozen = true,
            Fault::Thaw(n) => self.servers[usize::from(n)].frozen = false,
            Fault::Cut(n) => self.servers[usize::from(n)].near = false,
            Fault::Join(n) => self.servers[usize::from(n)].near = true,
            Fault::Lie(happened) => self.lie = Some(happened),
        }
    }

    fn tick(&mut self) {
        self.watch.now = self.watch.now + TICK;
        self.write();
        self.replicate();
        for node in 0..NODES {
            let outcome = self.probe(node);
            let event =
                Event::Observed(Observation { node: NodeId(node), began: self.watch.now, at: self.watch.now, outcome });
            self.feed(event);
        }
        if self.alarm.is_some_and(|at| at <= self.watch.now) {
            self.alarm = None;
            self.feed(Event::Tick);
        }
        while !self.watch.open.is_empty() {
            let outcome = self.perform();
            let actions = self.watch.answer(0, outcome);
            self.note(&actions);
        }
    }

    fn feed(&mut self, event: Event) {
        let actions = self.watch.step(event);
        self.note(&actions);
    }

    fn note(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::WakeAt(at) => self.alarm = Some(*at),
                Action::Publish(Plan { primary: Some(p), .. }) if self.primaries_seen.last() != Some(p) => {
                    self.primaries_seen.push(*p);
                }
                _ => {}
            }
        }
    }

    /// A client writes through the proxy, another one straight to whatever is primary.
    fn write(&mut self) {
        let published = self.watch.plan.as_ref().and_then(|p| p.primary);
        for (index, server) in self.servers.iter_mut().enumerate() {
            let through = published.is_some_and(|p| p.index() == index) && server.near;
            let aside = self.next_write.is_multiple_of(7);
            if server.up && !server.frozen && server.primary && (through || aside) {
                server.wal.push(self.next_write);
            }
            self.next_write += 1;
        }
    }

    fn replicate(&mut self) {
        for index in 0..self.servers.len() {
            let server = &self.servers[index];
            let from = server.upstream.map(|u| self.servers[usize::from(u)].clone());
            let fits = from.as_ref().is_some_and(|f| f.timeline >= server.timeline && f.wal.starts_with(&server.wal));
            let server = &mut self.servers[index];
            let linked = server.up && !server.primary && from.as_ref().is_some_and(|f| f.up) && fits;
            if let Some(from) = from.filter(|f| linked && !f.frozen && !server.frozen) {
                server.wal = from.wal;
                server.timeline = from.timeline;
                server.heard = self.watch.now;
                server.streaming = true;
            }
            server.streaming &= linked;
        }
    }

    fn probe(&self, node: u16) -> Result<NodeReport, ProbeFailure> {
        let server = &self.servers[usize::from(node)];
        if !server.near || (server.up && server.frozen) {
            return Err(ProbeFailure::TimedOut);
        }
        if !server.up {
            return Err(ProbeFailure::Refused);
        }
        let lsn = Lsn(server.wal.len() as u64);
        let receiver = server.upstream.filter(|_| server.streaming).map(|u| ReceiverView {
            streaming: true,
            upstream: address(u),
            last_message_age: self.watch.now.since(server.heard),
        });
        Ok(NodeReport {
            sent_at: self.watch.now,
            system_id: SYSTEM,
            in_recovery: !server.primary,
            timeline: TimelineId(server.timeline),
            flush_lsn: lsn,
            replay_lsn: lsn,
            replay_paused: false,
            receiver,
            incarnation: server.incarnation,
            redo_lsn: Lsn(0),
            version_num: 150_000,
            ..NodeReport::default()
        })
    }

    /// Carries out the first open action.
    fn perform(&mut self) -> Outcome {
        let failed = || Outcome::Failed("model".to_owned());
        let action = self.watch.open[0].clone();
        let (Action::Detach(_, node, _)
        | Action::Promote(_, node, _)
        | Action::Repoint { node, .. }
        | Action::Reconnect { node, .. }) = action
        else {
            return if self.lie.take().is_some() { failed() } else { Outcome::Done };
        };
        let server = &mut self.servers[node.index()];
        let lie = self.lie.take();
        if !server.answers() || lie == Some(false) {
            return failed();
        }
        let lsn = Lsn(server.wal.len() as u64);
        let outcome = match action {
            Action::Detach(..) => {
                server.upstream = None;
                Outcome::Detached { flush_lsn: lsn, replay_lsn: lsn }
            }
            Action::Reconnect { .. } => {
                let upstream = server.upstream.filter(|_| server.streaming).map(usize::from);
                let alive = upstream.is_some_and(|u| self.servers[u].up && !self.servers[u].frozen);
                if alive { Outcome::Done } else { failed() }
            }
            Action::Repoint { upstream, .. } => {
                server.upstream = Some(upstream.0);
                Outcome::Done
            }
            _ if server.primary => failed(),
            _ => {
                server.primary = true;
                server.upstream = None;
                server.timeline += 1;
                Outcome::Done
            }
        };
        if lie.is_some() { failed() } else { outcome }
    }

    fn heal(&mut self) {
        self.lie = None;
        for node in 0..NODES {
            for fault in [Fault::Start(node), Fault::Thaw(node), Fault::Join(node)] {
                self.strike(fault);
            }
        }
        for _ in 0..HEAL_TICKS {
            self.tick();
        }
    }

    fn check_healed(&self) {
        let summary = self.watch.machine.summary();
        let known = summary.timeline.unwrap().0;
        let claimants = self.servers.iter().filter(|s| s.primary && s.timeline >= known).count();
        if summary.state == "halted" {
            assert!(claimants > 1, "halted for nothing: {summary:?}");
            return;
        }
        let plan = self.watch.plan.as_ref().unwrap();
        assert_eq!(plan.writes, Writes::Open, "{summary:?} {:?}", self.servers);
        let primary = &self.servers[plan.primary.unwrap().index()];
        assert!(primary.primary && primary.timeline == known);
        for (server, node) in self.servers.iter().zip(&plan.nodes) {
            if node.role == Role::Primary || server.primary {
                continue;
            }
            let fits = primary.wal.starts_with(&server.wal);
            assert_eq!(node.readable, fits, "{node:?} {server:?} {primary:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cluster_heals(faults in prop::collection::vec(fault(), 0..80)) {
        let mut world = World::new();
        for fault in faults {
            world.strike(fault);
            for _ in 0..FAULT_TICKS {
                world.tick();
            }
        }
        world.heal();
        world.check_healed();
    }
}

#[test]
fn the_model_sees_failovers() {
    let mut world = World::new();
    for node in [0, 1] {
        (0..20).for_each(|_| world.tick());
        world.strike(Fault::Kill(node));
        (0..20).for_each(|_| world.tick());
    }
    assert_eq!(world.primaries_seen, [NodeId(0), NodeId(1), NodeId(2)]);
    world.heal();
    world.check_healed();
}
