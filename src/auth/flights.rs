//! Lookups under way: who asks for what is being asked waits for the same answer.
//!
//! Invariants: at most one lookup per user and at most [`LOOKUPS_MAX`] in all; a lookup goes on
//! for the others when the one who began it goes away. Absent on purpose: keeping answers.

use std::collections::HashMap;
use std::future::Future;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use super::error::{AuthError, Unavailability};

/// Users being looked up at once; every login waits for at most one lookup of a kind.
const LOOKUPS_MAX: usize = 4_096;

type Outcome<T> = BoxFuture<'static, Result<T, AuthError>>;
pub(super) type Flight<T> = Shared<Outcome<T>>;

/// The lookups of one kind.
pub(super) struct Flights<T> {
    under_way: HashMap<Box<str>, WeakShared<Outcome<T>>>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { under_way: HashMap::new() }
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// The lookup of this user that is under way, or a new one.
    pub(super) fn join<F>(&mut self, user: &str, begin: impl FnOnce() -> F) -> Result<Flight<T>, AuthError>
    where
        F: Future<Output = Result<T, AuthError>> + Send + 'static,
    {
        if let Some(flight) = self.under_way.get(user).and_then(WeakShared::upgrade) {
            return Ok(flight);
        }
        if self.under_way.len() >= LOOKUPS_MAX {
            // Lookups that all their clients gave up stay behind here.
            self.under_way.retain(|_, flight| flight.upgrade().is_some());
            if self.under_way.len() >= LOOKUPS_MAX {
                return Err(AuthError::Unavailable(Unavailability::TooMany));
            }
        }
        let flight = begin().boxed().shared();
        if let Some(weak) = flight.downgrade() {
            self.under_way.insert(user.into(), weak);
        }
        Ok(flight)
    }

    /// A lookup ended: the next one asks anew.
    pub(super) fn landed(&mut self, user: &str) {
        self.under_way.remove(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[tokio::test]
    async fn one_lookup_per_user_is_under_way_and_survives_its_first_client() {
        let begun = Arc::new(AtomicU64::new(0));
        let mut flights = Flights::<Option<u8>>::default();
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        let mut answered = Some(answered);
        let mut join = |flights: &mut Flights<Option<u8>>| {
            let begun = Arc::clone(&begun);
            flights
                .join("joe", || {
                    begun.fetch_add(1, Ordering::Relaxed);
                    let answered = answered.take();
                    async move {
                        if let Some(answered) = answered {
                            let _ = answered.await;
                        }
                        Ok(None)
                    }
                })
                .unwrap()
        };
        let mut first = join(&mut flights);
        assert!(futures::poll!(&mut first).is_pending());
        let second = join(&mut flights);
        drop(first);
        answer.send(()).unwrap();
        assert_eq!(second.await, Ok(None));
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        // All who waited are gone: the next one asks anew instead of getting an old answer.
        assert_eq!(join(&mut flights).await, Ok(None));
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn lookups_under_way_are_bounded() {
        let mut flights = Flights::<Option<u8>>::default();
        let begin = || std::future::pending::<Result<Option<u8>, AuthError>>();
        let held: Vec<_> = (0..LOOKUPS_MAX).map(|n| flights.join(&n.to_string(), begin).unwrap()).collect();
        assert_eq!(flights.join("more", begin).err(), Some(AuthError::Unavailable(Unavailability::TooMany)));
        assert!(flights.join("7", begin).is_ok(), "joining needs no place");
        drop(held);
        assert!(flights.join("more", begin).is_ok(), "places given up are found");
    }
}
