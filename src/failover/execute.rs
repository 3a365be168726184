//! Carries out actions on nodes: detach, promote, repoint, fence by SQL, name synchronous standbys.
//!
//! Invariants: every action has a deadline and is idempotent; an action of an older epoch than one
//! already begun is refused, and a promotion checks that again as the last thing before it asks; what
//! a standby was told to stream from is remembered on disk before it is emptied; a connection goes
//! back to its pool only after a clean answer. Absent on purpose: decisions, retries, and superuser
//! rights (PostgreSQL 15 and later; see the GRANTs in the manual).
//!
//! How PostgreSQL is asked, and why every poll nudges: docs/decisions/0002-promotion-latency.md.

mod file;
mod kept;
mod ready;
mod remembered;
mod session;
mod settings;

use kept::Kept;
use remembered::Remembered;
use session::NodeSession;

use super::conninfo::{BadConnInfo, ConnInfo, sql_literal};
use super::event::Outcome;
use super::policy::RECONNECT_SPAN;
use super::promise::Promise;
use crate::config::{Config, NodeConfig};
use crate::coordination::StoreError;
use crate::coordination::voters::core::Lock;
use crate::coordination::voters::{Chooser, LockSessions};
use crate::ids::{Epoch, Lsn, NodeId, TimelineId};
use crate::monitor::Connector;
use deadpool_postgres::Pool;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_postgres::types::PgLsn;

/// How long a detach may take; it takes some 50 ms, and a failover waits for the slowest.
pub const DETACH_LIMIT: Duration = Duration::from_secs(2);
/// How long writing whom a node follows may take; it takes some 20 ms.
pub const CHOOSE_LIMIT: Duration = Duration::from_secs(2);
/// How long a repoint may take until the standby streams; it takes some 40 ms.
pub const REPOINT_LIMIT: Duration = Duration::from_secs(10);
/// How long another node is asked for its connection string, when none is remembered.
const TEMPLATE_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two looks at a node that is changing.
const POLL: Duration = Duration::from_millis(10);
/// Looks between two nudges.
const POLLS_PER_NUDGE: u32 = 10;
/// Looks in a row that must find no receiver: one may be just between two attempts.
const POLLS_GONE: u32 = 2;

/// Performs actions. Shared by the tasks that wait for them.
#[derive(Debug)]
pub struct Executor {
    nodes: Vec<(NodeConfig, Pool)>,
    remembered: Remembered,
    kept: Kept,
    /// The sessions that hold the nodes' locks, where several proxies share a store of voters.
    locks: Option<Arc<LockSessions>>,
    /// The highest epoch of any action begun.
    epoch: AtomicU64,
    promote_limit: Duration,
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
enum ActError {
    #[error("an action of epoch {0} had already begun, or it is recorded there")]
    Stale(Epoch),
    #[error("no such node")]
    NoNode,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("{0}")]
    Query(String),
    #[error("{0}")]
    ConnInfo(#[from] BadConnInfo),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("its lock is not held by this proxy")]
    NoLock,
    #[error("it was chosen before and may still be promoted: if that lasts, rewind or rebuild it")]
    Pending,
    #[error("it does not stream")]
    NotStreaming,
    #[error("the node is not in recovery")]
    NotInRecovery,
    #[error("the node is in recovery")]
    InRecovery,
    #[error("pg_promote() could not signal the postmaster")]
    NotSignalled,
    #[error("no connection string for it is known: its own is empty, none is remembered, and no other standby has one")]
    NoTemplate,
    #[error(
        "its replication slot {slot:?} is missing on the new upstream, and the monitor role may neither create it \
         (needs the REPLICATION attribute) nor clear primary_slot_name (needs GRANT ALTER SYSTEM ON PARAMETER): {cause}"
    )]
    Slot { slot: String, cause: String },
}

impl Executor {
    /// Opens no connection yet; reads what was remembered from the state directory.
    ///
    /// # Errors
    /// When a file of what was remembered or kept cannot be read.
    pub fn new(config: &Config, locks: Option<Arc<LockSessions>>) -> Result<Self, StoreError> {
        let nodes = config.nodes.iter().enumerate().map(|(index, node)| {
            let id = NodeId(u16::try_from(index).unwrap_or(u16::MAX));
            (node.clone(), session::pool(&Connector::new(config, id)))
        });
        Ok(Self {
            nodes: nodes.collect(),
            remembered: Remembered::open(&config.cluster.state_dir, &config.cluster.name)?,
            kept: Kept::open(&config.cluster.state_dir, &config.cluster.name)?,
            locks,
            epoch: AtomicU64::new(0),
            promote_limit: config.cluster.promote_timeout,
        })
    }

