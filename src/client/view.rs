//! Who the clients are and where their sessions stand, for people.
//!
//! Plain values, made when somebody looks. Invariant: looking takes no lock that a statement holds for
//! longer than a copy. Absent on purpose: what clients say (statements are shown only as causes of pins).

use super::{PinRecord, Replication};
use crate::backend::BackendControl;
use crate::clock::Time;
use crate::ids::{NodeId, SessionId};
use crate::net::Peer;
use std::sync::Arc;

/// What kind of life a client leads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// Statements, pooled.
    Session,
    /// A replication connection, passed through.
    Replication(Replication),
    /// The console.
    Console,
}

/// Who a client is; fixed from its login on.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The role that it proved to be.
    pub user: Arc<str>,
    /// The database that it named.
    pub database: Arc<str>,
    /// Where it connects from.
    pub peer: Peer,
    /// What it gets here.
    pub kind: ClientKind,
    /// `application_name` of its startup packet.
    pub application_name: Box<str>,
    /// Version and cipher of its TLS connection.
    pub tls: Option<Box<str>>,
    /// Since when it is logged in.
    pub since: Time,
}

/// The backend that a session holds.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The node.
    pub node: NodeId,
    /// The backend.
    pub control: Arc<BackendControl>,
    /// Since when.
    pub since: Time,
}

/// A client at one moment.
#[derive(Clone, Debug)]
pub struct ClientView {
    /// Its session's number.
    pub id: SessionId,
    /// Process id half of its cancel key, which it shows as its backend's process id.
    pub pid: i32,
    /// Who it is.
    pub identity: Arc<ClientIdentity>,
    /// The backend that it holds.
    pub holding: Option<Holding>,
    /// Since when it waits for a node or a backend.
    pub waiting: Option<Time>,
    /// Why it keeps its backend.
    pub pins: Vec<PinRecord>,
}
