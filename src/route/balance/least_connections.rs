//! The one with least work in flight for its weight; ties are drawn.
//!
//! Invariant: never a busier one than necessary. Absent on purpose: latency.

use super::{Balance, Candidate, Dice};
use crate::config::BalanceKind;

/// See the module.
pub struct LeastConnections;

impl Balance for LeastConnections {
    fn kind(&self) -> BalanceKind {
        BalanceKind::LeastConnections
    }

    fn pick(&self, candidates: &[Candidate], dice: &mut Dice) -> usize {
        // Starting anywhere draws the ties.
        let start = usize::try_from(dice.below(candidates.len() as u64)).unwrap_or(0);
        let mut best = start;
        for offset in 1..candidates.len() {
            let index = (start + offset) % candidates.len();
            if candidates[index].less_busy_than(&candidates[best]) {
                best = index;
            }
        }
        best
    }
}
