//! The accept loop, and the life of one connection as a list.
//!
//! Invariants: one connection's failure never ends the listener; a cancel never waits for a place;
//! clients beyond the limit wait in a bounded queue with a deadline; whoever has not got
//! as far as a session when the proxy stops is told so at once. Absent on purpose: what each step does
//! (`client`, `session`).

use crate::admin::console::{Access, Console, ConsoleClient, Flavour, denied};
use crate::backend::Settings;
use crate::client::{
    Admission, AuthDeps, BadOptions, ClientIdentity, ClientKind, EnterError, Entrance, Facts, Hello, Joined, Permit,
    SessionHandle, Signal, Trail, login, receive, refuse, send_last, startup_settings, take_proxy_header,
};
use crate::config::{Config, ServerConfig};
use crate::error::{Classify, ClientError, Severity, SqlState};
use crate::metrics::client_span;
use crate::net::{Listener, Peer, Stream, TlsAcceptor};
use crate::session::{Identity, Passthrough, ReplicationWish, Session, SessionDeps};
use crate::wire::encode;
use arc_swap::{ArcSwap, ArcSwapOption};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes that a waiting client may send ahead.
const AHEAD_MAX: usize = 64 * 1024;

/// Longest `application_name` shown (PostgreSQL: NAMEDATALEN less one).
const NAME_CHARACTERS_MAX: usize = 63;

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    /// For sessions.
    pub deps: Arc<SessionDeps>,
    /// For logins.
    pub auth: ArcSwap<AuthDeps>,
    /// TLS for clients; empty where it is not offered.
    pub tls: ArcSwapOption<TlsAcceptor>,
    /// Everything that is set.
    pub running: Arc<ArcSwap<Config>>,
    /// For operators.
    pub console: Arc<Console>,
    /// Limits.
    pub config: ArcSwap<ServerConfig>,
    /// Places.
    pub admission: Admission,
    /// All connections' tasks.
    pub tracker: TaskTracker,
    /// The proxy stops: no login goes on.
    pub draining: CancellationToken,
}

/// Accepts until `stop`.
pub async fn accept(server: Arc<Server>, listener: Listener, stop: CancellationToken) {
    loop {
        let failed = |error: &std::io::Error| {
            server.deps.metrics.clients.accept_errors.inc();
            tracing::warn!(%error, "a connection could not be accepted");
        };
        let stream = tokio::select! {
            accepted = listener.accept(failed) => accepted,
            () = stop.cancelled() => return,
        };
        server.deps.metrics.clients.connections.inc();
        let served = Arc::clone(&server);
        let port = listener.port();
        server.tracker.spawn(async move { served.serve(stream, port).await });
    }
}

impl Server {
    /// The life of one connection.
    async fn serve(self: Arc<Self>, stream: Stream, port: Option<u16>) {
        // Boxed: the login's memory is gone once the session runs, and there are many sessions.
        let Some(Begun { life, identity, permit, peer }) = Box::pin(self.let_in(stream, port)).await else { return };
        self.deps.metrics.clients.logins.inc("ok");
        let counted = self.deps.metrics.clients.session();
        let end = match life {
            Life::Session(session) => session.run().await.label(),
            Life::Replication(passthrough) => passthrough.run().await.label(),
            Life::Console(client, stream) => {
                Arc::clone(&self.console).serve(stream, client, self.draining.clone()).await.label()
            }
        };
        drop((counted, permit));
        client_span(&peer, &identity.user, &identity.database).in_scope(|| tracing::debug!("session ended: {end}"));
    }

    /// From accept to a session. Who does not get that far has been told why.
    async fn let_in(&self, mut stream: Stream, port: Option<u16>) -> Option<Begun> {
        let entered = match Box::pin(self.enter(&mut stream)).await {
            Ok(entered) => entered?,
            Err(error) => {
                self.turn_away(&mut stream, &error).await;
                return None;
            }
        };
        let Entered { hello, startup, permit, console } = entered;
        let peer = stream.peer();
        let identity = Identity { user: Arc::clone(&hello.user), database: Arc::clone(&hello.database), port };
        let handle = self.deps.registry.register(hello.version, self.identify(&hello, console, &stream));
        if self.draining.is_cancelled() {
            // Those registered before were told by whoever began the drain.
            handle.signal(Signal::Drain);
        }
        let life = match (hello.replication, console) {
            (_, Some((flavour, access))) => {
                let application_name = application_name(&hello);
                Life::Console(ConsoleClient { user: hello.user, flavour, access, handle, application_name }, stream)
            }
            (Some(mode), None) => {
                let wish = ReplicationWish { identity: identity.clone(), mode, parameters: hello.parameters };
                self.begin_replication(wish, handle, stream).await?
            }
            (None, None) => self.begin_session(identity.clone(), startup, handle, stream).await?,
        };
        Some(Begun { life, identity, permit, peer })
    }

