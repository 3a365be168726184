//! The client's prepared statements: virtual names for statements shared by content.
//!
//! Invariants: a name means what the client last had confirmed (definitions and closes take effect
//! with their replies, in order); names still on their way are found by the messages behind them.
//! Absent on purpose: what backends know.

use crate::backend::Statement;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// Names that one client may define; more are refused.
pub const NAMES_MAX: usize = 100_000;

/// Bytes of the texts behind them.
pub const BYTES_MAX: usize = 256 * 1024 * 1024;
/// Names of ordinary length that cannot exceed it.
const NAMES_UNCOUNTED: usize = 256;

/// A change of a name whose reply is owed.
#[derive(Debug)]
enum Change {
    Define(Box<[u8]>, Arc<Statement>),
    Close(Box<[u8]>),
    /// Parse of a name that exists: the node refuses it.
    Again(Box<[u8]>),
    /// Parse of the unnamed statement: only keeps the order.
    Unnamed,
}

/// The client's unnamed statement.
#[derive(Debug, Default)]
pub struct Unnamed {
    /// The Parse body after the (empty) name.
    pub content: Vec<u8>,
    /// What it may do; `None` when there is no unnamed statement.
    pub class: Option<Arc<crate::sql::Classification>>,
    /// Tells this one from every other unnamed statement of the process.
    pub serial: u64,
}

/// What a client knows of a statement.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// The number of schema changes when it parsed it.
    pub schema: u64,
    /// What its rows look like, as the client was told by Describe.
    pub rows: Option<u64>,
}

/// The client's statements.
#[derive(Debug, Default)]
pub struct Prepared {
    names: HashMap<Box<[u8]>, Arc<Statement>, foldhash::fast::RandomState>,
    /// Texts of PREPARE by name: SQL-level statements.
    sql: HashMap<Box<str>, Arc<[u8]>, foldhash::fast::RandomState>,
    changes: VecDeque<Change>,
    /// What the client knows of its statements, by number.
    told: HashMap<u64, Told, foldhash::fast::RandomState>,
    /// The unnamed one.
    pub unnamed: Unnamed,
}

impl Prepared {
    /// The statement of this (non-empty) name, counting definitions and closes on their way.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        for change in self.changes.iter().rev() {
            match change {
                Change::Define(known, statement) if **known == *name => return Some(statement),
                Change::Close(known) if **known == *name => return None,
                _ => {}
            }
        }
        self.names.get(name)
    }

    /// Is there room for one more name of a text of so many bytes?
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        let count = self.names.len() + self.sql.len() + self.changes.len();
        // The bytes are counted only where they can matter.
        count < NAMES_MAX
            && (count < NAMES_UNCOUNTED && bytes < BYTES_MAX / NAMES_UNCOUNTED || self.bytes() + bytes < BYTES_MAX)
    }

    fn bytes(&self) -> usize {
        let names = self.names.values().map(|statement| statement.content.len()).sum::<usize>();
        names + self.sql.values().map(|text| text.len()).sum::<usize>()
    }

    /// What the client knows of a statement.
    #[must_use]
    pub fn told(&self, id: u64) -> Option<Told> {
        self.told.get(&id).copied()
    }

    /// The client parses a statement under the present schema: what it knew of it does not count any more.
    pub fn parsed(&mut self, id: u64, schema: u64) {
        if self.told.len() >= NAMES_MAX {
            self.told.clear();
        }
        self.told.insert(id, Told { schema, rows: None });
    }

    /// The client is told what a statement's rows look like.
    pub fn described(&mut self, id: u64, rows: u64) {
        if let Some(told) = self.told.get_mut(&id) {
            told.rows = Some(rows);
        }
    }

    /// A Parse of this name is on its way.
    pub fn defining(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.changes.push_back(Change::Define(name.into(), statement));
    }

    /// A Parse of the unnamed statement is on its way.
    pub fn defining_unnamed(&mut self) {
        self.changes.push_back(Change::Unnamed);
    }

    /// A Parse of a name that exists is on its way, to be refused.
    pub fn defining_again(&mut self, name: &[u8]) {
        self.changes.push_back(Change::Again(name.into()));
    }

    /// A Close of this name is on its way.
    pub fn closing(&mut self, name: &[u8]) {
        self.changes.push_back(Change::Close(name.into()));
    }

    /// The oldest change was confirmed.
    pub fn confirm(&mut self) {
        match self.changes.pop_front() {
            Some(Change::Define(name, statement)) => {
                self.names.insert(name, statement);
            }
            Some(Change::Close(name)) => {
                self.names.remove(&name);
            }
            Some(Change::Again(_) | Change::Unnamed) | None => {}
        }
    }

    /// The `count` oldest changes will never be confirmed.
    pub fn abandon(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(Change::Unnamed) = self.changes.pop_front() {
                self.unnamed.class = None;
            }
        }
    }

    /// No change on its way will be confirmed.
    pub fn abandon_all(&mut self) {
        self.abandon(self.changes.len());
    }

    /// Forgets all names (DEALLOCATE ALL, DISCARD ALL); the unnamed statement has none and stays.
    pub fn clear(&mut self) {
        self.names.clear();
        self.sql.clear();
    }

    /// The PREPARE that made this SQL-level name.
    #[must_use]
    pub fn sql(&self, name: &str) -> Option<&Arc<[u8]>> {
        self.sql.get(name)
    }

    /// Notes that PREPARE made a name.
    pub fn define_sql(&mut self, name: &str, text: Arc<[u8]>) {
        if self.has_room(text.len()) {
            self.sql.insert(name.into(), text);
        }
    }

    /// Forgets a SQL-level name.
    pub fn remove_sql(&mut self, name: &str) {
        self.sql.remove(name);
    }

    /// The client's statements of the protocol, by name.
    pub fn named(&self) -> impl Iterator<Item = (&[u8], &Arc<Statement>)> {
        self.names.iter().map(|(name, statement)| (&**name, statement))
    }

    /// The texts of its SQL-level statements.
    pub fn sql_texts(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        self.sql.values()
    }

    /// Is there a statement of this name, of either level?
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.sql.contains_key(name) || self.find(name.as_bytes()).is_some()
    }

    /// Forgets a confirmed name of either level (DEALLOCATE).
    pub fn remove(&mut self, name: &str) -> Option<Arc<Statement>> {
        self.sql.remove(name);
        self.names.remove(name.as_bytes())
    }

    /// The client's name for a statement of this name on backends.
    #[must_use]
    pub fn name_of(&self, backend_name: &[u8]) -> Option<&[u8]> {
        // Two names may stand for one statement: the one that was just refused is meant.
        if let Some(Change::Again(name)) = self.changes.front()
            && self.find(name).is_some_and(|statement| *statement.backend_name == *backend_name)
        {
            return Some(name);
        }
        let pending = self.changes.iter().find_map(|change| match change {
            Change::Define(name, statement) if *statement.backend_name == *backend_name => Some(&**name),
            _ => None,
        });
        pending.or_else(|| {
            self.names.iter().find(|(_, statement)| *statement.backend_name == *backend_name).map(|(name, _)| &**name)
        })
    }
}
