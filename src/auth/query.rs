//! Looks users up on a node by the operator's `auth_query`.
//!
//! The query runs wrapped in one of ours, which also asks the node how long the password is still
//! valid: both times are the node's, so no clock of ours decides. Invariants: at most one query per
//! user is under way; a row for another name is never taken. Absent on purpose: the connection (see `link`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::{Row, Statement};

use super::cache::{Answer, Cache};
use super::error::AuthError;
use super::flights::Flights;
use super::link::{Failure, Link, NodeLink, failure};
use super::secret::{BadSecret, StoredSecret};
use crate::clock::Time;
use crate::config::AuthConfig;

/// The query that the manual recommends: name, secret, end of validity. Reading `pg_authid` needs
/// a superuser; a `SECURITY DEFINER` function with these columns needs only EXECUTE on it.
pub const DEFAULT_AUTH_QUERY: &str = "SELECT rolname, rolpassword, rolvaliduntil FROM pg_catalog.pg_authid \
                                      WHERE rolname = $1 AND rolcanlogin";

/// Longest secret accepted from the query, bytes.
const SECRET_BYTES_MAX: usize = 4_096;

type Found = Option<Arc<StoredSecret>>;

/// Looks users up on a node.
#[derive(Clone)]
pub struct AuthQuery(Arc<Inner>);

struct Inner {
    query: String,
    link: Arc<NodeLink>,
    board: Mutex<Board>,
    /// The last lookup failed, and the log says so.
    complaining: AtomicBool,
}

/// What is known and what is being asked.
struct Board {
    cache: Cache,
    flights: Flights<Found>,
}

impl AuthQuery {
    /// For the query of the config; `None` if there is none. Connects at the first lookup.
    #[must_use]
    pub fn new(config: &AuthConfig, link: &Arc<NodeLink>) -> Option<Self> {
        let query = config.auth_query.as_deref()?.trim().trim_end_matches(';').to_owned();
        Some(Self(Arc::new(Inner {
            query,
            link: Arc::clone(link),
            board: Mutex::new(Board { cache: Cache::new(config.auth_query_ttl), flights: Flights::default() }),
            complaining: AtomicBool::new(false),
        })))
    }

    /// What the cluster stores of `user`; `None`: no such user, no password, or it may not log in (now).
    /// Kept answers are used for `auth_query_ttl`. Cancel-safe: others who wait for the same user
    /// carry the query on.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`]: no node answered. [`AuthError::QueryBroken`]: the query or its
    /// role must be corrected; the log says how.
    pub async fn lookup(&self, user: &str, now: Time) -> Result<Option<Arc<StoredSecret>>, AuthError> {
        let flight = {
            let mut board = self.0.board.lock();
            if let Some(answer) = board.cache.find(user, now) {
                return Ok(answer.secret_at(now));
            }
            board.flights.join(user, || Inner::lookup(Arc::clone(&self.0), user.into(), now))?
        };
        flight.await
    }

    /// After a rejected login with `used` (`None`: with no secret): asks again unless the answer is
    /// brand new. `Some`: the secret is another one now.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub async fn refresh(
        &self,
        user: &str,
        used: Option<&Arc<StoredSecret>>,
        now: Time,
    ) -> Result<Option<Arc<StoredSecret>>, AuthError> {
        if !self.0.board.lock().cache.expire(user, now) {
            return Ok(None);
        }
        let secret = self.lookup(user, now).await?;
        Ok(secret.filter(|secret| used != Some(secret)))
    }
}

impl fmt::Debug for AuthQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthQuery").field("query", &self.0.query).field("link", &self.0.link).finish_non_exhaustive()
    }
}

impl Inner {
    async fn lookup(inner: Arc<Self>, user: Box<str>, now: Time) -> Result<Found, AuthError> {
        let asked = inner.link.ask(now, |link| inner.fetch(link, &user, now)).await;
        inner.log_change(&asked);
        let mut board = inner.board.lock();
        board.flights.landed(&user);
        let answer = asked?;
        let secret = answer.secret_at(now);
        board.cache.keep(&user, answer, now);
        Ok(secret)
    }

    async fn fetch(&self, link: Arc<Link>, user: &str, now: Time) -> Result<Answer, Failure> {
        let statement = link.secret.get_or_try_init(|| self.prepare(&link)).await?;
        let rows = link.client.query(statement, &[&user]).await.map_err(|error| failure(&error))?;
        match rows.as_slice() {
            [] => Ok(Answer::nobody()),
            [row] => read_row(row, user, now),
            _ => Err(Failure::Unusable(format!("the query returns several rows for user \"{user}\""))),
        }
    }

