//! The only place that reads time. Everywhere else `now` is an argument.
//!
//! Invariants: [`Time`] never goes backwards within a process. Absent on purpose: wall-clock time
//! (nothing may be decided by it; logs get theirs from `tracing`).

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A point on this process's monotonic clock, in nanoseconds since the clock was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// The clock's beginning; earlier than or equal to every other point.
    pub const ZERO: Self = Self(0);
    /// Later than every point the clock will ever show.
    pub const NEVER: Self = Self(u64::MAX);

    /// From nanoseconds since the clock was made.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock was made.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanos))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s", Duration::from_nanos(self.0).as_secs_f64())
    }
}

/// Reads time: the machine's monotonic clock, or one that a test moves by hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Machine { start: Instant },
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's monotonic clock, counted from one second before now (so that "never
    /// happened" can be [`Time::ZERO`] and still be in the past).
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn machine() -> Self {
        let now = Instant::now();
        let start = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        Self(Source::Machine { start })
    }

    /// A clock that stands still until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(1_000_000_000))))
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::Machine { start } => Time::ZERO + start.elapsed(),
            Source::Manual(nanos) => Time(nanos.load(Ordering::SeqCst)),
        }
    }

    /// The tokio instant that corresponds to `at`, for `sleep_until`.
    #[must_use]
    pub fn instant(&self, at: Time) -> tokio::time::Instant {
        let far = Duration::from_secs(86_400 * 365);
        tokio::time::Instant::now() + at.since(self.now()).min(far)
    }

    /// Moves a manual clock forward; no effect on the machine's clock.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual(nanos) = &self.0 {
            let step = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
            nanos.fetch_add(step, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_at_both_ends() {
        assert_eq!(Time::NEVER + Duration::from_secs(1), Time::NEVER);
        assert_eq!(Time::ZERO - Duration::from_secs(1), Time::ZERO);
        assert_eq!(Time::ZERO.since(Time::NEVER), Duration::ZERO);
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual();
        let before = clock.now();
        clock.advance(Duration::from_millis(5));
        assert_eq!(clock.now().since(before), Duration::from_millis(5));
    }
}
