//! The `voters` store's record of a primary, written as its driver writes it.
//!
//! Invariants: nothing is written without the right; the candidate's own string comes last; a later record or a claim
//! for something else ends one that still waits. Absent on purpose: another try, which is the machine's to ask for.

use crate::bug::Bug;
use crate::net::{Deed, Msg};
use crate::node::SYSTEM;
use crate::setup::Store;
use crate::world::{Event, MS, Nanos, SEC, World, node_name, note};
use pgregent::coordination::may_follow;
use pgregent::coordination::voters::core::Lock;
use pgregent::failover::action::ActionId;
use pgregent::failover::event::{Outcome, Record};
use pgregent::ids::Epoch;
use std::sync::Arc;

/// How long a record may take.
const RECORD_LIMIT: Nanos = 10 * SEC;

/// A record under way.
#[derive(Debug)]
pub struct Recording {
    pub id: ActionId,
    record: Record,
    began: Nanos,
    /// The newest epoch that was known when this was decided.
    known: Epoch,
    /// The right was had; the record is being written.
    writing: bool,
    pub votes: Vec<Vote>,
}

/// Whether a voter has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    None,
    Sent(u32),
    Failed,
    Done,
}

impl World {
    /// What is not wanted any more must not be written when the right is had for something else.
    pub fn give_up_records(&mut self, proxy: usize) {
        for recording in std::mem::take(&mut self.proxies[proxy].recordings) {
            self.fail(proxy, recording.id, "overtaken by what came after it");
        }
    }

    pub fn record(&mut self, proxy: usize, id: ActionId, record: Record) {
        assert_eq!(record.system_id, SYSTEM);
        let (oracle, risks) = (&mut self.oracle, std::mem::take(&mut self.proxies[proxy].risks));
        let finishes = |(epoch, name): &(u64, String)| *name == record.primary && oracle.executed() <= *epoch;
        if risks || oracle.last_risk.as_ref().is_some_and(finishes) {
            oracle.risked.push(record.epoch.0);
            oracle.last_risk = Some((record.epoch.0, record.primary.clone()));
        }
        match self.setup.store {
            Store::Voters => {}
            Store::Etcd => return self.etcd_record(proxy, id, record),
            Store::Single => return self.write_file(proxy, id, record),
        }
        self.give_up_records(proxy);
        let votes = vec![Vote::None; self.setup.voters()];
        note!(self, "p{proxy} records {} in epoch {}", record.primary, record.epoch);
        let began = self.local(self.proxy_host(proxy));
        let known = self.proxies[proxy].standing.highest;
        self.proxies[proxy].recordings.push(Recording { id, record, began, known, writing: false, votes });
        let run = self.proxies[proxy].run;
        self.later(0, Event::RecordTick { proxy, run });
        let at = self.real(self.proxy_host(proxy), began + RECORD_LIMIT);
        self.at(at, Event::RecordTick { proxy, run });
    }

    /// Brings a record under way as far as the locks allow.
    pub fn further_records(&mut self, proxy: usize) {
        let Some(outcome) = self.further_record(proxy) else { return };
        let Some(recording) = self.proxies[proxy].recordings.pop() else { return };
        note!(self, "p{proxy} record: {outcome:?}");
        let (run, id) = (self.proxies[proxy].run, recording.id);
        self.later(0, Event::ActEnded { proxy, run, id, outcome });
    }

    /// Whether voters say that this record comes too late.
    fn overtaken(&self, proxy: usize, record: &Record, known: Epoch) -> Option<Outcome> {
        let standing = &self.proxies[proxy].standing;
        let other = |name: &Option<Arc<str>>| name.as_ref().is_some_and(|n| **n != *record.primary);
        let used = standing.highest == record.epoch && other(&standing.chosen);
        let newer = standing.highest > known && other(&standing.chosen);
        let late = standing.highest > record.epoch || used || newer || other(&standing.pending);
        late.then(|| Outcome::Failed(format!("epoch {} names {:?} by now", standing.highest, standing.chosen)))
    }

    /// A store of its own: the file is replaced, whoever lives to hear of it.
    fn write_file(&mut self, proxy: usize, id: ActionId, record: Record) {
        note!(self, "p{proxy} writes down {} in epoch {}", record.primary, record.epoch);
        let span = self.random.between(MS, 20 * MS);
        let backwards = self.file.as_ref().and_then(|stored| may_follow(stored, &record).err());
        if let Some(why) = backwards {
            return self.end_later(proxy, id, span, Outcome::Failed(why.to_string()));
        }
        self.file = Some(record);
        self.end_later(proxy, id, span, Outcome::Done);
    }

    fn further_record(&mut self, proxy: usize) -> Option<Outcome> {
        let owner = &self.proxies[proxy];
        let recording = owner.recordings.last()?;
        let (record, known) = (recording.record.clone(), recording.known);
        let now = self.local(self.proxy_host(proxy));
        if now.saturating_sub(recording.began) >= RECORD_LIMIT {
            return Some(Outcome::Failed("not recorded in time".to_owned()));
        }
        if recording.writing {
            return self.write_record(proxy, &record);
        }
        let register = owner.standing.register.as_ref();
        if register.is_some_and(|r| r.epoch == record.epoch && r.primary == record.primary) {
            return Some(Outcome::Done);
        }
        if owner.standing.right.is_none() && self.bug != Some(Bug::Unlocked) {
            return None;
        }
        if let Some(refused) = self.overtaken(proxy, &record, known) {
            return Some(refused);
        }
        if let Some(recording) = self.proxies[proxy].recordings.last_mut() {
            recording.writing = true;
        }
        let to = (0..self.setup.nodes).find(|n| node_name(*n) == record.primary)?;
        for voter in (0..self.setup.voters()).filter(|v| *v != to) {
            self.write_vote(proxy, voter, to, &record);
        }
        self.write_record(proxy, &record)
    }

    fn write_vote(&mut self, proxy: usize, voter: usize, to: usize, record: &Record) {
        let link = &self.proxies[proxy].links[voter];
        let held = link.open && (link.lock == Lock::Exclusive || self.bug == Some(Bug::Unlocked));
        let session = link.session.filter(|_| held);
        let Some(recording) = self.proxies[proxy].recordings.last_mut() else { return };
        recording.votes[voter] = session.map_or(Vote::Failed, Vote::Sent);
        let id = recording.id;
        if let Some(session) = session {
            let deed = Deed::Record { to, epoch: record.epoch.0, least: record.least_timeline().0 };
            self.send(session, true, Msg::Act { id, deed });
        }
    }

    /// The candidate's own string, after which there is no way back, comes last.
    fn write_record(&mut self, proxy: usize, record: &Record) -> Option<Outcome> {
        let to = (0..self.setup.nodes).find(|n| node_name(*n) == record.primary)?;
        let majority = self.setup.voters() / 2 + 1;
        let votes = self.proxies[proxy].recordings.last()?.votes.clone();
        let done = votes.iter().filter(|v| **v == Vote::Done).count();
        if done > 0 && self.bug == Some(Bug::RecordEarly) {
            return Some(Outcome::Done);
        }
        if votes[to] == Vote::None && done + 1 >= majority {
            self.write_vote(proxy, to, to, record);
            return self.write_record(proxy, record);
        }
        if votes[to] == Vote::Done && done >= majority {
            return Some(Outcome::Done);
        }
        let open = votes.iter().any(|v| matches!(v, Vote::Sent(_)));
        (!open).then(|| Outcome::Failed("no majority of voters".to_owned()))
    }
}
