//! What the loss of a backend means to its session.
//!
//! The table (docs/decisions/0003-healing.md has the reasons):
//!
//! | at the loss | the client gets |
//! |---|---|
//! | a read outside a transaction, nothing answered | nothing: it runs again elsewhere |
//! | such a read, partly answered | ERROR 40001, session goes on |
//! | a write outside a transaction, or COMMIT, unanswered | ERROR 08007, session goes on, never sent again |
//! | a transaction is open | ERROR 40001 at once or at the next statement; only its end is accepted |
//! | state that cannot move (temporary tables, say) | FATAL 57P01 |
//! | in the middle of a row already being passed on | the connection ends: no message fits there |
//!
//! Invariant: a write whose bytes left is never sent again (I5). Absent on purpose: asking what
//! became of a commit.

use super::hidden::Hidden;
use super::{Attachment, Gate, Session, SessionEnd, Stage, Transaction};
use crate::client::Signal;
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};
use crate::ids::Epoch;
use crate::pool::DiscardReason;
use crate::sql::Access;
use crate::topology::{Fact, Role};
use crate::wire::encode;

/// How often one read may move before it fails.
const MOVES_MAX: u32 = 8;

/// How a backend was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The connection ended or failed.
    Eof,
    /// The node ended it with a FATAL error.
    Ended {
        /// Its code.
        sqlstate: Box<str>,
        /// Its message.
        message: Box<str>,
    },
    /// It sent something that is not the protocol.
    Garbage,
    /// The topology fenced its node.
    Fenced,
    /// The permit to write in this epoch was over when it answered.
    Unpermitted(Epoch),
    /// It refused the session's settings, for this reason, and had been given a statement of the client's.
    Unprepared(String),
}

impl Loss {
    fn discard_reason(&self) -> DiscardReason {
        match self {
            Self::Eof | Self::Ended { .. } => DiscardReason::Lost,
            Self::Garbage => DiscardReason::Garbage,
            Self::Fenced => DiscardReason::Fenced,
            Self::Unpermitted(_) => DiscardReason::Unpermitted,
            Self::Unprepared(_) => DiscardReason::Dirty,
        }
    }

    /// The metric label of a rerun.
    fn label(&self) -> &'static str {
        match self {
            Self::Eof => "backend_lost",
            Self::Ended { sqlstate, .. } => match &**sqlstate {
                "57P01" | "57P02" | "57P03" => "shutdown",
                // A recovery conflict that ends the connection.
                "40001" | "57P04" => "conflict",
                _ => "ended",
            },
            Self::Garbage => "garbage",
            Self::Fenced => "fenced",
            Self::Unpermitted(_) => "unpermitted",
            Self::Unprepared(_) => "unprepared",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Eof => "The connection to the node ended.".into(),
            Self::Ended { sqlstate, message } => format!("The node said {sqlstate}: {message}."),
            Self::Garbage => "The node sent something that is not the protocol.".into(),
            Self::Fenced => "The node is no longer in service.".into(),
            Self::Unpermitted(epoch) => format!(
                "The write permit of epoch {epoch} ended before the reply: another proxy may have promoted another node."
            ),
            Self::Unprepared(why) => format!("The node refused the session's settings: {why}."),
        }
    }
}

/// What the loss means to a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    RolledBack(String),
    Unknown(String),
    ReadBroken(String),
    NoBudget(String),
    StateLost(String),
}

impl Classify for Verdict {
    fn fault(&self) -> Fault {
        Fault::Node
    }

    fn retry(&self) -> Retry {
        match self {
            Self::RolledBack(_) | Self::ReadBroken(_) | Self::NoBudget(_) => Retry::Later,
            Self::Unknown(_) | Self::StateLost(_) => Retry::Never,
        }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::RolledBack(why) => ClientError::error(
                SqlState::SERIALIZATION_FAILURE,
                "the transaction was rolled back because its node was lost",
            )
            .detail(why.clone())
            .hint("The transaction can be retried."),
            Self::Unknown(why) => ClientError::error(
                SqlState::RESOLUTION_UNKNOWN,
                "the node was lost before it answered: whether the change was made is not known",
            )
            .detail(why.clone())
            .hint("Look whether the change was made before you repeat it."),
            Self::ReadBroken(why) => {
                ClientError::error(SqlState::SERIALIZATION_FAILURE, "the node was lost in the middle of its answer")
                    .detail(why.clone())
                    .hint("The statement only reads and can be retried.")
            }
            Self::NoBudget(why) => ClientError::error(
                SqlState::SERIALIZATION_FAILURE,
                "the node was lost before it answered, and too many reads run again already",
            )
            .detail(why.clone())
            .hint("The statement only reads and can be retried. [route] retry_budget_percent says how many run again by themselves."),
            Self::StateLost(why) => ClientError::fatal(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection because its session state was lost with its node",
            )
            .detail(why.clone())
            .hint("Temporary tables, session locks and the like cannot move to another node; connect again."),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::RolledBack(_) => "rolled_back",
            Self::Unknown(_) => "commit_unknown",
            Self::ReadBroken(_) => "read_broken",
            Self::NoBudget(_) => "no_retry_budget",
            Self::StateLost(_) => "state_lost",
        }
    }
}

