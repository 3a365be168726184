//! What a failover would come to, if the primary were lost now: for people who look before it happens.
//!
//! Invariants: reading changes nothing; holds and vetoes come from the functions that a failover asks, so that what is
//! foretold is what would be done by the same facts. Absent on purpose: guesses about facts to come (a standby that
//! cannot be stopped, a store that does not answer).

use super::Machine;
use crate::clock::Time;
use crate::failover::candidate::{Edge, rank, veto};
use crate::failover::hold::{Hold, Veto};
use crate::failover::node_state::{Condition, Evidence, NodeState};
use crate::failover::standing::Lack;
use crate::failover::state::{Cause, Outage, State};
use crate::ids::{Lsn, NodeId};
use crate::topology::NodeReport;
use std::sync::Arc;
use std::time::Duration;

/// What a failover would come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Who would be promoted, by present positions.
    pub candidate: Option<Arc<str>>,
    /// What would keep it from starting.
    pub holds: Vec<Hold>,
    /// Automatic failovers within the last hour.
    pub within_hour: usize,
    /// How many may be.
    pub max_per_hour: u32,
    /// Time left until the next one may begin.
    pub gap_left: Duration,
    /// One per node, in the order of the configuration.
    pub nodes: Vec<NodeOutlook>,
}

/// What is believed of one node, and what speaks against its promotion.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeOutlook {
    /// What its latest probe said, in a word.
    pub condition: &'static str,
    /// Probes without an answer in a row.
    pub misses: u32,
    /// The first outcome without a report since the last report.
    pub trouble_since: Option<Time>,
    /// Why it may be called down.
    pub evidence: Option<&'static str>,
    /// `failover_priority`.
    pub priority: u32,
    /// An operator works on it.
    pub maintenance: bool,
    /// Commits of the primary wait for it.
    pub sync_member: bool,
    /// It was asked to stop streaming and has not streamed since.
    pub detached: bool,
    /// How far it has WAL.
    pub position: Option<Lsn>,
    /// WAL seen somewhere that it lacks, bytes.
    pub behind_bytes: Option<u64>,
    /// Whether it is a question at all: the primary that would be replaced is no candidate.
    pub in_question: bool,
    /// What speaks against its promotion.
    pub veto: Option<Veto>,
    /// Its place among those that could be promoted, from 1.
    pub rank: Option<usize>,
    /// The next one, and what puts this one before it.
    pub before: Option<(Arc<str>, Edge)>,
}

impl Machine {
    /// What a failover would come to, if the primary were lost now.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        let outage = self.presumed_outage();
        let mut candidates = self.candidates(&[]);
        candidates.retain(|candidate| Some(candidate.node) != outage.old);
        let bar = self.bar_if_still(&outage, &candidates);
        let ranked = rank(&candidates, &bar);
        let chosen = ranked.first().map(|(candidate, _)| candidate.node);
        let mut holds = self.own_holds();
        if chosen.is_none() {
            holds.extend(self.candidate_holds(&candidates, &bar));
        }
        if outage.order.is_none() {
            holds.extend(self.sync_hold());
        }
        let lack = self.standing.as_ref().and_then(|standing| standing.lack.clone());
        holds.extend(lack.filter(|lack| matches!(lack, Lack::Voters { .. })).map(|lack| Hold::AwaitingRight { lack }));
        let nodes = self.policy.ids().map(|id| {
            let in_question = outage.old != Some(id);
            let known = candidates.iter().find(|candidate| candidate.node == id);
            let against = known.map_or(Some(Veto::NotHealthy), |candidate| veto(candidate, &bar));
            let mut outlook = self.node_outlook(id, in_question, against.filter(|_| in_question));
            if let Some(at) = ranked.iter().position(|(candidate, _)| candidate.node == id) {
                outlook.rank = Some(at + 1);
                outlook.before = ranked[at].1.map(|(next, edge)| (self.name(next).clone(), edge));
            }
            outlook
        });
        Outlook {
            candidate: chosen.map(|id| self.name(id).clone()),
            holds,
            within_hour: self.within_hour(),
            max_per_hour: self.policy.max_per_hour,
            gap_left: self.gap_left(),
            nodes: nodes.collect(),
        }
    }

    /// The outage that is going on, or the one that would begin now.
    fn presumed_outage(&self) -> Outage {
        let old = match self.state {
            State::Stable { primary, .. } | State::Adopting { primary, .. } => Some(primary),
            _ => None,
        };
        let presumed = Outage { old, since: self.now, cause: Cause::Silent, order: None };
        self.state.outage().copied().unwrap_or(presumed)
    }

    fn node_outlook(&self, id: NodeId, in_question: bool, veto: Option<Veto>) -> NodeOutlook {
        let node = self.node(id);
        // A primary's second position is what it has inserted, perhaps not flushed.
        let reached = |report: &NodeReport| if report.in_recovery { report.replay_lsn } else { report.flush_lsn };
        let position = node.report.as_ref().map(|report| report.flush_lsn.max(reached(report)));
        NodeOutlook {
            condition: condition_word(node),
            misses: match node.condition {
                Condition::Failing { misses, .. } => misses,
                _ => 0,
            },
            trouble_since: node.trouble_since,
            evidence: node.evidence(&self.policy, self.now).map(|evidence| match evidence {
                Evidence::Refused => "refused",
                Evidence::Silent => "silent",
                Evidence::Overdue => "overdue",
            }),
            priority: self.policy.nodes[id.index()].priority,
            maintenance: node.maintenance,
            sync_member: self.sync_member(id),
            detached: node.detached,
            position,
            behind_bytes: position.map(|position| self.highest.bytes_since(position)),
            in_question,
            veto,
            rank: None,
            before: None,
        }
    }
}

fn condition_word(node: &NodeState) -> &'static str {
    match node.condition {
        Condition::Unprobed => "unprobed",
        Condition::Answering => "answering",
        Condition::Busy => "refuses_monitor",
        Condition::Slow => "slow",
        Condition::Starting => "starting",
        Condition::Stopping => "stopping",
        Condition::Failing { refused: true, .. } => "refuses_connections",
        Condition::Failing { .. } => "silent",
    }
}
