//! Keeps freshness moving: samples the primary's WAL position when clients have written, and follows
//! each standby's replay until it has reached the newest sample.
//!
//! Invariants: at most one sample is in flight, two are at least `sample_interval` apart, and an idle
//! cluster causes none; each task holds at most one session of its own, opened when first needed, so
//! that a slow probe delays no sample. Absent on purpose: what positions mean ([`super::freshness`]).

use super::connect::{Connector, HeldSession, classify};
use super::freshness::end_of_records;
use super::{Aim, Report};
use crate::clock::{Clock, Time};
use crate::config::Config;
use crate::ids::{Lsn, NodeId};
use crate::topology::{ProbeFailure, WriteDemand};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Row, Statement};

/// First pause between two looks at a standby that has not caught up.
const POLL_MIN: Duration = Duration::from_millis(2);
/// Longest pause, reached by doubling while its replay stands still.
const POLL_MAX: Duration = Duration::from_millis(50);
/// Pause after a session could not be opened or broke.
const RETRY: Duration = Duration::from_millis(100);
/// Time limit of one question, connecting included.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// The primary's positions. Flushed first, so that what is inserted is never less.
const SAMPLE_SQL: &str = "SELECT pg_current_wal_flush_lsn(), pg_current_wal_insert_lsn(), \
 pg_size_bytes(current_setting('wal_segment_size')), pg_size_bytes(current_setting('wal_block_size'))";

/// A session with one prepared question.
struct Asker {
    connector: Connector,
    sql: &'static str,
    session: Option<(HeldSession, Statement)>,
}

impl Asker {
    fn new(connector: Connector, sql: &'static str) -> Self {
        Self { connector, sql, session: None }
    }

    async fn ready(&mut self) -> Result<(), ProbeFailure> {
        if self.session.is_none() {
            let opened = self.connector.open(ASK_LIMIT).await?;
            let prepared = tokio::time::timeout(ASK_LIMIT, opened.client.prepare(self.sql)).await;
            let statement = prepared.map_err(|_| ProbeFailure::TimedOut)?.map_err(|e| classify(&e))?;
            self.session = Some((opened, statement));
        }
        Ok(())
    }

    async fn ask<T>(&mut self, read: impl FnOnce(&Row) -> Result<T, tokio_postgres::Error>) -> Result<T, ProbeFailure> {
        self.ready().await?;
        let Some((session, statement)) = self.session.as_ref() else { return Err(ProbeFailure::SessionLost) };
        let asked = tokio::time::timeout(ASK_LIMIT, session.client.query_one(statement, &[])).await;
        let answer = match asked {
            Err(_) => Err(ProbeFailure::TimedOut),
            Ok(Err(e)) => Err(classify(&e)),
            Ok(Ok(row)) => read(&row).map_err(|e| classify(&e)),
        };
        if answer.is_err() {
            self.session = None;
        }
        answer
    }

    /// Waits until the session has ended; for ever while there is none. Cancel-safe.
    async fn ended(&mut self) {
        match &mut self.session {
            Some((session, _)) => session.ended().await,
            None => std::future::pending().await,
        }
    }
}

