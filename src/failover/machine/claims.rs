//! Who claims to be primary, and what follows: the start, adoption, and two claims at once.
//!
//! Invariants: another system's node and a node on an older timeline never claim anything (I2); a
//! primary that was found is recorded before it is published; the only node left of several is
//! adopted only if its timeline is newer than the recorded one and comes from that as far as is known (or Patroni names
//! it; see `patroni`); a node whose history left the recorded primary's line claims nothing (`line`). Absent on purpose: guessing by LSN.

use super::Machine;
use crate::clock::Time;
use crate::failover::action::Level;
use crate::failover::hold::Hold;
use crate::failover::node_state::Promotion;
use crate::failover::policy::{RECORD_SPAN, RETRY_GAP, START_GRACE, UNLEASED_SPAN};
use crate::failover::state::{Cause, Flow, Outage, State};
use crate::ids::{NodeId, SystemId, TimelineId};
use crate::topology::{Health, NodeReport};

/// What the recorded primary says while another node claims to be primary.
enum Standing {
    /// It answered as primary after the other claim was seen.
    Claims,
    /// It answers and is in recovery: it is nobody's rival any more.
    InRecovery,
    /// Down, not what it was, or there is none.
    Gone,
    /// Not known yet.
    Unsure,
}

impl Machine {
    /// The timeline on which the node claims to be primary, by its latest outcome.
    pub(super) fn claim(&self, id: NodeId) -> Option<TimelineId> {
        self.claim_in(id, self.node(id).live_report()?)
    }

    fn claim_in(&self, id: NodeId, report: &NodeReport) -> Option<TimelineId> {
        let ours = self.system_id.is_none_or(|ours| ours == report.system_id);
        let recent = self.timeline.is_none_or(|known| report.timeline >= known);
        let ours = ours && recent && self.left_line(id, report).is_none() && !self.passed_over(id);
        (!report.in_recovery && ours).then_some(report.timeline)
    }

    /// Its promotion was asked for and given up, and another one has had writes since: that it took effect, and that its
    /// timeline is newer, says nothing.
    pub(super) fn passed_over(&self, id: NodeId) -> bool {
        self.node(id).promotion.is_some_and(|asked| asked.passed_over) && self.recorded_primary() != Some(id)
    }

    /// Whose promotion is void once another node is recorded as primary: of all that may still take effect if that is out of
    /// recovery, otherwise of those that were passed over before.
    pub(super) fn given_up_for(&mut self, primary: NodeId, promoted: bool) -> Vec<String> {
        if let Some(named) = self.named_only().filter(|named| *named != primary) {
            let now = self.now;
            self.node_mut(named).promotion.get_or_insert(Promotion::asked(now));
        }
        let void = |id: &NodeId| self.node(*id).promotion.is_some_and(|asked| promoted || asked.passed_over);
        let void = self.policy.ids().filter(|id| *id != primary && void(id));
        void.map(|id| self.name(id).to_string()).collect()
    }

    /// Whom the record names, if it was to be promoted and has not been seen out of recovery since.
    fn named_only(&self) -> Option<NodeId> {
        let record = self.record.as_ref().filter(|record| !record.promoted)?;
        let named = self.policy.by_name(&record.primary)?;
        let report = self.node(named).report.as_ref();
        let was = report.is_some_and(|report| !report.in_recovery && report.timeline > record.timeline);
        (!was).then_some(named)
    }

    /// Takes over what the record says of promotions that others asked for, or this proxy before it was started.
    pub(super) fn note_given_up(&mut self) {
        let names = self.record.as_ref().map(|record| record.given_up.as_slice()).unwrap_or_default();
        let given_up: Vec<NodeId> = names.iter().filter_map(|name| self.policy.by_name(name)).collect();
        for id in given_up {
            let now = self.now;
            self.node_mut(id).promotion.get_or_insert(Promotion::asked(now)).passed_over = true;
        }
    }

