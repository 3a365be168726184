//! Byte buffers from a per-thread stock.
//!
//! Invariants: a stock keeps at most [`STOCK_MAX`] buffers of at most [`BUFFER_LEN`] bytes each; a
//! buffer that grew is given back to the allocator. Absent on purpose: sharing between threads.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Capacity of a fresh buffer, bytes.
pub const BUFFER_LEN: usize = 32 * 1024;
/// Buffers a thread keeps for reuse.
pub const STOCK_MAX: usize = 64;

thread_local! {
    static STOCK: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A growable byte buffer; dropping it puts it back into the thread's stock.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// A buffer without memory; filling it allocates like a `Vec`.
    #[must_use]
    pub const fn empty() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Makes sure that there is memory, from the stock if possible.
    pub fn reserve(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes = STOCK.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(BUFFER_LEN));
        }
    }

    /// Makes room for at least `more` bytes behind the content, beyond the stock's size if need be.
    pub fn reserve_more(&mut self, more: usize) {
        self.bytes.reserve(more);
    }

    /// Gives the memory back. The content is lost.
    pub fn give_back(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() == 0 || bytes.capacity() > BUFFER_LEN {
            return;
        }
        bytes.clear();
        // During thread shutdown the stock may be gone; then the memory just goes.
        let _ = STOCK.try_with(|stock| {
            if let Ok(mut stock) = stock.try_borrow_mut()
                && stock.len() < STOCK_MAX
                && bytes.capacity() == BUFFER_LEN
            {
                stock.push(bytes);
            }
        });
    }

    /// Takes the content, leaving an empty buffer.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_grown_memory_does_not() {
        let mut first = Buffer::empty();
        first.reserve();
        let at = first.as_ptr();
        drop(first);
        let mut second = Buffer::empty();
        second.reserve();
        assert_eq!(second.as_ptr(), at);
        second.resize(BUFFER_LEN * 2, 0);
        drop(second);
        assert!(STOCK.with_borrow(|stock| stock.iter().all(|bytes| bytes.capacity() == BUFFER_LEN)));
    }
}
