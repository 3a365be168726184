//! The backends of one (node, database, user).
//!
//! Invariants: `total` counts idle, checked-out and connecting backends and never exceeds `size`;
//! each of them holds one place of the node's budget; nobody waits while a backend is idle;
//! [`Pool::admit`], [`Pool::release`] and [`Pool::discard`] are the only movers. Absent on purpose: opening (see `connector`).

use super::connector::Backoff;
use super::set::Shared;
use super::waiters::Waiters;
use super::{Checkout, CheckoutError, DiscardReason, Ticket, Totals};
use crate::backend::{Backend, BackendControl, ConnectError};
use crate::clock::Time;
use crate::ids::{BackendId, PoolKey};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Sessions that may wait for one pool.
pub const WAITERS_MAX: usize = 100_000;
/// A backend idle for this long is asked of the kernel, too: the reactor may not have looked yet, and
/// under load, where a system call counts, backends do not rest that long.
const RESTED_AFTER: Duration = Duration::from_millis(10);

/// A pool.
#[derive(Debug)]
pub struct Pool {
    pub(super) key: PoolKey,
    pub(super) shared: Arc<Shared>,
    pub(super) state: Mutex<State>,
    uses_sequences: AtomicBool,
}

#[derive(Debug)]
pub(super) struct State {
    pub idle: Vec<Idle>,
    pub waiters: Waiters,
    /// Connects under way.
    pub connecting: usize,
    /// Backends that exist, by number: idle and checked-out ones.
    pub controls: HashMap<BackendId, Known>,
    /// Fence generation; a backend admitted under another one is discarded.
    pub fence: u64,
    /// Why the last connect failed.
    pub last_error: Option<ConnectError>,
    /// When it was last asked for a backend.
    pub last_used: Time,
    pub closing: bool,
    /// How the node takes this pool's logins (the node as a whole has its own).
    pub backoff: Backoff,
    /// What it has done so far.
    pub totals: Totals,
}

/// A backend that exists, wherever it is.
#[derive(Debug)]
pub(super) struct Known {
    pub control: Arc<BackendControl>,
    pub opened: Time,
}

#[derive(Debug)]
pub(super) struct Idle {
    pub backend: Box<Backend>,
    pub since: Time,
}

/// Counts for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Backends that wait for work.
    pub idle: usize,
    /// Backends in use.
    pub active: usize,
    /// Backends being opened.
    pub connecting: usize,
    /// Sessions that wait.
    pub waiting: usize,
}

impl Pool {
    pub(super) fn new(key: PoolKey, shared: Arc<Shared>, fence: u64, now: Time) -> Self {
        let state = State {
            idle: Vec::new(),
            waiters: Waiters::default(),
            connecting: 0,
            controls: HashMap::new(),
            fence,
            last_error: None,
            last_used: now,
            closing: false,
            backoff: Backoff::default(),
            totals: Totals::default(),
        };
        Self { key, shared, state: Mutex::new(state), uses_sequences: AtomicBool::new(false) }
    }

    /// Notes that a session has asked for `currval()` or `lastval()`.
    pub fn note_sequences_used(&self) {
        self.uses_sequences.store(true, Ordering::Relaxed);
    }

    /// Do its sessions ask for `currval()` or `lastval()`?
    #[must_use]
    pub fn uses_sequences(&self) -> bool {
        self.uses_sequences.load(Ordering::Relaxed)
    }

    /// What it is keyed by.
    #[must_use]
    pub fn key(&self) -> &PoolKey {
        &self.key
    }

    /// Takes an idle backend at once, unless others wait; `home` if it is there, else the one used last.
    pub fn try_checkout(self: &Arc<Self>, now: Time, home: Option<BackendId>) -> Option<Checkout> {
        let mut dead = Vec::new();
        let taken = {
            let mut state = self.state.lock();
            state.last_used = now;
            let taken = if state.waiters.is_empty() { state.take_idle(now, home, &mut dead) } else { None };
            state.totals.checkouts += u64::from(taken.is_some());
            taken
        };
        for backend in dead {
            self.discard_lost(backend);
        }
        taken.map(|backend| {
            self.shared.backend_taken(self.key.node);
            Checkout::new(backend, Arc::clone(self), now)
        })
    }

