//! The names of databases and roles in a rule, and how they match.
//!
//! Invariants: a keyword in quotes is a name; a name with a slash in front is a regular
//! expression, in quotes too (as since PostgreSQL 16); every expression is bounded in size and takes
//! time proportional to the text. Absent on purpose: asking who is a member of what (see [`Known`]).

use regex::{Regex, RegexBuilder};

use super::decide::{Known, Need};
use super::token::Token;

/// Memory that one compiled expression may take, bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Who a rule is for.
#[derive(Clone, Debug)]
pub(super) enum RoleName {
    All,
    MemberOf(Box<str>),
    Name(Box<str>),
    Matches(Regex),
}

/// Which databases a rule is for.
#[derive(Clone, Debug)]
pub(super) enum DatabaseName {
    All,
    SameUser,
    SameRole,
    Replication,
    Name(Box<str>),
    Matches(Regex),
}

/// The expression of a token, if it is one.
pub(super) fn pattern(token: &Token) -> Option<Result<Regex, String>> {
    let text = token.text.strip_prefix('/')?;
    let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
    Some(built.map_err(|error| {
        // The crate shows the expression over several lines; the last one says what is wrong.
        let told = error.to_string();
        let why = told.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
        format!("invalid regular expression \"{text}\": {why}")
    }))
}

impl RoleName {
    pub(super) fn parse(token: &Token) -> Result<Self, String> {
        if let Some(group) = token.text.strip_prefix('+').filter(|_| !token.quoted) {
            return Ok(Self::MemberOf(group.into()));
        }
        if token.is_keyword("all") {
            return Ok(Self::All);
        }
        match pattern(token) {
            Some(regex) => regex.map(Self::Matches),
            None => Ok(Self::Name(token.text.as_str().into())),
        }
    }

    /// Is `user` meant?
    pub(super) fn matches(&self, user: &str, known: &Known) -> Result<bool, Need> {
        match self {
            Self::All => Ok(true),
            Self::MemberOf(group) => known.is_member(group),
            Self::Name(name) => Ok(**name == *user),
            Self::Matches(regex) => Ok(regex.is_match(user)),
        }
    }
}

impl DatabaseName {
    pub(super) fn parse(token: &Token) -> Result<Self, String> {
        let keyword = match token.text.as_str() {
            "all" => Some(Self::All),
            "sameuser" => Some(Self::SameUser),
            "samerole" | "samegroup" => Some(Self::SameRole),
            "replication" => Some(Self::Replication),
            _ => None,
        };
        if let Some(keyword) = keyword.filter(|_| !token.quoted) {
            return Ok(keyword);
        }
        match pattern(token) {
            Some(regex) => regex.map(Self::Matches),
            None => Ok(Self::Name(token.text.as_str().into())),
        }
    }

    /// Is this database meant, for this user? `replication`: it is no database but the stream of WAL.
    pub(super) fn matches(&self, database: &str, user: &str, replication: bool, known: &Known) -> Result<bool, Need> {
        if replication {
            return Ok(matches!(self, Self::Replication));
        }
        match self {
            Self::All => Ok(true),
            Self::SameUser => Ok(database == user),
            Self::SameRole => known.is_member(database),
            Self::Replication => Ok(false),
            Self::Name(name) => Ok(**name == *database),
            Self::Matches(regex) => Ok(regex.is_match(database)),
        }
    }
}

/// Does any match? What has to be asked for is asked for only if nothing matches without it.
pub(super) fn any<T>(list: &[T], matches: impl Fn(&T) -> Result<bool, Need>) -> Result<bool, Need> {
    let mut need = None;
    for item in list {
        match matches(item) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(more) => need = Some(more),
        }
    }
    need.map_or(Ok(false), Err)
}
