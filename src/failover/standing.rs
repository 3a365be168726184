//! Where this proxy stands with the store that several proxies share: what the register says, whether
//! writes may be routed, whether the primary may be changed. Pure data.
//!
//! Invariants: a lease and a right end at their `until` without any event; nobody holds a right while
//! another proxy holds a lease (the store sees to that). Absent on purpose: how a store comes to say
//! so; a store for one proxy says nothing, and then everything is allowed at any time.

use super::event::Record;
use crate::clock::Time;
use crate::ids::{Epoch, TimelineId};
use std::fmt;
use std::sync::Arc;

/// What this proxy wants of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Claim {
    /// Neither; whoever wants to change the primary shall not wait for us.
    #[default]
    Nothing,
    /// A lease: to route writes to the primary of the register.
    Route,
    /// The right: to change the primary, alone.
    Change,
    /// The right, because an operator ordered it: other proxies give way although they see the primary.
    Order,
}

impl Claim {
    /// Whether it is for the right to change the primary.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Change | Self::Order)
    }
}

/// Writes of `epoch` may be routed to `primary`, and its replies believed, before `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Name of the primary.
    pub primary: Arc<str>,
    /// Its epoch.
    pub epoch: Epoch,
    /// The end; a later event may move it either way.
    pub until: Time,
}

/// The primary may be changed before `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// The end; a later event may move it either way.
    pub until: Time,
    /// The nodes that may be acted on, by name; `None`: all of them.
    pub held: Option<Vec<Arc<str>>>,
    /// Held voters that can follow nobody but themselves (out of recovery), where too few others are left to make
    /// a standby primary; empty: a standby may be chosen.
    pub stubborn: Vec<Arc<str>>,
    /// Where nodes are held: the standbys that were not chosen by anybody, as they said after the right was had.
    pub idle: Vec<Arc<str>>,
}

/// Why what was claimed is not had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It was asked for a moment ago.
    Pending,
    /// Too few voters answer.
    Voters {
        /// Those that do not.
        missing: Vec<Arc<str>>,
        /// How many must answer.
        needed: usize,
    },
    /// Voters answer, and no majority of them follows one primary.
    Split,
    /// Another proxy holds a lease, or the right.
    Taken,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("asked for a moment ago"),
            Self::Voters { missing, needed } => {
                write!(f, "{} voters must answer, and these do not: {}", needed, missing.join(", "))
            }
            Self::Split => f.write_str("no majority of the voters follows one primary"),
            Self::Taken => f.write_str("another proxy still routes writes or changes the primary"),
        }
    }
}

impl Standing {
    /// What is left at the moment in which something else is claimed, before the store has done anything: a lease or
    /// right that is let go is gone here first. True when anything changed.
    pub fn let_go(&mut self, claim: Claim) -> bool {
        let (lease, right) = (self.lease.is_some(), self.right.is_some());
        if claim != Claim::Route {
            (self.lease, self.kept) = (None, false);
        }
        if !claim.changes() {
            self.right = None;
        }
        lease != self.lease.is_some() || right != self.right.is_some()
    }
}

/// Everything at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What the register says, as far as a majority of voters says the same.
    pub register: Option<Record>,
    /// The highest epoch that was written anywhere, perhaps by a change that was never finished.
    pub highest: Epoch,
    /// Whom that epoch names.
    pub chosen: Option<Arc<str>>,
    /// The highest timeline seen with that epoch.
    pub timeline: TimelineId,
    /// The timeline that whom it names has at least, once promoted, as was written down with that epoch; 0: not known.
    pub least_timeline: TimelineId,
    /// A standby that was chosen and has not left recovery: it may do so at any moment, whoever asked it to,
    /// so nobody else may be chosen before it has.
    pub pending: Option<Arc<str>>,
    /// The lease, under [`Claim::Route`].
    pub lease: Option<Lease>,
    /// Standbys that follow the primary of the lease and lack its epoch, rebuilt ones for instance: a register that
    /// rests on them alone would give the number out again.
    pub unmarked: Vec<Arc<str>>,
    /// The right, under [`Claim::Change`] or [`Claim::Order`].
    pub right: Option<Right>,
    /// Why what was claimed is not had.
    pub lack: Option<Lack>,
    /// Another proxy carries out an operator's order and waits for our lease to end.
    pub ordered: bool,
    /// The quorum is lost and the lease goes on all the same (`on_quorum_loss = "keep_primary"`).
    pub kept: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_is_gone_at_once() {
        let until = Time::NEVER;
        let lease = Lease { primary: "a".into(), epoch: Epoch(1), until };
        let right = Right { until, held: None, stubborn: Vec::new(), idle: Vec::new() };
        let both = Standing { lease: Some(lease), right: Some(right), ..Standing::default() };
        for (claim, leased, may_change) in [
            (Claim::Nothing, false, false),
            (Claim::Route, true, false),
            (Claim::Change, false, true),
            (Claim::Order, false, true),
        ] {
            let mut standing = both.clone();
            assert!(standing.let_go(claim));
            assert_eq!((standing.lease.is_some(), standing.right.is_some()), (leased, may_change), "{claim:?}");
            assert!(!standing.let_go(claim));
        }
    }
}
