//! `synchronous_standby_names`: what it says, and whether the standbys that stand still must hold every
//! commit that was acknowledged under it. Pure.
//!
//! With `ANY k` of N names a commit is acknowledged once k of them have flushed it. If R of the N stand
//! still, and R + k > N, then every set of k has one of the R in it: the most advanced of the R has every
//! acknowledged commit, and from now on nobody can gather k. `FIRST k` is counted in the same way, although
//! only the first k connected names acknowledge: which of them were connected at each commit is not known.
//!
//! Invariants: what is not understood, and who is not known, counts for N and never for R. Absent on
//! purpose: sessions with a weaker `synchronous_commit`, which are promised nothing.

use crate::ids::NodeId;
use std::fmt;
use std::sync::Arc;

/// Longest setting that is read, bytes; longer ones count as not understood.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Most names that are read.
const NAMES_MAX: usize = 1_000;

/// Who acknowledges, among those named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The first k that are connected.
    First,
    /// Any k.
    Any,
}

impl Method {
    /// As PostgreSQL writes it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::First => "FIRST",
            Self::Any => "ANY",
        }
    }
}

/// A setting that makes commits wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncRule {
    /// Who acknowledges.
    pub method: Method,
    /// How many must.
    pub k: usize,
    /// The names, in their order; `*` is every standby.
    pub names: Vec<String>,
}

/// A setting that PostgreSQL would not have accepted either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("synchronous_standby_names cannot be understood")]
pub struct BadSyncNames;

/// Reads the setting; `None` where it is empty, so that commits wait for nobody.
///
/// # Errors
/// When it does not follow PostgreSQL's grammar.
pub fn parse(text: &str) -> Result<Option<SyncRule>, BadSyncNames> {
    if text.is_empty() {
        return Ok(None);
    }
    let tokens = scan(text)?;
    let (method, k, list) = match tokens.as_slice() {
        [Token::Any, Token::Number(k), Token::Open, list @ .., Token::Close] => (Method::Any, k.as_str(), list),
        [Token::First, Token::Number(k), Token::Open, list @ .., Token::Close]
        | [Token::Number(k), Token::Open, list @ .., Token::Close] => (Method::First, k.as_str(), list),
        list => (Method::First, "1", list),
    };
    let k: usize = k.parse().map_err(|_| BadSyncNames)?;
    let names = list_of_names(list)?;
    if k == 0 { Err(BadSyncNames) } else { Ok(Some(SyncRule { method, k, names })) }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Any,
    First,
    Number(String),
    Name(String),
    Comma,
    Open,
    Close,
}

fn list_of_names(tokens: &[Token]) -> Result<Vec<String>, BadSyncNames> {
    let mut names = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match (at % 2, token) {
            // A bare number is a name, too.
            (0, Token::Name(name) | Token::Number(name)) => names.push(name.clone()),
            (1, Token::Comma) => {}
            _ => return Err(BadSyncNames),
        }
    }
    let whole = tokens.len() % 2 == 1 && names.len() <= NAMES_MAX;
    if whole { Ok(names) } else { Err(BadSyncNames) }
}

fn scan(text: &str) -> Result<Vec<Token>, BadSyncNames> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(BadSyncNames);
    }
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => (None, 1),
            ',' => (Some(Token::Comma), 1),
            '(' => (Some(Token::Open), 1),
            ')' => (Some(Token::Close), 1),
            '*' => (Some(Token::Name("*".to_owned())), 1),
            '"' => {
                let (name, length) = quoted(rest)?;
                (Some(Token::Name(name)), length)
            }
            '0'..='9' => {
                let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                (Some(Token::Number(rest[..length].to_owned())), length)
            }
            c if begins_name(c) => {
                let length = rest.find(|c| !goes_on_name(c)).unwrap_or(rest.len());
                (Some(word(&rest[..length])), length)
            }
            _ => return Err(BadSyncNames),
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    Ok(tokens)
}

fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn goes_on_name(c: char) -> bool {
    begins_name(c) || c.is_ascii_digit() || c == '$'
}

fn word(text: &str) -> Token {
    if text.eq_ignore_ascii_case("any") {
        Token::Any
    } else if text.eq_ignore_ascii_case("first") {
        Token::First
    } else {
        Token::Name(text.to_owned())
    }
}

/// A name in double quotes, and its length with them.
fn quoted(text: &str) -> Result<(String, usize), BadSyncNames> {
    let mut name = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            name.push(c);
        } else if chars.next_if(|(_, next)| *next == '"').is_some() {
            name.push('"');
        } else {
            return Ok((name, at + 1));
        }
    }
    Err(BadSyncNames)
}

/// As the setting is written, with every name quoted.
impl fmt::Display for SyncRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (", self.method.word(), self.k)?;
        for (index, name) in self.names.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}\"{}\"", name.replace('"', "\"\""))?;
        }
        f.write_str(")")
    }
}

/// A node that may be named, and whether it streams from the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// Its application_name.
    pub name: &'a str,
    /// It streams.
    pub streams: bool,
}

/// The setting that we keep: `ANY k` of those that stream or were named before. A name is added when its node
/// streams and never taken away, so that commits cannot come to wait for fewer; where too few of them stream, others
/// are named to be waited for, or, with `degrade`, commits wait for those that stream only, if any (`None`: nobody).
#[must_use]
pub fn managed(k: usize, nodes: &[Named<'_>], before: Option<&SyncRule>, degrade: bool) -> Option<SyncRule> {
    let rule = |k, names: Vec<&str>| {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        (k > 0 && !names.is_empty()).then_some(SyncRule { method: Method::Any, k, names })
    };
    let streaming: Vec<&str> = nodes.iter().filter(|n| n.streams).map(|n| n.name).collect();
    if degrade && streaming.len() < k {
        return rule(streaming.len(), streaming);
    }
    let was = |name: &str| before.is_some_and(|rule| rule.names.iter().any(|n| n.eq_ignore_ascii_case(name)));
    let mut names: Vec<&str> = nodes.iter().filter(|n| n.streams || was(n.name)).map(|n| n.name).collect();
    let missing = k.saturating_sub(names.len());
    let others: Vec<&str> = nodes.iter().map(|n| n.name).filter(|n| !names.contains(n)).take(missing).collect();
    names.extend(others);
    rule(k, names)
}

/// A connection of a standby, as the primary's `pg_stat_replication` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender<'a> {
    /// Its application_name.
    pub name: &'a str,
    /// Its client_addr.
    pub address: &'a str,
}

/// Who must stand still before a standby may be promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Who acknowledged.
    pub method: Method,
    /// How many of them each commit waited for.
    pub k: usize,
    /// Those of them that are configured nodes.
    pub members: Vec<NodeId>,
    /// Others that may have acknowledged in their place.
    pub strangers: Vec<Arc<str>>,
}

