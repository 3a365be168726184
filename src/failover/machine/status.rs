//! What the machine says about itself: why nothing happens, and where things stand.
//!
//! Invariants: reading changes nothing; whatever keeps a failover from starting is computed by the
//! same functions that `judge` asks, so that the output cannot disagree with the decision.

use super::Machine;
use crate::clock::Time;
use crate::config::FailoverMode;
use crate::failover::candidate::elect;
use crate::failover::hold::{Awaited, Complaint, Hold};
use crate::failover::node_state::Condition;
use crate::failover::policy::{DEMOTED_GRACE, HOUR};
use crate::failover::state::{Cause, Flow, Outage, State, Step};
use crate::ids::{Epoch, NodeId, SystemId, TimelineId};
use crate::topology::Health;
use std::sync::Arc;
use std::time::Duration;

/// Where things stand, for status output.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// One word: `starting`, `stable`, `doubted`, `restarting`, `yielding`, `lost`, `adopting`, `following`, `freezing`,
    /// `preparing`, `recording`, `promoting`, `confirming`, `contested` or `halted`.
    pub state: &'static str,
    /// Who-is-primary number.
    pub epoch: Epoch,
    /// Name of the primary, while writes flow or are about to.
    pub primary: Option<Arc<str>>,
    /// The primary's timeline.
    pub timeline: Option<TimelineId>,
    /// Cluster identity.
    pub system_id: Option<SystemId>,
    /// Who promotes.
    pub mode: FailoverMode,
    /// An operator said pause.
    pub paused: bool,
    /// Why nothing happens.
    pub holds: Vec<Hold>,
    /// Failovers carried out since the start.
    pub failovers: u64,
    /// The last of them.
    pub last_failover: Option<LastFailover>,
}

/// One failover that was carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct LastFailover {
    /// The primary before.
    pub from: Option<Arc<str>>,
    /// The primary after.
    pub to: Arc<str>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Why.
    pub cause: Cause,
    /// When the old primary was given up.
    pub lost_at: Time,
    /// When writes flowed again.
    pub done_at: Time,
    /// WAL that was seen somewhere and that the new primary lacked, bytes. What the old primary
    /// wrote after its last probe is not in it.
    pub missing_bytes: u64,
}

