//! `pg_ident.conf`: which outside names (of the system, of certificates) may be which roles.
//!
//! Invariants: what `\1` stands for is compared letter by letter, whatever it looks like; a map that is not there
//! lets nobody in. Absent on purpose: letters of another case being the same (PostgreSQL does
//! that for Kerberos only).

use regex::Regex;

use super::decide::{Known, Need};
use super::files::{Line, Place};
use super::names::{RoleName, pattern};
use super::token::Token;

/// The lines of the file, in order.
#[derive(Debug, Default)]
pub(super) struct IdentMaps {
    lines: Vec<IdentLine>,
}

#[derive(Debug)]
pub(super) struct IdentLine {
    map: Box<str>,
    system_user: SystemUser,
    role: RoleName,
    /// The role as it is written, if `\1` in it stands for a part of the system user.
    template: Option<Box<str>>,
    place: Place,
}

#[derive(Debug)]
enum SystemUser {
    Name(Box<str>),
    Matches(Regex),
}

/// Why a name from outside may not be a role. For the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapRefusal {
    /// No map was asked for, and the names differ.
    #[error("the name \"{outside}\" is not the user's")]
    NotSame {
        /// The name from outside.
        outside: Box<str>,
    },
    /// No line of the map fits.
    #[error("no match in usermap \"{map}\" for \"{outside}\"")]
    NoMatch {
        /// The map.
        map: Box<str>,
        /// The name from outside.
        outside: Box<str>,
    },
    /// `\1`, but nothing to stand for.
    #[error("{place}: the regular expression has no subexpression that \\1 could stand for")]
    NoSubexpression {
        /// The line.
        place: Place,
    },
}

impl IdentLine {
    pub(super) fn parse(line: &Line) -> Result<Self, String> {
        let field = |at: usize| match line.fields.get(at).map(Vec::as_slice) {
            Some([token]) => Ok(token),
            Some(_) => Err("multiple values in ident field".to_owned()),
            None => Err("missing entry at end of line".to_owned()),
        };
        let (map, system, role): (&Token, &Token, &Token) = (field(0)?, field(1)?, field(2)?);
        let system_user = match pattern(system) {
            Some(regex) => SystemUser::Matches(regex?),
            None => SystemUser::Name(system.text.as_str().into()),
        };
        let role_name = RoleName::parse(role)?;
        let replaces = matches!(system_user, SystemUser::Matches(_))
            && matches!(role_name, RoleName::Name(_))
            && role.text.contains("\\1");
        Ok(Self {
            map: map.text.as_str().into(),
            system_user,
            role: role_name,
            template: replaces.then(|| role.text.as_str().into()),
            place: line.place.clone(),
        })
    }

    fn permits(&self, user: &str, outside: &str, known: &Known) -> Result<Result<bool, MapRefusal>, Need> {
        let captured = match &self.system_user {
            SystemUser::Name(name) if **name == *outside => None,
            SystemUser::Name(_) => return Ok(Ok(false)),
            SystemUser::Matches(regex) => match regex.captures(outside) {
                Some(captures) => captures.get(1).map(|group| group.as_str()),
                None => return Ok(Ok(false)),
            },
        };
        let Some(template) = &self.template else { return self.role.matches(user, known).map(Ok) };
        Ok(match captured {
            Some(captured) => Ok(template.replacen("\\1", captured, 1) == user),
            None => Err(MapRefusal::NoSubexpression { place: self.place.clone() }),
        })
    }
}

impl IdentMaps {
    pub(super) fn new(lines: Vec<IdentLine>) -> Self {
        Self { lines }
    }

    /// May `outside` be the role `user`, by this map (`None`: only if the names are equal)?
    pub(super) fn permit(
        &self,
        map: Option<&str>,
        user: &str,
        outside: &str,
        known: &Known,
    ) -> Result<Result<(), MapRefusal>, Need> {
        let Some(map) = map.filter(|map| !map.is_empty()) else {
            return Ok(if outside == user { Ok(()) } else { Err(MapRefusal::NotSame { outside: outside.into() }) });
        };
        for line in self.lines.iter().filter(|line| *line.map == *map) {
            match line.permits(user, outside, known)? {
                Ok(true) => return Ok(Ok(())),
                Ok(false) => {}
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        Ok(Err(MapRefusal::NoMatch { map: map.into(), outside: outside.into() }))
    }
}
