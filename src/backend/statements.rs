//! Prepared statements: once per proxy by content, learned lazily by each backend.
//!
//! A client's name is virtual; on a backend a statement is called [`Statement::backend_name`].
//! Invariants: equal content gives the same statement while anyone holds it; a backend knows at most
//! its limit of them. Absent on purpose: the client's names (the session's matter).

use crate::sql::{Access, Classification, Judge};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Beginning of every name we give a statement on a backend.
pub const NAME_PREFIX: &str = "pgregent_";
/// Databases of which a statement remembers what their catalogs said.
const JUDGED_MAX: usize = 4;
/// Entries after which dead ones are swept from the table.
const SWEEP_AT_LEAST: usize = 1024;

/// A prepared statement by content.
#[derive(Debug)]
pub struct Statement {
    /// Its number, unique in this process.
    pub id: u64,
    /// Its name on backends.
    pub backend_name: Box<[u8]>,
    /// The Parse body after the name: text, NUL, parameter types.
    pub content: Box<[u8]>,
    /// The settings by which it is understood, as one number.
    pub meaning: u64,
    /// What it may do; its access may be that of one database, see [`Statement::access`].
    pub class: Arc<Classification>,
    /// What standbys have said: a number of lessons, and whether it is among them (lowest bit).
    learned: AtomicU64,
    /// What the catalogs of the last few databases said: a version, and whether it is a read.
    judged: [AtomicU64; JUDGED_MAX],
}

/// The text in the content of a Parse: what stands before the NUL.
#[must_use]
pub fn text_of(content: &[u8]) -> &[u8] {
    &content[..memchr::memchr(0, content).unwrap_or(content.len())]
}

impl Statement {
    /// Its text.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        text_of(&self.content)
    }

    /// Do standbys refuse it? `number` counts lessons so far; `ask` is asked for the text once per number.
    pub fn is_learned(&self, number: u64, ask: impl FnOnce(&[u8]) -> bool) -> bool {
        let mut said = self.learned.load(Ordering::Relaxed);
        if said >> 1 != number {
            said = number << 1 | u64::from(ask(self.text()));
            self.learned.store(said, Ordering::Relaxed);
        }
        said & 1 == 1
    }

    /// Read or write in the database of this catalog, with the client's own wish; `learned`: standbys refuse it.
    pub fn access(&self, catalog: &impl Judge, learned: bool) -> Access {
        if learned || self.class.asks_for_primary() {
            return Access::Write;
        }
        if !catalog.concerns(&self.class) {
            return self.class.by_text();
        }
        let version = catalog.version();
        let said = self.judged.iter().map(|judged| judged.load(Ordering::Relaxed)).find(|said| said >> 1 == version);
        let access = |said: u64| if said & 1 == 1 { Access::Read } else { Access::Write };
        said.map_or_else(|| self.judge(catalog), access)
    }

    fn judge(&self, catalog: &impl Judge) -> Access {
        let access = catalog.access(&self.class);
        // The oldest goes; two that do this at once only ask again.
        if let Some(oldest) = self.judged.iter().min_by_key(|judged| judged.load(Ordering::Relaxed)) {
            oldest.store(catalog.version() << 1 | u64::from(access == Access::Read), Ordering::Relaxed);
        }
        access
    }
}

/// All statements that some session holds.
#[derive(Debug, Default)]
pub struct StatementTable {
    inner: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_content: HashMap<u64, Vec<Weak<Statement>>, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    count: usize,
    sweep_at: usize,
    next_id: u64,
}

impl StatementTable {
    /// The statement with this content, made if nobody holds one. `class` is asked only then.
    /// `meaning` stands for the settings by which the content is understood: parsing turns
    /// literals into values, so that sessions of other settings need another statement.
    pub fn intern(&self, content: &[u8], meaning: u64, class: impl FnOnce() -> Arc<Classification>) -> Arc<Statement> {
        let mut table = self.inner.lock();
        let digest = table.hasher.hash_one((content, meaning));
        let found = table.by_content.get(&digest).and_then(|entries| {
            entries
                .iter()
                .filter_map(Weak::upgrade)
                .find(|statement| *statement.content == *content && statement.meaning == meaning)
        });
        if let Some(statement) = found {
            return statement;
        }
        table.sweep();
        table.next_id += 1;
        let id = table.next_id;
        let statement = Arc::new(Statement {
            id,
            backend_name: format!("{NAME_PREFIX}{id:x}").into_bytes().into(),
            content: content.into(),
            meaning,
            class: class(),
            learned: AtomicU64::new(0),
            judged: Default::default(),
        });
        table.by_content.entry(digest).or_default().push(Arc::downgrade(&statement));
        table.count += 1;
        statement
    }

