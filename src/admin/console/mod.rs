//! The console: databases `pgregent` and `pgbouncer` on the client port, for people with psql, for
//! drivers, and for exporters made for PgBouncer.
//!
//! A console client logs in like any other and must be named in the config. Invariants: nothing here
//! touches a session or a pool but through copies ([`snapshot`]); what acts (RELOAD, DRAIN NODE, FAILOVER and the like)
//! is handed to whoever owns the config, or to the failover machine, and is for `console_users` only; console clients are bounded in
//! number and do not need a place among the clients served. Absent on purpose: SQL.

mod command;
mod explain;
mod orders;
mod session;
mod show;
mod snapshot;
mod table;
mod variables;
mod words;

pub use session::ConsoleEnd;
pub use show::{Flavour, VERSION};
pub use snapshot::{Snapshot, Sources};

use crate::client::SessionHandle;
use crate::config::AdminConfig;
use crate::error::{ClientError, SqlState};
use crate::ids::NodeId;
use crate::net::Stream;
use crate::route::Service;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Console clients at once.
pub const CONSOLE_CLIENTS_MAX: usize = 100;
/// Orders that may be under way at once.
pub const ORDERS_MAX: usize = 16;

/// What an operator orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The config is read again.
    Reload,
    /// A node is to serve so.
    Serve(NodeId, Service),
}

/// Why an order was not carried out.
pub type Carried = Result<(), String>;

/// An order; what it came to comes back.
pub type OrderRequest = (Order, oneshot::Sender<Carried>);

/// What a console client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// Look.
    Reader,
}

impl Access {
    /// Of a user; `None`: none.
    #[must_use]
    pub fn of(config: &AdminConfig, user: &str) -> Option<Self> {
        let named = |names: &[String]| names.iter().any(|name| name == user);
        if named(&config.console_users) {
            Some(Self::Full)
        } else {
            named(&config.console_readers).then_some(Self::Reader)
        }
    }
}

/// What a user that may not is told.
#[must_use]
pub fn denied(user: &str) -> ClientError {
    ClientError::fatal(SqlState("42501"), format!("user \"{user}\" may not use the console")).hint(
        "Name the user in [admin] console_users or console_readers. To reach a database of this name on the nodes, \
         set [admin] console = false.",
    )
}

/// What all console clients share.
#[derive(Debug)]
pub struct Console {
    sources: Sources,
    orders: mpsc::Sender<OrderRequest>,
    places: Arc<Semaphore>,
    /// How long a client may take nothing of what it is sent.
    write_limit: Duration,
}

impl Console {
    /// Looks at these; `orders` lead to whoever owns the config.
    #[must_use]
    pub fn new(sources: Sources, orders: mpsc::Sender<OrderRequest>, write_limit: Duration) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(CONSOLE_CLIENTS_MAX));
        Arc::new(Self { sources, orders, places, write_limit })
    }

    /// Serves a client until it leaves or `stop`.
    pub async fn serve(self: Arc<Self>, stream: Stream, client: ConsoleClient, stop: CancellationToken) -> ConsoleEnd {
        let Ok(_place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.sources.registry.unregister(&client.handle);
            return session::refuse(stream, self.write_limit).await;
        };
        Box::pin(session::ConsoleSession::new(self, stream, client).run(stop)).await
    }
}

/// A client that may use the console.
#[derive(Debug)]
pub struct ConsoleClient {
    /// The role that it proved to be.
    pub user: Arc<str>,
    /// Which database it named.
    pub flavour: Flavour,
    /// What it may do.
    pub access: Access,
    /// Its handle, for the key that it is told.
    pub handle: Arc<SessionHandle>,
    /// `application_name` of its startup packet.
    pub application_name: Box<str>,
}
