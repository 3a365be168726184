//! The playground: a throwaway cluster with a proxy in front, to play with and to test against.
//!
//! Invariants: everything it starts ends with it, also when it is killed. Absent on purpose: anything
//! that `serve` needs.

pub mod cluster;
