//! Where a session is served: redirects of the configuration, then the session's own settings.
//!
//! Computed when one of them changes, not per statement. Pure. Invariants: a setting that is not understood
//! keeps the session on the primary; the first redirect that fits counts. Absent on purpose: which node (`route`).
//!
//! Settings of a session: `default_transaction_read_only`, `default_transaction_isolation`, and ours:
//! `pgregent.target_session_attrs`, `pgregent.consistency`, `pgregent.causal_token`. Nodes keep ours as they keep
//! every setting of an extension.

use super::{Identity, Tunables};
use crate::backend::{Setting, Settings};
use crate::config::{Choice, Consistency, PoolMode, RedirectConfig, TargetSessionAttrs};
use crate::ids::NodeId;
use crate::route::{NodeSet, Reach};
use crate::sql;
use crate::topology::CausalToken;
use std::sync::Arc;

/// Where the session is served.
const TARGET_SESSION_ATTRS: &str = "pgregent.target_session_attrs";
/// How fresh its reads are.
const CONSISTENCY: &str = "pgregent.consistency";
/// What they must show besides.
const CAUSAL_TOKEN: &str = "pgregent.causal_token";
/// The setting that holds the name of a client's program.
const APPLICATION_NAME: &str = "application_name";
/// The setting by which transactions write nothing.
const READ_ONLY: &str = "default_transaction_read_only";

/// What sessions of a role and database begin with, as a node told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Defaults {
    /// `default_transaction_read_only`
    pub read_only: bool,
    /// `default_transaction_isolation = serializable`, which a standby refuses.
    pub serializable: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Preference {
    /// Which roles may serve the session.
    pub reach: Reach,
    /// Nodes that its reads prefer.
    pub nodes: NodeSet,
    /// How fresh its reads are.
    pub consistency: Consistency,
    /// What it must be able to read besides its own writes.
    pub token: Option<CausalToken>,
    /// Its transactions are read-only unless they say otherwise.
    pub read_only: bool,
    /// What it was made of.
    settings: Arc<Settings>,
    generation: u64,
}

impl Preference {
    /// For a session with these settings.
    pub fn new(tunables: &Tunables, identity: &Identity, settings: &Arc<Settings>, defaults: Defaults) -> Self {
        let value = |name: &str| settings.entries().iter().find(|entry| *entry.name == *name).map(value_of);
        let redirect = redirect_of(tunables, identity, settings);
        let mut attrs = redirect.map(|redirect| redirect.target_session_attrs).unwrap_or_default();
        let (mut consistency, mut token, mut understood) = (tunables.consistency, None, true);
        for entry in settings.entries().iter().filter(|entry| is_ours(&entry.name)) {
            match value_of(entry).and_then(|value| Ours::parse(&entry.name, &value)) {
                Some(Ours::Unset) => {}
                Some(Ours::Attrs(own)) => attrs = own,
                Some(Ours::Consistency(own)) => consistency = own,
                Some(Ours::Token(own)) => token = Some(own),
                None => understood = false,
            }
        }
        let read_only = value(READ_ONLY).map_or(Some(defaults.read_only), |own| own.as_deref().and_then(flag));
        let serializable = value("default_transaction_isolation")
            .map_or(defaults.serializable, |own| own.is_none_or(|own| own.eq_ignore_ascii_case("serializable")));
        // Rules of relations fire by this role.
        let replaying = settings.contains("session_replication_role");
        let whole = tunables.split && tunables.mode != PoolMode::Session;
        let reach = match attrs {
            TargetSessionAttrs::Standby => Reach::Standby,
            TargetSessionAttrs::ReadWrite | TargetSessionAttrs::Primary => Reach::Primary,
            TargetSessionAttrs::Any | TargetSessionAttrs::ReadOnly | TargetSessionAttrs::PreferStandby
                if whole && understood && !serializable && !replaying =>
            {
                Reach::Split
            }
            TargetSessionAttrs::Any | TargetSessionAttrs::ReadOnly | TargetSessionAttrs::PreferStandby => {
                Reach::Primary
            }
        };
        let nodes = redirect.map_or(NodeSet::ALL, |redirect| nodes_of(tunables, redirect));
        let (settings, generation) = (Arc::clone(settings), tunables.generation);
        Self { reach, nodes, consistency, token, read_only: read_only == Some(true), settings, generation }
    }

