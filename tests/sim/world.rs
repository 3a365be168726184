//! One simulated cluster: hosts, their clocks, the queue of what happens next.
//!
//! Invariants: everything follows from the seed; time moves only from one event to the next; a host that stands still
//! handles nothing, and all that became due meanwhile in its order when it goes on.

use crate::bug::Bug;
use crate::check::Oracle;
use crate::etcd::Register;
use crate::fault::Faults;
use crate::net::{Link, Msg, Session};
use crate::node::Node;
use crate::proxy::Proxy;
use crate::random::Random;
use crate::server::Server;
use crate::setup::Setup;
use crate::wal::{Tip, Wal};
use pgregent::clock::Time;
use pgregent::coordination::etcd::core::{Answer, Request};
use pgregent::failover::Policy;
use pgregent::failover::action::ActionId;
use pgregent::failover::event::{Outcome, Record};
use pgregent::topology::{NodeReport, ProbeFailure};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Real time in nanoseconds; no host sees it.
pub type Nanos = u64;
pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;
pub const SEC: Nanos = 1_000_000_000;

/// A machine: a voter's, or a proxy's.
#[derive(Debug, Default)]
pub struct Host {
    /// No power.
    pub off: bool,
    /// SIGSTOP, or the whole machine is suspended.
    pub stalled: u32,
    deferred: Vec<Event>,
    /// Error of its clock's rate, parts per million.
    ppm: i64,
    offset: Nanos,
}

/// What happens next.
#[derive(Clone, Debug)]
pub enum Event {
    Arrive { session: u32, up: bool, seq: u32, msg: Msg },
    Retransmit { session: u32, up: bool },
    Knock { session: u32 },
    Knocked { session: u32, welcome: bool },
    OpenTimeout { session: u32 },
    Reset { session: u32, up: bool },
    Idle { voter: usize, session: u32 },
    ProbeDue { proxy: usize, run: u32, node: usize, turn: u32 },
    Probe { proxy: usize, run: u32, node: usize, turn: u32, sent_at: Time },
    Probed { proxy: usize, run: u32, node: usize, turn: u32, outcome: Box<Result<NodeReport, ProbeFailure>>, tip: Tip },
    ProbeTimeout { proxy: usize, run: u32, node: usize, turn: u32 },
    ProbeLost { proxy: usize, run: u32, node: usize },
    Attach { from: usize, to: usize, line: u32 },
    Attached { from: usize, to: usize, line: u32 },
    Stream { from: usize, to: usize, line: u32, tip: Tip },
    Flushed { from: usize, to: usize, line: u32, tip: Tip },
    Restream { from: usize, to: usize, line: u32 },
    Keepalive { from: usize, to: usize, line: u32 },
    ReceiverTry { node: usize, line: u32 },
    ReceiverEof { node: usize, line: u32 },
    ReceiverTimeout { node: usize, line: u32 },
    Rewire { node: usize, run: u32, wire: u32 },
    Commit { node: usize, run: u32, session: u32, write: usize },
    Promoted { node: usize, run: u32 },
    Streaming { node: usize, run: u32, session: u32, id: ActionId, want: Wanted, until: Nanos },
    DeedEnd { node: usize, run: u32, session: u32, id: ActionId, detach: bool },
    Started { voter: usize, run: u32 },
    Start { voter: usize, run: u32 },
    OrphansEnd { node: usize, run: u32 },
    EtcdAsk { proxy: usize, run: u32, member: usize, turn: u32, request: Box<Request> },
    EtcdDo { proxy: usize, run: u32, member: usize, turn: u32, request: Box<Request>, tries: u32 },
    EtcdSays { proxy: usize, run: u32, turn: u32, answer: Box<Answer> },
    EtcdLate { proxy: usize, run: u32, turn: u32 },
    EtcdChanged { proxy: usize, run: u32 },
    EtcdExpire { lease: i64 },
    MachineTick { proxy: usize, run: u32 },
    CoreTick { proxy: usize, run: u32 },
    Recall { proxy: usize, run: u32 },
    Reopen { proxy: usize, run: u32, voter: usize },
    AskTimeout { proxy: usize, run: u32, voter: usize, session: u32, asked: u32 },
    RecordTick { proxy: usize, run: u32 },
    ActEnded { proxy: usize, run: u32, id: ActionId, outcome: Outcome },
    ErrandLate { proxy: usize, run: u32, session: u32 },
    FenceOff { node: usize },
    FenceOver { node: usize },
    Renamed { node: usize, run: u32 },
    ClientDue { proxy: usize, run: u32, client: usize },
    Boot { proxy: usize },
    Fault { index: usize },
    FaultEnd { index: usize },
    Person,
    Cancel { node: usize },
    DirectWrite,
    Heal,
    Verdict,
}

