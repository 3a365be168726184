//! The better of two drawn by weight ("power of two choices", Mitzenmacher 1996).
//!
//! Better is where the read would wait less, by work in flight, latency and weight. Invariants: with one candidate,
//! that one; the two are not the same, so that a bad node is not chosen for want of a better one. Absent on purpose:
//! looking at all of them, which would send every session of every proxy to the same one.

use super::{Balance, Candidate, Dice, NOISE, at, draw, total};
use crate::config::BalanceKind;

/// See the module.
pub struct Random2;

impl Balance for Random2 {
    fn kind(&self) -> BalanceKind {
        BalanceKind::Random2
    }

    fn pick(&self, candidates: &[Candidate], dice: &mut Dice) -> usize {
        let one = draw(candidates, dice);
        let two = draw_other(candidates, one, dice);
        if candidates[two].beats(&candidates[one], NOISE) { two } else { one }
    }
}

/// Another index than `one`, drawn by weight; with one candidate, the same.
fn draw_other(candidates: &[Candidate], one: usize, dice: &mut Dice) -> usize {
    let weight = |index: usize| u64::from(candidates[index].weight);
    let rest = total(candidates) - weight(one);
    let mut point = dice.below(rest);
    // As if `one` stood at the end.
    let before: u64 = (0..one).map(weight).sum();
    if point >= before {
        point += weight(one);
    }
    if rest == 0 { one } else { at(candidates, point) }
}
