//! Where statements went and why.
//!
//! Invariants: the reasons of a decision are fixed when the metrics are made, so that counting one is
//! an index and an add. Absent on purpose: the texts of statements.

use super::make::Maker;
use super::{IntCounter, IntGauge, Reasons};

/// Handles of classification, routing and pinning.
#[derive(Debug)]
pub struct RouteMetrics {
    /// Classifications answered from the cache.
    pub classify_hits: IntCounter,
    /// Classifications that ran the grammar.
    pub classify_misses: IntCounter,
    /// Texts with a hint that was ignored.
    pub hints_ignored: IntCounter,
    classify_cache_entries: IntGauge,
    classify_cache_bytes: IntGauge,
    /// Statements that ran a second time on another node, by reason.
    pub reruns: Reasons<IntCounter>,
    /// Statements that could have run a second time but for the retry budget, by reason.
    pub reruns_refused: Reasons<IntCounter>,
    /// Statements that were answered without an error after they had run again.
    pub reruns_healed: IntCounter,
    /// Shapes of statements that are known to be refused by standbys.
    pub learned: IntGauge,
    /// Sessions pinned to their backend now, by reason.
    pub pins: Reasons<IntGauge>,
    /// Times a backend was asked what it holds, because a text did not tell what it did.
    pub state_asks: IntCounter,
    /// Attempts to read a database's catalog, by result.
    pub catalog_loads: Reasons<IntCounter>,
    /// Databases whose catalog is known now.
    pub catalogs: IntGauge,
    reasons: Box<[&'static str]>,
    decisions: Box<[IntCounter]>,
}

impl RouteMetrics {
    pub(super) fn new(maker: &Maker, reasons: &[&'static str]) -> Self {
        let decisions = maker.counters("route_total", "Routing decisions, by reason (count).", &["reason"]);
        Self {
            classify_hits: maker
                .counter("classify_hits_total", "Statements whose classification was in the cache (count)."),
            classify_misses: maker
                .counter("classify_misses_total", "Statements that had to be parsed to be classified (count)."),
            hints_ignored: maker
                .counter("hints_ignored_total", "Statements with a malformed or contradictory hint, ignored (count)."),
            classify_cache_entries: maker
                .gauge("classify_cache_entries", "Classifications that are kept, over all worker threads (count)."),
            classify_cache_bytes: maker
                .gauge("classify_cache_bytes", "Memory of these classifications and their keys (bytes)."),
            reruns: maker.reasons("reruns_total", "Statements run again on another node, by reason (count).", "reason"),
            reruns_refused: maker.reasons(
                "reruns_refused_total",
                "Statements not run again because the retry budget was used up, by reason (count).",
                "reason",
            ),
            reruns_healed: maker
                .counter("reruns_healed_total", "Statements that were answered after they had run again (count)."),
            learned: maker.gauge(
                "learned_writes",
                "Shapes of statements known to be for the primary because standbys refused them (count).",
            ),
            pins: maker.gauge_reasons("pins", "Sessions pinned to their backend now, by reason (sessions).", "reason"),
            state_asks: maker.counter("state_asks_total", "Backends asked what session state they hold (count)."),
            catalog_loads: maker.reasons(
                "catalog_loads_total",
                "Attempts to read the catalog of a database, by result (count).",
                "result",
            ),
            catalogs: maker.gauge("catalogs", "Databases whose catalog is known now (count)."),
            reasons: reasons.into(),
            decisions: reasons.iter().map(|reason| decisions.with_label_values(&[reason])).collect(),
        }
    }

    /// One thread's cache of classes has changed: entries and bytes, before and after.
    pub fn classify_cache_changed(&self, before: (usize, usize), after: (usize, usize)) {
        let change = |before: usize, after: usize| {
            i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX)
        };
        self.classify_cache_entries.add(change(before.0, after.0));
        self.classify_cache_bytes.add(change(before.1, after.1));
    }

    /// Counts a decision by the place of its reason in the slice given at construction.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn decided(&self, index: usize) {
        self.decisions[index].inc();
    }

    /// All decisions so far.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.decisions.iter().map(IntCounter::get).sum()
    }

    /// The place of a reason, for [`RouteMetrics::decided`].
    #[must_use]
    pub fn index_of(&self, reason: &str) -> Option<usize> {
        self.reasons.iter().position(|known| *known == reason)
    }
}
