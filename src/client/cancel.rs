//! Cancel keys, and the one place through which other tasks reach a session.
//!
//! A cancel is exact: it is sent only while its session holds the backend, and that backend is never
//! reused afterwards, because PostgreSQL acts on a cancel some time after it was sent. Invariants:
//! [`SessionHandle::detach`] and [`SessionHandle::cancel`] exclude each other; secrets are compared in
//! constant time; keys of ended sessions find nothing. Absent on purpose: what a signal means to the
//! session.

use super::{ClientIdentity, ClientView, Holding};
use crate::backend::{BackendControl, DialError, Target, dial};
use crate::clock::Time;
use crate::ids::{NodeId, SessionId};
use crate::net::TlsAttempt;
use crate::wire::{PROTOCOL_3_2, encode};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// Bytes of the secret half of a key under protocol 3.2; four under 3.0.
const SECRET_LONG: usize = 32;
/// Process ids told to clients have this bit: no process of a node does (Linux: `PID_MAX_LIMIT` is 2^22), so
/// that none can be taken for another.
const PID_FIRST: i32 = 1 << 30;
/// How long a cancel request waits before it looks again whether the proxy's own statements are done, and how often
/// at most: they take less than a millisecond, unless something is wrong.
const OURS_WAIT: Duration = Duration::from_millis(1);
const OURS_WAITS_MAX: u32 = 1000;
/// How long a cancel request to a node may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// What another task asks of a session. Several may be pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End as soon as no transaction is open.
    Drain = 1,
    /// End now.
    Kill = 2,
    /// Stop waiting for a backend: the client canceled its statement.
    CancelWait = 4,
    /// End now: another client has asked the server for it.
    Terminate = 8,
    /// Its backend is being terminated by another client's statement: that is for its client to hear.
    Doomed = 16,
}

/// The key that a client is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelKey {
    /// Process id half.
    pub pid: i32,
    /// Secret half.
    pub secret: Box<[u8]>,
}

/// A session as other tasks see it.
#[derive(Debug)]
pub struct SessionHandle {
    /// Its number.
    pub id: SessionId,
    identity: Arc<ClientIdentity>,
    key: CancelKey,
    signals: AtomicU8,
    waker: OnceLock<Waker>,
    attached: Mutex<Attached>,
    /// Since when it waits for a node or a backend, in nanoseconds; 0: it does not.
    waiting: AtomicU64,
    pins: Mutex<Vec<PinRecord>>,
}

/// Why a session keeps its backend, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRecord {
    /// The reason, as in metrics.
    pub reason: &'static str,
    /// The statement that caused it, shortened.
    pub statement: Box<str>,
    /// Since when.
    pub since: Time,
}

#[derive(Debug, Default)]
struct Attached {
    holding: Option<Holding>,
    canceled: bool,
    /// The proxy's own statements are under way there: they are not what a client wants canceled.
    ours: bool,
}

/// What a cancel request meets.
enum Cancelable {
    /// A backend that may run the client's statement.
    Running(Arc<BackendControl>),
    /// A backend that runs something of ours before that.
    NotYet,
    /// No backend.
    Nothing,
}

impl SessionHandle {
    /// The key to tell the client.
    #[must_use]
    pub fn key(&self) -> &CancelKey {
        &self.key
    }