    async fn begin_session(
        &self,
        identity: Identity,
        startup: Settings,
        handle: Arc<SessionHandle>,
        stream: Stream,
    ) -> Option<Life> {
        let deps = Arc::clone(&self.deps);
        let begun =
            Box::pin(Session::begin(deps, identity.clone(), startup, handle, stream, self.draining.clone())).await;
        match begun {
            Ok(session) => Some(Life::Session(Box::new(session))),
            Err((error, stream)) => {
                let mut out = Vec::new();
                encode::error(&mut out, &ClientError { severity: Severity::Fatal, ..error.client() });
                self.refuse_session(&error, &out, stream, &identity).await;
                None
            }
        }
    }

    async fn begin_replication(
        &self,
        wish: ReplicationWish,
        handle: Arc<SessionHandle>,
        stream: Stream,
    ) -> Option<Life> {
        let (deps, identity) = (Arc::clone(&self.deps), wish.identity.clone());
        match Box::pin(Passthrough::begin(deps, wish, handle, stream, self.draining.clone())).await {
            Ok(passthrough) => Some(Life::Replication(Box::new(passthrough))),
            Err((error, stream)) => {
                self.refuse_session(&error, &error.message(), stream, &identity).await;
                None
            }
        }
    }

    /// Tells a client that has proved itself why nothing comes of it.
    async fn refuse_session(
        &self,
        error: &(impl Classify + std::fmt::Display),
        message: &[u8],
        mut stream: Stream,
        identity: &Identity,
    ) {
        self.deps.metrics.client_error(error);
        self.deps.metrics.clients.logins.inc(error.label());
        client_span(&stream.peer(), &identity.user, &identity.database)
            .in_scope(|| tracing::info!("login refused: {error}"));
        send_last(&mut stream, message).await;
    }

    /// From accept to a client that may speak.
    async fn enter(&self, stream: &mut Stream) -> Result<Option<Entered>, EnterError> {
        let config = self.config.load_full();
        let place = self.admission.arrive(&config)?;
        let mut input = Vec::with_capacity(512);
        let tls = self.tls.load_full();
        let receiving = async {
            if is_balanced(&config, stream.peer()) {
                take_proxy_header(stream, &mut input).await?;
            }
            receive(stream, &mut input, tls.as_deref()).await
        };
        let entrance = self.within(config.login_timeout, receiving).await?;
        drop(tls);
        let hello = match entrance {
            Entrance::Cancel { pid, secret } => {
                let label = self.deps.registry.cancel(pid, &secret).await;
                self.deps.metrics.clients.cancels.inc(label);
                return Ok(None);
            }
            Entrance::Session(hello) => hello,
        };
        let flavour = self.console_of(&hello);
        let (permit, place) = match flavour {
            // Operators get in when all places are taken.
            Some(_) => (None, Some(place)),
            None => (Some(self.place(stream, &mut input, &config).await?), None),
        };
        let auth = self.auth.load_full();
        let facts = Facts { peer: stream.peer(), tls: stream.tls_info().cloned() };
        let mut trail = Trail::default();
        let proving = login(stream, &mut input, &hello, &facts, &auth, &mut trail);
        let proved = self.within(config.login_timeout, proving).await;
        client_span(&facts.peer, &hello.user, &hello.database).in_scope(|| match &proved {
            Ok(_) => tracing::debug!(method = %trail, "logged in"),
            Err(error) => tracing::info!(method = %trail, "login failed: {error}"),
        });
        let credential = proved?;
        self.deps.pools.set_credential(&hello.user, credential);
        drop(place);
        let console = match flavour.map(|flavour| (flavour, Access::of(&self.running.load().admin, &hello.user))) {
            Some((flavour, Some(access))) => Some((flavour, access)),
            Some((_, None)) => return Err(EnterError::Refused(Box::new(denied(&hello.user)))),
            None => None,
        };
        let startup = match (hello.replication, console) {
            // They go to the node as they are, or nowhere.
            (Some(_), _) | (_, Some(_)) => Settings::default(),
            (None, None) => startup_settings(&hello.parameters).map_err(|error| refused_options(&error))?,
        };
        if !input.is_empty() {
            // A client that speaks before it was greeted is not one of ours to guess about.
            return Err(EnterError::OutOfOrder(char::from(input[0])));
        }
        Ok(Some(Entered { hello, startup, permit, console }))
    }

