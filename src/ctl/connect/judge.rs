//! What the answers of the nodes mean.
//!
//! Invariants: pure; a finding comes with its cure wherever there is one; what replication carries
//! is told once, for the primary. Absent on purpose: I/O and printing.

use super::rights::{create_role, missing};
use super::{Facts, Finding, Findings, NoFacts, Refusal, Where, identifier, voters};
use crate::config::value::format_address;
use crate::config::{AuthMethod, Config, FailoverMode, NodeConfig};

/// The oldest PostgreSQL that works.
const VERSION_MIN: u32 = 130_000;
/// The oldest PostgreSQL that works without a superuser.
const VERSION_GOOD: u32 = 150_000;
/// Connections per node that are not the budget's: the control plane's (probes of four kinds, one kept for actions, one
/// for locks) and an operator's.
const CONNECTIONS_BESIDES: u64 = 7;
/// Longer `wal_retrieve_retry_interval`s delay promotions visibly, milliseconds.
const RETRIEVE_RETRY_MS_MAX: u64 = 1_000;
/// WAL senders besides the standbys': a base backup uses two.
const WAL_SENDERS_BESIDES: u64 = 2;
/// Longest part of a node's message that is printed, characters.
const MESSAGE_LEN_MAX: usize = 200;

type Visit = Result<Facts, NoFacts>;

/// Judges all visits, given in the order of the nodes.
pub(super) fn judge(config: &Config, visits: Vec<Visit>) -> Findings {
    let cluster = judge_cluster(config, &visits);
    let primary = visits.iter().flatten().find(|facts| !facts.in_recovery).cloned();
    let nodes = config.nodes.iter().zip(visits).map(|(node, visit)| {
        let findings = match &visit {
            Ok(facts) => judge_node(config, node, facts, primary.as_ref()),
            Err(reason) => vec![unreached(config, node, reason)],
        };
        (visit, findings)
    });
    Findings { nodes: nodes.collect(), others: Vec::new(), cluster }
}

fn unreached(config: &Config, node: &NodeConfig, reason: &NoFacts) -> Finding {
    unreached_at(config, &format_address(&node.host, node.port), reason)
}

/// A server of PostgreSQL at this address that told nothing.
pub(super) fn unreached_at(config: &Config, address: &str, reason: &NoFacts) -> Finding {
    let look =
        format!("is PostgreSQL running there, do listen_addresses and firewalls let this machine reach {address}?");
    match reason {
        NoFacts::Silent => Finding::problem("no answer in time").fix(Where::Outside, look),
        NoFacts::Unreachable(why) => Finding::problem(why.clone()).fix(Where::Outside, look),
        NoFacts::Refused(refusal) => refused(config, refusal),
    }
}

/// A node that answers and does not let the monitor in.
fn refused(config: &Config, refusal: &Refusal) -> Finding {
    let (user, database) = (&config.cluster.monitor_user, &config.cluster.monitor_database);
    let finding = Finding::problem(format!("login as \"{user}\" refused: {}", told(refusal)));
    match refusal.sqlstate.as_str() {
        "28P01" => {
            let set = format!("ALTER ROLE {} PASSWORD '…'; or, if there is no such role: ", identifier(user));
            finding.fix(Where::Primary, set + &create_role(config))
        }
        "28000" if refusal.message.contains("pg_hba.conf") => {
            let line = format!("host {database} {user} <this machine's address>/32 scram-sha-256");
            finding.fix(Where::Outside, format!("add to the node's pg_hba.conf: {line}; then SELECT pg_reload_conf();"))
        }
        "28000" => finding.fix(Where::Primary, create_role(config)),
        "3D000" => finding.fix(Where::Outside, "set [cluster] monitor_database to one that exists"),
        _ => finding,
    }
}

fn judge_node(config: &Config, node: &NodeConfig, facts: &Facts, primary: Option<&Facts>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.version_num < VERSION_MIN {
        findings
            .push(Finding::problem(format!("PostgreSQL {} is too old; 13 is the oldest that works", facts.version)));
    } else if facts.version_num < VERSION_GOOD {
        let text = "PostgreSQL before 15 has no right for ALTER SYSTEM on one setting: the monitor must be a superuser";
        findings.push(Finding::warning(text));
    }
    let mut rights = missing(config, facts.version_num, &facts.rights);
    if facts.in_recovery
        && let Some(primary) = primary
    {
        // Standbys receive rights from the primary; what it lacks itself is told there.
        let there = missing(config, primary.version_num, &primary.rights);
        rights.retain(|finding| !there.contains(finding));
    }
    findings.extend(rights);
    if facts.in_recovery && facts.rights.pg_monitor && facts.receiver.as_deref() != Some("streaming") {
        let text = "a standby that does not stream: it falls behind, and takes no reads once it is too far";
        findings.push(Finding::warning(text).fix(Where::Outside, "see its log; is primary_conninfo right?"));
    }
    findings.extend(voters::judge(config, facts));
    findings.extend(judge_settings(config, node, facts));
    findings.extend(judge_auth(config, facts));
    findings
}

