//! SHOW DATABASES and SHOW USERS: those that are in use, as nobody lists them beforehand.
//!
//! Invariants: the console's own database is there, as in PgBouncer. Absent on purpose: databases that
//! nobody has connected to.

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int4, text};
use super::{Report, Show};
use crate::client::ClientKind;
use crate::config::Choice;
use crate::ids::NodeId;
use std::collections::BTreeSet;

pub(super) static DATABASES: Show = Show {
    name: "databases",
    alias: None,
    doc: "Databases in use, where their writes go, and how many connections they have.",
    own: None,
    bouncer: Some(Report {
        columns: &[
            text("name"),
            text("host"),
            int4("port"),
            text("database"),
            text("force_user"),
            int4("pool_size"),
            int4("min_pool_size"),
            int4("reserve_pool_size"),
            int4("server_lifetime"),
            text("pool_mode"),
            text("load_balance_hosts"),
            int4("max_connections"),
            int4("current_connections"),
            int4("max_client_connections"),
            int4("current_client_connections"),
            int4("paused"),
            int4("disabled"),
        ],
        rows: databases,
    }),
};

pub(super) static USERS: Show = Show {
    name: "users",
    alias: None,
    doc: "Users in use, and how many connections they have.",
    own: None,
    bouncer: Some(Report {
        columns: &[
            text("name"),
            int4("pool_size"),
            int4("reserve_pool_size"),
            text("pool_mode"),
            int4("max_user_connections"),
            int4("current_connections"),
            int4("max_user_client_connections"),
            int4("current_client_connections"),
        ],
        rows: users,
    }),
};

fn is_session(kind: ClientKind) -> bool {
    kind != ClientKind::Console
}

fn databases(snapshot: &Snapshot) -> Vec<Row> {
    let clients = snapshot.clients.iter().filter(|client| is_session(client.identity.kind));
    let mut names: BTreeSet<&str> = clients.map(|client| &*client.identity.database).collect();
    names.extend(snapshot.pools.iter().map(|(key, _)| &*key.database));
    names.extend(snapshot.totals.iter().map(|(database, _)| &**database));
    let mut rows: Vec<_> = names.iter().map(|name| database(snapshot, name)).collect();
    rows.push(console(snapshot));
    rows
}

fn database(snapshot: &Snapshot, name: &str) -> Row {
    let config = &snapshot.config;
    let primary = snapshot.topology.primary.and_then(|id| config.nodes.get(id.index()));
    let budget = snapshot.topology.primary.and_then(|id: NodeId| snapshot.budgets.get(id.index()));
    let backends = snapshot.backends.iter().filter(|backend| &*backend.key.database == name);
    let clients =
        snapshot.clients.iter().filter(|client| &*client.identity.database == name && is_session(client.identity.kind));
    let lifetime = config.pool.lifetime.map_or(0, |limit| limit.as_secs());
    vec![
        Value::from(name),
        Value::from(primary.map(|node| node.host.as_str())),
        Value::from(primary.map(|node| i32::from(node.port))),
        Value::from(name),
        Value::Null,
        Value::from(config.pool.size),
        Value::from(0),
        Value::from(0),
        Value::from(lifetime),
        Value::from(config.pool.mode.word()),
        Value::Null,
        Value::from(budget.map(|(_, limit)| *limit)),
        Value::from(backends.count()),
        Value::from(0),
        Value::from(clients.count()),
        Value::from(0),
        Value::from(0),
    ]
}

/// The database of the console itself.
fn console(snapshot: &Snapshot) -> Row {
    let port = snapshot.config.server.listen.first().map(|listen| i32::from(listen.port()));
    let clients = snapshot.clients.iter().filter(|client| client.identity.kind == ClientKind::Console);
    let zero = || Value::from(0);
    vec![
        Value::from("pgbouncer"),
        Value::Null,
        Value::from(port),
        Value::from("pgbouncer"),
        Value::from("pgbouncer"),
        zero(),
        zero(),
        zero(),
        zero(),
        Value::from("statement"),
        Value::Null,
        zero(),
        zero(),
        zero(),
        Value::from(clients.count()),
        zero(),
        zero(),
    ]
}

fn users(snapshot: &Snapshot) -> Vec<Row> {
    let clients = snapshot.clients.iter().map(|client| &*client.identity.user);
    let mut names: BTreeSet<&str> = clients.collect();
    names.extend(snapshot.pools.iter().map(|(key, _)| &*key.user));
    let row = |name: &&str| {
        let backends = snapshot.backends.iter().filter(|backend| &*backend.key.user == *name);
        let clients = snapshot.clients.iter().filter(|client| &*client.identity.user == *name);
        vec![
            Value::from(*name),
            Value::from(snapshot.config.pool.size),
            Value::from(0),
            Value::from(snapshot.config.pool.mode.word()),
            Value::from(0),
            Value::from(backends.count()),
            Value::from(0),
            Value::from(clients.count()),
        ]
    };
    names.iter().map(row).collect()
}
