//! Why nothing happens, as data.
//!
//! Invariants: every refusal of the machine has a variant here; texts name nodes, not numbers.

mod veto;

pub use veto::Veto;

use super::standing::Lack;
use super::sync::Method;
use crate::ids::TimelineId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One reason not to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The store has not said yet what it remembers.
    NotRecalled,
    /// The node has not answered since the start.
    NotClassified {
        /// The node.
        node: Arc<str>,
    },
    /// No node is or was primary, as far as anyone remembers.
    NoPrimaryKnown,
    /// Nodes of several systems answer and none has the majority.
    SystemUnclear,
    /// An operator said pause.
    Paused,
    /// A person promotes.
    ManualMode,
    /// Another tool promotes.
    FollowMode,
    /// The last automatic failover was too short a time ago.
    MinGap {
        /// Time left.
        left: Duration,
    },
    /// Too many automatic failovers within an hour.
    HourLimit {
        /// The limit.
        max: u32,
        /// Time left until the oldest is an hour ago.
        left: Duration,
    },
    /// The primary restarts in place.
    PrimaryRestarting {
        /// The primary.
        node: Arc<str>,
        /// Time left until it is given up.
        left: Duration,
    },
    /// The primary is in recovery; someone may be switching over by hand.
    PrimaryDemoted {
        /// The old primary.
        node: Arc<str>,
        /// Time left until another is promoted.
        left: Duration,
    },
    /// The primary is alive but refuses the monitor.
    PrimaryAlive {
        /// The primary.
        node: Arc<str>,
    },
    /// The primary misses probes, not yet enough of them.
    PrimarySuspect {
        /// The primary.
        node: Arc<str>,
    },
    /// The primary lives, but not well.
    PrimaryAils {
        /// The primary.
        node: Arc<str>,
        /// What it suffers from.
        how: Complaint,
    },
    /// No standby serves fresh connections either.
    NobodyServes,
    /// The old primary answers again; whether it stays is not known yet.
    OldPrimaryAnswers {
        /// The old primary.
        node: Arc<str>,
    },
    /// A standby has not yet said whether it still hears from the primary.
    AwaitingReceiver {
        /// The standby.
        node: Arc<str>,
    },
    /// A node whose promotion failed has not yet said what became of it.
    AwaitingReport {
        /// The node.
        node: Arc<str>,
    },
    /// A standby still hears from the primary.
    StandbyHears {
        /// The standby.
        node: Arc<str>,
        /// The primary.
        primary: Arc<str>,
    },
    /// More than one node accepts writes.
    TwoPrimaries {
        /// All that claim to be primary.
        nodes: Vec<Arc<str>>,
    },
    /// A node accepts writes that was neither recorded nor promoted from the known timeline.
    UnrecordedPrimary {
        /// The node.
        node: Arc<str>,
        /// Its timeline.
        timeline: TimelineId,
    },
    /// A node accepts writes whose history is not that of the last primary.
    OtherLine {
        /// The node.
        node: Arc<str>,
        /// Its timeline.
        timeline: TimelineId,
        /// The last primary's.
        last: TimelineId,
    },
    /// A node accepts writes, and another node was primary after it.
    Outgrown {
        /// The node.
        node: Arc<str>,
        /// A standby on a newer timeline; `None`: what the voters have written down says so.
        standby: Option<Arc<str>>,
    },
    /// Follow mode: a node says that it is primary, and Patroni does not.
    PatroniDisagrees {
        /// The node.
        node: Arc<str>,
    },
    /// Follow mode: a node has said once that it is primary, and Patroni says nothing.
    SeenOnce {
        /// The node.
        node: Arc<str>,
    },
    /// The same change failed a moment ago.
    RetryLater {
        /// Time left.
        left: Duration,
    },
    /// There is no standby to promote.
    NoStandby,
    /// A standby is no candidate.
    NoCandidate {
        /// The standby.
        node: Arc<str>,
        /// Why.
        why: Veto,
    },
    /// Other proxies share the store, and this one may not change the primary yet.
    AwaitingRight {
        /// Why.
        lack: Lack,
    },
    /// Nodes that are out of recovery follow nobody but themselves, and too few others are left to make a standby primary.
    OutOfRecovery {
        /// The nodes.
        nodes: Vec<Arc<str>>,
    },
    /// Other proxies share the store, and this one may not route writes.
    NoLease {
        /// Why.
        lack: Lack,
    },
    /// The old primary may still take writes.
    FenceFailed {
        /// It.
        node: Arc<str>,
        /// How often in a row the command failed.
        tries: u32,
        /// Why it did last.
        why: Arc<str>,
    },
    /// Commits wait for fewer standbys than they should.
    SyncDegraded {
        /// How many they wait for.
        k: usize,
        /// How many they should wait for.
        wanted: usize,
    },
    /// This proxy has never seen the primary and cannot know whether its commits waited for standbys.
    SyncUnknown {
        /// The nodes that are not at hand.
        missing: Vec<Arc<str>>,
    },
    /// Synchronous replication: nobody can tell whether the standbys at hand have every acknowledged commit.
    SyncTooFew {
        /// Who acknowledged, among the named.
        method: Method,
        /// k: how many each commit waited for.
        k: usize,
        /// N: how many may have acknowledged.
        n: usize,
        /// R: how many of them are at hand.
        still: usize,
        /// The others.
        missing: Vec<Arc<str>>,
    },
    /// A change is under way and waits for a node or the store.
    Waiting {
        /// For what.
        what: Awaited,
        /// The node, if it is one.
        node: Option<Arc<str>>,
    },
}

