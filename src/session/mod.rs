//! The life of an authenticated client: waits, attaches, pins, releases.
//!
//! A session is one task. All waiting is in [`Session::run`]'s poll, all changing in the files beside
//! this one: `unit` reads what the client wants, `attach` gets it a backend, `forward` passes it on,
//! `replies` passes the answers back, `loss` says what a lost backend means, `local` answers what
//! needs no node. `passthrough` is another kind of life: a replication connection with a backend of its
//! own. Invariants: a backend is released only when every reply owed was seen and its state
//! is known (I4); a write whose bytes left is never sent again (I5); nothing of one client is visible
//! to another. Absent on purpose: the control plane, of which only the topology is seen.

mod attach;
mod deps;
mod effects;
mod errors;
mod forward;
mod greet;
mod hazards;
mod hidden;
mod lapse;
mod local;
mod loss;
mod names;
mod nodes;
mod passthrough;
mod poll;
mod preference;
mod prepared;
mod refusal;
mod replies;
mod signals;
mod statements;
mod tracked;
mod transaction;
mod trial;
mod unit;

pub use deps::{SessionDeps, Tunables};
pub use greet::{GreetError, Greetings};
pub use hazards::HazardTable;
pub use nodes::watch_nodes;
pub use passthrough::{Passthrough, PassthroughEnd, PassthroughError, ReplicationWish};

use crate::backend::Parameters;
use crate::client::SessionHandle;
use crate::clock::Time;
use crate::ids::NodeId;
use crate::net::Stream;
use crate::pool::{Checkout, Pool, Ticket};
use crate::relay::{Inbox, NodeScan, Outbox};
use crate::route::{Dice, Target};
use crate::sql::HintNode;
use crate::topology::Floor;
use effects::Pins;
use hidden::Hidden;
use preference::{Defaults, Preference};
use prepared::Prepared;
use std::collections::VecDeque;
use std::sync::Arc;
use tracked::Tracked;
use transaction::Transaction;
use trial::Trial;
use unit::Unit;

/// Why a session ended. The label is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// Terminate, or end of stream between transactions.
    ClientLeft,
    /// The connection broke, or ended inside a transaction.
    ClientLost,
    /// The client broke the protocol.
    Violation,
    /// The client read nothing for too long.
    ClientStalled,
    /// The client was idle for too long.
    IdleTimeout,
    /// The client was idle for too long with a transaction open.
    TransactionTimeout,
    /// State that cannot move was lost with its backend.
    StateLost,
    /// Another client has terminated it.
    Terminated,
    /// The proxy stops.
    Drained,
}

impl SessionEnd {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientLeft => "client_left",
            Self::ClientLost => "client_lost",
            Self::Violation => "violation",
            Self::ClientStalled => "client_stalled",
            Self::IdleTimeout => "idle_timeout",
            Self::TransactionTimeout => "transaction_timeout",
            Self::StateLost => "state_lost",
            Self::Terminated => "terminated",
            Self::Drained => "drained",
        }
    }
}

/// Who the client proved to be.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Role.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// The port it connected to; `None` over a Unix socket.
    pub port: Option<u16>,
}

/// Where the session stands towards nodes. Kept inline: boxing would allocate once per statement.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per session, and moved rarely")]
enum Stage {
    /// It has no backend and wants none.
    Detached,
    /// A unit stands in the inbox; no node can take it yet.
    WaitingForRoute(Box<RouteWait>),
    /// A unit stands in the inbox; a backend is queued for.
    WaitingForBackend(BackendWait),
    /// It has a backend.
    Attached(Attachment),
}

/// The topology has changed, or the permit to write was extended.
type News = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waiting for a topology that has a node for the unit.
struct RouteWait {
    news: News,
    deadline: std::pin::Pin<Box<tokio::time::Sleep>>,
    /// Why, for people; `None`: for a fresher standby, and the primary will do in the end.
    why: Option<Arc<str>>,
}

impl std::fmt::Debug for RouteWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteWait").field("why", &self.why).finish_non_exhaustive()
    }
}

