//! The FIFO queue of sessions that wait for a backend.
//!
//! Slots are reused, so waiting allocates nothing in the steady state. Pure apart from wakers.
//! Invariants: grants go to the oldest waiter; a granted slot is never granted twice; a waiter that
//! leaves gives its grant back. Absent on purpose: locking (the pool's matter).

use super::CheckoutError;
use crate::backend::Backend;
use crate::clock::Time;
use slab::Slab;
use std::collections::VecDeque;
use std::task::Waker;

/// A waiter's place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    slot: usize,
    number: u64,
    joined: Time,
}

impl Ticket {
    /// When its holder joined the queue.
    pub(super) fn joined(self) -> Time {
        self.joined
    }
}

/// What a waiter was given.
pub type Grant = Result<Box<Backend>, CheckoutError>;

#[derive(Debug)]
struct Slot {
    number: u64,
    deadline: Time,
    waker: Option<Waker>,
    grant: Option<Grant>,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Waiters {
    slots: Slab<Slot>,
    order: VecDeque<Ticket>,
    next: u64,
    waiting: usize,
}

impl Waiters {
    /// Sessions without a grant.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Does nobody wait?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Joins the end of the queue.
    pub fn join(&mut self, deadline: Time, now: Time) -> Ticket {
        self.next += 1;
        let number = self.next;
        let slot = self.slots.insert(Slot { number, deadline, waker: None, grant: None });
        let ticket = Ticket { slot, number, joined: now };
        self.order.push_back(ticket);
        self.waiting += 1;
        ticket
    }

    /// Takes the grant, or notes who is to be woken.
    pub fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Option<Grant> {
        let slot = self.slots.get_mut(ticket.slot).filter(|slot| slot.number == ticket.number)?;
        if let Some(grant) = slot.grant.take() {
            self.slots.remove(ticket.slot);
            return Some(grant);
        }
        match &mut slot.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        None
    }

    /// Leaves the queue; a backend granted meanwhile comes back.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Box<Backend>> {
        let known = self.slots.get(ticket.slot).is_some_and(|slot| slot.number == ticket.number);
        if !known {
            return None;
        }
        let slot = self.slots.remove(ticket.slot);
        match slot.grant {
            Some(grant) => grant.ok(),
            None => {
                self.waiting -= 1;
                None
            }
        }
    }

    fn live_front(&mut self) -> Option<Ticket> {
        while let Some(&ticket) = self.order.front() {
            let live =
                self.slots.get(ticket.slot).is_some_and(|slot| slot.number == ticket.number && slot.grant.is_none());
            if live {
                return Some(ticket);
            }
            self.order.pop_front();
        }
        None
    }

    fn give(&mut self, ticket: Ticket, grant: Grant) -> Option<Waker> {
        self.order.pop_front();
        self.waiting -= 1;
        let slot = &mut self.slots[ticket.slot];
        slot.grant = Some(grant);
        slot.waker.take()
    }

    /// Gives a backend to the oldest waiter; the waker is to be woken outside the lock.
    ///
    /// # Errors
    /// The backend comes back when nobody waits.
    pub fn serve(&mut self, backend: Box<Backend>) -> Result<Option<Waker>, Box<Backend>> {
        match self.live_front() {
            Some(ticket) => Ok(self.give(ticket, Ok(backend))),
            None => Err(backend),
        }
    }

    /// Fails every waiter.
    pub fn fail_all(&mut self, error: &CheckoutError) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some(ticket) = self.live_front() {
            wakers.extend(self.give(ticket, Err(error.clone())));
        }
        wakers
    }

    /// Fails the waiters whose deadline has passed.
    pub fn expire(&mut self, now: Time, error: impl Fn() -> CheckoutError) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some(ticket) = self.live_front() {
            if self.slots[ticket.slot].deadline > now {
                break;
            }
            wakers.extend(self.give(ticket, Err(error())));
        }
        wakers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(waiters: &mut Waiters, ticket: Ticket) -> Option<Grant> {
        waiters.poll(ticket, Waker::noop())
    }

    #[test]
    fn failures_reach_the_oldest_first_and_once() {
        let mut waiters = Waiters::default();
        let first = waiters.join(Time::from_nanos(10), Time::ZERO);
        let second = waiters.join(Time::from_nanos(20), Time::ZERO);
        assert!(poll(&mut waiters, first).is_none());
        waiters.expire(Time::from_nanos(10), || CheckoutError::QueueFull);
        assert_eq!(waiters.len(), 1);
        assert!(matches!(poll(&mut waiters, first), Some(Err(CheckoutError::QueueFull))));
        assert!(poll(&mut waiters, first).is_none());
        waiters.fail_all(&CheckoutError::NodeGone);
        assert!(matches!(poll(&mut waiters, second), Some(Err(CheckoutError::NodeGone))));
        assert!(waiters.is_empty() && waiters.slots.is_empty());
    }

    #[test]
    fn a_waiter_that_leaves_is_skipped() {
        let mut waiters = Waiters::default();
        let first = waiters.join(Time::NEVER, Time::ZERO);
        let second = waiters.join(Time::NEVER, Time::ZERO);
        assert!(waiters.leave(first).is_none());
        assert!(waiters.leave(first).is_none());
        assert_eq!(waiters.len(), 1);
        assert_eq!(waiters.live_front(), Some(second));
        // The slot of the first is reused without mixing up the tickets.
        let third = waiters.join(Time::NEVER, Time::ZERO);
        assert_eq!(third.slot, first.slot);
        assert!(poll(&mut waiters, first).is_none());
        assert_eq!(waiters.live_front(), Some(second));
    }
}