    /// Notes whom to wake. A task's waker stays the same for its whole life, so once is enough.
    pub fn set_waker(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    /// Asks something of the session and wakes it.
    pub fn signal(&self, signal: Signal) {
        self.signals.fetch_or(signal as u8, Ordering::SeqCst);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Is this asked?
    #[must_use]
    pub fn is_signaled(&self, signal: Signal) -> bool {
        self.signals.load(Ordering::Acquire) & signal as u8 != 0
    }

    /// Is anything asked? One load, for the steady path.
    #[must_use]
    pub fn has_signals(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }

    /// Notes that a signal was acted upon.
    pub fn clear(&self, signal: Signal) {
        self.signals.fetch_and(!(signal as u8), Ordering::SeqCst);
    }

    /// The session holds this backend of this node from now on, and waits for none. `ours`: it is given statements
    /// of ours first.
    pub fn attach(&self, node: NodeId, control: &Arc<BackendControl>, since: Time, ours: bool) {
        self.note_waiting(None);
        let holding = Some(Holding { node, control: Arc::clone(control), since });
        *self.attached.lock() = Attached { holding, canceled: false, ours };
    }

    /// Statements of ours are under way on the session's backend, or are done: a cancel request waits for that.
    pub fn note_ours(&self, ours: bool) {
        self.attached.lock().ours = ours;
    }

    /// The session waits for a node or a backend since then, or does not. A wait that goes on keeps its beginning.
    pub fn note_waiting(&self, since: Option<Time>) {
        let nanos = since.map_or(0, Time::as_nanos);
        let known = self.waiting.load(Ordering::Relaxed);
        if nanos == 0 && known != 0 || nanos != 0 && known == 0 {
            self.waiting.store(nanos, Ordering::Relaxed);
        }
    }

    /// The client at this moment.
    #[must_use]
    pub fn view(&self) -> ClientView {
        let waiting = self.waiting.load(Ordering::Relaxed);
        ClientView {
            id: self.id,
            pid: self.key.pid,
            identity: Arc::clone(&self.identity),
            holding: self.attached.lock().holding.clone(),
            waiting: (waiting != 0).then(|| Time::from_nanos(waiting)),
            pins: self.pins(),
        }
    }

    /// The session lets its backend go. True: a cancel was sent to it, so it must not be reused.
    pub fn detach(&self) -> bool {
        let mut attached = self.attached.lock();
        attached.holding = None;
        attached.canceled
    }

    /// Notes why the session keeps its backend from now on; empty: it does not.
    pub fn note_pins(&self, pins: Vec<PinRecord>) {
        *self.pins.lock() = pins;
    }

    /// Why the session keeps its backend.
    #[must_use]
    pub fn pins(&self) -> Vec<PinRecord> {
        self.pins.lock().clone()
    }

    /// The attached backend, if it is on this node and is about to be signaled there: it is not reused.
    #[must_use]
    pub fn signaled_on(&self, node: NodeId) -> Option<Arc<BackendControl>> {
        let mut attached = self.attached.lock();
        let holding = attached.holding.as_ref().filter(|holding| holding.node == node)?;
        let control = Arc::clone(&holding.control);
        attached.canceled = true;
        Some(control)
    }

    /// Who its client is.
    #[must_use]
    pub fn identity(&self) -> &ClientIdentity {
        &self.identity
    }

    /// Marks the attached backend as canceled and returns where to send the request. `at_once`: whatever it runs.
    fn cancel(&self, at_once: bool) -> Cancelable {
        let mut attached = self.attached.lock();
        let Some(holding) = &attached.holding else { return Cancelable::Nothing };
        if attached.ours && !at_once {
            return Cancelable::NotYet;
        }
        let control = Arc::clone(&holding.control);
        attached.canceled = true;
        Cancelable::Running(control)
    }
}

/// All sessions, by the process id half of their keys.
#[derive(Debug, Default)]
pub struct CancelRegistry {
    sessions: Mutex<HashMap<i32, Arc<SessionHandle>>>,
    next_pid: AtomicI32,
    next_id: AtomicU64,
}

impl CancelRegistry {
    /// A handle and key for a new session of this client, which speaks this protocol version.
    #[must_use]
    pub fn register(&self, version: u32, identity: ClientIdentity) -> Arc<SessionHandle> {
        let secret: [u8; SECRET_LONG] = rand::random();
        let len = if version >= PROTOCOL_3_2 { SECRET_LONG } else { 4 };
        let mut sessions = self.sessions.lock();
        let pid = loop {
            let pid = PID_FIRST | self.next_pid.fetch_add(1, Ordering::Relaxed) & (PID_FIRST - 1);
            if !sessions.contains_key(&pid) {
                break pid;
            }
        };
        let handle = Arc::new(SessionHandle {
            id: SessionId(self.next_id.fetch_add(1, Ordering::Relaxed) + 1),
            identity: Arc::new(identity),
            key: CancelKey { pid, secret: secret[..len].into() },
            signals: AtomicU8::new(0),
            waker: OnceLock::new(),
            attached: Mutex::new(Attached::default()),
            waiting: AtomicU64::new(0),
            pins: Mutex::default(),
        });
        sessions.insert(pid, Arc::clone(&handle));
        handle
    }

    /// Forgets a session.
    pub fn unregister(&self, handle: &SessionHandle) {
        self.sessions.lock().remove(&handle.key.pid);
    }

    /// All sessions there are.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<SessionHandle>> {
        self.sessions.lock().values().cloned().collect()
    }

    /// The session whose client knows itself by this process id.
    #[must_use]
    pub fn by_pid(&self, pid: i32) -> Option<Arc<SessionHandle>> {
        self.sessions.lock().get(&pid).cloned()
    }

    fn find(&self, pid: i32, secret: &[u8]) -> Option<Arc<SessionHandle>> {
        let handle = self.sessions.lock().get(&pid).cloned()?;
        bool::from(handle.key.secret.ct_eq(secret)).then_some(handle)
    }

    /// Acts on a cancel request. The answer is a metric label; the client is told nothing, as by PostgreSQL.
    pub async fn cancel(&self, pid: i32, secret: &[u8]) -> &'static str {
        let Some(handle) = self.find(pid, secret) else { return "unknown_key" };
        let mut waits = 0;
        loop {
            match handle.cancel(waits > OURS_WAITS_MAX) {
                Cancelable::Running(control) => {
                    return match send_cancel(&control.target, control.pid, &control.secret).await {
                        Ok(()) => "sent",
                        Err(_) => "failed",
                    };
                }
                Cancelable::NotYet => tokio::time::sleep(OURS_WAIT).await,
                Cancelable::Nothing => {
                    handle.signal(Signal::CancelWait);
                    return "not_running";
                }
            }
            waits += 1;
        }
    }
}

