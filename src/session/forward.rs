//! From the client to the node: messages passed on, renamed where they name prepared statements.
//!
//! Invariants: one entry in the queue of replies owed per request that the node will answer; a
//! prepared statement is on the backend before anything names it; while the node skips to Sync
//! nothing is queued that it will not answer. Absent on purpose: reading replies.

use super::hidden::Hidden;
use super::statements::REFUSED_TEXT;
use super::unit::{HOLD_MAX, Violation, Watched};
use super::{Attachment, Describing, Gate, Session};
use crate::backend::Owed;
use crate::decision::Excerpt;
use crate::relay::Message;
use crate::route::Reach;
use crate::sql::{Access, Classification, Why};
use crate::topology::Role;
use crate::wire::encode;
use crate::wire::frontend::{self};
use std::sync::Arc;

/// Bytes for the node that may wait before more is taken from the client.
const NODE_OUTBOX_MAX: usize = 64 * 1024;

/// What became of a message.
pub(super) enum Passed {
    /// Passed on or answered.
    Yes,
    /// More bytes are needed.
    More(usize),
    /// The client says goodbye.
    Terminate,
    /// It must not run on a standby, where its transaction is.
    Misplaced,
}

/// What became of everything that could be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// All of it.
    Done,
    /// Not all: the node must take something first.
    Full,
    /// The client said goodbye.
    Terminate,
    /// A statement must not run where its transaction is.
    Misplaced,
    /// The transaction must move to the primary.
    Moves,
    /// It has moved, and the primary has answered otherwise.
    Disagreed,
}

impl Session {
    /// Passes on what the client sent, as far as the gate and the node's outbox allow.
    pub(super) fn forward(&mut self, attachment: &mut Attachment) -> Result<Forwarded, Violation> {
        let (limit, watches) = {
            let tunables = self.deps.tunables.load();
            (tunables.message_bytes_max, tunables.slow_statement.is_some() || tunables.failed_statements)
        };
        loop {
            if attachment.outbox.len() > NODE_OUTBOX_MAX {
                return Ok(Forwarded::Full);
            }
            if attachment.to_node > 0 {
                let take = attachment.to_node.min(self.inbox.unread().len());
                if take == 0 {
                    break;
                }
                attachment.outbox.push(self.inbox.bytes(self.inbox.cursor(), take));
                self.inbox.advance(take);
                self.inbox.settle();
                attachment.to_node -= take;
            }
            if attachment.gate == Gate::Shut || attachment.is_held_up() || self.must_see_answer() {
                break;
            }
            if let Some(stopped) = self.judge_trial(attachment)? {
                return Ok(stopped);
            }
            let Some(message) = self.inbox.message_at(self.inbox.cursor(), limit)? else { break };
            if watches {
                self.watch(message);
            }
            match self.pass(attachment, message)? {
                Passed::Yes => self.unit.begun |= frontend::is_extended(message.tag),
                Passed::More(need) => {
                    self.wanted = need;
                    break;
                }
                Passed::Terminate => return Ok(Forwarded::Terminate),
                Passed::Misplaced => return Ok(Forwarded::Misplaced),
            }
            if attachment.gate == Gate::Free {
                self.inbox.settle();
            }
        }
        Ok(Forwarded::Done)
    }

    /// Remembers when the unit was sent and how it begins: it may be logged.
    fn watch(&mut self, message: Message) {
        let begins =
            matches!(message.tag, frontend::QUERY | frontend::PARSE | frontend::BIND | frontend::FUNCTION_CALL);
        if begins && self.unit.watched.is_none() {
            let statement = Excerpt::of(self.statement_at_cursor().0);
            let sent_at = self.deps.clock.now();
            self.unit.watched = Some(Box::new(Watched { sent_at, statement, sqlstate: None }));
        }
    }

