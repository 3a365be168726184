//! One connected socket: TCP or Unix, plain or protected by TLS.
//!
//! Invariants: polling follows tokio's rules (a pending poll has registered the waker). Reads use
//! `poll_read`, whose short reads save the extra "would block" system call. A write that is pending may
//! have taken bytes (TLS has them encrypted): the caller offers the same bytes again. Absent on purpose:
//! when TLS begins (`client` and `backend` know).

use super::socket::Socket;
use super::tls::{Ahead, NodeTls, Secured, TlsAcceptor};
use super::{Peer, TlsInfo};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::poll_read_buf;

/// Keepalive towards both sides: first probe after, then every, in seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A connected socket, non-blocking.
#[derive(Debug)]
pub struct Stream {
    wire: Wire,
    peer: Peer,
}

#[derive(Debug)]
enum Wire {
    Plain(Socket),
    Tls(Box<Secured>),
    /// A TLS handshake took the socket, and failed or was dropped.
    Spent,
}

impl Stream {
    /// Wraps an accepted or connected TCP socket: no delay, keepalive on.
    ///
    /// # Errors
    /// What the kernel says about the socket options.
    pub fn tcp(tcp: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        Ok(Self { wire: Wire::Plain(Socket::Tcp(tcp)), peer: Peer::Tcp(peer) })
    }

    /// Wraps an accepted or connected Unix socket.
    ///
    /// # Errors
    /// When the kernel does not tell who is at the other end.
    pub fn unix(unix: UnixStream) -> io::Result<Self> {
        let who = unix.peer_cred()?;
        Ok(Self { wire: Wire::Plain(Socket::Unix(unix)), peer: Peer::Unix { uid: who.uid(), pid: who.pid() } })
    }

    /// How long unacknowledged data may stand before the kernel ends the connection.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn limit_unacknowledged(&self, limit: Duration) -> io::Result<()> {
        match &self.wire {
            Wire::Plain(Socket::Tcp(tcp)) => socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(limit)),
            _ => Ok(()),
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Notes who is really at the other end, as a trusted load balancer told.
    pub fn set_peer(&mut self, peer: Peer) {
        self.peer = peer;
    }

    /// What TLS has established; `None` on a plain connection. On a connection to a node, the hash is
    /// that of the node's certificate.
    #[must_use]
    pub fn tls_info(&self) -> Option<&TlsInfo> {
        match &self.wire {
            Wire::Tls(tls) => Some(tls.info()),
            Wire::Plain(_) | Wire::Spent => None,
        }
    }

    /// Did both sides name the protocol in their TLS handshake (ALPN `postgresql`)?
    #[must_use]
    pub fn is_protocol_named(&self) -> bool {
        matches!(&self.wire, Wire::Tls(tls) if tls.is_named())
    }

