//! The task of one node: keeps a probe session, probes on schedule and on demand, reports.
//!
//! Invariants: at most one probe per node is under way; two probes are at least [`PROBE_GAP_MIN`]
//! apart; the end of the held session is reported at once and followed by a fresh connect, which
//! tells a dead postmaster from a lost connection. Absent on purpose: fall and rise counts.

use super::connect::{Connector, HeldSession, classify};
use super::history::Ancestors;
use super::pace::{Pace, SharedPace};
use super::{Report, patience, probe};
use crate::clock::{Clock, Time};
use crate::config::Config;
use crate::ids::NodeId;
use crate::topology::{NodeReport, Observation, ProbeFailure, Sign, SignKind, Traffic};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_postgres::Statement;

/// Least time between the starts of two probes of one node, however many ask for one.
pub const PROBE_GAP_MIN: Duration = Duration::from_millis(10);

/// What the task owns.
pub(super) struct NodeTask {
    node: NodeId,
    config: Arc<Config>,
    clock: Clock,
    connector: Connector,
    calls: Calls,
    reports: mpsc::Sender<Report>,
    session: Option<Held>,
    /// A session whose answer was late. The next one takes its place, unless the node has no place for it.
    late: Option<Held>,
    /// Probes in a row that were not answered.
    misses: u32,
    queries: Pace,
}

type Held = (HeldSession, Statement);

/// How the task and others call each other.
pub(super) struct Calls {
    /// Somebody wants a probe.
    pub wake: Arc<Notify>,
    /// Where the node's WAL comes from.
    pub ancestors: Ancestors,
    /// The probe missed: the node is to be visited.
    pub doubt: Arc<Notify>,
    /// What clients hear from the node.
    pub traffic: Traffic,
    /// How long fresh connections took.
    pub connects: SharedPace,
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
    pub(super) fn new(
        config: &Arc<Config>,
        node: NodeId,
        clock: &Clock,
        connector: Connector,
        calls: Calls,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let (config, clock) = (Arc::clone(config), clock.clone());
        let queries = Pace::new(clock.now());
        Self { node, config, clock, connector, calls, reports, session: None, late: None, misses: 0, queries }
    }

    /// Waits for the next reason to probe. Cancel-safe.
    async fn next_wake(&mut self, due: Time) -> Wake {
        let at = self.clock.instant(due);
        let wake = Arc::clone(&self.calls.wake);
        tokio::select! {
            biased;
            () = session_end(&mut self.session) => Wake::SessionEnded,
            () = wake.notified() => Wake::Due,
            () = tokio::time::sleep_until(at) => Wake::Due,
        }
    }

    /// How long the next probe may take.
    fn limit(&mut self) -> Duration {
        let (most, now) = (self.config.cluster.probe_timeout, self.clock.now());
        let query = self.queries.limit(self.misses, most, now);
        match self.session {
            Some(_) => query,
            None => query.max(self.calls.connects.lock().limit(self.misses, most, now)),
        }
    }

    async fn probe(&mut self) -> Result<NodeReport, ProbeFailure> {
        self.calls.traffic.listen(self.node);
        let (clock, limit) = (self.clock.clone(), self.limit());
        let outcome = patience::wait(&clock, limit, self.ask()).await.unwrap_or_else(Err);
        match &outcome {
            Ok(_) => self.late = None,
            // The answer may still come, and a full node would give us no other session.
            Err(ProbeFailure::TimedOut | ProbeFailure::Starved) => self.late = self.session.take().or(self.late.take()),
            Err(ProbeFailure::TooManyConnections) => {
                self.session = self.late.take().filter(|(session, _)| !session.client.is_closed());
            }
            // Whatever it was, the next probe shall prove itself by a fresh connect.
            Err(_) => (self.session, self.late) = (None, None),
        }
        self.misses = match &outcome {
            Err(ProbeFailure::TimedOut | ProbeFailure::Unreachable) => self.misses.saturating_add(1),
            _ => 0,
        };
        outcome
    }

    /// Asks, after opening a session if there is none.
    async fn ask(&mut self) -> Result<NodeReport, ProbeFailure> {
        if self.session.is_none() {
            let began = self.clock.now();
            let opened = self.connector.attempt().await?;
            let statement = opened.client.prepare(probe::PROBE_SQL).await.map_err(|e| classify(&e))?;
            let now = self.clock.now();
            self.calls.connects.lock().took(now.since(began), now);
            self.session = Some((opened, statement));
        }
        let Some((session, statement)) = self.session.as_ref() else { return Err(ProbeFailure::SessionLost) };
        let asked = self.clock.now();
        // An answer that says the session is going (57P01) or gone is the loss of the held session,
        // also when it arrives just while we ask.
        let mut report =
            probe::ask(&session.client, statement, &self.clock).await.map_err(|failure| match failure {
                ProbeFailure::ShuttingDown | ProbeFailure::StartingUp => ProbeFailure::SessionLost,
                other => other,
            })?;
        let now = self.clock.now();
        self.queries.took(now.since(asked), now);
        self.calls.ancestors.join(&mut report);
        Ok(report)
    }

    /// Reports an outcome; `false` when nobody listens any more.
    async fn report(&self, outcome: Result<NodeReport, ProbeFailure>, began: Time) -> bool {
        let at = self.clock.now();
        if matches!(outcome, Err(ProbeFailure::TimedOut | ProbeFailure::Unreachable)) {
            self.calls.doubt.notify_one();
            // Before the outcome, which it may void.
            let heard = Sign { node: self.node, began, at, what: SignKind::Traffic };
            if self.calls.traffic.heard(self.node) && self.reports.send(Report::Signed(heard)).await.is_err() {
                return false;
            }
        }
        let observation = Observation { node: self.node, began, at, outcome };
        self.reports.send(Report::Probed { observation, took: at.since(began) }).await.is_ok()
    }
}

/// Probes until the controller is gone.
pub(super) async fn watch(mut task: NodeTask) {
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
