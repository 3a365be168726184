//! What every voter has, node or witness: a postmaster's life, sessions with advisory locks, and what it says of itself.
//!
//! Invariants: an exclusive lock excludes every other; a session that said nothing for the span is ended and its lock
//! freed, by the server's own clock and no earlier; a restart of any kind forgets all locks and changes the incarnation.

use crate::bug::Bug;
use crate::net::{Deed, Msg, Purpose, Side};
use crate::node::{Follows, SYSTEM};
use crate::world::{Event, MS, Nanos, SEC, World, node_name, note};
use pgregent::coordination::voters::core::{Lock, View};
use pgregent::failover::action::ActionId;
use pgregent::failover::event::Outcome;
use pgregent::ids::{Epoch, TimelineId};

/// A session that may hold the lock.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    pub session: u32,
    pub lock: Lock,
    /// When it last said something, by the server's clock.
    heard: Nanos,
    order: bool,
}

#[derive(Debug)]
pub struct Server {
    /// Takes sessions.
    pub up: bool,
    pub starting: bool,
    /// Which life of the postmaster.
    pub run: u32,
    pub incarnation: i64,
    pub holders: Vec<Holder>,
    /// A witness's row.
    pub row: Option<Follows>,
}

impl Server {
    pub fn new(witness: bool) -> Self {
        let row = witness.then(Follows::default);
        Self { up: true, starting: false, run: 0, incarnation: 1, holders: Vec::new(), row }
    }

    fn holder(&mut self, session: u32) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|h| h.session == session)
    }

    fn grants(&self, session: u32, lock: Lock, waits: bool) -> bool {
        let mut others = self.holders.iter().filter(|h| h.session != session);
        match lock {
            Lock::None => true,
            Lock::Shared => others.all(|h| h.lock != Lock::Exclusive),
            Lock::Exclusive => others.all(|h| h.lock == Lock::None || (!waits && h.lock == Lock::Shared)),
        }
    }
}

impl World {
    pub fn server_opened(&mut self, voter: usize, session: u32) {
        if !matches!(self.sessions[session as usize].purpose, Purpose::Locks { .. }) {
            return;
        }
        let heard = self.local(voter);
        self.servers[voter].holders.push(Holder { session, lock: Lock::None, heard, order: false });
        let end = self.real(voter, heard + self.setup.span);
        self.at(end, Event::Idle { voter, session });
    }

    pub fn far_closed(&mut self, session: u32) {
        let voter = self.sessions[session as usize].server;
        self.servers[voter].holders.retain(|h| h.session != session);
        self.drop_running(voter, session);
    }

    /// `idle_session_timeout`.
    pub fn idle(&mut self, voter: usize, session: u32) {
        let (now, span) = (self.local(voter), self.setup.span);
        let Some(holder) = self.servers[voter].holder(session) else { return };
        let end = holder.heard + span;
        if now < end {
            let at = self.real(voter, end);
            return self.at(at, Event::Idle { voter, session });
        }
        note!(self, "{} ends idle session {session} of p{}", self.voter(voter), self.sessions[session as usize].proxy);
        self.close_far(session);
    }

    pub fn voter(&self, voter: usize) -> String {
        crate::world::voter_name(&self.setup, voter)
    }

    pub fn serve(&mut self, session: u32, msg: Msg) {
        let voter = self.sessions[session as usize].server;
        match msg {
            Msg::Ask { lock, order } => self.serve_ask(voter, session, lock, order),
            Msg::Act { id, deed } => self.serve_deed(voter, session, id, deed),
            Msg::Write { write } => self.serve_write(voter, session, write),
            Msg::Answer { .. } | Msg::Acted { .. } | Msg::Committed { .. } | Msg::NotWritten { .. } | Msg::Fin => {}
        }
    }

