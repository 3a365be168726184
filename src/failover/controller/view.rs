//! Holds, standing and outlook as people and programs read them.
//!
//! Invariants: words are from closed sets, numbers carry their unit in their name; ages and times left are as of the
//! status that they are part of. Absent on purpose: how they come about (`machine`).

use super::status::{millis, older, sooner};
use crate::clock::Time;
use crate::failover::hold::Hold;
use crate::failover::machine::{NodeOutlook, Outlook};
use crate::failover::standing::Standing;
use crate::ids::Epoch;
use serde::Serialize;
use std::time::Duration;

/// One reason why nothing happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HoldStatus {
    /// A word, from a closed set.
    pub kind: &'static str,
    /// The node that it is about.
    pub node: Option<String>,
    /// Whether it stands until a person acts.
    pub needs_person: bool,
    /// One sentence.
    pub text: String,
}

impl From<&Hold> for HoldStatus {
    fn from(hold: &Hold) -> Self {
        Self {
            kind: hold.kind(),
            node: hold.node().map(ToString::to_string),
            needs_person: hold.needs_person(),
            text: hold.to_string(),
        }
    }
}

/// Where this proxy stands with a store that several share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StandingStatus {
    /// Its lease for writes.
    pub lease: Option<LeaseStatus>,
    /// Its right to change the primary.
    pub right: Option<RightStatus>,
    /// Why what it wants is not had.
    pub lack: Option<String>,
    /// The highest epoch that was written anywhere.
    pub highest_epoch: Epoch,
    /// A standby that was chosen and is not promoted yet.
    pub pending: Option<String>,
    /// Another proxy carries out an operator's order.
    pub ordered: bool,
    /// The quorum is lost and writes go on all the same.
    pub quorum_lost_and_kept: bool,
}

/// A lease for writes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeaseStatus {
    /// To which node.
    pub primary: String,
    /// In which epoch.
    pub epoch: Epoch,
    /// Time left, ms.
    pub left_ms: u64,
}

/// The right to change the primary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RightStatus {
    /// Time left, ms.
    pub left_ms: u64,
    /// The nodes that may be acted on; `None`: all of them.
    pub nodes: Option<Vec<String>>,
}

impl StandingStatus {
    pub(super) fn new(standing: &Standing, now: Time) -> Self {
        let names = |held: &Vec<std::sync::Arc<str>>| held.iter().map(ToString::to_string).collect();
        Self {
            lease: standing.lease.as_ref().map(|lease| LeaseStatus {
                primary: lease.primary.to_string(),
                epoch: lease.epoch,
                left_ms: millis(lease.until.since(now)),
            }),
            right: standing.right.as_ref().map(|right| RightStatus {
                left_ms: millis(right.until.since(now)),
                nodes: right.held.as_ref().map(names),
            }),
            lack: standing.lack.as_ref().map(ToString::to_string),
            highest_epoch: standing.highest,
            pending: standing.pending.as_ref().map(ToString::to_string),
            ordered: standing.ordered,
            quorum_lost_and_kept: standing.kept,
        }
    }

    pub(super) fn age(&mut self, span: Duration) {
        self.lease.iter_mut().for_each(|lease| sooner(&mut lease.left_ms, span));
        self.right.iter_mut().for_each(|right| sooner(&mut right.left_ms, span));
    }
}

/// What a failover would come to, if the primary were lost now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OutlookStatus {
    /// Who would be promoted, by the positions of the last probes.
    pub candidate: Option<String>,
    /// What would keep it from starting.
    pub holds: Vec<HoldStatus>,
    /// Automatic failovers within the last hour.
    pub within_hour: usize,
    /// How many may be.
    pub max_per_hour: u32,
    /// Time until the next may begin, ms.
    pub gap_left_ms: u64,
}

