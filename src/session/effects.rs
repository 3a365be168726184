//! What statements leave behind: settings that are replayed, and state that pins the session.
//!
//! Settings follow PostgreSQL's transactions: they count once the transaction that made them has
//! committed. Pure. Invariant: whatever is not exactly understood pins. Absent on purpose: SET LOCAL.

use crate::backend::{Setting, Settings};
use crate::sql::{self, Change, Classification, PinReason, TxControl};
use std::sync::Arc;

/// A change of settings or statements, with the text that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// SET
    Set(Setting),
    /// RESET name
    Reset(Arc<str>),
    /// RESET ALL
    ResetAll,
    /// DISCARD ALL
    DiscardAll,
    /// DEALLOCATE of one name.
    Deallocate(Arc<str>),
    /// DEALLOCATE ALL
    DeallocateAll,
}

impl Effect {
    /// The trackable effect of a statement, if it has one.
    #[must_use]
    pub fn of(class: &Classification, text: &[u8]) -> Option<Self> {
        match &class.effects.change {
            Change::Set { name } => {
                let sql = String::from_utf8_lossy(text);
                let sql = sql.trim().trim_end_matches(';').trim_end();
                Some(Self::Set(Setting { name: Arc::clone(name), sql: sql.into() }))
            }
            Change::Reset { name } => Some(Self::Reset(Arc::clone(name))),
            Change::ResetAll => Some(Self::ResetAll),
            Change::DiscardAll => Some(Self::DiscardAll),
            Change::Deallocate { name } => Some(Self::Deallocate(Arc::clone(name))),
            Change::DeallocateAll => Some(Self::DeallocateAll),
            // Gone with the transaction, without meaning for the next client, or pinned.
            Change::None
            | Change::SetLocal { .. }
            | Change::DiscardPlans
            | Change::DiscardSequences
            | Change::DiscardTemp
            | Change::UnlistenAll => None,
        }
    }

    /// Does it take names of prepared statements away?
    #[must_use]
    pub fn takes_names(&self) -> bool {
        matches!(self, Self::DiscardAll | Self::Deallocate(_) | Self::DeallocateAll)
    }

    /// The settings after this change.
    #[must_use]
    pub fn apply(&self, settings: &Settings, startup: &Settings) -> Settings {
        match self {
            Self::Set(setting) => settings.with(setting.clone()),
            Self::Reset(name) => settings.reset(name, startup),
            Self::ResetAll | Self::DiscardAll => startup.clone(),
            Self::Deallocate(_) | Self::DeallocateAll => settings.clone(),
        }
    }

    /// The settings of the backend it ran on: RESET there goes to the backend's own default.
    #[must_use]
    pub fn apply_to_backend(&self, settings: &Settings) -> Settings {
        self.apply(settings, &Settings::default())
    }
}

/// Why a session must keep its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    reasons: sql::Pins,
    session_mode: bool,
    unknown_settings: bool,
}

impl Pins {
    /// Adds what a statement leaves behind. A text that was not examined does not pin: its backend is
    /// reset before anyone else gets it.
    pub fn add(&mut self, reasons: sql::Pins) {
        for reason in reasons.iter().filter(|reason| *reason != PinReason::NotExamined) {
            self.reasons.insert(reason);
        }
    }

    /// Session pool mode: until the client leaves.
    pub fn for_session_mode(&mut self) {
        self.session_mode = true;
    }

    /// Settings changed in a way that could not be followed.
    pub fn for_unknown_settings(&mut self) {
        self.unknown_settings = true;
    }

    /// The reasons as metric labels.
    pub fn labels(self) -> impl Iterator<Item = &'static str> {
        let own = [(self.session_mode, "session_mode"), (self.unknown_settings, "unknown_settings")];
        let own = own.into_iter().filter(|(set, _)| *set).map(|(_, label)| label);
        own.chain(self.reasons.iter().map(sql::PinReason::label))
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
        self.unknown_settings || !self.reasons.is_empty()
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
    /// Something after which it is not known which settings count.
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
