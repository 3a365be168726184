//! The network: links between hosts in each direction, and sessions on them that keep the order of what is sent.
//!
//! A message on a cut link is sent again and again, as TCP does, until the link is back or the sender gives up; so
//! sessions outlive short cuts, and what was sent long ago may still arrive. Absent on purpose: duplication, which TCP
//! hides.

use crate::world::{Event, MS, Nanos, SEC, US, World};
use pgregent::coordination::voters::core::{Lock, View};
use pgregent::failover::action::ActionId;
use pgregent::failover::event::Outcome;
use std::collections::VecDeque;

/// One direction between two hosts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// How many faults cut it.
    pub cut: u32,
    /// Lost, of a thousand.
    pub loss: u64,
    /// Most that is added to the delay.
    pub slow: Nanos,
}

/// What a voter is asked to do beyond locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    Detach,
    Promote {
        epoch: u64,
    },
    Repoint {
        to: usize,
        epoch: u64,
        least: u32,
    },
    Reconnect,
    Record {
        to: usize,
        epoch: u64,
        least: u32,
    },
    /// `synchronous_standby_names`.
    Names(String),
    /// Read-only, or no longer.
    FenceSql {
        on: bool,
    },
}

#[derive(Clone, Debug)]
pub enum Msg {
    Ask {
        lock: Lock,
        order: bool,
    },
    Answer {
        lock: Lock,
        view: View,
    },
    Act {
        id: ActionId,
        deed: Deed,
    },
    Acted {
        id: ActionId,
        outcome: Outcome,
    },
    Write {
        write: usize,
    },
    /// `warned`: cancelled while it waited for standbys.
    Committed {
        write: usize,
        warned: bool,
    },
    NotWritten {
        write: usize,
    },
    Fin,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Locks {
        voter: usize,
    },
    /// One order to a node, without its lock.
    Errand,
    Client {
        client: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Opening,
    Open,
    Closed,
}

#[derive(Debug, Default)]
struct Pipe {
    next: u32,
    expected: u32,
    waiting: VecDeque<(u32, Msg)>,
    last_arrival: Nanos,
    tries: u32,
    retrying: bool,
}

/// A connection from a proxy to a voter. Numbers are never reused.
#[derive(Debug)]
pub struct Session {
    pub proxy: usize,
    /// Which life of the proxy.
    pub run: u32,
    pub server: usize,
    pub purpose: Purpose,
    pub near: Side,
    pub far: Side,
    up: Pipe,
    down: Pipe,
}

/// First pause before a message is sent again, doubled up to sixteen times as much.
const RESEND: Nanos = 200 * MS;
/// After so many times the sender ends the session.
const RESENDS_MAX: u32 = 8;
const OPEN_TIMEOUT: Nanos = SEC;

impl World {
    pub fn up(&self, from: usize, to: usize) -> bool {
        self.links[from][to].cut == 0 && !self.hosts[from].off && !self.hosts[to].off
    }

    fn delay(&mut self, from: usize, to: usize) -> Nanos {
        let usual = if self.random.chance(950) { 2 * MS } else { 50 * MS };
        let slow = self.links[from][to].slow;
        self.random.between(100 * US, usual) + self.random.between(0, slow)
    }

    fn passes(&mut self, from: usize, to: usize) -> bool {
        let loss = self.links[from][to].loss;
        self.up(from, to) && !(loss > 0 && self.random.chance(loss))
    }

    /// Sends what is not sent again when it is lost; says whether it left.
    pub fn datagram(&mut self, from: usize, to: usize, event: Event) -> bool {
        if !self.passes(from, to) {
            return false;
        }
        let at = self.now + self.delay(from, to);
        self.push(at, Some((from, to)), event);
        true
    }

    pub fn open(&mut self, proxy: usize, server: usize, purpose: Purpose) -> u32 {
        let number = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        let run = self.proxies[proxy].run;
        let (near, far) = (Side::Opening, Side::Closed);
        let (up, down) = (Pipe::default(), Pipe::default());
        self.sessions.push(Session { proxy, run, server, purpose, near, far, up, down });
        let host = self.proxy_host(proxy);
        self.datagram(host, server, Event::Knock { session: number });
        self.later(OPEN_TIMEOUT, Event::OpenTimeout { session: number });
        number
    }

    pub fn knock(&mut self, number: u32) {
        let session = &self.sessions[number as usize];
        let (server, host) = (session.server, self.proxy_host(session.proxy));
        let welcome = self.servers[server].up;
        if welcome {
            self.sessions[number as usize].far = Side::Open;
            self.server_opened(server, number);
        }
        self.datagram(server, host, Event::Knocked { session: number, welcome });
    }

    pub fn knocked(&mut self, number: u32, welcome: bool) {
        let session = &mut self.sessions[number as usize];
        if session.near != Side::Opening {
            return;
        }
        session.near = if welcome { Side::Open } else { Side::Closed };
        if welcome { self.near_opened(number) } else { self.near_closed(number) }
    }

    pub fn open_timeout(&mut self, number: u32) {
        if self.sessions[number as usize].near == Side::Opening {
            self.sessions[number as usize].near = Side::Closed;
            self.near_closed(number);
        }
    }

