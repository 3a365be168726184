//! Which rule a login falls under: the first that matches.
//!
//! Pure. What has to be asked of others (the cluster, the name service, the kernel) is answered
//! beforehand in [`Known`], or named in [`Need`]; the caller asks and tries again. Invariant: more knowledge never
//! changes an answer that was given with less. Absent on purpose: what follows from the rule.

use std::collections::HashSet;
use std::sync::Arc;

use super::address::Network;
use super::names::any;
use super::rule::{Link, Rule};
use crate::net::Peer;

/// A login as it is seen before any proof.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Where it comes from.
    pub peer: Peer,
    /// Is the connection under TLS?
    pub encrypted: bool,
    /// The role that it asks for.
    pub user: &'a str,
    /// The database that it asks for.
    pub database: &'a str,
    /// It asks for physical replication, which belongs to no database.
    pub replication: bool,
}

/// The names of all roles that a role is a member of, itself included.
pub type Roles = HashSet<Box<str>>;

/// What has been asked so far for one login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// What the user is a member of.
    pub roles: Option<Arc<Roles>>,
    /// The name of the client's machine, which leads back to its address; `Some(None)`: there is none.
    pub host_name: Option<Option<Box<str>>>,
    /// This machine's addresses, with the networks that they are in.
    pub interfaces: Option<Arc<[Network]>>,
}

/// What has to be asked before the answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// [`Known::roles`]
    Roles,
    /// [`Known::host_name`]
    HostName,
    /// [`Known::interfaces`]
    Interfaces,
}

impl Known {
    /// Is the user a member of this role, directly or not?
    pub(super) fn is_member(&self, role: &str) -> Result<bool, Need> {
        self.roles.as_ref().map(|roles| roles.contains(role)).ok_or(Need::Roles)
    }
}

impl Rule {
    pub(super) fn matches(&self, attempt: &Attempt<'_>, known: &Known) -> Result<bool, Need> {
        let fits = match (self.link, attempt.peer) {
            (Link::Local, Peer::Unix { .. }) => true,
            (Link::Local, Peer::Tcp(_)) | (_, Peer::Unix { .. }) | (Link::HostGssEnc, _) => false,
            (Link::Host | Link::HostNoGssEnc, Peer::Tcp(_)) => true,
            (Link::HostSsl, Peer::Tcp(_)) => attempt.encrypted,
            (Link::HostNoSsl, Peer::Tcp(_)) => !attempt.encrypted,
        };
        if !fits {
            return Ok(false);
        }
        // Each part may need to ask; one that says no without asking spares the others' questions.
        let (user, database) = (attempt.user, attempt.database);
        let origin = match attempt.peer {
            Peer::Tcp(address) => self.origin.holds(address.ip(), known),
            Peer::Unix { .. } => Ok(true),
        };
        let databases = any(&self.databases, |name| name.matches(database, user, attempt.replication, known));
        let roles = any(&self.roles, |name| name.matches(user, known));
        let parts = [origin, databases, roles];
        if parts.contains(&Ok(false)) {
            return Ok(false);
        }
        parts.into_iter().find(Result::is_err).unwrap_or(Ok(true))
    }
}
