//! Which standby is promoted: hard filters first (`rules`), then a total order ([`KEYS`]).
//!
//! Invariants: the choice depends on the candidates only, not on their order; ties end at the node
//! number, so two runs over the same facts choose the same node; what is told about the order is what the
//! election goes by.

use super::hold::Veto;
use super::rules::RULES;
use crate::ids::{Lsn, NodeId, SystemId, TimelineId};
use crate::topology::{Health, Switch};
use std::cmp::Ordering;

/// A node as the election sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its health.
    pub health: Health,
    /// Whether it answers and is in recovery.
    pub in_recovery: bool,
    /// Its system.
    pub system_id: SystemId,
    /// The timeline it has reached.
    pub timeline: TimelineId,
    /// WAL flushed there.
    pub flush_lsn: Lsn,
    /// Whether replay is paused.
    pub replay_paused: bool,
    /// `failover_priority`.
    pub priority: u32,
    /// An operator works on it.
    pub maintenance: bool,
    /// Its promotion failed a short time ago.
    pub promotion_failed: bool,
    /// `before_promotion` spoke against it a short time ago.
    pub spoken_against: bool,
    /// It stands still: its receiver is gone and its position was read afterwards.
    pub detached: bool,
    /// The last primary's commits waited for it.
    pub sync_member: bool,
    /// It stands in this proxy's zone.
    pub local: bool,
    /// Where its history left the last primary's, if both are known.
    pub parted: Option<Switch>,
    /// The last primary's history is not known, and others on this timeline have another one.
    pub disputed: bool,
}

/// What puts one candidate before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It has more WAL.
    Wal,
    /// Commits waited for it, and not for the other.
    Synchronous,
    /// Its `failover_priority` is higher.
    Priority,
    /// It stands in this proxy's zone, and the other does not.
    Zone,
    /// It comes first in the configuration.
    Order,
}

impl Edge {
    /// A few words for people, to follow "before b: ".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Wal => "it has more WAL",
            Self::Synchronous => "commits wait for it",
            Self::Priority => "its failover_priority is higher",
            Self::Zone => "it is in this proxy's zone",
            Self::Order => "it comes first in the configuration",
        }
    }
}

/// Greater is better.
type Key = fn(&Candidate, &Candidate) -> Ordering;

/// The order of the candidates: the first key that tells two of them apart decides.
static KEYS: &[(Edge, Key)] = &[
    (Edge::Wal, |a, b| a.flush_lsn.cmp(&b.flush_lsn)),
    (Edge::Synchronous, |a, b| a.sync_member.cmp(&b.sync_member)),
    (Edge::Priority, |a, b| a.priority.cmp(&b.priority)),
    (Edge::Zone, |a, b| a.local.cmp(&b.local)),
    (Edge::Order, |a, b| b.node.cmp(&a.node)),
];

/// What a candidate is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The cluster.
    pub system_id: Option<SystemId>,
    /// The last primary's timeline.
    pub timeline: Option<TimelineId>,
    /// The highest position seen on any node of that timeline.
    pub highest: Lsn,
    /// Bytes that may be missing.
    pub lag_bytes_max: u64,
    /// The only node an operator wants.
    pub asked: Option<NodeId>,
    /// Whether only detached nodes qualify.
    pub detached_only: bool,
    /// Up to where every acknowledged commit reaches, where standbys vouch for that.
    pub floor: Option<Lsn>,
    /// A node that was promoted meanwhile, and the timeline that every other candidate must have reached at least.
    pub beyond: Option<(NodeId, TimelineId)>,
}

/// The first rule that speaks against the candidate.
#[must_use]
pub fn veto(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    RULES.iter().find_map(|rule| rule(candidate, bar))
}

/// The best of those without a veto.
#[must_use]
pub fn elect<'a>(candidates: &'a [Candidate], bar: &Bar) -> Option<&'a Candidate> {
    candidates.iter().filter(|c| veto(c, bar).is_none()).max_by(|a, b| compare(a, b).0)
}

/// All without a veto, the best one first; with each what puts it before the next one.
#[must_use]
pub fn rank<'a>(candidates: &'a [Candidate], bar: &Bar) -> Vec<(&'a Candidate, Option<(NodeId, Edge)>)> {
    let mut ranked: Vec<&Candidate> = candidates.iter().filter(|c| veto(c, bar).is_none()).collect();
    ranked.sort_by(|a, b| compare(b, a).0);
    let next = |at: usize| ranked.get(at + 1).map(|next| (next.node, compare(ranked[at], next).1));
    ranked.iter().enumerate().map(|(at, c)| (*c, next(at))).collect()
}

