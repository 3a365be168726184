//! The settings of a session, and how to bring a backend to them.
//!
//! Two equal values have equal digests, so the steady path compares one number. Invariants: names
//! are lower-case and unique, entries are sorted. Absent on purpose: SET LOCAL and everything else
//! that ends with its transaction.

use std::fmt::Write;
use std::hash::BuildHasher;
use std::sync::Arc;

/// One setting: its name and the statement that makes it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Lower-case name.
    pub name: Arc<str>,
    /// A statement without trailing semicolon that sets it for the session.
    pub sql: Arc<str>,
}

impl Setting {
    /// A setting from a startup parameter: the raw value, as the startup packet has it.
    #[must_use]
    pub fn from_startup(name: &str, value: &str) -> Self {
        let sql = format!("SELECT pg_catalog.set_config({}, {}, false)", literal(name), literal(value));
        Self { name: name.to_ascii_lowercase().into(), sql: sql.into() }
    }
}

/// Writes a text as an SQL literal that reads the same under any `standard_conforming_strings`.
fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    if text.contains('\\') { format!(" E'{escaped}'") } else { format!("'{escaped}'") }
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
        next.put(entry);
        next.seal()
    }

    /// With `name` as `base` has it (or not at all).
    #[must_use]
    pub fn reset(&self, name: &str, base: &Self) -> Self {
        let mut next = self.clone();
        next.entries.retain(|entry| &*entry.name != name);
        if let Some(entry) = base.entries.iter().find(|entry| &*entry.name == name) {
            next.put(entry.clone());
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
        let texts: Vec<(&str, &str)> = self.entries.iter().map(|entry| (&*entry.name, &*entry.sql)).collect();
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

    /// The entries, sorted by name.
    #[must_use]
    pub fn entries(&self) -> &[Setting] {
        &self.entries
    }

    /// The statements that turn a backend with these settings into one with `to`, in order.
    #[must_use]
    pub fn statements_to(&self, to: &Self) -> Vec<String> {
        let mut statements = Vec::new();
        for entry in &self.entries {
            if !to.contains(&entry.name) {
                let mut sql = String::from("RESET ");
                let _ = write!(sql, "\"{}\"", entry.name.replace('"', "\"\""));
                statements.push(sql);
            }
        }
        statements
            .extend(to.entries.iter().filter(|entry| !self.entries.contains(entry)).map(|entry| entry.sql.to_string()));
        statements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Setting {
        Setting { name: name.into(), sql: format!("SET {name} = {value}").into() }
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
    fn the_difference_is_minimal() {
        let from = Settings::new([set("a", "1"), set("b", "1"), set("c", "1")]);
        let to = Settings::new([set("b", "2"), set("c", "1"), set("d", "1")]);
        assert_eq!(from.statements_to(&to), ["RESET \"a\"", "SET b = 2", "SET d = 1"]);
        assert!(from.statements_to(&from).is_empty());
    }

    #[test]
    fn reset_goes_back_to_the_startup_value() {
        let base = Settings::new([Setting::from_startup("DateStyle", "ISO")]);
        let changed = base.with(set("datestyle", "German")).with(set("x.y", "1"));
        assert!(changed.reset("datestyle", &base).reset("x.y", &base).same(&base));
    }

    #[test]
    fn literals_survive_quotes_and_backslashes() {
        let entry = Setting::from_startup("search_path", r"a'b\c");
        assert_eq!(&*entry.sql, r"SELECT pg_catalog.set_config('search_path',  E'a''b\\c', false)");
    }
}