    /// What was kept when this proxy last ran.
    #[must_use]
    pub fn promised(&self) -> Option<Promise> {
        self.kept.newest()
    }

    /// Keeps this for the next start; it is on disk when the future ends.
    pub fn keep(self: &Arc<Self>, promise: Promise) -> impl Future<Output = ()> + Send + use<> {
        self.kept.replace(promise);
        let executor = Arc::clone(self);
        async move {
            if let Err(error) = executor.kept.write().await {
                tracing::warn!(%error, "what commits wait for could not be kept for the next start");
            }
        }
    }

    /// Stops a standby's WAL receiver and reads how far it got.
    pub async fn detach(&self, node: NodeId, epoch: Epoch) -> Outcome {
        let work = async {
            let (flush_lsn, replay_lsn) = self.try_detach(node, epoch).await?;
            Ok(Outcome::Detached { flush_lsn, replay_lsn })
        };
        bounded(DETACH_LIMIT, work).await
    }

    /// Promotes a standby and waits until it has left recovery.
    pub async fn promote(&self, node: NodeId, epoch: Epoch) -> Outcome {
        bounded(self.promote_limit, async { self.try_promote(node, epoch).await.map(|()| Outcome::Done) }).await
    }

    /// Lets a standby stream from `upstream` and waits until it does.
    pub async fn repoint(&self, node: NodeId, upstream: NodeId, epoch: Epoch, timeline: TimelineId) -> Outcome {
        let work = async { self.try_repoint(node, upstream, epoch, timeline).await.map(|()| Outcome::Done) };
        bounded(REPOINT_LIMIT, work).await
    }

    /// Lets a standby's receiver connect anew to its upstream, and waits until it streams.
    pub async fn reconnect(&self, node: NodeId, epoch: Epoch) -> Outcome {
        bounded(RECONNECT_SPAN, async { self.try_reconnect(node, epoch).await.map(|()| Outcome::Done) }).await
    }

    async fn try_reconnect(&self, node: NodeId, epoch: Epoch) -> Result<(), ActError> {
        self.admit(epoch)?;
        let session = self.acting(node, Lock::Shared).await?;
        let receiver = "SELECT coalesce((SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'), 0)";
        let before = session.number(receiver).await?;
        let current = session.text("SELECT current_setting('primary_conninfo')").await?;
        if current.is_empty() || before == 0 {
            return Err(ActError::NotStreaming);
        }
        // A changed string makes the startup process begin anew; nothing but a word that nobody reads changes.
        let wanted = ConnInfo::parse(&current)?.asked_again().to_string();
        self.admit(epoch)?;
        session.set_conninfo(&wanted).await?;
        session.reload().await?;
        let mut polls = 0;
        loop {
            polls = session.wait_a_little(polls).await?;
            let now = session.number(receiver).await?;
            if now != 0 && now != before {
                break;
            }
        }
        session.release();
        Ok(())
    }

    async fn try_detach(&self, node: NodeId, epoch: Epoch) -> Result<(Lsn, Lsn), ActError> {
        self.admit(epoch)?;
        let name = self.node(node)?.0.name.clone();
        let session = self.acting(node, Lock::Exclusive).await?;
        if !session.flag("SELECT pg_is_in_recovery()").await? {
            return Err(ActError::NotInRecovery);
        }
        let conninfo = session.text("SELECT current_setting('primary_conninfo')").await?;
        if self.locks.is_some() && self.names(node, &conninfo) {
            // Chosen already: it receives from nobody, and that it was chosen must not be forgotten.
            return session.positions().await;
        }
        let still = self.standing_still(&conninfo);
        if conninfo != still {
            self.remembered.remember(&name, &conninfo).await?;
            self.admit(epoch)?;
            session.set_conninfo(&still).await?;
        }
        session.reload().await?;
        let (mut gone, mut polls) = (0, 0);
        while gone < POLLS_GONE {
            polls = session.wait_a_little(polls).await?;
            // The process list, not pg_stat_wal_receiver, which hides a receiver that is still connecting.
            let running = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')";
            gone = if session.flag(running).await? { 0 } else { gone + 1 };
        }
        let positions = session.positions().await?;
        session.release();
        Ok(positions)
    }

