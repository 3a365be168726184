//! The rules of the `etcd` store: which request is due, and what the answers amount to. Pure.
//!
//! A lease is this proxy's key under `routes/`, the right to change the primary is the key `change`. Each ends with
//! an etcd lease of this proxy, and is made by a transaction: a route only while there is no `change`, `change`
//! only while no other proxy has a route. That says who is alive, and is not enough: etcd may end a lease that its
//! owner has just renewed. So whoever holds something has a key under `holders/` too, which nothing but its owner ends.
//!
//! Invariants: what is held counts until the time to live, less a margin, after the last linearizable read that
//! showed it was **sent**. Once another proxy has seen a holder without its route or `change`, none of the holder's
//! later reads shows them, as they are made once; so a time to live later the holder has nothing. The right is had when
//! every other holder has let go or has been seen so for that long. A request whose answer was lost may take effect later: an
//! etcd lease that was let go is never used again, and a write compares what it was decided on. Absent on purpose:
//! I/O, etcd's lock API, and who ought to be primary (the failover machine's).

use super::view::{Holder, Route, State, View};
use crate::clock::Time;
use crate::coordination::{Backwards, may_follow};
use crate::failover::event::Record;
use crate::failover::standing::{Claim, Lack, Lease, Right, Standing};
use crate::ids::{Epoch, TimelineId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Between two reads while something that is wanted is not to be had, and after all endpoints failed.
const RETRY: Duration = Duration::from_millis(100);
/// Etcd leases told to end and not confirmed to be; more are left to expire.
const LEAVING_MAX: usize = 8;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The servers asked, one at a time.
    pub endpoints: Vec<Arc<str>>,
    /// The time to live asked of etcd, whole seconds.
    pub ttl: Duration,
    /// Go on with the last primary when etcd does not answer (`on_quorum_loss`).
    pub keep_primary: bool,
}

impl Rules {
    /// Between two renewals.
    #[must_use]
    pub fn renew(&self) -> Duration {
        self.ttl / 4
    }

    /// How long one request may take: three that fail leave time for a fourth within the time to live.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.ttl / 5
    }
}

/// What is left of a time to live: clocks whose rates differ by up to two percent, and what rounding takes, cost a twentieth.
fn safe(ttl: Duration) -> Duration {
    ttl - ttl / 20
}

