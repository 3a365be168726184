//! Several proxies: what the shared register says is followed, and what this proxy wants of it is claimed.
//!
//! Invariants: without a shared store everything here is a no-op that allows everything; writes are
//! open only under a lease of the present epoch and primary; no node is changed without the right; the
//! register is followed only to a higher epoch, and never in the middle of a change of our own.
//! Absent on purpose: how leases and rights come about (`coordination`).

use super::Machine;
use crate::clock::Time;
use crate::config::FailoverMode;
use crate::failover::action::{Action, Level};
use crate::failover::event::Record;
use crate::failover::policy::{FOLLOW_SPAN, FORSAKEN_SPAN, ORDER_SPAN, RETRY_GAP, UNLEASED_SPAN};
use crate::failover::standing::{Claim, Lack, Standing};
use crate::failover::state::{Cause, Flow, Order, Outage, State};
use crate::ids::{Epoch, Lsn, NodeId, TimelineId};
use crate::topology::Health;
use std::sync::Arc;

impl Machine {
    pub(super) fn stand(&mut self, standing: Standing) {
        self.epoch_tried = self.epoch_tried.max(standing.highest);
        self.right_since = standing.right.as_ref().map(|_| self.right_since.unwrap_or(self.now));
        self.pending_since = standing.pending.as_ref().map(|_| self.pending_since.unwrap_or(self.now));
        self.learn_timeline(&standing);
        self.standing = Some(standing);
    }

    /// The primary that this proxy has never seen may be on a newer timeline than was known when the record was recalled.
    fn learn_timeline(&mut self, standing: &Standing) {
        let Some(register) = standing.register.as_ref().filter(|_| !self.primary_seen) else { return };
        let same = self.record.as_ref().is_some_and(|r| r.epoch == register.epoch && r.primary == register.primary);
        if same && register.epoch == self.epoch && Some(register.timeline) > self.timeline {
            (self.timeline, self.timeline_epoch, self.line) = (Some(register.timeline), register.epoch, None);
        }
    }

    /// Whether writes may be routed to this primary in the present epoch.
    pub(super) fn may_route(&self, primary: NodeId) -> bool {
        let Some(standing) = &self.standing else { return true };
        !standing.ordered
            && standing.lease.as_ref().is_some_and(|lease| {
                lease.until > self.now && lease.epoch == self.epoch && *lease.primary == **self.name(primary)
            })
    }

    /// Whether nodes may be changed and a primary be recorded.
    pub(super) fn has_right(&self) -> bool {
        let Some(standing) = &self.standing else { return true };
        self.unanswered.is_empty() && standing.right.as_ref().is_some_and(|right| right.until > self.now)
    }

    /// Whom the register names in the present epoch.
    pub(super) fn registered(&self) -> Option<NodeId> {
        let register = self.standing.as_ref()?.register.as_ref()?;
        (register.epoch == self.epoch).then(|| self.policy.by_name(&register.primary)).flatten()
    }

    /// What the register says and this proxy does not know yet.
    fn news(&self) -> Option<&Record> {
        let register = self.standing.as_ref()?.register.as_ref()?;
        (self.recalled && (register.epoch > self.epoch || self.record.is_none())).then_some(register)
    }

    /// Takes over what another proxy recorded. True when the state moved.
    pub(super) fn follow_register(&mut self) -> bool {
        let changing = self.state.changes_nodes() && self.has_right();
        let Some(register) = self.news().filter(|_| !changing).cloned() else { return false };
        self.epoch = self.epoch.max(register.epoch);
        self.epoch_tried = self.epoch_tried.max(register.epoch);
        self.system_id.get_or_insert(register.system_id);
        self.give_up_record();
        // The line was that of the epoch before.
        self.line = None;
        if register.promoted && register.epoch > self.timeline_epoch && Some(register.timeline) < self.timeline {
            // The promotion that began this proxy's timeline made no primary: others went back to the one before.
            (self.timeline, self.timeline_epoch, self.fork) = (Some(register.timeline), register.epoch, None);
            self.highest = Lsn(0);
        }
        let primary = self.policy.by_name(&register.primary);
        let text = format!("the register says: {} is primary of epoch {}", register.primary, register.epoch);
        self.record = Some(register);
        self.note_given_up();
        self.tell(Level::Info, "register_followed", primary, text);
        let Some(primary) = primary else { return false };
        match &self.state {
            State::Starting { .. } => false,
            State::Stable { primary: ours, .. } if *ours == primary => false,
            State::Stable { primary: ours, .. } => {
                let outage = Outage { old: Some(*ours), since: self.now, cause: Cause::Replaced, order: None };
                self.cut(*ours);
                self.following(outage, primary)
            }
            State::Contested { primary: old, .. } => {
                let outage = Outage { old: *old, since: self.now, cause: Cause::Replaced, order: None };
                self.following(outage, primary)
            }
            other => {
                let none = Outage { old: None, since: self.now, cause: Cause::Replaced, order: None };
                let outage = other.outage().copied().unwrap_or(none);
                self.following(outage, primary)
            }
        }
    }