fn judge_settings(config: &Config, node: &NodeConfig, facts: &Facts) -> Vec<Finding> {
    let on = |name: &str| facts.settings.get(name).is_none_or(|value| value == "on");
    let number = |name: &str| facts.settings.get(name).and_then(|value| value.parse::<u64>().ok());
    let mut findings = Vec::new();
    if !on("hot_standby") {
        let finding = Finding::problem("hot_standby is off: as a standby it could neither be read nor watched");
        findings.push(finding.fix(Where::Here, restart("hot_standby", "on")));
    }
    if facts.settings.get("wal_level").is_some_and(|level| level == "minimal") {
        let finding = Finding::problem("wal_level is minimal: no standby can stream from it");
        findings.push(finding.fix(Where::Here, restart("wal_level", "replica")));
    }
    if !on("wal_log_hints") && !on("data_checksums") {
        let text = "neither wal_log_hints nor data checksums are on: after a failover the old primary could not be \
                    rewound, only rebuilt from a base backup";
        findings.push(Finding::warning(text).fix(Where::Here, restart("wal_log_hints", "on")));
    }
    if !on("full_page_writes") {
        let text = "full_page_writes is off: pg_rewind refuses, and a crash may corrupt data";
        findings.push(Finding::warning(text).fix(Where::Here, reload("full_page_writes", "on")));
    }
    if let Some(millis) = number("wal_retrieve_retry_interval").filter(|&millis| millis > RETRIEVE_RETRY_MS_MAX) {
        let text = format!("wal_retrieve_retry_interval is {millis} ms: a promotion can take that long");
        findings.push(Finding::warning(text).fix(Where::Here, reload("wal_retrieve_retry_interval", "'200ms'")));
    }
    findings.extend(judge_connections(node, &number));
    let standbys = config.nodes.len().saturating_sub(1) as u64;
    if let Some(senders) = number("max_wal_senders").filter(|&senders| senders < standbys + WAL_SENDERS_BESIDES) {
        let text = format!(
            "max_wal_senders is {senders}: fewer than a primary needs ({standbys} for standbys, {WAL_SENDERS_BESIDES} for a base backup)"
        );
        let finding = if senders < standbys { Finding::problem(text) } else { Finding::warning(text) };
        let enough = (standbys + WAL_SENDERS_BESIDES).max(10).to_string();
        findings.push(finding.fix(Where::Here, restart("max_wal_senders", &enough)));
    }
    findings
}

fn judge_connections(node: &NodeConfig, number: &impl Fn(&str) -> Option<u64>) -> Option<Finding> {
    let most = number("max_connections")?;
    let reserved = number("superuser_reserved_connections").unwrap_or(0) + number("reserved_connections").unwrap_or(0);
    let room = most.saturating_sub(reserved + CONNECTIONS_BESIDES);
    let budget = node.budget as u64;
    if budget <= room {
        return None;
    }
    let text = format!(
        "max_connections is {most}, which leaves {room} for clients ({reserved} are reserved, {CONNECTIONS_BESIDES} are \
         for the monitor and operators), and the budget is {budget}: under load connects would fail"
    );
    let enough = (budget + reserved + CONNECTIONS_BESIDES).to_string();
    // A standby refuses to start with fewer connections than its primary.
    let fix = format!("{} (standbys before the primary); or set budget = {room}", restart("max_connections", &enough));
    Some(Finding::problem(text).fix(Where::Here, fix))
}

