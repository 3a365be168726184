//! What a standby cannot do runs on the primary, and what replay or death cuts off runs elsewhere, unseen.
//!
//! Real servers throughout. Contracts: a client that only reads, or that says what looks like a read, sees the
//! answer that the primary gives; what standbys refuse is refused once per shape; rows are never doubled or lost.
//! Absent on purpose: nodes that talk nonsense (`bad_input`), failover.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

#[path = "healing/conflicts.rs"]
mod conflicts;
#[path = "healing/dying.rs"]
mod dying;
#[path = "healing/refusals.rs"]
mod refusals;

use std::time::Duration;
use support::cluster;
use support::message::*;
use support::proxy::Proxy;
use support::rawclient::{Answer, Gone, RawClient};
use support::wait_for;

/// How a client says a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Simple,
    Extended,
    Named,
    /// In the middle of other units, all sent at once.
    Pipelined,
}

const MODES: [Mode; 4] = [Mode::Simple, Mode::Extended, Mode::Named, Mode::Pipelined];

fn unit(name: &str, sql: &str) -> Vec<u8> {
    let parse = if sql.is_empty() { Vec::new() } else { parse(name, sql) };
    [parse, bind("", name, &[]), describe_portal(""), execute("", 0), sync()].concat()
}

/// Says a statement in one of the ways.
fn say(client: &mut RawClient, mode: Mode, sql: &str) -> Result<Answer, Gone> {
    match mode {
        Mode::Simple => client.simple(sql),
        Mode::Extended => {
            client.send(&unit("", sql))?;
            client.answer()
        }
        Mode::Named => {
            client.send(&[close_statement("named"), parse("named", sql), sync()].concat())?;
            client.answer()?;
            client.send(&unit("named", ""))?;
            client.answer()
        }
        Mode::Pipelined => {
            client.send(
                &[query("SELECT 'before'"), unit("", "SELECT 'near'"), unit("", sql), query("SELECT 'after'")].concat(),
            )?;
            assert_eq!(client.answer()?.rows, [[Some("before".to_owned())]]);
            assert_eq!(client.answer()?.rows, [[Some("near".to_owned())]]);
            let answer = client.answer();
            assert_eq!(client.answer()?.rows, [[Some("after".to_owned())]]);
            answer
        }
    }
}

/// Waits until what this client reads comes from a standby: what it wrote has been replayed.
fn settle(client: &mut RawClient) {
    let primary = cluster::shared().primary().to_string();
    wait_for("reads reach a standby", Duration::from_secs(20), || client.value("SELECT inet_server_port()") != primary);
}

/// The counters of reruns, by reason.
fn reruns(proxy: &Proxy) -> Vec<(String, u64)> {
    let (_, text) = proxy.http("/metrics").unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("pgregent_reruns_total{reason=\""));
    lines
        .map(|line| {
            let (reason, count) = line.split_once("\"} ").unwrap();
            (reason.to_owned(), count.parse().unwrap())
        })
        .collect()
}

fn reruns_for(proxy: &Proxy, reason: &str) -> u64 {
    reruns(proxy).iter().find(|(known, _)| known == reason).map_or(0, |(_, count)| *count)
}
