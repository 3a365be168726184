//! What every store must do, written once and run against each of them.
//!
//! Invariants: needs an empty store and leaves it with records. Absent on purpose: what only some
//! stores can do (locks, quorum).

use super::{Store, StoreError};
use crate::failover::event::Record;
use crate::ids::{Epoch, SystemId, TimelineId};

/// A record for the cases below.
#[must_use]
pub fn sample(epoch: u64, primary: &str, timeline: u32) -> Record {
    Record {
        system_id: SystemId(7_710_000_000_000_000_001),
        epoch: Epoch(epoch),
        primary: primary.to_owned(),
        timeline: TimelineId(timeline),
    }
}

/// Runs all cases on an empty store; `Err` names the first one that it fails.
///
/// # Errors
/// The case, in words.
pub async fn check(store: &dyn Store) -> Result<(), String> {
    expect_recalled(store, None, "an empty store recalls nothing").await?;
    accept(store, sample(1, "a", 1), "a first record").await?;
    accept(store, sample(1, "a", 1), "the same record again").await?;
    accept(store, sample(2, "b", 1), "the next epoch on the old timeline (before the promotion)").await?;
    accept(store, sample(2, "b", 2), "the same epoch on its new timeline (after it)").await?;
    refuse(store, sample(1, "a", 2), "a lower epoch").await?;
    refuse(store, sample(2, "c", 2), "another primary in the same epoch").await?;
    refuse(store, sample(3, "c", 1), "a lower timeline").await?;
    refuse(store, Record { system_id: SystemId(1), ..sample(3, "c", 3) }, "another cluster").await?;
    expect_recalled(store, Some(sample(2, "b", 2)), "refused records leave no trace").await?;
    accept(store, sample(9, "c", 5), "epochs may skip").await?;
    expect_recalled(store, Some(sample(9, "c", 5)), "the last accepted record is recalled").await
}

async fn expect_recalled(store: &dyn Store, want: Option<Record>, case: &str) -> Result<(), String> {
    match store.recall().await {
        Ok(found) if found == want => Ok(()),
        other => Err(format!("{}: {case}: got {other:?}", store.name())),
    }
}

async fn accept(store: &dyn Store, record: Record, case: &str) -> Result<(), String> {
    store.record(record).await.map_err(|e| format!("{}: {case} is accepted: {e}", store.name()))
}

async fn refuse(store: &dyn Store, record: Record, case: &str) -> Result<(), String> {
    match store.record(record).await {
        Err(StoreError::Backwards(_)) => Ok(()),
        other => Err(format!("{}: {case} is refused: got {other:?}", store.name())),
    }
}
