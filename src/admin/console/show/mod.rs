//! The SHOW commands: one file per group, one line each in [`SHOWS`].
//!
//! A command has a shape of its own for the database `pgregent`, and PgBouncer's for `pgbouncer` where it
//! exists there. PgBouncer's columns and their order are frozen: exporters break on additions as well as on
//! renames. Invariants: rows fit columns (a test makes rows of every command); what is not known is NULL,
//! never 0. Absent on purpose: what changes anything.

mod catalog;
mod clients;
mod config;
mod databases;
mod decisions;
mod failover;
mod learned;
mod lists;
mod nodes;
mod pins;
mod pools;
mod servers;
mod stats;

use super::snapshot::Snapshot;
use super::table::{Column, Row, Value, text};

/// Said by SHOW VERSION and `version()`.
pub const VERSION: &str = concat!("pgregent ", env!("CARGO_PKG_VERSION"));

/// Which database the client connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `pgregent`
    Own,
    /// `pgbouncer`
    Bouncer,
}

impl Flavour {
    /// By the name of the database.
    #[must_use]
    pub fn of(database: &str) -> Option<Self> {
        match database {
            "pgregent" => Some(Self::Own),
            "pgbouncer" => Some(Self::Bouncer),
            _ => None,
        }
    }
}

/// Columns, and how their rows are made.
#[derive(Debug)]
pub struct Report {
    /// In order.
    pub columns: &'static [Column],
    /// The rows of a moment.
    pub rows: fn(&Snapshot) -> Vec<Row>,
}

/// A SHOW command.
#[derive(Debug)]
pub struct Show {
    /// Its name, lower case.
    pub name: &'static str,
    /// Another name for it.
    pub alias: Option<&'static str>,
    /// What it tells.
    pub doc: &'static str,
    /// In the database `pgregent`; `None`: as PgBouncer does.
    pub own: Option<Report>,
    /// In the database `pgbouncer`; `None`: not a command of PgBouncer's.
    pub bouncer: Option<Report>,
}

impl Show {
    /// The shape for this database.
    #[must_use]
    pub fn report(&'static self, flavour: Flavour) -> &'static Report {
        let (first, second) = match flavour {
            Flavour::Own => (&self.own, &self.bouncer),
            Flavour::Bouncer => (&self.bouncer, &self.own),
        };
        first.as_ref().or(second.as_ref()).unwrap_or(&HELP)
    }
}

/// All of them, in the order of SHOW HELP.
pub static SHOWS: &[&Show] = &[
    &SHOW_HELP,
    &SHOW_VERSION,
    &pins::PINS,
    &decisions::DECISIONS,
    &learned::LEARNED,
    &clients::CLIENTS,
    &servers::SERVERS,
    &pools::POOLS,
    &nodes::NODES,
    &failover::FAILOVER,
    &failover::HOLDS,
    &failover::CANDIDATES,
    &failover::EVENTS,
    &databases::DATABASES,
    &databases::USERS,
    &catalog::CATALOG,
    &stats::STATS,
    &stats::STATS_TOTALS,
    &lists::LISTS,
    &lists::STATE,
    &config::CONFIG,
];

/// The command of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Show> {
    let is = |known: &str| known.eq_ignore_ascii_case(name);
    SHOWS.iter().copied().find(|show| is(show.name) || show.alias.is_some_and(is))
}

const HELP: Report = Report { columns: &[text("command"), text("tells")], rows: help };

static SHOW_HELP: Show =
    Show { name: "help", alias: None, doc: "What the console knows.", own: Some(HELP), bouncer: None };

static SHOW_VERSION: Show = Show {
    name: "version",
    alias: None,
    doc: "The version of the proxy.",
    own: None,
    bouncer: Some(Report { columns: &[text("version")], rows: |_| vec![vec![Value::from(VERSION)]] }),
};

fn help(_: &Snapshot) -> Vec<Row> {
    let shows = SHOWS.iter().map(|show| (format!("SHOW {}", show.name.to_uppercase()), show.doc));
    let explain = "Where a statement would go now, and why; (DATABASE name) in front of it says by which catalog. \
                   Nothing is sent to a node.";
    let others = [
        ("EXPLAIN ROUTE statement".to_owned(), explain),
        (
            "DRAIN NODE name".to_owned(),
            "The node gets no new reads while another can take them. Not for console_readers.",
        ),
        ("MAINTENANCE NODE name".to_owned(), "The node gets no reads and is not promoted. Not for console_readers."),
        ("ENABLE NODE name".to_owned(), "Ends both. Not for console_readers."),
        (
            "FAILOVER [TO name]".to_owned(),
            "Promotes the best standby, or this one, although the primary may live: it is given up first. \
             Not for console_readers.",
        ),
        (
            "PAUSE FAILOVER".to_owned(),
            "Nothing is decided without an order until RESUME FAILOVER. Not for console_readers.",
        ),
        ("RESUME FAILOVER".to_owned(), "Ends that. Not for console_readers."),
        (
            "FORGET LEARNED".to_owned(),
            "Lets standbys be asked again for what they refused (SHOW LEARNED). Not for console_readers.",
        ),
        ("RELOAD".to_owned(), "Reads the config file again, as SIGHUP does. Not for console_readers."),
    ];
    shows.chain(others).map(|(command, doc)| vec![Value::from(command), Value::from(doc)]).collect()
}

#[cfg(test)]
mod tests;
