//! One authenticated connection to one node, and all that is known of its state.
//!
//! Invariants: [`Backend::is_clean`] is true only when every reply owed was seen (I4); a fenced
//! backend is never believed again. Absent on purpose: pools and sessions.

mod connect;
mod dial;
mod owed;
mod parameters;
mod query;
mod settings;
mod statements;

pub use connect::{ConnectError, Login, NodeRejection, connect};
pub use dial::{DialError, Target, dial};
pub use owed::{Owed, Pipeline, Refused, Reply, Unexpected};
pub use parameters::{Parameters, is_node_local};
pub use query::{QueryError, simple_query};
pub use settings::{AUTHORIZATION, READ_COMMITTED, ROLE, Setting, Settings};
pub use statements::{NAME_PREFIX, Statement, StatementTable, Statements, text_of};

use crate::clock::Time;
use crate::ids::{BackendId, NodeId, SessionId};
use crate::net::{Severer, Stream};
use crate::wire::TxStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// A connection to a node.
#[derive(Debug)]
pub struct Backend {
    /// Its number.
    pub id: BackendId,
    /// The node.
    pub node: NodeId,
    /// The socket.
    pub stream: Stream,
    /// What other tasks may do to it.
    pub control: Arc<BackendControl>,
    /// When it was opened.
    pub opened: Time,
    /// Requests sent whose replies are still owed.
    pub owed: Pipeline,
    /// Status said by the last ReadyForQuery.
    pub tx: TxStatus,
    /// Settings replayed onto it.
    pub settings: Arc<Settings>,
    /// Parameters it reported.
    pub parameters: Parameters,
    /// The number of changes, when it was opened, to what backends begin with (the pool's matter).
    pub generation: u64,
    /// Whose `currval()` and `lastval()` it remembers: the session that wrote on it last.
    pub sequences_of: Option<SessionId>,
    /// Prepared statements it knows.
    pub statements: Statements,
}

impl Backend {
    /// May it be given to another session: nothing owed, no transaction, not fenced?
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.owed.is_empty() && self.tx == TxStatus::Idle && !self.control.is_fenced()
    }
}

/// The part of a backend that other tasks can reach: to fence it, or to cancel its statement.
#[derive(Debug)]
pub struct BackendControl {
    /// Process id half of its cancel key.
    pub pid: i32,
    /// Secret half of its cancel key.
    pub secret: Box<[u8]>,
    /// Where to send a cancel request.
    pub target: Target,
    fenced: AtomicBool,
    session_pid: AtomicI32,
    severer: Severer,
}

impl BackendControl {
    /// For a backend with this cancel key.
    #[must_use]
    pub fn new(pid: i32, secret: Box<[u8]>, target: Target, severer: Severer) -> Self {
        Self { pid, secret, target, fenced: AtomicBool::new(false), session_pid: AtomicI32::new(0), severer }
    }

    /// Ends the connection; whatever still arrives on it must not be believed.
    pub fn fence(&self) {
        self.fenced.store(true, Ordering::SeqCst);
        self.severer.sever();
    }

    /// A session writes on it from now on, whose client knows itself by this process id.
    pub fn note_session(&self, pid: i32) {
        self.session_pid.store(pid, Ordering::Relaxed);
    }

    /// The process id by which the client of the session that wrote on it last knows itself.
    #[must_use]
    pub fn session_pid(&self) -> Option<i32> {
        Some(self.session_pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Was it fenced? To be asked after reading and before believing what was read.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }
}
