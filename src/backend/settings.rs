//! The settings of a session, and how to bring a backend to them.
//!
//! Two equal values have equal digests, so the steady path compares one number. Invariants: names
//! are lower-case and unique, entries are sorted; who one is (`session_authorization`, `role`) is put
//! back first and taken on last, so that no setting is made with another's rights. Absent on purpose:
//! SET LOCAL and everything else that ends with its transaction.

use std::hash::BuildHasher;
use std::sync::Arc;

/// The setting that SET SESSION AUTHORIZATION makes.
pub const AUTHORIZATION: &str = "session_authorization";
/// The setting that SET ROLE makes.
pub const ROLE: &str = "role";
/// Settings whose value is a list of names: SET would take a text for one name.
const LISTS: [&str; 4] = ["local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"];
/// A statement in front of ours that take a snapshot: a standby has none for the transactions of a session
/// whose default is SERIALIZABLE.
pub const READ_COMMITTED: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED";
/// It decides how the other texts are read.
const ENCODING: &str = "client_encoding";

/// Settings that parsing does not look at, of those that clients set one by one.
const MEANINGLESS: [&str; 12] = [
    "application_name",
    "client_min_messages",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "statement_timeout",
    "synchronous_commit",
    "transaction_timeout",
    "work_mem",
];

/// One setting: its name and the statement that makes it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Lower-case name.
    pub name: Arc<str>,
    /// A statement without trailing semicolon that sets it for the session, in the client's encoding.
    pub sql: Arc<[u8]>,
}

impl Setting {
    /// A setting made by this statement, whose blanks and semicolons around it do not count.
    #[must_use]
    pub fn from_statement(name: &Arc<str>, text: &[u8]) -> Self {
        let end = text.iter().rposition(|byte| !byte.is_ascii_whitespace() && *byte != b';').map_or(0, |last| last + 1);
        Self { name: Arc::clone(name), sql: text[..end].trim_ascii_start().into() }
    }

    /// A setting of this value: as the startup packet has it, or as a backend told it.
    #[must_use]
    pub fn from_value(name: &str, value: &[u8]) -> Self {
        let name = name.to_ascii_lowercase();
        let (name_text, value) = (literal(name.as_bytes()), literal(value));
        let sql = if LISTS.contains(&&*name) {
            [&b"SELECT pg_catalog.set_config("[..], &name_text, b", ", &value, b", false)"].concat()
        } else {
            [b"SET ", quoted(&name).as_bytes(), b" TO ", &value].concat()
        };
        Self { name: name.into(), sql: sql.into() }
    }

    /// Does its statement take a snapshot? SET does not.
    fn takes_snapshot(&self) -> bool {
        !self.sql.get(..3).is_some_and(|verb| verb.eq_ignore_ascii_case(b"set"))
    }

    /// Does it say who the session is? Then it decides what is allowed.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        matches!(&*self.name, AUTHORIZATION | ROLE)
    }

    /// May anything run before this setting is known to be made? Who one is, what row level security
    /// goes by and whether writes are refused must hold before a write does.
    #[must_use]
    pub fn guards(&self) -> bool {
        self.is_identity()
            || self.name.contains('.')
            || matches!(&*self.name, "row_security" | "default_transaction_read_only" | "session_replication_role")
    }
}

/// A setting's name as an SQL name, part by part.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\"")).replace('.', "\".\"")
}

/// Writes a text as an SQL literal that reads the same under any `standard_conforming_strings`.
fn literal(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 4);
    if text.contains(&b'\\') {
        out.extend_from_slice(b" E");
    }
    out.push(b'\'');
    for byte in text {
        if matches!(byte, b'\'' | b'\\') {
            out.push(*byte);
        }
        out.push(*byte);
    }
    out.push(b'\'');
    out
}

/// A session's settings, sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    entries: Vec<Setting>,
    digest: u64,
}

