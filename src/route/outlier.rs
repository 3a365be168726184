//! Which standbys are ejected for a while because they fail or are far slower than the others.
//!
//! A state machine with time as an argument. A standby is ejected when [`FAILURES`] reads or connects in a row failed,
//! or when its smoothed latency was above [`SLOW_LEAST`] and more than [`SLOW_TIMES`] the median of the others for
//! [`SLOW_FOR`]; for [`SPAN_MIN`] at first, twice as long each time, at most [`SPAN_MAX`]. Invariants: never more than
//! half of the usable standbys are ejected, so never the last one; an ejection ends by itself. Roles and health are not
//! touched: the control plane judges those by itself. Absent on purpose: the atomics it is fed from.

use super::latency::Latency;
use crate::clock::Time;
use crate::ids::NodeId;
use std::time::Duration;

/// Failures in a row, without an answer between them, that eject a standby.
pub const FAILURES: u32 = 5;
/// Answers that must have come from a standby before it is compared with others.
pub const ANSWERS_MIN: u32 = 20;
/// Measurements older than this are not compared.
pub const MEASURED_WITHIN: Duration = Duration::from_secs(10);
/// So many times the median of the others is too slow.
pub const SLOW_TIMES: f32 = 5.0;
/// Nobody is ejected for being slow while it is faster than this.
pub const SLOW_LEAST: Duration = Duration::from_millis(5);
/// How long it must have been too slow.
pub const SLOW_FOR: Duration = Duration::from_secs(1);
/// How long the first ejection lasts.
pub const SPAN_MIN: Duration = Duration::from_secs(5);
/// How long an ejection lasts at most; also, after how long without one the next is a first one again.
pub const SPAN_MAX: Duration = Duration::from_secs(300);

/// Why a standby is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outlier {
    /// Its reads or connects fail.
    Failing,
    /// It is far slower than the others.
    Slow,
}

impl Outlier {
    /// All of them, each at its own index.
    pub const ALL: [Self; 2] = [Self::Failing, Self::Slow];

    /// For people, JSON and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Slow => "slow",
        }
    }
}

/// What is known of one node at this step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// May it be chosen for reads, but for an ejection?
    pub usable: bool,
    /// Failures since its last answer.
    pub failures: u32,
    /// Its latency, if that has been measured often enough and lately.
    pub latency: Option<Latency>,
}

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is left out for this long.
    Ejected(Outlier, Duration),
    /// It takes part again.
    Returned,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// It takes part, since then; it has been too slow since `slow_since`.
    In { since: Time, slow_since: Option<Time> },
    /// It is left out until then.
    Out { until: Time },
}

#[derive(Clone, Copy, Debug)]
struct Judged {
    state: State,
    /// Ejections that the next one counts.
    times: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Outliers(Vec<Judged>);

impl Outliers {
    /// Of so many nodes, none of them ejected.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        let state = State::In { since: Time::ZERO, slow_since: None };
        Self(vec![Judged { state, times: 0 }; nodes])
    }

    /// Judges every node anew; `seen` has one entry per node.
    pub fn step(&mut self, seen: &[Seen], now: Time) -> Vec<(NodeId, Change)> {
        let mut changes = Vec::new();
        self.let_back(seen, now, &mut changes);
        for index in 0..self.0.len().min(seen.len()) {
            if changes.iter().any(|(returned, _)| *returned == node(index)) {
                // What is seen of it is from before it was left out.
                continue;
            }
            let why = self.judge(seen, index, now);
            let usable = seen.iter().filter(|seen| seen.usable).count();
            if let Some(why) = why
                && (self.out(seen).count() + 1) * 2 <= usable
            {
                let judged = &mut self.0[index];
                let span = SPAN_MIN.saturating_mul(1 << judged.times.min(16)).min(SPAN_MAX);
                *judged = Judged { state: State::Out { until: now + span }, times: judged.times.saturating_add(1) };
                changes.push((node(index), Change::Ejected(why, span)));
            }
        }
        changes
    }

    /// Ends ejections that have lasted, or that are too many now.
    fn let_back(&mut self, seen: &[Seen], now: Time, changes: &mut Vec<(NodeId, Change)>) {
        let usable = seen.iter().filter(|seen| seen.usable).count();
        loop {
            let due = |until: Time| until <= now;
            let lasted = (0..self.0.len()).find(|index| self.until(*index).is_some_and(due));
            let too_many = self.out(seen).count() * 2 > usable;
            let first = || self.out(seen).min_by_key(|index| self.until(*index));
            let Some(index) = lasted.or_else(|| first().filter(|_| too_many)) else { return };
            self.0[index].state = State::In { since: now, slow_since: None };
            changes.push((node(index), Change::Returned));
        }
    }

    fn until(&self, index: usize) -> Option<Time> {
        match self.0[index].state {
            State::Out { until } => Some(until),
            State::In { .. } => None,
        }
    }

    /// The ejected ones that could be chosen otherwise.
    fn out<'a>(&'a self, seen: &'a [Seen]) -> impl Iterator<Item = usize> + 'a {
        (0..self.0.len()).filter(|index| self.until(*index).is_some() && seen.get(*index).is_some_and(|s| s.usable))
    }

