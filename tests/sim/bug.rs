//! Defects that are built in on purpose, so that the checks are seen to find them. Each is one line where the harness
//! would have done right.

use crate::setup::{Setup, Store};

/// One defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Standbys are asked where they stand and stream on.
    NoFreeze,
    /// Restarts of voters are not seen.
    IgnoreIncarnation,
    /// Epochs are not recorded; the timeline stands for them.
    TimelineOnly,
    /// The lease counts from the answer, not from the question.
    LeaseFromReply,
    /// The exclusive lock is given although others hold shared ones.
    NoWait,
    /// Nodes are changed without the right to.
    Unlocked,
    /// Acknowledgements are believed without a look at the permit.
    NoPermit,
    /// The permit is looked at and not the clock: what a proxy finds when it thaws is believed.
    StalePermit,
    /// The permit is left to run out instead of being taken back before the lease is let go.
    KeepPermit,
    /// A commit whose wait for standbys was cancelled counts as committed.
    BelieveCancelled,
    /// A record counts as stored once one voter has it.
    RecordEarly,
    /// A standby that names itself is treated like any other.
    ForgetPending,
    /// Epochs count only where a majority has them: what others began is not known.
    MajorityOnly,
    /// Standbys seem to be on the newest timeline, wherever they are.
    BlindTimeline,
    /// etcd: who has lost his lease there counts as gone at once.
    ForgetHolders,
    /// etcd: the right is taken although somebody has it.
    NoCompare,
}

/// All of them.
pub const ALL: [Bug; 16] = [
    Bug::NoFreeze,
    Bug::IgnoreIncarnation,
    Bug::TimelineOnly,
    Bug::LeaseFromReply,
    Bug::NoWait,
    Bug::Unlocked,
    Bug::NoPermit,
    Bug::StalePermit,
    Bug::KeepPermit,
    Bug::BelieveCancelled,
    Bug::RecordEarly,
    Bug::ForgetPending,
    Bug::MajorityOnly,
    Bug::BlindTimeline,
    Bug::ForgetHolders,
    Bug::NoCompare,
];

impl Bug {
    /// More of the faults that the defect needs to show; they are rare otherwise.
    pub fn provoke(self, setup: &mut Setup) {
        (setup.keep_primary, setup.store, setup.proxies) = (false, Store::Voters, setup.proxies.max(2));
        // Two nodes alone cannot vote.
        setup.witnesses = setup.witnesses.max(usize::from(setup.nodes == 2));
        match self {
            Self::ForgetHolders | Self::NoCompare => {
                (setup.store, setup.sync, setup.witnesses, setup.duels, setup.revokes) = (Store::Etcd, 0, 0, 200, 300);
            }
            Self::LeaseFromReply => (setup.late, setup.sync) = (400, 0),
            Self::StalePermit => (setup.doze, setup.sync) = (400, 0),
            Self::RecordEarly | Self::ForgetPending => (setup.halves, setup.sync) = (500, 0),
            Self::IgnoreIncarnation => (setup.duels, setup.direct, setup.sync) = (500, false, 0),
            _ => setup.duels = 400,
        }
    }
}

/// By its name.
pub fn named(name: &str) -> Option<Bug> {
    ALL.into_iter().find(|bug| format!("{bug:?}") == name)
}
