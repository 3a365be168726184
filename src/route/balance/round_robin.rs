//! In turn, by weight, over all sessions of the proxy.
//!
//! Invariant: over one full turn each candidate is picked in proportion to its weight. Absent on
//! purpose: load.

use super::{Balance, Candidate, Dice, at, total};
use crate::config::BalanceKind;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
pub struct RoundRobin {
    turn: AtomicU64,
}

/// The one turn of this process: sessions must share it to alternate.
pub static ROUND_ROBIN: RoundRobin = RoundRobin { turn: AtomicU64::new(0) };

/// Steps through the weights by the golden ratio, so that a turn interleaves instead of clumping.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Balance for RoundRobin {
    fn kind(&self) -> BalanceKind {
        BalanceKind::RoundRobin
    }

    fn pick(&self, candidates: &[Candidate], _dice: &mut Dice) -> usize {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).wrapping_mul(STEP);
        at(candidates, ((u128::from(turn) * u128::from(total(candidates))) >> 64) as u64)
    }
}
