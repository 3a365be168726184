//! Answers of `auth_query`, kept for a short while. Pure: `now` is an argument.
//!
//! Invariants: at most [`USERS_MAX`] answers; an answer never outlives the role's `VALID UNTIL`;
//! an answer asked for earlier never replaces one asked for later. Absent on purpose: asking.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::secret::StoredSecret;
use crate::clock::Time;

/// Answers kept. Clients may try any user name: beyond this, room is made.
pub(super) const USERS_MAX: usize = 10_000;
/// "No such user" is kept no longer than this, so that a new role can log in soon.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);
/// An answer younger than this is not asked for again after a rejected login, so that guessing
/// passwords costs the nodes next to nothing.
const REFRESH_GAP: Duration = Duration::from_secs(1);

/// What a node said of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// `None`: no such user, no password, or it may not log in.
    pub(super) secret: Option<Arc<StoredSecret>>,
    /// From here on it may not log in.
    pub(super) valid_until: Time,
}

impl Answer {
    pub(super) fn nobody() -> Self {
        Self { secret: None, valid_until: Time::NEVER }
    }

    pub(super) fn secret_at(&self, now: Time) -> Option<Arc<StoredSecret>> {
        self.secret.clone().filter(|_| now < self.valid_until)
    }
}

#[derive(Debug)]
struct Entry {
    answer: Answer,
    asked_at: Time,
}

#[derive(Debug)]
pub(super) struct Cache {
    ttl: Duration,
    entries: HashMap<Box<str>, Entry>,
}

impl Cache {
    /// Keeps answers for `ttl`; zero keeps none.
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, entries: HashMap::new() }
    }

    /// The kept answer, if it is still good.
    pub(super) fn find(&self, user: &str, now: Time) -> Option<&Answer> {
        let entry = self.entries.get(user)?;
        self.is_good(entry, now).then_some(&entry.answer)
    }

    fn is_good(&self, entry: &Entry, now: Time) -> bool {
        let ttl = if entry.answer.secret.is_some() { self.ttl } else { self.ttl.min(NEGATIVE_TTL) };
        now.since(entry.asked_at) < ttl
    }

    /// Keeps an answer that was asked for at `asked_at`.
    pub(super) fn keep(&mut self, user: &str, answer: Answer, asked_at: Time) {
        if self.ttl.is_zero() || self.entries.get(user).is_some_and(|entry| asked_at < entry.asked_at) {
            return;
        }
        if self.entries.len() >= USERS_MAX && !self.entries.contains_key(user) {
            self.make_room(asked_at);
        }
        self.entries.insert(user.into(), Entry { answer, asked_at });
    }

    /// Drops what is stale; if that is not enough, the names that nobody has; else all.
    /// Each step frees many places or is followed by one that does, so that it is rare.
    fn make_room(&mut self, now: Time) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|_, entry| self.is_good(entry, now));
        if entries.len() > USERS_MAX / 2 {
            entries.retain(|_, entry| entry.answer.secret.is_some());
        }
        if entries.len() > USERS_MAX / 2 {
            entries.clear();
        }
        self.entries = entries;
    }

    /// After a rejected login: drops the answer so that it is asked for again. `false`: it is too
    /// young for that, ask nobody.
    pub(super) fn expire(&mut self, user: &str, now: Time) -> bool {
        if self.entries.get(user).is_some_and(|entry| now.since(entry.asked_at) < REFRESH_GAP) {
            return false;
        }
        self.entries.remove(user);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::Plain;
    use super::*;
    use crate::config::Secret;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn known() -> Answer {
        let secret = StoredSecret::Plain(Plain::new(Secret::new("x")));
        Answer { secret: Some(Arc::new(secret)), valid_until: Time::NEVER }
    }

    #[test]
    fn answers_are_kept_for_their_time() {
        let mut cache = Cache::new(Duration::from_secs(10));
        cache.keep("joe", known(), at(0));
        cache.keep("nobody", Answer::nobody(), at(0));
        assert_eq!(cache.find("joe", at(9_999)), Some(&known()));
        assert_eq!(cache.find("joe", at(10_000)), None);
        assert_eq!(cache.find("nobody", at(999)), Some(&Answer::nobody()));
        assert_eq!(cache.find("nobody", at(1_000)), None);
        let mut off = Cache::new(Duration::ZERO);
        off.keep("joe", known(), at(0));
        assert_eq!(off.find("joe", at(0)), None);
    }

    #[test]
    fn valid_until_ends_a_kept_answer() {
        let answer = Answer { valid_until: at(5_000), ..known() };
        assert!(answer.secret_at(at(4_999)).is_some());
        assert!(answer.secret_at(at(5_000)).is_none());
    }

    #[test]
    fn an_older_answer_does_not_replace_a_newer_one() {
        let mut cache = Cache::new(Duration::from_secs(10));
        cache.keep("joe", known(), at(2_000));
        cache.keep("joe", Answer::nobody(), at(1_000));
        assert_eq!(cache.find("joe", at(2_000)), Some(&known()));
    }

    #[test]
    fn a_rejected_login_asks_again_once_a_second() {
        let mut cache = Cache::new(Duration::from_secs(10));
        cache.keep("joe", known(), at(0));
        assert!(!cache.expire("joe", at(999)));
        assert!(cache.find("joe", at(999)).is_some());
        assert!(cache.expire("joe", at(1_000)));
        assert!(cache.find("joe", at(1_000)).is_none());
        assert!(cache.expire("unheard-of", at(0)));
    }

    #[test]
    fn made_up_names_do_not_fill_it_nor_push_out_real_ones() {
        let mut cache = Cache::new(Duration::from_secs(10));
        cache.keep("joe", known(), at(0));
        for number in 0..3 * USERS_MAX {
            cache.keep(&format!("guess{number}"), Answer::nobody(), at(0));
            assert!(cache.entries.len() <= USERS_MAX);
        }
        assert!(cache.find("joe", at(0)).is_some());
        for number in 0..2 * USERS_MAX {
            cache.keep(&format!("user{number}"), known(), at(0));
            assert!(cache.entries.len() <= USERS_MAX);
        }
    }
}
