//! The failover machine: told what happens, it says what to do. Pure; time is an argument.
//!
//! One [`State`] with its data inside; `shift` is the only function that moves it. After each event
//! `judge` asks the present state until it stays, `tend` looks after the standbys, `finish`
//! publishes, probes and sets the alarm.
//!
//! | from | what is seen | to |
//! |---|---|---|
//! | Starting | the recorded primary answers as primary | Stable |
//! | Starting | another one, or none is recorded, and all nodes are classified | Adopting |
//! | Starting | the recorded primary is gone | Lost |
//! | Stable | evidence against the primary that no standby contradicts | Lost |
//! | Stable | the primary lives but cannot do its work, and a standby can | Lost |
//! | Stable, Lost, Promoting | a node accepts writes that should not | Contested, or Adopting when the primary is down |
//! | Lost | the old primary answers as primary again | Stable (Adopting after another was recorded) |
//! | Lost | nothing holds a failover | Freezing |
//! | Freezing | all standbys stand still | Recording the best one, Preparing where hooks or settings come first |
//! | Preparing | all steps ended well | Recording |
//! | Preparing | the hook speaks against the candidate | Preparing the next one |
//! | Recording | stored, and the old primary is still silent | Promoting |
//! | Promoting | out of recovery on a newer timeline | Confirming, then Stable |
//! | Promoting | failed or took too long | Lost, and the next candidate |
//! | any | another proxy recorded a primary of a higher epoch | Following |
//! | Following | that node says so itself | Stable |
//! | Contested | one is left | Stable or Adopting |
//!
//! Invariants (`check_invariants`): the epoch never falls; a plan has at most one primary, and
//! writes are open exactly when it has one; `Promote` only for an epoch and node that the store has
//! recorded, one node per epoch, and never while the old primary answers (unless an operator wants
//! it, or it was given up for an ailment that lasts); where several proxies share a store, writes are open only under a
//! lease and nodes change only under the right; a halted machine only publishes and tells. Absent on purpose: I/O,
//! logging, randomness, and how lag decides about reads (the controller adds freshness).

mod ailing;
mod change;
mod claims;
mod command;
mod former;
mod line;
mod observe;
mod outlook;
mod patroni;
mod prepare;
mod provoke;
mod publish;
mod register;
mod restart;
mod stable;
mod standbys;
mod status;
mod sync;

pub use outlook::{NodeOutlook, Outlook};
pub(in crate::failover) use provoke::Reconnect;
pub use status::{LastFailover, Summary};

use super::action::{Action, ActionId, Level, Notice, Plan};
use super::event::{Event, Outcome, Record};
use super::node_state::NodeState;
use super::policy::Policy;
use super::standing::{Claim, Standing};
use super::state::{Outage, State};
use crate::clock::Time;
use crate::ids::{Epoch, Lsn, NodeId, SystemId, TimelineId};
use crate::topology::{History, Role, Writes};
use std::collections::VecDeque;
use std::sync::Arc;

/// Moves within one step; more would mean that two states send the machine back and forth.
const SHIFTS_MAX: usize = 8;

