//! Metrics by a label that another module owns: resolved at first use, bounded in number.
//!
//! Invariants: at most [`REASONS_MAX`] texts and [`OTHER`] become label values; what comes beyond
//! is counted under [`OTHER`], never dropped. Absent on purpose: texts made at run time (the type
//! asks for `&'static str`, so that a label cannot hold a user's name).

use hashbrown::HashMap;
use parking_lot::RwLock;
use std::fmt;

/// Label values one [`Reasons`] accepts before it counts under [`OTHER`].
pub const REASONS_MAX: usize = 64;

/// The label value of what came after [`REASONS_MAX`] different ones.
pub const OTHER: &str = "other";

type Make<M> = Box<dyn Fn(&str) -> M + Send + Sync>;

/// Metrics of one family, by reason.
///
/// [`Reasons::handle`] costs a shared lock and a hash: callers on a hot path keep the handle.
pub struct Reasons<M> {
    make: Make<M>,
    seen: RwLock<HashMap<&'static str, M>>,
}

impl<M: Clone> Reasons<M> {
    pub(super) fn new(make: impl Fn(&str) -> M + Send + Sync + 'static) -> Self {
        Self { make: Box::new(make), seen: RwLock::default() }
    }

    /// The metric of `reason`, to use or to keep.
    #[must_use]
    pub fn handle(&self, reason: &'static str) -> M {
        if let Some(known) = self.seen.read().get(reason) {
            return known.clone();
        }
        let mut seen = self.seen.write();
        let full = seen.len() >= REASONS_MAX && !seen.contains_key(reason);
        if full {
            return (self.make)(OTHER);
        }
        seen.entry(reason).or_insert_with(|| (self.make)(reason)).clone()
    }
}

impl Reasons<super::IntCounter> {
    /// Counts one.
    pub fn inc(&self, reason: &'static str) {
        self.handle(reason).inc();
    }
}

impl Reasons<super::IntGauge> {
    /// Shows these, and 0 for every other that was ever shown.
    pub fn show(&self, present: &[(&'static str, i64)]) {
        for (reason, gauge) in self.seen.read().iter() {
            if !present.iter().any(|(shown, _)| shown == reason) {
                gauge.set(0);
            }
        }
        for (reason, value) in present {
            self.handle(reason).set(*value);
        }
    }
}

impl<M> fmt::Debug for Reasons<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seen: Vec<_> = self.seen.read().keys().copied().collect();
        seen.sort_unstable();
        f.debug_tuple("Reasons").field(&seen).finish()
    }
}
