//! SHOW CONFIG: settings in use; for PgBouncer's clients, PgBouncer's names for them.
//!
//! Invariant: secrets are never shown. Absent on purpose: settings of PgBouncer's without a counterpart.

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, text};
use super::{Report, Show};
use crate::config::settings::Reload;
use crate::config::{Choice, Config};
use std::time::Duration;

pub(super) static CONFIG: Show = Show {
    name: "config",
    alias: None,
    doc: "Settings in use, their defaults, and whether RELOAD applies a change.",
    own: Some(Report { columns: COLUMNS, rows: own }),
    bouncer: Some(Report { columns: COLUMNS, rows: bouncer }),
};

const COLUMNS: &[super::Column] = &[text("key"), text("value"), text("default"), text("changeable")];

fn changeable(reload: Reload) -> Value {
    Value::from(if reload == Reload::Live { "yes" } else { "no" })
}

fn own(snapshot: &Snapshot) -> Vec<Row> {
    let row = |setting: crate::config::SettingInUse| {
        vec![
            Value::from(setting.key),
            Value::from(setting.value.to_string()),
            Value::from(setting.default),
            changeable(setting.reload),
        ]
    };
    snapshot.config.settings().into_iter().map(row).collect()
}

/// PgBouncer's name, our setting, and the value as PgBouncer writes it (times in seconds).
type Counterpart = (&'static str, &'static str, fn(&Config) -> String);

const COUNTERPARTS: &[Counterpart] = &[
    ("client_idle_timeout", "server.client_idle_timeout", |c| off(c.server.client_idle_timeout)),
    ("client_login_timeout", "server.login_timeout", |c| seconds(c.server.login_timeout)),
    ("default_pool_size", "pool.size", |c| c.pool.size.to_string()),
    ("idle_transaction_timeout", "pool.transaction_idle_timeout", |c| off(c.pool.transaction_idle_timeout)),
    ("listen_addr", "server.listen", |c| addresses(c)),
    ("listen_port", "server.listen", |c| c.server.listen.first().map_or(0, std::net::SocketAddr::port).to_string()),
    ("max_client_conn", "server.max_client_connections", |c| c.server.max_client_connections.to_string()),
    ("max_db_connections", "pool.node_budget", |c| c.pool.node_budget.to_string()),
    ("max_prepared_statements", "pool.prepared_statements_max", |c| c.pool.prepared_statements_max.to_string()),
    ("max_user_connections", "pool.size", |_| "0".to_owned()),
    ("min_pool_size", "pool.size", |_| "0".to_owned()),
    ("pool_mode", "pool.mode", |c| c.pool.mode.word().to_owned()),
    ("query_wait_timeout", "pool.queue_timeout", |c| seconds(c.pool.queue_timeout)),
    ("reserve_pool_size", "pool.size", |_| "0".to_owned()),
    ("server_connect_timeout", "pool.connect_timeout", |c| seconds(c.pool.connect_timeout)),
    ("server_idle_timeout", "pool.idle_timeout", |c| off(c.pool.idle_timeout)),
    ("server_lifetime", "pool.lifetime", |c| off(c.pool.lifetime)),
];

fn addresses(config: &Config) -> String {
    config.server.listen.iter().map(|listen| listen.ip().to_string()).collect::<Vec<_>>().join(",")
}

fn seconds(span: Duration) -> String {
    span.as_secs_f64().to_string()
}

fn off(span: Option<Duration>) -> String {
    seconds(span.unwrap_or_default())
}

fn bouncer(snapshot: &Snapshot) -> Vec<Row> {
    let known = snapshot.config.settings();
    let row = |(name, ours, value): &Counterpart| {
        let reload = known.iter().find(|setting| setting.key == *ours).map(|setting| setting.reload);
        vec![
            Value::from(*name),
            Value::from(value(&snapshot.config)),
            Value::Null,
            reload.map_or(Value::Null, changeable),
        ]
    };
    COUNTERPARTS.iter().map(row).collect()
}
