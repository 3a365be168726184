//! Statements as superuser, from code that is not async.
//!
//! Invariants: every call has a time limit and its own connection, thread and runtime, so it works
//! inside and outside of another runtime. Absent on purpose: psql (not every package of server
//! programs carries it) and reuse of connections.

use super::error::ClusterError;
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// Time limit of one call, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Characters of a statement shown in an error.
const STATEMENT_SHOWN: usize = 120;

/// Why a call gave nothing.
pub(super) enum Failure {
    /// PostgreSQL or the connection.
    Postgres(tokio_postgres::Error),
    /// Anything else.
    Other(ClusterError),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self::Other(error)
    }
}

/// Connects, does `work` with the connection, and waits for the result on a thread of its own.
pub(super) fn on_connection<T: Send>(
    node: &str,
    config: &Config,
    statement: &str,
    work: impl AsyncFnOnce(&Client) -> Result<T, Failure> + Send,
) -> Result<T, ClusterError> {
    let run = || -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| ClusterError::Io { what: "start a runtime".to_owned(), source })?;
        runtime.block_on(async {
            let all = async {
                let (client, connection) = config.connect(NoTls).await?;
                let driver = tokio::spawn(connection);
                let result = work(&client).await;
                driver.abort();
                result
            };
            let late = || ClusterError::Late {
                node: node.to_owned(),
                wanted: "answer a statement",
                limit: CALL_TIMEOUT,
                log: statement.to_owned(),
            };
            tokio::time::timeout(CALL_TIMEOUT, Box::pin(all)).await.unwrap_or_else(|_| Err(late().into()))
        })
    };
    let result = std::thread::scope(|scope| scope.spawn(run).join());
    // A panic in `work` is a defect of the caller's; let it go on there.
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(|failure| match failure {
        Failure::Other(error) => error,
        Failure::Postgres(error) => ClusterError::Sql {
            node: node.to_owned(),
            message: error.as_db_error().map_or_else(|| whole(&error), |e| e.message().to_owned()),
            sqlstate: error.code().map(|code| code.code().to_owned()),
            statement: statement.chars().take(STATEMENT_SHOWN).collect(),
        },
    })
}

/// Runs statements and gives all rows as `psql -At` prints them: `|` between columns, one line per row.
pub(super) async fn text(client: &Client, statements: &str) -> Result<String, Failure> {
    let mut lines = Vec::new();
    for message in client.simple_query(statements).await? {
        if let SimpleQueryMessage::Row(row) = message {
            let columns: Vec<_> = (0..row.len()).map(|index| row.get(index).unwrap_or_default()).collect();
            lines.push(columns.join("|"));
        }
    }
    Ok(lines.join("\n"))
}

/// An error with its causes.
fn whole(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
