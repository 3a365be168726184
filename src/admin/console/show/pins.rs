//! SHOW PINS: which sessions keep their backend, and why.
//!
//! Invariant: one row per reason. Absent on purpose: whole statements (they may be long, and hold data).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int8, text};
use super::{Report, Show};

pub(super) static PINS: Show = Show {
    name: "pins",
    alias: None,
    doc: "Sessions that keep their backend between transactions: why, since how many seconds, by which statement.",
    own: Some(Report {
        columns: &[
            int8("session"),
            text("user"),
            text("database"),
            text("address"),
            text("node"),
            text("reason"),
            text("statement"),
            int8("since"),
        ],
        rows,
    }),
    bouncer: None,
};

fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let of = |client: &crate::client::ClientView| -> Vec<Row> {
        let node = client.holding.as_ref().map(|holding| snapshot.node_name(holding.node));
        let row = |pin: &crate::client::PinRecord| {
            vec![
                Value::from(client.id.0),
                Value::from(&*client.identity.user),
                Value::from(&*client.identity.database),
                Value::from(client.identity.peer.to_string()),
                Value::from(node),
                Value::from(pin.reason),
                Value::from(&*pin.statement),
                Value::from(snapshot.seconds_since(pin.since)),
            ]
        };
        client.pins.iter().map(row).collect()
    };
    snapshot.clients.iter().flat_map(of).collect()
}
