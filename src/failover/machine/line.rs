//! The line of the recorded primary: which nodes belong to it, and which left it.
//!
//! Two nodes may have one timeline number and not one history; whoever left the recorded primary's line lacks all that
//! was acknowledged on its timeline, whatever number it is on. So the record and the histories together say who is
//! right, and such a node is nobody's successor, no candidate and no place for reads. Invariants: the line is known only
//! from the recorded primary's own report, and only of the timeline that is known as its; where it or a node's history
//! is not known, numbers alone decide. In follow mode the other tool says who is primary, whatever the histories say.
//! Absent on purpose: asking for histories (`monitor`), and positions beyond the last report.

use super::Machine;
use crate::config::FailoverMode;
use crate::failover::candidate::Candidate;
use crate::failover::node_state::NodeState;
use crate::failover::state::State;
use crate::ids::NodeId;
use crate::topology::{Ancestry, History, NodeReport, Switch};
use std::sync::Arc;

impl Machine {
    /// Learns the line from a report of the node that is recorded as primary.
    pub(super) fn note_line(&mut self, id: NodeId) {
        let primary = match self.state {
            State::Starting { .. } => self.recorded_primary(),
            // Not recorded yet.
            State::Adopting { .. } => None,
            _ => self.state.expected()[0],
        };
        if self.line.is_none() && primary == Some(id) {
            self.line = self.line_of(id);
        }
    }

    /// The node's history, where it is primary of the known timeline.
    pub(super) fn line_of(&self, id: NodeId) -> Option<Arc<History>> {
        let report = self.node(id).live_report().filter(|r| !r.in_recovery && self.timeline == Some(r.timeline))?;
        report.ancestry.known().filter(|_| self.system_id == Some(report.system_id)).cloned()
    }

    /// Where a node that is out of recovery on no older timeline left the line: it is nobody's successor.
    pub(super) fn left_line(&self, id: NodeId, report: &NodeReport) -> Option<Switch> {
        let (line, history) = (self.line.as_ref()?, report.ancestry.known()?);
        let newer = self.timeline.is_some_and(|known| report.timeline > known);
        let older = self.timeline.is_some_and(|known| report.timeline < known);
        // Whom the record names was promoted from there, as far as anybody could tell.
        let named = newer && self.recorded_primary() == Some(id);
        let apart = report.in_recovery || older || self.policy.mode == FailoverMode::Follow || named;
        let descends = history.descends_from(line) || line.descends_from(history);
        if apart || descends { None } else { history.parting(line) }
    }

    /// Whether a node whose claim is on a newer timeline came there through the known one, as far as can be told.
    pub(super) fn comes_from_known(&self, id: NodeId) -> bool {
        let history = self.node(id).report.as_ref().and_then(|report| report.ancestry.known());
        let (Some(history), Some(known)) = (history, self.timeline) else { return true };
        let named = self.recorded_primary() == Some(id) || self.policy.mode == FailoverMode::Follow;
        named || history.passes(known)
    }

    /// Where a node in recovery left the line, if it has replayed anything beyond that.
    pub(super) fn strayed(&self, id: NodeId) -> Option<Switch> {
        let node = self.node(id);
        let report = node.report.as_ref().filter(|report| report.in_recovery)?;
        let (line, history) = (self.line.as_ref()?, node.ancestry.known()?);
        if history.descends_from(line) {
            return None;
        }
        history.parting(line).filter(|parting| report.replay_lsn > parting.at)
    }

    /// Whether it is about to be known if the node belongs to the line.
    pub(super) fn ancestry_due(&self, node: &NodeState) -> bool {
        let primary = match self.state {
            State::Stable { primary, .. } if self.line.is_none() => self.node(primary).report.as_ref(),
            _ => None,
        };
        let line_due = primary.is_some_and(|report| report.ancestry == Ancestry::Asked);
        node.ancestry == Ancestry::Asked || (line_due && node.timeline == self.timeline)
    }

    /// It has replayed nothing that the primary's timeline lacks. Without histories that is known only of the timeline
    /// that was left last: a standby on one before may have parted from that.
    pub(super) fn shares_history(&self, node: &NodeState) -> bool {
        let Some(replayed) = node.report.as_ref().map(|r| r.replay_lsn) else { return false };
        match (&self.line, node.ancestry.known()) {
            (Some(line), Some(history)) => history.parting(line).is_none_or(|parting| replayed <= parting.at),
            _ => self.fork.is_some_and(|(left, end)| node.timeline == Some(left) && replayed <= end),
        }
    }

    /// For people: how the two histories part.
    pub(super) fn parting_text(&self, history: &History) -> Option<String> {
        let line = self.line.as_ref()?;
        let parting = history.parting(line)?;
        let from = parting.timeline;
        let way = match (history.next(from), line.next(from)) {
            (Some((at, next)), Some((then, other))) => {
                format!("it left timeline {from} at {at} for {next}, the primary at {then} for {other}")
            }
            (Some((at, next)), None) => {
                format!("it left timeline {from} at {at} for {next}, the primary is still on that")
            }
            (None, Some((at, next))) => {
                format!("it stays on timeline {from}, which the primary left at {at} for {next}")
            }
            (None, None) => "the two have nothing in common".to_owned(),
        };
        let cure = if history.timeline() == line.timeline() {
            "it needs a new copy, since pg_rewind looks at the numbers only"
        } else {
            "it needs pg_rewind"
        };
        Some(format!("{way}: {cure}"))
    }

    /// Marks the candidates that histories speak against.
    pub(super) fn compare_histories(&self, candidates: &mut [Candidate]) {
        for candidate in candidates {
            candidate.disputed = self.disputed(candidate.node);
            let history =
                self.node(candidate.node).ancestry.known().filter(|_| Some(candidate.timeline) >= self.timeline);
            let (Some(history), Some(line)) = (history, &self.line) else { continue };
            candidate.parted = history.parting(line).filter(|_| !history.descends_from(line));
        }
    }

    /// The recorded timeline may be the one before the promotion that the record names, as long as nobody here has seen a
    /// primary: then a standby on a newer one may have what those on the recorded one lack.
    fn beyond_record(&self, id: NodeId) -> bool {
        let on = |id: NodeId| self.node(id).timeline.filter(|_| self.is_standby(id));
        !self.primary_seen
            && on(id).is_some_and(|own| Some(own) == self.timeline)
            && self.policy.ids().any(|other| on(other) > self.timeline)
    }

    /// The line is not known, and standbys on its timeline have several histories of that: one of them is wrong.
    pub(super) fn disputed(&self, id: NodeId) -> bool {
        if self.beyond_record(id) {
            return true;
        }
        let standby = |id: NodeId| {
            let node = self.node(id);
            let there = self.is_standby(id) && node.timeline == self.timeline;
            node.ancestry.known().filter(|_| there && self.line.is_none())
        };
        standby(id).is_some_and(|own| self.policy.ids().filter_map(standby).any(|other| other != own))
    }
}