    pub(super) fn following(&mut self, outage: Outage, primary: NodeId) -> bool {
        self.shift(State::Following { outage: Outage { order: None, ..outage }, primary, since: self.now })
    }

    /// Another proxy recorded this primary: it is believed as soon as the node says so, too.
    pub(super) fn judge_following(&mut self, outage: Outage, primary: NodeId, since: Time) -> bool {
        if !self.rivals().is_empty() && !self.sole_highest(primary, &self.claimants()) {
            return self.contest(outage.old);
        }
        if let Some(timeline) = self.claim(primary).filter(|_| self.node(primary).health == Health::Healthy) {
            self.adopted(Some(outage), primary, timeline);
            return true;
        }
        if self.now.since(since) >= FOLLOW_SPAN {
            // Whoever recorded it may be gone: the right, if it is had, says so.
            return self.shift(State::Lost { outage });
        }
        self.want_probe(primary);
        false
    }

    /// The standby whose promotion may still take effect.
    pub(super) fn pending(&self) -> Option<NodeId> {
        self.policy.by_name(self.standing.as_ref()?.pending.as_ref()?)
    }

    /// Whether a change that was begun must be finished before anything else, and may be by us.
    pub(super) fn unfinished(&self) -> Option<NodeId> {
        // Usually whoever chose it is about to see it through.
        let long = self.pending_since.is_some_and(|since| self.now.since(since) >= FOLLOW_SPAN);
        let free = !self.paused && self.policy.mode == FailoverMode::Automatic && self.now >= self.retry_at;
        self.pending().filter(|pending| long && free && self.is_standby(*pending))
    }

    /// Sees a change through that another proxy began; going back is not safe once a standby was chosen.
    pub(super) fn finish_change(&mut self, chosen: NodeId, old: Option<NodeId>) -> bool {
        let (since, cause) = (self.now, Cause::Unfinished);
        if let Some(old) = old {
            self.cut(old);
        }
        self.ordered_at = self.now;
        let timeline = self.node(chosen).timeline;
        // A proxy that has just started knows no more than this standby, and nobody else may be promoted.
        if self.timeline.is_none() {
            (self.timeline, self.timeline_epoch) = (timeline, self.epoch);
        }
        self.system_id = self.system_id.or(self.node(chosen).report.as_ref().map(|r| r.system_id));
        let text = format!("{} was chosen by another proxy and is not promoted yet: going on", self.name(chosen));
        self.tell(Level::Warn, "failover_resumed", Some(chosen), text);
        self.shift(State::Lost { outage: Outage { old, since, cause, order: Some(Order { to: Some(chosen) }) } })
    }

    /// The node that the newest epoch names and that was promoted, as far as can be told: then another primary is an
    /// old one, whatever it says of itself.
    pub(super) fn promoted_elsewhere(&self, primary: NodeId) -> Option<NodeId> {
        let (named, _) = self.newest_named()?;
        (named != primary && self.pending() != Some(named)).then_some(named)
    }

    /// The timeline that a candidate must have reached at least, unless it is the node that the newest epoch names: that
    /// node was promoted, as far as can be told, and what it acknowledged is on a timeline that this proxy never saw.
    pub(super) fn beyond(&self) -> Option<(NodeId, TimelineId)> {
        let standing = self.standing.as_ref()?;
        let ((named, epoch), known) = (self.newest_named()?, self.timeline?);
        let seen = standing.timeline.max(standing.least_timeline);
        if epoch > self.timeline_epoch {
            return Some((named, seen.max(TimelineId(known.0.saturating_add(1)))));
        }
        // What was taken for its timeline may be that of a standby which never followed it.
        let least = standing.least_timeline;
        (epoch == standing.highest && least > known).then_some((named, least))
    }

