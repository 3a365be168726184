//! Slows down whoever guesses passwords: failed logins are counted by address and by user.
//!
//! Only failures count, and only failures wait: a right password gets in at once, however many clients share
//! an address, and nobody can lock a user out by failing in its name. An address that goes on failing is
//! refused for a while before anything is checked. Pure: `now` is an argument. Invariants: at most
//! [`ENTRIES_MAX`] counters of a kind; room is made by forgetting those who failed least. Absent on purpose:
//! sleeping (the caller does), and what a failure is.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Time;

/// Counters kept, of addresses and of users each.
const ENTRIES_MAX: usize = 10_000;
/// Longest time that the answer to a failure is held back.
pub const DELAY_MAX: Duration = Duration::from_secs(5);
/// The span that limits are for, seconds.
const SPAN_SECONDS: f64 = 60.0;
/// Bits of an IPv6 address that tell one network from another: whoever has one address there has them all.
const IPV6_NETWORK_BITS: u32 = 64;

/// Failed logins per minute; `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginLimits {
    /// From one address (or one IPv6 network of 64 bits).
    pub per_address: Option<u32>,
    /// As one user.
    pub per_user: Option<u32>,
}

/// Counts failed logins.
#[derive(Debug)]
pub struct LoginLimiter {
    counters: Mutex<Counters>,
}

#[derive(Debug)]
struct Counters {
    limits: LoginLimits,
    addresses: Levels<IpAddr>,
    users: Levels<Box<str>>,
}

impl LoginLimiter {
    /// Nobody has failed yet.
    #[must_use]
    pub fn new(limits: LoginLimits) -> Self {
        Self { counters: Mutex::new(Counters { limits, addresses: Levels::default(), users: Levels::default() }) }
    }

    /// Uses other limits from now on (reload).
    pub fn set_limits(&self, limits: LoginLimits) {
        self.counters.lock().limits = limits;
    }

    /// Before a login: how long this address has to stay away, if it has failed far too often.
    #[must_use]
    pub fn refusal(&self, address: Option<IpAddr>, now: Time) -> Option<Duration> {
        let counters = self.counters.lock();
        let limit = counters.limits.per_address?;
        let level = counters.addresses.level(&network(address?), limit, now);
        let over = level - 2.0 * f64::from(limit);
        (over >= 0.0).then(|| Duration::from_secs_f64((over + 1.0) * SPAN_SECONDS / f64::from(limit)))
    }

    /// A login failed: how long its answer has to wait.
    #[must_use]
    pub fn failed(&self, address: Option<IpAddr>, user: &str, now: Time) -> Duration {
        let mut counters = self.counters.lock();
        let Counters { limits, addresses, users } = &mut *counters;
        let by_address = address.zip(limits.per_address).map(|(address, limit)| {
            let level = addresses.raise(network(address), limit, now);
            delay(level, limit)
        });
        let by_user = limits.per_user.map(|limit| delay(users.raise(user.into(), limit, now), limit));
        by_address.max(by_user).unwrap_or_default()
    }
}

/// Beyond a minute's worth of failures each one waits until it would have been its turn.
fn delay(level: f64, limit: u32) -> Duration {
    let over = (level - f64::from(limit)).max(0.0);
    Duration::from_secs_f64((over * SPAN_SECONDS / f64::from(limit)).min(DELAY_MAX.as_secs_f64()))
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let host = u128::MAX >> IPV6_NETWORK_BITS;
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !host))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// How many failures each has not lived down yet: each failure adds one, time takes `limit` per minute away.
#[derive(Debug)]
struct Levels<K> {
    entries: HashMap<K, Level>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    failures: f64,
    at: Time,
}

impl Level {
    fn now(self, limit: u32, now: Time) -> f64 {
        (self.failures - now.since(self.at).as_secs_f64() * f64::from(limit) / SPAN_SECONDS).max(0.0)
    }
}

impl<K> Default for Levels<K> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Hash + Eq> Levels<K> {
    fn level(&self, key: &K, limit: u32, now: Time) -> f64 {
        self.entries.get(key).map_or(0.0, |level| level.now(limit, now))
    }

