//! Where statements went and why.
//!
//! Invariants: the reasons of a decision are fixed when the metrics are made, so that counting one is
//! an index and an add. Absent on purpose: the texts of statements.

use super::make::Maker;
use super::{IntCounter, IntGauge, Reasons};
use crate::ids::NodeId;
use std::sync::Arc;

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
    /// Transactions that began on a standby and had to move, by what came of it.
    pub trials: Reasons<IntCounter>,
    /// Times a backend was asked what it holds, because a text did not tell what it did.
    pub state_asks: IntCounter,
    /// Attempts to read a database's catalog, by result.
    pub catalog_loads: Reasons<IntCounter>,
    /// Databases whose catalog is known now.
    pub catalogs: IntGauge,
    reasons: Box<[&'static str]>,
    /// By node, then class, then reason; then the same of shadow mode.
    decisions: Box<[IntCounter]>,
}

/// The classes of statements that are routed.
const CLASSES: [&str; 2] = ["read", "write"];

impl RouteMetrics {
    pub(super) fn new(maker: &Maker, nodes: &[Arc<str>], reasons: &[&'static str]) -> Self {
        let labels = ["node", "class", "reason"];
        let taken = maker.counters(
            "route_total",
            "Routing decisions, by node, class of statement and reason (count).",
            &labels,
        );
        let shadow = "Where statements would have gone that shadow mode sent to the primary, likewise (count).";
        let shadow = maker.counters("shadow_route_total", shadow, &labels);
        let mut decisions = Vec::new();
        for family in [taken, shadow] {
            for (node, class) in nodes.iter().flat_map(|node| CLASSES.map(|class| (node, class))) {
                decisions.extend(reasons.iter().map(|reason| family.with_label_values(&[&**node, class, reason])));
            }
        }
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
            trials: maker.reasons(
                "trials_total",
                "Transactions that began on a standby and had to move to the primary, by result (count).",
                "result",
            ),
            state_asks: maker.counter("state_asks_total", "Backends asked what session state they hold (count)."),
            catalog_loads: maker.reasons(
                "catalog_loads_total",
                "Attempts to read the catalog of a database, by result (count).",
                "result",
            ),
            catalogs: maker.gauge("catalogs", "Databases whose catalog is known now (count)."),
            reasons: reasons.into(),
            decisions: decisions.into(),
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

    /// Counts a decision for a node: of a write or a read, by the place of its reason in the slice given at
    /// construction; `shadow`: it was not carried out.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn decided(&self, node: NodeId, writes: bool, reason: usize, shadow: bool) {
        let nodes = self.decisions.len() / self.reasons.len() / CLASSES.len() / 2;
        let family = usize::from(shadow) * nodes;
        let place = ((family + node.index()) * CLASSES.len() + usize::from(writes)) * self.reasons.len() + reason;
        self.decisions[place].inc();
    }

    /// All decisions so far that were carried out.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.decisions[..self.decisions.len() / 2].iter().map(IntCounter::get).sum()
    }

    /// The place of a reason, for [`RouteMetrics::decided`].
    #[must_use]
    pub fn index_of(&self, reason: &str) -> Option<usize> {
        self.reasons.iter().position(|known| *known == reason)
    }
}
