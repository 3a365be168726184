//! Splits a text into tokens, and finds hints in its comments.
//!
//! Token ends are PostgreSQL's own (`src/backend/parser/scan.l`), proven against its scanner in the tests: a
//! disagreement could hide a statement inside what we take for a string.
//!
//! Invariants: never panics, reads every byte at most a few times, and refuses ([`Unlexable`]) whatever versions of
//! PostgreSQL split differently. Absent on purpose: backslash escapes in plain strings (`standard_conforming_strings =
//! off`), encodings other than UTF-8 (the caller checks), and the meaning of any word.

use memchr::{memchr, memchr2, memmem};

use super::hint::Hints;

/// The text cannot be split into tokens that every supported version of PostgreSQL would agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unlexable;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Keyword or identifier.
    Word,
    /// `"..."`.
    QuotedWord,
    /// `U&"..."`, whose meaning a later UESCAPE literal may change.
    UnicodeWord,
    /// A string of any sort, a number or a `$n`.
    Literal,
    /// One byte of punctuation or of an operator.
    Punctuation,
}

/// A token and where it is, as byte offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// Classes of first bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Refused,
    Space,
    Word,
    Digit,
    Punctuation,
    Quote,
    DoubleQuote,
    Dollar,
    Dash,
    Slash,
    Dot,
}

static CLASS: [Class; 256] = class_table();

const fn class_table() -> [Class; 256] {
    let mut table = [Class::Refused; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Class::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Class::Word,
            b'0'..=b'9' => Class::Digit,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'$' => Class::Dollar,
            b'-' => Class::Dash,
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            0x21..=0x7e => Class::Punctuation,
            _ => Class::Refused,
        };
        byte += 1;
    }
    table
}

/// Bytes that are looked at together.
pub(super) const CHUNK: usize = 8;

/// Questions about eight bytes at once, because a branch per byte costs more than all the rest. An answer has the
/// top bit of each byte for which it is yes.
pub(super) mod swar {
    const TOPS: u64 = u64::from_le_bytes([0x80; 8]);

    const fn all(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }

    /// Which bytes of `sevens`, all below 128, are in the range? Nothing carries from one byte to the next.
    #[inline(always)]
    const fn between(sevens: u64, first: u8, last: u8) -> u64 {
        (sevens + all(0x80 - first)) & !(sevens + all(0x7f - last)) & TOPS
    }

    /// How many of the first bytes can go on a word: letters, digits, `_`, `$` and all above 127.
    #[inline(always)]
    pub fn word_len(bytes: u64) -> usize {
        let sevens = bytes & !TOPS;
        let letters = between(sevens | all(0x20), b'a', b'z');
        let others = between(sevens, b'0', b'9') | between(sevens, b'_', b'_') | between(sevens, b'$', b'$');
        let word = (letters | others | bytes) & TOPS;
        ((!word & TOPS).trailing_zeros() / 8) as usize
    }

    /// How many of the first bytes are digits.
    #[inline(always)]
    pub fn digits_len(bytes: u64) -> usize {
        let digits = between(bytes & !TOPS, b'0', b'9') & !bytes;
        ((!digits & TOPS).trailing_zeros() / 8) as usize
    }

    /// The first `len` bytes, fewer than eight, and zeros.
    #[inline(always)]
    pub fn first(bytes: u64, len: usize) -> u64 {
        bytes & ((1 << (8 * len)) - 1)
    }

    /// Lower-case ASCII letters. Bytes above 127 stay: PostgreSQL folds only ASCII where the encoding is UTF-8.
    #[inline(always)]
    pub fn fold(bytes: u64) -> u64 {
        let upper = between(bytes & !TOPS, b'A', b'Z') & !bytes;
        bytes | (upper >> 2)
    }
}

/// May it stand in the tag of a dollar quote?
fn is_tag_byte(byte: u8) -> bool {
    byte.is_ascii_digit() || CLASS[usize::from(byte)] == Class::Word
}

fn starts_word(byte: Option<&u8>) -> bool {
    byte.is_some_and(|byte| CLASS[usize::from(*byte)] == Class::Word)
}

/// What begins at a place, as far as its first bytes tell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// A word, or the prefix of a string.
    Word,
    /// One byte of punctuation.
    Punctuation,
    /// Anything else: see [`Text::rare`].
    Rare,
}

/// What stands at a place.
pub(super) enum Found {
    /// A token up to here.
    Token(Kind, usize),
    /// White space or a comment up to here.
    Gap(usize),
    /// The end of the text.
    End,
}

