//! What every store must do, written once and run against each of them.
//!
//! Invariants: needs an empty store and leaves it with records; a case fails with its name and what was seen.
//! [`check`] is for all stores, [`check_shared`] for those that several proxies share, opened as two of them.
//! Absent on purpose: how a store is made, frozen or cut off (a [`Site`] does that).

use super::{Store, StoreError};
use crate::clock::{Clock, Time};
use crate::failover::event::Record;
use crate::failover::standing::{Claim, Lack, Lease, Right, Standing};
use crate::ids::{Epoch, SystemId, TimelineId};
use futures::future::BoxFuture;
use std::time::Duration;

/// How long anything that should happen soon may take, beyond the time that leases last.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

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

/// Runs the cases for all stores on an empty one; `Err` names the first one that it fails.
///
/// # Errors
/// The case, in words.
pub async fn check(store: &dyn Store) -> Result<(), String> {
    expect_recalled(store, None, "an empty store recalls nothing").await?;
    store.claim(Claim::Change);
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
    expect_recalled(store, Some(sample(9, "c", 5)), "the last accepted record is recalled").await?;
    store.claim(Claim::Nothing);
    Ok(())
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

/// A store that several proxies share, and what can happen to it.
pub trait Site: Sync {
    /// Opens it as one more proxy.
    fn open(&self) -> BoxFuture<'_, Box<dyn Handle>>;

    /// The clock that all handles use.
    fn clock(&self) -> &Clock;

    /// The longest that a lease may last without a renewal, on the store's side.
    fn span(&self) -> Duration;

    /// The record to begin with, and one that may follow it.
    fn records(&self) -> [Record; 2];

    /// Makes the store answer nobody, or lets it answer again.
    fn outage(&self, on: bool) -> BoxFuture<'_, ()>;
}

/// The store as one proxy has it.
pub trait Handle: Send + Sync {
    /// The store.
    fn store(&self) -> &dyn Store;

    /// Stops everything that the proxy does, as `SIGSTOP` would. What it said last can still be read.
    fn freeze(&self);

    /// Lets it go on.
    fn thaw(&self);
}

/// Runs the cases for shared stores on an empty one; `Err` names the first one that it fails.
///
/// # Errors
/// The case, in words, and what was seen.
pub async fn check_shared(site: &dyn Site) -> Result<(), String> {
    let (a, b) = (site.open().await, site.open().await);
    let pair = Pair { site, a: &*a, b: &*b };
    pair.register().await?;
    pair.lease_and_right().await?;
    pair.order().await?;
    pair.frozen_holder().await?;
    pair.outage().await
}

/// Two proxies at one store.
struct Pair<'s> {
    site: &'s dyn Site,
    a: &'s dyn Handle,
    b: &'s dyn Handle,
}

