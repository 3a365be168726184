//! Why a node is no candidate, as data.
//!
//! Invariants: every rule of the election (`rules`) has a variant here, and every variant a word for programs and half a
//! sentence for people. Absent on purpose: what else keeps a failover from happening (`hold`).

use crate::ids::{SystemId, TimelineId};
use crate::topology::Switch;
use std::fmt;

/// Why a node is no candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Veto {
    /// An operator asked for another node.
    NotAsked,
    /// Its `failover_priority` is 0.
    PriorityZero,
    /// An operator works on it.
    Maintenance,
    /// It does not answer.
    NotHealthy,
    /// It is not in recovery.
    NotInRecovery,
    /// It belongs to another system.
    OtherSystem {
        /// Its system identifier.
        has: SystemId,
    },
    /// Its history does not lead to the primary's timeline.
    OtherTimeline {
        /// Its timeline.
        has: TimelineId,
        /// The primary's.
        need: TimelineId,
    },
    /// Its history left the last primary's.
    OtherLine {
        /// Where.
        parted: Switch,
    },
    /// Candidates on one timeline have several histories, and the last primary's is not known.
    LineUnclear,
    /// Replay is paused, so it would not finish promotion.
    ReplayPaused,
    /// It lacks too much WAL.
    Behind {
        /// Bytes it lacks against the highest position seen.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// It lacks WAL that standbys have which commits waited for.
    BehindMembers {
        /// Bytes it lacks.
        bytes: u64,
    },
    /// `before_promotion` spoke against it a short time ago.
    SpokenAgainst,
    /// Its promotion failed a short time ago.
    PromotionFailed,
    /// It could not be detached, and others could.
    NotDetached,
}

impl Veto {
    /// A word for programs; part of what JSON and the console say.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::PriorityZero => "priority_zero",
            Self::Maintenance => "maintenance",
            Self::NotHealthy => "not_healthy",
            Self::NotInRecovery => "not_in_recovery",
            Self::OtherSystem { .. } => "other_system",
            Self::OtherTimeline { .. } => "other_timeline",
            Self::OtherLine { .. } => "other_line",
            Self::LineUnclear => "line_unclear",
            Self::ReplayPaused => "replay_paused",
            Self::Behind { .. } => "behind",
            Self::BehindMembers { .. } => "behind_members",
            Self::SpokenAgainst => "spoken_against",
            Self::PromotionFailed => "promotion_failed",
            Self::NotDetached => "not_detached",
        }
    }
}

impl fmt::Display for Veto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str("another node was asked for"),
            Self::PriorityZero => f.write_str("its failover_priority is 0"),
            Self::Maintenance => f.write_str("it is in maintenance (ENABLE NODE ends that)"),
            Self::NotHealthy => f.write_str("it does not answer"),
            Self::NotInRecovery => f.write_str("it is not in recovery"),
            Self::OtherSystem { has } => write!(f, "it belongs to system {has}"),
            Self::OtherTimeline { has, need } => write!(f, "it is on timeline {has}, not {need}"),
            Self::OtherLine { parted: Switch { timeline, at } } => {
                write!(f, "its history left the last primary's at {at} of timeline {timeline}")
            }
            Self::LineUnclear => f.write_str(
                "other standbys have another history or a newer timeline, and the last primary's is not known: name the right one",
            ),
            Self::ReplayPaused => f.write_str("its replay is paused"),
            Self::Behind { bytes, max } => write!(f, "it lacks {bytes} bytes of WAL, the limit is {max}"),
            Self::BehindMembers { bytes } => {
                write!(f, "it lacks {bytes} bytes of WAL that a synchronous standby has")
            }
            Self::SpokenAgainst => f.write_str("before_promotion has just spoken against it"),
            Self::PromotionFailed => f.write_str("its promotion has just failed"),
            Self::NotDetached => f.write_str("it could not be detached"),
        }
    }
}
