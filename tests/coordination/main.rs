//! The stores that several proxies share, on real servers: what all must do, and what each must survive.
//!
//! Absent on purpose: their rules, which are pure and have unit tests.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../voters/pair.rs"]
mod pair;

mod etcd;
mod etcd_proxies;
mod proxy;
