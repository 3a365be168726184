//! Splits a node's bytes into messages.
//!
//! Only the messages that must be understood are waited for whole; rows and COPY data are passed on
//! piece by piece. Pure. Invariants: a length is checked before anything is waited for; a message
//! that must be whole is at most [`WHOLE_MAX`] bytes. Absent on purpose: what messages mean.

use crate::wire::{FrameError, LENGTH_MAX, backend, frontend, header};

/// Longest message that is waited for whole, bytes.
pub const WHOLE_MAX: usize = 1024 * 1024;
/// Rows up to this length are waited for whole as well, so that a node that dies in the middle of
/// one leaves a client that can still be told, bytes.
pub const STREAMED_MIN: usize = 8 * 1024;

/// What stands at the beginning of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// Not enough to tell, or a message that must be whole is not.
    More,
    /// `take` bytes of a message with this tag; the first piece, whole unless `take` is shorter.
    Begin {
        /// Type byte.
        tag: u8,
        /// Bytes that are there, header included.
        take: usize,
        /// Is this all of it?
        whole: bool,
    },
    /// `take` more bytes of the message begun before.
    Rest {
        /// Bytes that are there.
        take: usize,
    },
}

/// Where in a message the node's bytes stand.
#[derive(Debug, Default)]
pub struct NodeScan {
    left: usize,
}

fn is_streamed(tag: u8) -> bool {
    matches!(
        tag,
        backend::DATA_ROW
            | backend::ROW_DESCRIPTION
            | backend::PARAMETER_DESCRIPTION
            | backend::FUNCTION_RESULT
            | frontend::COPY_DATA
    )
}

impl NodeScan {
    /// Is the last message begun not complete?
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.left > 0
    }

    /// Looks at the beginning of `bytes` and moves past what it reports.
    ///
    /// # Errors
    /// [`FrameError::BadLength`] for a length that no node would send.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Scanned, FrameError> {
        if self.left > 0 && !bytes.is_empty() {
            let take = self.left.min(bytes.len());
            self.left -= take;
            return Ok(Scanned::Rest { take });
        }
        let Some(head) = header(bytes, LENGTH_MAX)? else { return Ok(Scanned::More) };
        let take = head.message_len().min(bytes.len());
        let whole = take == head.message_len();
        if !whole && (!is_streamed(head.tag) || head.body_len < STREAMED_MIN) {
            let length = u32::try_from(head.body_len + 4).unwrap_or(u32::MAX);
            return if head.body_len > WHOLE_MAX { Err(FrameError::BadLength(length)) } else { Ok(Scanned::More) };
        }
        self.left = head.message_len() - take;
        Ok(Scanned::Begin { tag: head.tag, take, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn a_status_is_waited_for_and_a_row_is_not() {
        let mut scan = NodeScan::default();
        let ready = message(b'Z', b"I");
        assert_eq!(scan.next(&ready[..5]), Ok(Scanned::More));
        assert_eq!(scan.next(&ready), Ok(Scanned::Begin { tag: b'Z', take: 6, whole: true }));
        assert_eq!(scan.next(&message(b'D', b"0123456789")[..7]), Ok(Scanned::More));
        let row = message(b'D', &[7; STREAMED_MIN]);
        assert_eq!(scan.next(&row[..7]), Ok(Scanned::Begin { tag: b'D', take: 7, whole: false }));
        assert!(scan.is_inside());
        assert_eq!(scan.next(&row[7..]), Ok(Scanned::Rest { take: STREAMED_MIN - 2 }));
        assert!(!scan.is_inside());
    }

    #[test]
    fn absurd_lengths_are_refused() {
        let mut scan = NodeScan::default();
        assert!(scan.next(&[b'E', 0x10, 0, 0, 0, 1]).is_err());
        assert!(scan.next(&[b'D', 0, 0, 0, 3]).is_err());
    }

    proptest! {
        /// However the bytes are cut, the same messages come out and nothing is lost.
        #[test]
        fn cutting_changes_nothing(bodies in proptest::collection::vec((0usize..4, prop_oneof![0usize..50, 8000usize..9000]), 1..6), cuts in proptest::collection::vec(1usize..700, 1..50)) {
            let tags = b"DTZE";
            let all: Vec<u8> = bodies.iter().flat_map(|(tag, len)| message(tags[*tag], &vec![7; *len])).collect();
            let mut scan = NodeScan::default();
            let (mut fed, mut seen, mut got) = (0, 0, Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            while seen < all.len() {
                match scan.next(&all[seen..fed]).unwrap() {
                    Scanned::More => fed = (fed + cuts.next().unwrap()).min(all.len()),
                    Scanned::Begin { tag, take, .. } => { got.push(tag); seen += take; }
                    Scanned::Rest { take } => seen += take,
                }
            }
            let want: Vec<u8> = bodies.iter().map(|(tag, _)| tags[*tag]).collect();
            prop_assert_eq!(got, want);
        }
    }
}
