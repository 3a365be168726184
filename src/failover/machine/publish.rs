//! The end of a step: the plan if it changed, probes that are due, the next alarm.
//!
//! Invariants: a plan is published before any other action of its step is started, so that the data
//! plane stops before nodes change; nothing is published twice.

use super::Machine;
use crate::clock::Time;
use crate::failover::action::{Action, NodePlan, Plan};
use crate::failover::node_state::Condition;
use crate::failover::policy::{
    DEMOTED_GRACE, DETACH_SPAN, HELD_SPAN, HOUR, PROMOTE_PENALTY, RECORD_SPAN, START_GRACE, UNLEASED_SPAN, VETO_PENALTY,
};
use crate::failover::state::{Flow, Outage, State};
use crate::ids::NodeId;
use crate::topology::{Health, Role, Writes};

impl Machine {
    pub(super) fn finish(&mut self) {
        let oldest = self.now - HOUR;
        while self.failovers.front().is_some_and(|at| *at < oldest) {
            self.failovers.pop_front();
        }
        self.quarantine();
        self.note_lease();
        let plan = self.plan();
        if self.published.as_ref() != Some(&plan) {
            self.actions.insert(0, Action::Publish(plan.clone()));
            self.published = Some(plan);
        }
        self.claim_standing();
        if !self.state.halted() {
            self.ask_probes();
            self.set_alarm();
        }
    }

    fn set_alarm(&mut self) {
        let next = self.alarms().into_iter().filter(|at| *at > self.now && *at < Time::NEVER).min();
        let Some(next) = next else { return };
        if self.alarm != Some(next) {
            self.alarm = Some(next);
            self.actions.push(Action::WakeAt(next));
        }
    }

    fn alarms(&self) -> Vec<Time> {
        let mut alarms: Vec<Time> = self.next_probe().collect();
        alarms.push(self.store_retry_at);
        alarms.push(self.retry_at);
        alarms.extend(self.register_alarms());
        alarms.extend(self.reconnect_alarms());
        alarms.extend(self.word_alarms());
        match &self.state {
            State::Starting { since } => {
                alarms.extend([*since + START_GRACE, *since + HELD_SPAN]);
                alarms.extend(self.recorded_primary().into_iter().flat_map(|p| self.primary_alarms(p)));
            }
            State::Stable { primary, flow, .. } => {
                alarms.extend(self.primary_alarms(*primary));
                alarms.extend(self.standby_alarms());
                if let Flow::Doubted { since } = flow {
                    alarms.push(*since + HELD_SPAN);
                }
            }
            State::Lost { outage } => alarms.extend(self.lost_alarms(outage)),
            State::Following { .. } => {}
            State::Freezing { since, .. } => alarms.extend([*since + DETACH_SPAN, *since + UNLEASED_SPAN]),
            State::Preparing { since, step, .. } => alarms.push(*since + self.step_span(*step)),
            State::Promoting { since, .. } => alarms.push(*since + self.policy.promote_timeout),
            State::Adopting { since, .. } | State::Recording { since, .. } | State::Confirming { since, .. } => {
                alarms.push(*since + RECORD_SPAN);
            }
            State::Contested { since, .. } => alarms.extend([*since + UNLEASED_SPAN, *since + HELD_SPAN]),
        }
        alarms
    }

    fn lost_alarms(&self, outage: &Outage) -> Vec<Time> {
        let mut alarms = vec![outage.since + HELD_SPAN, outage.since + DEMOTED_GRACE];
        alarms.extend(outage.old.into_iter().flat_map(|old| self.primary_alarms(old)));
        alarms.extend(self.failovers.back().map(|at| *at + self.policy.min_gap));
        alarms.extend(self.failovers.front().map(|at| *at + HOUR));
        let failed = self.nodes.iter().filter_map(|n| n.promote_failed_at);
        alarms.extend(failed.map(|at| at + PROMOTE_PENALTY));
        alarms.extend(self.nodes.iter().filter_map(|n| n.vetoed_at).map(|at| at + VETO_PENALTY));
        alarms
    }

    fn plan(&self) -> Plan {
        let primary = match self.state {
            State::Stable { primary, flow: Flow::Open, .. } if self.may_route(primary) => Some(primary),
            _ => None,
        };
        let nodes = self.policy.ids().map(|id| self.node_plan(id, primary)).collect();
        Plan { epoch: self.epoch, primary, writes: self.writes(), nodes }
    }

