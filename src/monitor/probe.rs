//! The probe: one query that brings everything a decision needs.
//!
//! Invariants: one round trip on a prepared statement; runs on PostgreSQL 13 to 18, on a primary and on a
//! standby, for a role with pg_monitor; `sent_at` is taken before the query leaves. Absent on
//! purpose: judgement.

use super::connect::classify;
use crate::clock::{Clock, Time};
use crate::ids::{Lsn, SystemId, TimelineId};
use crate::topology::{
    Ancestry, NodeReport, PendingWrite, ProbeFailure, ReadOnly, ReceiverView, SYNC_NAMES_BYTES_MAX, SYNC_STANDBYS_MAX,
    SyncStandby, SyncState, SyncView,
};
use std::time::Duration;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row, Statement};

/// A node's timeline, beside `pg_stat_wal_receiver w` and `r.recovering`. A primary's is that of the WAL file being
/// written, because right after a promotion the control file still holds the old one. A standby's is the highest
/// of what it receives, what its last restart point was on and what it has replayed to; without a receiver also of the WAL
/// files that it has, since a standby that restarted while its upstream was gone knows no better.
macro_rules! timeline_sql {
    () => {
        "CASE WHEN r.recovering THEN greatest(w.received_tli, (pg_control_checkpoint()).timeline_id, \
               (pg_control_recovery()).min_recovery_end_timeline, \
               CASE WHEN w.received_tli IS NULL THEN (SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) \
                    FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$') END) \
              ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END"
    };
}
pub(crate) use timeline_sql;

/// A node's incarnation, over `pg_stat_activity`; NULL for a role that may not see it.
macro_rules! incarnation_sql {
    () => {
        "min((extract(epoch FROM backend_start) * 1000000)::int8) FILTER (WHERE backend_type = 'checkpointer')"
    };
}
pub(crate) use incarnation_sql;

/// Role first and once (`OFFSET 0` keeps it apart), so that all columns speak of the same role. A standby's flushed
/// position is at least what it has replayed: after a restart without an upstream the other is where its segment begins.
pub const PROBE_SQL: &str = concat!(
    "SELECT s.system_identifier, r.recovering, ",
    timeline_sql!(),
    " AS timeline, \
 CASE WHEN r.recovering THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
      ELSE pg_current_wal_flush_lsn() END AS flush_lsn, \
 CASE WHEN r.recovering THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS replay_lsn, \
 CASE WHEN r.recovering THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused, \
 w.status, w.sender_host, w.sender_port, \
 (extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) * 1000)::float8 AS message_age_ms, \
 a.incarnation, a.pending_ms, a.pending_wait, \
 (pg_control_checkpoint()).redo_lsn AS redo_lsn, current_setting('server_version_num')::int AS version_num, \
 current_setting('synchronous_standby_names') AS sync_names, \
 CASE WHEN current_setting('default_transaction_read_only') = 'on' AND (SELECT sourcefile FROM pg_settings \
           WHERE name = 'default_transaction_read_only') LIKE '%/postgresql.auto.conf' \
      THEN current_setting('primary_conninfo') LIKE '%pgregent.fenced=1%' END AS fenced, p.applications, p.states, p.sync_states, p.flushed \
FROM (SELECT pg_is_in_recovery() AS recovering OFFSET 0) r \
CROSS JOIN pg_control_system() s LEFT JOIN pg_stat_wal_receiver w ON true \
CROSS JOIN (SELECT ",
    incarnation_sql!(),
    " AS incarnation, \
   max((extract(epoch FROM clock_timestamp() - query_start) * 1000)::float8) FILTER (WHERE mine) AS pending_ms, \
   (array_agg(wait_event_type || ':' || wait_event ORDER BY query_start) FILTER (WHERE mine))[1] AS pending_wait \
   FROM (SELECT *, usename = current_user AND state = 'active' \
                   AND application_name = 'pgregent write probe' AS mine FROM pg_stat_activity) b) a \
CROSS JOIN (SELECT array_agg(application_name) AS applications, array_agg(state) AS states, \
   array_agg(sync_state) AS sync_states, array_agg(flush_lsn) AS flushed \
   FROM (SELECT * FROM pg_stat_replication LIMIT 64) b) p"
);

/// How sessions of the write probe call themselves; [`PROBE_SQL`] looks for it.
pub(super) const WRITE_PROBE_NAME: &str = "pgregent write probe";

/// Age reported when the receiver has not said when it last heard anything.
const AGE_UNKNOWN: Duration = Duration::MAX;

/// Asks once. The caller sets the time limit.
///
/// # Errors
/// What kept the node from answering; an answer that makes no sense is `Rejected`.
pub async fn ask(client: &Client, statement: &Statement, clock: &Clock) -> Result<NodeReport, ProbeFailure> {
    let mut sent_at = clock.now();
    let mut answer = client.query_one(statement, &[]).await;
    // A node that leaves recovery while it answers says 55000 once ("recovery is not in progress").
    if answer.as_ref().is_err_and(|e| e.code().is_some_and(|code| code.code() == "55000")) {
        sent_at = clock.now();
        answer = client.query_one(statement, &[]).await;
    }
    let row = answer.map_err(|e| classify(&e))?;
    read(&row, sent_at)
}

