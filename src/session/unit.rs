//! One unit of work: what goes to a node as a whole, up to its ReadyForQuery.
//!
//! A simple Query, a FunctionCall, or extended-protocol messages up to Sync. Invariants: a unit is
//! classified before any of it is sent; what is not known whole, or ends without Sync, counts as a
//! write (unknown means primary). Absent on purpose: sending it (`forward`).

use super::Session;
use super::effects::{Control, Effect};
use crate::backend::Refused;
use crate::clock::Time;
use crate::decision::Excerpt;
use crate::relay::Message;
use crate::sql::{Access, Change, Classification, Hint, HintNode, HintScope, Pins, Why, may_begin_read};
use crate::wire::frontend::{self, Named};
use crate::wire::{FrameError, HEADER_LEN};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of a unit that are waited for before it is sent without knowing the rest.
pub const HOLD_MAX: usize = 64 * 1024;
/// Bytes by which a Query may exceed the classification limit and still be waited for whole.
const QUERY_SLACK: usize = 16;

/// What is known of a unit, from its scan to its ReadyForQuery.
#[derive(Debug)]
pub struct Unit {
    /// Read only if every part is.
    pub access: Access,
    /// Transaction control by the last statement that has any.
    pub tx: Control,
    /// May it have changed data (transaction control and settings do not)?
    pub writes: bool,
    /// What its statements do to the session, in the order of their answers.
    pub effects: VecDeque<Effect>,
    /// Pins that its statements may make.
    pub pins: Pins,
    /// Answers that its statements were asked for so far, and answers that have come.
    pub asked: u32,
    /// See `asked`.
    pub answers: u32,
    /// Something in it could not be looked at.
    pub uncertain: bool,
    /// Some of its messages were passed on, and what ends it was not: the node may be in the middle of
    /// an implicit transaction, whatever its last ReadyForQuery said.
    pub begun: bool,
    /// It touches `synchronous_commit`: commits may be acknowledged before they are flushed.
    pub lazy_commit: bool,
    /// It terminates processes of the server, its own perhaps.
    pub terminates: bool,
    /// The backend knows the client's statements under the client's names as long as it runs.
    pub shows_statements: bool,
    /// In place of its Query the node got something to refuse: the client gets this error.
    pub refused: Option<Refused>,
    /// An error was passed on.
    pub failed: bool,
    /// Part of its answer was passed on.
    pub answered: bool,
    /// When it was sent and how it begins, where slow or failed statements are logged.
    pub watched: Option<Box<Watched>>,
}

/// What is kept of a unit that may be logged.
#[derive(Debug)]
pub struct Watched {
    /// When it was sent.
    pub sent_at: Time,
    /// How its first statement begins.
    pub statement: Excerpt,
    /// The code of the error that was passed on.
    pub sqlstate: Option<Box<str>>,
}

impl Default for Unit {
    fn default() -> Self {
        Self {
            access: Access::Read,
            tx: Control::None,
            writes: false,
            effects: VecDeque::new(),
            pins: Pins::NONE,
            asked: 0,
            answers: 0,
            uncertain: false,
            begun: false,
            lazy_commit: false,
            terminates: false,
            shows_statements: false,
            refused: None,
            failed: false,
            answered: false,
            watched: None,
        }
    }
}

impl Unit {
    /// Adds a statement that is going to run with this access, which may be another than its text's.
    pub fn add(&mut self, class: &Classification, access: Access) {
        let control = Control::of(&class.tx);
        if access == Access::Write {
            // What is lost with its node before it has begun anything has not changed anything.
            if control != Control::Begins {
                self.access = Access::Write;
            }
            let harmless = matches!(class.why, Why::Statement("listen" | "unlisten"))
                || class.effects.shows_token
                || class.tx != crate::sql::TxControl::None
                || !matches!(class.effects.change, Change::None | Change::Execute { .. });
            self.writes |= !harmless
                || class.statements > 1
                || control == Control::Commits && !matches!(class.tx, crate::sql::TxControl::Commit { .. });
        }
        if control != Control::None {
            self.tx = control;
        }
        self.pins = self.pins.union(class.effects.pins);
        self.terminates |= class.effects.signals == Some(crate::sql::BackendSignal::Terminate);
        self.lazy_commit |= class.steps.iter().any(|step| match &step.effects.change {
            Change::Set { name } | Change::SetLocal { name: Some(name) } => &**name == "synchronous_commit",
            Change::SetLocal { name: None } => true,
            _ => false,
        });
    }

    /// Something of unknown content is going to run.
    pub fn add_unknown(&mut self) {
        self.access = Access::Write;
        self.writes = true;
        self.uncertain = true;
    }
}

