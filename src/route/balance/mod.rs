//! Choosing among equally good nodes. One file and one line in [`BALANCES`] per algorithm.
//!
//! Invariant: an algorithm picks one of the candidates it is given; eligibility was decided before.
//! Absent on purpose: health, freshness.

mod least_connections;
mod random2;
mod round_robin;

use super::Dice;
use crate::config::BalanceKind;
use crate::ids::NodeId;

/// A node that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Share relative to the others, above 0.
    pub weight: u32,
    /// Units of work in flight.
    pub load: usize,
}

impl Candidate {
    /// A filler for arrays.
    pub const NONE: Self = Self { node: NodeId(0), weight: 1, load: 0 };

    /// Is this one less busy for its weight than the other?
    fn less_busy_than(&self, other: &Self) -> bool {
        (self.load as u64 + 1) * u64::from(other.weight) < (other.load as u64 + 1) * u64::from(self.weight)
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
fn draw(candidates: &[Candidate], dice: &mut Dice) -> usize {
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
    let mut point = dice.below(total);
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

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        weights.iter().zip(0..).map(|(&weight, id)| Candidate { node: NodeId(id), weight, load: 0 }).collect()
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
                candidates[pick].load += 1;
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
                candidates[pick].load += 1;
            }
            assert!((6500..8500).contains(&counts[0]), "{:?}: {counts:?}", balance.kind());
        }
    }

    #[test]
    fn busy_nodes_are_left_alone() {
        let mut candidates = candidates(&[100, 100]);
        candidates[0].load = 50;
        let mut dice = Dice::new(1);
        assert_eq!(least_connections::LeastConnections.pick(&candidates, &mut dice), 1);
        let to_idle = (0..1000).filter(|_| random2::Random2.pick(&candidates, &mut dice) == 1).count();
        assert!(to_idle > 700, "{to_idle}");
    }
}