fn compare(a: &Candidate, b: &Candidate) -> (Ordering, Edge) {
    let told = |(edge, key): &(Edge, Key)| Some((key(a, b), *edge)).filter(|(order, _)| order.is_ne());
    KEYS.iter().find_map(told).unwrap_or((Ordering::Equal, Edge::Order))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn candidate(node: u16) -> Candidate {
        Candidate {
            node: NodeId(node),
            health: Health::Healthy,
            in_recovery: true,
            system_id: SystemId(1),
            timeline: TimelineId(1),
            flush_lsn: Lsn(1000),
            replay_paused: false,
            priority: 100,
            maintenance: false,
            promotion_failed: false,
            spoken_against: false,
            detached: true,
            sync_member: false,
            local: false,
            parted: None,
            disputed: false,
        }
    }

    fn bar() -> Bar {
        Bar {
            system_id: Some(SystemId(1)),
            timeline: Some(TimelineId(1)),
            highest: Lsn(1000),
            lag_bytes_max: 100,
            asked: None,
            detached_only: true,
            floor: None,
            beyond: None,
        }
    }

    #[test]
    fn most_wal_then_membership_then_priority_then_zone_then_lowest_number() {
        let chosen = |c: &[Candidate]| elect(c, &bar()).map(|c| c.node.0);
        let better = [
            (Edge::Wal, Candidate { flush_lsn: Lsn(1001), ..candidate(9) }),
            (Edge::Synchronous, Candidate { sync_member: true, ..candidate(8) }),
            (Edge::Priority, Candidate { priority: 101, ..candidate(7) }),
            (Edge::Zone, Candidate { local: true, ..candidate(6) }),
            (Edge::Order, candidate(5)),
        ];
        let (mut all, mut best) = (vec![candidate(10)], NodeId(10));
        for (edge, next) in better.iter().rev() {
            // Whatever it lacks in later keys.
            all.insert(all.len() / 2, next.clone());
            assert_eq!(chosen(&all), Some(next.node.0));
            let ranked = rank(&all, &bar());
            assert_eq!((ranked[0].0.node, ranked[0].1), (next.node, Some((best, *edge))));
            best = next.node;
        }
        let order: Vec<u16> = rank(&all, &bar()).iter().map(|(c, _)| c.node.0).collect();
        assert_eq!(order, [9, 8, 7, 6, 5, 10]);
        assert_eq!(rank(&all, &bar()).last().map(|(_, before)| *before), Some(None));
        all.iter_mut().filter(|c| c.node.0 != 6).for_each(|c| c.maintenance = true);
        assert_eq!(rank(&all, &bar()).len(), 1);
        assert_eq!((chosen(&all), chosen(&[])), (Some(6), None));
    }

    #[test]
    fn every_rule_can_speak_against_a_candidate() {
        let good = candidate(1);
        assert_eq!(veto(&good, &bar()), None);
        let check = |c: Candidate, want: Veto| assert_eq!(veto(&c, &bar()), Some(want));
        check(Candidate { priority: 0, ..good.clone() }, Veto::PriorityZero);
        check(Candidate { maintenance: true, ..good.clone() }, Veto::Maintenance);
        check(Candidate { health: Health::Down, ..good.clone() }, Veto::NotHealthy);
        check(Candidate { health: Health::Suspect, ..good.clone() }, Veto::NotHealthy);
        check(Candidate { in_recovery: false, ..good.clone() }, Veto::NotInRecovery);
        check(Candidate { system_id: SystemId(2), ..good.clone() }, Veto::OtherSystem { has: SystemId(2) });
        let (has, need) = (TimelineId(2), TimelineId(1));
        check(Candidate { timeline: has, ..good.clone() }, Veto::OtherTimeline { has, need });
        let parted = Switch { timeline: TimelineId(1), at: Lsn(900) };
        check(Candidate { parted: Some(parted), ..good.clone() }, Veto::OtherLine { parted });
        check(Candidate { disputed: true, ..good.clone() }, Veto::LineUnclear);
        let disputed = Candidate { disputed: true, ..good.clone() };
        assert_eq!(veto(&disputed, &Bar { asked: Some(disputed.node), ..bar() }), None);
        check(Candidate { replay_paused: true, ..good.clone() }, Veto::ReplayPaused);
        check(Candidate { flush_lsn: Lsn(899), ..good.clone() }, Veto::Behind { bytes: 101, max: 100 });
        let floor = Bar { floor: Some(Lsn(1001)), lag_bytes_max: u64::MAX, ..bar() };
        assert_eq!(veto(&good, &floor), Some(Veto::BehindMembers { bytes: 1 }));
        check(Candidate { promotion_failed: true, ..good.clone() }, Veto::PromotionFailed);
        check(Candidate { spoken_against: true, ..good.clone() }, Veto::SpokenAgainst);
        check(Candidate { detached: false, ..good.clone() }, Veto::NotDetached);
        assert_eq!(veto(&good, &Bar { asked: Some(NodeId(2)), ..bar() }), Some(Veto::NotAsked));
        assert_eq!(veto(&Candidate { flush_lsn: Lsn(900), ..good }, &bar()), None);
    }
}