impl Unit {
    /// Takes in the unit before, whose Sync the node ignored: they are one.
    pub fn follow(&mut self, before: Self) {
        self.access = if before.access == Access::Write { Access::Write } else { self.access };
        self.tx = if self.tx == Control::None { before.tx } else { self.tx };
        self.writes |= before.writes;
        let own = std::mem::replace(&mut self.effects, before.effects);
        let moved = own.into_iter().map(|effect| Effect { at: effect.at.saturating_add(before.asked), ..effect });
        self.effects.extend(moved);
        self.pins = self.pins.union(before.pins);
        self.asked = self.asked.saturating_add(before.asked);
        self.answers = self.answers.saturating_add(before.answers);
        self.uncertain |= before.uncertain;
        self.begun = true;
        self.lazy_commit |= before.lazy_commit;
        self.refused = self.refused.take().or(before.refused);
        self.failed |= before.failed;
        self.answered |= before.answered;
        self.watched = self.watched.take().or(before.watched);
    }

    /// Adds what the statements of a text do to the session, once they are answered.
    pub fn add_effects(&mut self, class: &Classification, text: &[u8], strings: crate::sql::StringSyntax, quiet: bool) {
        Effect::collect(&mut self.effects, self.asked, class, text, strings, quiet);
        self.asked = self.asked.saturating_add(u32::from(class.statements));
    }
}

/// What stands at the beginning of the unread messages.
#[derive(Debug)]
pub enum Scan {
    /// Not enough to decide; so many bytes are missing at least.
    More(usize),
    /// Needs no node: up to and including this many bytes.
    Local(usize),
    /// Messages that mean nothing here (COPY data after a failed COPY).
    Ignore(usize),
    /// Needs a node.
    Route {
        /// Read or write.
        access: Access,
        /// It ends with a Sync or is one Query: nothing else belongs to it.
        closed: bool,
        /// It ends a transaction and does nothing else.
        ends: bool,
        /// It names or closes prepared statements.
        names: bool,
        /// The class of a single simple Query.
        class: Option<Arc<Classification>>,
    },
    /// The client says goodbye.
    Terminate,
}

/// The client broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message type that no client sends here.
    #[error("invalid frontend message type {0}")]
    Tag(u8),
    /// More prepared statements than one client may have.
    #[error("too many prepared statements in one session")]
    TooManyNames,
    /// A body that does not hold what it should.
    #[error("invalid message format")]
    Frame(#[from] FrameError),
}

/// The state of a scan over extended-protocol messages.
struct Batch {
    access: Access,
    /// What it runs ends a transaction; `None`: nothing yet.
    ends: Option<bool>,
    names: bool,
    runs: bool,
    needs_node: bool,
}

impl Session {
    /// Looks at the unread messages while no backend is attached.
    pub(super) fn scan_unit(&mut self) -> Result<Scan, Violation> {
        let limit = self.deps.tunables.load().message_bytes_max;
        let mut at = self.inbox.cursor();
        let first = at;
        let mut batch = Batch { access: Access::Read, ends: None, names: false, runs: false, needs_node: false };
        let mut hold_max = HOLD_MAX;
        loop {
            let Some(message) = self.inbox.message_at(at, limit)? else { return Ok(Scan::More(HEADER_LEN)) };
            let begins = at == first;
            // A Parse is waited for in any case.
            if begins && message.tag == frontend::PARSE {
                hold_max += message.len;
            }
            match message.tag {
                frontend::QUERY if begins => return self.scan_query(message),
                frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL if begins => {
                    return Ok(if message.whole { Scan::Ignore(message.len) } else { self.missing(message) });
                }
                frontend::TERMINATE if begins => return Ok(Scan::Terminate),
                frontend::SYNC => {
                    let len = at + message.len - first;
                    if !message.whole {
                        return Ok(self.missing(message));
                    }
                    return Ok(batch.end(len));
                }
                // A batch without Sync, or one that another kind of message ends, is not known whole.
                frontend::FLUSH | frontend::FUNCTION_CALL | frontend::QUERY | frontend::TERMINATE
                    if batch.needs_node || message.tag == frontend::FUNCTION_CALL =>
                {
                    return Ok(Scan::WRITE);
                }
                frontend::FLUSH if message.whole => {}
                frontend::PARSE | frontend::BIND | frontend::DESCRIBE | frontend::EXECUTE | frontend::CLOSE => {
                    if !message.whole {
                        let long = at + message.len - first > hold_max && message.tag != frontend::PARSE;
                        return Ok(if long { Scan::WRITE } else { self.missing(message) });
                    }
                    self.scan_extended(message, &mut batch)?;
                }
                frontend::QUERY | frontend::TERMINATE | frontend::FLUSH => return Ok(Scan::Local(at - first)),
                frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {
                    return Ok(Scan::WRITE);
                }
                other => return Err(Violation::Tag(other)),
            }
            at += message.len;
            if at - first > hold_max {
                return Ok(Scan::WRITE);
            }
        }
    }

    fn missing(&self, message: Message) -> Scan {
        Scan::More(message.len - self.inbox.bytes(message.at, message.len).len())
    }

