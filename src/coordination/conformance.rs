//! What every store must do, written once and run against each of them.
//!
//! | file | what |
//! |---|---|
//! | this one | what a store is tested on, and the cases for all stores ([`check`]) |
//! | `pair` | those for stores that several proxies share, opened as two of them ([`check_shared`]) |
//!
//! Invariants: a store is left with records; a case fails with its name and what was seen. Absent on purpose: how a
//! store is made, frozen or cut off (a [`Site`] does that).

mod pair;

pub use pair::check_shared;

use super::{Store, StoreError};
use crate::clock::Clock;
use crate::failover::event::Record;
use crate::failover::standing::Claim;
use crate::ids::{Epoch, SystemId, TimelineId};
use std::time::Duration;

/// How often a record is offered to a majority, and the pause between.
const TRIES: u32 = 50;
const AGAIN: Duration = Duration::from_millis(100);

/// What a store may be told, and what it was told before.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Nothing was ever recorded.
    pub empty: bool,
    /// The store keeps timeline and system too, and not only epoch and primary.
    pub whole: bool,
    /// The first record; its epoch may follow whatever is there.
    pub first: Record,
    /// Who may be primary after the first one.
    pub other: String,
}

impl Ground {
    /// For an empty store that keeps what it is told, whatever that is.
    #[must_use]
    pub fn empty() -> Self {
        Self { empty: true, whole: true, first: sample(1, "a", 1), other: "b".to_owned() }
    }

    /// The first record, so many epochs later, with the other primary.
    fn next(&self, epochs: u64) -> Record {
        Record { epoch: Epoch(self.first.epoch.0 + epochs), primary: self.other.clone(), ..self.first.clone() }
    }

    /// What is recorded in the end.
    #[must_use]
    pub fn last(&self) -> Record {
        let timeline = if self.whole { TimelineId(self.first.timeline.0 + 4) } else { self.first.timeline };
        Record { timeline, ..self.next(8) }
    }
}

/// A record of a made-up cluster.
#[must_use]
pub fn sample(epoch: u64, primary: &str, timeline: u32) -> Record {
    Record {
        system_id: SystemId(7_710_000_000_000_000_001),
        epoch: Epoch(epoch),
        primary: primary.to_owned(),
        timeline: TimelineId(timeline),
        promoted: true,
        given_up: Vec::new(),
    }
}

/// Runs the cases for all stores; `Err` names the first one that it fails.
///
/// # Errors
/// The case, in words.
pub async fn check(store: &dyn Store, ground: &Ground) -> Result<(), String> {
    if ground.empty {
        expect_recalled(store, None, "an empty store recalls nothing").await?;
    }
    store.claim(Claim::Change);
    accept(store, ground.first.clone(), "a first record").await?;
    advance(store, store, ground).await?;
    expect_recalled(store, Some(&ground.last()), "the last accepted record is recalled").await?;
    store.claim(Claim::Nothing);
    Ok(())
}

/// From the first record to the last one, and back by no way. `one` and `other` may be two proxies' stores, of
/// which each has the right when it records.
async fn advance(one: &dyn Store, other: &dyn Store, ground: &Ground) -> Result<(), String> {
    accept(one, ground.first.clone(), "the same record again").await?;
    accept(one, ground.next(1), "the next epoch on the old timeline (before the promotion)").await?;
    let next_timeline = Record { timeline: TimelineId(ground.first.timeline.0 + 1), ..ground.next(1) };
    if ground.whole {
        accept(one, next_timeline.clone(), "the same epoch on its new timeline (after it)").await?;
    }
    hand_over(one, other).await?;
    refuse(other, ground.first.clone(), "a lower epoch").await?;
    let usurper = Record { primary: ground.first.primary.clone(), ..next_timeline.clone() };
    refuse(other, usurper, "another primary in the same epoch").await?;
    if ground.whole {
        refuse(other, Record { timeline: ground.first.timeline, ..ground.next(2) }, "a lower timeline").await?;
        refuse(other, Record { system_id: SystemId(1), ..ground.next(2) }, "another cluster").await?;
        expect_recalled(other, Some(&next_timeline), "refused records leave no trace").await?;
    } else {
        expect_recalled(other, Some(&ground.next(1)), "refused records leave no trace").await?;
    }
    accept(other, ground.last(), "epochs may skip").await
}