/// One request. At most one is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A new etcd lease, for the right or for a route.
    Grant {
        /// For the right.
        changes: bool,
    },
    /// Renew it.
    Renew {
        /// Which.
        lease: i64,
    },
    /// Read all keys, linearizably.
    Read,
    /// Make the route key, if nobody changes the primary and the state is the one seen.
    Route(Route),
    /// Make the key `change`, if there is none and no other proxy has a route.
    Change {
        /// The etcd lease that it is to end with.
        lease: i64,
    },
    /// Make the key `order`, if there is none.
    Order {
        /// The etcd lease that it is to end with.
        lease: i64,
    },
    /// Write the state, if we still hold the right and the state is the one seen.
    Record {
        /// What to write.
        record: Record,
        /// The revision of the state that it replaces; 0: there is none.
        state: i64,
        /// The revision that made our key `change`.
        change: i64,
    },
    /// Delete the key of a holder that has nothing left.
    Forget {
        /// Its name.
        holder: Vec<u8>,
    },
    /// Delete the holder key, end the etcd lease and with it all other keys.
    Release {
        /// Which.
        lease: i64,
    },
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Grant`].
    Granted {
        /// The etcd lease.
        lease: i64,
    },
    /// To [`Request::Renew`].
    Renewed,
    /// To [`Request::Read`].
    Read(View),
    /// A write was done, at this revision.
    Done(i64),
    /// A write was not done: what it compared was different.
    Refused,
    /// There is no such etcd lease (any more).
    Gone,
    /// No answer, or an error: it may have been done, or may be yet.
    Failed,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Ask(Request),
    /// The record that was wanted is in the register, or cannot be.
    Recorded(Result<(), Objection>),
    /// Nothing before this time, unless something happens.
    Wait(Time),
}

/// Why a record cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// It would go backwards.
    Backwards(Backwards),
    /// The register holds something that is not a record.
    Damaged(String),
}

/// An etcd lease of ours.
#[derive(Clone, Debug)]
struct Session {
    lease: i64,
    changes: bool,
    asked_at: Time,
    /// Until when its route or change counts, if there is one.
    until: Option<Time>,
}

/// The store's rules at work for one proxy.
#[derive(Clone, Debug)]
pub struct Etcd {
    rules: Rules,
    claim: Claim,
    session: Option<Session>,
    /// Told to end.
    leaving: VecDeque<i64>,
    view: View,
    /// Others that may hold something although they have neither route nor change: since when that is known.
    silent: BTreeMap<Holder, Time>,
    /// When the last read that was answered was sent.
    read_at: Option<Time>,
    /// A read is due, because something has changed.
    stale: bool,
    missing: Vec<bool>,
    /// Since the last answer.
    failures: usize,
    retry_at: Time,
    highest: Epoch,
    chosen: Option<Arc<str>>,
    timeline: TimelineId,
    least_timeline: TimelineId,
    record: Option<Record>,
    /// The last lease had, for `keep_primary`.
    last_lease: Option<(Arc<str>, Epoch)>,
}

impl Etcd {
    /// Nothing is known and nothing wanted.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        let missing = vec![false; rules.endpoints.len()];
        Self {
            rules,
            claim: Claim::Nothing,
            session: None,
            leaving: VecDeque::new(),
            view: View::default(),
            silent: BTreeMap::new(),
            read_at: None,
            stale: true,
            missing,
            failures: 0,
            retry_at: Time::ZERO,
            highest: Epoch(0),
            chosen: None,
            timeline: TimelineId(0),
            least_timeline: TimelineId(0),
            record: None,
            last_lease: None,
        }
    }

    /// What this proxy wants from now on.
    pub fn want(&mut self, claim: Claim) {
        let kept = claim != Claim::Nothing && claim.changes() == self.claim.changes();
        self.claim = claim;
        if !kept {
            self.leave();
        }
    }

    /// A record to be written as soon as the right is had; `None`: no longer.
    pub fn want_record(&mut self, record: Option<Record>) {
        self.record = record;
    }

    /// Something may have changed: read again.
    pub fn look(&mut self) {
        self.stale = true;
    }

    /// Whether keys of ours wait to be deleted.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether this endpoint did not answer when last asked.
    #[must_use]
    pub fn is_missing(&self, endpoint: usize) -> bool {
        self.missing[endpoint]
    }

    /// How many requests in a row failed.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failures
    }

    /// The register as last read.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.view.state
    }

    /// Lets the etcd lease go, for ever.
    fn leave(&mut self) -> Option<Request> {
        let lease = self.session.take()?.lease;
        self.leave_lease(lease);
        Some(Request::Release { lease })
    }

    fn leave_lease(&mut self, lease: i64) {
        if self.leaving.len() == LEAVING_MAX {
            self.leaving.pop_front();
        }
        self.leaving.push_back(lease);
    }

    /// What is due. A request that it returns counts as sent.
    pub fn next(&mut self, now: Time) -> Next {
        if now < self.retry_at {
            return Next::Wait(self.retry_at);
        }
        if self.session.as_ref().is_some_and(|session| now >= session.asked_at + self.rules.ttl) {
            // Renewals that are not answered may arrive all the same, and keep others waiting for a lease that is not had.
            self.leave();
        }
        if let Some(lease) = self.leaving.front() {
            return Next::Ask(Request::Release { lease: *lease });
        }
        let (renew, mut wake) = (self.rules.renew(), self.read_due(now));
        match &self.session {
            None if self.claim != Claim::Nothing => {
                return Next::Ask(Request::Grant { changes: self.claim.changes() });
            }
            None => {}
            Some(session) if now >= session.asked_at + renew => {
                return Next::Ask(Request::Renew { lease: session.lease });
            }
            Some(session) => wake = wake.min(session.asked_at + renew),
        }
        if self.stale || now >= self.read_due(now) || wake <= now {
            self.stale = false;
            return Next::Ask(Request::Read);
        }
        if let Some(request) = self.missing_key() {
            return Next::Ask(request);
        }
        if let Some(next) = self.recording(now) {
            return next;
        }
        match self.silent.iter().find(|(holder, since)| !self.fears(holder, **since, now)) {
            Some((holder, _)) => Next::Ask(Request::Forget { holder: holder.name.clone() }),
            None => Next::Wait(wake),
        }
    }

    fn read_due(&self, now: Time) -> Time {
        let had = match self.claim {
            Claim::Nothing => true,
            Claim::Route => self.lease(now).is_some(),
            Claim::Change | Claim::Order => self.right(now).is_some(),
        };
        let pause = if had { self.rules.renew() } else { RETRY.min(self.rules.renew()) };
        self.read_at.map_or(now, |at| at + pause)
    }

    /// The key that is wanted, not there, and to be had as far as was seen.
    fn missing_key(&mut self) -> Option<Request> {
        let lease = self.session.as_ref()?.lease;
        let view = &self.view;
        if !self.claim.changes() {
            let State::Held(_, state) = &view.state else { return None };
            let wanted = Route { lease, state: *state };
            return match view.route {
                Some(route) if route == wanted => None,
                // Somebody else has written the state. Nothing of the old one is used any more.
                Some(route) if route.lease == lease => self.leave(),
                _ => view.change.is_none().then_some(Request::Route(wanted)),
            };
        }
        if self.claim == Claim::Order && view.order.is_none() {
            return Some(Request::Order { lease });
        }
        (view.change.is_none() && !view.others).then_some(Request::Change { lease })
    }

    fn recording(&self, now: Time) -> Option<Next> {
        let record = self.record.as_ref()?;
        self.right(now)?;
        let change = self.view.change?.created;
        let state = match &self.view.state {
            State::Empty => 0,
            State::Damaged(why) => return Some(Next::Recorded(Err(Objection::Damaged(why.clone())))),
            State::Held(stored, _) if stored == record => return Some(Next::Recorded(Ok(()))),
            State::Held(stored, revision) => match may_follow(stored, record) {
                Ok(()) => *revision,
                Err(why) => return Some(Next::Recorded(Err(Objection::Backwards(why)))),
            },
        };
        Some(Next::Ask(Request::Record { record: record.clone(), state, change }))
    }

    /// Takes in what came of a request that was sent at `sent_at`, at the earliest, to this endpoint.
    pub fn answered(&mut self, request: Request, answer: Answer, endpoint: usize, (sent_at, now): (Time, Time)) {
        self.missing[endpoint] = answer == Answer::Failed;
        if answer == Answer::Failed {
            self.failures += 1;
            self.stale = true;
            if self.failures.is_multiple_of(self.rules.endpoints.len()) {
                self.retry_at = now + RETRY;
            }
            return;
        }
        self.failures = 0;
        match answer {
            Answer::Granted { lease } => self.granted(&request, lease, sent_at),
            Answer::Renewed => {
                if let Some(session) = self.session.as_mut().filter(|s| request == Request::Renew { lease: s.lease }) {
                    session.asked_at = sent_at;
                }
            }
            Answer::Read(view) => self.seen(view, (sent_at, now)),
            Answer::Done(revision) => self.done(request, revision),
            Answer::Refused => self.stale = true,
            Answer::Gone => self.gone(&request),
            Answer::Failed => {}
        }
        if let Some(lease) = self.lease(now) {
            self.last_lease = Some((lease.primary, lease.epoch));
        }
    }

    fn granted(&mut self, request: &Request, lease: i64, asked_at: Time) {
        let changes = *request == Request::Grant { changes: true };
        if self.claim == Claim::Nothing || self.claim.changes() != changes || self.session.is_some() {
            return self.leave_lease(lease);
        }
        self.session = Some(Session { lease, changes, asked_at, until: None });
        self.stale = true;
    }

    fn seen(&mut self, view: View, (sent_at, now): (Time, Time)) {
        self.read_at = Some(sent_at);
        self.view = view;
        self.note_highest();
        self.note_silent(now);
        let Some(lease) = self.session.as_ref().map(|session| session.lease) else { return };
        let holds = self.view.holders.iter().any(|holder| holder.lease == lease);
        let shown = holds && self.view.live.contains(&lease);
        match &mut self.session {
            Some(session) if shown => session.until = Some(sent_at + safe(self.rules.ttl)),
            // Its keys are made once: who has seen them gone counts on that.
            Some(session) if holds || session.until.is_some() => {
                self.leave();
            }
            _ => {}
        }
    }

    fn note_silent(&mut self, now: Time) {
        let ours = self.session.as_ref().map(|session| session.lease);
        let ours = |holder: &Holder| Some(holder.lease) == ours || self.leaving.contains(&holder.lease);
        let silent = self.view.holders.iter().filter(|h| !self.view.live.contains(&h.lease) && !ours(h));
        let silent = silent.map(|holder| (holder.clone(), self.silent.get(holder).copied().unwrap_or(now)));
        self.silent = silent.collect();
    }

    fn note_highest(&mut self) {
        if let State::Held(record, _) = &self.view.state
            && record.epoch >= self.highest
        {
            (self.highest, self.timeline) = (record.epoch, record.timeline);
            self.least_timeline = record.least_timeline();
            self.chosen = Some(record.primary.as_str().into());
        }
    }

    fn done(&mut self, request: Request, revision: i64) {
        match request {
            // What is held is read, with whoever else may hold something.
            Request::Route(_) | Request::Change { .. } | Request::Order { .. } | Request::Forget { .. } => {
                self.stale = true;
            }
            Request::Record { record, .. } => {
                self.view.state = State::Held(record, revision);
                self.note_highest();
            }
            Request::Release { lease } => self.released(lease),
            Request::Grant { .. } | Request::Renew { .. } | Request::Read => {}
        }
    }

    fn released(&mut self, lease: i64) {
        self.leaving.retain(|leaving| *leaving != lease);
        self.stale = true;
    }

    fn gone(&mut self, request: &Request) {
        self.stale = true;
        match request {
            Request::Release { lease } => self.released(*lease),
            Request::Renew { lease }
            | Request::Route(Route { lease, .. })
            | Request::Change { lease }
            | Request::Order { lease } => {
                if self.session.as_ref().is_some_and(|session| session.lease == *lease) {
                    self.leave();
                }
            }
            Request::Grant { .. } | Request::Read | Request::Record { .. } | Request::Forget { .. } => {}
        }
    }

    /// When what was said last stops being true by itself.
    #[must_use]
    pub fn deadline(&self, now: Time) -> Time {
        let standing = self.standing(now);
        let held = standing.lease.iter().map(|l| l.until).chain(standing.right.iter().map(|r| r.until));
        let heard = self.read_at.map(|at| at + self.rules.ttl);
        let silent = self.silent.iter().map(|(holder, since)| *since + self.runs_out(holder));
        held.chain(heard).chain(silent).filter(|at| *at > now).min().unwrap_or(Time::NEVER)
    }

    /// Where this proxy stands at `now`.
    #[must_use]
    pub fn standing(&self, now: Time) -> Standing {
        let (lease, right, heard) = (self.lease(now), self.right(now), self.heard(now));
        let kept = lease.is_none().then(|| self.kept(now)).flatten();
        let had = match self.claim {
            Claim::Nothing => true,
            Claim::Route => lease.is_some(),
            Claim::Change | Claim::Order => right.is_some(),
        };
        let register = match &self.view.state {
            State::Held(record, _) if heard => Some(record.clone()),
            _ => None,
        };
        let ours = self.session.as_ref().map(|session| session.lease);
        Standing {
            register,
            highest: self.highest,
            chosen: self.chosen.clone(),
            timeline: self.timeline,
            least_timeline: self.least_timeline,
            // Here a promotion that takes effect late gets nobody's lease.
            pending: None,
            unmarked: Vec::new(),
            lack: (!had).then(|| self.lack(now)),
            ordered: heard && self.claim != Claim::Order && self.view.order.is_some_and(|lease| Some(lease) != ours),
            kept: kept.is_some(),
            lease: lease.or(kept),
            right,
        }
    }

    /// Whether etcd has answered lately.
    fn heard(&self, now: Time) -> bool {
        self.read_at.is_some_and(|at| now.since(at) < self.rules.ttl)
    }

    /// Our etcd lease, if it is of this kind and sure to be there.
    fn alive(&self, changes: bool, now: Time) -> Option<&Session> {
        let alive = |session: &&Session| session.changes == changes && session.until.is_some_and(|until| until > now);
        self.session.as_ref().filter(alive)
    }

    fn lease(&self, now: Time) -> Option<Lease> {
        if self.claim != Claim::Route {
            return None;
        }
        let session = self.alive(false, now)?;
        let State::Held(record, state) = &self.view.state else { return None };
        let held = self.view.route == Some(Route { lease: session.lease, state: *state });
        // An etcd that was set back to an older state is not believed.
        if !held || self.view.change.is_some() || record.epoch < self.highest || self.blocked(now) {
            return None;
        }
        Some(Lease { primary: record.primary.as_str().into(), epoch: record.epoch, until: session.until? })
    }

    fn right(&self, now: Time) -> Option<Right> {
        if !self.claim.changes() {
            return None;
        }
        let session = self.alive(true, now)?;
        let held = self.view.change.is_some_and(|change| change.lease == session.lease) && !self.view.others;
        let until = session.until.filter(|_| held && !self.blocked(now))?;
        Some(Right { until, held: None, stubborn: Vec::new(), idle: Vec::new() })
    }

    /// Whether this silent holder may still believe to have something.
    fn fears(&self, holder: &Holder, since: Time, now: Time) -> bool {
        now < since + self.runs_out(holder)
    }

    /// Whether a silent holder may still have what excludes what is claimed here.
    fn blocked(&self, now: Time) -> bool {
        let excludes = |holder: &Holder| self.claim.changes() || holder.changes;
        self.silent.iter().any(|(holder, since)| excludes(holder) && self.fears(holder, *since, now))
    }

    /// How long after it was seen silent a holder has nothing left.
    fn runs_out(&self, holder: &Holder) -> Duration {
        self.rules.ttl.max(holder.ttl)
    }

    /// The lease that goes on while etcd does not answer.
    fn kept(&self, now: Time) -> Option<Lease> {
        let (primary, epoch) = self.last_lease.clone()?;
        // Every endpoint must have been asked in vain, and not only before this process was stopped for a while.
        let silent = !self.heard(now) && self.failures >= self.rules.endpoints.len().max(2);
        if !self.rules.keep_primary || self.claim != Claim::Route || !silent || epoch < self.highest {
            return None;
        }
        Some(Lease { primary, epoch, until: now + self.rules.ttl })
    }

    fn lack(&self, now: Time) -> Lack {
        if !self.heard(now) && self.failures > 0 {
            let missing = self.rules.endpoints.iter().zip(&self.missing).filter(|(_, missing)| **missing);
            let missing = missing.map(|(name, _)| Arc::clone(name)).collect();
            return Lack::Voters { missing, needed: self.rules.endpoints.len() / 2 + 1 };
        }
        let ours = self.session.as_ref().map(|session| session.lease);
        let taken = self.view.change.is_some_and(|change| Some(change.lease) != ours);
        if taken || self.blocked(now) || self.claim.changes() && self.view.others {
            return Lack::Taken;
        }
        let empty = !matches!(self.view.state, State::Held(..));
        if self.claim == Claim::Route && self.heard(now) && empty { Lack::Split } else { Lack::Pending }
    }
}
