//! etcd as proxies see it, and the proxies' side of it as the store's task drives it; the rules are the real ones.
//!
//! As in etcd: writes and reads are in one order; a request whose answer is lost may be done, or be done later; leases
//! end by the leader's clock, later after a change of leader, and now and then earlier than whoever renewed them
//! thinks. Absent on purpose: how the members agree; three of them do while two can talk to each other.

use crate::bug::Bug;
use crate::world::{Event, MS, Nanos, SEC, US, World, note};
use pgregent::clock::Time;
use pgregent::coordination::etcd::core::{Answer, Etcd, Next, Request, Rules};
use pgregent::coordination::etcd::view::{Key, Names, State, holder_value, route_value};
use pgregent::failover::action::ActionId;
use pgregent::failover::event::{Outcome, Record};
use pgregent::failover::standing::{Claim, Standing};
use std::collections::{BTreeMap, VecDeque};

/// How long the controller waits for a record.
const RECORD_LIMIT: Nanos = 10 * SEC;

/// What the members hold.
#[derive(Debug, Default)]
pub struct Register {
    revision: i64,
    keys: BTreeMap<Vec<u8>, Key>,
    /// When they end, by the leader's clock.
    leases: BTreeMap<i64, Nanos>,
    last_lease: i64,
    /// Nobody leads until then.
    pub leaderless_until: Nanos,
    /// Renewals are answered and forgotten until then, as by a leader that is none any more.
    pub deaf_until: Nanos,
}

/// A proxy's side.
#[derive(Debug)]
pub struct Driver {
    rules: Etcd,
    /// The member that is asked.
    at: usize,
    /// Number of the request under way, or of the last one.
    turn: u32,
    waiting: Option<(Request, Time)>,
    alarm: Option<Time>,
    records: VecDeque<(ActionId, Record, Nanos)>,
}

impl Driver {
    pub fn standing(&self, now: Time) -> Standing {
        self.rules.standing(now)
    }
}

impl Register {
    fn key(&self, name: &[u8]) -> Option<&Key> {
        self.keys.get(name)
    }

    fn put(&mut self, name: Vec<u8>, value: Vec<u8>, lease: i64) {
        let created = self.key(&name).map_or(self.revision, |key| key.created);
        let key = Key { name: name.clone(), value, created, changed: self.revision, lease };
        self.keys.insert(name, key);
    }

    fn end_lease(&mut self, lease: i64) -> bool {
        self.keys.retain(|_, key| key.lease != lease);
        self.leases.remove(&lease).is_some()
    }

    fn others_route(&self, names: &Names) -> bool {
        names.other_routes().iter().any(|(first, end)| self.keys.range(first.clone()..end.clone()).next().is_some())
    }

    /// A transaction: nothing of it, or all of it.
    fn write(&mut self, request: &Request, names: &Names, ttl: Nanos) -> Answer {
        let (change, state) = (self.key(&names.change()), self.key(&names.state()));
        let fits = |lease: i64| self.key(&names.holder(lease)).is_none();
        let fine = match request {
            Request::Route(route) => {
                change.is_none() && state.map_or(0, |key| key.changed) == route.state && fits(route.lease)
            }
            Request::Change { lease } => change.is_none() && !self.others_route(names) && fits(*lease),
            Request::Order { .. } => self.key(&names.order()).is_none(),
            Request::Record { state: seen, change: ours, .. } => {
                change.is_some_and(|key| key.created == *ours) && state.map_or(0, |key| key.changed) == *seen
            }
            _ => false,
        };
        if !fine {
            return Answer::Refused;
        }
        let lease = match request {
            Request::Route(route) => Some(route.lease),
            Request::Change { lease } | Request::Order { lease } => Some(*lease),
            _ => None,
        };
        if lease.is_some_and(|lease| !self.leases.contains_key(&lease)) {
            return Answer::Gone;
        }
        self.revision += 1;
        let ttl = pgregent_duration(ttl);
        match request {
            Request::Route(route) => {
                self.put(names.route(), route_value(route.state), route.lease);
                self.put(names.holder(route.lease), holder_value(route.lease, ttl, false), 0);
            }
            Request::Change { lease } => {
                self.put(names.change(), names.me().as_bytes().to_vec(), *lease);
                self.put(names.holder(*lease), holder_value(*lease, ttl, true), 0);
            }
            Request::Order { lease } => self.put(names.order(), names.me().as_bytes().to_vec(), *lease),
            Request::Record { record, .. } => {
                self.put(names.state(), serde_json::to_vec(record).unwrap(), 0);
            }
            _ => {}
        }
        Answer::Done(self.revision)
    }
}

