//! Between the choice of a candidate and its record: what must be done first, one step after the other.
//!
//! Invariants: nothing is recorded before every step has ended well (or an operator wants it all the same); while the
//! fence command runs the old primary is not taken back, because it may be turned off at any moment; an old
//! primary that was fenced is fenced once per outage. Absent on purpose: how programs run (`hooks`).

use super::Machine;
use crate::config::Fencing;
use crate::failover::action::{Action, ActionId, HookCall, HookKind, Level};
use crate::failover::candidate::Candidate;
use crate::failover::event::Outcome;
use crate::failover::hold::Hold;
use crate::failover::policy::{FENCE_RETRY_MAX, HOOK_MARGIN, RETRY_GAP, SYNC_SPAN};
use crate::failover::state::{Cause, Detaching, Outage, State, Step};
use crate::ids::NodeId;
use std::time::Duration;

/// What fencing has come to in this outage.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// Who is certainly off.
    done: Option<NodeId>,
    /// How often in a row the command failed, and why it did last.
    failed: Option<(u32, String)>,
    /// The primary that the last role change led to.
    told: Option<NodeId>,
}

impl Machine {
    pub(super) fn prepare(&mut self, outage: Outage, chosen: &Candidate, standbys: Vec<Detaching>) -> bool {
        self.steps_from(0, outage, chosen.node, standbys)
    }

    fn steps_from(&mut self, first: usize, outage: Outage, candidate: NodeId, standbys: Vec<Detaching>) -> bool {
        for step in Step::ALL.iter().copied().skip(first) {
            if let Some(action) = self.begin(step, &outage, candidate, &standbys) {
                let since = self.now;
                return self.shift(State::Preparing {
                    outage,
                    candidate,
                    standbys,
                    step,
                    action,
                    outcome: None,
                    since,
                });
            }
        }
        let candidates = self.candidates(&standbys);
        let flush_lsn = candidates.iter().find(|c| c.node == candidate).map(|c| c.flush_lsn).unwrap_or_default();
        self.choose(outage, candidate, flush_lsn)
    }

    /// Begins a step, if there is anything to do.
    fn begin(&mut self, step: Step, outage: &Outage, candidate: NodeId, standbys: &[Detaching]) -> Option<ActionId> {
        let ask = |kind, node| HookCall {
            kind,
            node,
            epoch: self.next_epoch(),
            old: outage.old,
            new: Some(candidate),
            timeline: self.timeline,
            reason: outage.cause.words(),
        };
        match step {
            Step::Fence => {
                let old = outage.old.filter(|old| self.fences.done != Some(*old) && !self.is_standby(*old))?;
                if self.policy.means.fencing != Fencing::Command {
                    return None;
                }
                let call = ask(HookKind::Fence, old);
                if by_order(outage) && self.fences.failed.is_some() {
                    let text = format!("by an operator's order: {} was not fenced", self.name(old));
                    self.tell(Level::Warn, "fence_overridden", Some(old), text);
                    return None;
                }
                Some(self.call(call))
            }
            Step::Ask => {
                let call = ask(HookKind::BeforePromotion, candidate);
                self.policy.means.hooks.contains(&HookKind::BeforePromotion).then(|| self.call(call))
            }
            Step::Name => self.name_for(candidate, standbys),
        }
    }

    fn call(&mut self, call: HookCall) -> ActionId {
        let id = self.action_id();
        self.actions.push(Action::Hook(id, call));
        id
    }

    /// Runs a program whose end changes nothing.
    pub(super) fn notify(&mut self, kind: HookKind, node: NodeId, old: Option<NodeId>, reason: &'static str) {
        if self.policy.means.hooks.contains(&kind) {
            let new = match &self.state {
                State::Stable { primary, .. } | State::Confirming { primary, .. } => Some(*primary),
                _ => Some(node),
            };
            let (epoch, timeline) = (self.epoch, self.timeline);
            self.call(HookCall { kind, node, epoch, old, new, timeline, reason });
        }
    }

    /// Writes are about to go to this primary; whoever wants to know is told once.
    pub(super) fn note_role(&mut self, primary: NodeId) {
        let reason = self.state.outage().map_or("it was found", |outage| outage.cause.words());
        self.fences.done = None;
        self.fences.failed = None;
        let before = self.fences.told.replace(primary);
        if before != Some(primary) {
            self.notify(HookKind::RoleChange, primary, before, reason);
        }
    }

    /// Whose role need not be told: it was primary before we started.
    pub(super) fn role_recalled(&mut self) {
        self.fences.told = self.recorded_primary();
    }

