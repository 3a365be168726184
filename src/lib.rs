//! pgregent: one address in front of a PostgreSQL primary and its streaming standbys.
//!
//! # The map
//!
//! Two planes that meet in three types: [`topology::TopologyReader`] (control to data),
//! [`topology::FactSender`] (data to control) and `failover::ControlHandle` (admin to control).
//!
//! | layer | modules | what |
//! |---|---|---|
//! | L0 | `ids` `clock` `error` | names for things, time, failures |
//! | L1 | `wire` `sql` | protocol and statements as values; no tokio |
//! | L2 | `config` `metrics` `topology` | what was asked for, what is counted, what is true |
//! | L2+ | `catalog` | what a database's functions and views do |
//! | L3 | `net` `auth` `failover` (pure files) | sockets, proofs, decisions |
//! | L4 | `backend` `route` `coordination` | a connection to a node, a choice, a store |
//! | L5 | `pool` `client` `relay` `monitor` | backends shared, clients let in, bytes moved, nodes asked |
//! | L5+ | `decision` | why statements went where they went |
//! | L6 | `session` `failover::{controller, execute}` | a client's life; a decision carried out |
//! | L7 | `admin` | lets people look |
//! | L8 | `serve` `app` `demo` `ctl` | everything wired together |
//!
//! `tests/tidy.rs` enforces layers, walls and sizes.

pub mod clock;
pub mod error;
pub mod ids;

pub mod sql;
pub mod wire;

pub mod catalog;

pub mod config;
pub mod metrics;
pub mod topology;

pub mod auth;
pub mod failover;
pub mod net;

pub mod backend;
pub mod coordination;
pub mod route;

pub mod client;
pub mod monitor;
pub mod pool;
pub mod relay;

pub mod decision;

pub mod session;

pub mod admin;

pub mod app;
pub mod ctl;
pub mod demo;
pub mod serve;
