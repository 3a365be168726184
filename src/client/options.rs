//! Startup parameters as settings of the session.
//!
//! The `options` parameter is read as PostgreSQL reads its command line: `-c name=value` and
//! `--name=value`, blanks separate, a backslash escapes (PostgreSQL docs, `libpq` connection options).
//! Pure. Invariant: what is not understood is refused, never dropped. Absent on purpose: whether a
//! name or value is valid (the node says so). `pgregent.node` is ours: a replication connection names
//! its node by it, and no node hears of it.

use crate::backend::{Setting, Settings};

/// `options` holds something other than settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid command-line argument for server process: {0}")]
pub struct BadOptions(pub String);

/// The settings that these startup parameters make.
///
/// # Errors
/// [`BadOptions`].
pub fn startup_settings(parameters: &[(String, String)]) -> Result<Settings, BadOptions> {
    let mut settings = Vec::new();
    // PostgreSQL applies `options` first, then the other parameters.
    for (_, value) in parameters.iter().filter(|(name, _)| name == "options") {
        for (name, value) in parse_options(value)? {
            settings.push(Setting::from_value(&name, value.as_bytes()));
        }
    }
    for (name, value) in parameters.iter().filter(|(name, _)| name != "options") {
        settings.push(Setting::from_value(name, value.as_bytes()));
    }
    Ok(Settings::new(settings))
}

/// Names the node that a replication connection wants, in `options` or as a parameter of its own.
const NODE: &str = "pgregent.node";

/// Takes the name of the node out of startup parameters that are passed on; all else stays as it is.
pub fn take_node(parameters: &mut Vec<(String, String)>) -> Option<String> {
    let mut node = None;
    for (_, value) in parameters.iter_mut().filter(|(name, _)| name == "options") {
        let words = split(value);
        let (kept, taken) = without_node(&words);
        if taken.is_some() {
            *value = join(&kept);
            node = taken;
        }
    }
    parameters.retain(|(name, value)| {
        let is_node = name.eq_ignore_ascii_case(NODE);
        if is_node {
            node = Some(value.clone());
        }
        let is_nothing = name == "options" && value.is_empty();
        !(is_node || is_nothing)
    });
    node
}

/// The words that are not about the node, and the last node named.
fn without_node(words: &[String]) -> (Vec<&str>, Option<String>) {
    let value_of = |assignment: &str| {
        let (name, value) = assignment.split_once('=')?;
        name.eq_ignore_ascii_case(NODE).then(|| value.to_owned())
    };
    let (mut kept, mut node) = (Vec::new(), None);
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        let apart = if word == "-c" { rest.peek().and_then(|next| value_of(next)) } else { None };
        if apart.is_some() {
            rest.next();
            node = apart;
            continue;
        }
        match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).and_then(value_of) {
            Some(named) => node = Some(named),
            None => kept.push(word),
        }
    }
    (kept, node)
}

/// Words as one text that [`split`] reads back.
fn join(words: &[&str]) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            text.push(' ');
        }
        for letter in word.chars() {
            if letter == '\\' || letter.is_ascii_whitespace() {
                text.push('\\');
            }
            text.push(letter);
        }
    }
    text
}

fn parse_options(text: &str) -> Result<Vec<(String, String)>, BadOptions> {
    let mut settings = Vec::new();
    let mut words = split(text).into_iter();
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("--") {
            Some(rest) => rest.to_owned(),
            None => match word.strip_prefix("-c") {
                Some("") => words.next().ok_or_else(|| BadOptions(word.clone()))?,
                Some(rest) => rest.to_owned(),
                None => return Err(BadOptions(word)),
            },
        };
        let (name, value) = assignment.split_once('=').ok_or_else(|| BadOptions(assignment.clone()))?;
        if name.is_empty() {
            return Err(BadOptions(assignment));
        }
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '\\' => word.get_or_insert_default().extend(chars.next()),
            blank if blank.is_ascii_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_escapes_are_read() {
        let got = parse_options(r"-c geqo=off -csearch_path=a,\ b --statement-timeout=5min").unwrap();
        let want = [("geqo", "off"), ("search_path", "a, b"), ("statement_timeout", "5min")];
        assert_eq!(got, want.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(parse_options("").unwrap().is_empty());
    }

    #[test]
    fn the_node_is_taken_out_and_nothing_else_changes() {
        let taken = |options: &str| {
            let mut parameters = vec![("options".to_owned(), options.to_owned()), ("a".to_owned(), "b".to_owned())];
            let node = take_node(&mut parameters);
            let rest = parameters.iter().find(|(name, _)| name == "options").map(|(_, value)| value.clone());
            (node, rest)
        };
        let (pg2, none) = (Some("pg2".to_owned()), None::<String>);
        for only in ["-c pgregent.node=pg2", "-cpgregent.node=pg2", "--pgregent.node=pg2", "-c PGREGENT.node=pg2"] {
            assert_eq!(taken(only), (pg2.clone(), none.clone()), "{only}");
        }
        let rest = Some(r"-c search_path=a,\ b -d 5".to_owned());
        assert_eq!(taken(r"-c search_path=a,\ b -c pgregent.node=pg2 -d 5"), (pg2.clone(), rest));
        for text in ["-c geqo=off", "-c", "pgregent.node=pg2", r"  -c  x=\y"] {
            assert_eq!(taken(text), (None, Some(text.to_owned())), "{text}");
        }
        let mut alone = vec![("pgregent.node".to_owned(), "pg2".to_owned())];
        assert_eq!((take_node(&mut alone), alone.len()), (pg2, 0));
    }

    #[test]
    fn what_is_not_a_setting_is_refused() {
        for text in ["-d 5", "-c", "-c geqo", "--", "x"] {
            assert!(parse_options(text).is_err(), "{text}");
        }
    }
}
