//! Where the cluster stands, as one enum with its data inside, and which move may follow which.
//!
//! Invariants: `Machine::shift` is the only writer and refuses every move that [`State::may_become`]
//! does not list. Absent on purpose: epoch, timeline and system identifier, which outlive states.

use super::action::ActionId;
use super::event::Outcome;
use crate::clock::Time;
use crate::ids::{Epoch, Lsn, NodeId, TimelineId};

/// Why a primary was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing listens there any more.
    Refused,
    /// It does not answer.
    Silent,
    /// It was starting or stopping for too long.
    Overdue,
    /// It is in recovery.
    Demoted,
    /// It is another system's, or went back to an older timeline.
    Impostor,
    /// The recorded primary was not primary when this proxy started.
    AtStart,
    /// Of several primaries none was left.
    SplitEnded,
    /// Another node was promoted, and not by us.
    Replaced,
    /// An operator asked for another one.
    Commanded,
    /// Most voters follow no primary, or another one.
    Forsaken,
    /// Another proxy chose a standby and did not see its promotion through.
    Unfinished,
    /// It answers, but has no space for WAL.
    DiskFull,
    /// It answers, but the disk with its WAL reports errors.
    DiskFails,
    /// It answers, but its commits do not end.
    WritesHang,
    /// It answers on older sessions, but serves no new ones.
    ListenerHangs,
}

impl Cause {
    /// A few words for people, to follow "primary a was lost: ".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Refused => "it refuses connections",
            Self::Silent => "it does not answer",
            Self::Overdue => "it did not come back in time",
            Self::Demoted => "it is in recovery",
            Self::Impostor => "it is not the node that it was",
            Self::AtStart => "it was not primary when this proxy started",
            Self::SplitEnded => "none of several primaries is left",
            Self::Replaced => "another node was promoted",
            Self::Unfinished => "a change of primary was begun and not finished",
            Self::Forsaken => "most voters do not follow it",
            Self::Commanded => "an operator asked for a failover",
            Self::DiskFull => "its disk has no space for WAL",
            Self::DiskFails => "the disk with its WAL fails",
            Self::WritesHang => "WAL cannot be written there",
            Self::ListenerHangs => "it serves no new connections",
        }
    }

    /// Whether the primary lived when it was given up, and was only unable to do its work.
    #[must_use]
    pub fn is_ailment(self) -> bool {
        matches!(self, Self::DiskFull | Self::DiskFails | Self::WritesHang | Self::ListenerHangs)
    }
}

/// What an operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The only candidate; `None`: the best one.
    pub to: Option<NodeId>,
}

/// A time without a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The primary before; `None` when there was none.
    pub old: Option<NodeId>,
    /// When it was given up.
    pub since: Time,
    /// Why.
    pub cause: Cause,
    /// Set when an operator wants the change, whatever the old primary says.
    pub order: Option<Order>,
}

/// How writes flow to a primary that was not given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They do.
    Open,
    /// Held: it refuses connections, the decision is near.
    Doubted {
        /// Since when.
        since: Time,
    },
    /// Held: it restarts in place.
    Restarting,
    /// Held, and its sessions kept: it lives and cannot do its work, and whether other proxies agree is being found out.
    Yielding {
        /// Since when.
        since: Time,
    },
}

/// One standby asked to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detaching {
    /// The action.
    pub id: ActionId,
    /// The standby.
    pub node: NodeId,
    /// How far it got.
    pub progress: Progress,
}

/// How far a detach got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No answer yet.
    Asked,
    /// It stands still at this flush position.
    Still {
        /// Flushed WAL.
        flush_lsn: Lsn,
    },
    /// It failed or took too long.
    Failed,
}

/// What may have to be done before a candidate is recorded, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The old primary is turned off.
    Fence,
    /// `before_promotion` is asked.
    Ask,
    /// `synchronous_standby_names` is set on the candidate, so that its first commit is protected.
    Name,
}

impl Step {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Fence, Self::Ask, Self::Name];
}

