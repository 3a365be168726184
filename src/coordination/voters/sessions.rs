//! The sessions that hold locks, lent to whoever changes a node.
//!
//! Invariants: a session is lent only while it holds the lock that was asked for; once lent, it is closed
//! rather than its lock freed, so that no statement of a change that was given up runs without the lock.

use super::core::Lock;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio_postgres::Client;

/// References to a client that nobody borrowed: its session's own and the one kept here.
const OWN: usize = 2;

/// One slot per voter: nodes in the order of `NodeId`, then witnesses.
#[derive(Debug)]
pub struct LockSessions {
    slots: Vec<Mutex<Slot>>,
}

/// A session that may be lent, and the lock that it holds.
type Slot = Option<(Arc<Client>, Lock)>;

impl LockSessions {
    pub(super) fn new(voters: usize) -> Self {
        Self { slots: (0..voters).map(|_| Mutex::new(None)).collect() }
    }

    /// The session of this voter, if it holds at least this lock.
    #[must_use]
    pub fn lend(&self, voter: usize, lock: Lock) -> Option<Arc<Client>> {
        let slot = self.slots.get(voter)?.lock();
        slot.as_ref().filter(|(_, held)| *held >= lock).map(|(client, _)| Arc::clone(client))
    }

    pub(super) fn put(&self, voter: usize, client: &Arc<Client>, lock: Lock) {
        *self.slots[voter].lock() = Some((Arc::clone(client), lock));
    }

    /// The lock is about to change: lends nothing from now on. False when someone still has the session.
    pub(super) fn recall(&self, voter: usize) -> bool {
        let slot = self.slots[voter].lock().take();
        slot.is_none_or(|(client, _)| Arc::strong_count(&client) <= OWN)
    }
}
