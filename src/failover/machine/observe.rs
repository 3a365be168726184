//! What a probe's outcome changes in the machine's view of one node.
//!
//! Invariants: only here does health move because of a probe; the present primary is never called
//! down here, because that needs the standbys' opinion (`stable`).

use super::Machine;
use crate::clock::Time;
use crate::failover::action::{Action, Level};
use crate::failover::node_state::{Condition, Quarantine};
use crate::failover::policy::PROBE_NOW_GAP;
use crate::failover::state::State;
use crate::ids::{Lsn, NodeId};
use crate::topology::{Health, Observation};

impl Machine {
    pub(super) fn observe(&mut self, observation: &Observation) {
        let id = observation.node;
        if id.index() >= self.nodes.len() || self.overtaken(observation) {
            return;
        }
        let (before, first_trouble) = (self.node(id).health, self.node(id).trouble_since.is_none());
        let policy = &self.policy;
        self.nodes[id.index()].observe(observation, policy);
        match &observation.outcome {
            Ok(_) => {
                self.note_line(id);
                self.note_position(id);
                self.note_sync(id);
                self.know_fence(id);
            }
            Err(_) => self.note_trouble(id, first_trouble),
        }
        let guarded = matches!(self.state, State::Stable { primary, .. } if primary == id);
        if !guarded && self.node(id).evidence(&self.policy, self.now).is_some() && !self.node(id).restarting() {
            self.node_mut(id).mark_down();
        }
        self.tell_health(id, before);
    }

    /// A report that was asked for before the last one says nothing new.
    fn overtaken(&self, observation: &Observation) -> bool {
        let last = self.node(observation.node).report.as_ref().map(|r| r.sent_at);
        let this = observation.outcome.as_ref().ok().map(|r| r.sent_at);
        matches!((this, last), (Some(this), Some(last)) if this < last)
    }

    fn note_position(&mut self, id: NodeId) {
        let node = self.node(id);
        let Some(report) = node.live_report() else { return };
        let ours = self.system_id == Some(report.system_id) && self.timeline == node.timeline;
        let follows = report.receiver.as_ref().is_some_and(|r| r.streaming);
        let asked = node.repoints.under_way.is_some() || !matches!(self.state, State::Stable { .. });
        let flush_lsn = report.flush_lsn;
        if ours && self.strayed(id).is_none() && self.left_line(id, report).is_none() {
            self.highest = self.highest.max(flush_lsn);
        }
        if follows && !asked {
            self.node_mut(id).detached = false;
        }
    }

    fn note_trouble(&mut self, id: NodeId, first: bool) {
        let node = self.node(id);
        // Silence is probed for again by the monitor's own schedule; hard evidence wants an answer now.
        let hard = matches!(node.condition, Condition::Failing { hard, .. } if hard > 0);
        if hard || node.condition == Condition::Stopping {
            self.want_probe(id);
        }
        let primary = self.state.expected()[0] == Some(id);
        if primary {
            // A node that stops has no recovery to estimate: its last checkpoint takes what it takes.
            let recovers = self.node(id).condition == Condition::Starting;
            let limit = recovers.then(|| self.restart_limit(id));
            self.node_mut(id).restart_limit = limit;
        }
        if primary && first {
            self.want_observers(id);
        }
    }

    /// Wants fresh reports from all who may still hear from the primary.
    pub(super) fn want_observers(&mut self, primary: NodeId) {
        for other in self.policy.ids().filter(|o| *o != primary) {
            if self.node(other).live_report().is_some() {
                self.want_probe(other);
            }
        }
    }

    fn tell_health(&mut self, id: NodeId, before: Health) {
        let after = self.node(id).health;
        let name = self.name(id).clone();
        match (before, after) {
            (Health::Healthy, Health::Suspect) => {
                self.tell(Level::Info, "node_suspect", Some(id), format!("{name} missed a probe"));
            }
            (Health::Down, Health::Down) | (Health::Suspect, Health::Suspect) => {}
            (_, Health::Down) => {
                self.tell(Level::Warn, "node_down", Some(id), format!("{name} is down"));
            }
            (Health::Down, Health::Healthy | Health::Suspect) => {
                self.tell(Level::Info, "node_up", Some(id), format!("{name} answers again"));
            }
            _ => {}
        }
    }

    /// Asks for a probe of this node, at once or when the rate limit allows.
    pub(super) fn want_probe(&mut self, id: NodeId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(id.index()) else { return };
        let earliest = node.probe_asked.map_or(now, |asked| (asked + PROBE_NOW_GAP).max(now));
        node.probe_due.get_or_insert(earliest);
    }

