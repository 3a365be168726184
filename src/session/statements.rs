//! Messages of the extended protocol that name statements and portals.
//!
//! A client's names are its own; on backends a statement has one name for all clients. Invariants: a
//! statement is on the backend before anything names it; what the client parses now is parsed under the
//! present meaning of names and types. Absent on purpose: reading replies, SQL-level names (`names`).

use super::effects::Effect;
use super::forward::Passed;
use super::preference::{is_ours, is_valid};
use super::unit::{HOLD_MAX, Violation};
use super::{Attachment, Describing, Session};
use crate::backend::{NAME_PREFIX, Owed, Refused, Statement, text_of};
use crate::config::Pinning;
use crate::relay::Message;
use crate::sql::{self, Access, Classification, Why};
use crate::wire::frontend::{self, Named};
use crate::wire::{HEADER_LEN, TxStatus, encode};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Portals that will change the session, each bound and not yet replaced.
const BOUND_MAX: usize = 64;
/// In place of a statement's number: the backend learns and forgets nothing by this Parse.
pub(super) const NOT_TRACKED: u64 = u64::MAX;

/// No SQL: the node refuses it.
pub(super) const REFUSED_TEXT: &[u8] = b"refused by the proxy";

/// Tells unnamed statements apart, process-wide.
static UNNAMED_SERIAL: AtomicU64 = AtomicU64::new(1);

impl Session {
    pub(super) fn pass_parse(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let view = frontend::parse(self.inbox.body(message))?;
        let class = match self.memo.take() {
            Some((at, class)) if at == message.at => class,
            _ => self.deps.classify(&self.catalog, view.text, self.strings),
        };
        self.align_parsed(attachment, &class);
        self.show_statements(attachment, &class);
        let view = frontend::parse(self.inbox.body(message))?;
        if view.name.is_empty() {
            let renamed = self.renamed(&view, &class).or_else(|| {
                let text = self.signals_in_text(attachment, &class, view.text)?;
                Some([&text, &view.content[view.text.len()..]].concat())
            });
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
        } else if !self.prepared.has_room(view.content.len()) {
            return Err(Violation::TooManyNames);
        } else {
            let statement = self.intern(&view, class);
            let name = view.name.to_vec();
            let schema = self.deps.schema();
            self.prepared.defining(&name, Arc::clone(&statement));
            self.prepared.parsed(statement.id, schema);
            // What the client parses now must mean what it means now: an older plan may have other columns. In a
            // transaction that has failed the node refuses most texts, whoever has parsed them before.
            let failed = self.transaction.status() == TxStatus::Failed;
            if !failed
                && attachment.knows(&statement)
                && attachment.checkout.statements.parsed_under(statement.id) == Some(schema)
            {
                attachment.checkout.owed.push(Owed::InventParse);
            } else {
                attachment.teach(&statement, false, schema);
            }
        }
        self.inbox.advance(message.len);
        Ok(Passed::Yes)
    }

    /// The statement that all clients share who parse this under the same settings.
    fn intern(&self, view: &frontend::ParseView<'_>, class: Arc<Classification>) -> Arc<Statement> {
        let renamed = self.renamed(view, &class);
        let content = renamed.as_deref().unwrap_or(view.content);
        self.deps.statements.intern(content, self.tracked.current().meaning(), || class)
    }