    /// Was it made of other settings, or another configuration?
    pub fn is_outdated(&self, tunables: &Tunables, settings: &Arc<Settings>) -> bool {
        self.generation != tunables.generation || !Arc::ptr_eq(&self.settings, settings)
    }
}

/// What to write, for a client whose setting of ours is refused.
pub(super) const OURS_HINT: &str = "Sessions can set pgregent.target_session_attrs (any, read-write, read-only, \
    primary, standby, prefer-standby), pgregent.consistency (eventual, session, global) and pgregent.causal_token (as \
    SHOW tells it), not with SET LOCAL.";

/// A setting of ours.
enum Ours {
    /// RESET leaves it behind empty.
    Unset,
    Attrs(TargetSessionAttrs),
    Consistency(Consistency),
    Token(CausalToken),
}

impl Ours {
    fn parse(name: &str, value: &str) -> Option<Self> {
        match name {
            TARGET_SESSION_ATTRS | CONSISTENCY | CAUSAL_TOKEN if value.is_empty() => Some(Self::Unset),
            TARGET_SESSION_ATTRS => TargetSessionAttrs::of_word(value).map(Self::Attrs),
            CONSISTENCY => Consistency::of_word(value).map(Self::Consistency),
            CAUSAL_TOKEN => value.parse().ok().map(Self::Token),
            _ => None,
        }
    }
}

/// Does the setting say where the session is served?
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with("pgregent.")
}

/// Is it one of ours, and does the value mean something?
pub(super) fn is_valid(name: &str, value: &str) -> bool {
    Ours::parse(name, value).is_some()
}

/// The first of these settings that is ours and means nothing.
pub(super) fn senseless(settings: &Settings) -> Option<Arc<str>> {
    let means_nothing =
        |entry: &&Setting| is_ours(&entry.name) && !value_of(entry).is_some_and(|value| is_valid(&entry.name, &value));
    settings.entries().iter().find(means_nothing).map(|entry| Arc::clone(&entry.name))
}

/// The settings that a session begins with: what the client brought along, and what its redirect adds.
pub(super) fn with_redirect(tunables: &Tunables, identity: &Identity, startup: Settings) -> Settings {
    let read_only = redirect_of(tunables, identity, &startup)
        .is_some_and(|redirect| redirect.target_session_attrs == TargetSessionAttrs::ReadOnly);
    if read_only && !startup.contains(READ_ONLY) {
        startup.with(Setting::from_value(READ_ONLY, b"on"))
    } else {
        startup
    }
}

fn redirect_of<'t>(tunables: &'t Tunables, identity: &Identity, settings: &Settings) -> Option<&'t RedirectConfig> {
    if tunables.redirects.is_empty() {
        return None;
    }
    let application_name = settings.entries().iter().find(|entry| &*entry.name == APPLICATION_NAME).and_then(value_of);
    let application_name = application_name.as_deref().unwrap_or_default();
    tunables.redirects.iter().find(|redirect| {
        let fits = |patterns: &[crate::config::Pattern], name: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
        };
        fits(&redirect.users, &identity.user)
            && fits(&redirect.databases, &identity.database)
            && fits(&redirect.application_names, application_name)
            && (redirect.port.is_none() || redirect.port == identity.port)
    })
}

fn nodes_of(tunables: &Tunables, redirect: &RedirectConfig) -> NodeSet {
    if redirect.nodes.is_empty() {
        return NodeSet::ALL;
    }
    let place = |name: &String| tunables.node_names.iter().position(|known| **known == **name);
    redirect.nodes.iter().filter_map(place).filter_map(|place| u16::try_from(place).ok().map(NodeId)).collect()
}

/// The value that a setting's statement gives it; `None`: the text does not plainly tell.
fn value_of(entry: &Setting) -> Option<String> {
    sql::set_value(&entry.sql)
}

