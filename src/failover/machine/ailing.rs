//! A primary that lives but cannot do its work: when is it given up, and when does that no longer hold?
//!
//! Invariants: it is given up only if a standby can take over at once, because it still serves what it can; while its
//! ailment lasts, its claim to be primary does not stop the change that the ailment began, and when the ailment ends
//! before the promotion, it stays primary. Where several proxies share a store it is given up with the right in hand, and not
//! before: until then its sessions are kept, and writes wait for a few seconds now and then only. Absent on purpose: what an ailment is (`ailment`).

use super::Machine;
use crate::clock::Time;
use crate::failover::action::Level;
use crate::failover::ailment::{Ailment, Symptom};
use crate::failover::hold::{Complaint, Hold};
use crate::failover::policy::{YIELD_GAP_MAX, YIELD_SPAN};
use crate::failover::standing::Lack;
use crate::failover::state::{Flow, Outage, State};
use crate::ids::NodeId;
use crate::topology::{ProbeFailure, Sign, SignKind, WriteSign};

/// Attempts to have other proxies agree: they let their leases go if they see the same.
#[derive(Debug, Default)]
pub(super) struct Yields {
    tries: u32,
    /// No further one before this.
    next: Time,
}

impl Machine {
    pub(super) fn signed(&mut self, sign: &Sign) {
        let id = sign.node;
        let Some(node) = self.nodes.get_mut(id.index()) else { return };
        node.vitals.take(sign);
        match &sign.what {
            SignKind::Patroni(what) => node.told(*what, sign),
            SignKind::Write(WriteSign::ReadOnly) | SignKind::Connect(Err(ProbeFailure::Refused)) => self.want_probe(id),
            SignKind::Write(WriteSign::Forbidden(why)) if !node.vitals.forbidden_told => {
                node.vitals.forbidden_told = true;
                let name = self.name(id).clone();
                let text = format!("a hung disk of {name} cannot be noticed, the monitor role may not write: {why}");
                self.tell(Level::Warn, "write_probe_forbidden", Some(id), text);
            }
            _ => {}
        }
    }

    /// What the node suffers from, if that is enough to give it up.
    pub(super) fn ailment(&self, id: NodeId) -> Option<Ailment> {
        let node = self.node(id);
        node.vitals.ailment(&self.policy.ailing, node.live_report(), self.now)
    }

    /// Gives up a primary that lives but cannot do its work, if another one can.
    pub(super) fn judge_ailing(&mut self, primary: NodeId) -> bool {
        self.tell_symptom(primary);
        if self.node(primary).vitals.symptom(&self.policy.ailing, self.now).is_none() {
            self.yields = Yields::default();
        }
        let Some(ailment) = self.given_up(primary) else { return false };
        // Alone, or with the right, nobody else routes to it any more.
        self.has_right() && self.lose(primary, ailment.cause())
    }

    /// What it would be given up for, as far as this proxy can see.
    fn given_up(&self, primary: NodeId) -> Option<Ailment> {
        self.ailment(primary).filter(|ailment| self.ailing_holds(primary, *ailment).is_empty())
    }

    /// Whether writes to it wait so that another proxy that sees the same may have the right, or this one. All proxies try
    /// at about the same ages of the trouble, which double.
    pub(super) fn yielding(&mut self, primary: NodeId, flow: Flow) -> Option<Flow> {
        self.standing.as_ref()?;
        let ailment = self.given_up(primary)?;
        let Flow::Yielding { since } = flow else {
            return (self.now >= self.yields.next).then_some(Flow::Yielding { since: self.now });
        };
        if self.now.since(since) < YIELD_SPAN {
            return Some(flow);
        }
        let gap = ailment.limit(&self.policy.ailing) * 2u32.saturating_pow(self.yields.tries.min(16));
        self.yields = Yields {
            tries: self.yields.tries.saturating_add(1),
            next: since + gap.clamp(YIELD_SPAN * 2, YIELD_GAP_MAX),
        };
        None
    }

