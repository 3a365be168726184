//! A pooled session for one action: a few short questions, then back to the pool or gone.
//!
//! Invariants: dropping a session discards its connection (an action that was cut off may have left a
//! question on it); only [`NodeSession::release`] lets it be used again. Absent on purpose: time
//! limits (an action has one as a whole).

use super::ActError;
use crate::monitor::Connector;
use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

/// Sessions per node: an action and one that looks something up for it.
const SESSIONS_MAX: usize = 2;

/// Makes a node's pool; opens nothing.
pub(super) fn pool(connector: &Connector) -> Pool {
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_connect(connector.driver_config(), Protected(connector.clone()), recycling);
    let mut config = deadpool_postgres::PoolConfig::new(SESSIONS_MAX);
    // No deadline of its own: it could only be a second, contradicting one.
    config.timeouts = deadpool_postgres::Timeouts::default();
    let pool = Pool::builder(manager).config(config).build();
    pool.unwrap_or_else(|e| unreachable!("a pool without timeouts needs no runtime: {e}"))
}

/// Connects as the monitor does, TLS included.
struct Protected(Connector);

impl Connect for Protected {
    fn connect(
        &self,
        _: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        Box::pin(async {
            let (client, link) = self.0.connect().await?;
            let task = tokio::spawn(async move {
                if let Err(error) = link.await {
                    tracing::debug!(%error, "session of an action ended");
                }
            });
            Ok((client, task))
        })
    }
}

/// One session, for the length of an action.
pub(super) struct NodeSession {
    from: From,
}

/// Where it comes from.
enum From {
    /// Checked out of the node's pool.
    Pool(Option<Box<Object>>),
    /// The session that holds the node's lock; others use it at the same time.
    Lock(Arc<Client>),
}

impl NodeSession {
    pub(super) async fn checkout(pool: &Pool) -> Result<Self, ActError> {
        let object = pool.get().await.map_err(|e| ActError::Connect(e.to_string()))?;
        Ok(Self { from: From::Pool(Some(Box::new(object))) })
    }

    pub(super) fn lent(client: Arc<Client>) -> Self {
        Self { from: From::Lock(client) }
    }

    fn client(&self) -> Result<&Client, ActError> {
        match &self.from {
            From::Pool(Some(object)) => Ok(object),
            From::Pool(None) => Err(ActError::NoNode),
            From::Lock(client) => Ok(client),
        }
    }

    pub(super) fn release(mut self) {
        if let From::Pool(object) = &mut self.from {
            drop(object.take());
        }
    }

    pub(super) async fn row(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row, ActError> {
        self.client()?.query_one(sql, params).await.map_err(said)
    }

    pub(super) async fn flag(&self, sql: &str) -> Result<bool, ActError> {
        self.row(sql, &[]).await?.try_get(0).map_err(said)
    }

    pub(super) async fn text(&self, sql: &str) -> Result<String, ActError> {
        let text: Option<String> = self.row(sql, &[]).await?.try_get(0).map_err(said)?;
        Ok(text.unwrap_or_default())
    }

    pub(super) async fn number(&self, sql: &str) -> Result<i32, ActError> {
        self.row(sql, &[]).await?.try_get(0).map_err(said)
    }

    /// For statements that may not be prepared or run in a transaction (ALTER SYSTEM).
    pub(super) async fn run(&self, sql: &str) -> Result<(), ActError> {
        self.client()?.batch_execute(sql).await.map_err(said)
    }
}

impl Drop for NodeSession {
    fn drop(&mut self) {
        if let From::Pool(object) = &mut self.from
            && let Some(object) = object.take()
        {
            drop(Object::take(*object));
        }
    }
}

/// What the node said, without the statement (which may hold a password).
fn said(error: tokio_postgres::Error) -> ActError {
    let text = match error.as_db_error() {
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None => error.to_string(),
    };
    ActError::Query(text)
}
