//! Reads Rust source well enough for style checks: what is code, which lines are tests, which
//! functions there are, which modules are imported.
//!
//! Invariants: masking keeps every byte position and line number; a brace in a string, a character
//! or a comment is never counted. Absent on purpose: a Rust grammar. Macros that open a brace in one
//! expansion and close it in another would confuse it; none exist here.

use std::ops::Range;

/// One Rust file, prepared for checks.
pub struct Source {
    /// Path below `src`, with `/`.
    pub path: String,
    /// The text as written.
    pub text: String,
    /// The text with comments, strings and characters blanked.
    pub code: String,
    /// Byte ranges of items under `#[cfg(test)]` (whole items with their bodies).
    pub test_ranges: Vec<Range<usize>>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// First line, 1-based.
    pub line: usize,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

impl Source {
    /// Prepares one file.
    pub fn new(path: &str, text: &str) -> Self {
        let code = mask(text);
        let whole = 0..code.len();
        let test_ranges = if is_test_file(path) { Vec::from([whole]) } else { test_ranges(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, test_ranges }
    }

    /// The code without the items under `#[cfg(test)]` (blanked, positions kept).
    pub fn production(&self) -> String {
        let mut bytes = self.code.clone().into_bytes();
        for range in &self.test_ranges {
            blank(&mut bytes[range.clone()]);
        }
        String::from_utf8(bytes).expect("blanking whole characters keeps UTF-8")
    }

    /// The module's path: `["pool", "waiters"]` for `pool/waiters.rs`, empty for `lib.rs`.
    pub fn module(&self) -> Vec<String> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let mut parts: Vec<String> = stem.split('/').map(str::to_owned).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }

    /// The `//!` lines at the top, joined.
    pub fn header(&self) -> String {
        let lines = self.text.lines().take_while(|line| line.starts_with("//!"));
        lines.map(|line| line[3..].trim()).collect::<Vec<_>>().join(" ")
    }

    /// Functions outside tests.
    pub fn functions(&self) -> Vec<Function> {
        functions(&self.production())
    }

    /// Paths below the crate root that production code names: `pool::Checkout`, `ids::NodeId` …
    pub fn crate_paths(&self) -> Vec<String> {
        crate_paths(&self.production(), self.module().len())
    }

    /// Identifiers of the code, tests included, with their lines.
    pub fn identifiers(&self) -> Vec<(usize, String)> {
        let starts = |c: char| c.is_alphabetic() || c == '_';
        let mut found = Vec::new();
        for (index, line) in self.code.lines().enumerate() {
            for word in line.split(|c: char| !c.is_alphanumeric() && c != '_') {
                if word.starts_with(starts) {
                    found.push((index + 1, word.to_owned()));
                }
            }
        }
        found
    }
}

/// `tests.rs` and everything below a folder `tests` (the including `mod` carries the `#[cfg(test)]`).
pub fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The 1-based line of a byte position.
pub fn line_of(text: &str, position: usize) -> usize {
    text[..position].matches('\n').count() + 1
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

/// Blanks comments, strings, characters and byte strings; keeps line breaks and positions.
pub fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = opaque_end(bytes, at);
        if end > at {
            blank(&mut out[at..end]);
            at = end;
        } else {
            at += 1;
            // A word is skipped whole, so that the `r` of `for` does not open a raw string.
            if is_word(bytes[at - 1]) {
                while at < bytes.len() && is_word(bytes[at]) {
                    at += 1;
                }
            }
        }
    }
    String::from_utf8(out).expect("blanking whole characters keeps UTF-8")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The end of the comment or literal that starts at `at`, or `at` if none does.
fn opaque_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return find(bytes, at, b"\n").unwrap_or(bytes.len());
    }
    if rest.starts_with(b"/*") {
        return block_comment_end(bytes, at);
    }
    let prefix = literal_prefix(rest);
    let body = &rest[prefix..];
    match body.first() {
        Some(b'"') if rest[..prefix].contains(&b'r') => {
            find(bytes, at + prefix + 1, b"\"").map_or(bytes.len(), |q| q + 1)
        }
        Some(b'"') => quoted_end(bytes, at + prefix, b'"'),
        Some(b'#') if rest[..prefix].contains(&b'r') => raw_end(bytes, at, at + prefix),
        Some(b'\'') => char_end(bytes, at, at + prefix),
        _ => at,
    }
}

