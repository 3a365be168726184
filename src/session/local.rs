//! What needs no node: closing names, Sync alone, refusals, and transactions that are held back or
//! lost.
//!
//! Invariant: every request gets exactly the replies that PostgreSQL would send. Absent on purpose:
//! anything that reads data.

use super::attach::{Denied, Wanted};
use super::effects::Control;
use super::loss::lost_transaction;
use super::trial::Trial;
use super::unit::{Scan, Violation};
use super::{Session, SessionEnd, Transaction};
use crate::config::PoolMode;
use crate::error::{Classify, ClientError, Severity, SqlState};
use crate::relay::Message;
use crate::sql::{Access, Change, Classification, TxControl, begins_with};
use crate::wire::frontend::{self, Named};
use crate::wire::{TxStatus, backend as tags, encode};
use std::sync::Arc;

/// What the detached session did with what the client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// More bytes are needed.
    Hungry,
    /// Something moved; look again.
    Moved,
    /// The session ends.
    End(SessionEnd),
}

impl Session {
    /// Handles what stands in the inbox while no backend is attached.
    pub(super) fn pump(&mut self) -> Pumped {
        self.drop_bytes();
        if self.skip_bytes > 0 || !self.inbox.has_unread() {
            return Pumped::Hungry;
        }
        let outcome = if self.skip_to_sync {
            self.skip()
        } else if matches!(self.transaction, Transaction::Lost { .. }) {
            self.answer_lost()
        } else {
            self.begin_unit()
        };
        outcome.unwrap_or_else(|violation| self.violated(&violation))
    }

    /// The rest of a message whose beginning went to a backend that is gone.
    fn drop_bytes(&mut self) {
        let drop = self.skip_bytes.min(self.inbox.unread().len());
        if drop > 0 {
            self.skip_bytes -= drop;
            self.consumed(drop);
        }
    }

    fn consumed(&mut self, len: usize) {
        self.inbox.advance(len);
        self.inbox.settle();
    }

    fn violated(&mut self, violation: &Violation) -> Pumped {
        let error = ClientError::fatal(SqlState::PROTOCOL_VIOLATION, violation.to_string());
        self.deps.metrics.clients.error(crate::error::Fault::Client, "violation");
        encode::error(self.outbox.tail(), &error);
        Pumped::End(SessionEnd::Violation)
    }

    /// A violation while a backend is attached: said and ended.
    pub(super) fn end_violated(&mut self, violation: &Violation) {
        self.outbox.release();
        if let Pumped::End(end) = self.violated(violation) {
            self.ending = Some(end);
        }
    }

    fn next_message(&mut self) -> Result<Option<Message>, Violation> {
        let limit = self.deps.tunables.load().message_bytes_max;
        Ok(self.inbox.message_at(self.inbox.cursor(), limit)?)
    }

    /// After an error in the extended protocol: everything up to Sync is skipped.
    fn skip(&mut self) -> Result<Pumped, Violation> {
        let Some(message) = self.next_message()? else { return Ok(Pumped::Hungry) };
        if message.tag == frontend::TERMINATE {
            return Ok(Pumped::End(SessionEnd::ClientLeft));
        }
        self.skip_bytes = message.len;
        self.drop_bytes();
        if message.tag == frontend::SYNC {
            self.skip_to_sync = false;
            encode::ready(self.outbox.tail(), self.transaction.status());
        }
        Ok(Pumped::Moved)
    }

    fn begin_unit(&mut self) -> Result<Pumped, Violation> {
        match self.scan_unit()? {
            Scan::More(bytes) => {
                self.wanted = bytes;
                Ok(Pumped::Hungry)
            }
            Scan::Local(len) => self.answer_batch(len),
            Scan::Ignore(len) => {
                self.consumed(len);
                Ok(Pumped::Moved)
            }
            Scan::Terminate => Ok(Pumped::End(SessionEnd::ClientLeft)),
            Scan::Route { access, closed, class, names, .. } => {
                // What is prepared under a name cannot be prepared again.
                let access = if names && self.trial.is_some() { Access::Write } else { access };
                if let Some(class) = &class
                    && self.answer_control(class)?
                {
                    return Ok(Pumped::Moved);
                }
                self.query_class = class;
                self.seek(Wanted { access, closed });
                Ok(Pumped::Moved)
            }
        }
    }

