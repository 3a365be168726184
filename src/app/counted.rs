//! The control plane's counts, put among the process's metrics.
//!
//! Invariant: every label comes from a closed set of the control plane's. Absent on purpose: what is counted where.

use crate::failover::controller::ControlMetrics;
use crate::ids::NodeId;
use crate::metrics::Metrics;
use crate::topology::{ProbeFailure, Sign, SignKind, WriteSign};
use std::sync::Arc;
use std::time::Duration;

/// The control plane's counters.
pub(super) struct Counted(pub Arc<Metrics>);

impl ControlMetrics for Counted {
    fn probed(&self, node: NodeId, outcome: &'static str, took: Duration) {
        let metrics = self.0.node(node);
        metrics.probes.inc(outcome);
        metrics.probe_seconds.observe(took.as_secs_f64());
    }

    fn signed(&self, sign: &Sign) {
        let metrics = self.0.node(sign.node);
        let took = sign.at.since(sign.began).as_secs_f64();
        match &sign.what {
            SignKind::Connect(outcome) => {
                metrics.connect_probes.inc(outcome.as_ref().map_or_else(ProbeFailure::label, |()| "ok"));
                metrics.connect_probe_seconds.observe(took);
            }
            SignKind::Write(outcome) => {
                metrics.write_probes.inc(outcome.label());
                if *outcome == WriteSign::Committed {
                    metrics.write_probe_seconds.observe(took);
                }
            }
            SignKind::Patroni(word) => metrics.patroni_answers.inc(word.label()),
            SignKind::Traffic => {}
        }
    }

    fn acted(&self, kind: &'static str, succeeded: bool, took: Duration) {
        if kind == "promote" {
            self.0.control.failovers.inc(if succeeded { "ok" } else { "failed" });
            self.0.control.failover_seconds.observe(took.as_secs_f64());
        }
    }

    fn noticed(&self, kind: &'static str) {
        self.0.control.notices.inc(kind);
    }
}
