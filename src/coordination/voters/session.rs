//! One session to one voter: takes and frees its lock, reads what the voter says of itself.
//!
//! Invariants: the voter itself ends the session after a span of silence, by `idle_session_timeout`; nothing on
//! its side ends it earlier (keepalive settings are set for the session); what is read was read after the lock
//! was taken; a session whose question failed is closed. Absent on purpose: when to ask, and what it means (`core`).

use super::core::{Lock, View};
use crate::failover::conninfo::ConnInfo;
use crate::failover::event::Record;
use crate::failover::policy::NodePolicy;
use crate::ids::{Epoch, SystemId, TimelineId};
use crate::monitor::{Connector, incarnation_sql, timeline_sql};
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::{Client, Row, SimpleQueryMessage, Statement};
use tokio_util::task::AbortOnDropHandle;

/// Second key of the lock that decides, and of the mark of an operator's order.
const DECIDES: u32 = 1;
const ORDER: u32 = 2;
/// First PostgreSQL with `idle_session_timeout`.
const VERSION_MIN: i32 = 140_000;

/// Whether another session carries the mark of an order. `$1`: first key of the locks.
macro_rules! ordered_sql {
    () => {
        "EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.classid = $1::int8::oid \
          AND l.objid = 2 AND l.objsubid = 2 AND l.pid <> pg_backend_pid())"
    };
}

/// What a node is asked.
const NODE_SQL: &str = concat!(
    "SELECT r.recovering, current_setting('primary_conninfo') AS conninfo, s.system_identifier, ",
    timeline_sql!(),
    " AS timeline, (SELECT ",
    incarnation_sql!(),
    " FROM pg_stat_activity) AS incarnation, ",
    ordered_sql!(),
    " AS ordered FROM (SELECT pg_is_in_recovery() AS recovering OFFSET 0) r \
     CROSS JOIN pg_control_system() s LEFT JOIN pg_stat_wal_receiver w ON true"
);

/// What a witness is asked. `$2`: the cluster.
const WITNESS_SQL: &str = concat!(
    "SELECT r.primary_name, r.epoch, r.timeline, (SELECT ",
    incarnation_sql!(),
    " FROM pg_stat_activity) AS incarnation, ",
    ordered_sql!(),
    " AS ordered FROM (SELECT) one LEFT JOIN public.pgregent_register r ON r.cluster = $2"
);

const WITNESS_TABLE: &str = "CREATE TABLE IF NOT EXISTS public.pgregent_register \
 (cluster text PRIMARY KEY, primary_name text NOT NULL, epoch int8 NOT NULL, timeline int8 NOT NULL)";

/// Epochs on a witness never fall.
const WITNESS_RECORD: &str = "INSERT INTO public.pgregent_register (cluster, primary_name, epoch, timeline) \
 VALUES ($1, $2, $3, $4) ON CONFLICT (cluster) DO UPDATE \
 SET primary_name = excluded.primary_name, epoch = excluded.epoch, timeline = excluded.timeline \
 WHERE pgregent_register.epoch < excluded.epoch OR (pgregent_register.epoch = excluded.epoch \
        AND pgregent_register.primary_name = excluded.primary_name) RETURNING epoch";

/// Which voter a session leads to, and how to enter it.
#[derive(Clone, Debug)]
pub(super) struct VoterAt {
    pub(super) name: Arc<str>,
    pub(super) connector: Connector,
    pub(super) witness: bool,
}

/// What all sessions share.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) cluster: String,
    pub(super) span: Duration,
    /// To find out whom a connection string leads to.
    pub(super) nodes: Arc<[NodePolicy]>,
    pub(super) key: i32,
}

impl Common {
    /// The locks' first key, from the cluster's name (FNV-1a).
    pub(super) fn key_of(cluster: &str) -> i32 {
        let hash = cluster.bytes().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
        hash.cast_signed()
    }
}

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    connection: AbortOnDropHandle<()>,
    name: Arc<str>,
    view: Statement,
    witness: bool,
    pub(super) lock: Lock,
    ordering: bool,
}