/// Sends a cancel request to a node, protected as the backend it is about, and waits until the node has taken it (it closes the connection).
///
/// # Errors
/// What the socket says; `TimedOut`.
pub async fn send_cancel(target: &Target, pid: i32, secret: &[u8]) -> io::Result<()> {
    let work = async {
        let attempt = target.tls.attempts().first().copied().unwrap_or(TlsAttempt::Plain);
        let mut stream = dial(target, attempt).await.map_err(|error| match error {
            DialError::Socket(err) => err,
            DialError::Tls(why) => io::Error::other(why),
        })?;
        let mut out = Vec::with_capacity(16 + secret.len());
        encode::cancel_request(&mut out, pid, secret);
        stream.write_all(&out).await?;
        let mut rest = Vec::with_capacity(64);
        // The end of the stream is the answer; anything else a node might say is of no use.
        let _ = stream.read_more(&mut rest).await;
        Ok(())
    };
    tokio::time::timeout(CANCEL_LIMIT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientKind;
    use crate::net::Peer;
    use crate::wire::PROTOCOL_3_0;

    fn ann() -> ClientIdentity {
        ClientIdentity {
            user: "ann".into(),
            database: "db".into(),
            peer: Peer::Tcp(([127, 0, 0, 1], 4711).into()),
            kind: ClientKind::Session,
            application_name: "".into(),
            tls: None,
            since: Time::ZERO,
        }
    }

    #[test]
    fn keys_are_unique_and_must_match_whole() {
        let registry = CancelRegistry::default();
        let one = registry.register(PROTOCOL_3_0, ann());
        let two = registry.register(PROTOCOL_3_2, ann());
        assert_eq!((one.key.secret.len(), two.key.secret.len()), (4, 32));
        assert_ne!(one.key.pid, two.key.pid);
        assert!(registry.find(one.key.pid, &one.key.secret).is_some());
        assert!(registry.find(one.key.pid, &two.key.secret).is_none());
        assert!(registry.find(one.key.pid, &one.key.secret[..3]).is_none());
        registry.unregister(&one);
        assert!(registry.find(one.key.pid, &one.key.secret).is_none());
    }

    #[test]
    fn signals_are_kept_until_cleared() {
        let registry = CancelRegistry::default();
        let handle = registry.register(PROTOCOL_3_0, ann());
        assert!(!handle.has_signals());
        handle.signal(Signal::Drain);
        handle.signal(Signal::CancelWait);
        handle.clear(Signal::CancelWait);
        assert!(handle.is_signaled(Signal::Drain) && !handle.is_signaled(Signal::CancelWait));
    }

    #[test]
    fn a_wait_keeps_its_beginning_until_it_is_over() {
        let handle = CancelRegistry::default().register(PROTOCOL_3_0, ann());
        let waiting = || handle.view().waiting.map(Time::as_nanos);
        assert_eq!(waiting(), None);
        handle.note_waiting(Some(Time::from_nanos(5)));
        handle.note_waiting(Some(Time::from_nanos(9)));
        assert_eq!(waiting(), Some(5));
        handle.note_waiting(None);
        assert_eq!(waiting(), None);
    }
}