/// A stream that somebody waits for: from whom, and newer than which.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub from: usize,
    pub after: Option<u32>,
}

struct Due {
    at: Nanos,
    order: u64,
    via: Option<(usize, usize)>,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    pub setup: Setup,
    pub now: Nanos,
    pub random: Random,
    pub hosts: Vec<Host>,
    pub links: Vec<Vec<Link>>,
    pub sessions: Vec<Session>,
    pub servers: Vec<Server>,
    pub nodes: Vec<Node>,
    pub wal: Wal,
    pub proxies: Vec<Proxy>,
    pub oracle: Oracle,
    pub faults: Faults,
    pub policy: Policy,
    pub etcd: Register,
    /// The file of a proxy that is alone.
    pub file: Option<Record>,
    pub bug: Option<Bug>,
    pub over: bool,
    pub events: u64,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    tracing: bool,
    trace: Vec<String>,
}

/// Adds a line to the trace of a run that is traced; costs nothing otherwise.
macro_rules! note {
    ($world:expr, $($arg:tt)*) => {
        if $world.traced() {
            let text = format!($($arg)*);
            $world.add_note(text);
        }
    };
}
pub(crate) use note;

impl World {
    pub fn new(seed: u64, seconds: u64, bug: Option<Bug>, tracing: bool) -> Self {
        let mut random = Random::new(seed);
        let mut setup = Setup::draw(&mut random, seconds);
        if let Some(bug) = bug {
            bug.provoke(&mut setup);
        }
        let count = setup.voters() + setup.proxies + setup.members();
        let host = |random: &mut Random| Host {
            ppm: i64::try_from(random.between(0, 20_000)).unwrap_or(0) - 10_000,
            offset: random.between(SEC, 100 * SEC),
            ..Host::default()
        };
        let hosts = (0..count).map(|_| host(&mut random)).collect();
        let mut world = Self {
            now: 0,
            hosts,
            links: vec![vec![Link::default(); count]; count],
            sessions: Vec::new(),
            servers: (0..setup.voters()).map(|v| Server::new(v >= setup.nodes)).collect(),
            nodes: (0..setup.nodes).map(|n| Node::new(n, setup.nodes)).collect(),
            wal: Wal::new(),
            proxies: Vec::new(),
            oracle: Oracle::default(),
            faults: Faults::default(),
            policy: setup.policy(),
            etcd: Register::default(),
            file: None,
            bug,
            over: false,
            events: 0,
            queue: BinaryHeap::new(),
            order: 0,
            tracing,
            trace: Vec::new(),
            setup,
            random,
        };
        note!(world, "{:?}", world.setup);
        world.begin(seed);
        world
    }

