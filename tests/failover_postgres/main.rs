//! Failover end to end: real PostgreSQL servers, the real proxy, clients that work all the while.
//!
//! The contract: writers without an open transaction wait and then succeed; a write whose fate is not
//! known gets 08007 and nothing else; every acknowledged row is on the new primary; reads go on;
//! no node that was given up is ever written again. Each test has its own cluster and prints what it
//! measured (`--nocapture`). Bounds are those of a slow machine; the printed figures are what matters.
//! Absent on purpose: the machine's rules (scenarios and properties test those).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[path = "../support/mod.rs"]
mod support;

mod death;
mod fresh;
mod half_dead;
mod histories;
mod hooks;
mod orders;
mod patroni;
mod standbys;
mod strange;
mod sync;

use support::{load, rig};
