//! Statements of our own on a client's backend, whose replies the client never sees.
//!
//! Before the client's statements: its settings, its deferred BEGIN, its SQL-level prepared statements.
//! After them: what RESET must go back to, and the question what the backend holds, when a text did not
//! tell what it did. Invariants: each is one simple Query, answered in the order sent; whatever goes
//! wrong with one leaves a backend that is not reused as it is. Absent on purpose: when to send which.

use super::effects::shown;
use super::hazards::{self, Hazards};
use super::{Attachment, Session};
use crate::backend::{AUTHORIZATION, Owed, READ_COMMITTED, ROLE, Setting, Settings};
use crate::client::PinRecord;
use crate::sql::{self, Access, Classification, PinReason, Why};
use crate::wire::{Reader, encode};
use std::sync::Arc;

/// Settings of extensions that one question names.
const NAMES_MAX: usize = 200;
/// Settings of extensions that are kept in mind until the backend has been asked.
pub(super) const SUSPECTS_MAX: usize = 200;
/// Rows believed of one answer.
const ROWS_MAX: usize = 10_000;

/// A statement of ours that is under way.
#[derive(Debug)]
pub(super) enum Hidden {
    /// The session's settings, in front of a unit.
    Settings,
    /// The BEGIN that was answered before a node was known.
    Begin,
    /// The session's SQL-level prepared statement of a name, or that there is none.
    Statement,
    /// DISCARD SEQUENCES, so that another session's values do not answer.
    Forget,
    /// The startup settings behind a RESET.
    Restore,
    /// What does the backend hold?
    Ask(Held),
    /// Which functions of the database change sessions?
    Hazards(Hazards),
}

/// In front of a question, for the length of its transaction: the session's limits and planner settings are not for
/// it (`enable_seqscan = off` makes it look so dear that it is compiled, for a second).
const AT_EASE: &str = "SET LOCAL statement_timeout = 0; SET LOCAL jit = off";

/// What a backend said it holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    settings: Vec<Setting>,
    statements: Vec<(Arc<str>, Arc<[u8]>)>,
    pins: sql::Pins,
    rows: usize,
    garbled: bool,
}

impl Held {
    /// Takes the body of a DataRow.
    pub fn row(&mut self, body: &[u8]) {
        self.rows += 1;
        self.garbled |= self.rows > ROWS_MAX || self.read(body).is_none();
    }

    /// A row came in pieces, or an error instead of rows.
    pub fn garble(&mut self) {
        self.garbled = true;
    }

    fn read(&mut self, body: &[u8]) -> Option<()> {
        let [kind, name, value] = fields(body)?;
        let text = std::str::from_utf8(name).ok()?;
        match kind {
            b"set" => self.settings.push(Setting::from_value(text, value)),
            b"prepare" => self.statements.push((text.into(), value.trim_ascii().into())),
            _ => self.pins.insert(PinReason::ALL.into_iter().find(|reason| reason.label() == text)?),
        }
        Some(())
    }
}

/// The first fields of a row, none of them NULL.
pub(super) fn fields<const N: usize>(body: &[u8]) -> Option<[&[u8]; N]> {
    let mut reader = Reader::new(body);
    reader.int16().ok()?;
    let mut fields: [&[u8]; N] = [&[]; N];
    for field in &mut fields {
        let len = usize::try_from(reader.int32().ok()?).ok()?;
        *field = reader.bytes(len).ok()?;
    }
    Some(fields)
}

impl Hidden {
    /// Takes the body of a DataRow that answers it.
    pub fn row(&mut self, body: &[u8]) {
        match self {
            Self::Ask(held) => held.row(body),
            Self::Hazards(hazards) => match fields(body) {
                Some([kind, name, _]) => hazards.add(kind, &String::from_utf8_lossy(name)),
                None => hazards.garble(),
            },
            _ => {}
        }
    }

    /// A row that answers it came in pieces.
    pub fn garble(&mut self) {
        match self {
            Self::Ask(held) => held.garble(),
            Self::Hazards(hazards) => hazards.garble(),
            _ => {}
        }
    }
}

impl Session {
    /// Sends a statement of ours. To be called between units only.
    pub(super) fn send_hidden(attachment: &mut Attachment, text: &[u8], what: Hidden) {
        encode::query(attachment.outbox.tail(), text);
        attachment.checkout.owed.push(Owed::Query { swallow: true });
        attachment.checkout.statements.note_unnamed(None);
        attachment.hidden.push_back(what);
    }