impl Machine {
    /// Why nothing happens. Empty when there is nothing to do.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        let mut holds = match &self.state {
            State::Starting { since } => self.start_holds(*since),
            State::Stable { primary, flow, .. } => self.stable_holds(*primary, *flow),
            State::Lost { outage } => self.lost_holds(outage),
            State::Adopting { primary, action, .. } => {
                let wanting = action.is_none() && !self.has_right();
                let lack = wanting.then(|| Hold::AwaitingRight { lack: self.lack() });
                [self.waiting(Awaited::Record, Some(*primary))].into_iter().chain(lack).collect()
            }
            State::Following { primary, .. } => vec![self.waiting(Awaited::Promotion, Some(*primary))],
            State::Freezing { outage, .. } => self.change_holds(outage, Awaited::Detach, None),
            State::Preparing { candidate, step: Step::Name, .. } => {
                vec![self.waiting(Awaited::Names, Some(*candidate))]
            }
            State::Preparing { candidate, step: Step::Ask, .. } => {
                vec![self.waiting(Awaited::Hook, Some(*candidate))]
            }
            State::Preparing { outage, step: Step::Fence, .. } => vec![self.waiting(Awaited::Fence, outage.old)],
            State::Recording { outage, candidate, .. } => self.change_holds(outage, Awaited::Record, Some(*candidate)),
            State::Promoting { candidate, .. } => vec![self.waiting(Awaited::Promotion, Some(*candidate))],
            State::Confirming { primary, .. } => vec![self.waiting(Awaited::Record, Some(*primary))],
            State::Contested { primary, confirmed, .. } => self.contested_holds(*primary, *confirmed),
        };
        if self.paused && !holds.contains(&Hold::Paused) {
            holds.insert(0, Hold::Paused);
        }
        holds.extend(self.degraded_hold());
        holds
    }

    /// Where things stand.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let primary = match &self.state {
            State::Stable { primary, .. } | State::Adopting { primary, .. } | State::Confirming { primary, .. } => {
                Some(*primary)
            }
            _ => None,
        };
        Summary {
            state: self.state.word(),
            epoch: self.epoch,
            primary: primary.map(|p| self.name(p).clone()),
            timeline: self.timeline,
            system_id: self.system_id,
            mode: self.policy.mode,
            paused: self.paused,
            holds: self.holds(),
            failovers: self.failovers_total,
            last_failover: self.last_failover.clone(),
        }
    }

    fn waiting(&self, what: Awaited, node: Option<NodeId>) -> Hold {
        Hold::Waiting { what, node: node.map(|n| self.name(n).clone()) }
    }

    fn change_holds(&self, outage: &Outage, what: Awaited, node: Option<NodeId>) -> Vec<Hold> {
        match self.standing_old(outage) {
            Some(old) => vec![Hold::OldPrimaryAnswers { node: self.name(old).clone() }],
            None => vec![self.waiting(what, node)],
        }
    }

    fn start_holds(&self, since: Time) -> Vec<Hold> {
        if !self.recalled {
            return vec![Hold::NotRecalled];
        }
        if !self.classified(since) {
            let missing = self.policy.ids().filter(|id| !self.node(*id).classified());
            return missing.map(|id| Hold::NotClassified { node: self.name(id).clone() }).collect();
        }
        if self.system_id.is_none() && self.nodes.iter().any(|n| n.report.is_some()) {
            return vec![Hold::SystemUnclear];
        }
        if self.now < self.store_retry_at {
            return vec![Hold::RetryLater { left: self.store_retry_at.since(self.now) }];
        }
        if let Some(claimant) = self.claimants().first() {
            let suspect = || Hold::PrimarySuspect { node: self.name(*claimant).clone() };
            let hold = self.doubt(*claimant).or_else(|| self.outgrown_hold(*claimant));
            return vec![hold.unwrap_or_else(suspect)];
        }
        match self.recorded_primary().filter(|p| self.node(*p).restarting()) {
            Some(primary) => vec![self.restart_hold(primary)],
            None => vec![Hold::NoPrimaryKnown],
        }
    }

    fn stable_holds(&self, primary: NodeId, flow: Flow) -> Vec<Hold> {
        let node = self.node(primary);
        if let Some(hold) = node.evidence(&self.policy, self.now).and_then(|e| self.objection(primary, e)) {
            return vec![hold];
        }
        let mut holds = self.symptom_holds(primary);
        holds.extend(match (flow, node.condition) {
            (Flow::Restarting, _) => vec![self.restart_hold(primary)],
            (Flow::Yielding { .. }, _) => vec![Hold::AwaitingRight { lack: self.lack() }],
            (_, Condition::Failing { .. }) => vec![Hold::PrimarySuspect { node: self.name(primary).clone() }],
            (_, Condition::Busy) => vec![Hold::PrimaryAlive { node: self.name(primary).clone() }],
            (_, Condition::Slow) => vec![self.complaint(primary, Complaint::Slow)],
            (Flow::Open, _) if !self.may_route(primary) => vec![Hold::NoLease { lack: self.lack() }],
            _ => Vec::new(),
        });
        holds
    }

    fn restart_hold(&self, primary: NodeId) -> Hold {
        let since = self.node(primary).trouble_since.unwrap_or(self.now);
        let left =
            (since + self.node(primary).restart_limit.unwrap_or(self.policy.primary_start_timeout)).since(self.now);
        Hold::PrimaryRestarting { node: self.name(primary).clone(), left }
    }

    fn contested_holds(&self, primary: Option<NodeId>, confirmed: bool) -> Vec<Hold> {
        let claimants = self.claimants();
        if let [only] = claimants.as_slice()
            && primary != Some(*only)
            && let Some(doubt) = self.doubt(*only)
        {
            return vec![doubt];
        }
        if let [only] = claimants.as_slice()
            && let Some(hold) = self.outgrown_hold(*only)
        {
            return vec![hold];
        }
        match (claimants.as_slice(), primary) {
            ([only], _) if confirmed && !self.comes_from_known(*only) => self.unproven(*only).into_iter().collect(),
            ([only], _) if confirmed => {
                let timeline = self.node(*only).report.as_ref().map(|r| r.timeline).unwrap_or_default();
                vec![Hold::UnrecordedPrimary { node: self.name(*only).clone(), timeline }]
            }
            ([only], Some(primary)) if !confirmed => {
                let unclear = [primary, *only].into_iter().find(|id| {
                    let health = self.node(*id).health;
                    health != Health::Healthy && (health != Health::Down || *id == *only)
                });
                unclear.into_iter().map(|id| Hold::PrimarySuspect { node: self.name(id).clone() }).collect()
            }
            _ => vec![Hold::TwoPrimaries { nodes: claimants.iter().map(|id| self.name(*id).clone()).collect() }],
        }
    }

    fn lost_holds(&self, outage: &Outage) -> Vec<Hold> {
        // An order is obeyed whatever else there is.
        let ordered = outage.order.is_some();
        let mut holds = if ordered { Vec::new() } else { self.failover_holds(outage) };
        if let Some(old) = self.standing_old(outage) {
            let answers = Hold::OldPrimaryAnswers { node: self.name(old).clone() };
            holds.insert(0, self.outgrown_hold(old).unwrap_or(answers));
        }
        let may_begin = if ordered { self.may_begin_ordered(outage) } else { self.has_right() };
        if holds.is_empty() && self.stubborn().is_empty() && !may_begin {
            holds.push(Hold::AwaitingRight { lack: self.lack() });
        }
        if holds.is_empty() && !self.stubborn().is_empty() {
            holds.push(Hold::OutOfRecovery { nodes: self.stubborn().to_vec() });
        }
        holds.dedup();
        holds
    }

    /// Everything that keeps an automatic failover from starting.
    pub(super) fn failover_holds(&self, outage: &Outage) -> Vec<Hold> {
        let mut holds = self.own_holds();
        let old = outage.old.and_then(|old| self.old_hold(outage, old));
        if self.policy.mode == FailoverMode::Follow {
            // Whom we could promote, and when, is nobody's concern then.
            holds.retain(|hold| matches!(hold, Hold::FollowMode | Hold::Paused));
            holds.extend(old);
            return holds;
        }
        holds.extend(self.fence_hold(outage));
        holds.extend(old);
        let unsettled = self.policy.ids().filter(|id| self.unsettled_promotion(*id));
        holds.extend(unsettled.map(|id| Hold::AwaitingReport { node: self.name(id).clone() }));
        let candidates = self.candidates(&[]);
        let bar = self.bar(outage, false);
        if elect(&candidates, &bar).is_none() {
            holds.extend(self.candidate_holds(&candidates, &bar));
        }
        if outage.order.is_none() {
            holds.extend(self.sync_hold());
        }
        holds
    }

    /// What keeps an automatic failover from starting whatever the nodes say.
    pub(super) fn own_holds(&self) -> Vec<Hold> {
        let mut holds = Vec::new();
        match self.policy.mode {
            FailoverMode::Automatic => {}
            FailoverMode::Manual => holds.push(Hold::ManualMode),
            FailoverMode::Follow => holds.push(Hold::FollowMode),
        }
        if self.paused {
            holds.push(Hold::Paused);
        }
        holds.extend(self.limit_holds());
        if self.now < self.retry_at {
            holds.push(Hold::RetryLater { left: self.retry_at.since(self.now) });
        }
        holds
    }

    /// Time left until the next automatic failover may begin, by `failover_min_gap`.
    pub(super) fn gap_left(&self) -> Duration {
        self.failovers.back().map_or(Duration::ZERO, |last| (*last + self.policy.min_gap).since(self.now))
    }

    /// Automatic failovers within the last hour.
    pub(super) fn within_hour(&self) -> usize {
        self.failovers.iter().filter(|at| !(**at + HOUR).since(self.now).is_zero()).count()
    }

    fn limit_holds(&self) -> Vec<Hold> {
        let mut holds = Vec::new();
        if !self.gap_left().is_zero() {
            holds.push(Hold::MinGap { left: self.gap_left() });
        }
        let max = self.policy.max_per_hour;
        if self.within_hour() >= usize::try_from(max).unwrap_or(usize::MAX) {
            let oldest = self.failovers.front().map_or(Duration::ZERO, |at| (*at + HOUR).since(self.now));
            holds.push(Hold::HourLimit { max, left: oldest });
        }
        holds
    }

    /// What the old primary itself says against promoting another node.
    fn old_hold(&self, outage: &Outage, old: NodeId) -> Option<Hold> {
        let node = self.node(old);
        let name = self.name(old).clone();
        if self.still_ails(outage) {
            return None;
        }
        match node.condition {
            Condition::Answering if self.claim(old).is_some() => Some(Hold::OldPrimaryAnswers { node: name }),
            Condition::Answering if self.is_standby(old) => {
                let left = (outage.since + DEMOTED_GRACE).since(self.now);
                (!left.is_zero()).then_some(Hold::PrimaryDemoted { node: name, left })
            }
            Condition::Answering => None,
            Condition::Busy => Some(Hold::PrimaryAlive { node: name }),
            Condition::Slow => Some(Hold::PrimaryAils { node: name, how: Complaint::Slow }),
            Condition::Unprobed => Some(Hold::NotClassified { node: name }),
            Condition::Starting | Condition::Stopping => {
                node.evidence(&self.policy, self.now).is_none().then(|| self.restart_hold(old))
            }
            Condition::Failing { .. } if node.health != Health::Down => Some(Hold::PrimarySuspect { node: name }),
            Condition::Failing { .. } => {
                // Down is down; a later, weaker outcome does not take the evidence back.
                let evidence = node.evidence(&self.policy, self.now)?;
                self.objection(old, evidence)
            }
        }
    }
}