/// Decides who is primary.
#[derive(Debug)]
pub struct Machine {
    policy: Policy,
    now: Time,
    state: State,
    nodes: Vec<NodeState>,
    paused: bool,
    /// The store has said what it remembers.
    recalled: bool,
    /// What the store holds for certain.
    record: Option<Record>,
    /// What each record action under way would store.
    recording: Option<(ActionId, Record)>,
    /// Records given up that the store has not answered yet.
    unanswered: Vec<ActionId>,
    /// Since it started, a node was believed to be primary.
    primary_seen: bool,
    /// The highest epoch that may have been stored.
    epoch_tried: Epoch,
    epoch: Epoch,
    timeline: Option<TimelineId>,
    /// The epoch whose primary is known to have that timeline.
    timeline_epoch: Epoch,
    system_id: Option<SystemId>,
    /// Which timeline the present one left, and where, if we promoted it: what is replayed up to here is shared.
    fork: Option<(TimelineId, Lsn)>,
    /// The recorded primary's history, of that timeline.
    line: Option<Arc<History>>,
    /// The highest position seen on the present timeline.
    highest: Lsn,
    /// Since when the present primary takes writes.
    settled_at: Time,
    /// No attempt at a change before this time.
    retry_at: Time,
    /// No record of a primary that was found before this time.
    store_retry_at: Time,
    /// When automatic failovers of the last hour ended.
    failovers: VecDeque<Time>,
    failovers_total: u64,
    last_failover: Option<LastFailover>,
    /// What fencing has come to, and who knows of the present primary.
    fences: prepare::Fences,
    /// Whom the present primary's commits wait for.
    sync: sync::SyncMemory,
    /// Attempts to have other proxies agree that the primary cannot do its work.
    yields: ailing::Yields,
    /// The last promotion asked for.
    promoted: Option<(Epoch, NodeId)>,
    /// Why no primary can be had was told in this state.
    held_told: bool,
    /// Where this proxy stands with a store that several share; `None` with a store of its own.
    standing: Option<Standing>,
    /// What was last claimed of it.
    claimed: Claim,
    /// Since when writes could flow but for a lease.
    unleased_since: Option<Time>,
    unleased_told: bool,
    /// Since when nodes may be changed.
    right_since: Option<Time>,
    /// Since when a standby that was chosen has not left recovery.
    pending_since: Option<Time>,
    /// When an operator last ordered a change.
    ordered_at: Time,
    next_action: u64,
    actions: Vec<Action>,
    published: Option<Plan>,
    alarm: Option<Time>,
}

impl Machine {
    /// A machine that believes nothing; it acts only after `Event::Recalled`.
    #[must_use]
    pub fn new(policy: Policy, now: Time) -> Self {
        let nodes = policy.ids().map(|_| NodeState::new()).collect();
        Self {
            policy,
            now,
            state: State::Starting { since: now },
            nodes,
            paused: false,
            recalled: false,
            record: None,
            recording: None,
            unanswered: Vec::new(),
            epoch_tried: Epoch(0),
            epoch: Epoch(0),
            timeline: None,
            timeline_epoch: Epoch(0),
            system_id: None,
            fork: None,
            line: None,
            primary_seen: false,
            highest: Lsn(0),
            settled_at: now,
            retry_at: Time::ZERO,
            store_retry_at: Time::ZERO,
            failovers: VecDeque::new(),
            failovers_total: 0,
            last_failover: None,
            fences: prepare::Fences::default(),
            sync: sync::SyncMemory::default(),
            yields: ailing::Yields::default(),
            promoted: None,
            held_told: false,
            standing: None,
            claimed: Claim::Nothing,
            unleased_since: None,
            unleased_told: false,
            right_since: None,
            pending_since: None,
            ordered_at: Time::ZERO,
            next_action: 1,
            actions: Vec::new(),
            published: None,
            alarm: None,
        }
    }

