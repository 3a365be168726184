//! What live traffic knows of each node: work in flight, time to answer, failures, since when it takes reads.
//!
//! One record of atomics per node, written by all sessions. Invariants: recording is a few relaxed atomic
//! operations, without a lock, an allocation or a loop; two sessions that record at once may lose one of the two
//! answers, never make up a value. What decides gets [`Vitals`], plain values of one moment. Absent on purpose: the
//! clock, and any decision.

use super::latency::Latency;
use super::outlier::Outlier;
use crate::clock::Time;
use crate::ids::NodeId;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The full share of [`Vitals::share`].
pub const WHOLE: u32 = 256;
/// The share with which a slow start begins.
const SHARE_MIN: u32 = WHOLE / 32;
/// For nanoseconds in a millisecond.
const MILLI: u64 = 1_000_000;

/// What an operator lets a node do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Everything.
    Enabled,
    /// No new reads, as long as another node can take them.
    Draining,
    /// No reads at all, and it is not promoted.
    Maintenance,
}

impl Service {
    /// All of them, each at its own index.
    pub const ALL: [Self; 3] = [Self::Enabled, Self::Draining, Self::Maintenance];

    /// For people, JSON and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
        }
    }
}

/// One node at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vitals {
    /// Units that have it or wait for it.
    pub in_flight: u32,
    /// How long reads took, if any were answered.
    pub latency: Option<Latency>,
    /// How long ago the last of them was answered.
    pub answered_ago: Duration,
    /// Answered reads since it began to take them.
    pub answers: u32,
    /// Reads and connects that failed since the last answer.
    pub failures: u32,
    /// What it takes of the share that its weight gives it, of [`WHOLE`]: less while it starts slowly.
    pub share: u32,
    /// What an operator lets it do.
    pub service: Service,
    /// Why it is ejected.
    pub ejected: Option<Outlier>,
}

impl Vitals {
    /// Of a node of which nothing is known.
    pub const UNKNOWN: Self = Self {
        in_flight: 0,
        latency: None,
        answered_ago: Duration::ZERO,
        answers: 0,
        failures: 0,
        share: WHOLE,
        service: Service::Enabled,
        ejected: None,
    };
}

/// One node's record. Alone on its cache lines, because all workers write to it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Standing {
    in_flight: AtomicU32,
    /// The smoothed latency's bits above, the milliseconds of its last answer below; 0: none.
    latency: AtomicU64,
    answers: AtomicU32,
    failures: AtomicU32,
    /// Nanoseconds.
    joined: AtomicU64,
    service: AtomicU8,
    /// 0, or one more than the [`Outlier`].
    ejected: AtomicU8,
}

