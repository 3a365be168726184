//! Framing: tag, length, body; and a reader over a body that cannot run past its end.
//!
//! Invariant: [`header`] accepts lengths in `4..=max + 4` only. Absent on purpose: buffering.

/// Tag and length word.
pub const HEADER_LEN: usize = 5;

/// Longest body of any message: PostgreSQL's own limit (`PQ_LARGE_MESSAGE_LIMIT`, 1 GiB less one).
pub const LENGTH_MAX: usize = 0x3fff_ffff;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length word is below 4 or beyond the limit.
    #[error("invalid message length {0}")]
    BadLength(u32),
    /// The body ends before a field does.
    #[error("message body is too short")]
    Short,
    /// The body goes on after its last field.
    #[error("message body is too long")]
    Long,
}

/// A message's tag and the length of its body (without tag and length word).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message type byte.
    pub tag: u8,
    /// Bytes after the length word.
    pub body_len: usize,
}

impl Header {
    /// Bytes of the whole message.
    #[must_use]
    pub fn message_len(self) -> usize {
        HEADER_LEN + self.body_len
    }
}

/// Reads the header at the start of `bytes`; `None` if fewer than five bytes are there.
///
/// # Errors
/// [`FrameError::BadLength`] when the body would be negative or longer than `body_len_max`.
pub fn header(bytes: &[u8], body_len_max: usize) -> Result<Option<Header>, FrameError> {
    let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    let body_len = (length as usize).checked_sub(4).ok_or(FrameError::BadLength(length))?;
    if body_len > body_len_max {
        return Err(FrameError::BadLength(length));
    }
    Ok(Some(Header { tag, body_len }))
}

/// Reads fields from a message body.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of `body`.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// One byte.
    ///
    /// # Errors
    /// [`FrameError::Short`] at the end.
    pub fn byte(&mut self) -> Result<u8, FrameError> {
        let (&byte, rest) = self.rest.split_first().ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(byte)
    }

    /// A count of 16 bits. The protocol's text calls it signed; PostgreSQL reads it unsigned, and drivers send up
    /// to 65535 parameters.
    ///
    /// # Errors
    /// [`FrameError::Short`] at the end.
    pub fn count16(&mut self) -> Result<usize, FrameError> {
        let (&bytes, rest) = self.rest.split_first_chunk::<2>().ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(usize::from(u16::from_be_bytes(bytes)))
    }

    /// A big-endian 16-bit integer.
    ///
    /// # Errors
    /// [`FrameError::Short`] at the end.
    pub fn int16(&mut self) -> Result<i16, FrameError> {
        let (&bytes, rest) = self.rest.split_first_chunk::<2>().ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(i16::from_be_bytes(bytes))
    }

    /// A big-endian 32-bit integer.
    ///
    /// # Errors
    /// [`FrameError::Short`] at the end.
    pub fn int32(&mut self) -> Result<i32, FrameError> {
        let (&bytes, rest) = self.rest.split_first_chunk::<4>().ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(i32::from_be_bytes(bytes))
    }

    /// `len` bytes.
    ///
    /// # Errors
    /// [`FrameError::Short`] when fewer are left.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Bytes up to a NUL, which is consumed and not returned.
    ///
    /// # Errors
    /// [`FrameError::Short`] without a NUL.
    pub fn cstr(&mut self) -> Result<&'a [u8], FrameError> {
        let end = memchr::memchr(0, self.rest).ok_or(FrameError::Short)?;
        let text = self.bytes(end)?;
        self.byte()?;
        Ok(text)
    }

    /// What has not been read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Demands that everything was read.
    ///
    /// # Errors
    /// [`FrameError::Long`] when bytes are left.
    pub fn finish(self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FrameError::Long) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_are_checked_at_both_ends() {
        let with = |length: u32| [&[b'Q'][..], &length.to_be_bytes()].concat();
        assert_eq!(header(&with(3), 100), Err(FrameError::BadLength(3)));
        assert_eq!(header(&with(0), 100), Err(FrameError::BadLength(0)));
        assert_eq!(header(&with(u32::MAX), LENGTH_MAX), Err(FrameError::BadLength(u32::MAX)));
        assert_eq!(header(&with(105), 100), Err(FrameError::BadLength(105)));
        assert_eq!(header(&with(104), 100), Ok(Some(Header { tag: b'Q', body_len: 100 })));
        assert_eq!(header(&with(4), 100), Ok(Some(Header { tag: b'Q', body_len: 0 })));
        assert_eq!(header(b"Q\0\0\0", 100), Ok(None));
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), ops in proptest::collection::vec(0u8..5, 0..16)) {
            let _ = header(&bytes, LENGTH_MAX);
            let mut reader = Reader::new(&bytes);
            for op in ops {
                let _ = match op {
                    0 => reader.byte().map(|_| ()),
                    1 => reader.int16().map(|_| ()),
                    2 => reader.int32().map(|_| ()),
                    3 => reader.bytes(7).map(|_| ()),
                    _ => reader.cstr().map(|_| ()),
                };
            }
        }
    }
}