/// Queued for a backend.
#[derive(Debug)]
struct BackendWait {
    pool: Arc<Pool>,
    ticket: Ticket,
    target: Target,
    since: Time,
}

/// A backend in use.
#[derive(Debug)]
struct Attachment {
    checkout: Checkout,
    target: Target,
    /// When a read that tells how long the node takes was sent, until it is answered.
    sent_at: Option<Time>,
    /// Bytes for the node.
    outbox: Outbox,
    /// Bytes from the node that are not yet whole messages.
    input: crate::net::Buffer,
    scan: NodeScan,
    /// Its permit is over at the moment.
    lapse: Option<Box<lapse::Lapse>>,
    /// Bytes of `input` were read then and not looked at.
    unbelieved: bool,
    /// The rest of a message being passed on unseen: to the node, and to the client.
    to_node: usize,
    to_client: Streamed,
    /// Our own statements under way, oldest first.
    hidden: VecDeque<Hidden>,
    /// Cancel requests wait for them.
    ours: bool,
    /// The node refused the session's settings or its BEGIN, with this ErrorResponse body.
    refused: Option<Box<[u8]>>,
    /// Nothing of the client's may be sent before the session's settings are known to be made.
    guarded: bool,
    /// Has it been asked what a statement's rows look like?
    describing: Describing,
    gate: Gate,
    /// The session knows that the node wants this unit elsewhere; everything up to its end is hidden.
    rerouting: bool,
    /// A row or a completion was seen, which decides when all that the node has sent so far is looked at.
    deciding: bool,
    /// A unit of the client has been answered on it.
    used: bool,
    /// The BEGIN that was answered before a node was known, while the unit behind it may still run elsewhere.
    begin: Option<Box<[u8]>>,
    /// What ran on it could not be examined: it is reset before anyone else gets it.
    tainted: bool,
}

/// What happens to the rest of a streamed message from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streamed {
    Forward,
    Swallow,
}

/// A question of ours to the backend: what do the rows of a statement look like?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Describing {
    /// It was not asked.
    No,
    /// Its answer is awaited.
    Asked,
    /// It has answered for the statement of this number, just now.
    Answered(u64),
}

/// How much of what the client sends may be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// One read outside a transaction, which may run again elsewhere until its first answer.
    OneRead,
    /// That unit has been sent whole: nothing more until it is answered.
    Shut,
    /// Everything.
    Free,
}

/// What statements have done that is to be dealt with once their unit or transaction is over.
#[derive(Debug, Default)]
struct Aftermath {
    /// Startup settings that the present unit has reset: on the node that goes to its own defaults.
    restored: Vec<crate::backend::Setting>,
    /// Something changed the session in a way that its text did not tell: the backend must be asked.
    uncertain: bool,
    /// Its answer was of no use, and it has been asked once more.
    asked_again: bool,
    /// The open transaction has changed what names and types mean.
    changed_schema: bool,
    /// The same of functions and triggers.
    changed_code: bool,
    /// The same of what functions are declared to do.
    changed_functions: bool,
    /// The open transaction has changed who may log in, or what sessions begin with.
    changed_logins: bool,
    /// What is known of the functions of its database.
    hazards: Option<Arc<hazards::Hazards>>,
    /// The functions of its database are to be read.
    wants_hazards: bool,
    /// Settings of extensions that texts have named which did not tell what they do.
    suspects: Vec<Arc<str>>,
}

