//! One proxy: the real failover machine and the real rules of the `voters` store, driven as the control plane does.
//!
//! Invariants: nothing is decided here; the permit is brought in line before anything else is done with a new plan or
//! standing. Absent on purpose: pools, routing, freshness.

use crate::act::Errand;
use crate::bug::Bug;
use crate::net::{Msg, Purpose, Side};
use crate::record::{Recording, Vote};
use crate::setup::Store;
use crate::wal::Tip;
use crate::world::{Event, MS, Nanos, SEC, World, note, voter_name};
use pgregent::clock::Time;
use pgregent::coordination::voters::core::{Input, Lock, Output, Rules, Voters};
use pgregent::failover::Machine;
use pgregent::failover::action::{ActionId, Plan};
use pgregent::failover::event::{Event as Told, Outcome, Record};
use pgregent::failover::promise::Promise;
use pgregent::failover::standing::{Claim, Right, Standing};
use pgregent::ids::Epoch;
use std::collections::VecDeque;

/// Pause before a session to a voter is opened again.
const REOPEN: Nanos = 100 * MS;
/// How long a started proxy waits for a majority of voters.
const RECALL_LIMIT: Nanos = 3 * SEC;
/// Steps of a machine within one moment, each caused by the one before; more would be a loop that never ends.
const STEPS_MAX: u32 = 1000;

/// What the driver knows of its session with one voter.
#[derive(Debug, Default)]
pub struct Link {
    pub session: Option<u32>,
    pub open: bool,
    /// Number of the last ask, and when it left by the proxy's clock.
    asks: u32,
    asked_at: Time,
    waiting: bool,
    /// Held, as far as is known here.
    pub lock: Lock,
}

#[derive(Debug)]
pub struct Proxy {
    pub up: bool,
    /// Which life.
    pub run: u32,
    pub machine: Machine,
    pub core: Voters,
    pub standing: Standing,
    pub plan: Option<Plan>,
    pub permit: Option<crate::act::Permit>,
    pub links: Vec<Link>,
    pub clients: Vec<crate::client::Client>,
    pub probes: Vec<crate::probe::Probe>,
    /// Where the standby was, in truth, when it was last asked.
    pub reported: Vec<Tip>,
    recalled: bool,
    inbox: VecDeque<Told>,
    busy: bool,
    machine_alarm: Option<Time>,
    core_alarm: Option<Time>,
    pub recordings: Vec<Recording>,
    /// Actions sent on a session.
    pub acts: Vec<(ActionId, u32)>,
    /// Orders on connections of their own.
    pub errands: Vec<Errand>,
    /// The highest epoch of any action begun.
    pub admitted: Epoch,
    /// Whom the last open plan named, in which epoch, and how often it had been cut off.
    pub open_to: Option<(usize, Epoch, u64)>,
    /// Crashes right after this many more actions.
    pub crash_after: Option<u32>,
    /// An operator was told that what is under way may lose writes.
    pub risks: bool,
    /// The right was claimed.
    pub changing: bool,
    /// What commits waited for, in its state directory.
    pub kept: Option<Promise>,
    pub etcd: Option<crate::etcd::Driver>,
    seed: u64,
}

impl Proxy {
    pub fn new(world: &World, index: usize, seed: u64) -> Self {
        let setup = &world.setup;
        let link = |_| Link::default();
        Self {
            up: false,
            run: 0,
            machine: Machine::new(world.policy.clone(), Time::ZERO),
            core: Voters::new(rules(world, seed)),
            standing: Standing::default(),
            plan: None,
            permit: None,
            links: (0..setup.voters()).map(link).collect(),
            clients: vec![crate::client::Client::default(); setup.clients],
            probes: vec![crate::probe::Probe::default(); setup.nodes],
            reported: vec![0; setup.nodes],
            recalled: false,
            inbox: VecDeque::new(),
            busy: false,
            machine_alarm: None,
            core_alarm: None,
            recordings: Vec::new(),
            acts: Vec::new(),
            errands: Vec::new(),
            admitted: Epoch(0),
            open_to: None,
            etcd: None,
            kept: None,
            crash_after: None,
            risks: false,
            changing: false,
            seed: seed.wrapping_mul(31).wrapping_add(index as u64),
        }
    }
}

fn rules(world: &World, seed: u64) -> Rules {
    Rules {
        voters: (0..world.setup.voters()).map(|v| voter_name(&world.setup, v).into()).collect(),
        span: crate::world::duration(world.setup.span),
        keep_primary: world.setup.keep_primary,
        seed,
    }
}

