//! One pass over a text that leaves its shape: no literals, no comments, no letter case, no white space.
//!
//! The shape is the cache's key. Two texts of one shape differ only in literals (lists of literals collapse to one),
//! comments and layout, none of which changes a class; where literals do matter ([`LITERAL_FREE`] says where they do
//! not) the shape keeps them. Token ends are PostgreSQL's own (`src/backend/parser/scan.l`), proven against its scanner in the tests: a
//! disagreement could hide a statement inside what we take for a string.
//!
//! Invariants: never panics, reads every byte at most a few times, and refuses ([`Unlexable`]) whatever versions of
//! PostgreSQL split differently. Absent on purpose: backslash escapes in plain strings (`standard_conforming_strings =
//! off`), encodings other than UTF-8 (the caller checks), and the meaning of any word.

use memchr::{memchr, memchr2, memmem};

use super::class::Hint;

/// Stands for a literal or a list of literals. Control bytes cannot occur in a shape otherwise.
const LITERAL: u8 = 0x01;
/// Ends the shape of a text with a hint for the primary.
const HINT_PRIMARY: u8 = 0x02;

/// First words of statements whose class no literal changes. COPY (file names) and EXPLAIN (options) are not among them.
const LITERAL_FREE: [&[u8]; 8] = [b"select", b"insert", b"update", b"delete", b"with", b"values", b"table", b"merge"];

/// Its third argument decides what it leaves behind.
const SET_CONFIG: &[u8] = b"set_config";
/// Its argument decides whether every node would answer the same.
const CURRENT_SETTING: &[u8] = b"current_setting";

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
const CHUNK: usize = 8;

/// Eight bytes from `at`, the first in the lowest place; zeros behind the end.
#[inline(always)]
fn chunk(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(whole) = rest.first_chunk::<CHUNK>() {
        return u64::from_le_bytes(*whole);
    }
    rest.iter().rev().fold(0, |chunk, byte| chunk << 8 | u64::from(*byte))
}

