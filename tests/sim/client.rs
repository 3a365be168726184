//! Clients of a proxy: each writes one numbered row after another as the proxy's permit allows.
//!
//! Invariants: a write goes out only under a live permit; its acknowledgement is believed only if the permit is live,
//! for the same epoch, at the moment at which the reply is read.

use crate::bug::Bug;
use crate::net::{Msg, Purpose};
use crate::world::{Event, MS, Nanos, SEC, World};

/// How long a client waits for an answer.
const PATIENCE: Nanos = 5 * SEC;

#[derive(Clone, Debug, Default)]
pub struct Client {
    session: Option<u32>,
    open: bool,
    node: usize,
    /// The write under way and when it began.
    waiting: Option<(usize, Nanos)>,
}

impl World {
    /// Whether writes of this epoch may pass now, by the proxy's clock.
    pub fn permit_live(&self, proxy: usize) -> Option<crate::act::Permit> {
        let local = self.local(self.proxy_host(proxy));
        self.proxies[proxy].permit.filter(|p| local < p.until)
    }

    pub fn client_due(&mut self, proxy: usize, client: usize) {
        let run = self.proxies[proxy].run;
        let pause = self.random.between(50 * MS, 500 * MS);
        self.later(pause, Event::ClientDue { proxy, run, client });
        let state = self.proxies[proxy].clients[client].clone();
        if let Some((_, began)) = state.waiting {
            if self.now - began > PATIENCE {
                self.client_hangs_up(proxy, client);
            }
            return;
        }
        let Some(permit) = self.permit_live(proxy) else { return };
        match state.session {
            Some(session) if state.node == permit.primary => {
                if state.open {
                    let write = self.oracle.begin(proxy, permit, self.now);
                    self.proxies[proxy].clients[client].waiting = Some((write, self.now));
                    self.send(session, true, Msg::Write { write });
                }
            }
            other => {
                if other.is_some() {
                    self.client_hangs_up(proxy, client);
                }
                let session = self.open(proxy, permit.primary, Purpose::Client { client });
                let state = &mut self.proxies[proxy].clients[client];
                (state.session, state.open, state.node) = (Some(session), false, permit.primary);
            }
        }
    }

    fn client_hangs_up(&mut self, proxy: usize, client: usize) {
        let state = &mut self.proxies[proxy].clients[client];
        state.waiting = None;
        if let Some(session) = state.session.take() {
            self.close_near(session);
        }
    }

    pub fn client_opened(&mut self, proxy: usize, client: usize, session: u32) {
        let state = &mut self.proxies[proxy].clients[client];
        if state.session == Some(session) {
            state.open = true;
        }
    }

    /// Whatever was under way is unknown.
    pub fn client_lost(&mut self, proxy: usize, client: usize, session: u32) {
        let state = &mut self.proxies[proxy].clients[client];
        if state.session == Some(session) {
            (state.session, state.open, state.waiting) = (None, false, None);
        }
    }

    pub fn client_message(&mut self, proxy: usize, client: usize, msg: Msg) {
        let state = &mut self.proxies[proxy].clients[client];
        let under_way = state.waiting.map(|(write, _)| write);
        match msg {
            Msg::Committed { write, warned } if under_way == Some(write) => {
                state.waiting = None;
                let permit = self.permit_live(proxy);
                let permit = if self.bug == Some(Bug::StalePermit) { self.proxies[proxy].permit } else { permit };
                let live = permit.is_some_and(|p| p.epoch == self.oracle.epoch_of(write));
                let trusted = !warned || self.bug == Some(Bug::BelieveCancelled);
                if (live || self.bug == Some(Bug::NoPermit)) && trusted {
                    self.believed(write);
                }
            }
            Msg::NotWritten { write } if under_way == Some(write) => state.waiting = None,
            _ => {}
        }
    }

    /// A client that does not go through a proxy.
    pub fn direct_write(&mut self) {
        let node = self.random.below(self.nodes.len());
        if self.nodes[node].primary
            && !self.nodes[node].read_only
            && self.servers[node].up
            && self.hosts[node].stalled == 0
        {
            self.append(node);
        }
        let most = if self.setup.direct { 60 * MS } else { 4 * SEC };
        let span = self.random.between(most / 4, most);
        self.later(span, Event::DirectWrite);
    }
}
