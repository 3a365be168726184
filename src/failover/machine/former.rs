//! Former primaries: made read-only while they still take writes, told when they are back as standbys.
//!
//! Invariants: a node is fenced by SQL only while another one is the recorded primary, answers as such, and its
//! timeline is newer, or their histories part before it; never the primary itself, never while it is not clear who is. A fence is known by what the node
//! reports, so that it is taken back whoever set it and whenever this process began: when the node is a standby, or the
//! primary. What somebody else set on a primary stays. Absent on purpose: waiting for it; a promotion never does.

use super::Machine;
use crate::config::FailoverMode;
use crate::failover::action::{Action, ActionId, HookKind, Level};
use crate::failover::event::Outcome;
use crate::failover::node_state::{Quarantine, SqlFence};
use crate::failover::policy::{FENCE_SQL_RETRY, FENCE_SQL_SEEN, FENCE_SQL_SPAN};
use crate::failover::state::State;
use crate::ids::NodeId;
use crate::topology::{NodeReport, ReadOnly};
use std::time::Duration;

impl Machine {
    /// One former primary, while this primary takes writes.
    pub(super) fn tend_former(&mut self, id: NodeId) {
        let node = self.node(id);
        if matches!(node.quarantine, Some(why) if why.was_primary())
            && node.report.as_ref().is_some_and(|r| !r.in_recovery)
        {
            self.node_mut(id).former = true;
        }
        let node = self.node(id);
        let Some(report) = node.live_report() else { return };
        let wrong = matches!(node.quarantine, Some(Quarantine::OlderPrimary(_) | Quarantine::OtherLine(_)));
        if wrong && !report.in_recovery && !self.fence_stands(id) && self.fence_free(id) {
            self.fence_sql(id, true);
        } else if self.is_standby(id) {
            self.take_fence_back(id);
        }
        let node = self.node(id);
        let ours = node.timeline == self.timeline && self.strayed(id).is_none() && !self.ancestry_due(node);
        if node.former && self.is_standby(id) && node.unstreamed_since.is_none() && ours {
            self.node_mut(id).former = false;
            let text = format!("{} streams as a standby again", self.name(id));
            self.tell(Level::Info, "rejoined", Some(id), text);
            self.notify(HookKind::Rejoin, id, Some(id), "it streams as a standby");
        }
    }

    /// The primary itself: it may have been promoted, or adopted, with a fence that nobody took back.
    pub(super) fn tend_fence(&mut self, primary: NodeId) {
        self.take_fence_back(primary);
        let set = self.fence_report(primary).is_some_and(|report| report.read_only == ReadOnly::Set);
        let strange = set && self.fences_by_sql() && !self.fence_stands(primary);
        if std::mem::replace(&mut self.node_mut(primary).read_only_told, strange) != strange && strange {
            let text = format!(
                "default_transaction_read_only = on was set on primary {} (not by pgregent, as far as it can tell): writes fail \
                 there until somebody runs ALTER SYSTEM RESET default_transaction_read_only and reloads",
                self.name(primary)
            );
            self.tell(Level::Warn, "primary_read_only", Some(primary), text);
        }
    }

    fn take_fence_back(&mut self, id: NodeId) {
        if self.fence_stands(id) && self.fence_free(id) {
            self.fence_sql(id, false);
        }
    }

    fn fences_by_sql(&self) -> bool {
        self.policy.means.fence_sql && self.policy.mode != FailoverMode::Follow
    }

    /// A fence of ours is on the node, as far as anybody knows.
    fn fence_stands(&self, id: NodeId) -> bool {
        use SqlFence::{Asked, Failed, On};
        matches!(self.node(id).sql_fence, On | Failed { on: false } | Asked { on: false, .. })
    }