/// Questions about eight bytes at once, because a branch per byte costs more than all the rest. An answer has the
/// top bit of each byte for which it is yes.
mod swar {
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

/// Splits a text into tokens and picks up hints from its comments.
pub(super) struct Lexer<'t> {
    text: &'t [u8],
    pos: usize,
    pub hint: Option<Hint>,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t [u8]) -> Self {
        Self { text, pos: 0, hint: None }
    }

    /// The next token; `None` at the end.
    #[inline(always)]
    pub fn next_token(&mut self) -> Result<Option<Token>, Unlexable> {
        loop {
            // Most tokens are a word behind one blank, or punctuation: these take no jump through a table.
            let start = self.pos + usize::from(self.text.get(self.pos) == Some(&b' '));
            self.pos = start;
            let Some(&byte) = self.text.get(start) else { return Ok(None) };
            let class = CLASS[usize::from(byte)];
            if class == Class::Word {
                let (kind, end) = self.word(start)?;
                self.pos = end;
                return Ok(Some(Token { kind, start, end }));
            }
            if class == Class::Punctuation {
                self.pos = start + 1;
                return Ok(Some(Token { kind: Kind::Punctuation, start, end: start + 1 }));
            }
            let second = self.text.get(start + 1).copied();
            let (kind, end) = match class {
                Class::Space => {
                    self.pos += 1;
                    continue;
                }
                Class::Word | Class::Punctuation => return Err(Unlexable),
                Class::Digit => (Kind::Literal, self.number(start)?),
                Class::Quote => (Kind::Literal, self.string(start + 1)?),
                Class::DoubleQuote => (Kind::QuotedWord, self.quoted(start + 1, b'"')?),
                Class::Dollar => (Kind::Literal, self.dollar(start)?),
                // Only PL/pgSQL knows it, and `1..2` would be split in two ways.
                Class::Dot if second == Some(b'.') => return Err(Unlexable),
                Class::Dot if second.is_some_and(|b| b.is_ascii_digit()) => (Kind::Literal, self.number(start)?),
                Class::Dash if second == Some(b'-') => {
                    self.pos = self.line_end(start);
                    continue;
                }
                Class::Slash if second == Some(b'*') => {
                    self.pos = self.block_comment(start)?;
                    continue;
                }
                Class::Dot | Class::Dash | Class::Slash => (Kind::Punctuation, start + 1),
                Class::Refused => return Err(Unlexable),
            };
            self.pos = end;
            return Ok(Some(Token { kind, start, end }));
        }
    }

    /// A word, or the string or identifier of which it is the prefix.
    #[inline(always)]
    fn word(&self, start: usize) -> Result<(Kind, usize), Unlexable> {
        let mut len = 0;
        loop {
            let more = swar::word_len(chunk(self.text, start + len));
            len += more;
            if more < CHUNK {
                break;
            }
        }
        let rest = &self.text[start..];
        if len == 1 {
            let after = rest.get(1).copied();
            match (rest[0] | 0x20, after) {
                (b'e', Some(b'\'')) => return Ok((Kind::Literal, self.escape_string(start + 2)?)),
                (b'b' | b'x', Some(b'\'')) => return Ok((Kind::Literal, self.bit_string(start + 2)?)),
                (b'u', Some(b'&')) => match rest.get(2) {
                    Some(b'\'') => return Ok((Kind::Literal, self.string(start + 3)?)),
                    Some(b'"') => return Ok((Kind::UnicodeWord, self.quoted(start + 3, b'"')?)),
                    _ => {}
                },
                _ => {}
            }
        }
        Ok((Kind::Word, start + len))
    }

    /// The end of `'...'` from behind its opening quote.
    fn string(&self, from: usize) -> Result<usize, Unlexable> {
        self.quoted(from, b'\'')
    }

    /// The end of `B'...'` or `X'...'`: a quote right behind it opens another string.
    fn bit_string(&self, from: usize) -> Result<usize, Unlexable> {
        let rest = self.text.get(from..).ok_or(Unlexable)?;
        memchr(b'\'', rest).map(|found| from + found + 1).ok_or(Unlexable)
    }

    /// The end of a quoted thing in which only a doubled quote is special.
    fn quoted(&self, mut from: usize, quote: u8) -> Result<usize, Unlexable> {
        loop {
            let found = memchr(quote, self.text.get(from..).ok_or(Unlexable)?).ok_or(Unlexable)?;
            let end = from + found + 1;
            if self.text.get(end) != Some(&quote) {
                return Ok(end);
            }
            from = end + 1;
        }
    }

    /// The end of `E'...'` from behind its opening quote. Its continuation on another line would keep the escapes;
    /// nobody writes that, so it is refused.
    fn escape_string(&self, mut from: usize) -> Result<usize, Unlexable> {
        loop {
            let found = memchr2(b'\'', b'\\', self.text.get(from..).ok_or(Unlexable)?).ok_or(Unlexable)?;
            let at = from + found;
            if self.text[at] == b'\\' || self.text.get(at + 1) == Some(&b'\'') {
                from = at + 2;
                continue;
            }
            return if self.string_continues(at + 1) { Err(Unlexable) } else { Ok(at + 1) };
        }
    }

    fn string_continues(&self, mut at: usize) -> bool {
        loop {
            match self.text.get(at) {
                Some(b'\'') => return true,
                Some(b'-') if self.text.get(at + 1) == Some(&b'-') => at = self.line_end(at),
                Some(byte) if CLASS[usize::from(*byte)] == Class::Space => at += 1,
                _ => return false,
            }
        }
    }

    /// `$1`, `$$...$$` or `$tag$...$tag$`.
    fn dollar(&self, start: usize) -> Result<usize, Unlexable> {
        let rest = &self.text[start + 1..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            let len = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
            return if starts_word(rest.get(len)) { Err(Unlexable) } else { Ok(start + 1 + len) };
        }
        let tag = rest.iter().position(|byte| !is_tag_byte(*byte)).ok_or(Unlexable)?;
        if rest[tag] != b'$' {
            return Err(Unlexable);
        }
        let delimiter = &self.text[start..start + tag + 2];
        let body = start + delimiter.len();
        let found = memmem::find(&self.text[body..], delimiter).ok_or(Unlexable)?;
        Ok(body + found + delimiter.len())
    }

    /// The end of a number. Letters right behind it are refused: before version 15 they were a word of their own.
    fn number(&self, start: usize) -> Result<usize, Unlexable> {
        let byte = |at: usize| self.text.get(at).copied().unwrap_or(0);
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
        if starts_word(self.text.get(at)) { Err(Unlexable) } else { Ok(at) }
    }

    /// The end of digits, which may be grouped by single underscores.
    fn digits(&self, mut at: usize, is_digit: fn(u8) -> bool) -> usize {
        let is_digit_at = |at: usize| self.text.get(at).is_some_and(|byte| is_digit(*byte));
        loop {
            if is_digit_at(at) {
                at += 1;
            } else if self.text.get(at) == Some(&b'_') && is_digit_at(at + 1) {
                at += 2;
            } else {
                return at;
            }
        }
    }

    fn line_end(&self, from: usize) -> usize {
        memchr2(b'\n', b'\r', &self.text[from..]).map_or(self.text.len(), |found| from + found)
    }

    /// The end of a comment; comments nest.
    fn block_comment(&mut self, start: usize) -> Result<usize, Unlexable> {
        let mut depth = 1_usize;
        let mut at = start + 2;
        while depth > 0 {
            at += memchr2(b'*', b'/', self.text.get(at..).ok_or(Unlexable)?).ok_or(Unlexable)?;
            match (self.text[at], self.text.get(at + 1)) {
                (b'*', Some(b'/')) => (depth, at) = (depth - 1, at + 2),
                (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
                _ => at += 1,
            }
        }
        self.hint = self.hint.or_else(|| parse_hint(&self.text[start + 2..at - 2]));
        Ok(at)
    }
}

