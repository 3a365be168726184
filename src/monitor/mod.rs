//! Asks every node for facts on schedule.
//!
//! One task per node keeps a probe session and reports [`Observation`]s; one task samples the
//! primary's WAL position when clients have written; one task per node follows a standby's replay
//! until it has caught up with the newest sample ([`freshness`]); one task per node commits now and then
//! where the primary is, which proves that WAL can be written; one task per node connects anew now and then; one task per
//! node asks for its history when that may have changed; in follow mode one task per node asks Patroni. Apart from that,
//! one task reads the catalogs of databases in use ([`catalogs`]).
//!
//! Invariants: every call to a node has its own deadline and its own task, so that a hung node
//! delays nothing but itself; reports go out through bounded channels; every session is closed when
//! its task ends. Absent on purpose: judgement ("down" is failover's word) and passive facts (they
//! go from the data plane straight to the controller).

pub mod catalogs;
mod connect;
pub mod freshness;
mod history;
mod node;
mod pace;
mod patience;
mod patroni;
mod probe;
mod sampler;
mod visit;
mod write;

pub use connect::{Connector, HeldSession};
pub use probe::ask;
pub(crate) use probe::{incarnation_sql, timeline_sql};

use crate::clock::{Clock, Time};
use crate::config::{Config, FailoverMode};
use crate::ids::{Lsn, NodeId};
use crate::topology::{Observation, Sign, WriteDemand};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

/// Reports that wait for the controller; a task that finds the channel full waits, and so asks less.
pub const REPORTS_MAX: usize = 256;

/// What the monitor found.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A probe ended.
    Probed {
        /// Its outcome.
        observation: Observation,
        /// How long it took.
        took: Duration,
    },
    /// Another session than the probe's said something.
    Signed(Sign),
    /// The primary's WAL was sampled.
    Sampled {
        /// Which node was asked.
        node: NodeId,
        /// For which aim; older ones must be ignored.
        round: u64,
        /// When the question was sent: every write acknowledged once it was flushed before then lies at or below `flush_lsn`.
        sent_at: Time,
        /// `pg_current_wal_flush_lsn()`.
        flush_lsn: Lsn,
        /// `pg_current_wal_insert_lsn()`, less what is no record: every write acknowledged before `sent_at` lies at
        /// or below it, flushed or not.
        insert_lsn: Lsn,
    },
    /// A standby's replay position.
    Replayed {
        /// Which node.
        node: NodeId,
        /// For which aim; older ones must be ignored.
        round: u64,
        /// `pg_last_wal_replay_lsn()`.
        replay_lsn: Lsn,
    },
    /// A replay session ended: what the node has replayed must be proven anew, since a standby that
    /// restarts may show older data for a while.
    ReplayLost {
        /// Which node.
        node: NodeId,
    },
}

/// What the samplers work on; set by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aim {
    /// Grows whenever the primary changes; samples of an older round prove nothing.
    pub round: u64,
    /// Whose WAL is sampled.
    pub primary: Option<NodeId>,
    /// Whose replay is followed, by node index.
    pub standbys: Vec<bool>,
    /// The newest position that standbys should reach.
    pub goal: Lsn,
}

/// The running monitor. Dropping it ends all its tasks; [`Monitor::stop`] also waits for them.
#[derive(Debug)]
pub struct Monitor {
    reports: mpsc::Receiver<Report>,
    wakes: Vec<Arc<Notify>>,
    aim: watch::Sender<Aim>,
    tasks: JoinSet<()>,
}

impl Monitor {
    /// Starts all tasks on the current runtime.
    #[must_use]
    pub fn start(config: &Arc<Config>, clock: &Clock, demand: WriteDemand) -> Self {
        let (tx, reports) = mpsc::channel(REPORTS_MAX);
        let (aim, aims) = watch::channel(Aim::default());
        let mut tasks = JoinSet::new();
        let mut wakes = Vec::with_capacity(config.nodes.len());
        for id in (0..config.nodes.len()).map(|index| NodeId(u16::try_from(index).unwrap_or(u16::MAX))) {
            let connector = Connector::new(config, id);
            let wake = Arc::new(Notify::new());
            wakes.push(Arc::clone(&wake));
            let (ancestors, history) = history::ancestors(config, id, clock, &wake);
            tasks.spawn(history::watch(history));
            let calls = node::Calls {
                wake,
                ancestors,
                doubt: Arc::default(),
                traffic: demand.traffic(),
                connects: Arc::new(Mutex::new(pace::Pace::new(clock.now()))),
            };
            if !config.cluster.connect_probe_interval.is_zero() {
                tasks.spawn(visit::watch(visit::VisitTask::new(
                    config,
                    id,
                    clock,
                    connector.clone(),
                    &calls,
                    tx.clone(),
                )));
            }
            tasks.spawn(node::watch(node::NodeTask::new(config, id, clock, connector.clone(), calls, tx.clone())));
            if !config.cluster.write_probe_interval.is_zero() {
                let (connector, clock, aims) = (connector.clone(), clock.clone(), aims.clone());
                tasks.spawn(write::watch(write::WriteTask::new(
                    id,
                    connector,
                    clock,
                    &config.cluster,
                    aims,
                    tx.clone(),
                )));
            }
            if config.cluster.failover == FailoverMode::Follow {
                let task = patroni::PatroniTask::new(config, id, clock, tx.clone());
                task.into_iter().for_each(|task| drop(tasks.spawn(patroni::watch(task))));
            }
            tasks.spawn(sampler::follow_replay(id, connector, aims.clone(), tx.clone()));
        }
        tasks.spawn(sampler::sample(Arc::clone(config), clock.clone(), demand, aims, tx));
        Self { reports, wakes, aim, tasks }
    }

    /// The next report. Cancel-safe.
    ///
    /// # Panics
    /// When a task has ended, which only a defect can cause: a node that nobody watches must stop the
    /// control plane rather than look silent.
    pub async fn report(&mut self) -> Report {
        tokio::select! {
            biased;
            Some(report) = self.reports.recv() => report,
            ended = self.tasks.join_next() => panic!("a monitor task ended: {ended:?}"),
        }
    }

    /// A report that is already there.
    pub fn report_ready(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    /// Probes a node soon (at once, unless it was just probed) instead of at its next interval.
    pub fn probe_now(&self, node: NodeId) {
        if let Some(wake) = self.wakes.get(node.index()) {
            wake.notify_one();
        }
    }

    /// Tells the samplers whom to ask.
    pub fn set_aim(&self, aim: Aim) {
        self.aim.send_if_modified(|current| {
            let changed = *current != aim;
            *current = aim;
            changed
        });
    }

    /// Ends all tasks and waits for them.
    pub async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }
}
