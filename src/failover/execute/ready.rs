//! Sessions opened before they are needed, so that an action needs no new connection to a node that is full.
//!
//! Invariants: one session to each node lies in its pool while nobody acts there; it is asked once in a while, so
//! that one that died is replaced before it is needed. Absent on purpose: the sessions that hold locks (`coordination`).

use super::session::NodeSession;
use super::{ActError, Executor};
use deadpool_postgres::Pool;
use std::time::Duration;

/// How often each session is asked.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to open or to answer.
const KEEP_LIMIT: Duration = Duration::from_secs(2);

impl Executor {
    /// Keeps them for as long as it is polled.
    pub async fn keep_sessions(&self) {
        futures::future::join_all(self.nodes.iter().map(|(_, pool)| keep(pool))).await;
    }
}

async fn keep(pool: &Pool) {
    loop {
        // A node that does not let us in is tried again; the monitor tells why.
        let _ = tokio::time::timeout(KEEP_LIMIT, ask(pool)).await;
        tokio::time::sleep(KEEP_INTERVAL).await;
    }
}

async fn ask(pool: &Pool) -> Result<(), ActError> {
    let session = NodeSession::checkout(pool).await?;
    session.flag("SELECT true").await?;
    session.release();
    Ok(())
}
