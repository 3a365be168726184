//! How long a node takes to answer reads: one smoothed value per node.
//!
//! The scale is logarithmic, so that one report of five seconds among reads of a millisecond does not look like a
//! broken node, while a node on which everything takes ten times as long does after a few answers. Invariants:
//! slower answers count more than faster ones (the tail is what clients feel), and what was measured long ago
//! counts less. Absent on purpose: where the value is kept (`standing`), and the clock.

use std::time::Duration;

/// How far one slower answer moves the smoothed value towards itself.
const RISE: f32 = 1.0 / 4.0;
/// The same of a faster answer.
const FALL: f32 = 1.0 / 16.0;
/// After this long without an answer the old value counts half.
const HALF_AFTER: Duration = Duration::from_secs(1);
/// A value that no answer confirms looks half as slow each time this has passed, so that a node that was slow is
/// tried again.
pub const FADE_AFTER: Duration = Duration::from_secs(1);

/// A time to answer: log2 of nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Latency(f32);

impl Latency {
    /// Less than every other.
    pub const LEAST: Self = Self(1.0);

    /// Of a span; less than two nanoseconds is not told apart.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "24 bits of a span are plenty")]
    pub fn of(span: Duration) -> Self {
        Self((span.as_nanos() as f32).max(2.0).log2())
    }

    /// As a span.
    #[must_use]
    pub fn span(self) -> Duration {
        Duration::from_secs_f32(self.0.exp2().clamp(0.0, 1e18) / 1e9)
    }

    /// How many times as long as the other.
    #[must_use]
    pub fn times(self, other: Self) -> f32 {
        (self.0 - other.0).exp2()
    }

    /// The smoothed value after one more answer, `elapsed` after the one before.
    #[must_use]
    pub fn after(self, answer: Self, elapsed: Duration) -> Self {
        let step = if answer.0 > self.0 { RISE } else { FALL };
        let half = HALF_AFTER.as_secs_f32();
        let kept = (1.0 - step) * half / (half + elapsed.as_secs_f32());
        Self(answer.0 + (self.0 - answer.0) * kept)
    }

    /// What it counts as when the last answer is so old.
    #[must_use]
    pub fn faded(self, age: Duration) -> Self {
        Self((self.0 - age.as_secs_f32() / FADE_AFTER.as_secs_f32()).max(1.0))
    }

    /// The slower one.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.0 > self.0 { other } else { self }
    }

    /// The faster one.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if other.0 < self.0 { other } else { self }
    }

    pub(super) fn to_bits(self) -> u32 {
        self.0.to_bits()
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(f32::from_bits(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Latency {
        Latency::of(Duration::from_millis(millis))
    }

    fn after(start: Latency, answers: &[u64]) -> f32 {
        let smoothed = answers.iter().fold(start, |smoothed, answer| smoothed.after(ms(*answer), Duration::ZERO));
        smoothed.span().as_secs_f32() * 1e3
    }

    #[test]
    fn spans_survive() {
        for millis in [1, 7, 1000, 3_600_000] {
            assert!((ms(millis).span().as_secs_f32() * 1e3 / millis as f32 - 1.0).abs() < 1e-3, "{millis}");
        }
        assert!(Latency::of(Duration::ZERO) <= Latency::of(Duration::from_nanos(2)));
        assert!((ms(50).times(ms(5)) - 10.0).abs() < 0.01);
    }

    #[test]
    fn one_long_read_is_forgiven_and_a_slow_node_is_not() {
        let one = after(ms(1), &[5000]);
        assert!((5.0..12.0).contains(&one), "{one}");
        assert!(after(ms(1), &[&[5000][..], &[1; 20]].concat()) < 2.0);
        let slow = after(ms(1), &[10; 8]);
        assert!((6.0..10.0).contains(&slow), "{slow}");
    }

    #[test]
    fn it_rises_faster_than_it_falls() {
        let half_and_half: Vec<u64> = (0..200).map(|n| if n % 2 == 0 { 1 } else { 4 }).collect();
        let smoothed = after(ms(2), &half_and_half);
        assert!(smoothed > 2.4, "{smoothed}");
    }

    #[test]
    fn old_values_count_less_and_fade() {
        let fresh = ms(100).after(ms(1), Duration::ZERO);
        let old = ms(100).after(ms(1), Duration::from_secs(60));
        assert!(fresh.times(ms(1)) > 50.0 && old.times(ms(1)) < 1.2);
        assert!((ms(100).times(ms(100).faded(FADE_AFTER)) - 2.0).abs() < 0.01);
        assert!(ms(100).faded(Duration::from_secs(1_000_000)).span() < Duration::from_micros(1));
    }
}
