//! Texts seen lately: one that comes again, letter by letter, needs no shape.
//!
//! Drivers send the same text again and again, with values as parameters; finding it here costs a hash and a
//! comparison. Invariants: the whole text is compared; at most [`SLOTS`] texts of [`TEXT_BYTES_MAX`] bytes are kept, each
//! until another one takes its slot; what a text leads to is looked up in the cache of classes, so that nothing here
//! can be outdated. Absent on purpose: classes.

use super::cache::Place;

/// Texts kept, per thread; a power of two.
const SLOTS: usize = 256;
/// Longer texts are not kept, bytes.
pub(super) const TEXT_BYTES_MAX: usize = 1024;

#[derive(Default)]
struct Slot {
    text: Vec<u8>,
    place: Place,
}

/// See the module.
pub(super) struct RecentTexts {
    slots: Box<[Slot]>,
    bytes: usize,
}

impl Default for RecentTexts {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect(), bytes: 0 }
    }
}

impl RecentTexts {
    /// Where its class was. An empty text is not kept.
    #[inline]
    pub fn find(&self, hash: u64, text: &[u8]) -> Option<Place> {
        let slot = &self.slots[slot_of(hash)];
        (slot.text == text && !text.is_empty()).then_some(slot.place)
    }

    /// Keeps where the class of a text is.
    pub fn remember(&mut self, hash: u64, text: &[u8], place: Place) {
        let slot = &mut self.slots[slot_of(hash)];
        let before = slot.text.capacity();
        slot.text.clear();
        slot.text.extend_from_slice(text);
        slot.place = place;
        self.bytes = self.bytes + slot.text.capacity() - before;
    }

    /// Bytes that the texts take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn slot_of(hash: u64) -> usize {
    usize::try_from(hash % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_until_another_takes_its_slot() {
        let mut texts = RecentTexts::default();
        let place = Place { at: 3, serial: 9 };
        assert!(texts.find(5, b"").is_none() && texts.find(5, b"a").is_none());
        texts.remember(5, b"a", place);
        assert_eq!(texts.find(5, b"a"), Some(place));
        assert_eq!(texts.find(5, b"b"), None, "the same slot, another text");
        texts.remember(5 + SLOTS as u64, b"b", place);
        assert_eq!((texts.find(5, b"a"), texts.find(5, b"b")), (None, Some(place)));
        assert!(texts.bytes() < 100);
    }
}
