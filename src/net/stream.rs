//! One connected socket.
//!
//! Invariants: polling follows tokio's rules (a pending poll has registered the waker). Reads use
//! `poll_read`, whose short reads save the extra "would block" system call. Absent on purpose: TLS
//! (its own stream kind will sit behind this type).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// Keepalive towards both sides: first probe after, then every, in seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A connected socket, non-blocking.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
}

impl Stream {
    /// Wraps an accepted or connected socket: no delay, keepalive on.
    ///
    /// # Errors
    /// What the kernel says about the socket options.
    pub fn new(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        Ok(Self { tcp })
    }

    /// How long unacknowledged data may stand before the kernel ends the connection.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn limit_unacknowledged(&self, limit: Duration) -> io::Result<()> {
        socket2::SockRef::from(&self.tcp).set_tcp_user_timeout(Some(limit))
    }

    /// Appends what has arrived to `buffer`, into its spare capacity only; `Ok(0)` is end of file.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        debug_assert!(buffer.capacity() > buffer.len(), "read into a full buffer");
        poll_read_buf(Pin::new(&mut self.tcp), cx, buffer)
    }

    /// Writes a part of `bytes`.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
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
    /// at what the reactor has already been told.
    pub fn has_input(&self) -> bool {
        self.tcp.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Has something (data, the end or a failure) arrived that nobody has read? Asks the kernel.
    pub fn has_arrived(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        let peeked = socket2::SockRef::from(&self.tcp).peek(&mut byte);
        !matches!(peeked, Err(err) if err.kind() == io::ErrorKind::WouldBlock)
    }

    /// Reads without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.try_read(buffer)
    }

    /// A second handle by which another task can end this connection.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn severer(&self) -> io::Result<Severer> {
        Ok(Severer { fd: self.tcp.as_fd().try_clone_to_owned()? })
    }

    /// The other side's address.
    ///
    /// # Errors
    /// When it has gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }
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
