//! What standbys have taught: shapes of statements that look like reads and are none.
//!
//! One table for the process; worker threads and prepared statements go by its number and look again when that has
//! changed. Invariants: a statement that does not concern it costs two loads; at most [`LEARNED_MAX`] shapes are kept,
//! the oldest goes first; each is forgotten after its time, so that a standby is asked again. Absent on purpose: which
//! database it was (a wrong guess costs the primary a read), and what survives a restart.

use crate::clock::Time;
use crate::metrics::IntGauge;
use crate::sql::LearnedShapes;
use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Shapes that are kept.
pub const LEARNED_MAX: usize = 1024;
/// Longer shapes are not kept, bytes: the classification cache does not keep them either.
const SHAPE_BYTES_MAX: usize = 16 << 10;

/// What is known of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// How standbys refuse it; a metric label.
    pub reason: &'static str,
    /// When it was learned first.
    pub since: Time,
    /// When it is forgotten.
    pub until: Time,
    /// How often a standby has refused it.
    pub times: u64,
}

/// The table.
#[derive(Debug)]
pub struct LearnedWrites {
    lessons: Mutex<HashMap<Arc<[u8]>, Lesson, foldhash::fast::RandomState>>,
    shapes: ArcSwap<LearnedShapes>,
    /// Grows whenever `shapes` changes.
    number: AtomicU64,
    /// When the first of them is to be forgotten; 0: nothing is.
    next: AtomicU64,
    /// Shows how many there are.
    shown: IntGauge,
}

impl LearnedWrites {
    /// Nothing is learned yet; `shown` tells how much is.
    #[must_use]
    pub fn new(shown: IntGauge) -> Self {
        let (lessons, shapes) = (Mutex::default(), ArcSwap::default());
        Self { lessons, shapes, number: AtomicU64::new(0), next: AtomicU64::new(0), shown }
    }

    /// Learns a shape, or that it was refused once more.
    pub fn learn(&self, shape: &[u8], reason: &'static str, now: Time, ttl: Duration) {
        if shape.len() > SHAPE_BYTES_MAX {
            return;
        }
        let mut lessons = self.lessons.lock();
        lessons.retain(|_, lesson| lesson.until > now);
        if lessons.len() >= LEARNED_MAX && !lessons.contains_key(shape) {
            let oldest = lessons.iter().min_by_key(|(_, lesson)| lesson.until).map(|(shape, _)| Arc::clone(shape));
            oldest.and_then(|shape| lessons.remove(&shape));
        }
        let lesson = lessons.entry(shape.into()).or_insert(Lesson { reason, since: now, until: now, times: 0 });
        *lesson = Lesson { reason, until: now + ttl, times: lesson.times + 1, ..*lesson };
        self.publish(&lessons);
    }

    /// Forgets what has had its time. Costs a load when there is nothing.
    pub fn sweep(&self, now: Time) {
        let next = self.next.load(Ordering::Relaxed);
        if next == 0 || now.as_nanos() < next {
            return;
        }
        let mut lessons = self.lessons.lock();
        let before = lessons.len();
        lessons.retain(|_, lesson| lesson.until > now);
        if lessons.len() != before {
            self.publish(&lessons);
        }
    }

    /// Forgets everything; says how much that was.
    pub fn forget(&self) -> usize {
        let mut lessons = self.lessons.lock();
        let count = lessons.len();
        lessons.clear();
        self.publish(&lessons);
        count
    }

    fn publish(&self, lessons: &HashMap<Arc<[u8]>, Lesson, foldhash::fast::RandomState>) {
        self.shown.set(i64::try_from(lessons.len()).unwrap_or(i64::MAX));
        let next = lessons.values().map(|lesson| lesson.until.as_nanos()).min();
        self.next.store(next.unwrap_or_default(), Ordering::Relaxed);
        self.shapes.store(Arc::new(lessons.keys().cloned().collect()));
        // Whoever sees the number finds at least these shapes.
        self.number.fetch_add(1, Ordering::Release);
    }

    /// The number of what was learned so far.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// The shapes.
    #[must_use]
    pub fn shapes(&self) -> Arc<LearnedShapes> {
        self.shapes.load_full()
    }

    /// For people: shapes and what is known of them, the newest first.
    #[must_use]
    pub fn lessons(&self, now: Time) -> Vec<(Arc<[u8]>, Lesson)> {
        let mut all: Vec<_> = self
            .lessons
            .lock()
            .iter()
            .filter(|(_, lesson)| lesson.until > now)
            .map(|(shape, lesson)| (Arc::clone(shape), *lesson))
            .collect();
        all.sort_by(|(one, first), (two, second)| (second.since, one).cmp(&(first.since, two)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(600);

    fn table() -> LearnedWrites {
        LearnedWrites::new(IntGauge::new("shown", "Shown (count).").unwrap())
    }

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn what_was_learned_is_forgotten_after_its_time_and_kept_when_refused_again() {
        let learned = table();
        learned.learn(b"one", "read_only", at(1), TTL);
        learned.learn(b"two", "read_only", at(2), TTL);
        learned.learn(b"one", "recovery_wal", at(300), TTL);
        let number = learned.number();
        learned.sweep(at(601));
        assert_eq!((learned.shapes().len(), learned.number()), (2, number), "nothing to forget yet");
        learned.sweep(at(602));
        assert!(learned.number() > number);
        let lessons = learned.lessons(at(602));
        let lesson = Lesson { reason: "recovery_wal", since: at(1), until: at(900), times: 2 };
        assert_eq!(lessons, [(Arc::from(&b"one"[..]), lesson)]);
        assert_eq!(learned.forget(), 1);
        assert!(learned.shapes().is_empty());
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_goes_first() {
        let learned = table();
        for number in 0..=LEARNED_MAX as u64 {
            learned.learn(&number.to_be_bytes(), "read_only", at(number), TTL);
        }
        let shapes = learned.shapes();
        // The first ones have had their time anyway.
        assert!(shapes.len() <= LEARNED_MAX && shapes.contains(&(LEARNED_MAX as u64).to_be_bytes()[..]));
        let learned = table();
        for number in 0..=LEARNED_MAX as u64 {
            learned.learn(&number.to_be_bytes(), "read_only", Time::from_nanos(number + 1), TTL);
        }
        assert_eq!(learned.shapes().len(), LEARNED_MAX);
        assert!(!learned.shapes().contains(&0_u64.to_be_bytes()[..]));
        learned.learn(&[b'x'; SHAPE_BYTES_MAX + 1], "read_only", at(1), TTL);
        assert_eq!(learned.shapes().len(), LEARNED_MAX, "too long");
    }
}
