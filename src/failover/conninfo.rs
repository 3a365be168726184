//! A libpq connection string as a list of keywords and values, to change where a standby streams from.
//!
//! Pure. Invariants: what is printed reads back as the same list; keywords that are not changed keep
//! their order and value. Absent on purpose: the URI form (`postgresql://…`; PostgreSQL's own tools
//! never write it to `primary_conninfo`, so meeting one is an error that says so), defaults, and any
//! knowledge of which keywords exist.
//!
//! Rules: PostgreSQL docs, "Keyword/Value Connection Strings".

use crate::ids::{Epoch, TimelineId};
use std::fmt;

/// Longest connection string accepted, bytes (PostgreSQL itself cuts it at 1023 for the receiver's display only).
pub const CONNINFO_BYTES_MAX: usize = 16 * 1024;
/// Most keywords accepted in one string.
pub const CONNINFO_KEYWORDS_MAX: usize = 128;

/// What precedes the epoch in `options`. One word: a blank within `options` would have to be escaped.
const ASKED_OPTION: &str = "-cpgregent.asked=";
const EPOCH_OPTION: &str = "-cpgregent.epoch=";
/// The timeline that the primary of that epoch has at least.
const TIMELINE_OPTION: &str = "-cpgregent.timeline=";
/// Whom a detached standby followed.
const LEFT_OPTION: &str = "-cpgregent.left=";
/// In the string of a node out of recovery, which uses none: its read-only default is ours.
const FENCED_OPTION: &str = "-cpgregent.fenced=";

/// A directory for sockets that no host has: libpq fails there at once, without asking the network.
const NOWHERE: (&str, u16) = ("/pgregent/detached", 1);

/// A connection string, read. Its `Debug` never shows values, since one of them may be a password.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ConnInfo {
    pairs: Vec<(String, String)>,
}

/// Why a text is no connection string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConnInfo {
    /// Longer than [`CONNINFO_BYTES_MAX`] or with more than [`CONNINFO_KEYWORDS_MAX`] keywords.
    #[error("connection string is too long")]
    TooLong,
    /// `postgresql://…`.
    #[error("connection string is a URI; only the keyword=value form is supported here")]
    Uri,
    /// A keyword without `=`.
    #[error("missing \"=\" after {0:?} in connection string")]
    MissingEquals(String),
    /// A quote that is never closed.
    #[error("unterminated quoted value in connection string")]
    Unterminated,
    /// ALTER SYSTEM refuses values with line breaks, and NUL ends C strings.
    #[error("connection string holds a line break or a NUL")]
    ControlCharacter,
}