impl Session {
    /// The backend is gone. Decides and says what that means; afterwards the session is detached.
    pub(super) fn on_loss(&mut self, mut attachment: Attachment, loss: &Loss) {
        self.report(&attachment, loss);
        let movable = matches!(attachment.gate, Gate::OneRead | Gate::Shut) && self.outbox.is_holding()
            // What a standby would not do may write on the primary, and may have done so.
            && self.refused.is_none();
        let inside_message = attachment.scan.is_inside();
        let to_node = attachment.to_node;
        let untouched = !attachment.checkout.owed.owes_client() && to_node == 0 && !self.unit.begun;
        // The client was told that a text is done, and what that did to its session was not yet known. What it is
        // told of a statement of its own says more.
        let asked = self.after.uncertain || attachment.hidden.iter().any(|hidden| matches!(hidden, Hidden::Ask(_)));
        let unknown = asked && untouched && !self.transaction.is_open();
        let node = attachment.target.node;
        // Somebody wanted this client's session to end, perhaps the client itself.
        let doomed = self.handle.is_signaled(Signal::Doomed)
            || self.unit.terminates
            || self.sent.iter().any(|unit| unit.terminates);
        let moves = movable && !doomed;
        if moves {
            self.defer_again(&mut attachment);
        }
        self.abandon(attachment, loss.discard_reason());
        self.stage = Stage::Detached;
        self.skip_bytes = to_node;
        if moves {
            return self.move_read(node, loss);
        }
        let repeating = self.stop_repeating();
        self.end_trial();
        self.outbox.release();
        self.inbox.settle();
        self.prepared.abandon_all();
        self.tracked.roll_back();
        self.after.restored.clear();
        self.after.uncertain = false;
        self.after.suspects.clear();
        self.held_confirms = 0;
        let terminated = matches!(loss, Loss::Ended { sqlstate, .. } if **sqlstate == *"57P01");
        if doomed && terminated {
            // Its goodbye says so, as the node did.
            self.ending = Some(SessionEnd::Terminated);
        } else if repeating {
            // What was answered before stays answered; the client hears of it with its next statement.
            self.unit = super::Unit::default();
            self.transaction = Transaction::Lost { told: false };
        } else if inside_message {
            // Half a message is on its way to the client: nothing can follow it.
            self.ending = Some(SessionEnd::StateLost);
        } else if self.pins.has_state() || unknown {
            self.fail_session(loss);
        } else {
            self.answer_loss(loss, untouched);
        }
    }

    fn report(&self, attachment: &Attachment, loss: &Loss) {
        let node = attachment.target.node;
        if attachment.target.role == Role::Standby
            && !matches!(loss, Loss::Fenced | Loss::Unpermitted(_) | Loss::Unprepared(_))
        {
            self.deps.standings.of(node).failed();
        }
        match loss {
            Loss::Eof => self.deps.facts.send(Fact::BackendLost(node)),
            // 57P04 and 57P05 are about the session's database and its own idleness.
            Loss::Ended { sqlstate, .. } if matches!(&**sqlstate, "57P01" | "57P02" | "57P03") => {
                self.deps.facts.send(Fact::ShutdownSaid(node))
            }
            Loss::Ended { .. } | Loss::Garbage | Loss::Fenced | Loss::Unpermitted(_) | Loss::Unprepared(_) => {}
        }
    }

    /// Runs the read again: none of its answer was passed on.
    fn move_read(&mut self, node: crate::ids::NodeId, loss: &Loss) {
        self.outbox.drop_held();
        self.forget_unit();
        self.inbox.rewind();
        self.skip_bytes = 0;
        self.query_class = None;
        self.attempts += 1;
        self.avoid = Some(node);
        if self.attempts > MOVES_MAX {
            self.deny_with(&Verdict::ReadBroken(loss.detail()));
        } else if !self.deps.may_rerun(loss.label()) {
            self.deny_with(&Verdict::NoBudget(loss.detail()));
        } else {
            self.seek(self.wanted_unit);
        }
    }

    fn fail_session(&mut self, loss: &Loss) {
        let verdict = Verdict::StateLost(loss.detail());
        self.note_error(&verdict);
        encode::error(self.outbox.tail(), &verdict.client());
        self.ending = Some(SessionEnd::StateLost);
    }

    /// Answers every unit that was sent, and the one being sent.
    fn answer_loss(&mut self, loss: &Loss, untouched: bool) {
        let in_transaction = self.transaction.is_open();
        let sent = std::mem::take(&mut self.sent);
        let half = std::mem::take(&mut self.unit);
        let half_passed = !untouched && (sent.is_empty() || half.access == Access::Write || half.failed);
        let commits = sent.iter().any(|unit| unit.tx.may_commit()) || half.tx.may_commit();
        if in_transaction {
            let told = !sent.is_empty() || half_passed;
            self.transaction = if commits { Transaction::None } else { Transaction::Lost { told } };
        }
        let verdict = |access: Access| match (in_transaction, commits, access) {
            (true, true, _) | (false, _, Access::Write) => Verdict::Unknown(loss.detail()),
            (true, false, _) => Verdict::RolledBack(loss.detail()),
            (false, _, Access::Read) => Verdict::ReadBroken(loss.detail()),
        };
        let status = self.transaction.status();
        for unit in &sent {
            if !unit.failed {
                let verdict = verdict(unit.access);
                self.note_error(&verdict);
                encode::error(self.outbox.tail(), &verdict.client());
            }
            encode::ready(self.outbox.tail(), status);
        }
        if half_passed && sent.is_empty() {
            if !half.failed {
                let verdict = verdict(half.access);
                self.note_error(&verdict);
                encode::error(self.outbox.tail(), &verdict.client());
            }
            self.skip_to_sync = true;
        }
    }
}

/// The error for a statement in a transaction that was lost before the client could be told.
pub(super) fn lost_transaction() -> ClientError {
    Verdict::RolledBack("The node was lost while the transaction was open.".into()).client()
}