/// The hint in the inside of a block comment: `pgregent: node=primary`, blanks around words as you like. What is not
/// exactly that is an ordinary comment.
fn parse_hint(comment: &[u8]) -> Option<Hint> {
    let wish = comment.trim_ascii().strip_prefix(b"pgregent:")?.trim_ascii();
    let equals = memchr(b'=', wish)?;
    let (key, value) = (wish[..equals].trim_ascii(), wish[equals + 1..].trim_ascii());
    (key == b"node" && value == b"primary").then_some(Hint::Primary)
}

/// A text without what does not matter. Its memory is kept from text to text.
#[derive(Default)]
pub(super) struct Shape {
    bytes: Vec<u8>,
    len: usize,
}

/// Are literals left out of a shape?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Literals {
    Collapsed,
    Kept,
}

/// How far a copy came.
enum Copied {
    /// To the end, past this hint.
    Whole(Option<Hint>),
    /// To the word that says that literals must be kept.
    LiteralsMatter,
}

impl Shape {
    /// The shape of the text copied last; meaningless if that failed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Copies the shape of `text` and tells the text's hint.
    ///
    /// # Errors
    ///
    /// [`Unlexable`]: there is no shape.
    pub fn copy(&mut self, text: &[u8]) -> Result<Option<Hint>, Unlexable> {
        // A byte of text becomes at most itself and a blank before it; one more is the hint's. Words are written in
        // whole chunks, the last of which may hang over.
        let room = 2 * text.len() + 1 + CHUNK;
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
        let copied = match self.copy_tokens(text, Literals::Collapsed)? {
            Copied::LiteralsMatter => self.copy_tokens(text, Literals::Kept)?,
            whole => whole,
        };
        match copied {
            Copied::Whole(hint) => Ok(hint),
            Copied::LiteralsMatter => Err(Unlexable),
        }
    }

