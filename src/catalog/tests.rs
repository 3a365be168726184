//! What snapshots make of classes.

use super::*;
use crate::sql::{Classifier, Settings, StringSyntax};

fn settings(read: &[&str], write: &[&str]) -> Settings {
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    Settings { classify_bytes_max: 64 << 10, read_functions: list(read), write_functions: list(write) }
}

fn catalog_of(rows: &[(Kind, &str, &str)], settings: &Settings, foreign: bool) -> Catalog {
    let mut all = Rows::default();
    for (kind, relation, text) in rows {
        let (schema, name) = relation.split_once('.').unwrap();
        all.add(*kind, schema, name, text).unwrap();
    }
    Catalog::new(Arc::new(build(all, settings, foreign)), Time::ZERO)
}

fn catalog(rows: &[(Kind, &str, &str)]) -> Catalog {
    catalog_of(rows, &settings(&[], &[]), true)
}

/// "read: why" or "write: why".
fn judged_by(catalog: &Catalog, settings: &Settings, text: &str) -> String {
    let class = Classifier::new(1, settings).classify_by(catalog, text.as_bytes(), StringSyntax::Standard);
    let base = Classifier::new(1, settings).classify(text.as_bytes(), StringSyntax::Standard);
    assert_eq!(catalog.access(&base), class.access, "{text}");
    assert_eq!(catalog.access(&class), class.access, "{text}, judged once more");
    assert_eq!(class.by_text(), base.access, "{text}");
    let word = if class.access == Access::Read { "read" } else { "write" };
    format!("{word}: {}", class.why)
}

fn judged(catalog: &Catalog, text: &str) -> String {
    judged_by(catalog, &settings(&[], &[]), text)
}

const READS: Kind = Kind::Function(Nature::Reads);
const VOLATILE: Kind = Kind::Function(Nature::Volatile);

#[test]
fn functions_are_what_all_their_namesakes_are() {
    let catalog = catalog(&[
        (READS, "app.total", ""),
        (READS, "app.twice", ""),
        (READS, "b.twice", ""),
        (READS, "app.mixed", ""),
        (VOLATILE, "b.mixed", ""),
        (Kind::Function(Nature::NodeLocal), "app.locks", ""),
    ]);
    for (text, expected) in [
        ("SELECT total(1)", "read: function app.total is a read by its volatility"),
        ("SELECT app.total(1)", "read: function app.total is a read by its volatility"),
        ("SELECT * FROM app.total(1) t, twice()", "read: function app.total is a read by its volatility"),
        ("SELECT b.total(1)", "write: function b.total is not known to be a read"),
        ("SELECT mixed()", "write: function b.mixed is volatile"),
        ("SELECT app.mixed()", "read: function app.mixed is a read by its volatility"),
        ("SELECT locks()", "write: function app.locks locks or names what one node knows of itself"),
        ("SELECT unknown()", "write: function unknown is not known to be a read"),
        ("SELECT total(1), unknown()", "write: function total is not known to be a read"),
        ("SELECT \"Total\"(1)", "write: function Total is not known to be a read"),
        ("SELECT 1", "read: select"),
        ("EXPLAIN ANALYZE SELECT total(1)", "read: function app.total is a read by its volatility"),
        ("COPY (SELECT total(1)) TO STDOUT", "read: function app.total is a read by its volatility"),
        ("SELECT total(1); SELECT twice()", "read: function app.total is a read by its volatility"),
    ] {
        assert_eq!(judged(&catalog, text), expected, "{text}");
    }
}

#[test]
fn what_is_a_write_for_another_reason_stays_one() {
    let catalog = catalog(&[(READS, "app.total", ""), (READS, "public.nextval", ""), (READS, "public.total", "")]);
    for text in [
        "SELECT total(1) FROM t FOR UPDATE",
        "SELECT total(1), nextval('s')",
        "SELECT nextval('s'), total(1)",
        "SELECT total(1) INTO x",
        "INSERT INTO t SELECT total(1)",
        "WITH w AS (DELETE FROM t RETURNING total(1)) SELECT * FROM w",
        "CALL total(1)",
        "SELECT total(1); DELETE FROM t",
        "DELETE FROM t; SELECT total(1)",
        "EXECUTE p(total(1))",
        "COPY (SELECT total(1)) TO '/tmp/x'",
        "BEGIN; SELECT total(1)",
        "SELECT total(1), current_setting('port')",
        "SELECT total(1) FROM pg_stat_activity",
        "PREPARE p AS SELECT total(1)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT total(1)",
        "CREATE TABLE x AS SELECT total(1)",
        "SELECT 1 FROM t TABLESAMPLE total(1)",
        "DO $$ begin perform total(1); end $$",
    ] {
        assert!(judged(&catalog, text).starts_with("write: "), "{text}");
    }
}

