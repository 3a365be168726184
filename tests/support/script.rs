//! A conversation that is written once and held with several peers.
//!
//! A [`Script`] records what came back as lines that do not depend on the peer, so that two runs can
//! be compared line by line. Absent on purpose: knowledge of which peer it talks to, except for the
//! names of relations, which must not collide.

use super::cluster::app_login;
use super::message::Message;
use super::rawclient::{Login, RawClient};

/// One run of a conversation.
pub struct Script {
    port: u16,
    /// One letter, the same length for all peers, so that error positions agree.
    side: char,
    client: RawClient,
    lines: Vec<String>,
}

impl Script {
    /// Logs in as the usual test user.
    pub fn new(port: u16, side: char) -> Self {
        let client = RawClient::login(port, &app_login()).unwrap_or_else(|gone| panic!("login: {gone:?}"));
        Self { port, side, client, lines: Vec::new() }
    }

    /// A name that no other peer's run uses.
    pub fn name(&self, stem: &str) -> String {
        format!("{stem}_side{}", self.side)
    }

    /// Sends bytes; a peer that is gone shows in the record.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(gone) = self.client.send(bytes) {
            self.lines.push(format!("send: {gone:?}"));
        }
    }

    /// Sends several messages in one write.
    pub fn send_all(&mut self, messages: &[Vec<u8>]) {
        self.send(&messages.concat());
    }

    /// Records messages up to and including one with this tag, or the peer's end.
    pub fn until(&mut self, tag: u8) {
        loop {
            match self.client.read() {
                Ok(message) => {
                    let last = message.tag == tag;
                    self.record(&message);
                    if last {
                        return;
                    }
                }
                Err(gone) => {
                    self.lines.push(format!("read: {gone:?}"));
                    return;
                }
            }
        }
    }

    /// Records everything up to `ReadyForQuery`.
    pub fn ready(&mut self) {
        self.until(b'Z');
    }

    /// Sends a simple query and records its answer.
    pub fn query(&mut self, sql: &str) {
        self.send(&super::message::query(sql));
        self.ready();
    }

    /// Sends messages in one write and records up to `ReadyForQuery`.
    pub fn exchange(&mut self, messages: &[Vec<u8>]) {
        self.send_all(messages);
        self.ready();
    }

    /// Records that the peer closes now, with whatever it says before.
    pub fn closes(&mut self) {
        self.until(0);
    }

    /// Another client of the same peer.
    pub fn other(&self) -> RawClient {
        self.other_with(&app_login())
    }

    /// Another client with its own login.
    pub fn other_with(&self, login: &Login) -> RawClient {
        RawClient::login(self.port, login).unwrap_or_else(|gone| panic!("login: {gone:?}"))
    }

    /// The port of the peer.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The client itself.
    pub fn client(&mut self) -> &mut RawClient {
        &mut self.client
    }

    /// Adds a line of the test's own.
    pub fn note(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    fn record(&mut self, message: &Message) {
        let own_name = format!("_side{}", self.side);
        self.lines.push(message.describe().replace(&own_name, "_side"));
    }

    /// What was said.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

/// The differences between two records, `None` if there are none.
pub fn difference(expected: &[String], found: &[String]) -> Option<String> {
    if expected == found {
        return None;
    }
    let lines = (0..expected.len().max(found.len())).map(|index| {
        let [left, right] = [expected, found].map(|side| side.get(index).map_or("(nothing)", String::as_str));
        if left == right { format!("   {left}") } else { format!(" - {left}\n + {right}") }
    });
    Some(lines.collect::<Vec<_>>().join("\n"))
}