    fn serve_ask(&mut self, voter: usize, session: u32, lock: Lock, order: bool) {
        let heard = self.local(voter);
        let waits = self.bug != Some(Bug::NoWait);
        let server = &mut self.servers[voter];
        let Some(held) = server.holder(session).map(|h| h.lock) else { return };
        // To Exclusive: free the shared lock, then try; to Shared: try, then free the exclusive one.
        let granted = server.grants(session, lock, waits);
        let lock = match (lock, granted) {
            (_, true) => lock,
            (Lock::Exclusive, false) if held == Lock::Exclusive => Lock::Exclusive,
            (_, false) => Lock::None,
        };
        if let Some(holder) = server.holder(session) {
            (holder.lock, holder.heard, holder.order) = (lock, heard, order);
        }
        if held != lock {
            let proxy = self.sessions[session as usize].proxy;
            note!(self, "{} gives p{proxy} {lock:?} on session {session}", self.voter(voter));
        }
        let view = self.view(voter, session);
        self.send(session, false, Msg::Answer { lock, view });
    }

    /// What the voter says of itself.
    fn view(&self, voter: usize, session: u32) -> View {
        let server = &self.servers[voter];
        let ordered = server.holders.iter().any(|h| h.session != session && h.order);
        let (follows, timeline, system_id) = match server.row {
            Some(row) => (row, 0, None),
            None => {
                let node = &self.nodes[voter];
                let epoch = self.node_epoch(voter);
                let own =
                    if node.primary { Follows { to: Some(voter), left: None, ..node.conninfo } } else { node.conninfo };
                (Follows { epoch, ..own }, self.shown_timeline(voter), Some(SYSTEM))
            }
        };
        let named = |node: usize| node_name(node).into();
        let ignored = self.bug == Some(Bug::IgnoreIncarnation);
        View {
            allegiance: follows.to.map(named),
            epoch: Epoch(follows.epoch),
            timeline: TimelineId(timeline),
            least_timeline: TimelineId(follows.least),
            left: follows.left.map(named),
            system_id,
            incarnation: if ignored { 1 } else { server.incarnation },
            ordered,
            pending: voter < self.nodes.len() && self.pending(voter),
            follows: !self.nodes.get(voter).is_some_and(|node| node.primary),
        }
    }

    /// A standby that names itself was chosen and may be promoted at any time.
    pub fn pending(&self, node: usize) -> bool {
        let named = !self.nodes[node].primary && self.nodes[node].conninfo.to == Some(node);
        named && self.bug != Some(Bug::ForgetPending)
    }

    pub fn node_epoch(&self, node: usize) -> u64 {
        let timeline = u64::from(self.shown_timeline(node));
        if self.bug == Some(Bug::TimelineOnly) { timeline } else { self.nodes[node].conninfo.epoch.max(timeline) }
    }

    fn serve_deed(&mut self, voter: usize, session: u32, id: ActionId, deed: Deed) {
        let heard = self.local(voter);
        let errand = self.sessions[session as usize].purpose == Purpose::Errand;
        let held = self.servers[voter].holder(session).map(|holder| {
            holder.heard = heard;
            holder.lock
        });
        if held.is_none() && !errand {
            return;
        }
        let needed =
            if matches!(deed, Deed::Repoint { .. } | Deed::Reconnect) { Lock::Shared } else { Lock::Exclusive };
        let allowed = errand || held >= Some(needed) || self.bug == Some(Bug::Unlocked);
        let proxy = self.sessions[session as usize].proxy;
        note!(self, "{} is told by p{proxy}: {deed:?}{}", self.voter(voter), if allowed { "" } else { " (no lock)" });
        if !allowed {
            return self.acted(session, id, Outcome::Failed("the lock is lost".to_owned()));
        }
        match deed {
            Deed::Record { to, epoch, least } => {
                let outcome = self.record_on(voter, to, (epoch, least));
                self.acted(session, id, outcome);
            }
            Deed::Detach => self.detach_node(voter, session, id),
            Deed::Promote { epoch } => self.promote_node(voter, session, id, epoch),
            Deed::Repoint { to, epoch, least } => self.repoint_node(voter, session, id, to, (epoch, least)),
            Deed::Reconnect => self.reconnect_node(voter, session, id),
            Deed::Names(names) => self.name_sync(voter, session, id, &names),
            Deed::FenceSql { on } => self.fence_sql(voter, session, id, on),
        }
    }

