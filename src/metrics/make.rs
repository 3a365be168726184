//! Makes metrics and registers them.
//!
//! Invariants: every name begins with [`NAMESPACE`] except the `process_*` ones, whose names are a
//! convention of Prometheus. Absent on purpose: any name or label that is not a constant.

use super::reasons::Reasons;
use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};
use std::sync::Arc;

/// What every metric name begins with.
const NAMESPACE: &str = "pgregent";

/// Upper bounds for waits and transactions, seconds: 50 us to 60 s.
const TIME_BUCKETS: [f64; 19] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// Upper bounds for a change of primary, seconds: 100 ms to 5 min.
const FAILOVER_BUCKETS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];

/// Owns the registry while metrics are made.
#[derive(Default)]
pub(super) struct Maker {
    pub(super) registry: Registry,
}

impl Maker {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("metric names and labels are constants and valid");
        self.registry.register(Box::new(collector.clone())).expect("no two metrics share a name");
        collector
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(opts(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(opts(name, help)))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(opts(name, help), labels))
    }

    /// A gauge that can be [`UNKNOWN`](super::control::UNKNOWN), and is until it is set.
    pub(super) fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = self.add(Gauge::with_opts(opts(name, help)));
        gauge.set(super::control::UNKNOWN);
        gauge
    }

    /// Gauges that can be [`UNKNOWN`](super::control::UNKNOWN).
    pub(super) fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(opts(name, help), labels))
    }

    pub(super) fn times(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let with_buckets = HistogramOpts { common_opts: opts(name, help), buckets: TIME_BUCKETS.to_vec() };
        self.add(HistogramVec::new(with_buckets, labels))
    }

    pub(super) fn failover_times(&self, name: &str, help: &str) -> Histogram {
        let with_buckets = HistogramOpts { common_opts: opts(name, help), buckets: FAILOVER_BUCKETS.to_vec() };
        self.add(Histogram::with_opts(with_buckets))
    }

    /// A counter by one label.
    pub(super) fn reasons(&self, name: &str, help: &str, label: &str) -> Reasons<IntCounter> {
        counter_reasons(&self.counters(name, help, &[label]), None)
    }

    /// A gauge by one label.
    pub(super) fn gauge_reasons(&self, name: &str, help: &str, label: &str) -> Reasons<IntGauge> {
        let family = self.gauges(name, help, &[label]);
        Reasons::new(move |reason| family.with_label_values(&[reason]))
    }

    /// A gauge of the process, named by Prometheus' convention.
    pub(super) fn process_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::with_opts(Opts::new(name, help)))
    }

    /// A counter of the process, named by Prometheus' convention.
    pub(super) fn process_counter(&self, name: &str, help: &str) -> Counter {
        self.add(Counter::with_opts(Opts::new(name, help)))
    }
}

/// The children of a family with labels (`first`, reason) or only (reason).
pub(super) fn counter_reasons(family: &IntCounterVec, first: Option<Arc<str>>) -> Reasons<IntCounter> {
    let family = family.clone();
    Reasons::new(move |reason| match &first {
        Some(first) => family.with_label_values(&[&**first, reason]),
        None => family.with_label_values(&[reason]),
    })
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(NAMESPACE)
}