fn read(row: &Row, sent_at: Time) -> Result<NodeReport, ProbeFailure> {
    let report = columns(row, sent_at).map_err(|e| ProbeFailure::Rejected(format!("unexpected probe answer: {e}")))?;
    report.ok_or_else(|| {
        ProbeFailure::Rejected("the monitor role may not read pg_stat_activity: GRANT pg_monitor TO it".to_owned())
    })
}

fn columns(row: &Row, sent_at: Time) -> Result<Option<NodeReport>, tokio_postgres::Error> {
    let Some(incarnation) = row.try_get::<_, Option<i64>>("incarnation")? else { return Ok(None) };
    let lsn = |name: &str| row.try_get::<_, Option<PgLsn>>(name);
    Ok(Some(NodeReport {
        sent_at,
        system_id: SystemId(row.try_get::<_, i64>("system_identifier")?.cast_unsigned()),
        in_recovery: row.try_get("recovering")?,
        timeline: TimelineId(row.try_get::<_, Option<i32>>("timeline")?.unwrap_or(0).cast_unsigned()),
        flush_lsn: lsn("flush_lsn")?.map_or(Lsn(0), |l| Lsn(l.into())),
        replay_lsn: lsn("replay_lsn")?.map_or(Lsn(0), |l| Lsn(l.into())),
        replay_paused: row.try_get("replay_paused")?,
        receiver: receiver(row)?,
        incarnation,
        redo_lsn: lsn("redo_lsn")?.map_or(Lsn(0), |l| Lsn(l.into())),
        version_num: row.try_get::<_, i32>("version_num")?.cast_unsigned(),
        sync: sync(row)?,
        pending_write: pending_write(row)?,
        read_only: match row.try_get::<_, Option<bool>>("fenced")? {
            None => ReadOnly::No,
            Some(false) => ReadOnly::Set,
            Some(true) => ReadOnly::Fenced,
        },
        ancestry: Ancestry::Unknown,
    }))
}

fn pending_write(row: &Row) -> Result<Option<PendingWrite>, tokio_postgres::Error> {
    let Some(age) = row.try_get::<_, Option<f64>>("pending_ms")? else { return Ok(None) };
    let age = Duration::try_from_secs_f64(age.max(0.0) / 1000.0).unwrap_or_default();
    Ok(Some(PendingWrite { age, wait: row.try_get::<_, Option<String>>("pending_wait")?.unwrap_or_default() }))
}

/// `None` when not all of it can be had.
fn sync(row: &Row) -> Result<Option<SyncView>, tokio_postgres::Error> {
    let standby_names = row.try_get::<_, String>("sync_names")?;
    let texts = |name: &str| row.try_get::<_, Option<Vec<Option<String>>>>(name).map(Option::unwrap_or_default);
    let (applications, states, sync_states) = (texts("applications")?, texts("states")?, texts("sync_states")?);
    let flushed = row.try_get::<_, Option<Vec<Option<PgLsn>>>>("flushed")?.unwrap_or_default();
    if standby_names.len() > SYNC_NAMES_BYTES_MAX || applications.len() >= SYNC_STANDBYS_MAX {
        return Ok(None);
    }
    let rows = applications.into_iter().zip(states).zip(sync_states).zip(flushed);
    let standbys = rows.map(|(((application, state), sync_state), flushed)| {
        Some(SyncStandby {
            application_name: application?,
            streaming: state? == "streaming",
            sync_state: sync_state_of(&sync_state?)?,
            flush_lsn: flushed.map(|lsn| Lsn(lsn.into())),
        })
    });
    Ok(standbys.collect::<Option<Vec<_>>>().map(|standbys| SyncView { standby_names, standbys }))
}

fn sync_state_of(word: &str) -> Option<SyncState> {
    match word {
        "async" => Some(SyncState::Async),
        "potential" => Some(SyncState::Potential),
        "sync" => Some(SyncState::Sync),
        "quorum" => Some(SyncState::Quorum),
        _ => None,
    }
}

fn receiver(row: &Row) -> Result<Option<ReceiverView>, tokio_postgres::Error> {
    let Some(status) = row.try_get::<_, Option<String>>("status")? else { return Ok(None) };
    let host = row.try_get::<_, Option<String>>("sender_host")?.unwrap_or_default();
    let port = row.try_get::<_, Option<i32>>("sender_port")?.unwrap_or_default();
    let age = row.try_get::<_, Option<f64>>("message_age_ms")?;
    let last_message_age =
        age.map_or(AGE_UNKNOWN, |ms| Duration::try_from_secs_f64(ms.max(0.0) / 1000.0).unwrap_or(AGE_UNKNOWN));
    Ok(Some(ReceiverView { streaming: status == "streaming", upstream: format!("{host}:{port}"), last_message_age }))
}