    fn begin(&mut self, seed: u64) {
        for node in 0..self.setup.nodes {
            let names = self.configured_names();
            (self.nodes[node].names, self.nodes[node].written_names) = (names.clone(), names);
        }
        for node in 1..self.setup.nodes {
            self.later(MS, Event::ReceiverTry { node, line: 0 });
        }
        for index in 0..self.setup.proxies {
            self.proxies.push(Proxy::new(self, index, seed));
            let at = self.random.between(MS, 300 * MS);
            self.later(at, Event::Boot { proxy: index });
        }
        self.draw_faults();
        self.later(SEC, Event::Person);
        self.later(SEC, Event::DirectWrite);
        self.later(self.setup.faults_end, Event::Heal);
    }

    pub fn run(&mut self) {
        while !self.over
            && let Some(Reverse(due)) = self.queue.pop()
        {
            self.now = due.at;
            self.events += 1;
            if let Some((from, to)) = due.via
                && !self.up(from, to)
            {
                self.lost_on_the_way(due.event);
                continue;
            }
            self.take(due.event);
        }
    }

    fn take(&mut self, event: Event) {
        if let Some(host) = self.host_of(&event).filter(|h| self.hosts[*h].stalled > 0) {
            self.hosts[host].deferred.push(event);
            return;
        }
        self.handle(event);
    }

    /// The host goes on; all that became due meanwhile happens now.
    pub fn go_on(&mut self, host: usize) {
        self.hosts[host].stalled = self.hosts[host].stalled.saturating_sub(1);
        if self.hosts[host].stalled > 0 {
            return;
        }
        for event in std::mem::take(&mut self.hosts[host].deferred) {
            // One of them may end the run, or the host's process.
            if !self.over {
                self.handle(event);
            }
        }
    }

    /// What waited for a process that no longer exists.
    pub fn forget_deferred(&mut self, host: usize) {
        self.hosts[host].deferred.clear();
        self.hosts[host].stalled = 0;
    }

    pub fn later(&mut self, span: Nanos, event: Event) {
        self.at(self.now + span, event);
    }

    pub fn at(&mut self, at: Nanos, event: Event) {
        self.push(at, None, event);
    }

    pub fn push(&mut self, at: Nanos, via: Option<(usize, usize)>, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due { at: at.max(self.now), order: self.order, via, event }));
    }

    /// The host's own clock.
    pub fn local_at(&self, host: usize, real: Nanos) -> Nanos {
        let host = &self.hosts[host];
        let signed = i64::try_from(real).unwrap_or(i64::MAX);
        let error = i128::from(signed) * i128::from(host.ppm) / 1_000_000;
        host.offset + u64::try_from(i128::from(signed) + error).unwrap_or(0)
    }

    pub fn local(&self, host: usize) -> Nanos {
        self.local_at(host, self.now)
    }

    /// The first moment at which the host's clock shows `local`, or now.
    pub fn real(&self, host: usize, local: Nanos) -> Nanos {
        let owner = &self.hosts[host];
        let shown = i128::from(local.saturating_sub(owner.offset));
        let mut at = u64::try_from(shown * 1_000_000 / i128::from(1_000_000 + owner.ppm)).unwrap_or(0);
        while self.local_at(host, at) < local {
            at += 1;
        }
        at.max(self.now)
    }

    pub fn proxy_host(&self, proxy: usize) -> usize {
        self.setup.voters() + proxy
    }

    pub fn time(&self, proxy: usize) -> Time {
        Time::from_nanos(self.local(self.proxy_host(proxy)))
    }

    pub fn traced(&self) -> bool {
        self.tracing
    }

    pub fn add_note(&mut self, text: String) {
        self.trace.push(format!("{:>10.4}  {text}", self.now as f64 / SEC as f64));
    }

    pub fn trace(&self) -> &[String] {
        &self.trace
    }
}

pub fn duration(nanos: Nanos) -> Duration {
    Duration::from_nanos(nanos)
}

pub fn node_name(node: usize) -> String {
    format!("n{node}")
}

pub fn voter_name(setup: &Setup, voter: usize) -> String {
    if voter < setup.nodes { node_name(voter) } else { format!("w{}", voter - setup.nodes) }
}
