//! SHOW NODES: who is primary, who takes reads, how far behind, and how much of each is in use.
//!
//! Invariant: what is not known is NULL. Absent on purpose: why no failover happens (`failover`).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int8, text};
use super::{Report, Show};
use crate::config::value::format_address;
use crate::pool::BackendPlace;
use crate::route::WHOLE;
use crate::route::outlier::Outlier;

pub(super) static NODES: Show = Show {
    name: "nodes",
    alias: None,
    doc: "The nodes: role, health, lag, and how much of their budget is used.",
    own: Some(Report {
        columns: &[
            text("name"),
            text("address"),
            text("role"),
            text("health"),
            text("reads"),
            int8("backends"),
            int8("budget"),
            int8("replication"),
            int8("in_flight"),
            int8("latency_us"),
            int8("share_percent"),
            text("zone"),
            text("service"),
            text("ejected"),
            int8("lag_bytes"),
            int8("replay_lag_ms"),
            int8("timeline"),
            text("history"),
            text("lsn"),
            text("note"),
        ],
        rows,
    }),
    bouncer: None,
};

fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let nodes = snapshot.topology.nodes.iter().map(|view| {
        let config = snapshot.config.nodes.get(view.id.index());
        let vitals = snapshot.vitals(view.id);
        let status = snapshot.control.nodes.get(view.id.index());
        let budget = snapshot.budgets.get(view.id.index());
        let dedicated = snapshot
            .backends
            .iter()
            .filter(|backend| backend.key.node == view.id && backend.place == BackendPlace::Dedicated);
        vec![
            Value::from(&*view.name),
            Value::from(config.map(|node| format_address(&node.host, node.port))),
            Value::from(view.role.word()),
            Value::from(view.health.word()),
            Value::from(if view.accepts_reads { "yes" } else { "no" }),
            Value::from(budget.map(|(used, _)| *used)),
            Value::from(budget.map(|(_, limit)| *limit)),
            Value::from(dedicated.count()),
            Value::from(u64::from(vitals.in_flight)),
            Value::from(vitals.latency.map(|latency| u64::try_from(latency.span().as_micros()).unwrap_or(u64::MAX))),
            Value::from(u64::from(vitals.share * 100 / WHOLE)),
            Value::from(config.and_then(|node| node.zone.as_deref())),
            Value::from(vitals.service.word()),
            Value::from(vitals.ejected.map(Outlier::word)),
            Value::from(view.lag_bytes),
            Value::from(view.replay_lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX))),
            Value::from(view.timeline.map(|timeline| u64::from(timeline.0))),
            Value::from(status.and_then(|node| node.history.clone())),
            Value::from(view.lsn.map(|lsn| lsn.to_string())),
            Value::from(view.note.as_deref()),
        ]
    });
    nodes.collect()
}
