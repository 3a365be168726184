//! A change of primary: lost, freezing, recording, promoting, confirming (`prepare` has what comes before recording).
//!
//! Invariants: nothing is promoted before the standbys stand still, the choice is recorded under a
//! new epoch, and the old primary was silent to the last (or an operator wants it all the same). An
//! attempt that fails burns its epoch. Every wait here has a span after which it counts as failed.

use super::{LastFailover, Machine};
use crate::clock::Time;
use crate::failover::action::{Action, ActionId, HookKind, Level};
use crate::failover::candidate::{Bar, Candidate, veto};
use crate::failover::event::Outcome;
use crate::failover::hold::{Hold, Veto};
use crate::failover::node_state::Promotion;
use crate::failover::policy::{DETACH_SPAN, PROMOTE_PENALTY, RECORD_SPAN, RETRY_GAP, UNLEASED_SPAN, VETO_PENALTY};
use crate::failover::state::{Cause, Detaching, Order, Outage, Progress, State};
use crate::ids::{Lsn, NodeId};
use crate::topology::Health;

impl Machine {
    pub(super) fn judge_lost(&mut self, outage: Outage) -> bool {
        if outage.order.is_some() {
            return self.judge_ordered(outage);
        }
        let named = self.registered().filter(|named| Some(*named) != outage.old && self.claim(*named).is_some());
        if let Some(named) = named {
            return self.following(outage, named);
        }
        if !self.rivals().is_empty() {
            return self.contest(outage.old);
        }
        if let Some(chosen) = self.unfinished() {
            return self.finish_change(chosen, outage.old);
        }
        if let Some(old) = self.standing_old(&outage) {
            return self.take_back(old, outage);
        }
        let holds = self.failover_holds(&outage);
        for hold in &holds {
            match (hold, outage.old) {
                (Hold::AwaitingReceiver { .. }, Some(old)) => self.want_observers(old),
                (Hold::AwaitingReport { .. }, _) => self.want_failed_candidates(),
                _ => {}
            }
        }
        holds.is_empty() && self.has_right() && self.stubborn().is_empty() && self.freeze(outage)
    }

    fn want_failed_candidates(&mut self) {
        for id in self.policy.ids() {
            if self.unsettled_promotion(id) {
                self.want_probe(id);
            }
        }
    }

    /// A promotion failed there and the node has not answered since.
    pub(super) fn unsettled_promotion(&self, id: NodeId) -> bool {
        let node = self.node(id);
        let failed = node.promote_failed_at;
        failed.is_some_and(|at| node.live_report().is_some_and(|r| r.sent_at <= at))
    }

    /// The primary answers as primary and nobody else was promoted: it goes on, under a new epoch if
    /// the store may remember another one.
    pub(super) fn take_back(&mut self, primary: NodeId, outage: Outage) -> bool {
        let node = self.node(primary);
        if node.health != Health::Healthy {
            self.want_probe(primary);
            return false;
        }
        let same = self.recorded_primary() == Some(primary) && self.epoch_tried == self.epoch;
        if !same || node.report.as_ref().map(|r| r.timeline) != self.timeline {
            return self.adopt(primary, Some(outage));
        }
        let name = self.name(primary).clone();
        self.tell(Level::Info, "primary_back", Some(primary), format!("{name} stays primary"));
        self.become_stable(primary)
    }

    /// Asks every standby that answers to stand still.
    pub(super) fn freeze(&mut self, outage: Outage) -> bool {
        // A stray is none to promote; where proxies share a store it must let go of the old primary all the same.
        let asked = |id: &NodeId| self.is_standby(*id) && (self.standing.is_some() || self.strayed(*id).is_none());
        let standbys: Vec<NodeId> = self.policy.ids().filter(asked).collect();
        let names: Vec<&str> = standbys.iter().map(|id| &**self.name(*id)).collect();
        let text = format!("failover begins, detaching {}", names.join(", "));
        self.tell(Level::Warn, "failover_started", outage.old, text);
        let epoch = self.epoch;
        let mut asked = Vec::new();
        for node in standbys {
            let id = self.action_id();
            let state = self.node_mut(node);
            // From the moment of asking: a detach that fails may still have happened.
            state.detached = true;
            state.repoints.under_way = None;
            self.actions.push(Action::Detach(id, node, epoch));
            asked.push(Detaching { id, node, progress: Progress::Asked });
        }
        self.shift(State::Freezing { outage, since: self.now, standbys: asked })
    }