    /// Whom the newest epoch names. Where it is known that the change to it went no further, whom an older record names.
    pub(super) fn newest_named(&self) -> Option<(NodeId, Epoch)> {
        let standing = self.standing.as_ref()?;
        let recorded = self.record.as_ref().and_then(|r| Some((self.policy.by_name(&r.primary)?, r.epoch)));
        let chosen = standing.chosen.as_ref().and_then(|name| self.policy.by_name(name));
        let chosen = chosen.map(|named| (named, standing.highest));
        let newer = chosen.filter(|(_, epoch)| recorded.is_none_or(|(_, recorded)| *epoch > recorded));
        newer.into_iter().chain(recorded).find(|(named, _)| !self.went_no_further(standing, *named))
    }

    /// It was named by a change that went no further, if it says so now that nobody else can promote it.
    fn went_no_further(&self, standing: &Standing, named: NodeId) -> bool {
        let report = self.node(named).live_report().filter(|_| self.is_standby(named));
        standing.right.as_ref().is_some_and(|right| match right.held {
            Some(_) => right.idle.contains(self.name(named)),
            None => report.is_some_and(|report| self.right_since.is_some_and(|since| report.sent_at > since)),
        })
    }

    /// Goes on from the primary that a higher epoch names: it comes back, or a standby of its own takes over.
    pub(super) fn give_up_for(&mut self, newer: NodeId, old: NodeId) -> bool {
        let Some((epoch, timeline)) = self.standing.as_ref().map(|s| (s.highest, s.timeline)) else { return false };
        let (name, former) = (self.name(newer).clone(), self.name(old).clone());
        self.tell(
            Level::Warn,
            "register_followed",
            Some(newer),
            format!("{name} was primary after {former}: going on from there"),
        );
        self.cut(old);
        self.store_retry_at = self.now + RETRY_GAP;
        if Some(timeline) > self.timeline {
            (self.timeline, self.timeline_epoch, self.line) = (Some(timeline), epoch, None);
        }
        self.shift(State::Lost {
            outage: Outage { old: Some(newer), since: self.now, cause: Cause::Replaced, order: None },
        })
    }

    /// Held voters that keep most others from following a standby.
    pub(super) fn stubborn(&self) -> &[Arc<str>] {
        let right = self.standing.as_ref().and_then(|standing| standing.right.as_ref());
        right.map_or(&[], |right| &right.stubborn)
    }

    /// Whether a change that was ordered may begin: with the right, and for an operator's candidate with its own lock,
    /// which may come later than those of a majority.
    pub(super) fn may_begin_ordered(&self, outage: &Outage) -> bool {
        let asked = outage.order.and_then(|order| order.to).filter(|_| outage.cause != Cause::Unfinished);
        let right = self.standing.as_ref().and_then(|standing| standing.right.as_ref());
        let held = right.and_then(|right| right.held.as_ref());
        let free = asked.is_none_or(|asked| held.is_none_or(|held| held.contains(self.name(asked))));
        self.has_right() && self.stubborn().is_empty() && free
    }

    /// An operator ordered a change, and other proxies must give way first.
    pub(super) fn judge_ordered(&mut self, outage: Outage) -> bool {
        if self.may_begin_ordered(&outage) {
            return self.freeze(outage);
        }
        if self.now.since(self.ordered_at) >= ORDER_SPAN {
            let why = if self.has_right() {
                "the node that is wanted is not free to be changed"
            } else {
                "other proxies did not give up their leases"
            };
            self.attempt_failed(outage, why);
            return true;
        }
        false
    }

    /// Whether enough voters answer, and they follow another primary, another epoch or nobody.
    pub(super) fn forsaken(&self, primary: NodeId) -> bool {
        let Some(standing) = self.standing.as_ref().filter(|_| !self.may_route(primary)) else { return false };
        let long = self.unleased_since.is_some_and(|since| self.now.since(since) >= UNLEASED_SPAN);
        // A lease that has run out says nothing any more.
        let other = standing.lease.as_ref().is_some_and(|lease| lease.until > self.now);
        long && (other || standing.lack == Some(Lack::Split))
    }