/// What a change under way waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Standbys to stop streaming.
    Detach,
    /// The store to accept the record.
    Record,
    /// The candidate to leave recovery.
    Promotion,
    /// The fence command to say that the old primary is off.
    Fence,
    /// `before_promotion` to speak.
    Hook,
    /// `synchronous_standby_names` to be set.
    Names,
}

/// What a primary that lives suffers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// It does not answer the probe in time, but is heard on other sessions.
    Slow,
    /// It has no space for WAL.
    DiskFull {
        /// Time left until it is given up.
        left: Duration,
    },
    /// The disk with its WAL reports errors.
    DiskFails {
        /// Time left until it is given up.
        left: Duration,
    },
    /// A commit does not end.
    WritesHang {
        /// How long it has been so.
        lasts: Duration,
        /// Time left until it is given up.
        left: Duration,
    },
    /// It does not say so itself: the network may have lost the commit's answer.
    NotAdmitted,
    /// It serves no fresh connections; older sessions go on.
    ListenerHangs {
        /// How long it has been so.
        lasts: Duration,
        /// Time left until it is given up.
        left: Duration,
    },
}

impl Hold {
    /// A word for programs; part of what JSON, metrics and the console say.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotRecalled => "not_recalled",
            Self::NotClassified { .. } => "not_classified",
            Self::NoPrimaryKnown => "no_primary_known",
            Self::SystemUnclear => "system_unclear",
            Self::Paused => "paused",
            Self::ManualMode => "manual_mode",
            Self::FollowMode => "follow_mode",
            Self::MinGap { .. } => "min_gap",
            Self::HourLimit { .. } => "hour_limit",
            Self::PrimaryRestarting { .. } => "primary_restarting",
            Self::PrimaryDemoted { .. } => "primary_demoted",
            Self::PrimaryAlive { .. } => "primary_alive",
            Self::PrimarySuspect { .. } => "primary_suspect",
            Self::PrimaryAils { .. } => "primary_ails",
            Self::NobodyServes => "nobody_serves",
            Self::OldPrimaryAnswers { .. } => "old_primary_answers",
            Self::AwaitingReceiver { .. } => "awaiting_receiver",
            Self::AwaitingReport { .. } => "awaiting_report",
            Self::StandbyHears { .. } => "standby_hears",
            Self::TwoPrimaries { .. } => "two_primaries",
            Self::UnrecordedPrimary { .. } => "unrecorded_primary",
            Self::OtherLine { .. } => "other_line",
            Self::Outgrown { .. } => "outgrown",
            Self::PatroniDisagrees { .. } => "patroni_disagrees",
            Self::SeenOnce { .. } => "seen_once",
            Self::RetryLater { .. } => "retry_later",
            Self::NoStandby => "no_standby",
            Self::NoCandidate { .. } => "no_candidate",
            Self::AwaitingRight { .. } => "awaiting_right",
            Self::OutOfRecovery { .. } => "out_of_recovery",
            Self::NoLease { .. } => "no_lease",
            Self::FenceFailed { .. } => "fence_failed",
            Self::SyncDegraded { .. } => "sync_degraded",
            Self::SyncUnknown { .. } => "sync_unknown",
            Self::SyncTooFew { .. } => "sync_too_few",
            Self::Waiting { .. } => "waiting",
        }
    }

    /// The one node that it is about, if it is about one.
    #[must_use]
    pub fn node(&self) -> Option<&Arc<str>> {
        match self {
            Self::NotClassified { node }
            | Self::PrimaryRestarting { node, .. }
            | Self::PrimaryDemoted { node, .. }
            | Self::PrimaryAlive { node }
            | Self::PrimarySuspect { node }
            | Self::PrimaryAils { node, .. }
            | Self::OldPrimaryAnswers { node }
            | Self::AwaitingReceiver { node }
            | Self::AwaitingReport { node }
            | Self::StandbyHears { node, .. }
            | Self::UnrecordedPrimary { node, .. }
            | Self::OtherLine { node, .. }
            | Self::Outgrown { node, .. }
            | Self::FenceFailed { node, .. }
            | Self::PatroniDisagrees { node }
            | Self::SeenOnce { node }
            | Self::NoCandidate { node, .. } => Some(node),
            Self::Waiting { node, .. } => node.as_ref(),
            Self::NotRecalled
            | Self::NoPrimaryKnown
            | Self::SystemUnclear
            | Self::Paused
            | Self::ManualMode
            | Self::FollowMode
            | Self::MinGap { .. }
            | Self::HourLimit { .. }
            | Self::NobodyServes
            | Self::OutOfRecovery { .. }
            | Self::TwoPrimaries { .. }
            | Self::RetryLater { .. }
            | Self::NoStandby
            | Self::AwaitingRight { .. }
            | Self::NoLease { .. }
            | Self::SyncDegraded { .. }
            | Self::SyncUnknown { .. }
            | Self::SyncTooFew { .. } => None,
        }
    }

    /// Whether it stands until a person acts (the others end by themselves).
    #[must_use]
    pub fn needs_person(&self) -> bool {
        match self {
            Self::NoPrimaryKnown
            | Self::SystemUnclear
            | Self::Paused
            | Self::ManualMode
            | Self::HourLimit { .. }
            | Self::PrimaryAlive { .. }
            | Self::PrimaryAils { .. }
            | Self::NobodyServes
            | Self::StandbyHears { .. }
            | Self::TwoPrimaries { .. }
            | Self::UnrecordedPrimary { .. }
            | Self::OtherLine { .. }
            | Self::Outgrown { .. }
            | Self::NoStandby
            | Self::FenceFailed { .. }
            | Self::SyncDegraded { .. }
            | Self::SyncUnknown { .. }
            | Self::SyncTooFew { .. }
            | Self::NoCandidate { .. } => true,
            Self::OutOfRecovery { .. } => true,
            Self::AwaitingRight { lack } | Self::NoLease { lack } => matches!(lack, Lack::Voters { .. }),
            Self::NotRecalled
            | Self::NotClassified { .. }
            | Self::FollowMode
            | Self::MinGap { .. }
            | Self::PrimaryRestarting { .. }
            | Self::PrimaryDemoted { .. }
            | Self::PrimarySuspect { .. }
            | Self::OldPrimaryAnswers { .. }
            | Self::AwaitingReceiver { .. }
            | Self::AwaitingReport { .. }
            | Self::PatroniDisagrees { .. }
            | Self::SeenOnce { .. }
            | Self::RetryLater { .. }
            | Self::Waiting { .. } => false,
        }
    }
}

