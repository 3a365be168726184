//! ErrorResponse from the node: what it means for the unit, and what the client is told.
//!
//! Invariants: a read is run again only while nothing of its answer has left; names that we gave statements
//! do not reach the client. Absent on purpose: the loss of a backend (`loss`).

use super::loss::Loss;
use super::preference::OURS_HINT;
use super::refusal::{Misrouted, Refusal};
use super::replies::Fate;
use super::{Attachment, Describing, Gate, Session};
use crate::backend::{Owed, Refused, Reply, text_of};
use crate::error::{Classify, ClientError, SqlState};
use crate::route::Reach;
use crate::topology::{Fact, Role};
use crate::wire::{LENGTH_MAX, backend as tags, encode, frontend};

/// Times that one read is run again because of its plan.
const MENDS_MAX: u32 = 3;

impl Session {
    pub(super) fn on_error(
        &mut self,
        attachment: &mut Attachment,
        body: &[u8],
        front: Option<Owed>,
    ) -> Result<Fate, Loss> {
        let view = tags::error(body).map_err(|_| Loss::Garbage)?;
        if matches!(view.severity, b"FATAL" | b"PANIC") {
            return Err(Loss::Ended {
                sqlstate: String::from_utf8_lossy(view.sqlstate).into(),
                message: String::from_utf8_lossy(view.message).into(),
            });
        }
        if matches!(front, Some(Owed::Query { swallow: true })) {
            Self::hidden_refused(attachment, body);
            attachment.checkout.owed.on_reply(tags::ERROR).map_err(|_| Loss::Garbage)?;
            return Ok(Fate::Swallow);
        }
        self.mend_plan(attachment, front, view.sqlstate);
        let late = self.heed_refusal(attachment, &view);
        let strange = attachment.target.role == Role::Primary && !self.transaction.is_open();
        // A session whose transactions only read by default gets this from the best of primaries.
        if view.sqlstate == b"25006" && strange && !self.preference.read_only {
            self.deps.facts.send(Fact::WriteRefused(attachment.target.node));
        }
        let verdict = attachment.checkout.owed.on_reply(tags::ERROR).map_err(|_| Loss::Garbage)?;
        while let Some(id) = attachment.checkout.owed.take_failed() {
            if id == 0 {
                // Whose unnamed statement is there now is not known.
                attachment.checkout.statements.note_unnamed(Some(u64::MAX));
            } else {
                attachment.checkout.statements.forget(id);
            }
        }
        if verdict == Reply::Swallow {
            return Ok(Fate::Swallow);
        }
        attachment.describing = Describing::No;
        attachment.sent_at = None;
        let renamed = if attachment.rerouting {
            None
        } else if late {
            self.note_error(&Misrouted);
            let mut out = Vec::new();
            encode::error(&mut out, &Misrouted.client());
            Some(out)
        } else if let Some(refused) = self.refused(front) {
            Some(refusal(refused))
        } else {
            self.rename_error(body)
        };
        attachment.tainted |= attachment.checkout.owed.take_unclosed();
        let undefined = attachment.checkout.owed.take_undefined();
        for _ in 0..attachment.checkout.owed.take_unready() {
            self.sent.pop_front();
        }
        let unit = self.sent.front_mut().unwrap_or(&mut self.unit);
        unit.failed = true;
        if let Some(watched) = &mut unit.watched {
            watched.sqlstate = Some(String::from_utf8_lossy(view.sqlstate).into());
        }
        if attachment.rerouting {
            return Ok(Fate::Forward);
        }
        self.decided(true);
        self.prepared.abandon(undefined);
        Ok(renamed.map_or(Fate::Forward, Fate::Replace))
    }

    /// A backend's plan that is of no use any more, or is gone, is none of the client's making: a read of
    /// which nothing was answered runs again with a new one.
    fn mend_plan(&mut self, attachment: &mut Attachment, front: Option<Owed>, sqlstate: &[u8]) {
        let Some(Owed::Bind { id }) = front else { return };
        if id == 0 || !matches!(sqlstate, b"0A000" | b"26000") {
            return;
        }
        if sqlstate == b"26000" {
            attachment.checkout.statements.forget(id);
        } else {
            attachment.checkout.statements.outdate(id);
        }
        if self.outbox.is_holding() && attachment.target.role == Role::Primary && self.attempts < MENDS_MAX {
            self.attempts += 1;
            self.deps.metrics.route.reruns.inc("plan_outdated");
            attachment.rerouting = true;
        }
    }

