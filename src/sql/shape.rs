//! One pass over a text that leaves its shape: no literals, no comments, no letter case, no white space.
//!
//! The shape is the cache's key. Two texts of one shape differ only in literals (lists of literals collapse to one),
//! comments and layout, none of which changes a class; where literals do matter ([`literals_matter`]) the shape must keep
//! them. So a text of the same shape with its lists cut short has the same class: that is what the
//! grammar gets of long texts ([`Shape::reduce`]).
//!
//! Invariants: the memory of a shape is bounded by [`SHAPE_BYTES_MAX`], whatever the text; nothing panics. Absent on
//! purpose: backslash escapes in plain strings (`standard_conforming_strings = off`), and the meaning of any word.

use memchr::memchr;

use super::hint::Hints;
use super::lexer::{Begins, CHUNK, Found, Kind, Lexer, Text, Token, Unlexable, swar};

/// Stands for a literal or a list of literals. Control bytes cannot occur in a shape otherwise.
const LITERAL: u8 = 0x01;
/// Ends the shape of a text with a hint; a byte that tells which follows.
const HINT: u8 = 0x02;

/// A shape never needs more; texts whose shape would have none, bytes.
pub(super) const SHAPE_BYTES_MAX: usize = 64 << 10;
/// Literals of a list that a reduced text keeps: what takes several arguments must still parse.
const KEPT_MAX: usize = 4;
/// Longer literals are cut from a reduced text, bytes.
const LITERAL_BYTES_MAX: usize = 256;

/// First words of statements whose class no literal changes. COPY (file names) and EXPLAIN (options) are not among them.
const LITERAL_FREE: [&[u8]; 8] = [b"select", b"insert", b"update", b"delete", b"with", b"values", b"table", b"merge"];

/// Functions whose arguments decide what they leave behind, or whether every node would answer the same.
const DECIDED_BY_ARGUMENTS: [&[u8]; 2] = [b"set_config", b"current_setting"];

/// Why a text has no shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoShape {
    /// It cannot be split into tokens that every supported version would agree on.
    Unlexable,
    /// It would be longer than [`SHAPE_BYTES_MAX`].
    TooLong,
}

impl From<Unlexable> for NoShape {
    fn from(Unlexable: Unlexable) -> Self {
        Self::Unlexable
    }
}

/// A text without what does not matter. Its memory is kept from text to text.
#[derive(Default)]
pub(super) struct Shape {
    bytes: Vec<u8>,
    len: usize,
}

/// Sees a copy token by token: `low` is how long the shape stayed, `len` how long it is now.
trait Observer {
    /// Does it want to see every literal of a list?
    const EVERY_LITERAL: bool;
    fn token(&mut self, token: Token, low: usize, len: usize);
}

/// Nobody looks.
impl Observer for () {
    const EVERY_LITERAL: bool = false;
    #[inline(always)]
    fn token(&mut self, _: Token, _: usize, _: usize) {}
}

impl Shape {
    /// The shape of the text copied last; meaningless if that failed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Is there a literal in a shape without its literals?
    pub fn has_literal(&self) -> bool {
        memchr(LITERAL, self.bytes()).is_some()
    }

    /// Copies the shape of `text` without its literals and tells the text's hints. If [`literals_matter`], it is no key.
    ///
    /// # Errors
    ///
    /// [`NoShape`]: there is none.
    #[inline]
    pub fn copy(&mut self, text: &[u8]) -> Result<Hints, NoShape> {
        self.copy_tokens::<false, ()>(text, &mut ())
    }

    /// The same with the literals.
    ///
    /// # Errors
    ///
    /// [`NoShape`]: there is none.
    pub fn copy_with_literals(&mut self, text: &[u8]) -> Result<Hints, NoShape> {
        self.copy_tokens::<true, ()>(text, &mut ())
    }

    /// A text of the same shape and class, but with few and short literals: what the grammar gets of a long one, if no
    /// literal matters. The shape must be that of `text`. `None`: it would be longer than [`SHAPE_BYTES_MAX`].
    pub fn reduce(&mut self, text: &[u8]) -> Option<String> {
        let mut reduced = Reduced { text, reduced: Vec::new(), at: vec![0], in_list: 0, last_end: 0 };
        self.copy_tokens::<false, _>(text, &mut reduced).ok()?;
        String::from_utf8(reduced.reduced).ok().filter(|reduced| reduced.len() <= SHAPE_BYTES_MAX)
    }

