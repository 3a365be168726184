//! Commits: when they are written, whom they wait for, and the settings of a node that say so.
//!
//! As in PostgreSQL: a changed setting lies on disk at once and is obeyed a little later; where it is emptied, what
//! waits is let go. Absent on purpose: FIRST, `remote_apply`, and clients that set `default_transaction_read_only` back.

use crate::net::{Msg, Purpose, Side};
use crate::wal::Tip;
use crate::world::{Event, MS, US, World, node_name, note};
use pgregent::failover::action::ActionId;
use pgregent::failover::event::Outcome;
use pgregent::failover::sync::parse;
use pgregent::ids::Lsn;
use pgregent::topology::{SyncStandby, SyncState, SyncView};

/// A commit that waits for standbys.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    session: u32,
    write: usize,
    record: Tip,
}

/// `synchronous_standby_names`: how many of whom.
pub type Names = Option<(usize, Vec<usize>)>;

impl World {
    /// Whom this node's commits wait for, as it was configured.
    pub fn configured_names(&self) -> Names {
        let stands = self.setup.sync > 0 && !self.setup.managed;
        stands.then(|| (self.setup.sync, (0..self.setup.nodes).collect()))
    }

    pub fn sync_view(&self, node: usize) -> SyncView {
        let names = &self.nodes[node].names;
        let standby = |(to, lsn): (usize, Option<u64>)| {
            let named = names.as_ref().is_some_and(|(_, who)| who.contains(&to));
            lsn.map(|lsn| SyncStandby {
                application_name: node_name(to),
                streaming: true,
                sync_state: if named { SyncState::Quorum } else { SyncState::Async },
                flush_lsn: Some(Lsn(lsn)),
            })
        };
        let text = names.as_ref().map(|(k, who)| {
            let who: Vec<String> = who.iter().map(|node| node_name(*node)).collect();
            format!("ANY {k} ({})", who.join(", "))
        });
        let standbys = self.acked(node).into_iter().enumerate().filter_map(standby).collect();
        SyncView { standby_names: text.unwrap_or_default(), standbys }
    }

    pub fn serve_write(&mut self, node: usize, session: u32, write: usize) {
        if !self.nodes[node].primary || self.nodes[node].read_only {
            return self.send(session, false, Msg::NotWritten { write });
        }
        let span = match self.random.below(100) {
            0 => self.random.between(200 * MS, 1500 * MS),
            1..10 => self.random.between(5 * MS, 50 * MS),
            _ => self.random.between(300 * US, 3 * MS),
        };
        let run = self.servers[node].run;
        self.nodes[node].running.push((session, write));
        self.later(span, Event::Commit { node, run, session, write });
    }

    pub fn commit(&mut self, node: usize, run: u32, session: u32, write: usize) {
        if !self.nodes[node].running.contains(&(session, write)) || !self.works(node, run) {
            return;
        }
        self.nodes[node].running.retain(|running| *running != (session, write));
        let record = self.append(node);
        self.oracle.wrote(write, node, record);
        if self.nodes[node].names.is_some() {
            self.nodes[node].waiters.push(Waiter { session, write, record });
            // An orphan waits for standbys that nobody serves any more.
            self.release_waiters(node);
        } else {
            self.acknowledge(session, write, false);
        }
    }

    fn acknowledge(&mut self, session: u32, write: usize, warned: bool) {
        if self.sessions[session as usize].far == Side::Open {
            self.send(session, false, Msg::Committed { write, warned });
        }
    }

    pub fn release_waiters(&mut self, node: usize) {
        if self.nodes[node].waiters.is_empty() {
            return;
        }
        let (names, acked) = (self.nodes[node].names.clone(), self.acked(node));
        let flushed = |waiter: &Waiter| {
            let lsn = self.wal.lsn(waiter.record);
            names.as_ref().is_none_or(|(k, who)| who.iter().filter(|to| acked[**to] >= Some(lsn)).count() >= *k)
        };
        let (done, waiting): (Vec<Waiter>, Vec<Waiter>) = self.nodes[node].waiters.iter().partition(|w| flushed(w));
        self.nodes[node].waiters = waiting;
        for waiter in done {
            // What degrades may be lost with the primary.
            let weak = self.setup.managed && self.setup.degrade;
            if names.is_some() && !weak {
                self.oracle.promise(waiter.write);
            }
            self.acknowledge(waiter.session, waiter.write, false);
        }
    }

    /// Somebody cancels what waits for standbys: it is acknowledged with a warning.
    pub fn cancel_waiters(&mut self, node: usize) {
        for waiter in std::mem::take(&mut self.nodes[node].waiters) {
            self.oracle.promise(waiter.write);
            self.acknowledge(waiter.session, waiter.write, true);
        }
    }

    pub fn drop_running(&mut self, voter: usize, session: u32) {
        if let Some(node) = self.nodes.get_mut(voter) {
            node.waiters.retain(|w| w.session != session);
        }
    }

    /// `ALTER SYSTEM SET synchronous_standby_names`, and a reload.
    pub fn name_sync(&mut self, node: usize, session: u32, id: ActionId, text: &str) {
        let Ok(rule) = parse(text) else {
            return self.acted(session, id, Outcome::Failed(format!("cannot be read: {text}")));
        };
        let index = |name: &String| (0..self.setup.nodes).find(|node| node_name(*node) == *name);
        let names = rule.map(|rule| (rule.k, rule.names.iter().filter_map(index).collect()));
        self.nodes[node].written_names = names;
        let (run, span) = (self.servers[node].run, self.random.between(MS, 300 * MS));
        self.later(span, Event::Renamed { node, run });
        self.later(span + 10 * MS, Event::DeedEnd { node, run, session, id, detach: false });
    }

    /// The new setting is obeyed.
    pub fn renamed(&mut self, node: usize, run: u32) {
        if self.servers[node].run == run {
            self.nodes[node].names = self.nodes[node].written_names.clone();
            note!(self, "commits of n{node} wait for {:?}", self.nodes[node].names);
            self.release_waiters(node);
        }
    }

    /// `ALTER SYSTEM SET default_transaction_read_only`; sessions of clients end where it is set.
    pub fn fence_sql(&mut self, node: usize, session: u32, id: ActionId, on: bool) {
        if on && !self.nodes[node].primary {
            return self.acted(session, id, Outcome::Failed("in recovery".to_owned()));
        }
        note!(self, "n{node} is made {}", if on { "read-only" } else { "writable again" });
        self.nodes[node].read_only = on;
        let of = |s: &crate::net::Session| {
            s.server == node && s.far == Side::Open && matches!(s.purpose, Purpose::Client { .. })
        };
        let clients: Vec<u32> = (0u32..).zip(&self.sessions).filter(|(_, s)| on && of(s)).map(|(n, _)| n).collect();
        clients.into_iter().for_each(|client| self.close_far(client));
        self.acted(session, id, Outcome::Done);
    }
}
