//! Rules of who may log in and how, in PostgreSQL's own format: `pg_hba.conf` and `pg_ident.conf`.
//!
//! | file | what |
//! |---|---|
//! | `token` | lines, fields, tokens |
//! | `files` | files that include files |
//! | `rule`, `names`, `address` | one line of `pg_hba.conf`, read |
//! | `ident` | `pg_ident.conf`: names from outside as roles |
//! | `decide` | the first rule that matches, and what must be known for that |
//!
//! Invariants: pure but for [`Disk`]; loading reports every problem of every file at once; the
//! first matching rule decides, whatever comes of it. Absent on purpose: carrying a rule out
//! (`client::login`), and telling the client of a refusal (`auth::error`).

mod address;
mod decide;
mod files;
mod ident;
mod names;
mod rule;
#[cfg(test)]
mod tests;
mod token;

use std::path::Path;
use std::sync::Arc;

pub use address::Network;
pub use decide::{Attempt, Known, Need, Roles};
pub use files::{Disk, Files, Place};
pub use ident::MapRefusal;
pub use rule::{CertificateCheck, CertificateName, Method, Rule};

use crate::config::AuthConfig;
use files::PROBLEMS_MAX;
use ident::{IdentLine, IdentMaps};

/// The rules of both files.
#[derive(Debug, Default)]
pub struct Hba {
    rules: Vec<Arc<Rule>>,
    maps: IdentMaps,
}

impl Hba {
    /// The rules that the config names; `None` if it names none. Reads files: not for the data plane's threads.
    ///
    /// # Errors
    /// Every problem found, as `file:line: …`.
    pub fn from_config(config: &AuthConfig) -> Result<Option<Self>, Vec<String>> {
        let Some(hba) = &config.hba_file else { return Ok(None) };
        Self::load(hba, config.ident_file.as_deref(), &Disk).map(Some)
    }

    /// Reads the rules of `hba` and, if named, the maps of `ident`.
    ///
    /// # Errors
    /// Every problem found, as `file:line: …`.
    pub fn load(hba: &Path, ident: Option<&Path>, files: &dyn Files) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let rules: Vec<_> = parse(hba, files, Rule::parse, &mut problems).into_iter().map(Arc::new).collect();
        if rules.is_empty() && problems.is_empty() {
            problems.push(format!("{}: there is no rule in it, so nobody could log in", hba.display()));
        }
        let maps = ident.map(|ident| parse(ident, files, IdentLine::parse, &mut problems)).unwrap_or_default();
        problems.truncate(PROBLEMS_MAX);
        if problems.is_empty() { Ok(Self { rules, maps: IdentMaps::new(maps) }) } else { Err(problems) }
    }

    /// The rule for this login; `None`: none matches, which means no.
    ///
    /// # Errors
    /// What has to be asked first.
    pub fn decide(&self, attempt: &Attempt<'_>, known: &Known) -> Result<Option<&Arc<Rule>>, Need> {
        for rule in &self.rules {
            if rule.matches(attempt, known)? {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    /// May `outside` (a system user, the name in a certificate) be the role `user`, by the rule's map?
    ///
    /// # Errors
    /// What has to be asked first.
    pub fn permit(
        &self,
        map: Option<&str>,
        user: &str,
        outside: &str,
        known: &Known,
    ) -> Result<Result<(), MapRefusal>, Need> {
        self.maps.permit(map, user, outside, known)
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Are there none? Only of the default value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

fn parse<T>(
    path: &Path,
    files: &dyn Files,
    read: impl Fn(&files::Line) -> Result<T, String>,
    problems: &mut Vec<String>,
) -> Vec<T> {
    let gathered = files::read(path, files);
    problems.extend(gathered.problems);
    let mut parsed = Vec::with_capacity(gathered.lines.len());
    for line in &gathered.lines {
        match read(line) {
            Ok(item) => parsed.push(item),
            Err(why) => problems.push(format!("{}: {why}", line.place)),
        }
    }
    parsed
}