impl Demand {
    /// What a primary's setting and the standbys connected to it ask for. `nodes` holds each node's
    /// application_name; the primary itself acknowledges nothing, unless somebody streams under its name.
    #[must_use]
    pub fn new(rule: &SyncRule, primary: NodeId, nodes: &[Arc<str>], senders: &[Sender<'_>]) -> Self {
        let star = rule.names.iter().any(|name| name == "*");
        let named = |name: &str| star || rule.names.iter().any(|n| n.eq_ignore_ascii_case(name));
        let mut demand = Self { method: rule.method, k: rule.k, members: Vec::new(), strangers: Vec::new() };
        for (index, name) in nodes.iter().enumerate() {
            let id = NodeId(u16::try_from(index).unwrap_or(u16::MAX));
            let mut addresses: Vec<&str> =
                senders.iter().filter(|s| s.name.eq_ignore_ascii_case(name)).map(|s| s.address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            if !named(name) || (id == primary && addresses.is_empty()) {
                continue;
            }
            if id != primary {
                demand.members.push(id);
            }
            // The same name from several addresses: who of them acknowledged is anybody's guess.
            let others = addresses.len().saturating_sub(usize::from(id != primary));
            demand.strangers.extend(std::iter::repeat_n(Arc::clone(name), others));
        }
        let known = |name: &str| nodes.iter().any(|n| n.eq_ignore_ascii_case(name));
        let connected = senders.iter().map(|s| s.name).filter(|_| star);
        for name in rule.names.iter().map(String::as_str).filter(|n| *n != "*").chain(connected) {
            let told = demand.strangers.iter().any(|s| s.eq_ignore_ascii_case(name));
            if !known(name) && !told {
                demand.strangers.push(name.into());
            }
        }
        // Whoever connected after the last look is not seen: every known one has to stand still.
        demand.k = if star { 1 } else { rule.k.min(demand.n()).max(1) };
        demand
    }

    /// What a setting that is not understood asks for: more than anybody can give.
    #[must_use]
    pub fn not_understood(text: &str) -> Self {
        Self { method: Method::Any, k: 1, members: Vec::new(), strangers: vec![text.into(), text.into()] }
    }

    /// How many may acknowledge.
    #[must_use]
    pub fn n(&self) -> usize {
        self.members.len() + self.strangers.len()
    }

    /// How many of them must stand still.
    #[must_use]
    pub fn needed(&self) -> usize {
        (self.n() + 1).saturating_sub(self.k)
    }

    /// How many of them are among these.
    #[must_use]
    pub fn still(&self, still: &[NodeId]) -> usize {
        self.members.iter().filter(|id| still.contains(id)).count()
    }

    /// R + k > N.
    #[must_use]
    pub fn met_by(&self, still: &[NodeId]) -> bool {
        self.still(still) >= self.needed()
    }

    /// One that is met only where both are.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for id in &other.members {
            if !self.members.contains(id) {
                self.members.push(*id);
            }
        }
        let count = |all: &[Arc<str>], name: &Arc<str>| all.iter().filter(|other| *other == name).count();
        for name in &other.strangers {
            if count(&self.strangers, name) < count(&other.strangers, name) {
                self.strangers.push(Arc::clone(name));
            }
        }
        self.members.sort_unstable();
        self.k = self.k.min(other.k);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> SyncRule {
        parse(text).unwrap().unwrap()
    }

    fn written(method: Method, k: usize, names: &[&str]) -> SyncRule {
        SyncRule { method, k, names: names.iter().map(|n| (*n).to_owned()).collect() }
    }

    fn nodes(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|n| Arc::from(*n)).collect()
    }

    fn demand(text: &str, senders: &[(&str, &str)]) -> Demand {
        let senders: Vec<Sender<'_>> = senders.iter().map(|(name, address)| Sender { name, address }).collect();
        Demand::new(&rule(text), NodeId(0), &nodes(&["a", "b", "c"]), &senders)
    }