/// A Boolean as PostgreSQL reads it: words may be cut short (`parse_bool` in its sources).
fn flag(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let begins = |word: &str| !text.is_empty() && word.starts_with(&text);
    match text.as_str() {
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        _ if begins("true") || begins("yes") => Some(true),
        _ if begins("false") || begins("no") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const CONFIG: &str = r#"
        [[node]]
        name = "pg1"
        address = "127.0.0.1:1"
        [[node]]
        name = "pg2"
        address = "127.0.0.1:2"
        [server]
        listen = ["127.0.0.1:5432", "127.0.0.1:5433"]
        [auth]
        method = "trust"
        [[route.redirect]]
        name = "port"
        port = 5433
        target_session_attrs = "standby"
        [[route.redirect]]
        name = "reports"
        user = ["/^rep"]
        database = ["app"]
        target_session_attrs = "read-only"
        nodes = ["pg2"]
        [[route.redirect]]
        name = "batch"
        application_name = ["batch"]
        target_session_attrs = "primary"
    "#;

    fn made(user: &str, port: u16, settings: &[(&str, &str)], defaults: Defaults) -> Preference {
        let config = Config::parse(CONFIG, "test").expect("a valid configuration");
        let tunables = Tunables::new(&config, 1);
        let identity = Identity { user: user.into(), database: "app".into(), port: Some(port) };
        let entries = settings.iter().map(|(name, value)| Setting::from_value(name, value.as_bytes()));
        let settings = Arc::new(with_redirect(&tunables, &identity, Settings::new(entries)));
        Preference::new(&tunables, &identity, &settings, defaults)
    }

    fn reach(settings: &[(&str, &str)]) -> Reach {
        made("app", 5432, settings, Defaults::default()).reach
    }

    #[test]
    fn the_first_redirect_that_fits_counts() {
        let plain = Defaults::default();
        let here = made("app", 5432, &[], plain);
        assert_eq!((here.reach, here.nodes, here.read_only), (Reach::Split, NodeSet::ALL, false));
        assert_eq!(made("reporter", 5433, &[], plain).reach, Reach::Standby);
        let reports = made("reporter", 5432, &[], plain);
        assert_eq!((reports.reach, reports.read_only), (Reach::Split, true));
        assert!(reports.nodes.contains(NodeId(1)) && !reports.nodes.contains(NodeId(0)));
        assert!(!made("reporter", 5432, &[(READ_ONLY, "off")], plain).read_only);
        assert_eq!(reach(&[("application_name", "batch")]), Reach::Primary);
        assert_eq!(reach(&[("application_name", "batches")]), Reach::Split);
    }

    #[test]
    fn settings_of_the_session_come_before_redirects_and_what_is_not_understood_stays_on_the_primary() {
        let attrs = TARGET_SESSION_ATTRS;
        assert_eq!(reach(&[(attrs, "standby")]), Reach::Standby);
        assert_eq!(reach(&[(attrs, "prefer-standby")]), Reach::Split);
        assert_eq!(reach(&[(attrs, "standbys")]), Reach::Primary);
        assert_eq!(reach(&[(attrs, "")]), Reach::Split);
        assert_eq!(reach(&[("application_name", "batch"), (attrs, "any")]), Reach::Split);
        assert_eq!(reach(&[("pgregent.consistency", "strong")]), Reach::Primary);
        assert_eq!(reach(&[("pgregent.causal_token", "yesterday")]), Reach::Primary);
        let own = [("pgregent.consistency", "global"), ("pgregent.causal_token", "1/0/10")];
        let made = made("app", 5432, &own, Defaults::default());
        assert_eq!((made.consistency, made.token), (Consistency::Global, Some("1/0/10".parse().unwrap())));
    }

    #[test]
    fn what_transactions_are_by_default_decides_where_they_can_run() {
        let serializable = Defaults { serializable: true, read_only: true };
        assert_eq!(made("app", 5432, &[], serializable).reach, Reach::Primary);
        let own = [("default_transaction_isolation", "repeatable read"), (READ_ONLY, "no")];
        let plain = made("app", 5432, &own, serializable);
        assert_eq!((plain.reach, plain.read_only), (Reach::Split, false));
        assert_eq!(reach(&[("default_transaction_isolation", "Serializable")]), Reach::Primary);
        assert!(made("app", 5432, &[(READ_ONLY, "TRUE")], Defaults::default()).read_only);
        assert_eq!(reach(&[("session_replication_role", "replica")]), Reach::Primary);
    }

    #[test]
    fn flags_read_as_postgresql_reads_them() {
        for (text, want) in [("on", true), ("t", true), ("Ye", true), ("1", true), ("of", false), ("N", false)] {
            assert_eq!(flag(text), Some(want), "{text}");
        }
        for text in ["", "o", "maybe", "2"] {
            assert_eq!(flag(text), None, "{text}");
        }
    }
}
