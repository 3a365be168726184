//! PostgreSQL's data: WAL, streaming, recovery, promotion (commits: `commit`).
//!
//! As in PostgreSQL: positions and timelines are numbers, and only numbers are compared when a standby connects; the
//! new timeline of a promotion is one more than the node's own, whoever else has taken that number; a node restarts as
//! what it was; a receiver notices the end of a process at once and a cut link late. Absent on purpose: pages, slots,
//! archives.

use crate::bug::Bug;
use crate::commit::{Names, Waiter};
use crate::net::{Purpose, Side};
use crate::setup::Store;
use crate::wal::{Tip, Wal};
use crate::world::{Event, MS, Nanos, SEC, Wanted, World, duration, node_name, note};
use pgregent::failover::action::ActionId;
use pgregent::failover::event::{Outcome, Record};
use pgregent::failover::policy::RECONNECT_SPAN;
use pgregent::ids::{Lsn, SystemId, TimelineId};
use pgregent::topology::{NodeReport, ReadOnly, ReceiverView};

pub const SYSTEM: SystemId = SystemId(7000);
/// Pause between two signs of life on a stream without data.
const KEEPALIVE: Nanos = SEC;
/// `wal_receiver_status_interval`.
const STATUS: Nanos = 10 * SEC;
/// How long a repoint is waited for.
const REPOINT_LIMIT: Nanos = 10 * SEC;

#[derive(Clone, Copy, Debug)]
struct Receiver {
    from: usize,
    heard: Nanos,
}

#[derive(Clone, Copy, Debug)]
struct Sender {
    line: u32,
    busy: bool,
    sent: Tip,
    acked: Tip,
}

/// What is written down of whom a voter follows: a node in `primary_conninfo`, a witness in its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Follows {
    pub to: Option<usize>,
    pub epoch: u64,
    /// The timeline that the primary of that epoch has at least.
    pub least: u32,
    /// Whom it followed before it was detached.
    pub left: Option<usize>,
}

impl Follows {
    /// To follow `to` from now on; what is known of the epoch is kept.
    pub fn now(self, to: Option<usize>, epoch: u64, least: u32) -> Self {
        let known = if self.epoch == epoch { self.least } else { 0 };
        Self { to, epoch, least: least.max(known), left: None }
    }

    /// Nobody, and everything else is kept.
    pub fn nobody(self) -> Self {
        Self { to: None, left: self.to.or(self.left), ..self }
    }
}

#[derive(Debug)]
pub struct Node {
    /// Out of recovery.
    pub primary: bool,
    pub promoting: Option<u64>,
    /// Everything flushed.
    pub tip: Tip,
    pub replayed: Tip,
    /// Ends of timelines before the present one.
    pub history: Vec<(u32, u64)>,
    timeline: u32,
    /// What the control file says until then.
    control: (u32, Nanos),
    pub conninfo: Follows,
    /// Changes with each change of `primary_conninfo`.
    wire: u32,
    /// Changes with each attempt to stream.
    line: u32,
    receiver: Option<Receiver>,
    senders: Vec<Option<Sender>>,
    pub waiters: Vec<Waiter>,
    /// Whom commits wait for, and whom the configuration says they are to.
    pub names: Names,
    pub written_names: Names,
    /// `default_transaction_read_only`.
    pub read_only: bool,
    /// Statements that are being executed.
    pub running: Vec<(u32, usize)>,
    pub orphans_until: Nanos,
    orphan_run: u32,
    pub replay_paused: bool,
    pub slow_promotion: Nanos,
    /// Replays WAL that its upstream never had under that number.
    pub diverged: bool,
    /// What it said when it was last detached.
    pub still: Option<u64>,
}