impl World {
    pub fn boot(&mut self, proxy: usize) {
        if self.proxies[proxy].up {
            return;
        }
        let (run, now) = (self.proxies[proxy].run + 1, self.time(proxy));
        let mut fresh = Proxy::new(self, proxy, 0);
        fresh.kept.clone_from(&self.proxies[proxy].kept);
        fresh.seed = self.proxies[proxy].seed.wrapping_add(u64::from(run));
        fresh.core = Voters::new(rules(self, fresh.seed));
        fresh.machine = Machine::new(self.policy.clone(), now);
        (fresh.up, fresh.run) = (true, run);
        self.proxies[proxy] = fresh;
        note!(self, "p{proxy} starts");
        let voters = if self.setup.store == Store::Voters { self.setup.voters() } else { 0 };
        for voter in 0..voters {
            self.reopen(proxy, voter);
        }
        for node in 0..self.setup.nodes {
            self.later(0, Event::ProbeDue { proxy, run, node, turn: 0 });
        }
        for client in 0..self.setup.clients {
            self.later(10 * MS, Event::ClientDue { proxy, run, client });
        }
        match self.setup.store {
            Store::Voters => {
                let limit = self.local(self.proxy_host(proxy)) + RECALL_LIMIT;
                let at = self.real(self.proxy_host(proxy), limit);
                self.at(at, Event::Recall { proxy, run });
            }
            Store::Etcd => {
                self.proxies[proxy].etcd = Some(self.etcd_driver(proxy));
                self.etcd_go_on(proxy);
            }
            Store::Single => self.recall_with(proxy, self.file.clone()),
        }
    }

    pub fn crash(&mut self, proxy: usize) {
        if !self.proxies[proxy].up {
            return;
        }
        note!(self, "p{proxy} crashes");
        self.proxies[proxy].up = false;
        self.proxies[proxy].run += 1;
        self.proxies[proxy].permit = None;
        let host = self.proxy_host(proxy);
        self.forget_deferred(host);
        let of = |s: &crate::net::Session| s.proxy == proxy && s.near != Side::Closed;
        let open: Vec<u32> = (0u32..).zip(&self.sessions).filter(|(_, s)| of(s)).map(|(n, _)| n).collect();
        open.into_iter().for_each(|session| self.close_near(session));
    }

    pub fn lives(&self, proxy: usize, run: u32) -> bool {
        self.proxies[proxy].up && self.proxies[proxy].run == run
    }

    // ---- sessions with voters ----

    pub fn reopen(&mut self, proxy: usize, voter: usize) {
        if self.proxies[proxy].links[voter].session.is_none() {
            let session = self.open(proxy, voter, Purpose::Locks { voter });
            self.proxies[proxy].links[voter].session = Some(session);
        }
    }

    pub fn near_opened(&mut self, session: u32) {
        let (proxy, purpose) = (self.sessions[session as usize].proxy, self.sessions[session as usize].purpose);
        match purpose {
            Purpose::Locks { voter } => {
                let link = &mut self.proxies[proxy].links[voter];
                (link.open, link.waiting, link.lock) = (true, false, Lock::None);
                self.core_step(proxy, Input::Opened { voter, session: u64::from(session) });
            }
            Purpose::Client { client } => self.client_opened(proxy, client, session),
            Purpose::Errand => self.errand_opened(proxy, session),
        }
    }

    pub fn near_closed(&mut self, session: u32) {
        let (proxy, purpose) = (self.sessions[session as usize].proxy, self.sessions[session as usize].purpose);
        let run = self.sessions[session as usize].run;
        if !self.lives(proxy, run) {
            return;
        }
        match purpose {
            Purpose::Locks { voter } => {
                let link = &mut self.proxies[proxy].links[voter];
                if link.session != Some(session) {
                    return;
                }
                let was_open = link.open;
                (link.session, link.open) = (None, false);
                let host = self.proxy_host(proxy);
                let at = self.real(host, self.local(host) + REOPEN);
                self.at(at, Event::Reopen { proxy, run, voter });
                if was_open {
                    self.core_step(proxy, Input::Closed { voter, session: u64::from(session) });
                }
                self.session_lost(proxy, session);
            }
            Purpose::Client { client } => self.client_lost(proxy, client, session),
            Purpose::Errand => self.errand_lost(proxy, session),
        }
    }