    /// Statements in the table, dead ones that were not swept yet included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().count
    }

    /// Is the table empty?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    /// Forgets statements that nobody holds, each time the table has doubled since the last sweep.
    fn sweep(&mut self) {
        if self.count < self.sweep_at.max(SWEEP_AT_LEAST) {
            return;
        }
        self.by_content.retain(|_, entries| {
            entries.retain(|entry| entry.strong_count() > 0);
            !entries.is_empty()
        });
        self.count = self.by_content.values().map(Vec::len).sum();
        self.sweep_at = self.count * 2;
    }
}

/// In place of a number of schema changes: the plan is of no use.
const OUTDATED: u64 = 0;

/// What one backend knows.
#[derive(Debug)]
pub struct Statements {
    known: HashMap<u64, Known, foldhash::fast::RandomState>,
    unnamed: Option<u64>,
    /// Texts of PREPARE by name.
    sql: HashMap<Box<str>, Arc<[u8]>, foldhash::fast::RandomState>,
    tick: u64,
    limit: usize,
    bytes: usize,
    bytes_limit: usize,
}

#[derive(Debug)]
struct Known {
    last_used: u64,
    /// The number of schema changes when it was parsed there.
    schema: u64,
    /// What its rows look like there, if it was described.
    rows: Option<u64>,
    statement: Arc<Statement>,
}

