//! Names in the file that may stand for many: as they are, or `/` and a regular expression (as in `pg_hba.conf` of
//! PostgreSQL 16).
//!
//! Invariant: what was read prints as it was written. Absent on purpose: letters of another case being the same.

use super::value::{Flaw, quoted};
use regex::Regex;
use std::fmt;

/// A name, or what names look like.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// This name.
    Name(String),
    /// Every name in which the expression finds something.
    Matches(Regex),
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, Flaw> {
        let Some(expression) = text.strip_prefix('/') else { return Ok(Self::Name(text.to_owned())) };
        Regex::new(expression).map(Self::Matches).map_err(|_| {
            let flaw = Flaw::new(format!("{} is not a regular expression", quoted(expression)));
            flaw.suggest("after \"/\" write one such as \"/^report\"")
        })
    }

    /// Does it stand for this name?
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(known) => known == name,
            Self::Matches(expression) => expression.is_match(name),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Matches(expression) => write!(f, "/{expression}"),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(one), Self::Name(two)) => one == two,
            (Self::Matches(one), Self::Matches(two)) => one.as_str() == two.as_str(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_and_expressions_are_searched() {
        let pattern = |text: &str| Pattern::parse(text).unwrap();
        assert!(pattern("reports").matches("reports") && !pattern("reports").matches("reports2"));
        assert!(pattern("/^rep").matches("reports") && !pattern("/^rep").matches("my reports"));
        assert!(Pattern::parse("/(").is_err());
        assert_eq!(pattern("/^a").to_string(), "/^a");
        assert_eq!(pattern("/^a"), pattern("/^a"));
        assert_ne!(pattern("/^a"), pattern("^a"));
    }
}