/// Lets the right go with one and claims it with the other, if they are two.
async fn hand_over(one: &dyn Store, other: &dyn Store) -> Result<(), String> {
    if !std::ptr::addr_eq(one, other) {
        one.claim(Claim::Nothing);
        other.claim(Claim::Change);
        let standing = other.standing().ok_or("it is shared")?;
        let had = standing.clone().wait_for(|standing| standing.right.is_some()).await.map(drop);
        had.map_err(|_| "the store has stopped")?;
    }
    Ok(())
}

async fn expect_recalled(store: &dyn Store, want: Option<&Record>, case: &str) -> Result<(), String> {
    match store.recall().await {
        Ok(found) if same(found.as_ref(), want) => Ok(()),
        other => Err(format!("{}: {case}: got {other:?}", store.name())),
    }
}

/// Timelines of a running cluster move by themselves.
fn same(found: Option<&Record>, want: Option<&Record>) -> bool {
    let of = |record: &Record| (record.system_id, record.epoch, record.primary.clone());
    found.map(of) == want.map(of)
}

/// A store of voters may fail while it has the right and not yet all that it could have; it may be asked again.
async fn accept(store: &dyn Store, record: Record, case: &str) -> Result<(), String> {
    for _ in 0..TRIES {
        match store.record(record.clone()).await {
            Err(StoreError::NoMajority { .. }) => tokio::time::sleep(AGAIN).await,
            recorded => return recorded.map_err(|e| format!("{}: {case} is accepted: {e}", store.name())),
        }
    }
    Err(format!("{}: {case} is accepted: never by a majority", store.name()))
}

async fn refuse(store: &dyn Store, record: Record, case: &str) -> Result<(), String> {
    match store.record(record).await {
        Err(StoreError::Backwards(_)) => Ok(()),
        other => Err(format!("{}: {case} is refused: got {other:?}", store.name())),
    }
}

/// A store that several proxies share, and what can happen to it. Faults are there when these calls return.
pub trait Site: Sync {
    /// Opens it as one more proxy.
    fn open(&self) -> Box<dyn Handle>;

    /// The clock that all handles use.
    fn clock(&self) -> &Clock;

    /// The longest that a lease may last without a renewal, on the store's side.
    fn span(&self) -> Duration;

    /// How late answers may come while leases can still be renewed.
    fn slowness(&self) -> Duration;

    /// What it may be told.
    fn ground(&self) -> Ground;

    /// How many servers there are; most of them must answer.
    fn members(&self) -> usize;

    /// Does this to a server.
    fn fault(&self, member: usize, fault: Fault);

    /// Whether the store may end what proxies hold before its time, by itself.
    fn expires(&self) -> bool {
        false
    }

    /// Makes it do so.
    fn expire(&self) {}
}

/// What can happen to a server of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Stands still; connections stay.
    Freeze,
    /// Goes on after that.
    Thaw,
    /// Is killed.
    Kill,
    /// Is started after that, on what it had on disk.
    Restart,
}

/// How one proxy's connections to the store behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As they should.
    Open,
    /// Answers come so late.
    Late(Duration),
    /// No question gets through any more; answers come as before.
    Mute,
    /// No answer gets through any more.
    Deaf,
    /// They are closed on both sides, and no new one is to be had.
    Cut,
}

/// The store as one proxy has it.
pub trait Handle: Send + Sync {
    /// The store.
    fn store(&self) -> &dyn Store;

    /// Stops everything that the proxy does, as `SIGSTOP` would. What it said last can still be read.
    fn freeze(&self);

    /// Lets it go on.
    fn thaw(&self);

    /// Changes its connections.
    fn link(&self, way: Way);
}