    /// What was to be done on a session that ended may have been done or not.
    fn session_lost(&mut self, proxy: usize, session: u32) {
        let lost: Vec<ActionId> =
            self.proxies[proxy].acts.iter().filter(|(_, on)| *on == session).map(|(id, _)| *id).collect();
        self.proxies[proxy].acts.retain(|(_, on)| *on != session);
        for recording in &mut self.proxies[proxy].recordings {
            for vote in &mut recording.votes {
                if *vote == Vote::Sent(session) {
                    *vote = Vote::Failed;
                }
            }
        }
        for id in lost {
            self.tell(proxy, Told::ActionDone { id, outcome: Outcome::Failed("session lost".to_owned()) });
        }
    }

    pub fn near_message(&mut self, session: u32, msg: Msg) {
        let (proxy, purpose) = (self.sessions[session as usize].proxy, self.sessions[session as usize].purpose);
        match (purpose, msg) {
            (Purpose::Locks { voter }, Msg::Answer { lock, view }) => {
                let now = self.time(proxy);
                let from_reply = self.bug == Some(Bug::LeaseFromReply);
                let link = &mut self.proxies[proxy].links[voter];
                (link.waiting, link.lock) = (false, lock);
                let sent_at = if from_reply { now } else { link.asked_at };
                let session = u64::from(session);
                self.core_step(proxy, Input::Answered { voter, session, sent_at, lock, view });
            }
            (Purpose::Locks { voter }, Msg::Acted { id, outcome }) => {
                self.acted_near(proxy, voter, session, id, outcome)
            }
            (Purpose::Errand, Msg::Acted { id, outcome }) => self.errand_done(proxy, session, id, outcome),
            (Purpose::Client { client }, msg) => self.client_message(proxy, client, msg),
            _ => {}
        }
    }

    fn acted_near(&mut self, proxy: usize, voter: usize, session: u32, id: ActionId, outcome: Outcome) {
        let found = self.proxies[proxy].recordings.iter_mut().find(|r| r.id == id);
        if let Some(recording) = found {
            if recording.votes[voter] == Vote::Sent(session) {
                recording.votes[voter] = if outcome == Outcome::Done { Vote::Done } else { Vote::Failed };
            }
            return self.further_records(proxy);
        }
        let acts = &mut self.proxies[proxy].acts;
        let Some(at) = acts.iter().position(|act| *act == (id, session)) else { return };
        acts.swap_remove(at);
        if let Some(node) = self.nodes.get(voter).map(|_| voter) {
            self.probe_now(proxy, node);
        }
        self.tell(proxy, Told::ActionDone { id, outcome });
    }

    pub fn ask_timeout(&mut self, proxy: usize, voter: usize, session: u32, asked: u32) {
        let link = &self.proxies[proxy].links[voter];
        if link.session == Some(session) && link.waiting && link.asks == asked {
            self.close_near(session);
            self.near_closed(session);
        }
    }

    // ---- the store's rules ----

    pub fn core_step(&mut self, proxy: usize, input: Input) {
        let now = self.time(proxy);
        let outputs = self.proxies[proxy].core.step(input, now);
        for output in outputs {
            match output {
                Output::Ask { voter, session, lock, order } => self.ask(proxy, voter, session, lock, order),
                Output::WakeAt(at) => {
                    let alarm = &mut self.proxies[proxy].core_alarm;
                    if alarm.is_none_or(|set| set > at || set <= now) {
                        *alarm = Some(at);
                        let run = self.proxies[proxy].run;
                        let at = self.real(self.proxy_host(proxy), at.as_nanos());
                        self.at(at, Event::CoreTick { proxy, run });
                    }
                }
            }
        }
        self.look_at_standing(proxy);
    }

    fn ask(&mut self, proxy: usize, voter: usize, session: u64, lock: Lock, order: bool) {
        let now = self.time(proxy);
        let link = &mut self.proxies[proxy].links[voter];
        let Some(number) = link.session.filter(|s| u64::from(*s) == session && link.open) else { return };
        link.asks += 1;
        (link.asked_at, link.waiting, link.lock) = (now, true, link.lock.min(lock));
        let (asked, run, host) = (link.asks, self.proxies[proxy].run, self.proxy_host(proxy));
        self.send(number, true, Msg::Ask { lock, order });
        let at = self.real(host, now.as_nanos() + self.setup.span);
        self.at(at, Event::AskTimeout { proxy, run, voter, session: number, asked });
    }