    /// Turns due wishes into actions.
    pub(super) fn ask_probes(&mut self) {
        let now = self.now;
        for id in self.policy.ids() {
            let node = self.node_mut(id);
            if node.probe_due.is_some_and(|due| due <= now) {
                node.probe_due = None;
                node.probe_asked = Some(now);
                self.actions.push(Action::ProbeNow(id));
            }
        }
    }

    pub(super) fn next_probe(&self) -> impl Iterator<Item = Time> + '_ {
        self.nodes.iter().filter_map(|n| n.probe_due)
    }

    /// Finds out which answering nodes must not be used, and tells what is new.
    pub(super) fn quarantine(&mut self) {
        for id in self.policy.ids() {
            let node = self.node(id);
            if node.live_report().is_none() {
                continue;
            }
            let (before, after) = (node.quarantine, self.quarantine_of(id));
            if before == after {
                continue;
            }
            self.node_mut(id).quarantine = after;
            if let Some(why) = after {
                self.cut(id);
                if matches!(why, Quarantine::SecondPrimary(_)) && !self.stood_by_now() && !self.passed_over(id) {
                    continue; // told as split_brain
                }
                let text = format!("{}{}", self.quarantine_text(id, why), self.excess_text(id));
                self.tell(Level::Error, "quarantined", Some(id), text);
            }
        }
    }

    fn quarantine_of(&self, id: NodeId) -> Option<Quarantine> {
        let report = self.node(id).live_report()?;
        if self.system_id.is_some_and(|ours| ours != report.system_id) {
            return Some(Quarantine::OtherSystem(report.system_id));
        }
        if report.in_recovery {
            return self.strayed(id).and(self.node(id).timeline).map(Quarantine::OtherLine);
        }
        let known = self.timeline?;
        if report.timeline < known {
            return Some(Quarantine::OlderPrimary(report.timeline));
        }
        if self.left_line(id, report).is_some() {
            return Some(Quarantine::OtherLine(report.timeline));
        }
        if self.passed_over(id) {
            return Some(Quarantine::SecondPrimary(report.timeline));
        }
        // Before the machine has halted, a second claim may still turn out to be the successor.
        let leased = self.standing.is_some() && self.state.expected()[0].is_some_and(|p| self.may_route(p));
        let settled = self.state.halted() || leased || self.stood_by_now();
        let surprise = settled && !self.state.expected().contains(&Some(id));
        surprise.then_some(Quarantine::SecondPrimary(report.timeline))
    }

    /// What it has that the primary never had; a number that grows, so told once.
    fn excess_text(&self, id: NodeId) -> String {
        let node = self.node(id);
        if !matches!(node.quarantine, Some(Quarantine::OlderPrimary(_) | Quarantine::OtherLine(_))) {
            return String::new();
        }
        let parting = self.line.as_ref().zip(node.ancestry.known()).and_then(|(line, own)| own.parting(line));
        let reached = node.report.as_ref().map_or(Lsn(0), |r| if r.in_recovery { r.replay_lsn } else { r.flush_lsn });
        let Some(parting) = parting.filter(|parting| reached > parting.at) else { return String::new() };
        format!(" ({} bytes of its WAL are its own)", reached.bytes_since(parting.at))
    }

    pub(super) fn quarantine_text(&self, id: NodeId, why: Quarantine) -> String {
        let name = self.name(id);
        match why {
            Quarantine::OtherSystem(has) => format!("{name} belongs to another system ({has})"),
            Quarantine::OlderPrimary(has) => {
                format!("{name} accepts writes on the old timeline {has}: it needs pg_rewind")
            }
            Quarantine::OtherLine(has) => {
                let node = self.node(id);
                let accepts = node.report.as_ref().is_some_and(|r| !r.in_recovery);
                let is = if accepts { "accepts writes" } else { "is" };
                let is = format!("{name} {is} on timeline {has} of another line than the primary's");
                let parting = node.ancestry.known().and_then(|history| self.parting_text(history));
                parting.map_or_else(|| is.clone(), |parting| format!("{is}: {parting}"))
            }
            Quarantine::SecondPrimary(has) if self.denied(id) => {
                format!("{name} accepts writes on timeline {has} although Patroni does not call it the leader")
            }
            Quarantine::SecondPrimary(has) if self.passed_over(id) => {
                let late = "its promotion took effect after it had been given up and another node was primary";
                let cure = if Some(has) == self.timeline { "a new copy" } else { "pg_rewind" };
                format!("{name} accepts writes on timeline {has}: {late}; it needs {cure}")
            }
            Quarantine::SecondPrimary(has) => {
                format!("{name} accepts writes on timeline {has} although another node is primary")
            }
        }
    }
}
