//! What the primary said about who acknowledges its commits, and what follows for its successor.
//!
//! Invariants: without an operator's order nobody is promoted unless, under every setting that commits
//! may have been acknowledged under, R + k > N of those named stand still, and then only a node that has as
//! much WAL as the most advanced of them. What the primary said outlives this process; of a primary that nobody here has
//! ever seen it is not known, and then everybody else must stand still. Absent on purpose: the rule itself (`failover::sync`).

use super::Machine;
use crate::clock::Time;
use crate::config::{Degrade, FailoverMode};
use crate::failover::action::{Action, ActionId, Level};
use crate::failover::candidate::{Bar, Candidate, elect};
use crate::failover::event::Outcome;
use crate::failover::hold::Hold;
use crate::failover::policy::{DEGRADE_AFTER, SYNC_GAP, SYNC_SPAN};
use crate::failover::promise::{Asked, Promise};
use crate::failover::state::{Cause, Detaching, Outage, Progress, State};
use crate::failover::sync::{Demand, Method, Named, Sender, managed, parse};
use crate::ids::{Epoch, Lsn, NodeId};
use crate::topology::{Health, SyncView};
use std::sync::Arc;
use std::time::Duration;

/// How long after a change of the setting commits may still be acknowledged under the old one: backends
/// and walsenders read a new configuration each in its own time.
const CHANGE_SPAN: Duration = Duration::from_secs(2);

/// A setting that was read longer ago than this before a decision may have been changed by another proxy since; what
/// changes within it and is lost at once is not seen by a proxy that is cut off from the standby, too.
const NAMED_UNSEEN: Duration = Duration::from_secs(10);

/// The memory of one primary's settings.
#[derive(Debug, Default)]
pub(super) struct SyncMemory {
    /// Whose.
    of: Option<NodeId>,
    /// The setting last seen, as written.
    text: Option<String>,
    /// What it asks for; `None`: commits wait for nobody.
    present: Option<Demand>,
    /// What settings before it asked for: whoever has WAL up to this position has what they promised.
    before: Option<(Demand, Lsn)>,
    changed_at: Time,
    /// The setting that is being written, and since when.
    naming: Option<(ActionId, Time)>,
    /// When it was last written, or failed to be.
    named_at: Option<Time>,
    /// Since when too few standbys stream.
    short_since: Option<Time>,
    /// A failure, or that commits wait for too few, was told.
    told: bool,
    /// What is kept for the next start.
    kept: Option<Promise>,
    /// The primary that this process has seen itself.
    seen: Option<NodeId>,
    /// When its setting was last read.
    seen_at: Time,
}

/// Whom the standbys that stand still can vouch for.
enum Vouched {
    /// Commits waited for nobody.
    Asynchronous,
    /// Whoever has WAL up to here has every acknowledged commit.
    UpTo(Lsn),
    /// Too few stand still.
    TooFew(Hold),
}

impl Machine {
    /// Remembers what the present primary says.
    pub(super) fn note_sync(&mut self, id: NodeId) {
        let State::Stable { primary, .. } = self.state else { return };
        let node = self.node(id);
        let Some(report) = node.live_report().filter(|r| primary == id && !r.in_recovery) else { return };
        let (view, position, now) = (report.sync.clone(), report.flush_lsn, self.now);
        self.sync.seen = Some(id);
        let Some(view) = view else { return };
        let demand = self.demand(id, &view);
        let caught_up = |until: Lsn| {
            let others = self.policy.ids().filter(|other| *other != id);
            others.into_iter().all(|other| self.node(other).report.as_ref().is_some_and(|r| r.flush_lsn >= until))
        };
        let settled = self.sync.before.as_ref().is_some_and(|(_, until)| caught_up(*until));
        if self.sync.of != Some(id) {
            let seen = Some(id);
            self.sync = SyncMemory { of: seen, present: demand, seen, ..SyncMemory::default() };
        } else if self.sync.present != demand {
            let memory = &mut self.sync;
            memory.changed_at = now;
            if let Some(old) = std::mem::replace(&mut memory.present, demand) {
                let joint = memory.before.take().map_or(old.clone(), |(before, _)| before.and(&old));
                memory.before = Some((joint, position));
            }
        } else if now.since(self.sync.changed_at) < CHANGE_SPAN {
            if let Some((_, until)) = &mut self.sync.before {
                *until = position.max(*until);
            }
        } else if settled {
            self.sync.before = None;
        }
        self.sync.seen_at = now;
        if self.sync.text.as_ref() != Some(&view.standby_names) {
            self.sync.text = Some(view.standby_names);
            self.tell_strangers(id);
        }
        self.keep_promise(id);
    }

