//! What statements leave behind: settings that are replayed, and state that pins the session.
//!
//! Settings follow PostgreSQL's transactions: they count once the transaction that made them has
//! committed. Pure. Invariant: whatever is not exactly understood pins. Absent on purpose: SET LOCAL.

use crate::backend::{Setting, Settings};
use crate::sql::{Classification, SettingEffect};
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
    /// DEALLOCATE ALL
    DeallocateAll,
}

impl Effect {
    /// The trackable effect of a statement, if it has one.
    #[must_use]
    pub fn of(class: &Classification, text: &[u8]) -> Option<Self> {
        match &class.setting {
            SettingEffect::None => None,
            SettingEffect::Set { name } => {
                let sql = String::from_utf8_lossy(text);
                let sql = sql.trim().trim_end_matches(';').trim_end();
                Some(Self::Set(Setting { name: Arc::clone(name), sql: sql.into() }))
            }
            SettingEffect::Reset { name } => Some(Self::Reset(Arc::clone(name))),
            SettingEffect::ResetAll => Some(Self::ResetAll),
            SettingEffect::DiscardAll => Some(Self::DiscardAll),
            SettingEffect::DeallocateAll => Some(Self::DeallocateAll),
        }
    }

    /// The settings after this change.
    #[must_use]
    pub fn apply(&self, settings: &Settings, startup: &Settings) -> Settings {
        match self {
            Self::Set(setting) => settings.with(setting.clone()),
            Self::Reset(name) => settings.reset(name, startup),
            Self::ResetAll | Self::DiscardAll => startup.clone(),
            Self::DeallocateAll => settings.clone(),
        }
    }

    /// The settings of the backend it ran on: RESET there goes to the backend's own default.
    #[must_use]
    pub fn apply_to_backend(&self, settings: &Settings) -> Settings {
        self.apply(settings, &Settings::default())
    }
}

/// Why a session must keep its backend: a set of reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(u32);

impl Pins {
    /// Session pool mode: until the client leaves.
    pub const SESSION_MODE: u32 = 1 << 31;
    /// Settings that could not be followed.
    pub const UNKNOWN_SETTINGS: u32 = 1 << 30;

    /// Adds reasons.
    pub fn add(&mut self, bits: u32) {
        self.0 |= bits;
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Forgets all reasons but the pool mode (DISCARD ALL).
    pub fn clear_state(&mut self) {
        self.0 &= Self::SESSION_MODE;
    }

    /// Is there session state beyond what is tracked?
    #[must_use]
    pub fn has_state(self) -> bool {
        self.0 & !Self::SESSION_MODE != 0
    }
}