fn pgregent_duration(nanos: Nanos) -> std::time::Duration {
    crate::world::duration(nanos)
}

impl World {
    pub fn member_host(&self, member: usize) -> usize {
        self.setup.voters() + self.setup.proxies + member
    }

    /// Whether this member can have something agreed upon.
    fn quorum(&self, member: usize) -> bool {
        let host = self.member_host(member);
        let with = |other: usize| {
            let other = self.member_host(other);
            let runs = !self.hosts[other].off && self.hosts[other].stalled == 0;
            runs && (other == host || (self.up(host, other) && self.up(other, host)))
        };
        let members = self.setup.members();
        let there = (0..members).filter(|other| with(*other)).count();
        with(member) && there > members / 2 && self.now >= self.etcd.leaderless_until
    }

    fn etcd_clock(&self) -> Nanos {
        self.local(self.member_host(0))
    }

    // ---- the members ----

    pub fn etcd_arrives(&mut self, proxy: usize, run: u32, (member, turn): (usize, u32), request: Box<Request>) {
        let span = match self.random.below(200) {
            0 => self.random.between(100 * MS, 1500 * MS),
            1..10 => self.random.between(5 * MS, 50 * MS),
            _ => self.random.between(300 * US, 4 * MS),
        };
        self.later(span, Event::EtcdDo { proxy, run, member, turn, request, tries: 0 });
    }

    pub fn etcd_do(&mut self, proxy: usize, run: u32, (member, turn): (usize, u32), request: Box<Request>, tries: u32) {
        if !self.quorum(member) {
            // It is refused, or waits for a leader.
            if tries < 6 && self.random.chance(500) {
                let span = self.random.between(50 * MS, 900 * MS);
                return self.later(span, Event::EtcdDo { proxy, run, member, turn, request, tries: tries + 1 });
            }
            return self.etcd_say(proxy, run, (member, turn), Answer::Failed);
        }
        let names = Self::etcd_names(proxy, run);
        let before = self.etcd.revision;
        let answer = self.etcd_perform(&request, &names);
        if !matches!(*request, Request::Read | Request::Renew { .. }) {
            note!(self, "etcd: p{proxy} {request:?}: {answer:?}");
        }
        if self.etcd.revision != before {
            self.etcd_changed(member);
        }
        self.etcd_say(proxy, run, (member, turn), answer);
    }

    fn etcd_say(&mut self, proxy: usize, run: u32, (member, turn): (usize, u32), answer: Answer) {
        let (from, to) = (self.member_host(member), self.proxy_host(proxy));
        self.datagram(from, to, Event::EtcdSays { proxy, run, turn, answer: Box::new(answer) });
    }

    /// Watches tell, as a rule.
    fn etcd_changed(&mut self, member: usize) {
        for proxy in 0..self.proxies.len() {
            if self.proxies[proxy].up && self.random.chance(900) {
                let (from, to, run) = (self.member_host(member), self.proxy_host(proxy), self.proxies[proxy].run);
                self.datagram(from, to, Event::EtcdChanged { proxy, run });
            }
        }
    }

    fn etcd_perform(&mut self, request: &Request, names: &Names) -> Answer {
        let (now, ttl, deaf) = (self.etcd_clock(), self.setup.span, self.now < self.etcd.deaf_until);
        match request {
            Request::Grant { .. } => {
                self.etcd.last_lease += 1;
                let lease = self.etcd.last_lease;
                self.etcd_lease(lease, now + ttl);
                Answer::Granted { lease }
            }
            Request::Renew { lease } if !self.etcd.leases.contains_key(lease) => Answer::Gone,
            Request::Renew { lease } => {
                if !deaf {
                    self.etcd_lease(*lease, now + ttl);
                }
                Answer::Renewed
            }
            Request::Read => {
                let (first, end) = names.all();
                let keys: Vec<Key> = self.etcd.keys.range(first..end).map(|(_, key)| key.clone()).collect();
                let mut view = names.view(&keys);
                if self.bug == Some(Bug::ForgetHolders) {
                    let own = names.holder(0);
                    view.holders.retain(|holder| holder.name.starts_with(&own[..own.len() - 1]));
                }
                Answer::Read(view)
            }
            Request::Forget { holder } => {
                self.etcd.revision += 1;
                self.etcd.keys.remove(holder);
                Answer::Done(self.etcd.revision)
            }
            Request::Release { lease } => {
                self.etcd.revision += 1;
                self.etcd.keys.remove(&names.holder(*lease));
                // The second of two requests may be lost.
                if self.random.chance(50) {
                    return Answer::Failed;
                }
                if self.etcd.end_lease(*lease) { Answer::Done(self.etcd.revision) } else { Answer::Gone }
            }
            other => {
                if self.bug == Some(Bug::NoCompare) {
                    self.etcd.keys.remove(&names.change());
                }
                self.etcd.write(other, names, ttl)
            }
        }
    }

