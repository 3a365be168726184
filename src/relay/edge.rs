//! Follows message boundaries in a stream that is passed on without being understood.
//!
//! Only tags and length words are looked at. Invariant: [`Edge::until`] is zero exactly where another
//! message may begin. Absent on purpose: message types and bodies.

use crate::wire::HEADER_LEN;

/// Where a stream of messages stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    header: [u8; HEADER_LEN],
    /// Bytes of the header seen.
    seen: usize,
    /// Bytes of the body that are still to come, once the header is whole.
    body: usize,
    /// A length word was none: there are no boundaries any more.
    lost: bool,
}

impl Edge {
    /// These bytes have passed.
    pub fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            if self.seen < HEADER_LEN {
                let taken = bytes.len().min(HEADER_LEN - self.seen);
                self.header[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
                self.seen += taken;
                bytes = &bytes[taken..];
                if self.seen == HEADER_LEN {
                    self.open();
                }
            } else {
                let taken = bytes.len().min(self.body);
                self.body -= taken;
                bytes = &bytes[taken..];
            }
            if self.seen == HEADER_LEN && self.body == 0 {
                self.seen = 0;
            }
        }
    }

    fn open(&mut self) {
        let [_, length @ ..] = self.header;
        match u32::from_be_bytes(length).checked_sub(4) {
            Some(body) => self.body = body as usize,
            None => self.lost = true,
        }
    }

    /// Bytes to the next boundary, as far as is known: after a part of a header, that header's end.
    #[must_use]
    pub fn until(&self) -> usize {
        match self.seen {
            _ if self.lost => usize::MAX,
            0 => 0,
            HEADER_LEN => self.body,
            seen => HEADER_LEN - seen,
        }
    }

    /// Is no message half sent?
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.until() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::encode;
    use proptest::prelude::*;

    #[test]
    fn boundaries_are_found_in_any_split() {
        let mut stream = Vec::new();
        let mut edges = vec![0];
        for (tag, length) in [(b'd', 0), (b'w', 3), (b'Z', 1), (b'd', 400)] {
            encode::message(&mut stream, tag, |out| out.extend(vec![0xffu8; length]));
            edges.push(stream.len());
        }
        for step in [1, 2, 3, 5, 7, 64, 1000] {
            let (mut edge, mut at) = (Edge::default(), 0);
            for part in stream.chunks(step) {
                edge.advance(part);
                at += part.len();
                assert_eq!(edge.is_between(), edges.contains(&at), "{step} {at}");
            }
        }
        let mut edge = Edge::default();
        edge.advance(&stream[..2]);
        assert_eq!(edge.until(), 3);
        edge.advance(&stream[2..7]);
        assert_eq!(edge.until(), 3, "the rest of the second header");
    }

    #[test]
    fn a_length_that_is_none_loses_the_boundaries() {
        let mut edge = Edge::default();
        edge.advance(b"d\0\0\0\x03d\0\0\0\x04");
        assert!(!edge.is_between());
    }

    proptest! {
        #[test]
        fn any_bytes_pass(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
            let (mut whole, mut split) = (Edge::default(), Edge::default());
            whole.advance(&bytes);
            let at = at.min(bytes.len());
            split.advance(&bytes[..at]);
            split.advance(&bytes[at..]);
            prop_assert_eq!(whole.until(), split.until());
        }
    }
}