#[test]
fn nothing_is_a_read_by_an_outdated_snapshot_and_writes_stay() {
    let fresh =
        catalog(&[(READS, "app.total", ""), (VOLATILE, "public.lower", ""), (Kind::Unlogged, "app.u", "app.u")]);
    let stale = fresh.outdated();
    assert_ne!(fresh.version(), stale.version());
    assert!(judged(&fresh, "SELECT total(1)").starts_with("read: "));
    assert_eq!(judged(&stale, "SELECT total(1)"), "write: function total is not known to be a read");
    assert_eq!(judged(&stale, "SELECT lower('A')"), "write: function public.lower is volatile");
    assert_eq!(judged(&stale, "SELECT * FROM u"), "write: relation app.u is unlogged");
    let none = Catalog::default();
    assert!(judged(&none, "SELECT total(1)").starts_with("write: "));
    assert!(judged(&none, "SELECT lower('A') FROM u").starts_with("read: "));
}

#[test]
fn a_volatile_namesake_of_a_built_in_function_counts() {
    let shadowed = catalog(&[(VOLATILE, "public.lower", "")]);
    assert_eq!(judged(&shadowed, "SELECT lower('A')"), "write: function public.lower is volatile");
    assert_eq!(judged(&shadowed, "SELECT pg_catalog.lower('A')"), "read: select");
    assert_eq!(judged(&shadowed, "SELECT upper('A')"), "read: select");
    let harmless = catalog(&[(READS, "public.lower", "")]);
    assert_eq!(judged(&harmless, "SELECT lower('A')"), "read: select");
}

#[test]
fn the_operators_lists_are_stronger() {
    let rows = [(READS, "app.total", ""), (VOLATILE, "app.log", ""), (Kind::View, "app.v", "SELECT app.log()")];
    let own = settings(&["app.log"], &["app.total"]);
    let catalog = catalog_of(&rows, &own, true);
    assert_eq!(judged_by(&catalog, &own, "SELECT app.total(1)"), "write: function app.total is not known to be a read");
    assert_eq!(judged_by(&catalog, &own, "SELECT total(1)"), "write: function total is not known to be a read");
    assert_eq!(judged_by(&catalog, &own, "SELECT app.log()"), "read: select");
    assert_eq!(judged_by(&catalog, &own, "SELECT * FROM v"), "read: select", "its function is listed");
}

#[test]
fn views_are_what_they_reach() {
    let catalog = catalog(&[
        (READS, "app.total", ""),
        (VOLATILE, "app.log", ""),
        (Kind::View, "app.plain", "SELECT lower(t.x), app.total(1) FROM app.t"),
        (Kind::View, "app.seq", "SELECT nextval('s'::regclass) AS nextval"),
        (Kind::View, "app.logs", "SELECT app.log() AS log"),
        (Kind::View, "app.over", "SELECT plain.x FROM app.plain, app.middle"),
        (Kind::View, "app.middle", "SELECT 1 FROM app.seq"),
        (Kind::View, "app.locks", "SELECT 1 FROM app.t FOR UPDATE"),
        (Kind::View, "app.stats", "SELECT 1 FROM pg_stat_activity"),
        (Kind::View, "app.strange", "SELECT app.gone()"),
        (Kind::View, "app.garbage", "SELEC"),
        (Kind::Unlogged, "app.u", "app.u"),
        (Kind::View, "app.of_u", "SELECT 1 FROM app.u"),
    ]);
    for (text, expected) in [
        ("SELECT * FROM plain", "read: select"),
        ("SELECT * FROM app.seq", "write: view app.seq reaches function nextval"),
        ("SELECT * FROM logs", "write: view app.logs reaches function app.log, which is volatile"),
        ("SELECT * FROM over", "write: view app.over reaches function nextval"),
        ("SELECT * FROM locks", "write: view app.locks reaches locks rows"),
        ("SELECT * FROM stats", "write: view app.stats reaches relation pg_stat_activity"),
        ("SELECT * FROM strange", "write: view app.strange reaches function app.gone, which is unknown"),
        ("SELECT * FROM garbage", "write: view app.garbage reaches does not parse"),
        ("SELECT * FROM of_u", "write: view app.of_u reaches app.u, which is unlogged"),
        ("SELECT * FROM other.seq", "read: select"),
        ("TABLE seq", "write: view app.seq reaches function nextval"),
        ("COPY (SELECT 1 FROM seq) TO STDOUT", "write: view app.seq reaches function nextval"),
        ("COPY u TO STDOUT", "write: relation app.u is unlogged"),
        ("SELECT EXISTS (SELECT FROM a JOIN app.seq ON true)", "write: view app.seq reaches function nextval"),
        ("EXPLAIN SELECT * FROM u", "write: relation app.u is unlogged"),
        ("SELECT total(1) FROM seq", "write: view app.seq reaches function nextval"),
    ] {
        assert_eq!(judged(&catalog, text), expected, "{text}");
    }
}