impl Standing {
    /// A unit is going there.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// It is done with, or did not get there.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A read outside a transaction was answered at `now`, `took` after it was sent.
    pub fn answered(&self, took: Duration, now: Time) {
        let answer = Latency::of(took);
        let word = self.latency.load(Relaxed);
        let smoothed = unpack(word, now).map_or(answer, |(before, age)| before.after(answer, age));
        self.latency.store(pack(smoothed, now), Relaxed);
        self.answers.fetch_add(1, Relaxed);
        if self.failures.load(Relaxed) > 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// A read's backend was lost, or none could be opened.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// It takes reads from now on: nothing that was measured before counts, and it starts slowly.
    pub fn join(&self, now: Time) {
        self.latency.store(0, Relaxed);
        self.answers.store(0, Relaxed);
        self.failures.store(0, Relaxed);
        self.joined.store(now.as_nanos(), Relaxed);
    }

    /// What an operator lets it do from now on.
    pub fn set_service(&self, service: Service) {
        self.service.store(service as u8, Relaxed);
    }

    /// What an operator lets it do.
    #[must_use]
    pub fn service(&self) -> Service {
        Service::ALL[usize::from(self.service.load(Relaxed)).min(Service::ALL.len() - 1)]
    }

    /// Ejects it, or lets it take part again.
    pub fn set_ejected(&self, why: Option<Outlier>) {
        self.ejected.store(why.map_or(0, |why| why as u8 + 1), Relaxed);
    }

    /// The values of this moment.
    #[must_use]
    pub fn vitals(&self, now: Time, slow_start: Duration) -> Vitals {
        let latency = unpack(self.latency.load(Relaxed), now);
        let ejected = usize::from(self.ejected.load(Relaxed));
        Vitals {
            in_flight: self.in_flight.load(Relaxed),
            latency: latency.map(|(latency, _)| latency),
            answered_ago: latency.map_or(Duration::ZERO, |(_, age)| age),
            answers: self.answers.load(Relaxed),
            failures: self.failures.load(Relaxed),
            share: share(now.since(Time::from_nanos(self.joined.load(Relaxed))), slow_start),
            service: self.service(),
            ejected: ejected.checked_sub(1).and_then(|index| Outlier::ALL.get(index)).copied(),
        }
    }
}

/// The share of a node that has taken reads for `since`: it grows linearly.
fn share(since: Duration, slow_start: Duration) -> u32 {
    if since >= slow_start {
        return WHOLE;
    }
    let part = since.as_nanos() * u128::from(WHOLE) / slow_start.as_nanos().max(1);
    u32::try_from(part).unwrap_or(WHOLE).clamp(SHARE_MIN, WHOLE)
}

fn pack(latency: Latency, now: Time) -> u64 {
    u64::from(latency.to_bits()) << 32 | (now.as_nanos() / MILLI) & u64::from(u32::MAX)
}

/// The latency and its age; a time that another session has just written may lie a little ahead.
fn unpack(word: u64, now: Time) -> Option<(Latency, Duration)> {
    let bits = u32::try_from(word >> 32).ok().filter(|bits| *bits != 0)?;
    let (then, now) = (word as u32, (now.as_nanos() / MILLI) as u32);
    let age = u64::try_from(now.wrapping_sub(then).cast_signed()).unwrap_or(0);
    Some((Latency::from_bits(bits), Duration::from_millis(age)))
}

/// All nodes' records.
#[derive(Debug)]
pub struct Standings(Box<[Standing]>);

impl Standings {
    /// Of so many nodes.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self((0..nodes).map(|_| Standing::default()).collect())
    }

    /// One node's.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn of(&self, node: NodeId) -> &Standing {
        &self.0[node.index()]
    }

    /// Units under way on all of them.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.0.iter().map(|standing| u64::from(standing.in_flight.load(Relaxed))).sum()
    }

    /// All, by [`NodeId::index`].
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Standing)> {
        (0..).map(NodeId).zip(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW_START: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * MILLI)
    }

    #[test]
    fn what_is_recorded_is_read() {
        let standing = Standing::default();
        assert_eq!(standing.vitals(at(60_000), SLOW_START), Vitals::UNKNOWN);
        standing.begin();
        standing.begin();
        standing.end();
        standing.failed();
        standing.answered(Duration::from_millis(8), at(60_000));
        standing.failed();
        standing.set_service(Service::Maintenance);
        standing.set_ejected(Some(Outlier::Slow));
        let vitals = standing.vitals(at(60_250), SLOW_START);
        let took = vitals.latency.unwrap().span().as_secs_f32();
        assert!((0.0079..0.0081).contains(&took), "{took}");
        assert_eq!((vitals.in_flight, vitals.answers, vitals.failures), (1, 1, 1));
        assert_eq!(vitals.answered_ago, Duration::from_millis(250));
        assert_eq!((vitals.service, vitals.ejected), (Service::Maintenance, Some(Outlier::Slow)));
    }

    #[test]
    fn an_answer_from_the_future_and_a_clock_past_its_32_bits_do_no_harm() {
        let standing = Standing::default();
        standing.answered(Duration::from_millis(1), at(1_000));
        assert_eq!(standing.vitals(at(999), SLOW_START).answered_ago, Duration::ZERO);
        standing.answered(Duration::from_millis(1), at(u64::from(u32::MAX)));
        assert_eq!(standing.vitals(at(u64::from(u32::MAX) + 5), SLOW_START).answered_ago, Duration::from_millis(5));
    }

    #[test]
    fn joining_forgets_and_starts_slowly() {
        let standing = Standing::default();
        standing.answered(Duration::from_secs(1), at(60_000));
        standing.failed();
        standing.join(at(60_000));
        let share = |after: u64| standing.vitals(at(60_000 + after), SLOW_START).share;
        assert_eq!((share(0), share(5_000), share(7_500), share(10_000)), (SHARE_MIN, WHOLE / 2, WHOLE * 3 / 4, WHOLE));
        let vitals = standing.vitals(at(60_000), Duration::ZERO);
        assert_eq!((vitals.latency, vitals.answers, vitals.failures, vitals.share), (None, 0, 0, WHOLE));
    }
}