    pub(super) fn detach_done(&mut self, id: ActionId, outcome: &Outcome) {
        let State::Freezing { standbys, .. } = &mut self.state else { return };
        let Some(entry) = standbys.iter_mut().find(|d| d.id == id && d.progress == Progress::Asked) else { return };
        let node = entry.node;
        let told = match outcome {
            Outcome::Detached { flush_lsn, replay_lsn } => {
                // After a restart without a receiver only the replay position is known.
                let flush_lsn = (*flush_lsn).max(*replay_lsn);
                entry.progress = Progress::Still { flush_lsn };
                // A position on another history is no measure of this one.
                if self.nodes[node.index()].timeline == self.timeline && self.strayed(node).is_none() {
                    self.highest = self.highest.max(flush_lsn);
                }
                (Level::Info, "standby_detached", format!("stands still at {flush_lsn}"))
            }
            Outcome::Done => {
                entry.progress = Progress::Failed;
                (Level::Warn, "detach_failed", "did not say where it stands".to_owned())
            }
            Outcome::Failed(why) => {
                entry.progress = Progress::Failed;
                (Level::Warn, "detach_failed", format!("could not be detached: {why}"))
            }
        };
        let text = format!("{} {}", self.name(node), told.2);
        self.tell(told.0, told.1, Some(node), text);
    }

    pub(super) fn judge_freezing(&mut self, outage: Outage, since: Time, standbys: Vec<Detaching>) -> bool {
        if self.right_lost(outage) {
            return true;
        }
        if let Some(verdict) = self.change_unwanted(&outage) {
            return verdict;
        }
        let late = self.now.since(since) >= DETACH_SPAN;
        if !late && standbys.iter().any(|d| d.progress == Progress::Asked) {
            return false;
        }
        let candidates = self.candidates(&standbys);
        match self.elect_still(&outage, &candidates) {
            Ok(chosen) => self.prepare(outage, &chosen, standbys),
            // Whether the newest one was promoted at all is known as soon as it has answered under the right.
            Err(_) if self.beyond().is_some() && self.now.since(since) < UNLEASED_SPAN => false,
            Err(reasons) => {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                self.attempt_failed(outage, &reasons.join("; "));
                true
            }
        }
    }

    pub(super) fn choose(&mut self, outage: Outage, candidate: NodeId, flush_lsn: Lsn) -> bool {
        let epoch = self.next_epoch();
        let timeline = self.timeline.max(self.node(candidate).timeline);
        let stored = timeline.and_then(|timeline| self.store(candidate, epoch, timeline, false));
        let Some(action) = stored else {
            self.attempt_failed(outage, "system and timeline are not known");
            return true;
        };
        let missing = self.highest.bytes_since(flush_lsn);
        let name = self.name(candidate).clone();
        let text = format!("{name} is chosen for epoch {epoch} at {flush_lsn}, {missing} bytes behind the highest");
        self.tell(Level::Info, "candidate_chosen", Some(candidate), text);
        let (action, since) = (Some(action), self.now);
        self.shift(State::Recording { outage, candidate, flush_lsn, epoch, action, since })
    }

    /// Whether the change must stop or wait: the old primary answers, or another node was promoted.
    pub(super) fn change_unwanted(&mut self, outage: &Outage) -> Option<bool> {
        if !self.rivals().is_empty() {
            return Some(self.shift(State::Lost { outage: Outage { order: None, ..*outage } }));
        }
        let old = self.standing_old(outage)?;
        if self.node(old).health == Health::Healthy {
            self.give_up_record();
            return Some(self.shift(State::Lost { outage: *outage }));
        }
        self.want_probe(old);
        Some(false)
    }

    /// Ends the attempt when another proxy may act by now.
    pub(super) fn right_lost(&mut self, outage: Outage) -> bool {
        if self.has_right() {
            return false;
        }
        self.give_up_record();
        let text = format!("the right to change the primary was lost: {}", self.lack());
        self.attempt_failed(outage, &text);
        self.retry_at = self.now;
        true
    }