    /// Closes of names, Flush and Sync: answered by us.
    fn answer_batch(&mut self, len: usize) -> Result<Pumped, Violation> {
        let end = self.inbox.cursor() + len;
        while self.inbox.cursor() < end {
            let Some(message) = self.next_message()? else { break };
            match message.tag {
                frontend::CLOSE => {
                    if let Named::Statement(name) = frontend::named(self.inbox.body(message))? {
                        let name = name.to_vec();
                        if name.is_empty() {
                            self.prepared.unnamed.class = None;
                        } else {
                            self.prepared.remove_sql(&String::from_utf8_lossy(&name));
                            self.prepared.closing(&name);
                            self.prepared.confirm();
                        }
                    }
                    encode::bare(self.outbox.tail(), tags::CLOSE_COMPLETE);
                }
                frontend::SYNC => encode::ready(self.outbox.tail(), self.transaction.status()),
                _ => {}
            }
            self.inbox.advance(message.len);
        }
        self.inbox.settle();
        Ok(Pumped::Moved)
    }

    /// Transaction control that needs no node now. True: answered.
    fn answer_control(&mut self, class: &Arc<Classification>) -> Result<bool, Violation> {
        let Some(message) = self.next_message()? else { return Ok(false) };
        if self.deps.tunables.load().mode == PoolMode::Statement && class.tx != TxControl::None {
            self.refuse_block(message);
            return Ok(true);
        }
        if let Change::Deallocate { name } = &class.effects.change
            && self.transaction.is_none()
            && self.prepared.knows(name)
        {
            self.prepared.remove(name);
            self.prepared.unnamed.class = None;
            self.complete(message, "DEALLOCATE");
            return Ok(true);
        }
        if self.defers(class) {
            let text: Box<[u8]> = frontend::query(self.inbox.body(message))?.into();
            self.trial = self.is_trial(class).then(|| Box::new(Trial::new(&text)));
            let tag = if begins_with(&text, "start") { "START TRANSACTION" } else { "BEGIN" };
            self.transaction = Transaction::Deferred(text);
            self.complete(message, tag);
            return Ok(true);
        }
        let deferred = matches!(self.transaction, Transaction::Deferred(_));
        let tag = match class.tx {
            TxControl::Commit { chain: false } if deferred => "COMMIT",
            TxControl::Rollback { chain: false } if deferred => "ROLLBACK",
            _ => return Ok(false),
        };
        self.transaction = Transaction::None;
        self.trial = None;
        self.complete(message, tag);
        Ok(true)
    }

