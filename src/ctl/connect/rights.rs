//! Which rights the monitor's role needs, and the SQL that gives them.
//!
//! Invariants: a right is asked for only if the configuration uses it. Absent on purpose: rights
//! of clients.

use super::{Finding, RightsHeld, Where, identifier};
use crate::config::{ClusterConfig, Config, FailoverMode};

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
    /// Whether it is needed.
    when: fn(&ClusterConfig) -> bool,
}

/// A proxy that only follows changes nothing.
fn acts(cluster: &ClusterConfig) -> bool {
    cluster.failover != FailoverMode::Follow
}

const RIGHTS: &[Right] = &[
    Right {
        held: |held| held.pg_monitor,
        name: "membership in pg_monitor",
        why: "probes could not see WAL receivers and lag",
        grant: "GRANT pg_monitor TO",
        when: |_| true,
    },
    Right {
        held: |held| held.pg_signal_backend,
        name: "membership in pg_signal_backend",
        why: "sessions on a former primary could not be ended",
        grant: "GRANT pg_signal_backend TO",
        when: acts,
    },
    Right {
        held: |held| held.pg_promote,
        name: "EXECUTE on pg_promote(boolean, integer)",
        why: "a standby could not be promoted",
        grant: "GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO",
        when: acts,
    },
    Right {
        held: |held| held.pg_reload_conf,
        name: "EXECUTE on pg_reload_conf()",
        why: "standbys could not be pointed to a new primary",
        grant: "GRANT EXECUTE ON FUNCTION pg_reload_conf() TO",
        when: acts,
    },
    Right {
        held: |held| held.alter.is_none_or(|alter| alter.primary_conninfo),
        name: "ALTER SYSTEM on primary_conninfo",
        why: "standbys could not be pointed to a new primary",
        grant: "GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO",
        when: acts,
    },
    Right {
        held: |held| held.alter.is_none_or(|alter| alter.default_transaction_read_only),
        name: "ALTER SYSTEM on default_transaction_read_only",
        why: "a former primary could not be made read-only ([cluster] fence_sql)",
        grant: "GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only TO",
        when: |cluster| acts(cluster) && cluster.fence_sql,
    },
    Right {
        held: |held| held.alter.is_none_or(|alter| alter.synchronous_standby_names),
        name: "ALTER SYSTEM on synchronous_standby_names",
        why: "[cluster] synchronous_standbys could not be kept",
        grant: "GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO",
        when: |cluster| acts(cluster) && cluster.synchronous_standbys > 0,
    },
    Right {
        held: |held| held.replication,
        name: "REPLICATION",
        why: "timeline histories could not be asked for, nor slots be made on a new primary",
        grant: "ALTER ROLE",
        when: acts,
    },
];

impl Right {
    /// The statement that gives it.
    fn given_to(&self, role: &str) -> String {
        // An attribute is no privilege.
        let attribute = if self.grant == "ALTER ROLE" { " REPLICATION" } else { "" };
        format!("{} {role}{attribute};", self.grant)
    }
}

/// Rights that are needed and not held.
pub(super) fn missing(config: &Config, version_num: u32, held: &RightsHeld) -> Vec<Finding> {
    let (user, role) = (&config.cluster.monitor_user, identifier(&config.cluster.monitor_user));
    if held.superuser {
        return Vec::new();
    }
    let follows = config.cluster.failover == FailoverMode::Follow;
    let lacking = RIGHTS.iter().filter(|right| (right.when)(&config.cluster) && !(right.held)(held));
    let mut findings: Vec<_> = lacking
        .map(|right| {
            let text = format!("role \"{user}\" lacks {}: {}", right.name, right.why);
            Finding::problem(text).fix(Where::Primary, right.given_to(&role))
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
    let mut sql = format!("CREATE ROLE {role} LOGIN PASSWORD '…';");
    for right in RIGHTS.iter().filter(|right| (right.when)(&config.cluster)) {
        sql.push_str(&format!(" {}", right.given_to(&role)));
    }
    sql
}
