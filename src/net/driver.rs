//! Sessions of the PostgreSQL driver (`tokio-postgres`), which probes, promotion and `auth_query` use,
//! protected like backends are.
//!
//! Invariants: what `sslmode` says holds here as it does for backends, with the same second attempts as
//! libpq; the driver is given the hash of the node's certificate, so that it binds its login to it.
//! Absent on purpose: time limits (the callers').

use super::tls::{NodeTls, TlsAttempt, node_end_point};
use crate::config::ChannelBinding;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{self, Host, SslMode};
use tokio_postgres::tls::{self, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, Error, Socket};
use tokio_rustls::client;

/// `no pg_hba.conf entry …, no encryption`, among others.
const NOT_AUTHORIZED: &str = "28000";

/// The half of a driver's session that moves bytes.
pub type DriverLink = Connection<Socket, DriverStream<Socket>>;

/// Opens a session to the node that `config` names.
///
/// # Errors
/// What the driver says of the last attempt.
pub async fn connect_driver(config: &Config, tls: &NodeTls) -> Result<(Client, DriverLink), Error> {
    // Over a Unix socket there is no TLS, as in PostgreSQL: nobody is in between.
    let is_local = config.get_hosts().iter().any(|host| matches!(host, Host::Unix(_)));
    let attempts: &[TlsAttempt] = if is_local { &[TlsAttempt::Plain] } else { tls.attempts() };
    let mut attempts = attempts.iter().peekable();
    loop {
        let attempt = attempts.next().copied().unwrap_or(TlsAttempt::Plain);
        let mut config = config.clone();
        config.ssl_mode(match attempt {
            TlsAttempt::Plain => SslMode::Disable,
            TlsAttempt::IfOffered => SslMode::Prefer,
            TlsAttempt::Always => SslMode::Require,
        });
        config.channel_binding(match tls.channel_binding() {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            // Nobody is in between on a Unix socket.
            ChannelBinding::Require if is_local => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
        match config.connect(DriverTls(tls.clone())).await {
            Err(error) if attempts.peek().is_some() && depends_on_encryption(&error) => {}
            done => return done,
        }
    }
}

/// Might the same login succeed with or without TLS, whichever was not tried?
fn depends_on_encryption(error: &Error) -> bool {
    // The driver's kinds are not public; its text for this one is fixed.
    let handshake = || error.to_string().starts_with("error performing TLS handshake");
    error.code().map_or_else(handshake, |code| code.code() == NOT_AUTHORIZED)
}

/// Makes the driver's TLS streams.
#[derive(Clone, Debug)]
pub struct DriverTls(NodeTls);

/// One handshake to be made.
#[derive(Debug)]
pub struct DriverHandshake {
    tls: NodeTls,
    host: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for DriverTls {
    type Stream = DriverStream<S>;
    type TlsConnect = DriverHandshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<DriverHandshake> {
        Ok(DriverHandshake { tls: self.0.clone(), host: host.to_owned() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for DriverHandshake {
    type Stream = DriverStream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<DriverStream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move { self.tls.handshake(&self.host, stream).await.map(DriverStream) })
    }
}

/// A TLS stream as the driver wants it.
#[derive(Debug)]
pub struct DriverStream<S>(client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for DriverStream<S> {
    fn channel_binding(&self) -> tls::ChannelBinding {
        node_end_point(&self.0)
            .map_or_else(tls::ChannelBinding::none, |hash| tls::ChannelBinding::tls_server_end_point(hash.to_vec()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for DriverStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for DriverStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