    fn refuse_block(&mut self, message: Message) {
        let error = ClientError::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            "transaction blocks are not available in statement pooling mode",
        )
        .hint("Set [pool] mode = \"transaction\" to use them.");
        encode::error(self.outbox.tail(), &error);
        encode::ready(self.outbox.tail(), TxStatus::Idle);
        self.consumed(message.len);
    }

    /// Answers the Query at the cursor ourselves.
    pub(super) fn complete(&mut self, message: Message, tag: &str) {
        encode::command_complete(self.outbox.tail(), tag);
        encode::ready(self.outbox.tail(), self.transaction.status());
        self.consumed(message.len);
    }

    /// In a lost transaction only its end is accepted.
    fn answer_lost(&mut self) -> Result<Pumped, Violation> {
        let Some(message) = self.next_message()? else { return Ok(Pumped::Hungry) };
        match message.tag {
            frontend::TERMINATE => return Ok(Pumped::End(SessionEnd::ClientLeft)),
            frontend::SYNC => {
                encode::ready(self.outbox.tail(), self.transaction.status());
                self.skip_bytes = message.len;
                return Ok(Pumped::Moved);
            }
            frontend::QUERY
            | frontend::PARSE
            | frontend::BIND
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::CLOSE
                if !message.whole && message.len <= super::unit::HOLD_MAX =>
            {
                self.wanted = message.len - self.inbox.unread().len();
                return Ok(Pumped::Hungry);
            }
            _ => {}
        }
        let ends = message.whole && self.ends_transaction(message)?;
        match (message.tag, ends) {
            (frontend::QUERY, true) if self.commits_untold() => {
                self.complain_lost();
                self.transaction = Transaction::None;
                encode::ready(self.outbox.tail(), TxStatus::Idle);
                self.consumed(message.len);
            }
            (frontend::QUERY, true) => {
                self.transaction = Transaction::None;
                self.complete(message, "ROLLBACK");
            }
            (frontend::QUERY | frontend::FUNCTION_CALL, _) => {
                self.complain_lost();
                encode::ready(self.outbox.tail(), TxStatus::Failed);
                self.skip_bytes = message.len;
            }
            (frontend::PARSE, true) => self.reply_bare(message, tags::PARSE_COMPLETE),
            (frontend::BIND, true) => self.reply_bare(message, tags::BIND_COMPLETE),
            (frontend::DESCRIBE, _) if self.ending_lost.ends() => self.reply_bare(message, tags::NO_DATA),
            (frontend::CLOSE, _) => self.reply_bare(message, tags::CLOSE_COMPLETE),
            (frontend::EXECUTE, _) if self.commits_untold() => {
                self.complain_lost();
                self.ending_lost = Control::None;
                self.transaction = Transaction::None;
                self.skip_to_sync = true;
                self.consumed(message.len);
            }
            (frontend::EXECUTE, _) if self.ending_lost.ends() => {
                self.ending_lost = Control::None;
                self.transaction = Transaction::None;
                encode::command_complete(self.outbox.tail(), "ROLLBACK");
                self.consumed(message.len);
            }
            (frontend::PARSE | frontend::BIND | frontend::DESCRIBE | frontend::EXECUTE, _) => {
                self.complain_lost();
                self.skip_to_sync = true;
            }
            (frontend::FLUSH | frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL, _) => {
                self.skip_bytes = message.len;
            }
            (other, _) => return Err(Violation::Tag(other)),
        }
        Ok(Pumped::Moved)
    }

    fn reply_bare(&mut self, message: Message, tag: u8) {
        encode::bare(self.outbox.tail(), tag);
        self.consumed(message.len);
    }

    /// Would this end be taken for a commit by a client that was not told that its transaction is lost?
    fn commits_untold(&self) -> bool {
        self.ending_lost.may_commit() && matches!(self.transaction, Transaction::Lost { told: false })
    }

    fn complain_lost(&mut self) {
        let told = matches!(self.transaction, Transaction::Lost { told: true });
        self.transaction = Transaction::Lost { told: true };
        let error = if told {
            ClientError::error(
                SqlState::IN_FAILED_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            )
        } else {
            lost_transaction()
        };
        encode::error(self.outbox.tail(), &error);
    }

    /// Does this message end a failed transaction? Remembers it for the Execute to come.
    fn ends_transaction(&mut self, message: Message) -> Result<bool, Violation> {
        let body = self.inbox.body(message);
        let control = match message.tag {
            frontend::QUERY => Control::of(&self.deps.classify(&self.catalog, frontend::query(body)?, self.strings).tx),
            frontend::PARSE => {
                Control::of(&self.deps.classify(&self.catalog, frontend::parse(body)?.text, self.strings).tx)
            }
            frontend::BIND => {
                let view = frontend::bind(body)?;
                match self.prepared.find(view.statement) {
                    Some(statement) => Control::of(&statement.class.tx),
                    None => self.ending_lost,
                }
            }
            _ => return Ok(false),
        };
        self.ending_lost = control;
        Ok(control.ends())
    }

    /// Refuses the unit in the inbox.
    pub(super) fn deny(&mut self, denied: &Denied) {
        self.stage = super::Stage::Detached;
        self.deny_with(denied);
    }

    /// Refuses the unit in the inbox: nothing of it was executed.
    pub(super) fn deny_with(&mut self, why: &impl Classify) {
        self.stop_repeating();
        self.note_error(why);
        let error = why.client();
        self.handle.note_waiting(None);
        self.queue_deadline = None;
        self.patience = None;
        self.attempts = 0;
        self.avoid = None;
        self.force_primary = false;
        self.refused = None;
        self.query_class = None;
        encode::error(self.outbox.tail(), &error);
        if error.severity == Severity::Fatal {
            self.ending = Some(SessionEnd::StateLost);
            return;
        }
        if matches!(self.transaction, Transaction::Deferred(_)) {
            self.transaction = Transaction::Lost { told: true };
        }
        let limit = self.deps.tunables.load().message_bytes_max;
        match self.inbox.message_at(self.inbox.cursor(), limit) {
            Ok(Some(message)) if matches!(message.tag, frontend::QUERY | frontend::FUNCTION_CALL) => {
                encode::ready(self.outbox.tail(), self.transaction.status());
                self.skip_bytes = message.len;
                self.drop_bytes();
            }
            _ => self.skip_to_sync = true,
        }
    }
}
