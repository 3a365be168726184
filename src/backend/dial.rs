//! Opens a socket to a node, protected as its `sslmode` says.
//!
//! Invariants: the answer to SSLRequest is one byte, and nothing that follows it unencrypted is believed
//! (CVE-2021-23222); over a Unix socket there is no TLS, as in PostgreSQL. Absent on purpose: the startup
//! packet, time limits.

use crate::net::{NodeTls, Stream, TlsAttempt};
use crate::wire::encode;
use std::io;
use std::sync::Arc;
use tokio::net::{TcpStream, UnixStream};

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host name or address; a directory (it begins with `/`) for a Unix socket.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
    /// How connections to it are protected.
    pub tls: NodeTls,
}

impl Target {
    /// Without TLS.
    #[must_use]
    pub fn plain(host: &str, port: u16) -> Self {
        Self { host: host.into(), port, tls: NodeTls::NEVER }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The network, or the node's kernel.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// No TLS came about.
    #[error("{0}")]
    Tls(String),
}

/// One attempt.
///
/// # Errors
/// [`DialError`].
pub async fn dial(target: &Target, attempt: TlsAttempt) -> Result<Stream, DialError> {
    let mut stream = open(target).await?;
    if attempt == TlsAttempt::Plain || stream.is_unix() {
        return Ok(stream);
    }
    let mut request = Vec::with_capacity(8);
    encode::ssl_request(&mut request);
    stream.write_all(&request).await?;
    match stream.read_byte().await? {
        b'S' => {
            let shaken = stream.connect_tls(&target.tls, &target.host).await;
            shaken.map_err(|error| DialError::Tls(error.to_string()))?;
            Ok(stream)
        }
        b'N' if attempt == TlsAttempt::IfOffered => Ok(stream),
        b'N' => Err(DialError::Tls("the node does not offer TLS, but sslmode demands it".into())),
        _ => Err(DialError::Tls("the node did not understand the request for TLS".into())),
    }
}

async fn open(target: &Target) -> io::Result<Stream> {
    if target.host.starts_with('/') {
        return Stream::unix(UnixStream::connect(format!("{}/.s.PGSQL.{}", target.host, target.port)).await?);
    }
    let tcp = TcpStream::connect((&*target.host, target.port)).await?;
    let peer = tcp.peer_addr()?;
    Stream::tcp(tcp, peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NodeTlsConfig, SslMode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// What one attempt gives at a node that answers SSLRequest like this.
    async fn asked(attempt: TlsAttempt, answer: &'static [u8]) -> Result<Stream, DialError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tls = NodeTls::new(&NodeTlsConfig { mode: SslMode::Require, ..NodeTlsConfig::default() });
        let target = Target { tls, ..Target::plain("127.0.0.1", port) };
        let node = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            if attempt != TlsAttempt::Plain {
                tcp.read_exact(&mut request).await.unwrap();
                assert_eq!(request, [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]);
            }
            tcp.write_all(answer).await.unwrap();
            tcp
        };
        let (_tcp, stream) = tokio::join!(node, dial(&target, attempt));
        stream
    }

    #[tokio::test]
    async fn the_answer_decides_as_the_attempt_says() {
        let mut plain = asked(TlsAttempt::Plain, b"x").await.unwrap();
        plain.read_more(&mut Vec::with_capacity(8)).await.unwrap();
        assert!(asked(TlsAttempt::IfOffered, b"N").await.unwrap().tls_info().is_none());
        assert!(matches!(asked(TlsAttempt::Always, b"N").await, Err(DialError::Tls(why)) if why.contains("not offer")));
        assert!(matches!(asked(TlsAttempt::IfOffered, b"E").await, Err(DialError::Tls(_))));
        // What comes behind the answer is never taken for part of an encrypted conversation.
        assert!(matches!(asked(TlsAttempt::Always, b"SR\0\0\0\x08\0\0\0\0").await, Err(DialError::Tls(_))));
    }
}
