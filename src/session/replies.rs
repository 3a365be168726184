//! From the node to the client: replies passed on, hidden or made up, and what they change.
//!
//! Invariants: every byte from the node is accounted for by the queue of replies owed; the answer of
//! a read that may still move is held back until its first row or completion; a unit's effects count
//! only when it succeeded, and those of a transaction only when it committed. Absent on purpose: what
//! a lost backend means (`loss`).

use super::effects::Kind;
use super::hidden::{Hidden, SUSPECTS_MAX};
use super::loss::Loss;
use super::unit::{Unit, Watched};
use super::{Attachment, Describing, Gate, Session, Streamed};
use crate::backend::{Backend, Owed, Parameters, Reply, Settings};
use crate::metrics::Class;
use crate::net::Buffer;
use crate::relay::Scanned;
use crate::sql::{Access, StringSyntax};
use crate::topology::{Fact, Role};
use crate::wire::{HEADER_LEN, TxStatus, backend as tags, encode};
use std::sync::Arc;

/// What the node's bytes led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The backend is still needed.
    Stay,
    /// It can be let go.
    Release,
    /// The unit must run on another node.
    Reroute,
    /// The session's settings were refused with this ErrorResponse body.
    ReplayFailed(Box<[u8]>),
}

/// Where the bytes of a message go.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Forward,
    Swallow,
    /// This goes in its place.
    Replace(Vec<u8>),
    /// Handled, and nothing behind it may be handled before the session acts.
    Stop(bool),
}

impl Session {
    /// Handles what the node sent.
    pub(super) fn on_node_bytes(&mut self, attachment: &mut Attachment) -> Result<Progress, Loss> {
        let mut input = attachment.input.take();
        let outcome = self.consume(attachment, &mut input);
        // A tail that is no whole message yet stays.
        attachment.input = input;
        outcome
    }

    fn consume(&mut self, attachment: &mut Attachment, input: &mut Buffer) -> Result<Progress, Loss> {
        let (mut at, mut run) = (0, 0);
        let mut progress = Progress::Stay;
        while at < input.len() {
            let scanned = attachment.scan.next(&input[at..]).map_err(|_| Loss::Garbage);
            let handled = scanned.and_then(|scanned| match scanned {
                Scanned::More => Ok(None),
                Scanned::Rest { take } => Ok(Some((take, attachment.to_client.fate()))),
                Scanned::Begin { tag, take, whole } => {
                    if !whole && let Some(hidden) = attachment.hidden.front_mut() {
                        hidden.garble();
                    }
                    self.on_message(attachment, tag, &input[at..at + take]).map(|fate| Some((take, fate)))
                }
            });
            let (take, fate) = match handled {
                Ok(Some(handled)) => handled,
                Ok(None) => break,
                Err(loss) => {
                    // What came before the loss was accounted for, so the client must get it.
                    self.deliver(&input[run..at]);
                    return Err(loss);
                }
            };
            let forward = matches!(fate, Fate::Forward | Fate::Stop(true));
            if !forward {
                self.deliver(&input[run..at]);
                run = at + take;
            }
            if let Fate::Replace(instead) = &fate {
                self.deliver(instead);
            }
            at += take;
            if attachment
                .checkout
                .owed
                .front()
                .is_some_and(|owed| matches!(owed, Owed::InventParse | Owed::InventClose))
            {
                self.deliver(&input[run..at]);
                run = at;
                self.emit_invented(attachment);
            }
            if let Fate::Stop(_) = fate {
                progress = self.after_ready(attachment, at == input.len());
                if progress != Progress::Stay {
                    break;
                }
            }
        }
        if run == 0 && at == input.len() && self.trial.is_none() {
            self.outbox.push_buffer(input);
        } else {
            self.deliver(&input[run..at]);
            input.drain(..at);
            if input.is_empty() {
                input.give_back();
            }
        }
        if progress == Progress::Reroute {
            self.outbox.drop_held();
        }
        if std::mem::take(&mut attachment.deciding) && !attachment.rerouting {
            self.decided(false);
        }
        Ok(progress)
    }

    /// Sends the replies that were owed for requests no node was asked.
    pub(super) fn emit_invented(&mut self, attachment: &mut Attachment) {
        while let Some(invented) = attachment.checkout.owed.take_invented() {
            let tag = if invented == Owed::InventParse { tags::PARSE_COMPLETE } else { tags::CLOSE_COMPLETE };
            encode::bare(self.outbox.tail(), tag);
            self.confirm_name();
        }
    }

