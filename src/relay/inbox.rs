//! What a client has sent and we are not done with.
//!
//! Two marks: everything before `start` is done with; everything before `cursor` was passed on but
//! may have to be passed on again (a read that moves to another node). Invariants: `start <= cursor
//! <= len`; an empty inbox holds no memory. Absent on purpose: what messages mean.

use crate::net::{BUFFER_LEN, Buffer, Stream};
use crate::wire::{FrameError, HEADER_LEN, header};
use std::io;
use std::task::{Context, Poll};

/// A message at the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Type byte.
    pub tag: u8,
    /// Where it begins in the inbox.
    pub at: usize,
    /// Bytes of the whole message.
    pub len: usize,
    /// Is all of it there?
    pub whole: bool,
}

/// The inbox.
#[derive(Debug, Default)]
pub struct Inbox {
    buffer: Buffer,
    start: usize,
    cursor: usize,
}

impl Inbox {
    /// Is everything done with?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cursor == self.buffer.len() && self.start == self.cursor
    }

    /// Are there bytes behind the cursor?
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.cursor < self.buffer.len()
    }

    /// Bytes behind the cursor.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.cursor..]
    }

    /// Where what is not done with begins.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Where the cursor is.
    #[must_use]
    pub fn cursor(&self) -> usize {
        self.cursor
    }

    /// The bytes from `at`, `len` of them (fewer at the end).
    #[must_use]
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        let end = self.buffer.len().min(at + len);
        &self.buffer[at.min(end)..end]
    }

    /// The body of a whole message.
    #[must_use]
    pub fn body(&self, message: Message) -> &[u8] {
        self.bytes(message.at + HEADER_LEN, message.len - HEADER_LEN)
    }

    /// The message that begins at `at`, if its header is there.
    ///
    /// # Errors
    /// [`FrameError::BadLength`].
    pub fn message_at(&self, at: usize, body_len_max: usize) -> Result<Option<Message>, FrameError> {
        let rest = self.buffer.get(at..).unwrap_or(&[]);
        Ok(header(rest, body_len_max)?.map(|head| Message {
            tag: head.tag,
            at,
            len: head.message_len(),
            whole: rest.len() >= head.message_len(),
        }))
    }

    /// Moves the cursor over `len` bytes.
    pub fn advance(&mut self, len: usize) {
        self.cursor = (self.cursor + len).min(self.buffer.len());
    }

    /// Everything before the cursor is done with.
    pub fn settle(&mut self) {
        self.start = self.cursor;
        if self.start == self.buffer.len() {
            self.buffer.give_back();
            self.start = 0;
            self.cursor = 0;
        }
    }

    /// Goes back to what is not done with.
    pub fn rewind(&mut self) {
        self.cursor = self.start;
    }

    /// Can another read append something without growing beyond one buffer?
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.buffer.len() - self.start < BUFFER_LEN
    }

    /// Appends what has arrived; `room` is how much the message being waited for still needs.
    pub fn poll_fill(&mut self, stream: &mut Stream, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        let had_memory = self.buffer.capacity() != 0;
        self.buffer.reserve();
        if self.start > 0 && self.buffer.len() == self.buffer.capacity() {
            self.buffer.drain(..self.start);
            self.cursor -= self.start;
            self.start = 0;
        }
        if self.buffer.len() == self.buffer.capacity() {
            self.buffer.reserve_more(room.clamp(BUFFER_LEN, BUFFER_LEN * 32));
        }
        let outcome = stream.poll_read(cx, &mut self.buffer);
        if !had_memory && self.buffer.is_empty() {
            self.buffer.give_back();
        }
        outcome
    }
}
