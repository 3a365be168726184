//! The store that needs no component of its own: PostgreSQL's advisory locks on the nodes and witnesses.
//!
//! Invariants: see [`core`]. Absent on purpose: decisions.

pub mod core;