impl Node {
    pub fn new(index: usize, nodes: usize) -> Self {
        Self {
            primary: index == 0,
            promoting: None,
            tip: Wal::ROOT,
            replayed: Wal::ROOT,
            history: Vec::new(),
            timeline: 1,
            control: (1, 0),
            conninfo: Follows { to: (index > 0).then_some(0), ..Follows::default() },
            wire: 0,
            line: 0,
            receiver: None,
            senders: vec![None; nodes],
            waiters: Vec::new(),
            names: None,
            written_names: None,
            read_only: false,
            running: Vec::new(),
            orphans_until: 0,
            orphan_run: 0,
            replay_paused: false,
            slow_promotion: 0,
            diverged: false,
            still: None,
        }
    }

    fn next_wire(&mut self) -> u32 {
        self.wire += 1;
        self.wire
    }

    /// Whether a standby may stream from here, as far as numbers say.
    fn serves(&self, timeline: u32, lsn: u64, own: u64) -> bool {
        if timeline == self.timeline {
            return lsn <= own;
        }
        self.history.iter().any(|(past, end)| *past == timeline && lsn <= *end)
    }
}

impl World {
    /// `pg_control_checkpoint()` is late; a receiver knows the timeline.
    pub fn shown_timeline(&self, node: usize) -> u32 {
        let node = &self.nodes[node];
        if !node.primary && node.receiver.is_none() && self.now < node.control.1 {
            node.control.0
        } else {
            node.timeline
        }
    }

    fn enter_timeline(&mut self, node: usize, timeline: u32) {
        let late = self.now + self.random.between(0, 5 * SEC);
        let node = &mut self.nodes[node];
        node.control = (node.timeline, late);
        node.timeline = timeline;
    }

    pub fn report(&self, node: usize, sent_at: pgregent::clock::Time) -> NodeReport {
        let data = &self.nodes[node];
        let receiver = data.receiver.filter(|_| !data.primary).map(|r| ReceiverView {
            streaming: true,
            upstream: format!("{}:5432", node_name(r.from)),
            last_message_age: duration(self.now - r.heard.min(self.now)),
        });
        NodeReport {
            sent_at,
            system_id: SYSTEM,
            in_recovery: !data.primary,
            timeline: TimelineId(self.reported_timeline(node)),
            flush_lsn: Lsn(self.wal.lsn(data.tip)),
            replay_lsn: Lsn(self.wal.lsn(data.replayed)),
            replay_paused: data.replay_paused,
            receiver,
            incarnation: self.servers[node].incarnation,
            redo_lsn: Lsn(0),
            version_num: 150_000,
            sync: Some(self.sync_view(node)),
            ancestry: if self.blind(node) { Default::default() } else { self.ancestry(node) },
            read_only: if data.read_only { ReadOnly::Fenced } else { ReadOnly::No },
            ..NodeReport::default()
        }
    }

    fn reported_timeline(&self, node: usize) -> u32 {
        let newest = self.nodes.iter().map(|node| node.timeline).max().filter(|_| self.blind(node));
        newest.unwrap_or_else(|| self.shown_timeline(node))
    }

    fn blind(&self, node: usize) -> bool {
        self.bug == Some(Bug::BlindTimeline) && !self.nodes[node].primary
    }

    fn new_line(&mut self, node: usize) -> u32 {
        let data = &mut self.nodes[node];
        data.receiver = None;
        data.line += 1;
        data.line
    }

    pub fn set_conninfo(&mut self, node: usize, conninfo: Follows) {
        let run = self.servers[node].run;
        let span = self.random.between(5 * MS, 30 * MS);
        let data = &mut self.nodes[node];
        if data.conninfo == conninfo {
            return;
        }
        data.conninfo = conninfo;
        let Follows { to, epoch, least, .. } = conninfo;
        if to.is_some_and(|to| to != node) {
            data.still = None;
        }
        let wire = data.next_wire();
        note!(self, "n{node} is to stream from {to:?}, epoch {epoch}, timeline {least}");
        self.later(span, Event::Rewire { node, run, wire });
    }

    /// The reload has reached the receiver.
    pub fn rewire(&mut self, node: usize, run: u32, wire: u32) {
        if self.servers[node].run != run || self.nodes[node].wire != wire || self.nodes[node].primary {
            return;
        }
        let line = self.new_line(node);
        let span = if self.random.chance(800) { self.random.between(10 * MS, 50 * MS) } else { self.setup.retry };
        self.later(span, Event::ReceiverTry { node, line });
    }

