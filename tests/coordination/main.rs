//! The stores that several proxies share, on real servers, and two proxies that use them.
//!
//! | file | what |
//! |---|---|
//! | `voters`, `etcd` | the store alone: one conformance suite for both, and what is only theirs |
//! | `proxy`, `link` | a store that can be stopped where it stands; connections that can be made to fail |
//! | `pairs`, `orders` | two whole proxies and three nodes, on both stores |
//!
//! Absent on purpose: the stores' rules, which are pure and have unit tests and the simulation, and faults of the
//! network between whole proxies and nodes (`faults`).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[path = "../support/mod.rs"]
mod support;

mod etcd;
mod link;
mod orders;
mod pair;
mod pairs;
mod proxy;
mod voters;

use std::time::Duration;

/// Lease of the tests, as shipped.
const LEASE: Duration = Duration::from_secs(2);
/// Until writes flow again, on a slow, busy machine; an idle one needs well under a second.
const OUTAGE_MAX: Duration = Duration::from_secs(8);
