//! What the primary said about who acknowledges its commits, and what follows for its successor.
//!
//! Invariants: without an operator's order nobody is promoted unless, under every setting that commits
//! may have been acknowledged under, R + k > N of those named stand still, and then only a node that has as
//! much WAL as the most advanced of them. Absent on purpose: the rule itself (`failover::sync`).

use super::Machine;
use crate::clock::Time;
use crate::failover::action::Level;
use crate::failover::candidate::{Bar, Candidate, elect};
use crate::failover::hold::Hold;
use crate::failover::state::{Cause, Outage, State};
use crate::failover::sync::{Demand, Sender, parse};
use crate::ids::{Lsn, NodeId};
use crate::topology::{Health, SyncView};
use std::sync::Arc;
use std::time::Duration;

/// How long after a change of the setting commits may still be acknowledged under the old one: backends
/// and walsenders read a new configuration each in its own time.
const CHANGE_SPAN: Duration = Duration::from_secs(2);

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
        let Some(view) = report.sync.clone() else { return };
        let (position, now) = (report.flush_lsn, self.now);
        let demand = self.demand(id, &view);
        let caught_up = |until: Lsn| {
            let others = self.policy.ids().filter(|other| *other != id);
            others.into_iter().all(|other| self.node(other).report.as_ref().is_some_and(|r| r.flush_lsn >= until))
        };
        let settled = self.sync.before.as_ref().is_some_and(|(_, until)| caught_up(*until));
        if self.sync.of != Some(id) {
            self.sync = SyncMemory { of: Some(id), present: demand, ..SyncMemory::default() };
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
        if self.sync.text.as_ref() != Some(&view.standby_names) {
            self.sync.text = Some(view.standby_names);
            self.tell_strangers(id);
        }
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
        let strict = self.bar(outage, true);
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

    fn vouched<'a>(&self, still: impl Iterator<Item = &'a Candidate>) -> Vouched {
        let comparable = |c: &&Candidate| {
            let ours = self.system_id == Some(c.system_id) && self.timeline == Some(c.timeline);
            c.in_recovery && ours
        };
        let still: Vec<&Candidate> = still.filter(comparable).collect();
        let ids: Vec<NodeId> = still.iter().map(|c| c.node).collect();
        let highest = still.iter().map(|c| c.flush_lsn).max().unwrap_or(Lsn(0));
        let before = self.sync.before.as_ref().filter(|(_, until)| highest < *until).map(|(demand, _)| demand);
        let demands: Vec<&Demand> = self.sync.present.iter().chain(before).collect();
        match demands.iter().find(|demand| !demand.met_by(&ids)) {
            Some(short) => Vouched::TooFew(self.too_few(short, &ids)),
            None => match (&self.sync.present, &self.sync.before) {
                (None, None) => Vouched::Asynchronous,
                // What came after the change was promised to nobody.
                (None, Some((_, until))) => Vouched::UpTo(highest.min(*until)),
                (Some(_), _) => Vouched::UpTo(highest),
            },
        }
    }

    fn too_few(&self, demand: &Demand, still: &[NodeId]) -> Hold {
        let away = demand.members.iter().filter(|id| !still.contains(id)).map(|id| self.name(*id).clone());
        Hold::SyncTooFew {
            method: demand.method,
            k: demand.k,
            n: demand.n(),
            still: demand.still(still),
            missing: away.chain(demand.strangers.iter().cloned()).collect(),
        }
    }
}