    pub fn receiver_try(&mut self, node: usize, line: u32) {
        let data = &self.nodes[node];
        if data.line != line || data.primary || data.receiver.is_some() || !self.servers[node].up {
            return;
        }
        let from = data.conninfo.to.filter(|from| *from != node && data.promoting.is_none());
        let Some(from) = from else { return };
        self.datagram(node, from, Event::Attach { from, to: node, line });
        self.later(self.setup.retry, Event::ReceiverTry { node, line });
    }

    pub fn attach(&mut self, from: usize, to: usize, line: u32) {
        let (timeline, lsn) = (self.nodes[to].timeline, self.wal.lsn(self.nodes[to].tip));
        let source = &self.nodes[from];
        let own = self.wal.lsn(source.tip);
        if !self.servers[from].up || !source.serves(timeline, lsn, own) {
            return;
        }
        let start = if self.wal.holds(source.tip, self.nodes[to].tip) { self.nodes[to].tip } else { Wal::ROOT };
        self.nodes[from].senders[to] = Some(Sender { line, busy: true, sent: start, acked: start });
        if !self.datagram(from, to, Event::Attached { from, to, line }) {
            self.nodes[from].senders[to] = None;
        }
    }

    pub fn attached(&mut self, from: usize, to: usize, line: u32) {
        let now = self.now;
        let data = &mut self.nodes[to];
        if data.line != line || data.primary || data.receiver.is_some() || !self.servers[to].up {
            return;
        }
        data.receiver = Some(Receiver { from, heard: now });
        note!(self, "n{to} streams from n{from}");
        self.later(self.setup.receiver_timeout.min(STATUS), Event::ReceiverTimeout { node: to, line });
        let tip = self.nodes[to].tip;
        if !self.datagram(to, from, Event::Flushed { from, to, line, tip }) {
            self.later(200 * MS, Event::Restream { from, to, line });
        }
        self.later(KEEPALIVE, Event::Keepalive { from, to, line });
    }

    fn sender(&mut self, from: usize, to: usize, line: u32) -> Option<&mut Sender> {
        self.nodes[from].senders[to].as_mut().filter(|s| s.line == line)
    }

    /// Sends what is new to everybody who streams from here.
    fn push_streams(&mut self, from: usize) {
        for to in 0..self.nodes.len() {
            if let Some(sender) = self.nodes[from].senders[to]
                && !sender.busy
                && sender.sent != self.nodes[from].tip
            {
                self.stream_to(from, to, sender.line);
            }
        }
    }

    fn stream_to(&mut self, from: usize, to: usize, line: u32) {
        let tip = self.nodes[from].tip;
        let Some(sender) = self.sender(from, to, line) else { return };
        (sender.busy, sender.sent) = (true, tip);
        if !self.datagram(from, to, Event::Stream { from, to, line, tip }) {
            self.later(200 * MS, Event::Restream { from, to, line });
        }
    }

    pub fn restream(&mut self, from: usize, to: usize, line: u32) {
        if self.servers[from].up && self.nodes[to].line == line {
            self.stream_to(from, to, line);
        }
    }

    pub fn keepalive(&mut self, from: usize, to: usize, line: u32) {
        let Some(sender) = self.sender(from, to, line) else { return };
        if !sender.busy {
            self.stream_to(from, to, line);
        }
        if self.nodes[to].line == line {
            self.later(KEEPALIVE, Event::Keepalive { from, to, line });
        }
    }

    pub fn streamed(&mut self, from: usize, to: usize, line: u32, tip: Tip) {
        let now = self.now;
        let data = &mut self.nodes[to];
        let Some(receiver) = data.receiver.as_mut().filter(|r| r.from == from) else { return };
        if data.line != line || !self.servers[to].up {
            return;
        }
        receiver.heard = now;
        if !self.wal.holds(tip, self.nodes[to].tip) && self.wal.lsn(tip) >= self.wal.lsn(self.nodes[to].tip) {
            self.nodes[to].diverged = true;
        }
        if self.wal.lsn(tip) > self.wal.lsn(self.nodes[to].tip) {
            self.receive(from, to, tip);
        }
        let tip = self.nodes[to].tip;
        if !self.datagram(to, from, Event::Flushed { from, to, line, tip }) {
            self.later(200 * MS, Event::Restream { from, to, line });
        }
        self.push_streams(to);
    }

