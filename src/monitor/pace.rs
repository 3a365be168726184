//! How long a node may take for an answer, learnt from how long it took before.
//!
//! Pure. Times of the last five minutes are counted in buckets, four to a power of two, so that the memory is fixed. The
//! limit is four times the 99.9th percentile (with a probe every half second that is nearly the slowest), at least
//! [`LIMIT_MIN`], and doubles with each miss in a row. Invariants: a node that nothing is known of gets the whole
//! configured limit, which is never exceeded. Absent on purpose: misses as times (they are none).

use crate::clock::Time;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// No node is given less, however quick it was.
pub(super) const LIMIT_MIN: Duration = Duration::from_millis(250);
/// The limit in terms of the slow end of what was seen.
const LIMIT_FACTOR: u32 = 4;
/// Buckets per power of two, and powers of two of microseconds (up to more than a minute).
const STEPS: usize = 4;
const POWERS: usize = 27;
const BUCKETS: usize = STEPS * POWERS;
/// Windows that are kept, and how long each lasts.
const WINDOWS: usize = 6;
const WINDOW: Duration = Duration::from_secs(60);

/// What is known of one node.
#[derive(Debug)]
pub(super) struct Pace {
    windows: [[u32; BUCKETS]; WINDOWS],
    /// The window that is filled, and since when.
    at: usize,
    since: Time,
}

/// One that two tasks of a node fill. Locked for moments, never across a wait.
pub(super) type SharedPace = Arc<Mutex<Pace>>;

impl Pace {
    pub(super) fn new(now: Time) -> Self {
        Self { windows: [[0; BUCKETS]; WINDOWS], at: 0, since: now }
    }

    /// An answer took so long.
    pub(super) fn took(&mut self, span: Duration, now: Time) {
        self.turn(now);
        if let Some(count) = self.windows[self.at].get_mut(bucket(span)) {
            *count = count.saturating_add(1);
        }
    }

    /// Forgets what is too old.
    fn turn(&mut self, now: Time) {
        for _ in 0..WINDOWS {
            if now.since(self.since) < WINDOW {
                return;
            }
            self.at = (self.at + 1) % WINDOWS;
            self.windows[self.at] = [0; BUCKETS];
            self.since = self.since + WINDOW;
        }
        // Longer ago than all windows together.
        self.since = now;
    }

    /// How long the next answer may take, after so many misses in a row; never more than `most`.
    pub(super) fn limit(&mut self, misses: u32, most: Duration, now: Time) -> Duration {
        self.turn(now);
        let Some(slow) = self.slow() else { return most };
        let limit = (slow * LIMIT_FACTOR).max(LIMIT_MIN);
        limit.saturating_mul(1 << misses.min(8)).min(most)
    }

    /// The 99.9th percentile, rounded up to the end of its bucket.
    fn slow(&self) -> Option<Duration> {
        let total: u64 = self.windows.iter().flatten().map(|count| u64::from(*count)).sum();
        // How many may be slower.
        let mut left = total / 1000;
        for at in (0..BUCKETS).rev() {
            let count: u64 = self.windows.iter().map(|window| u64::from(window[at])).sum();
            if count > left {
                return Some(upper(at));
            }
            left -= count;
        }
        None
    }
}

fn bucket(span: Duration) -> usize {
    let micros = span.as_micros().max(1);
    let power = micros.ilog2() as usize;
    // The two bits after the leading one.
    let step = if power >= 2 { (micros >> (power - 2)) & 3 } else { 3 };
    (power * STEPS + usize::try_from(step).unwrap_or(0)).min(BUCKETS - 1)
}

fn upper(bucket: usize) -> Duration {
    let (power, step) = (bucket / STEPS, bucket % STEPS);
    Duration::from_micros((1u64 << power) * (STEPS + step + 1) as u64 / STEPS as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_bucket_ends_above_what_is_in_it_and_not_far_above() {
        for micros in [1, 2, 3, 7, 100, 999, 12_345, 250_000, 999_999, 50_000_000] {
            let span = Duration::from_micros(micros);
            let end = upper(bucket(span));
            assert!(end >= span && end <= span * 2, "{span:?} {end:?}");
        }
        assert!(upper(bucket(Duration::from_secs(3600))) > Duration::from_secs(60));
    }

    #[test]
    fn quick_nodes_get_the_least_slow_ones_what_they_need_strangers_everything() {
        let mut pace = Pace::new(at(0));
        assert_eq!(pace.limit(0, MOST, at(0)), MOST);
        pace.took(ms(1), at(1));
        assert_eq!(pace.limit(0, MOST, at(1)), LIMIT_MIN);
        assert_eq!((1..4).map(|misses| pace.limit(misses, MOST, at(1))).collect::<Vec<_>>(), [ms(500), MOST, MOST]);
        pace.took(ms(100), at(2));
        let limit = pace.limit(0, MOST, at(2));
        assert!(limit >= ms(400) && limit <= ms(520), "{limit:?}");
        assert_eq!(pace.limit(0, ms(50), at(2)), ms(50));
    }

    #[test]
    fn one_slow_answer_in_a_thousand_is_left_out_and_five_minutes_forget() {
        let mut pace = Pace::new(at(0));
        pace.took(ms(900), at(0));
        (0..999).for_each(|_| pace.took(ms(1), at(0)));
        assert_eq!(pace.limit(0, MOST, at(1)), LIMIT_MIN);
        pace.took(ms(900), at(1));
        assert_eq!(pace.limit(0, MOST, at(1)), MOST);
        pace.took(ms(1), at(299));
        assert_eq!(pace.limit(0, MOST, at(299)), MOST);
        assert_eq!(pace.limit(0, MOST, at(370)), LIMIT_MIN);
        assert_eq!(pace.limit(0, MOST, at(100_000)), MOST, "nothing is known any more");
    }
}
