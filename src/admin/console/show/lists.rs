//! SHOW LISTS and SHOW STATE: counts of everything, and what the proxy is doing.
//!
//! Invariant: PgBouncer's rows in their order. Absent on purpose: lists that do not exist here are 0
//! (names are looked up by the system).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int4, text};
use super::{Report, Show};
use crate::pool::BackendPlace;
use std::collections::BTreeSet;

pub(super) static LISTS: Show = Show {
    name: "lists",
    alias: None,
    doc: "Counts of databases, users, pools, clients and backends.",
    own: None,
    bouncer: Some(Report { columns: &[text("list"), int4("items")], rows: lists }),
};

pub(super) static STATE: Show = Show {
    name: "state",
    alias: None,
    doc: "Whether the proxy works.",
    own: None,
    bouncer: Some(Report { columns: &[text("key"), text("value")], rows: state }),
};

fn lists(snapshot: &Snapshot) -> Vec<Row> {
    let databases: BTreeSet<_> = snapshot.clients.iter().map(|client| &client.identity.database).collect();
    let users: BTreeSet<_> = snapshot.clients.iter().map(|client| &client.identity.user).collect();
    let idle = snapshot.backends.iter().filter(|backend| matches!(backend.place, BackendPlace::Idle(_))).count();
    let items = [
        ("databases", databases.len()),
        ("users", users.len()),
        ("peers", 0),
        ("pools", snapshot.pools.len()),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", snapshot.clients.len()),
        ("login_clients", 0),
        ("free_servers", idle),
        ("used_servers", snapshot.backends.len() - idle),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    items.into_iter().map(|(list, items)| vec![Value::from(list), Value::from(items)]).collect()
}

fn state(_: &Snapshot) -> Vec<Row> {
    let states = [("active", "yes"), ("paused", "no"), ("suspended", "no")];
    states.into_iter().map(|(key, value)| vec![Value::from(key), Value::from(value)]).collect()
}