    pub(super) fn step_done(&mut self, id: ActionId, ended: Outcome) {
        if let State::Preparing { action, outcome, .. } = &mut self.state
            && *action == id
        {
            *outcome = Some(ended);
        }
    }

    /// How long the present step may take.
    pub(super) fn step_span(&self, step: Step) -> Duration {
        match step {
            // An earlier call may have to end first.
            Step::Fence | Step::Ask => self.policy.means.hook_timeout * 2 + HOOK_MARGIN,
            Step::Name => SYNC_SPAN,
        }
    }

    pub(super) fn judge_preparing(&mut self) -> bool {
        let State::Preparing { outage, candidate, standbys, step, outcome, since, .. } = self.state.clone() else {
            return false;
        };
        let late = self.now.since(since) >= self.step_span(step);
        let outcome = outcome.or_else(|| late.then(|| Outcome::Failed("it did not end in time".to_owned())));
        let failure = match &outcome {
            Some(Outcome::Failed(why)) => Some(why.clone()),
            Some(Outcome::Done | Outcome::Detached { .. }) | None => None,
        };
        if step == Step::Fence {
            match (&outcome, outage.old) {
                (Some(_), Some(old)) if failure.is_none() => self.note_fenced(old),
                _ => {}
            }
        }
        if self.right_lost(outage) {
            return true;
        }
        match (step, failure) {
            (Step::Fence, _) if outcome.is_none() => return false,
            (Step::Fence, Some(why)) => return self.fence_failed(outage, &why),
            (Step::Ask, Some(why)) => return self.spoken_against(outage, candidate, standbys, &why),
            (Step::Name, Some(why)) => {
                let text = format!("synchronous_standby_names of {} cannot be set: {why}", self.name(candidate));
                if !by_order(&outage) {
                    self.attempt_failed(outage, &text);
                    return true;
                }
                self.tell(Level::Warn, "sync_failed", Some(candidate), text);
            }
            (_, None) => {}
        }
        if let Some(verdict) = self.change_unwanted(&outage) {
            return verdict;
        }
        outcome.is_some() && self.steps_from(step as usize + 1, outage, candidate, standbys)
    }

    fn note_fenced(&mut self, old: NodeId) {
        if self.fences.done == Some(old) {
            return;
        }
        self.fences.done = Some(old);
        self.fences.failed = None;
        let text = format!("{} is off, says the fence command", self.name(old));
        self.tell(Level::Warn, "fenced", Some(old), text);
        // What it said before is no longer true.
        self.node_mut(old).mark_down();
        self.want_probe(old);
    }

    fn fence_failed(&mut self, outage: Outage, why: &str) -> bool {
        let tries = self.fences.failed.as_ref().map_or(1, |(tries, _)| tries.saturating_add(1));
        self.fences.failed = Some((tries, why.to_owned()));
        self.tell(Level::Error, "fence_failed", outage.old, format!("the fence command failed: {why}"));
        let gap = RETRY_GAP * 2_u32.saturating_pow(tries.min(8) - 1);
        self.retry_at = self.now + gap.min(FENCE_RETRY_MAX);
        self.shift(State::Lost { outage: Outage { order: None, ..outage } })
    }

    /// What keeps a failover back until fencing is tried again.
    pub(super) fn fence_hold(&self, outage: &Outage) -> Option<Hold> {
        let (tries, why) = self.fences.failed.clone().filter(|_| self.now < self.retry_at)?;
        Some(Hold::FenceFailed { node: self.name(outage.old?).clone(), tries, why: why.into() })
    }

    /// The hook speaks against the candidate: the next one.
    fn spoken_against(&mut self, outage: Outage, candidate: NodeId, standbys: Vec<Detaching>, why: &str) -> bool {
        let text = format!("before_promotion speaks against {}: {why}", self.name(candidate));
        self.tell(Level::Warn, "promotion_vetoed", Some(candidate), text);
        if outage.cause == Cause::Unfinished {
            // It may leave recovery at any moment already: nobody else can be chosen.
            return self.steps_from(Step::Ask as usize + 1, outage, candidate, standbys);
        }
        let now = self.now;
        self.node_mut(candidate).vetoed_at = Some(now);
        let candidates = self.candidates(&standbys);
        match self.elect_still(&outage, &candidates) {
            Ok(next) => self.steps_from(Step::Ask as usize, outage, next.node, standbys),
            Err(reasons) => {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                self.attempt_failed(outage, &reasons.join("; "));
                true
            }
        }
    }
}

/// A person wants it; going on with what another proxy began is no such order.
fn by_order(outage: &Outage) -> bool {
    outage.order.is_some() && outage.cause != Cause::Unfinished
}