    fn etcd_lease(&mut self, lease: i64, end: Nanos) {
        self.etcd.leases.insert(lease, end);
        let at = self.real(self.member_host(0), end);
        self.at(at, Event::EtcdExpire { lease });
    }

    pub fn etcd_expire(&mut self, lease: i64) {
        let now = self.etcd_clock();
        if self.etcd.leases.get(&lease).is_none_or(|end| *end > now) {
            return;
        }
        let led = (0..self.setup.members()).find(|member| self.quorum(*member));
        let Some(member) = led else {
            // Only a leader ends leases, and a new one grants each a time to live anew.
            return self.etcd_lease(lease, now + self.setup.span);
        };
        note!(self, "etcd: lease {lease} ends");
        self.etcd.revision += 1;
        self.etcd.end_lease(lease);
        self.etcd_changed(member);
    }

    /// A lease ends although it was renewed.
    pub fn etcd_revoke(&mut self) {
        let leases: Vec<i64> = self.etcd.leases.keys().copied().collect();
        if !leases.is_empty() {
            let lease = leases[self.random.below(leases.len())];
            self.etcd.leases.insert(lease, 0);
            self.etcd_expire(lease);
        }
    }

    // ---- a proxy ----

    fn etcd_names(proxy: usize, run: u32) -> Names {
        Names::new("sim", "sim", &format!("{proxy:04x}-{run:04x}"))
    }

    /// What the register holds.
    pub fn etcd_record_now(&self) -> Option<Record> {
        let state = self.etcd.key(&Self::etcd_names(0, 0).state())?;
        Some(serde_json::from_slice(&state.value).unwrap())
    }

    pub fn etcd_driver(&self, proxy: usize) -> Driver {
        let endpoints = (0..self.setup.members()).map(|member| format!("e{member}").into()).collect();
        let ttl = pgregent_duration(self.setup.span);
        Driver {
            rules: Etcd::new(Rules { endpoints, ttl, keep_primary: self.setup.keep_primary }),
            at: proxy % self.setup.members().max(1),
            turn: 0,
            waiting: None,
            alarm: None,
            records: VecDeque::new(),
        }
    }

    pub fn etcd_claim(&mut self, proxy: usize, claim: Claim) {
        if let Some(driver) = &mut self.proxies[proxy].etcd {
            driver.rules.want(claim);
            let ended = if claim.changes() { Default::default() } else { std::mem::take(&mut driver.records) };
            ended.iter().for_each(|(id, ..)| self.fail(proxy, *id, "something else is claimed by now"));
        }
        self.etcd_go_on(proxy);
    }

    pub fn etcd_record(&mut self, proxy: usize, id: ActionId, record: Record) {
        let began = self.local(self.proxy_host(proxy));
        if let Some(driver) = &mut self.proxies[proxy].etcd {
            driver.records.push_back((id, record, began));
        }
        self.etcd_go_on(proxy);
    }

