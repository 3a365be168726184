//! The shared truth: who is primary at which epoch, who may take reads, how fresh each standby is.
//!
//! One immutable [`Topology`] behind `arc-swap`, published by exactly one [`TopologyPublisher`] and
//! read wait-free through [`TopologyReader`]. Role, epoch, health and freshness travel together or
//! not at all. Facts travel the other way through [`FactSender`].
//!
//! Invariants: the epoch of consecutive snapshots never falls; at most one node has
//! [`Role::Primary`]. Absent on purpose: any decision.

mod fact;
mod floor;
pub mod history;
mod observation;
mod permit;
mod publish;

pub use fact::{FACTS_MAX, Fact, FactReceiver, FactSender, Traffic, WriteDemand, fact_channel};
pub use floor::{CausalToken, Floor, NotAToken};
pub use history::{Ancestry, History, Switch};
pub use observation::{
    NodeReport, Observation, PatroniSilence, PatroniWord, PendingWrite, ProbeFailure, ReadOnly, ReceiverView,
    SYNC_NAMES_BYTES_MAX, SYNC_STANDBYS_MAX, Sign, SignKind, SyncStandby, SyncState, SyncView, WriteSign,
};
pub use permit::WritePermit;
pub use publish::{TopologyPublisher, TopologyReader, topology_channel};

use crate::clock::Time;
use crate::ids::{Epoch, Lsn, NodeId, TimelineId};
use std::sync::Arc;
use std::time::Duration;

/// The assigned role: what this node is for us at this epoch (a probe's observed role may differ).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// In recovery, streams from the primary; may take reads.
    Standby,
    /// Not known, or known not to belong (another system, an older timeline, a second primary).
    Unassigned,
}

impl Role {
    /// Lower-case word for logs, metrics and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Unassigned => "unassigned",
        }
    }
}

/// What the probes say about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not yet probed.
    Unknown,
    /// Answers.
    Healthy,
    /// Missed probes, not yet past the fall count.
    Suspect,
    /// Past the fall count, or hard evidence.
    Down,
}

impl Health {
    /// Lower-case word for logs, metrics and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// One node as the data plane sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// Which node.
    pub id: NodeId,
    /// Configured name.
    pub name: Arc<str>,
    /// Assigned role.
    pub role: Role,
    /// Health.
    pub health: Health,
    /// May take reads now (healthy, streaming or primary, within the lag limits).
    pub accepts_reads: bool,
    /// Every write acknowledged by the primary before this point has been replayed here
    /// (for the primary: [`Time::NEVER`]).
    pub fresh_as_of: Time,
    /// The same, counting writes that were acknowledged before they were flushed (`synchronous_commit = off`).
    pub fresh_as_of_unflushed: Time,
    /// What it is known to have replayed since it was last lost sight of, and on which timeline.
    pub replayed: Option<(TimelineId, Lsn)>,
    /// Bytes of WAL not yet replayed, where known.
    pub lag_bytes: Option<u64>,
    /// How long replay is behind, where known.
    pub replay_lag: Option<Duration>,
    /// Timeline last observed.
    pub timeline: Option<TimelineId>,
    /// Position last observed: flushed on the primary, replayed on a standby.
    pub lsn: Option<Lsn>,
    /// Grows whenever backends opened before must be cut (node down, primary fenced).
    pub fence: u64,
    /// Why the node is not used, for people.
    pub note: Option<Arc<str>>,
}

/// Whether writes may go anywhere, and if not, what a client should do.
#[derive(Clone, Debug, PartialEq)]
pub enum Writes {
    /// The node with [`Role::Primary`] takes them.
    Open,
    /// A change is under way or the primary is not yet known: clients wait.
    Held {
        /// Why, for people.
        why: Arc<str>,
    },
    /// Refused until an operator acts (two primaries, say): clients get an error.
    Refused {
        /// Why, for people.
        why: Arc<str>,
    },
}

/// The snapshot a worker loads once per transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Who-is-primary number.
    pub epoch: Epoch,
    /// The primary of this epoch, if writes may reach one.
    pub primary: Option<NodeId>,
    /// Whether writes flow.
    pub writes: Writes,
    /// All configured nodes, indexed by [`NodeId::index`].
    pub nodes: Box<[NodeView]>,
}

impl Topology {
    /// The state before any probe has answered: nothing takes anything, clients wait.
    #[must_use]
    pub fn starting(names: &[Arc<str>]) -> Self {
        let nodes = names
            .iter()
            .enumerate()
            .map(|(index, name)| NodeView {
                id: NodeId(u16::try_from(index).unwrap_or(u16::MAX)),
                name: Arc::clone(name),
                role: Role::Unassigned,
                health: Health::Unknown,
                accepts_reads: false,
                fresh_as_of: Time::ZERO,
                fresh_as_of_unflushed: Time::ZERO,
                replayed: None,
                lag_bytes: None,
                replay_lag: None,
                timeline: None,
                lsn: None,
                fence: 0,
                note: None,
            })
            .collect();
        Self {
            epoch: Epoch(0),
            primary: None,
            writes: Writes::Held { why: "no node has been probed yet".into() },
            nodes,
        }
    }

    /// The node's view.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.get(id.index())
    }
}