    fn node_plan(&self, id: NodeId, primary: Option<NodeId>) -> NodePlan {
        let (role, readable, note) = self.assign(id, primary);
        let node = self.node(id);
        NodePlan { role, health: node.health, readable, fence: node.fence, note: note.map(Into::into) }
    }

    fn assign(&self, id: NodeId, primary: Option<NodeId>) -> (Role, bool, Option<String>) {
        let node = self.node(id);
        if primary == Some(id) {
            return (Role::Primary, matches!(node.health, Health::Healthy | Health::Suspect), None);
        }
        if let Some(why) = node.quarantine {
            return (Role::Unassigned, false, Some(self.quarantine_text(id, why)));
        }
        let Some(report) = node.report.as_ref().filter(|r| self.system_id == Some(r.system_id)) else {
            let note = match node.condition {
                Condition::Busy => Some("refuses the monitor".to_owned()),
                _ => self.unreadable(id),
            };
            return (Role::Unassigned, false, note);
        };
        if !report.in_recovery {
            return (Role::Unassigned, false, Some(self.former(id)));
        }
        match self.unreadable(id) {
            Some(note) => (Role::Standby, false, Some(note)),
            None => (Role::Standby, true, self.stranger_upstream(id)),
        }
    }

    /// Why a node that was out of recovery is not the primary of this plan.
    fn former(&self, id: NodeId) -> String {
        let outage = self.state.outage().filter(|o| o.old == Some(id));
        let trouble = self.unreadable(id).filter(|_| self.node(id).live_report().is_none());
        match &self.state {
            State::Stable { primary, .. } if *primary == id => trouble.unwrap_or_else(|| "writes are held".to_owned()),
            State::Adopting { primary, .. } | State::Confirming { primary, .. } | State::Following { primary, .. }
                if *primary == id =>
            {
                "becomes the primary".to_owned()
            }
            _ => match (outage, trouble) {
                (Some(outage), _) => format!("given up: {}", outage.cause.words()),
                (None, Some(trouble)) => trouble,
                (None, None) => "accepts writes, not known to be the primary".to_owned(),
            },
        }
    }

    fn stranger_upstream(&self, id: NodeId) -> Option<String> {
        let receiver = self.node(id).live_report()?.receiver.as_ref()?;
        self.policy
            .upstream(receiver)
            .is_none()
            .then(|| "streams from an address that is no configured node".to_owned())
    }

    fn writes(&self) -> Writes {
        let held = |why: String| Writes::Held { why: why.into() };
        let bounded = |since: Time, why: String| {
            if self.now.since(since) < HELD_SPAN { held(why) } else { Writes::Refused { why: why.into() } }
        };
        match &self.state {
            State::Starting { since } => bounded(*since, "the primary is not known yet".to_owned()),
            State::Stable { primary, flow: Flow::Open, .. } if self.may_route(*primary) => Writes::Open,
            State::Stable { flow: Flow::Open, .. } => bounded(
                self.unleased_since.unwrap_or(self.now),
                format!("this proxy has no lease for writes: {}", self.lack()),
            ),
            State::Stable { primary, flow: Flow::Doubted { since }, .. } => {
                bounded(*since, format!("primary {} refuses connections", self.name(*primary)))
            }
            State::Stable { primary, flow: Flow::Yielding { .. }, .. } => {
                held(format!("primary {} may have to be replaced", self.name(*primary)))
            }
            State::Stable { primary, flow: Flow::Restarting, .. } => {
                held(format!("primary {} restarts", self.name(*primary)))
            }
            State::Lost { outage } => bounded(outage.since, self.lost_text(outage)),
            State::Adopting { primary, .. } => held(format!("{} becomes the primary", self.name(*primary))),
            State::Following { primary, .. } => held(format!("{} becomes the primary", self.name(*primary))),
            State::Freezing { outage, .. } | State::Preparing { outage, .. } => held(self.lost_text(outage)),
            State::Recording { candidate, .. } | State::Promoting { candidate, .. } => {
                held(format!("{} becomes the primary", self.name(*candidate)))
            }
            State::Confirming { primary, .. } => held(format!("{} becomes the primary", self.name(*primary))),
            State::Contested { confirmed: false, since, .. } => bounded(*since, "a second primary was seen".to_owned()),
            State::Contested { confirmed: true, .. } => {
                Writes::Refused { why: "it is not clear which node is the primary".into() }
            }
        }
    }

    fn lost_text(&self, outage: &Outage) -> String {
        match outage.old {
            Some(old) => format!("primary {} was lost: {}", self.name(old), outage.cause.words()),
            None => "no primary is known".to_owned(),
        }
    }
}