impl ConnInfo {
    /// Reads a connection string. The empty text gives the empty list.
    ///
    /// # Errors
    /// When the text breaks libpq's rules or a bound; see [`BadConnInfo`].
    pub fn parse(text: &str) -> Result<Self, BadConnInfo> {
        if text.len() > CONNINFO_BYTES_MAX {
            return Err(BadConnInfo::TooLong);
        }
        if text.contains(['\n', '\r', '\0']) {
            return Err(BadConnInfo::ControlCharacter);
        }
        if text.starts_with("postgresql://") || text.starts_with("postgres://") {
            return Err(BadConnInfo::Uri);
        }
        let mut pairs = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (keyword, after) = keyword(rest)?;
            let (value, after) = value(after)?;
            if pairs.len() == CONNINFO_KEYWORDS_MAX {
                return Err(BadConnInfo::TooLong);
            }
            pairs.push((keyword.to_owned(), value));
            rest = after.trim_start();
        }
        Ok(Self { pairs })
    }

    /// No keyword at all: a standby with this streams from nowhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The value of a keyword; the last one counts, as in libpq.
    #[must_use]
    pub fn value(&self, keyword: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == keyword).map(|(_, value)| value.as_str())
    }

    /// Where it leads: `host` (or `hostaddr`) and port, as texts.
    #[must_use]
    pub fn upstream(&self) -> Option<(&str, &str)> {
        let host = self.value("host").or_else(|| self.value("hostaddr"))?;
        Some((host, self.value("port").unwrap_or("5432")))
    }

    /// The same with another upstream. `hostaddr` is dropped, because it would win over `host`.
    #[must_use]
    pub fn leading_to(mut self, host: &str, port: u16) -> Self {
        self.pairs.retain(|(name, _)| name != "hostaddr");
        self.set("host", host);
        self.set("port", &port.to_string());
        self.set_word(LEFT_OPTION, None);
        self
    }

    /// The same, and no connection comes of it: for a standby that must stand still and remember the rest, and the name
    /// of the node that it followed.
    #[must_use]
    pub fn leading_nowhere(self, left: Option<&str>) -> Self {
        if self.leads_nowhere() {
            return self;
        }
        let mut still = self.leading_to(NOWHERE.0, NOWHERE.1);
        still.set_word(LEFT_OPTION, left);
        still
    }

    /// The name of the node that it followed before [`ConnInfo::leading_nowhere`].
    #[must_use]
    pub fn left(&self) -> Option<&str> {
        self.word(LEFT_OPTION)
    }

    /// Whether it comes from [`ConnInfo::leading_nowhere`].
    #[must_use]
    pub fn leads_nowhere(&self) -> bool {
        self.value("host") == Some(NOWHERE.0)
    }

    /// The same with the epoch written into `options`, which the upstream's server ignores and a restart keeps, and the
    /// timeline that its primary has at least (0: not known). What is known of the epoch already is kept.
    #[must_use]
    pub fn of_epoch(mut self, epoch: Epoch, timeline: TimelineId) -> Self {
        let known = if self.epoch() == epoch { self.least_timeline() } else { TimelineId(0) };
        let least = timeline.max(known);
        self.set_word(EPOCH_OPTION, Some(&epoch.to_string()));
        self.set_word(TIMELINE_OPTION, (least > TimelineId(0)).then(|| least.to_string()).as_deref());
        self
    }

    /// The same with this word in `options` as the last one, or without it.
    fn set_word(&mut self, option: &str, value: Option<&str>) {
        if value.is_none() && self.word(option).is_none() {
            // The other words are not ours, and neither are the blanks between them.
            return;
        }
        let words = self.value("options").unwrap_or_default().split_whitespace();
        let mut words: Vec<String> = words.filter(|word| !word.starts_with(option)).map(str::to_owned).collect();
        words.extend(value.map(|value| format!("{option}{value}")));
        if words.is_empty() {
            self.pairs.retain(|(name, _)| name != "options");
        } else {
            self.set("options", &words.join(" "));
        }
    }

    fn word(&self, option: &str) -> Option<&str> {
        let words = self.value("options").unwrap_or_default().split_whitespace();
        words.filter_map(|word| word.strip_prefix(option)).next_back()
    }

    /// The same with a word in `options` set or taken out, so that it differs and means the same.
    #[must_use]
    pub fn asked_again(mut self) -> Self {
        let mark = if self.word(ASKED_OPTION).is_some() { None } else { Some("1") };
        self.set_word(ASKED_OPTION, mark);
        self
    }

    /// The same with the mark of the SQL fence, or without it.
    #[must_use]
    pub fn fenced(mut self, on: bool) -> Self {
        self.set_word(FENCED_OPTION, on.then_some("1"));
        self
    }

    /// The epoch written there; 0 where there is none.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.word(EPOCH_OPTION).and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// The timeline that the primary of that epoch has at least; 0 where nobody wrote it.
    #[must_use]
    pub fn least_timeline(&self) -> TimelineId {
        TimelineId(self.word(TIMELINE_OPTION).and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// The same with `application_name`, if it had one, replaced: used when another standby's string is the template.
    #[must_use]
    pub fn named(mut self, application_name: &str) -> Self {
        if self.value("application_name").is_some() {
            self.set("application_name", application_name);
        }
        self
    }

    fn set(&mut self, keyword: &str, value: &str) {
        let place = self.pairs.iter().position(|(name, _)| name == keyword);
        self.pairs.retain({
            let mut seen = false;
            move |(name, _)| name != keyword || !std::mem::replace(&mut seen, true)
        });
        match place {
            Some(place) => value.clone_into(&mut self.pairs[place].1),
            None => self.pairs.push((keyword.to_owned(), value.to_owned())),
        }
    }
}

impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (keyword, value)) in self.pairs.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{keyword}={}", quoted(value))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.pairs.iter().map(|(keyword, _)| keyword)).finish()
    }
}

