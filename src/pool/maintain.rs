//! Upkeep of the pools: fences followed, waiters expired, idle backends swept.
//!
//! Invariants: every loop ends when the set stops; each has a named period. Absent on purpose:
//! anything that a statement waits for.

use super::pool::is_disturbed;
use super::set::Shared;
use super::{CheckoutError, DiscardReason, Pool};
use crate::clock::Time;
use crate::topology::Fact;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

/// How late a waiter may learn that its deadline has passed.
const EXPIRE_EVERY: Duration = Duration::from_millis(20);
/// How often idle backends are looked at.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// A pool without backends that nobody asked for in this time is forgotten.
const UNUSED_AFTER: Duration = Duration::from_secs(600);

/// Applies each node's fence generation to its pools, as the topology changes.
pub(super) async fn follow_fences(shared: Arc<Shared>) {
    let mut topology = shared.topology.clone();
    loop {
        let snapshot = topology.snapshot();
        for pool in shared.snapshot() {
            if let Some(view) = snapshot.node(pool.key.node) {
                pool.fence(view.fence);
            }
        }
        shared.fence_dedicated();
        tokio::select! {
            () = topology.changed() => {}
            () = shared.stop.cancelled() => return,
        }
    }
}

/// Fails waiters whose deadline has passed.
pub(super) async fn expire_waiters(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EXPIRE_EVERY) => {}
            () = shared.stop.cancelled() => return,
        }
        let now = shared.clock.now();
        for pool in shared.snapshot() {
            let wakers = {
                let mut state = pool.state.lock();
                if state.waiters.is_empty() {
                    continue;
                }
                let last = state.last_error.clone();
                state.waiters.expire(now, || CheckoutError::TimedOut { last: last.clone() })
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Closes idle backends that are dead, too old or idle for too long; forgets unused pools.
pub(super) async fn sweep_idle(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP_EVERY) => {}
            () = shared.stop.cancelled() => return,
        }
        let now = shared.clock.now();
        for pool in shared.snapshot() {
            sweep(&shared, &pool, now);
        }
        shared.forget_unused(|pool| {
            let state = pool.state.lock();
            let holds_nothing = state.controls.is_empty() && state.connecting == 0 && state.waiters.is_empty();
            holds_nothing && now.since(state.last_used) > UNUSED_AFTER
        });
    }
}

fn sweep(shared: &Arc<Shared>, pool: &Arc<Pool>, now: Time) {
    let settings = shared.settings();
    let mut gone = Vec::new();
    {
        let mut state = pool.state.lock();
        // More than a reload allows: the longest idle go first.
        let (used, limit) = shared.node(pool.key.node).budget.usage();
        let mut spare = state.total().saturating_sub(settings.size).max(used.saturating_sub(limit));
        let mut kept = Vec::with_capacity(state.idle.len());
        for mut idle in state.idle.drain(..) {
            let reason = if is_disturbed(&mut idle.backend) {
                Some(DiscardReason::Lost)
            } else if settings.lifetime.is_some_and(|limit| now.since(idle.backend.opened) > limit) {
                Some(DiscardReason::Lifetime)
            } else if spare > 0 {
                spare -= 1;
                Some(DiscardReason::Closing)
            } else if settings.idle_timeout.is_some_and(|limit| now.since(idle.since) > limit) {
                Some(DiscardReason::Idle)
            } else {
                None
            };
            match reason {
                Some(reason) => gone.push((idle.backend, reason)),
                None => kept.push(idle),
            }
        }
        state.idle = kept;
    }
    for (backend, reason) in gone {
        if reason == DiscardReason::Lost && !backend.control.is_fenced() {
            shared.facts.send(Fact::BackendLost(pool.key.node));
        }
        pool.remove(backend, reason);
    }
}