    pub(super) fn pass_bind(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
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
            if let Some(why) = self.refuses_unnamed() {
                return Ok(self.refuse(attachment, message, why));
            }
            let portal = view.portal.to_vec();
            self.ensure_unnamed(attachment);
            self.note_bound(attachment, &portal, None);
            if let Some(class) = self.prepared.unnamed.class.clone()
                && let Some(passed) = self.bind_signal(attachment, message, &class, (b"", 0))
            {
                return Ok(passed);
            }
            attachment.checkout.owed.push(Owed::Bind { id: 0 });
            return Ok(self.stream(attachment, message));
        }
        let Some(statement) = self.prepared.find(view.statement).cloned() else {
            // Not one of ours: made by SQL PREPARE, or unknown; the node knows.
            let name = String::from_utf8_lossy(view.statement).into_owned();
            let is_sql = self.prepared.sql(&name).is_some();
            self.align_sql(attachment, &name);
            let view = frontend::bind(self.inbox.bytes(message.at + HEADER_LEN, message.len - HEADER_LEN))?;
            let stranger = stranger(view.statement);
            if is_sql {
                self.unit.access = crate::sql::Access::Write;
                self.unit.writes = true;
            } else {
                self.unit.add_unknown();
            }
            if let Some(name) = stranger {
                return Ok(self.bind_as(attachment, message, (portal_len, names_len), (&name, 0)));
            }
            attachment.checkout.owed.push(Owed::Bind { id: 0 });
            return Ok(self.stream(attachment, message));
        };
        if self.is_misplaced(attachment, &statement.class) {
            return Ok(Passed::Misplaced);
        }
        if let Some(why) = self.refuses(&statement) {
            return Ok(self.refuse(attachment, message, why));
        }
        let portal = view.portal.to_vec();
        self.show_statements(attachment, &statement.class);
        // What it executes first: a Parse of EXECUTE looks at the columns of that.
        self.align_parsed(attachment, &statement.class);
        match self.same_rows(attachment, &statement) {
            Sameness::Same => {}
            Sameness::Asked => return Ok(Passed::More(0)),
            Sameness::Other => return Ok(self.refuse(attachment, message, Refused::OtherRows)),
        }
        attachment.know(&statement, self.deps.schema());
        self.note_bound(attachment, &portal, Some(&statement));
        let named: (&[u8], u64) = (&statement.backend_name, statement.id);
        if let Some(passed) = self.bind_signal(attachment, message, &statement.class, named) {
            return Ok(passed);
        }
        Ok(self.bind_as(attachment, message, (portal_len, names_len), (&statement.backend_name, statement.id)))
    }

    /// Passes on a Bind whose values name processes by the ids that we told clients.
    fn bind_signal(
        &mut self,
        attachment: &mut Attachment,
        message: Message,
        class: &Classification,
        (name, id): (&[u8], u64),
    ) -> Option<Passed> {
        class.effects.signals.filter(|_| message.whole)?;
        let body = self.signals_in_values(attachment, class, self.inbox.body(message))?;
        let view = frontend::bind(&body).ok()?;
        encode::message(attachment.outbox.tail(), frontend::BIND, |out| {
            out.extend_from_slice(view.portal);
            out.push(0);
            out.extend_from_slice(name);
            out.push(0);
            out.extend_from_slice(&body[view.names_len..]);
        });
        attachment.checkout.owed.push(Owed::Bind { id });
        self.inbox.advance(message.len);
        Some(Passed::Yes)
    }

    /// Passes a Bind on with another name for its statement. `lens`: bytes of the portal's name, and of
    /// both names with their NULs.
    pub(super) fn bind_as(
        &mut self,
        attachment: &mut Attachment,
        message: Message,
        lens: (usize, usize),
        (name, id): (&[u8], u64),
    ) -> Passed {
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
        attachment.checkout.owed.push(Owed::Bind { id });
        self.inbox.advance(len);
        Passed::Yes
    }

    /// A statement is bound and may run: what it may do counts for the unit, what it leaves behind
    /// counts once its portal is executed.
    pub(super) fn note_bound(&mut self, attachment: &mut Attachment, portal: &[u8], statement: Option<&Statement>) {
        let (class, access) = match (statement, &self.prepared.unnamed.class) {
            (Some(statement), _) => (Arc::clone(&statement.class), self.access_of(statement)),
            (None, Some(class)) => (Arc::clone(class), class.wanted()),
            (None, None) => return,
        };
        self.remember_sequences(attachment, &class);
        self.vacate(&class);
        self.beware(&class);
        let access = self.hinted(class.hint, access);
        self.unit.add(&class, access);
        if !self.bound.is_empty() {
            self.bound.retain(|(name, _)| **name != *portal);
        }
        if class.steps.is_empty() {
            return;
        }
        let content: &[u8] = statement.map_or(&self.prepared.unnamed.content, |statement| &statement.content);
        let text = text_of(content);
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
    pub(super) fn note_executed(&mut self, message: Message) -> Result<(), Violation> {
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
    pub(super) fn ensure_unnamed(&mut self, attachment: &mut Attachment) {
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

    pub(super) fn pass_describe(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let named = frontend::named(self.inbox.body(message))?;
        if let Named::Statement(name) = named {
            if name.is_empty() {
                self.ensure_unnamed(attachment);
            } else if let Some(statement) = self.prepared.find(name).cloned() {
                self.align_parsed(attachment, &statement.class);
                attachment.know(&statement, self.deps.schema());
                return Ok(self.describe_as(attachment, message, &statement.backend_name, statement.id));
            } else if let Some(name) = stranger(name) {
                return Ok(self.describe_as(attachment, message, &name, 0));
            } else {
                let name = String::from_utf8_lossy(name).into_owned();
                self.align_sql(attachment, &name);
            }
        }
        attachment.checkout.owed.push(Owed::Describe { swallow: false, id: 0 });
        Ok(self.stream(attachment, message))
    }

    pub(super) fn describe_as(
        &mut self,
        attachment: &mut Attachment,
        message: Message,
        name: &[u8],
        id: u64,
    ) -> Passed {
        encode::message(attachment.outbox.tail(), frontend::DESCRIBE, |out| {
            out.push(b'S');
            out.extend_from_slice(name);
            out.push(0);
        });
        attachment.checkout.owed.push(Owed::Describe { swallow: false, id });
        self.inbox.advance(message.len);
        Passed::Yes
    }

    pub(super) fn pass_close(&mut self, attachment: &mut Attachment, message: Message) -> Result<Passed, Violation> {
        let named = frontend::named(self.inbox.body(message))?;
        if let Named::Statement(name) = named
            && !name.is_empty()
        {
            // The backend keeps it for others; only the client's name goes.
            let name = name.to_vec();
            self.prepared.remove_sql(&String::from_utf8_lossy(&name));
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

/// Would a statement's rows be those that the client was told?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sameness {
    /// They would, or it was told nothing.
    Same,
    /// The backend has been asked; its answer is awaited.
    Asked,
    /// They would not.
    Other,
}

impl Session {
    /// A client that was told what a statement's rows look like decodes them by that. Where PostgreSQL's own
    /// plan would find out that they have changed ("cached plan must not change result type"), ours may be
    /// another one: parsed later, or on a backend that did not know the statement. So that is asked first.
    fn same_rows(&mut self, attachment: &mut Attachment, statement: &Arc<Statement>) -> Sameness {
        let Some(told) = self.prepared.told(statement.id) else { return Sameness::Same };
        let Some(rows) = told.rows else { return Sameness::Same };
        let just_asked = std::mem::replace(&mut attachment.describing, Describing::No);
        let known = attachment.knows(statement);
        let statements = &attachment.checkout.statements;
        match statements.rows(statement.id).filter(|_| known) {
            Some(there) if there == rows => return Sameness::Same,
            Some(_) if just_asked == Describing::Answered(statement.id) => return Sameness::Other,
            // What was parsed there may be older than what the client was told, or from a standby that had not yet
            // replayed the change: only a new Parse tells.
            Some(_) => attachment.teach(statement, true, self.deps.schema()),
            None if known && statements.parsed_under(statement.id) == Some(told.schema) => return Sameness::Same,
            None => attachment.know(statement, self.deps.schema()),
        }
        encode::message(attachment.outbox.tail(), frontend::DESCRIBE, |out| {
            out.push(b'S');
            out.extend_from_slice(&statement.backend_name);
            out.push(0);
        });
        encode::bare(attachment.outbox.tail(), frontend::FLUSH);
        attachment.checkout.owed.push(Owed::Describe { swallow: true, id: statement.id });
        attachment.describing = Describing::Asked;
        self.unit.begun = true;
        Sameness::Asked
    }

    /// May a statement of the client's run on a standby, as the catalog of this database sees it now?
    pub(super) fn access_of(&self, statement: &Statement) -> Access {
        let learned = self.deps.has_learned(statement);
        if statement.class.why == Why::Refused && !learned {
            // It was prepared when standbys refused it; that is forgotten.
            return self.deps.classify(&self.catalog, statement.text(), self.strings).wanted();
        }
        statement.access(&**self.catalog.load(), learned)
    }

    /// Why a statement of the client's may not be bound.
    fn refuses(&self, statement: &Statement) -> Option<Refused> {
        if let Some(why) = self.refuses_text(&statement.class, statement.text()) {
            return Some(why);
        }
        self.executes_another(statement).then_some(Refused::Unknown)
    }

    /// The same of the unnamed one.
    fn refuses_unnamed(&self) -> Option<Refused> {
        let unnamed = &self.prepared.unnamed;
        self.refuses_text(unnamed.class.as_deref()?, text_of(&unnamed.content))
    }

    /// Would a text of this class pin the session, where that is not allowed, or give a setting of ours a value
    /// that means nothing?
    pub(super) fn refuses_text(&self, class: &Classification, text: &[u8]) -> Option<Refused> {
        if !class.effects.pins.is_empty() && self.deps.tunables.load().pinning == Pinning::Refuse {
            return Some(Refused::Pin);
        }
        let sets_ours = |step: &sql::Step| match &step.effects.change {
            sql::Change::Set { name }
            | sql::Change::SetConfig { name, .. }
            | sql::Change::SetLocal { name: Some(name) } => is_ours(name),
            _ => false,
        };
        let is_senseless = |step: &sql::Step| match &step.effects.change {
            sql::Change::Set { name } => {
                let piece = match class.statements {
                    1 => Some(text),
                    _ => sql::pieces(text, self.strings).get(usize::from(step.at)).copied(),
                };
                !piece.and_then(sql::set_value).is_some_and(|value| is_valid(name, &value))
            }
            sql::Change::SetConfig { name, value } => !is_valid(name, value),
            _ => true,
        };
        class.steps.iter().any(|step| sets_ours(step) && is_senseless(step)).then_some(Refused::Setting)
    }

    /// Answers a Bind with an error of ours. The node is given something to refuse in its place, so that a
    /// transaction fails and the batch is skipped there as well.
    fn refuse(&mut self, attachment: &mut Attachment, message: Message, why: Refused) -> Passed {
        if !message.whole {
            return self.more(message);
        }
        attachment.push_parse(b"", &[REFUSED_TEXT, b"\0\0\0"].concat());
        attachment.checkout.owed.push(Owed::Refusal(why));
        attachment.checkout.statements.note_unnamed(None);
        self.inbox.advance(message.len);
        Passed::Yes
    }
}

impl Attachment {
    pub(super) fn knows(&mut self, statement: &Arc<Statement>) -> bool {
        self.checkout.statements.knows(statement.id)
    }

    /// Makes sure that the backend knows the statement, unseen by the client.
    pub(super) fn know(&mut self, statement: &Arc<Statement>, schema: u64) {
        if !self.knows(statement) {
            self.teach(statement, true, schema);
        }
    }

    pub(super) fn teach(&mut self, statement: &Arc<Statement>, swallow: bool, schema: u64) {
        for victim in self.checkout.statements.learn(statement, schema) {
            encode::close_statement(self.outbox.tail(), &victim.backend_name);
            self.checkout.owed.push(Owed::Close { swallow: true });
        }
        self.push_parse(&statement.backend_name, &statement.content);
        self.checkout.owed.push(Owed::Parse { swallow, id: statement.id });
    }

    pub(super) fn push_parse(&mut self, name: &[u8], content: &[u8]) {
        encode::message(self.outbox.tail(), frontend::PARSE, |out| {
            out.extend_from_slice(name);
            out.push(0);
            out.extend_from_slice(content);
        });
    }
}

/// A name that a client never defined, but that a backend may know from another client: what the node is
/// asked for instead, which it does not have.
fn stranger(name: &[u8]) -> Option<Vec<u8>> {
    name.starts_with(NAME_PREFIX.as_bytes()).then(|| [b"?", name].concat())
}
