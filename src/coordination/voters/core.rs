//! The rules of the `voters` store: which locks to ask for, and what the answers amount to. Pure.
//!
//! A lease is the shared lock on a majority of voters that follow the primary; the right to change the
//! primary is the exclusive lock on a majority. Two majorities share a voter, so nobody has the right
//! while another proxy has a lease.
//!
//! Invariants: a majority is one of all configured voters, never of those that answer; a lock counts
//! until one lease span, less a margin, after its last good renewal was **sent**, because the voter ends
//! a silent session one span after it last heard from it, and no earlier; a voter counts for the right
//! only when its incarnation was seen a span ago or its lock has been held for a span, because restarts
//! forget locks; a lease counts only voters whose allegiance was read after their lock was taken. No wall
//! clock enters. Absent on purpose: I/O, and who ought to be primary (the failover machine's).

use crate::clock::Time;
use crate::failover::event::Record;
use crate::failover::standing::{Claim, Lack, Lease, Right, Standing};
use crate::ids::{Epoch, SystemId, TimelineId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Pause before a refused lock is asked for again.
const RETRY: Duration = Duration::from_millis(25);
/// Least and most pause after proxies got in each other's way with exclusive locks.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(400);

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Names of all voters: nodes, then witnesses.
    pub voters: Vec<Arc<str>>,
    /// How long a voter keeps the lock of a session that says nothing (`lease_duration`).
    pub span: Duration,
    /// Go on with the last primary when too few voters answer (`on_quorum_loss`).
    pub keep_primary: bool,
    /// Makes the pauses of several proxies differ.
    pub seed: u64,
}

impl Rules {
    /// How many voters decide.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Subtracted from every deadline: clocks whose rates differ by up to two percent, and what rounding takes.
    #[must_use]
    pub fn margin(&self) -> Duration {
        self.span / 20
    }
}

/// A lock on a voter, the stronger the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lock {
    /// None.
    #[default]
    None,
    /// With other proxies: a vote for the primary that the voter follows.
    Shared,
    /// Alone.
    Exclusive,
}

/// What a voter says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The node that it follows, itself if it is out of recovery; `None`: nobody that is configured.
    pub allegiance: Option<Arc<str>>,
    /// The epoch recorded there, or its timeline if that is larger.
    pub epoch: Epoch,
    /// Its timeline; 0 for a witness.
    pub timeline: TimelineId,
    /// The timeline that the primary of that epoch has at least, as was recorded with it; 0: not known.
    pub least_timeline: TimelineId,
    /// A standby that was detached: the node that it followed.
    pub left: Option<Arc<str>>,
    /// Its system; `None` for a witness.
    pub system_id: Option<SystemId>,
    /// Can be told to follow another node: in recovery, or a witness.
    pub follows: bool,
    /// In recovery, and names itself: it was chosen and may leave recovery at any moment.
    pub pending: bool,
    /// Differs after every restart, crash restarts included.
    pub incarnation: i64,
    /// Another proxy's session says that it carries out an operator's order.
    pub ordered: bool,
}

impl View {
    /// A standby that does not name itself.
    fn unchosen(&self) -> bool {
        self.system_id.is_some() && self.follows && !self.pending
    }
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A session to a voter was opened. Numbers are never reused.
    Opened {
        /// Which voter.
        voter: usize,
        /// The session's number.
        session: u64,
    },
    /// A session ended; the voter freed its locks, or will.
    Closed {
        /// Which voter.
        voter: usize,
        /// The session's number.
        session: u64,
    },
    /// An `Ask` was answered.
    Answered {
        /// Which voter.
        voter: usize,
        /// The session's number.
        session: u64,
        /// When the ask left, at the latest: read from the clock before it was sent.
        sent_at: Time,
        /// The lock held now.
        lock: Lock,
        /// What was read after the lock was taken.
        view: View,
    },
    /// What this proxy wants from now on.
    Claim(Claim),
    /// Time has passed.
    Tick,
}

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bring the session's lock to `lock` as far as the voter grants it at once, then read the view.
    /// At most one per voter is under way; one that is not answered within a span ends the session.
    Ask {
        /// Which voter.
        voter: usize,
        /// On which session.
        session: u64,
        /// The lock wanted.
        lock: Lock,
        /// Whether to say that an operator's order is carried out.
        order: bool,
    },
    /// Come back at this time.
    WakeAt(Time),
}

