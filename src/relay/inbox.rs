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
    /// Where what is kept to be passed on again begins.
    log: Option<usize>,
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
        if self.start == self.buffer.len() && self.log.is_none() {
            self.buffer.give_back();
            self.start = 0;
            self.cursor = 0;
        }
    }

    /// Keeps everything from here on, done with or not, until [`Inbox::forget_log`].
    pub fn keep_log(&mut self) {
        self.log = Some(self.start);
    }

    /// Bytes kept that were passed on.
    #[must_use]
    pub fn logged(&self) -> usize {
        self.log.map_or(0, |log| self.cursor - log)
    }

    /// Goes back to the beginning of what is kept.
    pub fn rewind_log(&mut self) {
        if let Some(log) = self.log {
            (self.start, self.cursor) = (log, log);
        }
    }

    /// The first `len` bytes of what is kept are done with.
    pub fn skip_log(&mut self, len: usize) {
        if let Some(log) = self.log {
            let end = (log + len).min(self.buffer.len());
            (self.start, self.cursor) = (end, end);
        }
    }

    /// Keeps nothing any more that is done with.
    pub fn forget_log(&mut self) {
        self.log = None;
        if self.start == self.buffer.len() {
            self.settle();
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
        let done = self.log.unwrap_or(self.start);
        if done > 0 && self.buffer.len() == self.buffer.capacity() {
            self.buffer.drain(..done);
            self.cursor -= done;
            self.start -= done;
            self.log = self.log.map(|_| 0);
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
