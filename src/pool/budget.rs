//! One budget of backends per node, over all its pools.
//!
//! Touched only when a backend is opened or closed, never on the steady path. Invariant: `used` is
//! the number of backends of the node that exist or are being opened. Absent on purpose: fairness
//! inside a pool (its queue's matter).

use super::Pool;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// The budget of one node.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: usize,
    limit: usize,
    /// Pools that wanted a place and got none, oldest first.
    wanting: VecDeque<Weak<Pool>>,
}

impl Budget {
    /// A budget of `limit` backends.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::new(State { used: 0, limit, wanting: VecDeque::new() }) }
    }

    /// Takes a place for `pool`, or notes that it wants one.
    pub fn take(&self, pool: &Arc<Pool>) -> bool {
        let mut state = self.state.lock();
        if state.used < state.limit {
            state.used += 1;
            return true;
        }
        let known = state.wanting.iter().any(|weak| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(pool)));
        if !known {
            state.wanting.push_back(Arc::downgrade(pool));
        }
        false
    }

    /// Gives a place back; the pool that wanted one longest should try again.
    pub fn give_back(&self) -> Option<Arc<Pool>> {
        let mut state = self.state.lock();
        state.used -= 1;
        while let Some(weak) = state.wanting.pop_front() {
            if let Some(pool) = weak.upgrade() {
                return Some(pool);
            }
        }
        None
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