/// One voter, as far as is known.
#[derive(Clone, Debug, Default)]
struct Voter {
    session: Option<u64>,
    asked: Option<Lock>,
    lock: Lock,
    /// When the grant of `lock` was known here.
    lock_at: Time,
    /// When the last answered ask of this session was sent.
    sent_at: Option<Time>,
    /// When the last ask was sent.
    asked_at: Time,
    view: Option<View>,
    /// When this incarnation was first seen here.
    incarnation_at: Time,
    refused: bool,
    retry_at: Time,
}

/// The store's rules at work for one proxy.
#[derive(Clone, Debug)]
pub struct Voters {
    rules: Rules,
    voters: Vec<Voter>,
    claim: Claim,
    /// No exclusive lock is asked for before this.
    change_at: Time,
    backoffs: u32,
    random: u64,
    highest: Epoch,
    chosen: Option<Arc<str>>,
    timeline: TimelineId,
    least_timeline: TimelineId,
    /// Since when too few voters have answered lately, and when that was last looked at.
    silent_since: Option<Time>,
    looked_at: Time,
    /// The last lease had, for `keep_primary`.
    last_lease: Option<(Arc<str>, Epoch)>,
}

impl Voters {
    /// Nothing is known and nothing wanted.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        let voters = rules.voters.iter().map(|_| Voter::default()).collect();
        let random = rules.seed | 1;
        Self {
            rules,
            voters,
            claim: Claim::Nothing,
            change_at: Time::ZERO,
            backoffs: 0,
            random,
            highest: Epoch(0),
            chosen: None,
            timeline: TimelineId(0),
            least_timeline: TimelineId(0),
            silent_since: None,
            looked_at: Time::ZERO,
            last_lease: None,
        }
    }

    /// Takes one input in and says what to do.
    pub fn step(&mut self, input: Input, now: Time) -> Vec<Output> {
        match input {
            Input::Opened { voter, session } => {
                let voter = &mut self.voters[voter];
                voter.end_session();
                voter.session = Some(session);
                voter.retry_at = now;
            }
            Input::Closed { voter, session } => {
                let voter = &mut self.voters[voter];
                if voter.session == Some(session) {
                    voter.end_session();
                }
            }
            Input::Answered { voter, session, sent_at, lock, view } => {
                self.answered(voter, session, (sent_at, now), lock, view);
            }
            Input::Claim(claim) => self.want(claim, now),
            Input::Tick => {}
        }
        self.note_silence(now);
        self.give_way(now);
        self.ask(now)
    }

    fn want(&mut self, claim: Claim, now: Time) {
        if claim.changes() && !self.claim.changes() {
            (self.change_at, self.backoffs) = (now, 0);
        }
        if claim != self.claim {
            for voter in &mut self.voters {
                (voter.refused, voter.retry_at) = (false, now);
            }
        }
        self.claim = claim;
    }

    fn answered(&mut self, index: usize, session: u64, (sent_at, now): (Time, Time), lock: Lock, view: View) {
        let voter = &mut self.voters[index];
        if voter.session != Some(session) {
            return;
        }
        voter.refused = voter.asked.take().is_some_and(|asked| asked > lock);
        if voter.refused {
            voter.retry_at = now + RETRY;
        }
        if lock != voter.lock {
            (voter.lock, voter.lock_at) = (lock, now);
        }
        if voter.view.as_ref().is_none_or(|old| old.incarnation != view.incarnation) {
            voter.incarnation_at = now;
        }
        voter.sent_at = Some(sent_at);
        if view.epoch > self.highest {
            (self.highest, self.chosen) = (view.epoch, None);
            (self.timeline, self.least_timeline) = (TimelineId(0), TimelineId(0));
        }
        if view.epoch == self.highest {
            self.timeline = self.timeline.max(view.timeline);
            self.least_timeline = self.least_timeline.max(view.least_timeline);
            if self.chosen.is_none() {
                self.chosen = view.allegiance.clone().or_else(|| view.left.clone());
            }
        }
        voter.view = Some(view);
        if let Some(lease) = self.lease(now) {
            self.last_lease = Some((lease.primary, lease.epoch));
        }
    }

    /// Notes since when too few voters answer, while this process ran: one that was stopped has asked nobody meanwhile.
    fn note_silence(&mut self, now: Time) {
        let ran = now.since(self.looked_at) < self.rules.span / 4;
        self.looked_at = now;
        // A question is asked every quarter of a span.
        let lately = self.rules.span - self.rules.span / 4;
        let answered = self.voters.iter().filter(|v| v.counts(lately, now)).count();
        let since = self.silent_since.filter(|_| ran).unwrap_or(now);
        self.silent_since = (answered < self.rules.majority()).then_some(since);
    }

    /// Two proxies may each have got some of the locks: whoever sees that lets go for a while.
    fn give_way(&mut self, now: Time) {
        if !self.claim.changes() || now < self.change_at {
            return;
        }
        let waiting = self.voters.iter().any(|v| v.session.is_some() && v.asked.is_some());
        let held = self.voters.iter().filter(|v| v.lock == Lock::Exclusive).count();
        if waiting || held >= self.rules.majority() || !self.voters.iter().any(|v| v.refused) {
            return;
        }
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let most = (BACKOFF_MIN * 2u32.saturating_pow(self.backoffs.min(8))).min(BACKOFF_MAX);
        let share = u32::try_from(self.random >> 40).unwrap_or(0) % 256;
        self.change_at = now + BACKOFF_MIN + most * share / 256;
        self.backoffs += 1;
        for voter in &mut self.voters {
            voter.refused = false;
            voter.retry_at = if voter.lock == Lock::None { self.change_at } else { now };
        }
    }

    fn wanted(&self, now: Time) -> Lock {
        match self.claim {
            Claim::Nothing => Lock::None,
            Claim::Route => Lock::Shared,
            Claim::Change | Claim::Order if now < self.change_at => Lock::None,
            Claim::Change | Claim::Order => Lock::Exclusive,
        }
    }

    fn ask(&mut self, now: Time) -> Vec<Output> {
        let (lock, order) = (self.wanted(now), self.claim == Claim::Order);
        let renew = self.rules.span / 4;
        let mut outputs = Vec::new();
        let mut wake = self.deadlines(now);
        for (index, voter) in self.voters.iter_mut().enumerate() {
            let Some(session) = voter.session.filter(|_| voter.asked.is_none()) else { continue };
            let due = if lock == voter.lock { voter.asked_at + renew } else { voter.retry_at };
            if now >= due || voter.sent_at.is_none() {
                (voter.asked, voter.asked_at) = (Some(lock), now);
                if lock != voter.lock {
                    // From now on the voter may have freed what was held, whatever is claimed next.
                    voter.lock = if lock < voter.lock { lock } else { Lock::None };
                }
                outputs.push(Output::Ask { voter: index, session, lock, order });
            } else {
                wake.push(due);
            }
        }
        if self.claim.changes() {
            wake.push(self.change_at);
        }
        outputs.extend(wake.into_iter().filter(|at| *at > now).min().map(Output::WakeAt));
        outputs
    }

    /// When what was said last stops being true by itself.
    fn deadlines(&self, now: Time) -> Vec<Time> {
        let standing = self.standing(now);
        let mut at: Vec<Time> =
            standing.lease.iter().map(|l| l.until).chain(standing.right.iter().map(|r| r.until)).collect();
        let span = self.rules.span;
        if self.rules.keep_primary && self.claim == Claim::Route {
            at.push(now + span / 8);
        }
        for voter in &self.voters {
            at.extend(voter.sent_at.map(|sent| sent + span));
            if voter.lock == Lock::Exclusive {
                at.extend([voter.incarnation_at, voter.lock_at].map(|since| since + self.settle()));
            }
        }
        at
    }

    /// After this span nobody counts a lock that a restart of the voter forgot.
    fn settle(&self) -> Duration {
        self.rules.span + self.rules.margin()
    }

    /// Where this proxy stands at `now`.
    #[must_use]
    pub fn standing(&self, now: Time) -> Standing {
        let register = self.register(now);
        let (lease, right) = (self.lease(now), self.right(now));
        let kept = lease.is_none().then(|| self.kept(now)).flatten();
        let had = match self.claim {
            Claim::Nothing => true,
            Claim::Route => lease.is_some(),
            Claim::Change | Claim::Order => right.is_some(),
        };
        let ordered = self.claim != Claim::Order && self.fresh(now).any(|(_, view)| view.ordered);
        let lack = (!had).then(|| self.lack(register.as_ref(), now));
        let unmarked = lease.iter().flat_map(|lease| self.unmarked(lease, now)).collect();
        let (kept, lease) = (kept.is_some(), lease.or(kept));
        // One that an older epoch named is none to be promoted any more: others have had writes since.
        let newest = |view: &View| view.epoch >= self.highest || view.allegiance == self.chosen;
        let mut pending = self.fresh(now).filter(|(_, view)| view.pending && newest(view));
        let pending = pending.next().and_then(|(_, view)| view.allegiance.clone());
        Standing {
            register,
            highest: self.highest,
            chosen: self.chosen.clone(),
            timeline: self.timeline,
            least_timeline: self.least_timeline,
            pending,
            lease,
            unmarked,
            right,
            lack,
            ordered,
            kept,
        }
    }

    /// Standbys of this lease's primary whose string lacks its epoch.
    fn unmarked(&self, lease: &Lease, now: Time) -> Vec<Arc<str>> {
        let lacks = |view: &View| view.allegiance.as_ref() == Some(&lease.primary) && view.epoch < lease.epoch;
        let names = self.rules.voters.iter().zip(&self.voters).filter(|(_, v)| v.counts(self.rules.span, now));
        let lacking = names.filter(|(_, v)| v.view.as_ref().is_some_and(|view| view.unchosen() && lacks(view)));
        lacking.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Whether enough voters have answered to say what the register holds, or all have been asked in vain.
    #[must_use]
    pub fn heard(&self, now: Time) -> bool {
        self.fresh(now).count() >= self.rules.majority()
    }

    fn fresh(&self, now: Time) -> impl Iterator<Item = (&Voter, &View)> {
        let voters = self.voters.iter().filter(move |v| v.counts(self.rules.span, now));
        voters.filter_map(|v| v.view.as_ref().map(|view| (v, view)))
    }

    fn register(&self, now: Time) -> Option<Record> {
        let mut supporters: BTreeMap<&Arc<str>, Vec<&View>> = BTreeMap::new();
        for (_, view) in self.fresh(now) {
            if let Some(primary) = &view.allegiance {
                supporters.entry(primary).or_default().push(view);
            }
        }
        let (primary, views) = supporters.into_iter().find(|(_, views)| views.len() >= self.rules.majority())?;
        Some(Record {
            system_id: views.iter().find_map(|v| v.system_id)?,
            epoch: views.iter().map(|v| v.epoch).max()?,
            primary: primary.to_string(),
            timeline: views.iter().map(|v| v.timeline).max()?,
            // Out of recovery a voter supports nobody but itself.
            promoted: views.iter().any(|v| !v.follows),
            // A standby that names itself is promoted or nobody is.
            given_up: Vec::new(),
        })
    }

    fn lease(&self, now: Time) -> Option<Lease> {
        if self.claim != Claim::Route {
            return None;
        }
        let register = self.register(now)?;
        let follows = |view: &View| view.allegiance.as_deref() == Some(register.primary.as_str());
        let good = self.fresh(now).filter(|(v, view)| v.lock >= Lock::Shared && follows(view));
        let until = self.deadline(good.filter_map(|(v, _)| v.sent_at), now)?;
        Some(Lease { primary: register.primary.as_str().into(), epoch: register.epoch, until })
    }

    fn right(&self, now: Time) -> Option<Right> {
        if !self.claim.changes() {
            return None;
        }
        let settled = |v: &Voter| now.since(v.incarnation_at.min(v.lock_at)) >= self.settle();
        let good = |v: &&Voter| v.lock == Lock::Exclusive && v.counts(self.rules.span, now) && settled(v);
        let until = self.deadline(self.voters.iter().filter(good).filter_map(|v| v.sent_at), now)?;
        let held =
            self.rules.voters.iter().zip(&self.voters).filter(|(_, v)| good(v)).map(|(name, _)| Arc::clone(name));
        let follows = |v: &Voter| v.view.as_ref().is_some_and(|view| view.follows);
        let able = self.voters.iter().filter(good).filter(|v| follows(v)).count();
        let names = self.rules.voters.iter().zip(&self.voters);
        let stubborn = names.filter(|(_, v)| able < self.rules.majority() && good(v) && !follows(v));
        let stubborn = stubborn.map(|(name, _)| Arc::clone(name)).collect();
        let idle = self.idle(self.voters.iter().filter(good).map(|v| v.lock_at), now);
        Some(Right { until, held: Some(held.collect()), stubborn, idle })
    }

    /// Standbys that do not name themselves, by what was asked after a majority of these locks was had: whoever may
    /// have chosen one before can promote it no more.
    fn idle(&self, locked: impl Iterator<Item = Time>, now: Time) -> Vec<Arc<str>> {
        let mut locked: Vec<Time> = locked.collect();
        locked.sort_unstable();
        let Some(since) = locked.get(self.rules.majority() - 1) else { return Vec::new() };
        let counts = |v: &Voter| v.counts(self.rules.span, now) && v.sent_at.is_some_and(|sent| sent >= *since);
        let names = self.rules.voters.iter().zip(&self.voters);
        let idle = names.filter(|(_, v)| counts(v) && v.view.as_ref().is_some_and(View::unchosen));
        idle.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// The end of what a majority of these renewals carries; `None` when it is past, or they are too few.
    fn deadline(&self, sent: impl Iterator<Item = Time>, now: Time) -> Option<Time> {
        let mut sent: Vec<Time> = sent.collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        let until = *sent.get(self.rules.majority() - 1)? + (self.rules.span - self.rules.margin());
        (until > now).then_some(until)
    }

    /// The lease that goes on without a quorum: nobody who answers may have turned to another primary.
    fn kept(&self, now: Time) -> Option<Lease> {
        let (primary, epoch) = self.last_lease.clone()?;
        if !self.rules.keep_primary || self.claim != Claim::Route || self.heard(now) {
            return None;
        }
        // They must have been asked in vain.
        self.silent_since.filter(|since| now.since(*since) >= self.rules.span / 4)?;
        let loyal =
            self.fresh(now).all(|(_, view)| view.allegiance.as_deref() == Some(&*primary) && view.epoch <= epoch);
        loyal.then(|| Lease { primary, epoch, until: now + self.rules.span })
    }

    fn lack(&self, register: Option<&Record>, now: Time) -> Lack {
        if !self.heard(now) {
            let missing = self.rules.voters.iter().zip(&self.voters);
            let missing = missing.filter(|(_, v)| !v.counts(self.rules.span, now)).map(|(name, _)| Arc::clone(name));
            return Lack::Voters { missing: missing.collect(), needed: self.rules.majority() };
        }
        if self.voters.iter().any(|v| v.refused) || self.backoffs > 0 && self.claim.changes() {
            return Lack::Taken;
        }
        if self.claim == Claim::Route && register.is_none() { Lack::Split } else { Lack::Pending }
    }
}

impl Voter {
    fn end_session(&mut self) {
        self.session = None;
        self.asked = None;
        self.lock = Lock::None;
        self.sent_at = None;
        self.refused = false;
    }

    /// Whether its session is alive as far as anybody can tell.
    fn counts(&self, span: Duration, now: Time) -> bool {
        self.session.is_some() && self.sent_at.is_some_and(|sent| now.since(sent) < span)
    }
}

#[cfg(test)]
mod tests;
