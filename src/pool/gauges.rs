//! Where backends are, as metrics: each move of a backend is one call here.
//!
//! Invariant: a backend is counted in exactly one state from its connect to its end. Absent on
//! purpose: what the pool decides.

use super::DiscardReason;
use super::set::Shared;
use crate::backend::ConnectError;
use crate::error::Classify;
use crate::ids::NodeId;
use crate::metrics::BackendState::{Active, Connecting, Idle};
use std::time::Duration;

impl Shared {
    pub fn connect_started(&self, node: NodeId) {
        self.metrics.node(node).backends.moved(None, Some(Connecting));
    }

    pub fn connect_ended(&self, node: NodeId, error: Option<&ConnectError>, took: Duration) {
        let metrics = self.metrics.node(node);
        metrics.backends.moved(Some(Connecting), error.is_none().then_some(Idle));
        metrics.backend_connects.inc(error.map_or("ok", Classify::label));
        metrics.connect_seconds.observe(took.as_secs_f64());
        if error.is_some_and(|error| !error.is_final()) {
            self.standings.of(node).failed();
        }
    }

    pub fn backend_taken(&self, node: NodeId) {
        self.metrics.node(node).backends.moved(Some(Idle), Some(Active));
    }

    pub fn backend_released(&self, node: NodeId) {
        self.metrics.node(node).backends.moved(Some(Active), Some(Idle));
    }

    pub fn backend_removed(&self, node: NodeId, reason: DiscardReason) {
        let metrics = self.metrics.node(node);
        metrics.backends.moved(Some(Idle), None);
        metrics.backend_discards.inc(reason.label());
    }

    pub fn waiter_joined(&self, node: NodeId) {
        self.metrics.node(node).waiters.inc();
    }

    pub fn waiter_left(&self, node: NodeId) {
        self.metrics.node(node).waiters.dec();
    }
}
