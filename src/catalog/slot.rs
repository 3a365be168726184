//! Where the snapshots of all databases stand, and how changes reach whoever reads them anew.
//!
//! Invariants: a session holds the slot of its database and loads its snapshot without a lock; a change that was seen
//! before a snapshot was published leaves it outdated; at most [`DATABASES_MAX`] databases have a slot, others share
//! one that knows nothing. Absent on purpose: reading a node (`monitor::catalogs`), time.

use super::{Catalog, Facts};
use crate::clock::Time;
use arc_swap::{ArcSwap, Guard};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

/// Databases whose catalogs are kept.
pub const DATABASES_MAX: usize = 256;

/// The snapshot of one database.
#[derive(Debug, Default)]
pub struct CatalogSlot {
    current: ArcSwap<Catalog>,
    changes: Mutex<Changes>,
    wake: Arc<Notify>,
}

/// What statements have changed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Anything that a catalog holds.
    pub any: u64,
    /// What functions do.
    pub code: u64,
}

impl CatalogSlot {
    /// The snapshot in use.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Catalog>> {
        self.current.load()
    }

    /// The same, to be kept for a while.
    #[must_use]
    pub fn load_full(&self) -> Arc<Catalog> {
        self.current.load_full()
    }

    /// A statement that passed through may have changed what the snapshot holds; `code`: what functions do, so that
    /// nothing is a read by it any more.
    pub fn changed(&self, code: bool) {
        let mut changes = self.changes.lock();
        changes.any += 1;
        if code {
            changes.code += 1;
            let current = self.current.load();
            if current.loaded().is_some() && !current.is_stale() {
                self.current.store(Arc::new(current.outdated()));
            }
        }
        drop(changes);
        self.wake.notify_one();
    }

    /// What was changed so far; to be asked before a node is.
    #[must_use]
    pub fn changes(&self) -> Changes {
        *self.changes.lock()
    }

    /// Puts a snapshot in use that was read after these changes. `facts`: `None` if what is in use is still true.
    pub fn publish(&self, facts: Option<Arc<Facts>>, seen: Changes, at: Time) {
        let changes = self.changes.lock();
        let current = self.current.load_full();
        let stale = changes.code != seen.code;
        let facts = match facts {
            Some(facts) => facts,
            // Nothing to judge anew.
            None if current.is_stale() == stale => return,
            None => Arc::clone(current.facts()),
        };
        let fresh = Catalog::new(facts, at);
        self.current.store(Arc::new(if stale { fresh.outdated() } else { fresh }));
    }

    /// Forgets the snapshot.
    pub fn clear(&self) {
        if self.current.load().loaded().is_some() {
            self.current.store(Arc::default());
        }
    }
}

/// The slots of all databases.
#[derive(Debug, Default)]
pub struct CatalogTable {
    slots: Mutex<HashMap<Arc<str>, Arc<CatalogSlot>>>,
    /// For databases beyond the limit.
    none: Arc<CatalogSlot>,
    wake: Arc<Notify>,
}

impl CatalogTable {
    /// The slot of a database, for a session of it. Whoever reads catalogs is told of a new one.
    #[must_use]
    pub fn slot(&self, database: &Arc<str>) -> Arc<CatalogSlot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(database) {
            let is_back = Arc::strong_count(slot) == 1;
            let slot = Arc::clone(slot);
            drop(slots);
            if is_back {
                self.wake.notify_one();
            }
            return slot;
        }
        if slots.len() >= DATABASES_MAX {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        if slots.len() >= DATABASES_MAX {
            return Arc::clone(&self.none);
        }
        let slot = Arc::new(CatalogSlot { wake: Arc::clone(&self.wake), ..CatalogSlot::default() });
        slots.insert(Arc::clone(database), Arc::clone(&slot));
        drop(slots);
        self.wake.notify_one();
        slot
    }

    /// The slot of a database that has had sessions, for looking.
    #[must_use]
    pub fn find(&self, database: &str) -> Option<Arc<CatalogSlot>> {
        self.slots.lock().get(database).cloned()
    }

    /// All databases, by name; and whether sessions hold the slot.
    #[must_use]
    pub fn all(&self) -> Vec<(Arc<str>, Arc<CatalogSlot>, bool)> {
        let slots = self.slots.lock();
        let each = slots.iter().map(|(name, slot)| {
            let is_used = Arc::strong_count(slot) > 1;
            (Arc::clone(name), Arc::clone(slot), is_used)
        });
        let mut all: Vec<_> = each.collect();
        drop(slots);
        all.sort_by(|one, two| one.0.cmp(&two.0));
        all
    }

    /// Waits until a database is new or something was changed. Cancel-safe; for one waiter.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Wakes whoever reads catalogs: settings have changed.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn a_change_outdates_what_was_read_before_it() {
        let table = CatalogTable::default();
        let slot = table.slot(&name("app"));
        assert!(slot.load().loaded().is_none() && !slot.load().is_stale());
        slot.changed(true);
        assert!(slot.load().loaded().is_none(), "nothing to outdate");
        let seen = slot.changes();
        slot.publish(Some(Arc::default()), seen, Time::ZERO);
        assert!(slot.load().loaded().is_some() && !slot.load().is_stale());
        let version = slot.load().version;
        slot.changed(false);
        slot.publish(None, slot.changes(), Time::ZERO);
        assert_eq!(slot.load().version, version, "nothing of it has changed, nothing is judged anew");
        let seen = slot.changes();
        slot.changed(true);
        assert!(slot.load().is_stale() && slot.load().version != version);
        slot.publish(Some(Arc::default()), seen, Time::ZERO);
        assert!(slot.load().is_stale(), "it was read before the change");
        slot.publish(None, slot.changes(), Time::ZERO);
        assert!(!slot.load().is_stale(), "nothing had changed after all");
        slot.clear();
        assert!(slot.load().loaded().is_none());
    }

    #[test]
    fn databases_are_bounded_and_those_in_use_stay() {
        let table = CatalogTable::default();
        let held = table.slot(&name("held"));
        for number in 1..DATABASES_MAX {
            drop(table.slot(&name(&format!("d{number}"))));
        }
        assert_eq!(table.all().iter().filter(|(_, _, used)| *used).count(), 1);
        let next = table.slot(&name("next"));
        assert_eq!(table.all().len(), 2, "the idle ones made room");
        assert!(Arc::ptr_eq(&held, &table.slot(&name("held"))) && !Arc::ptr_eq(&held, &next));
        let all: Vec<_> = (0..DATABASES_MAX).map(|number| table.slot(&name(&format!("e{number}")))).collect();
        assert!(Arc::ptr_eq(&all[DATABASES_MAX - 1], &table.none), "no room: no catalog");
    }
}
