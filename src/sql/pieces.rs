//! Where in a text its statements stand, and where in them the name of a prepared statement.
//!
//! For the rare texts whose single statements matter; the grammar runs once more for them. Invariant: what comes
//! back are places inside the text. Absent on purpose: what the statements do (`classifier`).

use std::ops::Range;

use super::grammar::{self, StringSyntax};
use super::lexer::{Kind, Lexer};

/// The statements of a text, in order, without the semicolons between them; empty when the text is no valid SQL.
#[must_use]
pub fn pieces(text: &[u8], strings: StringSyntax) -> Vec<&[u8]> {
    let Ok(text) = std::str::from_utf8(text) else { return Vec::new() };
    let Ok(statements) = grammar::parse(text, strings) else { return Vec::new() };
    let bounds = statements.iter().map(|statement| {
        let start = usize::try_from(statement.stmt_location).unwrap_or(0);
        let len = usize::try_from(statement.stmt_len).unwrap_or(0);
        if len == 0 { start..text.len() } else { start..start + len }
    });
    bounds.map(|bounds| text.as_bytes().get(bounds).unwrap_or_default()).collect()
}

/// Where a text names the prepared statement `name` behind EXECUTE, PREPARE or DEALLOCATE.
#[must_use]
pub fn prepared_name(text: &[u8], name: &str) -> Option<Range<usize>> {
    let mut lexer = Lexer::new(text);
    let mut behind_verb = false;
    while let Ok(Some(token)) = lexer.next_token() {
        let bytes = &text[token.start..token.end];
        let found = match token.kind {
            Kind::Word => bytes.eq_ignore_ascii_case(name.as_bytes()),
            Kind::QuotedWord => unquote(bytes) == name.as_bytes(),
            _ => false,
        };
        if behind_verb && found {
            return Some(token.start..token.end);
        }
        // DEALLOCATE PREPARE name: the second verb counts as well.
        behind_verb = token.kind == Kind::Word
            && [&b"execute"[..], b"prepare", b"deallocate"].iter().any(|verb| bytes.eq_ignore_ascii_case(verb));
    }
    None
}

/// Is this the text's first word, letter case aside?
#[must_use]
pub fn begins_with(text: &[u8], word: &str) -> bool {
    let token = Lexer::new(text).next_token().ok().flatten().filter(|token| token.kind == Kind::Word);
    token.is_some_and(|token| text[token.start..token.end].eq_ignore_ascii_case(word.as_bytes()))
}

/// The value that `SET name TO value` gives a setting, where it is plainly one literal, word or number.
#[must_use]
pub fn set_value(text: &[u8]) -> Option<String> {
    let mut lexer = Lexer::new(text);
    let mut value = None;
    let mut behind = false;
    while let Some(token) = lexer.next_token().ok()? {
        let bytes = &text[token.start..token.end];
        if !behind {
            behind = bytes == b"=" || token.kind == Kind::Word && bytes.eq_ignore_ascii_case(b"to");
            continue;
        }
        let plain = match token.kind {
            Kind::Word => bytes.to_ascii_lowercase(),
            Kind::QuotedWord => unquote(bytes),
            Kind::Literal if !bytes.contains(&b'\'') => bytes.to_vec(),
            Kind::Literal if bytes.first() == Some(&b'\'') && !bytes.contains(&b'\\') => unquote(bytes),
            _ => return None,
        };
        if value.replace(plain).is_some() {
            return None;
        }
    }
    String::from_utf8(value?).ok()
}

/// May a text that begins so be a read, by its first word? Also if that has not come yet.
#[must_use]
pub fn may_begin_read(beginning: &[u8]) -> bool {
    let mut lexer = Lexer::new(beginning);
    while let Ok(Some(token)) = lexer.next_token() {
        let bytes = &beginning[token.start..token.end];
        match token.kind {
            Kind::Punctuation if bytes == b"(" || bytes == b";" => {}
            Kind::Word if token.end < beginning.len() => {
                let is = |word: &&[u8]| bytes.eq_ignore_ascii_case(word);
                return [&b"select"[..], b"with", b"values", b"table", b"explain", b"copy", b"declare", b"show"]
                    .iter()
                    .any(is);
            }
            Kind::Word => {}
            _ => return false,
        }
    }
    // A comment that has no end yet looks like a text that cannot be split.
    true
}

