//! The backends there are, for people.
//!
//! Plain values, made when somebody looks. Invariant: one pool's lock is held at a time, for as long as
//! a copy takes. Absent on purpose: backends whose login is under way (they are counts in `PoolStats`).

use super::{Pool, PoolSet};
use crate::backend::BackendControl;
use crate::clock::Time;
use crate::ids::{BackendId, PoolKey};
use std::sync::Arc;

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendPlace {
    /// On the idle stack, since then.
    Idle(Time),
    /// A session holds it.
    Active,
    /// It belongs to one client for its whole life.
    Dedicated,
}

/// A backend at one moment.
#[derive(Clone, Debug)]
pub struct BackendView {
    /// Its number.
    pub id: BackendId,
    /// Its node, database and user.
    pub key: PoolKey,
    /// Where it is.
    pub place: BackendPlace,
    /// Its process id on the node and where that is.
    pub control: Arc<BackendControl>,
    /// Since when it is open.
    pub opened: Time,
}

impl Pool {
    fn backends(&self) -> Vec<BackendView> {
        let state = self.state.lock();
        let place = |id: &BackendId| {
            let idle = state.idle.iter().find(|idle| idle.backend.id == *id);
            idle.map_or(BackendPlace::Active, |idle| BackendPlace::Idle(idle.since))
        };
        let view = |(id, known): (&BackendId, &super::pool::Known)| BackendView {
            id: *id,
            key: self.key.clone(),
            place: place(id),
            control: Arc::clone(&known.control),
            opened: known.opened,
        };
        state.controls.iter().map(view).collect()
    }
}

impl PoolSet {
    /// All backends, by number.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendView> {
        let pooled = self.shared.snapshot();
        let mut all: Vec<_> = pooled.iter().flat_map(|pool| pool.backends()).collect();
        all.extend(self.shared.dedicated_backends());
        all.sort_by_key(|backend| backend.id);
        all
    }
}
