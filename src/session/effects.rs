//! What statements leave behind: settings that are replayed, and state that pins the session.
//!
//! An effect counts when the answer of its own statement has come, not before. Pure. Invariant: whatever
//! is not exactly understood is asked for. Absent on purpose: SET LOCAL, and when a transaction makes
//! settings last (`tracked`).

use crate::backend::Setting;
use crate::sql::{self, BeginOptions, Change, Classification, Isolation, PinReason, Step, StringSyntax, TxControl};
use std::collections::VecDeque;
use std::sync::Arc;

/// SET of this keeps what it does not name, so that its text alone does not tell the value.
const MERGING: &str = "datestyle";
/// Settings of extensions taken from one text.
const SUSPECTS_MAX: usize = 50;
/// Bytes kept of a statement that pins.
const STATEMENT_SHOWN_MAX: usize = 200;

/// One thing that a statement does to the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Which answer of the unit says that it is done, from 0.
    pub at: u32,
    /// What it is.
    pub kind: Kind,
}

/// What a statement does to the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SET, `set_config()`, SET SESSION CHARACTERISTICS.
    Set(Box<[Setting]>),
    /// RESET name
    Reset(Arc<str>),
    /// RESET ALL
    ResetAll,
    /// DISCARD ALL
    DiscardAll,
    /// PREPARE name, with the statement's text.
    Prepare(Arc<str>, Arc<[u8]>),
    /// DEALLOCATE of one name.
    Deallocate(Arc<str>),
    /// DEALLOCATE ALL
    DeallocateAll,
    /// COMMIT, ROLLBACK, PREPARE TRANSACTION: the answer tells which of them it was.
    End,
    /// SAVEPOINT name
    Savepoint(Arc<str>),
    /// RELEASE name
    Release(Arc<str>),
    /// ROLLBACK TO name
    RollbackTo(Arc<str>),
    /// State that cannot move, and the statement that made it, shortened.
    Pin(sql::Pins, Box<str>),
    /// The text does not tell what it did; it names these settings of extensions.
    Uncertain(Box<[Arc<str>]>),
    /// The cause of a pin may be gone.
    Unpins,
    /// DISCARD SEQUENCES
    ForgetSequences,
    /// Names and types may mean something else now; true: functions and triggers as well.
    Schema(bool),
    /// Who may log in, or what sessions begin with, is something else now.
    Logins,
}

impl Effect {
    /// Adds what a text does, whose first answer is the `base`th of its unit. `quiet`: nothing has been
    /// changed that the end of a transaction could make last or undo.
    pub fn collect(
        into: &mut VecDeque<Self>,
        base: u32,
        class: &Classification,
        text: &[u8],
        strings: StringSyntax,
        quiet: bool,
    ) {
        let ends = |tx: &TxControl| {
            matches!(tx, TxControl::Begin(_) | TxControl::Commit { .. } | TxControl::Rollback { .. } | TxControl::Mixed)
        };
        let matters = |step: &Step| !ends(&step.tx) || !step.effects.is_none();
        if class.steps.is_empty() || quiet && !class.steps.iter().any(matters) {
            return;
        }
        let pieces = if class.statements > 1 { sql::pieces(text, strings) } else { vec![text] };
        for step in &class.steps {
            let piece = pieces.get(usize::from(step.at)).copied().unwrap_or_default();
            let at = base.saturating_add(u32::from(step.at));
            Kind::collect(step, piece, strings, |kind| into.push_back(Self { at, kind }));
        }
    }

    /// Does it change which names of prepared statements there are?
    #[must_use]
    pub fn changes_names(&self) -> bool {
        matches!(self.kind, Kind::DiscardAll | Kind::Prepare(..) | Kind::Deallocate(_) | Kind::DeallocateAll)
    }
}

impl Kind {
    /// Does the node go back to defaults of its own?
    #[must_use]
    pub fn resets(&self) -> bool {
        matches!(self, Self::Reset(_) | Self::ResetAll | Self::DiscardAll)
    }

