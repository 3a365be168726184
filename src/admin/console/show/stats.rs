//! SHOW STATS and SHOW STATS_TOTALS: what each database's pools have done since the start.
//!
//! Invariants: totals never fall. What is not counted per database is NULL: averages, parses and binds
//! (`/metrics` has statements by class). Absent on purpose: periods.

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int8, text};
use super::{Report, Show};
use crate::pool::Totals;
use std::time::Duration;

/// Columns that both commands share the meaning of.
const TOTALS: usize = 12;

pub(super) static STATS: Show = Show {
    name: "stats",
    alias: None,
    doc: "Totals per database since the start: transactions, statements, bytes, times in microseconds.",
    own: None,
    bouncer: Some(Report {
        columns: &[
            text("database"),
            int8("total_server_assignment_count"),
            int8("total_xact_count"),
            int8("total_query_count"),
            int8("total_received"),
            int8("total_sent"),
            int8("total_xact_time"),
            int8("total_query_time"),
            int8("total_wait_time"),
            int8("total_client_parse_count"),
            int8("total_server_parse_count"),
            int8("total_bind_count"),
            int8("total_client_login_count"),
            int8("avg_server_assignment_count"),
            int8("avg_xact_count"),
            int8("avg_query_count"),
            int8("avg_recv"),
            int8("avg_sent"),
            int8("avg_xact_time"),
            int8("avg_query_time"),
            int8("avg_wait_time"),
            int8("avg_client_parse_count"),
            int8("avg_server_parse_count"),
            int8("avg_bind_count"),
            int8("avg_client_login_count"),
        ],
        rows: |snapshot| rows(snapshot, TOTALS),
    }),
};

pub(super) static STATS_TOTALS: Show = Show {
    name: "stats_totals",
    alias: None,
    doc: "The totals alone.",
    own: None,
    bouncer: Some(Report {
        columns: &[
            text("database"),
            int8("server_assignment_count"),
            int8("xact_count"),
            int8("query_count"),
            int8("bytes_received"),
            int8("bytes_sent"),
            int8("xact_time"),
            int8("query_time"),
            int8("wait_time"),
            int8("client_parse_count"),
            int8("server_parse_count"),
            int8("bind_count"),
            int8("client_login_count"),
        ],
        rows: |snapshot| rows(snapshot, 0),
    }),
};

fn rows(snapshot: &Snapshot, unknown_behind: usize) -> Vec<Row> {
    let row = |(database, totals): &(std::sync::Arc<str>, Totals)| {
        let mut row = vec![
            Value::from(&**database),
            Value::from(totals.checkouts),
            Value::from(totals.checkouts),
            Value::from(totals.statements),
            // PgBouncer's words: received from clients, sent to them.
            Value::from(totals.sent),
            Value::from(totals.received),
            Value::from(micros(totals.busy)),
            Value::Null,
            Value::from(micros(totals.waited)),
        ];
        row.resize(1 + TOTALS + unknown_behind, Value::Null);
        row
    };
    snapshot.totals.iter().map(row).collect()
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