    pub fn look_at_standing(&mut self, proxy: usize) {
        let now = self.time(proxy);
        let mut standing = match &self.proxies[proxy].etcd {
            Some(driver) => driver.standing(now),
            None => self.proxies[proxy].core.standing(now),
        };
        if self.bug == Some(Bug::Unlocked) && self.proxies[proxy].changing {
            let names = (0..self.setup.voters()).map(|v| voter_name(&self.setup, v).into());
            let until = now + crate::world::duration(SEC);
            standing.right.get_or_insert(Right { until, held: None, stubborn: Vec::new(), idle: names.collect() });
        }
        if self.bug == Some(Bug::MajorityOnly) {
            standing.highest = standing.register.as_ref().map_or(Epoch(0), |register| register.epoch);
            (standing.chosen, standing.pending) = (None, None);
        }
        if standing != self.proxies[proxy].standing {
            self.note_standing(proxy, &standing);
            self.proxies[proxy].standing = standing.clone();
            self.tell(proxy, Told::Standing(standing));
            self.bring_permit(proxy);
        }
        let voters = self.setup.store == Store::Voters;
        if voters && !self.proxies[proxy].recalled && self.proxies[proxy].standing.register.is_some() {
            self.recall(proxy);
        }
        self.further_records(proxy);
    }

    fn note_standing(&mut self, proxy: usize, new: &Standing) {
        if !self.traced() {
            return;
        }
        let old = &self.proxies[proxy].standing;
        let short = |s: &Standing| {
            let register = s.register.as_ref().map(|r| (r.primary.clone(), r.epoch.0));
            let lease = s.lease.as_ref().map(|l| l.epoch.0);
            (register, s.highest, s.chosen.clone(), lease, s.right.as_ref().map(|r| r.held.clone()), s.ordered)
        };
        if short(old) != short(new) || old.lack != new.lack {
            let text = format!("p{proxy} stands: {:?} lack={:?}", short(new), new.lack);
            self.add_note(text);
        }
    }

    /// Tells the machine what the register says, once.
    pub fn recall(&mut self, proxy: usize) {
        let record = self.proxies[proxy].standing.register.clone();
        self.recall_with(proxy, record);
    }

    pub fn recall_with(&mut self, proxy: usize, record: Option<Record>) {
        if std::mem::replace(&mut self.proxies[proxy].recalled, true) {
            return;
        }
        if let Some(kept) = self.proxies[proxy].kept.clone() {
            self.tell(proxy, Told::Promised(kept));
        }
        // Here nodes may have answered already, and what is decided at once must not be decided as if nobody shared the store.
        if self.setup.store != Store::Single {
            let standing = self.proxies[proxy].standing.clone();
            self.tell(proxy, Told::Standing(standing));
        }
        self.tell(proxy, Told::Recalled(record));
    }

    pub fn claim_of_store(&mut self, proxy: usize, claim: Claim) {
        match self.setup.store {
            Store::Voters => {
                if !claim.changes() {
                    self.give_up_records(proxy);
                }
                self.core_step(proxy, Input::Claim(claim));
            }
            Store::Etcd => self.etcd_claim(proxy, claim),
            Store::Single => {}
        }
    }

    // ---- the machine ----

    pub fn tell(&mut self, proxy: usize, event: Told) {
        self.proxies[proxy].inbox.push_back(event);
        if self.proxies[proxy].busy {
            return;
        }
        self.proxies[proxy].busy = true;
        let mut steps = 0;
        while let Some(event) = self.proxies[proxy].inbox.pop_front() {
            steps += 1;
            assert!(steps < STEPS_MAX, "p{proxy} does not come to rest");
            let now = self.time(proxy);
            let actions = self.proxies[proxy].machine.step(event, now);
            for action in actions {
                self.start(proxy, action, now);
                if !self.proxies[proxy].up {
                    break;
                }
            }
            if self.over || !self.proxies[proxy].up {
                self.proxies[proxy].inbox.clear();
            }
        }
        self.proxies[proxy].busy = false;
    }

    pub fn wake_machine(&mut self, proxy: usize, at: Time, now: Time) {
        let alarm = &mut self.proxies[proxy].machine_alarm;
        if alarm.is_none_or(|set| set > at || set <= now) {
            *alarm = Some(at);
            let run = self.proxies[proxy].run;
            let at = self.real(self.proxy_host(proxy), at.as_nanos());
            self.at(at, Event::MachineTick { proxy, run });
        }
    }

    pub fn machine_tick(&mut self, proxy: usize) {
        let now = self.time(proxy);
        if self.proxies[proxy].machine_alarm.is_some_and(|at| at <= now) {
            self.proxies[proxy].machine_alarm = None;
        }
        self.tell(proxy, Told::Tick);
    }

    pub fn core_tick(&mut self, proxy: usize) {
        let now = self.time(proxy);
        if self.proxies[proxy].core_alarm.is_some_and(|at| at <= now) {
            self.proxies[proxy].core_alarm = None;
        }
        self.core_step(proxy, Input::Tick);
    }
}
