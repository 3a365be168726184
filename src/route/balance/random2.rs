//! The better of two drawn by weight ("power of two choices", Mitzenmacher 1996).
//!
//! Invariant: with one candidate, that one. Absent on purpose: latency (a later signal).

use super::{Balance, Candidate, Dice, draw};
use crate::config::BalanceKind;

/// See the module.
pub struct Random2;

impl Balance for Random2 {
    fn kind(&self) -> BalanceKind {
        BalanceKind::Random2
    }

    fn pick(&self, candidates: &[Candidate], dice: &mut Dice) -> usize {
        let (one, two) = (draw(candidates, dice), draw(candidates, dice));
        if candidates[two].less_busy_than(&candidates[one]) { two } else { one }
    }
}
