//! Classes by shape, so that the grammar runs once per shape.
//!
//! Invariants: a hit compares the whole shape, so that no two shapes can be taken for one another whatever the hash
//! does; at most [`ENTRIES_MAX`] entries and [`BYTES_MAX`] bytes (shapes, classes and what leads to them) are kept, and what was not asked for since
//! the clock's hand came by last goes first. A hit allocates nothing. One thread owns it; nothing is locked.
//!
//! Absent on purpose: expiry by time (no clock here), texts, and any knowledge of SQL.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::quality::FixedState;
use hashbrown::HashTable;

use super::class::Classification;

/// Most shapes that are kept, per thread.
const ENTRIES_MAX: usize = 4096;
/// Most bytes that are kept, per thread.
const BYTES_MAX: usize = 4 << 20;
/// Judgements kept beside a shape: one for each of so many databases that use it in turn.
const JUDGED_MAX: usize = 4;
/// Longer shapes are not kept, bytes; statements that keep their literals can be long and never come again.
const SHAPE_BYTES_MAX: usize = 16 << 10;

/// How a cache did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Texts whose shape was known.
    pub hits: u64,
    /// Texts whose shape was not, and texts that never enter (too long, not valid, ...) that were examined.
    pub misses: u64,
    /// Shapes kept now.
    pub entries: usize,
    /// Bytes of these shapes and their classes.
    pub bytes: usize,
}

impl CacheCounts {
    /// Entries and bytes.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.entries, self.bytes)
    }
}

/// Where the class of a shape is, as long as it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Which entry.
    pub at: usize,
    /// Its number, never used again.
    pub serial: u64,
}

struct Entry {
    /// Tells it from what may take its place. From 1.
    serial: u64,
    hash: u64,
    shape: Box<[u8]>,
    /// `None`: this shape's literals matter, and the key is another one, with them.
    class: Option<Arc<Classification>>,
    /// The class as catalogs see it, by their versions, newest first.
    judged: [Option<(u64, Arc<Classification>)>; JUDGED_MAX],
    /// Asked for since the hand came by.
    recent: bool,
}

/// What an entry takes besides its shape and its classes: itself and its place in the index.
const ENTRY_BYTES: usize = size_of::<Entry>() + 2 * size_of::<usize>();

impl Entry {
    fn memory(&self) -> usize {
        let judged = self.judged.iter().flatten().map(|(_, class)| class);
        let classes: usize = self.class.iter().chain(judged).map(|class| class.memory()).sum();
        ENTRY_BYTES + self.shape.len() + classes
    }
}

/// A bounded map from shape to class.
pub(super) struct ClassCache {
    hasher: FixedState,
    index: HashTable<usize>,
    entries: Vec<Entry>,
    bytes: usize,
    hand: usize,
    serial: u64,
}

impl ClassCache {
    /// `seed` should differ between processes, so that nobody outside can choose shapes that share a bucket.
    pub fn new(seed: u64) -> Self {
        let (index, entries) = (HashTable::new(), Vec::new());
        Self { hasher: FixedState::with_seed(seed), index, entries, bytes: 0, hand: 0, serial: 0 }
    }

    /// A number for a text or shape.
    #[inline]
    pub fn hash(&self, shape: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(shape);
        hasher.finish()
    }

    fn position(&self, hash: u64, shape: &[u8]) -> Option<usize> {
        let same = |at: &usize| self.entries[*at].hash == hash && *self.entries[*at].shape == *shape;
        self.index.find(hash, same).copied()
    }

    /// The class of a shape and its place until the next change; no class: the literals of this shape matter.
    #[inline]
    pub fn find(&mut self, shape: &[u8]) -> Option<(Option<&Arc<Classification>>, usize)> {
        let at = self.position(self.hash(shape), shape)?;
        let entry = &mut self.entries[at];
        entry.recent = true;
        Some((entry.class.as_ref(), at))
    }

    /// The place of an entry, to come back to it.
    pub fn place(&self, at: usize) -> Place {
        Place { at, serial: self.entries[at].serial }
    }

    /// The class at a place, if it is still that of the same shape.
    #[inline]
    pub fn at(&mut self, place: Place) -> Option<&Arc<Classification>> {
        let entry = self.entries.get_mut(place.at).filter(|entry| entry.serial == place.serial)?;
        entry.recent = true;
        entry.class.as_ref()
    }