/// Where the cluster stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is believed yet.
    Starting {
        /// Since when.
        since: Time,
    },
    /// A primary is known and recorded.
    Stable {
        /// The primary.
        primary: NodeId,
        /// Whether writes flow to it.
        flow: Flow,
        /// A standby's veto was told.
        vetoed: bool,
    },
    /// The primary was given up and nothing has been changed on any node.
    Lost {
        /// The outage.
        outage: Outage,
    },
    /// A primary that was found is being recorded.
    Adopting {
        /// The outage that it ends, if there was a primary before.
        outage: Option<Outage>,
        /// The primary.
        primary: NodeId,
        /// Its timeline.
        timeline: TimelineId,
        /// The epoch being recorded.
        epoch: Epoch,
        /// The record; `None` while the right to it is waited for.
        action: Option<ActionId>,
        /// Since when.
        since: Time,
        /// An operator named it: whatever other nodes say.
        ordered: bool,
    },
    /// Another proxy recorded this primary; the node has not said yet that it is.
    Following {
        /// The outage that it ends.
        outage: Outage,
        /// The recorded primary.
        primary: NodeId,
        /// Since when.
        since: Time,
    },
    /// Standbys are being detached.
    Freezing {
        /// The outage.
        outage: Outage,
        /// Since when.
        since: Time,
        /// One per standby asked.
        standbys: Vec<Detaching>,
    },
    /// What must be done before the candidate is recorded.
    Preparing {
        /// The outage.
        outage: Outage,
        /// The candidate.
        candidate: NodeId,
        /// Who stands still, should this candidate be spoken against.
        standbys: Vec<Detaching>,
        /// What is being done.
        step: Step,
        /// It.
        action: ActionId,
        /// How it ended, if it has.
        outcome: Option<Outcome>,
        /// Since when.
        since: Time,
    },
    /// The candidate is being recorded; it is not promoted yet.
    Recording {
        /// The outage.
        outage: Outage,
        /// The candidate.
        candidate: NodeId,
        /// Where it stands.
        flush_lsn: Lsn,
        /// The epoch being recorded.
        epoch: Epoch,
        /// The record; `None` once stored.
        action: Option<ActionId>,
        /// Since when.
        since: Time,
    },
    /// The candidate was told to promote.
    Promoting {
        /// The outage.
        outage: Outage,
        /// The candidate.
        candidate: NodeId,
        /// Where it stood.
        flush_lsn: Lsn,
        /// The promotion.
        action: ActionId,
        /// Since when.
        since: Time,
    },
    /// The candidate left recovery; its timeline is being recorded.
    Confirming {
        /// The outage.
        outage: Outage,
        /// The new primary.
        primary: NodeId,
        /// Its timeline.
        timeline: TimelineId,
        /// Where the new timeline begins, at the latest.
        flush_lsn: Lsn,
        /// The record.
        action: ActionId,
        /// Since when.
        since: Time,
    },
    /// Another node claims to be primary.
    Contested {
        /// The recorded primary, if there is one.
        primary: Option<NodeId>,
        /// Since when.
        since: Time,
        /// More than one is known to accept writes, or the only one is not to be trusted: halted.
        confirmed: bool,
    },
}

