//! A stream after its TLS handshake.
//!
//! Invariants: a write that is ready has left for the kernel; a pending write has taken bytes that the
//! caller must offer again, and which are counted when they have left; dropping it says goodbye
//! (`close_notify`) as far as the kernel takes it at once. Absent on purpose: handshakes.

use super::super::TlsInfo;
use super::Ahead;
use rustls::{ConnectionCommon, SideData};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use tokio_util::io::poll_read_buf;

/// A protected stream.
#[derive(Debug)]
pub(crate) struct Secured {
    stream: TlsStream<Ahead>,
    info: TlsInfo,
    /// Both sides named the protocol (ALPN).
    named: bool,
    /// Bytes taken by a write that is pending: encrypted, and not all of them gone.
    taken: usize,
}

impl Secured {
    pub(super) fn new(stream: TlsStream<Ahead>, info: TlsInfo, named: bool) -> Self {
        Self { stream, info, named, taken: 0 }
    }

    pub(crate) fn info(&self) -> &TlsInfo {
        &self.info
    }

    pub(crate) fn is_named(&self) -> bool {
        self.named
    }

    pub(crate) fn below(&self) -> &Ahead {
        self.stream.get_ref().0
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, buffer)) {
            // An end without goodbye is an end all the same: the protocol above has its own last words.
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
            read => Poll::Ready(read),
        }
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            self.taken = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.taken).min(bytes.len())))
    }

    /// Ends our direction, inside TLS (close_notify) and below it.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Has something arrived, as far as the reactor and the buffers know?
    pub(crate) fn has_input(&self) -> bool {
        let (ahead, session) = self.stream.get_ref();
        let readable = || ahead.socket().poll_read_ready(&mut Context::from_waker(Waker::noop())).is_ready();
        // What was decrypted and not read keeps the library from wanting more.
        !session.wants_read() || ahead.has_bytes() || readable()
    }

    /// Reads without waiting.
    pub(crate) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        let cx = &mut Context::from_waker(Waker::noop());
        match tokio::io::AsyncRead::poll_read(Pin::new(&mut self.stream), cx, &mut buffer) {
            Poll::Ready(Ok(())) => Ok(buffer.filled().len()),
            Poll::Ready(Err(err)) => Err(err),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Has data, the end or a failure arrived? Asks the kernel. What TLS says between its two ends
    /// (session tickets, new keys) is dealt with and is none of the three.
    pub(crate) fn has_arrived(&mut self) -> bool {
        match &mut self.stream {
            TlsStream::Client(client) => {
                let (ahead, session) = client.get_mut();
                takes_more(ahead, session)
            }
            TlsStream::Server(server) => {
                let (ahead, session) = server.get_mut();
                takes_more(ahead, session)
            }
        }
    }
}

fn takes_more<S: SideData>(ahead: &mut Ahead, session: &mut ConnectionCommon<S>) -> bool {
    while session.wants_read() {
        match session.read_tls(ahead) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return false,
            Ok(0) | Err(_) => return true,
            Ok(_) if session.process_new_packets().is_err() => return true,
            Ok(_) => {}
        }
    }
    true
}

impl Drop for Secured {
    fn drop(&mut self) {
        let (ahead, session) = match &mut self.stream {
            TlsStream::Client(client) => {
                let (ahead, session) = client.get_mut();
                (ahead, farewell(session))
            }
            TlsStream::Server(server) => {
                let (ahead, session) = server.get_mut();
                (ahead, farewell(session))
            }
        };
        // Whoever does not take it now sees the end of the socket instead.
        let _ = ahead.socket().try_write(&session);
    }
}

/// What is left to send, with the goodbye at its end.
fn farewell<S: SideData>(session: &mut ConnectionCommon<S>) -> Vec<u8> {
    session.send_close_notify();
    let mut last = Vec::new();
    while session.wants_write() {
        // Writing to memory does not fail.
        if session.write_tls(&mut last).is_err() {
            break;
        }
    }
    last
}
