//! The only place that reads time. Everywhere else `now` is an argument.
//!
//! The machine's clock is `CLOCK_BOOTTIME`: it is monotonic and, unlike what `Instant` reads on Linux, it runs on while
//! the machine is suspended. The others count that time: the servers end the sessions that hold our locks, a store
//! lets our lease run out, another proxy promotes. A deadline on a clock that stood still would still lie in the future
//! after we wake, and an acknowledgement of the old primary would be believed. It costs the same as `Instant` (27 ns
//! instead of 23, both without entering the kernel). A virtual machine that its host stops may be shown no time at all for
//! that, on any clock; only the fence and what the next renewal says end it there.
//!
//! Invariants: [`Time`] never goes backwards within a process. Timers of tokio do not count a suspend, so what
//! [`Clock::instant`] gives may fire late by its length: a timer only wakes somebody up, who then reads this clock.
//! Absent on purpose: wall-clock time (nothing may be decided by it; logs get theirs from `tracing`).

use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The clock that runs through suspend. (Elsewhere the monotonic one is the best there is; macOS counts sleep in it.)
#[cfg(target_os = "linux")]
const MACHINE: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const MACHINE: ClockId = ClockId::Monotonic;

/// Where a clock begins, so that "never happened" can be [`Time::ZERO`] and still be in the past.
const FIRST: Duration = Duration::from_secs(1);

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

/// Reads time: the machine's clock, or one that a test moves by hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// What the machine showed when this clock was made.
    Machine {
        start: Duration,
    },
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's clock, counted from one second before now.
    #[must_use]
    pub fn machine() -> Self {
        Self(Source::Machine { start: shown() })
    }

    /// A clock that stands still until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new((Time::ZERO + FIRST).as_nanos()))))
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::Machine { start } => Time::ZERO + FIRST + shown().saturating_sub(*start),
            Source::Manual(nanos) => Time(nanos.load(Ordering::SeqCst)),
        }
    }

    /// The tokio instant that corresponds to `at`, for `sleep_until`.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
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

/// What the machine's clock shows.
fn shown() -> Duration {
    let time = clock_gettime(MACHINE);
    // It counts from boot: neither part is ever negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
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

    #[test]
    fn the_machines_clock_counts_from_its_first_second_and_only_forward() {
        let clock = Clock::machine();
        let mut last = clock.now();
        assert!(last >= Time::ZERO + FIRST && last < Time::ZERO + FIRST * 2);
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
        assert!(last > Time::ZERO + FIRST);
    }

    #[tokio::test]
    async fn a_point_of_time_has_its_instant() {
        let clock = Clock::machine();
        let far = clock.instant(clock.now() + Duration::from_secs(60));
        let away = far.duration_since(tokio::time::Instant::now());
        assert!(away > Duration::from_secs(59) && away <= Duration::from_secs(60), "{away:?}");
    }
}
