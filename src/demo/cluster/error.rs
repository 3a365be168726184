//! What can go wrong while making or moving a throwaway cluster.
//!
//! Invariants: every text says what was tried and ends with what the tool itself said. Absent on
//! purpose: SQLSTATEs and retry rules; these errors are read by people and by tests, never by clients.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a cluster could not be made, or a node not be moved to the wanted state.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No directory with PostgreSQL's server programs.
    #[error(
        "no PostgreSQL server programs (initdb, postgres) found in {searched}; run `make setup`, or name their directory in PGREGENT_PG_BIN"
    )]
    NoBinaries {
        /// Where they were looked for.
        searched: String,
    },
    /// PostgreSQL refuses to run as root, and there is nobody else to run it as.
    #[error("PostgreSQL does not run as root, and none of the users {tried} exists to run it as")]
    NoAccount {
        /// User names that were looked up.
        tried: String,
    },
    /// A file or a process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// One of PostgreSQL's tools failed.
    #[error("{tool} failed ({status}): {output}")]
    Tool {
        /// Its name.
        tool: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// This installation lacks a tool.
    #[error("{tool} is not among the programs in {dir}")]
    NoTool {
        /// Its name.
        tool: &'static str,
        /// Where it was expected.
        dir: PathBuf,
    },
    /// Another process took the node's port between choosing and using it.
    #[error("port {port} of node {node} was taken by another process")]
    PortTaken {
        /// The node.
        node: String,
        /// Its port.
        port: u16,
    },
    /// No port could be reserved.
    #[error("no free loopback port found in {low}..{high}")]
    NoPort {
        /// First port tried.
        low: u16,
        /// One past the last.
        high: u16,
    },
    /// A node ended while it was expected to start.
    #[error("node {node} ended while starting; the end of its log:\n{log}")]
    Ended {
        /// The node.
        node: String,
        /// The last lines of its log.
        log: String,
    },
    /// A node did not reach a state in time.
    #[error("node {node} did not {wanted} within {limit:?}; the end of its log:\n{log}")]
    Late {
        /// The node.
        node: String,
        /// The verb: `start`, `stop`, …
        wanted: &'static str,
        /// How long it was waited for.
        limit: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// A statement failed.
    #[error("node {node}: {message} (statement: {statement})")]
    Sql {
        /// The node.
        node: String,
        /// What PostgreSQL or the connection said.
        message: String,
        /// Its SQLSTATE, if PostgreSQL answered.
        sqlstate: Option<String>,
        /// The first characters of the statement.
        statement: String,
    },
}

impl ClusterError {
    /// For `map_err`: names what was tried on a path.
    pub(super) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let what = format!("{what} {}", path.display());
        move |source| Self::Io { what, source }
    }

    /// The SQLSTATE of a failed statement, if PostgreSQL answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Sql { sqlstate, .. } => sqlstate.as_deref(),
            _ => None,
        }
    }
}