    fn confirm_name(&mut self) {
        if self.outbox.is_holding() {
            self.held_confirms += 1;
        } else {
            self.prepared.confirm();
        }
    }

    fn on_message(&mut self, attachment: &mut Attachment, tag: u8, bytes: &[u8]) -> Result<Fate, Loss> {
        let body = &bytes[HEADER_LEN..];
        let front = attachment.checkout.owed.front();
        let hidden = matches!(front, Some(Owed::Query { swallow: true }));
        match tag {
            tags::NOTICE if hidden => return Ok(Fate::Swallow),
            tags::NOTICE => return Ok(Fate::Forward),
            tags::NOTIFICATION => return Ok(self.on_notification(attachment, body)),
            tags::PARAMETER_STATUS => return self.on_parameter(attachment, body, hidden),
            tags::ERROR => return self.on_error(attachment, body, front),
            tags::READY => return self.on_ready(attachment, body),
            _ => {}
        }
        if matches!(tag, tags::ROW_DESCRIPTION | tags::NO_DATA)
            && let Some(Owed::Describe { swallow, id }) = front
        {
            self.on_description(attachment, swallow, id, bytes);
        }
        let verdict = attachment.checkout.owed.on_reply(tag).map_err(|_| Loss::Garbage)?;
        if verdict == Reply::Swallow {
            attachment.to_client = Streamed::Swallow;
            if tag == tags::DATA_ROW
                && let Some(hidden) = attachment.hidden.front_mut()
            {
                hidden.row(body);
            }
            return Ok(Fate::Swallow);
        }
        attachment.to_client = Streamed::Forward;
        match tag {
            tags::PARSE_COMPLETE => self.confirm_name(),
            tags::BIND_COMPLETE
            | tags::CLOSE_COMPLETE
            | tags::ROW_DESCRIPTION
            | tags::PARAMETER_DESCRIPTION
            | tags::NO_DATA => {}
            tags::COMMAND_COMPLETE | tags::EMPTY_QUERY | tags::PORTAL_SUSPENDED => {
                let quiet = self.sent.front().is_some_and(|unit| unit.effects.is_empty());
                self.answered(attachment, if tag == tags::COMMAND_COMPLETE { body } else { b"" });
                self.note_latency(attachment);
                if tag == tags::COMMAND_COMPLETE && matches!(body, b"BEGIN\0" | b"START TRANSACTION\0") {
                    // A transaction that has only begun may still run elsewhere, with what follows in its unit.
                } else if quiet {
                    attachment.deciding = true;
                } else {
                    // What it did to the session cannot be done twice.
                    self.decided(false);
                }
            }
            _ => {
                self.note_latency(attachment);
                for _ in 0..attachment.checkout.owed.take_ignored() {
                    let before = self.sent.pop_front().unwrap_or_default();
                    self.sent.front_mut().unwrap_or(&mut self.unit).follow(before);
                }
                attachment.deciding = true;
            }
        }
        Ok(Fate::Forward)
    }

    /// A notification names the backend that sent it; clients know themselves by the process ids that we
    /// told them.
    fn on_notification(&self, attachment: &Attachment, body: &[u8]) -> Fate {
        let Some((pid, rest)) = body.split_first_chunk() else { return Fate::Forward };
        let Some(known) = self.deps.pools.session_pid(attachment.target.node, i32::from_be_bytes(*pid)) else {
            return Fate::Forward;
        };
        let mut renamed = Vec::with_capacity(body.len() + HEADER_LEN);
        encode::message(&mut renamed, tags::NOTIFICATION, |out| {
            out.extend_from_slice(&known.to_be_bytes());
            out.extend_from_slice(rest);
        });
        Fate::Replace(renamed)
    }

    /// The node tells what a statement's rows look like: the client is told, or we asked.
    fn on_description(&mut self, attachment: &mut Attachment, swallow: bool, id: u64, message: &[u8]) {
        if swallow {
            attachment.describing = Describing::Answered(id);
        }
        if id == 0 {
            return;
        }
        match tags::row_shape(message) {
            Some(rows) => {
                attachment.checkout.statements.note_rows(id, rows);
                if !swallow {
                    self.prepared.described(id, rows);
                }
            }
            // It comes in pieces. Such a client is told nothing that we remember, and is not asked for again.
            None => {
                let told = self.prepared.told(id).and_then(|told| told.rows);
                attachment.checkout.statements.note_rows(id, told.unwrap_or_default());
            }
        }
    }

