//! SHOW DECISIONS: where statements went last, and why.
//!
//! Invariant: newest first. Absent on purpose: whole statements (they may be long, and hold data).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int8, text};
use super::{Report, Show};
use crate::decision::Decision;

/// Decisions that are told.
const SHOWN: usize = 1_000;

pub(super) static DECISIONS: Show = Show {
    name: "decisions",
    alias: None,
    doc: "Where statements went last, newest first: class and why, node and why. /api/v1/decisions filters them.",
    own: Some(Report {
        columns: &[
            int8("age_ms"),
            int8("session"),
            text("user"),
            text("database"),
            text("statement"),
            text("class"),
            text("why"),
            text("node"),
            text("reason"),
            int8("attempt"),
            text("shadow"),
        ],
        rows,
    }),
    bouncer: None,
};

fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let row = |decision: &Decision| {
        let identity = decision.session.identity();
        let age = u64::try_from(snapshot.now.since(decision.at).as_millis()).unwrap_or(u64::MAX);
        vec![
            Value::from(age),
            Value::from(decision.session.id.0),
            Value::from(&*identity.user),
            Value::from(&*identity.database),
            Value::from(decision.statement.to_string()),
            Value::from(decision.access_word()),
            Value::from(decision.why.as_ref().map(ToString::to_string)),
            Value::from(decision.outcome.as_ref().ok().map(|(node, _)| snapshot.node_name(*node))),
            Value::from(decision.reason()),
            Value::from(u64::from(decision.attempt)),
            Value::from(if decision.shadow { "yes" } else { "no" }),
        ]
    };
    snapshot.decisions.latest(SHOWN, |_| true).iter().map(row).collect()
}
