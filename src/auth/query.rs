//! Looks users up on a node by the operator's `auth_query`, over one connection kept for that.
//!
//! The query runs wrapped in one of ours, which also asks the node how long the password is still
//! valid: both times are the node's, so no clock of ours decides. Invariants: the session's
//! `search_path` is empty, so nothing but `pg_catalog` is found unqualified; at most one query per
//! user is under way; every wait has a limit. Absent on purpose: client connections and pools (a
//! login must not wait for a pool that waits for a login), TLS to nodes.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls, Row, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::cache::{Answer, Cache};
use super::error::{AuthError, Unavailability};
use super::secret::{BadSecret, StoredSecret};
use crate::clock::Time;
use crate::config::AuthConfig;

/// The query that the manual recommends: name, secret, end of validity. Reading `pg_authid` needs
/// a superuser; a `SECURITY DEFINER` function with these columns needs only EXECUTE on it.
pub const DEFAULT_AUTH_QUERY: &str = "SELECT rolname, rolpassword, rolvaliduntil FROM pg_catalog.pg_authid \
                                      WHERE rolname = $1 AND rolcanlogin";

/// The nodes to ask, in order of preference (primary first, then standbys), as host and port.
pub type Candidates = Arc<dyn Fn() -> Vec<(String, u16)> + Send + Sync>;

/// Connecting, login and preparing at one node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One query, as we see it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// One query, as the node sees it, milliseconds: less than [`QUERY_TIMEOUT`], so that the node stops first.
const STATEMENT_TIMEOUT_MS: u32 = 4_000;
/// Tries per lookup: the kept connection may turn out dead, a new one should not.
const TRIES: usize = 2;
/// Nodes tried per connect.
const CANDIDATES_MAX: usize = 16;
/// A connection to another node than the first is given up after this, if the first may be back.
const PREFER_FIRST_AFTER: Duration = Duration::from_secs(30);
/// A connection is made anew after this, so that a changed query function is seen as it is now.
const LIFETIME: Duration = Duration::from_secs(600);
/// Users being looked up at once; every login waits for at most one.
const LOOKUPS_MAX: usize = 4_096;
/// Longest secret accepted from the query, bytes.
const SECRET_BYTES_MAX: usize = 4_096;

type Found = Result<Option<Arc<StoredSecret>>, AuthError>;
type Flight = Shared<BoxFuture<'static, Found>>;

/// Looks users up on a node.
#[derive(Clone)]
pub struct AuthQuery(Arc<Inner>);

struct Inner {
    query: String,
    user: String,
    password: crate::config::Secret,
    database: String,
    candidates: Candidates,
    board: Mutex<Board>,
    link: tokio::sync::Mutex<Slot>,
    /// Connects that failed at every node; who waited for one need not repeat it.
    failures: AtomicU64,
    /// The last lookup failed, and the log says so.
    complaining: AtomicBool,
}

/// What is known and what is being asked.
struct Board {
    cache: Cache,
    flights: HashMap<Box<str>, WeakShared<BoxFuture<'static, Found>>>,
}

#[derive(Default)]
struct Slot {
    link: Option<Arc<Link>>,
    last_error: Option<AuthError>,
}

/// The connection.
struct Link {
    client: Client,
    statement: Statement,
    node: (String, u16),
    /// The first candidate when this was made.
    first: (String, u16),
    made_at: Time,
    _driver: AbortOnDropHandle<()>,
}

/// Why a node gave no answer.
enum Failure {
    /// The node is unreachable, busy or ending; another one may do.
    Gone(String),
    /// The node refuses the login or the query, as any other would.
    Refused(String),
    /// The query works but does not give what it must.
    Unusable(String),
}

