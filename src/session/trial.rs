//! Transactions that begin on a standby although they may write, and move to the primary before they do.
//!
//! Opt-in. What the client sends is kept, and what it is told is hashed, until the first unit that is no read. Then the
//! transaction is rolled back on the standby, begun on the primary, and everything is sent there again; only if the
//! primary tells the very same does the transaction go on, as if it had always been there. Otherwise it fails with
//! 40001, which clients retry, and the session begins its transactions on the primary from then on (it may ask for
//! the time, say). Invariants: nothing but reads was sent when it moves; at most [`LOG_BYTES_MAX`] bytes are kept, and what
//! would exceed them moves at once; what was told once is never told again. Absent on purpose: results themselves.

use super::forward::Forwarded;
use super::unit::{Scan, Violation};
use super::{Attachment, Gate, Session, Transaction, attach};
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};
use crate::sql::{Access, TxControl};
use aws_lc_rs::digest::{Context, SHA256};
use std::fmt;

/// Bytes of messages that are kept to be sent again.
const LOG_BYTES_MAX: usize = 64 * 1024;

/// A transaction that may move.
pub(super) struct Trial {
    /// The client's BEGIN.
    begin: Box<[u8]>,
    /// What the client was told.
    told: Context,
    /// Sending again: what it would be told now, and how many bytes of messages that is about.
    again: Option<(Context, usize)>,
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("again", &self.again.is_some()).finish_non_exhaustive()
    }
}

impl Trial {
    /// Of a transaction with this BEGIN.
    pub fn new(begin: &[u8]) -> Self {
        Self { begin: begin.into(), told: Context::new(&SHA256), again: None }
    }

    /// The first unit runs elsewhere; nothing of its answer has left.
    pub fn restart(&mut self) {
        self.told = Context::new(&SHA256);
    }

    /// Is everything being sent again?
    pub fn is_repeating(&self) -> bool {
        self.again.is_some()
    }

    /// Takes note of an answer. True: the client is to be told.
    pub fn hear(&mut self, bytes: &[u8]) -> bool {
        match &mut self.again {
            None => self.told.update(bytes),
            Some((again, _)) => again.update(bytes),
        }
        self.again.is_none()
    }

    /// Has the primary told the same?
    fn agrees(&self) -> bool {
        let sum = |context: &Context| context.clone().finish();
        self.again.as_ref().is_some_and(|(again, _)| sum(again).as_ref() == sum(&self.told).as_ref())
    }
}

/// The primary told something else than the standby.
#[derive(Debug, thiserror::Error)]
#[error("the primary answers otherwise than the standby did")]
pub(super) struct Disagreed;

impl Classify for Disagreed {
    fn fault(&self) -> Fault {
        Fault::Topology
    }

    fn retry(&self) -> Retry {
        Retry::Later
    }

    fn client(&self) -> ClientError {
        ClientError::error(SqlState::SERIALIZATION_FAILURE, "could not move the transaction to the primary")
            .detail("It began on a standby, and what it read there is not what the primary shows now.")
            .hint("Nothing was written; the transaction can be retried. [route] optimistic_transactions is on.")
    }

    fn label(&self) -> &'static str {
        "trial_disagreed"
    }
}

impl Session {
    /// May the next message be passed on, where a transaction is on trial? `None`: yes.
    pub(super) fn judge_trial(&mut self, attachment: &Attachment) -> Result<Option<Forwarded>, Violation> {
        let Some(trial) = &self.trial else { return Ok(None) };
        let inside = self.unit.begun || attachment.to_node > 0 || attachment.gate != Gate::Free;
        if inside || !self.inbox.has_unread() {
            return Ok(None);
        }
        let owed = &attachment.checkout.owed;
        let quiet = self.sent.is_empty() && owed.is_empty() && attachment.hidden.is_empty();
        if let Some((_, end)) = &trial.again {
            if self.inbox.logged() < *end {
                return Ok(None);
            }
            if !quiet {
                return Ok(Some(Forwarded::Done));
            }
            if !trial.agrees() {
                return Ok(Some(Forwarded::Disagreed));
            }
            self.deps.metrics.route.trials.inc("moved");
            self.end_trial();
            return Ok(None);
        }
        if !self.transaction.is_open() {
            return Ok(None);
        }
        // A transaction that has failed can only end, which PREPARE TRANSACTION cannot do on a standby.
        let failed = matches!(self.transaction, Transaction::Open { failed: true, .. });
        let stays = match self.scan_unit()? {
            Scan::More(bytes) => {
                self.wanted = bytes;
                return Ok(Some(Forwarded::Done));
            }
            Scan::Local(_) | Scan::Ignore(_) | Scan::Terminate => true,
            Scan::Route { ends: true, .. } => true,
            Scan::Route { class, .. } if failed => class.is_none_or(|class| class.tx != TxControl::PrepareTransaction),
            Scan::Route { access, closed, names, .. } => {
                let room = self.inbox.logged() + self.inbox.unread().len() <= LOG_BYTES_MAX;
                access == Access::Read && closed && !names && room
            }
        };
        match (stays, quiet) {
            (true, _) => Ok(None),
            (false, false) => Ok(Some(Forwarded::Done)),
            (false, true) => Ok(Some(Forwarded::Moves)),
        }
    }

    /// Sends everything of the transaction to the primary again.
    pub(super) fn move_trial(&mut self, attachment: Attachment) {
        self.part_rolled_back(attachment);
        let Some(trial) = &mut self.trial else { return };
        trial.again = Some((Context::new(&SHA256), self.inbox.logged()));
        self.transaction = Transaction::Deferred(trial.begin.clone());
        self.inbox.rewind_log();
        (self.query_class, self.memo) = (None, None);
        self.force_primary = true;
        self.seek(attach::Wanted { access: Access::Write, closed: false });
    }

    /// The primary answered otherwise: the transaction has failed, and the client is told instead of its write.
    pub(super) fn fail_trial(&mut self, attachment: Attachment) {
        self.part_rolled_back(attachment);
        self.forget_unit();
        self.end_trial();
        self.optimistic = false;
        self.deps.metrics.route.trials.inc("disagreed");
        self.transaction = Transaction::Lost { told: true };
        self.deny_with(&Disagreed);
    }

    /// What was told of the transaction stays told: the client is where it was before it began to move. True: it was
    /// moving.
    pub(super) fn stop_repeating(&mut self) -> bool {
        let Some((_, end)) = self.trial.as_ref().and_then(|trial| trial.again.as_ref()) else { return false };
        self.inbox.skip_log(*end);
        self.sent.clear();
        self.end_trial();
        true
    }

    /// The transaction has ended, or has arrived where it stays.
    pub(super) fn end_trial(&mut self) {
        if self.trial.take().is_some() {
            self.inbox.forget_log();
        }
    }

    /// Passes an answer on to the client, unless it has had it.
    pub(super) fn deliver(&mut self, bytes: &[u8]) {
        if self.trial.as_mut().is_none_or(|trial| trial.hear(bytes)) {
            self.outbox.push(bytes);
        }
    }
}
