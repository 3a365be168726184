//! One proxy: the real failover machine and the real rules of the `voters` store, driven as the control plane does.
//!
//! Invariants: nothing is decided here; the permit is brought in line before anything else is done with a new plan or
//! standing. Absent on purpose: pools, routing, freshness.

use crate::bug::Bug;
use crate::net::{Deed, Msg, Purpose, Side};
use crate::record::{Recording, Vote};
use crate::wal::Tip;
use crate::world::{Event, MS, Nanos, SEC, World, node_name, note, voter_name};
use pgregent::clock::Time;
use pgregent::config::Config;
use pgregent::coordination::voters::core::{Input, Lock, Output, Rules, Voters};
use pgregent::failover::action::{Action, ActionId, Plan};
use pgregent::failover::event::{Event as Told, Outcome};
use pgregent::failover::standing::{Right, Standing};
use pgregent::failover::{Machine, Policy};
use pgregent::ids::{Epoch, NodeId};
use pgregent::topology::Writes;
use std::collections::VecDeque;
use std::fmt::Write as _;

/// Pause before a session to a voter is opened again.
const REOPEN: Nanos = 100 * MS;
/// How long a started proxy waits for a majority of voters.
const RECALL_LIMIT: Nanos = 3 * SEC;

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

/// Until when writes of which epoch may go where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    pub epoch: u64,
    pub primary: usize,
    pub until: Nanos,
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
    pub permit: Option<Permit>,
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
    acts: Vec<(ActionId, u32)>,
    /// Crashes right after this many more actions.
    pub crash_after: Option<u32>,
    /// An operator was told that what is under way may lose writes.
    pub risks: bool,
    /// The right was claimed.
    changing: bool,
    seed: u64,
}

/// The policy, read from a configuration so that it has every rule that the product has.
pub fn policy(nodes: usize) -> Policy {
    let mut text = String::from(
        "[server]\nlisten = [\"127.0.0.1:1\"]\n[cluster]\nname = \"sim\"\nmonitor_user = \"m\"\nmonitor_password = \"m\"\n\
         failover_min_gap = \"0s\"\nprimary_start_timeout = \"5s\"\n\
         promote_timeout = \"5s\"\nfailover_lag_bytes_max = \"1GiB\"\n",
    );
    for node in 0..nodes {
        let name = node_name(node);
        let _ = write!(text, "[[node]]\nname = \"{name}\"\naddress = \"{name}:5432\"\n");
    }
    text.push_str("[[auth.user]]\nname = \"u\"\npassword = \"p\"\n");
    let config = Config::parse(&text, "sim.toml").unwrap_or_else(|e| panic!("the simulation's configuration: {e:?}"));
    let mut policy = Policy::from_config(&config);
    policy.max_per_hour = 100_000;
    policy.lag_bytes_max = u64::MAX;
    policy.means.fence_sql = false;
    policy
}

