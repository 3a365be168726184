//! Moves bytes both ways between a client and a backend.
//!
//! [`Inbox`] holds what a client sent and is not yet done with, [`Outbox`] what one side must still
//! be sent, [`NodeScan`] splits a node's bytes into messages while streaming long bodies unseen,
//! [`Edge`] follows the boundaries of messages that nobody here reads.
//! Invariants: nothing is read from one side while the other side's outbox is not empty
//! (backpressure), so memory per session is bounded by two buffers and the largest message that must
//! be understood whole. Absent on purpose: SQL, pools, routing.

mod edge;
mod inbox;
mod outbox;
mod scan;

pub use edge::Edge;
pub use inbox::{Inbox, Message};
pub use outbox::Outbox;
pub use scan::{NodeScan, STREAMED_MIN, Scanned, WHOLE_MAX};
