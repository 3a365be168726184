//! Places for clients: so many are served, so many more may wait for a place.
//!
//! Invariants: never more than `max_client_connections` permits exist (a lowered limit is reached as
//! clients leave); places go to the queue in the order of arrival; whoever leaves the queue takes no
//! place with it. Absent on purpose: sockets, deadlines (`serve`).

use super::EnterError;
use crate::config::ServerConfig;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Connections that may be between accept and a place, beyond the accept queue.
const ENTERING_SLACK: usize = 1000;

/// Who is served and who waits.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    state: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    served: usize,
    entering: usize,
    limit: usize,
    queue: VecDeque<oneshot::Sender<Permit>>,
}

/// What came of asking for a place.
#[derive(Debug)]
pub enum Joined {
    /// There was one.
    Admitted(Permit),
    /// There will be one, later. An error means never.
    Queued(oneshot::Receiver<Permit>),
}

/// A place; dropping it gives it to the next in the queue.
#[derive(Debug)]
pub struct Permit {
    state: Arc<Mutex<Places>>,
}

/// A connection that has not yet said what it wants, or waits.
#[derive(Debug)]
pub struct Entering {
    state: Arc<Mutex<Places>>,
}

impl Admission {
    /// With the limits of the config.
    #[must_use]
    pub fn new(config: &ServerConfig) -> Self {
        let admission = Self::default();
        admission.resize(config);
        admission
    }

    /// Uses another limit (reload): if it has grown, those who wait get the new places.
    pub fn resize(&self, config: &ServerConfig) {
        self.state.lock().limit = config.max_client_connections;
        admit(&self.state);
    }

    /// Counts a connection in until it has a place or has left.
    ///
    /// # Errors
    /// [`EnterError::TooMany`]: too many are in that state.
    pub fn arrive(&self, config: &ServerConfig) -> Result<Entering, EnterError> {
        let mut places = self.state.lock();
        if places.entering >= config.accept_queue + ENTERING_SLACK {
            return Err(EnterError::TooMany);
        }
        places.entering += 1;
        Ok(Entering { state: Arc::clone(&self.state) })
    }

    /// Takes a place or joins the queue for one.
    ///
    /// # Errors
    /// [`EnterError::TooMany`]: the queue is full.
    pub fn join(&self, config: &ServerConfig) -> Result<Joined, EnterError> {
        let mut places = self.state.lock();
        if places.served < places.limit {
            places.served += 1;
            return Ok(Joined::Admitted(Permit { state: Arc::clone(&self.state) }));
        }
        places.queue.retain(|turn| !turn.is_closed());
        if places.queue.len() >= config.accept_queue {
            return Err(EnterError::TooMany);
        }
        let (turn, wait) = oneshot::channel();
        places.queue.push_back(turn);
        Ok(Joined::Queued(wait))
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        self.state.lock().entering -= 1;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.lock().served -= 1;
        admit(&self.state);
    }
}

/// Gives free places to the queue. No place stays free while somebody waits.
fn admit(state: &Arc<Mutex<Places>>) {
    loop {
        let turn = {
            let mut places = state.lock();
            if places.served >= places.limit {
                return;
            }
            let Some(turn) = places.queue.pop_front() else { return };
            if turn.is_closed() {
                continue;
            }
            places.served += 1;
            turn
        };
        // A client that left meanwhile drops the permit with the channel, which passes it on.
        drop(turn.send(Permit { state: Arc::clone(state) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn config(limit: usize, queue: usize) -> ServerConfig {
        let second = Duration::from_secs(1);
        ServerConfig {
            listen: Vec::new(),
            unix_socket_dir: None,
            unix_socket_permissions: 0,
            proxy_protocol_from: Vec::new(),
            max_client_connections: limit,
            accept_queue: queue,
            accept_queue_timeout: second,
            login_timeout: second,
            drain_timeout: second,
            workers: 0,
            message_bytes_max: 0,
            client_write_timeout: second,
            client_idle_timeout: None,
            zone: None,
        }
    }

    fn queued(admission: &Admission, config: &ServerConfig) -> oneshot::Receiver<Permit> {
        match admission.join(config) {
            Ok(Joined::Queued(turn)) => turn,
            other => panic!("{other:?}"),
        }
    }

    fn admitted(admission: &Admission, config: &ServerConfig) -> Permit {
        match admission.join(config) {
            Ok(Joined::Admitted(permit)) => permit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_go_to_the_queue_in_order() {
        let config = config(1, 2);
        let admission = Admission::new(&config);
        let first = admitted(&admission, &config);
        let (mut second, mut third) = (queued(&admission, &config), queued(&admission, &config));
        assert!(matches!(admission.join(&config), Err(EnterError::TooMany)), "the queue is bounded");
        assert!(second.try_recv().is_err());
        drop(first);
        let second = second.try_recv().unwrap();
        assert!(third.try_recv().is_err());
        drop(second);
        assert!(third.try_recv().is_ok());
        assert_eq!(admission.state.lock().served, 0, "a permit nobody keeps is given back");
    }

    #[test]
    fn who_left_the_queue_takes_no_place() {
        let config = config(1, 2);
        let admission = Admission::new(&config);
        let first = admitted(&admission, &config);
        let second = queued(&admission, &config);
        let mut third = queued(&admission, &config);
        drop(second);
        let mut fourth = queued(&admission, &config);
        drop(first);
        let third = third.try_recv().unwrap();
        assert!(fourth.try_recv().is_err());
        // The permit is on its way when its client leaves.
        drop(third);
        drop(fourth);
        admitted(&admission, &config);
        assert_eq!(admission.state.lock().served, 0);
    }

    #[test]
    fn a_raised_limit_serves_those_who_wait() {
        let small = config(1, 5);
        let admission = Admission::new(&small);
        let _first = admitted(&admission, &small);
        let mut waiting: Vec<_> = (0..3).map(|_| queued(&admission, &small)).collect();
        admission.resize(&config(3, 5));
        let got = waiting.iter_mut().filter_map(|turn| turn.try_recv().ok()).collect::<Vec<_>>();
        assert_eq!(got.len(), 2);
    }

    #[test]
    fn connections_that_say_nothing_are_bounded() {
        let config = config(1, 2);
        let admission = Admission::new(&config);
        let entering: Vec<_> = (0..ENTERING_SLACK + 2).map(|_| admission.arrive(&config).unwrap()).collect();
        assert!(admission.arrive(&config).is_err());
        drop(entering);
        assert!(admission.arrive(&config).is_ok());
    }
}