impl Statements {
    /// A backend that may know up to `limit` statements (at least one).
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            known: HashMap::default(),
            unnamed: None,
            sql: HashMap::default(),
            tick: 0,
            limit: limit.max(1),
            bytes: 0,
            bytes_limit: usize::MAX,
        }
    }

    /// Keeps at most so many bytes of texts from now on (and at least one statement).
    pub fn limit_bytes(&mut self, bytes: usize) {
        self.bytes_limit = bytes;
    }

    /// Is this statement prepared there? Marks it as used.
    pub fn knows(&mut self, id: u64) -> bool {
        self.tick += 1;
        match self.known.get_mut(&id) {
            Some(known) => {
                known.last_used = self.tick;
                known.schema != OUTDATED
            }
            None => false,
        }
    }

    /// The number of schema changes when the statement was parsed there.
    #[must_use]
    pub fn parsed_under(&self, id: u64) -> Option<u64> {
        self.known.get(&id).map(|known| known.schema)
    }

    /// Notes that a Parse for this statement is on its way; returns those that must be closed first:
    /// itself, if it is parsed anew, and the least recently used while a limit is exceeded.
    /// `schema`: the number of schema changes so far.
    pub fn learn(&mut self, statement: &Arc<Statement>, schema: u64) -> Vec<Arc<Statement>> {
        let mut victims = Vec::new();
        victims.extend(self.remove(statement.id));
        let bytes = statement.content.len();
        while self.known.len() >= self.limit || !self.known.is_empty() && self.bytes + bytes > self.bytes_limit {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last_used).map(|(&id, _)| id);
            let Some(victim) = oldest.and_then(|id| self.remove(id)) else { break };
            victims.push(victim);
        }
        self.tick += 1;
        self.bytes += bytes;
        let known = Known { last_used: self.tick, schema, rows: None, statement: Arc::clone(statement) };
        self.known.insert(statement.id, known);
        victims
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Statement>> {
        let statement = self.known.remove(&id)?.statement;
        self.bytes = self.bytes.saturating_sub(statement.content.len());
        Some(statement)
    }

    /// What the rows of a statement look like there, if it was described since it was parsed.
    #[must_use]
    pub fn rows(&self, id: u64) -> Option<u64> {
        self.known.get(&id)?.rows
    }

    /// Notes what the rows of a statement look like there.
    pub fn note_rows(&mut self, id: u64, rows: u64) {
        if let Some(known) = self.known.get_mut(&id) {
            known.rows = Some(rows);
        }
    }

    /// The backend's plan of this statement is of no use: it must be parsed anew.
    pub fn outdate(&mut self, id: u64) {
        if let Some(known) = self.known.get_mut(&id) {
            known.schema = OUTDATED;
        }
    }

    /// Notes that a Parse failed or never ran.
    pub fn forget(&mut self, id: u64) {
        self.remove(id);
    }

    /// Notes that everything was deallocated (DEALLOCATE ALL, DISCARD ALL).
    pub fn forget_all(&mut self) {
        self.known.clear();
        self.bytes = 0;
        self.sql.clear();
        self.unnamed = None;
    }

    /// Notes that all names were deallocated, but for those whose Parse is still to come.
    pub fn forget_all_but(&mut self, is_to_come: impl Fn(u64) -> bool) {
        self.known.retain(|&id, _| is_to_come(id));
        self.bytes = self.known.values().map(|known| known.statement.content.len()).sum();
        self.sql.clear();
    }

    /// The PREPARE that made this SQL-level name, if it exists there.
    #[must_use]
    pub fn sql_text(&self, name: &str) -> Option<&Arc<[u8]>> {
        self.sql.get(name)
    }

    /// Notes which PREPARE made a name, or that the name is gone.
    pub fn note_sql(&mut self, name: &str, text: Option<&Arc<[u8]>>) {
        match text {
            Some(text) => drop(self.sql.insert(name.into(), Arc::clone(text))),
            None => drop(self.sql.remove(name)),
        }
    }

    /// Have SQL-level names piled up, so that a reset is due?
    #[must_use]
    pub fn has_too_many_sql(&self) -> bool {
        self.sql.len() > self.limit
    }

    /// The content digest of the unnamed statement, if it is one of ours.
    #[must_use]
    pub fn unnamed(&self) -> Option<u64> {
        self.unnamed
    }

    /// Notes what the unnamed statement is now.
    pub fn note_unnamed(&mut self, digest: Option<u64>) {
        self.unnamed = digest;
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Is none known?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::StringSyntax;

    fn statement(table: &StatementTable, text: &str) -> Arc<Statement> {
        let settings =
            crate::sql::Settings { classify_bytes_max: 1000, read_functions: vec![], write_functions: vec![] };
        let mut classifier = crate::sql::Classifier::new(1, &settings);
        table.intern(text.as_bytes(), 0, || classifier.classify(text.as_bytes(), StringSyntax::Standard))
    }

    /// Everything is a read in versions that are even; counts how often it was asked.
    struct Even(u64, std::cell::Cell<u32>);

    impl Judge for Even {
        fn version(&self) -> u64 {
            self.0
        }

        fn concerns(&self, class: &Classification) -> bool {
            class.names.is_some()
        }

        fn access(&self, _: &Classification) -> Access {
            self.1.set(self.1.get() + 1);
            if self.0.is_multiple_of(2) { Access::Read } else { Access::Write }
        }

        fn judge(&self, class: &Arc<Classification>) -> Arc<Classification> {
            Arc::clone(class)
        }
    }

    #[test]
    fn what_a_few_catalogs_said_is_remembered() {
        let table = StatementTable::default();
        let statement = self::statement(&table, "select app.f()");
        let catalogs: Vec<_> = (1..=4).map(|version| Even(version, std::cell::Cell::new(0))).collect();
        for _ in 0..3 {
            for catalog in &catalogs {
                let expected = if catalog.0.is_multiple_of(2) { Access::Read } else { Access::Write };
                assert_eq!(statement.access(catalog, false), expected);
                assert_eq!(catalog.1.get(), 1);
            }
        }
        statement.access(&Even(5, std::cell::Cell::new(0)), false);
        statement.access(&catalogs[0], false);
        assert_eq!(catalogs[0].1.get(), 2, "the oldest of five has gone");
        assert!(statement.is_learned(1, |text| text == statement.text()));
        assert!(statement.is_learned(1, |_| panic!("asked twice")) && !statement.is_learned(2, |_| false));
        assert_eq!(statement.access(&catalogs[1], true), Access::Write);
        let hinted = self::statement(&table, "/* pgregent: node=primary */ select app.f()");
        assert_eq!(hinted.access(&catalogs[1], false), Access::Write, "the client's own wish is stronger");
        let plain = self::statement(&table, "select 1");
        assert_eq!(plain.access(&catalogs[0], false), Access::Read, "it names nothing");
    }

    #[test]
    fn the_least_recently_used_go_when_a_limit_is_exceeded() {
        let table = StatementTable::default();
        let [a, b, c] = ["select 1", "select 22", "select 333"].map(|text| statement(&table, text));
        let mut known = Statements::new(2);
        assert!(known.learn(&a, 1).is_empty() && known.learn(&b, 1).is_empty());
        assert!(known.knows(a.id));
        assert_eq!(known.learn(&c, 1).iter().map(|gone| gone.id).collect::<Vec<_>>(), [b.id]);
        known.limit_bytes(a.content.len() + b.content.len());
        assert_eq!(known.learn(&b, 1).len(), 2, "room for its bytes");
        assert_eq!((known.len(), known.bytes), (1, b.content.len()));
        known.limit_bytes(1);
        assert_eq!(known.learn(&a, 1).len(), 1, "one statement always fits");
    }

    #[test]
    fn an_outdated_plan_is_closed_and_parsed_anew() {
        let table = StatementTable::default();
        let a = statement(&table, "select 1");
        let mut known = Statements::new(2);
        known.learn(&a, 1);
        known.note_rows(a.id, 7);
        known.outdate(a.id);
        assert!(!known.knows(a.id));
        assert_eq!(known.learn(&a, 2).len(), 1, "itself");
        assert!(known.knows(a.id) && known.rows(a.id).is_none());
        assert_eq!(known.parsed_under(a.id), Some(2));
    }
}
