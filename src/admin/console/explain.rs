//! EXPLAIN ROUTE: where a statement would go now, and why.
//!
//! Invariants: the statement is classified and the node is chosen by the very code that serves clients, under the
//! settings in use; nothing is sent to a node. Absent on purpose: what one client's session adds (its own writes,
//! pins, an open transaction, settings): the console has no such session, and says so.

use super::snapshot::Snapshot;
use super::table::{Column, Row, Value, text};
use crate::catalog::Catalog;
use crate::config::PoolMode;
use crate::route::{
    Balancing, Dice, NoRoute, Reach, Reason, Service, Share, Vitals, WHOLE, Wishes, choose, classifier_settings,
};
use crate::sql::{Access, Classification, Classifier, PinReason, StringSyntax};
use crate::topology::{Health, NodeView, Role};
use std::sync::Arc;

/// What its rows look like.
pub(super) const COLUMNS: [Column; 2] = [text("item"), text("value")];

/// The rows for a statement. `(DATABASE name)` in front of it says which catalog counts; without it that of the only
/// database in use does.
pub(super) fn explain(snapshot: &Snapshot, text: &str) -> Vec<Row> {
    let settings = classifier_settings(&snapshot.config.route);
    let (database, statement) = split(text);
    let catalog = match (&database, snapshot.catalogs.as_slice()) {
        (Some(name), known) => known.iter().find(|(known, _)| **known == *name.as_str()),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    let judge = catalog.map_or_else(Arc::default, |(_, catalog)| Arc::clone(catalog));
    let class = Classifier::new(1, &settings).classify_by(&*judge, statement.as_bytes(), StringSyntax::Standard);
    let asked = class.wanted();
    let mut rows = Vec::new();
    let mut add = |item: String, value: String| rows.push(vec![Value::from(item), Value::from(value)]);
    add("statement is a".into(), word(class.access).into());
    add("because".into(), class.why.to_string());
    add("catalog".into(), evidence(snapshot, catalog));
    if class.asks_for_primary() {
        add("hint".into(), "its comment asks for the primary".into());
    }
    if class.hint_ignored {
        add("hint".into(), "a comment is nearly a hint, and was ignored".into());
    }
    for (item, value) in session_effects(&class) {
        add(item.into(), value);
    }
    for view in &snapshot.topology.nodes {
        add(format!("node {}", view.name), verdict(snapshot, asked, view).1);
    }
    add("goes to".into(), choice(snapshot, asked));
    add("not considered".into(), "what a session wrote or holds, its transaction and its settings".into());
    rows
}

/// The database that is named in front, and the statement.
fn split(text: &str) -> (Option<String>, &str) {
    let named = || {
        let rest = text.strip_prefix('(')?.trim_start();
        let (word, rest) = rest.split_once(char::is_whitespace)?;
        let rest = rest.trim_start();
        if let Some(quoted) = rest.strip_prefix('"') {
            let (name, rest) = quoted.split_once('"')?;
            return Some((word, name.to_owned(), rest.trim_start().strip_prefix(')')?));
        }
        let (name, rest) = rest.split_once(')')?;
        Some((word, name.trim().to_lowercase(), rest))
    };
    match named() {
        Some((word, name, statement)) if word.eq_ignore_ascii_case("database") => (Some(name), statement.trim_start()),
        _ => (None, text),
    }
}

/// Which catalog has judged.
fn evidence(snapshot: &Snapshot, catalog: Option<&(Arc<str>, Arc<Catalog>)>) -> String {
    let Some((database, catalog)) = catalog else {
        return "none: EXPLAIN ROUTE (DATABASE name) statement names one".to_owned();
    };
    let stale = if catalog.is_stale() { ", and functions may have changed since" } else { "" };
    match catalog.loaded() {
        Some(then) => format!("that of {database}, read {} s ago{stale}", snapshot.seconds_since(then)),
        None => format!("that of {database} is not known"),
    }
}

fn word(access: Access) -> &'static str {
    if access == Access::Read { "read" } else { "write" }
}