    fn collect(step: &Step, text: &[u8], strings: StringSyntax, mut add: impl FnMut(Self)) {
        match &step.tx {
            TxControl::Commit { .. } | TxControl::Rollback { .. } | TxControl::PrepareTransaction => add(Self::End),
            TxControl::Savepoint(name) => add(Self::Savepoint(Arc::clone(name))),
            TxControl::Release(name) => add(Self::Release(Arc::clone(name))),
            TxControl::RollbackTo(name) => add(Self::RollbackTo(Arc::clone(name))),
            TxControl::None
            | TxControl::Begin(_)
            | TxControl::Set(_)
            | TxControl::CommitPrepared
            | TxControl::RollbackPrepared => {}
            TxControl::Mixed => add(Self::Uncertain(suspects(text))),
        }
        match &step.effects.change {
            Change::Set { name } => {
                add(Self::Set([Setting::from_statement(name, text)].into()));
                if strings == StringSyntax::Backslash || &**name == MERGING {
                    // Replayed elsewhere, the text would mean something else: the value is asked for.
                    add(Self::Uncertain([Arc::clone(name)].into()));
                }
            }
            Change::SetConfig { name, value } => add(Self::Set([Setting::from_value(name, value.as_bytes())].into())),
            Change::Characteristics(options) => add(Self::Set(characteristics(*options))),
            Change::Reset { name } => add(Self::Reset(Arc::clone(name))),
            Change::ResetAll => add(Self::ResetAll),
            Change::DiscardAll => add(Self::DiscardAll),
            Change::Prepare { name } => add(Self::Prepare(Arc::clone(name), text.trim_ascii().into())),
            Change::Deallocate { name } => add(Self::Deallocate(Arc::clone(name))),
            Change::DeallocateAll => add(Self::DeallocateAll),
            Change::DiscardSequences => add(Self::ForgetSequences),
            // Gone with the transaction, or without meaning for the next client.
            Change::None
            | Change::SetLocal { .. }
            | Change::DiscardPlans
            | Change::DiscardTemp
            | Change::UnlistenAll
            | Change::Execute { .. } => {}
        }
        if !step.effects.pins.is_empty() {
            add(Self::Pin(step.effects.pins, shown(text)));
        }
        if step.effects.uncertain {
            add(Self::Uncertain(suspects(text)));
        }
        if step.effects.releases {
            add(Self::Unpins);
        }
        if step.effects.schema {
            add(Self::Schema(step.effects.code));
        }
        if step.effects.logins {
            add(Self::Logins);
        }
    }
}

/// Names of settings of extensions (`app.user`, say) that stand between quotes in a text. A node does not
/// list such settings, so they must be asked for by name.
pub fn suspects(text: &[u8]) -> Box<[Arc<str>]> {
    let is_name = |piece: &[u8]| {
        piece.contains(&b'.')
            && piece.len() < 128
            && piece.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$'))
            && piece.split(|byte| *byte == b'.').all(|part| part.first().is_some_and(|byte| !byte.is_ascii_digit()))
    };
    let pieces = text.split(|byte| *byte == b'\'').filter(|piece| is_name(piece)).take(SUSPECTS_MAX);
    pieces.map(|piece| String::from_utf8_lossy(piece).to_ascii_lowercase().into()).collect()
}

/// The beginning of a statement, for people.
pub fn shown(text: &[u8]) -> Box<str> {
    let text = String::from_utf8_lossy(text.trim_ascii());
    let mut words = String::with_capacity(text.len().min(STATEMENT_SHOWN_MAX));
    for word in text.split_ascii_whitespace() {
        if words.len() + word.len() >= STATEMENT_SHOWN_MAX {
            words.push('…');
            break;
        }
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    }
    words.into()
}

