//! Defects that are built in on purpose, so that the checks are seen to find them. Each is one line where the harness
//! would have done right.

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
    /// A commit whose wait for standbys was cancelled counts as committed.
    BelieveCancelled,
}

/// Found within few seeds. A lease that counts from the answer is not among them: it takes late answers and a change of
/// primary within the same second.
pub const QUICK: [Bug; 7] = [
    Bug::NoFreeze,
    Bug::IgnoreIncarnation,
    Bug::TimelineOnly,
    Bug::NoWait,
    Bug::Unlocked,
    Bug::NoPermit,
    Bug::BelieveCancelled,
];

/// By its name.
pub fn named(name: &str) -> Option<Bug> {
    QUICK.into_iter().chain([Bug::LeaseFromReply]).find(|bug| format!("{bug:?}") == name)
}