fn outgrown(f: &mut fmt::Formatter<'_>, node: &str, standby: Option<&str>) -> fmt::Result {
    let witness = standby.map(|standby| format!("standby {standby} is on a newer timeline"));
    let witness = witness.unwrap_or_else(|| "the voters have a newer timeline written down".to_owned());
    let all_the_same = format!("FAILOVER TO {node} takes it all the same");
    write!(f, "{node} accepts writes, but {witness}: another node was primary after it ({all_the_same})")
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRecalled => f.write_str("the record of the last primary has not been read yet"),
            Self::NotClassified { node } => write!(f, "{node} has not answered since the start"),
            Self::NoPrimaryKnown => f.write_str("no node is primary, and none is recorded as the last one"),
            Self::SystemUnclear => f.write_str("nodes of different systems answer and none has the majority"),
            Self::Paused => f.write_str("paused by an operator"),
            Self::ManualMode => f.write_str("failover = \"manual\": a person promotes"),
            Self::FollowMode => f.write_str("failover = \"follow\": another tool promotes"),
            Self::MinGap { left } => write!(f, "the last failover was too recent, {} left", Span(*left)),
            Self::HourLimit { max, left } => {
                write!(f, "{max} failovers within an hour are the limit, {} left", Span(*left))
            }
            Self::PrimaryRestarting { node, left } => {
                write!(f, "{node} restarts in place, given up in {}", Span(*left))
            }
            Self::PrimaryDemoted { node, left } => {
                write!(f, "{node} turned into a standby; a switchover by hand gets {} more", Span(*left))
            }
            Self::PrimaryAlive { node } => write!(f, "{node} is alive but refuses the monitor"),
            Self::PrimarySuspect { node } => write!(f, "{node} misses probes, not yet enough of them"),
            Self::PrimaryAils { node, how } => write!(f, "{node} {how}"),
            Self::NobodyServes => f.write_str("no standby serves new connections either: the cause lies elsewhere"),
            Self::OldPrimaryAnswers { node } => write!(f, "{node} answers as primary again"),
            Self::AwaitingReceiver { node } => {
                write!(f, "waiting for {node} to say whether it still hears from the primary")
            }
            Self::AwaitingReport { node } => write!(f, "waiting for {node} to say what became of its promotion"),
            Self::StandbyHears { node, primary } => write!(f, "standby {node} still hears from {primary}"),
            Self::TwoPrimaries { nodes } => write!(f, "several nodes accept writes: {}", nodes.join(", ")),
            Self::UnrecordedPrimary { node, timeline } => {
                write!(f, "{node} accepts writes on timeline {timeline} but was never promoted from it")
            }
            Self::OtherLine { node, timeline, last } => other_line(f, node, [timeline, last]),
            Self::Outgrown { node, standby } => outgrown(f, node, standby.as_deref()),
            Self::PatroniDisagrees { node } => {
                write!(f, "{node} accepts writes, but Patroni does not call it the leader")
            }
            Self::SeenOnce { node } => write!(f, "{node} has said only once so far that it is the primary"),
            Self::RetryLater { left } => write!(f, "the last attempt failed, next one in {}", Span(*left)),
            Self::NoStandby => f.write_str("there is no standby to promote"),
            Self::FenceFailed { node, tries, why } => {
                write!(f, "{node} could not be fenced ({tries} times in a row, the last time: {why})")
            }
            Self::SyncDegraded { k, wanted } => {
                write!(f, "commits wait for {k} standbys instead of {wanted}: what is acknowledged may be lost")
            }
            Self::SyncUnknown { missing } => unknown(f, missing),
            Self::SyncTooFew { method, k, n, still, missing } => too_few(f, *method, [*k, *n, *still], missing),
            Self::NoCandidate { node, why } => write!(f, "{node} cannot be promoted: {why}"),
            Self::AwaitingRight { lack } => write!(f, "this proxy may not change the primary: {lack}"),
            Self::OutOfRecovery { nodes } => write!(
                f,
                "too few voters can follow a new primary; out of recovery and in need of pg_rewind: {}",
                nodes.join(", ")
            ),
            Self::NoLease { lack } => write!(f, "this proxy may not route writes: {lack}"),
            Self::Waiting { what, node } => {
                let node = node.as_deref().unwrap_or("the standbys");
                match what {
                    Awaited::Detach => write!(f, "waiting until {node} stand still"),
                    Awaited::Record => write!(f, "waiting until {node} is recorded as primary"),
                    Awaited::Fence => write!(f, "waiting until the fence command says that {node} is off"),
                    Awaited::Hook => write!(f, "waiting for before_promotion to agree to {node}"),
                    Awaited::Names => write!(f, "waiting until synchronous_standby_names is set on {node}"),
                    Awaited::Promotion => write!(f, "waiting until {node} is promoted"),
                }
            }
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow => f.write_str("does not answer the probe in time, but is heard on other sessions"),
            Self::DiskFull { left } => write!(f, "has no space for WAL{}", GivenUp(*left)),
            Self::DiskFails { left } => write!(f, "has a failing disk under its WAL{}", GivenUp(*left)),
            Self::WritesHang { lasts, left } => {
                write!(f, "has not finished a commit for {}{}", Span(*lasts), GivenUp(*left))
            }
            Self::NotAdmitted => f.write_str("itself knows of no commit that has not ended for so long"),
            Self::ListenerHangs { lasts, left } => {
                write!(f, "has served no new connection for {} (older ones go on){}", Span(*lasts), GivenUp(*left))
            }
        }
    }
}

