//! What the file says: finds the tables and their values, checks each against its row of settings.
//!
//! Invariants: every key of the file is either known or a problem; a value that is a problem is
//! replaced by its default, so that checking goes on and finds the rest. Absent on purpose: rules
//! over several settings (see `check`).

use super::choice::Choice;
use super::problem::Notes;
use super::settings::{self, Default, Kind, SECTIONS, Section, Setting, Shape};
use super::suggest::nearest;
use super::typed::{self, Value};
use super::value::{Flaw, shortened};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Tables of one kind in a file; more are a problem.
const TABLES_MAX: usize = 10_000;

/// Keys that other programs or earlier habits use for ours: (theirs, section, ours).
const ALIASES: &[(&str, &str, &str)] = &[
    ("auth_file", "auth", "userlist"),
    ("auth_type", "auth", "method"),
    ("default_pool_size", "pool", "size"),
    ("host", "node", "address"),
    ("listen_addr", "server", "listen"),
    ("listen_port", "server", "listen"),
    ("max_client_conn", "server", "max_client_connections"),
    ("max_db_connections", "pool", "node_budget"),
    ("max_prepared_statements", "pool", "prepared_statements_max"),
    ("pool_mode", "pool", "mode"),
    ("pool_size", "pool", "size"),
    ("port", "node", "address"),
    ("query_wait_timeout", "pool", "queue_timeout"),
    ("secret", "auth.user", "password"),
    ("server_connect_timeout", "pool", "connect_timeout"),
    ("server_idle_timeout", "pool", "idle_timeout"),
    ("server_lifetime", "pool", "lifetime"),
    ("user", "auth.user", "name"),
];

/// One table of the file, or the lack of it.
pub(super) struct Fields<'t, 'i> {
    section: &'static Section,
    table: Option<&'t DeTable<'i>>,
    /// Where it starts; where it is missing, the start of the file.
    at: usize,
}

/// The tables of a file, each key of them known.
pub(super) struct Raw<'t, 'i> {
    root: &'t DeTable<'i>,
}

impl<'t, 'i> Raw<'t, 'i> {
    /// Looks at every key once; unknown ones are problems.
    pub(super) fn new(root: &'t DeTable<'i>, notes: &mut Notes) -> Self {
        for (key, _) in root {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            if settings::section(name).is_none() {
                notes.problem(at, format!("[{}]", shortened(name)), unknown_table(name));
            }
        }
        Self { root }
    }

    /// The only table of this path.
    pub(super) fn one(&self, path: &'static str, notes: &mut Notes) -> Fields<'t, 'i> {
        let section = known(path);
        match self.find(path) {
            Some(value) => fields(section, value, notes),
            None => Fields { section, table: None, at: 0 },
        }
    }

    /// All tables of this path, in file order.
    pub(super) fn many(&self, path: &'static str, notes: &mut Notes) -> Vec<Fields<'t, 'i>> {
        let section = known(path);
        let Some(value) = self.find(path) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            let flaw =
                Flaw::new("is not a list of tables").suggest(format!("write {}, in double brackets", section.header()));
            notes.problem(value.span().start, section.header(), flaw);
            return Vec::new();
        };
        if let Some(item) = items.get(TABLES_MAX) {
            let flaw = Flaw::new(format!("more than {TABLES_MAX} tables"));
            notes.problem(item.span().start, section.header(), flaw);
        }
        items.iter().take(TABLES_MAX).map(|item| fields(section, item, notes)).collect()
    }

    /// The value at a dotted path.
    fn find(&self, path: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        let mut names = path.split('.');
        let mut value = self.root.get(names.next()?)?;
        for name in names {
            value = value.get_ref().as_table()?.get(name)?;
        }
        Some(value)
    }
}

/// The fields of one table, after naming the unknown ones.
fn fields<'t, 'i>(section: &'static Section, value: &'t Spanned<DeValue<'i>>, notes: &mut Notes) -> Fields<'t, 'i> {
    let at = value.span().start;
    let Some(table) = value.get_ref().as_table() else {
        let flaw = match (section.shape, value.get_ref()) {
            (Shape::One, DeValue::Array(_)) => Flaw::new("is a list of tables")
                .suggest(format!("write {}, once, in single brackets", section.header())),
            _ => Flaw::new("is not a table").suggest(format!("write {} on a line of its own", section.header())),
        };
        notes.problem(at, section.header(), flaw);
        return Fields { section, table: None, at };
    };
    for (key, _) in table {
        let name = key.get_ref().as_ref();
        let below = settings::section(&format!("{}.{name}", section.path)).is_some();
        if section.setting(name).is_none() && !below {
            let label = format!("{} {}", section.header(), shortened(name));
            notes.problem(key.span().start, label, unknown_key(section, name));
        }
    }
    Fields { section, table: Some(table), at }
}

/// A key that is in no row of its section.
fn unknown_key(section: &Section, name: &str) -> Flaw {
    let flaw = Flaw::new("unknown key");
    if let Some(&(_, path, ours)) = ALIASES.iter().find(|(theirs, path, _)| *theirs == name && *path == section.path) {
        debug_assert!(known(path).setting(ours).is_some(), "{path}.{ours}");
        return flaw.suggest(format!("here it is called \"{ours}\""));
    }
    if let Some(near) = nearest(name, section.settings.iter().map(|setting| setting.key)) {
        return flaw.suggest(format!("did you mean \"{near}\"?"));
    }
    match elsewhere(name) {
        Some(place) => flaw.suggest(place),
        None => {
            let keys: Vec<_> = section.settings.iter().map(|setting| setting.key).collect();
            flaw.suggest(format!("{} knows {}", section.header(), keys.join(", ")))
        }
    }
}