    fn copy_tokens<const KEEP: bool, F: Observer>(&mut self, text: &[u8], observer: &mut F) -> Result<Hints, NoShape> {
        // A byte of text becomes at most itself and a blank before it; two more tell hints. Words are written in
        // whole chunks, the last of which may hang over.
        let room = 2 * text.len().min(SHAPE_BYTES_MAX) + 2 + 2 * CHUNK;
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
        let text = Text(text);
        let mut hints = Hints::default();
        let mut out = Out { bytes: &mut self.bytes, len: 0, after_word: false };
        let mut pos = 0;
        loop {
            if out.len > SHAPE_BYTES_MAX {
                return Err(NoShape::TooLong);
            }
            // Most tokens are a word behind one blank, or punctuation.
            let start = pos + usize::from(text.byte(pos) == b' ');
            let begins = text.begins(start);
            if begins == Begins::Punctuation {
                pos = start + 1;
                let low = out.punctuation(text.byte(start));
                observer.token(Token { kind: Kind::Punctuation, start, end: pos }, low, out.len);
                continue;
            }
            let mut word = begins == Begins::Word;
            if word {
                pos = text.word_end(start);
                word = !text.is_prefix(start, pos);
            }
            let mut kind = Kind::Word;
            if !word {
                match text.rare(start, &mut hints)? {
                    Found::Gap(end) => {
                        pos = end;
                        continue;
                    }
                    Found::Token(found, end) => (kind, pos) = (found, end),
                    Found::End => break,
                }
            }
            let low = match kind {
                Kind::Word => out.word::<KEEP>(text, start, pos)?,
                Kind::Punctuation => out.punctuation(text.byte(start)),
                Kind::Literal if !KEEP => out.literal(),
                Kind::Literal | Kind::QuotedWord | Kind::UnicodeWord => out.verbatim(&text.0[start..pos])?,
            };
            observer.token(Token { kind, start, end: pos }, low, out.len);
            if kind == Kind::Literal && !KEEP && !F::EVERY_LITERAL {
                pos = text.list_end(pos);
            }
        }
        if let Some(code) = hints.code() {
            out.push(HINT);
            out.push(code);
        }
        self.len = out.len;
        Ok(hints)
    }
}

/// Does a literal of this text change its class? That is a matter of its words alone, so of its shape.
pub(super) fn literals_matter(text: &[u8]) -> bool {
    let mut lexer = Lexer::new(text);
    let mut statement_starts = true;
    while let Ok(Some(token)) = lexer.next_token() {
        let bytes = &text[token.start..token.end];
        let is_one_of = |words: &[&[u8]]| words.iter().any(|word| bytes.eq_ignore_ascii_case(word));
        match token.kind {
            Kind::Punctuation => {
                statement_starts = bytes == b";" || (statement_starts && bytes == b"(");
                continue;
            }
            Kind::Word if statement_starts && !is_one_of(&LITERAL_FREE) => return true,
            Kind::Word if is_one_of(&DECIDED_BY_ARGUMENTS) => return true,
            Kind::QuotedWord if DECIDED_BY_ARGUMENTS.contains(&&bytes[1..bytes.len() - 1]) => return true,
            Kind::UnicodeWord => return true,
            Kind::Word | Kind::QuotedWord | Kind::Literal => {}
        }
        statement_starts = false;
    }
    false
}

/// A shape that is being written. Each method that appends tells how long the shape stayed.
struct Out<'s> {
    bytes: &'s mut [u8],
    len: usize,
    /// The next token needs a blank before it, unless it is punctuation.
    after_word: bool,
}

/// The words that are literals.
const CONSTANTS: [u64; 3] = [word(b"null"), word(b"true"), word(b"false")];

const fn word(text: &[u8]) -> u64 {
    let (mut value, mut at) = (0, text.len());
    while at > 0 {
        at -= 1;
        value = value << 8 | text[at] as u64;
    }
    value
}