    /// The unit's answer is this node's: what was held goes. Its bytes are done with when it is answered.
    pub(super) fn decided(&mut self, failed: bool) {
        if !self.outbox.is_holding() {
            return;
        }
        self.outbox.release();
        for _ in 0..std::mem::take(&mut self.held_confirms) {
            self.prepared.confirm();
        }
        // The primary answers what a standby would not.
        if let Some(refusal) = self.refused.take().filter(|refusal| !failed && !refusal.is_certain()) {
            self.learn_writes(refusal);
        }
        if let Some(unit) = self.sent.front_mut() {
            unit.answered = true;
        }
    }

    /// The first row or the completion of a read tells how long its node takes; an error tells nothing.
    fn note_latency(&self, attachment: &mut Attachment) {
        if let Some(sent_at) = attachment.sent_at.take() {
            let now = self.deps.clock.now();
            self.deps.standings.of(attachment.target.node).answered(now.since(sent_at), now);
        }
    }

    fn on_parameter(&mut self, attachment: &mut Attachment, body: &[u8], hidden: bool) -> Result<Fate, Loss> {
        let (name, value) = tags::parameter(body).map_err(|_| Loss::Garbage)?;
        attachment.checkout.parameters.note(name, value);
        if crate::backend::is_node_local(name) {
            let standby = attachment.target.role != Role::Primary;
            if name == b"in_hot_standby" && (value == b"on") != standby {
                self.deps.facts.send(Fact::RoleChanged(attachment.target.node));
            }
            return Ok(Fate::Swallow);
        }
        let name_text = String::from_utf8_lossy(name);
        let known = self.told.value(&name_text).is_some_and(|told| told.as_bytes() == value);
        if known && hidden {
            return Ok(Fate::Swallow);
        }
        if !known {
            Arc::make_mut(&mut self.told).note(name, value);
            self.strings = strings_of(&self.told);
        }
        Ok(Fate::Forward)
    }

    fn on_ready(&mut self, attachment: &mut Attachment, body: &[u8]) -> Result<Fate, Loss> {
        let status = tags::ready(body).map_err(|_| Loss::Garbage)?;
        let front = attachment.checkout.owed.front();
        let verdict = attachment.checkout.owed.on_reply(tags::READY).map_err(|_| Loss::Garbage)?;
        attachment.checkout.tx = status;
        if verdict == Reply::Swallow {
            if front == Some(Owed::Query { swallow: true }) {
                self.hidden_done(attachment);
            }
            return Ok(Fate::Stop(false));
        }
        attachment.used = true;
        let unit = self.sent.pop_front().unwrap_or_default();
        if attachment.rerouting {
            return Ok(Fate::Stop(true));
        }
        attachment.begin = None;
        self.decided(unit.failed);
        if attachment.gate == Gate::Shut {
            self.inbox.settle();
        }
        self.account(attachment, &unit, status);
        if let Some(watched) = &unit.watched {
            self.log_watched(attachment, watched);
        }
        self.finish_unit(attachment, unit, status);
        Ok(Fate::Stop(true))
    }

    /// Logs a unit that failed or took long, with where it went and why.
    fn log_watched(&self, attachment: &Attachment, watched: &Watched) {
        let tunables = self.deps.tunables.load();
        let took = self.deps.clock.now().since(watched.sent_at);
        let failed = tunables.failed_statements && watched.sqlstate.is_some();
        if !failed && tunables.slow_statement.is_none_or(|limit| took <= limit) {
            return;
        }
        let (node, reason) = (attachment.target.node, attachment.target.reason.label());
        let node = tunables.node_names.get(node.index()).map_or("?", |name| &**name);
        let (user, database) = (&*self.identity.user, &*self.identity.database);
        let sqlstate = watched.sqlstate.as_deref();
        tracing::info!(
            user, database, node, reason, sqlstate, took_ms = took.as_millis(), statement = %watched.statement,
            "{}", if failed { "a statement failed" } else { "a statement was slow" }
        );
    }

    fn account(&self, attachment: &mut Attachment, unit: &Unit, status: TxStatus) {
        let class = if self.transaction.is_open() || status != TxStatus::Idle {
            Class::Transaction
        } else if unit.access == Access::Read {
            Class::Read
        } else if unit.writes {
            Class::Write
        } else {
            Class::Other
        };
        self.deps.metrics.node(attachment.target.node).statements(class).inc();
        attachment.checkout.count_statement();
    }

