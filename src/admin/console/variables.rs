//! Settings that drivers set and ask for when they connect.
//!
//! A console has no use for them: they are remembered for the client and nothing else. Invariant: the
//! names are a closed list; a value is at most [`VALUE_BYTES_MAX`] long. Absent on purpose: checking
//! values.

use crate::error::{ClientError, SqlState};
use hashbrown::HashMap;

/// Longest value kept, bytes.
const VALUE_BYTES_MAX: usize = 1024;

/// PostgreSQL version that the console claims: drivers choose by it what they send.
pub const SERVER_VERSION: &str = concat!("15.0 (pgregent ", env!("CARGO_PKG_VERSION"), ")");

/// A setting that is known: its name as reported, its value at first, and who is told of a change.
struct Known {
    name: &'static str,
    first: &'static str,
    sort: Sort,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// Reported to the client (ParameterStatus).
    Reported,
    /// Reported, and not to be changed.
    Fixed,
    /// Only remembered.
    Kept,
}

const fn known(name: &'static str, first: &'static str, sort: Sort) -> Known {
    Known { name, first, sort }
}

const KNOWN: &[Known] = &[
    known("application_name", "", Sort::Reported),
    known("client_encoding", "UTF8", Sort::Reported),
    known("DateStyle", "ISO, MDY", Sort::Reported),
    known("IntervalStyle", "postgres", Sort::Reported),
    known("TimeZone", "UTC", Sort::Reported),
    known("standard_conforming_strings", "on", Sort::Reported),
    known("default_transaction_read_only", "off", Sort::Reported),
    known("in_hot_standby", "off", Sort::Fixed),
    known("integer_datetimes", "on", Sort::Fixed),
    known("is_superuser", "off", Sort::Fixed),
    known("server_encoding", "UTF8", Sort::Fixed),
    known("server_version", SERVER_VERSION, Sort::Fixed),
    known("bytea_output", "hex", Sort::Kept),
    known("client_min_messages", "notice", Sort::Kept),
    known("default_transaction_isolation", "read committed", Sort::Kept),
    known("extra_float_digits", "1", Sort::Kept),
    known("idle_in_transaction_session_timeout", "0", Sort::Kept),
    known("idle_session_timeout", "0", Sort::Kept),
    known("jit", "off", Sort::Kept),
    known("lock_timeout", "0", Sort::Kept),
    known("max_identifier_length", "63", Sort::Kept),
    known("row_security", "on", Sort::Kept),
    known("search_path", "\"$user\", public", Sort::Kept),
    known("server_version_num", "150000", Sort::Kept),
    known("statement_timeout", "0", Sort::Kept),
    known("synchronous_commit", "on", Sort::Kept),
    known("transaction_isolation", "read committed", Sort::Kept),
    known("transaction_read_only", "off", Sort::Kept),
];

fn find(name: &str) -> Result<&'static Known, ClientError> {
    KNOWN.iter().find(|known| known.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let message = format!("unrecognized configuration parameter \"{name}\"");
        ClientError::error(SqlState("42704"), message).hint("SHOW HELP lists what the console knows.")
    })
}

/// One client's.
#[derive(Debug, Default)]
pub struct Variables {
    changed: HashMap<&'static str, String>,
}

impl Variables {
    /// Changes one (`None`: to what it was at first); the name and value to report, if it is one of those.
    ///
    /// # Errors
    /// For the client: an unknown name, a fixed one, a value that is too long.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<Option<(&'static str, String)>, ClientError> {
        let known = find(name)?;
        if known.sort == Sort::Fixed {
            let message = format!("parameter \"{}\" cannot be changed", known.name);
            return Err(ClientError::error(SqlState("55P02"), message));
        }
        match value {
            Some(long) if long.len() > VALUE_BYTES_MAX => {
                let message = format!("value of parameter \"{}\" is too long", known.name);
                return Err(ClientError::error(SqlState::INVALID_PARAMETER_VALUE, message));
            }
            Some(value) => drop(self.changed.insert(known.name, value.to_owned())),
            None => drop(self.changed.remove(known.name)),
        }
        Ok((known.sort == Sort::Reported).then(|| (known.name, self.value(known))))
    }

    fn value(&self, known: &Known) -> String {
        self.changed.get(known.name).cloned().unwrap_or_else(|| known.first.to_owned())
    }

    /// Name as reported, and value.
    ///
    /// # Errors
    /// For the client: an unknown name.
    pub fn show(&self, name: &str) -> Result<(&'static str, String), ClientError> {
        let known = find(name)?;
        Ok((known.name, self.value(known)))
    }

    /// All to what they were at first; what to report.
    pub fn reset_all(&mut self) -> Vec<(&'static str, String)> {
        let changed: Vec<_> = self.changed.drain().map(|(name, _)| name).collect();
        let reported = self.reported();
        reported.into_iter().filter(|(name, _)| changed.contains(name)).collect()
    }

    /// What a client is greeted with.
    pub fn reported(&self) -> Vec<(&'static str, String)> {
        let reported = KNOWN.iter().filter(|known| known.sort != Sort::Kept);
        reported.map(|known| (known.name, self.value(known))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_remembered_and_some_are_reported() {
        let mut variables = Variables::default();
        assert_eq!(variables.set("DATESTYLE", Some("ISO")).unwrap(), Some(("DateStyle", "ISO".to_owned())));
        assert_eq!(variables.set("extra_float_digits", Some("3")).unwrap(), None);
        assert_eq!(variables.show("datestyle").unwrap(), ("DateStyle", "ISO".to_owned()));
        assert_eq!(variables.reset_all(), [("DateStyle", "ISO, MDY".to_owned())]);
        assert_eq!(variables.show("extra_float_digits").unwrap().1, "1");
        assert_eq!(variables.set("nonsense", Some("1")).unwrap_err().sqlstate.0, "42704");
        assert_eq!(variables.set("server_version", Some("1")).unwrap_err().sqlstate.0, "55P02");
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        assert_eq!(variables.set("application_name", Some(&long)).unwrap_err().sqlstate.0, "22023");
    }
}