    fn copy_tokens(&mut self, text: &[u8], literals: Literals) -> Result<Copied, Unlexable> {
        self.len = 0;
        let mut lexer = Lexer::new(text);
        let mut statement_starts = true;
        // The next token needs a blank before it, unless it is punctuation.
        let mut after_word = false;
        while let Some(token) = lexer.next_token()? {
            let bytes = &text[token.start..token.end];
            match token.kind {
                Kind::Punctuation => {
                    self.punctuation(bytes[0]);
                    statement_starts = bytes[0] == b';' || (statement_starts && bytes[0] == b'(');
                    after_word = false;
                    continue;
                }
                Kind::Word => {
                    match self.word(text, token, after_word, statement_starts && literals == Literals::Collapsed) {
                        Word::Plain => after_word = true,
                        Word::Constant if literals == Literals::Collapsed => {
                            self.len -= bytes.len() + usize::from(after_word);
                            self.literal();
                            after_word = false;
                        }
                        Word::MakesLiteralsMatter if literals == Literals::Collapsed => {
                            return Ok(Copied::LiteralsMatter);
                        }
                        Word::Constant | Word::MakesLiteralsMatter => after_word = true,
                    }
                }
                Kind::Literal if literals == Literals::Collapsed => {
                    self.literal();
                    after_word = false;
                }
                Kind::UnicodeWord if literals == Literals::Collapsed => return Ok(Copied::LiteralsMatter),
                Kind::QuotedWord
                    if literals == Literals::Collapsed
                        && [SET_CONFIG, CURRENT_SETTING].contains(&&bytes[1..bytes.len() - 1]) =>
                {
                    return Ok(Copied::LiteralsMatter);
                }
                Kind::Literal | Kind::QuotedWord | Kind::UnicodeWord => {
                    self.verbatim(bytes, after_word);
                    after_word = true;
                }
            }
            statement_starts = false;
        }
        if lexer.hint == Some(Hint::Primary) {
            self.push(HINT_PRIMARY);
        }
        Ok(Copied::Whole(lexer.hint))
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// Appends a word in lower case. Chunks are read from the text, not from the word, so that nearly all are whole.
    #[inline]
    fn word(&mut self, text: &[u8], token: Token, blank: bool, must_be_literal_free: bool) -> Word {
        if blank {
            self.push(b' ');
        }
        let start = self.len;
        let len = token.end - token.start;
        let mut at = 0;
        while at < len {
            let folded = swar::fold(chunk(text, token.start + at)).to_le_bytes();
            if let Some(room) = self.bytes.get_mut(start + at..).and_then(<[u8]>::first_chunk_mut) {
                *room = folded;
            }
            at += CHUNK;
        }
        self.len = start + len;
        let folded = &self.bytes[start..self.len];
        if must_be_literal_free && !LITERAL_FREE.contains(&folded) {
            return Word::MakesLiteralsMatter;
        }
        match folded.len() {
            4 if *folded == *b"null" || *folded == *b"true" => Word::Constant,
            5 if *folded == *b"false" => Word::Constant,
            10 if folded == SET_CONFIG => Word::MakesLiteralsMatter,
            15 if folded == CURRENT_SETTING => Word::MakesLiteralsMatter,
            _ => Word::Plain,
        }
    }

    /// Appends a token as it is.
    fn verbatim(&mut self, bytes: &[u8], blank: bool) {
        if blank {
            self.push(b' ');
        }
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// Appends a literal; with the one before it and the comma between them it is one. A sign belongs to the literal.
    #[inline]
    fn literal(&mut self) {
        if let [.., b'(' | b',' | b'[', b'-' | b'+'] = self.bytes() {
            self.len -= 1;
        }
        if let [.., LITERAL, b','] = self.bytes() {
            self.len -= 1;
        } else {
            self.push(LITERAL);
        }
    }

    /// Appends punctuation; a row of literals behind a row of literals is one row.
    #[inline]
    fn punctuation(&mut self, byte: u8) {
        if byte == b')'
            && let [.., b'(', LITERAL, b')', b',', b'(', LITERAL] = self.bytes()
        {
            self.len -= 4;
        }
        self.push(byte);
    }
}

/// What a word means for the shape.
enum Word {
    /// Nothing.
    Plain,
    /// It is a literal: null, true, false.
    Constant,
    /// It is `set_config` or `current_setting`, or starts a statement whose literals decide.
    MakesLiteralsMatter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bytes_at_once_are_what_they_are_one_by_one() {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..=0xff);
        for byte in 0..=255_u8 {
            for place in 0..CHUNK {
                for around in [b'a', b'Z', b'_', 0x80, 0xff] {
                    let mut bytes = [around; CHUNK];
                    bytes[place] = byte;
                    let expected = bytes.iter().position(|byte| !is_word(*byte)).unwrap_or(CHUNK);
                    assert_eq!(swar::word_len(u64::from_le_bytes(bytes)), expected, "{bytes:?}");
                    let folded = swar::fold(u64::from_le_bytes(bytes)).to_le_bytes();
                    assert_eq!(folded, bytes.map(|byte| byte.to_ascii_lowercase()), "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn a_chunk_at_the_end_is_padded() {
        assert_eq!(chunk(b"ab", 1).to_le_bytes(), *b"b\0\0\0\0\0\0\0");
        assert_eq!(chunk(b"ab", 2), 0);
        assert_eq!(chunk(b"12345678", 0).to_le_bytes(), *b"12345678");
    }
}
