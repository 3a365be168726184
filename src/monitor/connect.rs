//! Opens sessions to nodes as the monitor role, and says exactly why one could not be opened.
//!
//! Invariants: an attempt has a deadline; a [`HeldSession`] owns its connection's task, which ends
//! with it. Absent on purpose: retries (the callers have their own schedules).

use crate::config::{Config, WitnessConfig};
use crate::ids::NodeId;
use crate::net::{DriverLink, NodeTls, connect_driver};
use crate::topology::ProbeFailure;
use std::error::Error as _;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_util::task::AbortOnDropHandle;

/// Longest text kept of what a node said when it rejected us, bytes.
const REASON_BYTES_MAX: usize = 300;

/// A role's or database's own settings must not change what our queries mean or end them.
const OPTIONS: &str = "-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0";

/// Makes sessions to one node.
#[derive(Clone, Debug)]
pub struct Connector {
    config: tokio_postgres::Config,
    tls: NodeTls,
}

/// A session that stays open, with the task that drives its connection.
#[derive(Debug)]
pub struct HeldSession {
    /// For queries.
    pub client: Client,
    connection: AbortOnDropHandle<()>,
}

impl Connector {
    /// For one configured node. Nothing is opened yet.
    #[must_use]
    pub fn new(config: &Config, node: NodeId) -> Self {
        match config.nodes.get(node.index()) {
            Some(node) => Self::to_address(config, &node.host, node.port, NodeTls::new(&node.tls)),
            None => Self { config: tokio_postgres::Config::new(), tls: NodeTls::NEVER },
        }
    }

    /// For a configured witness.
    #[must_use]
    pub fn to_witness(config: &Config, witness: &WitnessConfig) -> Self {
        Self::to_address(config, &witness.host, witness.port, NodeTls::new(&witness.tls))
    }

    fn to_address(config: &Config, host: &str, port: u16, tls: NodeTls) -> Self {
        let mut pg = tokio_postgres::Config::new();
        pg.host(host).port(port);
        pg.user(&config.cluster.monitor_user).dbname(&config.cluster.monitor_database).application_name("pgregent");
        pg.options(OPTIONS);
        let password = config.cluster.monitor_password.expose();
        if !password.is_empty() {
            pg.password(password);
        }
        Self { config: pg, tls }
    }

    /// The same to another database of the node.
    #[must_use]
    pub fn to_database(mut self, database: &str) -> Self {
        self.config.dbname(database);
        self
    }

    /// The same under another `application_name`.
    #[must_use]
    pub(super) fn called(mut self, name: &str) -> Self {
        self.config.application_name(name);
        self
    }

    /// The same with more settings for its sessions.
    #[must_use]
    pub(super) fn with_options(mut self, options: &str) -> Self {
        self.config.options(format!("{OPTIONS} {options}"));
        self
    }

    /// The driver's form of the same, for a pool.
    #[must_use]
    pub fn driver_config(&self) -> tokio_postgres::Config {
        self.config.clone()
    }

    /// A driver's session with nothing around it, for a pool.
    ///
    /// # Errors
    /// What the driver says.
    pub async fn connect(&self) -> Result<(Client, DriverLink), tokio_postgres::Error> {
        connect_driver(&self.config, &self.tls).await
    }

    /// Opens a session.
    ///
    /// # Errors
    /// Why not, after at most `limit`.
    pub async fn open(&self, limit: Duration) -> Result<HeldSession, ProbeFailure> {
        tokio::time::timeout(limit, self.attempt()).await.unwrap_or(Err(ProbeFailure::TimedOut))
    }

    /// The same without a limit.
    pub(super) async fn attempt(&self) -> Result<HeldSession, ProbeFailure> {
        let attempt = async {
            let (client, connection) = self.connect().await?;
            let task = tokio::spawn(async move {
                if let Err(e) = connection.await {
                    tracing::debug!(error = %e, "monitor session ended");
                }
            });
            let session = HeldSession { client, connection: AbortOnDropHandle::new(task) };
            // Exists from PostgreSQL 14 on; a session of ours must not be ended for being idle.
            let quiet = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'";
            session.client.batch_execute(quiet).await?;
            Ok(session)
        };
        attempt.await.map_err(|e: tokio_postgres::Error| classify(&e))
    }
}

impl HeldSession {
    /// Apart: the client, to be shared, and the connection, which ends when it is dropped.
    pub fn split(self) -> (Arc<Client>, AbortOnDropHandle<()>) {
        (Arc::new(self.client), self.connection)
    }

    /// Waits until the session has ended. Cancel-safe.
    pub async fn ended(&mut self) {
        // A panic of the driver ends the session like anything else does.
        let _ = (&mut self.connection).await;
    }
}

/// What a driver error means about the node.
#[must_use]
pub fn classify(error: &tokio_postgres::Error) -> ProbeFailure {
    if let Some(db) = error.as_db_error() {
        return classify_answer(db.code(), db.message());
    }
    let (mut cause, mut text) = (error.source(), error.to_string());
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return classify_io(io.kind(), &inner.to_string());
        }
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    if error.is_closed() {
        return ProbeFailure::SessionLost;
    }
    ProbeFailure::Rejected(bounded(&text))
}

fn classify_answer(code: &SqlState, message: &str) -> ProbeFailure {
    match code.code() {
        // The code is the same for starting and stopping; the text differs (a translated one counts as starting,
        // and the refused connects that follow soon correct it).
        "57P03" if message.contains("shutting down") => ProbeFailure::ShuttingDown,
        "57P03" | "57P02" => ProbeFailure::StartingUp,
        "57P01" => ProbeFailure::ShuttingDown,
        "53300" => ProbeFailure::TooManyConnections,
        other => ProbeFailure::Rejected(bounded(&format!("{message} (SQLSTATE {other})"))),
    }
}

fn classify_io(kind: ErrorKind, text: &str) -> ProbeFailure {
    match kind {
        ErrorKind::ConnectionRefused => ProbeFailure::Refused,
        ErrorKind::TimedOut => ProbeFailure::TimedOut,
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::NotConnected => ProbeFailure::SessionLost,
        ErrorKind::InvalidData | ErrorKind::InvalidInput => ProbeFailure::Rejected(bounded(text)),
        // No route, host down, name not resolved (which has no kind of its own).
        _ => ProbeFailure::Unreachable,
    }
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_alive_from_gone() {
        let says = |code: &str, message: &str| classify_answer(&SqlState::from_code(code), message);
        assert_eq!(says("57P03", "the database system is shutting down"), ProbeFailure::ShuttingDown);
        assert_eq!(says("57P03", "the database system is in recovery mode"), ProbeFailure::StartingUp);
        assert_eq!(says("57P01", "terminating connection"), ProbeFailure::ShuttingDown);
        assert_eq!(says("53300", "sorry, too many clients already"), ProbeFailure::TooManyConnections);
        assert!(matches!(says("28P01", "wrong"), ProbeFailure::Rejected(text) if text == "wrong (SQLSTATE 28P01)"));
    }

    #[test]
    fn io_errors_tell_refused_from_unreachable() {
        assert_eq!(classify_io(ErrorKind::ConnectionRefused, ""), ProbeFailure::Refused);
        assert_eq!(classify_io(ErrorKind::HostUnreachable, ""), ProbeFailure::Unreachable);
        assert_eq!(classify_io(ErrorKind::ConnectionReset, ""), ProbeFailure::SessionLost);
        assert_eq!(classify_io(ErrorKind::Other, "failed to lookup address"), ProbeFailure::Unreachable);
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        assert!(bounded(&"é".repeat(400)).len() <= REASON_BYTES_MAX);
    }
}