    fn judge(&mut self, seen: &[Seen], index: usize, now: Time) -> Option<Outlier> {
        let State::In { since, slow_since } = self.0[index].state else { return None };
        if now.since(since) >= SPAN_MAX {
            self.0[index].times = 0;
        }
        if !seen[index].usable {
            return None;
        }
        let slow_since = self.is_slow(seen, index).then(|| slow_since.unwrap_or(now));
        self.0[index].state = State::In { since, slow_since };
        if seen[index].failures >= FAILURES {
            return Some(Outlier::Failing);
        }
        slow_since.filter(|since| now.since(*since) >= SLOW_FOR).map(|_| Outlier::Slow)
    }

    fn is_slow(&self, seen: &[Seen], index: usize) -> bool {
        let Some(own) = seen[index].latency.filter(|latency| latency.span() > SLOW_LEAST) else { return false };
        let takes_part = |other: &usize| *other != index && seen[*other].usable && self.until(*other).is_none();
        let others = (0..self.0.len().min(seen.len())).filter(takes_part);
        let mut others: Vec<Latency> = others.filter_map(|other| seen[other].latency).collect();
        others.sort_by(|one, two| one.partial_cmp(two).unwrap_or(std::cmp::Ordering::Equal));
        // Of two, the slower: both must be faster by far.
        others.get(others.len() / 2).is_some_and(|median| own.times(*median) > SLOW_TIMES)
    }
}

fn node(index: usize) -> NodeId {
    NodeId(u16::try_from(index).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FINE: Seen = Seen { usable: true, failures: 0, latency: None };
    const FAILING: Seen = Seen { failures: FAILURES, ..FINE };

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(1000.0 + seconds)
    }

    fn taking(millis: u64) -> Seen {
        Seen { latency: Some(Latency::of(Duration::from_millis(millis))), ..FINE }
    }

    #[test]
    fn failures_eject_and_each_ejection_lasts_longer() {
        let mut outliers = Outliers::new(3);
        assert_eq!(outliers.step(&[FINE, Seen { failures: FAILURES - 1, ..FINE }, FINE], at(0.0)), []);
        let mut now = 0.0;
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            let span = Duration::from_secs(seconds);
            let out = (NodeId(1), Change::Ejected(Outlier::Failing, span));
            assert_eq!(outliers.step(&[FINE, FAILING, FINE], at(now)), [out]);
            now += span.as_secs_f64();
            assert_eq!(outliers.step(&[FINE, FINE, FINE], at(now - 0.001)), []);
            assert_eq!(outliers.step(&[FINE, FAILING, FINE], at(now)), [(NodeId(1), Change::Returned)]);
        }
        now += SPAN_MAX.as_secs_f64();
        outliers.step(&[FINE; 3], at(now));
        let first = (NodeId(1), Change::Ejected(Outlier::Failing, SPAN_MIN));
        assert_eq!(outliers.step(&[FINE, FAILING, FINE], at(now)), [first]);
    }

    #[test]
    fn the_slow_one_is_ejected_once_it_was_slow_for_a_while() {
        let seen = [taking(6), taking(31), taking(6)];
        let mut outliers = Outliers::new(3);
        assert_eq!(outliers.step(&seen, at(0.0)), []);
        assert_eq!(outliers.step(&seen, at(0.9)), []);
        assert_eq!(outliers.step(&[taking(6); 3], at(0.95)), [], "it was fine between");
        assert_eq!(outliers.step(&seen, at(1.0)), []);
        let out = (NodeId(1), Change::Ejected(Outlier::Slow, SPAN_MIN));
        assert_eq!(outliers.step(&seen, at(2.0)), [out]);
    }

    #[test]
    fn a_difference_that_nobody_feels_is_none() {
        for seen in [[taking(1), taking(4), taking(1)], [taking(10), taking(49), taking(10)], [taking(90), FINE, FINE]]
        {
            let mut outliers = Outliers::new(3);
            outliers.step(&seen, at(0.0));
            assert_eq!(outliers.step(&seen, at(9.0)), [], "{seen:?}");
        }
    }

    #[test]
    fn the_last_usable_one_is_never_ejected() {
        let gone = Seen { usable: false, ..FAILING };
        assert_eq!(Outliers::new(2).step(&[FAILING, gone], at(0.0)), []);
        let mut outliers = Outliers::new(2);
        assert_eq!(outliers.step(&[FAILING, FAILING], at(0.0)).len(), 1);
        // The other one goes down: the ejected one is better than nothing.
        assert_eq!(outliers.step(&[FINE, gone], at(0.1)), [(NodeId(0), Change::Returned)]);
    }

    proptest! {
        /// Whatever is seen: at most half of the usable ones are out after a step, and every ejection ends.
        #[test]
        fn at_most_half_are_out(
            steps in prop::collection::vec((prop::collection::vec((any::<bool>(), 0..8u32, 0..200u64), 5), 0..40u32), 1..60)
        ) {
            let mut outliers = Outliers::new(5);
            let mut now = at(0.0);
            for (nodes, seconds) in steps {
                now = now + Duration::from_secs(u64::from(seconds)) / 4;
                let seen: Vec<Seen> = nodes
                    .iter()
                    .map(|(usable, failures, millis)| Seen { usable: *usable, failures: *failures, ..taking(*millis) })
                    .collect();
                outliers.step(&seen, now);
                let usable = seen.iter().filter(|seen| seen.usable).count();
                prop_assert!(outliers.out(&seen).count() * 2 <= usable);
            }
            let returned = outliers.step(&[FINE; 5], now + SPAN_MAX).len();
            prop_assert_eq!(outliers.out(&[FINE; 5]).count(), 0, "{} returned", returned);
        }
    }
}