    /// Joins the queue, and has a backend opened if limits allow. `fence` is the node's fence
    /// generation in the snapshot that chose this pool.
    ///
    /// # Errors
    /// [`CheckoutError::QueueFull`], [`CheckoutError::Closing`]; [`CheckoutError::NodeGone`] when the
    /// pool was fenced after that snapshot.
    pub fn join(self: &Arc<Self>, deadline: Time, fence: u64) -> Result<Ticket, CheckoutError> {
        let mut dead = Vec::new();
        let (ticket, served) = {
            let mut state = self.state.lock();
            if state.closing {
                return Err(CheckoutError::Closing);
            }
            if state.fence > fence {
                return Err(CheckoutError::NodeGone);
            }
            if state.waiters.len() >= WAITERS_MAX {
                return Err(CheckoutError::QueueFull);
            }
            let now = self.shared.clock.now();
            let ticket = state.waiters.join(deadline, now);
            // One may have come back since none was found: nobody waits while a backend is idle.
            let served = state.take_idle(now, None, &mut dead).map(|backend| state.waiters.serve(backend));
            (ticket, served)
        };
        if let Some(Ok(Some(waker))) = served {
            waker.wake();
        }
        for backend in dead {
            self.discard_lost(backend);
        }
        self.shared.waiter_joined(self.key.node);
        self.open_more();
        Ok(ticket)
    }

    /// Polls a place in the queue. Ready once; the ticket is void afterwards.
    pub fn poll_ticket(
        self: &Arc<Self>,
        ticket: Ticket,
        cx: &mut Context<'_>,
        now: impl FnOnce() -> Time,
    ) -> Poll<Result<Checkout, CheckoutError>> {
        let grant = self.state.lock().waiters.poll(ticket, cx.waker());
        let Some(grant) = grant else { return Poll::Pending };
        self.shared.waiter_left(self.key.node);
        Poll::Ready(grant.map(|backend| {
            let now = now();
            let waited = now.since(ticket.joined());
            self.state.lock().totals.add(Totals { checkouts: 1, waited, ..Totals::default() });
            self.shared.backend_taken(self.key.node);
            Checkout::new(backend, Arc::clone(self), now)
        }))
    }

    /// Leaves the queue before a grant was taken.
    pub fn leave(self: &Arc<Self>, ticket: Ticket, now: Time) {
        let granted = self.state.lock().waiters.leave(ticket);
        self.shared.waiter_left(self.key.node);
        if let Some(backend) = granted {
            self.put_back(backend, now, Totals::default());
        }
    }

    /// Takes in a freshly opened backend. Its place in the budget was taken before.
    pub(super) fn admit(self: &Arc<Self>, backend: Box<Backend>, fence: u64, now: Time) {
        {
            let mut state = self.state.lock();
            state.connecting -= 1;
            state.last_error = None;
            state.backoff = Backoff::default();
            let known = Known { control: Arc::clone(&backend.control), opened: backend.opened };
            state.controls.insert(backend.id, known);
            if state.fence != fence {
                backend.control.fence();
            }
        }
        self.put_back(backend, now, Totals::default());
    }

    /// Takes back a backend that a session has used, so much, and left clean.
    pub(super) fn release(self: &Arc<Self>, backend: Box<Backend>, now: Time, used: Totals) {
        self.shared.backend_released(self.key.node);
        let expired = self.shared.settings().lifetime.is_some_and(|limit| now.since(backend.opened) > limit);
        if expired {
            self.note_use(used);
            return self.remove(backend, DiscardReason::Lifetime);
        }
        if backend.generation != self.shared.generation() {
            self.note_use(used);
            return self.remove(backend, DiscardReason::Outdated);
        }
        self.put_back(backend, now, used);
    }

    fn note_use(&self, used: Totals) {
        self.state.lock().totals.add(used);
    }

    /// Hands a backend to the first waiter, to another pool's need, or to the idle stack.
    fn put_back(self: &Arc<Self>, backend: Box<Backend>, now: Time, used: Totals) {
        if self.shared.node(self.key.node).budget.is_claimed() {
            self.note_use(used);
            return self.remove(backend, DiscardReason::Idle);
        }
        if let Some(other) = self.should_yield(now) {
            self.note_use(used);
            return self.yield_to(&other, backend);
        }
        let size = self.shared.settings().size;
        let mut state = self.state.lock();
        state.totals.add(used);
        if state.closing || backend.control.is_fenced() || state.total() > size {
            drop(state);
            let fenced = backend.control.is_fenced();
            return self.remove(backend, if fenced { DiscardReason::Fenced } else { DiscardReason::Closing });
        }
        match state.waiters.serve(backend) {
            Ok(waker) => {
                drop(state);
                waker.into_iter().for_each(Waker::wake);
            }
            Err(backend) => state.idle.push(Idle { backend, since: now }),
        }
    }

    /// Closes a backend that was checked out and used so much.
    pub(super) fn discard(self: &Arc<Self>, backend: Box<Backend>, reason: DiscardReason, used: Totals) {
        self.note_use(used);
        self.shared.backend_released(self.key.node);
        self.remove(backend, reason);
    }

    fn discard_lost(self: &Arc<Self>, backend: Box<Backend>) {
        let fenced = backend.control.is_fenced();
        if !fenced {
            self.shared.facts.send(crate::topology::Fact::BackendLost(self.key.node));
        }
        self.remove(backend, if fenced { DiscardReason::Fenced } else { DiscardReason::Lost });
    }