    fn finish_unit(&mut self, attachment: &mut Attachment, unit: Unit, status: TxStatus) {
        let on_primary = attachment.target.role == Role::Primary;
        if unit.lazy_commit {
            self.lazy_commits = Some(self.commit_delay);
        }
        let wrote = unit.writes || matches!(self.transaction, super::Transaction::Open { wrote: true, .. });
        // A session lock outlives the error of its statement.
        self.after.uncertain |= unit.uncertain || unit.failed && !unit.pins.is_empty();
        self.transaction.on_ready(status, !on_primary, unit.writes);
        self.restore(attachment, status, unit.failed);
        if status != TxStatus::Idle {
            return;
        }
        if unit.failed {
            self.after.uncertain |= !self.tracked.is_quiet() && self.pins.has_state();
            self.tracked.roll_back();
        } else if !self.tracked.is_quiet() {
            self.tracked.commit();
        }
        self.after.uncertain |= self.tracked.take_overflowed();
        if std::mem::take(&mut self.after.changed_schema) {
            // Whoever looked between the statement and its commit has seen the old names.
            self.deps.schema_changed(std::mem::take(&mut self.after.changed_code));
            self.catalog.changed(std::mem::take(&mut self.after.changed_functions));
        }
        if std::mem::take(&mut self.after.changed_logins) {
            self.deps.greetings.clear();
            self.deps.pools.outdate();
        }
        if !Arc::ptr_eq(&attachment.checkout.settings, self.tracked.current()) {
            attachment.checkout.settings = Arc::clone(self.tracked.current());
        }
        if wrote && on_primary {
            let pool_asks = attachment.checkout.pool().uses_sequences();
            attachment.checkout.sequences_of = Some(self.handle.id);
            if pool_asks && !unit.failed {
                self.pin(b"", |pins| pins.add(crate::sql::Pins::of(crate::sql::PinReason::Sequence)));
            }
            let now = self.deps.clock.now();
            self.wrote = now;
            // For whoever logs in later as well: until then it may not be flushed, and no sample tells of it.
            let lazy = self.lazy_commits.or(unit.uncertain.then_some(self.commit_delay));
            self.floor.raise(now, lazy);
            self.deps.facts.wrote(now, lazy);
        }
        if std::mem::take(&mut self.attempts) > 0 && !unit.failed {
            self.deps.metrics.route.reruns_healed.inc();
        }
        self.avoid = None;
        self.force_primary = false;
        self.refused = None;
        self.ask(attachment);
    }

    /// A statement of the oldest unit was answered with this tag (without one: an empty query, or a portal
    /// that has more rows).
    fn answered(&mut self, attachment: &mut Attachment, tag: &[u8]) {
        if matches!(tag, b"DEALLOCATE ALL\0" | b"DISCARD ALL\0") {
            self.prepared.clear();
            let checkout: &mut Backend = &mut attachment.checkout;
            let owed = &checkout.owed;
            checkout.statements.forget_all_but(|id| owed.defines(id));
        }
        let unit = self.sent.front_mut().unwrap_or(&mut self.unit);
        let at = unit.answers;
        unit.answers = at.saturating_add(1);
        loop {
            let effects = &mut self.sent.front_mut().unwrap_or(&mut self.unit).effects;
            let Some(effect) = effects.pop_front() else { return };
            if effect.at > at {
                return effects.push_front(effect);
            }
            if effect.at == at {
                self.apply(attachment, effect.kind, tag);
            }
        }
    }

    /// Keeps in mind which startup settings a RESET has to go back to.
    fn note_restored(&mut self, kind: &Kind) {
        let startup = self.tracked.startup().entries();
        match kind {
            Kind::Reset(name) => {
                self.after.restored.extend(startup.iter().filter(|entry| *entry.name == **name).cloned());
            }
            Kind::ResetAll | Kind::DiscardAll => self.after.restored = startup.to_vec(),
            Kind::Set(entries) => self.after.restored.retain(|old| entries.iter().all(|new| new.name != old.name)),
            _ => {}
        }
    }

