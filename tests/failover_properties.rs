//! The failover machine under arbitrary events, and against a small model of a cluster.
//!
//! `any_events_keep_the_promises`: whatever arrives, in any order, the promises hold. Seen from the
//! outside only, so that a defect in the machine's own checks cannot hide one.
//! `a_cluster_heals`: nodes are killed, frozen and cut off at random while the actions are carried
//! out on the model; the promises hold at every instant, and once the faults stop writes flow again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use pgregent::clock::Time;
use pgregent::config::FailoverMode;
use pgregent::failover::action::{Action, ActionId, Plan};
use pgregent::failover::event::{Command, Event, Outcome, Record};
use pgregent::failover::policy::NodePolicy;
use pgregent::failover::{Machine, Policy};
use pgregent::ids::{Epoch, Lsn, NodeId, SystemId, TimelineId};
use pgregent::topology::{Fact, NodeReport, Observation, ProbeFailure, ReceiverView, Role, Writes};
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

const NODES: u16 = 3;
const SYSTEM: SystemId = SystemId(7000);
const OTHER_SYSTEM: SystemId = SystemId(9999);

fn policy(mode: FailoverMode) -> Policy {
    let node = |i: u16| NodePolicy { name: name(i).into(), addresses: vec![address(i)], priority: 100 };
    Policy {
        mode,
        nodes: (0..NODES).map(node).collect(),
        fall: 3,
        rise: 2,
        min_gap: Duration::ZERO,
        max_per_hour: 1000,
        primary_start_timeout: Duration::from_secs(5),
        lag_bytes_max: 1 << 20,
        promote_timeout: Duration::from_secs(5),
    }
}

fn name(node: u16) -> String {
    format!("n{node}")
}

fn address(node: u16) -> String {
    format!("{}:5432", name(node))
}

/// Watches what goes in and out, and what was promised.
struct Watch {
    machine: Machine,
    now: Time,
    open: Vec<Action>,
    recorded: Option<Record>,
    promoted: HashMap<Epoch, NodeId>,
    sent: HashMap<NodeId, Time>,
    latest: HashMap<NodeId, Result<NodeReport, ProbeFailure>>,
    plan: Option<Plan>,
    /// The recorded system, or that of the first primary.
    system: Option<SystemId>,
    timeline_published: TimelineId,
    /// An operator asked for a failover and no new primary was published since.
    ordered: bool,
    /// The last primary that writes were open for.
    last_primary: Option<NodeId>,
    /// Fences at the time when writes last flowed.
    fences: Vec<u64>,
}