    fn pass(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let skipping = attachment.checkout.owed.skipping();
        if skipping && !matches!(message.tag, frontend::SYNC | frontend::TERMINATE) {
            return Ok(self.drop_message(attachment, message));
        }
        let copy_message = matches!(
            message.tag,
            frontend::COPY_DATA
                | frontend::COPY_DONE
                | frontend::COPY_FAIL
                | frontend::SYNC
                | frontend::FLUSH
                | frontend::TERMINATE
        );
        if attachment.checkout.owed.copy_in() && !copy_message {
            // The node ends the COPY with an error and answers this message with nothing else.
            if !message.whole {
                return Ok(self.more(message));
            }
            attachment.checkout.owed.copy_ended();
            return Ok(self.stream(attachment, message));
        }
        match message.tag {
            frontend::COPY_DATA => Ok(self.stream(attachment, message)),
            frontend::COPY_DONE | frontend::COPY_FAIL => {
                if message.whole {
                    attachment.checkout.owed.copy_ended();
                }
                Ok(self.whole_or_more(attachment, message))
            }
            frontend::QUERY => self.pass_query(attachment, message),
            frontend::PARSE if message.whole => self.pass_parse(attachment, message),
            frontend::BIND => self.pass_bind(attachment, message),
            frontend::DESCRIBE if message.whole => self.pass_describe(attachment, message),
            frontend::EXECUTE if message.whole => {
                self.note_executed(message)?;
                attachment.checkout.owed.push(Owed::Execute);
                Ok(self.stream(attachment, message))
            }
            frontend::CLOSE if message.whole => self.pass_close(attachment, message),
            frontend::SYNC if message.whole => {
                self.pass_sync(attachment, message);
                Ok(Passed::Yes)
            }
            frontend::FLUSH => Ok(self.whole_or_more(attachment, message)),
            frontend::FUNCTION_CALL => {
                attachment.checkout.owed.push(Owed::Function);
                self.unit.access = crate::sql::Access::Write;
                self.unit.writes = true;
                self.unit.uncertain = !frontend::calls_large_object(self.inbox.body(message));
                self.unit_sent(attachment);
                Ok(self.stream(attachment, message))
            }
            // What was sent before the goodbye is carried out, as PostgreSQL would; but nothing more will end a COPY.
            frontend::TERMINATE if !self.sent.is_empty() && !attachment.checkout.owed.copy_in() => Ok(Passed::More(0)),
            frontend::TERMINATE => Ok(Passed::Terminate),
            frontend::PARSE | frontend::DESCRIBE | frontend::EXECUTE | frontend::CLOSE | frontend::SYNC => {
                Ok(self.more(message))
            }
            other => Err(Violation::Tag(other)),
        }
    }

    pub(super) fn more(&self, message: Message) -> Passed {
        Passed::More(message.len - self.inbox.bytes(message.at, message.len).len())
    }

    /// Passes a message on as it is; the rest of a long one follows as it arrives.
    pub(super) fn stream(&mut self, attachment: &mut Attachment, message: Message) -> Passed {
        let there = self.inbox.bytes(message.at, message.len);
        attachment.outbox.push(there);
        attachment.to_node = message.len - there.len();
        let len = there.len();
        self.inbox.advance(len);
        Passed::Yes
    }

    fn whole_or_more(&mut self, attachment: &mut Attachment, message: Message) -> Passed {
        if message.whole { self.stream(attachment, message) } else { self.more(message) }
    }

    /// The node would skip this message, so it need not see it.
    fn drop_message(&mut self, attachment: &mut Attachment, message: Message) -> Passed {
        if message.whole {
            self.inbox.advance(message.len);
            return Passed::Yes;
        }
        if message.len > HOLD_MAX { self.stream(attachment, message) } else { self.more(message) }
    }

