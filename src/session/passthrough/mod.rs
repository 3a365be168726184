//! A replication connection: one client, one backend of its own, bytes passed on unseen.
//!
//! For `replication=true|database`: pg_basebackup, pg_receivewal, pg_recvlogical, subscriptions. The
//! backend is opened with the client's own startup parameters on the primary, or on the node that the
//! client names by `pgregent.node`, and is closed with the client. Invariants: the client has proved
//! itself before; the backend counts against its node's budget; a fence of the node, a drain and a
//! cancel reach it as they reach a session. Absent on purpose: pooling, classification, healing.

mod copy;

pub use copy::PassthroughEnd;

use super::{Identity, SessionDeps};
use crate::backend::ConnectError;
use crate::client::{PinRecord, Replication, SessionHandle, take_node};
use crate::error::{Classify, ClientError, Fault, Retry, Severity, SqlState};
use crate::ids::NodeId;
use crate::metrics::GaugeGuard;
use crate::net::Stream;
use crate::pool::{Dedicated, DedicatedError, Wish};
use crate::relay::Edge;
use crate::route::{Dice, NoRoute, Target, Wishes};
use crate::sql::Access;
use crate::topology::{Health, Role};
use crate::wire::{TxStatus, backend as tags, encode};
use copy::Lane;
use std::pin::Pin;
use std::sync::Arc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The pin that these connections are shown with.
const PIN: &str = "replication";

/// What the client asked for.
#[derive(Clone, Debug)]
pub struct ReplicationWish {
    /// Who it proved to be.
    pub identity: Identity,
    /// Which kind.
    pub mode: Replication,
    /// Its other startup parameters.
    pub parameters: Vec<(String, String)>,
}

/// Why it got no backend.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PassthroughError {
    /// It named a node that there is not.
    #[error("there is no node {0:?}")]
    UnknownNode(String),
    /// The node it wants was not there in time.
    #[error("no node: {0}")]
    NoNode(Arc<str>),
    /// No place of the node's budget became free in time.
    #[error("no place in the budget of the node")]
    NoPlace,
    /// The pool's side has none.
    #[error(transparent)]
    Dedicated(#[from] DedicatedError),
    /// The proxy stops.
    #[error("the proxy is shutting down")]
    Draining,
}

impl Classify for PassthroughError {
    fn fault(&self) -> Fault {
        match self {
            Self::UnknownNode(_) => Fault::Client,
            Self::NoNode(_) => Fault::Topology,
            Self::NoPlace | Self::Draining => Fault::Proxy,
            Self::Dedicated(err) => err.fault(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::UnknownNode(_) => Retry::Never,
            Self::Dedicated(err) => err.retry(),
            _ => Retry::Later,
        }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::UnknownNode(name) => {
                ClientError::fatal(SqlState::INVALID_PARAMETER_VALUE, format!("there is no node \"{name}\""))
                    .hint("pgregent.node takes the name of a [[node]].")
            }
            Self::NoNode(why) => ClientError::fatal(
                SqlState::CANNOT_CONNECT_NOW,
                "no node accepts replication connections at the moment",
            )
            .detail(format!("The proxy waited as long as [pool] queue_timeout allows: {why}.")),
            Self::NoPlace => ClientError::fatal(
                SqlState::TOO_MANY_CONNECTIONS,
                "timed out waiting for a place among the connections to the node",
            )
            .hint("Raise [pool] node_budget or queue_timeout, or shorten transactions."),
            Self::Dedicated(err) => err.client(),
            Self::Draining => ClientError::fatal(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection because the proxy is shutting down",
            ),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::UnknownNode(_) => "unknown_node",
            Self::NoNode(_) => "no_node",
            Self::NoPlace => "no_place",
            Self::Dedicated(err) => err.label(),
            Self::Draining => "draining",
        }
    }
}

impl PassthroughError {
    /// The message for the client: the node's own, if it was the node that refused.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Dedicated(DedicatedError::Connect(ConnectError::Rejected(rejection))) => {
                encode::message(&mut out, tags::ERROR, |out| out.extend_from_slice(&rejection.body));
            }
            _ => encode::error(&mut out, &ClientError { severity: Severity::Fatal, ..self.client() }),
        }
        out
    }
}

/// A replication connection that has its backend.
pub struct Passthrough {
    deps: Arc<SessionDeps>,
    handle: Arc<SessionHandle>,
    client: Stream,
    backend: Dedicated,
    /// As what it was chosen, unless the client named the node.
    target: Option<Target>,
    to_client: Lane,
    to_node: Lane,
    /// Where the stream to the client stands.
    edge: Edge,
    fenced: Pin<Box<WaitForCancellationFutureOwned>>,
    timer: Pin<Box<tokio::time::Sleep>>,
    timing: bool,
    /// The last thing that the node was sent looks like Terminate.
    said_goodbye: bool,
    _counted: [GaugeGuard; 2],
    _listed: Listed,
}

