//! SHOW POOLS: per node here, per (database, user) as PgBouncer does.
//!
//! Invariants: a pool that has clients but no backend yet is there too. Absent on purpose: states that
//! do not exist here (`sv_used`, `sv_tested`: idle backends are looked at without a query).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int4, int8, text};
use super::{Report, Show};
use crate::client::{ClientKind, ClientView};
use crate::config::Choice;
use crate::pool::PoolStats;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) static POOLS: Show = Show {
    name: "pools",
    alias: None,
    doc: "Backends and waiting sessions per pool.",
    own: Some(Report {
        columns: &[
            text("node"),
            text("database"),
            text("user"),
            int8("idle"),
            int8("active"),
            int8("connecting"),
            int8("waiting"),
            int8("size"),
        ],
        rows: own,
    }),
    bouncer: Some(Report {
        columns: &[
            text("database"),
            text("user"),
            int4("cl_active"),
            int4("cl_waiting"),
            int4("cl_active_cancel_req"),
            int4("cl_waiting_cancel_req"),
            int4("sv_active"),
            int4("sv_active_cancel"),
            int4("sv_being_canceled"),
            int4("sv_idle"),
            int4("sv_used"),
            int4("sv_tested"),
            int4("sv_login"),
            int4("maxwait"),
            int4("maxwait_us"),
            text("pool_mode"),
            text("load_balance_hosts"),
        ],
        rows: bouncer,
    }),
};

fn own(snapshot: &Snapshot) -> Vec<Row> {
    let pools = snapshot.pools.iter().map(|(key, stats)| {
        vec![
            Value::from(snapshot.node_name(key.node)),
            Value::from(&*key.database),
            Value::from(&*key.user),
            Value::from(stats.idle),
            Value::from(stats.active),
            Value::from(stats.connecting),
            Value::from(stats.waiting),
            Value::from(snapshot.config.pool.size),
        ]
    });
    pools.collect()
}

/// What PgBouncer calls a pool.
#[derive(Debug, Default)]
struct Pool {
    active: u64,
    waiting: u64,
    waited: Duration,
    backends: PoolStats,
}

fn bouncer(snapshot: &Snapshot) -> Vec<Row> {
    let mut pools: BTreeMap<(&str, &str), Pool> = BTreeMap::new();
    for (key, stats) in &snapshot.pools {
        let backends = &mut pools.entry((&*key.database, &*key.user)).or_default().backends;
        backends.idle += stats.idle;
        backends.active += stats.active;
        backends.connecting += stats.connecting;
    }
    let sessions = |client: &&ClientView| client.identity.kind == ClientKind::Session;
    for client in snapshot.clients.iter().filter(sessions) {
        let pool = pools.entry((&*client.identity.database, &*client.identity.user)).or_default();
        match client.waiting {
            Some(since) => {
                pool.waiting += 1;
                pool.waited = pool.waited.max(snapshot.now.since(since));
            }
            None => pool.active += 1,
        }
    }
    let mode = snapshot.config.pool.mode.word();
    let row = |((database, user), pool): ((&str, &str), Pool)| {
        vec![
            Value::from(database),
            Value::from(user),
            Value::from(pool.active),
            Value::from(pool.waiting),
            Value::from(0),
            Value::from(0),
            Value::from(pool.backends.active),
            Value::from(0),
            Value::from(0),
            Value::from(pool.backends.idle),
            Value::from(0),
            Value::from(0),
            Value::from(pool.backends.connecting),
            Value::from(pool.waited.as_secs()),
            Value::from(u64::from(pool.waited.subsec_micros())),
            Value::from(mode),
            Value::Null,
        ]
    };
    pools.into_iter().map(row).collect()
}
