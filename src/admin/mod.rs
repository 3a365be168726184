//! Lets people and scrapers look.
//!
//! Reads snapshots ([`crate::topology::TopologyReader`]), [`crate::metrics::Metrics`] and a few
//! closures given by the composition root. [`http::serve`] serves it over HTTP, [`console`] over the
//! PostgreSQL protocol on the client port. [`log`] sets up where log lines go.
//!
//! Invariants: nothing here changes the state of the proxy, but for the console's RELOAD, which is handed
//! to the owner of the config; every text that comes from outside is escaped where it is shown. Absent on
//! purpose: authentication (HTTP is bound to the address of the config, loopback by default; console
//! clients have logged in before) and any HTTP endpoint that acts.

pub mod console;
mod decisions;
mod gauges;
mod guard;
pub mod http;
pub mod log;
mod page;
mod ready;
mod report;

pub use guard::{CONNECTION_TIME_MAX, CONNECTIONS_MAX, HttpLimits, REQUEST_BYTES_MAX, STOP_GRACE};
pub use http::{AdminDeps, JsonSource, NodeAddress, StatusSource, VitalsSource, serve, serve_limited};
pub use ready::{Phase, Readiness};