    #[test]
    fn the_settings_that_postgresql_accepts() {
        use Method::{Any, First};
        assert_eq!(parse(""), Ok(None));
        assert_eq!(rule("ANY 1 (b, c)"), written(Any, 1, &["b", "c"]));
        assert_eq!(rule("any 2(b,\tc ,d)"), written(Any, 2, &["b", "c", "d"]));
        assert_eq!(rule("First 2 (b, c)"), written(First, 2, &["b", "c"]));
        assert_eq!(rule("2 (b, c)"), written(First, 2, &["b", "c"]));
        assert_eq!(rule("b, c"), written(First, 1, &["b", "c"]));
        assert_eq!(rule("*"), written(First, 1, &["*"]));
        assert_eq!(rule("ANY 1 (*)"), written(Any, 1, &["*"]));
        assert_eq!(rule(r#"ANY 1 ("b-1", "a ""b""", "any")"#), written(Any, 1, &["b-1", "a \"b\"", "any"]));
        assert_eq!(rule("4"), written(First, 1, &["4"]));
        assert_eq!(rule("ANY 1 (7, größe, x$1)"), written(Any, 1, &["7", "größe", "x$1"]));
    }

    #[test]
    fn the_settings_that_it_does_not() {
        let bad = [
            " ",
            "ANY 1 ()",
            "ANY (b)",
            "ANY 0 (b)",
            "0 (b)",
            "b c",
            "b,",
            ",b",
            "ANY 1 (b",
            "ANY 1 b)",
            "b-1",
            "\"b",
            "ANY 1 (b) c",
            "any",
            "first, b",
            "ANY 1 (any)",
            "()",
            "b;c",
            "99999999999999999999999 (b)",
        ];
        for text in bad {
            assert_eq!(parse(text), Err(BadSyncNames), "{text}");
        }
    }

    #[test]
    fn the_table_of_the_manual() {
        // N, k: how many must stand still.
        for (n, k, needed) in [(1, 1, 1), (2, 1, 2), (2, 2, 1), (3, 1, 3), (3, 2, 2), (4, 2, 3)] {
            let names: Vec<String> = (1..=n).map(|i| format!("n{i}")).collect();
            let all: Vec<Arc<str>> = (0..=n).map(|i| format!("n{i}").into()).collect();
            let demand = Demand::new(&SyncRule { method: Method::Any, k, names }, NodeId(0), &all, &[]);
            assert_eq!((demand.n(), demand.needed()), (n, needed), "ANY {k} of {n}");
        }
    }

    #[test]
    fn who_counts_for_what() {
        let both = [NodeId(1), NodeId(2)];
        assert!(demand("ANY 1 (b, c)", &[]).met_by(&both));
        assert!(!demand("ANY 1 (b, c)", &[]).met_by(&both[..1]));
        assert!(demand("ANY 2 (b, c)", &[]).met_by(&both[1..]));
        // Names are compared without regard to case; the primary's own name counts for nothing.
        assert!(demand("ANY 1 (A, B, C)", &[("b", "10.0.0.2")]).met_by(&both));
        // Somebody streams under the primary's name.
        assert!(!demand("ANY 1 (a, b, c)", &[("a", "10.0.0.9")]).met_by(&both));
        // A name that nobody has, and one that two have.
        assert!(!demand("ANY 1 (b, c, x)", &[]).met_by(&both));
        assert!(demand("ANY 2 (b, c, x)", &[]).met_by(&both));
        assert!(!demand("ANY 1 (b, c)", &[("b", "10.0.0.2"), ("b", "10.0.0.9")]).met_by(&both));
        // A connection that the server has not yet given up counts once.
        assert!(demand("ANY 1 (b, c)", &[("b", "10.0.0.2"), ("b", "10.0.0.2")]).met_by(&both));
        // Everyone may acknowledge, also whoever is not configured.
        assert!(demand("*", &[("b", ""), ("c", "")]).met_by(&both));
        assert!(!demand("ANY 2 (*)", &[("b", ""), ("c", "")]).met_by(&both[..1]));
        assert!(!demand("*", &[("b", ""), ("backup", "")]).met_by(&both));
        // FIRST counts like ANY.
        assert!(!demand("b, c", &[]).met_by(&both[..1]));
        // More acknowledgements than names: nothing was acknowledged, but somebody must be there.
        assert!(!demand("ANY 5 (b, c)", &[]).met_by(&[]));
        assert!(!Demand::not_understood("?").met_by(&both));
    }

    #[test]
    fn the_setting_that_is_kept() {
        let kept = |k, nodes: &[(&str, bool)], before: Option<&str>, degrade| {
            let nodes: Vec<Named<'_>> = nodes.iter().map(|(name, streams)| Named { name, streams: *streams }).collect();
            let before = before.map(rule);
            managed(k, &nodes, before.as_ref(), degrade).map_or_else(String::new, |rule| rule.to_string())
        };
        let (both, one, none) = ([("b", true), ("c", true)], [("b", true), ("c", false)], [("b", false), ("c", false)]);
        assert_eq!(kept(1, &both, None, false), r#"ANY 1 ("b", "c")"#);
        // After a failover only who is there is named; who comes back is added, who goes away stays.
        assert_eq!(kept(1, &one, None, false), r#"ANY 1 ("b")"#);
        assert_eq!(kept(1, &both, Some("ANY 1 (b)"), false), r#"ANY 1 ("b", "c")"#);
        assert_eq!(kept(1, &one, Some("ANY 1 (b, c)"), false), r#"ANY 1 ("b", "c")"#);
        // Too few: they are waited for, or not.
        assert_eq!(kept(2, &one, None, false), r#"ANY 2 ("b", "c")"#);
        assert_eq!(kept(1, &none, None, false), r#"ANY 1 ("b")"#);
        assert_eq!(kept(2, &one, Some("ANY 2 (b, c)"), true), r#"ANY 1 ("b")"#);
        assert_eq!(kept(1, &none, Some("ANY 1 (b, c)"), true), "");
        assert_eq!(kept(2, &both, Some("ANY 1 (b)"), true), r#"ANY 2 ("b", "c")"#);
        // What is not ours is replaced.
        assert_eq!(kept(1, &one, Some("FIRST 1 (x, c)"), false), r#"ANY 1 ("b", "c")"#);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(k in 1..9usize, any: bool, names in prop::collection::vec("\\PC{1,9}", 1..6)) {
            let method = if any { Method::Any } else { Method::First };
            let rule = SyncRule { method, k, names };
            prop_assert_eq!(parse(&rule.to_string()), Ok(Some(rule)));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[ANYFIRSTanyfirst0-9 ,()*\"\\\\ü$_;-]{0,40}") {
            let _ = parse(&text);
        }

        /// The rule itself, against every way in which a commit can have been acknowledged.
        #[test]
        fn whoever_is_promoted_has_every_acknowledged_commit(n in 1..7u16, k in 1..7usize, still_bits: u32, acked_bits: u32) {
            let all: Vec<NodeId> = (1..=n).map(NodeId).collect();
            let chosen = |bits: u32| all.iter().copied().filter(|id| bits >> id.0 & 1 == 1).collect::<Vec<_>>();
            let (still, acked) = (chosen(still_bits), chosen(acked_bits));
            let names = all.iter().map(|id| format!("n{}", id.0)).collect();
            let nodes: Vec<Arc<str>> = (0..=n).map(|i| format!("n{i}").into()).collect();
            let demand = Demand::new(&SyncRule { method: Method::Any, k, names }, NodeId(0), &nodes, &[]);
            if acked.len() >= k && demand.met_by(&still) {
                prop_assert!(still.iter().any(|id| acked.contains(id)), "{:?} {:?}", still, acked);
            }
        }

        #[test]
        fn both_are_met_where_the_joint_demand_is(
            first in (1..4usize, 0..16u16), second in (1..4usize, 0..16u16), still_bits: u16,
        ) {
            let demand = |(k, bits): (usize, u16)| {
                let members = (0..4).filter(|i| bits >> i & 1 == 1).map(NodeId).collect();
                Demand { method: Method::Any, k, members, strangers: Vec::new() }
            };
            let still: Vec<NodeId> = (0..4).filter(|i| still_bits >> i & 1 == 1).map(NodeId).collect();
            let (first, second) = (demand(first), demand(second));
            if first.clone().and(&second).met_by(&still) {
                prop_assert!(first.met_by(&still) && second.met_by(&still));
            }
        }
    }
}