    /// Asks the backend what it holds, if that is not known and nothing else is under way.
    pub(super) fn ask(&mut self, attachment: &mut Attachment) {
        let between = attachment.checkout.owed.is_empty() && self.sent.is_empty() && !self.unit.begun;
        if !between || attachment.to_node > 0 {
            return;
        }
        if self.pins.is_for_good() {
            // Nobody else gets this backend before it is reset.
            (self.after.uncertain, self.after.wants_hazards) = (false, false);
            return;
        }
        if std::mem::take(&mut self.after.wants_hazards) {
            let hazards = Hazards::asked(self.deps.code(), self.deps.clock.now());
            // What it answers belongs to the next question.
            let text = format!("{READ_COMMITTED}; {AT_EASE}; {}", hazards::QUESTION);
            return Self::send_hidden(attachment, text.as_bytes(), Hidden::Hazards(hazards));
        }
        if !self.after.uncertain {
            return;
        }
        self.after.uncertain = false;
        let text = self.question();
        Self::send_hidden(attachment, text.as_bytes(), Hidden::Ask(Held::default()));
        self.deps.metrics.route.state_asks.inc();
    }

    /// A text calls functions that nobody vouches for, or writes: does one of them, or a trigger, change the
    /// session? While that is not known, it may.
    pub(super) fn beware(&mut self, class: &Classification) {
        // Transaction control and settings fire no trigger.
        let writes = class.access == Access::Write
            && matches!(
                class.why,
                Why::Statement("insert" | "update" | "delete" | "merge" | "copy") | Why::Modifies(_)
            );
        if class.functions.is_empty() && !writes {
            return;
        }
        let (code, now) = (self.deps.code(), self.deps.clock.now());
        if !self.after.hazards.as_ref().is_some_and(|hazards| hazards.fits(code) && !hazards.is_old(now)) {
            self.after.hazards = self.deps.hazards.find(&self.identity.database).filter(|found| found.fits(code));
            self.after.wants_hazards = match &self.after.hazards {
                None => true,
                Some(hazards) => hazards.is_old(now) && self.deps.hazards.claim(&self.identity.database, now),
            };
        }
        match &self.after.hazards {
            Some(hazards) if hazards.name_any(&class.functions) || writes && hazards.triggers => {
                self.after.suspects.extend(hazards.settings.iter().cloned());
                self.unit.uncertain = true;
            }
            Some(_) => {}
            // A write without such calls is a matter of triggers, which the answer will tell of.
            None => self.unit.uncertain |= !class.functions.is_empty(),
        }
    }