/// Its place in the list of sessions, until it is dropped.
struct Listed {
    deps: Arc<SessionDeps>,
    handle: Arc<SessionHandle>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.handle.detach();
        self.deps.registry.unregister(&self.handle);
    }
}

impl Passthrough {
    /// Opens the backend and prepares the greeting.
    ///
    /// # Errors
    /// [`PassthroughError`] and the stream, on which the client is to be told.
    pub async fn begin(
        deps: Arc<SessionDeps>,
        wish: ReplicationWish,
        handle: Arc<SessionHandle>,
        client: Stream,
        draining: CancellationToken,
    ) -> Result<Self, (PassthroughError, Stream)> {
        let mode = wish.mode;
        let opened = tokio::select! {
            opened = open(&deps, wish) => opened,
            () = draining.cancelled() => Err(PassthroughError::Draining),
        };
        let (backend, target) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                deps.registry.unregister(&handle);
                return Err((error, client));
            }
        };
        handle.attach(backend.node, &backend.control, backend.opened, false);
        handle.note_pins(vec![PinRecord {
            reason: PIN,
            statement: format!("replication={}", mode.word()).into(),
            since: backend.opened,
        }]);
        let (here, pinned) = (&deps.metrics.node(backend.node).replication, deps.metrics.route.pins.handle(PIN));
        Ok(Self {
            _counted: [GaugeGuard::new(here), GaugeGuard::new(&pinned)],
            to_client: Lane::holding(|out| greet(out, &backend, &handle)),
            to_node: Lane::default(),
            edge: Edge::default(),
            fenced: Box::pin(backend.fenced().clone().cancelled_owned()),
            timer: Box::pin(tokio::time::sleep(std::time::Duration::ZERO)),
            timing: false,
            said_goodbye: false,
            _listed: Listed { deps: Arc::clone(&deps), handle: Arc::clone(&handle) },
            deps,
            handle,
            client,
            backend,
            target,
        })
    }
}

/// What the node said at its login, but for the key: a cancel goes through us.
fn greet(out: &mut Vec<u8>, backend: &Dedicated, handle: &SessionHandle) {
    for (name, value) in backend.parameters.all() {
        encode::parameter_status(out, name, value);
    }
    let key = handle.key();
    encode::key_data(out, key.pid, &key.secret);
    encode::ready(out, TxStatus::Idle);
}

async fn open(deps: &SessionDeps, wish: ReplicationWish) -> Result<(Dedicated, Option<Target>), PassthroughError> {
    let ReplicationWish { identity, mode, mut parameters } = wish;
    let node = match take_node(&mut parameters) {
        Some(name) => Some(named(deps, &name).ok_or(PassthroughError::UnknownNode(name))?),
        None => None,
    };
    parameters.push(("replication".to_owned(), mode.word().to_owned()));
    let deadline = deps.clock.now() + deps.tunables.load().queue_timeout;
    let until = deps.clock.instant(deadline);
    let mut wish = Wish { node: NodeId(0), fence: 0, user: identity.user, database: identity.database, parameters };
    let mut reader = deps.topology.clone();
    loop {
        reader.mark_seen();
        let news = reader.clone().news();
        let chosen = match target(deps, node) {
            Ok(chosen) => chosen,
            Err(NoRoute::Refused { why }) => return Err(PassthroughError::NoNode(why)),
            Err(no) => {
                if tokio::time::timeout_at(until, news).await.is_err() {
                    return Err(PassthroughError::NoNode(no.why()));
                }
                continue;
            }
        };
        let target;
        (wish.node, wish.fence, target) = chosen;
        let opening = tokio::time::timeout_at(until, deps.pools.dedicate(&wish));
        match opening.await.map_err(|_| PassthroughError::NoPlace)? {
            // Fenced meanwhile: the next snapshot tells where to go.
            Ok(backend) if backend.fenced().is_cancelled() => {}
            Ok(backend) => return Ok((backend, target)),
            Err(error) if error.may_pass() && deps.clock.now() < deadline => {
                tracing::debug!(user = %wish.user, "replication connection: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn named(deps: &SessionDeps, name: &str) -> Option<NodeId> {
    deps.topology.load().nodes.iter().find(|view| &*view.name == name).map(|view| view.id)
}

/// The node and its fence: the one that was named, as long as it belongs to the cluster; else the primary.
fn target(deps: &SessionDeps, named: Option<NodeId>) -> Result<(NodeId, u64, Option<Target>), NoRoute> {
    let topology = deps.topology.load();
    if let Some(view) = named.and_then(|node| topology.node(node)) {
        let usable = view.role != Role::Unassigned && view.health != Health::Down;
        let why = || view.note.clone().unwrap_or_else(|| "the node is not used now".into());
        return if usable { Ok((view.id, view.fence, None)) } else { Err(NoRoute::Held { why: why() }) };
    }
    let target = deps.choose(&Wishes::new(Access::Write), deps.clock.now(), &mut Dice::new(0))?;
    Ok((target.node, target.fence, Some(target)))
}