/// When a primary is given up; nothing once that time has come, because then something else keeps it.
struct GivenUp(Duration);

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { Ok(()) } else { write!(f, ", given up in {}", Span(self.0)) }
    }
}

fn unknown(f: &mut fmt::Formatter<'_>, missing: &[Arc<str>]) -> fmt::Result {
    let names = missing.join(", ");
    write!(
        f,
        "this proxy has not seen the primary and cannot know whether its commits waited for one of the standbys that are \
         missing: {names}"
    )
}

fn other_line(f: &mut fmt::Formatter<'_>, node: &str, [has, last]: [&TimelineId; 2]) -> fmt::Result {
    let whose = format!("whose history is not that of the last primary's timeline {last}");
    write!(f, "{node} accepts writes on timeline {has}, {whose}: name it as the primary, or stop it")
}

fn too_few(f: &mut fmt::Formatter<'_>, method: Method, [k, n, still]: [usize; 3], missing: &[Arc<str>]) -> fmt::Result {
    let (word, names) = (method.word(), missing.join(", "));
    let counted = if method == Method::First { "; FIRST counts like ANY" } else { "" };
    write!(
        f,
        "synchronous replication ({word} {k} of {n}): {still} at hand and {k} to acknowledge are not more than {n}, so \
         commits may be on the missing only ({names}){counted}"
    )
}

/// A span in seconds with one digit.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}