    fn raise(&mut self, key: K, limit: u32, now: Time) -> f64 {
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&key) {
            self.make_room(limit, now);
        }
        // Failures beyond what refuses an address for ten minutes would only keep it out longer.
        let failures = (self.level(&key, limit, now) + 1.0).min(f64::from(limit) * 12.0);
        self.entries.insert(key, Level { failures, at: now });
        failures
    }

    /// Forgets those who failed least, until half of the room is free.
    fn make_room(&mut self, limit: u32, now: Time) {
        let mut floor = 0.0;
        while self.entries.len() > ENTRIES_MAX / 2 {
            self.entries.retain(|_, level| level.now(limit, now) > floor);
            floor = floor * 2.0 + 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn limiter(per_address: Option<u32>, per_user: Option<u32>) -> LoginLimiter {
        LoginLimiter::new(LoginLimits { per_address, per_user })
    }

    const HOME: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));
    const AWAY: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

    #[test]
    fn failures_beyond_the_limit_wait_and_then_the_address_is_refused() {
        let limiter = limiter(Some(60), None);
        for _ in 0..60 {
            assert_eq!(limiter.failed(HOME, "joe", at(0)), Duration::ZERO);
        }
        assert_eq!(limiter.failed(HOME, "joe", at(0)), Duration::from_secs(1));
        assert_eq!(limiter.failed(HOME, "ann", at(0)), Duration::from_secs(2));
        assert_eq!(limiter.failed(AWAY, "joe", at(0)), Duration::ZERO, "another address");
        assert_eq!(limiter.refusal(HOME, at(0)), None, "logins are still checked");
        for _ in 62..120 {
            let delay = limiter.failed(HOME, "joe", at(0));
            assert!(delay > Duration::from_secs(2) && delay <= DELAY_MAX, "{delay:?}");
        }
        assert_eq!(limiter.refusal(HOME, at(0)), Some(Duration::from_secs(1)));
        assert_eq!(limiter.refusal(AWAY, at(0)), None);
        assert_eq!(limiter.refusal(HOME, at(1_000)), None, "one failure is lived down per second");
        assert_eq!(limiter.failed(HOME, "joe", at(120_000)), Duration::ZERO);
    }

    #[test]
    fn a_user_is_slowed_but_never_refused() {
        let limiter = limiter(None, Some(6));
        for _ in 0..1_000 {
            let _ = limiter.failed(HOME, "joe", at(0));
        }
        assert_eq!(limiter.failed(AWAY, "joe", at(0)), DELAY_MAX, "wherever it comes from");
        assert_eq!(limiter.failed(AWAY, "ann", at(0)), Duration::ZERO);
        assert_eq!(limiter.refusal(HOME, at(0)), None);
    }

    #[test]
    fn nothing_is_counted_without_limits_or_address() {
        let free = limiter(None, None);
        let local = limiter(Some(1), None);
        for _ in 0..100 {
            assert_eq!(free.failed(HOME, "joe", at(0)), Duration::ZERO);
            assert_eq!(local.failed(None, "joe", at(0)), Duration::ZERO);
        }
        assert_eq!((free.refusal(HOME, at(0)), local.refusal(None, at(0))), (None, None));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_mapped_ipv4_as_ipv4() {
        let limiter = limiter(Some(1), None);
        let v6 = |text: &str| Some(text.parse().unwrap());
        let _ = limiter.failed(v6("2001:db8::1"), "joe", at(0));
        assert!(limiter.failed(v6("2001:db8::ffff:2"), "joe", at(0)) > Duration::ZERO);
        assert_eq!(limiter.failed(v6("2001:db8:0:1::1"), "joe", at(0)), Duration::ZERO);
        let _ = limiter.failed(HOME, "joe", at(0));
        assert!(limiter.failed(v6("::ffff:10.0.0.1"), "joe", at(0)) > Duration::ZERO);
    }

    #[test]
    fn made_up_names_do_not_fill_it_nor_free_a_guesser() {
        let limiter = limiter(None, Some(2));
        for _ in 0..20 {
            let _ = limiter.failed(HOME, "joe", at(0));
        }
        for number in 0..3 * ENTRIES_MAX {
            let _ = limiter.failed(HOME, &format!("guess{number}"), at(0));
            assert!(limiter.counters.lock().users.entries.len() <= ENTRIES_MAX);
        }
        assert_eq!(limiter.failed(HOME, "joe", at(0)), DELAY_MAX);
    }

    proptest! {
        /// Over any time a guesser gets no more answers than the limit allows, and a burst.
        #[test]
        fn guesses_are_bounded(limit in 1u32..200, pauses in prop::collection::vec(0u64..3_000, 1..400)) {
            let limiter = limiter(Some(limit), None);
            let (mut now, mut answered) = (0, 0u32);
            for pause in pauses {
                now += pause;
                if limiter.refusal(HOME, at(now)).is_none() {
                    answered += 1;
                    let _ = limiter.failed(HOME, "joe", at(now));
                }
            }
            let allowed = f64::from(limit) * (2.0 + at(now).since(Time::ZERO).as_secs_f64() / SPAN_SECONDS) + 1.0;
            prop_assert!(f64::from(answered) <= allowed, "{} > {}", answered, allowed);
        }
    }
}