impl Out<'_> {
    #[inline(always)]
    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// A blank where the last token needs one.
    #[inline(always)]
    fn blank(&mut self) {
        self.bytes[self.len] = b' ';
        self.len += usize::from(self.after_word);
        self.after_word = true;
    }

    /// Eight bytes, of which only some are meant: `len` stays.
    #[inline(always)]
    fn hang_over(&mut self, bytes: u64) {
        if let Some(room) = self.bytes.get_mut(self.len..).and_then(<[u8]>::first_chunk_mut) {
            *room = bytes.to_le_bytes();
        }
    }

    /// A word in lower case, unless it is a literal. Chunks are read from the text, not from the word, so that nearly
    /// all are whole.
    #[inline(always)]
    fn word<const KEEP: bool>(&mut self, text: Text<'_>, start: usize, end: usize) -> Result<usize, NoShape> {
        let (low, len) = (self.len, end - start);
        let folded = swar::fold(text.chunk(start));
        if len < CHUNK {
            if !KEEP && CONSTANTS.contains(&swar::first(folded, len)) {
                return Ok(self.literal());
            }
            self.blank();
            self.hang_over(folded);
            self.len += len;
            return Ok(low);
        }
        if low + len > SHAPE_BYTES_MAX {
            return Err(NoShape::TooLong);
        }
        self.blank();
        let word_end = self.len + len;
        self.hang_over(folded);
        let mut at = start + CHUNK;
        while at < end {
            self.len += CHUNK;
            self.hang_over(swar::fold(text.chunk(at)));
            at += CHUNK;
        }
        self.len = word_end;
        Ok(low)
    }

    /// A token as it is.
    fn verbatim(&mut self, bytes: &[u8]) -> Result<usize, NoShape> {
        let low = self.len;
        if low + bytes.len() > SHAPE_BYTES_MAX {
            return Err(NoShape::TooLong);
        }
        self.blank();
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
        Ok(low)
    }

    /// A literal; with the one before it and the comma between them it is one. A sign belongs to the literal.
    #[inline]
    fn literal(&mut self) -> usize {
        self.after_word = false;
        if let [.., b'(' | b',' | b'[', b'-' | b'+'] = self.bytes[..self.len] {
            self.len -= 1;
        }
        if let [.., LITERAL, b','] = self.bytes[..self.len] {
            self.len -= 1;
            self.len
        } else {
            self.push(LITERAL);
            self.len - 1
        }
    }

    /// Punctuation; a row of literals behind a row of literals is one row.
    #[inline(always)]
    fn punctuation(&mut self, byte: u8) -> usize {
        self.after_word = false;
        if byte == b')'
            && let [.., b'(', LITERAL, b')', b',', b'(', LITERAL] = self.bytes[..self.len]
        {
            self.len -= 4;
        }
        self.push(byte);
        self.len - 1
    }
}

/// Writes the tokens that the shape keeps, as they stand in the text.
struct Reduced<'t> {
    text: &'t [u8],
    reduced: Vec<u8>,
    /// For each length that the shape had on the way here, how long the reduced text was.
    at: Vec<usize>,
    /// Literals of the running list so far.
    in_list: usize,
    /// Where the last token that was written ended in the text.
    last_end: usize,
}

impl Reduced<'_> {
    fn write(&mut self, token: Token) {
        if token.start > self.last_end {
            // Not a blank: two strings are one if they stand in two lines.
            self.reduced.push(b'\n');
        }
        self.last_end = token.end;
        let bytes = &self.text[token.start..token.end];
        let is_long = token.kind == Kind::Literal && bytes.len() > LITERAL_BYTES_MAX;
        self.reduced.extend_from_slice(if is_long { b"''" } else { bytes });
    }
}

impl Observer for Reduced<'_> {
    const EVERY_LITERAL: bool = true;

    fn token(&mut self, token: Token, low: usize, len: usize) {
        // Too long already, and nothing is taken away any more, so that it is seen.
        if self.reduced.len() > SHAPE_BYTES_MAX {
            return;
        }
        // Only a literal can leave a shape as it was: it goes on a list.
        let goes_on = low == len;
        self.in_list = match token.kind {
            Kind::Punctuation => self.in_list,
            _ if goes_on => self.in_list + 1,
            _ => 1,
        };
        self.at.truncate(low + 1);
        if !goes_on || self.in_list > KEPT_MAX {
            self.reduced.truncate(self.at[low]);
        }
        if !goes_on || self.in_list <= KEPT_MAX {
            self.write(token);
        }
        self.at[low] = if goes_on { self.reduced.len() } else { self.at[low] };
        self.at.resize(len + 1, self.reduced.len());
    }
}
