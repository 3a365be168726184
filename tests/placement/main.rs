//! Where sessions are served: redirects, settings of the session, read-only transactions, causal tokens.
//!
//! Each test has a cluster and a proxy of its own, because some make standbys lag. Absent on purpose: what single
//! statements are (the classifier's tests), and load.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "../support/mod.rs"]
mod support;

mod explaining;
mod read_only;
mod redirects;
mod trials;

use std::time::Duration;
use support::message::{Message, batch, bind, execute, parse, sync};
use support::proxy::Proxy;
use support::rawclient::{Answer, Gone, RawClient};
use support::wait_for;

/// Whether a standby answers.
const ON_STANDBY: &str = "SELECT pg_is_in_recovery()";

/// The texts in one batch up to Sync, each parsed, bound and executed.
fn in_one_batch(client: &mut RawClient, texts: &[&str]) -> Result<Answer, Gone> {
    let messages = texts.iter().flat_map(|text| [parse("", text), bind("", "", &[]), execute("", 0)]);
    let messages: Vec<_> = messages.chain([sync()]).collect();
    client.send(&batch(&messages))?;
    client.answer()
}

/// A session whose reads go to standbys now: they show what was written before it began.
fn ready(proxy: &Proxy) -> RawClient {
    let mut client = proxy.client();
    wait_for("reads go to standbys", Duration::from_secs(5), || client.value(ON_STANDBY) == "t");
    client
}

/// The first field of the last row, as text.
fn last_value(answer: &Answer) -> String {
    answer.rows.last().and_then(|row| row.first().cloned().flatten()).unwrap_or_default()
}

/// A parameter that the client was told during its login.
fn told(login: &[Message], name: &str) -> Option<String> {
    let parameters = login.iter().filter(|message| message.tag == b'S').map(Message::parameter);
    parameters.rev().find(|(known, _)| known == name).map(|(_, value)| value)
}
