//! The settings of a session under PostgreSQL's transactions.
//!
//! What a transaction sets lasts once it commits; ROLLBACK, and ROLLBACK TO a savepoint, undo it
//! (PostgreSQL docs, "SET"). A transaction begins by itself at the first statement behind the end of the
//! last one, so only ends and savepoints are told. Pure. Invariants: at most [`SAVED_MAX`] savepoints
//! are kept; between transactions `current` is what lasts. Absent on purpose: SET LOCAL, which ends with
//! its transaction on the node itself.

use super::effects::Kind;
use crate::backend::{AUTHORIZATION, ROLE, Settings};
use std::sync::Arc;

/// Savepoints whose settings are kept; a transaction with more has its backend asked at the end.
const SAVED_MAX: usize = 10_000;

/// The settings.
#[derive(Debug)]
pub struct Tracked {
    startup: Arc<Settings>,
    committed: Arc<Settings>,
    current: Arc<Settings>,
    saved: Vec<(Arc<str>, Arc<Settings>)>,
    overflowed: bool,
}

impl Tracked {
    /// A session that begins with these.
    #[must_use]
    pub fn new(startup: Arc<Settings>) -> Self {
        let (committed, current) = (Arc::clone(&startup), Arc::clone(&startup));
        Self { startup, committed, current, saved: Vec::new(), overflowed: false }
    }

    /// As the statements so far have left them.
    #[must_use]
    pub fn current(&self) -> &Arc<Settings> {
        &self.current
    }

    /// As the client brought them along.
    #[must_use]
    pub fn startup(&self) -> &Arc<Settings> {
        &self.startup
    }