impl Settings {
    /// Makes a value of these entries; of several with one name the last counts.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = Setting>) -> Self {
        let mut settings = Self::default();
        for entry in entries {
            settings.put(entry);
        }
        settings.seal()
    }

    /// With one more setting, or a new value for one.
    #[must_use]
    pub fn with(&self, entry: Setting) -> Self {
        let mut next = self.clone();
        // Becoming someone else ends the role (PostgreSQL docs, "SET SESSION AUTHORIZATION").
        if &*entry.name == AUTHORIZATION {
            next.entries.retain(|entry| &*entry.name != ROLE);
        }
        next.put(entry);
        next.seal()
    }

    /// With `name` as `base` has it (or not at all).
    #[must_use]
    pub fn reset(&self, name: &str, base: &Self) -> Self {
        let mut next = self.clone();
        next.entries.retain(|entry| &*entry.name != name && (name != AUTHORIZATION || &*entry.name != ROLE));
        match base.entries.iter().find(|entry| &*entry.name == name) {
            Some(entry) => next.put(entry.clone()),
            // A setting that only exists because it was set stays, without a value.
            None if name.contains('.') => next.put(Setting::from_value(name, b"")),
            None => {}
        }
        next.seal()
    }

    /// After RESET ALL, which does not change who the session is.
    #[must_use]
    pub fn reset_all(&self, base: &Self) -> Self {
        let mut next = base.clone();
        for entry in &self.entries {
            if entry.is_identity() {
                next.put(entry.clone());
            } else if entry.name.contains('.') && !base.contains(&entry.name) {
                next.put(Setting::from_value(&entry.name, b""));
            }
        }
        next.seal()
    }

    fn put(&mut self, entry: Setting) {
        match self.entries.binary_search_by(|probe| probe.name.cmp(&entry.name)) {
            Ok(at) => self.entries[at] = entry,
            Err(at) => self.entries.insert(at, entry),
        }
    }

    fn seal(mut self) -> Self {
        let hasher = foldhash::fast::FixedState::with_seed(0x5e77_1465);
        let texts: Vec<(&str, &[u8])> = self.entries.iter().map(|entry| (&*entry.name, &*entry.sql)).collect();
        self.digest = if texts.is_empty() { 0 } else { hasher.hash_one(&texts) };
        self
    }

    /// Are both the same settings? (One comparison of numbers; a full one confirms equality.)
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.entries == other.entries
    }

    /// Is this setting made?
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| &*entry.name == name)
    }

    /// A number for the settings by which texts are understood when they are parsed: all that are not known to
    /// have no say in it.
    #[must_use]
    pub fn meaning(&self) -> u64 {
        let heard = |entry: &&Setting| !MEANINGLESS.contains(&&*entry.name);
        let texts: Vec<(&str, &[u8])> =
            self.entries.iter().filter(heard).map(|entry| (&*entry.name, &*entry.sql)).collect();
        if texts.is_empty() { 0 } else { foldhash::fast::FixedState::with_seed(0x6d65_616e).hash_one(&texts) }
    }

    /// The entries, sorted by name.
    #[must_use]
    pub fn entries(&self) -> &[Setting] {
        &self.entries
    }

    /// One text that turns a backend without a transaction, with these settings, into one with `to`.
    #[must_use]
    pub fn idle_change_to(&self, to: &Self) -> Vec<u8> {
        let text = self.change_to(to);
        if to.entries.iter().any(|entry| entry.takes_snapshot() && !self.entries.contains(entry)) {
            return [READ_COMMITTED.as_bytes(), b";", &text].concat();
        }
        text
    }

    /// The same in any state.
    #[must_use]
    pub fn change_to(&self, to: &Self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut add = |statement: &[u8]| {
            if !text.is_empty() {
                // A line of its own: a statement may end in a comment.
                text.extend_from_slice(b"\n;");
            }
            text.extend_from_slice(statement);
        };
        let identity_changes = |settings: &Self, other: &Self| {
            settings.entries.iter().any(|entry| entry.is_identity() && !other.entries.contains(entry))
        };
        let changes_identity = identity_changes(self, to) || identity_changes(to, self);
        if self.entries.iter().any(Setting::is_identity) && (changes_identity || !self.same(to)) {
            if self.contains(AUTHORIZATION) {
                add(b"RESET SESSION AUTHORIZATION");
            }
            add(b"RESET ROLE");
        }
        for entry in self.entries.iter().filter(|entry| !entry.is_identity() && !to.contains(&entry.name)) {
            add(format!("RESET {}", quoted(&entry.name)).as_bytes());
        }
        let missing = |entry: &&Setting| !entry.is_identity() && !self.entries.contains(entry);
        let first = |entry: &&Setting| &*entry.name == ENCODING;
        to.entries.iter().filter(missing).filter(first).for_each(|entry| add(&entry.sql));
        to.entries.iter().filter(missing).filter(|entry| !first(entry)).for_each(|entry| add(&entry.sql));
        if changes_identity || !self.same(to) {
            for name in [AUTHORIZATION, ROLE] {
                to.entries.iter().filter(|entry| &*entry.name == name).for_each(|entry| add(&entry.sql));
            }
        }
        text
    }

    /// Must the change to `to` have been made before a write may follow?
    #[must_use]
    pub fn guards_change_to(&self, to: &Self) -> bool {
        let differs =
            |from: &Self, to: &Self| from.entries.iter().any(|entry| entry.guards() && !to.entries.contains(entry));
        differs(self, to) || differs(to, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Setting {
        Setting::from_statement(&name.into(), format!(" SET {name} = {value} ; ").as_bytes())
    }

    fn change(from: &Settings, to: &Settings) -> String {
        String::from_utf8(from.change_to(to)).unwrap()
    }

    #[test]
    fn equal_settings_are_the_same_whatever_their_order() {
        let one = Settings::new([set("b", "1"), set("a", "2")]);
        let two = Settings::new([set("a", "2"), set("b", "0"), set("b", "1")]);
        assert!(one.same(&two));
        assert!(!one.same(&one.with(set("c", "1"))));
        assert!(Settings::default().same(&Settings::new([])));
    }

    #[test]
    fn the_difference_is_minimal_and_a_trailing_comment_harms_nothing() {
        let from = Settings::new([set("a", "1"), set("b.x", "1"), set("c", "1")]);
        let to = Settings::new([set("b", "2 -- two"), set("c", "1"), set("d", "1")]);
        assert_eq!(change(&from, &to), "RESET \"a\"\n;RESET \"b\".\"x\"\n;SET b = 2 -- two\n;SET d = 1");
        assert!(change(&from, &from).is_empty());
    }

    #[test]
    fn who_one_is_comes_back_first_and_is_taken_on_last() {
        let from = Settings::new([set("a", "1"), set(ROLE, "joe")]);
        let to =
            Settings::new([set("a", "2"), set(ROLE, "ann"), set(AUTHORIZATION, "eve"), set("client_encoding", "x")]);
        let want =
            "RESET ROLE\n;SET client_encoding = x\n;SET a = 2\n;SET session_authorization = eve\n;SET role = ann";
        assert_eq!(change(&from, &to), want);
        assert_eq!(
            change(&to, &Settings::default()),
            "RESET SESSION AUTHORIZATION\n;RESET ROLE\n;RESET \"a\"\n;RESET \"client_encoding\""
        );
        assert!(from.guards_change_to(&to) && !set("a", "1").guards());
        assert!(!to.with(set(AUTHORIZATION, "bob")).contains(ROLE), "becoming someone else ends the role");
        assert!(!to.reset(AUTHORIZATION, &Settings::default()).contains(ROLE));
        assert_eq!(to.reset_all(&Settings::default()).entries().len(), 2, "RESET ALL leaves who one is");
    }

    #[test]
    fn reset_goes_back_to_the_startup_value() {
        let base = Settings::new([Setting::from_value("DateStyle", b"ISO")]);
        let changed = base.with(set("datestyle", "German")).with(set("x.y", "1"));
        let empty = base.with(Setting::from_value("x.y", b""));
        assert!(changed.reset("datestyle", &base).reset("x.y", &base).same(&empty), "x.y exists from now on");
        assert!(changed.reset_all(&base).same(&empty));
    }

    #[test]
    fn literals_survive_quotes_and_backslashes() {
        let entry = Setting::from_value("search_path", br"a'b\c");
        assert_eq!(&*entry.sql, br"SELECT pg_catalog.set_config('search_path',  E'a''b\\c', false)");
        assert_eq!(&*Setting::from_value("My.Own", b"it's").sql, br#"SET "my"."own" TO 'it''s'"#);
    }

    #[test]
    fn nothing_is_asked_of_a_standby_that_it_cannot_do() {
        let text = |from: &Settings, to: &Settings| String::from_utf8(from.idle_change_to(to)).unwrap();
        let from = Settings::new([set("default_transaction_isolation", "serializable")]);
        let path = Settings::new([Setting::from_value("search_path", b"a, b")]);
        assert!(text(&from, &path).starts_with(READ_COMMITTED));
        assert!(!text(&path, &from).contains("COMMITTED"));
        assert!(!text(&from, &Settings::new([set("a", "1")])).contains("COMMITTED"));
    }
}
