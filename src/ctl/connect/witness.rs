//! Witnesses: a PostgreSQL server outside the cluster, asked and judged.
//!
//! Invariants: as of visits to nodes. Absent on purpose: making the table (the first proxy does).

use super::judge::{told, unreached_at};
use super::visit::{Server, VISIT_TIMEOUT, connect, no_facts, refusal, take_lock, while_linked};
use super::voters::VERSION_VOTES;
use super::{Facts, Finding, NoFacts, Other, Refusal, Where, identifier};
use crate::config::value::format_address;
use crate::config::{Config, WitnessConfig};
use crate::ids::SystemId;
use tokio_postgres::Client;

/// What a witness said.
#[derive(Clone, Debug)]
pub(super) struct WitnessFacts {
    version_num: u32,
    version: String,
    in_recovery: bool,
    system_id: SystemId,
    pg_monitor: bool,
    /// May make the table, or may use the one that is there.
    may_record: bool,
    /// It is there, and belongs to somebody else.
    table: bool,
    lock: Result<(), Refusal>,
}

type Visit = Result<WitnessFacts, NoFacts>;

const STATE: &str = "
    SELECT current_setting('server_version_num')::int4, current_setting('server_version'), pg_is_in_recovery(),
           (SELECT system_identifier FROM pg_control_system()), pg_has_role('pg_monitor', 'USAGE'),
           to_regclass('public.pgregent_register') IS NOT NULL,
           CASE WHEN to_regclass('public.pgregent_register') IS NULL THEN has_schema_privilege('public', 'CREATE')
                ELSE has_table_privilege('public.pgregent_register', 'SELECT')
                 AND has_table_privilege('public.pgregent_register', 'INSERT')
                 AND has_table_privilege('public.pgregent_register', 'UPDATE') END";

/// Asks one.
pub(super) async fn visit(config: &Config, witness: &WitnessConfig) -> Visit {
    let asked = async {
        let cluster = &config.cluster;
        let server = Server { host: &witness.host, port: witness.port, tls: &witness.tls };
        let (client, link) =
            connect(server, &cluster.monitor_user, &cluster.monitor_password, &cluster.monitor_database).await?;
        while_linked(link, read(&client)).await.map_err(no_facts)
    };
    tokio::time::timeout(VISIT_TIMEOUT, asked).await.unwrap_or(Err(NoFacts::Silent))
}

async fn read(client: &Client) -> Result<WitnessFacts, tokio_postgres::Error> {
    let state = client.query_one(STATE, &[]).await?;
    Ok(WitnessFacts {
        version_num: u32::try_from(state.try_get::<_, i32>(0)?).unwrap_or_default(),
        version: state.try_get(1)?,
        in_recovery: state.try_get(2)?,
        system_id: SystemId(state.try_get::<_, i64>(3)?.cast_unsigned()),
        pg_monitor: state.try_get(4)?,
        table: state.try_get(5)?,
        may_record: state.try_get(6)?,
        lock: take_lock(client).await.map_err(|e| refusal(&e)),
    })
}

/// Judges them, given in their order.
pub(super) fn judge(config: &Config, nodes: &[Result<Facts, NoFacts>], visits: &[Visit]) -> Vec<Other> {
    let names: Vec<&str> = config.nodes.iter().map(|node| &*node.name).collect();
    let mut seen: Vec<(&str, SystemId)> =
        names.iter().zip(nodes).filter_map(|(name, visit)| Some((*name, visit.as_ref().ok()?.system_id))).collect();
    let mut others = Vec::new();
    for (witness, visit) in config.cluster.witnesses.iter().zip(visits) {
        let address = format_address(&witness.host, witness.port);
        let (what, findings) = match visit {
            Ok(facts) => {
                let same = seen.iter().find(|(_, system)| *system == facts.system_id).map(|(name, _)| *name);
                seen.push((&witness.name, facts.system_id));
                let version = facts.version.split_whitespace().next().unwrap_or_default();
                (format!("PostgreSQL {version}, witness"), judge_one(config, &witness.name, facts, same))
            }
            Err(reason) => ("not reached".to_owned(), vec![unreached_at(config, &address, reason)]),
        };
        others.push(Other { name: witness.name.to_string(), state: format!("  {address}  {what}"), findings });
    }
    others
}

fn judge_one(config: &Config, name: &str, facts: &WitnessFacts, same: Option<&str>) -> Vec<Finding> {
    let (user, role) = (&config.cluster.monitor_user, identifier(&config.cluster.monitor_user));
    let database = identifier(&config.cluster.monitor_database);
    let mut findings = Vec::new();
    let here = |statement: String| (Where::Outside, format!("on {name}, in database {database}: {statement}"));
    let mut problem = |text: String, fix: (Where, String)| findings.push(Finding::problem(text).fix(fix.0, fix.1));
    if facts.version_num < VERSION_VOTES {
        let text =
            format!("PostgreSQL {} cannot vote: before 14 a silent session keeps its lock for ever", facts.version);
        problem(text, (Where::Outside, "use PostgreSQL 14 or newer for a witness".to_owned()));
    }
    if let Some(other) = same {
        let text = format!("it is the same server as {other}, or a copy of it: it would vote twice, and fall with it");
        problem(text, (Where::Outside, "use a PostgreSQL server of its own (initdb) on another machine".to_owned()));
    }
    if facts.in_recovery {
        let text = "it is in recovery: nothing can be recorded there".to_owned();
        problem(text, (Where::Outside, "use a server of its own that is no standby".to_owned()));
    }
    if !facts.pg_monitor {
        let text =
            format!("role \"{user}\" lacks membership in pg_monitor: restarts, which forget locks, would go unseen");
        problem(text, here(format!("GRANT pg_monitor TO {role};")));
    }
    if !facts.may_record && facts.table {
        let text = format!("role \"{user}\" may not read and write table public.pgregent_register: it could not vote");
        problem(text, here(format!("GRANT SELECT, INSERT, UPDATE ON public.pgregent_register TO {role};")));
    } else if !facts.may_record {
        let text =
            format!("role \"{user}\" lacks CREATE in schema public: the proxy makes table pgregent_register there");
        problem(text, here(format!("GRANT CREATE ON SCHEMA public TO {role};")));
    }
    if let Err(refusal) = &facts.lock {
        findings.push(Finding::problem(format!("proxies could not agree through it: {}", told(refusal))));
    }
    findings
}
