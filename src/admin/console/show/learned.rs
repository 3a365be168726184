//! SHOW LEARNED: statements that look like reads and go to the primary, because a standby has refused them.
//!
//! Invariant: shapes only, so no literal is shown. Absent on purpose: changing it (FORGET LEARNED, in `session`).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int8, text};
use super::{Report, Show};

/// Bytes of a shape that are shown.
const SHOWN_MAX: usize = 200;

pub(super) static LEARNED: Show = Show {
    name: "learned",
    alias: None,
    doc: "Statements that look like reads and go to the primary: how standbys refused them, since how many seconds, for how many more, how often.",
    own: Some(Report {
        columns: &[text("statement"), text("reason"), int8("since"), int8("expires"), int8("times")],
        rows,
    }),
    bouncer: None,
};

fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let row = |(shape, lesson): &(std::sync::Arc<[u8]>, crate::route::Lesson)| {
        vec![
            Value::from(readable(shape)),
            Value::from(lesson.reason),
            Value::from(snapshot.seconds_since(lesson.since)),
            Value::from(lesson.until.since(snapshot.now).as_secs()),
            Value::from(lesson.times),
        ]
    };
    snapshot.learned.iter().map(row).collect()
}

/// A shape for people: its marks for literals become question marks.
fn readable(shape: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(shape).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match text.char_indices().map(|(at, _)| at).take_while(|at| *at <= SHOWN_MAX).last() {
        Some(end) if text.len() > SHOWN_MAX => format!("{}…", &text[..end]),
        _ => text,
    }
}
