//! What one side must still be sent.
//!
//! Invariants: bytes leave in the order they came; bytes behind a hold mark do not leave; an empty
//! outbox holds no memory. Absent on purpose: when to flush (the session's matter).

use crate::net::{Buffer, Stream};
use std::io;
use std::task::{Context, Poll};

/// The outbox.
#[derive(Debug, Default)]
pub struct Outbox {
    buffer: Buffer,
    start: usize,
    hold: Option<usize>,
}

impl Outbox {
    /// Is there nothing at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Is there something that may leave now?
    #[must_use]
    pub fn has_sendable(&self) -> bool {
        self.start < self.hold.unwrap_or(self.buffer.len())
    }

    /// Bytes that have not left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Appends by writing to a vector.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        self.buffer.reserve();
        &mut self.buffer
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.tail().extend_from_slice(bytes);
    }

    /// Appends a whole buffer's content; takes the buffer itself over when nothing waits.
    pub fn push_buffer(&mut self, source: &mut Buffer) {
        if self.buffer.is_empty() {
            self.buffer = source.take();
        } else {
            self.push(source);
            source.give_back();
        }
    }

    /// What is appended from now on stays until [`Outbox::release`] or [`Outbox::drop_held`].
    pub fn hold(&mut self) {
        self.hold.get_or_insert(self.buffer.len());
    }

    /// Is something being held back (or would be)?
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.hold.is_some()
    }

    /// Lets the held bytes go.
    pub fn release(&mut self) {
        self.hold = None;
    }

    /// Forgets the held bytes.
    pub fn drop_held(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.buffer.truncate(hold);
            self.tidy();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buffer.give_back();
        self.start = 0;
        self.hold = None;
    }

    fn tidy(&mut self) {
        if self.start == self.buffer.len() && self.hold.is_none() {
            self.buffer.give_back();
            self.start = 0;
        }
    }

    /// Sends what may leave. Ready when nothing more may; `Pending` when the other side is slow.
    pub fn poll_flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.has_sendable() {
            let end = self.hold.unwrap_or(self.buffer.len());
            match stream.poll_write(cx, &self.buffer[self.start..end]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.start += written,
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.tidy();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_bytes_can_be_forgotten_or_let_go() {
        let mut outbox = Outbox::default();
        outbox.push(b"ab");
        outbox.hold();
        outbox.push(b"cd");
        assert!(outbox.has_sendable());
        outbox.drop_held();
        assert_eq!(outbox.len(), 2);
        outbox.hold();
        outbox.push(b"ef");
        outbox.release();
        assert_eq!(&outbox.buffer[outbox.start..], b"abef");
        outbox.clear();
        assert!(outbox.is_empty() && !outbox.has_sendable());
    }
}