    /// Closes a backend and frees its place.
    pub(super) fn remove(self: &Arc<Self>, backend: Box<Backend>, reason: DiscardReason) {
        self.end(backend, reason);
        self.place_freed();
    }

    /// The one place where a backend ends: out of the table, closed. Its place of the budget is the caller's.
    pub(super) fn end(&self, backend: Box<Backend>, reason: DiscardReason) {
        self.state.lock().controls.remove(&backend.id);
        drop(backend);
        self.shared.backend_removed(self.key.node, reason);
    }

    /// A place of the budget is free: the pool that waited longest for one may use it.
    pub(super) fn place_freed(self: &Arc<Self>) {
        self.shared.node(self.key.node).budget.give_back();
        self.shared.offer_places(self.key.node);
        self.open_more();
    }

    /// Since when its oldest idle backend has been idle.
    pub(super) fn idle_since(&self) -> Option<Time> {
        self.state.lock().idle.first().map(|idle| idle.since)
    }

    /// Closes one idle backend; its place of the budget is the caller's.
    pub(super) fn evict_idle(&self) -> bool {
        let victim = {
            let mut state = self.state.lock();
            if state.idle.is_empty() { None } else { Some(state.idle.remove(0)) }
        };
        match victim {
            Some(idle) => {
                self.end(idle.backend, DiscardReason::Idle);
                true
            }
            None => false,
        }
    }

    /// Closes every idle backend.
    pub(super) fn close_idle(self: &Arc<Self>) {
        let idle = std::mem::take(&mut self.state.lock().idle);
        for entry in idle {
            self.remove(entry.backend, DiscardReason::Outdated);
        }
    }

    /// Fences every backend of this pool and sends its waiters elsewhere.
    pub(super) fn fence(self: &Arc<Self>, generation: u64) {
        let (idle, wakers) = {
            let mut state = self.state.lock();
            if state.fence == generation {
                return;
            }
            state.fence = generation;
            for known in state.controls.values() {
                known.control.fence();
            }
            let idle = std::mem::take(&mut state.idle);
            (idle, state.waiters.fail_all(&CheckoutError::NodeGone))
        };
        wakers.into_iter().for_each(Waker::wake);
        for entry in idle {
            self.remove(entry.backend, DiscardReason::Fenced);
        }
    }

    /// Ends the pool: nothing is handed out any more.
    pub(super) fn close(self: &Arc<Self>) {
        let (idle, wakers) = {
            let mut state = self.state.lock();
            state.closing = true;
            (std::mem::take(&mut state.idle), state.waiters.fail_all(&CheckoutError::Closing))
        };
        wakers.into_iter().for_each(Waker::wake);
        for entry in idle {
            self.remove(entry.backend, DiscardReason::Closing);
        }
    }

    /// The client's process id for the node's, see [`PoolSet::session_pid`](super::PoolSet::session_pid).
    pub(super) fn session_pid(&self, pid: i32) -> Option<i32> {
        let state = self.state.lock();
        state.controls.values().find(|known| known.control.pid == pid)?.control.session_pid()
    }

    /// Counts for people.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        let idle = state.idle.len();
        PoolStats {
            idle,
            active: state.controls.len().saturating_sub(idle),
            connecting: state.connecting,
            waiting: state.waiters.len(),
        }
    }
}

impl State {
    /// Backends that exist or are being opened.
    pub(super) fn total(&self) -> usize {
        self.controls.len() + self.connecting
    }

    /// Pops the backend used last; those on which something arrived while idle go to `dead`.
    #[allow(clippy::vec_box, reason = "they stay in the boxes they live in")]
    fn take_idle(&mut self, now: Time, home: Option<BackendId>, dead: &mut Vec<Box<Backend>>) -> Option<Box<Backend>> {
        if let Some(home) = home
            && let Some(at) = self.idle.iter().rposition(|idle| idle.backend.id == home)
            && let Some(last) = self.idle.len().checked_sub(1)
        {
            self.idle[at..=last].rotate_left(1);
        }
        while let Some(Idle { mut backend, since }) = self.idle.pop() {
            // An idle backend has nothing to say; if it did, its state is not what we know.
            let rested = now.since(since) >= RESTED_AFTER;
            if backend.control.is_fenced() || is_disturbed(&mut backend) || rested && backend.stream.has_arrived() {
                dead.push(backend);
                continue;
            }
            return Some(backend);
        }
        None
    }
}

/// Has an idle backend ended, or said something since it was put back?
pub(super) fn is_disturbed(backend: &mut Backend) -> bool {
    if !backend.stream.has_input() {
        return false;
    }
    // Readiness may be left over from a read that filled its buffer exactly, or be TLS's own matter; only
    // reading tells.
    let mut byte = [0; 1];
    !matches!(backend.stream.try_read(&mut byte), Err(err) if err.kind() == std::io::ErrorKind::WouldBlock)
}