impl Proxy {
    pub fn new(world: &World, index: usize, seed: u64) -> Self {
        let setup = &world.setup;
        let link = |_| Link::default();
        Self {
            up: false,
            run: 0,
            machine: Machine::new(policy(setup.nodes), Time::ZERO),
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
        keep_primary: false,
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
        fresh.seed = self.proxies[proxy].seed.wrapping_add(u64::from(run));
        fresh.core = Voters::new(rules(self, fresh.seed));
        fresh.machine = Machine::new(policy(self.setup.nodes), now);
        (fresh.up, fresh.run) = (true, run);
        self.proxies[proxy] = fresh;
        note!(self, "p{proxy} starts");
        for voter in 0..self.setup.voters() {
            self.reopen(proxy, voter);
        }
        for node in 0..self.setup.nodes {
            self.later(0, Event::ProbeDue { proxy, run, node, turn: 0 });
        }
        for client in 0..self.setup.clients {
            self.later(10 * MS, Event::ClientDue { proxy, run, client });
        }
        let limit = self.local(self.proxy_host(proxy)) + RECALL_LIMIT;
        let at = self.real(self.proxy_host(proxy), limit);
        self.at(at, Event::Recall { proxy, run });
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

    fn look_at_standing(&mut self, proxy: usize) {
        let now = self.time(proxy);
        let mut standing = self.proxies[proxy].core.standing(now);
        if self.bug == Some(Bug::Unlocked) && self.proxies[proxy].changing {
            let names = (0..self.setup.voters()).map(|v| voter_name(&self.setup, v).into());
            let until = now + crate::world::duration(SEC);
            standing.right.get_or_insert(Right { until, held: None, stubborn: Vec::new(), idle: names.collect() });
        }
        if standing != self.proxies[proxy].standing {
            self.note_standing(proxy, &standing);
            self.proxies[proxy].standing = standing.clone();
            self.bring_permit(proxy);
            self.tell(proxy, Told::Standing(standing));
        }
        if !self.proxies[proxy].recalled && self.proxies[proxy].standing.register.is_some() {
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
        if std::mem::replace(&mut self.proxies[proxy].recalled, true) {
            return;
        }
        let record = self.proxies[proxy].standing.register.clone();
        self.tell(proxy, Told::Recalled(record));
        let standing = self.proxies[proxy].standing.clone();
        self.tell(proxy, Told::Standing(standing));
    }

    // ---- the machine ----

    pub fn tell(&mut self, proxy: usize, event: Told) {
        self.proxies[proxy].inbox.push_back(event);
        if self.proxies[proxy].busy {
            return;
        }
        self.proxies[proxy].busy = true;
        while let Some(event) = self.proxies[proxy].inbox.pop_front() {
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

    fn start(&mut self, proxy: usize, action: Action, now: Time) {
        match action {
            Action::Publish(plan) => return self.publish(proxy, plan),
            Action::Claim(claim) => {
                note!(self, "p{proxy} claims {claim:?}");
                self.proxies[proxy].changing = claim.changes();
                if !claim.changes() {
                    self.give_up_records(proxy);
                }
                return self.core_step(proxy, Input::Claim(claim));
            }
            Action::Keep(_) => return,
            Action::ProbeNow(node) => return self.probe_now(proxy, node.index()),
            Action::WakeAt(at) => return self.wake_machine(proxy, at, now),
            Action::Tell(notice) => {
                note!(self, "p{proxy} says {}: {}", notice.kind, notice.text);
                self.proxies[proxy].risks |= notice.kind == "loss_possible";
                return;
            }
            Action::Record(id, record) => self.record(proxy, id, record),
            Action::Detach(id, node, _) => self.act(proxy, id, node, Deed::Detach),
            Action::Promote(id, node, Epoch(epoch)) => {
                note!(self, "p{proxy} promotes n{} in epoch {epoch}", node.index());
                self.act(proxy, id, node, Deed::Promote { epoch });
            }
            // Not in the policy.
            Action::Hook(..) | Action::NameSync { .. } | Action::FenceSql { .. } => panic!("{action:?}"),
            Action::Reconnect { id, node, .. } => self.act(proxy, id, node, Deed::Reconnect),
            Action::Repoint { id, node, upstream, epoch } => {
                self.act(proxy, id, node, Deed::Repoint { to: upstream.index(), epoch: epoch.0 });
            }
        }
        self.ambush(proxy);
    }

    fn wake_machine(&mut self, proxy: usize, at: Time, now: Time) {
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

    fn publish(&mut self, proxy: usize, plan: Plan) {
        let short = |p: &Plan| (p.epoch, p.primary, p.writes == Writes::Open);
        if self.traced() && self.proxies[proxy].plan.as_ref().map(&short) != Some(short(&plan)) {
            let text = format!("p{proxy} plans {:?} in epoch {}: {:?}", plan.primary, plan.epoch, plan.writes);
            self.add_note(text);
        }
        self.check_reads(proxy, &plan);
        self.proxies[proxy].plan = Some(plan);
        self.bring_permit(proxy);
    }

    fn bring_permit(&mut self, proxy: usize) {
        let new = self.permitted(proxy);
        if new != self.proxies[proxy].permit {
            self.proxies[proxy].permit = new;
            if let Some(permit) = new {
                self.permit_opened(proxy, permit);
            }
        }
    }

    fn permitted(&self, proxy: usize) -> Option<Permit> {
        let owner = &self.proxies[proxy];
        let plan = owner.plan.as_ref().filter(|p| p.writes == Writes::Open)?;
        let (primary, epoch) = (plan.primary?.index(), plan.epoch);
        let lease = owner.standing.lease.as_ref().filter(|_| !owner.standing.ordered)?;
        let fits = lease.epoch == epoch && *lease.primary == *node_name(primary);
        fits.then_some(Permit { epoch: epoch.0, primary, until: lease.until.as_nanos() })
    }

    // ---- actions ----

    pub fn fail(&mut self, proxy: usize, id: ActionId, why: &str) {
        let (run, outcome) = (self.proxies[proxy].run, Outcome::Failed(why.to_owned()));
        self.later(MS, Event::ActFailed { proxy, run, id, outcome });
    }

    fn act(&mut self, proxy: usize, id: ActionId, node: NodeId, deed: Deed) {
        let link = &self.proxies[proxy].links[node.index()];
        let Some(session) = link.session.filter(|_| link.open) else {
            return self.fail(proxy, id, "no session with it");
        };
        self.proxies[proxy].acts.push((id, session));
        self.send(session, true, Msg::Act { id, deed });
    }
}
