//! From the client to the node: messages passed on, renamed where they name prepared statements.
//!
//! Invariants: one entry in the queue of replies owed per request that the node will answer; a
//! prepared statement is on the backend before anything names it; while the node skips to Sync
//! nothing is queued that it will not answer. Absent on purpose: reading replies.

use super::effects::Effect;
use super::hidden::Hidden;
use super::unit::{HOLD_MAX, Violation};
use super::{Attachment, Gate, Session};
use crate::backend::{NAME_PREFIX, Owed, Settings, Statement};
use crate::relay::Message;
use crate::sql::{Change, Classification, Sequences, Why, prepared_name};
use crate::topology::Role;
use crate::wire::frontend::{self, Named};
use crate::wire::{HEADER_LEN, TxStatus, encode};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes for the node that may wait before more is taken from the client.
const NODE_OUTBOX_MAX: usize = 64 * 1024;

/// Portals that will change settings, each bound and not yet replaced.
const BOUND_MAX: usize = 64;
/// In place of a statement's number: the backend learns and forgets nothing by this Parse.
const NOT_TRACKED: u64 = u64::MAX;

/// Tells unnamed statements apart, process-wide.
static UNNAMED_SERIAL: AtomicU64 = AtomicU64::new(1);

/// What became of a message.
enum Passed {
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
}

