//! What several proxies, slots and histories need of a node besides rights.
//!
//! Invariants: pure; says nothing of what the configuration does not use. Absent on purpose: witnesses (`witness`).

use super::judge::told;
use super::{Facts, Finding, Where, identifier};
use crate::config::{Config, CoordinationKind, FailoverMode};
use crate::failover::Policy;
use crate::failover::conninfo::ConnInfo;

/// The oldest PostgreSQL that ends silent sessions, which locks of proxies that died rest on.
pub(super) const VERSION_VOTES: u32 = 140_000;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let votes = config.cluster.coordination == CoordinationKind::Voters;
    if votes && facts.version_num < VERSION_VOTES {
        let text =
            format!("PostgreSQL {} cannot vote: before 14 a silent session keeps its lock for ever", facts.version);
        findings.push(Finding::problem(text).fix(Where::Outside, "upgrade it, or use coordination = \"etcd\""));
    }
    if let Some(Err(refusal)) = &facts.lock {
        let text = format!("proxies could not agree through it: {}", told(refusal));
        findings.push(Finding::problem(text));
    }
    findings.extend(allegiance(config, facts).filter(|_| votes));
    // Without the right the login fails as well: that is told there.
    if let Some(Err(refusal)) =
        facts.replication.as_ref().filter(|_| facts.rights.replication || facts.rights.superuser)
    {
        let text = format!("no replication connection as \"{}\": {}", config.cluster.monitor_user, told(refusal));
        let fix = match refusal.sqlstate.as_str() {
            "53300" => "raise max_wal_senders; each question for a history takes one for a moment".to_owned(),
            _ => format!(
                "let pg_hba.conf allow it: host {} {} <this machine's address>/32 scram-sha-256; then SELECT pg_reload_conf();",
                config.cluster.monitor_database, config.cluster.monitor_user
            ),
        };
        findings.push(Finding::problem(text).fix(Where::Outside, fix));
    }
    let slots = !facts.slot.is_empty() && config.cluster.failover != FailoverMode::Follow;
    if slots && !facts.rights.superuser && facts.rights.alter.is_some_and(|alter| !alter.primary_slot_name) {
        let (user, role) = (&config.cluster.monitor_user, identifier(&config.cluster.monitor_user));
        let text = format!(
            "it streams through slot {:?}, and role \"{user}\" lacks ALTER SYSTEM on primary_slot_name: if a new primary \
             has no room for a slot, it could not stream without one",
            facts.slot
        );
        let grant = format!("GRANT ALTER SYSTEM ON PARAMETER primary_slot_name TO {role};");
        findings.push(Finding::warning(text).fix(Where::Primary, grant));
    }
    findings
}

/// Whom a standby's vote is for.
fn allegiance(config: &Config, facts: &Facts) -> Option<Finding> {
    let conninfo = facts.conninfo.as_ref().filter(|_| facts.in_recovery)?;
    let upstream = ConnInfo::parse(conninfo).ok().and_then(|conninfo| {
        let (host, port) = conninfo.upstream()?;
        Some(format!("{host}:{port}").to_lowercase())
    });
    let nodes = Policy::from_config(config).nodes;
    if upstream.as_ref().is_some_and(|upstream| nodes.iter().any(|node| node.addresses.contains(upstream))) {
        return None;
    }
    let text = match upstream {
        Some(upstream) => {
            format!("its primary_conninfo leads to {upstream}, which is no configured node: its vote counts for nobody")
        }
        None => "its primary_conninfo leads nowhere: its vote counts for nobody".to_owned(),
    };
    let fix = "write one node's address or replication_address into primary_conninfo, or that address as \
               replication_address into [[node]]";
    Some(Finding::problem(text).fix(Where::Outside, fix))
}
