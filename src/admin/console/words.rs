//! Splits what a console client says into statements, and a statement into words.
//!
//! Pure. Invariant: quotes and comments are read as PostgreSQL reads them, as far as the console's few
//! statements need. Absent on purpose: a grammar (`command`).

/// A part of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A name or keyword (lower case) or a number.
    Plain(String),
    /// A text in single or double quotes.
    Quoted(String),
    /// Anything else.
    Symbol(char),
}

impl Word {
    /// Is it this keyword?
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Plain(text) if text == keyword)
    }

    /// The text of a name, number or quoted text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Plain(text) | Self::Quoted(text) => Some(text),
            Self::Symbol(_) => None,
        }
    }
}

/// The statements of a text, each as its words. An empty text has none. What follows EXPLAIN ROUTE is one text,
/// whatever it holds.
pub fn statements(text: &str) -> Vec<Vec<Word>> {
    if let Some(explained) = explained(text) {
        let [verb, route] = ["explain", "route"].map(|word| Word::Plain(word.to_owned()));
        return vec![vec![verb, route, Word::Quoted(explained.to_owned())]];
    }
    let mut statements = Vec::new();
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let (word, len) = match next {
            ';' => {
                statements.push(std::mem::take(&mut words));
                (None, 1)
            }
            blank if blank.is_whitespace() => (None, blank.len_utf8()),
            '-' if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (None, rest.find("*/").map_or(rest.len(), |end| end + 2)),
            '\'' | '"' => quoted(rest, next),
            letter if is_name(letter) => {
                let len = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
                (Some(Word::Plain(rest[..len].to_lowercase())), len)
            }
            symbol => (Some(Word::Symbol(symbol)), symbol.len_utf8()),
        };
        words.extend(word);
        rest = &rest[len..];
    }
    statements.push(words);
    statements.retain(|words| !words.is_empty());
    statements
}

/// The text behind EXPLAIN ROUTE.
fn explained(text: &str) -> Option<&str> {
    let rest = ["explain", "route"].iter().try_fold(text, |text, word| {
        let (first, rest) = text.trim_start().split_once(char::is_whitespace)?;
        first.eq_ignore_ascii_case(word).then_some(rest)
    })?;
    Some(rest.trim())
}

fn is_name(letter: char) -> bool {
    letter.is_alphanumeric() || matches!(letter, '_' | '.' | '$')
}

/// A text in quotes, in which two quotes stand for one, and its length with them.
fn quoted(rest: &str, quote: char) -> (Option<Word>, usize) {
    let mut text = String::new();
    let mut letters = rest.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        if letter != quote {
            text.push(letter);
        } else if letters.next_if(|(_, next)| *next == quote).is_some() {
            text.push(quote);
        } else {
            return (Some(Word::Quoted(text)), at + 1);
        }
    }
    (Some(Word::Quoted(text)), rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(text: &str) -> Word {
        Word::Plain(text.to_owned())
    }

    #[test]
    fn statements_are_split_outside_of_quotes_and_comments() {
        let got = statements("/* ; */ SHOW Pools; -- x;\n set a.b='it''s; fine' ;; \"X\"");
        let quoted = |text: &str| Word::Quoted(text.to_owned());
        let want = vec![
            vec![plain("show"), plain("pools")],
            vec![plain("set"), plain("a.b"), Word::Symbol('='), quoted("it's; fine")],
            vec![quoted("X")],
        ];
        assert_eq!(got, want);
        assert!(statements(" ; -- nothing").is_empty());
        let route = statements(" Explain\nROUTE SELECT ';' ; SELECT 2 ");
        assert_eq!(route, [[plain("explain"), plain("route"), quoted("SELECT ';' ; SELECT 2")]]);
    }

    #[test]
    fn what_is_left_open_ends_with_the_text() {
        assert_eq!(statements("'a"), [[Word::Quoted("a".to_owned())]]);
        assert!(statements("/* a").is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = statements(&text);
        }
    }
}