    /// Everything is qualified: the session's `search_path` may be anything. Settings first, before ours change any.
    fn question(&mut self) -> String {
        self.after.suspects.sort_unstable();
        self.after.suspects.dedup();
        let user = self.identity.user.replace('\\', "\\\\").replace('\'', "''");
        let known = self.tracked.current().entries().iter().map(|entry| &entry.name);
        let names = known.chain(&self.after.suspects).filter(|name| name.contains('.')).take(NAMES_MAX);
        let names = names.map(|name| format!("E'{}'", name.replace('\\', "\\\\").replace('\'', "''")));
        let names = names.collect::<Vec<_>>().join(",");
        format!(
            "{READ_COMMITTED}; SELECT 'set', name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings \
             WHERE source OPERATOR(pg_catalog.=) 'session' AND name OPERATOR(pg_catalog.!~~) 'transaction\\_%' \
             UNION ALL SELECT 'set', name, pg_catalog.current_setting(name, true) FROM pg_catalog.unnest(\
             ARRAY[{names}]::pg_catalog.text[]) AS names (name) WHERE pg_catalog.current_setting(name, true) IS NOT NULL \
             UNION ALL SELECT 'set', '{ROLE}', pg_catalog.current_setting('role') \
             WHERE pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) 'none' \
             UNION ALL SELECT 'set', '{AUTHORIZATION}', session_user::pg_catalog.text \
             WHERE session_user::pg_catalog.text OPERATOR(pg_catalog.<>) E'{user}'; \
             {AT_EASE}; SELECT 'prepare', name, statement FROM pg_catalog.pg_prepared_statements WHERE from_sql \
             UNION ALL SELECT 'pin', 'temp_table', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_depend \
             WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
             AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) \
             UNION ALL SELECT 'pin', 'with_hold_cursor', '' WHERE EXISTS \
             (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) \
             UNION ALL SELECT 'pin', 'advisory_lock', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_locks \
             WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()) \
             UNION ALL SELECT 'pin', 'listen', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_listening_channels())"
        )
    }

    /// A statement of ours was refused with this ErrorResponse body.
    pub(super) fn hidden_refused(attachment: &mut Attachment, body: &[u8]) {
        match attachment.hidden.front_mut() {
            Some(Hidden::Settings | Hidden::Begin) => {
                attachment.refused.get_or_insert_with(|| body.into());
            }
            // In a transaction that has failed, RESET was undone too. The client's own statement tells what
            // is wrong with a prepared one.
            Some(Hidden::Restore | Hidden::Statement | Hidden::Forget) | None => attachment.tainted = true,
            Some(Hidden::Ask(held)) => held.garble(),
            Some(Hidden::Hazards(hazards)) => hazards.garble(),
        }
    }

    /// A statement of ours is done.
    pub(super) fn hidden_done(&mut self, attachment: &mut Attachment) {
        match attachment.hidden.pop_front() {
            Some(Hidden::Ask(held)) if held.garbled && !std::mem::replace(&mut self.after.asked_again, true) => {
                // A cancel request may have hit it.
                self.after.uncertain = true;
                self.ask(attachment);
            }
            Some(Hidden::Ask(held)) => {
                self.after.asked_again = false;
                self.learn(attachment, held);
            }
            Some(Hidden::Hazards(hazards)) => {
                let hazards = Arc::new(hazards);
                self.deps.hazards.keep(&self.identity.database, Arc::clone(&hazards));
                self.after.suspects.extend(hazards.settings.iter().cloned());
                // A write caused the question, and may have fired one of them.
                self.after.uncertain |= hazards.triggers;
                self.after.hazards = Some(hazards);
                self.ask(attachment);
            }
            Some(Hidden::Settings | Hidden::Begin | Hidden::Statement | Hidden::Forget | Hidden::Restore) | None => {}
        }
        if attachment.refused.is_none()
            && attachment.hidden.is_empty()
            && attachment.checkout.parameters.digest() != self.told.digest()
            && !self.outbox.is_holding()
        {
            self.tell_parameters(attachment);
        }
    }

    /// What the backend holds is the session's state from now on.
    fn learn(&mut self, attachment: &mut Attachment, held: Held) {
        self.after.suspects.clear();
        if held.garbled {
            self.pin_for(Some(&held.pins), |pins| pins.for_unknown());
            return;
        }
        self.tracked.learn(Settings::new(held.settings));
        attachment.checkout.settings = Arc::clone(self.tracked.current());
        for (name, text) in held.statements {
            let strange = attachment.checkout.statements.sql_text(&name).is_none();
            if strange {
                attachment.checkout.statements.note_sql(&name, Some(&text));
                self.prepared.define_sql(&name, text);
            }
        }
        self.pin_for(None, |pins| pins.learn(held.pins));
    }

    /// Changes the pins; new ones are recorded with the statement that the session remembers.
    fn pin_for(&mut self, more: Option<&sql::Pins>, change: impl FnOnce(&mut super::Pins)) {
        let more = more.copied();
        self.pin(b"", |pins| {
            change(pins);
            if let Some(more) = more {
                pins.add(more);
            }
        });
    }

    /// Changes the pins, keeps their gauges, and tells others why the session keeps its backend.
    pub(super) fn pin(&mut self, statement: &[u8], change: impl FnOnce(&mut super::Pins)) {
        let before = self.pins;
        change(&mut self.pins);
        if before == self.pins {
            return;
        }
        let gauges = &self.deps.metrics.route.pins;
        before.labels().for_each(|label| gauges.handle(label).dec());
        self.pins.labels().for_each(|label| gauges.handle(label).inc());
        let mut records = self.handle.pins();
        let now: Vec<&'static str> = self.pins.labels().collect();
        records.retain(|record| now.contains(&record.reason));
        for reason in now {
            if !records.iter().any(|record| record.reason == reason) {
                records.push(PinRecord { reason, statement: shown(statement), since: self.deps.clock.now() });
            }
        }
        self.handle.note_pins(records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: &[&[u8]]) -> Vec<u8> {
        let mut body = i16::try_from(fields.len()).unwrap().to_be_bytes().to_vec();
        for field in fields {
            body.extend_from_slice(&i32::try_from(field.len()).unwrap().to_be_bytes());
            body.extend_from_slice(field);
        }
        body
    }

    #[test]
    fn an_answer_is_read_row_by_row() {
        let mut held = Held::default();
        held.row(&row(&[b"set", b"Work_Mem", b"8MB"]));
        held.row(&row(&[b"prepare", b"q", b"PREPARE q AS SELECT 1 "]));
        held.row(&row(&[b"pin", b"listen", b""]));
        assert!(!held.garbled);
        assert_eq!(&*held.settings[0].name, "work_mem");
        assert_eq!(held.pins, sql::Pins::of(PinReason::Listen));
        assert_eq!(&*held.statements[0].1, b"PREPARE q AS SELECT 1");
    }

    #[test]
    fn what_is_not_understood_is_not_believed() {
        for bad in [row(&[b"pin", b"no such pin", b""]), row(&[b"set"]), b"\0".to_vec()] {
            let mut held = Held::default();
            held.row(&bad);
            assert!(held.garbled, "{bad:?}");
        }
    }
}
