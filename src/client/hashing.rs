//! The thousands of hash rounds of a login, off the threads that carry data.
//!
//! Invariants: at most half of the cores hash at once, so that a storm of logins leaves the rest to running clients; the
//! line before them is bounded. Absent on purpose: what is hashed (`auth`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::auth::{AuthError, Unavailability};

/// Logins that may wait for their turn; at a millisecond each, the last waits some seconds.
const WAITING_MAX: usize = 4_096;

/// Runs costly checks.
#[derive(Clone, Debug)]
pub struct Hashing {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Hashing {
    /// With as many threads as this machine can spare.
    #[must_use]
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { places: Arc::new(Semaphore::new((cores / 2).max(1))), waiting: Arc::default() }
    }

    /// Runs `work` on another thread when it is its turn.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let turn = Turn::take(&self.waiting)?;
        let place = Arc::clone(&self.places).acquire_owned().await;
        drop(turn);
        let place = place.map_err(|_| AuthError::Unanswered("the proxy stops".into()))?;
        let working = tokio::task::spawn_blocking(move || {
            // The place is given back when the work ends, not when the client gives up.
            let _place = place;
            work()
        });
        working.await.map_err(|error| AuthError::Unanswered(error.to_string().into()))
    }
}

impl Default for Hashing {
    fn default() -> Self {
        Self::new()
    }
}

/// A place in the line.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, AuthError> {
        let turn = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(AuthError::Unavailable(Unavailability::TooManyLogins));
        }
        Ok(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_line_is_bounded_and_moves_on() {
        let hashing = Hashing { places: Arc::new(Semaphore::new(1)), waiting: Arc::default() };
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let mut first = Box::pin(hashing.run(move || ended.recv().is_ok()));
        assert!(futures::poll!(&mut first).is_pending());
        let mut line: Vec<_> = (0..WAITING_MAX).map(|number| Box::pin(hashing.run(move || number))).collect();
        for waiting in &mut line {
            assert!(futures::poll!(waiting).is_pending());
        }
        let refused = hashing.run(|| 0).await;
        assert_eq!(refused, Err(AuthError::Unavailable(Unavailability::TooManyLogins)));
        drop(line.split_off(1));
        end.send(()).unwrap();
        assert_eq!(first.await, Ok(true));
        assert_eq!(line.remove(0).await, Ok(0));
        assert_eq!(hashing.waiting.load(Ordering::Relaxed), 0);
    }
}
