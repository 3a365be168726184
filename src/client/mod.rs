//! From a raw socket to a client that is allowed to speak.
//!
//! The steps in order: first packet (with TLS, if it is asked for), cancel or
//! session, login. Invariants: everything read before login is bounded; a client learns the reason of
//! every refusal as PostgreSQL would tell it; internal causes stay in the log. Absent on purpose:
//! backends, and what happens after login.

mod admission;
mod ask;
mod balancer;
mod cancel;
mod first_packet;
mod hashing;
mod login;
mod options;
mod view;

pub use admission::{Admission, Joined, Permit};
pub use ask::Inquirer;
pub use balancer::take_proxy_header;
pub use cancel::{CancelKey, CancelRegistry, PinRecord, SessionHandle, Signal, send_cancel};
pub use first_packet::{Entrance, Hello, Replication, receive};
pub use hashing::Hashing;
pub use login::{Access, AuthDeps, Facts, Trail, login};
pub use options::{BadOptions, startup_settings, take_node};
pub use view::{ClientIdentity, ClientKind, ClientView, Holding};

use crate::auth::AuthError;
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};
use crate::net::{BadProxyHeader, Stream};
use crate::wire::{FrameError, StartupError, encode};
use std::io;
use std::time::Duration;

/// How long a refusal may take to be sent.
const REFUSE_LIMIT: Duration = Duration::from_secs(5);

/// Why a client never became a session.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// It went away.
    #[error("the client went away during login: {0}")]
    Gone(#[from] io::Error),
    /// Its first packet is none.
    #[error("{0}")]
    BadStartup(#[from] StartupError),
    /// It spoke HTTP.
    #[error("the client spoke HTTP")]
    Http,
    /// A later packet is none.
    #[error("malformed message during login: {0}")]
    BadMessage(#[from] FrameError),
    /// It sent a message that has no place in a login.
    #[error("unexpected message {0:?} during login")]
    OutOfOrder(char),
    /// It sent data behind a request for encryption, before the answer.
    #[error("unencrypted data behind a request for encryption")]
    Smuggled,
    /// It comes from a load balancer that did not say whom it speaks for.
    #[error("{0}, which [server] proxy_protocol_from demands from this network")]
    Balancer(#[from] BadProxyHeader),
    /// The TLS handshake failed.
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    /// It began TLS unasked, and did not name the protocol.
    #[error("direct TLS without ALPN \"postgresql\"")]
    Unnamed,
    /// It took too long.
    #[error("login timed out")]
    TimedOut,
    /// It did not prove who it is.
    #[error("{0}")]
    Auth(#[from] AuthError),
    /// It asks for something we do not offer.
    #[error("{}", .0.message)]
    Refused(Box<ClientError>),
    /// Too many clients.
    #[error("too many clients")]
    TooMany,
    /// The proxy stops.
    #[error("the proxy is shutting down")]
    Draining,
}

impl Classify for EnterError {
    fn fault(&self) -> Fault {
        match self {
            Self::Auth(err) => err.fault(),
            Self::TooMany | Self::Draining => Fault::Proxy,
            _ => Fault::Client,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Auth(err) => err.retry(),
            Self::TooMany | Self::Draining => Retry::Later,
            _ => Retry::Never,
        }
    }

    fn client(&self) -> ClientError {
        let violation = |message: String| ClientError::fatal(SqlState::PROTOCOL_VIOLATION, message);
        match self {
            Self::Gone(_) => ClientError::fatal(SqlState::CONNECTION_FAILURE, "connection lost"),
            Self::BadStartup(StartupError::UnsupportedProtocol(_)) => {
                ClientError::fatal(SqlState::FEATURE_NOT_SUPPORTED, self.to_string())
            }
            Self::BadStartup(err) => violation(err.to_string()),
            Self::Http => violation("this port speaks the PostgreSQL protocol, not HTTP".into()),
            Self::BadMessage(_) => violation("invalid message format".into()),
            Self::OutOfOrder(tag) => violation(format!("expected a password message, got message type {tag:?}")),
            Self::Smuggled => violation("received unencrypted data after an encryption request".into()).detail(
                "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
            ),
            Self::Balancer(_) | Self::Tls(_) | Self::Unnamed => violation(self.to_string()),
            Self::TimedOut => {
                ClientError::fatal(SqlState::INVALID_AUTHORIZATION, "canceling authentication due to timeout")
            }
            Self::Auth(err) => err.client(),
            Self::Refused(err) => (**err).clone(),
            Self::Draining => ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "the proxy is shutting down"),
            Self::TooMany => ClientError::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
                .hint("Raise [server] max_client_connections, or let clients close connections they do not use."),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Gone(_) => "gone",
            Self::BadStartup(_) => "bad_startup",
            Self::Http => "http",
            Self::BadMessage(_) => "bad_message",
            Self::OutOfOrder(_) => "out_of_order",
            Self::Smuggled => "smuggled",
            Self::Balancer(_) => "proxy_header",
            Self::Tls(_) => "tls",
            Self::Unnamed => "tls_alpn",
            Self::TimedOut => "login_timeout",
            Self::Auth(err) => err.label(),
            Self::Refused(_) => "refused",
            Self::TooMany => "too_many_clients",
            Self::Draining => "draining",
        }
    }
}

/// Tells a client why it is refused; best effort, bounded in time.
pub async fn refuse(stream: &mut Stream, error: &EnterError) {
    let mut out = Vec::new();
    match error {
        // A cancel request is never answered, nor what is no packet at all; without TLS there is no channel, and TLS had its own alert.
        EnterError::Gone(_)
        | EnterError::BadStartup(StartupError::BadCancel | StartupError::BadLength)
        | EnterError::Tls(_)
        | EnterError::Unnamed => return,
        EnterError::Http => out.extend_from_slice(
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 53\r\n\r\nThis port speaks the PostgreSQL protocol, not HTTP.\r\n",
        ),
        _ => encode::error(&mut out, &error.client()),
    }
    send_last(stream, &out).await;
}

/// Sends the last bytes of a connection; best effort, bounded in time.
pub async fn send_last(stream: &mut Stream, bytes: &[u8]) {
    // A failure means that the client has gone; there is nobody left to tell.
    let _ = tokio::time::timeout(REFUSE_LIMIT, stream.write_all(bytes)).await;
}