    fn keep_promise(&mut self, primary: NodeId) {
        let asked = |demand| Asked::of(demand, &self.policy);
        let promise = Promise {
            primary: self.name(primary).to_string(),
            present: self.sync.present.as_ref().map(asked),
            before: self.sync.before.as_ref().map(|(demand, until)| (asked(demand), *until)),
        };
        if self.sync.kept.as_ref() != Some(&promise) {
            self.sync.kept = Some(promise.clone());
            self.actions.push(Action::Keep(promise));
        }
    }

    /// What was kept before this process began.
    pub(super) fn promised(&mut self, promise: Promise) {
        let Some(primary) = self.policy.by_name(&promise.primary).filter(|_| self.sync.of.is_none()) else { return };
        self.sync.of = Some(primary);
        self.sync.present = promise.present.as_ref().map(|asked| asked.demand(&self.policy));
        self.sync.before = promise.before.as_ref().map(|(asked, until)| (asked.demand(&self.policy), *until));
        self.sync.kept = Some(promise);
    }

    fn demand(&self, primary: NodeId, view: &SyncView) -> Option<Demand> {
        let rule = match parse(&view.standby_names) {
            Ok(rule) => rule?,
            Err(_) => return Some(Demand::not_understood(&view.standby_names)),
        };
        let names: Vec<Arc<str>> = self.policy.nodes.iter().map(|n| Arc::clone(&n.application_name)).collect();
        let senders: Vec<Sender<'_>> =
            view.standbys.iter().map(|s| Sender { name: &s.application_name, address: "" }).collect();
        Some(Demand::new(&rule, primary, &names, &senders))
    }

    /// Who acknowledges in place of a node cannot be promoted: people should hear of it before it matters.
    fn tell_strangers(&mut self, primary: NodeId) {
        let Some(demand) = self.sync.present.as_ref().filter(|d| !d.strangers.is_empty()) else { return };
        let text = format!(
            "synchronous_standby_names of {} names standbys that are no configured node ({}): they count as missing \
             when it is lost. Set [[node]] application_name, or the names",
            self.name(primary),
            demand.strangers.join(", ")
        );
        self.tell(Level::Warn, "sync_strangers", Some(primary), text);
    }

    /// Whether commits wait for this node.
    pub(super) fn sync_member(&self, id: NodeId) -> bool {
        self.sync.present.as_ref().is_some_and(|demand| demand.members.contains(&id))
    }

    /// What keeps an automatic failover from starting: even if all standbys that answer stand still, too few do.
    pub(super) fn sync_hold(&self) -> Option<Hold> {
        let candidates = self.candidates(&[]);
        let answering = candidates.iter().filter(|c| matches!(c.health, Health::Healthy | Health::Suspect));
        match self.vouched(answering) {
            Vouched::TooFew(hold) => Some(hold),
            Vouched::Asynchronous | Vouched::UpTo(_) => None,
        }
    }

    /// The bar of an election in which all standbys that answer now stand still, by their present positions.
    pub(super) fn bar_if_still(&self, outage: &Outage, candidates: &[Candidate]) -> Bar {
        let bar = self.bar(outage, false);
        let answering = candidates.iter().filter(|c| matches!(c.health, Health::Healthy | Health::Suspect));
        match self.vouched(answering) {
            Vouched::UpTo(floor) => Bar { floor: Some(floor), ..bar },
            Vouched::Asynchronous | Vouched::TooFew(_) => bar,
        }
    }

    /// WAL that a candidate may lack: where members vouch for every commit, what else there is was promised to nobody.
    pub(super) fn lag_bytes_max(&self) -> u64 {
        if self.sync_hold().is_none() { self.lag_of_vouched() } else { self.policy.lag_bytes_max }
    }