    /// Sends what is due, and publishes where the proxy stands.
    pub fn etcd_go_on(&mut self, proxy: usize) {
        let mut wake = Time::NEVER;
        while self.proxies[proxy].up && self.proxies[proxy].etcd.as_ref().is_some_and(|d| d.waiting.is_none()) {
            self.etcd_drop_late(proxy);
            let (now, run) = (self.time(proxy), self.proxies[proxy].run);
            let Some(driver) = &mut self.proxies[proxy].etcd else { return };
            driver.rules.want_record(driver.records.front().map(|(_, record, _)| record.clone()));
            match driver.rules.next(now) {
                Next::Wait(at) => {
                    wake = at;
                    break;
                }
                Next::Recorded(outcome) => {
                    if let Some((id, ..)) = driver.records.pop_front() {
                        let failed = |why| Outcome::Failed(format!("{why:?}"));
                        self.end_later(proxy, id, 0, outcome.map_or_else(failed, |()| Outcome::Done));
                    }
                }
                Next::Ask(request) => {
                    driver.turn += 1;
                    driver.waiting = Some((request.clone(), now));
                    let (turn, member) = (driver.turn, driver.at);
                    self.etcd_ask(proxy, run, (member, turn), request, now);
                }
            }
        }
        let now = self.time(proxy);
        let Some(driver) = &mut self.proxies[proxy].etcd else { return };
        let wake = wake.min(driver.rules.deadline(now));
        if wake < Time::NEVER && driver.alarm.is_none_or(|set| set > wake || set <= now) {
            driver.alarm = Some(wake);
            let run = self.proxies[proxy].run;
            let at = self.real(self.proxy_host(proxy), wake.as_nanos());
            self.at(at, Event::CoreTick { proxy, run });
        }
        self.look_at_standing(proxy);
    }

    fn etcd_ask(&mut self, proxy: usize, run: u32, (member, turn): (usize, u32), request: Request, now: Time) {
        let (host, to) = (self.proxy_host(proxy), self.member_host(member));
        let limit = Nanos::try_from((pgregent_duration(self.setup.span) / 5).as_nanos()).unwrap_or(SEC);
        let request = Box::new(request);
        let event = |request| Event::EtcdAsk { proxy, run, member, turn, request };
        if !self.datagram(host, to, event(request.clone())) && self.random.chance(500) {
            // TCP sends it again, whoever has given it up by then.
            let span = self.random.between(200 * MS, 3 * SEC);
            self.push(self.now + span, Some((host, to)), event(request));
        }
        let at = self.real(host, now.as_nanos() + limit);
        self.at(at, Event::EtcdLate { proxy, run, turn });
    }

    /// The controller has given these up.
    fn etcd_drop_late(&mut self, proxy: usize) {
        let now = self.local(self.proxy_host(proxy));
        let late = |(_, _, began): &(ActionId, Record, Nanos)| now.saturating_sub(*began) >= RECORD_LIMIT;
        let Some(driver) = &mut self.proxies[proxy].etcd else { return };
        let ids: Vec<ActionId> = driver.records.iter().filter(|r| late(r)).map(|(id, ..)| *id).collect();
        driver.records.retain(|record| !late(record));
        ids.into_iter().for_each(|id| self.fail(proxy, id, "not recorded in time"));
    }

    pub fn etcd_tick(&mut self, proxy: usize) {
        let now = self.time(proxy);
        if let Some(driver) = &mut self.proxies[proxy].etcd
            && driver.alarm.is_some_and(|at| at <= now)
        {
            driver.alarm = None;
        }
        self.etcd_go_on(proxy);
    }

    pub fn etcd_look(&mut self, proxy: usize) {
        if let Some(driver) = &mut self.proxies[proxy].etcd {
            driver.rules.look();
        }
        self.etcd_go_on(proxy);
    }

    pub fn etcd_says(&mut self, proxy: usize, turn: u32, answer: Answer) {
        let now = self.time(proxy);
        let from_reply = self.bug == Some(Bug::LeaseFromReply);
        let members = self.setup.members();
        let Some(driver) = self.proxies[proxy].etcd.as_mut().filter(|driver| driver.turn == turn) else { return };
        let Some((request, sent_at)) = driver.waiting.take() else { return };
        let failed = answer == Answer::Failed;
        let read = matches!(answer, Answer::Read(_));
        let sent_at = if from_reply { now } else { sent_at };
        driver.rules.answered(request, answer, driver.at, (sent_at, now));
        if failed {
            driver.at = (driver.at + 1) % members;
        }
        let state = driver.rules.state().clone();
        if read {
            let record = match state {
                State::Held(record, _) => Some(record),
                State::Empty | State::Damaged(_) => None,
            };
            self.recall_with(proxy, record);
        }
        self.etcd_go_on(proxy);
    }
}