impl AuthQuery {
    /// For the query of the config; `None` if there is none. Connects at the first lookup, inside
    /// a tokio runtime that must outlive the value.
    #[must_use]
    pub fn new(config: &AuthConfig, candidates: Candidates) -> Option<Self> {
        let query = config.auth_query.as_deref()?.trim().trim_end_matches(';').to_owned();
        Some(Self(Arc::new(Inner {
            query,
            user: config.auth_query_user.clone(),
            password: config.auth_query_password.clone(),
            database: config.auth_query_database.clone(),
            candidates,
            board: Mutex::new(Board { cache: Cache::new(config.auth_query_ttl), flights: HashMap::new() }),
            link: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
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
            board.join(user, || Inner::lookup(Arc::clone(&self.0), user.into(), now))?
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
        f.debug_struct("AuthQuery").field("query", &self.0.query).field("user", &self.0.user).finish_non_exhaustive()
    }
}

impl Board {
    /// The lookup of this user that is under way, or a new one.
    fn join<F>(&mut self, user: &str, begin: impl FnOnce() -> F) -> Result<Flight, AuthError>
    where
        F: Future<Output = Found> + Send + 'static,
    {
        if let Some(flight) = self.flights.get(user).and_then(WeakShared::upgrade) {
            return Ok(flight);
        }
        if self.flights.len() >= LOOKUPS_MAX {
            // Lookups that all their clients gave up stay behind here.
            self.flights.retain(|_, flight| flight.upgrade().is_some());
            if self.flights.len() >= LOOKUPS_MAX {
                return Err(AuthError::Unavailable(Unavailability::TooMany));
            }
        }
        let flight = begin().boxed().shared();
        if let Some(weak) = flight.downgrade() {
            self.flights.insert(user.into(), weak);
        }
        Ok(flight)
    }
}

impl Inner {
    async fn lookup(inner: Arc<Self>, user: Box<str>, now: Time) -> Found {
        let asked = inner.ask(&user, now).await;
        inner.log_change(&asked);
        let mut board = inner.board.lock();
        board.flights.remove(&user);
        let answer = asked?;
        let secret = answer.secret_at(now);
        board.cache.keep(&user, answer, now);
        Ok(secret)
    }

    async fn ask(&self, user: &str, now: Time) -> Result<Answer, AuthError> {
        let mut silent = None;
        for _ in 0..TRIES {
            let link = self.link(now, silent.as_ref()).await?;
            let why = match timeout(QUERY_TIMEOUT, link.fetch(user, now)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Unusable(why))) => return Err(AuthError::QueryBroken(why.into())),
                Ok(Err(Failure::Refused(why))) => {
                    // What the query names may have been changed: prepare anew next time.
                    self.give_up(&link).await;
                    return Err(AuthError::QueryBroken(why.into()));
                }
                Ok(Err(Failure::Gone(why))) => why,
                Err(_) => "no answer in time".to_owned(),
            };
            tracing::debug!(host = %link.node.0, port = link.node.1, %why, "auth_query: connection given up");
            self.give_up(&link).await;
            silent = Some(link.node.clone());
        }
        Err(AuthError::Unavailable(Unavailability::NoAnswer))
    }

    /// The kept connection if it is still the right one, or a new one. The node `silent` is tried last.
    async fn link(&self, now: Time, silent: Option<&(String, u16)>) -> Result<Arc<Link>, AuthError> {
        let failures = self.failures.load(Ordering::Acquire);
        let mut slot = self.link.lock().await;
        let mut candidates = (self.candidates)();
        candidates.truncate(CANDIDATES_MAX);
        if let Some(link) = slot.link.as_ref().filter(|link| link.is_right(&candidates, now)) {
            return Ok(Arc::clone(link));
        }
        if self.failures.load(Ordering::Acquire) != failures
            && let Some(error) = &slot.last_error
        {
            return Err(error.clone());
        }
        slot.link = None;
        let first = candidates.first().cloned();
        candidates.sort_by_key(|node| Some(node) == silent);
        let mut error = AuthError::Unavailable(Unavailability::NoNode);
        for node in candidates {
            let (host, port) = node.clone();
            let connect = self.connect(node, first.clone().unwrap_or_default(), now);
            match timeout(CONNECT_TIMEOUT, connect).await {
                Ok(Ok(link)) => return Ok(Arc::clone(slot.link.insert(Arc::new(link)))),
                Ok(Err(Failure::Refused(why) | Failure::Unusable(why))) => error = AuthError::QueryBroken(why.into()),
                Ok(Err(Failure::Gone(why))) => tracing::debug!(%host, port, %why, "auth_query: cannot connect"),
                Err(_) => tracing::debug!(%host, port, "auth_query: cannot connect in time"),
            }
        }
        slot.last_error = Some(error.clone());
        self.failures.fetch_add(1, Ordering::Release);
        Err(error)
    }

    async fn connect(&self, node: (String, u16), first: (String, u16), now: Time) -> Result<Link, Failure> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&node.0)
            .port(node.1)
            .user(&self.user)
            .dbname(&self.database)
            .application_name("pgregent auth_query")
            .options(format!("-c search_path= -c statement_timeout={STATEMENT_TIMEOUT_MS}"))
            .connect_timeout(CONNECT_TIMEOUT);
        if !self.password.expose().is_empty() {
            config.password(self.password.expose());
        }
        let (client, connection) = config.connect(NoTls).await.map_err(|error| failure(&error))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "auth_query: connection ended");
            }
        }));
        let statement = self.prepare(&client).await?;
        Ok(Link { client, statement, node, first, made_at: now, _driver: driver })
    }

    async fn prepare(&self, client: &Client) -> Result<Statement, Failure> {
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

    async fn give_up(&self, link: &Arc<Link>) {
        let mut slot = self.link.lock().await;
        if slot.link.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, link)) {
            slot.link = None;
        }
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
                tracing::warn!(%error, role = %self.user, database = %self.database, "auth_query failed");
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

