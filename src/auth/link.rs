//! The connection to a node over which logins ask what the cluster knows of a user.
//!
//! One connection is kept, to the primary where there is one; it is made at the first question and
//! anew when it is old, dead or to the wrong node. Invariants: the session's `search_path` is empty, so nothing
//! but `pg_catalog` is found unqualified; every wait has a limit; a question is asked at most
//! [`TRIES`] times. Absent on purpose: client connections and pools (a login must not wait for a pool
//! that waits for a login), and what is asked (`query`, `roles`).

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_postgres::{Client, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::error::{AuthError, Unavailability};
use crate::clock::Time;
use crate::config::{AuthConfig, Secret};
use crate::net::{NodeTls, connect_driver};

/// The nodes to ask, in order of preference (primary first, then standbys), as host and port.
pub type Candidates = Arc<dyn Fn() -> Vec<(String, u16)> + Send + Sync>;

/// How connections to a node are protected.
pub type Protection = Arc<dyn Fn(&(String, u16)) -> NodeTls + Send + Sync>;

/// Connecting and login at one node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One question, as we see it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// One query, as the node sees it, milliseconds: less than [`QUERY_TIMEOUT`], so that the node stops first.
const STATEMENT_TIMEOUT_MS: u32 = 4_000;
/// Tries per question: the kept connection may turn out dead, a new one should not.
const TRIES: usize = 2;
/// Nodes tried per connect.
const CANDIDATES_MAX: usize = 16;
/// A connection to another node than the first is given up after this, if the first may be back.
const PREFER_FIRST_AFTER: Duration = Duration::from_secs(30);
/// A connection is made anew after this, so that a changed query function is seen as it is now.
const LIFETIME: Duration = Duration::from_secs(600);

/// The connection, or the way to one.
pub struct NodeLink {
    pub(super) user: String,
    password: Secret,
    pub(super) database: String,
    candidates: Candidates,
    protection: Protection,
    slot: tokio::sync::Mutex<Slot>,
    /// Connects that failed at every node; who waited for one need not repeat it.
    failures: AtomicU64,
}

#[derive(Default)]
struct Slot {
    link: Option<Arc<Link>>,
    last_error: Option<AuthError>,
}

/// The connection as it is now.
pub(super) struct Link {
    pub(super) client: Client,
    /// `auth_query`, prepared at its first use.
    pub(super) secret: OnceCell<Statement>,
    /// The question for memberships, prepared at its first use.
    pub(super) roles: OnceCell<Statement>,
    node: (String, u16),
    /// The first candidate when this was made.
    first: (String, u16),
    made_at: Time,
    _driver: AbortOnDropHandle<()>,
}

/// Why a node gave no answer.
pub(super) enum Failure {
    /// The node is unreachable, busy or ending; another one may do.
    Gone(String),
    /// The node refuses the login or the query, as any other would.
    Refused(String),
    /// The query works but does not give what it must.
    Unusable(String),
}

impl std::fmt::Debug for NodeLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeLink").field("user", &self.user).field("database", &self.database).finish_non_exhaustive()
    }
}

impl NodeLink {
    /// Connects, at the first question, as the role of `auth_query`. Inside a tokio runtime that outlives it.
    #[must_use]
    pub fn new(config: &AuthConfig, candidates: Candidates) -> Arc<Self> {
        Self::protected(config, candidates, Arc::new(|_| NodeTls::NEVER))
    }

    /// The same, with connections protected as their node wants it.
    #[must_use]
    pub fn protected(config: &AuthConfig, candidates: Candidates, protection: Protection) -> Arc<Self> {
        Arc::new(Self {
            user: config.auth_query_user.clone(),
            password: config.auth_query_password.clone(),
            database: config.auth_query_database.clone(),
            candidates,
            protection,
            slot: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
        })
    }

    /// Asks a question of the first node that answers.
    pub(super) async fn ask<T, F>(&self, now: Time, question: impl Fn(Arc<Link>) -> F) -> Result<T, AuthError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut silent = None;
        for _ in 0..TRIES {
            let link = self.link(now, silent.as_ref()).await?;
            let why = match timeout(QUERY_TIMEOUT, question(Arc::clone(&link))).await {
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
        let mut slot = self.slot.lock().await;
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
        let connected = connect_driver(&config, &(self.protection)(&node)).await;
        let (client, connection) = connected.map_err(|error| failure(&error))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "auth_query: connection ended");
            }
        }));
        let (secret, roles) = (OnceCell::new(), OnceCell::new());
        Ok(Link { client, secret, roles, node, first, made_at: now, _driver: driver })
    }

    async fn give_up(&self, link: &Arc<Link>) {
        let mut slot = self.slot.lock().await;
        if slot.link.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, link)) {
            slot.link = None;
        }
    }
}

impl Link {
    /// Alive, not old, to a node that is still offered, and to the first one unless that was down just now.
    fn is_right(&self, candidates: &[(String, u16)], now: Time) -> bool {
        let Some(first) = candidates.first() else { return false };
        let age = now.since(self.made_at);
        let settled = self.node == *first || (self.first == *first && age < PREFER_FIRST_AFTER);
        settled && age < LIFETIME && candidates.contains(&self.node) && !self.client.is_closed()
    }
}

/// Connection trouble, a node that ends or is overloaded: another try may work. All else will not.
pub(super) fn failure(error: &tokio_postgres::Error) -> Failure {
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
