//! Opens a backend: socket, TLS, startup, login, until the first ReadyForQuery.
//!
//! Invariants: every step is inside one deadline; whatever the node sends is bounded and never
//! believed without a check. A backend is opened neutral: settings come later. Absent on purpose:
//! retries and backoff (the pool's matter).

use super::query::{ReadError, next_message};
use super::{Backend, BackendControl, DialError, Parameters, Pipeline, Settings, Statements, Target, dial};
use crate::auth::{AuthError, ClientExchange, ClientStep, NodeChannel, NodeCredential};
use crate::clock::Clock;
use crate::config::ChannelBinding;
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};
use crate::ids::{BackendId, NodeId};
use crate::net::{Severer, Stream, TlsAttempt};
use crate::wire::{HEADER_LEN, PROTOCOL_3_0, TxStatus, backend as tags, encode};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest message believed before the session begins, bytes (libpq allows 30000 for most).
const LOGIN_MESSAGE_MAX: usize = 64 * 1024;
/// Messages believed before ReadyForQuery.
const LOGIN_MESSAGES_MAX: usize = 1000;
/// How long data to a node may stay unacknowledged by its kernel.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Who logs in to what.
#[derive(Clone, Debug)]
pub struct Login {
    /// Role.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// How we prove it.
    pub credential: NodeCredential,
    /// More startup parameters, in order. Empty for backends that are shared.
    pub parameters: Vec<(String, String)>,
}

/// What a node said when it refused a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRejection {
    /// The body of its ErrorResponse.
    pub body: Box<[u8]>,
    /// Five-character code.
    pub sqlstate: Box<str>,
    /// Its message.
    pub message: Box<str>,
}

impl NodeRejection {
    /// From the body of an ErrorResponse; `None` when it is malformed.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let view = tags::error(body).ok()?;
        (view.sqlstate.len() == 5 && view.sqlstate.is_ascii()).then(|| Self {
            body: body.into(),
            sqlstate: String::from_utf8_lossy(view.sqlstate).into(),
            message: String::from_utf8_lossy(view.message).into(),
        })
    }
}

/// Why no backend could be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens.
    #[error("connection refused")]
    Refused,
    /// No route, no such name.
    #[error("unreachable: {0}")]
    Unreachable(Arc<str>),
    /// Not done within the time limit.
    #[error("timed out")]
    TimedOut,
    /// The connection ended during login.
    #[error("connection lost during login")]
    Lost,
    /// No encrypted connection came about, and `sslmode` wants one.
    #[error("TLS to the node failed: {0}")]
    Tls(Arc<str>),
    /// What arrived is not the protocol.
    #[error("the node does not speak the protocol: {0}")]
    Garbage(&'static str),
    /// The node said no.
    #[error("{}: {}", .0.sqlstate, .0.message)]
    Rejected(Arc<NodeRejection>),
    /// We cannot prove who we are.
    #[error("login to the node failed: {0}")]
    Auth(Arc<AuthError>),
}

impl ConnectError {
    /// Will the same login fail again, wherever and whenever it is tried?
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Rejected(rejection) => !matches!(&rejection.sqlstate[..2], "57" | "53" | "08" | "58" | "XX"),
            Self::Auth(_) => true,
            _ => false,
        }
    }

    /// Might the same login succeed with or without TLS, whichever was not tried? Says libpq: where TLS
    /// failed, and where the node (its pg_hba.conf, say) wants the other.
    fn depends_on_encryption(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::Rejected(rejection) => &*rejection.sqlstate == "28000",
            _ => false,
        }
    }
}

impl Classify for ConnectError {
    fn fault(&self) -> Fault {
        if self.is_final() { Fault::Client } else { Fault::Node }
    }

    fn retry(&self) -> Retry {
        if self.is_final() { Retry::Never } else { Retry::OtherNode }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::Auth(err) => err.client(),
            Self::Rejected(rejection) => {
                ClientError::fatal(SqlState::known(rejection.sqlstate.as_bytes()), rejection.message.to_string())
            }
            _ => ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "no node accepts connections at the moment")
                .hint("Try again later; the proxy keeps trying to reach the nodes."),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
            Self::Tls(_) => "tls",
            Self::Garbage(_) => "garbage",
            Self::Rejected(_) => "rejected",
            Self::Auth(_) => "auth",
        }
    }
}

/// Opens a backend.
///
/// # Errors
/// [`ConnectError`]; after `limit` at the latest.
pub async fn connect(
    node: NodeId,
    id: BackendId,
    target: &Target,
    login: &Login,
    statements_max: usize,
    limit: Duration,
    clock: &Clock,
) -> Result<Backend, ConnectError> {
    let opening = open(node, id, target, login, statements_max, clock);
    tokio::time::timeout(limit, opening).await.unwrap_or(Err(ConnectError::TimedOut))
}

async fn open(
    node: NodeId,
    id: BackendId,
    target: &Target,
    login: &Login,
    statements_max: usize,
    clock: &Clock,
) -> Result<Backend, ConnectError> {
    let mut attempts = target.tls.attempts().iter().peekable();
    loop {
        let attempt = attempts.next().copied().unwrap_or(TlsAttempt::Plain);
        match open_once(node, id, target, attempt, login, statements_max, clock).await {
            Err(error) if attempts.peek().is_some() && error.depends_on_encryption() => {}
            outcome => return outcome,
        }
    }
}

