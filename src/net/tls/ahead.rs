//! The socket below TLS, with a buffer in front of it.
//!
//! The TLS library reads 4 KiB at a time; this reads what fits a whole buffer, and hands it on. It also
//! holds bytes that were read before it was known that TLS follows. Invariants: an idle one holds no
//! memory; bytes come out in the order they arrived. Absent on purpose: buffering of writes.

use super::super::buffer::Buffer;
use super::super::socket::Socket;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// A socket and what was read from it in advance.
#[derive(Debug)]
pub(crate) struct Ahead {
    socket: Socket,
    bytes: Buffer,
    start: usize,
}

impl Ahead {
    /// With bytes that were read already.
    pub(crate) fn new(socket: Socket, read: &[u8]) -> Self {
        let mut bytes = Buffer::empty();
        if !read.is_empty() {
            bytes.reserve();
            bytes.extend_from_slice(read);
        }
        Self { socket, bytes, start: 0 }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Are there bytes that came and were not asked for yet?
    pub(crate) fn has_bytes(&self) -> bool {
        self.start < self.bytes.len()
    }

    /// Moves bytes read in advance to `target`; how many.
    fn hand_over(&mut self, target: &mut [u8]) -> usize {
        let len = target.len().min(self.bytes.len() - self.start);
        target[..len].copy_from_slice(&self.bytes[self.start..self.start + len]);
        self.start += len;
        if !self.has_bytes() {
            self.bytes.clear();
            self.start = 0;
        }
        len
    }
}

/// Asks the kernel itself, not the reactor, and never waits.
impl io::Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.has_bytes() {
            return Ok(self.hand_over(buffer));
        }
        self.bytes.give_back();
        io::Read::read(&mut &*socket2::SockRef::from(&self.socket), buffer)
    }
}

impl AsyncRead for Ahead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.has_bytes() {
            this.bytes.reserve();
            let read = poll_read_buf(Pin::new(&mut this.socket), cx, &mut *this.bytes);
            if !this.has_bytes() {
                this.bytes.give_back();
            }
            ready!(read)?;
        }
        let len = this.hand_over(buffer.initialize_unfilled());
        buffer.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