/// Length of a literal's prefix: `r`, `b`, `br`, `c`, `cr`, or nothing.
fn literal_prefix(rest: &[u8]) -> usize {
    let length = rest.iter().take(2).take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    match rest.get(length) {
        Some(b'"' | b'#' | b'\'') => length,
        _ => 0,
    }
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    let start = from.min(bytes.len());
    bytes[start..].windows(what.len()).position(|window| window == what).map(|position| start + position)
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut end) = (0, at);
    while end < bytes.len() {
        if bytes[end..].starts_with(b"/*") {
            depth += 1;
            end += 2;
        } else if bytes[end..].starts_with(b"*/") {
            depth -= 1;
            end += 2;
            if depth == 0 {
                return end;
            }
        } else {
            end += 1;
        }
    }
    bytes.len()
}

fn quoted_end(bytes: &[u8], quote_at: usize, quote: u8) -> usize {
    let mut end = quote_at + 1;
    while end < bytes.len() {
        match bytes[end] {
            b'\\' => end += 2,
            byte if byte == quote => return end + 1,
            _ => end += 1,
        }
    }
    bytes.len()
}

fn raw_end(bytes: &[u8], at: usize, hashes_at: usize) -> usize {
    let hashes = bytes[hashes_at..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(hashes_at + hashes) != Some(&b'"') {
        return at; // r#identifier
    }
    let close = [b"\"".as_slice(), "#".repeat(hashes).as_bytes()].concat();
    find(bytes, hashes_at + hashes + 1, &close).map_or(bytes.len(), |end| end + close.len())
}

/// A character literal, or `at` for a lifetime.
fn char_end(bytes: &[u8], at: usize, quote_at: usize) -> usize {
    if bytes.get(quote_at + 1) == Some(&b'\\') {
        return quoted_end(bytes, quote_at, b'\'');
    }
    let text = std::str::from_utf8(&bytes[quote_at + 1..]).unwrap_or("");
    let width = text.chars().next().map_or(0, char::len_utf8);
    if bytes.get(quote_at + 1 + width) == Some(&b'\'') { quote_at + width + 2 } else { at }
}

/// The position after the brace that closes the one at `open`.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return offset + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// The position of the body's `{`, or `None` if a `;` at depth 0 ends the item first.
fn body_start(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0;
    for (offset, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn test_ranges(code: &str) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (start, mark) in code.match_indices("#[cfg(test)]") {
        if ranges.last().is_some_and(|last| last.contains(&start)) {
            continue;
        }
        let end = match body_start(code, start + mark.len()) {
            Some(open) => block_end(code, open),
            None => find(code.as_bytes(), start, b";").map_or(code.len(), |end| end + 1),
        };
        ranges.push(start..end);
    }
    ranges
}

/// Functions with a body in masked code.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let preceded = code[..at].bytes().next_back().is_some_and(is_word);
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if preceded || name.is_empty() {
            continue; // a word that ends in `fn`, or a function type
        }
        if let Some(open) = body_start(code, at) {
            let line = line_of(code, at);
            found.push(Function { name, line, lines: line_of(code, block_end(code, open) - 1) - line + 1 });
        }
    }
    found
}

/// Paths from the crate root named in masked code of a module `depth` levels below it.
pub fn crate_paths(code: &str, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    let root_by_super = "super::".repeat(depth);
    for (at, _) in code.match_indices("::") {
        let head = code[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next().unwrap_or("");
        let path = format!("{head}::");
        if path == "crate::" || (depth > 0 && path == root_by_super) {
            expand(&code[at + 2..], "", &mut found);
        }
    }
    found
}

/// Expands `a::{b, c::d}` into `a::b`, `a::c::d`.
fn expand(rest: &str, prefix: &str, found: &mut Vec<String>) {
    let rest = rest.trim_start();
    if rest.starts_with('{') {
        let inner = &rest[1..block_end(rest, 0).saturating_sub(1).max(1)];
        for part in split_top(inner) {
            expand(part, prefix, found);
        }
        return;
    }
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect();
    if name.is_empty() {
        return;
    }
    let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}::{name}") };
    match rest[name.len()..].strip_prefix("::") {
        Some(next) if next.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '{' || c == '*') => {
            expand(next, &path, found);
        }
        _ => found.push(path),
    }
}

fn split_top(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (offset, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&inner[start..offset]);
                start = offset + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    parts
}