impl Session {
    /// Passes on what the client sent, as far as the gate and the node's outbox allow.
    pub(super) fn forward(&mut self, attachment: &mut Attachment) -> Result<Forwarded, Violation> {
        let limit = self.deps.tunables.load().message_bytes_max;
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
            if attachment.gate == Gate::Shut || attachment.is_held_up() || self.changes_names_now() {
                break;
            }
            let Some(message) = self.inbox.message_at(self.inbox.cursor(), limit)? else { break };
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
            // What was sent before the goodbye is carried out, as PostgreSQL would.
            frontend::TERMINATE if !self.sent.is_empty() => Ok(Passed::More(0)),
            frontend::TERMINATE => Ok(Passed::Terminate),
            frontend::PARSE | frontend::DESCRIBE | frontend::EXECUTE | frontend::CLOSE | frontend::SYNC => {
                Ok(self.more(message))
            }
            other => Err(Violation::Tag(other)),
        }
    }

    fn more(&self, message: Message) -> Passed {
        Passed::More(message.len - self.inbox.bytes(message.at, message.len).len())
    }

    /// Passes a message on as it is; the rest of a long one follows as it arrives.
    fn stream(&mut self, attachment: &mut Attachment, message: Message) -> Passed {
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
            (None, true) => Some(self.deps.classify(frontend::query(self.inbox.body(message))?, self.strings)),
            (_, false) => {
                let classify_max = self.deps.tunables.load().classifier.classify_bytes_max;
                if message.len <= classify_max + HEADER_LEN {
                    return Ok(self.more(message));
                }
                None
            }
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
        match class {
            Some(class) => {
                self.remember_sequences(attachment, &class);
                self.vacate(&class);
                self.unit.add(&class);
                let quiet = self.is_quiet();
                let text = frontend::query(self.inbox.body(message))?;
                self.unit.add_effects(&class, text, self.strings, quiet);
                renamed = self.align_names(attachment, &class, message);
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
    fn is_quiet(&self) -> bool {
        self.tracked.is_quiet()
            && self.bound.is_empty()
            && self.unit.effects.is_empty()
            && self.sent.iter().all(|unit| unit.effects.is_empty())
    }

    /// Is a statement under way that changes which prepared statements there are? What a name means is known after it.
    fn changes_names_now(&self) -> bool {
        self.sent.back().is_some_and(|unit| unit.effects.iter().any(Effect::changes_names))
    }

    /// Makes the backend know the SQL-level names in this text as the session knows them. The answer is the
    /// text with another name where the client means a statement of the protocol.
    fn align_names(
        &mut self,
        attachment: &mut Attachment,
        class: &Classification,
        message: Message,
    ) -> Option<Vec<u8>> {
        let mut renamed = None;
        if self.transaction.status() == TxStatus::Failed {
            return None;
        }
        for step in &class.steps {
            let (Change::Prepare { name } | Change::Execute { name } | Change::Deallocate { name }) =
                &step.effects.change
            else {
                continue;
            };
            let Some(statement) = self.prepared.find(name.as_bytes()).cloned() else {
                self.align_sql(attachment, name);
                continue;
            };
            let text = renamed.take().or_else(|| frontend::query(self.inbox.body(message)).ok().map(<[u8]>::to_vec))?;
            let place = prepared_name(&text, name)?;
            if !self.unit.begun && !attachment.knows(&statement) {
                attachment.teach(&statement, true, self.deps.schema());
                encode::bare(attachment.outbox.tail(), frontend::SYNC);
                attachment.checkout.owed.push(Owed::Sync { swallow: true });
            }
            renamed = Some([&text[..place.start], &statement.backend_name, &text[place.end..]].concat());
        }
        renamed
    }

    /// Makes the backend know the session's SQL-level statement of this name, or none.
    fn align_sql(&mut self, attachment: &mut Attachment, name: &str) {
        let there = attachment.checkout.statements.sql_text(name);
        let wanted = self.prepared.sql(name);
        if there == wanted || self.unit.begun || self.transaction.status() == TxStatus::Failed {
            return;
        }
        let mut text = Vec::new();
        if there.is_some() {
            text.extend_from_slice(format!("DEALLOCATE \"{}\"\n;", name.replace('"', "\"\"")).as_bytes());
        }
        if let Some(wanted) = wanted {
            text.extend_from_slice(wanted);
        }
        let wanted = wanted.cloned();
        attachment.checkout.statements.note_sql(name, wanted.as_ref());
        Self::send_hidden(attachment, &text, Hidden::Statement);
    }

    /// DEALLOCATE of a name of the protocol's: the backend keeps the statement, only the name goes.
    fn deallocate(&mut self, attachment: &Attachment, message: Message, class: &Classification) -> Option<Passed> {
        let Change::Deallocate { name } = &class.effects.change else { return None };
        let failed = self.transaction.status() == TxStatus::Failed;
        if self.unit.begun || failed || class.statements != 1 || !self.prepared.knows(name) {
            return None;
        }
        if !attachment.checkout.owed.is_empty() {
            return Some(Passed::More(0));
        }
        self.prepared.remove(name);
        self.prepared.unnamed.class = None;
        self.complete(message, "DEALLOCATE");
        Some(Passed::Yes)
    }

    /// DEALLOCATE and EXECUTE in the extended protocol: what they name is called differently on backends.
    /// The content of the Parse that says so.
    fn renamed(&self, view: &frontend::ParseView<'_>, class: &Classification) -> Option<Vec<u8>> {
        let (Change::Deallocate { name } | Change::Execute { name } | Change::Prepare { name }) = &class.effects.change
        else {
            return None;
        };
        let statement = self.prepared.find(name.as_bytes())?;
        let place = prepared_name(view.text, name)?;
        Some([&view.content[..place.start], &statement.backend_name, &view.content[place.end..]].concat())
    }

    /// The same as for a Query, for a text that is prepared or bound in the extended protocol.
    fn align_parsed(&mut self, attachment: &mut Attachment, class: &Classification) {
        if self.transaction.status() == TxStatus::Failed {
            return;
        }
        if let Change::Prepare { name } | Change::Execute { name } | Change::Deallocate { name } = &class.effects.change
        {
            match self.prepared.find(name.as_bytes()).cloned() {
                Some(statement) => attachment.know(&statement, self.deps.schema()),
                None => self.align_sql(attachment, name),
            }
        }
    }

    /// `currval()` and `lastval()` are about to be asked: another session's values on this backend must not
    /// answer. From now on sessions of this user keep their backend once they have written, so that the
    /// next time the answer is there.
    fn remember_sequences(&self, attachment: &mut Attachment, class: &Classification) {
        if class.effects.sequences != Sequences::Read {
            return;
        }
        attachment.checkout.pool().note_sequences_used();
        let failed = self.transaction.status() == TxStatus::Failed;
        if attachment.checkout.sequences_of != Some(self.handle.id) && !self.unit.begun && !failed {
            Self::send_hidden(attachment, b"DISCARD SEQUENCES", Hidden::Forget);
        }
        attachment.checkout.sequences_of = Some(self.handle.id);
    }

    /// Idle backends in a database are nobody's sessions: they must not keep it from being dropped or copied.
    fn vacate(&self, class: &Classification) {
        if let Some(database) = &class.effects.vacates {
            self.deps.pools.vacate(database);
        }
    }

    /// Does this leave something behind (a lock, say) that means nothing on the standby where its
    /// READ ONLY transaction runs? The standby itself would not refuse it.
    fn is_misplaced(&self, attachment: &Attachment, class: &Classification) -> bool {
        let locks = match &class.why {
            Why::Function(name) => name.contains("advisory"),
            _ => false,
        };
        attachment.target.role == Role::Standby
            && self.transaction.is_open()
            && (locks || !class.effects.pins.is_empty())
    }

    fn pass_sync(&mut self, attachment: &mut Attachment, message: Message) {
        let ignored = attachment.checkout.owed.copy_in();
        attachment.checkout.owed.push(Owed::Sync { swallow: false });
        if !ignored {
            self.unit_sent(attachment);
        }
        self.stream(attachment, message);
    }

    /// The unit is complete: its ReadyForQuery is owed.
    pub(super) fn unit_sent(&mut self, attachment: &mut Attachment) {
        let unit = std::mem::take(&mut self.unit);
        let resets = unit.resets || unit.effects.iter().any(|effect| effect.kind.resets());
        self.sent.push_back(unit);
        if resets && !self.tracked.startup().entries().is_empty() {
            // On the node RESET goes to its own default; what the client brought along comes back at once.
            let text = Settings::default().change_to(self.tracked.startup());
            Self::send_hidden(attachment, &text, Hidden::Restore);
        }
        if attachment.gate == Gate::OneRead {
            attachment.gate = Gate::Shut;
        }
    }

    fn pass_parse(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let view = frontend::parse(self.inbox.body(message))?;
        let class = match self.memo.take() {
            Some((at, class)) if at == message.at => class,
            _ => self.deps.classify(view.text, self.strings),
        };
        self.align_parsed(attachment, &class);
        let view = frontend::parse(self.inbox.body(message))?;
        if view.name.is_empty() {
            let renamed = self.renamed(&view, &class);
            let serial = UNNAMED_SERIAL.fetch_add(1, Ordering::Relaxed);
            let unnamed = &mut self.prepared.unnamed;
            unnamed.content.clear();
            unnamed.content.extend_from_slice(renamed.as_deref().unwrap_or(view.content));
            unnamed.class = Some(class);
            unnamed.serial = serial;
            attachment.checkout.statements.note_unnamed(Some(serial));
            attachment.checkout.owed.push(Owed::Parse { swallow: false, id: 0 });
            self.prepared.defining_unnamed();
            if let Some(content) = renamed {
                attachment.push_parse(b"", &content);
                self.inbox.advance(message.len);
                return Ok(Passed::Yes);
            }
            return Ok(self.stream(attachment, message));
        }
        let name = String::from_utf8_lossy(view.name).into_owned();
        if self.prepared.sql(&name).is_some() {
            // As below, but the name is one of SQL.
            self.align_sql(attachment, &name);
            attachment.checkout.owed.push(Owed::Parse { swallow: false, id: NOT_TRACKED });
            self.prepared.defining_again(name.as_bytes());
            return Ok(self.stream(attachment, message));
        }
        if let Some(existing) = self.prepared.find(view.name) {
            // The node refuses the duplicate itself (42P05), with all that means for the transaction.
            let existing = Arc::clone(existing);
            attachment.know(&existing, self.deps.schema());
            let content = view.content.to_vec();
            attachment.push_parse(&existing.backend_name, &content);
            attachment.checkout.owed.push(Owed::Parse { swallow: false, id: NOT_TRACKED });
            let name = view.name.to_vec();
            self.prepared.defining_again(&name);
        } else if !self.prepared.has_room() {
            return Err(Violation::TooManyNames);
        } else {
            let statement = self.deps.statements.intern(view.content, || class);
            let name = view.name.to_vec();
            self.prepared.defining(&name, Arc::clone(&statement));
            let schema = self.deps.schema();
            // What the client parses now must mean what it means now: an older plan may have other columns.
            if attachment.knows(&statement) && attachment.checkout.statements.parsed_under(statement.id) == Some(schema)
            {
                attachment.checkout.owed.push(Owed::InventParse);
            } else {
                attachment.teach(&statement, false, schema);
            }
        }
        self.inbox.advance(message.len);
        Ok(Passed::Yes)
    }

    fn pass_bind(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let there = self.inbox.bytes(message.at + HEADER_LEN, message.len - HEADER_LEN);
        let view = match frontend::bind(there) {
            Ok(view) => view,
            Err(_) if !message.whole && message.len <= HOLD_MAX => return Ok(self.more(message)),
            Err(error) => return Err(error.into()),
        };
        let names_len = view.names_len;
        let portal_len = view.portal.len();
        if view.statement.is_empty() {
            if self.prepared.unnamed.class.as_deref().is_some_and(|class| self.is_misplaced(attachment, class)) {
                return Ok(Passed::Misplaced);
            }
            let portal = view.portal.to_vec();
            self.ensure_unnamed(attachment);
            self.note_bound(attachment, &portal, None);
            attachment.checkout.owed.push(Owed::Bind);
            return Ok(self.stream(attachment, message));
        }
        let Some(statement) = self.prepared.find(view.statement).cloned() else {
            // Not one of ours: made by SQL PREPARE, or unknown; the node knows.
            let stranger = stranger(view.statement);
            self.unit.add_unknown();
            if let Some(name) = stranger {
                return Ok(self.bind_as(attachment, message, (portal_len, names_len), &name));
            }
            attachment.checkout.owed.push(Owed::Bind);
            return Ok(self.stream(attachment, message));
        };
        if self.is_misplaced(attachment, &statement.class) {
            return Ok(Passed::Misplaced);
        }
        let portal = view.portal.to_vec();
        attachment.know(&statement, self.deps.schema());
        self.note_bound(attachment, &portal, Some(&statement));
        Ok(self.bind_as(attachment, message, (portal_len, names_len), &statement.backend_name))
    }

    /// Passes a Bind on with another name for its statement. `lens`: bytes of the portal's name, and of
    /// both names with their NULs.
    fn bind_as(&mut self, attachment: &mut Attachment, message: Message, lens: (usize, usize), name: &[u8]) -> Passed {
        let (portal_len, names_len) = lens;
        let there = self.inbox.bytes(message.at, message.len);
        let body_len = message.len - HEADER_LEN - names_len + portal_len + 1 + name.len() + 1;
        let out = attachment.outbox.tail();
        out.push(frontend::BIND);
        out.extend_from_slice(&u32::try_from(body_len + 4).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&there[HEADER_LEN..=HEADER_LEN + portal_len]);
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(&there[HEADER_LEN + names_len..]);
        attachment.to_node = message.len - there.len();
        let len = there.len();
        attachment.checkout.owed.push(Owed::Bind);
        self.inbox.advance(len);
        Passed::Yes
    }

    /// A statement is bound and may run: what it may do counts for the unit, what it leaves behind
    /// counts once its portal is executed.
    fn note_bound(&mut self, attachment: &mut Attachment, portal: &[u8], statement: Option<&Statement>) {
        let (class, content): (Arc<Classification>, &[u8]) = match statement {
            Some(statement) => (Arc::clone(&statement.class), &statement.content),
            None => match &self.prepared.unnamed.class {
                Some(class) => (Arc::clone(class), &self.prepared.unnamed.content),
                None => return,
            },
        };
        self.remember_sequences(attachment, &class);
        self.vacate(&class);
        self.unit.add(&class);
        if !self.bound.is_empty() {
            self.bound.retain(|(name, _)| **name != *portal);
        }
        if class.steps.is_empty() {
            return;
        }
        let text = content.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut effects = VecDeque::new();
        Effect::collect(&mut effects, 0, &class, text, self.strings, self.is_quiet());
        self.align_parsed(attachment, &class);
        if effects.is_empty() {
            return;
        }
        if self.bound.len() < BOUND_MAX {
            self.bound.push((portal.into(), effects));
        } else {
            self.unit.uncertain = true;
        }
    }

    /// A portal is executed: what it leaves behind counts for this unit.
    fn note_executed(&mut self, message: Message) -> Result<(), Violation> {
        if !self.bound.is_empty() {
            let portal = frontend::portal(self.inbox.body(message))?;
            let at = self.unit.asked;
            let effects = self.bound.iter().filter(|(name, _)| **name == *portal).flat_map(|(_, effects)| effects);
            self.unit.effects.extend(effects.map(|effect| Effect { at, kind: effect.kind.clone() }));
        }
        self.unit.asked = self.unit.asked.saturating_add(1);
        Ok(())
    }

    /// The backend's unnamed statement must be this client's, or none at all.
    fn ensure_unnamed(&mut self, attachment: &mut Attachment) {
        let unnamed = &self.prepared.unnamed;
        let there = attachment.checkout.statements.unnamed();
        match &unnamed.class {
            Some(_) if there == Some(unnamed.serial) => {}
            Some(_) => {
                attachment.push_parse(b"", &unnamed.content);
                attachment.checkout.owed.push(Owed::Parse { swallow: true, id: 0 });
                attachment.checkout.statements.note_unnamed(Some(unnamed.serial));
            }
            None if there.is_some() => {
                encode::close_statement(attachment.outbox.tail(), b"");
                attachment.checkout.owed.push(Owed::Close { swallow: true });
                attachment.checkout.statements.note_unnamed(None);
            }
            None => {}
        }
    }

    fn pass_describe(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let named = frontend::named(self.inbox.body(message))?;
        if let Named::Statement(name) = named {
            if name.is_empty() {
                self.ensure_unnamed(attachment);
            } else if let Some(statement) = self.prepared.find(name).cloned() {
                attachment.know(&statement, self.deps.schema());
                return Ok(self.describe_as(attachment, message, &statement.backend_name));
            } else if let Some(name) = stranger(name) {
                return Ok(self.describe_as(attachment, message, &name));
            }
        }
        attachment.checkout.owed.push(Owed::Describe);
        Ok(self.stream(attachment, message))
    }

    fn describe_as(&mut self, attachment: &mut Attachment, message: Message, name: &[u8]) -> Passed {
        encode::message(attachment.outbox.tail(), frontend::DESCRIBE, |out| {
            out.push(b'S');
            out.extend_from_slice(name);
            out.push(0);
        });
        attachment.checkout.owed.push(Owed::Describe);
        self.inbox.advance(message.len);
        Passed::Yes
    }

    fn pass_close(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let named = frontend::named(self.inbox.body(message))?;
        if let Named::Statement(name) = named
            && !name.is_empty()
        {
            // The backend keeps it for others; only the client's name goes.
            let name = name.to_vec();
            self.prepared.closing(&name);
            attachment.checkout.owed.push(Owed::InventClose);
            self.inbox.advance(message.len);
            return Ok(Passed::Yes);
        }
        if named == Named::Statement(b"") {
            self.prepared.unnamed.class = None;
            attachment.checkout.statements.note_unnamed(None);
        }
        attachment.checkout.owed.push(Owed::Close { swallow: false });
        Ok(self.stream(attachment, message))
    }
}

impl Attachment {
    fn knows(&mut self, statement: &Arc<Statement>) -> bool {
        self.checkout.statements.knows(statement.id)
    }

    /// Makes sure that the backend knows the statement, unseen by the client.
    fn know(&mut self, statement: &Arc<Statement>, schema: u64) {
        if !self.knows(statement) {
            self.teach(statement, true, schema);
        }
    }

    fn teach(&mut self, statement: &Arc<Statement>, swallow: bool, schema: u64) {
        if let Some(victim) = self.checkout.statements.learn(statement, schema) {
            encode::close_statement(self.outbox.tail(), &victim.backend_name);
            self.checkout.owed.push(Owed::Close { swallow: true });
        }
        self.push_parse(&statement.backend_name, &statement.content);
        self.checkout.owed.push(Owed::Parse { swallow, id: statement.id });
    }

    fn push_parse(&mut self, name: &[u8], content: &[u8]) {
        encode::message(self.outbox.tail(), frontend::PARSE, |out| {
            out.extend_from_slice(name);
            out.push(0);
            out.extend_from_slice(content);
        });
    }

    /// Must nothing more be sent, because the session's settings were refused or are not known to be made?
    fn is_held_up(&self) -> bool {
        self.refused.is_some()
            || self.guarded && self.hidden.iter().any(|hidden| matches!(hidden, Hidden::Settings | Hidden::Begin))
    }
}

/// A name that a client never defined, but that a backend may know from another client: what the node is
/// asked for instead, which it does not have.
fn stranger(name: &[u8]) -> Option<Vec<u8>> {
    name.starts_with(NAME_PREFIX.as_bytes()).then(|| [b"?", name].concat())
}
