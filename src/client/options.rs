//! Startup parameters as settings of the session.
//!
//! The `options` parameter is read as PostgreSQL reads its command line: `-c name=value` and
//! `--name=value`, blanks separate, a backslash escapes (PostgreSQL docs, `libpq` connection options).
//! Pure. Invariant: what is not understood is refused, never dropped. Absent on purpose: whether a
//! name or value is valid (the node says so).

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
            settings.push(Setting::from_startup(&name, &value));
        }
    }
    for (name, value) in parameters.iter().filter(|(name, _)| name != "options") {
        settings.push(Setting::from_startup(name, value));
    }
    Ok(Settings::new(settings))
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
    fn what_is_not_a_setting_is_refused() {
        for text in ["-d 5", "-c", "-c geqo", "--", "x"] {
            assert!(parse_options(text).is_err(), "{text}");
        }
    }
}