impl State {
    /// A word for status output.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Stable { flow: Flow::Open, .. } => "stable",
            Self::Stable { flow: Flow::Doubted { .. }, .. } => "doubted",
            Self::Stable { flow: Flow::Restarting, .. } => "restarting",
            Self::Stable { flow: Flow::Yielding { .. }, .. } => "yielding",
            Self::Lost { .. } => "lost",
            Self::Adopting { .. } => "adopting",
            Self::Following { .. } => "following",
            Self::Freezing { .. } => "freezing",
            Self::Preparing { .. } => "preparing",
            Self::Recording { .. } => "recording",
            Self::Promoting { .. } => "promoting",
            Self::Confirming { .. } => "confirming",
            Self::Contested { confirmed: false, .. } => "contested",
            Self::Contested { confirmed: true, .. } => "halted",
        }
    }

    /// Whether the machine only publishes and tells.
    #[must_use]
    pub fn halted(&self) -> bool {
        matches!(self, Self::Contested { confirmed: true, .. })
    }

    /// Whether nodes are being changed, or a primary recorded.
    #[must_use]
    pub fn changes_nodes(&self) -> bool {
        matches!(
            self,
            Self::Adopting { .. }
                | Self::Freezing { .. }
                | Self::Preparing { .. }
                | Self::Recording { .. }
                | Self::Promoting { .. }
                | Self::Confirming { .. }
        )
    }

    /// The outage that this state belongs to.
    #[must_use]
    pub fn outage(&self) -> Option<&Outage> {
        match self {
            Self::Lost { outage }
            | Self::Following { outage, .. }
            | Self::Freezing { outage, .. }
            | Self::Preparing { outage, .. }
            | Self::Recording { outage, .. }
            | Self::Promoting { outage, .. }
            | Self::Confirming { outage, .. } => Some(outage),
            Self::Adopting { outage, .. } => outage.as_ref(),
            Self::Starting { .. } | Self::Stable { .. } | Self::Contested { .. } => None,
        }
    }

    /// The nodes that may be out of recovery in this state without being a surprise.
    #[must_use]
    pub fn expected(&self) -> [Option<NodeId>; 2] {
        match self {
            Self::Starting { .. } => [None, None],
            Self::Stable { primary, .. } | Self::Adopting { primary, .. } => [Some(*primary), None],
            Self::Lost { outage }
            | Self::Freezing { outage, .. }
            | Self::Preparing { outage, .. }
            | Self::Recording { outage, .. } => [outage.old, None],
            Self::Promoting { outage, candidate, .. } => [Some(*candidate), outage.old],
            Self::Confirming { outage, primary, .. } | Self::Following { outage, primary, .. } => {
                [Some(*primary), outage.old]
            }
            Self::Contested { primary, .. } => [*primary, None],
        }
    }

    /// Whether `next` may follow.
    #[must_use]
    pub fn may_become(&self, next: &Self) -> bool {
        use State::{
            Adopting, Confirming, Contested, Following, Freezing, Lost, Preparing, Promoting, Recording, Stable,
            Starting,
        };
        match (self, next) {
            (Following { .. }, Stable { .. } | Lost { .. } | Contested { .. } | Following { .. }) => true,
            // Whatever was under way without the right ends when another proxy has recorded a primary.
            (_, Following { .. }) => true,
            (Starting { .. }, Stable { .. } | Adopting { .. } | Lost { .. } | Contested { .. } | Freezing { .. }) => {
                true
            }
            (Stable { primary: a, .. }, Stable { primary: b, .. }) => a == b,
            (Stable { .. }, Lost { .. } | Adopting { .. } | Contested { .. } | Freezing { .. }) => true,
            (Lost { .. }, Lost { .. } | Stable { .. } | Adopting { .. } | Contested { .. } | Freezing { .. }) => true,
            (Adopting { primary: a, .. }, Adopting { primary: b, .. }) => a == b,
            (Adopting { .. }, Stable { .. } | Lost { .. } | Starting { .. }) => true,
            (Freezing { .. }, Freezing { .. } | Preparing { .. } | Recording { .. } | Lost { .. }) => true,
            (Preparing { .. }, Preparing { .. } | Recording { .. } | Lost { .. }) => true,
            (Recording { .. }, Recording { .. } | Promoting { .. } | Lost { .. }) => true,
            (Promoting { .. }, Confirming { .. } | Lost { .. } | Contested { .. }) => true,
            (Confirming { .. }, Stable { .. }) => true,
            (Contested { primary: a, .. }, Contested { primary: b, .. }) => a == b,
            (Contested { .. }, Stable { .. } | Adopting { .. } | Lost { .. } | Starting { .. }) => true,
            _ => false,
        }
    }
}