    /// Did we have the node refuse this request?
    fn refused(&self, front: Option<Owed>) -> Option<Refused> {
        match front {
            Some(Owed::Refusal(why)) => Some(why),
            Some(Owed::Query { swallow: false }) => self.sent.front().and_then(|unit| unit.refused),
            _ => None,
        }
    }

    /// A name that we gave a statement must not reach the client.
    fn rename_error(&self, body: &[u8]) -> Option<Vec<u8>> {
        let at = memchr::memmem::find(body, crate::backend::NAME_PREFIX.as_bytes())?;
        let end = body[at..]
            .iter()
            .position(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_'))
            .map_or(body.len(), |len| at + len);
        let name = self.prepared.name_of(&body[at..end])?;
        let mut renamed = Vec::new();
        encode::message(&mut renamed, tags::ERROR, |out| {
            out.extend_from_slice(&body[..at]);
            out.extend_from_slice(name);
            out.extend_from_slice(&body[end..]);
        });
        Some(renamed)
    }

    /// Does a standby refuse a read for being a standby? Then the unit runs again. True: too late for that, part of
    /// its answer has left. What only the primary can do is not charged to the retry budget: the client must not see
    /// that a standby was asked, and it is learned.
    fn heed_refusal(&mut self, attachment: &mut Attachment, view: &tags::ErrorView<'_>) -> bool {
        if attachment.target.role != Role::Standby || attachment.gate == Gate::Free {
            return false;
        }
        let Some(refusal) = Refusal::of(view.sqlstate, view.routine) else { return false };
        if self.preference.reach == Reach::Standby && !refusal.is_conflict() {
            // A session that only standbys serve gets their errors.
            return false;
        }
        if !self.outbox.is_holding() {
            let late = refusal.is_certain();
            if late {
                self.learn_writes(refusal);
            }
            return late;
        }
        if refusal.is_conflict() {
            // Without a budget the client gets the node's own error, which says that the read can be retried.
            if !self.deps.may_rerun(refusal.label()) {
                return false;
            }
            self.avoid = Some(attachment.target.node);
        } else {
            self.deps.metrics.route.reruns.inc(refusal.label());
            self.force_primary = true;
            if refusal.teaches() {
                self.refused = Some(refusal);
            }
            if refusal.is_certain() {
                self.learn_writes(refusal);
            }
        }
        attachment.rerouting = true;
        self.attempts += 1;
        false
    }

    /// Statements of the shapes in this unit are no reads: a standby has said so.
    pub(super) fn learn_writes(&mut self, refusal: Refusal) {
        let reason = refusal.label();
        let mut at = self.inbox.start();
        while let Ok(Some(message)) = self.inbox.message_at(at, LENGTH_MAX) {
            if !message.whole || message.at >= self.inbox.cursor() {
                break;
            }
            let body = self.inbox.body(message);
            match message.tag {
                frontend::QUERY => drop(frontend::query(body).map(|text| self.deps.learn_write(text, reason))),
                frontend::PARSE => drop(frontend::parse(body).map(|view| self.deps.learn_write(view.text, reason))),
                frontend::BIND => {
                    let Ok(view) = frontend::bind(body) else { break };
                    if view.statement.is_empty() {
                        let unnamed = &self.prepared.unnamed;
                        let text = text_of(&unnamed.content);
                        self.deps.learn_write(text, reason);
                        if unnamed.class.is_some() {
                            self.prepared.unnamed.class = Some(self.deps.classify(&self.catalog, text, self.strings));
                        }
                    } else if let Some(statement) = self.prepared.find(view.statement) {
                        self.deps.learn_write(statement.text(), reason);
                    }
                }
                _ => {}
            }
            at += message.len;
        }
    }
}

/// The error of a request that we refused.
fn refusal(refused: Refused) -> Vec<u8> {
    let mut out = Vec::new();
    let error = match refused {
        Refused::OtherRows => {
            // Drivers prepare anew on this error, and know it by its routine (asyncpg, pgjdbc).
            ClientError::error(SqlState::FEATURE_NOT_SUPPORTED, "cached plan must not change result type")
                .routine("RevalidateCachedQuery")
        }
        Refused::Unknown => ClientError::error(
            SqlState::INVALID_STATEMENT_NAME,
            "the prepared statement that this one executes does not exist any more",
        ),
        Refused::Setting => {
            ClientError::error(SqlState("22023"), "no setting of pgregent, or no value for it").hint(OURS_HINT)
        }
        Refused::Pin => ClientError::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            "this statement would tie its session to one backend, which is not allowed here",
        )
        .hint("Temporary tables, LISTEN, session locks and the like need [pool] pinning = \"allow\"."),
    };
    encode::error(&mut out, &error);
    out
}