/// The text, with places in it as arguments: a position that is kept in a register is half the speed.
#[derive(Clone, Copy)]
pub(super) struct Text<'t>(pub &'t [u8]);

/// Splits a text into tokens and picks up hints from its comments.
pub(super) struct Lexer<'t> {
    text: Text<'t>,
    pos: usize,
    hints: Hints,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t [u8]) -> Self {
        Self { text: Text(text), pos: 0, hints: Hints::default() }
    }

    /// The next token; `None` at the end.
    pub fn next_token(&mut self) -> Result<Option<Token>, Unlexable> {
        loop {
            let start = self.pos;
            let found = match self.text.begins(start) {
                Begins::Word => {
                    let end = self.text.word_end(start);
                    if self.text.is_prefix(start, end) {
                        self.text.rare(start, &mut self.hints)?
                    } else {
                        Found::Token(Kind::Word, end)
                    }
                }
                Begins::Punctuation => Found::Token(Kind::Punctuation, start + 1),
                Begins::Rare => self.text.rare(start, &mut self.hints)?,
            };
            match found {
                Found::Gap(end) => self.pos = end,
                Found::Token(kind, end) => {
                    self.pos = end;
                    return Ok(Some(Token { kind, start, end }));
                }
                Found::End => return Ok(None),
            }
        }
    }
}