    /// Is a Query that is not there yet worth its memory until it is? A long one only if it may be a read.
    pub(super) fn waits_for_whole(&self, message: Message) -> bool {
        let limit = self.deps.tunables.load().classifier.classify_bytes_max + QUERY_SLACK;
        let begun = || self.inbox.bytes(message.at, message.len).get(HEADER_LEN..).unwrap_or_default();
        message.len <= limit && (message.len <= HOLD_MAX + QUERY_SLACK || may_begin_read(begun()))
    }

    fn scan_query(&mut self, message: Message) -> Result<Scan, Violation> {
        if !message.whole {
            return Ok(if self.waits_for_whole(message) {
                self.missing(message)
            } else {
                Scan::Route { access: Access::Write, closed: true, ends: false, names: false, class: None }
            });
        }
        let text = frontend::query(self.inbox.body(message))?;
        let class = self.deps.classify(&self.catalog, text, self.strings);
        let (access, ends) = (self.wanted_of(&class), ends_only(&class));
        Ok(Scan::Route { access, closed: true, ends, names: false, class: Some(class) })
    }

    /// A hint for the session counts from its own statement on.
    pub(super) fn heed_hint(&mut self, class: &Classification) {
        if let Some(Hint { node, scope: HintScope::Session }) = class.hint {
            self.hint = Some(node);
        }
    }

    /// The node that a statement's own hint asks for, or the session's.
    pub(super) fn hint_for(&self, own: Option<Hint>) -> Option<HintNode> {
        own.map(|hint| hint.node).or(self.hint)
    }

    /// Read or write, by the hint too: what it sends to the primary may write, whatever its text says; that may be why.
    pub(super) fn hinted(&self, own: Option<Hint>, access: Access) -> Access {
        if self.hint_for(own) == Some(HintNode::Primary) { Access::Write } else { access }
    }

    /// Where it wants to go; a transaction that only reads may begin on a standby.
    fn wanted_of(&mut self, class: &Classification) -> Access {
        self.heed_hint(class);
        match self.hinted(class.hint, class.wanted()) {
            Access::Write if self.transaction.is_none() && self.pins.is_empty() && self.begins_read(class) => {
                Access::Read
            }
            wanted => wanted,
        }
    }

    fn scan_extended(&mut self, message: Message, batch: &mut Batch) -> Result<(), Violation> {
        let body = self.inbox.body(message);
        match message.tag {
            frontend::PARSE => {
                let view = frontend::parse(body)?;
                let class = self.deps.classify(&self.catalog, view.text, self.strings);
                batch.names |= !view.name.is_empty();
                batch.note_end(ends_only(&class));
                batch.add(self.wanted_of(&class));
                self.memo = Some((message.at, class));
            }
            frontend::BIND => {
                let view = frontend::bind(body)?;
                if !view.statement.is_empty() {
                    let ends = self.prepared.find(view.statement).is_some_and(|statement| ends_only(&statement.class));
                    batch.note_end(ends);
                }
                let access = if view.statement.is_empty() {
                    // Its Parse stands in this batch, or was remembered.
                    let in_batch = self.memo.as_ref().is_some_and(|(at, _)| *at >= self.inbox.cursor());
                    let known = self.prepared.unnamed.class.clone();
                    match known {
                        _ if in_batch => Access::Read,
                        Some(class) => self.wanted_of(&class),
                        None => Access::Write,
                    }
                } else {
                    let in_batch = self.memo.as_ref().is_some_and(|(at, _)| *at >= self.inbox.cursor());
                    match self.prepared.find(view.statement).cloned() {
                        Some(statement) if statement.class.tx != crate::sql::TxControl::None => {
                            self.wanted_of(&statement.class)
                        }
                        Some(statement) => self.hinted(statement.class.hint, self.access_of(&statement)),
                        // Defined in this batch: its Parse has been counted.
                        None if in_batch => Access::Read,
                        None => Access::Write,
                    }
                };
                batch.add(access);
            }
            frontend::DESCRIBE => {
                frontend::named(body)?;
                batch.needs_node = true;
            }
            frontend::EXECUTE => {
                batch.runs = true;
                batch.needs_node = true;
            }
            _ => {
                batch.names = true;
                if matches!(frontend::named(body)?, Named::Portal(_)) {
                    batch.needs_node = true;
                }
            }
        }
        Ok(())
    }
}

impl Scan {
    /// What is not known whole counts as a write.
    const WRITE: Self = Self::Route { access: Access::Write, closed: false, ends: false, names: false, class: None };
}

/// Does a text end a transaction and do nothing else?
fn ends_only(class: &Classification) -> bool {
    class.statements == 1 && Control::of(&class.tx).ends()
}

impl Batch {
    fn note_end(&mut self, ends: bool) {
        self.ends = Some(ends && self.ends != Some(false));
    }

    fn add(&mut self, access: Access) {
        self.needs_node = true;
        if access == Access::Write {
            self.access = Access::Write;
        }
    }

    fn end(&self, len: usize) -> Scan {
        if !self.needs_node {
            return Scan::Local(len);
        }
        let ends = self.ends == Some(true);
        Scan::Route { access: self.access, closed: true, ends, names: self.names, class: None }
    }
}
