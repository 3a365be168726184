//! A primary that falls silent is asked for by its standbys: each lets its receiver connect anew.
//!
//! A receiver on an idle primary hears nothing for up to `wal_receiver_timeout`, so that its silence is no evidence.
//! Whether it can connect again is.
//!
//! Invariants: asked only of standbys that stream from the primary, once per span, while the primary is silent for us;
//! what came of it is bounded by [`RECONNECT_SPAN`]; never in follow mode. Absent on purpose: a primary that refuses
//! connections, whose receivers end by themselves.

use super::Machine;
use crate::clock::Time;
use crate::config::FailoverMode;
use crate::failover::action::{Action, ActionId};
use crate::failover::event::Outcome;
use crate::failover::node_state::Condition;
use crate::failover::policy::{RECONNECT_GAP, RECONNECT_SPAN};
use crate::failover::state::State;
use crate::ids::NodeId;

/// The last time that a standby's receiver was told to connect anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::failover) struct Reconnect {
    /// When it was asked for.
    asked: Time,
    /// The action, while it is under way.
    id: Option<ActionId>,
    /// When it was known to stream again.
    streamed: Option<Time>,
}

impl Machine {
    /// Asks the standbys of a silent primary.
    pub(super) fn provoke(&mut self) {
        let Some(primary) = self.silent_primary() else { return };
        for id in self.policy.ids().filter(|id| *id != primary) {
            if self.streams_from(id, primary) && self.may_reconnect(id, primary) {
                let (action, epoch, asked) = (self.action_id(), self.epoch, self.now);
                let streamed = self.reconnected_at(id);
                self.node_mut(id).reconnect = Some(Reconnect { asked, id: Some(action), streamed });
                self.actions.push(Action::Reconnect { id: action, node: id, epoch });
            }
        }
    }

    /// The primary, while it is silent and nothing is being changed.
    fn silent_primary(&self) -> Option<NodeId> {
        let primary = match &self.state {
            State::Stable { primary, .. } => *primary,
            State::Lost { outage } if outage.order.is_none() => outage.old?,
            _ => return None,
        };
        let acts = self.policy.mode == FailoverMode::Automatic && !self.paused;
        // One late answer is no reason to disturb replication.
        let Condition::Failing { misses, hard: 0, refused: false } = self.node(primary).condition else { return None };
        (acts && misses >= 2.min(self.policy.fall)).then_some(primary)
    }

    fn streams_from(&self, standby: NodeId, primary: NodeId) -> bool {
        let Some(report) = self.node(standby).live_report() else { return false };
        let from = report.receiver.as_ref().filter(|r| r.streaming && report.in_recovery);
        from.is_some_and(|r| self.policy.upstream(r) == Some(primary)) && !self.node(standby).detached
    }

    /// It has not been heard from since it fell silent for us, and was not asked a moment ago.
    fn may_reconnect(&self, standby: NodeId, primary: NodeId) -> bool {
        let since = self.node(primary).trouble_since.unwrap_or(self.now);
        let heard = self.heard_at(standby, primary).is_some_and(|at| at > since);
        let free =
            self.node(standby).reconnect.is_none_or(|r| r.id.is_none() && self.now.since(r.asked) >= RECONNECT_GAP);
        free && (!heard || self.node(standby).reconnect.is_some())
    }

    /// Whether its answer is still worth waiting for.
    pub(super) fn reconnecting(&self, standby: NodeId, since: Time) -> bool {
        self.node(standby)
            .reconnect
            .is_some_and(|r| r.id.is_some() && r.asked >= since && self.now.since(r.asked) < RECONNECT_SPAN)
    }

    /// When it last connected anew.
    pub(super) fn reconnected_at(&self, standby: NodeId) -> Option<Time> {
        self.node(standby).reconnect.and_then(|r| r.streamed)
    }

    pub(super) fn reconnect_done(&mut self, id: ActionId, outcome: &Outcome) {
        let now = self.now;
        let asked = |r: &Reconnect| r.id == Some(id);
        let Some(node) = self.policy.ids().find(|n| self.node(*n).reconnect.as_ref().is_some_and(asked)) else {
            return;
        };
        let Some(reconnect) = &mut self.node_mut(node).reconnect else { return };
        reconnect.id = None;
        reconnect.streamed = (*outcome == Outcome::Done).then_some(now).or(reconnect.streamed);
        self.want_probe(node);
    }

    /// Times at which a receiver may have to be asked again, or is waited for no longer.
    pub(super) fn reconnect_alarms(&self) -> Vec<Time> {
        if self.silent_primary().is_none() {
            return Vec::new();
        }
        let asked = self.nodes.iter().filter_map(|node| node.reconnect).map(|r| r.asked);
        asked.flat_map(|at| [at + RECONNECT_SPAN, at + RECONNECT_GAP]).collect()
    }
}