    pub fn acted(&mut self, session: u32, id: ActionId, outcome: Outcome) {
        if self.sessions[session as usize].far == Side::Open {
            self.send(session, false, Msg::Acted { id, outcome });
        }
    }

    /// Writes down, durably, whom this voter follows.
    fn record_on(&mut self, voter: usize, to: usize, (epoch, least): (u64, u32)) -> Outcome {
        let newer = |has: u64| Outcome::Failed(format!("epoch {has} is recorded here"));
        let refuses = |own: Follows| own.epoch > epoch || (own.epoch == epoch && own.to != Some(to));
        if let Some(row) = self.servers[voter].row {
            if refuses(row) {
                return newer(row.epoch);
            }
            self.servers[voter].row = Some(Follows { to: Some(to), epoch, least, left: None });
            return Outcome::Done;
        }
        let own = self.nodes[voter].conninfo;
        if self.nodes[voter].primary {
            if voter != to {
                return Outcome::Failed("it is out of recovery".to_owned());
            }
            // It follows itself anyway; the epoch is kept here for whoever is made from it.
            self.nodes[voter].conninfo = own.now(Some(to), epoch.max(own.epoch), least);
            return Outcome::Done;
        }
        if voter != to && self.pending(voter) {
            return Outcome::Failed("it was chosen and may still be promoted".to_owned());
        }
        if refuses(own) {
            return newer(own.epoch);
        }
        self.set_conninfo(voter, own.now(Some(to), epoch, least));
        Outcome::Done
    }

    /// The postmaster is gone, and with it every session, except of backends that are busy and do not notice.
    pub fn stop_server(&mut self, voter: usize, orphans: bool) {
        let server = &mut self.servers[voter];
        (server.up, server.starting) = (false, false);
        server.run += 1;
        self.forget_deferred(voter);
        let busy: Vec<u32> = if orphans && voter < self.nodes.len() {
            self.nodes[voter].running.iter().map(|(session, _)| *session).collect()
        } else {
            Vec::new()
        };
        let open = |s: &crate::net::Session| s.server == voter && s.far == Side::Open;
        let ending: Vec<u32> = (0u32..).zip(&self.sessions).filter(|(_, s)| open(s)).map(|(n, _)| n).collect();
        for session in ending.into_iter().filter(|n| !busy.contains(n)) {
            self.close_far(session);
        }
        if voter < self.nodes.len() {
            self.stop_node(voter, orphans && !busy.is_empty());
        }
        self.tell_probes(voter);
    }

    pub fn start_server(&mut self, voter: usize, run: u32) {
        if self.servers[voter].run != run || self.servers[voter].up || self.hosts[voter].off {
            return;
        }
        if voter < self.nodes.len() && self.now < self.nodes[voter].orphans_until {
            // Shared memory is still in use.
            let at = self.nodes[voter].orphans_until + MS;
            return self.at(at, Event::Start { voter, run });
        }
        self.servers[voter].starting = true;
        let most = if self.random.chance(400) { 200 * MS } else { 2 * SEC };
        let span = self.random.between(50 * MS, most);
        self.later(span, Event::Started { voter, run });
    }

    pub fn started(&mut self, voter: usize, run: u32) {
        if self.servers[voter].run != run || self.hosts[voter].off {
            return;
        }
        let incarnation = i64::try_from(self.now).unwrap_or(i64::MAX);
        let server = &mut self.servers[voter];
        (server.up, server.starting, server.incarnation) = (true, false, incarnation);
        note!(self, "{} is up", self.voter(voter));
        if voter < self.nodes.len() {
            self.start_node(voter);
        }
    }
}