    fn lag_of_vouched(&self) -> u64 {
        if self.sync.present.is_some() { u64::MAX } else { self.policy.lag_bytes_max }
    }

    /// The best of the standbys, now that they stand still, or why there is none.
    pub(super) fn elect_still(&mut self, outage: &Outage, candidates: &[Candidate]) -> Result<Candidate, Vec<Hold>> {
        let vouched = self.vouched(candidates.iter().filter(|c| c.detached));
        let strict = Bar { beyond: self.beyond(), ..self.bar(outage, true) };
        let strict = match vouched {
            Vouched::Asynchronous => strict,
            Vouched::UpTo(floor) => Bar { floor: Some(floor), lag_bytes_max: self.lag_of_vouched(), ..strict },
            Vouched::TooFew(hold) if outage.order.is_none() => return Err(vec![hold]),
            Vouched::TooFew(hold) => {
                self.tell_loss(outage, None, &hold.to_string());
                strict
            }
        };
        // Where others share the store, a standby that may still follow the old primary is none of ours to promote.
        let lenient = Bar { detached_only: self.standing.is_some(), ..strict };
        if let Some(chosen) = elect(candidates, &strict).or_else(|| elect(candidates, &lenient)) {
            return Ok(chosen.clone());
        }
        let any = Bar { floor: None, lag_bytes_max: self.policy.lag_bytes_max, ..strict };
        if let Some(chosen) = elect(candidates, &any).filter(|_| outage.order.is_some()).cloned() {
            let text = format!("other standbys have more than {}", self.name(chosen.node));
            self.tell_loss(outage, Some(chosen.node), &text);
            return Ok(chosen);
        }
        Err(self.candidate_holds(candidates, &strict))
    }

    /// Whoever began a change that is only finished here has judged it already.
    fn tell_loss(&mut self, outage: &Outage, node: Option<NodeId>, why: &str) {
        if outage.cause != Cause::Unfinished {
            self.tell(Level::Warn, "loss_possible", node, format!("by an operator's order: {why}"));
        }
    }

    /// Sets the names of those that remain on the candidate, so that its first commit is protected.
    pub(super) fn name_for(&mut self, candidate: NodeId, standbys: &[Detaching]) -> Option<ActionId> {
        let k = self.policy.means.synchronous;
        let still = |id: NodeId| standbys.iter().any(|d| d.node == id && matches!(d.progress, Progress::Still { .. }));
        let rule = managed(k, &self.nameable(candidate, &still), None, false)?;
        let present = self.node(candidate).live_report().and_then(|r| r.sync.as_ref());
        if present.is_some_and(|view| parse(&view.standby_names).is_ok_and(|present| present.as_ref() == Some(&rule))) {
            return None;
        }
        // Not under the next epoch: an attempt that fails would keep the one after it from detaching.
        Some(self.write_names(candidate, rule.to_string(), self.epoch))
    }