    pub(super) fn judge_recording(&mut self) -> bool {
        let State::Recording { outage, candidate, flush_lsn, epoch, action, since } = self.state.clone() else {
            return false;
        };
        if self.right_lost(outage) {
            return true;
        }
        if action.is_some() {
            if self.now.since(since) < RECORD_SPAN {
                return false;
            }
            self.give_up_record();
            self.attempt_failed(outage, "the store did not answer");
            return true;
        }
        let outage = self.bound_to(candidate, outage);
        if let Some(verdict) = self.change_unwanted(&outage) {
            return verdict;
        }
        let node = self.node(candidate);
        if node.health == Health::Down || node.live_report().is_some_and(|r| !r.in_recovery) {
            let text = format!("candidate {} went away", self.name(candidate));
            self.attempt_failed(outage, &text);
            self.retry_at = self.now;
            return true;
        }
        let id = self.action_id();
        self.node_mut(candidate).promotion = Some(Promotion::asked(self.now));
        self.actions.push(Action::Promote(id, candidate, epoch));
        self.shift(State::Promoting { outage, candidate, flush_lsn, action: id, since: self.now })
    }

    /// A voter that was recorded names itself: from then on it is promoted or nobody is, also where the old primary answers.
    fn bound_to(&mut self, candidate: NodeId, outage: Outage) -> Outage {
        let right = self.standing.as_ref().and_then(|standing| standing.right.as_ref());
        let bound = right.is_some_and(|right| right.held.is_some());
        let Some(old) = self.standing_old(&outage).filter(|_| bound) else { return outage };
        let text = format!("{} answers again, but {} is chosen: going on", self.name(old), self.name(candidate));
        self.tell(Level::Warn, "failover_resumed", Some(candidate), text);
        self.cut(old);
        Outage { cause: Cause::Unfinished, order: Some(Order { to: Some(candidate) }), ..outage }
    }

    pub(super) fn promote_done(&mut self, outcome: &Outcome) {
        let State::Promoting { outage, candidate, .. } = self.state.clone() else { return };
        match outcome {
            Outcome::Failed(why) => self.promotion_failed(outage, candidate, why),
            // Believed only when a probe says so, too.
            Outcome::Done | Outcome::Detached { .. } => self.want_probe(candidate),
        }
    }

    fn promotion_failed(&mut self, outage: Outage, candidate: NodeId, why: &str) {
        let now = self.now;
        self.node_mut(candidate).promote_failed_at = Some(now);
        let text = format!("{} was not promoted: {why}", self.name(candidate));
        self.attempt_failed(outage, &text);
        self.retry_at = now;
        self.want_probe(candidate);
    }

    /// Back to `Lost`; the standbys stay detached until there is a primary to stream from.
    pub(super) fn attempt_failed(&mut self, outage: Outage, why: &str) {
        self.tell(Level::Error, "failover_failed", outage.old, why.to_owned());
        self.retry_at = self.now + RETRY_GAP;
        self.shift(State::Lost { outage: Outage { order: None, ..outage } });
    }

    pub(super) fn judge_promoting(&mut self) -> bool {
        let State::Promoting { outage, candidate, flush_lsn, since, .. } = self.state else { return false };
        if !self.rivals().is_empty() {
            return self.contest(Some(candidate));
        }
        let claimed = self.claim(candidate).filter(|_| self.newer(candidate));
        let Some(timeline) = claimed else {
            if self.now.since(since) < self.policy.promote_timeout {
                return false;
            }
            self.promotion_failed(outage, candidate, "it did not leave recovery in time");
            return true;
        };
        let epoch = self.epoch;
        let Some(action) = self.store(candidate, epoch, timeline, true) else { return false };
        let name = self.name(candidate).clone();
        self.tell(Level::Info, "promoted", Some(candidate), format!("{name} was promoted to timeline {timeline}"));
        let node = self.node_mut(candidate);
        node.health = Health::Healthy;
        node.detached = false;
        node.promote_failed_at = None;
        self.shift(State::Confirming { outage, primary: candidate, timeline, flush_lsn, action, since: self.now })
    }

    pub(super) fn judge_confirming(&mut self, since: Time) -> bool {
        let State::Confirming { primary, .. } = self.state else { return false };
        let lost = self.standing.is_some() && !self.has_right();
        if self.now.since(since) < RECORD_SPAN && !lost {
            return false;
        }
        self.give_up_record();
        let why = if lost { "the right was lost" } else { "the store did not answer" };
        let text = format!("the new timeline could not be recorded: {why}");
        self.tell(Level::Error, "record_failed", Some(primary), text);
        self.settle();
        true
    }

