//! Clients: who is connected, who waits, who was let in, what was said to them.
//!
//! Invariants: gauges move by guards only, so that they come down on every way out. Absent on purpose:
//! labels that a client chooses (user, database, address).

use super::make::{Maker, counter_reasons};
use super::{GaugeGuard, IntCounter, IntGauge, Reasons};
use crate::error::Fault;

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Read from clients.
    FromClients,
    /// Written to clients.
    ToClients,
    /// Read from nodes.
    FromNodes,
    /// Written to nodes.
    ToNodes,
}

impl Direction {
    const ALL: [Self; 4] = [Self::FromClients, Self::ToClients, Self::FromNodes, Self::ToNodes];

    fn label(self) -> &'static str {
        match self {
            Self::FromClients => "from_clients",
            Self::ToClients => "to_clients",
            Self::FromNodes => "from_nodes",
            Self::ToNodes => "to_nodes",
        }
    }
}

/// Handles of the client side.
#[derive(Debug)]
pub struct ClientMetrics {
    /// Sessions: clients that logged in and are still here. See [`ClientMetrics::session`].
    pub connected: IntGauge,
    /// Clients in the accept queue. See [`ClientMetrics::waiting`].
    pub waiting: IntGauge,
    /// Connections accepted, whatever became of them.
    pub connections: IntCounter,
    /// Calls of `accept` that failed (no file descriptor left, say).
    pub accept_errors: IntCounter,
    /// Logins by result: `ok`, or the label of the failure.
    pub logins: Reasons<IntCounter>,
    /// Cancel requests by result.
    pub cancels: Reasons<IntCounter>,
    /// Replication connections that ended, by why.
    pub replication_ends: Reasons<IntCounter>,
    errors: [Reasons<IntCounter>; 4],
    bytes: [IntCounter; 4],
}

impl ClientMetrics {
    pub(super) fn new(maker: &Maker) -> Self {
        let errors = maker.counters(
            "client_errors_total",
            "Failures that clients were told of, by whose fault and why (count).",
            &["fault", "reason"],
        );
        let bytes = maker.counters("bytes_total", "Bytes relayed, by direction (bytes).", &["direction"]);
        let by_fault = |fault: Fault| counter_reasons(&errors, Some(fault.label().into()));
        Self {
            connected: maker.gauge("clients", "Clients that are logged in now (clients)."),
            waiting: maker.gauge("clients_waiting", "Clients waiting in the accept queue now (clients)."),
            connections: maker.counter("connections_total", "Connections accepted from clients (count)."),
            accept_errors: maker.counter("accept_errors_total", "Connections that could not be accepted (count)."),
            logins: maker.reasons("logins_total", "Logins of clients, by result (count).", "result"),
            cancels: maker.reasons("cancels_total", "Cancel requests of clients, by result (count).", "result"),
            replication_ends: maker.reasons(
                "replication_ends_total",
                "Replication connections that ended, by reason (count).",
                "reason",
            ),
            errors: [Fault::Client, Fault::Node, Fault::Topology, Fault::Proxy].map(by_fault),
            bytes: Direction::ALL.map(|direction| bytes.with_label_values(&[direction.label()])),
        }
    }

    /// Counts a session for as long as the guard lives.
    pub fn session(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connected)
    }

    /// Counts a client in the accept queue for as long as the guard lives.
    pub fn waiting(&self) -> GaugeGuard {
        GaugeGuard::new(&self.waiting)
    }

    /// Counts a failure that a client was told of.
    pub fn error(&self, fault: Fault, reason: &'static str) {
        let place = match fault {
            Fault::Client => 0,
            Fault::Node => 1,
            Fault::Topology => 2,
            Fault::Proxy => 3,
        };
        self.errors[place].inc(reason);
    }

    /// The counter of bytes that went this way.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> &IntCounter {
        &self.bytes[direction as usize]
    }
}