async fn open_once(
    node: NodeId,
    id: BackendId,
    target: &Target,
    attempt: TlsAttempt,
    login: &Login,
    statements_max: usize,
    clock: &Clock,
) -> Result<Backend, ConnectError> {
    let stream = dial(target, attempt).await?;
    stream.limit_unacknowledged(UNACKNOWLEDGED_MAX).map_err(|err| socket_error(&err))?;
    let severer = stream.severer().map_err(|err| socket_error(&err))?;
    let mut greeter = Greeter::new(stream, login, target.tls.channel_binding());
    greeter.greet(login).await?;
    Ok(greeter.finish(node, id, target, severer, statements_max, clock))
}

fn socket_error(err: &io::Error) -> ConnectError {
    match err.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::Refused,
        io::ErrorKind::TimedOut => ConnectError::TimedOut,
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => ConnectError::Lost,
        _ => ConnectError::Unreachable(err.to_string().into()),
    }
}

impl From<DialError> for ConnectError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Socket(err) => socket_error(&err),
            DialError::Tls(why) => Self::Tls(why.into()),
        }
    }
}

impl From<ReadError> for ConnectError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Socket(err) => socket_error(&err),
            ReadError::Length => Self::Garbage("message length"),
        }
    }
}

/// The login conversation.
struct Greeter {
    stream: Stream,
    exchange: ClientExchange,
    input: Vec<u8>,
    parameters: Parameters,
    key: Option<(i32, Box<[u8]>)>,
}

impl Greeter {
    fn new(stream: Stream, login: &Login, binding: ChannelBinding) -> Self {
        let end_point = stream.tls_info().and_then(|tls| tls.server_end_point.clone());
        let channel = match binding {
            ChannelBinding::Require if !stream.is_unix() => NodeChannel::Required(end_point),
            ChannelBinding::Prefer => end_point.map_or(NodeChannel::None, NodeChannel::Preferred),
            ChannelBinding::Disable | ChannelBinding::Require => NodeChannel::None,
        };
        let exchange = ClientExchange::new(&login.user, &login.credential).over(channel);
        Self { stream, exchange, input: Vec::with_capacity(1024), parameters: Parameters::default(), key: None }
    }

    async fn greet(&mut self, login: &Login) -> Result<(), ConnectError> {
        let mut startup = Vec::with_capacity(128);
        let mut parameters = vec![("user", &*login.user), ("database", &*login.database)];
        parameters.extend(login.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        encode::startup(&mut startup, PROTOCOL_3_0, &parameters);
        self.stream.write_all(&startup).await.map_err(|err| socket_error(&err))?;
        for _ in 0..LOGIN_MESSAGES_MAX {
            let (tag, body) = next_message(&mut self.stream, &mut self.input, LOGIN_MESSAGE_MAX).await?;
            match tag {
                tags::AUTHENTICATION => self.on_auth(&body).await?,
                tags::PARAMETER_STATUS => {
                    let (name, value) =
                        tags::parameter(&body).map_err(|_| ConnectError::Garbage("parameter status"))?;
                    self.parameters.note(name, value);
                }
                tags::KEY_DATA => {
                    let (pid, secret) = tags::key_data(&body).map_err(|_| ConnectError::Garbage("key data"))?;
                    self.key = Some((pid, secret.into()));
                }
                tags::NOTICE => {}
                tags::ERROR => return Err(rejection(&body)),
                tags::READY => {
                    return match tags::ready(&body) {
                        // What follows unasked would be lost with this buffer.
                        Ok(TxStatus::Idle) if self.input.is_empty() => Ok(()),
                        _ => Err(ConnectError::Garbage("ready for query")),
                    };
                }
                _ => return Err(ConnectError::Garbage("message type")),
            }
        }
        Err(ConnectError::Garbage("too many messages"))
    }

    async fn on_auth(&mut self, body: &[u8]) -> Result<(), ConnectError> {
        match self.exchange.on_auth(body).map_err(|err| ConnectError::Auth(Arc::new(err)))? {
            ClientStep::Continue | ClientStep::Ok => Ok(()),
            ClientStep::Send(answer) => {
                // It may be a password: no copy of it stays behind.
                let mut out = Zeroizing::new(Vec::with_capacity(answer.len() + HEADER_LEN));
                encode::password(&mut out, &answer);
                self.stream.write_all(&out).await.map_err(|err| socket_error(&err))
            }
        }
    }

    fn finish(
        self,
        node: NodeId,
        id: BackendId,
        target: &Target,
        severer: Severer,
        statements_max: usize,
        clock: &Clock,
    ) -> Backend {
        let (pid, secret) = self.key.unwrap_or((0, Box::from(&[0u8; 4][..])));
        // A cancel request tells the key: it must not travel less protected than the key did.
        let target = Target { tls: target.tls.as_used(self.stream.tls_info().is_some()), ..target.clone() };
        Backend {
            id,
            node,
            stream: self.stream,
            control: Arc::new(BackendControl::new(pid, secret, target, severer)),
            opened: clock.now(),
            owed: Pipeline::default(),
            tx: TxStatus::Idle,
            settings: Arc::new(Settings::default()),
            parameters: self.parameters,
            generation: 0,
            sequences_of: None,
            statements: Statements::new(statements_max),
        }
    }
}

fn rejection(body: &[u8]) -> ConnectError {
    NodeRejection::read(body)
        .map_or(ConnectError::Garbage("error response"), |rejection| ConnectError::Rejected(Arc::new(rejection)))
}
