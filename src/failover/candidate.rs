//! Which standby is promoted: hard filters first (`rules`), then a total order.
//!
//! Invariants: the choice depends on the candidates only, not on their order; ties end at the node
//! number, so two runs over the same facts choose the same node.

use super::hold::Veto;
use super::rules::RULES;
use crate::ids::{Lsn, NodeId, SystemId, TimelineId};
use crate::topology::Health;
use std::cmp::Reverse;

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
}

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

/// The best of those without a veto: most WAL, then whom commits waited for, then priority, then the lowest number.
#[must_use]
pub fn elect<'a>(candidates: &'a [Candidate], bar: &Bar) -> Option<&'a Candidate> {
    let rank = |c: &&Candidate| (c.flush_lsn, c.sync_member, c.priority, Reverse(c.node));
    candidates.iter().filter(|c| veto(c, bar).is_none()).max_by_key(rank)
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
    fn most_wal_then_priority_then_lowest_number() {
        let chosen = |c: &[Candidate]| elect(c, &bar()).map(|c| c.node.0);
        let behind = Candidate { flush_lsn: Lsn(999), priority: 1000, ..candidate(1) };
        assert_eq!(chosen(&[behind.clone(), candidate(2)]), Some(2));
        assert_eq!(chosen(&[candidate(2), behind]), Some(2));
        let preferred = Candidate { priority: 101, ..candidate(3) };
        assert_eq!(chosen(&[candidate(2), preferred.clone()]), Some(3));
        let member = Candidate { sync_member: true, ..candidate(2) };
        assert_eq!(chosen(&[member, preferred]), Some(2));
        assert_eq!(chosen(&[candidate(3), candidate(2)]), Some(2));
        assert_eq!(chosen(&[]), None);
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
