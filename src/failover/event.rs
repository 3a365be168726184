//! What the failover machine is told. Pure.

use super::action::ActionId;
use super::promise::Promise;
use super::standing::Standing;
use crate::ids::{Epoch, Lsn, NodeId, SystemId, TimelineId};
use crate::topology::{Fact, Observation, Sign};

/// One input of `Machine::step`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What this proxy kept of the primary's commits when it last ran; before `Recalled`, if at all.
    Promised(Promise),
    /// What the coordination store remembers, once, before anything else.
    Recalled(Option<Record>),
    /// Where this proxy stands with a store that several proxies share. Never sent by a store for one.
    Standing(Standing),
    /// A probe's outcome.
    Observed(Observation),
    /// What another session than the probe's said.
    Signed(Sign),
    /// Something live traffic saw.
    Fact(Fact),
    /// An action ended.
    ActionDone {
        /// Which.
        id: ActionId,
        /// How.
        outcome: Outcome,
    },
    /// A time asked for by `Action::WakeAt` has come (spurious ones are harmless).
    Tick,
    /// An operator's command.
    Command(Command),
}

/// What must survive a restart of this proxy, so that it cannot go backwards.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Cluster identity.
    pub system_id: SystemId,
    /// Who-is-primary number.
    pub epoch: Epoch,
    /// Name of the primary of that epoch (a name, because indexes change with the config).
    pub primary: String,
    /// Its timeline; a lower one is never primary again.
    pub timeline: TimelineId,
    /// It is out of recovery: otherwise it is about to be promoted, and the timeline is the one that it leaves.
    #[serde(default = "promoted")]
    pub promoted: bool,
    /// Other nodes whose promotion was asked for, or may have been, in an earlier epoch than that of a primary that took
    /// writes: that it takes effect late, on a newer timeline, makes none of them the successor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<String>,
}

impl Record {
    /// The timeline that the primary has at least, once it is out of recovery.
    #[must_use]
    pub fn least_timeline(&self) -> TimelineId {
        if self.promoted { self.timeline } else { TimelineId(self.timeline.0.saturating_add(1)) }
    }
}

/// Records of versions that did not say so.
fn promoted() -> bool {
    true
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done (promotion: the node left recovery).
    Done,
    /// A standby was detached from its upstream and stands at these positions.
    Detached {
        /// Flushed WAL (`pg_last_wal_receive_lsn()`), read after the receiver was gone.
        flush_lsn: Lsn,
        /// Replayed WAL.
        replay_lsn: Lsn,
    },
    /// It failed, or its deadline passed (which proves nothing about what the node did).
    Failed(String),
}

/// An operator's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Decide nothing automatically until resumed.
    Pause,
    /// Decide again.
    Resume,
    /// Whether an operator works on the node: then it is not promoted.
    Maintain {
        /// The node.
        node: NodeId,
        /// Begins, or ends.
        on: bool,
    },
    /// Promote now, although the primary may still be reachable (it is fenced first).
    Failover {
        /// The candidate; `None`: the best one.
        to: Option<NodeId>,
    },
}