    fn nameable(&self, primary: NodeId, streams: &dyn Fn(NodeId) -> bool) -> Vec<Named<'_>> {
        let others = self.policy.ids().filter(|id| *id != primary && self.policy.nodes[id.index()].priority > 0);
        others.map(|id| Named { name: &self.policy.nodes[id.index()].application_name, streams: streams(id) }).collect()
    }

    fn write_names(&mut self, node: NodeId, names: String, epoch: Epoch) -> ActionId {
        let id = self.action_id();
        self.actions.push(Action::NameSync { id, node, names, epoch });
        id
    }

    /// Keeps the setting of the present primary.
    pub(super) fn tend_sync(&mut self, primary: NodeId) {
        let k = self.policy.means.synchronous;
        if k == 0 || self.policy.mode != FailoverMode::Automatic || self.paused {
            return;
        }
        let Some(report) = self.node(primary).live_report() else { return };
        let (Some(view), sent_at) = (report.sync.clone(), report.sent_at) else { return };
        let streams = |id: NodeId| {
            let name = &self.policy.nodes[id.index()].application_name;
            view.standbys.iter().any(|s| s.streaming && s.application_name.eq_ignore_ascii_case(name))
        };
        let nodes = self.nameable(primary, &streams);
        let short = nodes.iter().filter(|n| n.streams).count() < k;
        let since = short.then(|| self.sync.short_since.unwrap_or(self.now));
        let lasting = since.is_some_and(|since| self.now.since(since) >= DEGRADE_AFTER);
        let present = parse(&view.standby_names).ok().flatten();
        let degrade = self.policy.means.degrade == Degrade::Allow && lasting;
        let kept = self.policy.means.degrade == Degrade::Allow && short && !lasting;
        let wanted = if kept { present.clone() } else { managed(k, &nodes, present.as_ref(), degrade) };
        self.sync.short_since = since;
        let now = self.now;
        let busy = self.sync.naming.is_some_and(|(_, at)| now.since(at) < SYNC_SPAN);
        // After a success the next report decides.
        let soon =
            self.sync.named_at.is_some_and(|at| if self.sync.told { now.since(at) < SYNC_GAP } else { sent_at <= at });
        if wanted == present || busy || soon {
            return;
        }
        let names = wanted.map(|rule| rule.to_string()).unwrap_or_default();
        if degrade {
            let text = format!("too few standbys stream from {}: commits wait for those that do", self.name(primary));
            self.tell(Level::Warn, "sync_degraded", Some(primary), text);
        }
        let epoch = self.epoch;
        let id = self.write_names(primary, names, epoch);
        self.sync.naming = Some((id, now));
        self.sync.named_at = Some(now);
    }

    pub(super) fn name_done(&mut self, id: ActionId, outcome: &Outcome) {
        if self.sync.naming.is_none_or(|(wanted, _)| wanted != id) {
            return;
        }
        self.sync.naming = None;
        match outcome {
            Outcome::Failed(why) => {
                if !std::mem::replace(&mut self.sync.told, true) {
                    let text = format!("synchronous_standby_names cannot be set: {why}");
                    self.tell(Level::Error, "sync_failed", self.sync.of, text);
                }
            }
            Outcome::Done | Outcome::Detached { .. } => {
                (self.sync.told, self.sync.named_at) = (false, Some(self.now));
                if let Some(primary) = self.sync.of {
                    self.want_probe(primary);
                }
            }
        }
    }

    pub(super) fn sync_alarm(&self) -> Vec<Time> {
        let named = self.sync.named_at.map(|at| at + SYNC_GAP);
        named.into_iter().chain(self.sync.short_since.map(|since| since + DEGRADE_AFTER)).collect()
    }

    /// Commits of the present primary wait for fewer standbys than they should.
    pub(super) fn degraded_hold(&self) -> Option<Hold> {
        let wanted = self.policy.means.synchronous;
        let State::Stable { primary, .. } = self.state else { return None };
        let known = wanted > 0 && self.sync.of == Some(primary);
        let k = self.sync.present.as_ref().map_or(0, |demand| demand.k);
        (known && k < wanted).then_some(Hold::SyncDegraded { k, wanted })
    }

    fn vouched<'a>(&self, still: impl Iterator<Item = &'a Candidate>) -> Vouched {
        let comparable = |c: &&Candidate| {
            let ours = self.system_id == Some(c.system_id) && self.timeline == Some(c.timeline);
            c.in_recovery && ours && c.parted.is_none() && !c.disputed
        };
        let still: Vec<&Candidate> = still.filter(comparable).collect();
        let ids: Vec<NodeId> = still.iter().map(|c| c.node).collect();
        let highest = still.iter().map(|c| c.flush_lsn).max().unwrap_or(Lsn(0));
        let before = self.sync.before.as_ref().filter(|(_, until)| highest < *until).map(|(demand, _)| demand);
        let unknown = self.unknown_demand();
        if let Some(short) = unknown.as_ref().filter(|demand| !demand.met_by(&ids)) {
            return Vouched::TooFew(Hold::SyncUnknown { missing: self.away(short, &ids).collect() });
        }
        let guessed = self.guessed_demand().or(unknown);
        // Whom the record names may never have been promoted: then what the one before promised is what counts.
        let known = match (guessed, &self.sync.present) {
            (Some(guessed), Some(promised)) => Some(guessed.and(promised)),
            (guessed, promised) => guessed.or_else(|| promised.clone()),
        };
        let widened = known.as_ref().map(|demand| self.with_unseen(demand));
        let present = widened.as_ref();
        let demands: Vec<&Demand> = present.into_iter().chain(before).collect();
        let wanted = self.policy.means.synchronous;
        match demands.iter().find(|demand| !demand.met_by(&ids)) {
            // What is to be synchronous was not, or nobody knows.
            None if wanted > 0 && self.sync.present.is_none() => Vouched::TooFew(Hold::SyncDegraded { k: 0, wanted }),
            Some(short) => Vouched::TooFew(self.too_few(short, &ids)),
            None => match (present, &self.sync.before) {
                (None, None) => Vouched::Asynchronous,
                // What came after the change was promised to nobody.
                (None, Some((_, until))) => Vouched::UpTo(highest.min(*until)),
                (Some(_), _) => Vouched::UpTo(highest),
            },
        }
    }

    /// The same demand and whom another proxy may have named since this one last looked: it names a standby as soon as that
    /// streams, and the next commit may have waited for nobody else.
    fn with_unseen(&self, demand: &Demand) -> Demand {
        if self.standing.is_none() || self.policy.means.synchronous == 0 {
            return demand.clone();
        }
        // Once this proxy has the right, nobody else changes a setting.
        let until = self.right_since.unwrap_or(self.now);
        let recent = until.since(self.sync.seen_at) < NAMED_UNSEEN;
        let may_stream = |id: &NodeId| {
            let node = self.node(*id);
            match node.live_report() {
                Some(report) => report.in_recovery && node.timeline == self.timeline,
                // Nobody has seen it stream a moment ago, and it is down.
                None => !recent || node.health != Health::Down,
            }
        };
        let fit = |id: &NodeId| Some(*id) != self.sync.of && self.policy.nodes[id.index()].priority > 0;
        let unseen = self.policy.ids().filter(|id| fit(id) && !demand.members.contains(id) && may_stream(id));
        let members = unseen.collect();
        demand.clone().and(&Demand { method: Method::Any, k: demand.k, members, strangers: Vec::new() })
    }

    /// The lost primary, if what its commits waited for was never known to this proxy.
    fn unknown_primary(&self) -> Option<NodeId> {
        self.state.outage()?.old.filter(|old| self.sync.of != Some(*old))
    }

    /// What commits of a primary waited for that this proxy never knew, by its standbys' own settings: what they would
    /// demand in its place.
    fn guessed_demand(&self) -> Option<Demand> {
        let old = self.unknown_primary()?;
        let standbys = self.policy.ids().filter(|id| *id != old && self.is_standby(*id));
        let asked = standbys.filter_map(|id| self.demand(old, self.node(id).live_report()?.sync.as_ref()?));
        asked.reduce(|one, other| one.and(&other))
    }

    /// Where the standbys say nothing either: any one of the others may have acknowledged. Whoever answers out of
    /// recovery streamed from nobody.
    fn unknown_demand(&self) -> Option<Demand> {
        let old = self.unknown_primary().filter(|old| self.sync.seen != Some(*old))?;
        if self.policy.mode == FailoverMode::Follow || self.guessed_demand().is_some() {
            return None;
        }
        let streams = |id: &NodeId| self.node(*id).live_report().is_none_or(|report| report.in_recovery);
        let members: Vec<NodeId> = self.policy.ids().filter(|id| *id != old && streams(id)).collect();
        (!members.is_empty()).then(|| Demand { method: Method::Any, k: 1, members, strangers: Vec::new() })
    }

    fn away<'a>(&'a self, demand: &'a Demand, still: &'a [NodeId]) -> impl Iterator<Item = Arc<str>> + 'a {
        demand.members.iter().filter(|id| !still.contains(id)).map(|id| self.name(*id).clone())
    }

    fn too_few(&self, demand: &Demand, still: &[NodeId]) -> Hold {
        let away = self.away(demand, still);
        Hold::SyncTooFew {
            method: demand.method,
            k: demand.k,
            n: demand.n(),
            still: demand.still(still),
            missing: away.chain(demand.strangers.iter().cloned()).collect(),
        }
    }
}