    fn pass_query(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let class = match (&self.query_class, message.whole) {
            (Some(class), true) => Some(Arc::clone(class)),
            (None, true) => {
                Some(self.deps.classify(&self.catalog, frontend::query(self.inbox.body(message))?, self.strings))
            }
            (_, false) if self.waits_for_whole(message) => return Ok(self.more(message)),
            (_, false) => None,
        };
        self.query_class = None;
        if class.as_deref().is_some_and(|class| self.is_misplaced(attachment, class)) {
            return Ok(Passed::Misplaced);
        }
        if let Some(class) = &class
            && let Some(passed) = self.deallocate(attachment, message, class)
        {
            return Ok(passed);
        }
        let mut renamed = None;
        let body = self.inbox.body(message);
        let text = if message.whole { frontend::query(body)? } else { b"" };
        if let Some(refused) = class.as_deref().and_then(|class| self.refuses_text(class, text)) {
            self.unit.refused = Some(refused);
            attachment.checkout.owed.push(Owed::Query { swallow: false });
            encode::query(attachment.outbox.tail(), REFUSED_TEXT);
            self.inbox.advance(message.len);
            self.unit_sent(attachment);
            return Ok(Passed::Yes);
        }
        match class {
            Some(class) => {
                self.heed_hint(&class);
                self.remember_sequences(attachment, &class);
                self.vacate(&class);
                self.beware(&class);
                self.show_statements(attachment, &class);
                let access = self.hinted(class.hint, class.wanted());
                self.unit.add(&class, access);
                let quiet = self.is_quiet();
                let text = frontend::query(self.inbox.body(message))?;
                self.unit.add_effects(&class, text, self.strings, quiet);
                renamed = self.token_question(&class).or_else(|| self.align_names(attachment, &class, message));
                if class.effects.signals.is_some() {
                    let text = frontend::query(self.inbox.body(message))?;
                    renamed = self.signals_in_text(attachment, &class, text).or(renamed);
                }
            }
            // Too long to look at: it may do anything.
            None => self.unit.add_unknown(),
        }
        // A simple query drops the unnamed statement (PostgreSQL docs, "Extended Query").
        self.prepared.unnamed.class = None;
        attachment.checkout.statements.note_unnamed(None);
        attachment.checkout.owed.push(Owed::Query { swallow: false });
        let passed = match renamed {
            Some(text) => {
                encode::query(attachment.outbox.tail(), &text);
                self.inbox.advance(message.len);
                Passed::Yes
            }
            None => self.stream(attachment, message),
        };
        self.unit_sent(attachment);
        Ok(passed)
    }

    /// Could the end of a transaction neither make anything last nor undo it, whatever is still under way?
    pub(super) fn is_quiet(&self) -> bool {
        self.tracked.is_quiet()
            && self.bound.is_empty()
            && self.unit.effects.is_empty()
            && self.sent.iter().all(|unit| unit.effects.is_empty())
    }

    /// Does this leave something behind (a lock, say) that means nothing on the standby where its
    /// READ ONLY transaction runs? The standby itself would not refuse it.
    pub(super) fn is_misplaced(&self, attachment: &Attachment, class: &Classification) -> bool {
        let locks = match &class.why {
            Why::Function(words) | Why::Catalog(words) => words.contains("advisory"),
            _ => false,
        };
        attachment.target.role == Role::Standby
            && self.preference.reach != Reach::Standby
            && self.transaction.is_open()
            && (locks || !class.effects.pins.is_empty())
    }

    fn pass_sync(&mut self, attachment: &mut Attachment, message: Message) {
        let ignored = attachment.checkout.owed.copy_in();
        attachment.checkout.owed.push(Owed::Sync { swallow: false });
        self.stream(attachment, message);
        if !ignored {
            self.unit_sent(attachment);
        }
    }

    /// The unit is complete: its ReadyForQuery is owed.
    pub(super) fn unit_sent(&mut self, attachment: &mut Attachment) {
        let mut unit = std::mem::take(&mut self.unit);
        if self.refused.is_some() {
            unit.access = Access::Write;
            unit.writes = true;
        }
        let shown = unit.shows_statements;
        if unit.writes {
            attachment.checkout.control.note_session(self.handle.key().pid);
        }
        self.sent.push_back(unit);
        if shown {
            Self::send_hidden(attachment, b"DEALLOCATE ALL", Hidden::Forget);
            attachment.checkout.statements.forget_all();
        }
        if attachment.gate == Gate::OneRead {
            attachment.gate = Gate::Shut;
        }
    }
}

impl Attachment {
    /// Must nothing more be sent: the session's settings were refused or are not known to be made, or the backend
    /// has been asked something whose answer decides what comes next?
    fn is_held_up(&self) -> bool {
        self.refused.is_some()
            || self.describing == Describing::Asked
            // What follows a question is routed anew once it is answered: a read need not stay here.
            || self.hidden.iter().any(|hidden| matches!(hidden, Hidden::Ask(_) | Hidden::Hazards(_)))
            || self.guarded && self.hidden.iter().any(|hidden| matches!(hidden, Hidden::Settings | Hidden::Begin))
    }
}
