//! Our lexer against PostgreSQL's scanner: where a token starts and ends must be one opinion.
//!
//! Texts: every row of the table, `tests/corpus/*.sql`, random fragments, and, if the variable `PGREGENT_SQL_CORPUS`
//! names a directory, the `.sql` files in it (PostgreSQL's own regression tests, say).

use std::path::Path;

use proptest::prelude::*;

use super::super::lexer::{Kind, Lexer};

type Span = (usize, usize);

/// Words, quoted identifiers and literals as the server sees them; `None`: the server refuses the text.
fn scanned(text: &str) -> Option<Vec<Span>> {
    let tokens = pg_query::scan(text).ok()?.tokens;
    let span = |token: &pg_query::protobuf::ScanToken| {
        Some((usize::try_from(token.start).ok()?, usize::try_from(token.end).ok()?))
    };
    let spans = tokens.iter().filter_map(span);
    let is_wanted = |(start, end): &Span| match text.as_bytes()[*start] {
        b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff | b'0'..=b'9' | b'\'' | b'"' | b'$' => true,
        b'.' => end - start > 1 && text.as_bytes()[start + 1].is_ascii_digit(),
        _ => false,
    };
    Some(spans.filter(is_wanted).collect())
}

/// The same by our lexer; `None`: it refuses the text.
fn lexed(text: &str) -> Option<Vec<Span>> {
    let mut lexer = Lexer::new(text.as_bytes());
    let mut spans = Vec::new();
    while let Some(token) = lexer.next_token().ok()? {
        if token.kind != Kind::Punctuation {
            spans.push((token.start, token.end));
        }
    }
    Some(spans)
}

/// `Some(true)`: both agree; `None`: ours refuses, which is always safe, or the server does.
fn compare(text: &str) -> Option<bool> {
    let (theirs, ours) = (scanned(text)?, lexed(text)?);
    let mut ours = ours.into_iter().peekable();
    for (start, end) in theirs {
        let Some(first) = ours.next() else { return Some(false) };
        let mut last = first;
        // A string that goes on in the next line is one token there and several here.
        while last.1 < end && text[start..end].contains(['\n', '\r']) && ours.peek().is_some_and(|s| s.1 <= end) {
            last = ours.next().unwrap();
        }
        if (first.0, last.1) != (start, end) {
            return Some(false);
        }
    }
    Some(ours.next().is_none())
}

/// Pieces of a script, cut at line ends behind semicolons; wrong cuts only make odd texts.
fn pieces(script: &str) -> impl Iterator<Item = &str> {
    script.split_inclusive(";\n").filter(|piece| !piece.contains('\0'))
}

#[test]
fn the_lexer_agrees_with_the_scanner_on_the_corpus() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let more = std::env::var_os("PGREGENT_SQL_CORPUS");
    let mut texts: Vec<String> = super::rows::all().map(str::to_owned).collect();
    for folder in [Some(here), more.map(Into::into)].into_iter().flatten() {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "sql") {
                let script = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
                texts.extend(pieces(&script).map(str::to_owned));
            }
        }
    }
    let mut compared = 0;
    for text in &texts {
        if let Some(agree) = compare(text) {
            assert!(agree, "{text}\n theirs {:?}\n ours   {:?}", scanned(text), lexed(text));
            compared += 1;
        }
    }
    println!("{compared} of {} texts compared", texts.len());
    assert!(compared * 10 > texts.len() * 9, "{compared} of {} compared", texts.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Short pieces of what opens, closes and continues tokens, in any order.
    #[test]
    fn the_lexer_agrees_with_the_scanner_on_fragments(
        text in r#"([eEbBxXnNuU]?'|u&['"]|"|''|\\|\$\$|\$a\$|\$|a|_|1|0x1f|0b1|1_0|1\.|\.5|e5|e-3|\.|--|/\*|\*/|\n|\r| |\+|-|\*|/|<|@|;|é|\$1){0,12}"#
    ) {
        if let Some(agree) = compare(&text) {
            prop_assert!(agree, "{:?}\n theirs {:?}\n ours   {:?}", text, scanned(&text), lexed(&text));
        }
    }
}