    fn receive(&mut self, from: usize, to: usize, tip: Tip) {
        let timeline = self.wal.timeline(tip);
        self.nodes[to].tip = tip;
        if !self.nodes[to].replay_paused {
            self.nodes[to].replayed = tip;
        }
        let before = self.nodes[to].timeline;
        if before != timeline {
            self.enter_timeline(to, timeline);
            // Files that it has are kept.
            let new = |(past, _): &&(u32, u64)| (before..timeline).contains(past);
            let new: Vec<(u32, u64)> = self.nodes[from].history.iter().filter(new).copied().collect();
            self.nodes[to].history.retain(|(past, _)| *past < before);
            self.nodes[to].history.extend(new);
        }
    }

    pub fn flushed(&mut self, from: usize, to: usize, line: u32, tip: Tip) {
        let current = self.nodes[from].tip;
        let Some(sender) = self.sender(from, to, line) else { return };
        (sender.busy, sender.acked) = (false, tip);
        let behind = sender.sent != current;
        self.release_waiters(from);
        if behind {
            self.stream_to(from, to, line);
        }
    }

    pub fn receiver_eof(&mut self, node: usize, line: u32) {
        if self.nodes[node].line == line && self.nodes[node].receiver.is_some() {
            let line = self.new_line(node);
            self.later(self.setup.retry, Event::ReceiverTry { node, line });
        }
    }

    pub fn receiver_timeout(&mut self, node: usize, line: u32) {
        let Some(receiver) = self.nodes[node].receiver.filter(|_| self.nodes[node].line == line) else { return };
        let end = receiver.heard + self.setup.receiver_timeout;
        // Whoever says how far it is to a host that knows nothing of the stream hears so.
        let gone = self.up(node, receiver.from) && self.sender(receiver.from, node, line).is_none();
        if self.now >= end || gone {
            self.receiver_eof(node, line);
        } else {
            self.at(end.min(self.now + STATUS), Event::ReceiverTimeout { node, line });
        }
    }

    /// Whether a backend of this life of the postmaster still works.
    pub fn works(&self, node: usize, run: u32) -> bool {
        let data = &self.nodes[node];
        let orphan = run == data.orphan_run && self.now < data.orphans_until;
        (self.servers[node].up && self.servers[node].run == run) || orphan
    }

    /// By node: how far what streams from here has acknowledged.
    pub fn acked(&self, node: usize) -> Vec<Option<u64>> {
        self.nodes[node].senders.iter().map(|sender| sender.map(|s| self.wal.lsn(s.acked))).collect()
    }

    pub fn append(&mut self, node: usize) -> Tip {
        let record = self.wal.append(self.nodes[node].tip, self.nodes[node].timeline);
        self.nodes[node].tip = record;
        self.nodes[node].replayed = record;
        if self.servers[node].up {
            self.push_streams(node);
        }
        record
    }

    pub fn detach_node(&mut self, node: usize, session: u32, id: ActionId) {
        if self.nodes[node].primary {
            return self.acted(session, id, Outcome::Failed("not in recovery".to_owned()));
        }
        if self.bug != Some(Bug::NoFreeze) && !self.pending(node) {
            // Voters keep the marks of a string that leads nowhere.
            let own = self.nodes[node].conninfo;
            let marked = self.setup.store == Store::Voters && own.epoch > 0;
            self.set_conninfo(node, if marked { own.nobody() } else { Follows::default() });
        }
        let run = self.servers[node].run;
        let span = self.random.between(35 * MS, 60 * MS);
        self.later(span, Event::DeedEnd { node, run, session, id, detach: true });
    }