    /// The string by which a standby receives nothing. Voters must not forget the epoch that is in theirs, or the number
    /// is given out again. Nothing but an epoch is worth an attempt to connect every now and then.
    fn standing_still(&self, conninfo: &str) -> String {
        let parsed = ConnInfo::parse(conninfo).ok();
        let Some(kept) = parsed.filter(|parsed| self.locks.is_some() && parsed.epoch() > Epoch(0)) else {
            return String::new();
        };
        let left = self.nodes.iter().find(|(node, _)| leads_to(node, &kept)).map(|(node, _)| &*node.name);
        kept.leading_nowhere(left).to_string()
    }

    async fn try_promote(&self, node: NodeId, epoch: Epoch) -> Result<(), ActError> {
        self.admit(epoch)?;
        let session = self.acting(node, Lock::Exclusive).await?;
        if session.flag("SELECT pg_is_in_recovery()").await? {
            // The last gate: nothing of a newer epoch may have begun while we connected.
            self.admit(epoch)?;
            if !session.flag("SELECT pg_promote(false)").await? {
                return Err(ActError::NotSignalled);
            }
            let mut polls = 0;
            while session.flag("SELECT pg_is_in_recovery()").await? {
                polls = session.wait_a_little(polls).await?;
            }
        }
        session.release();
        Ok(())
    }

    async fn try_repoint(
        &self,
        node: NodeId,
        upstream: NodeId,
        epoch: Epoch,
        timeline: TimelineId,
    ) -> Result<(), ActError> {
        self.admit(epoch)?;
        let name = self.node(node)?.0.name.clone();
        let to = &self.node(upstream)?.0;
        let (host, port) = (to.replication_host.as_str(), to.replication_port);
        let session = self.acting(node, Lock::Shared).await?;
        if !session.flag("SELECT pg_is_in_recovery()").await? {
            return Err(ActError::NotInRecovery);
        }
        self.provide_slot(&session, upstream).await?;
        let current = session.text("SELECT current_setting('primary_conninfo')").await?;
        if self.locks.is_some() && node != upstream && self.names(node, &current) {
            return Err(ActError::Pending);
        }
        let recorded = ConnInfo::parse(&current).map_or(Epoch(0), |conninfo| conninfo.epoch());
        if self.locks.is_some() && recorded > epoch {
            return Err(ActError::Stale(recorded));
        }
        let wanted = self.wanted(node, upstream, (epoch, timeline), &current).await?;
        if wanted != current {
            self.admit(epoch)?;
            session.set_conninfo(&wanted).await?;
        }
        session.reload().await?;
        let mut polls = 0;
        while !session.streams_from(host, port).await? {
            polls = session.wait_a_little(polls).await?;
        }
        session.release();
        self.remembered.remember(&name, &wanted).await?;
        Ok(())
    }

    /// Writes into a node whom it follows from now on; see `coordination::voters`.
    async fn try_choose(
        &self,
        node: NodeId,
        primary: NodeId,
        epoch: Epoch,
        timeline: TimelineId,
    ) -> Result<(), ActError> {
        self.admit(epoch)?;
        let session = self.acting(node, Lock::Exclusive).await?;
        let recovering = session.flag("SELECT pg_is_in_recovery()").await?;
        if !recovering && node != primary {
            return Err(ActError::NotInRecovery);
        }
        let current = session.text("SELECT current_setting('primary_conninfo')").await?;
        if !recovering {
            // It uses no string; but its own keeps the epoch, also where pg_rewind copies it to another node.
            if let Ok(wanted) = self.wanted(node, primary, (epoch, timeline), &current).await
                && wanted != current
            {
                self.admit(epoch)?;
                session.set_conninfo(&wanted).await?;
                session.reload().await?;
            }
            return Ok(());
        }
        if node != primary && self.names(node, &current) {
            return Err(ActError::Pending);
        }
        let wanted = self.wanted(node, primary, (epoch, timeline), &current).await?;
        if wanted == current {
            return Ok(());
        }
        let recorded = ConnInfo::parse(&current).map_or(Epoch(0), |conninfo| conninfo.epoch());
        if recorded > epoch || (recorded == epoch && !self.names(primary, &current)) {
            return Err(ActError::Stale(recorded));
        }
        if node != primary {
            self.provide_slot(&session, primary).await?;
        }
        self.admit(epoch)?;
        session.set_conninfo(&wanted).await?;
        session.reload().await?;
        let mut polls = 0;
        while session.text("SELECT current_setting('primary_conninfo')").await? != wanted {
            polls = session.wait_a_little(polls).await?;
        }
        Ok(())
    }

