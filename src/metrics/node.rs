//! One node: statements, backends, waits, and what the topology says about it.
//!
//! Invariants: exactly one role of a node shows 1; what is not known is NaN, never 0. Absent on
//! purpose: per-database and per-user figures (the JSON of the pools has them).

use super::control::UNKNOWN;
use super::make::{Maker, counter_reasons};
use super::{Gauge, Histogram, IntCounter, IntGauge, Reasons};
use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec};
use std::sync::Arc;

/// What a statement was, as far as counting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Read outside an explicit transaction.
    Read,
    /// Write outside an explicit transaction.
    Write,
    /// Any statement of an explicit transaction.
    Transaction,
    /// Session state, unclassified.
    Other,
}

impl Class {
    /// All classes, each at its own index.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Transaction, Self::Other];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Transaction => "transaction",
            Self::Other => "other",
        }
    }
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// On the idle stack.
    Idle,
    /// Checked out.
    Active,
    /// Not yet authenticated.
    Connecting,
}

impl BackendState {
    /// All states, each at its own index.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Active, Self::Connecting];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Connecting => "connecting",
        }
    }
}

/// The assigned role, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeRole {
    /// Takes writes.
    Primary,
    /// May take reads.
    Standby,
    /// Not used.
    Unassigned,
}

impl NodeRole {
    const ALL: [Self; 3] = [Self::Primary, Self::Standby, Self::Unassigned];

    fn label(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Unassigned => "unassigned",
        }
    }
}

/// How many backends of a node are where.
#[derive(Debug)]
pub struct BackendGauges([IntGauge; 3]);

impl BackendGauges {
    /// One backend moved; `None` is "does not exist".
    pub fn moved(&self, from: Option<BackendState>, to: Option<BackendState>) {
        if let Some(from) = from {
            self.0[from as usize].dec();
        }
        if let Some(to) = to {
            self.0[to as usize].inc();
        }
    }

    /// Stores a number that was counted elsewhere.
    pub fn set(&self, state: BackendState, backends: usize) {
        self.0[state as usize].set(i64::try_from(backends).unwrap_or(i64::MAX));
    }

    /// The gauge of one state.
    #[must_use]
    pub fn gauge(&self, state: BackendState) -> &IntGauge {
        &self.0[state as usize]
    }
}

/// One node's handles.
#[derive(Debug)]
pub struct NodeMetrics {
    /// Backends by state.
    pub backends: BackendGauges,
    /// Backends of replication connections (among the active ones).
    pub replication: IntGauge,
    /// Connects to the node by result: `ok`, or the label of the failure.
    pub backend_connects: Reasons<IntCounter>,
    /// Backends closed instead of reused, by reason.
    pub backend_discards: Reasons<IntCounter>,
    /// Sessions queued for a backend of the node.
    pub waiters: IntGauge,
    /// How long a backend was checked out, seconds.
    pub transaction_seconds: Histogram,
    /// How long a session waited for a backend, seconds; checkouts without a wait count as 0.
    pub queue_wait_seconds: Histogram,
    /// How long connect and login took, seconds.
    pub connect_seconds: Histogram,
    /// How long a probe took, seconds.
    pub probe_seconds: Histogram,
    /// Probes by result: `ok`, or the label of the failure.
    pub probes: Reasons<IntCounter>,
    /// Fresh connections by result: `ok`, or the label of the failure.
    pub connect_probes: Reasons<IntCounter>,
    /// What the Patroni beside it answered, by word or why there was none.
    pub patroni_answers: Reasons<IntCounter>,
    /// How long they took, seconds.
    pub connect_probe_seconds: Histogram,
    /// Commits of the write probe by result.
    pub write_probes: Reasons<IntCounter>,
    /// How long those that ended took, seconds.
    pub write_probe_seconds: Histogram,
    /// 1 while the node is healthy.
    pub up: IntGauge,
    /// 1 while the node takes reads.
    pub accepts_reads: IntGauge,
    /// Units that have the node or wait for it.
    pub in_flight: IntGauge,
    /// How long its reads take, smoothed, seconds; NaN: not known.
    pub read_latency_seconds: Gauge,
    /// 1 while it is ejected.
    pub ejected: IntGauge,
    /// Ejections by reason.
    pub ejections: Reasons<IntCounter>,
    /// Bytes of WAL not yet replayed; NaN: not known.
    pub lag_bytes: Gauge,
    /// How long replay is behind, seconds; NaN: not known.
    pub replay_lag_seconds: Gauge,
    /// How old the latest write known to be replayed is, seconds; NaN: not known.
    pub fresh_age_seconds: Gauge,
    statements: [IntCounter; 4],
    role: [IntGauge; 3],
    service: [IntGauge; 3],
}