    /// Nothing is under way, and nothing has just failed.
    fn fence_free(&self, id: NodeId) -> bool {
        let node = self.node(id);
        let span = match node.sql_fence {
            SqlFence::Asked { .. } => FENCE_SQL_SPAN,
            SqlFence::Failed { .. } => FENCE_SQL_RETRY,
            SqlFence::None | SqlFence::On => Duration::ZERO,
        };
        self.fences_by_sql() && node.sql_fence_at.is_none_or(|at| self.now.since(at) >= span)
    }

    /// The node's report, unless it may be older than what was done about its fence.
    fn fence_report(&self, id: NodeId) -> Option<&NodeReport> {
        let node = self.node(id);
        node.live_report().filter(|report| node.sql_fence_at.is_none_or(|at| report.sent_at > at + FENCE_SQL_SEEN))
    }

    /// Learns from the node's report whether it is fenced. On a standby a read-only default has no use of its own: it is
    /// from a fence, unless it was copied from a primary that somebody froze.
    pub(super) fn know_fence(&mut self, id: NodeId) {
        let node = self.node(id);
        let Some(report) = self.fence_report(id) else { return };
        let primary = match self.state {
            State::Stable { primary, .. } => Some(primary),
            _ => self.state.outage().and_then(|outage| outage.old).or(self.recorded_primary()),
        };
        let frozen = primary.and_then(|p| self.node(p).report.as_ref()).is_some_and(|r| r.read_only != ReadOnly::No);
        let ours = match report.read_only {
            ReadOnly::Fenced => true,
            ReadOnly::Set => report.in_recovery && !frozen,
            ReadOnly::No => false,
        };
        let known = match (node.sql_fence, report.read_only) {
            (SqlFence::None | SqlFence::Failed { on: true }, _) if ours => SqlFence::On,
            (SqlFence::On | SqlFence::Failed { on: false }, ReadOnly::No) => SqlFence::None,
            (same, _) => same,
        };
        self.node_mut(id).sql_fence = known;
    }

    fn fence_sql(&mut self, node: NodeId, on: bool) {
        let (id, epoch, now) = (self.action_id(), self.epoch, self.now);
        let state = self.node_mut(node);
        state.sql_fence = SqlFence::Asked { id, on };
        state.sql_fence_at = Some(now);
        self.actions.push(Action::FenceSql { id, node, epoch, on });
    }

    pub(super) fn fence_sql_done(&mut self, done: ActionId, outcome: &Outcome) {
        let asked = |id: &NodeId| match self.node(*id).sql_fence {
            SqlFence::Asked { id, on } if id == done => Some(on),
            _ => None,
        };
        let Some((node, on)) = self.policy.ids().find_map(|id| Some((id, asked(&id)?))) else { return };
        let name = self.name(node).clone();
        let now = self.now;
        let state = self.node_mut(node);
        // What was asked before says nothing about it.
        state.sql_fence_at = Some(now);
        match (outcome, on) {
            (Outcome::Failed(why), _) => {
                state.sql_fence = SqlFence::Failed { on };
                if !std::mem::replace(&mut state.sql_fence_told, true) {
                    let what = if on { "cannot be made read-only" } else { "cannot be made writable again" };
                    let text = format!("{name} {what} by SQL: {why}");
                    self.tell(Level::Warn, "fence_sql_failed", Some(node), text);
                }
            }
            (_, true) => {
                state.sql_fence = SqlFence::On;
                state.sql_fence_told = false;
                let other = matches!(state.quarantine, Some(Quarantine::OtherLine(_)));
                let place = if other { "another line than the primary's" } else { "an old timeline" };
                let text = format!("{name} takes writes on {place}: it was made read-only, its sessions were ended");
                self.tell(Level::Warn, "fenced_sql", Some(node), text);
            }
            (_, false) => {
                state.sql_fence = SqlFence::None;
                state.sql_fence_told = false;
                self.tell(
                    Level::Info,
                    "unfenced_sql",
                    Some(node),
                    format!("{name} is no longer read-only by our doing"),
                );
            }
        }
    }
}