/// The settings that SET SESSION CHARACTERISTICS AS TRANSACTION makes.
fn characteristics(options: BeginOptions) -> Box<[Setting]> {
    let flag = |on: bool| if on { &b"on"[..] } else { b"off" };
    let isolation = options.isolation.map(|level| match level {
        Isolation::ReadUncommitted => &b"read uncommitted"[..],
        Isolation::ReadCommitted => b"read committed",
        Isolation::RepeatableRead => b"repeatable read",
        Isolation::Serializable => b"serializable",
    });
    [
        ("default_transaction_isolation", isolation),
        ("default_transaction_read_only", options.read_only.map(flag)),
        ("default_transaction_deferrable", options.deferrable.map(flag)),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.map(|value| Setting::from_value(name, value)))
    .collect()
}

/// Why a session must keep its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    reasons: sql::Pins,
    session_mode: bool,
    unknown: bool,
}

impl Pins {
    /// Adds what a statement leaves behind.
    pub fn add(&mut self, reasons: sql::Pins) {
        self.reasons = self.reasons.union(reasons);
    }

    /// What a backend said it holds, which replaces what was believed; what cannot be asked for stays.
    pub fn learn(&mut self, held: sql::Pins) {
        let unseen = self.reasons.iter().filter(|reason| !reason.can_be_asked());
        self.reasons = unseen.map(sql::Pins::of).fold(held, sql::Pins::union);
        self.unknown = false;
    }

    /// DISCARD SEQUENCES: that reason is gone.
    pub fn forget_sequences(&mut self) {
        let others = self.reasons.iter().filter(|reason| *reason != PinReason::Sequence);
        self.reasons = others.map(sql::Pins::of).fold(sql::Pins::NONE, sql::Pins::union);
    }

    /// Session pool mode: until the client leaves.
    pub fn for_session_mode(&mut self) {
        self.session_mode = true;
    }

    /// Does the session keep its backend whatever it does?
    #[must_use]
    pub fn is_for_good(self) -> bool {
        self.session_mode
    }

    /// The session changed in a way that could not be followed.
    pub fn for_unknown(&mut self) {
        self.unknown = true;
    }

    /// The reasons as metric labels.
    pub fn labels(self) -> impl Iterator<Item = &'static str> {
        let own = [(self.session_mode, "session_mode"), (self.unknown, "unknown")];
        let own = own.into_iter().filter(|(set, _)| *set).map(|(_, label)| label);
        own.chain(self.reasons.iter().map(PinReason::label))
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(self) -> bool {
        !self.session_mode && !self.has_state()
    }

    /// Forgets all reasons but the pool mode (DISCARD ALL).
    pub fn clear_state(&mut self) {
        *self = Self { session_mode: self.session_mode, ..Self::default() };
    }

    /// Is there session state beyond what is tracked?
    #[must_use]
    pub fn has_state(self) -> bool {
        self.unknown || !self.reasons.is_empty()
    }
}

/// What a unit does to transactions, as far as the session must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// Nothing that matters.
    #[default]
    None,
    /// Begins one.
    Begins,
    /// Commits, or may.
    Commits,
    /// Rolls back.
    RollsBack,
    /// More than one of these, perhaps.
    Murky,
}

impl Control {
    /// Of one text.
    #[must_use]
    pub fn of(tx: &TxControl) -> Self {
        match tx {
            TxControl::None | TxControl::Set(_) | TxControl::Savepoint(_) | TxControl::Release(_) => Self::None,
            TxControl::Begin(_) => Self::Begins,
            TxControl::Commit { chain: false } | TxControl::CommitPrepared | TxControl::RollbackPrepared => {
                Self::Commits
            }
            TxControl::Rollback { chain: false } => Self::RollsBack,
            TxControl::Commit { chain: true }
            | TxControl::Rollback { chain: true }
            | TxControl::RollbackTo(_)
            | TxControl::PrepareTransaction
            | TxControl::Mixed => Self::Murky,
        }
    }

    /// May it have committed something, if its answer is lost?
    #[must_use]
    pub fn may_commit(self) -> bool {
        matches!(self, Self::Commits | Self::Murky)
    }

    /// Does it end a transaction block for certain?
    #[must_use]
    pub fn ends(self) -> bool {
        matches!(self, Self::Commits | Self::RollsBack)
    }
}