impl From<&Outlook> for OutlookStatus {
    fn from(outlook: &Outlook) -> Self {
        Self {
            candidate: outlook.candidate.as_ref().map(ToString::to_string),
            holds: outlook.holds.iter().map(HoldStatus::from).collect(),
            within_hour: outlook.within_hour,
            max_per_hour: outlook.max_per_hour,
            gap_left_ms: millis(outlook.gap_left),
        }
    }
}

impl OutlookStatus {
    pub(super) fn age(&mut self, span: Duration) {
        sooner(&mut self.gap_left_ms, span);
    }
}

/// What is believed of one node, and what speaks against its promotion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CandidateStatus {
    /// What its latest probe said: `answering`, `silent`, `refuses_connections`, `refuses_monitor`, `starting`, …
    pub condition: &'static str,
    /// Probes without an answer in a row.
    pub misses: u32,
    /// How long ago the first outcome without a report was, ms.
    pub trouble_ms: Option<u64>,
    /// Why it may be called down: `refused`, `silent` or `overdue`.
    pub evidence: Option<&'static str>,
    /// `failover_priority`.
    pub priority: u32,
    /// An operator works on it.
    pub maintenance: bool,
    /// Commits of the primary wait for it.
    pub sync_member: bool,
    /// It was asked to stop streaming and has not streamed since.
    pub detached: bool,
    /// How far it has WAL, by its last probe.
    pub position: Option<String>,
    /// WAL seen somewhere that it lacks, bytes.
    pub behind_bytes: Option<u64>,
    /// Whether its promotion is a question at all; it is none for the primary that would be replaced.
    pub in_question: bool,
    /// What speaks against its promotion, a word.
    pub veto: Option<&'static str>,
    /// The same as half a sentence.
    pub why: Option<String>,
    /// Its place among those that could be promoted, from 1.
    pub rank: Option<usize>,
    /// The next one, and what puts this one before it: `pg3: it has more WAL`.
    pub before: Option<String>,
}

impl CandidateStatus {
    pub(super) fn new(node: &NodeOutlook, now: Time) -> Self {
        Self {
            condition: node.condition,
            misses: node.misses,
            trouble_ms: node.trouble_since.map(|since| millis(now.since(since))),
            evidence: node.evidence,
            priority: node.priority,
            maintenance: node.maintenance,
            sync_member: node.sync_member,
            detached: node.detached,
            position: node.position.map(|position| position.to_string()),
            behind_bytes: node.behind_bytes,
            in_question: node.in_question,
            veto: node.veto.map(|veto| veto.kind()),
            why: node.veto.map(|veto| veto.to_string()),
            rank: node.rank,
            before: node.before.as_ref().map(|(next, edge)| format!("{next}: {}", edge.words())),
        }
    }

    pub(super) fn age(&mut self, span: Duration) {
        self.trouble_ms.iter_mut().for_each(|age| older(age, span));
    }
}

/// Logs the holds whenever their set changes.
#[derive(Debug, Default)]
pub(super) struct HoldLog {
    last: Vec<String>,
}

impl HoldLog {
    /// Texts change with every moment (time left); kinds and nodes are what counts.
    pub(super) fn note(&mut self, holds: &[HoldStatus]) {
        let named = |hold: &HoldStatus| match &hold.node {
            Some(node) => format!("{}:{node}", hold.kind),
            None => hold.kind.to_owned(),
        };
        let now: Vec<String> = holds.iter().map(named).collect();
        if now == self.last {
            return;
        }
        let needs_person = holds.iter().any(|hold| hold.needs_person);
        let texts: Vec<&str> = holds.iter().map(|hold| &*hold.text).collect();
        let text = if texts.is_empty() { "nothing is held any more".to_owned() } else { texts.join("; ") };
        let set = now.join(",");
        if needs_person {
            tracing::warn!(kind = "holds", holds = set, needs_person, "{text}");
        } else {
            tracing::info!(kind = "holds", holds = set, needs_person, "{text}");
        }
        self.last = now;
    }
}
