//! `check --connect`: asks every node, judges the answers, prints findings with their cure.
//!
//! | file | what |
//! |---|---|
//! | `visit` | logs in and reads [`Facts`]; I/O, judges nothing |
//! | `judge`, `voters` | facts of nodes to findings; pure |
//! | `witness` | the same for witnesses, read and judged |
//! | `etcd` | what its endpoints said (`coordination::etcd::inspect`) to findings; pure |
//! | `programs` | whether the programs of `[hooks]` can be run |
//! | `rights` | which rights the monitor needs; pure |
//! | `print` | findings as text |
//!
//! Invariants: read-only; all nodes at once; a node that hangs costs a named time limit and no more.
//! Absent on purpose: use of the control plane's monitor, whose sessions are made to stay.

mod etcd;
mod judge;
mod print;
mod programs;
mod rights;
#[cfg(test)]
mod tests;
mod visit;
mod voters;
mod witness;

pub(super) use print::print;

use crate::config::{Config, CoordinationKind};
use crate::coordination::etcd::inspect;
use crate::ids::{SystemId, TimelineId};
use std::collections::HashMap;

/// What a node said.
#[derive(Clone, Debug)]
struct Facts {
    /// `server_version_num`: 150014.
    version_num: u32,
    /// `server_version`: `15.14 (Debian …)`.
    version: String,
    in_recovery: bool,
    system_id: SystemId,
    /// From the WAL written, or received; `None` for a standby that receives none.
    timeline: Option<TimelineId>,
    /// `pg_stat_wal_receiver.status`, if there is a receiver and we may see it.
    receiver: Option<String>,
    rights: RightsHeld,
    /// `pg_settings.setting` (base units) by name.
    settings: HashMap<String, String>,
    /// `primary_conninfo`, if we may see it.
    conninfo: Option<String>,
    /// `primary_slot_name`.
    slot: String,
    /// What a replication connection of the monitor's gave, where one will be needed.
    replication: Option<Result<(), Refusal>>,
    /// What taking an advisory lock in a session of the store's kind gave, where nodes vote.
    lock: Option<Result<(), Refusal>>,
    /// What running `auth_query` gave, if one is configured.
    auth_query: Option<Result<(), Refusal>>,
}

/// Rights of the monitor's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RightsHeld {
    superuser: bool,
    pg_monitor: bool,
    pg_signal_backend: bool,
    pg_promote: bool,
    pg_reload_conf: bool,
    replication: bool,
    /// `None` before PostgreSQL 15, which has no such rights.
    alter: Option<AlterRights>,
}

/// `ALTER SYSTEM` on single settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AlterRights {
    primary_conninfo: bool,
    primary_slot_name: bool,
    default_transaction_read_only: bool,
    synchronous_standby_names: bool,
}

/// An error that a node sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    /// SQLSTATE; empty if the error is none of PostgreSQL's.
    sqlstate: String,
    message: String,
}

/// Why there are no facts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NoFacts {
    /// Nothing answered within the time limit.
    Silent,
    /// No connection: refused, unknown host, no route.
    Unreachable(String),
    /// The node answered and refused.
    Refused(Refusal),
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Problem,
    Warning,
}

/// Where a cure is to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// On the primary, in the monitor's database; standbys receive it.
    Primary,
    /// On this node.
    Here,
    /// Not in SQL: in a file, or by hand.
    Outside,
}

/// One thing found, and its cure.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    text: String,
    fix: Option<(Where, String)>,
}

impl Finding {
    fn problem(text: impl Into<String>) -> Self {
        Self { level: Level::Problem, text: text.into(), fix: None }
    }

    fn warning(text: impl Into<String>) -> Self {
        Self { level: Level::Warning, text: text.into(), fix: None }
    }

    fn fix(mut self, place: Where, text: impl Into<String>) -> Self {
        self.fix = Some((place, text.into()));
        self
    }
}

/// All that was found.
pub(super) struct Findings {
    /// What each node said, in the order of the config file.
    nodes: Vec<(Result<Facts, NoFacts>, Vec<Finding>)>,
    /// Witnesses, endpoints of etcd, this machine.
    others: Vec<Other>,
    /// Of the nodes together.
    cluster: Vec<Finding>,
}

/// Something else that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Other {
    /// Its name.
    name: String,
    /// Where and what it is, after its name.
    state: String,
    findings: Vec<Finding>,
}

/// How many of each level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) problems: usize,
    pub(super) warnings: usize,
}

/// Visits everything at once and judges what it says.
pub(super) async fn visit_all(config: &Config) -> Findings {
    let nodes = futures::future::join_all(config.nodes.iter().map(|node| visit::visit(config, node)));
    let witnesses =
        futures::future::join_all(config.cluster.witnesses.iter().map(|witness| witness::visit(config, witness)));
    let endpoints = async {
        match config.cluster.coordination {
            CoordinationKind::Etcd => inspect::inspect(config).await,
            CoordinationKind::Single | CoordinationKind::Voters => Vec::new(),
        }
    };
    let (nodes, witnesses, endpoints) = futures::future::join3(nodes, witnesses, endpoints).await;
    let mut others = witness::judge(config, &nodes, &witnesses);
    others.extend(etcd::judge(config, &endpoints));
    others.extend(programs::judge(config));
    Findings { others, ..judge::judge(config, nodes) }
}

/// A role or database name as SQL.
fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
