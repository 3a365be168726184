//! What the failover machine wants done. Pure. Every action is idempotent and carries its epoch.

use super::event::Record;
use super::promise::Promise;
use super::standing::Claim;
use crate::clock::Time;
use crate::ids::{Epoch, NodeId, TimelineId};
use crate::topology::{Health, Role, Writes};
use std::sync::Arc;

/// Names one action until its `Event::ActionDone`. Never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionId(pub u64);

/// One output of `Machine::step`; to be started in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Publish roles, health and whether writes flow. The controller adds freshness and lag.
    Publish(Plan),
    /// Tell the store what this proxy wants of it from now on; answered by `Event::Standing`. Comes after
    /// the plan that closes writes, so that none is believed once a lease is let go.
    Claim(Claim),
    /// Store the record durably; answers with `ActionDone`.
    Record(ActionId, Record),
    /// Stop the standby's WAL receiver (`primary_conninfo` empty, or leading nowhere; reload), wait until it is gone,
    /// read positions; answers with `Outcome::Detached`.
    Detach(ActionId, NodeId, Epoch),
    /// `pg_promote(false)` and poll until the node left recovery.
    Promote(ActionId, NodeId, Epoch),
    /// Let a standby stream from another upstream (`ALTER SYSTEM SET primary_conninfo`, reload).
    Repoint {
        /// Names the action.
        id: ActionId,
        /// The standby.
        node: NodeId,
        /// Its new upstream.
        upstream: NodeId,
        /// The epoch this belongs to.
        epoch: Epoch,
        /// The primary's timeline in that epoch.
        timeline: TimelineId,
    },
    /// Let the standby's receiver connect anew to the upstream that it has; done when it streams again. Whether it can
    /// says whether the upstream lives.
    Reconnect {
        /// Names the action.
        id: ActionId,
        /// The standby.
        node: NodeId,
        /// The epoch this belongs to.
        epoch: Epoch,
    },
    /// Run a program of `[hooks]`.
    Hook(ActionId, HookCall),
    /// `ALTER SYSTEM SET synchronous_standby_names`, reload.
    NameSync {
        /// Names the action.
        id: ActionId,
        /// The primary, or who is about to be.
        node: NodeId,
        /// The setting.
        names: String,
        /// The epoch this belongs to.
        epoch: Epoch,
    },
    /// Make a former primary read-only (`default_transaction_read_only`) and end its sessions, or take that back.
    FenceSql {
        /// Names the action.
        id: ActionId,
        /// The former primary.
        node: NodeId,
        /// The epoch this belongs to.
        epoch: Epoch,
        /// Read-only, or no longer.
        on: bool,
    },
    /// Keep this for the next start of this proxy; nobody waits for it.
    Keep(Promise),
    /// Probe the node at once instead of at its next interval.
    ProbeNow(NodeId),
    /// Step with `Event::Tick` at this time.
    WakeAt(Time),
    /// Tell people (log line, counter).
    Tell(Notice),
}

/// A program of `[hooks]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookKind {
    /// Turns the old primary off.
    Fence,
    /// May speak against a candidate.
    BeforePromotion,
    /// After a promotion of ours.
    AfterPromotion,
    /// After any change of primary.
    RoleChange,
    /// A former primary streams as a standby again.
    Rejoin,
}

impl HookKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::Fence, Self::BeforePromotion, Self::AfterPromotion, Self::RoleChange, Self::Rejoin];

    /// Its setting.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fence => "fence_command",
            Self::BeforePromotion => "before_promotion",
            Self::AfterPromotion => "after_promotion",
            Self::RoleChange => "on_role_change",
            Self::Rejoin => "on_rejoin",
        }
    }
}

/// What a program is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookCall {
    /// Which program.
    pub kind: HookKind,
    /// The node it is about.
    pub node: NodeId,
    /// The epoch, that of the new primary.
    pub epoch: Epoch,
    /// The primary before.
    pub old: Option<NodeId>,
    /// The primary after.
    pub new: Option<NodeId>,
    /// The primary's timeline, as far as it is known.
    pub timeline: Option<TimelineId>,
    /// Why, in a few words.
    pub reason: &'static str,
}

/// What the machine believes, for the topology snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Who-is-primary number.
    pub epoch: Epoch,
    /// The primary, if writes may reach one.
    pub primary: Option<NodeId>,
    /// Whether writes flow.
    pub writes: Writes,
    /// One per configured node, by index.
    pub nodes: Vec<NodePlan>,
}

/// One node in a [`Plan`].
#[derive(Clone, Debug, PartialEq)]
pub struct NodePlan {
    /// Assigned role.
    pub role: Role,
    /// Health.
    pub health: Health,
    /// Fit for reads as far as role and health go (lag is the controller's).
    pub readable: bool,
    /// See `NodeView::fence`.
    pub fence: u64,
    /// Why the node is not used.
    pub note: Option<Arc<str>>,
}

/// Something people should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Who must act: `Info` nobody, `Warn` someone should look, `Error` someone must.
    pub level: Level,
    /// Metric label and event name, from a closed set (`primary_lost`, `failover_done`, …).
    pub kind: &'static str,
    /// The node it is about.
    pub node: Option<NodeId>,
    /// One sentence.
    pub text: String,
}

/// Who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nobody.
    Info,
    /// Someone should look.
    Warn,
    /// Someone must act.
    Error,
}
