//! What is counted: fixed names, closed label sets, handles resolved before they are used.
//!
//! One [`Metrics`] is made by the composition root and given to everybody; it owns its registry.
//! Per-node handles are fields of [`NodeMetrics`], so that counting on the hot path is one atomic
//! add and never a label lookup. Labels that modules own (discard reasons, login results, …) come
//! as `&'static str` through [`Reasons`], which resolves each once and bounds their number.
//!
//! Invariants: every label value is a configured node name or a text compiled into this program;
//! every metric has a help text that ends with its unit in parentheses.
//! Absent on purpose: a global registry, free-text labels (users, databases, addresses), and
//! reading the clock (durations are arguments).

mod clients;
mod control;
mod make;
mod node;
mod process;
mod reasons;
mod route;
mod span;
#[cfg(test)]
mod tests;

pub use clients::{ClientMetrics, Direction};
pub use control::{ControlMetrics, WritesState};
pub use node::{BackendGauges, BackendState, Class, NodeMetrics, NodeRole};
pub use process::ProcessMetrics;
pub use prometheus::{Gauge, Histogram, IntCounter, IntGauge};
pub use reasons::{OTHER, REASONS_MAX, Reasons};
pub use route::RouteMetrics;
pub use span::{client_span, connection_span, node_span};

use crate::error::Classify;
use crate::ids::NodeId;
use make::Maker;
use parking_lot::Mutex;
use prometheus::{Registry, TextEncoder};
use std::sync::Arc;

/// The content type of [`Metrics::render`].
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything this process counts.
pub struct Metrics {
    registry: Registry,
    /// One render at a time: the process figures are read and stored as a pair.
    rendering: Mutex<()>,
    nodes: Box<[NodeMetrics]>,
    /// Clients, logins, cancels, bytes.
    pub clients: ClientMetrics,
    /// Epoch, failovers, notices.
    pub control: ControlMetrics,
    /// Where statements went and why.
    pub route: RouteMetrics,
    /// This process.
    pub process: ProcessMetrics,
}

impl Metrics {
    /// All metrics at zero, for these nodes (by [`NodeId::index`]) and these reasons of a routing
    /// decision (counted by their place in the slice).
    ///
    /// # Panics
    /// If two metrics share a name: names are constants, so that is a defect of ours.
    #[must_use]
    pub fn new(node_names: &[Arc<str>], route_reasons: &[&'static str]) -> Arc<Self> {
        let maker = Maker::default();
        let metrics = Self {
            nodes: NodeMetrics::all(&maker, node_names),
            clients: ClientMetrics::new(&maker),
            control: ControlMetrics::new(&maker),
            route: RouteMetrics::new(&maker, node_names, route_reasons),
            process: ProcessMetrics::new(&maker),
            rendering: Mutex::new(()),
            registry: maker.registry,
        };
        Arc::new(metrics)
    }

    /// One node's handles.
    ///
    /// # Panics
    /// If `id` is not one of the nodes given to [`Metrics::new`].
    #[must_use]
    pub fn node(&self, id: NodeId) -> &NodeMetrics {
        &self.nodes[id.index()]
    }

    /// All nodes' handles, by [`NodeId::index`].
    #[must_use]
    pub fn nodes(&self) -> &[NodeMetrics] {
        &self.nodes
    }

    /// Counts a failure that a client was told of, by fault and label.
    pub fn client_error(&self, error: &impl Classify) {
        self.clients.error(error.fault(), error.label());
    }

    /// All metrics in the Prometheus text format ([`TEXT_FORMAT`]), with fresh process figures.
    ///
    /// Takes milliseconds and reads `/proc`: to be called off the worker threads.
    #[must_use]
    pub fn render(&self) -> String {
        let _one_at_a_time = self.rendering.lock();
        self.process.refresh();
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        text
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

/// Holds a gauge one higher for as long as it lives.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    /// Raises the gauge by one until the guard is dropped.
    #[must_use]
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
