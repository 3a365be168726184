//! One budget of backends per node, over all its pools.
//!
//! Locked only when a backend is opened or closed; the steady path reads one number
//! ([`Budget::is_wanted`]). Invariants: `used` is the number of backends of the node that exist or are
//! being opened; a pool stands in the queue of wanting pools at most once; a claim of a single backend
//! (`dedicated`) goes before wanting pools, because nobody yields to it otherwise. Absent on purpose:
//! fairness inside a pool (its queue's matter), and who yields to whom (`share`).

use super::Pool;
use super::dedicated::Place;
use crate::clock::Time;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::oneshot;

/// The budget of one node.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
    /// Length of `wanting`, to be read without the lock.
    wanted: AtomicUsize,
    /// Length of `claims`, likewise.
    claimed: AtomicUsize,
}

#[derive(Debug)]
struct State {
    used: usize,
    limit: usize,
    /// Pools that wanted a place and got none, oldest first.
    wanting: VecDeque<Wanting>,
    /// Those who want one place each, oldest first.
    claims: VecDeque<oneshot::Sender<Place>>,
}

#[derive(Debug)]
struct Wanting {
    pool: Weak<Pool>,
    since: Time,
}

impl Budget {
    /// A budget of `limit` backends.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let state = State { used: 0, limit, wanting: VecDeque::new(), claims: VecDeque::new() };
        Self { state: Mutex::new(state), wanted: AtomicUsize::new(0), claimed: AtomicUsize::new(0) }
    }

    /// Takes a place for `pool`, or notes that it wants one.
    pub fn take(&self, pool: &Arc<Pool>, now: Time) -> bool {
        let mut state = self.state.lock();
        if state.used < state.limit {
            state.used += 1;
            return true;
        }
        if !state.wanting.iter().any(|entry| entry.is(pool)) {
            state.wanting.push_back(Wanting { pool: Arc::downgrade(pool), since: now });
            self.wanted.store(state.wanting.len(), Ordering::Relaxed);
        }
        false
    }

    /// Takes a place for one backend, if one is free.
    pub fn take_one(&self) -> bool {
        let mut state = self.state.lock();
        let free = state.used < state.limit;
        state.used += usize::from(free);
        free
    }

    /// Joins the queue for a place of one backend.
    pub fn claim(&self) -> oneshot::Receiver<Place> {
        let (claim, place) = oneshot::channel();
        let mut state = self.state.lock();
        state.claims.retain(|claim| !claim.is_closed());
        state.claims.push_back(claim);
        self.claimed.store(state.claims.len(), Ordering::Relaxed);
        place
    }

    /// While a place is free: takes it for the oldest claim, which the caller fulfils.
    pub fn next_claim(&self) -> Option<oneshot::Sender<Place>> {
        let mut state = self.state.lock();
        state.claims.retain(|claim| !claim.is_closed());
        let claim = if state.used < state.limit { state.claims.pop_front() } else { None };
        state.used += usize::from(claim.is_some());
        self.claimed.store(state.claims.len(), Ordering::Relaxed);
        claim
    }

    /// Does anyone claim a place for one backend? One load.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Relaxed) != 0
    }

    /// Gives a place back.
    pub fn give_back(&self) {
        self.state.lock().used -= 1;
    }

    /// While a place is free: the pool that has wanted one longest. It wants none afterwards, unless
    /// it asks again.
    pub fn next_wanting(&self) -> Option<Arc<Pool>> {
        let mut state = self.state.lock();
        if state.used >= state.limit {
            return None;
        }
        let mut next = None;
        while next.is_none()
            && let Some(entry) = state.wanting.pop_front()
        {
            next = entry.pool.upgrade();
        }
        self.wanted.store(state.wanting.len(), Ordering::Relaxed);
        next
    }

    /// Does any pool want a place? One load.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// The pools other than `pool` that want a place, and since when, oldest first.
    pub fn wanting_beside(&self, pool: &Arc<Pool>) -> Vec<(Arc<Pool>, Time)> {
        let state = self.state.lock();
        let others = state.wanting.iter().filter(|entry| !entry.is(pool));
        others.filter_map(|entry| Some((entry.pool.upgrade()?, entry.since))).collect()
    }

    /// This pool wants no place any more.
    pub fn forget(&self, pool: &Arc<Pool>) {
        let mut state = self.state.lock();
        state.wanting.retain(|entry| !entry.is(pool));
        self.wanted.store(state.wanting.len(), Ordering::Relaxed);
    }

    /// Changes the limit (reload).
    pub fn resize(&self, limit: usize) {
        self.state.lock().limit = limit;
    }

    /// Places taken, and the limit.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.used, state.limit)
    }
}

impl Wanting {
    fn is(&self, pool: &Arc<Pool>) -> bool {
        std::ptr::eq(self.pool.as_ptr(), Arc::as_ptr(pool))
    }
}
