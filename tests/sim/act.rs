//! What a proxy's machine wants done, carried out as the control plane does: plans and the permit, orders to nodes, programs.
//!
//! Invariants: the permit is brought in line before anything else is done with a new plan or standing, and is gone before
//! a lease is let go; an action of an older epoch than one that has begun is refused. Absent on purpose: decisions.

use crate::bug::Bug;
use crate::net::{Deed, Purpose};
use crate::setup::{Fence, Store};
use crate::world::{Event, MS, Nanos, SEC, World, node_name, note};
use pgregent::clock::Time;
use pgregent::failover::action::{Action, ActionId, HookCall, HookKind, Plan};
use pgregent::failover::event::Outcome;
use pgregent::failover::standing::Claim;
use pgregent::ids::{Epoch, NodeId};
use pgregent::topology::Writes;

/// How long an order on a connection of its own may take.
const ERRAND_LIMIT: Nanos = 5 * SEC;

/// Until when writes of which epoch may go where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    pub epoch: u64,
    pub primary: usize,
    pub until: Nanos,
    /// It goes on without a quorum, by configuration.
    pub kept: bool,
}

/// An order that waits for its connection.
#[derive(Clone, Debug)]
pub struct Errand {
    pub session: u32,
    pub id: ActionId,
    pub deed: Deed,
}

impl World {
    pub fn start(&mut self, proxy: usize, action: Action, now: Time) {
        match action {
            Action::Publish(plan) => return self.publish(proxy, plan),
            Action::Claim(claim) => return self.claim(proxy, claim),
            Action::Keep(promise) => {
                self.proxies[proxy].kept = Some(promise);
                return;
            }
            Action::ProbeNow(node) => return self.probe_now(proxy, node.index()),
            Action::WakeAt(at) => return self.wake_machine(proxy, at, now),
            Action::Tell(notice) => {
                note!(self, "p{proxy} says {}: {}", notice.kind, notice.text);
                self.proxies[proxy].risks |= notice.kind == "loss_possible";
                return;
            }
            Action::Record(id, record) => self.record(proxy, id, record),
            Action::Detach(id, node, epoch) => self.act(proxy, id, node, epoch, Deed::Detach),
            Action::Promote(id, node, epoch) => {
                note!(self, "p{proxy} promotes n{} in epoch {epoch}", node.index());
                self.act(proxy, id, node, epoch, Deed::Promote { epoch: epoch.0 });
            }
            Action::Hook(id, call) => self.hook(proxy, id, call),
            Action::NameSync { id, node, names, epoch } => self.act(proxy, id, node, epoch, Deed::Names(names)),
            Action::FenceSql { id, node, epoch, on } => self.act(proxy, id, node, epoch, Deed::FenceSql { on }),
            Action::Reconnect { id, node, epoch } => self.act(proxy, id, node, epoch, Deed::Reconnect),
            Action::Repoint { id, node, upstream, epoch, timeline } => {
                let deed = Deed::Repoint { to: upstream.index(), epoch: epoch.0, least: timeline.0 };
                self.act(proxy, id, node, epoch, deed);
            }
        }
        self.ambush(proxy);
    }

    fn claim(&mut self, proxy: usize, claim: Claim) {
        note!(self, "p{proxy} claims {claim:?}");
        let owner = &mut self.proxies[proxy];
        owner.changing = claim.changes();
        if claim != Claim::Route && self.bug != Some(Bug::KeepPermit) {
            (owner.open_to, owner.permit) = (None, None);
        }
        self.claim_of_store(proxy, claim);
    }

    fn publish(&mut self, proxy: usize, plan: Plan) {
        let short = |p: &Plan| (p.epoch, p.primary, p.writes == Writes::Open);
        if self.traced() && self.proxies[proxy].plan.as_ref().map(&short) != Some(short(&plan)) {
            let text = format!("p{proxy} plans {:?} in epoch {}: {:?}", plan.primary, plan.epoch, plan.writes);
            self.add_note(text);
        }
        self.check_reads(proxy, &plan);
        self.proxies[proxy].plan = Some(plan);
        self.bring_permit(proxy);
    }

    pub fn bring_permit(&mut self, proxy: usize) {
        let owner = &mut self.proxies[proxy];
        let Some(plan) = owner.plan.as_ref().filter(|_| owner.up) else { return };
        let fence = |node: usize| plan.nodes[node].fence;
        owner.open_to = match plan.primary.filter(|_| plan.writes == Writes::Open).map(NodeId::index) {
            Some(primary) => Some((primary, plan.epoch, fence(primary))),
            // Held, but not given up.
            None => owner.open_to.filter(|(node, epoch, at)| *epoch == plan.epoch && *at == fence(*node)),
        };
        let new = owner.open_to.and_then(|(primary, epoch, _)| self.leased(proxy, primary, epoch));
        if new.is_none() && self.bug == Some(Bug::KeepPermit) {
            return;
        }
        if new != self.proxies[proxy].permit {
            self.proxies[proxy].permit = new;
            if let Some(permit) = new {
                self.permit_opened(proxy, permit);
            }
        }
    }

