//! Looks at all nodes now and then: which standbys begin to take reads, and which are ejected.
//!
//! Invariants: a standby that begins to take reads (it came back, it was ejected, it was drained) starts slowly, and
//! nothing that was measured before counts. Absent on purpose: how often it looks, and who is told (`session`).

use super::outlier::{ANSWERS_MIN, Change, MEASURED_WITHIN, Outliers, Seen};
use super::standing::{Service, Standings, WHOLE};
use super::{Balancing, takes_reads};
use crate::clock::Time;
use crate::ids::NodeId;
use crate::topology::Topology;

/// What it keeps in mind between two looks.
#[derive(Debug)]
pub struct Watch {
    /// Which nodes took reads.
    taking: Vec<bool>,
    outliers: Outliers,
}

impl Watch {
    /// Of so many nodes, none of which takes reads.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self { taking: vec![false; nodes], outliers: Outliers::new(nodes) }
    }

    /// Looks, and changes the records accordingly. What it says is for people.
    pub fn look(
        &mut self,
        topology: &Topology,
        standings: &Standings,
        balancing: &Balancing,
        now: Time,
    ) -> Vec<(NodeId, Change)> {
        let mut seen = Vec::with_capacity(self.taking.len());
        for ((node, standing), taken) in standings.iter().zip(&mut self.taking) {
            let takes = topology.node(node).is_some_and(takes_reads) && standing.service() == Service::Enabled;
            if takes && !std::mem::replace(taken, takes) {
                standing.join(now);
            }
            *taken = takes;
            let vitals = standing.vitals(now, balancing.slow_start);
            // One that starts slowly may have cold caches: it is given time.
            let started = vitals.share == WHOLE;
            let measured = started && vitals.answers >= ANSWERS_MIN && vitals.answered_ago <= MEASURED_WITHIN;
            seen.push(Seen {
                usable: takes && balancing.share(node).weight > 0,
                failures: vitals.failures,
                latency: vitals.latency.filter(|_| measured),
            });
        }
        let changes = self.outliers.step(&seen, now);
        for (node, change) in &changes {
            let standing = standings.of(*node);
            match change {
                Change::Ejected(why, _) => standing.set_ejected(Some(*why)),
                Change::Returned => {
                    standing.set_ejected(None);
                    standing.join(now);
                }
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::super::outlier::{FAILURES, Outlier, SPAN_MIN};
    use super::super::{BALANCES, Share};
    use super::*;
    use crate::topology::{Health, Role};
    use std::time::Duration;

    const SLOW_START: Duration = Duration::from_secs(10);

    #[test]
    fn a_standby_starts_slowly_whenever_it_begins_to_take_reads() {
        let mut topology = Topology::starting(&["a".into(), "b".into(), "c".into()]);
        for view in &mut topology.nodes {
            (view.role, view.health, view.accepts_reads) = (Role::Standby, Health::Healthy, true);
        }
        let nodes = [Share { weight: 100, local: true }; 3].into();
        let balancing = Balancing { algorithm: BALANCES[0], nodes, slow_start: SLOW_START };
        let (standings, mut watch) = (Standings::new(3), Watch::new(3));
        let start = Time::ZERO + Duration::from_secs(100);
        let share = |after: u64| {
            standings.of(NodeId(1)).vitals(start + Duration::from_secs(after), SLOW_START).share * 100 / WHOLE
        };
        let mut look = |topology: &Topology, after: u64| {
            watch.look(topology, &standings, &balancing, start + Duration::from_secs(after))
        };
        assert_eq!(look(&topology, 0), []);
        assert_eq!(share(5), 50);
        look(&topology, 20);
        assert_eq!(share(20), 100);
        // Gone and back.
        topology.nodes[1].accepts_reads = false;
        look(&topology, 30);
        topology.nodes[1].accepts_reads = true;
        look(&topology, 31);
        assert_eq!(share(36), 50);
        // Drained and enabled.
        standings.of(NodeId(1)).set_service(Service::Draining);
        look(&topology, 50);
        standings.of(NodeId(1)).set_service(Service::Enabled);
        look(&topology, 51);
        assert_eq!(share(56), 50);
        // Ejected and returned.
        (0..FAILURES).for_each(|_| standings.of(NodeId(1)).failed());
        assert_eq!(look(&topology, 70), [(NodeId(1), Change::Ejected(Outlier::Failing, SPAN_MIN))]);
        let vitals = |after| standings.of(NodeId(1)).vitals(start + Duration::from_secs(after), SLOW_START);
        assert_eq!(vitals(70).ejected, Some(Outlier::Failing));
        assert_eq!(look(&topology, 75), [(NodeId(1), Change::Returned)]);
        assert_eq!((vitals(75).ejected, vitals(75).failures, share(80)), (None, 0, 50));
    }
}