    pub fn deed_end(&mut self, node: usize, run: u32, session: u32, id: ActionId, detach: bool) {
        if self.servers[node].run != run {
            return;
        }
        let (flushed, replayed) = (self.nodes[node].tip, self.nodes[node].replayed);
        if detach {
            self.nodes[node].still = Some(self.wal.lsn(flushed));
        }
        let outcome = if detach {
            let (flush_lsn, replay_lsn) = (Lsn(self.wal.lsn(flushed)), Lsn(self.wal.lsn(replayed)));
            Outcome::Detached { flush_lsn, replay_lsn }
        } else {
            Outcome::Done
        };
        self.acted(session, id, outcome);
    }

    pub fn repoint_node(&mut self, node: usize, session: u32, id: ActionId, to: usize, (epoch, least): (u64, u32)) {
        if self.nodes[node].primary {
            return self.acted(session, id, Outcome::Failed("not in recovery".to_owned()));
        }
        let voters = self.setup.store == Store::Voters;
        if voters && self.pending(node) {
            return self.acted(session, id, Outcome::Failed("it was chosen and may still be promoted".to_owned()));
        }
        if voters && self.nodes[node].conninfo.epoch > epoch {
            return self.acted(session, id, Outcome::Failed("a higher epoch is recorded there".to_owned()));
        }
        let own = self.nodes[node].conninfo;
        self.set_conninfo(node, own.now(Some(to), epoch, least));
        let (run, until) = (self.servers[node].run, self.now + REPOINT_LIMIT);
        let want = Wanted { from: to, after: None };
        self.later(60 * MS, Event::Streaming { node, run, session, id, want, until });
    }

    /// The receiver connects anew to the same upstream.
    pub fn reconnect_node(&mut self, node: usize, session: u32, id: ActionId) {
        let data = &self.nodes[node];
        let Some(from) = data.conninfo.to.filter(|_| data.receiver.is_some() && !data.primary) else {
            return self.acted(session, id, Outcome::Failed("not streaming".to_owned()));
        };
        let (run, line) = (self.servers[node].run, data.line);
        let until = self.now + u64::try_from(RECONNECT_SPAN.as_nanos()).unwrap_or(SEC);
        let span = self.random.between(5 * MS, 30 * MS);
        let wire = self.nodes[node].next_wire();
        self.later(span, Event::Rewire { node, run, wire });
        let want = Wanted { from, after: Some(line) };
        self.later(60 * MS, Event::Streaming { node, run, session, id, want, until });
    }

    pub fn streaming(&mut self, node: usize, run: u32, session: u32, (id, want): (ActionId, Wanted), until: Nanos) {
        if self.servers[node].run != run {
            return;
        }
        let data = &self.nodes[node];
        let newer = want.after.is_none_or(|line| data.line > line);
        if newer && data.receiver.is_some_and(|r| r.from == want.from) {
            self.acted(session, id, Outcome::Done);
        } else if self.now >= until {
            self.acted(session, id, Outcome::Failed("it does not stream".to_owned()));
        } else {
            self.later(100 * MS, Event::Streaming { node, run, session, id, want, until });
        }
    }

    pub fn promote_node(&mut self, node: usize, session: u32, id: ActionId, epoch: u64) {
        let run = self.servers[node].run;
        if self.nodes[node].primary {
            return self.acted(session, id, Outcome::Done);
        }
        let span = self.random.between(50 * MS, 300 * MS) + self.nodes[node].slow_promotion;
        self.later(span + 10 * MS, Event::DeedEnd { node, run, session, id, detach: false });
        if let Some(begun) = self.nodes[node].promoting {
            self.nodes[node].promoting = Some(begun.max(epoch));
            self.promotion_executed(node, epoch);
        } else {
            self.nodes[node].promoting = Some(epoch);
            self.nodes[node].replay_paused = false;
            self.new_line(node);
            self.promotion_executed(node, epoch);
            self.later(span, Event::Promoted { node, run });
        }
    }