    fn leased(&self, proxy: usize, primary: usize, epoch: Epoch) -> Option<Permit> {
        let permit = |until, kept| Permit { epoch: epoch.0, primary, until, kept };
        if self.setup.store == Store::Single {
            return Some(permit(Nanos::MAX, false));
        }
        let standing = &self.proxies[proxy].standing;
        let lease = standing.lease.as_ref().filter(|_| !standing.ordered)?;
        let fits = lease.epoch == epoch && *lease.primary == *node_name(primary);
        fits.then(|| permit(lease.until.as_nanos(), standing.kept))
    }

    pub fn fail(&mut self, proxy: usize, id: ActionId, why: &str) {
        self.end_later(proxy, id, MS, Outcome::Failed(why.to_owned()));
    }

    pub fn end_later(&mut self, proxy: usize, id: ActionId, span: Nanos, outcome: Outcome) {
        let run = self.proxies[proxy].run;
        self.later(span, Event::ActEnded { proxy, run, id, outcome });
    }

    /// On the session that holds the node's lock, where locks decide; on a connection of its own otherwise.
    fn act(&mut self, proxy: usize, id: ActionId, node: NodeId, epoch: Epoch, deed: Deed) {
        let owner = &mut self.proxies[proxy];
        if epoch < owner.admitted {
            return self.fail(proxy, id, "an action of a newer epoch had already begun");
        }
        owner.admitted = epoch;
        if self.setup.store != Store::Voters || matches!(deed, Deed::Names(_) | Deed::FenceSql { .. }) {
            let session = self.open(proxy, node.index(), Purpose::Errand);
            self.proxies[proxy].errands.push(Errand { session, id, deed });
            let run = self.proxies[proxy].run;
            return self.later(ERRAND_LIMIT, Event::ErrandLate { proxy, run, session });
        }
        let link = &owner.links[node.index()];
        let Some(session) = link.session.filter(|_| link.open) else {
            return self.fail(proxy, id, "no session with it");
        };
        owner.acts.push((id, session));
        self.send(session, true, crate::net::Msg::Act { id, deed });
    }

    pub fn errand_opened(&mut self, proxy: usize, session: u32) {
        let Some(errand) = self.proxies[proxy].errands.iter().find(|e| e.session == session).cloned() else { return };
        self.proxies[proxy].acts.push((errand.id, session));
        self.send(session, true, crate::net::Msg::Act { id: errand.id, deed: errand.deed });
    }

    pub fn errand_done(&mut self, proxy: usize, session: u32, id: ActionId, outcome: Outcome) {
        let node = self.sessions[session as usize].server;
        let errands = &mut self.proxies[proxy].errands;
        let Some(at) = errands.iter().position(|errand| errand.session == session && errand.id == id) else { return };
        errands.swap_remove(at);
        self.proxies[proxy].acts.retain(|(_, on)| *on != session);
        self.close_near(session);
        self.probe_now(proxy, node);
        self.tell(proxy, pgregent::failover::event::Event::ActionDone { id, outcome });
    }

    /// It failed, or took too long; what it was to do may have been done or not.
    pub fn errand_lost(&mut self, proxy: usize, session: u32) {
        let id = self.proxies[proxy].errands.iter().find(|errand| errand.session == session).map(|errand| errand.id);
        if let Some(id) = id {
            self.errand_done(proxy, session, id, Outcome::Failed("not done in time".to_owned()));
        }
    }

    fn hook(&mut self, proxy: usize, id: ActionId, call: HookCall) {
        let healed = self.faults.healed.is_some();
        let span = self.random.between(20 * MS, 1500 * MS);
        let fails = match call.kind {
            HookKind::Fence => !healed && self.setup.fence == Fence::Honest && self.random.chance(300),
            HookKind::BeforePromotion => !healed && self.setup.veto.is_some_and(|veto| self.random.chance(veto)),
            HookKind::AfterPromotion | HookKind::RoleChange | HookKind::Rejoin => self.random.chance(100),
        };
        note!(
            self,
            "p{proxy} runs {} for n{}, {}",
            call.kind.word(),
            call.node.index(),
            if fails { "no" } else { "yes" }
        );
        if call.kind == HookKind::Fence && !fails && self.setup.fence == Fence::Honest {
            self.later(span / 2, Event::FenceOff { node: call.node.index() });
        }
        let outcome = if fails { Outcome::Failed("exit status 1".to_owned()) } else { Outcome::Done };
        self.end_later(proxy, id, span, outcome);
    }

    /// The fence command turns a node off; a person turns it on again.
    pub fn fence_off(&mut self, node: usize) {
        note!(self, "n{node} is turned off by the fence command");
        self.hosts[node].off = true;
        self.stop_server(node, false);
        let span = self.random.between(2 * SEC, 9 * SEC);
        self.later(span, Event::FenceOver { node });
    }
}
