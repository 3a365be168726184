//! Cuts a line of `pg_hba.conf` or `pg_ident.conf` into fields, and a field into tokens.
//!
//! The rules are those of PostgreSQL's `next_token` and `next_field_expand` (`hba.c`), quirks
//! included: a quote may begin anywhere, two quotes inside quotes are one, a quote that is never closed ends with
//! the line. Invariant: every character goes into one token at most. Absent on purpose: files
//! named by `@` and `include` (see `files`), and what the words mean.

/// A word, and whether it began with a quote (which takes its special meaning away).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) quoted: bool,
}

impl Token {
    /// Is it this keyword, with its special meaning?
    pub(super) fn is_keyword(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }

    /// The file that it stands for, if it is `@file`.
    pub(super) fn included(&self) -> Option<&str> {
        self.text.strip_prefix('@').filter(|file| !self.quoted && !file.is_empty())
    }
}

/// One field: tokens with commas between them.
pub(super) type Field = Vec<Token>;

/// A line that goes on, behind backslashes, over several lines of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Logical {
    /// Where it begins, from 1.
    pub(super) number: usize,
    pub(super) text: String,
}

/// Joins lines that end with a backslash to the next.
pub(super) fn logical_lines(text: &str) -> Vec<Logical> {
    let mut lines = Vec::new();
    let mut open: Option<Logical> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_end_matches('\r');
        let (line, goes_on) = match line.strip_suffix('\\') {
            Some(before) => (before, true),
            None => (line, false),
        };
        let mut whole = open.take().unwrap_or(Logical { number, text: String::new() });
        whole.text.push_str(line);
        if goes_on { open = Some(whole) } else { lines.push(whole) }
    }
    lines.extend(open);
    lines
}

/// The fields of a line; none for a blank line or a comment.
pub(super) fn fields(line: &str) -> Vec<Field> {
    let mut rest = line;
    let mut fields = Vec::new();
    loop {
        let mut field = Field::new();
        while let Some((token, comma)) = next_token(&mut rest) {
            field.push(token);
            if !comma {
                break;
            }
        }
        if field.is_empty() {
            return fields;
        }
        fields.push(field);
    }
}

fn is_blank(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\r')
}

/// The next token, and whether a comma follows it.
fn next_token(rest: &mut &str) -> Option<(Token, bool)> {
    let line = rest.trim_start_matches(|letter| is_blank(letter) || letter == ',');
    let mut token = Token { text: String::new(), quoted: false };
    let (mut in_quotes, mut after_quote, mut saw_quote) = (false, false, false);
    let mut end = (line.len(), false);
    for (at, letter) in line.char_indices() {
        match letter {
            '#' if !in_quotes => {
                // A comment takes the rest of the line with it.
                end = (line.len(), false);
                break;
            }
            ',' if !in_quotes => {
                end = (at, true);
                break;
            }
            letter if is_blank(letter) && !in_quotes => {
                end = (at, false);
                break;
            }
            _ => {}
        }
        if letter != '"' || after_quote {
            token.text.push(letter);
        }
        // The second of two quotes is a letter, and the quotes go on.
        after_quote = in_quotes && letter == '"' && !after_quote;
        if letter == '"' {
            in_quotes = !in_quotes;
            saw_quote = true;
            token.quoted |= token.text.is_empty();
        }
    }
    *rest = &line[end.0..];
    (saw_quote || !token.text.is_empty()).then_some((token, end.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(line: &str) -> Vec<Vec<String>> {
        let token = |token: &Token| if token.quoted { format!("<{}>", token.text) } else { token.text.clone() };
        fields(line).iter().map(|field| field.iter().map(token).collect()).collect()
    }

    #[test]
    fn fields_and_tokens() {
        let cases: &[(&str, &[&[&str]])] = &[
            ("", &[]),
            ("  \t # only a comment", &[]),
            ("local all all trust", &[&["local"], &["all"], &["all"], &["trust"]]),
            ("host a,b ,c  d#e", &[&["host"], &["a", "b"], &["c"], &["d"]]),
            ("host a, b , c d", &[&["host"], &["a", "b"], &["c"], &["d"]]),
            ("\"all\" x", &[&["<all>"], &["x"]]),
            ("\"a b, c # d\" x", &[&["<a b, c # d>"], &["x"]]),
            ("a\"b c\"d", &[&["ab cd"]]),
            ("\"say \"\"hi\"\"\"", &[&["<say \"hi\">"]]),
            ("\"\" x", &[&["<>"], &["x"]]),
            ("never \"closed # x", &[&["never"], &["<closed # x>"]]),
            (",,a,,b", &[&["a", "b"]]),
            ("a,", &[&["a"]]),
            ("\"/^a,b$\",\"c\"", &[&["</^a,b$>", "<c>"]]),
        ];
        for (line, wanted) in cases {
            assert_eq!(shown(line), *wanted, "{line}");
        }
    }

    #[test]
    fn lines_go_on_behind_a_backslash() {
        let lines = logical_lines("a \\\nb\\\r\n c\nd\n\ne \\");
        let shown: Vec<_> = lines.iter().map(|line| (line.number, line.text.as_str())).collect();
        assert_eq!(shown, [(1, "a b c"), (4, "d"), (5, ""), (6, "e ")]);
    }

    proptest! {
        #[test]
        fn any_line_is_cut_and_quoting_gives_it_back(line in "[ a-c,\"#@/+\\\\\t]{0,40}") {
            let cut = fields(&line);
            let letters: usize = cut.iter().flatten().map(|token| token.text.chars().count()).sum();
            prop_assert!(letters <= line.chars().count());
            // Written with quotes around every token, it is cut the same.
            let quote = |token: &Token| format!("\"{}\"", token.text.replace('"', "\"\""));
            let again: Vec<_> =
                cut.iter().map(|field| field.iter().map(quote).collect::<Vec<_>>().join(",")).collect();
            let again = fields(&again.join(" "));
            let texts = |fields: &[Field]| -> Vec<Vec<String>> {
                fields.iter().map(|field| field.iter().map(|token| token.text.clone()).collect()).collect()
            };
            prop_assert_eq!(texts(&again), texts(&cut));
        }
    }
}