    /// Nodes that claimed to be primary when they last answered, and are not known to be down.
    pub(super) fn claimants(&self) -> Vec<NodeId> {
        let stands = |id: &NodeId| {
            let node = self.node(*id);
            // A single answer is enough to stop writes; to be adopted takes more.
            let present = node.health != Health::Down || node.live_report().is_some();
            present && node.report.as_ref().is_some_and(|r| self.claim_in(*id, r).is_some())
        };
        self.policy.ids().filter(stands).collect()
    }

    /// Claimants that this state does not expect.
    pub(super) fn rivals(&self) -> Vec<NodeId> {
        let expected = self.state.expected();
        self.claimants().into_iter().filter(|id| !expected.contains(&Some(*id))).collect()
    }

    /// Whether the node's claim is on a timeline that the known primary never had, and follows from that.
    pub(super) fn newer(&self, id: NodeId) -> bool {
        let timeline = self.node(id).report.as_ref().map(|r| r.timeline);
        self.timeline.is_none_or(|known| timeline.is_some_and(|t| t > known)) && self.comes_from_known(id)
    }

    pub(super) fn judge_starting(&mut self, since: Time) -> bool {
        if !self.recalled {
            return false;
        }
        let settled = self.classified(since);
        if self.system_id.is_none() && settled {
            self.system_id = self.majority_system();
        }
        let recorded = self.recorded_primary();
        let claimants = self.claimants();
        if let Some(primary) = recorded.filter(|p| self.sole_highest(*p, &claimants)) {
            return self.begin_with(primary);
        }
        if !settled || self.system_id.is_none() {
            return false;
        }
        match (claimants.as_slice(), recorded) {
            ([], Some(old)) => {
                if self.node(old).restarting() && self.node(old).evidence(&self.policy, self.now).is_none() {
                    return false;
                }
                self.lose(old, Cause::AtStart)
            }
            ([], None) => false,
            ([only], None) if self.node(*only).health == Health::Healthy => {
                !self.doubted(*only) && self.adopt(*only, None)
            }
            ([only], Some(recorded)) if *only == recorded => false,
            ([_], None) => false,
            (_, recorded) => self.contest(recorded),
        }
    }

    /// Whether every node was seen, or waited for long enough.
    pub(super) fn classified(&self, since: Time) -> bool {
        self.now.since(since) >= START_GRACE || self.nodes.iter().all(|n| n.classified())
    }

    /// The recorded primary needs nobody's consent while no other claim is as high.
    pub(super) fn sole_highest(&self, primary: NodeId, claimants: &[NodeId]) -> bool {
        let timeline = |id: NodeId| self.node(id).report.as_ref().map(|r| r.timeline);
        let alive = self.claim(primary).is_some() && self.node(primary).health == Health::Healthy;
        alive && claimants.iter().all(|c| *c == primary || timeline(*c) < timeline(primary))
    }

    fn begin_with(&mut self, primary: NodeId) -> bool {
        if self.claim(primary) != self.timeline {
            return self.adopt(primary, None);
        }
        let name = self.name(primary).clone();
        let text = format!("{name} is primary as recorded, epoch {}", self.epoch);
        self.tell(Level::Info, "primary_found", Some(primary), text);
        self.become_stable(primary)
    }

    pub(super) fn become_stable(&mut self, primary: NodeId) -> bool {
        self.settled_at = self.now;
        self.primary_seen = true;
        for node in &mut self.nodes {
            node.repoints.count = 0;
            node.repoints.last = None;
        }
        if let Some(report) = &self.node(primary).report {
            self.highest = self.highest.max(report.flush_lsn);
        }
        self.note_role(primary);
        self.node_mut(primary).former = false;
        self.node_mut(primary).promotion = None;
        self.nodes.iter_mut().filter_map(|node| node.promotion.as_mut()).for_each(|asked| asked.passed_over = true);
        self.shift(State::Stable { primary, flow: Flow::Open, vetoed: false });
        self.note_sync(primary);
        true
    }

