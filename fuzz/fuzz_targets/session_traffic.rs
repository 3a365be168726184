//! Any order of messages from a client, a node that answers as PostgreSQL does, and the queue of replies owed.
//!
//! Promises: every answer of a node that keeps the protocol fits the queue, at any interleaving; when all is
//! answered nothing is owed; the client gets as many ReadyForQuery as it asked for; bytes cut anywhere are
//! seen as the same messages.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::backend::{Owed, Pipeline};
use pgregent::wire::frontend::*;
use pgregent::wire::{HEADER_LEN, backend, header};
use std::collections::VecDeque;

/// What the node is doing with the messages it has read.
#[derive(PartialEq)]
enum Mode {
    Ready,
    Skipping,
    /// Reading COPY data for a Query or an Execute.
    Copying {
        simple: bool,
    },
}

/// A node: reads messages in order, says tags.
struct Node {
    mode: Mode,
    said: VecDeque<u8>,
    readies: usize,
}

impl Node {
    fn ready(&mut self) {
        self.said.push_back(backend::READY);
        self.readies += 1;
        self.mode = Mode::Ready;
    }

    fn fail(&mut self, simple: bool) {
        self.said.push_back(backend::ERROR);
        if simple { self.ready() } else { self.mode = Mode::Skipping }
    }

    /// `luck` decides between success and failure, and whether a statement is a COPY.
    fn read(&mut self, tag: u8, luck: u8) {
        let fails = luck % 5 == 0;
        let copies = luck % 5 == 1;
        match (&self.mode, tag) {
            (Mode::Copying { simple }, COPY_DONE | COPY_FAIL) => {
                let simple = *simple;
                if tag == COPY_FAIL || fails {
                    return self.fail(simple);
                }
                self.said.push_back(backend::COMMAND_COMPLETE);
                if simple { self.ready() } else { self.mode = Mode::Ready }
            }
            (Mode::Copying { .. }, _) | (_, COPY_DATA | COPY_DONE | COPY_FAIL | FLUSH) => {}
            (_, SYNC) => self.ready(),
            (Mode::Skipping, _) => {}
            (Mode::Ready, QUERY) if fails => self.fail(true),
            (Mode::Ready, _) if fails => self.fail(tag == FUNCTION_CALL),
            (Mode::Ready, QUERY | EXECUTE) if copies => {
                self.said.push_back(backend::COPY_IN);
                self.mode = Mode::Copying { simple: tag == QUERY };
            }
            (Mode::Ready, QUERY) => {
                self.said.extend([backend::ROW_DESCRIPTION, backend::DATA_ROW, backend::COMMAND_COMPLETE]);
                self.ready();
            }
            (Mode::Ready, FUNCTION_CALL) => {
                self.said.push_back(backend::FUNCTION_RESULT);
                self.ready();
            }
            (Mode::Ready, PARSE) => self.said.push_back(backend::PARSE_COMPLETE),
            (Mode::Ready, BIND) => self.said.push_back(backend::BIND_COMPLETE),
            (Mode::Ready, DESCRIBE) => self.said.push_back(backend::NO_DATA),
            (Mode::Ready, EXECUTE) => self.said.extend([backend::DATA_ROW, backend::COMMAND_COMPLETE]),
            (Mode::Ready, CLOSE) => self.said.push_back(backend::CLOSE_COMPLETE),
            (Mode::Ready, _) => {}
        }
    }
}

/// What the proxy notes for a message that it passes on.
fn note(pipeline: &mut Pipeline, tag: u8) {
    match tag {
        QUERY => pipeline.push(Owed::Query { swallow: false }),
        FUNCTION_CALL => pipeline.push(Owed::Function),
        PARSE => pipeline.push(Owed::Parse { swallow: false, id: 1 }),
        BIND => pipeline.push(Owed::Bind { id: 0 }),
        DESCRIBE => pipeline.push(Owed::Describe { swallow: false, id: 0 }),
        EXECUTE => pipeline.push(Owed::Execute),
        CLOSE => pipeline.push(Owed::Close { swallow: false }),
        SYNC => pipeline.push(Owed::Sync { swallow: false }),
        COPY_DONE | COPY_FAIL => pipeline.copy_ended(),
        _ => {}
    }
}

/// What clients send here. Behind a statement that may be a COPY only its data and its end may come: after
/// anything else a node ends the connection.
const TAGS: [u8; 9] = [QUERY, PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, SYNC, FLUSH, FUNCTION_CALL];

/// The bytes of a client, and for each message the luck it will have.
fn traffic(script: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut bytes, mut luck) = (Vec::new(), Vec::new());
    let mut say = |tag: u8, fate: u8| {
        bytes.extend([tag, 0, 0, 0, 6, b'x', 0]);
        luck.push(fate);
    };
    for &byte in script {
        let (tag, fate) = (TAGS[usize::from(byte) % TAGS.len()], byte / 9);
        say(tag, fate);
        // Stray or not: whether the statement reads COPY data, the client need not know.
        if matches!(tag, QUERY | EXECUTE) && (fate % 5 == 1 || fate > 24) {
            for _ in 0..fate % 3 {
                say(COPY_DATA, fate);
            }
            say(if fate % 2 == 0 { COPY_DONE } else { COPY_FAIL }, fate.wrapping_mul(3));
        }
    }
    say(SYNC, 4);
    (bytes, luck)
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (script, turns) = (input.0, input.1);
    let (bytes, luck) = traffic(&script);
    let mut pipeline = Pipeline::default();
    let mut node = Node { mode: Mode::Ready, said: VecDeque::new(), readies: 0 };
    let (mut at, mut message, mut read, mut heard) = (0, 0, 0, 0);
    let mut turn = 0;
    while at < bytes.len() || read < message || !node.said.is_empty() {
        // Who moves: the client sends, the node reads, the node's words arrive.
        let choice = turns.get(turn).copied().unwrap_or(turn as u8);
        turn += 1;
        if choice % 3 == 0 && at < bytes.len() {
            let head = header(&bytes[at..], 1000).expect("a good length").expect("a whole header");
            at += head.body_len + HEADER_LEN;
            // What the node would skip is not sent to it; a Sync ends that.
            if !pipeline.skipping() || head.tag == SYNC {
                note(&mut pipeline, head.tag);
            }
            message += 1;
        } else if choice % 3 == 1 && read < message {
            let tag = bytes[read * (HEADER_LEN + 2)];
            node.read(tag, luck[read]);
            read += 1;
        } else if let Some(tag) = node.said.pop_front() {
            let fits = pipeline.on_reply(tag);
            assert!(fits.is_ok(), "{fits:?} although the node kept the protocol");
            heard += usize::from(tag == backend::READY);
            while pipeline.take_failed().is_some() {}
        }
    }
    assert!(pipeline.is_empty(), "{} replies are still owed", pipeline.len());
    assert_eq!(heard, node.readies);
});
