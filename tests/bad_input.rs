//! What clients and nodes should never send, and when they go away at the worst moment.
//!
//! The contract in every case: a clear PostgreSQL error or the end of the connection, within bounded
//! time; no wrong row; no write twice; other clients untouched; the proxy alive and without a panic.
//! Absent on purpose: failover; here every node comes back or never matters.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

#[path = "bad_input/clients.rs"]
mod clients;
#[path = "bad_input/disconnects.rs"]
mod disconnects;
#[path = "bad_input/hidden.rs"]
mod hidden;
#[path = "bad_input/limits.rs"]
mod limits;
#[path = "bad_input/nodes.rs"]
mod nodes;
#[path = "bad_input/once.rs"]
mod once;

use support::message::Message;
use support::rawclient::{Answer, Gone};

/// SQLSTATE of a refusal; any other outcome in words.
fn sqlstate(outcome: &Result<Answer, Gone>) -> String {
    match outcome {
        Err(Gone::Refused(fields)) => fields.sqlstate().to_owned(),
        other => format!("{other:?}"),
    }
}

/// The only or first message in raw bytes, if they are whole messages.
fn first_message(bytes: &[u8]) -> Option<Message> {
    let (tag, length) = (*bytes.first()?, bytes.get(1..5)?);
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    Some(Message { tag, body: bytes.get(5..1 + length)?.to_vec() })
}