    /// The system of more nodes than any other.
    pub(super) fn majority_system(&self) -> Option<SystemId> {
        let all: Vec<SystemId> = self.nodes.iter().filter_map(|n| n.report.as_ref()).map(|r| r.system_id).collect();
        let count = |id: SystemId| all.iter().filter(|other| **other == id).count();
        let most = all.iter().copied().max_by_key(|id| count(*id))?;
        all.iter().all(|id| *id == most || count(*id) < count(most)).then_some(most)
    }

    /// Records a primary that was found; it is published once the record is stored.
    pub(super) fn adopt(&mut self, primary: NodeId, outage: Option<Outage>) -> bool {
        let recorded = self.registered() == Some(primary);
        (recorded || self.outgrown_hold(primary).is_none()) && self.begin_adoption(primary, outage, false)
    }

    /// As [`Machine::adopt`]; `ordered`: whatever other nodes say.
    pub(super) fn begin_adoption(&mut self, primary: NodeId, outage: Option<Outage>, ordered: bool) -> bool {
        let Some(timeline) = self.node(primary).report.as_ref().map(|r| r.timeline) else { return false };
        if self.now < self.store_retry_at {
            return false;
        }
        if self.registered() == Some(primary) {
            // It is recorded already; only we did not know, or had doubts.
            self.adopted(outage, primary, timeline);
            return true;
        }
        if let Some(chosen) = self.pending().filter(|chosen| *chosen != primary) {
            // Naming anybody else now could make two primaries once that promotion takes effect.
            return self.unfinished() == Some(chosen) && self.finish_change(chosen, Some(primary));
        }
        let (epoch, since) = (self.next_epoch(), self.now);
        // With the right to it; what was decided before may be wrong by then.
        let may = self.has_right() && self.promoted_elsewhere(primary).is_none();
        let action = if may { self.store(primary, epoch, timeline, true) } else { None };
        if action.is_none() && (may || self.standing.is_none()) {
            return false;
        }
        self.shift(State::Adopting { outage, primary, timeline, epoch, action, since, ordered })
    }

    /// Another node was primary after this one, even where nobody remembers it: a standby is on a newer timeline, or a
    /// timeline is written down that nobody can have meant who left this one.
    pub(super) fn outgrown_hold(&self, primary: NodeId) -> Option<Hold> {
        let timeline = self.node(primary).report.as_ref().map(|r| r.timeline)?;
        let mut others = self.policy.ids().filter(|id| *id != primary && self.is_standby(*id));
        let standby = others.find(|id| self.node(*id).timeline > Some(timeline)).map(|id| self.name(id).clone());
        // A change that went no further names the timeline after the one that it was to leave.
        let written = self.standing.as_ref().is_some_and(|s| s.least_timeline.0 > timeline.0.saturating_add(1));
        (standby.is_some() || written).then(|| Hold::Outgrown { node: self.name(primary).clone(), standby })
    }

    pub(super) fn adopted(&mut self, outage: Option<Outage>, primary: NodeId, timeline: TimelineId) {
        let moved = outage.and_then(|o| o.old).filter(|old| *old != primary);
        if let Some(old) = moved {
            self.cut(old);
            self.node_mut(old).former = true;
        }
        self.timeline_epoch = self.epoch;
        let same = moved.is_none() && self.timeline == Some(timeline);
        if self.timeline != Some(timeline) {
            // Not promoted by us: where the histories part is not known.
            self.fork = None;
            self.timeline = Some(timeline);
            self.highest = self.node(primary).report.as_ref().map_or(self.highest, |r| r.flush_lsn);
        }
        self.line = self.line_of(primary).or_else(|| self.line.take().filter(|_| same));
        let name = self.name(primary).clone();
        let text = format!("{name} is primary on timeline {timeline}, epoch {}", self.epoch);
        self.tell(Level::Info, "primary_found", Some(primary), text);
        self.become_stable(primary);
    }

