//! The standbys: which of them may take reads, and which must be told where to stream from.
//!
//! Invariants: a standby that replayed past the point where it left the primary's line takes no
//! reads and is given no upstream; only standbys that we detached are repointed outside automatic mode, and none in follow
//! mode. Absent on purpose: lag, which the controller adds.

use super::Machine;
use crate::clock::Time;
use crate::config::FailoverMode;
use crate::failover::action::{Action, ActionId, Level};
use crate::failover::event::Outcome;
use crate::failover::node_state::{Condition, NodeState};
use crate::failover::policy::{
    FENCE_SQL_RETRY, FENCE_SQL_SPAN, REPOINT_AFTER, REPOINT_GAP, REPOINT_SPAN, REPOINTS_MAX, STREAM_GRACE,
};
use crate::failover::state::{Flow, State};
use crate::ids::NodeId;
use crate::topology::Health;

impl Machine {
    /// Answers, is in recovery and belongs to us.
    pub(super) fn is_standby(&self, id: NodeId) -> bool {
        self.node(id).live_report().is_some_and(|r| r.in_recovery && self.system_id == Some(r.system_id))
    }

    /// Why a node in recovery takes no reads.
    pub(super) fn unreadable(&self, id: NodeId) -> Option<String> {
        let node = self.node(id);
        match (node.health, node.condition) {
            (_, Condition::Starting) => return Some("starting".to_owned()),
            (_, Condition::Stopping) => return Some("shutting down".to_owned()),
            _ if node.refuses() => return Some("refuses connections".to_owned()),
            (Health::Down, Condition::Answering) => return Some("answers again, not yet often enough".to_owned()),
            (Health::Down, _) => return Some("does not answer".to_owned()),
            (Health::Unknown, _) => return Some("has not answered yet".to_owned()),
            (Health::Healthy | Health::Suspect, _) => {}
        }
        if self.ancestry_due(node) {
            return Some("its history is being asked for".to_owned());
        }
        if self.disputed(id) {
            return Some("standbys have several histories, and the primary's is not known".to_owned());
        }
        let timeline = node.timeline?;
        let known = self.timeline?;
        if timeline != known && !self.shares_history(node) {
            return Some(format!("on timeline {timeline}, the primary is on {known}"));
        }
        // Without a primary there is nothing to stream from: what it has is as good as it gets.
        let since = self.graced_since(node)?;
        if self.now.since(since) < STREAM_GRACE {
            return None;
        }
        if node.unstreamed_since.is_some() {
            return Some("does not stream from the primary".to_owned());
        }
        (timeline != known).then(|| format!("on timeline {timeline}, the primary is on {known}"))
    }

    /// Since when the standby could have streamed from a primary.
    fn graced_since(&self, node: &NodeState) -> Option<Time> {
        let flows = matches!(self.state, State::Stable { flow: Flow::Open, .. });
        flows.then(|| self.settled_at.max(node.unstreamed_since.unwrap_or(Time::ZERO)))
    }

    /// Repoints the standbys that need it, one action per standby at a time.
    pub(super) fn tend(&mut self) {
        let State::Stable { primary, flow: Flow::Open, .. } = self.state else { return };
        if self.node(primary).live_report().is_none() || !self.may_route(primary) {
            return;
        }
        for id in self.policy.ids().filter(|id| *id != primary) {
            self.expire_repoint(id);
            self.note_streaming(id);
            if self.is_standby(id) && self.needs_repoint(id, primary) {
                self.repoint(id, primary);
            }
            self.tend_former(id);
        }
        self.tend_fence(primary);
        self.tend_sync(primary);
    }

    fn expire_repoint(&mut self, id: NodeId) {
        let now = self.now;
        let repoints = &mut self.node_mut(id).repoints;
        if repoints.last.is_none_or(|last| now.since(last) >= REPOINT_SPAN) {
            repoints.under_way = None;
        }
    }

    fn note_streaming(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        if node.live_report().is_some() && node.unstreamed_since.is_none() && !node.detached {
            node.repoints.count = 0;
        }
    }

