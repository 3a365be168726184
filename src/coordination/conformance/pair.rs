//! What a store that several proxies share must do, and survive, seen from two of them.
//!
//! Invariants: cases run in a fixed order on one site, each ends with both proxies routing to the register's primary,
//! and with every fault mended; whenever one proxy has the right, the lease or right that the other believed in is
//! over, whatever happened to it. Absent on purpose: more than two proxies, and changes of real nodes.

use super::{Fault, Ground, Handle, Site, Way, accept, advance, same};
use crate::clock::Time;
use crate::failover::event::Record;
use crate::failover::standing::{Claim, Lack, Lease, Right, Standing};
use crate::ids::Epoch;
use std::time::Duration;

/// How long anything that should happen soon may take, beyond the time that leases last.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// How often two proxies race for the right.
const RACES: usize = 5;

/// Runs the cases for shared stores; `Err` names the first one that it fails.
///
/// # Errors
/// The case, in words, and what was seen.
pub async fn check_shared(site: &dyn Site) -> Result<(), String> {
    let (a, b) = (site.open(), site.open());
    let pair = Pair { site, a: &*a, b: &*b, ground: site.ground() };
    pair.register().await?;
    pair.exclusion().await?;
    pair.order().await?;
    pair.race().await?;
    for member in 0..site.members() {
        pair.minority(member).await?;
    }
    pair.holders_gone().await?;
    pair.changer_frozen().await?;
    pair.record_unanswered().await?;
    pair.outage(Fault::Freeze, Fault::Thaw).await?;
    pair.outage(Fault::Kill, Fault::Restart).await?;
    pair.change().await
}

/// Two proxies at one store.
struct Pair<'s> {
    site: &'s dyn Site,
    a: &'s dyn Handle,
    b: &'s dyn Handle,
    ground: Ground,
}

/// What has happened to the proxy that holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    /// It stands still.
    Frozen,
    /// It stands still, and the store ended its lease early.
    Expired,
    /// It stands still, and most servers were killed and have come back.
    Restarted,
    /// Its questions are lost, after answers that came late.
    Mute,
    /// Answers to it are lost.
    Deaf,
    /// Its connections were closed.
    Cut,
}