/// What an operator lets a node do, as labels.
const SERVICES: [&str; 3] = ["enabled", "draining", "maintenance"];

impl NodeMetrics {
    pub(super) fn all(maker: &Maker, names: &[Arc<str>]) -> Box<[Self]> {
        let families = Families::new(maker);
        names.iter().map(|name| families.node(name)).collect()
    }

    /// The counter of statements of this class that the node was sent.
    #[must_use]
    pub fn statements(&self, class: Class) -> &IntCounter {
        &self.statements[class as usize]
    }

    /// Shows the node in this role and in no other.
    pub fn show_role(&self, role: NodeRole) {
        for (place, gauge) in self.role.iter().enumerate() {
            gauge.set(i64::from(place == role as usize));
        }
    }

    /// Shows the node in this service (one of the labels) and in no other.
    pub fn show_service(&self, service: &str) {
        for (word, gauge) in SERVICES.iter().zip(&self.service) {
            gauge.set(i64::from(*word == service));
        }
    }
}

/// The families that [`NodeMetrics`] are children of.
struct Families {
    backends: IntGaugeVec,
    replication: IntGaugeVec,
    backend_connects: IntCounterVec,
    backend_discards: IntCounterVec,
    waiters: IntGaugeVec,
    statements: IntCounterVec,
    transaction_seconds: HistogramVec,
    queue_wait_seconds: HistogramVec,
    connect_seconds: HistogramVec,
    probe_seconds: HistogramVec,
    probes: IntCounterVec,
    connect_probes: IntCounterVec,
    patroni_answers: IntCounterVec,
    connect_probe_seconds: HistogramVec,
    write_probes: IntCounterVec,
    write_probe_seconds: HistogramVec,
    up: IntGaugeVec,
    accepts_reads: IntGaugeVec,
    role: IntGaugeVec,
    service: IntGaugeVec,
    in_flight: IntGaugeVec,
    read_latency_seconds: GaugeVec,
    ejected: IntGaugeVec,
    ejections: IntCounterVec,
    lag_bytes: GaugeVec,
    replay_lag_seconds: GaugeVec,
    fresh_age_seconds: GaugeVec,
}