/// A table, or a key outside any table, that is no section.
fn unknown_table(name: &str) -> Flaw {
    let flaw = Flaw::new("unknown table");
    let near = nearest(name, SECTIONS.iter().map(|section| section.path).filter(|path| !path.contains('.')));
    match (near, elsewhere(name)) {
        (Some(near), _) => flaw.suggest(format!("did you mean {}?", known(near).header())),
        (None, Some(place)) => flaw.suggest(place),
        (None, None) => {
            let headers: Vec<_> = SECTIONS.iter().map(|section| section.header()).collect();
            flaw.suggest(format!("known are {}", headers.join(", ")))
        }
    }
}

/// Where a key of this name would be right.
fn elsewhere(name: &str) -> Option<String> {
    let same = SECTIONS.iter().find(|section| section.setting(name).is_some());
    if let Some(section) = same {
        return Some(format!("it belongs in {}", section.header()));
    }
    let (_, path, ours) = ALIASES.iter().find(|(theirs, ..)| *theirs == name)?;
    Some(format!("here it is \"{ours}\" in {}", known(path).header()))
}

/// A section this crate asks for.
fn known(path: &str) -> &'static Section {
    settings::section(path).expect("every section asked for is in the table of settings")
}

impl Fields<'_, '_> {
    /// `[pool] size`.
    pub(super) fn label(&self, key: &str) -> String {
        format!("{} {key}", self.section.header())
    }

    /// Whether the file has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Where a value is written, else where its table starts.
    pub(super) fn at(&self, key: &str) -> usize {
        let value = self.table.and_then(|table| table.get(key));
        value.map_or(self.at, |value| value.span().start)
    }

    /// A problem with the value of a key.
    pub(super) fn problem(&self, key: &str, flaw: Flaw, notes: &mut Notes) {
        notes.problem(self.at(key), self.label(key), flaw);
    }

    /// A warning about the value of a key.
    pub(super) fn warn(&self, key: &str, flaw: Flaw, notes: &mut Notes) {
        notes.warn(self.at(key), self.label(key), flaw);
    }

    /// The value written, if it is right; then the default, if there is one.
    fn value(&self, key: &str, notes: &mut Notes) -> Option<Value> {
        let setting = self.setting(key);
        if let Some(written) = self.table.and_then(|table| table.get(key)) {
            match typed::read(setting.kind, written.get_ref()) {
                Ok(value) => return Some(value),
                Err(flaw) => self.problem(key, flaw, notes),
            }
        } else if let Default::Required(example) = setting.default {
            let flaw = Flaw::new("missing").suggest(format!("add {key} = {example}"));
            self.problem(key, flaw, notes);
        }
        match setting.default {
            Default::Toml(text) => Some(typed::read_default(setting.kind, text)),
            Default::Required(_) | Default::Told(..) => None,
        }
    }

    fn setting(&self, key: &str) -> &'static Setting {
        let setting = self.section.setting(key);
        setting.unwrap_or_else(|| panic!("{} has a row in the table of settings", self.label(key)))
    }
}

/// A reader per type: `None` where nothing is written (or something wrong) and there is no default.
/// A row of another kind is our own mistake and stops the process.
macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident -> $type:ty = $variant:ident;)+) => {
        impl Fields<'_, '_> {
            $(
                $(#[$doc])*
                pub(super) fn $name(&self, key: &str, notes: &mut Notes) -> Option<$type> {
                    match self.value(key, notes)? {
                        Value::$variant(value) => Some(value),
                        other => panic!("{} is read as another kind: {other:?}", self.label(key)),
                    }
                }
            )+
        }
    };
}

readers! {
    /// `true` or `false`.
    flag -> bool = Bool;
    /// An integer, or a size in bytes.
    number -> u64 = Number;
    /// A duration.
    span -> Duration = Duration;
    /// A text.
    text -> String = Text;
    /// A file or directory, as written.
    path -> PathBuf = Path;
    /// An address to listen on; `Some(None)` is off.
    listen -> Option<SocketAddr> = Listen;
    /// Addresses to listen on.
    listens -> Vec<SocketAddr> = Listens;
    /// Host and port.
    address -> (String, u16) = Address;
    /// A list of texts.
    texts -> Vec<String> = Texts;
}

impl Fields<'_, '_> {
    /// A number, zero if it is a problem.
    pub(super) fn count(&self, key: &str, notes: &mut Notes) -> usize {
        usize::try_from(self.number(key, notes).unwrap_or_default()).unwrap_or(usize::MAX)
    }

    /// A number whose range fits 32 bits, zero if it is a problem.
    pub(super) fn count32(&self, key: &str, notes: &mut Notes) -> u32 {
        u32::try_from(self.number(key, notes).unwrap_or_default()).unwrap_or(u32::MAX)
    }

    /// A duration with a default.
    pub(super) fn duration(&self, key: &str, notes: &mut Notes) -> Duration {
        self.span(key, notes).unwrap_or_default()
    }

    /// A duration where zero means off.
    pub(super) fn duration_or_off(&self, key: &str, notes: &mut Notes) -> Option<Duration> {
        self.span(key, notes).filter(|value| !value.is_zero())
    }

    /// One of a few words.
    pub(super) fn choice<C: Choice>(&self, key: &str, notes: &mut Notes) -> C {
        let Kind::Word(words) = self.setting(key).kind else {
            panic!("{} is read as a word", self.label(key));
        };
        assert!(std::ptr::eq(words, C::WORDS) || words == C::WORDS, "{} has the words of its type", self.label(key));
        let word = self.text(key, notes).and_then(|word| C::of_word(&word));
        word.unwrap_or(C::ALL[0])
    }
}