    pub fn promoted(&mut self, node: usize, run: u32) {
        let Some(epoch) = self.nodes[node].promoting.filter(|_| self.servers[node].run == run) else { return };
        let lsn = self.wal.lsn(self.nodes[node].tip);
        let (old, new) = (self.nodes[node].timeline, self.nodes[node].timeline + 1);
        let data = &mut self.nodes[node];
        data.promoting = None;
        data.primary = true;
        data.history.push((old, lsn));
        (data.timeline, data.control) = (new, (old, 0));
        let first = self.append(node);
        // It may have been chosen again before an order of long ago takes effect.
        let epoch = epoch.max(self.recorded_epoch(node));
        note!(self, "n{node} is promoted to timeline {new} at {lsn}, epoch {epoch}");
        self.promotion_done(first, epoch);
    }

    /// The epoch in which this node is recorded as primary now, if it is.
    fn recorded_epoch(&self, node: usize) -> u64 {
        let names = |record: &Record| record.primary == node_name(node);
        match self.setup.store {
            Store::Voters => {
                Some(self.nodes[node].conninfo).filter(|own| own.to == Some(node)).map_or(0, |own| own.epoch)
            }
            Store::Etcd => self.etcd_record_now().filter(names).map_or(0, |record| record.epoch.0),
            Store::Single => self.file.as_ref().filter(|record| names(record)).map_or(0, |record| record.epoch.0),
        }
    }

    pub fn stop_node(&mut self, node: usize, orphans: bool) {
        self.new_line(node);
        let until = self.now + self.random.between(200 * MS, 2 * SEC);
        let run = self.servers[node].run - 1;
        let data = &mut self.nodes[node];
        data.promoting = None;
        data.waiters.clear();
        if orphans {
            (data.orphans_until, data.orphan_run) = (until, run);
            self.at(until, Event::OrphansEnd { node, run });
        } else {
            data.running.clear();
        }
        for to in 0..self.nodes.len() {
            if let Some(sender) = self.nodes[node].senders[to].take() {
                let span = self.random.between(5 * MS, 15 * MS);
                if self.up(node, to) {
                    self.later(span, Event::ReceiverEof { node: to, line: sender.line });
                }
            }
        }
    }

    pub fn orphans_end(&mut self, node: usize, run: u32) {
        if self.nodes[node].orphan_run != run {
            return;
        }
        self.nodes[node].running.clear();
        self.nodes[node].waiters.clear();
        let orphan = |s: &crate::net::Session| {
            s.server == node && s.far == Side::Open && matches!(s.purpose, Purpose::Client { .. })
        };
        let ending: Vec<u32> = (0u32..).zip(&self.sessions).filter(|(_, s)| orphan(s)).map(|(n, _)| n).collect();
        if !self.servers[node].up {
            ending.into_iter().for_each(|session| self.close_far(session));
        }
    }

    pub fn start_node(&mut self, node: usize) {
        let data = &mut self.nodes[node];
        data.replayed = data.tip;
        data.replay_paused = false;
        data.names = data.written_names.clone();
        data.control = (data.timeline, 0);
        if !data.primary {
            let line = self.new_line(node);
            self.later(10 * MS, Event::ReceiverTry { node, line });
        }
    }

    /// What `pg_rewind` leaves: the source's data, and a standby of it.
    pub fn rewind(&mut self, node: usize, source: usize) {
        let copied = if self.random.chance(500) { self.nodes[source].conninfo } else { Follows::default() };
        let (tip, timeline) = (self.nodes[source].tip, self.nodes[source].timeline);
        let history = self.nodes[source].history.clone();
        let (names, read_only) = (self.nodes[source].written_names.clone(), self.nodes[source].read_only);
        let data = &mut self.nodes[node];
        (data.tip, data.replayed, data.timeline, data.control) = (tip, tip, timeline, (timeline, 0));
        (data.history, data.primary, data.diverged) = (history, false, false);
        data.conninfo = Follows { to: Some(source), left: None, ..copied };
        data.still = None;
        // The configuration is copied with the rest.
        (data.written_names, data.read_only) = (names, read_only);
        data.wire += 1;
    }
}
