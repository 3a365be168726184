//! The task of one node: keeps a probe session, probes on schedule and on demand, reports.
//!
//! Invariants: at most one probe per node is under way; two probes are at least [`PROBE_GAP_MIN`]
//! apart; the end of the held session is reported at once and followed by a fresh connect, which
//! tells a dead postmaster from a lost connection. Absent on purpose: fall and rise counts.

use super::connect::{Connector, HeldSession, classify};
use super::{Report, probe};
use crate::clock::{Clock, Time};
use crate::config::Config;
use crate::ids::NodeId;
use crate::topology::{NodeReport, Observation, ProbeFailure};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_postgres::Statement;

/// Least time between the starts of two probes of one node, however many ask for one.
pub const PROBE_GAP_MIN: Duration = Duration::from_millis(10);

/// What the task owns.
pub struct NodeTask {
    node: NodeId,
    config: Arc<Config>,
    clock: Clock,
    connector: Connector,
    wake: Arc<Notify>,
    reports: mpsc::Sender<Report>,
    session: Option<(HeldSession, Statement)>,
}

/// Why the task woke.
enum Wake {
    /// The interval has passed, or someone asked.
    Due,
    /// The held session ended by itself.
    SessionEnded,
}

impl NodeTask {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(
        config: &Arc<Config>,
        node: NodeId,
        clock: &Clock,
        connector: Connector,
        wake: Arc<Notify>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let (config, clock) = (Arc::clone(config), clock.clone());
        Self { node, config, clock, connector, wake, reports, session: None }
    }

    /// Waits for the next reason to probe. Cancel-safe.
    async fn next_wake(&mut self, due: Time) -> Wake {
        let at = self.clock.instant(due);
        let wake = Arc::clone(&self.wake);
        tokio::select! {
            biased;
            () = session_end(&mut self.session) => Wake::SessionEnded,
            () = wake.notified() => Wake::Due,
            () = tokio::time::sleep_until(at) => Wake::Due,
        }
    }

    async fn probe(&mut self) -> Result<NodeReport, ProbeFailure> {
        let limit = self.config.cluster.probe_timeout;
        if self.session.is_none() {
            let opened = self.connector.open(limit).await?;
            let prepared = tokio::time::timeout(limit, opened.client.prepare(probe::PROBE_SQL)).await;
            let statement = prepared.map_err(|_| ProbeFailure::TimedOut)?.map_err(|e| classify(&e))?;
            self.session = Some((opened, statement));
        }
        let Some((session, statement)) = self.session.as_ref() else { return Err(ProbeFailure::SessionLost) };
        let asked = tokio::time::timeout(limit, probe::ask(&session.client, statement, &self.clock)).await;
        let outcome = asked.unwrap_or(Err(ProbeFailure::TimedOut));
        if outcome.is_err() {
            // Whatever it was, the next probe shall prove itself by a fresh connect.
            self.session = None;
        }
        // An answer that says the session is going (57P01) or gone is the loss of the held session,
        // also when it arrives just while we ask.
        outcome.map_err(|failure| match failure {
            ProbeFailure::ShuttingDown | ProbeFailure::StartingUp => ProbeFailure::SessionLost,
            other => other,
        })
    }

    /// Reports an outcome; `false` when nobody listens any more.
    async fn report(&self, outcome: Result<NodeReport, ProbeFailure>, began: Time) -> bool {
        let at = self.clock.now();
        let observation = Observation { node: self.node, began, at, outcome };
        self.reports.send(Report::Probed { observation, took: at.since(began) }).await.is_ok()
    }
}

/// Probes until the controller is gone.
pub async fn watch(mut task: NodeTask) {
    loop {
        let began = task.clock.now();
        let held = task.session.is_some();
        let outcome = task.probe().await;
        let cluster = &task.config.cluster;
        let next = match &outcome {
            Ok(_) => began + cluster.probe_interval,
            // A lost session says little; the fresh connect that follows says what happened.
            Err(ProbeFailure::SessionLost) if held => began + PROBE_GAP_MIN,
            Err(_) => began + cluster.probe_suspect_interval,
        };
        if !task.report(outcome, began).await {
            return;
        }
        if let Wake::SessionEnded = task.next_wake(next).await {
            task.session = None;
            if !task.report(Err(ProbeFailure::SessionLost), task.clock.now()).await {
                return;
            }
        }
        tokio::time::sleep_until(task.clock.instant(began + PROBE_GAP_MIN)).await;
    }
}

async fn session_end(session: &mut Option<(HeldSession, Statement)>) {
    match session {
        Some((session, _)) => session.ended().await,
        None => std::future::pending().await,
    }
}
