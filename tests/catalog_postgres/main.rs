//! What functions and views of a real database do decides where they run, as the catalog says and as it changes.
//!
//! Every text tells the port of the node that answered it; what a volatile function does here would succeed on a standby
//! as well, so that only the proxy's knowledge keeps it away from there. Absent on purpose: what names mean to
//! snapshots in every combination (unit tests of `catalog`).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};
use support::cluster::{APP_PASSWORD, Cluster, shared};
use support::message::{batch, bind, execute, parse, sync};
use support::proxy::{Proxy, ProxySpec};
use support::rawclient::{Login, RawClient};
use support::wait_for;

/// How long a change may take to be known. Loading takes a fraction of a second; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);
/// Ends every text.
const PORT: &str = "inet_server_port()";

/// Where a text runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ran {
    Primary,
    Standby,
}
use Ran::{Primary, Standby};

fn ran(cluster: &Cluster, port: &str) -> Ran {
    if port == cluster.primary().to_string() { Primary } else { Standby }
}

/// Where `SELECT {what}, port` runs.
fn place(cluster: &Cluster, client: &mut RawClient, what: &str) -> Ran {
    let select = what.replacen("PORT", PORT, 1);
    let answer = client.simple(&select).unwrap_or_else(|gone| panic!("{select}: {gone:?}"));
    ran(cluster, answer.rows[0].last().unwrap().as_deref().unwrap())
}

/// Each text must come to run there, and then stay.
fn expect(cluster: &Cluster, client: &mut RawClient, expected: &[(&str, Ran)]) {
    for (what, there) in expected {
        wait_for(&format!("{what} on the {there:?}"), LIMIT, || place(cluster, client, what) == *there);
    }
    for (what, there) in expected {
        assert_eq!(place(cluster, client, what), *there, "{what}");
    }
}

fn start(cluster: &Cluster, settings: &[(&str, &str)]) -> Proxy {
    let mut spec = ProxySpec::in_front_of(cluster).set("route.consistency", "\"eventual\"");
    for (key, value) in settings {
        spec = spec.set(key, value);
    }
    spec.start_splitting()
}