fn judge_auth(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let md5 = facts.settings.get("password_encryption").is_some_and(|method| method == "md5");
    if md5 && config.auth.method == AuthMethod::ScramSha256 && config.auth.auth_query.is_some() {
        let text = "password_encryption is md5: users whose password is set now cannot log in by [auth] method \
                    \"scram-sha-256\"";
        let fix = format!("{} Then set the passwords again.", reload("password_encryption", "'scram-sha-256'"));
        findings.push(Finding::warning(text).fix(Where::Here, fix));
    }
    if let Some(Err(refusal)) = &facts.auth_query {
        let user = &config.auth.auth_query_user;
        let finding = Finding::problem(format!("auth_query as \"{user}\" fails: {}", told(refusal)));
        let query = config.auth.auth_query.as_deref().unwrap_or_default();
        let table = ["pg_authid", "pg_shadow"].into_iter().find(|table| query.contains(table));
        findings.push(match table {
            Some(table) if refusal.sqlstate == "42501" => {
                let database = identifier(&config.auth.auth_query_database);
                let grant = format!("GRANT SELECT ON {table} TO {};", identifier(user));
                finding.fix(Where::Outside, format!("on the primary, in database {database}: {grant}"))
            }
            _ => finding,
        });
    }
    findings
}

fn judge_cluster(config: &Config, visits: &[Visit]) -> Vec<Finding> {
    let reached: Vec<(&str, &Facts)> =
        config.nodes.iter().zip(visits).filter_map(|(node, visit)| Some((&*node.name, visit.as_ref().ok()?))).collect();
    let mut findings = Vec::new();
    let Some((first, facts)) = reached.first() else { return findings };
    for (name, other) in reached.iter().filter(|(_, other)| other.system_id != facts.system_id) {
        let text = format!(
            "{name} belongs to another cluster: its system identifier is {}, that of {first} is {}",
            other.system_id, facts.system_id
        );
        let fix = "correct its address, or make it anew with pg_basebackup from the primary";
        findings.push(Finding::problem(text).fix(Where::Outside, fix));
    }
    let primaries: Vec<_> = reached.iter().filter(|(_, facts)| !facts.in_recovery).collect();
    match primaries[..] {
        [] if reached.len() == visits.len() => {
            let fix = "on the standby that is furthest ahead: SELECT pg_promote();";
            findings.push(Finding::problem("no primary: every node is in recovery").fix(Where::Outside, fix));
        }
        [] => findings.push(Finding::warning("no primary among the nodes that answered")),
        [primary] => findings.extend(judge_timelines(primary, &reached)),
        _ => {
            let each = primaries.iter().map(|(name, facts)| format!("{name} on timeline {}", timeline(facts)));
            let text = format!("more than one primary: {}", each.collect::<Vec<_>>().join(", "));
            let fix =
                "stop all but the right one, then rewind (pg_rewind) or rebuild (pg_basebackup) the others as standbys";
            findings.push(Finding::problem(text).fix(Where::Outside, fix));
        }
    }
    if config.cluster.failover == FailoverMode::Automatic && visits.len() > reached.len() && reached.len() < 2 {
        findings.push(Finding::warning("with one node reached there is nothing to fail over to"));
    }
    findings
}

fn judge_timelines(primary: &(&str, &Facts), reached: &[(&str, &Facts)]) -> Vec<Finding> {
    let (name, facts) = primary;
    let differs = |other: &&&(&str, &Facts)| other.1.timeline.is_some() && other.1.timeline != facts.timeline;
    let standbys = reached.iter().filter(|(_, other)| other.in_recovery);
    let others: Vec<_> = standbys.collect();
    let finding = |(standby, other): &(&str, &Facts)| {
        let text = format!(
            "{standby} is on timeline {}, the primary {name} on {}: it does not follow this primary",
            timeline(other),
            timeline(facts)
        );
        let fix = "see its log; if it has diverged, rewind (pg_rewind) or rebuild (pg_basebackup) it";
        Finding::warning(text).fix(Where::Outside, fix)
    };
    others.iter().filter(differs).map(|other| finding(other)).collect()
}

fn timeline(facts: &Facts) -> String {
    facts.timeline.map_or_else(|| "unknown".to_owned(), |timeline| timeline.to_string())
}

/// A node's own words, on one line.
pub(super) fn told(refusal: &Refusal) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    let message: String = refusal.message.chars().take(MESSAGE_LEN_MAX).map(shown).collect();
    if refusal.sqlstate.is_empty() { message } else { format!("{message} ({})", refusal.sqlstate) }
}

fn reload(setting: &str, value: &str) -> String {
    format!("ALTER SYSTEM SET {setting} = {value}; SELECT pg_reload_conf();")
}

fn restart(setting: &str, value: &str) -> String {
    format!("ALTER SYSTEM SET {setting} = {value}; then restart PostgreSQL")
}