    /// The connection string by which `node` follows `upstream` in an epoch of which at least this timeline is known.
    async fn wanted(
        &self,
        node: NodeId,
        upstream: NodeId,
        (epoch, timeline): (Epoch, TimelineId),
        current: &str,
    ) -> Result<String, ActError> {
        let to = &self.node(upstream)?.0;
        let template = self.template(node, current).await?.fenced(false);
        let wanted = template.leading_to(&to.replication_host, to.replication_port);
        // Only voters read it; with a store of its own a proxy leaves the string as it was.
        Ok(if self.locks.is_some() { wanted.of_epoch(epoch, timeline) } else { wanted }.to_string())
    }

    /// Whether a connection string leads to this very node.
    fn names(&self, node: NodeId, conninfo: &str) -> bool {
        let Ok(conninfo) = ConnInfo::parse(conninfo) else { return false };
        self.node(node).is_ok_and(|(own, _)| leads_to(own, &conninfo))
    }

    /// Sees to it that the standby's slot, if it uses one, exists on its new upstream; a standby that
    /// names a missing slot cannot stream at all.
    async fn provide_slot(&self, standby: &NodeSession, upstream: NodeId) -> Result<(), ActError> {
        let slot = standby.text("SELECT current_setting('primary_slot_name')").await?;
        if slot.is_empty() {
            return Ok(());
        }
        let session = self.acting(upstream, Lock::Shared).await?;
        let made = session.make_slot(&slot).await;
        session.release();
        let Err(cause) = made else { return Ok(()) };
        tracing::warn!(%slot, %cause, "cannot create the replication slot on the new upstream; streaming without a slot");
        let cleared = standby.run("ALTER SYSTEM SET primary_slot_name = ''").await;
        cleared.map_err(|_| ActError::Slot { slot, cause: cause.to_string() })
    }

    /// The connection string to change: the standby's own, or the remembered one (a restart of ours
    /// between detach and repoint), or another standby's.
    async fn template(&self, node: NodeId, current: &str) -> Result<ConnInfo, ActError> {
        let name = &self.node(node)?.0.name;
        // One that leads nowhere holds nothing but marks.
        let current = ConnInfo::parse(current)?;
        if current.upstream().is_some() {
            return Ok(current);
        }
        if let Some(own) = self.remembered.recall(name) {
            return Ok(ConnInfo::parse(&own)?);
        }
        for (index, (other, _)) in self.nodes.iter().enumerate() {
            let id = NodeId(u16::try_from(index).unwrap_or(u16::MAX));
            if id == node {
                continue;
            }
            let found = match self.remembered.recall(&other.name) {
                Some(found) => found,
                None => tokio::time::timeout(TEMPLATE_LIMIT, self.ask_conninfo(id))
                    .await
                    .unwrap_or(Ok(String::new()))
                    .unwrap_or_default(),
            };
            if !found.is_empty() {
                return Ok(ConnInfo::parse(&found)?.named(&self.node(node)?.0.application_name));
            }
        }
        Err(ActError::NoTemplate)
    }

    async fn ask_conninfo(&self, node: NodeId) -> Result<String, ActError> {
        let session = self.session(node).await?;
        let found = session.text("SELECT current_setting('primary_conninfo')").await?;
        session.release();
        Ok(found)
    }

    /// Refuses an action of an older epoch than one that has begun.
    fn admit(&self, epoch: Epoch) -> Result<(), ActError> {
        let newest = Epoch(self.epoch.fetch_max(epoch.0, Ordering::SeqCst));
        if newest > epoch { Err(ActError::Stale(newest)) } else { Ok(()) }
    }

    fn node(&self, node: NodeId) -> Result<&(NodeConfig, Pool), ActError> {
        self.nodes.get(node.index()).ok_or(ActError::NoNode)
    }

    /// The session for changing a node: the one that holds its lock, where locks decide.
    async fn acting(&self, node: NodeId, lock: Lock) -> Result<NodeSession, ActError> {
        match &self.locks {
            Some(locks) => locks.lend(node.index(), lock).map(NodeSession::lent).ok_or(ActError::NoLock),
            None => self.session(node).await,
        }
    }

