//! Watches the machine from the outside: every promise is checked on what goes in and out.
//!
//! Absent on purpose: any look inside the machine, which could repeat its mistakes.

use pgregent::clock::Time;
use pgregent::config::FailoverMode;
use pgregent::failover::action::{Action, ActionId, Plan};
use pgregent::failover::event::{Command, Event, Outcome, Record};
use pgregent::failover::policy::{AilingPolicy, NodePolicy};
use pgregent::failover::{Hold, Machine, Policy};
use pgregent::ids::{Epoch, NodeId, SystemId, TimelineId};
use pgregent::topology::{NodeReport, Observation, ProbeFailure, Role, Sign, SignKind, WriteSign, Writes};
use std::collections::HashMap;
use std::time::Duration;

pub const NODES: u16 = 3;
pub const SYSTEM: SystemId = SystemId(7000);
pub const OTHER_SYSTEM: SystemId = SystemId(9999);

fn policy(mode: FailoverMode) -> Policy {
    let node = |i: u16| NodePolicy {
        name: name(i).into(),
        addresses: vec![address(i)],
        priority: 100,
        application_name: name(i).into(),
        local: false,
    };
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
        ailing: AilingPolicy::default(),
        means: Default::default(),
    }
}

pub fn name(node: u16) -> String {
    format!("n{node}")
}

pub fn address(node: u16) -> String {
    format!("{}:5432", name(node))
}

/// Watches what goes in and out, and what was promised.
pub struct Watch {
    pub machine: Machine,
    pub now: Time,
    pub open: Vec<Action>,
    recorded: Option<Record>,
    promoted: HashMap<Epoch, NodeId>,
    sent: HashMap<NodeId, Time>,
    latest: HashMap<NodeId, Result<NodeReport, ProbeFailure>>,
    /// Whose last sign was a bad one: of the write probe, of a fresh connection.
    ails: HashMap<NodeId, (bool, bool)>,
    pub plan: Option<Plan>,
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
    pub fn new(mode: FailoverMode) -> Self {
        let now = Time::ZERO + Duration::from_secs(1);
        Self {
            machine: Machine::new(policy(mode), now),
            now,
            open: Vec::new(),
            recorded: None,
            promoted: HashMap::new(),
            sent: HashMap::new(),
            latest: HashMap::new(),
            ails: HashMap::new(),
            plan: None,
            system: None,
            timeline_published: TimelineId(0),
            ordered: false,
            last_primary: None,
            fences: Vec::new(),
        }
    }

    pub fn recall(&mut self, record: Option<Record>) {
        if self.machine.holds().contains(&Hold::NotRecalled) {
            self.system = record.as_ref().map(|r| r.system_id);
            self.timeline_published = record.as_ref().map_or(TimelineId(0), |r| r.timeline);
            self.recorded.clone_from(&record);
        }
        self.step(Event::Recalled(record));
    }

    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match &event {
            Event::Observed(o) => self.note_report(o),
            Event::Signed(sign) => self.note_sign(sign),
            Event::Command(Command::Failover { .. }) => self.ordered = true,
            _ => {}
        }
        let actions = self.machine.step(event, self.now);
        let halted = self.machine.summary().state == "halted";
        for action in &actions {
            let quiet = matches!(action, Action::Publish(_) | Action::Tell(_) | Action::Claim(_) | Action::Keep(_));
            assert!(quiet || !halted, "halted, but {action:?}");
            match action {
                Action::Publish(plan) => self.check_plan(plan),
                Action::Promote(_, node, epoch) => self.check_promotion(*node, *epoch),
                _ => {}
            }
            let answered = matches!(
                action,
                Action::Record(..)
                    | Action::Detach(..)
                    | Action::Promote(..)
                    | Action::Repoint { .. }
                    | Action::Reconnect { .. }
                    | Action::Hook(..)
                    | Action::NameSync { .. }
                    | Action::FenceSql { .. }
            );
            if answered {
                self.open.push(action.clone());
            }
        }
        actions
    }

    fn note_sign(&mut self, sign: &Sign) {
        let (hangs, shut) = self.ails.entry(sign.node).or_default();
        match &sign.what {
            SignKind::Write(WriteSign::Pending | WriteSign::DiskFull) => *hangs = true,
            SignKind::Write(WriteSign::Committed) => *hangs = false,
            SignKind::Connect(outcome) => *shut = outcome.is_err(),
            SignKind::Write(_) | SignKind::Traffic | SignKind::Patroni(_) => {}
        }
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
            let (hangs, shut) = self.ails.get(&old).copied().unwrap_or_default();
            let claims = !report.in_recovery && ours && !hangs && !shut;
            assert!(!claims || old == node, "promotion while the primary answers");
        }
    }

    /// Answers an open action; the store's answer is what `recorded` is made of.
    pub fn answer(&mut self, at: usize, outcome: Outcome) -> Vec<Action> {
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
        Action::Record(id, _)
        | Action::Detach(id, ..)
        | Action::Promote(id, ..)
        | Action::Repoint { id, .. }
        | Action::Reconnect { id, .. }
        | Action::Hook(id, _)
        | Action::NameSync { id, .. }
        | Action::FenceSql { id, .. } => *id,
        other => panic!("{other:?} has no answer"),
    }
}