impl Watch {
    fn new(mode: FailoverMode) -> Self {
        let now = Time::ZERO + Duration::from_secs(1);
        Self {
            machine: Machine::new(policy(mode), now),
            now,
            open: Vec::new(),
            recorded: None,
            promoted: HashMap::new(),
            sent: HashMap::new(),
            latest: HashMap::new(),
            plan: None,
            system: None,
            timeline_published: TimelineId(0),
            ordered: false,
            last_primary: None,
            fences: Vec::new(),
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        match &event {
            Event::Observed(o) => self.note_report(o),
            Event::Command(Command::Failover { .. }) => self.ordered = true,
            _ => {}
        }
        let actions = self.machine.step(event, self.now);
        let halted = self.machine.summary().state == "halted";
        for action in &actions {
            let quiet = matches!(action, Action::Publish(_) | Action::Tell(_));
            assert!(quiet || !halted, "halted, but {action:?}");
            match action {
                Action::Publish(plan) => self.check_plan(plan),
                Action::Promote(_, node, epoch) => self.check_promotion(*node, *epoch),
                _ => {}
            }
            let answered =
                matches!(action, Action::Record(..) | Action::Detach(..) | Action::Promote(..) | Action::Repoint { .. });
            if answered {
                self.open.push(action.clone());
            }
        }
        actions
    }

    fn note_report(&mut self, observation: &Observation) {
        if let Ok(report) = &observation.outcome {
            let last = self.sent.entry(observation.node).or_insert(report.sent_at);
            if report.sent_at < *last {
                return; // overtaken by a later report
            }
            *last = report.sent_at;
        }
        self.latest.insert(observation.node, observation.outcome.clone());
    }

    fn check_plan(&mut self, plan: &Plan) {
        let before = self.plan.as_ref();
        assert!(before.is_none_or(|b| plan.epoch >= b.epoch), "the epoch fell");
        assert!(before != Some(plan), "published twice");
        let primaries = plan.nodes.iter().filter(|n| n.role == Role::Primary).count();
        assert!(primaries <= 1);
        assert_eq!(plan.writes == Writes::Open, plan.primary.is_some());
        let moved = before.is_none_or(|b| b.primary != plan.primary);
        if let Some(primary) = plan.primary
            && moved
        {
            if let Some(Ok(report)) = self.latest.get(&primary) {
                assert!(!report.in_recovery, "writes to a node in recovery");
                let ours = *self.system.get_or_insert(report.system_id);
                assert_eq!(report.system_id, ours, "writes to another system (I2)");
                assert!(report.timeline >= self.timeline_published, "writes to an older timeline (I2)");
            }
            let timeline = self.machine.summary().timeline.unwrap();
            assert!(timeline >= self.timeline_published, "the timeline fell");
            self.timeline_published = timeline;
            let record = self.recorded.as_ref().unwrap();
            assert_eq!(record.primary, name(primary.0), "writes to a node that is not recorded");
            if let Some(old) = self.last_primary.filter(|old| *old != primary) {
                let (was, is) = (self.fences[old.index()], plan.nodes[old.index()].fence);
                assert!(is > was, "the old primary was not cut");
            }
            self.last_primary = Some(primary);
            self.ordered = false;
        }
        self.plan = Some(plan.clone());
        if plan.primary.is_some() {
            self.fences = plan.nodes.iter().map(|n| n.fence).collect();
        }
    }

    fn check_promotion(&mut self, node: NodeId, epoch: Epoch) {
        let record = self.recorded.as_ref().unwrap();
        assert_eq!((record.epoch, record.primary.as_str()), (epoch, name(node.0).as_str()), "not recorded");
        let before = self.promoted.insert(epoch, node);
        assert!(before.is_none_or(|b| b == node), "two promotions in one epoch");
        let plan = self.plan.as_ref().unwrap();
        assert!(plan.primary.is_none(), "promotion while writes flow");
        if self.ordered {
            return;
        }
        if let Some(old) = self.last_primary
            && let Some(Ok(report)) = self.latest.get(&old)
        {
            let s = self.machine.summary();
            let ours = Some(report.system_id) == s.system_id && Some(report.timeline) >= s.timeline;
            let claims = !report.in_recovery && ours;
            assert!(!claims || old == node, "promotion while the primary answers");
        }
    }

    /// Answers an open action; the store's answer is what `recorded` is made of.
    fn answer(&mut self, at: usize, outcome: Outcome) -> Vec<Action> {
        let action = self.open.remove(at);
        // The store writes in the order of asking, whatever the order of its answers.
        if let (Action::Record(_, record), false) = (&action, matches!(outcome, Outcome::Failed(_)))
            && self.recorded.as_ref().is_none_or(|r| r.epoch <= record.epoch)
        {
            self.recorded = Some(record.clone());
        }
        self.step(Event::ActionDone { id: id_of(&action), outcome })
    }
}

fn id_of(action: &Action) -> ActionId {
    match action {
        Action::Record(id, _) | Action::Detach(id, ..) | Action::Promote(id, ..) | Action::Repoint { id, .. } => *id,
        other => panic!("{other:?} has no answer"),
    }
}

#[derive(Clone, Debug)]
enum Op {
    Recalled(Option<(u16, u64, u32)>),
    Report { node: u16, report: NodeReport, early: u64 },
    Fail(u16, ProbeFailure),
    Fact(u16, u8),
    Answer { which: usize, good: bool, lsn: u64 },
    Pass(u64),
    Tick,
    Command(Command),
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES;
    prop_oneof![
        1 => proptest::option::of((node.clone(), 1..5u64, 1..3u32)).prop_map(Op::Recalled),
        12 => (node.clone(), report(), 0..200u64).prop_map(|(node, report, early)| Op::Report { node, report, early }),
        8 => (node.clone(), failure()).prop_map(|(node, failure)| Op::Fail(node, failure)),
        1 => (node.clone(), 0..5u8).prop_map(|(node, kind)| Op::Fact(node, kind)),
        12 => (any::<usize>(), prop::bool::weighted(0.85), 0..3000u64)
            .prop_map(|(which, good, lsn)| Op::Answer { which, good, lsn }),
        4 => prop_oneof![0..100u64, 0..3000u64, 0..20_000u64].prop_map(Op::Pass),
        2 => Just(Op::Tick),
        1 => command(node).prop_map(Op::Command),
    ]
}

fn command(node: std::ops::Range<u16>) -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => Just(Command::Pause),
        3 => Just(Command::Resume),
        2 => proptest::option::of(node).prop_map(|to| Command::Failover { to: to.map(NodeId) }),
    ]
}