    /// What keeps this proxy from its lease or its right.
    pub(super) fn lack(&self) -> Lack {
        let Some(standing) = &self.standing else { return Lack::Pending };
        if standing.ordered { Lack::Taken } else { standing.lack.clone().unwrap_or(Lack::Pending) }
    }

    fn claim_wanted(&self) -> Claim {
        let change = |order: bool| if order { Claim::Order } else { Claim::Change };
        match &self.state {
            State::Stable { flow: Flow::Open, .. } if !self.gives_way() => Claim::Route,
            State::Stable { flow: Flow::Yielding { .. }, .. } if !self.gives_way() => Claim::Change,
            State::Stable { .. } | State::Starting { .. } | State::Following { .. } | State::Contested { .. } => {
                Claim::Nothing
            }
            State::Lost { outage } if outage.order.is_some() => change(outage.cause != Cause::Unfinished),
            State::Lost { outage } => {
                let back = self.standing_old(outage).is_some();
                if !back && self.failover_holds(outage).is_empty() { Claim::Change } else { Claim::Nothing }
            }
            State::Adopting { outage: Some(outage), action: None, since, .. } if outage.cause == Cause::Forsaken => {
                // Others lease on in an epoch that only this proxy knows to be older: they cannot know that it waits. By time
                // alone: what is lacking may change with the claim.
                change(self.now.since(*since) >= FORSAKEN_SPAN)
            }
            other => change(other.outage().is_some_and(|o| o.order.is_some() && o.cause != Cause::Unfinished)),
        }
    }

    /// Another proxy carries out an operator's order.
    fn gives_way(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.ordered)
    }

    /// Claims what the state needs; to be called once the plan is out.
    pub(super) fn claim_standing(&mut self) {
        let wanted = self.claim_wanted();
        let wanted = if wanted.changes() && !self.unanswered.is_empty() { Claim::Nothing } else { wanted };
        if self.standing.is_some() && wanted != self.claimed {
            self.claimed = wanted;
            if let Some(standing) = &mut self.standing {
                standing.let_go(wanted);
                self.right_since = self.right_since.filter(|_| standing.right.is_some());
            }
            // Right after the plan, which closes writes, and before what needs the claim.
            let place = self.actions.iter().take_while(|a| matches!(a, Action::Publish(_))).count();
            self.actions.insert(place, Action::Claim(wanted));
        }
    }

    /// Notes since when a lease is missing, and tells when that lasts.
    pub(super) fn note_lease(&mut self) {
        let State::Stable { primary, flow: Flow::Open, .. } = self.state else {
            (self.unleased_since, self.unleased_told) = (None, false);
            return;
        };
        if self.may_route(primary) {
            if self.unleased_told {
                self.tell(Level::Info, "lease_back", Some(primary), "writes are routed again".to_owned());
            }
            (self.unleased_since, self.unleased_told) = (None, false);
            return;
        }
        let since = *self.unleased_since.get_or_insert(self.now);
        if !self.unleased_told && self.now.since(since) >= UNLEASED_SPAN {
            self.unleased_told = true;
            let text = format!("writes wait, this proxy has no lease: {}", self.lack());
            self.tell(Level::Warn, "lease_lost", Some(primary), text);
        }
    }

    pub(super) fn register_alarms(&self) -> Vec<Time> {
        let Some(standing) = &self.standing else { return Vec::new() };
        let mut alarms: Vec<Time> = standing.lease.iter().map(|l| l.until).collect();
        alarms.extend(standing.right.iter().map(|r| r.until));
        alarms.extend(self.pending_since.map(|since| since + FOLLOW_SPAN));
        alarms.extend(self.unleased_since.map(|since| since + UNLEASED_SPAN));
        match &self.state {
            State::Following { since, .. } => alarms.push(*since + FOLLOW_SPAN),
            State::Lost { outage } if outage.order.is_some() => alarms.push(self.ordered_at + ORDER_SPAN),
            State::Adopting { since, .. } => alarms.push(*since + FORSAKEN_SPAN),
            _ => {}
        }
        alarms
    }
}