/// How many looks at catalogs ended so.
fn loads(proxy: &Proxy, result: &str) -> u64 {
    let (_, metrics) = proxy.http("/metrics").unwrap();
    let name = format!("pgregent_catalog_loads_total{{result=\"{result}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

/// Runs statements behind the proxy's back, as the owner of the database's objects.
fn directly(cluster: &Cluster, sql: &str) {
    let mut superuser = cluster.superuser("app");
    for statement in sql.split(";;") {
        superuser.simple(statement).unwrap_or_else(|gone| panic!("{statement}: {gone:?}"));
    }
    cluster.wait_replayed();
}

const FUNCTIONS: &str = "
    CREATE SCHEMA calls; GRANT USAGE ON SCHEMA calls TO app;
    CREATE FUNCTION calls.steady() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION calls.fixed(n int) RETURNS int IMMUTABLE SECURITY DEFINER LANGUAGE plpgsql AS 'BEGIN RETURN n; END';
    CREATE FUNCTION calls.moody() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION calls.locker() RETURNS int STABLE LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN 1; END';
    CREATE FUNCTION calls.\"in(direct\"() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN calls.locker(); END';
    CREATE FUNCTION calls.inner_sql() RETURNS int STABLE LANGUAGE sql BEGIN ATOMIC; SELECT calls.\"in(direct\"(); END;
    CREATE FUNCTION calls.both(n int) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION calls.both(t text) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION public.upper(n int) RETURNS int LANGUAGE sql AS 'SELECT n';
    CREATE FUNCTION calls.add(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + $2';
    CREATE FUNCTION calls.add_moody(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN $1 + $2; END';
    CREATE AGGREGATE calls.total(int) (SFUNC = calls.add, STYPE = int, INITCOND = 0);
    CREATE AGGREGATE calls.total_moody(int) (SFUNC = calls.add_moody, STYPE = int, INITCOND = 0)";

#[test]
fn functions_run_where_their_volatility_says() {
    let cluster = shared();
    directly(cluster, FUNCTIONS);
    let proxy = start(cluster, &[]);
    let mut client = proxy.client();
    expect(
        cluster,
        &mut client,
        &[
            ("SELECT calls.steady(), PORT", Standby),
            ("SELECT calls.fixed(2), PORT", Standby),
            ("SELECT * FROM calls.fixed(2), PORT", Standby),
            ("SELECT calls.total(n), PORT FROM generate_series(1, 3) n", Standby),
            ("SELECT calls.moody(), PORT", Primary),
            ("SELECT calls.steady() + calls.moody(), PORT", Primary),
            ("SELECT calls.steady(), PORT FOR UPDATE", Primary),
            ("SELECT calls.locker(), PORT", Primary),
            ("SELECT calls.\"in(direct\"(), PORT", Primary),
            ("SELECT calls.inner_sql(), PORT", Primary),
            ("SELECT calls.both(1), PORT", Primary),
            ("SELECT calls.total_moody(n), PORT FROM generate_series(1, 3) n", Primary),
            ("SELECT upper(1), PORT", Primary),
            ("SELECT upper('a'), PORT", Primary),
            ("SELECT lower('A'), PORT", Standby),
            ("SELECT pg_catalog.upper('a'), PORT", Standby),
        ],
    );
    assert_eq!(client.value("SET search_path = calls; SELECT 'set'"), "set");
    expect(cluster, &mut client, &[("SELECT steady(), PORT", Standby), ("SELECT moody(), PORT", Primary)]);
    let (_, metrics) = proxy.http("/metrics").unwrap();
    assert!(metrics.contains("pgregent_catalogs 1"), "{metrics}");
    proxy.assert_no_panic();
}

/// Runs a statement that was prepared before.
fn run_prepared(cluster: &Cluster, client: &mut RawClient) -> Ran {
    client.send(&batch(&[bind("", "kept", &[]), execute("", 0), sync()])).unwrap();
    let answer = client.answer().unwrap();
    ran(cluster, answer.rows[0].last().unwrap().as_deref().unwrap())
}

#[test]
fn changes_are_seen_whoever_makes_them() {
    let cluster = shared();
    directly(
        cluster,
        "CREATE SCHEMA moves AUTHORIZATION app;;
         SET ROLE app; CREATE FUNCTION moves.f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'; RESET ROLE",
    );
    let proxy = start(cluster, &[("route.catalog_interval", "\"500ms\"")]);
    let (mut client, mut other) = (proxy.client(), proxy.client());
    // Prepared before anything is known: it profits all the same.
    client.send(&batch(&[parse("kept", &format!("SELECT moves.f(), {PORT}")), sync()])).unwrap();
    client.answer().unwrap();
    let text = "SELECT moves.f(), PORT";
    expect(cluster, &mut client, &[(text, Standby)]);
    wait_for("the prepared statement on a standby", LIMIT, || run_prepared(cluster, &mut client) == Standby);
    let replace = |volatility: &str| {
        format!("CREATE OR REPLACE FUNCTION moves.f() RETURNS int {volatility} LANGUAGE sql AS 'SELECT 1'")
    };
    // Through the proxy: from the next statement on, before anything was read again.
    other.simple(&replace("VOLATILE")).unwrap();
    for _ in 0..20 {
        assert_eq!(place(cluster, &mut client, text), Primary);
        assert_eq!(run_prepared(cluster, &mut client), Primary);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(place(cluster, &mut client, text), Primary, "it was read again");
    other.simple(&replace("STABLE")).unwrap();
    expect(cluster, &mut client, &[(text, Standby)]);
    // In a transaction: not before it is committed, and then at once.
    other.simple("BEGIN").unwrap();
    other.simple(&replace("VOLATILE")).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    other.simple("COMMIT").unwrap();
    assert_eq!(place(cluster, &mut client, text), Primary);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(place(cluster, &mut client, text), Primary);
    // Behind the proxy's back: at the next look.
    directly(cluster, &replace("STABLE"));
    expect(cluster, &mut client, &[(text, Standby)]);
    directly(cluster, &replace("VOLATILE"));
    expect(cluster, &mut client, &[(text, Primary)]);
    wait_for("the prepared statement on the primary", LIMIT, || run_prepared(cluster, &mut client) == Primary);
}

#[test]
fn the_operator_and_the_monitors_rights_decide() {
    let cluster = shared();
    directly(
        cluster,
        "CREATE SCHEMA lists; GRANT USAGE ON SCHEMA lists TO app;
         CREATE FUNCTION lists.steady() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION lists.other() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION lists.moody() RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE VIEW lists.v AS SELECT lists.moody() AS n; GRANT SELECT ON lists.v TO app",
    );
    let lists = [
        ("route.read_functions", "[\"lists.moody\"]"),
        ("route.write_functions", "[\"steady\"]"),
        ("route.catalog_interval", "\"0s\""),
    ];
    let proxy = start(cluster, &lists);
    let mut client = proxy.client();
    expect(
        cluster,
        &mut client,
        &[
            ("SELECT lists.other(), PORT", Standby),
            ("SELECT lists.moody(), PORT", Standby),
            ("SELECT lists.steady(), PORT", Primary),
        ],
    );
    let off = start(cluster, &[("route.catalog", "false")]);
    let mut client = off.client();
    // Nobody may connect as the monitor: as without a catalog, and it is counted.
    directly(cluster, "REVOKE CONNECT ON DATABASE app FROM PUBLIC");
    let shut = start(cluster, &[]);
    let mut stranger = shut.client();
    let counted = || {
        let (_, metrics) = shut.http("/metrics").unwrap();
        metrics.contains("pgregent_catalog_loads_total{result=\"rejected\"} 1")
    };
    wait_for("the monitor is refused", LIMIT, counted);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        for client in [&mut client, &mut stranger] {
            assert_eq!(place(cluster, client, "SELECT lists.other(), PORT"), Primary);
            assert_eq!(place(cluster, client, "SELECT lower('A'), PORT"), Standby);
        }
    }
    directly(cluster, "GRANT CONNECT ON DATABASE app TO PUBLIC");
    let (_, metrics) = off.http("/metrics").unwrap();
    assert!(metrics.contains("pgregent_catalogs 0"), "{metrics}");
}

const RELATIONS: &str = "
    CREATE SCHEMA shapes; GRANT USAGE ON SCHEMA shapes TO app;
    CREATE TABLE shapes.plain (n int); INSERT INTO shapes.plain VALUES (1);
    CREATE SEQUENCE shapes.numbers;
    CREATE FUNCTION shapes.moody() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION shapes.steady() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE VIEW shapes.harmless AS SELECT upper(n::text) AS t, shapes.steady() AS n, now() FROM shapes.plain;
    CREATE VIEW shapes.drawing AS SELECT nextval('shapes.numbers') AS n;
    CREATE VIEW shapes.moods AS SELECT n FROM shapes.plain WHERE n = shapes.moody();
    CREATE VIEW shapes.outer_moods AS SELECT m.n FROM shapes.harmless h JOIN shapes.moods m ON m.n = h.n;
    CREATE RULE insert_instead AS ON INSERT TO shapes.harmless DO INSTEAD SELECT nextval('shapes.numbers');
    CREATE UNLOGGED TABLE shapes.quick (n int); INSERT INTO shapes.quick VALUES (1);
    CREATE TABLE shapes.parted (n int) PARTITION BY RANGE (n);
    CREATE TABLE shapes.parted_a PARTITION OF shapes.parted FOR VALUES FROM (0) TO (5);
    CREATE UNLOGGED TABLE shapes.parted_b PARTITION OF shapes.parted FOR VALUES FROM (5) TO (9);
    CREATE VIEW shapes.of_parted AS SELECT n FROM shapes.parted;
    CREATE TABLE shapes.guarded (n int); ALTER TABLE shapes.guarded ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON shapes.guarded FOR SELECT USING (n = shapes.moody());
    CREATE TABLE shapes.tenants (n int); ALTER TABLE shapes.tenants ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON shapes.tenants USING (n::text IS DISTINCT FROM current_setting('app.tenant', true))
        WITH CHECK (n = shapes.moody());
    CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
    CREATE FOREIGN TABLE shapes.lines (line text) SERVER files OPTIONS (filename '/etc/hostname');
    GRANT SELECT ON ALL TABLES IN SCHEMA shapes TO app; GRANT USAGE ON SEQUENCE shapes.numbers TO app";

#[test]
fn relations_run_where_what_they_reach_can() {
    let cluster = shared();
    directly(cluster, RELATIONS);
    let proxy = start(cluster, &[]);
    let (mut client, mut other) = (proxy.client(), proxy.client());
    expect(
        cluster,
        &mut client,
        &[
            ("SELECT count(*), PORT FROM shapes.plain", Standby),
            ("SELECT count(*), PORT FROM shapes.harmless", Standby),
            ("SELECT count(*), PORT FROM shapes.tenants", Standby),
            ("SELECT count(*), PORT FROM shapes.parted_a", Standby),
            ("SELECT count(n), PORT FROM shapes.drawing", Primary),
            ("SELECT count(*), PORT FROM shapes.moods", Primary),
            ("SELECT count(*), PORT FROM shapes.outer_moods", Primary),
            ("SELECT count(*), PORT FROM shapes.guarded", Primary),
            ("SELECT count(*), PORT FROM shapes.quick", Primary),
            ("SELECT count(*), PORT FROM shapes.parted", Primary),
            ("SELECT count(*), PORT FROM shapes.of_parted", Primary),
            ("SELECT count(*), PORT FROM shapes.lines", Primary),
            ("WITH x AS (SELECT * FROM shapes.plain) SELECT x.n, PORT FROM x, shapes.quick q WHERE q.n = 1", Primary),
        ],
    );
    let reruns = |proxy: &Proxy| {
        let (_, metrics) = proxy.http("/metrics").unwrap();
        let lines = metrics.lines().filter(|line| line.starts_with("pgregent_reruns_total")).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    let before = reruns(&proxy);
    for _ in 0..10 {
        assert_eq!(place(cluster, &mut client, "SELECT count(*), PORT FROM shapes.parted"), Primary);
    }
    assert_eq!(reruns(&proxy), before, "known, not found out by a standby's refusal");
    // A table becomes unlogged and logged again, through the proxy; the view over it follows.
    other.simple("BEGIN; CREATE TABLE app_own (n int); COMMIT; CREATE VIEW app_view AS SELECT * FROM app_own").unwrap();
    cluster.wait_replayed();
    let over = "SELECT count(*), PORT FROM app_view";
    expect(cluster, &mut client, &[(over, Standby)]);
    // Read by nobody until it is known: what a standby refuses is learned, whatever the catalog says later.
    let before = loads(&proxy, "loaded");
    other.simple("ALTER TABLE app_own SET UNLOGGED").unwrap();
    wait_for("the catalog is read again", LIMIT, || loads(&proxy, "loaded") > before);
    expect(cluster, &mut client, &[(over, Primary)]);
    other.simple("ALTER TABLE app_own SET LOGGED").unwrap();
    cluster.wait_replayed();
    expect(cluster, &mut client, &[(over, Standby)]);
    let any = start(cluster, &[("route.foreign_tables", "\"any\"")]);
    let mut client = any.client();
    let known = [("SELECT count(*), PORT FROM shapes.quick", Primary)];
    expect(cluster, &mut client, &known);
    expect(cluster, &mut client, &[("SELECT count(*), PORT FROM shapes.lines", Standby)]);
    for proxy in [proxy, any] {
        proxy.assert_no_panic();
    }
}

#[test]
fn temporary_tables_cause_few_looks_and_the_console_tells() {
    let cluster = shared();
    directly(cluster, "CREATE FUNCTION public.told() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    let proxy = start(cluster, &[("route.catalog_interval", "\"0s\""), ("admin.console_users", "[\"app\"]")]);
    let mut client = proxy.client();
    expect(cluster, &mut client, &[("SELECT told(), PORT", Standby)]);
    let before = loads(&proxy, "loaded");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        client.simple("BEGIN; CREATE TEMP TABLE t (n int) ON COMMIT DROP; COMMIT").unwrap();
        assert_eq!(place(cluster, &mut client, "SELECT told(), PORT"), Standby, "it makes nothing stale");
    }
    assert_eq!(loads(&proxy, "loaded"), before);
    assert!(loads(&proxy, "unchanged") <= 6, "{} looks", loads(&proxy, "unchanged"));
    let mut console = RawClient::login(proxy.port, &Login::new("app", APP_PASSWORD, "pgregent")).unwrap();
    let explain = |console: &mut RawClient, text: &str| {
        let rows = console.simple(&format!("EXPLAIN ROUTE {text}")).unwrap().rows;
        let value = |item: &str| rows.iter().find(|row| row[0].as_deref() == Some(item)).unwrap()[1].clone().unwrap();
        (value("statement is a"), value("because"))
    };
    let read = ("read".to_owned(), "function public.told is a read by its volatility".to_owned());
    assert_eq!(explain(&mut console, "(DATABASE app) SELECT told()"), read);
    assert_eq!(explain(&mut console, "SELECT told()"), read, "of the only database");
    assert_eq!(explain(&mut console, "(DATABASE postgres) SELECT told()").0, "write");
    let shown = console.simple("SHOW CATALOG").unwrap().rows;
    assert_eq!(shown[0][..2], [Some("app".to_owned()), Some("known".to_owned())]);
}
