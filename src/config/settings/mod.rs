//! The table of settings: one row per key, the single source for parsing, suggestions,
//! `config/reference.toml`, the list of settings in use and what a reload can change.
//!
//! Invariants: every key that is read has a row and every row is read (a test each); a default is
//! written as TOML and read by the same code as the file; the order of rows is the order of the
//! reference. Absent on purpose: rules over several settings (see `check`).

mod cluster;
mod data;
mod doors;
mod etcd;
mod hooks;
mod tls;

use super::value::{format_duration, format_size};
use super::{Config, NodeConfig, RedirectConfig, Secret, UserConfig, WitnessConfig};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One table of the file.
#[derive(Debug)]
pub struct Section {
    /// Dotted path: `pool`, `auth.user`.
    pub path: &'static str,
    /// Written `[path]`, or once per item as `[[path]]`.
    pub shape: Shape,
    /// One sentence for the reference.
    pub doc: &'static str,
    /// Its keys, in the order of the reference.
    pub settings: &'static [Setting],
}

/// How often a table may occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `[path]`
    One,
    /// `[[path]]`
    Many,
}

/// One key.
#[derive(Debug)]
pub struct Setting {
    /// Its name within the section.
    pub key: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What holds when it is not written.
    pub default: Default,
    /// What SIGHUP does with a change.
    pub reload: Reload,
    /// One or two sentences for the reference.
    pub doc: &'static str,
    /// Where its value lives in the checked configuration.
    pub view: View,
}

/// What may be written for a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// An integer, both ends included.
    Count {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A text such as `"30s"`, both ends included.
    Duration {
        /// Least (besides zero, where that means off).
        min: Duration,
        /// Most.
        max: Duration,
        /// What `"0s"` means.
        zero: Zero,
    },
    /// A text such as `"16MiB"` or a number of bytes, both ends included.
    Size {
        /// Least, bytes (besides zero, where that means off).
        min: u64,
        /// Most, bytes.
        max: u64,
        /// What zero means.
        zero: Zero,
    },
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text that is not empty.
    Text,
    /// A text of letters, digits, `-`, `_` and `.`.
    Name,
    /// A file or directory; a relative one counts from the directory of the config file.
    Path,
    /// A password, or a stored secret as in `pg_authid`.
    Secret,
    /// An IP address and port to listen on; empty turns it off.
    Listen,
    /// IP addresses and ports to listen on.
    Listens,
    /// A host name or IP address, and a port (5432 if left out).
    Address,
    /// A list of texts that are not empty.
    Texts,
}

/// What zero means for a duration or a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Turns the limit off.
    Off,
    /// A value like others, subject to the range.
    Value,
}

/// What holds when a setting is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// This TOML value.
    Toml(&'static str),
    /// Nothing: it must be written. The text is an example of a value, as TOML.
    Required(&'static str),
    /// Something that depends on other settings, told in words; then an example, as TOML.
    Told(&'static str, &'static str),
}

/// What SIGHUP does with a changed setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Applies it; sessions and backends that exist follow at their next use.
    Live,
    /// Reports it; it needs a restart.
    Restart,
}

/// Where a setting's value lives.
#[derive(Clone, Copy, Debug)]
pub enum View {
    /// In the whole.
    Whole(fn(&Config) -> Shown),
    /// In each node.
    Node(fn(&NodeConfig) -> Shown),
    /// In each witness.
    Witness(fn(&WitnessConfig) -> Shown),
    /// In each redirect.
    Redirect(fn(&RedirectConfig) -> Shown),
    /// In each user of the file.
    User(fn(&UserConfig) -> Shown),
    /// In another setting of the section: this key is only another way to give it.
    Within(&'static str),
}

/// A value in use. Secrets compare, but print only whether they are there.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// As it would be written, without quotes.
    Text(String),
    /// Not to be printed.
    Hidden(Secret),
}

impl Shown {
    fn of(value: impl ToString) -> Self {
        Self::Text(value.to_string())
    }

    fn duration(value: Duration) -> Self {
        Self::Text(format_duration(value))
    }

    fn duration_or_off(value: Option<Duration>) -> Self {
        Self::duration(value.unwrap_or_default())
    }

    fn size(value: usize) -> Self {
        Self::Text(format_size(value as u64))
    }

    fn file(path: Option<&PathBuf>) -> Self {
        Self::Text(path.map(|path| path.display().to_string()).unwrap_or_default())
    }

    fn list<T: ToString>(values: &[T]) -> Self {
        Self::Text(values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Hidden(secret) if secret.expose().is_empty() => f.write_str("(not set)"),
            Self::Hidden(_) => f.write_str("(set)"),
        }
    }
}

/// All tables, in the order of the reference.
pub static SECTIONS: &[&Section] = &[
    &doors::SERVER,
    &tls::TLS,
    &doors::ADMIN,
    &cluster::CLUSTER,
    &etcd::ETCD,
    &cluster::NODE,
    &cluster::WITNESS,
    &hooks::HOOKS,
    &data::POOL,
    &data::ROUTE,
    &data::REDIRECT,
    &doors::AUTH,
    &doors::USER,
    &doors::LOG,
];

/// The section of this dotted path.
#[must_use]
pub fn section(path: &str) -> Option<&'static Section> {
    SECTIONS.iter().copied().find(|section| section.path == path)
}

impl Section {
    /// The row of a key.
    #[must_use]
    pub fn setting(&self, key: &str) -> Option<&'static Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }

    /// `[pool]`, `[[node]]`.
    #[must_use]
    pub fn header(&self) -> String {
        match self.shape {
            Shape::One => format!("[{}]", self.path),
            Shape::Many => format!("[[{}]]", self.path),
        }
    }
}

/// A row that needs a restart.
const fn row(key: &'static str, kind: Kind, default: Default, view: View, doc: &'static str) -> Setting {
    Setting { key, kind, default, reload: Reload::Restart, doc, view }
}

/// A row that a reload applies.
const fn live(key: &'static str, kind: Kind, default: Default, view: View, doc: &'static str) -> Setting {
    Setting { key, kind, default, reload: Reload::Live, doc, view }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

const fn duration(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min_ms), max: Duration::from_millis(max_ms), zero: Zero::Value }
}

const fn duration_or_off(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min_ms), max: Duration::from_millis(max_ms), zero: Zero::Off }
}

const fn size(min: u64, max: u64) -> Kind {
    Kind::Size { min, max, zero: Zero::Value }
}

const fn size_or_off(min: u64, max: u64) -> Kind {
    Kind::Size { min, max, zero: Zero::Off }
}

/// Milliseconds, for the ranges in the rows.
const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Bytes, for the ranges in the rows.
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