    /// Is it a Unix socket?
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.wire, Wire::Plain(Socket::Unix(_)))
    }

    /// Begins TLS as the server; `read` is what came already. Not cancel-safe: dropped before its end,
    /// or failed, it leaves a stream that is of no more use.
    ///
    /// # Errors
    /// Why no handshake was made.
    pub async fn accept_tls(&mut self, acceptor: &TlsAcceptor, read: &[u8]) -> io::Result<()> {
        let below = Ahead::new(self.take_plain()?, read);
        self.wire = Wire::Tls(Box::new(Box::pin(acceptor.accept(below)).await?));
        Ok(())
    }

    /// Begins TLS as the client of the node at `host`. Not cancel-safe, as [`Stream::accept_tls`].
    ///
    /// # Errors
    /// Why no handshake was made: the node's certificate, say.
    pub async fn connect_tls(&mut self, tls: &NodeTls, host: &str) -> io::Result<()> {
        let below = Ahead::new(self.take_plain()?, &[]);
        self.wire = Wire::Tls(Box::new(Box::pin(tls.secure(host, below)).await?));
        Ok(())
    }

    fn take_plain(&mut self) -> io::Result<Socket> {
        match std::mem::replace(&mut self.wire, Wire::Spent) {
            Wire::Plain(socket) => Ok(socket),
            other => {
                self.wire = other;
                Err(io::Error::new(io::ErrorKind::InvalidInput, "TLS within TLS"))
            }
        }
    }

    /// Appends what has arrived to `buffer`, into its spare capacity only; `Ok(0)` is end of file.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        debug_assert!(buffer.capacity() > buffer.len(), "read into a full buffer");
        match &mut self.wire {
            Wire::Plain(Socket::Tcp(tcp)) => poll_read_buf(Pin::new(tcp), cx, buffer),
            Wire::Plain(Socket::Unix(unix)) => poll_read_buf(Pin::new(unix), cx, buffer),
            Wire::Tls(tls) => tls.poll_read(cx, buffer),
            Wire::Spent => Poll::Ready(Err(spent())),
        }
    }

    /// Writes a part of `bytes`. What a pending write was offered must be offered again, before anything else.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(Socket::Tcp(tcp)) => Pin::new(tcp).poll_write(cx, bytes),
            Wire::Plain(Socket::Unix(unix)) => Pin::new(unix).poll_write(cx, bytes),
            Wire::Tls(tls) => tls.poll_write(cx, bytes),
            Wire::Spent => Poll::Ready(Err(spent())),
        }
    }

    /// Says that nothing more will be written; what the other side writes can still be read.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Wire::Tls(tls) => tls.poll_shutdown(cx),
            Wire::Spent => Poll::Ready(Err(spent())),
        }
    }

    /// Reads at least one byte more. Cancel-safe.
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` at the end.
    pub async fn read_more(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        if buffer.capacity() == buffer.len() {
            buffer.reserve(1024);
        }
        match std::future::poll_fn(|cx| self.poll_read(cx, buffer)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads exactly one byte, and leaves what follows in the socket. Cancel-safe.
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` at the end.
    pub async fn read_byte(&mut self) -> io::Result<u8> {
        use tokio::io::AsyncReadExt;
        match &mut self.wire {
            Wire::Plain(socket) => socket.read_u8().await,
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes are counted on plain sockets only")),
        }
    }

    /// Writes all of `bytes`. Not cancel-safe: what was written is not known afterwards.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match std::future::poll_fn(|cx| self.poll_write(cx, bytes)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => bytes = &bytes[written..],
            }
        }
        Ok(())
    }

    /// Has something (data or the end) arrived that nobody has read? Costs no system call: it looks
    /// at what the reactor has already been told. Under TLS it may be nothing but TLS's own messages.
    pub fn has_input(&self) -> bool {
        match &self.wire {
            Wire::Plain(socket) => socket.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_ready(),
            Wire::Tls(tls) => tls.has_input(),
            Wire::Spent => true,
        }
    }

    /// Has something (data, the end or a failure) arrived that nobody has read? Asks the kernel. Under
    /// TLS its own messages (late session tickets) do not count.
    pub fn has_arrived(&mut self) -> bool {
        match &mut self.wire {
            Wire::Plain(socket) => {
                let mut byte = [std::mem::MaybeUninit::uninit(); 1];
                let peeked = socket2::SockRef::from(&*socket).peek(&mut byte);
                !matches!(peeked, Err(err) if err.kind() == io::ErrorKind::WouldBlock)
            }
            Wire::Tls(tls) => tls.has_arrived(),
            Wire::Spent => true,
        }
    }

    /// Reads without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.wire {
            Wire::Plain(socket) => socket.try_read(buffer),
            Wire::Tls(tls) => tls.try_read(buffer),
            Wire::Spent => Err(spent()),
        }
    }

    /// A second handle by which another task can end this connection.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn severer(&self) -> io::Result<Severer> {
        Ok(Severer { fd: self.fd().ok_or_else(spent)?.try_clone_to_owned()? })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.wire {
            Wire::Plain(socket) => Some(socket.as_fd()),
            Wire::Tls(tls) => Some(tls.below().socket().as_fd()),
            Wire::Spent => None,
        }
    }
}

fn spent() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "a TLS handshake has failed")
}

/// Ends a connection from outside the task that owns it.
#[derive(Debug)]
pub struct Severer {
    fd: OwnedFd,
}

impl Severer {
    /// Shuts both directions down; the owner sees the end of the stream at its next read.
    pub fn sever(&self) {
        // An error means that the connection has ended already, which is what is wanted.
        let _ = socket2::SockRef::from(&self.fd).shutdown(std::net::Shutdown::Both);
    }
}
