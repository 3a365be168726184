//! From a file to a checked configuration, or to all that is wrong with it.
//!
//! Invariants: problems of syntax are told alone, since what follows from them is noise. Absent on
//! purpose: environment variables and include files; what runs is what one file says.

use super::check::Tables;
use super::problem::{Notes, Problem, Problems};
use super::raw::Raw;
use super::value::{Flaw, format_size, shortened};
use super::{Config, files, rules};
use std::path::Path;
use toml::de::DeTable;

/// All that a look at a file found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The file's name, as it was given.
    pub file: String,
    /// The configuration, if there is no problem.
    pub config: Option<Config>,
    /// What must be mended, sorted by place.
    pub problems: Vec<Problem>,
    /// What works, but hardly as meant, sorted by place.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Reads and checks a file, and the files it names.
    ///
    /// # Errors
    /// All problems at once; warnings are dropped (see [`Report::of_file`]).
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Report::of_file(path).into_result()
    }

    /// Checks a text as if it were the file `name`; relative paths in it count from that file's directory.
    ///
    /// # Errors
    /// All problems at once; warnings are dropped (see [`Report::of_text`]).
    pub fn parse(text: &str, name: &str) -> Result<Self, Problems> {
        Report::of_text(text, name).into_result()
    }
}

impl Report {
    /// Reads and checks a file, and the files it names.
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        let name = path.display().to_string();
        let text = match files::read_text(path, files::CONFIG_BYTES_MAX) {
            Ok(text) => text,
            Err(flaw) => return Self::unread(name, flaw.message),
        };
        let mut report = Self::of_text(&text, &name);
        if report.config.as_ref().is_some_and(|config| config.names_secrets(&text)) && files::public(path) {
            let mut warning = Problem::of_file("holds passwords, and everybody on this machine can read it");
            warning.suggestion = Some(format!("run: chmod o-r {name}"));
            report.warnings.insert(0, warning);
        }
        report
    }

    /// Checks a text as if it were the file `name`; relative paths in it count from that file's directory.
    #[must_use]
    pub fn of_text(text: &str, name: &str) -> Self {
        if text.len() > files::CONFIG_BYTES_MAX {
            let limit = format_size(files::CONFIG_BYTES_MAX as u64);
            return Self::unread(name.to_owned(), format!("is longer than {limit}"));
        }
        let mut notes = Notes::new(text);
        let config = check(text, Path::new(name).parent().unwrap_or(Path::new("")), &mut notes);
        let (problems, warnings) = notes.finish();
        let config = config.filter(|_| problems.is_empty());
        Self { file: name.to_owned(), config, problems, warnings }
    }

    /// The configuration, or all problems.
    ///
    /// # Errors
    /// All problems at once.
    pub fn into_result(self) -> Result<Config, Problems> {
        match self.config {
            Some(config) => Ok(config),
            None => Err(Problems { file: self.file, list: self.problems }),
        }
    }

    fn unread(file: String, message: String) -> Self {
        Self { file, config: None, problems: vec![Problem::of_file(message)], warnings: Vec::new() }
    }
}

fn check(text: &str, folder: &Path, notes: &mut Notes) -> Option<Config> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        notes.problem(at, "", Flaw::new(format!("not TOML: {}", one_line(error.message()))));
    }
    if !errors.is_empty() {
        return None;
    }
    let raw = Raw::new(root.get_ref(), notes);
    let tables = Tables::of(&raw, notes);
    let config = tables.config(folder, notes);
    rules::apply(&tables, &config, notes);
    Some(config)
}

/// The parser's words on one line.
fn one_line(message: &str) -> String {
    let lines: Vec<_> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    shortened(&lines.join(", "))
}

impl Config {
    /// Whether the text itself (not a file it names) holds a secret.
    fn names_secrets(&self, text: &str) -> bool {
        let mut secrets = vec![&self.cluster.monitor_password, &self.auth.auth_query_password];
        secrets.extend(self.auth.users.iter().map(|user| &user.secret));
        secrets.into_iter().map(super::Secret::expose).any(|secret| !secret.is_empty() && text.contains(secret))
    }
}
