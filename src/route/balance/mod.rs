//! Choosing among equally good nodes. One file and one line in [`BALANCES`] per algorithm.
//!
//! Invariant: an algorithm picks one of the candidates it is given; eligibility was decided before.
//! Absent on purpose: health, freshness, zones.

mod least_connections;
mod random2;
mod round_robin;

use super::latency::Latency;
use super::{Dice, Rank};
use crate::config::BalanceKind;
use crate::ids::NodeId;

/// A difference of costs that is no reason: below it the draw decides.
const NOISE: f32 = 1.25;

/// A node that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// How willingly it is chosen: those that an algorithm is given are all of one rank.
    pub rank: Rank,
    /// Share relative to the others, above 0.
    pub weight: u32,
    /// Units that have it or wait for it.
    pub in_flight: u32,
    /// How long its reads take; of one that nobody has measured, what the fastest takes.
    pub latency: Latency,
}

impl Candidate {
    /// Is this one less busy for its weight than the other?
    fn less_busy_than(&self, other: &Self) -> bool {
        (u64::from(self.in_flight) + 1) * u64::from(other.weight)
            < (u64::from(other.in_flight) + 1) * u64::from(self.weight)
    }

    /// Would a read wait here less than a `times`th of what it would wait there? The wait is the work before it, for
    /// its weight, and its own, each as long as reads take on the node. (An idle node of half the weight is not
    /// twice as slow: it is drawn half as often.)
    #[allow(clippy::cast_precision_loss, reason = "weights and work in flight are small numbers")]
    pub(super) fn beats(&self, other: &Self, times: f32) -> bool {
        let mean = (self.weight as f32 + other.weight as f32) / 2.0;
        let work = |candidate: &Self| 1.0 + candidate.in_flight as f32 * mean / candidate.weight as f32;
        work(self) * self.latency.times(other.latency) * times < work(other)
    }
}

/// A balance algorithm.
pub trait Balance: Sync + Send {
    /// The setting that names it.
    fn kind(&self) -> BalanceKind;
    /// The index of the chosen candidate. `candidates` is not empty.
    fn pick(&self, candidates: &[Candidate], dice: &mut Dice) -> usize;
}

/// All algorithms; the first is the default.
pub static BALANCES: &[&dyn Balance] =
    &[&random2::Random2, &round_robin::ROUND_ROBIN, &least_connections::LeastConnections];

/// The algorithm of this kind.
#[must_use]
pub fn balance(kind: BalanceKind) -> &'static dyn Balance {
    BALANCES.iter().copied().find(|balance| balance.kind() == kind).unwrap_or(BALANCES[0])
}

/// An index drawn by weight.
pub(super) fn draw(candidates: &[Candidate], dice: &mut Dice) -> usize {
    at(candidates, dice.below(total(candidates)))
}

/// All weights together.
fn total(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| u64::from(candidate.weight)).sum()
}

/// Whose weight lies at this point of the total.
fn at(candidates: &[Candidate], mut point: u64) -> usize {
    for (index, candidate) in candidates.iter().enumerate() {
        match point.checked_sub(u64::from(candidate.weight)) {
            Some(rest) => point = rest,
            None => return index,
        }
    }
    candidates.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let latency = Latency::of(Duration::from_millis(1));
        let candidate =
            |(&weight, id)| Candidate { node: NodeId(id), rank: Rank::Local, weight, in_flight: 0, latency };
        weights.iter().zip(0..).map(candidate).collect()
    }

    /// Every algorithm stays inside the slice and gives every equal node a fair share over 10,000 picks.
    #[test]
    fn all_are_fair_to_equal_nodes() {
        for balance in BALANCES {
            let mut counts = [0usize; 3];
            let mut dice = Dice::new(42);
            let mut candidates = candidates(&[100, 100, 100]);
            for _ in 0..10_000 {
                let pick = balance.pick(&candidates, &mut dice);
                counts[pick] += 1;
                candidates[pick].in_flight += 1;
            }
            assert!(counts.iter().all(|count| (3000..3700).contains(count)), "{:?}: {counts:?}", balance.kind());
        }
    }

    #[test]
    fn weights_shift_the_share() {
        for balance in BALANCES {
            let mut counts = [0usize; 2];
            let mut dice = Dice::new(42);
            let mut candidates = candidates(&[300, 100]);
            for _ in 0..10_000 {
                let pick = balance.pick(&candidates, &mut dice);
                counts[pick] += 1;
                candidates[pick].in_flight += 1;
            }
            assert!((6500..8500).contains(&counts[0]), "{:?}: {counts:?}", balance.kind());
        }
    }

    #[test]
    fn busy_nodes_are_left_alone() {
        let mut candidates = candidates(&[100, 100]);
        candidates[0].in_flight = 50;
        let mut dice = Dice::new(1);
        assert_eq!(least_connections::LeastConnections.pick(&candidates, &mut dice), 1);
        let to_idle = (0..1000).filter(|_| random2::Random2.pick(&candidates, &mut dice) == 1).count();
        assert!(to_idle > 700, "{to_idle}");
    }

    #[test]
    fn weights_are_the_share_of_idle_nodes_too() {
        let candidates = candidates(&[300, 100]);
        let mut dice = Dice::new(3);
        for balance in [&random2::Random2 as &dyn Balance, &round_robin::ROUND_ROBIN] {
            let to_heavy = (0..10_000).filter(|_| balance.pick(&candidates, &mut dice) == 0).count();
            assert!((7300..7700).contains(&to_heavy), "{:?}: {to_heavy}", balance.kind());
        }
    }

    #[test]
    fn random2_leaves_slow_nodes_alone_unless_the_others_are_busy() {
        let mut candidates = candidates(&[100, 100, 100]);
        candidates[1].latency = Latency::of(Duration::from_millis(10));
        let mut dice = Dice::new(3);
        let mut to_slow =
            |candidates: &[Candidate]| (0..1000).filter(|_| random2::Random2.pick(candidates, &mut dice) == 1).count();
        assert_eq!(to_slow(&candidates), 0);
        candidates[0].in_flight = 30;
        candidates[2].in_flight = 30;
        assert!(to_slow(&candidates) > 500);
        // A fifth slower is as good.
        candidates = self::candidates(&[100, 100, 100]);
        candidates[1].latency = Latency::of(Duration::from_micros(1200));
        assert!(to_slow(&candidates) > 250);
    }
}