/// What it would leave behind.
fn session_effects(class: &Classification) -> Vec<(&'static str, String)> {
    let effects = &class.effects;
    let mut told = Vec::new();
    let pins = PinReason::ALL.into_iter().filter(|reason| effects.pins.contains(*reason));
    let pins: Vec<_> = pins.map(PinReason::label).collect();
    if !pins.is_empty() {
        told.push(("pins the session", pins.join(", ")));
    }
    if effects.uncertain {
        told.push(("afterwards", "the backend is asked what it did to the session".to_owned()));
    }
    if !class.functions.is_empty() {
        told.push(("functions nobody vouches for", class.functions.join(", ")));
    }
    told
}

fn splits(snapshot: &Snapshot) -> bool {
    snapshot.config.route.read_write_split && snapshot.config.pool.mode != PoolMode::Session
}

/// May this node take it, as far as anybody knows before a session asks, and why?
fn verdict(snapshot: &Snapshot, access: Access, view: &NodeView) -> (bool, String) {
    let no = |why: String| (false, format!("no: {why}"));
    if view.role == Role::Primary {
        return match access {
            Access::Write => (true, "yes: it is the primary".to_owned()),
            Access::Read if !splits(snapshot) => (true, "yes: reads are not split".to_owned()),
            Access::Read => (false, "only if no standby can".to_owned()),
        };
    }
    if access == Access::Write {
        return no("it is not the primary".to_owned());
    }
    if !splits(snapshot) {
        return no("reads are not split ([route] read_write_split, [pool] mode)".to_owned());
    }
    if !view.accepts_reads || view.role != Role::Standby {
        let note = view.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
        return no(format!("{}, takes no reads{note}", view.health.word()));
    }
    let (share, vitals) = (Balancing::from_config(&snapshot.config).share(view.id), snapshot.vitals(view.id));
    if share.weight == 0 {
        return no("weight 0".to_owned());
    }
    match (vitals.service, vitals.ejected) {
        (Service::Enabled, _) if view.health != Health::Healthy => {
            return (false, format!("only if no healthy standby can: {}", view.health.word()));
        }
        (Service::Enabled, None) => {}
        (Service::Enabled, Some(why)) => {
            return (false, format!("only if no other standby can: ejected for a while because it is {}", why.word()));
        }
        (service, _) => return no(format!("{}, by an operator", service.word())),
    }
    let behind = view.lag_bytes.unwrap_or(0);
    let told = told(share, &vitals);
    (true, format!("yes, if it has replayed the session's writes (replayed {behind} bytes behind{told})"))
}

/// What the balance goes by.
fn told(share: Share, vitals: &Vitals) -> String {
    let mut told = format!(", {} units in flight", vitals.in_flight);
    if let Some(latency) = vitals.latency {
        told += &format!(", reads take {:.1} ms", latency.span().as_secs_f64() * 1e3);
    }
    if vitals.share < WHOLE {
        told += &format!(", starting: {} % of its share", vitals.share * 100 / WHOLE);
    }
    if !share.local {
        told += ", in another zone";
    }
    told
}

/// What is chosen for a session without writes of its own.
fn choice(snapshot: &Snapshot, access: Access) -> String {
    let reach = if splits(snapshot) { Reach::Split } else { Reach::Primary };
    let wishes = Wishes { reach, ..Wishes::new(access) };
    let balancing = Balancing::from_config(&snapshot.config);
    match choose(&wishes, &snapshot.topology, &balancing, |node| snapshot.vitals(node), &mut Dice::new(1)) {
        Err(NoRoute::Held { why }) => format!("nowhere now, it waits: {why}"),
        Err(NoRoute::NotFresh) => "it waits for a fresher standby".to_owned(),
        Err(NoRoute::Refused { why }) => format!("nowhere, it is refused: {why}"),
        Ok(target) if target.reason == Reason::Read => {
            let fit = |view: &&NodeView| view.role == Role::Standby && verdict(snapshot, access, view).0;
            let names: Vec<&str> = snapshot.topology.nodes.iter().filter(fit).map(|view| &*view.name).collect();
            let names = if names.is_empty() { snapshot.node_name(target.node).to_owned() } else { names.join(" or ") };
            format!("{names} (read)")
        }
        Ok(target) => format!("{} ({})", snapshot.node_name(target.node), target.reason.label()),
    }
}