impl Link {
    /// Alive, not old, to a node that is still offered, and to the first one unless that was down just now.
    fn is_right(&self, candidates: &[(String, u16)], now: Time) -> bool {
        let Some(first) = candidates.first() else { return false };
        let age = now.since(self.made_at);
        let settled = self.node == *first || (self.first == *first && age < PREFER_FIRST_AFTER);
        settled && age < LIFETIME && candidates.contains(&self.node) && !self.client.is_closed()
    }

    async fn fetch(&self, user: &str, now: Time) -> Result<Answer, Failure> {
        let rows = self.client.query(&self.statement, &[&user]).await.map_err(|error| failure(&error))?;
        match rows.as_slice() {
            [] => Ok(Answer::nobody()),
            [row] => read_row(row, user, now),
            _ => Err(Failure::Unusable(format!("the query returns several rows for user \"{user}\""))),
        }
    }
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

/// Connection trouble, a node that ends or is overloaded: another try may work. All else will not.
fn failure(error: &tokio_postgres::Error) -> Failure {
    let Some(told) = error.as_db_error() else {
        let io = error.source().is_some_and(<dyn std::error::Error>::is::<std::io::Error>);
        let text = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        return if error.is_closed() || io { Failure::Gone(text) } else { Failure::Refused(text) };
    };
    let text = format!("{} ({})", told.message(), told.code().code());
    match told.code().code().get(..2) {
        Some("08" | "53" | "57" | "58") => Failure::Gone(text),
        _ => Failure::Refused(text),
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

    #[tokio::test]
    async fn one_lookup_per_user_is_under_way_and_survives_its_first_client() {
        let begun = Arc::new(AtomicU64::new(0));
        let mut board = Board { cache: Cache::new(Duration::ZERO), flights: HashMap::new() };
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        let mut answered = Some(answered);
        let mut join = |board: &mut Board| {
            let begun = Arc::clone(&begun);
            board
                .join("joe", || {
                    begun.fetch_add(1, Ordering::Relaxed);
                    let answered = answered.take();
                    async move {
                        if let Some(answered) = answered {
                            let _ = answered.await;
                        }
                        Ok(None)
                    }
                })
                .unwrap()
        };
        let mut first = join(&mut board);
        assert!(futures::poll!(&mut first).is_pending());
        let second = join(&mut board);
        drop(first);
        answer.send(()).unwrap();
        assert_eq!(second.await, Ok(None));
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        // All who waited are gone: the next one asks anew instead of getting an old answer.
        assert_eq!(join(&mut board).await, Ok(None));
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn lookups_under_way_are_bounded() {
        let mut board = Board { cache: Cache::new(Duration::ZERO), flights: HashMap::new() };
        let begin = || std::future::pending::<Found>();
        let held: Vec<_> = (0..LOOKUPS_MAX).map(|n| board.join(&n.to_string(), begin).unwrap()).collect();
        assert_eq!(board.join("more", begin).err(), Some(AuthError::Unavailable(Unavailability::TooMany)));
        assert!(board.join("7", begin).is_ok(), "joining needs no place");
        drop(held);
        assert!(board.join("more", begin).is_ok(), "places given up are found");
    }
}