    /// A session for looking something up, never for a change: it may outlive this proxy's right to one.
    async fn session(&self, node: NodeId) -> Result<NodeSession, ActError> {
        NodeSession::checkout(&self.node(node)?.1).await
    }
}

impl Chooser for Executor {
    fn choose(&self, node: NodeId, primary: NodeId, epoch: Epoch, timeline: TimelineId) -> BoxFuture<'_, Outcome> {
        let work = async move { self.try_choose(node, primary, epoch, timeline).await.map(|()| Outcome::Done) };
        Box::pin(bounded(CHOOSE_LIMIT, work))
    }

    fn seen(&self, node: NodeId, conninfo: String) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let leads = ConnInfo::parse(&conninfo).is_ok_and(|conninfo| conninfo.upstream().is_some());
            let Some((config, _)) = self.nodes.get(node.index()).filter(|_| leads && !self.names(node, &conninfo))
            else {
                return;
            };
            if let Err(error) = self.remembered.remember(&config.name, &conninfo).await {
                tracing::debug!(%error, "a connection string could not be kept");
            }
        })
    }
}

/// Whether a connection string leads to this node.
fn leads_to(node: &NodeConfig, conninfo: &ConnInfo) -> bool {
    let leads = |host: &str, port: u16| {
        conninfo.upstream().is_some_and(|(h, p)| h.eq_ignore_ascii_case(host) && p == port.to_string())
    };
    leads(&node.host, node.port) || leads(&node.replication_host, node.replication_port)
}

async fn bounded(limit: Duration, work: impl Future<Output = Result<Outcome, ActError>>) -> Outcome {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
        Err(_) => Outcome::Failed(format!("not done within {} ms", limit.as_millis())),
    }
}

/// A shared executor, as the controller's tasks need it.
pub type SharedExecutor = Arc<Executor>;

/// `coalesce` keeps a standby that never streamed from answering NULL.
const POSITIONS_SQL: &str = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), \
                             coalesce(pg_last_wal_replay_lsn(), '0/0')";

impl NodeSession {
    async fn positions(&self) -> Result<(Lsn, Lsn), ActError> {
        let row = self.row(POSITIONS_SQL, &[]).await?;
        let read = |at: usize| row.try_get::<_, Option<PgLsn>>(at).map(|l| l.map_or(Lsn(0), |l| Lsn(l.into())));
        let bad = |e: tokio_postgres::Error| ActError::Query(e.to_string());
        Ok((read(0).map_err(bad)?, read(1).map_err(bad)?))
    }

    async fn streams_from(&self, host: &str, port: u16) -> Result<bool, ActError> {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver \
                   WHERE status = 'streaming' AND sender_host = $1 AND sender_port = $2)";
        let row = self.row(sql, &[&host, &i32::from(port)]).await?;
        row.try_get(0).map_err(|e| ActError::Query(e.to_string()))
    }

    async fn make_slot(&self, slot: &str) -> Result<(), ActError> {
        let known = self.row("SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", &[&slot]).await?;
        if known.try_get(0).map_err(|e| ActError::Query(e.to_string()))? {
            return Ok(());
        }
        // `true`: keep WAL from now on, not only from the first connection.
        self.row("SELECT pg_create_physical_replication_slot($1, true)::text", &[&slot]).await.map(|_| ())
    }

    /// Takes effect with a reload.
    async fn set_conninfo(&self, conninfo: &str) -> Result<(), ActError> {
        self.run(&format!("ALTER SYSTEM SET primary_conninfo = {}", sql_literal(conninfo))).await
    }

    /// Pauses between two looks, and every tenth time wakes the node's startup process by a reload:
    /// it may be sleeping out `wal_retrieve_retry_interval` (5 s) with the request unseen.
    async fn wait_a_little(&self, polls: u32) -> Result<u32, ActError> {
        tokio::time::sleep(POLL).await;
        let polls = polls + 1;
        if polls.is_multiple_of(POLLS_PER_NUDGE) {
            self.reload().await?;
        }
        Ok(polls)
    }

    async fn reload(&self) -> Result<(), ActError> {
        self.flag("SELECT pg_reload_conf()").await.map(|_| ())
    }
}

#[cfg(test)]
mod tests;
