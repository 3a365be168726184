//! Probes of nodes as the monitor sends them, and what they bring back.
//!
//! Invariants: at most one probe per node is under way; the end of the held session is reported at once.

use crate::wal::Tip;
use crate::world::{Event, MS, Nanos, SEC, World};
use pgregent::clock::Time;
use pgregent::failover::event::Event as Told;
use pgregent::ids::{Lsn, NodeId, TimelineId};
use pgregent::topology::{Ancestry, History, NodeReport, Observation, ProbeFailure, Switch};

const INTERVAL: Nanos = 500 * MS;
const SUSPECT_INTERVAL: Nanos = 100 * MS;
const TIMEOUT: Nanos = SEC;
const GAP_MIN: Nanos = 10 * MS;

#[derive(Clone, Debug, Default)]
pub struct Probe {
    turn: u32,
    waiting: bool,
    /// The last probe brought a report: a session is held.
    held: bool,
    began: Nanos,
}

impl World {
    fn probe_later(&mut self, proxy: usize, node: usize, local: Nanos) {
        let (run, turn) = (self.proxies[proxy].run, self.proxies[proxy].probes[node].turn);
        let at = self.real(self.proxy_host(proxy), local);
        self.at(at, Event::ProbeDue { proxy, run, node, turn });
    }

    pub fn probe_now(&mut self, proxy: usize, node: usize) {
        let probe = &mut self.proxies[proxy].probes[node];
        if !probe.waiting {
            // What was due later is no longer.
            probe.turn += 1;
            let local = probe.began + GAP_MIN;
            self.probe_later(proxy, node, local);
        }
    }

    pub fn probe_due(&mut self, proxy: usize, node: usize, turn: u32) {
        let (host, run, sent_at) = (self.proxy_host(proxy), self.proxies[proxy].run, self.time(proxy));
        let probe = &mut self.proxies[proxy].probes[node];
        if probe.waiting || probe.turn != turn {
            return;
        }
        probe.turn += 1;
        (probe.waiting, probe.began) = (true, sent_at.as_nanos());
        let turn = probe.turn;
        self.datagram(host, node, Event::Probe { proxy, run, node, turn, sent_at });
        let at = self.real(host, sent_at.as_nanos() + TIMEOUT);
        self.at(at, Event::ProbeTimeout { proxy, run, node, turn });
    }

    pub fn probe_arrives(&mut self, proxy: usize, run: u32, node: usize, turn: u32, sent_at: Time) {
        let server = &self.servers[node];
        let outcome = match (server.up, server.starting) {
            (true, _) => Ok(self.report(node, sent_at)),
            (_, true) => Err(ProbeFailure::StartingUp),
            _ => Err(ProbeFailure::Refused),
        };
        let (outcome, tip) = (Box::new(outcome), self.nodes[node].replayed);
        let host = self.proxy_host(proxy);
        self.datagram(node, host, Event::Probed { proxy, run, node, turn, outcome, tip });
    }

    pub fn probed(
        &mut self,
        proxy: usize,
        node: usize,
        turn: u32,
        outcome: Result<NodeReport, ProbeFailure>,
        tip: Option<Tip>,
    ) {
        let probe = &mut self.proxies[proxy].probes[node];
        if !probe.waiting || probe.turn != turn {
            return;
        }
        probe.waiting = false;
        probe.held = outcome.is_ok();
        let next = probe.began + if outcome.is_ok() { INTERVAL } else { SUSPECT_INTERVAL };
        if let Some(tip) = tip.filter(|_| outcome.is_ok()) {
            self.proxies[proxy].reported[node] = tip;
        }
        self.probe_later(proxy, node, next);
        self.observed(proxy, node, outcome);
    }

    pub fn probe_timeout(&mut self, proxy: usize, node: usize, turn: u32) {
        self.probed(proxy, node, turn, Err(ProbeFailure::TimedOut), None);
    }

    /// What the history file of the timeline that it shows says, begun as its own earlier files do.
    pub fn ancestry(&self, node: usize) -> Ancestry {
        let shown = self.shown_timeline(node);
        let past = self.nodes[node].history.iter().filter(|(past, _)| *past < shown);
        let past = past.map(|(timeline, at)| Switch { timeline: TimelineId(*timeline), at: Lsn(*at) });
        History::new(TimelineId(shown), past.collect()).map_or(Ancestry::Unknown, |h| Ancestry::Known(h.into()))
    }

    fn observed(&mut self, proxy: usize, node: usize, outcome: Result<NodeReport, ProbeFailure>) {
        let began = Time::from_nanos(self.proxies[proxy].probes[node].began);
        let node = NodeId(u16::try_from(node).unwrap_or(u16::MAX));
        let at = self.time(proxy);
        self.tell(proxy, Told::Observed(Observation { node, began, at, outcome }));
        self.check_reads_again(proxy);
    }

    /// The end of the held session reaches the proxy.
    pub fn probe_lost(&mut self, proxy: usize, node: usize) {
        let probe = &mut self.proxies[proxy].probes[node];
        if std::mem::replace(&mut probe.held, false) {
            probe.waiting = false;
            probe.turn += 1;
            let local = probe.began + GAP_MIN;
            self.probe_later(proxy, node, local);
            self.observed(proxy, node, Err(ProbeFailure::SessionLost));
        }
    }

    /// A node's sessions end; whoever can be reached hears of it.
    pub fn tell_probes(&mut self, node: usize) {
        if node >= self.setup.nodes {
            return;
        }
        for proxy in 0..self.proxies.len() {
            let (run, host) = (self.proxies[proxy].run, self.proxy_host(proxy));
            self.datagram(node, host, Event::ProbeLost { proxy, run, node });
        }
    }
}
