//! Listening sockets.
//!
//! Invariant: one failed accept never ends a listener (EMFILE is slept on and counted by the
//! caller). Absent on purpose: what happens to an accepted connection.

use super::Stream;
use super::unix::{self, SocketFile};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// Connections the kernel may hold for us before we accept them.
const BACKLOG: u32 = 4096;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// For TCP.
    Tcp(TcpListener),
    /// For this machine, with its file.
    Unix(UnixListener, UnixPlace),
}

/// Where a Unix socket is; the file is removed with it.
#[derive(Debug)]
pub struct UnixPlace(SocketFile);

/// Binds and listens, with address reuse.
///
/// # Errors
/// What the kernel says (address in use, say).
pub fn bind(address: SocketAddr) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Listener::Tcp(socket.listen(BACKLOG)?))
}

/// Listens where libpq looks for port `port` in this directory.
///
/// # Errors
/// What the kernel says; `AddrInUse` when somebody else serves there.
pub fn bind_unix(directory: &Path, port: u16, permissions: u32) -> io::Result<Listener> {
    let (listener, file) = unix::listen(directory, port, permissions, BACKLOG)?;
    Ok(Listener::Unix(listener, UnixPlace(file)))
}

impl Listener {
    /// The next connection. A failure is reported to `failed` and slept on, never returned. Cancel-safe.
    pub async fn accept(&self, failed: impl Fn(&io::Error)) -> Stream {
        loop {
            let outcome = match self {
                Self::Tcp(tcp) => tcp.accept().await.and_then(|(tcp, peer)| Stream::tcp(tcp, peer)),
                Self::Unix(unix, _) => unix.accept().await.and_then(|(unix, _)| Stream::unix(unix)),
            };
            match outcome {
                Ok(stream) => return stream,
                Err(err) => {
                    failed(&err);
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// The bound port (the one chosen by the kernel when 0 was asked for); `None` for a Unix socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok().map(|address| address.port()),
            Self::Unix(..) => None,
        }
    }
}

/// Where it listens, for people.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(tcp) => match tcp.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("?"),
            },
            Self::Unix(_, place) => write!(f, "{}", place.0.path().display()),
        }
    }
}