    /// The store did not take the record.
    pub(super) fn adopt_failed(&mut self, outage: Option<Outage>, primary: NodeId, why: &str) {
        self.store_retry_at = self.now + RETRY_GAP;
        self.adopt_given_up(outage, primary, why);
    }

    fn adopt_given_up(&mut self, outage: Option<Outage>, primary: NodeId, why: &str) {
        let name = self.name(primary).clone();
        let text = format!("{name} cannot be recorded as primary: {why}");
        self.tell(Level::Error, "record_failed", Some(primary), text);
        match outage {
            Some(outage) => self.shift(State::Lost { outage }),
            None => self.shift(State::Starting { since: self.now }),
        };
    }

    pub(super) fn judge_adopting(&mut self, outage: Option<Outage>, since: Time) -> bool {
        let State::Adopting { primary, timeline, action, ordered, .. } = self.state else { return false };
        if !self.has_right() && self.registered() == Some(primary) {
            self.give_up_record();
            self.adopted(outage, primary, timeline);
            return true;
        }
        let late = self.now.since(since) >= RECORD_SPAN;
        if action.is_some() {
            let lost = self.standing.is_some() && !self.has_right();
            if lost {
                self.give_up_record();
                let why = format!("the right was lost: {}", self.lack());
                self.adopt_given_up(outage, primary, &why);
            } else if late {
                self.give_up_record();
                self.adopt_failed(outage, primary, "the store did not answer");
            }
            return late || lost;
        }
        if self.has_right() {
            return self.adopt_with_right(outage, primary, since, ordered);
        }
        // Nothing was asked of the store yet: what is decided anew now may begin at once.
        let why = if self.node(primary).health == Health::Down {
            "it went away".to_owned()
        } else if late {
            self.lack().to_string()
        } else {
            return false;
        };
        self.adopt_given_up(outage, primary, &why);
        true
    }

    /// The right is had: is it still this primary that is to be recorded?
    fn adopt_with_right(&mut self, outage: Option<Outage>, primary: NodeId, since: Time, ordered: bool) -> bool {
        if let Some(chosen) = self.pending().filter(|chosen| *chosen != primary) {
            return self.unfinished() == Some(chosen) && self.finish_change(chosen, Some(primary));
        }
        if let Some(newer) = self.promoted_elsewhere(primary) {
            // A standby that was merely named says so within this span.
            let waited = self.right_since.is_some_and(|had| self.now.since(had) >= UNLEASED_SPAN);
            return waited && self.give_up_for(newer, primary);
        }
        let Some(timeline) = self.claim(primary) else {
            self.adopt_given_up(outage, primary, "it went away");
            return true;
        };
        if let Some(hold) = self.outgrown_hold(primary).filter(|_| !ordered) {
            self.adopt_given_up(outage, primary, &hold.to_string());
            return true;
        }
        let epoch = self.next_epoch();
        let action = self.store(primary, epoch, timeline, true);
        action.is_some() && self.shift(State::Adopting { outage, primary, timeline, epoch, action, since, ordered })
    }

    /// Another node claims to be primary: no writes until it is clear who is.
    pub(super) fn contest(&mut self, primary: Option<NodeId>) -> bool {
        if let Some(primary) = primary {
            self.cut(primary);
        }
        self.give_up_record();
        self.shift(State::Contested { primary, since: self.now, confirmed: false })
    }