/// Where plain integers stand in a text.
#[must_use]
pub fn integers(text: &[u8]) -> Vec<Range<usize>> {
    let mut lexer = Lexer::new(text);
    let mut found = Vec::new();
    while let Ok(Some(token)) = lexer.next_token() {
        if token.kind == Kind::Literal && text[token.start..token.end].iter().all(u8::is_ascii_digit) {
            found.push(token.start..token.end);
        }
    }
    found
}

/// What stands between quotes, doubled ones undone.
fn unquote(quoted: &[u8]) -> Vec<u8> {
    let (Some(quote), Some(inner)) = (quoted.first(), quoted.get(1..quoted.len().saturating_sub(1))) else {
        return Vec::new();
    };
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().peekable();
    while let Some(byte) = bytes.next() {
        out.push(*byte);
        if byte == quote {
            bytes.next_if_eq(&quote);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_cut_where_the_grammar_cuts_them() {
        let text = b"set a = ';'; create function f() returns int begin atomic select 1; select 2; end; ;select 3 ";
        let got: Vec<_> = pieces(text, StringSyntax::Standard)
            .into_iter()
            .map(|piece| String::from_utf8_lossy(piece).trim().to_owned())
            .collect();
        let want = ["set a = ';'", "create function f() returns int begin atomic select 1; select 2; end", "select 3"];
        assert_eq!(got, want);
        assert!(pieces(b"selec", StringSyntax::Standard).is_empty());
    }

    #[test]
    fn first_words_stand_behind_comments() {
        assert!(begins_with(b"/* x */ -- y\n Start transaction", "start"));
        assert!(!begins_with(b"starts", "start") && !begins_with(b"'start'", "start") && !begins_with(b"", "start"));
    }

    #[test]
    fn values_of_settings_are_read_where_they_are_plain() {
        let value = |text: &str| set_value(text.as_bytes());
        assert_eq!(value("SET a.b = 'it''s'"), Some("it's".into()));
        assert_eq!(value("set session \"a\".\"b\" TO On -- so"), Some("on".into()));
        assert_eq!(value("SET x=12"), Some("12".into()));
        assert_eq!(value("SET x TO 'a', 'b'"), None);
        assert_eq!(value("SET x TO E'a\\n'"), None);
        assert_eq!(value("SET x"), None);
    }

    #[test]
    fn the_first_word_tells_what_cannot_be_a_read() {
        for text in [
            "select 1",
            "(( SELECT",
            "/* insert */ With x",
            ";values (",
            "",
            "/* a",
            "-- b",
            "insert",
            "(\n",
            "copy (s",
        ] {
            assert!(may_begin_read(text.as_bytes()), "{text}");
        }
        for text in
            ["insert into", "/* select */ UPDATE t", "begin;", "1", "'", "selects ", ")", "create table t as select"]
        {
            assert_eq!(may_begin_read(text.as_bytes()), text == "'", "{text}");
        }
    }

    #[test]
    fn integers_are_found_where_they_are_no_part_of_something_else() {
        let text = "select f(17), '18', 1.5, $2, a19 -- 20\n, 21";
        let got: Vec<_> = integers(text.as_bytes()).into_iter().map(|place| &text[place]).collect();
        assert_eq!(got, ["17", "21"]);
    }

    #[test]
    fn names_are_found_however_they_are_written() {
        let at = |text: &str, name: &str| prepared_name(text.as_bytes(), name).map(|range| text[range].to_owned());
        assert_eq!(at("EXECUTE Q1 (1)", "q1"), Some("Q1".into()));
        assert_eq!(at("explain analyze execute \"a\"\"b\"", "a\"b"), Some("\"a\"\"b\"".into()));
        assert_eq!(at("deallocate prepare q", "q"), Some("q".into()));
        assert_eq!(at("/* execute q */ prepare x as select 'execute q'", "q"), None);
    }
}
