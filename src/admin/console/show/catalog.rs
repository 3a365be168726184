//! SHOW CATALOG: what is known of the functions and relations of each database.
//!
//! Invariant: one row per database, and one more per relation that means the primary. Absent on purpose: the names of
//! functions (there may be thousands; EXPLAIN ROUTE tells of those in a statement).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int8, text};
use super::{Report, Show};
use crate::catalog::Catalog;
use std::sync::Arc;

pub(super) static CATALOG: Show = Show {
    name: "catalog",
    alias: None,
    doc: "What is known of functions and views: per database, and each relation that means the primary, with the reason.",
    own: Some(Report {
        columns: &[
            text("database"),
            text("state"),
            int8("loaded"),
            int8("functions"),
            text("relation"),
            text("reason"),
        ],
        rows,
    }),
    bouncer: None,
};

fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let of = |(database, catalog): &(Arc<str>, Arc<Catalog>)| -> Vec<Row> {
        let (name, facts) = (Value::from(&**database), catalog.facts());
        let state = match catalog.loaded() {
            None => "unknown",
            Some(_) if catalog.is_stale() => "stale",
            Some(_) => "known",
        };
        let loaded = catalog.loaded().map(|then| snapshot.seconds_since(then));
        let functions = loaded.map(|_| facts.functions());
        let first = vec![name.clone(), Value::from(state), loaded.into(), functions.into(), Value::Null, Value::Null];
        let relation = |(schema, relation, why): (&str, &str, &str)| {
            let relation = Value::from(format!("{schema}.{relation}"));
            vec![name.clone(), Value::from(state), loaded.into(), Value::Null, relation, Value::from(why)]
        };
        let mut relations: Vec<_> = facts.special().collect();
        relations.sort_unstable();
        std::iter::once(first).chain(relations.into_iter().map(relation)).collect()
    };
    snapshot.catalogs.iter().flat_map(of).collect()
}
