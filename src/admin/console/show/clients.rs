//! SHOW CLIENTS.
//!
//! Invariants: a client is `active` while it holds a backend, `waiting` while it wants one, `idle`
//! otherwise. Absent on purpose: what it said.

use super::super::snapshot::Snapshot;
use super::super::table::{Column, Row, Value, int4, int8, text};
use super::{Report, Show};
use crate::client::{ClientKind, ClientView, Replication};
use crate::net::Peer;
use std::time::Duration;

/// PgBouncer's columns of SHOW CLIENTS and SHOW SERVERS.
pub(super) const BOUNCER_COLUMNS: &[Column] = &[
    text("type"),
    text("user"),
    text("database"),
    text("replication"),
    text("state"),
    text("addr"),
    int4("port"),
    text("local_addr"),
    int4("local_port"),
    text("connect_time"),
    text("request_time"),
    int4("wait"),
    int4("wait_us"),
    int4("close_needed"),
    text("ptr"),
    text("link"),
    int4("remote_pid"),
    text("tls"),
    text("application_name"),
    int4("prepared_statements"),
    int4("id"),
];

pub(super) static CLIENTS: Show = Show {
    name: "clients",
    alias: None,
    doc: "Who is logged in, from where, and what each client does now.",
    own: Some(Report {
        columns: &[
            int8("id"),
            text("user"),
            text("database"),
            text("kind"),
            text("state"),
            text("address"),
            text("tls"),
            text("application_name"),
            text("node"),
            int4("backend_pid"),
            int8("connected_s"),
            int8("state_s"),
            text("pins"),
        ],
        rows: own,
    }),
    bouncer: Some(Report { columns: BOUNCER_COLUMNS, rows: bouncer }),
};

fn state(client: &ClientView) -> &'static str {
    if client.holding.is_some() {
        "active"
    } else if client.waiting.is_some() {
        "waiting"
    } else {
        "idle"
    }
}

fn own(snapshot: &Snapshot) -> Vec<Row> {
    let row = |client: &ClientView| {
        let who = &client.identity;
        let holding = client.holding.as_ref();
        let since = holding.map(|holding| holding.since).or(client.waiting);
        let kind = match who.kind {
            ClientKind::Session => "session",
            ClientKind::Replication(_) => "replication",
            ClientKind::Console => "console",
        };
        let pins: Vec<_> = client.pins.iter().map(|pin| pin.reason).collect();
        vec![
            Value::from(client.id.0),
            Value::from(&*who.user),
            Value::from(&*who.database),
            Value::from(kind),
            Value::from(state(client)),
            Value::from(who.peer.to_string()),
            Value::from(who.tls.as_deref()),
            Value::from(&*who.application_name),
            Value::from(holding.map(|holding| snapshot.node_name(holding.node))),
            Value::from(holding.map(|holding| holding.control.pid)),
            Value::from(snapshot.seconds_since(who.since)),
            Value::from(since.map(|since| snapshot.seconds_since(since))),
            Value::from(pins.join(",")),
        ]
    };
    snapshot.clients.iter().map(row).collect()
}

fn bouncer(snapshot: &Snapshot) -> Vec<Row> {
    let row = |client: &ClientView| {
        let who = &client.identity;
        let (address, port) = match who.peer {
            Peer::Tcp(address) => (address.ip().to_string(), i32::from(address.port())),
            Peer::Unix { .. } => ("unix".to_owned(), 0),
        };
        let waited = client.waiting.map_or(Duration::ZERO, |since| snapshot.now.since(since));
        let requested = client.holding.as_ref().map(|holding| holding.since).or(client.waiting);
        let link = snapshot.held(client).map_or_else(String::new, |backend| server_name(backend.id.0));
        vec![
            Value::from("C"),
            Value::from(&*who.user),
            Value::from(&*who.database),
            Value::from(replication(who.kind)),
            Value::from(state(client)),
            Value::from(address),
            Value::from(port),
            Value::Null,
            Value::Null,
            Value::from(snapshot.wall_text(who.since)),
            Value::from(snapshot.wall_text(requested.unwrap_or(who.since))),
            Value::from(waited.as_secs()),
            Value::from(u64::from(waited.subsec_micros())),
            Value::from(0),
            Value::from(client_name(client.id.0)),
            Value::from(link),
            Value::from(0),
            Value::from(who.tls.as_deref().unwrap_or_default()),
            Value::from(&*who.application_name),
            Value::Null,
            Value::from(client.id.0),
        ]
    };
    snapshot.clients.iter().map(row).collect()
}

pub(super) fn replication(kind: ClientKind) -> &'static str {
    match kind {
        ClientKind::Replication(Replication::Physical) => "physical",
        ClientKind::Replication(Replication::Logical) => "logical",
        ClientKind::Session | ClientKind::Console => "none",
    }
}

/// What stands in `ptr` and `link`: PgBouncer shows addresses in memory, which are names and nothing more.
pub(super) fn client_name(id: u64) -> String {
    format!("c{id}")
}

pub(super) fn server_name(id: u64) -> String {
    format!("s{id}")
}