fn failure() -> impl Strategy<Value = ProbeFailure> {
    prop_oneof![
        4 => Just(ProbeFailure::Refused),
        2 => Just(ProbeFailure::TimedOut),
        2 => Just(ProbeFailure::SessionLost),
        1 => Just(ProbeFailure::Unreachable),
        1 => Just(ProbeFailure::StartingUp),
        1 => Just(ProbeFailure::ShuttingDown),
        1 => Just(ProbeFailure::TooManyConnections),
        1 => Just(ProbeFailure::Rejected("no".to_owned())),
    ]
}

fn report() -> impl Strategy<Value = NodeReport> {
    let receiver = proptest::option::of((prop::bool::weighted(0.8), 0..=NODES, 0..8000u64));
    let bits = (prop::bool::weighted(0.65), prop::bool::weighted(0.05), prop::bool::weighted(0.04));
    (bits, 1..4u32, 0..3000u64, receiver, 0..3i64).prop_map(|(bits, timeline, lsn, receiver, incarnation)| NodeReport {
        sent_at: Time::ZERO,
        system_id: if bits.2 { OTHER_SYSTEM } else { SYSTEM },
        in_recovery: bits.0,
        timeline: TimelineId(timeline),
        flush_lsn: Lsn(lsn),
        replay_lsn: Lsn(lsn),
        replay_paused: bits.1,
        receiver: receiver.filter(|_| bits.0).map(|(streaming, from, age)| ReceiverView {
            streaming,
            upstream: address(from),
            last_message_age: Duration::from_millis(age),
        }),
        incarnation,
        version_num: 150_000,
    })
}

fn mode() -> impl Strategy<Value = FailoverMode> {
    prop_oneof![3 => Just(FailoverMode::Automatic), 1 => Just(FailoverMode::Manual), 1 => Just(FailoverMode::Follow)]
}

fn play(watch: &mut Watch, op: Op) {
    let observed = |watch: &Watch, node: u16, outcome| {
        Event::Observed(Observation { node: NodeId(node), at: watch.now, outcome })
    };
    let event = match op {
        Op::Recalled(record) => {
            let record = record.map(|(node, epoch, timeline)| Record {
                system_id: SYSTEM,
                epoch: Epoch(epoch),
                primary: name(node),
                timeline: TimelineId(timeline),
            });
            if watch.machine.holds().contains(&pgregent::failover::Hold::NotRecalled) {
                watch.recorded.clone_from(&record);
                watch.system = record.as_ref().map(|r| r.system_id);
                watch.timeline_published = record.as_ref().map_or(TimelineId(0), |r| r.timeline);
            }
            Event::Recalled(record)
        }
        Op::Report { node, report, early } => {
            let sent_at = watch.now - Duration::from_millis(early);
            observed(watch, node, Ok(NodeReport { sent_at, ..report }))
        }
        Op::Fail(node, failure) => observed(watch, node, Err(failure)),
        Op::Fact(node, kind) => Event::Fact(
            [Fact::ConnectRefused, Fact::ConnectTimedOut, Fact::BackendLost, Fact::ShutdownSaid, Fact::WriteRefused]
                [usize::from(kind)](NodeId(node)),
        ),
        Op::Answer { which, good, lsn } => {
            if !watch.open.is_empty() {
                let at = which % watch.open.len();
                let outcome = match (&watch.open[at], good) {
                    (_, false) => Outcome::Failed("random".to_owned()),
                    (Action::Detach(..), true) => Outcome::Detached { flush_lsn: Lsn(lsn), replay_lsn: Lsn(lsn) },
                    (_, true) => Outcome::Done,
                };
                watch.answer(at, outcome);
            }
            return;
        }
        Op::Pass(ms) => {
            watch.now = watch.now + Duration::from_millis(ms);
            Event::Tick
        }
        Op::Tick => Event::Tick,
        Op::Command(command) => Event::Command(command),
    };
    watch.step(event);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_events_keep_the_promises(mode in mode(), recalled in any::<bool>(), ops in prop::collection::vec(op(), 0..150)) {
        let mut watch = Watch::new(mode);
        if recalled {
            play(&mut watch, Op::Recalled(Some((0, 1, 1))));
        }
        for op in ops {
            play(&mut watch, op);
        }
    }
}

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
        play(&mut watch, Op::Recalled(Some((0, 1, 1))));
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
            let event = Event::Observed(Observation { node: NodeId(node), at: self.watch.now, outcome });
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
            version_num: 150_000,
        })
    }

    /// Carries out the first open action.
    fn perform(&mut self) -> Outcome {
        let failed = || Outcome::Failed("model".to_owned());
        let action = self.watch.open[0].clone();
        let (Action::Detach(_, node, _) | Action::Promote(_, node, _) | Action::Repoint { node, .. }) = action else {
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