    pub(super) fn judge_contested(&mut self, primary: Option<NodeId>, since: Time, confirmed: bool) -> bool {
        let rivals = self.rivals();
        let known = self.recorded_primary().or_else(|| self.newest_named().map(|(named, _)| named));
        let highest = known.filter(|p| self.sole_highest(*p, &self.claimants()));
        if let Some(recorded) = highest.filter(|_| !rivals.is_empty()) {
            // It did not answer yet when this began, or it was not known yet who is recorded.
            let known = primary == Some(recorded);
            return if known { self.uncontested(primary) } else { self.adopt_survivor(primary, recorded) };
        }
        let standing = self.standing(primary, since);
        match self.named() {
            Some(named) if primary != Some(named) => return self.adopt_survivor(primary, named),
            Some(_) if matches!(standing, Standing::Claims) => return self.uncontested(primary),
            _ => {}
        }
        match (standing, rivals.as_slice()) {
            (Standing::Gone | Standing::InRecovery, []) => self.nobody_left(primary),
            (Standing::Claims | Standing::Unsure, []) => self.uncontested(primary),
            (Standing::InRecovery, [only]) => self.adopt_survivor(primary, *only),
            (Standing::Gone, [only]) if self.newer(*only) => self.adopt_survivor(primary, *only),
            (Standing::Unsure, _) => {
                if let Some(primary) = primary.filter(|_| !confirmed) {
                    self.want_probe(primary);
                }
                false
            }
            _ if confirmed || self.word_due(since) => false,
            // Where others share the store, its register usually says in a moment who is right: this proxy may have slept.
            _ if self.standing.is_some() && self.now.since(since) < UNLEASED_SPAN => false,
            _ => {
                let text = self.split_text(primary, &rivals);
                self.tell(Level::Error, "split_brain", rivals.first().copied(), text);
                self.shift(State::Contested { primary, since, confirmed: true })
            }
        }
    }

    fn standing(&self, primary: Option<NodeId>, since: Time) -> Standing {
        let Some(id) = primary else { return Standing::Gone };
        let node = self.node(id);
        match node.live_report() {
            None if node.health == Health::Down => Standing::Gone,
            Some(report) if report.in_recovery && self.system_id == Some(report.system_id) => Standing::InRecovery,
            Some(report) if self.claim_in(id, report).is_none() => Standing::Gone,
            Some(report) if report.sent_at > since => Standing::Claims,
            _ => Standing::Unsure,
        }
    }

    fn split_text(&self, primary: Option<NodeId>, rivals: &[NodeId]) -> String {
        let names: Vec<&str> = self.claimants().into_iter().map(|id| &**self.name(id)).collect();
        match (primary, rivals) {
            (_, [only]) if !self.comes_from_known(*only) => {
                self.unproven(*only).map_or_else(String::new, |hold| hold.to_string())
            }
            (Some(primary), [only]) if !self.claimants().contains(&primary) => format!(
                "{} accepts writes on the timeline of the lost primary {}: nobody can tell which of them is right",
                self.name(*only),
                self.name(primary)
            ),
            _ => format!("several nodes accept writes ({}): stop all but one", names.join(", ")),
        }
    }

    /// A claim that does not follow from the last primary is a person's to judge.
    pub(super) fn unproven(&self, id: NodeId) -> Option<Hold> {
        let timeline = self.node(id).report.as_ref()?.timeline;
        Some(Hold::OtherLine { node: self.name(id).clone(), timeline, last: self.timeline? })
    }

    fn nobody_left(&mut self, primary: Option<NodeId>) -> bool {
        match primary {
            Some(old) => self.lose(old, Cause::SplitEnded),
            None => self.shift(State::Starting { since: self.now }),
        }
    }

    fn uncontested(&mut self, primary: Option<NodeId>) -> bool {
        let Some(primary) = primary else { return false };
        if !self.claimants().contains(&primary) {
            self.want_probe(primary);
            return false;
        }
        let outage = Outage { old: Some(primary), since: self.now, cause: Cause::SplitEnded, order: None };
        self.take_back(primary, outage)
    }

    fn adopt_survivor(&mut self, old: Option<NodeId>, survivor: NodeId) -> bool {
        if self.paused || self.node(survivor).health != Health::Healthy || self.doubted(survivor) {
            return false;
        }
        let cause = Cause::Replaced;
        let outage = old.map(|old| Outage { old: Some(old), since: self.now, cause, order: None });
        self.adopt(survivor, outage)
    }
}
