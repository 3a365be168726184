//! Owns the backends of each (node, database, user) and hands them out fairly.
//!
//! A [`Pool`] has a LIFO stack of idle backends and a FIFO queue of waiters with deadlines; a
//! budget per node bounds the backends of all its pools together. [`Checkout`] is a guard:
//! dropping it discards the backend, only releasing reuses it. A [`Dedicated`] backend belongs to one
//! client and is never shared. Invariants: idle and waiting never
//! both exist for long (a release serves the first waiter); a fenced backend is never handed out; no
//! lock is held across an await. Absent on purpose: SQL, routing, sessions.

mod budget;
mod checkout;
mod connector;
mod dedicated;
mod error;
mod gauges;
mod maintain;
#[allow(clippy::module_inception, reason = "the pool itself")]
mod pool;
mod reset;
mod set;
mod share;
mod totals;
mod view;
mod waiters;

pub use checkout::Checkout;
pub use dedicated::{Dedicated, DedicatedError, Place, Wish};
pub use error::{CheckoutError, DiscardReason};
pub use pool::{Pool, PoolStats};
pub use set::{PoolDeps, PoolNode, PoolSet};
pub use totals::Totals;
pub use view::{BackendPlace, BackendView};
pub use waiters::Ticket;
