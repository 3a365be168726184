//! The control plane: epoch, lease, failovers, holds, notices, facts.
//!
//! Invariants: exactly one state of writes shows 1. Absent on purpose: what a state means (`failover`
//! decides).

use super::make::Maker;
use super::{Gauge, Histogram, IntCounter, IntGauge, Reasons};

/// What a gauge shows when the value is not known. (0 would say "no lag".)
pub(super) const UNKNOWN: f64 = f64::NAN;

/// Whether writes flow, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WritesState {
    /// The primary takes them.
    Open,
    /// Clients wait.
    Held,
    /// Clients get an error.
    Refused,
}

impl WritesState {
    const ALL: [Self; 3] = [Self::Open, Self::Held, Self::Refused];

    /// Lower-case word for metrics and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Held => "held",
            Self::Refused => "refused",
        }
    }
}

/// Handles of the control plane.
#[derive(Debug)]
pub struct ControlMetrics {
    /// Who-is-primary number.
    pub epoch: IntGauge,
    /// Changes of primary by result.
    pub failovers: Reasons<IntCounter>,
    /// From the loss of the primary until writes flow again, seconds.
    pub failover_seconds: Histogram,
    /// The failover machine's state: 1 for the present one.
    pub failover_state: Reasons<IntGauge>,
    /// Whether an operator said pause.
    pub failover_paused: IntGauge,
    /// What keeps the machine from acting, by kind.
    pub holds: Reasons<IntGauge>,
    /// Time left of the lease for writes.
    pub lease_seconds: Gauge,
    /// Notices by kind.
    pub notices: Reasons<IntCounter>,
    facts_dropped: IntCounter,
    writes: [IntGauge; 3],
}

impl ControlMetrics {
    pub(super) fn new(maker: &Maker) -> Self {
        let writes = maker.gauges("writes", "Whether writes are in this state (0 or 1).", &["state"]);
        Self {
            epoch: maker.gauge("epoch", "Who-is-primary number, grows by one at each change (count)."),
            failovers: maker.reasons("failovers_total", "Changes of the primary, by result (count).", "result"),
            failover_seconds: maker.failover_times(
                "failover_seconds",
                "Time from the loss of the primary until writes flowed again (seconds).",
            ),
            failover_state: maker.gauge_reasons(
                "failover_state",
                "Whether the failover machine is in this state (0 or 1).",
                "state",
            ),
            failover_paused: maker.gauge("failover_paused", "Whether an operator paused failover (0 or 1)."),
            holds: maker.gauge_reasons(
                "holds",
                "What keeps the failover machine from acting, by kind (count).",
                "kind",
            ),
            lease_seconds: maker.float_gauge(
                "lease_seconds",
                "Time left of this proxy's lease for writes, NaN where none is needed (seconds).",
            ),
            notices: maker.reasons("notices_total", "Notices of the control plane, by kind (count).", "kind"),
            facts_dropped: maker.counter(
                "facts_dropped_total",
                "Facts of live traffic dropped because the control plane was behind (count).",
            ),
            writes: WritesState::ALL.map(|state| writes.with_label_values(&[state.word()])),
        }
    }

    /// Shows writes in this state and in no other.
    pub fn show_writes(&self, state: WritesState) {
        for (place, gauge) in self.writes.iter().enumerate() {
            gauge.set(i64::from(place == state as usize));
        }
    }

    /// Raises the counter of dropped facts to `total`; a smaller total is ignored. For one caller
    /// at a time.
    pub fn facts_dropped(&self, total: u64) {
        self.facts_dropped.inc_by(total.saturating_sub(self.facts_dropped.get()));
    }
}