    /// Takes one event in and answers with what is to be done, in this order.
    ///
    /// # Panics
    /// If an invariant of the module header would be broken: that is a defect of ours, and going on
    /// could mean two primaries.
    pub fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.now = self.now.max(now);
        let epoch_before = self.epoch;
        self.take_in(event);
        self.judge();
        self.tend();
        self.provoke();
        self.finish();
        let actions = std::mem::take(&mut self.actions);
        self.check_invariants(epoch_before, &actions);
        actions
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Promised(promise) => self.promised(promise),
            Event::Recalled(record) => self.recall(record),
            Event::Standing(standing) => self.stand(standing),
            Event::Observed(observation) => self.observe(&observation),
            Event::Signed(sign) => self.signed(&sign),
            Event::Fact(fact) => self.want_probe(fact.node()),
            Event::ActionDone { id, outcome } => self.action_done(id, outcome),
            // An alarm that went off must be set again, whatever it was for.
            Event::Tick => self.alarm = None,
            Event::Command(command) => self.command(&command),
        }
    }

    fn recall(&mut self, record: Option<Record>) {
        if self.recalled {
            return;
        }
        self.recalled = true;
        if let Some(record) = &record {
            self.epoch = record.epoch;
            self.epoch_tried = record.epoch;
            self.timeline = Some(record.timeline);
            self.timeline_epoch = record.epoch;
            self.system_id = Some(record.system_id);
        }
        self.record = record;
        self.note_given_up();
        self.role_recalled();
    }

    fn judge(&mut self) {
        for _ in 0..SHIFTS_MAX {
            if self.follow_register() {
                continue;
            }
            let shifted = match self.state.clone() {
                State::Starting { since } => self.judge_starting(since),
                State::Stable { primary, .. } => self.judge_stable(primary),
                State::Lost { outage } => self.judge_lost(outage),
                State::Adopting { outage, since, .. } => self.judge_adopting(outage, since),
                State::Following { outage, primary, since } => self.judge_following(outage, primary, since),
                State::Freezing { outage, since, standbys } => self.judge_freezing(outage, since, standbys),
                State::Preparing { .. } => self.judge_preparing(),
                State::Recording { .. } => self.judge_recording(),
                State::Promoting { .. } => self.judge_promoting(),
                State::Confirming { since, .. } => self.judge_confirming(since),
                State::Contested { primary, since, confirmed } => self.judge_contested(primary, since, confirmed),
            };
            if !shifted {
                break;
            }
        }
        self.tell_held();
    }

    /// Says once per state that a person is needed, and why.
    fn tell_held(&mut self) {
        let undecided = match self.state {
            State::Starting { since } => self.recalled && self.classified(since),
            State::Lost { outage } => outage.order.is_none(),
            _ => false,
        };
        if self.held_told || !undecided {
            return;
        }
        let holds: Vec<String> = self.holds().iter().filter(|h| h.needs_person()).map(ToString::to_string).collect();
        if !holds.is_empty() {
            self.held_told = true;
            self.tell(Level::Error, "held", None, format!("no primary: {}", holds.join("; ")));
        }
    }

    /// The only function that moves the state. Returns true, for `judge`.
    fn shift(&mut self, next: State) -> bool {
        assert!(self.state.may_become(&next), "no move from {:?} to {next:?}", self.state);
        if self.state.word() != next.word() {
            self.held_told = false;
        }
        self.state = next;
        true
    }

    fn action_done(&mut self, id: ActionId, outcome: Outcome) {
        if self.recording.as_ref().is_some_and(|(wanted, _)| *wanted == id) {
            return self.record_done(outcome);
        }
        self.unanswered.retain(|given_up| *given_up != id);
        match &self.state {
            State::Freezing { .. } => self.detach_done(id, &outcome),
            State::Preparing { action, .. } if *action == id => return self.step_done(id, outcome),
            State::Promoting { action, .. } if *action == id => self.promote_done(&outcome),
            _ => {}
        }
        self.fence_sql_done(id, &outcome);
        self.name_done(id, &outcome);
        self.repoint_done(id, &outcome);
        self.reconnect_done(id, &outcome);
    }

    /// Asks the store to keep the record; the answer comes to `record_done`.
    fn store(&mut self, primary: NodeId, epoch: Epoch, timeline: TimelineId, promoted: bool) -> Option<ActionId> {
        let given_up = self.given_up_for(primary, promoted);
        let (system_id, primary) = (self.system_id?, self.name(primary).to_string());
        let record = Record { system_id, epoch, primary, timeline, promoted, given_up };
        let id = self.action_id();
        self.epoch_tried = self.epoch_tried.max(epoch);
        self.recording = Some((id, record.clone()));
        self.actions.push(Action::Record(id, record));
        Some(id)
    }

    /// Wants what was asked of the store no more. Where others share it, nothing is claimed until it has answered: what was
    /// decided with the right must not be written once that was lost and had again.
    fn give_up_record(&mut self) {
        let given_up = self.recording.take().filter(|_| self.standing.is_some());
        self.unanswered.extend(given_up.map(|(id, _)| id));
    }

    fn record_done(&mut self, outcome: Outcome) {
        let Some((id, record)) = self.recording.take() else { return };
        let failure = match outcome {
            Outcome::Failed(why) => Some(why),
            Outcome::Done | Outcome::Detached { .. } => None,
        };
        if failure.is_none() {
            self.epoch = self.epoch.max(record.epoch);
            self.record = Some(record);
            self.note_given_up();
        }
        match self.state.clone() {
            State::Adopting { outage, primary, timeline, action, .. } if action == Some(id) => match failure {
                None => self.adopted(outage, primary, timeline),
                Some(why) => self.adopt_failed(outage, primary, &why),
            },
            State::Recording { outage, candidate, flush_lsn, epoch, action, since } if action == Some(id) => {
                match failure {
                    None => {
                        let next = State::Recording { outage, candidate, flush_lsn, epoch, action: None, since };
                        self.shift(next);
                    }
                    Some(why) => self.attempt_failed(outage, &format!("the record could not be stored: {why}")),
                }
            }
            State::Confirming { action, primary, .. } if action == id => {
                if let Some(why) = failure {
                    let text = format!("the new timeline could not be recorded: {why}");
                    self.tell(Level::Error, "record_failed", Some(primary), text);
                }
                self.settle();
            }
            _ => {}
        }
    }

    fn next_epoch(&self) -> Epoch {
        self.epoch.max(self.epoch_tried).next()
    }

    fn action_id(&mut self) -> ActionId {
        let id = ActionId(self.next_action);
        self.next_action += 1;
        id
    }

    fn tell(&mut self, level: Level, kind: &'static str, node: Option<NodeId>, text: String) {
        self.actions.push(Action::Tell(Notice { level, kind, node, text }));
    }

    fn name(&self, node: NodeId) -> &Arc<str> {
        &self.policy.nodes[node.index()].name
    }

    fn node(&self, node: NodeId) -> &NodeState {
        &self.nodes[node.index()]
    }

    fn node_mut(&mut self, node: NodeId) -> &mut NodeState {
        &mut self.nodes[node.index()]
    }

    fn cut(&mut self, node: NodeId) {
        self.node_mut(node).fence += 1;
    }

    /// The recorded primary, if it is configured.
    fn recorded_primary(&self) -> Option<NodeId> {
        self.record.as_ref().and_then(|r| self.policy.by_name(&r.primary))
    }

    /// A new outage, unless one is going on already.
    fn outage(&self, old: Option<NodeId>, cause: super::state::Cause) -> Outage {
        match self.state.outage() {
            Some(outage) => *outage,
            None => Outage { old, since: self.now, cause, order: None },
        }
    }

    fn check_invariants(&mut self, epoch_before: Epoch, actions: &[Action]) {
        assert!(self.epoch >= epoch_before, "epoch moved backwards: {epoch_before} -> {}", self.epoch);
        for action in actions {
            match action {
                Action::Publish(plan) => check_plan(plan, self.epoch),
                Action::Promote(_, node, epoch) => self.check_promotion(*node, *epoch),
                Action::Tell(_) | Action::Claim(_) => {}
                _ => assert!(!self.state.halted(), "halted, but acts: {action:?}"),
            }
        }
    }

    fn check_promotion(&mut self, node: NodeId, epoch: Epoch) {
        let stored = self.record.as_ref().is_some_and(|r| r.epoch == epoch && *r.primary == **self.name(node));
        assert!(stored, "promotion of {node} in epoch {epoch}, which is not recorded");
        let once = self.promoted.is_none_or(|(last, who)| epoch > last || (epoch == last && who == node));
        assert!(once, "promotion of {node} in epoch {epoch} after {:?}", self.promoted);
        self.promoted = Some((epoch, node));
        let outage = self.state.outage();
        let unwanted = outage.is_some_and(|o| self.standing_old(o).is_some());
        assert!(!unwanted, "promotion of {node} while the old primary answers");
    }
}

fn check_plan(plan: &Plan, epoch: Epoch) {
    assert!(plan.epoch == epoch, "published epoch {} is not {epoch}", plan.epoch);
    let primaries: Vec<usize> =
        plan.nodes.iter().enumerate().filter(|(_, n)| n.role == Role::Primary).map(|(i, _)| i).collect();
    let wanted: Vec<usize> = plan.primary.iter().map(|p| p.index()).collect();
    assert!(primaries == wanted, "primary {:?}, but roles say {primaries:?}", plan.primary);
    assert!((plan.writes == Writes::Open) == plan.primary.is_some(), "writes without a primary, or the reverse");
}