#[test]
fn policies_and_cycles_are_followed() {
    let catalog = catalog(&[
        (VOLATILE, "app.log", ""),
        (Kind::Policy, "app.tenants", "(tenant = current_setting('app.tenant'::text))"),
        (Kind::Policy, "app.watched", "(EXISTS ( SELECT 1 FROM app.ring))"),
        (Kind::View, "app.ring", "SELECT 1 FROM app.watched, app.noisy"),
        (Kind::Policy, "app.noisy", "app.log()"),
        (Kind::Policy, "app.self", "(EXISTS ( SELECT 1 FROM app.self))"),
    ]);
    for (text, expected) in [
        ("SELECT * FROM tenants", "read: select"),
        ("SELECT * FROM self", "read: select"),
        ("SELECT * FROM noisy", "write: a policy of relation app.noisy reaches function app.log, which is volatile"),
        ("SELECT * FROM ring", "write: view app.ring reaches function app.log, which is volatile"),
        (
            "SELECT * FROM watched",
            "write: a policy of relation app.watched reaches function app.log, which is volatile",
        ),
    ] {
        assert_eq!(judged(&catalog, text), expected, "{text}");
    }
}

#[test]
fn children_and_foreign_tables_count_as_the_setting_says() {
    let rows = [
        (Kind::Unlogged, "app.p", "app.p2"),
        (Kind::Foreign, "app.f", "app.f"),
        (Kind::View, "app.far", "SELECT 1 FROM app.f"),
    ];
    let primary = catalog_of(&rows, &settings(&[], &[]), true);
    assert_eq!(judged(&primary, "SELECT 1 FROM p"), "write: relation app.p has the child app.p2, which is unlogged");
    assert_eq!(judged(&primary, "SELECT 1 FROM f"), "write: relation app.f is a foreign table");
    assert_eq!(judged(&primary, "SELECT 1 FROM far"), "write: view app.far reaches app.f, which is a foreign table");
    let any = catalog_of(&rows, &settings(&[], &[]), false);
    assert_eq!(judged(&any, "SELECT 1 FROM f, far"), "read: select");
    assert!(judged(&any, "SELECT 1 FROM p").starts_with("write: "));
}

#[test]
fn too_many_names_are_not_looked_up_and_count() {
    let many: Vec<String> = (0..100).map(|number| format!("t{number}")).collect();
    let text = format!("SELECT 1 FROM {}", many.join(", "));
    assert_eq!(judged(&catalog(&[(READS, "app.f", "")]), &text), "read: select");
    let special = catalog(&[(Kind::Unlogged, "app.u", "app.u")]);
    assert_eq!(judged(&special, &text), "write: it names more than is looked up in the catalog");
    let many: Vec<String> = (0..100).map(|number| format!("f{number}()")).collect();
    let rows: Vec<_> = (0..100).map(|number| (READS, format!("app.f{number}"), "")).collect();
    let rows: Vec<_> = rows.iter().map(|(kind, name, text)| (*kind, name.as_str(), *text)).collect();
    assert!(judged(&catalog(&rows), &format!("SELECT {}", many.join(", "))).starts_with("write: "));
    assert!(judged(&catalog(&rows), &format!("SELECT {}", many[..60].join(", "))).starts_with("read: "));
}

#[test]
fn rows_are_bounded() {
    let mut rows = Rows::default();
    let added = (0..=FUNCTIONS_MAX).map(|number| rows.add(READS, "s", &number.to_string(), "")).collect::<Vec<_>>();
    assert_eq!(added.iter().position(|outcome| outcome.is_err()), Some(FUNCTIONS_MAX));
    let mut rows = Rows::default();
    let long = "x".repeat(TEXT_BYTES_MAX / 2);
    assert!(rows.add(Kind::View, "s", "v", &long).is_ok());
    assert_eq!(rows.add(Kind::View, "s", "w", &long), Err(TooLarge));
}