impl Pair<'_> {
    /// Who has the right writes the register, and everybody reads it.
    async fn register(&self) -> Result<(), String> {
        let first = &self.ground.first;
        let early = tokio::time::timeout(self.site.span() / 4, self.a.store().record(first.clone())).await;
        expect(!matches!(early, Ok(Ok(()))), "no record before the right", &early)?;
        self.a.store().claim(Claim::Change);
        self.until("the right is had where nobody has a lease", || self.right(self.a).is_some()).await?;
        accept(self.a.store(), first.clone(), "a record under the right").await?;
        self.until("the other proxy sees the register", || names(standing(self.b).register.as_ref(), first)).await?;
        let (highest, chosen) = (standing(self.b).highest, standing(self.b).chosen);
        expect(highest == first.epoch, "its epoch is the highest", highest)?;
        expect(chosen.as_deref() == Some(first.primary.as_str()), "its primary is the chosen one", chosen)?;
        let recalled = self.b.store().recall().await.map_err(|e| format!("the register is recalled: {e}"))?;
        expect(same(recalled.as_ref(), Some(first)), "the register is recalled", recalled)
    }

    /// Leases exclude the right and the right excludes leases.
    async fn exclusion(&self) -> Result<(), String> {
        let first = &self.ground.first;
        self.both_route(first).await?;
        self.a.store().claim(Claim::Change);
        let kept = standing(self.a).lease;
        expect(kept.is_none(), "a lease that is let go is gone at once", kept)?;
        let bad = || self.right(self.a).is_some() || self.lease(self.b).is_none();
        self.never("a right while another proxy has a lease, or a lease lost to a claim", bad).await?;
        let lack = standing(self.a).lack;
        expect(lack == Some(Lack::Taken), "the lack says that another proxy has it", lack)?;
        self.record_let_go().await?;

        self.b.store().claim(Claim::Nothing);
        self.until("the right is had once the other has let go", || self.right(self.a).is_some()).await?;
        self.b.store().claim(Claim::Route);
        let bad = || self.lease(self.b).is_some() || self.right(self.a).is_none();
        self.never("a lease while another proxy has the right, or a right that is not renewed", bad).await?;
        self.a.store().claim(Claim::Nothing);
        let kept = standing(self.a).right;
        expect(kept.is_none(), "a right that is let go is gone at once", kept)?;
        // Whoever has lost the right writes nothing.
        let late = tokio::time::timeout(self.site.span(), self.a.store().record(self.second())).await;
        expect(!matches!(late, Ok(Ok(()))), "no record without the right", &late)?;
        self.both_route(first).await
    }

    /// A record that waits for the right ends with the claim, and is not written with a right that is had later.
    async fn record_let_go(&self) -> Result<(), String> {
        let waiting = tokio::time::timeout(PATIENCE, self.a.store().record(self.second()));
        let let_go = async {
            tokio::time::sleep(self.site.span() / 8).await;
            self.a.store().claim(Claim::Nothing);
        };
        let (ended, ()) = tokio::join!(waiting, let_go);
        self.a.store().claim(Claim::Change);
        expect(matches!(ended, Ok(Err(_))), "a record that waits for the right ends with the claim", &ended)
    }

    /// An operator's order is seen by the others.
    async fn order(&self) -> Result<(), String> {
        self.both_route(&self.ground.first).await?;
        self.a.store().claim(Claim::Order);
        self.until("an order is seen by the other proxy", || standing(self.b).ordered).await?;
        expect(!standing(self.a).ordered, "and not by its own", standing(self.a))?;
        self.b.store().claim(Claim::Nothing);
        self.until("the order has the right once the other gave way", || self.right(self.a).is_some()).await?;
        self.a.store().claim(Claim::Nothing);
        self.until("an order ends with its claim", || !standing(self.b).ordered).await
    }

    /// Of two that want the right one gets it, and the other one after it.
    async fn race(&self) -> Result<(), String> {
        for round in 0..RACES {
            let both = [self.a, self.b];
            both.iter().for_each(|proxy| proxy.store().claim(Claim::Nothing));
            tokio::time::sleep(LOOK * 10).await;
            both.iter().for_each(|proxy| proxy.store().claim(Claim::Change));
            self.alone(&format!("race {round}: one has the right"), || both.iter().any(|p| self.right(*p).is_some()))
                .await?;
            let (winner, loser) = if self.right(self.a).is_some() { (self.a, self.b) } else { (self.b, self.a) };
            winner.store().claim(Claim::Nothing);
            self.alone(&format!("race {round}: then the other one"), || self.right(loser).is_some()).await?;
        }
        self.both_route(&self.ground.first).await
    }

    /// Any one server may stand still, die and come back: no lease is lost, and the right is to be had.
    async fn minority(&self, member: usize) -> Result<(), String> {
        for (fault, mended) in [(Fault::Freeze, Fault::Thaw), (Fault::Kill, Fault::Restart)] {
            self.both_route(&self.ground.first).await?;
            self.site.fault(member, fault);
            let lost = || self.lease(self.a).is_none() || self.lease(self.b).is_none();
            let held = self.never(&format!("a lease lost: server {member}, {fault:?}"), lost).await;
            let had = match held {
                Ok(()) => {
                    self.b.store().claim(Claim::Nothing);
                    self.a.store().claim(Claim::Change);
                    let what = format!("the right is had all the same: server {member}, {fault:?}");
                    self.until(&what, || self.right(self.a).is_some()).await
                }
                held => held,
            };
            self.site.fault(member, mended);
            had?;
            self.both_route(&self.ground.first).await?;
            let lost = || self.lease(self.a).is_none() || self.lease(self.b).is_none();
            self.never(&format!("a lease lost: server {member}, {mended:?}"), lost).await?;
        }
        Ok(())
    }

    /// A lease whose holder can neither use nor renew it is over before anybody else has the right.
    async fn holders_gone(&self) -> Result<(), String> {
        for gone in [Gone::Frozen, Gone::Expired, Gone::Restarted, Gone::Mute, Gone::Deaf, Gone::Cut] {
            if gone != Gone::Expired || self.site.expires() {
                self.holder_gone(gone).await?;
            }
        }
        Ok(())
    }

    async fn holder_gone(&self, gone: Gone) -> Result<(), String> {
        if gone == Gone::Mute {
            self.b.link(Way::Late(self.site.slowness()));
        }
        self.both_route(&self.ground.first).await?;
        self.begin(gone).await?;
        self.a.store().claim(Claim::Change);
        let mut held = standing(self.b).lease;
        let what = format!("{gone:?}: the right is had once the lease is over");
        let waited = self.until(&what, || {
            held = standing(self.b).lease.or(held.take());
            self.right(self.a).is_some()
        });
        let waited = waited.await;
        let granted = self.site.clock().now();
        self.mend(gone);
        waited?;
        // Where its connections are closed it knows, and what it believed until then does not count.
        let over = gone == Gone::Cut || held.as_ref().is_some_and(|lease| lease.until < granted);
        expect(over, &format!("{gone:?}: the lease ended before {granted}, when the right was had"), &held)?;
        self.until(&format!("{gone:?}: its holder sees that"), || standing(self.b).lease.is_none()).await?;
        self.never(&format!("{gone:?}: a lease beside the right"), || self.lease(self.b).is_some()).await?;
        self.both_route(&self.ground.first).await
    }

    async fn begin(&self, gone: Gone) -> Result<(), String> {
        match gone {
            Gone::Frozen => self.b.freeze(),
            Gone::Expired => {
                self.b.freeze();
                self.site.expire();
            }
            Gone::Restarted => {
                self.b.freeze();
                let most = self.site.members() / 2 + 1;
                let members = self.site.members() - most..self.site.members();
                members.clone().for_each(|member| self.site.fault(member, Fault::Kill));
                members.for_each(|member| self.site.fault(member, Fault::Restart));
            }
            Gone::Mute => {
                // Until renewals have been answered late.
                tokio::time::sleep(self.site.span()).await;
                expect(self.lease(self.b).is_some(), "a lease with answers that come late", standing(self.b))?;
                self.b.link(Way::Mute);
            }
            Gone::Deaf => self.b.link(Way::Deaf),
            Gone::Cut => self.b.link(Way::Cut),
        }
        Ok(())
    }

    fn mend(&self, gone: Gone) {
        match gone {
            Gone::Frozen | Gone::Expired | Gone::Restarted => self.b.thaw(),
            Gone::Mute | Gone::Deaf | Gone::Cut => self.b.link(Way::Open),
        }
    }

    /// A right whose holder stands still is over before another one has it, and it writes nothing when it goes on.
    async fn changer_frozen(&self) -> Result<(), String> {
        let first = &self.ground.first;
        self.b.store().claim(Claim::Nothing);
        self.a.store().claim(Claim::Change);
        self.until("the right is had", || self.right(self.a).is_some()).await?;
        self.a.freeze();
        let held = standing(self.a).right;
        self.b.store().claim(Claim::Change);
        let waited = self.until("the right is had once the other's is over", || self.right(self.b).is_some()).await;
        let granted = self.site.clock().now();
        self.a.thaw();
        waited?;
        let over = held.as_ref().is_some_and(|right| right.until < granted);
        expect(over, &format!("the right of the frozen one ended before {granted}"), &held)?;
        let late = tokio::time::timeout(self.site.span(), self.a.store().record(self.second())).await;
        expect(!matches!(late, Ok(Ok(()))), "no record of the one that woke up", &late)?;
        let both = || self.right(self.a).is_some() || self.right(self.b).is_none();
        self.never("a right of the one that woke up", both).await?;
        self.both_route(first).await
    }

    /// A record whose answer is lost is there or not, is not called kept, and may be repeated.
    async fn record_unanswered(&self) -> Result<(), String> {
        self.b.store().claim(Claim::Nothing);
        self.a.store().claim(Claim::Change);
        self.until("the right is had", || self.right(self.a).is_some()).await?;
        self.a.link(Way::Deaf);
        let next = self.second();
        let unheard = tokio::time::timeout(self.site.span(), self.a.store().record(next.clone())).await;
        self.a.link(Way::Open);
        expect(!matches!(unheard, Ok(Ok(()))), "a record that was not answered is not called kept", &unheard)?;
        let last = self.site.clock().now() + self.site.span() * 2 + PATIENCE;
        while let Err(error) = self.a.store().record(next.clone()).await {
            expect(self.site.clock().now() < last, "it may be repeated", error)?;
            tokio::time::sleep(LOOK * 10).await;
        }
        self.until("the other proxy sees it", || names(standing(self.b).register.as_ref(), &next)).await?;
        self.both_route(&next).await
    }

    /// What is held runs out when the store does not answer, and comes back with it.
    async fn outage(&self, fault: Fault, mended: Fault) -> Result<(), String> {
        let all = |fault| (0..self.site.members()).for_each(|member| self.site.fault(member, fault));
        all(fault);
        let began = self.site.clock().now();
        let lost = self.until("leases run out", || self.lease(self.a).is_none() && self.lease(self.b).is_none()).await;
        let took = self.site.clock().now().since(began);
        let missing = |lack: Option<Lack>| matches!(lack, Some(Lack::Voters { missing, .. }) if !missing.is_empty());
        let told = self.until("and the lack says who is missing", || missing(standing(self.a).lack)).await;
        let recalled = tokio::time::timeout(PATIENCE, self.a.store().recall()).await;
        all(mended);
        lost?;
        told?;
        expect(took <= self.site.span(), &format!("{fault:?}: not later than they would have"), took)?;
        expect(matches!(recalled, Ok(Err(_))), &format!("{fault:?}: a recall says that nobody answers"), &recalled)?;
        self.both_route(&self.second()).await
    }

    /// The first record again, in the next epoch.
    fn second(&self) -> Record {
        Record { epoch: Epoch(self.ground.first.epoch.0 + 1), ..self.ground.first.clone() }
    }

    /// A change of the primary: the other proxy has no lease before it is over, then one of the new primary.
    async fn change(&self) -> Result<(), String> {
        let ground = Ground { first: self.second(), ..self.ground.clone() };
        self.both_route(&ground.first).await?;
        self.b.store().claim(Claim::Nothing);
        self.a.store().claim(Claim::Change);
        self.until("the right is had", || self.right(self.a).is_some()).await?;
        self.b.store().claim(Claim::Route);
        let advanced = tokio::time::timeout(PATIENCE, advance(self.a.store(), self.b.store(), &ground)).await;
        advanced.map_err(|_| self.told("records of one proxy and then of the other: not done"))??;
        self.a.store().claim(Claim::Route);
        let bad = || self.lease(self.a).is_some() || self.right(self.b).is_none();
        self.never("a lease of the new primary before the right is let go", bad).await?;
        self.both_route(&ground.last()).await
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

    /// It becomes true, and never have both the right.
    async fn alone(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
        let mut both = false;
        let outcome = self.until(what, || {
            both |= self.right(self.a).is_some() && self.right(self.b).is_some();
            both || holds()
        });
        outcome.await?;
        expect(!both, &format!("{what}: not both"), [standing(self.a), standing(self.b)])
    }

    /// It does not become true for longer than a lease lasts.
    async fn never(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
        let last = self.site.clock().now() + self.site.span() * 5 / 4;
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
