//! What a user is a member of, asked of the cluster: for `+role` and `samerole` in `pg_hba.conf`.
//!
//! As PostgreSQL counts there: directly and indirectly, itself included, and a superuser is not a
//! member of everything. Invariants: an answer is kept for [`ROLES_TTL`] at most; one question per
//! user is under way; nobody else's login waits. Absent on purpose: the connection (see `link`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::error::AuthError;
use super::flights::Flights;
use super::hba::Roles;
use super::link::{Failure, Link, NodeLink, failure};
use crate::clock::Time;

/// How long an answer is kept: a GRANT or REVOKE counts for logins that much later.
pub const ROLES_TTL: Duration = Duration::from_secs(5);
/// Answers kept. Clients may try any user name: beyond this, room is made.
const USERS_MAX: usize = 10_000;
/// Roles that one user may be a member of.
const MEMBERSHIPS_MAX: usize = 10_000;

/// Anybody may read these. A superuser gets no more than what was granted.
const QUERY: &str = "WITH RECURSIVE membership(role) AS (\
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1 \
    UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN membership ON m.member = membership.role) \
    SELECT r.rolname::pg_catalog.text FROM membership JOIN pg_catalog.pg_roles r ON r.oid = membership.role LIMIT $2";

/// Asks who is a member of what.
#[derive(Clone)]
pub struct Memberships(Arc<Inner>);

struct Inner {
    link: Arc<NodeLink>,
    board: Mutex<Board>,
}

#[derive(Default)]
struct Board {
    kept: HashMap<Box<str>, (Arc<Roles>, Time)>,
    flights: Flights<Arc<Roles>>,
}

impl std::fmt::Debug for Memberships {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memberships").field("link", &self.0.link).finish_non_exhaustive()
    }
}

impl Memberships {
    /// Asks over this connection.
    #[must_use]
    pub fn new(link: &Arc<NodeLink>) -> Self {
        Self(Arc::new(Inner { link: Arc::clone(link), board: Mutex::default() }))
    }

    /// The names of all roles that `user` is a member of; none if there is no such role. Cancel-safe.
    ///
    /// # Errors
    /// As [`super::AuthQuery::lookup`].
    pub async fn of(&self, user: &str, now: Time) -> Result<Arc<Roles>, AuthError> {
        let flight = {
            let mut board = self.0.board.lock();
            if let Some((roles, _)) = board.kept.get(user).filter(|(_, asked)| now.since(*asked) < ROLES_TTL) {
                return Ok(Arc::clone(roles));
            }
            board.flights.join(user, || Inner::ask(Arc::clone(&self.0), user.into(), now))?
        };
        flight.await
    }
}

impl Inner {
    async fn ask(inner: Arc<Self>, user: Box<str>, now: Time) -> Result<Arc<Roles>, AuthError> {
        let asked = inner.link.ask(now, |link| fetch(link, &user)).await;
        if let Err(error) = &asked {
            tracing::warn!(%error, user = &*user, "memberships could not be asked for");
        }
        let mut board = inner.board.lock();
        board.flights.landed(&user);
        let roles = Arc::new(asked?);
        if board.kept.len() >= USERS_MAX {
            board.kept.retain(|_, (_, asked)| now.since(*asked) < ROLES_TTL);
            if board.kept.len() >= USERS_MAX {
                board.kept.clear();
            }
        }
        board.kept.insert(user, (Arc::clone(&roles), now));
        Ok(roles)
    }
}

async fn fetch(link: Arc<Link>, user: &str) -> Result<Roles, Failure> {
    let prepare = || async { link.client.prepare(QUERY).await.map_err(|error| failure(&error)) };
    let statement = link.roles.get_or_try_init(prepare).await?;
    let limit = i64::try_from(MEMBERSHIPS_MAX + 1).unwrap_or(i64::MAX);
    let rows = link.client.query(statement, &[&user, &limit]).await.map_err(|error| failure(&error))?;
    if rows.len() > MEMBERSHIPS_MAX {
        return Err(Failure::Unusable(format!("user \"{user}\" is a member of more than {MEMBERSHIPS_MAX} roles")));
    }
    let name = |row: &tokio_postgres::Row| row.try_get::<_, &str>(0).map(Box::from);
    rows.iter().map(name).collect::<Result<_, _>>().map_err(|error| Failure::Unusable(error.to_string()))
}
