//! Fresh connections: does the node still serve somebody who comes anew?
//!
//! One task per node connects, logs in, waits until the node is ready for a query and leaves. A session that is kept
//! sees nothing of a postmaster that stands still or of a login that hangs. Invariants: one connection at most is being
//! made, two begin at least [`SUSPECT_GAP`] apart. Absent on purpose: queries, and judgement.

use super::connect::{Connector, classify};
use super::node::Calls;
use super::pace::SharedPace;
use super::{Report, patience};
use crate::clock::Clock;
use crate::config::Config;
use crate::ids::NodeId;
use crate::topology::{ProbeFailure, Sign, SignKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Between two fresh connections to a node that is suspect.
const SUSPECT_GAP: Duration = Duration::from_millis(200);
/// How long a session may take to say goodbye.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// What the task owns.
pub(super) struct VisitTask {
    node: NodeId,
    connector: Connector,
    clock: Clock,
    interval: Duration,
    limit: Duration,
    /// The probe missed.
    doubt: Arc<Notify>,
    connects: SharedPace,
    reports: mpsc::Sender<Report>,
}

impl VisitTask {
    pub(super) fn new(
        config: &Config,
        node: NodeId,
        clock: &Clock,
        connector: Connector,
        calls: &Calls,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self {
            node,
            connector: connector.called("pgregent connect probe"),
            clock: clock.clone(),
            interval: config.cluster.connect_probe_interval,
            limit: config.cluster.probe_timeout,
            doubt: Arc::clone(&calls.doubt),
            connects: Arc::clone(&calls.connects),
            reports,
        }
    }

    async fn visit(&self) -> Result<(), ProbeFailure> {
        let began = self.clock.now();
        let (client, link) = patience::wait(&self.clock, self.limit, self.connector.connect())
            .await?
            .map_err(|error| classify(&error))?;
        let now = self.clock.now();
        self.connects.lock().took(now.since(began), now);
        drop(client);
        // Says goodbye; whether that arrives changes nothing.
        let _ = tokio::time::timeout(LEAVE_LIMIT, link).await;
        Ok(())
    }
}

/// Visits until the controller is gone.
pub(super) async fn watch(task: VisitTask) {
    loop {
        let began = task.clock.now();
        let outcome = task.visit().await;
        let gap = if outcome.is_ok() { task.interval } else { SUSPECT_GAP.min(task.interval) };
        let sign = Sign { node: task.node, began, at: task.clock.now(), what: SignKind::Connect(outcome) };
        if task.reports.send(Report::Signed(sign)).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep_until(task.clock.instant(began + gap)) => {}
            () = task.doubt.notified() => {}
        }
        tokio::time::sleep_until(task.clock.instant(began + SUSPECT_GAP)).await;
    }
}
