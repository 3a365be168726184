//! Former primaries: made read-only while they still take writes, told when they are back as standbys.
//!
//! Invariants: a node is fenced by SQL only while another one is the recorded primary, answers as such, and its
//! timeline is newer; never the primary itself, never while it is not clear who is. What was set is taken back when the
//! node is a standby. Absent on purpose: waiting for it; a promotion never does.

use super::Machine;
use crate::config::FailoverMode;
use crate::failover::action::{Action, ActionId, HookKind, Level};
use crate::failover::event::Outcome;
use crate::failover::node_state::{Quarantine, SqlFence};
use crate::failover::policy::{FENCE_SQL_RETRY, FENCE_SQL_SPAN};
use crate::ids::NodeId;

impl Machine {
    /// One former primary, while this primary takes writes.
    pub(super) fn tend_former(&mut self, id: NodeId) {
        let node = self.node(id);
        if matches!(node.quarantine, Some(Quarantine::OlderPrimary(_) | Quarantine::SecondPrimary(_))) {
            self.node_mut(id).former = true;
        }
        let node = self.node(id);
        let Some(report) = node.live_report() else { return };
        let older = matches!(node.quarantine, Some(Quarantine::OlderPrimary(_))) && !report.in_recovery;
        let on = node.sql_fence == SqlFence::On;
        let now = self.now;
        let free = node.sql_fence_at.is_none_or(|at| match node.sql_fence {
            SqlFence::Asked { .. } => now.since(at) >= FENCE_SQL_SPAN,
            SqlFence::Failed => now.since(at) >= FENCE_SQL_RETRY,
            SqlFence::None | SqlFence::On => true,
        });
        let wanted = self.policy.means.fence_sql && self.policy.mode != FailoverMode::Follow;
        if older && wanted && !on && free {
            self.fence_sql(id, true);
        } else if on && self.is_standby(id) {
            self.fence_sql(id, false);
        }
        let node = self.node(id);
        if node.former && self.is_standby(id) && node.unstreamed_since.is_none() && node.timeline == self.timeline {
            self.node_mut(id).former = false;
            let text = format!("{} streams as a standby again", self.name(id));
            self.tell(Level::Info, "rejoined", Some(id), text);
            self.notify(HookKind::Rejoin, id, Some(id), "it streams as a standby");
        }
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
        let state = self.node_mut(node);
        match (outcome, on) {
            (Outcome::Failed(why), _) => {
                // Undone later rather than forgotten.
                state.sql_fence = if on { SqlFence::Failed } else { SqlFence::On };
                if !std::mem::replace(&mut state.sql_fence_told, true) {
                    let what = if on { "cannot be made read-only" } else { "cannot be made writable again" };
                    let text = format!("{name} {what} by SQL: {why}");
                    self.tell(Level::Warn, "fence_sql_failed", Some(node), text);
                }
            }
            (_, true) => {
                state.sql_fence = SqlFence::On;
                state.sql_fence_told = false;
                let text =
                    format!("{name} takes writes on an old timeline: it was made read-only, its sessions were ended");
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