    fn needs_repoint(&self, id: NodeId, primary: NodeId) -> bool {
        let node = self.node(id);
        let free = node.repoints.last.is_none_or(|last| self.now.since(last) >= REPOINT_GAP);
        if node.repoints.under_way.is_some() || !free || self.policy.mode == FailoverMode::Follow {
            return false;
        }
        // Its WAL would go on from a base that is not the primary's. Where proxies share a store, its upstream is its vote.
        if self.standing.is_none() && (self.strayed(id).is_some() || self.ancestry_due(node)) {
            return false;
        }
        if node.detached {
            return true;
        }
        if self.policy.mode != FailoverMode::Automatic || self.paused || node.repoints.count >= REPOINTS_MAX {
            return false;
        }
        if node.unstreamed_since.is_some() {
            return self.graced_since(node).is_some_and(|since| self.now.since(since) >= REPOINT_AFTER);
        }
        if self.standing.as_ref().is_some_and(|standing| standing.unmarked.contains(self.name(id))) {
            return true;
        }
        let receiver = node.live_report().and_then(|r| r.receiver.as_ref());
        // A cascade is somebody's intention while its upstream is a standby, or none of our nodes.
        receiver.and_then(|r| self.policy.upstream(r)).is_some_and(|from| from != primary && !self.in_recovery(from))
    }

    fn in_recovery(&self, id: NodeId) -> bool {
        self.node(id).report.as_ref().is_some_and(|r| r.in_recovery)
    }

    fn repoint(&mut self, node: NodeId, upstream: NodeId) {
        let (id, epoch, now) = (self.action_id(), self.epoch, self.now);
        let repoints = &mut self.node_mut(node).repoints;
        repoints.last = Some(now);
        repoints.under_way = Some(id);
        repoints.count += 1;
        let last = repoints.count == REPOINTS_MAX && !self.node(node).detached;
        let timeline = self.timeline.unwrap_or_default();
        self.actions.push(Action::Repoint { id, node, upstream, epoch, timeline });
        if last {
            let text = format!("{} does not stream although it was told to {REPOINTS_MAX} times", self.name(node));
            self.tell(Level::Error, "repoint_given_up", Some(node), text);
        }
    }

    pub(super) fn repoint_done(&mut self, id: ActionId, outcome: &Outcome) {
        let Some(node) = self.policy.ids().find(|n| self.node(*n).repoints.under_way == Some(id)) else { return };
        self.node_mut(node).repoints.under_way = None;
        let name = self.name(node).clone();
        match outcome {
            Outcome::Failed(why) => {
                let text = format!("{name} could not be repointed: {why}");
                self.tell(Level::Warn, "repoint_failed", Some(node), text);
            }
            Outcome::Done | Outcome::Detached { .. } => {
                let now = self.now;
                let state = self.node_mut(node);
                state.detached = false;
                // Time to connect, before the lack of a stream counts again.
                state.unstreamed_since = state.unstreamed_since.map(|_| now);
                self.tell(Level::Info, "repointed", Some(node), format!("{name} was told to stream from the primary"));
            }
        }
    }

    /// Times at which a standby's standing may change without an event.
    pub(super) fn standby_alarms(&self) -> Vec<Time> {
        let mut alarms = vec![self.settled_at + STREAM_GRACE];
        alarms.extend(self.sync_alarm());
        for node in &self.nodes {
            let spans = [FENCE_SQL_SPAN, FENCE_SQL_RETRY];
            alarms.extend(node.sql_fence_at.into_iter().flat_map(|at| spans.map(|span| at + span)));
            if let Some(since) = node.unstreamed_since.and_then(|_| self.graced_since(node)) {
                alarms.extend([since + STREAM_GRACE, since + REPOINT_AFTER]);
            }
            if let Some(last) = node.repoints.last {
                alarms.extend([last + REPOINT_GAP, last + REPOINT_SPAN]);
            }
        }
        alarms
    }
}