    /// Is it the console that this client wants?
    fn console_of(&self, hello: &Hello) -> Option<Flavour> {
        let wanted = hello.replication.is_none() && self.running.load().admin.console;
        Flavour::of(&hello.database).filter(|_| wanted)
    }

    /// A client that has proved itself, as operators see it.
    fn identify(&self, hello: &Hello, console: Option<(Flavour, Access)>, stream: &Stream) -> ClientIdentity {
        let kind = match (console, hello.replication) {
            (Some(_), _) => ClientKind::Console,
            (None, Some(mode)) => ClientKind::Replication(mode),
            (None, None) => ClientKind::Session,
        };
        ClientIdentity {
            user: Arc::clone(&hello.user),
            database: Arc::clone(&hello.database),
            peer: stream.peer(),
            kind,
            application_name: application_name(hello),
            tls: stream.tls_info().map(|tls| format!("{}/{}", tls.version, tls.cipher).into()),
            since: self.deps.clock.now(),
        }
    }

    /// A place among the clients served, perhaps after waiting for one.
    async fn place(
        &self,
        stream: &mut Stream,
        input: &mut Vec<u8>,
        config: &ServerConfig,
    ) -> Result<Permit, EnterError> {
        let mut turn = match self.admission.join(config)? {
            Joined::Admitted(permit) => return Ok(permit),
            Joined::Queued(turn) => turn,
        };
        let _waiting = self.deps.metrics.clients.waiting();
        let deadline = tokio::time::sleep(config.accept_queue_timeout);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                permit = &mut turn => return permit.map_err(|_| EnterError::TooMany),
                () = &mut deadline => return Err(EnterError::TooMany),
                () = self.draining.cancelled() => return Err(EnterError::Draining),
                read = stream.read_more(input), if input.len() < AHEAD_MAX => read?,
            }
        }
    }

    /// Waits for `work` until the limit has passed or the proxy stops.
    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, EnterError>>,
    ) -> Result<T, EnterError> {
        tokio::select! {
            done = tokio::time::timeout(limit, work) => done.unwrap_or(Err(EnterError::TimedOut)),
            () = self.draining.cancelled() => Err(EnterError::Draining),
        }
    }

    async fn turn_away(&self, stream: &mut Stream, error: &EnterError) {
        let peer = stream.peer();
        self.deps.metrics.client_error(error);
        self.deps.metrics.clients.logins.inc(error.label());
        match error {
            // The client's own log often says no more than that the connection ended.
            EnterError::Tls(_) | EnterError::Unnamed | EnterError::Balancer(_) => {
                tracing::info!(client = %peer, "connection refused: {error}")
            }
            _ => tracing::debug!(client = %peer, "connection refused: {error}"),
        }
        refuse(stream, error).await;
    }
}

/// A client that can be served.
struct Begun {
    life: Life,
    identity: Identity,
    /// Its place; console clients need none.
    permit: Option<Permit>,
    peer: Peer,
}

/// What it is served with.
enum Life {
    Session(Box<Session>),
    Replication(Box<Passthrough>),
    Console(ConsoleClient, Stream),
}

struct Entered {
    hello: Hello,
    startup: Settings,
    permit: Option<Permit>,
    console: Option<(Flavour, Access)>,
}

/// `application_name` of the startup packet, shortened as PostgreSQL does.
fn application_name(hello: &Hello) -> Box<str> {
    let named = hello.parameters.iter().rfind(|(name, _)| name == "application_name");
    named.map_or_else(String::new, |(_, value)| value.chars().take(NAME_CHARACTERS_MAX).collect()).into()
}

/// Does this peer speak for others?
fn is_balanced(config: &ServerConfig, peer: Peer) -> bool {
    match peer {
        Peer::Tcp(address) => {
            // On a socket for both families, IPv4 comes mapped.
            let ip = address.ip().to_canonical();
            config.proxy_protocol_from.iter().any(|network| network.contains(&ip))
        }
        Peer::Unix { .. } => false,
    }
}

fn refused_options(error: &BadOptions) -> EnterError {
    EnterError::Refused(Box::new(ClientError::fatal(SqlState("42601"), error.to_string())))
}
