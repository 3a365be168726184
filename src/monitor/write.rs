//! The write probe: a commit now and then that needs WAL to be written and flushed, and nothing else.
//!
//! One task per node keeps a session from the start, so that a primary without a free connection is still probed, and
//! uses it only while its node is the primary, or was the last one. No table is touched and no lock is taken; the commit
//! does not wait for standbys. Invariants: one commit at most is under way, and it is never given up for being slow:
//! another one would hang as well and cost one more connection. Absent on purpose: judgement, and any say about a session
//! that cannot be had.

use super::connect::{Connector, HeldSession};
use super::probe::WRITE_PROBE_NAME;
use super::{Aim, Report};
use crate::clock::{Clock, Time};
use crate::config::ClusterConfig;
use crate::ids::NodeId;
use crate::topology::{Sign, SignKind, WriteSign};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Assigns a transaction number, writes two small records and flushes them.
const WRITE_SQL: &str = "SELECT pg_logical_emit_message(true, 'pgregent', '')";
/// How often a commit that has not ended is told.
const PENDING_EVERY: Duration = Duration::from_millis(250);
/// Pause after a session could not be opened.
const RETRY: Duration = Duration::from_secs(1);
/// Pause after the role was found to lack the right.
const FORBIDDEN_RETRY: Duration = Duration::from_secs(60);

/// What the task owns.
pub(super) struct WriteTask {
    node: NodeId,
    connector: Connector,
    clock: Clock,
    interval: Duration,
    open_limit: Duration,
    aims: watch::Receiver<Aim>,
    reports: mpsc::Sender<Report>,
    session: Option<HeldSession>,
    /// The node is the primary, or no other one has been since it was.
    wanted: bool,
}

impl WriteTask {
    pub(super) fn new(
        node: NodeId,
        connector: Connector,
        clock: Clock,
        cluster: &ClusterConfig,
        aims: watch::Receiver<Aim>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let connector = connector.called(WRITE_PROBE_NAME).with_options("-c synchronous_commit=local");
        let (interval, open_limit) = (cluster.write_probe_interval, cluster.probe_timeout);
        Self { node, connector, clock, interval, open_limit, aims, reports, session: None, wanted: false }
    }

    /// Whether the node is to be probed now; `None` when the controller is gone.
    fn look(&mut self) -> Option<bool> {
        self.aims.has_changed().ok()?;
        if let Some(primary) = self.aims.borrow_and_update().primary {
            self.wanted = primary == self.node;
        }
        Some(self.wanted)
    }

    /// Waits while there is nothing to do: until the aim changes or the session ends. Cancel-safe.
    async fn idle(&mut self) {
        tokio::select! {
            changed = self.aims.changed() => drop(changed),
            () = session_end(&mut self.session) => self.session = None,
        }
    }

    async fn tell(&self, began: Time, what: WriteSign) -> bool {
        let sign = Sign { node: self.node, began, at: self.clock.now(), what: SignKind::Write(what) };
        self.reports.send(Report::Signed(sign)).await.is_ok()
    }

    /// Commits once. Tells what becomes of it, and returns the end.
    async fn commit(&self, session: &HeldSession, began: Time) -> Option<WriteSign> {
        let mut commit = pin!(session.client.batch_execute(WRITE_SQL));
        loop {
            tokio::select! {
                biased;
                ended = &mut commit => return Some(ended.map_or_else(|e| meaning(&e), |()| WriteSign::Committed)),
                () = tokio::time::sleep(PENDING_EVERY) => if !self.tell(began, WriteSign::Pending).await { return None }
            }
        }
    }
}

/// Probes until the controller is gone.
pub(super) async fn watch(mut task: WriteTask) {
    loop {
        let Some(wanted) = task.look() else { return };
        if task.session.is_none() {
            task.session = task.connector.open(task.open_limit).await.ok();
        }
        let Some(session) = task.session.as_ref() else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        if !wanted {
            task.idle().await;
            continue;
        }
        let began = task.clock.now();
        let Some(end) = task.commit(session, began).await else { return };
        let pause = match end {
            WriteSign::Forbidden(_) => FORBIDDEN_RETRY,
            _ => task.interval,
        };
        if matches!(end, WriteSign::Unknown | WriteSign::DiskFull | WriteSign::DiskFailed) {
            task.session = None;
        }
        if !task.tell(began, end).await {
            return;
        }
        tokio::time::sleep_until(task.clock.instant(began + pause)).await;
    }
}

async fn session_end(session: &mut Option<HeldSession>) {
    match session {
        Some(session) => session.ended().await,
        None => std::future::pending().await,
    }
}

fn meaning(error: &tokio_postgres::Error) -> WriteSign {
    match error.as_db_error() {
        Some(db) => meaning_of(db.code().code(), db.message()),
        None => WriteSign::Unknown,
    }
}

/// Only what the disk itself caused is about the disk.
fn meaning_of(code: &str, message: &str) -> WriteSign {
    match code {
        "53100" => WriteSign::DiskFull,
        "58030" => WriteSign::DiskFailed,
        "42501" => WriteSign::Forbidden(message.to_owned()),
        "25006" => WriteSign::ReadOnly,
        // "cannot assign TransactionIds during recovery" has no code of its own.
        "XX000" if message.contains("recovery") => WriteSign::ReadOnly,
        _ => WriteSign::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_disk_speaks_against_the_disk() {
        assert_eq!(meaning_of("53100", "could not extend file"), WriteSign::DiskFull);
        assert_eq!(meaning_of("58030", "could not fsync file"), WriteSign::DiskFailed);
        assert_eq!(meaning_of("XX000", "cannot assign TransactionIds during recovery"), WriteSign::ReadOnly);
        assert_eq!(meaning_of("25006", ""), WriteSign::ReadOnly);
        assert_eq!(meaning_of("42501", "no"), WriteSign::Forbidden("no".to_owned()));
        for harmless in ["53300", "57014", "57P01", "57P02", "57P03", "53200", "XX000", "40001"] {
            assert_eq!(meaning_of(harmless, ""), WriteSign::Unknown, "{harmless}");
        }
    }
}
