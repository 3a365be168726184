//! The cluster as JSON: what `/api/v1/cluster` says and the status page shows.
//!
//! Invariants: field names are a published interface; what is not known is `null`, never 0.
//! Absent on purpose: judgement (`ready` judges).

use super::ready::{Phase, WritesNow};
use crate::clock::Time;
use crate::route::outlier::Outlier;
use crate::route::{Vitals, WHOLE};
use crate::topology::{NodeView, Topology};
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// The cluster as this proxy sees it.
#[derive(Debug, Serialize)]
pub(super) struct ClusterReport {
    pub(super) cluster: String,
    pub(super) version: &'static str,
    pub(super) phase: &'static str,
    pub(super) epoch: u64,
    /// Name of the primary of this epoch.
    pub(super) primary: Option<String>,
    /// `open`, `held` or `refused`.
    pub(super) writes: &'static str,
    /// Why writes are not open.
    pub(super) why: Option<String>,
    pub(super) nodes: Vec<NodeReport>,
    /// What the controller adds.
    pub(super) control: Value,
}

/// One node.
#[derive(Debug, Serialize)]
pub(super) struct NodeReport {
    pub(super) name: String,
    /// `host:port`.
    pub(super) address: String,
    pub(super) role: &'static str,
    pub(super) health: &'static str,
    pub(super) accepts_reads: bool,
    pub(super) lag_bytes: Option<u64>,
    pub(super) replay_lag_ms: Option<u64>,
    pub(super) timeline: Option<u32>,
    pub(super) lsn: Option<String>,
    /// How old the latest moment is up to which every acknowledged write is known to be there.
    pub(super) fresh_age_ms: Option<u64>,
    pub(super) note: Option<String>,
    /// What an operator lets it do: `enabled`, `draining` or `maintenance`.
    pub(super) service: &'static str,
    /// Why it is left out for a while: `failing` or `slow`.
    pub(super) ejected: Option<&'static str>,
    /// Units that have it or wait for it.
    pub(super) in_flight: u32,
    /// How long its reads take, smoothed.
    pub(super) read_latency_ms: Option<f64>,
    /// What it takes of the share that its weight gives it, while it starts slowly.
    pub(super) share_percent: u32,
}

/// What a report is made of, besides the snapshot.
pub(super) struct Around<'a> {
    pub(super) cluster: &'a str,
    pub(super) phase: Phase,
    pub(super) writes: WritesNow,
    pub(super) now: Time,
    /// By `NodeId::index`.
    pub(super) vitals: Vec<Vitals>,
    pub(super) control: Value,
}

impl ClusterReport {
    /// `address_of` gives a node's `host:port` by its place.
    pub(super) fn new<'a>(topology: &Topology, around: Around<'_>, address_of: impl Fn(usize) -> &'a str) -> Self {
        let (writes, why) = match around.writes {
            WritesNow::Open => ("open", None),
            WritesNow::Held(why) => ("held", Some(why.to_string())),
            WritesNow::Refused(why) => ("refused", Some(why.to_string())),
        };
        let nodes = topology.nodes.iter().enumerate();
        Self {
            cluster: around.cluster.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            phase: around.phase.word(),
            epoch: topology.epoch.0,
            primary: topology.primary.and_then(|id| topology.node(id)).map(|node| node.name.to_string()),
            writes,
            why,
            nodes: nodes
                .map(|(place, node)| {
                    let vitals = around.vitals.get(place).copied().unwrap_or(Vitals::UNKNOWN);
                    NodeReport::new(node, &vitals, address_of(place), around.now)
                })
                .collect(),
            control: around.control,
        }
    }
}

impl NodeReport {
    fn new(node: &NodeView, vitals: &Vitals, address: &str, now: Time) -> Self {
        Self {
            name: node.name.to_string(),
            address: address.to_owned(),
            role: node.role.word(),
            health: node.health.word(),
            accepts_reads: node.accepts_reads,
            lag_bytes: node.lag_bytes,
            replay_lag_ms: node.replay_lag.map(millis),
            timeline: node.timeline.map(|timeline| timeline.0),
            lsn: node.lsn.map(|lsn| lsn.to_string()),
            fresh_age_ms: fresh_age(node, now).map(millis),
            note: node.note.as_deref().map(str::to_owned),
            service: vitals.service.word(),
            ejected: vitals.ejected.map(Outlier::word),
            in_flight: vitals.in_flight,
            read_latency_ms: vitals.latency.map(|latency| latency.span().as_secs_f64() * 1e3),
            share_percent: vitals.share * 100 / WHOLE,
        }
    }
}

/// How old the node's freshness is; `None` before the first proof, zero on the primary.
pub(super) fn fresh_age(node: &NodeView, now: Time) -> Option<Duration> {
    (node.fresh_as_of != Time::ZERO).then(|| now.since(node.fresh_as_of))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_unknown_at_first_and_zero_on_the_primary() {
        let mut node = Topology::starting(&["a".into()]).nodes[0].clone();
        let now = Time::ZERO + Duration::from_secs(9);
        assert_eq!(fresh_age(&node, now), None);
        node.fresh_as_of = Time::NEVER;
        assert_eq!(fresh_age(&node, now), Some(Duration::ZERO));
        node.fresh_as_of = Time::ZERO + Duration::from_secs(7);
        assert_eq!(fresh_age(&node, now), Some(Duration::from_secs(2)));
    }
}