    async fn prepare(&self, link: &Link) -> Result<Statement, Failure> {
        let client = &link.client;
        let probe = client.prepare(&self.query).await.map_err(|error| failure(&error))?;
        let (parameters, columns) = (probe.params().len(), probe.columns().len());
        if parameters != 1 || !(2..=3).contains(&columns) {
            return Err(Failure::Unusable(format!(
                "the query must take the user as $1 and return (name, secret[, valid until]); \
                 it takes {parameters} parameters and returns {columns} columns"
            )));
        }
        client.prepare(&wrapped(&self.query, columns == 3)).await.map_err(|error| failure(&error))
    }

    /// One line when lookups begin to fail and one when they work again, not one per login.
    fn log_change(&self, asked: &Result<Answer, AuthError>) {
        match asked {
            Ok(_) => {
                if self.complaining.swap(false, Ordering::Relaxed) {
                    tracing::info!("auth_query works again");
                }
            }
            Err(error) if !self.complaining.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, role = %self.link.user, database = %self.link.database, "auth_query failed");
            }
            Err(error) => tracing::debug!(%error, "auth_query failed"),
        }
    }
}

/// Our query around the operator's. Infinity cannot be subtracted before PostgreSQL 17.
fn wrapped(query: &str, has_valid_until: bool) -> String {
    let (remaining, columns) = if has_valid_until {
        let remaining = "CASE WHEN q.valid_until::pg_catalog.timestamptz = '-infinity' THEN 0 \
                         WHEN pg_catalog.isfinite(q.valid_until::pg_catalog.timestamptz) THEN \
                         pg_catalog.date_part('epoch', q.valid_until::pg_catalog.timestamptz \
                         - pg_catalog.clock_timestamp()) END";
        (remaining, "name, secret, valid_until")
    } else {
        ("NULL", "name, secret")
    };
    // The line breaks end a comment that the operator's query may end with.
    format!(
        "SELECT q.name::pg_catalog.text, q.secret::pg_catalog.text, ({remaining})::pg_catalog.float8 \
         FROM (\n{query}\n) AS q({columns}) LIMIT 2"
    )
}

fn read_row(row: &Row, user: &str, now: Time) -> Result<Answer, Failure> {
    let bad = |error: tokio_postgres::Error| Failure::Unusable(error.to_string());
    let name: Option<&str> = row.try_get(0).map_err(bad)?;
    let secret: Option<&str> = row.try_get(1).map_err(bad)?;
    let remaining: Option<f64> = row.try_get(2).map_err(bad)?;
    if name != Some(user) {
        // One user must never log in with another's password.
        return Err(Failure::Unusable(format!("the query returns another name for user \"{user}\"")));
    }
    let Some(secret) = secret else { return Ok(Answer::nobody()) };
    if secret.len() > SECRET_BYTES_MAX {
        return Err(Failure::Unusable(format!(
            "the secret of user \"{user}\" is longer than {SECRET_BYTES_MAX} bytes"
        )));
    }
    let secret = match StoredSecret::parse(secret) {
        Ok(secret) => secret,
        Err(BadSecret::Empty) => return Ok(Answer::nobody()),
        Err(why) => return Err(Failure::Unusable(format!("user \"{user}\": {why}"))),
    };
    Ok(Answer { secret: Some(Arc::new(secret)), valid_until: valid_until(remaining, now) })
}

/// The point on our clock that is `remaining` seconds away; `None`: no end.
fn valid_until(remaining: Option<f64>, now: Time) -> Time {
    match remaining {
        None => Time::NEVER,
        Some(seconds) if seconds > 0.0 => Duration::try_from_secs_f64(seconds).map_or(Time::NEVER, |span| now + span),
        Some(_) => Time::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_validity_is_on_our_clock() {
        let now = Time::ZERO + Duration::from_secs(100);
        assert_eq!(valid_until(None, now), Time::NEVER);
        assert_eq!(valid_until(Some(1.5), now), now + Duration::from_millis(1_500));
        for past in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(valid_until(Some(past), now), Time::ZERO, "{past}");
        }
        assert_eq!(valid_until(Some(f64::INFINITY), now), Time::NEVER);
        assert_eq!(valid_until(Some(1e300), now), Time::NEVER);
    }
}