/// Samples the primary until the controller is gone.
pub(super) async fn sample(
    config: Arc<Config>,
    clock: Clock,
    demand: WriteDemand,
    mut aims: watch::Receiver<Aim>,
    reports: mpsc::Sender<Report>,
) {
    let mut asker: Option<(NodeId, Asker)> = None;
    // A new round needs a sample although nobody has written since: sessions that wrote before it wait for one.
    let mut round_served = 0;
    let mut owed = false;
    loop {
        let (round, primary) = {
            let aim = aims.borrow_and_update();
            (aim.round, aim.primary)
        };
        let Some(primary) = primary else {
            if aims.changed().await.is_err() {
                return;
            }
            continue;
        };
        if round == round_served && !owed {
            tokio::select! {
                changed = aims.changed() => match changed { Ok(()) => continue, Err(_) => return },
                () = demand.wanted() => {}
            }
        }
        if asker.as_ref().is_none_or(|(node, _)| *node != primary) {
            let connector = Connector::new(&config, primary);
            asker = Some((primary, Asker::new(connector, SAMPLE_SQL)));
        }
        let Some((_, asker)) = asker.as_mut() else { continue };
        match sample_once(asker, &clock, &demand).await {
            Ok((sent_at, flush_lsn, insert_lsn)) => {
                (owed, round_served) = (false, round);
                let sampled = Report::Sampled { node: primary, round, sent_at, flush_lsn, insert_lsn };
                if reports.send(sampled).await.is_err() {
                    return;
                }
                tokio::time::sleep_until(clock.instant(sent_at + config.cluster.sample_interval)).await;
            }
            Err(failure) => {
                tracing::debug!(node = %primary, ?failure, "no WAL sample");
                owed = true;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn sample_once(asker: &mut Asker, clock: &Clock, demand: &WriteDemand) -> Result<(Time, Lsn, Lsn), ProbeFailure> {
    asker.ready().await?;
    // In this order: a write that is acknowledged after this point asks for another sample.
    demand.take();
    let sent_at = clock.now();
    let (flushed, inserted) = asker.ask(positions).await?;
    Ok((sent_at, flushed, inserted))
}

/// From the row of [`SAMPLE_SQL`]: flushed, and the end of the last record.
fn positions(row: &Row) -> Result<(Lsn, Lsn), tokio_postgres::Error> {
    let (segment, page) = (row.try_get::<_, i64>(2)?, row.try_get::<_, i64>(3)?);
    let inserted = end_of_records(lsn(row, 1)?, segment.unsigned_abs(), page.unsigned_abs());
    Ok((lsn(row, 0)?, inserted))
}

fn lsn(row: &Row, column: usize) -> Result<Lsn, tokio_postgres::Error> {
    row.try_get::<_, PgLsn>(column).map(|lsn| Lsn(lsn.into()))
}

/// Follows one node's replay until the controller is gone.
pub(super) async fn follow_replay(
    node: NodeId,
    connector: Connector,
    mut aims: watch::Receiver<Aim>,
    reports: mpsc::Sender<Report>,
) {
    let mut asker = Asker::new(connector, "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')");
    let (mut reached, mut round_reached, mut pause) = (Lsn(0), 0, POLL_MIN);
    loop {
        let (round, goal) = {
            let aim = aims.borrow_and_update();
            let followed = aim.standbys.get(node.index()).copied().unwrap_or(false);
            (aim.round, if followed { aim.goal } else { Lsn(0) })
        };
        if round != round_reached {
            (reached, round_reached) = (Lsn(0), round);
        }
        if reached >= goal {
            tokio::select! {
                changed = aims.changed() => if changed.is_err() { return },
                () = asker.ended() => {
                    asker.session = None;
                    reached = Lsn(0);
                    if reports.send(Report::ReplayLost { node }).await.is_err() { return }
                }
            }
            pause = POLL_MIN;
            continue;
        }
        let had_session = asker.session.is_some();
        let report = match asker.ask(|row| lsn(row, 0)).await {
            Ok(replay_lsn) => {
                pause = if replay_lsn > reached { POLL_MIN } else { (pause * 2).min(POLL_MAX) };
                reached = reached.max(replay_lsn);
                Some(Report::Replayed { node, round, replay_lsn })
            }
            Err(failure) => {
                tracing::debug!(%node, ?failure, "no replay position");
                pause = RETRY;
                reached = Lsn(0);
                had_session.then_some(Report::ReplayLost { node })
            }
        };
        if let Some(report) = report
            && reports.send(report).await.is_err()
        {
            return;
        }
        if reached < goal {
            let nudged = tokio::time::timeout(pause, aims.changed()).await;
            match nudged {
                Ok(Err(_)) => return,
                Ok(Ok(())) => tokio::time::sleep(POLL_MIN).await,
                Err(_) => {}
            }
        }
    }
}
