//! Logs in to a node and reads what the checks need.
//!
//! Invariants: read-only; bounded in time as a whole and per statement. Absent on purpose: opinions.

use super::voters::VERSION_VOTES;
use super::{AlterRights, Facts, NoFacts, Refusal, RightsHeld};
use crate::auth::{NodeCredential, NodePassword};
use crate::backend::{self, ConnectError, Login, Target};
use crate::clock::Clock;
use crate::config::{Config, CoordinationKind, FailoverMode, NodeConfig, NodeTlsConfig, Secret};
use crate::ids::{BackendId, NodeId, SystemId, TimelineId};
use crate::net::{DriverLink, NodeTls, connect_driver};
use std::collections::HashMap;
use std::time::Duration;
use tokio_postgres::{Client, Row};

/// Time limit of one connect, login included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of the visit to one node or witness.
pub(super) const VISIT_TIMEOUT: Duration = Duration::from_secs(15);
/// What every session of a check sets: read-only, and no statement longer than this.
const SESSION_OPTIONS: &str = "-c statement_timeout=4000 -c default_transaction_read_only=on";
/// Settings that are judged.
const SETTINGS: &[&str] = &[
    "data_checksums",
    "full_page_writes",
    "hot_standby",
    "max_connections",
    "max_wal_senders",
    "password_encryption",
    "reserved_connections",
    "superuser_reserved_connections",
    "wal_level",
    "wal_log_hints",
    "wal_retrieve_retry_interval",
];

const STATE: &str = "
    SELECT current_setting('server_version_num')::int4, current_setting('server_version'), pg_is_in_recovery(),
           (SELECT system_identifier FROM pg_control_system()),
           (SELECT status FROM pg_stat_wal_receiver),
           coalesce((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint())),
           CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('primary_conninfo') END,
           current_setting('primary_slot_name')";

/// A primary's timeline is that of the WAL it writes: the control file still has the old one right after promotion.
const TIMELINE: &str = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";

const RIGHTS: &str = "
    SELECT rolsuper, pg_has_role('pg_monitor', 'USAGE'), pg_has_role('pg_signal_backend', 'USAGE'),
           has_function_privilege('pg_catalog.pg_promote(boolean, integer)', 'EXECUTE'),
           has_function_privilege('pg_catalog.pg_reload_conf()', 'EXECUTE'), rolreplication
    FROM pg_catalog.pg_roles WHERE rolname = current_user";

const ALTER_RIGHTS: &str = "
    SELECT has_parameter_privilege('primary_conninfo', 'ALTER SYSTEM'),
           has_parameter_privilege('primary_slot_name', 'ALTER SYSTEM'),
           has_parameter_privilege('default_transaction_read_only', 'ALTER SYSTEM'),
           has_parameter_privilege('synchronous_standby_names', 'ALTER SYSTEM')";

/// As a store's session does it, but with another lock, which nobody waits for.
const LOCK: &str = "
    SET tcp_keepalives_idle = 30; SET tcp_user_timeout = '30s'; SET idle_session_timeout = '30s';
    SELECT pg_try_advisory_lock_shared(1886873189, 3), pg_advisory_unlock_shared(1886873189, 3)";

/// The first version with rights on parameters.
const PARAMETER_RIGHTS_VERSION: u32 = 150_000;

/// Asks a node.
pub(super) async fn visit(config: &Config, node: &NodeConfig) -> Result<Facts, NoFacts> {
    tokio::time::timeout(VISIT_TIMEOUT, ask(config, node)).await.unwrap_or(Err(NoFacts::Silent))
}

async fn ask(config: &Config, node: &NodeConfig) -> Result<Facts, NoFacts> {
    let cluster = &config.cluster;
    let votes = cluster.coordination == CoordinationKind::Voters;
    let (client, link) =
        connect(Server::of(node), &cluster.monitor_user, &cluster.monitor_password, &cluster.monitor_database).await?;
    let mut facts = while_linked(link, read(&client, votes)).await.map_err(no_facts)?;
    if cluster.failover != FailoverMode::Follow {
        facts.replication = Some(try_replication(config, node).await);
    }
    if let Some(query) = &config.auth.auth_query {
        facts.auth_query = Some(try_auth_query(config, node, query).await);
    }
    Ok(facts)
}

/// Where to connect to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server<'c> {
    pub(super) host: &'c str,
    pub(super) port: u16,
    pub(super) tls: &'c NodeTlsConfig,
}

impl<'c> Server<'c> {
    fn of(node: &'c NodeConfig) -> Self {
        Self { host: &node.host, port: node.port, tls: &node.tls }
    }
}

pub(super) async fn connect(
    server: Server<'_>,
    user: &str,
    password: &Secret,
    database: &str,
) -> Result<(Client, DriverLink), NoFacts> {
    let mut target = tokio_postgres::Config::new();
    target.host(server.host).port(server.port).user(user).dbname(database);
    target.application_name("pgregent check").options(SESSION_OPTIONS).connect_timeout(CONNECT_TIMEOUT);
    if !password.expose().is_empty() {
        target.password(password.expose());
    }
    let tls = NodeTls::new(server.tls);
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connect_driver(&target, &tls)).await;
    connecting.map_err(|_| NoFacts::Silent)?.map_err(no_facts)
}

/// Does the work while the link moves bytes; if the link ends first, the work ends with an error.
pub(super) async fn while_linked<T>(link: DriverLink, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => done,
        _ = link => work.await,
    }
}