    /// The class at a place as the catalog of this version sees it; it is asked if it was not among the last few.
    pub fn judged(
        &mut self,
        at: usize,
        version: u64,
        judge: impl FnOnce() -> Arc<Classification>,
    ) -> Arc<Classification> {
        let entry = &mut self.entries[at];
        if let Some((_, class)) = entry.judged.iter().flatten().find(|(judge, _)| *judge == version) {
            return Arc::clone(class);
        }
        let class = judge();
        let before = entry.memory();
        entry.judged.rotate_right(1);
        entry.judged[0] = Some((version, Arc::clone(&class)));
        self.bytes = self.bytes + entry.memory() - before;
        class
    }

    /// Remembers the class of a shape, or that its literals matter, in place of what was known about it, and tells its
    /// place; shapes that are too long are forgotten.
    pub fn insert(&mut self, shape: &[u8], class: Option<Arc<Classification>>) -> Option<usize> {
        if shape.len() > SHAPE_BYTES_MAX {
            return None;
        }
        let hash = self.hash(shape);
        if let Some(at) = self.position(hash, shape) {
            let entry = &mut self.entries[at];
            let before = entry.memory();
            (entry.class, entry.judged) = (class, Default::default());
            self.bytes = self.bytes + entry.memory() - before;
            return Some(at);
        }
        self.serial += 1;
        let serial = self.serial;
        let entry = Entry { serial, hash, shape: shape.into(), class, judged: Default::default(), recent: false };
        let bytes = entry.memory();
        while self.entries.len() >= ENTRIES_MAX || self.bytes + bytes > BYTES_MAX && !self.entries.is_empty() {
            self.evict_one();
        }
        let at = self.entries.len();
        self.bytes += bytes;
        self.entries.push(entry);
        let entries = &self.entries;
        self.index.insert_unique(hash, at, |at| entries[*at].hash);
        Some(at)
    }

    /// Second chance: the hand passes recent entries once and takes the first that is not. There is one.
    fn evict_one(&mut self) {
        assert!(!self.entries.is_empty(), "an empty cache has room for any shape it may keep");
        loop {
            self.hand = if self.hand < self.entries.len() { self.hand } else { 0 };
            if !std::mem::take(&mut self.entries[self.hand].recent) {
                break;
            }
            self.hand += 1;
        }
        self.remove(self.hand);
    }

    /// Forgets a shape.
    pub fn forget(&mut self, shape: &[u8]) {
        if let Some(at) = self.position(self.hash(shape), shape) {
            self.remove(at);
        }
    }

    fn remove(&mut self, position: usize) {
        let last = self.entries.len() - 1;
        self.unlink(position);
        if position != last {
            let hash = self.entries[last].hash;
            if let Some(at) = self.index.find_mut(hash, |at| *at == last) {
                *at = position;
            }
        }
        let gone = self.entries.swap_remove(position);
        self.bytes -= gone.memory();
    }

    fn unlink(&mut self, position: usize) {
        let hash = self.entries[position].hash;
        if let Ok(found) = self.index.find_entry(hash, |at| *at == position) {
            found.remove();
        }
    }

    /// Shapes kept, and the bytes they take.
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::{Access, Effects, TxControl, Why};
    use super::*;

    fn class(statements: u16) -> Option<Arc<Classification>> {
        Some(Arc::new(Classification {
            access: Access::Read,
            statements,
            tx: TxControl::None,
            effects: Effects::default(),
            hint: None,
            hint_ignored: false,
            why: Why::Empty,
            functions: Box::default(),
            names: None,
            steps: Box::default(),
        }))
    }

    fn memory(shape_len: usize) -> usize {
        ENTRY_BYTES + shape_len + class(1).unwrap().memory()
    }

    fn statements(cache: &mut ClassCache, shape: &[u8]) -> Option<u16> {
        cache.find(shape)?.0.map(|class| class.statements)
    }

