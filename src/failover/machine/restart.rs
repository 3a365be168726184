//! A primary that crashed and restarts in place: how long it is waited for.
//!
//! A restart in place loses nothing, a failover may. So where no standby is known to have all of the primary's WAL,
//! `primary_start_timeout` is waited for. Where one has, whichever is sooner counts: a recovery that replays much is
//! not waited for longer than half as much again as it should take.
//!
//! Invariants: pure arithmetic on what was last seen; never longer than `primary_start_timeout`. Absent on purpose:
//! learning the speed of a node's recovery (there are too few of them to learn from).

use super::Machine;
use crate::failover::policy::{RECOVERY_BASE, RECOVERY_BYTES_PER_SECOND};
use crate::ids::NodeId;
use std::time::Duration;

impl Machine {
    /// How long this primary may be starting or stopping before it is given up.
    pub(super) fn restart_limit(&self, primary: NodeId) -> Duration {
        let most = self.policy.primary_start_timeout;
        let Some(report) = self.node(primary).report.as_ref().filter(|report| !report.in_recovery) else { return most };
        if report.redo_lsn.0 == 0 || !self.has_all_wal_of(primary) {
            return most;
        }
        let bytes = report.flush_lsn.bytes_since(report.redo_lsn);
        let replay = Duration::from_millis(bytes.saturating_mul(1000) / RECOVERY_BYTES_PER_SECOND);
        ((RECOVERY_BASE + replay) * 3 / 2).min(most)
    }

    /// Whether a standby that may be promoted has everything that was ever seen of the primary.
    fn has_all_wal_of(&self, primary: NodeId) -> bool {
        self.policy.ids().filter(|id| *id != primary).any(|id| {
            let node = self.node(id);
            let fit = !node.maintenance && self.policy.nodes[id.index()].priority > 0 && self.is_standby(id);
            let flushed = node.live_report().map(|report| report.flush_lsn);
            fit && node.timeline == self.timeline && flushed >= Some(self.highest)
        })
    }
}