/// Why a voter cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum VoterError {
    #[error("{0}")]
    Connect(String),
    #[error("PostgreSQL 14 or later is needed for a voter: older ones never end a silent session")]
    TooOld,
    #[error("{0}")]
    Query(#[from] tokio_postgres::Error),
    #[error("unexpected answer: {0}")]
    Answer(&'static str),
}

impl Session {
    pub(super) async fn open(at: &VoterAt, common: &Common) -> Result<Self, VoterError> {
        let held = at.connector.open(common.span).await.map_err(|e| VoterError::Connect(format!("{e:?}")))?;
        let (client, connection) = held.split();
        let version = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await?;
        if version.try_get::<_, i32>(0)? < VERSION_MIN {
            return Err(VoterError::TooOld);
        }
        // The end of a silent session is the voter's to call, after the span and not before.
        let span = common.span.as_millis();
        let keep = common.span.as_secs() * 10 + 10;
        client
            .batch_execute(&format!(
                "SET tcp_keepalives_idle = {keep}; SET tcp_user_timeout = '{keep}s'; SET idle_session_timeout = {span}"
            ))
            .await?;
        if at.witness {
            client.batch_execute(WITNESS_TABLE).await?;
        }
        let view = client.prepare(if at.witness { WITNESS_SQL } else { NODE_SQL }).await?;
        let (name, witness) = (Arc::clone(&at.name), at.witness);
        Ok(Self { client, connection, name, view, witness, lock: Lock::None, ordering: false })
    }

    /// Waits until the session has ended. Cancel-safe.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.connection).await;
    }

    /// Brings the lock to `lock` as far as it is granted at once, then reads the view; also the connection string.
    pub(super) async fn ask(
        &mut self,
        lock: Lock,
        order: bool,
        common: &Common,
    ) -> Result<(View, Option<String>), VoterError> {
        self.change_locks(lock, order, common.key).await?;
        let key = i64::from(common.key.cast_unsigned());
        if self.witness {
            let row = self.client.query_one(&self.view, &[&key, &common.cluster]).await?;
            return Ok((self.witness_view(&row)?, None));
        }
        let row = self.client.query_one(&self.view, &[&key]).await?;
        let conninfo: Option<String> = row.try_get("conninfo")?;
        Ok((self.node_view(&row, conninfo.as_deref(), common)?, conninfo))
    }

    async fn change_locks(&mut self, lock: Lock, order: bool, key: i32) -> Result<(), VoterError> {
        let call = |function: &str, which: u32| format!("SELECT pg_{function}({key}, {which})");
        let mut calls = Vec::new();
        if order != self.ordering {
            calls.push(call(if order { "try_advisory_lock" } else { "advisory_unlock" }, ORDER));
        }
        match (self.lock, lock) {
            (Lock::Shared, Lock::None) => calls.push(call("advisory_unlock_shared", DECIDES)),
            (Lock::Exclusive, Lock::None) => calls.push(call("advisory_unlock", DECIDES)),
            (Lock::Exclusive, Lock::Shared) => {
                // Its own shared lock is granted beside its exclusive one, so that nobody comes in between.
                calls.push(call("try_advisory_lock_shared", DECIDES));
                calls.push(call("advisory_unlock", DECIDES));
            }
            (Lock::Shared, Lock::Exclusive) => {
                calls.push(call("advisory_unlock_shared", DECIDES));
                calls.push(call("try_advisory_lock", DECIDES));
            }
            (Lock::None, Lock::Shared) => calls.push(call("try_advisory_lock_shared", DECIDES)),
            (Lock::None, Lock::Exclusive) => calls.push(call("try_advisory_lock", DECIDES)),
            (Lock::None, Lock::None) | (Lock::Shared, Lock::Shared) | (Lock::Exclusive, Lock::Exclusive) => {}
        }
        if calls.is_empty() {
            return Ok(());
        }
        let answers = self.client.simple_query(&calls.join("; ")).await?;
        let mut granted = answers.iter().filter_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("t")),
            _ => None,
        });
        if order != self.ordering {
            // A mark that another proxy has already set is as good as ours.
            self.ordering = order && granted.next().ok_or(VoterError::Answer("no row for the mark"))?;
        }
        if lock != self.lock {
            let first = granted.next().ok_or(VoterError::Answer("no row for the lock"))?;
            let got = if self.lock == Lock::Shared && lock == Lock::Exclusive { granted.next() } else { Some(first) };
            let got = got.ok_or(VoterError::Answer("no row for the lock"))?;
            self.lock = if got || lock == Lock::None { lock } else { Lock::None };
        }
        Ok(())
    }

    fn node_view(&self, row: &Row, conninfo: Option<&str>, common: &Common) -> Result<View, VoterError> {
        let recovering: bool = row.try_get("recovering")?;
        let timeline = row.try_get::<_, Option<i32>>("timeline")?.unwrap_or(0).cast_unsigned();
        // A string that cannot be read leads to nobody that is configured.
        let conninfo = conninfo.and_then(|text| ConnInfo::parse(text).ok()).unwrap_or_default();
        let named =
            |name: &str| common.nodes.iter().find(|node| &*node.name == name).map(|node| Arc::clone(&node.name));
        let leads_to = || {
            let (host, port) = conninfo.upstream()?;
            let address = format!("{host}:{port}").to_lowercase();
            common.nodes.iter().find(|node| node.addresses.contains(&address)).map(|node| Arc::clone(&node.name))
        };
        let allegiance = if recovering { leads_to() } else { Some(Arc::clone(&self.name)) };
        Ok(View {
            follows: recovering,
            pending: recovering && allegiance.as_ref() == Some(&self.name),
            allegiance,
            epoch: conninfo.epoch().max(Epoch(u64::from(timeline))),
            timeline: TimelineId(timeline),
            least_timeline: conninfo.least_timeline(),
            left: conninfo.left().filter(|_| recovering).and_then(named),
            system_id: Some(SystemId(row.try_get::<_, i64>("system_identifier")?.cast_unsigned())),
            incarnation: incarnation(row)?,
            ordered: row.try_get("ordered")?,
        })
    }

    fn witness_view(&self, row: &Row) -> Result<View, VoterError> {
        let least = row.try_get::<_, Option<i64>>("timeline")?.unwrap_or(0);
        let least = u32::try_from(least).map_err(|_| VoterError::Answer("the timeline recorded there is none"))?;
        Ok(View {
            allegiance: row.try_get::<_, Option<String>>("primary_name")?.map(Into::into),
            epoch: Epoch(row.try_get::<_, Option<i64>>("epoch")?.unwrap_or(0).cast_unsigned()),
            timeline: TimelineId(0),
            least_timeline: TimelineId(least),
            left: None,
            system_id: None,
            follows: true,
            pending: false,
            incarnation: incarnation(row)?,
            ordered: row.try_get("ordered")?,
        })
    }
}

fn incarnation(row: &Row) -> Result<i64, VoterError> {
    let missing = VoterError::Answer("the monitor role may not read pg_stat_activity: GRANT pg_monitor TO it");
    row.try_get::<_, Option<i64>>("incarnation")?.ok_or(missing)
}

/// Records a primary on a witness, over the session that holds its lock.
pub(super) async fn record_on_witness(client: &Client, cluster: &str, record: &Record) -> Result<(), VoterError> {
    let (epoch, timeline) = (record.epoch.0.cast_signed(), i64::from(record.least_timeline().0));
    let rows = client.query(WITNESS_RECORD, &[&cluster, &record.primary, &epoch, &timeline]).await?;
    if rows.is_empty() {
        Err(VoterError::Answer("another primary of this epoch, or a higher one, is recorded there"))
    } else {
        Ok(())
    }
}