impl Pair<'_> {
    /// Who has the right writes the register, and everybody reads it.
    async fn register(&self) -> Result<(), String> {
        let [first, _] = self.site.records();
        let early = tokio::time::timeout(self.site.span() / 4, self.a.store().record(first.clone())).await;
        expect(!matches!(early, Ok(Ok(()))), "no record before the right", &early)?;
        self.a.store().claim(Claim::Change);
        self.until("the right is had where nobody has a lease", || self.right(self.a).is_some()).await?;
        accept(self.a.store(), first.clone(), "a record under the right").await?;
        self.until("the other proxy sees the register", || names(standing(self.b).register.as_ref(), &first)).await?;
        let (highest, chosen) = (standing(self.b).highest, standing(self.b).chosen);
        expect(highest == first.epoch, "its epoch is the highest", highest)?;
        expect(chosen.as_deref() == Some(first.primary.as_str()), "its primary is the chosen one", chosen)?;
        let recalled = self.b.store().recall().await.map_err(|e| format!("the register is recalled: {e}"))?;
        expect(names(recalled.as_ref(), &first), "the register is recalled", recalled)
    }

    /// Leases exclude the right and the right excludes leases.
    async fn lease_and_right(&self) -> Result<(), String> {
        let [first, second] = self.site.records();
        self.both_route(&first).await?;

        self.a.store().claim(Claim::Change);
        self.until("whoever claims the right has no lease", || self.lease(self.a).is_none()).await?;
        let bad = || self.right(self.a).is_some() || self.lease(self.b).is_none();
        self.never("a right while another proxy has a lease, or a lease lost to a claim", bad).await?;
        let lack = standing(self.a).lack;
        expect(lack == Some(Lack::Taken), "the lack says that another proxy has it", lack)?;

        self.b.store().claim(Claim::Nothing);
        self.until("the right is had once the other has let go", || self.right(self.a).is_some()).await?;
        self.b.store().claim(Claim::Route);
        let bad = || self.lease(self.b).is_some() || self.right(self.a).is_none();
        self.never("a lease while another proxy has the right, or a right that is not renewed", bad).await?;
        accept(self.a.store(), second.clone(), "the next record under the right").await?;
        let bad = || self.lease(self.b).is_some();
        self.never("a lease of the new primary before the right is let go", bad).await?;
        // Whoever has lost the right writes nothing.
        self.a.store().claim(Claim::Nothing);
        let late = Record { epoch: Epoch(second.epoch.0 + 1), ..second.clone() };
        let late = tokio::time::timeout(self.site.span(), self.a.store().record(late)).await;
        expect(!matches!(late, Ok(Ok(()))), "no record without the right", &late)?;
        self.both_route(&second).await
    }

    /// An operator's order is seen by the others.
    async fn order(&self) -> Result<(), String> {
        let [_, second] = self.site.records();
        self.both_route(&second).await?;
        self.a.store().claim(Claim::Order);
        self.until("an order is seen by the other proxy", || standing(self.b).ordered).await?;
        expect(!standing(self.a).ordered, "and not by its own", standing(self.a))?;
        self.b.store().claim(Claim::Nothing);
        self.until("the order has the right once the other gave way", || self.right(self.a).is_some()).await?;
        self.a.store().claim(Claim::Nothing);
        self.until("an order ends with its claim", || !standing(self.b).ordered).await
    }

    /// A proxy that stands still has lost its lease before anybody else has the right.
    async fn frozen_holder(&self) -> Result<(), String> {
        let [_, second] = self.site.records();
        self.both_route(&second).await?;
        self.b.freeze();
        let held = standing(self.b).lease;
        self.a.store().claim(Claim::Change);
        let outcome = self.until("the right is had once the lease has run out", || self.right(self.a).is_some()).await;
        let granted = self.site.clock().now();
        let outcome = match (outcome, &held) {
            (Ok(()), Some(lease)) if lease.until < granted => Ok(()),
            (Ok(()), other) => Err(format!("the right was had at {granted}, the lease was {other:?}")),
            (Err(e), _) => Err(e),
        };
        self.b.thaw();
        outcome?;
        self.until("the holder that woke up sees that its lease is gone", || standing(self.b).lease.is_none()).await?;
        self.never("a lease of the one that woke up", || self.lease(self.b).is_some()).await?;
        self.both_route(&second).await
    }

    /// What is held runs out when the store does not answer, and comes back with it.
    async fn outage(&self) -> Result<(), String> {
        let [_, second] = self.site.records();
        self.both_route(&second).await?;
        self.site.outage(true).await;
        let began = self.site.clock().now();
        let lost = self.until("leases run out", || self.lease(self.a).is_none() && self.lease(self.b).is_none()).await;
        let took = self.site.clock().now().since(began);
        let told = self.until(
            "and the lack says who is missing",
            || matches!(standing(self.a).lack, Some(Lack::Voters { missing, .. }) if !missing.is_empty()),
        );
        let told = told.await;
        let recalled = tokio::time::timeout(PATIENCE, self.a.store().recall()).await;
        self.site.outage(false).await;
        lost?;
        told?;
        expect(took <= self.site.span(), "not later than they would have", took)?;
        expect(!matches!(recalled, Ok(Ok(_))), "nothing is recalled from a store that does not answer", &recalled)?;
        self.both_route(&second).await
    }

    /// Both have a lease of this primary, and of no other on the way.
    async fn both_route(&self, record: &Record) -> Result<(), String> {
        for proxy in [self.a, self.b] {
            proxy.store().claim(Claim::Route);
        }
        self.until("both proxies have a lease of the register's primary", || {
            [self.a, self.b].iter().all(|proxy| {
                self.lease(*proxy).is_some_and(|l| l.epoch == record.epoch && *l.primary == *record.primary)
            })
        })
        .await
    }

    fn lease(&self, proxy: &dyn Handle) -> Option<Lease> {
        standing(proxy).lease.filter(|lease| self.runs(lease.until))
    }

    fn right(&self, proxy: &dyn Handle) -> Option<Right> {
        standing(proxy).right.filter(|right| self.runs(right.until))
    }

    fn runs(&self, until: Time) -> bool {
        until > self.site.clock().now()
    }

    /// It becomes true.
    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
        let last = self.site.clock().now() + self.site.span() * 2 + PATIENCE;
        while !holds() {
            if self.site.clock().now() > last {
                return Err(self.told(&format!("{what}: it did not happen")));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// It does not become true for longer than a lease lasts.
    async fn never(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
        let last = self.site.clock().now() + self.site.span() * 3 / 2;
        while self.site.clock().now() < last {
            if holds() {
                return Err(self.told(&format!("{what}: it happened")));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn told(&self, what: &str) -> String {
        let (a, b) = (standing(self.a), standing(self.b));
        format!("{}: {what} (at {}; a: {a:?}; b: {b:?})", self.a.store().name(), self.site.clock().now())
    }
}

fn standing(proxy: &dyn Handle) -> Standing {
    proxy.store().standing().map(|standing| standing.borrow().clone()).unwrap_or_default()
}

fn names(record: Option<&Record>, wanted: &Record) -> bool {
    record.is_some_and(|record| record.epoch == wanted.epoch && record.primary == wanted.primary)
}

fn expect(holds: bool, what: &str, seen: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what}: got {seen:?}")) }
}