async fn read(client: &Client, votes: bool) -> Result<Facts, tokio_postgres::Error> {
    let state = client.query_one(STATE, &[]).await?;
    let version_num = u32::try_from(state.try_get::<_, i32>(0)?).unwrap_or_default();
    let in_recovery: bool = state.try_get(2)?;
    let timeline = if in_recovery {
        state.try_get::<_, Option<i32>>(5)?.and_then(|timeline| u32::try_from(timeline).ok())
    } else {
        let name: String = client.query_one(TIMELINE, &[]).await?.try_get(0)?;
        u32::from_str_radix(&name, 16).ok()
    };
    let rights = client.query_one(RIGHTS, &[]).await?;
    let alter = match version_num {
        PARAMETER_RIGHTS_VERSION.. => Some(alter_rights(&client.query_one(ALTER_RIGHTS, &[]).await?)?),
        _ => None,
    };
    let names = client.query("SELECT name, setting FROM pg_settings WHERE name = ANY ($1)", &[&SETTINGS]).await?;
    let lock = match votes && version_num >= VERSION_VOTES {
        true => Some(take_lock(client).await.map_err(|e| refusal(&e))),
        false => None,
    };
    let settings: Result<HashMap<String, String>, _> =
        names.iter().map(|row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?))).collect();
    Ok(Facts {
        version_num,
        version: state.try_get(1)?,
        in_recovery,
        // PostgreSQL shows its unsigned number as a signed one.
        system_id: SystemId(state.try_get::<_, i64>(3)?.cast_unsigned()),
        timeline: timeline.map(TimelineId),
        receiver: state.try_get(4)?,
        rights: RightsHeld {
            superuser: rights.try_get(0)?,
            pg_monitor: rights.try_get(1)?,
            pg_signal_backend: rights.try_get(2)?,
            pg_promote: rights.try_get(3)?,
            pg_reload_conf: rights.try_get(4)?,
            replication: rights.try_get(5)?,
            alter,
        },
        settings: settings?,
        conninfo: state.try_get(6)?,
        slot: state.try_get(7)?,
        replication: None,
        lock,
        auth_query: None,
    })
}

fn alter_rights(row: &Row) -> Result<AlterRights, tokio_postgres::Error> {
    Ok(AlterRights {
        primary_conninfo: row.try_get(0)?,
        primary_slot_name: row.try_get(1)?,
        default_transaction_read_only: row.try_get(2)?,
        synchronous_standby_names: row.try_get(3)?,
    })
}

/// Whether a session may have and free an advisory lock, and be ended when it falls silent.
pub(super) async fn take_lock(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(LOCK).await
}

/// Logs in as the control plane does where it asks for a timeline's history.
async fn try_replication(config: &Config, node: &NodeConfig) -> Result<(), Refusal> {
    let cluster = &config.cluster;
    let password = &cluster.monitor_password;
    let login = Login {
        user: cluster.monitor_user.as_str().into(),
        database: cluster.monitor_database.as_str().into(),
        credential: match password.expose() {
            "" => NodeCredential::None,
            _ => NodeCredential::Password(NodePassword::new(password.clone())),
        },
        parameters: vec![("replication".to_owned(), "database".to_owned())],
    };
    let target = Target { host: node.host.as_str().into(), port: node.port, tls: NodeTls::new(&node.tls) };
    let connecting =
        backend::connect(NodeId(0), BackendId(0), &target, &login, 0, CONNECT_TIMEOUT, &Clock::machine()).await;
    connecting.map(drop).map_err(|error| match error {
        ConnectError::Rejected(rejection) => {
            Refusal { sqlstate: rejection.sqlstate.to_string(), message: rejection.message.to_string() }
        }
        other => Refusal { sqlstate: String::new(), message: other.to_string() },
    })
}

/// Runs `auth_query` for a name that nobody has: rights and columns show without anybody's secret.
async fn try_auth_query(config: &Config, node: &NodeConfig, query: &str) -> Result<(), Refusal> {
    let auth = &config.auth;
    let linked =
        connect(Server::of(node), &auth.auth_query_user, &auth.auth_query_password, &auth.auth_query_database).await;
    let (client, link) = linked.map_err(|reason| match reason {
        NoFacts::Refused(refusal) => refusal,
        NoFacts::Unreachable(message) => Refusal { sqlstate: String::new(), message },
        NoFacts::Silent => Refusal { sqlstate: String::new(), message: "no answer in time".to_owned() },
    })?;
    while_linked(link, run_auth_query(&client, query)).await
}

async fn run_auth_query(client: &Client, query: &str) -> Result<(), Refusal> {
    let statement = client.prepare(query).await.map_err(|e| refusal(&e))?;
    let own = |message| Err(Refusal { sqlstate: String::new(), message });
    let (columns, parameters) = (statement.columns().len(), statement.params().len());
    if parameters != 1 {
        return own(format!("it has {parameters} parameters, not 1"));
    }
    if !(2..=3).contains(&columns) {
        return own(format!("it returns {columns} columns, not 2 or 3"));
    }
    client.query(&statement, &[&""]).await.map(|_| ()).map_err(|e| refusal(&e))
}

pub(super) fn no_facts(error: tokio_postgres::Error) -> NoFacts {
    if error.as_db_error().is_some() {
        return NoFacts::Refused(refusal(&error));
    }
    NoFacts::Unreachable(cause(&error))
}

pub(super) fn refusal(error: &tokio_postgres::Error) -> Refusal {
    match error.as_db_error() {
        Some(db) => Refusal { sqlstate: db.code().code().to_owned(), message: db.message().to_owned() },
        None => Refusal { sqlstate: String::new(), message: cause(error) },
    }
}

/// The innermost cause: "Connection refused", not "error connecting to server".
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