impl Families {
    #[rustfmt::skip] // one line per metric: name, help, labels
    fn new(maker: &Maker) -> Self {
        let m = maker;
        Self {
            backends: m.gauges("backends", "Backends now, by state (backends).", &["node", "state"]),
            replication: m.gauges("replication_connections", "Replication connections passed through now, among the active backends (backends).", &["node"]),
            backend_connects: m.counters("backend_connects_total", "Connects to the node, by result (count).", &["node", "result"]),
            backend_discards: m.counters("backend_discards_total", "Backends closed instead of reused, by reason (count).", &["node", "reason"]),
            waiters: m.gauges("waiters", "Sessions queued for a backend now (sessions).", &["node"]),
            statements: m.counters("statements_total", "Statements sent to the node, by class (count).", &["node", "class"]),
            transaction_seconds: m.times("transaction_seconds", "Time a backend was checked out (seconds).", &["node"]),
            queue_wait_seconds: m.times("queue_wait_seconds", "Time a session waited for a backend (seconds).", &["node"]),
            connect_seconds: m.times("connect_seconds", "Time from connect to the end of the login at the node (seconds).", &["node"]),
            probe_seconds: m.times("probe_seconds", "Time from a probe to its answer (seconds).", &["node"]),
            probes: m.counters("probes_total", "Probes of the node, by result (count).", &["node", "result"]),
            patroni_answers: m.counters("patroni_answers_total", "Answers of the Patroni beside the node in follow mode: leader, member, or why there was none (count).", &["node", "answer"]),
            connect_probes: m.counters("connect_probes_total", "Fresh connections that prove that the node accepts any, by result (count).", &["node", "result"]),
            connect_probe_seconds: m.times("connect_probe_seconds", "Time from such a connect until the node is ready for a query (seconds).", &["node"]),
            write_probes: m.counters("write_probes_total", "Commits that prove that WAL can be written, by result; one that hangs counts as pending again and again (count).", &["node", "result"]),
            write_probe_seconds: m.times("write_probe_seconds", "Time that such a commit took (seconds).", &["node"]),
            up: m.gauges("node_up", "Whether the node is healthy (0 or 1).", &["node"]),
            accepts_reads: m.gauges("node_accepts_reads", "Whether the node takes reads (0 or 1).", &["node"]),
            role: m.gauges("node_role", "Whether the node has this role (0 or 1).", &["node", "role"]),
            service: m.gauges("node_service", "Whether an operator lets the node do this (0 or 1).", &["node", "service"]),
            in_flight: m.gauges("node_in_flight", "Units of work that have the node or wait for it now (count).", &["node"]),
            read_latency_seconds: m.float_gauges("read_latency_seconds", "Time from sending a read to its first answer, smoothed, NaN when not known (seconds).", &["node"]),
            ejected: m.gauges("node_ejected", "Whether the standby is left out for a while because it fails or is slow (0 or 1).", &["node"]),
            ejections: m.counters("ejections_total", "Times the standby was left out for a while, by reason (count).", &["node", "reason"]),
            lag_bytes: m.float_gauges("lag_bytes", "WAL of the primary not yet replayed by the node, NaN when not known (bytes).", &["node"]),
            replay_lag_seconds: m.float_gauges("replay_lag_seconds", "How long replay is behind, NaN when not known (seconds).", &["node"]),
            fresh_age_seconds: m.float_gauges("fresh_age_seconds", "Age of the latest moment up to which all acknowledged writes are known to be replayed, NaN when not known (seconds).", &["node"]),
        }
    }

    fn node(&self, name: &Arc<str>) -> NodeMetrics {
        let own = [&**name];
        let unknown = |family: &GaugeVec| {
            let gauge = family.with_label_values(&own);
            gauge.set(UNKNOWN);
            gauge
        };
        NodeMetrics {
            backends: BackendGauges(
                BackendState::ALL.map(|state| self.backends.with_label_values(&[&**name, state.label()])),
            ),
            replication: self.replication.with_label_values(&own),
            backend_connects: counter_reasons(&self.backend_connects, Some(Arc::clone(name))),
            backend_discards: counter_reasons(&self.backend_discards, Some(Arc::clone(name))),
            waiters: self.waiters.with_label_values(&own),
            transaction_seconds: self.transaction_seconds.with_label_values(&own),
            queue_wait_seconds: self.queue_wait_seconds.with_label_values(&own),
            connect_seconds: self.connect_seconds.with_label_values(&own),
            probe_seconds: self.probe_seconds.with_label_values(&own),
            probes: counter_reasons(&self.probes, Some(Arc::clone(name))),
            patroni_answers: counter_reasons(&self.patroni_answers, Some(Arc::clone(name))),
            connect_probes: counter_reasons(&self.connect_probes, Some(Arc::clone(name))),
            connect_probe_seconds: self.connect_probe_seconds.with_label_values(&own),
            write_probes: counter_reasons(&self.write_probes, Some(Arc::clone(name))),
            write_probe_seconds: self.write_probe_seconds.with_label_values(&own),
            up: self.up.with_label_values(&own),
            accepts_reads: self.accepts_reads.with_label_values(&own),
            in_flight: self.in_flight.with_label_values(&own),
            read_latency_seconds: unknown(&self.read_latency_seconds),
            ejected: self.ejected.with_label_values(&own),
            ejections: counter_reasons(&self.ejections, Some(Arc::clone(name))),
            service: SERVICES.map(|service| self.service.with_label_values(&[&**name, service])),
            lag_bytes: unknown(&self.lag_bytes),
            replay_lag_seconds: unknown(&self.replay_lag_seconds),
            fresh_age_seconds: unknown(&self.fresh_age_seconds),
            statements: Class::ALL.map(|class| self.statements.with_label_values(&[&**name, class.label()])),
            role: NodeRole::ALL.map(|role| self.role.with_label_values(&[&**name, role.label()])),
        }
    }
}
