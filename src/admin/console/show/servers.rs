//! SHOW SERVERS, also called BACKENDS.
//!
//! Invariant: each backend is in exactly one state. Absent on purpose: those whose login is under way
//! (SHOW POOLS counts them).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int4, int8, text};
use super::clients::{BOUNCER_COLUMNS, client_name, replication, server_name};
use super::{Report, Show};
use crate::pool::{BackendPlace, BackendView};

pub(super) static SERVERS: Show = Show {
    name: "servers",
    alias: Some("backends"),
    doc: "The connections to nodes, and which client holds each.",
    own: Some(Report {
        columns: &[
            int8("id"),
            text("node"),
            text("database"),
            text("user"),
            text("state"),
            int4("pid"),
            int8("open_s"),
            int8("idle_s"),
            int8("client"),
        ],
        rows: own,
    }),
    bouncer: Some(Report { columns: BOUNCER_COLUMNS, rows: bouncer }),
};

fn own(snapshot: &Snapshot) -> Vec<Row> {
    let row = |backend: &BackendView| {
        let (state, idle) = match backend.place {
            BackendPlace::Idle(since) => ("idle", Some(since)),
            BackendPlace::Active => ("active", None),
            BackendPlace::Dedicated => ("dedicated", None),
        };
        vec![
            Value::from(backend.id.0),
            Value::from(snapshot.node_name(backend.key.node)),
            Value::from(&*backend.key.database),
            Value::from(&*backend.key.user),
            Value::from(state),
            Value::from(backend.control.pid),
            Value::from(snapshot.seconds_since(backend.opened)),
            Value::from(idle.map(|since| snapshot.seconds_since(since))),
            Value::from(snapshot.holder(backend).map(|client| client.id.0)),
        ]
    };
    snapshot.backends.iter().map(row).collect()
}

fn bouncer(snapshot: &Snapshot) -> Vec<Row> {
    let row = |backend: &BackendView| {
        let holder = snapshot.holder(backend);
        let state = if matches!(backend.place, BackendPlace::Idle(_)) { "idle" } else { "active" };
        let replication = holder.map_or("none", |client| replication(client.identity.kind));
        let since = match (backend.place, holder.and_then(|client| client.holding.as_ref())) {
            (BackendPlace::Idle(since), _) => since,
            (_, Some(holding)) => holding.since,
            _ => backend.opened,
        };
        let target = &backend.control.target;
        vec![
            Value::from("S"),
            Value::from(&*backend.key.user),
            Value::from(&*backend.key.database),
            Value::from(replication),
            Value::from(state),
            Value::from(&*target.host),
            Value::from(i32::from(target.port)),
            Value::Null,
            Value::Null,
            Value::from(snapshot.wall_text(backend.opened)),
            Value::from(snapshot.wall_text(since)),
            Value::from(0),
            Value::from(0),
            Value::from(i32::from(backend.control.is_fenced())),
            Value::from(server_name(backend.id.0)),
            Value::from(holder.map_or_else(String::new, |client| client_name(client.id.0))),
            Value::from(backend.control.pid),
            Value::Null,
            Value::from(holder.map_or_else(String::new, |client| client.identity.application_name.to_string())),
            Value::Null,
            Value::from(backend.id.0),
        ]
    };
    snapshot.backends.iter().map(row).collect()
}
