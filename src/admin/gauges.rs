//! Copies the topology and the failover machine's state into their gauges right before a scrape.
//!
//! So the gauges agree with one snapshot, and publishing a snapshot costs the controller nothing.
//! Invariants: what is not known is NaN. Absent on purpose: counters (those are counted where it happens).

use super::ready::WritesNow;
use super::report::fresh_age;
use crate::clock::Time;
use crate::failover::controller::{ClusterStatus, StandingStatus};
use crate::metrics::{Metrics, NodeRole, WritesState};
use crate::route::{Latency, Vitals};
use crate::topology::{Health, Role, Topology};
use std::time::Duration;

/// Shows this snapshot.
pub(super) fn show(metrics: &Metrics, topology: &Topology, vitals: &[Vitals], writes: &WritesNow, now: Time) {
    metrics.control.epoch.set(i64::try_from(topology.epoch.0).unwrap_or(i64::MAX));
    metrics.control.show_writes(match writes {
        WritesNow::Open => WritesState::Open,
        WritesNow::Held(_) => WritesState::Held,
        WritesNow::Refused(_) => WritesState::Refused,
    });
    for (view, node) in topology.nodes.iter().zip(metrics.nodes()) {
        node.up.set(i64::from(view.health == Health::Healthy));
        node.accepts_reads.set(i64::from(view.accepts_reads));
        node.show_role(match view.role {
            Role::Primary => NodeRole::Primary,
            Role::Standby => NodeRole::Standby,
            Role::Unassigned => NodeRole::Unassigned,
        });
        node.lag_bytes.set(view.lag_bytes.map_or(f64::NAN, bytes));
        node.replay_lag_seconds.set(seconds(view.replay_lag));
        node.fresh_age_seconds.set(seconds(fresh_age(view, now)));
    }
    for (vitals, node) in vitals.iter().zip(metrics.nodes()) {
        node.in_flight.set(i64::from(vitals.in_flight));
        node.read_latency_seconds.set(seconds(vitals.latency.map(Latency::span)));
        node.ejected.set(i64::from(vitals.ejected.is_some()));
        node.show_service(vitals.service.word());
    }
}

/// Shows where the failover machine stands.
pub(super) fn show_failover(metrics: &Metrics, status: &ClusterStatus) {
    let control = &metrics.control;
    control.failover_state.show(&[(status.failover.state, 1)]);
    control.failover_paused.set(i64::from(status.failover.paused));
    let mut holds: Vec<(&'static str, i64)> = Vec::new();
    for hold in &status.holds {
        match holds.iter_mut().find(|(kind, _)| *kind == hold.kind) {
            Some((_, count)) => *count += 1,
            None => holds.push((hold.kind, 1)),
        }
    }
    control.holds.show(&holds);
    let lease = |standing: &StandingStatus| standing.lease.as_ref().map_or(0, |lease| lease.left_ms);
    let left = status.standing.as_ref().map(|standing| Duration::from_millis(lease(standing)));
    control.lease_seconds.set(seconds(left));
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float; exact up to 2^53 bytes")]
fn bytes(count: u64) -> f64 {
    count as f64
}

fn seconds(span: Option<Duration>) -> f64 {
    span.map_or(f64::NAN, |span| span.as_secs_f64())
}
