//! Which rights the monitor's role needs, and the SQL that gives them.
//!
//! Invariants: a right is asked for only if the failover mode uses it. Absent on purpose: rights
//! of clients.

use super::{Finding, RightsHeld, Where, identifier};
use crate::config::{Config, FailoverMode};

/// The first version where re-pointing needs no superuser.
const NO_SUPERUSER_VERSION: u32 = 150_000;

/// One right.
struct Right {
    held: fn(&RightsHeld) -> bool,
    /// What is lacking, after "lacks".
    name: &'static str,
    /// What it is for.
    why: &'static str,
    /// `GRANT` without the role.
    grant: &'static str,
    /// Whether a proxy that only follows needs it.
    to_follow: bool,
}

const RIGHTS: &[Right] = &[
    Right {
        held: |held| held.pg_monitor,
        name: "membership in pg_monitor",
        why: "probes could not see WAL receivers and lag",
        grant: "GRANT pg_monitor TO",
        to_follow: true,
    },
    Right {
        held: |held| held.pg_signal_backend,
        name: "membership in pg_signal_backend",
        why: "sessions on a former primary could not be ended",
        grant: "GRANT pg_signal_backend TO",
        to_follow: false,
    },
    Right {
        held: |held| held.pg_promote,
        name: "EXECUTE on pg_promote(boolean, integer)",
        why: "a standby could not be promoted",
        grant: "GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO",
        to_follow: false,
    },
    Right {
        held: |held| held.pg_reload_conf,
        name: "EXECUTE on pg_reload_conf()",
        why: "standbys could not be pointed to a new primary",
        grant: "GRANT EXECUTE ON FUNCTION pg_reload_conf() TO",
        to_follow: false,
    },
    Right {
        held: |held| held.alter_primary_conninfo.unwrap_or(true),
        name: "ALTER SYSTEM on primary_conninfo",
        why: "standbys could not be pointed to a new primary",
        grant: "GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO",
        to_follow: false,
    },
];

/// Rights that are needed and not held.
pub(super) fn missing(config: &Config, version_num: u32, held: &RightsHeld) -> Vec<Finding> {
    let (user, role) = (&config.cluster.monitor_user, identifier(&config.cluster.monitor_user));
    if held.superuser {
        return Vec::new();
    }
    let follows = config.cluster.failover == FailoverMode::Follow;
    let lacking = RIGHTS.iter().filter(|right| (right.to_follow || !follows) && !(right.held)(held));
    let mut findings: Vec<_> = lacking
        .map(|right| {
            let text = format!("role \"{user}\" lacks {}: {}", right.name, right.why);
            Finding::problem(text).fix(Where::Primary, format!("{} {role};", right.grant))
        })
        .collect();
    if version_num < NO_SUPERUSER_VERSION && !follows {
        let text = format!(
            "role \"{user}\" is no superuser, and before PostgreSQL 15 only one may ALTER SYSTEM: \
                            standbys could not be pointed to a new primary"
        );
        findings.push(Finding::problem(text).fix(Where::Primary, format!("ALTER ROLE {role} SUPERUSER;")));
    }
    findings
}

/// The SQL that makes the role from nothing.
pub(super) fn create_role(config: &Config) -> String {
    let role = identifier(&config.cluster.monitor_user);
    let follows = config.cluster.failover == FailoverMode::Follow;
    let mut sql = format!("CREATE ROLE {role} LOGIN PASSWORD '…';");
    for right in RIGHTS.iter().filter(|right| right.to_follow || !follows) {
        sql.push_str(&format!(" {} {role};", right.grant));
    }
    sql
}