/// A client's session.
#[derive(Debug)]
pub struct Session {
    deps: Arc<SessionDeps>,
    identity: Identity,
    /// What functions and views of its database do.
    catalog: Arc<crate::catalog::CatalogSlot>,
    handle: Arc<SessionHandle>,
    stream: Stream,
    inbox: Inbox,
    outbox: Outbox,
    stage: Stage,
    transaction: Transaction,
    /// Units sent whose ReadyForQuery is owed to the client, oldest first.
    sent: VecDeque<Unit>,
    /// The class of the last Parse scanned, and where that message stands in the inbox.
    memo: Option<(usize, Arc<crate::sql::Classification>)>,
    /// The class of the simple Query at the cursor, from its scan.
    query_class: Option<Arc<crate::sql::Classification>>,
    /// Bytes that the message at the cursor still lacks.
    wanted: usize,
    /// The unit that seeks a backend, or has one.
    wanted_unit: attach::Wanted,
    /// What portals of the attached backend will leave behind when they are executed.
    bound: Vec<(Box<[u8]>, VecDeque<effects::Effect>)>,
    /// Confirmed names that count only once the held answer is let go.
    held_confirms: usize,
    /// The unit being passed on.
    unit: Unit,
    prepared: Prepared,
    tracked: Tracked,
    after: Aftermath,
    /// The backend of the primary it had last: preferred, because it knows this session best.
    home: Option<crate::ids::BackendId>,
    told: Arc<Parameters>,
    pins: Pins,
    /// How the client's string literals read (`standard_conforming_strings`).
    strings: crate::sql::StringSyntax,
    /// Commits may be acknowledged before they are flushed (`synchronous_commit = off`).
    lazy_commits: Option<std::time::Duration>,
    /// How long a commit may stay unflushed when nobody waits for it (three times `wal_writer_delay`).
    commit_delay: std::time::Duration,
    /// What it must be able to read: its own writes, and what was written before it began.
    floor: Floor,
    /// What sessions of its role and database begin with.
    defaults: Defaults,
    /// Where it is served.
    preference: Preference,
    /// The open transaction may move to the primary. Boxed: few sessions have one.
    trial: Option<Box<Trial>>,
    /// Transactions may begin on a standby, as far as this session knows.
    optimistic: bool,
    /// Where the client wants statements without a hint of their own to run.
    hint: Option<HintNode>,
    /// Until when the present unit waits for a standby that shows what it must.
    patience: Option<Time>,
    /// When it last wrote.
    wrote: Time,
    dice: Dice,
    pools: Box<[Option<Arc<Pool>>]>,
    /// Reroutes of the present unit, and the node it left last.
    attempts: u32,
    avoid: Option<NodeId>,
    force_primary: bool,
    /// How a standby refused the present unit, if that may mean that it is no read: on the primary it runs once only.
    refused: Option<refusal::Refusal>,
    /// The present unit failed here; the client's messages are skipped up to its Sync.
    skip_to_sync: bool,
    /// Bytes of a message of the client's that are to be dropped.
    skip_bytes: usize,
    /// In a lost transaction: how the statement asked for, prepared or bound last would end it.
    ending_lost: effects::Control,
    /// The session ends as soon as the client has been sent what stands in its outbox.
    ending: Option<SessionEnd>,
    /// When the present unit must have found a backend.
    queue_deadline: Option<Time>,
    timer: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Session {
    /// Forgets what was sent of the present unit: it runs elsewhere, or not at all.
    fn forget_unit(&mut self) {
        if let Some(trial) = self.trial.as_mut().filter(|trial| !trial.is_repeating()) {
            trial.restart();
        }
        self.sent.clear();
        self.unit = Unit::default();
        self.prepared.abandon_all();
        self.held_confirms = 0;
    }

    fn note_error(&self, error: &impl crate::error::Classify) {
        self.deps.metrics.client_error(error);
    }

    /// Ends the task's part: leaves queues, closes or releases the backend.
    fn leave(&mut self, end: SessionEnd) {
        match std::mem::replace(&mut self.stage, Stage::Detached) {
            Stage::WaitingForBackend(wait) => self.leave_queue(&wait),
            Stage::Attached(attachment) => self.part(attachment, end),
            Stage::Detached | Stage::WaitingForRoute(_) => {}
        }
        self.pin(b"", |pins| *pins = Pins::default());
        self.deps.registry.unregister(&self.handle);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A panic or an abort must not leave a queue entry or a registration behind.
        self.leave(SessionEnd::ClientLost);
    }
}