    /// The new primary takes writes. The record names it already, so a store that fails now delays nothing.
    pub(super) fn settle(&mut self) {
        let State::Confirming { outage, primary, timeline, flush_lsn, .. } = self.state else { return };
        let missing = self.highest.bytes_since(flush_lsn);
        self.fork = self.timeline.map(|left| (left, flush_lsn));
        self.timeline = Some(timeline);
        self.line = self.line_of(primary);
        self.timeline_epoch = self.epoch;
        self.highest = self.node(primary).report.as_ref().map_or(flush_lsn, |r| r.flush_lsn);
        if outage.order.is_none() {
            self.failovers.push_back(self.now);
        }
        self.failovers_total += 1;
        let took = self.now.since(outage.since);
        let name = self.name(primary).clone();
        self.last_failover = Some(LastFailover {
            from: outage.old.map(|old| self.name(old).clone()),
            to: name.clone(),
            epoch: self.epoch,
            cause: outage.cause,
            lost_at: outage.since,
            done_at: self.now,
            missing_bytes: missing,
        });
        let text = format!(
            "{name} is primary of epoch {} on timeline {timeline}, {} ms after the old one was given up, {missing} bytes of WAL missing",
            self.epoch,
            took.as_millis()
        );
        self.tell(Level::Warn, "failover_done", Some(primary), text);
        self.notify(HookKind::AfterPromotion, primary, outage.old, outage.cause.words());
        if let Some(old) = outage.old {
            self.node_mut(old).former = true;
        }
        self.become_stable(primary);
    }

    pub(super) fn bar(&self, outage: &Outage, detached_only: bool) -> Bar {
        Bar {
            system_id: self.system_id,
            timeline: self.timeline,
            highest: self.highest,
            lag_bytes_max: self.lag_bytes_max(),
            asked: self.pending().or(outage.order.and_then(|o| o.to)),
            detached_only,
            floor: None,
            beyond: None,
        }
    }

    /// Every node that ever answered, as the election sees it.
    pub(super) fn candidates(&self, standbys: &[Detaching]) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = self.policy.ids().filter_map(|id| self.candidate(id, standbys)).collect();
        self.compare_histories(&mut candidates);
        candidates
    }

    fn candidate(&self, id: NodeId, standbys: &[Detaching]) -> Option<Candidate> {
        let node = self.node(id);
        let report = node.report.as_ref()?;
        let still = standbys.iter().find(|d| d.node == id).and_then(|d| match d.progress {
            Progress::Still { flush_lsn } => Some(flush_lsn),
            Progress::Asked | Progress::Failed => None,
        });
        // Having said where it stands, it answers, whatever a probe missed before.
        let health = if still.is_some() && node.health == Health::Suspect { Health::Healthy } else { node.health };
        Some(Candidate {
            node: id,
            health,
            in_recovery: report.in_recovery,
            system_id: report.system_id,
            timeline: node.timeline.unwrap_or(report.timeline),
            flush_lsn: still.unwrap_or(report.flush_lsn.max(report.replay_lsn)),
            replay_paused: report.replay_paused,
            priority: self.policy.nodes[id.index()].priority,
            maintenance: node.maintenance,
            promotion_failed: self.pending() != Some(id)
                && node.promote_failed_at.is_some_and(|at| self.now.since(at) < PROMOTE_PENALTY),
            spoken_against: node.vetoed_at.is_some_and(|at| self.now.since(at) < VETO_PENALTY),
            detached: still.is_some(),
            sync_member: self.sync_member(id),
            local: self.policy.nodes[id.index()].local,
            parted: None,
            disputed: false,
        })
    }

    /// Why each node is no candidate; the nodes that cannot be one by nature are left out.
    pub(super) fn candidate_holds(&self, candidates: &[Candidate], bar: &Bar) -> Vec<Hold> {
        let old = match self.state {
            State::Stable { primary, .. } => Some(primary),
            _ => self.state.outage().and_then(|o| o.old),
        };
        let hold = |node: NodeId, why| Hold::NoCandidate { node: self.name(node).clone(), why };
        let stray = |c: &&Candidate| !c.in_recovery && c.parted.is_some() && c.health == Health::Healthy;
        let strays = candidates.iter().filter(stray).filter_map(|c| self.unproven(c.node));
        let holds: Vec<Hold> = candidates
            .iter()
            .filter(|c| (c.in_recovery || Some(c.node) != old) && !stray(c))
            .filter_map(|c| veto(c, bar).filter(|why| *why != Veto::NotAsked).map(|why| hold(c.node, why)))
            .chain(strays)
            .collect();
        match bar.asked {
            _ if !holds.is_empty() => holds,
            Some(asked) => vec![hold(asked, Veto::NotHealthy)],
            None => vec![Hold::NoStandby],
        }
    }
}