    /// What speaks against giving up an ailing primary.
    fn ailing_holds(&self, primary: NodeId, ailment: Ailment) -> Vec<Hold> {
        let outage = Outage { old: Some(primary), since: self.now, cause: ailment.cause(), order: None };
        let mut holds = self.failover_holds(&outage);
        if ailment == Ailment::ListenerHangs && !self.some_standby_serves(primary) {
            holds.push(Hold::NobodyServes);
        }
        holds
    }

    /// Whether a standby has served a fresh connection while the primary's hung.
    fn some_standby_serves(&self, primary: NodeId) -> bool {
        let since = self.now - self.policy.ailing.connect_fail;
        self.policy.ids().any(|id| id != primary && self.is_standby(id) && self.node(id).vitals.serves_since(since))
    }

    /// Why a primary with a symptom is still primary; empty without one.
    pub(super) fn symptom_holds(&self, primary: NodeId) -> Vec<Hold> {
        let node = self.node(primary);
        let Some(symptom) = node.vitals.symptom(&self.policy.ailing, self.now) else { return Vec::new() };
        let mut holds = vec![self.complaint(primary, complaint(symptom))];
        match self.ailment(primary) {
            Some(ailment) => {
                holds.extend(self.ailing_holds(primary, ailment));
                if self.standing.is_some() && self.now < self.yields.next {
                    holds.push(Hold::AwaitingRight { lack: Lack::Taken });
                }
            }
            None if symptom.of == Ailment::WritesHang && symptom.lasts >= symptom.limit => {
                holds.push(self.complaint(primary, Complaint::NotAdmitted));
            }
            None => {}
        }
        holds
    }

    pub(super) fn complaint(&self, node: NodeId, how: Complaint) -> Hold {
        Hold::PrimaryAils { node: self.name(node).clone(), how }
    }

    fn tell_symptom(&mut self, primary: NodeId) {
        let node = self.node(primary);
        let symptom = node.vitals.symptom(&self.policy.ailing, self.now);
        let told = node.vitals.told;
        if symptom.map(|s| s.of) == told {
            return;
        }
        self.node_mut(primary).vitals.told = symptom.map(|s| s.of);
        let name = self.name(primary).clone();
        let (level, kind, text) = match (symptom, told) {
            (Some(symptom), _) => {
                let kind = match symptom.of {
                    Ailment::DiskFull => "disk_full",
                    Ailment::DiskFails => "disk_fails",
                    Ailment::WritesHang => "writes_hang",
                    Ailment::ListenerHangs => "listener_hangs",
                };
                (Level::Warn, kind, format!("{name} {}", complaint(symptom)))
            }
            (None, _) => {
                (Level::Info, "ailment_over", format!("the trouble of {name} is over, or can no longer be seen"))
            }
        };
        self.tell(level, kind, Some(primary), text);
    }

    /// The old primary, if it answers as primary and neither an operator nor its ailment overrules that.
    pub(super) fn standing_old(&self, outage: &Outage) -> Option<NodeId> {
        let old = outage.old.filter(|old| outage.order.is_none() && self.claim(*old).is_some())?;
        (!self.still_ails(outage)).then_some(old)
    }

    /// The old primary was given up for an ailment that it still has.
    pub(super) fn still_ails(&self, outage: &Outage) -> bool {
        outage.cause.is_ailment() && outage.old.is_some_and(|old| self.ailment(old).is_some())
    }

    /// Times at which an ailment begins without an event.
    pub(super) fn ailing_alarms(&self, primary: NodeId) -> Vec<Time> {
        let yields = match self.state {
            State::Stable { flow: Flow::Yielding { since }, .. } => since + YIELD_SPAN,
            _ => self.yields.next,
        };
        self.node(primary).vitals.alarm(&self.policy.ailing).into_iter().chain([yields]).collect()
    }
}

fn complaint(symptom: Symptom) -> Complaint {
    let (lasts, left) = (symptom.lasts, symptom.limit.saturating_sub(symptom.lasts));
    match symptom.of {
        Ailment::DiskFull => Complaint::DiskFull { left },
        Ailment::DiskFails => Complaint::DiskFails { left },
        Ailment::WritesHang => Complaint::WritesHang { lasts, left },
        Ailment::ListenerHangs => Complaint::ListenerHangs { lasts, left },
    }
}
