//! Listening sockets.
//!
//! Invariant: one failed accept never ends a listener (EMFILE is slept on and counted by the
//! caller). Absent on purpose: what happens to an accepted connection.

use super::Stream;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};

/// Connections the kernel may hold for us before we accept them.
const BACKLOG: u32 = 4096;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
}

/// Binds and listens, with address reuse.
///
/// # Errors
/// What the kernel says (address in use, say).
pub fn bind(address: SocketAddr) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Listener { tcp: socket.listen(BACKLOG)? })
}

impl Listener {
    /// The next connection. A failure is reported to `failed` and slept on, never returned. Cancel-safe.
    pub async fn accept(&self, failed: impl Fn(&io::Error)) -> Stream {
        loop {
            let outcome = match self.tcp.accept().await {
                Ok((tcp, peer)) => Stream::tcp(tcp, peer),
                Err(err) => Err(err),
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

    /// The bound address (the port chosen by the kernel when 0 was asked for).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