    /// What the client brought along comes back after a RESET.
    fn restore(&mut self, attachment: &mut Attachment, status: TxStatus, failed: bool) {
        let restored = std::mem::take(&mut self.after.restored);
        let undone = failed || status == TxStatus::Failed;
        if !restored.is_empty() && !undone {
            let text = Settings::default().change_to(&Settings::new(restored));
            Self::send_hidden(attachment, &text, Hidden::Restore);
        }
    }

    /// What a statement does to the session is done.
    fn apply(&mut self, attachment: &mut Attachment, kind: Kind, tag: &[u8]) {
        self.note_restored(&kind);
        self.tracked.answered(&kind, tag);
        match kind {
            Kind::Pin(reasons, statement) => self.pin(statement.as_bytes(), |pins| pins.add(reasons)),
            Kind::Uncertain(names) => {
                self.after.uncertain = true;
                self.after
                    .suspects
                    .extend(names.iter().take(SUSPECTS_MAX.saturating_sub(self.after.suspects.len())).cloned());
            }
            // A pin made in a transaction that is undone has lost its cause.
            Kind::End if tag != b"ROLLBACK\0" => {}
            Kind::Unpins | Kind::End | Kind::RollbackTo(_) => self.after.uncertain |= self.pins.has_state(),
            Kind::DiscardAll => self.pin(b"", super::effects::Pins::clear_state),
            Kind::ForgetSequences => {
                attachment.checkout.sequences_of = None;
                self.pin(b"", super::effects::Pins::forget_sequences);
            }
            Kind::Schema(code) => {
                self.deps.schema_changed(code);
                self.after.changed_schema = true;
                self.after.changed_code |= code;
                // What is dropped cannot become a read by it.
                let functions = code && !tag.starts_with(b"DROP ");
                self.catalog.changed(functions);
                self.after.changed_functions |= functions;
            }
            Kind::Logins => self.after.changed_logins = true,
            Kind::Prepare(name, text) => {
                attachment.checkout.statements.note_sql(&name, Some(&text));
                self.prepared.define_sql(&name, text);
            }
            Kind::Deallocate(name) => {
                attachment.checkout.statements.note_sql(&name, None);
                if let Some(statement) = self.prepared.remove(&name) {
                    attachment.checkout.statements.forget(statement.id);
                }
            }
            Kind::Set(_)
            | Kind::Reset(_)
            | Kind::ResetAll
            | Kind::DeallocateAll
            | Kind::Savepoint(_)
            | Kind::Release(_) => {}
        }
    }

    /// After a ReadyForQuery: can the backend go? `drained`: nothing of the node's is left over.
    fn after_ready(&mut self, attachment: &mut Attachment, drained: bool) -> Progress {
        let owed_none = attachment.checkout.owed.is_empty();
        if attachment.rerouting && owed_none {
            return Progress::Reroute;
        }
        if let Some(error) = attachment.refused.take() {
            return Progress::ReplayFailed(error);
        }
        if drained && self.can_release(attachment) {
            return Progress::Release;
        }
        // A pinned session goes on where it is, and so does a transaction; any other read is routed anew.
        if attachment.gate == Gate::Shut && owed_none && (!self.pins.is_empty() || self.transaction.is_open()) {
            attachment.gate = Gate::Free;
        }
        Progress::Stay
    }

    /// Is the backend between units, and not needed for what is to come?
    pub(super) fn can_release(&self, attachment: &Attachment) -> bool {
        let idle =
            attachment.checkout.tx == TxStatus::Idle && attachment.checkout.owed.is_empty() && self.sent.is_empty();
        let passing = attachment.to_node > 0 || !attachment.outbox.is_empty() || attachment.scan.is_inside();
        let wanted = attachment.gate == Gate::OneRead || self.after.uncertain || self.transaction.is_open();
        idle && !passing && !wanted && attachment.used && self.pins.is_empty() && self.unit_is_untouched()
    }

    /// Has nothing of a further unit been passed on?
    fn unit_is_untouched(&self) -> bool {
        !self.unit.begun && self.unit.access == Access::Read && self.unit.effects.is_empty()
    }
}

/// How string literals read under these parameters.
pub(super) fn strings_of(parameters: &Parameters) -> StringSyntax {
    if parameters.value("standard_conforming_strings") == Some("off") {
        StringSyntax::Backslash
    } else {
        StringSyntax::Standard
    }
}

impl Streamed {
    fn fate(self) -> Fate {
        match self {
            Self::Forward => Fate::Forward,
            Self::Swallow => Fate::Swallow,
        }
    }
}
