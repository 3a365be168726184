//! Spans, so that every log line names client, user, database and node where known.
//!
//! They live here, not beside the subscriber in `admin`, because sessions, pools and the monitor
//! use them and may not import `admin`.
//!
//! Use `span.in_scope(|| warn!(…))` where a line is written. Instrumenting a whole session's future
//! would enter and leave the span at every poll, which the steady path must not pay for.
//! The spans are at level ERROR, because a filter that switches a span off also takes its fields
//! from the warnings inside it.
//!
//! Invariants: user and database are recorded as strings, so that the text format quotes and
//! escapes them (a client chooses both, before it has proved anything).
//! Absent on purpose: fields recorded later; the text format would append them again and again.

use std::fmt::Display;
use tracing::{Span, error_span};

/// For a connection whose user is not known yet.
#[must_use]
pub fn connection_span(peer: &dyn Display) -> Span {
    error_span!("client", client = %peer)
}

/// For a client that said who it is.
#[must_use]
pub fn client_span(peer: &dyn Display, user: &str, database: &str) -> Span {
    error_span!("client", client = %peer, user, database)
}

/// For work with one node, inside the current span; inside `client_span(…).in_scope` it adds to it.
#[must_use]
pub fn node_span(node: &str) -> Span {
    error_span!("node", node)
}
