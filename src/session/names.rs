//! What SQL texts name on the backend they run on: prepared statements, sequences, databases.
//!
//! PREPARE, EXECUTE and DEALLOCATE speak of the same names as the protocol. A backend has SQL-level names of
//! whichever session made them, so it is brought into line with this session's before a text names one.
//! Invariant: statements of our own go between units only, never into a batch. Absent on purpose: the
//! messages of the extended protocol (`statements`).

use super::forward::Passed;
use super::hidden::Hidden;
use super::statements::NOT_TRACKED;
use super::{Attachment, Session};
use crate::backend::{Owed, Statement};
use crate::clock::Time;
use crate::relay::Message;
use crate::sql::{Change, Classification, Sequences, prepared_name};
use crate::wire::{TxStatus, encode, frontend};

use super::effects::Effect;

/// What a node is asked in place of SHOW pgregent.causal_token: its timeline, and where its WAL ends. Up to where it
/// is flushed lies every commit that was waited for.
const TOKEN: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN \
 pg_catalog.concat((pg_catalog.pg_control_checkpoint()).timeline_id, '/', pg_catalog.pg_last_wal_replay_lsn()) ELSE \
 pg_catalog.concat(pg_catalog.concat('x', pg_catalog.substr(pg_catalog.pg_walfile_name(\
 pg_catalog.pg_current_wal_flush_lsn()), 1, 8))::pg_catalog.bit(32)::pg_catalog.int8, '/', \
 pg_catalog.pg_current_wal_flush_lsn()) END AS \"pgregent.causal_token\"";

impl Session {
    /// Is a statement under way whose answer decides what the next one means? One that changes which prepared
    /// statements there are, or one that resets what the client brought along.
    pub(super) fn must_see_answer(&self) -> bool {
        let startup = !self.tracked.startup().entries().is_empty();
        let decides = |effect: &Effect| effect.changes_names() || startup && effect.kind.resets();
        self.sent.back().is_some_and(|unit| unit.effects.iter().any(decides))
    }

    /// The text that tells the session's causal token, if this is what a text asks for.
    pub(super) fn token_question(&self, class: &Classification) -> Option<Vec<u8>> {
        if !class.effects.shows_token || class.statements != 1 {
            return None;
        }
        // Commits that were not waited for may lie behind what is flushed.
        let unflushed = self.lazy_commits.is_some() || self.floor.lazy > Time::ZERO;
        let text = if unflushed { TOKEN.replace("current_wal_flush", "current_wal_insert") } else { TOKEN.to_owned() };
        Some(text.into_bytes())
    }

    /// Makes the backend know the SQL-level names in this text as the session knows them. The answer is the
    /// text with another name where the client means a statement of the protocol.
    pub(super) fn align_names(
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
    pub(super) fn align_sql(&mut self, attachment: &mut Attachment, name: &str) {
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
    pub(super) fn deallocate(
        &mut self,
        attachment: &Attachment,
        message: Message,
        class: &Classification,
    ) -> Option<Passed> {
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
    pub(super) fn renamed(&self, view: &frontend::ParseView<'_>, class: &Classification) -> Option<Vec<u8>> {
        if let Some(text) = self.token_question(class) {
            return Some([&text, &view.content[view.text.len()..]].concat());
        }
        let (Change::Deallocate { name } | Change::Execute { name } | Change::Prepare { name }) = &class.effects.change
        else {
            return None;
        };
        let statement = self.prepared.find(name.as_bytes())?;
        let place = prepared_name(view.text, name)?;
        Some([&view.content[..place.start], &statement.backend_name, &view.content[place.end..]].concat())
    }

    /// Does a statement that EXECUTEs one of the protocol's stand for one that its name does not mean any more?
    pub(super) fn executes_another(&self, statement: &Statement) -> bool {
        let Change::Execute { name } = &statement.class.effects.change else { return false };
        let now = self.prepared.find(name.as_bytes());
        let now = now.and_then(|statement| std::str::from_utf8(&statement.backend_name).ok()).unwrap_or(name);
        prepared_name(statement.text(), now).is_none()
    }

    /// The same as for a Query, for a text that is prepared or bound in the extended protocol.
    pub(super) fn align_parsed(&mut self, attachment: &mut Attachment, class: &Classification) {
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
    pub(super) fn remember_sequences(&self, attachment: &mut Attachment, class: &Classification) {
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

    /// The client looks at `pg_prepared_statements`: for this unit the backend knows its statements, under its
    /// names, and no others.
    pub(super) fn show_statements(&mut self, attachment: &mut Attachment, class: &Classification) {
        if !class.effects.shows_statements || self.unit.begun || self.transaction.status() == TxStatus::Failed {
            return;
        }
        Self::send_hidden(attachment, b"DEALLOCATE ALL", Hidden::Forget);
        attachment.checkout.statements.forget_all();
        for text in self.prepared.sql_texts() {
            Self::send_hidden(attachment, text, Hidden::Statement);
        }
        for (name, statement) in self.prepared.named() {
            attachment.push_parse(name, &statement.content);
            attachment.checkout.owed.push(Owed::Parse { swallow: true, id: NOT_TRACKED });
            encode::bare(attachment.outbox.tail(), frontend::SYNC);
            attachment.checkout.owed.push(Owed::Sync { swallow: true });
        }
        self.unit.shows_statements = true;
    }

    /// Idle backends in a database are nobody's sessions: they must not keep it from being dropped or copied.
    pub(super) fn vacate(&self, class: &Classification) {
        if let Some(database) = &class.effects.vacates {
            self.deps.pools.vacate(database);
        }
    }
}