    #[test]
    fn finds_what_was_inserted_last_under_a_shape() {
        let mut cache = ClassCache::new(1);
        assert_eq!(statements(&mut cache, b"a"), None);
        cache.insert(b"a", class(1));
        cache.insert(b"b", class(2));
        cache.insert(b"a", class(3));
        assert_eq!(statements(&mut cache, b"a"), Some(3));
        assert_eq!(statements(&mut cache, b"b"), Some(2));
        assert_eq!(cache.size(), (2, 2 * memory(1)));
    }

    #[test]
    fn classes_count_with_what_they_hold() {
        let mut cache = ClassCache::new(5);
        let at = cache.insert(b"a", class(1)).unwrap();
        assert_eq!(cache.size().1, memory(1));
        let functions = vec!["f".repeat(1000).into(), "g".into()].into();
        let rich = class(1).map(|class| Arc::new(Classification { functions, ..(*class).clone() }));
        cache.insert(b"a", rich.clone());
        let grown = cache.size().1;
        assert!((memory(1) + 1001..memory(1) + 1100).contains(&grown), "{grown}");
        for version in 0..10 {
            cache.judged(at, version, || rich.clone().unwrap());
        }
        assert_eq!(cache.size().1, grown + JUDGED_MAX * rich.unwrap().memory());
        cache.insert(b"a", None);
        assert_eq!((cache.size().1, cache.find(b"a")), (ENTRY_BYTES + 1, Some((None, 0))));
    }

    #[test]
    fn judgements_are_kept_for_a_few_versions_and_end_with_the_class() {
        let mut cache = ClassCache::new(5);
        let at = cache.insert(b"a", class(1)).unwrap();
        let mut asked = Vec::new();
        for version in [7, 8, 7, 8, 9, 10, 7, 11, 8, 7] {
            let judged = cache.judged(at, version, || {
                asked.push(version);
                class(u16::try_from(version).unwrap()).unwrap()
            });
            assert_eq!(u64::from(judged.statements), version);
        }
        assert_eq!(asked, [7, 8, 9, 10, 11, 7], "the oldest of five has gone");
        assert_eq!(statements(&mut cache, b"a"), Some(1));
        cache.insert(b"a", class(2));
        assert_eq!(cache.judged(at, 7, || class(3).unwrap()).statements, 3);
    }

    #[test]
    fn stays_within_its_entries_and_keeps_what_is_used() {
        let mut cache = ClassCache::new(2);
        cache.insert(b"hot", class(7));
        for round in 0..3 * ENTRIES_MAX {
            cache.insert(format!("shape {round}").as_bytes(), class(1));
            assert_eq!(statements(&mut cache, b"hot"), Some(7), "after {round}");
        }
        assert_eq!(cache.size().0, ENTRIES_MAX);
        assert_eq!(cache.index.len(), ENTRIES_MAX);
        let newest = format!("shape {}", 3 * ENTRIES_MAX - 1);
        assert_eq!(statements(&mut cache, newest.as_bytes()), Some(1));
        assert_eq!(statements(&mut cache, b"shape 0"), None);
    }

    #[test]
    fn stays_within_its_bytes() {
        let mut cache = ClassCache::new(3);
        for round in 0..1000_u32 {
            let mut shape = vec![b'x'; SHAPE_BYTES_MAX - 4];
            shape.extend_from_slice(&round.to_le_bytes());
            cache.insert(&shape, class(1));
            assert_eq!(statements(&mut cache, &shape), Some(1));
        }
        let (entries, bytes) = cache.size();
        let each = memory(SHAPE_BYTES_MAX);
        assert_eq!((entries, bytes), (BYTES_MAX / each, BYTES_MAX / each * each));
        cache.insert(&vec![b'y'; SHAPE_BYTES_MAX + 1], class(1));
        assert_eq!(cache.size(), (entries, bytes));
    }

    #[test]
    fn every_entry_left_can_be_found_after_many_evictions() {
        let mut cache = ClassCache::new(4);
        for round in 0..2 * ENTRIES_MAX {
            cache.insert(format!("{round}").as_bytes(), class(1));
            if round % 3 == 0 {
                cache.find(format!("{}", round / 2).as_bytes());
            }
        }
        let shapes: Vec<_> = cache.entries.iter().map(|entry| entry.shape.clone()).collect();
        assert!(shapes.iter().all(|shape| cache.find(shape).is_some()));
    }
}