/// A text as an SQL string literal, right whatever `standard_conforming_strings` says.
#[must_use]
pub fn sql_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') { format!(" E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

fn keyword(text: &str) -> Result<(&str, &str), BadConnInfo> {
    let end = text.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(text.len());
    let (name, after) = text.split_at(end);
    let after = after.trim_start();
    match after.strip_prefix('=') {
        Some(after) if !name.is_empty() => Ok((name, after.trim_start())),
        _ => Err(BadConnInfo::MissingEquals(name.to_owned())),
    }
}

fn value(text: &str) -> Result<(String, &str), BadConnInfo> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices();
    if quoted {
        chars.next();
    }
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(BadConnInfo::Unterminated) } else { Ok((value, "")) }
}

fn quoted(value: &str) -> String {
    let plain = !value.is_empty() && !value.contains(|c: char| c.is_ascii_whitespace() || c == '\'' || c == '\\');
    if plain {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> ConnInfo {
        ConnInfo::parse(text).unwrap()
    }

    #[test]
    fn the_mark_of_the_fence_comes_and_goes_and_leaves_the_rest() {
        let own = ConnInfo::parse("host=a options='-c x=1 -cpgregent.epoch=7'").unwrap();
        let fenced = own.clone().fenced(true);
        assert_eq!(fenced.to_string(), "host=a options='-c x=1 -cpgregent.epoch=7 -cpgregent.fenced=1'");
        assert_eq!(fenced.clone().fenced(true), fenced);
        assert_eq!(fenced.fenced(false), own);
        assert_eq!(ConnInfo::default().fenced(true).fenced(false), ConnInfo::default());
    }

    #[test]
    fn a_string_that_leads_nowhere_keeps_the_rest() {
        let marks = "-c geqo=off -cpgregent.epoch=7 -cpgregent.timeline=3";
        let own = read(&format!("hostaddr=10.0.0.1 host=a port=5433 user=r options='{marks}'"));
        assert_eq!(own.left(), None);
        let still = own.clone().leading_nowhere(Some("a"));
        assert!(still.leads_nowhere() && !read("host=a port=1").leads_nowhere());
        assert_eq!((still.epoch(), still.least_timeline(), still.left()), (Epoch(7), TimelineId(3), Some("a")));
        assert_eq!(still.clone().leading_nowhere(None), still);
        let back = format!("host=b port=5432 user=r options='{marks}'");
        assert_eq!(still.leading_to("b", 5432).to_string(), back);
        assert_eq!(own.leading_nowhere(None).left(), None);
        // What is not ours is left as it is.
        let blanks = read("options='-c a=b\\\\  -c geqo=off' host=a port=1");
        assert_eq!(blanks.clone().leading_to("a", 1).fenced(false), blanks);
    }

    #[test]
    fn epochs_and_marks_live_in_options_beside_what_was_there() {
        let plain = ConnInfo::parse("host=a port=1 options='-c geqo=off'").unwrap();
        let marked = plain.clone().of_epoch(Epoch(7), TimelineId(0));
        assert_eq!(marked.to_string(), "host=a port=1 options='-c geqo=off -cpgregent.epoch=7'");
        assert_eq!(
            (plain.epoch(), marked.epoch(), marked.clone().of_epoch(Epoch(12), TimelineId(0)).epoch()),
            (Epoch(0), Epoch(7), Epoch(12))
        );
        // What is known of an epoch's timeline only grows, and says nothing of the next epoch's.
        let known = marked.clone().of_epoch(Epoch(7), TimelineId(4));
        assert_eq!(known.to_string(), "host=a port=1 options='-c geqo=off -cpgregent.epoch=7 -cpgregent.timeline=4'");
        let least =
            |epoch: u64, timeline: u32| known.clone().of_epoch(Epoch(epoch), TimelineId(timeline)).least_timeline().0;
        assert_eq!((least(7, 0), least(7, 3), least(7, 5), least(8, 0), least(8, 3)), (4, 4, 5, 0, 3));
        let asked = marked.clone().asked_again();
        assert_ne!(asked, marked);
        assert_eq!((asked.epoch(), asked.asked_again()), (Epoch(7), marked));
        let bare = ConnInfo::parse("host=a").unwrap();
        assert_eq!(bare.clone().asked_again().to_string(), "host=a options=-cpgregent.asked=1");
        assert_eq!(bare.clone().asked_again().asked_again(), bare);
    }

    #[test]
    fn what_pg_basebackup_writes_is_read() {
        let info = read("user=rep passfile='/var/lib/p q/.pgpass' host=10.0.0.1 port=5433 sslmode=prefer");
        assert_eq!(info.value("passfile"), Some("/var/lib/p q/.pgpass"));
        assert_eq!(info.upstream(), Some(("10.0.0.1", "5433")));
    }

    #[test]
    fn a_new_upstream_keeps_everything_else() {
        let info = read(r"user=rep password='it\'s \\ secret' hostaddr=10.0.0.1 host=old port=1 application_name=b");
        assert_eq!(
            info.leading_to("new host", 5434).to_string(),
            r"user=rep password='it\'s \\ secret' host='new host' port=5434 application_name=b"
        );
        assert_eq!(read("user=a").leading_to("h", 1).to_string(), "user=a host=h port=1");
        assert_eq!(read("host=a host=b port=7").leading_to("h", 1).to_string(), "host=h port=1");
    }

    #[test]
    fn another_nodes_string_is_renamed_only_if_it_named_itself() {
        assert_eq!(read("application_name=b").named("c").to_string(), "application_name=c");
        assert_eq!(read("user=b").named("c").to_string(), "user=b");
    }

    #[test]
    fn libpq_rules_hold() {
        assert!(read("   ").is_empty());
        assert_eq!(read("a = b").value("a"), Some("b"));
        assert_eq!(read(r"a=b\ c").value("a"), Some("b c"));
        assert_eq!(read("a='' b=1").value("a"), Some(""));
        assert_eq!(read("a=1 a=2").value("a"), Some("2"));
        assert_eq!(ConnInfo::parse("a"), Err(BadConnInfo::MissingEquals("a".into())));
        assert_eq!(ConnInfo::parse("=b"), Err(BadConnInfo::MissingEquals(String::new())));
        assert_eq!(ConnInfo::parse("a='b"), Err(BadConnInfo::Unterminated));
        assert_eq!(ConnInfo::parse("postgres://h"), Err(BadConnInfo::Uri));
        assert_eq!(ConnInfo::parse("a=b\nc=d"), Err(BadConnInfo::ControlCharacter));
        assert_eq!(ConnInfo::parse(&"x".repeat(CONNINFO_BYTES_MAX + 1)), Err(BadConnInfo::TooLong));
        assert_eq!(ConnInfo::parse(&"a=b ".repeat(CONNINFO_KEYWORDS_MAX + 1)), Err(BadConnInfo::TooLong));
    }

    #[test]
    fn passwords_stay_out_of_debug_output() {
        assert!(!format!("{:?}", read("user=u password=hidden")).contains("hidden"));
    }

    #[test]
    fn literals_survive_both_string_modes() {
        assert_eq!(sql_literal("a'b"), "'a''b'");
        assert_eq!(sql_literal(r"a\'b"), r" E'a\\''b'");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(values in prop::collection::vec("[ -~]{0,12}", 0..6)) {
            let pairs = values.iter().enumerate().map(|(i, v)| (format!("k{i}"), v.clone())).collect();
            let info = ConnInfo { pairs };
            prop_assert_eq!(ConnInfo::parse(&info.to_string()), Ok(info));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,64}") {
            let _ = ConnInfo::parse(&text);
        }
    }
}