impl Text<'_> {
    /// The byte at a place; 0 behind the end.
    #[inline(always)]
    pub fn byte(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// Eight bytes from `at`, the first in the lowest place; zeros behind the end.
    #[inline(always)]
    pub fn chunk(self, at: usize) -> u64 {
        let rest = self.0.get(at..).unwrap_or_default();
        match rest.first_chunk::<CHUNK>() {
            Some(whole) => u64::from_le_bytes(*whole),
            None => last_chunk(rest),
        }
    }

    #[inline(always)]
    pub fn begins(self, at: usize) -> Begins {
        match CLASS[usize::from(self.byte(at))] {
            Class::Word => Begins::Word,
            Class::Punctuation => Begins::Punctuation,
            Class::Dot if !matches!(self.byte(at + 1), b'.' | b'0'..=b'9') => Begins::Punctuation,
            _ => Begins::Rare,
        }
    }

    /// The end of the word that begins at `start`.
    #[inline(always)]
    pub fn word_end(self, start: usize) -> usize {
        let mut end = start;
        loop {
            let more = swar::word_len(self.chunk(end));
            end += more;
            if more < CHUNK {
                return end;
            }
        }
    }

    /// May the word be the prefix of a string?
    #[inline(always)]
    pub fn is_prefix(self, start: usize, end: usize) -> bool {
        matches!(self.byte(end), b'\'' | b'&') && end - start == 1
    }

    /// What stands at `start` if it is no plain word and no punctuation.
    #[inline(never)]
    pub fn rare(self, start: usize, hints: &mut Hints) -> Result<Found, Unlexable> {
        let Some(&byte) = self.0.get(start) else { return Ok(Found::End) };
        let second = self.byte(start + 1);
        Ok(match CLASS[usize::from(byte)] {
            Class::Space => Found::Gap(self.space_end(start)),
            Class::Digit => Found::Token(Kind::Literal, self.integer(start).map_or_else(|| self.number(start), Ok)?),
            Class::Quote => Found::Token(Kind::Literal, self.string(start + 1)?),
            Class::DoubleQuote => Found::Token(Kind::QuotedWord, self.quoted(start + 1, b'"')?),
            Class::Dollar => Found::Token(Kind::Literal, self.dollar(start)?),
            Class::Word => self.prefixed(start)?,
            // Only PL/pgSQL knows it, and `1..2` would be split in two ways.
            Class::Dot if second == b'.' => return Err(Unlexable),
            Class::Dot if second.is_ascii_digit() => Found::Token(Kind::Literal, self.number(start)?),
            Class::Dash if second == b'-' => {
                let end = self.line_end(start);
                hints.line_comment(&self.0[start + 2..end]);
                Found::Gap(end)
            }
            Class::Slash if second == b'*' => {
                let end = self.block_comment(start)?;
                hints.block_comment(&self.0[start + 2..end - 2]);
                Found::Gap(end)
            }
            Class::Punctuation | Class::Dot | Class::Dash | Class::Slash => Found::Token(Kind::Punctuation, start + 1),
            Class::Refused => return Err(Unlexable),
        })
    }

    /// Behind literals in their plainest forms that go on a list: `, 1`, `, 'a'`, `, $1`. For whoever does not care how
    /// many there are.
    #[inline]
    pub fn list_end(self, mut at: usize) -> usize {
        while self.byte(at) == b',' {
            let start = at + 1 + usize::from(self.byte(at + 1) == b' ');
            let end = match self.byte(start) {
                b'0'..=b'9' => self.integer(start),
                b'$' if self.byte(start + 1).is_ascii_digit() => self.integer(start + 1),
                b'\'' => {
                    let found = memchr(b'\'', &self.0[start + 1..]);
                    let end = found.map(|found| start + 1 + found + 1);
                    end.filter(|end| self.byte(*end) != b'\'')
                }
                _ => None,
            };
            let Some(end) = end else { return at };
            at = end;
        }
        at
    }

    fn space_end(self, start: usize) -> usize {
        let is_space = |byte: &u8| CLASS[usize::from(*byte)] == Class::Space;
        self.0[start..].iter().position(|byte| !is_space(byte)).map_or(self.0.len(), |len| start + len)
    }

    /// The end of plain digits; `None` if anything follows that could belong to the number.
    #[inline(always)]
    fn integer(self, start: usize) -> Option<usize> {
        let mut end = start;
        loop {
            let more = swar::digits_len(self.chunk(end));
            end += more;
            if more < CHUNK {
                break;
            }
        }
        let follows = CLASS[usize::from(self.byte(end))];
        (!matches!(follows, Class::Word | Class::Dot | Class::Dollar)).then_some(end)
    }

    /// A string or identifier with a prefix of one letter; without one it is a word.
    fn prefixed(self, start: usize) -> Result<Found, Unlexable> {
        Ok(match (self.byte(start) | 0x20, self.byte(start + 1), self.byte(start + 2)) {
            (b'e', b'\'', _) => Found::Token(Kind::Literal, self.escape_string(start + 2)?),
            (b'b' | b'x', b'\'', _) => Found::Token(Kind::Literal, self.bit_string(start + 2)?),
            (b'u', b'&', b'\'') => Found::Token(Kind::Literal, self.string(start + 3)?),
            (b'u', b'&', b'"') => Found::Token(Kind::UnicodeWord, self.quoted(start + 3, b'"')?),
            _ => Found::Token(Kind::Word, self.word_end(start)),
        })
    }

    /// The end of `'...'` from behind its opening quote.
    fn string(self, from: usize) -> Result<usize, Unlexable> {
        self.quoted(from, b'\'')
    }

    /// The end of `B'...'` or `X'...'`: a quote right behind it opens another string.
    fn bit_string(self, from: usize) -> Result<usize, Unlexable> {
        let rest = self.0.get(from..).ok_or(Unlexable)?;
        memchr(b'\'', rest).map(|found| from + found + 1).ok_or(Unlexable)
    }

    /// The end of a quoted thing in which only a doubled quote is special.
    fn quoted(self, mut from: usize, quote: u8) -> Result<usize, Unlexable> {
        loop {
            let found = memchr(quote, self.0.get(from..).ok_or(Unlexable)?).ok_or(Unlexable)?;
            let end = from + found + 1;
            if self.0.get(end) != Some(&quote) {
                return Ok(end);
            }
            from = end + 1;
        }
    }

    /// The end of `E'...'` from behind its opening quote. Its continuation on another line would keep the escapes;
    /// nobody writes that, so it is refused.
    fn escape_string(self, mut from: usize) -> Result<usize, Unlexable> {
        loop {
            let found = memchr2(b'\'', b'\\', self.0.get(from..).ok_or(Unlexable)?).ok_or(Unlexable)?;
            let at = from + found;
            if self.0[at] == b'\\' || self.0.get(at + 1) == Some(&b'\'') {
                from = at + 2;
                continue;
            }
            return if self.string_continues(at + 1) { Err(Unlexable) } else { Ok(at + 1) };
        }
    }

    fn string_continues(self, mut at: usize) -> bool {
        loop {
            match self.0.get(at) {
                Some(b'\'') => return true,
                Some(b'-') if self.0.get(at + 1) == Some(&b'-') => at = self.line_end(at),
                Some(byte) if CLASS[usize::from(*byte)] == Class::Space => at += 1,
                _ => return false,
            }
        }
    }

    /// `$1`, `$$...$$` or `$tag$...$tag$`.
    fn dollar(self, start: usize) -> Result<usize, Unlexable> {
        let rest = &self.0[start + 1..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            let len = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
            return if starts_word(rest.get(len)) { Err(Unlexable) } else { Ok(start + 1 + len) };
        }
        let tag = rest.iter().position(|byte| !is_tag_byte(*byte)).ok_or(Unlexable)?;
        if rest[tag] != b'$' {
            return Err(Unlexable);
        }
        let delimiter = &self.0[start..start + tag + 2];
        let body = start + delimiter.len();
        let found = memmem::find(&self.0[body..], delimiter).ok_or(Unlexable)?;
        Ok(body + found + delimiter.len())
    }

    /// The end of a number. Letters right behind it are refused: before version 15 they were a word of their own.
    fn number(self, start: usize) -> Result<usize, Unlexable> {
        let byte = |at: usize| self.0.get(at).copied().unwrap_or(0);
        let mut at = start;
        let radix_digit: Option<fn(u8) -> bool> = match (byte(at), byte(at + 1) | 0x20) {
            (b'0', b'x') => Some(|b| b.is_ascii_hexdigit()),
            (b'0', b'o') => Some(|b| (b'0'..=b'7').contains(&b)),
            (b'0', b'b') => Some(|b| b == b'0' || b == b'1'),
            _ => None,
        };
        if let Some(is_digit) = radix_digit {
            at = self.digits(at + 2, is_digit);
        } else {
            let is_digit: fn(u8) -> bool = |b| b.is_ascii_digit();
            at = self.digits(at, is_digit);
            if byte(at) == b'.' && byte(at + 1) != b'.' {
                at = self.digits(at + 1, is_digit);
            }
            if byte(at) | 0x20 == b'e' {
                let sign = usize::from(matches!(byte(at + 1), b'+' | b'-'));
                if is_digit(byte(at + 1 + sign)) {
                    at = self.digits(at + 1 + sign, is_digit);
                }
            }
        }
        if starts_word(self.0.get(at)) { Err(Unlexable) } else { Ok(at) }
    }

    /// The end of digits, which may be grouped by single underscores.
    fn digits(self, mut at: usize, is_digit: fn(u8) -> bool) -> usize {
        let is_digit_at = |at: usize| self.0.get(at).is_some_and(|byte| is_digit(*byte));
        loop {
            if is_digit_at(at) {
                at += 1;
            } else if self.0.get(at) == Some(&b'_') && is_digit_at(at + 1) {
                at += 2;
            } else {
                return at;
            }
        }
    }

    fn line_end(self, from: usize) -> usize {
        memchr2(b'\n', b'\r', &self.0[from..]).map_or(self.0.len(), |found| from + found)
    }

    /// The end of a comment; comments nest.
    fn block_comment(self, start: usize) -> Result<usize, Unlexable> {
        let mut depth = 1_usize;
        let mut at = start + 2;
        while depth > 0 {
            at += memchr2(b'*', b'/', self.0.get(at..).ok_or(Unlexable)?).ok_or(Unlexable)?;
            match (self.0[at], self.0.get(at + 1)) {
                (b'*', Some(b'/')) => (depth, at) = (depth - 1, at + 2),
                (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
                _ => at += 1,
            }
        }
        Ok(at)
    }
}

/// The last bytes of a text, fewer than eight.
#[inline(never)]
fn last_chunk(rest: &[u8]) -> u64 {
    rest.iter().rev().fold(0, |chunk, byte| chunk << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bytes_at_once_are_what_they_are_one_by_one() {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..=0xff);
        for byte in 0..=255_u8 {
            for place in 0..CHUNK {
                for around in [b'a', b'Z', b'_', b'0', 0x80, 0xff] {
                    let mut bytes = [around; CHUNK];
                    bytes[place] = byte;
                    let expected = bytes.iter().position(|byte| !is_word(*byte)).unwrap_or(CHUNK);
                    assert_eq!(swar::word_len(u64::from_le_bytes(bytes)), expected, "{bytes:?}");
                    let expected = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(CHUNK);
                    assert_eq!(swar::digits_len(u64::from_le_bytes(bytes)), expected, "{bytes:?}");
                    let folded = swar::fold(u64::from_le_bytes(bytes)).to_le_bytes();
                    assert_eq!(folded, bytes.map(|byte| byte.to_ascii_lowercase()), "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn a_chunk_at_the_end_is_padded() {
        assert_eq!(Text(b"ab").chunk(1).to_le_bytes(), *b"b\0\0\0\0\0\0\0");
        assert_eq!(Text(b"ab").chunk(2), 0);
        assert_eq!(Text(b"12345678").chunk(0).to_le_bytes(), *b"12345678");
    }
}