    fn ends(&self, number: u32, up: bool) -> (usize, usize) {
        let session = &self.sessions[number as usize];
        let (near, far) = (self.proxy_host(session.proxy), session.server);
        if up { (near, far) } else { (far, near) }
    }

    fn pipe(&mut self, number: u32, up: bool) -> &mut Pipe {
        let session = &mut self.sessions[number as usize];
        if up { &mut session.up } else { &mut session.down }
    }

    pub fn send(&mut self, number: u32, up: bool, msg: Msg) {
        let pipe = self.pipe(number, up);
        let seq = pipe.next;
        pipe.next += 1;
        if pipe.waiting.is_empty() { self.transmit(number, up, seq, msg) } else { pipe.waiting.push_back((seq, msg)) }
    }

    fn transmit(&mut self, number: u32, up: bool, seq: u32, msg: Msg) {
        let (from, to) = self.ends(number, up);
        if !self.passes(from, to) {
            return self.hold_back(number, up, seq, msg);
        }
        let at = self.now + self.delay(from, to);
        let pipe = self.pipe(number, up);
        pipe.last_arrival = at.max(pipe.last_arrival + 1);
        let at = pipe.last_arrival;
        self.push(at, None, Event::Arrive { session: number, up, seq, msg });
    }

    fn hold_back(&mut self, number: u32, up: bool, seq: u32, msg: Msg) {
        let pipe = self.pipe(number, up);
        let place = pipe.waiting.iter().take_while(|(other, _)| *other < seq).count();
        pipe.waiting.insert(place, (seq, msg));
        if !pipe.retrying {
            pipe.retrying = true;
            let pause = RESEND << pipe.tries.min(4);
            self.later(pause, Event::Retransmit { session: number, up });
        }
    }

    pub fn retransmit(&mut self, number: u32, up: bool) {
        let (from, to) = self.ends(number, up);
        let host_off = self.hosts[from].off;
        let up_now = self.up(from, to);
        let pipe = self.pipe(number, up);
        pipe.retrying = false;
        pipe.tries += 1;
        if up_now {
            for (seq, msg) in std::mem::take(&mut pipe.waiting) {
                self.transmit(number, up, seq, msg);
            }
        } else if pipe.tries > RESENDS_MAX || host_off {
            pipe.waiting.clear();
            self.reset(number, !up);
        } else if !pipe.waiting.is_empty() {
            pipe.retrying = true;
            let pause = RESEND << pipe.tries.min(4);
            self.later(pause, Event::Retransmit { session: number, up });
        }
    }

    pub fn arrive(&mut self, number: u32, up: bool, seq: u32, msg: Msg) {
        let session = &self.sessions[number as usize];
        let side = if up { session.far } else { session.near };
        let pipe = self.pipe(number, up);
        pipe.expected = seq + 1;
        pipe.tries = 0;
        match (side, msg) {
            (Side::Closed, Msg::Fin) => {}
            (Side::Closed, _) => {
                let (from, to) = self.ends(number, !up);
                self.datagram(from, to, Event::Reset { session: number, up: !up });
            }
            (_, Msg::Fin) => self.reset(number, up),
            (_, msg) if up => self.serve(number, msg),
            (_, msg) => self.near_message(number, msg),
        }
    }

    /// Whether what arrives is next in order and its link still stands; else it is sent again.
    pub fn arrives(&mut self, number: u32, up: bool, seq: u32, msg: Msg) -> Option<Msg> {
        let (from, to) = self.ends(number, up);
        let stands = self.up(from, to);
        let session = &self.sessions[number as usize];
        let closed = (if up { session.far } else { session.near }) == Side::Closed;
        // Nobody is there to put things in order.
        if stands && (closed || self.pipe(number, up).expected == seq) {
            return Some(msg);
        }
        if closed || self.pipe(number, up).expected <= seq {
            self.hold_back(number, up, seq, msg);
        }
        None
    }

    /// The side that `up` leads to learns that the session is over.
    pub fn reset(&mut self, number: u32, up: bool) {
        let session = &mut self.sessions[number as usize];
        if up && session.far != Side::Closed {
            session.far = Side::Closed;
            self.far_closed(number);
        } else if !up && session.near != Side::Closed {
            session.near = Side::Closed;
            self.near_closed(number);
        }
    }

    /// The proxy ends the session.
    pub fn close_near(&mut self, number: u32) {
        let session = &mut self.sessions[number as usize];
        let open = session.near == Side::Open;
        session.near = Side::Closed;
        if open {
            self.send(number, true, Msg::Fin);
        }
    }

    /// The server ends the session; a host without power says nothing.
    pub fn close_far(&mut self, number: u32) {
        let session = &mut self.sessions[number as usize];
        if session.far != Side::Open {
            return;
        }
        session.far = Side::Closed;
        let server = session.server;
        self.far_closed(number);
        if !self.hosts[server].off {
            self.send(number, false, Msg::Fin);
        }
    }

    /// What is lost with a datagram, and who has to notice.
    pub fn lost_on_the_way(&mut self, event: Event) {
        if let Event::Stream { from, to, line, .. } | Event::Flushed { from, to, line, .. } = event {
            self.later(RESEND, Event::Restream { from, to, line });
        }
    }
}