    /// Could the end of a transaction change nothing?
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.saved.is_empty() && Arc::ptr_eq(&self.committed, &self.current)
    }

    /// A statement was answered with this tag.
    pub fn answered(&mut self, kind: &Kind, tag: &[u8]) {
        match kind {
            Kind::Set(entries) => {
                let next = entries.iter().fold((*self.current).clone(), |settings, entry| settings.with(entry.clone()));
                self.current = Arc::new(next);
            }
            Kind::Reset(name) => self.current = Arc::new(self.current.reset(name, &self.startup)),
            Kind::ResetAll => self.current = Arc::new(self.current.reset_all(&self.startup)),
            Kind::DiscardAll => {
                let discarded = self.current.reset(AUTHORIZATION, &self.startup).reset(ROLE, &self.startup);
                self.current = Arc::new(discarded.reset_all(&self.startup));
            }
            // COMMIT of a failed transaction is answered as the ROLLBACK that it is.
            Kind::End if tag == b"ROLLBACK\0" => self.roll_back(),
            Kind::End => self.commit(),
            Kind::Savepoint(name) if self.saved.len() < SAVED_MAX => {
                self.saved.push((Arc::clone(name), Arc::clone(&self.current)));
            }
            Kind::Savepoint(_) => self.overflowed = true,
            Kind::Release(name) => {
                if let Some(at) = self.place_of(name) {
                    self.saved.truncate(at);
                }
            }
            Kind::RollbackTo(name) => {
                if let Some(at) = self.place_of(name) {
                    self.current = Arc::clone(&self.saved[at].1);
                    self.saved.truncate(at + 1);
                }
            }
            Kind::Prepare(..)
            | Kind::Deallocate(_)
            | Kind::DeallocateAll
            | Kind::Pin(..)
            | Kind::Uncertain(_)
            | Kind::ForgetSequences
            | Kind::Schema(_)
            | Kind::Logins
            | Kind::Unpins => {}
        }
    }

    fn place_of(&self, name: &str) -> Option<usize> {
        self.saved.iter().rposition(|(known, _)| **known == *name)
    }

    /// What was set lasts.
    pub fn commit(&mut self) {
        if self.committed.same(&self.current) {
            // One value for both, so that comparing them stays a comparison of pointers.
            self.current = Arc::clone(&self.committed);
        }
        self.committed = Arc::clone(&self.current);
        self.saved.clear();
    }

    /// What was set since the last end is undone.
    pub fn roll_back(&mut self) {
        self.current = Arc::clone(&self.committed);
        self.saved.clear();
    }

    /// What a backend said between transactions, which replaces what was believed.
    pub fn learn(&mut self, settings: Settings) {
        if !self.current.same(&settings) {
            self.current = Arc::new(settings);
        }
        self.commit();
    }

    /// Were there too many savepoints to follow? Asked once.
    pub fn take_overflowed(&mut self) -> bool {
        std::mem::take(&mut self.overflowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Setting;

    fn set(name: &str, value: &str) -> Kind {
        Kind::Set([Setting::from_value(name, value.as_bytes())].into())
    }

    /// Plays words such as `a=1`, `savepoint:s`, `to:s`, `commit`, and tells what is set at the end.
    fn play(words: &str) -> String {
        let mut tracked = Tracked::new(Arc::new(Settings::new([Setting::from_value("z", b"0")])));
        for word in words.split(' ') {
            match word.split_once(['=', ':']) {
                Some(("savepoint", name)) => tracked.answered(&Kind::Savepoint(name.into()), b"SAVEPOINT\0"),
                Some(("to", name)) => tracked.answered(&Kind::RollbackTo(name.into()), b"ROLLBACK\0"),
                Some(("release", name)) => tracked.answered(&Kind::Release(name.into()), b"RELEASE\0"),
                Some(("reset", "all")) => tracked.answered(&Kind::ResetAll, b"RESET\0"),
                Some(("reset", name)) => tracked.answered(&Kind::Reset(name.into()), b"RESET\0"),
                Some((name, value)) => tracked.answered(&set(name, value), b"SET\0"),
                None if word == "commit" => tracked.answered(&Kind::End, b"COMMIT\0"),
                None => tracked.answered(&Kind::End, b"ROLLBACK\0"),
            }
        }
        let value = |sql: &[u8]| String::from_utf8_lossy(sql).split('\'').nth(1).map(str::to_owned).unwrap_or_default();
        let entries = tracked.current().entries().iter().map(|entry| format!("{}={}", entry.name, value(&entry.sql)));
        entries.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn transactions_and_savepoints_decide_what_lasts() {
        let rows = [
            ("a=1 commit a=2 rollback", "a=1 z=0"),
            ("a=1 savepoint:s a=2 savepoint:t a=3 to:s commit", "a=1 z=0"),
            ("a=1 savepoint:s a=2 savepoint:s a=3 to:s commit", "a=2 z=0"),
            ("a=1 savepoint:s a=2 release:s a=3 commit", "a=3 z=0"),
            ("a=1 savepoint:s a=2 release:s rollback", "z=0"),
            ("savepoint:s a=2 to:s a=3 to:s commit", "z=0"),
            ("a=1 z=1 commit reset:z commit", "a=1 z=0"),
            ("a=1 z=1 commit reset:all rollback", "a=1 z=1"),
            ("a=1 z=1 commit reset:all commit", "z=0"),
            ("role=joe session_authorization=eve commit", "session_authorization=eve z=0"),
        ];
        for (words, want) in rows {
            assert_eq!(play(words), want, "{words}");
        }
    }

    #[test]
    fn a_session_that_changed_nothing_is_quiet() {
        let mut tracked = Tracked::new(Arc::default());
        assert!(tracked.is_quiet());
        tracked.answered(&set("a", "1"), b"SET\0");
        assert!(!tracked.is_quiet());
        tracked.commit();
        assert!(tracked.is_quiet());
        tracked.answered(&Kind::Savepoint("s".into()), b"SAVEPOINT\0");
        assert!(!tracked.is_quiet());
        tracked.roll_back();
        assert!(tracked.is_quiet());
    }
}
