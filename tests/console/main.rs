//! The console on real servers: psql, drivers, and a raw client for what drivers do not say.
//!
//! Invariants: who is not named gets nothing; PgBouncer's columns arrive as psql prints them. Absent on
//! purpose: every value of every command (unit tests of `admin::console` have those).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "nodes.rs"]
mod nodes;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::cluster::{self, APP_PASSWORD, APP_USER};
use support::drivers::{home, left_out};
use support::message;
use support::proxy::{Proxy, ProxySpec};
use support::rawclient::{Gone, Login, RawClient};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(20);

/// `app` may do everything, `other` may look, `app_md5` may nothing.
fn spec() -> ProxySpec {
    let spec = ProxySpec::in_front_of(cluster::shared());
    spec.set("admin.console_users", "[\"app\"]").set("admin.console_readers", "[\"other\"]")
}

fn login(database: &str) -> Login {
    Login::new(APP_USER, APP_PASSWORD, database)
}

fn console(proxy: &Proxy, database: &str) -> RawClient {
    RawClient::login(proxy.port, &login(database)).unwrap_or_else(|gone| panic!("{database}: {gone:?}"))
}

fn refused<T>(outcome: Result<T, Gone>) -> support::message::ErrorFields {
    match outcome {
        Err(Gone::Refused(fields)) => fields,
        Err(gone) => panic!("expected an error message, got {gone:?}"),
        Ok(_) => panic!("expected an error message, got an answer"),
    }
}

fn program(proxy: &Proxy, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120"]).arg(program);
    command
        .envs([("PGHOST", "127.0.0.1"), ("PGUSER", APP_USER), ("PGPASSWORD", APP_PASSWORD)])
        .env("PGPORT", proxy.port.to_string())
        .stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let [out, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{errors}", output.status);
    out
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/console").join(name)
}

/// The column of a row, by the header of the answer.
fn column(client: &mut RawClient, sql: &str, row: impl Fn(&[Option<String>]) -> bool, name: &str) -> Option<String> {
    client.send(&message::query(sql)).unwrap();
    let messages = client.read_until(b'Z').unwrap();
    let names = columns(&messages);
    let place = names.iter().position(|known| known == name).unwrap_or_else(|| panic!("{name} in {names:?}"));
    let rows: Vec<_> = messages.iter().filter(|message| message.tag == b'D').map(message::Message::row_text).collect();
    rows.iter().find(|values| row(values)).and_then(|values| values[place].clone())
}

fn columns(messages: &[message::Message]) -> Vec<String> {
    let description = messages.iter().find(|message| message.tag == b'T').expect("a RowDescription");
    let mut rest = &description.body[2..];
    let mut names = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).unwrap();
        names.push(String::from_utf8(rest[..end].to_vec()).unwrap());
        rest = &rest[end + 19..];
    }
    names
}

#[test]
fn psql_shows_everything_in_both_databases() {
    let proxy = spec().start_ready();
    let ask = |database: &str, sql: &str| output(program(&proxy, "psql").args(["-X", "-A", "-d", database, "-c", sql]));
    let help = ask("pgregent", "SHOW HELP");
    let shows: Vec<_> = help.lines().filter_map(|line| line.strip_prefix("SHOW ")?.split('|').next()).collect();
    assert!(shows.len() >= 12, "{help}");
    for name in &shows {
        for database in ["pgregent", "pgbouncer"] {
            let told = ask(database, &format!("SHOW {name}"));
            // Nobody is pinned here, nothing was learned, and nothing keeps a failover from happening.
            let may_be_empty = ["PINS", "LEARNED", "HOLDS"].contains(name);
            assert!(told.lines().count() >= 3 || may_be_empty, "{name} in {database}: {told}");
        }
    }
    let stats = "database|server_assignment_count|xact_count|query_count|bytes_received|bytes_sent|xact_time|query_time\
        |wait_time|client_parse_count|server_parse_count|bind_count|client_login_count";
    let totals = ask("pgbouncer", "show stats_totals;");
    assert_eq!(totals.lines().next(), Some(stats));
    assert!(totals.lines().any(|line| line.starts_with("app|")), "{totals}");
    assert!(ask("pgregent", "SHOW NODES").contains("pg1|127.0.0.1:"));
    assert!(ask("pgregent", "SHOW CONFIG").contains("admin.console_users|app|[]|yes"));
    assert!(!ask("pgregent", "SHOW CONFIG").contains(APP_PASSWORD), "secrets stay hidden");
}

#[test]
fn a_statement_is_explained_without_being_run() {
    let proxy = spec().start_splitting();
    let mut console = console(&proxy, "pgregent");
    let mut explain = |sql: &str| -> Vec<(String, String)> {
        let rows = console.simple(&format!("EXPLAIN ROUTE {sql}")).unwrap().rows;
        rows.into_iter().map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap())).collect()
    };
    let item = |rows: &[(String, String)], name: &str| {
        rows.iter().find(|(item, _)| item == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let read = explain("SELECT ';' , count(*) FROM pg_class");
    assert_eq!(item(&read, "statement is a"), "read");
    assert_eq!(item(&read, "goes to"), "pg2 or pg3 (read)");
    assert_eq!(item(&read, "node pg1"), "only if no standby can");
    let write = explain("SELECT 1; SELECT nextval('s')");
    assert_eq!((item(&write, "statement is a"), item(&write, "goes to")), ("write".into(), "pg1 (write)".into()));
    assert!(item(&write, "because").contains("nextval"), "{write:?}");
    assert!(item(&write, "node pg2").starts_with("no: it is not the primary"), "{write:?}");
    assert_eq!(item(&explain("SELECT pg_advisory_lock(1)"), "pins the session"), "advisory_lock");
    assert_eq!(item(&explain("/* pgregent: node=primary */ SELECT 1"), "goes to"), "pg1 (write)");
}

#[test]
fn rights_are_those_of_the_config() {
    let proxy = spec().start_ready();
    for database in ["pgregent", "pgbouncer"] {
        let fields = refused(RawClient::login(proxy.port, &Login::new("app_md5", APP_PASSWORD, database)));
        assert_eq!((fields.severity(), fields.sqlstate()), ("FATAL", "42501"));
        assert!(fields.field(b'H').contains("console_users"), "{fields:?}");
        let wrong = refused(RawClient::login(proxy.port, &Login::new(APP_USER, "wrong", database)));
        assert_eq!(wrong.sqlstate(), "28P01", "the password comes first");
    }
    let mut reader = RawClient::login(proxy.port, &Login::new("other", "other-secret", "pgregent")).unwrap();
    assert_eq!(reader.simple("SHOW POOLS").unwrap().tags[0].split(' ').next(), Some("SHOW"));
    assert_eq!(refused(reader.simple("RELOAD")).sqlstate(), "42501");
    // RELOAD does what SIGHUP does, and says what is wrong with a file.
    let mut admin = console(&proxy, "pgregent");
    let file = std::fs::read_to_string(proxy.config()).unwrap();
    std::fs::write(proxy.config(), file.replace("size = 5", "size = 7")).unwrap();
    assert_eq!(admin.simple("RELOAD").unwrap().tags, ["RELOAD"]);
    assert_eq!(column(&mut admin, "SHOW CONFIG", |row| row[0].as_deref() == Some("pool.size"), "value").unwrap(), "7");
    std::fs::write(proxy.config(), file.replace("size = 5", "size = -1")).unwrap();
    let fields = refused(admin.simple("RELOAD"));
    assert!(fields.field(b'D').contains("size"), "{fields:?}");
    assert_eq!(column(&mut admin, "SHOW CONFIG", |row| row[0].as_deref() == Some("pool.size"), "value").unwrap(), "7");
    // Turned off by a reload, the names lead to the nodes.
    std::fs::write(proxy.config(), file.replace("[admin]", "[admin]\nconsole = false")).unwrap();
    admin.simple("RELOAD").unwrap();
    assert_eq!(refused(RawClient::login(proxy.port, &login("pgregent"))).sqlstate(), "3D000");
}

#[test]
fn clients_and_their_backends_are_seen() {
    let proxy = spec().set("pool.size", "1").start_ready();
    let mut admin = console(&proxy, "pgregent");
    let named = |name: &'static str| move |row: &[Option<String>]| row.iter().flatten().any(|value| value == name);
    let client = |name: &str| RawClient::login(proxy.port, &app_login(name)).unwrap_or_else(|gone| panic!("{gone:?}"));
    let (mut one, mut two) = (client("one"), client("two"));
    one.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
    let pid = one.value("SELECT pg_backend_pid()");
    two.send(&message::query("SELECT 2 FOR UPDATE")).unwrap();
    let state = |admin: &mut RawClient, name| column(admin, "SHOW CLIENTS", named(name), "state").unwrap();
    wait_for("the second client waits", LIMIT, || state(&mut admin, "two") == "waiting");
    assert_eq!(state(&mut admin, "one"), "active");
    assert_eq!(column(&mut admin, "SHOW CLIENTS", named("one"), "backend_pid").unwrap(), pid);
    assert_eq!(column(&mut admin, "SHOW CLIENTS", named("one"), "node").unwrap(), "pg1");
    let id = column(&mut admin, "SHOW CLIENTS", named("one"), "id").unwrap();
    let holds = |row: &[Option<String>]| row.iter().flatten().any(|value| *value == pid);
    assert_eq!(column(&mut admin, "SHOW SERVERS", holds, "client").unwrap(), id);
    assert_eq!(column(&mut admin, "SHOW SERVERS", holds, "state").unwrap(), "active");
    let mut bouncer = console(&proxy, "pgbouncer");
    let app = |row: &[Option<String>]| row[0].as_deref() == Some("app") && row[1].as_deref() == Some("app");
    let pool = |bouncer: &mut RawClient, name| column(bouncer, "SHOW POOLS", app, name).unwrap();
    assert_eq!((pool(&mut bouncer, "cl_waiting"), pool(&mut bouncer, "sv_active")), ("1".into(), "1".into()));
    let linked = column(&mut bouncer, "SHOW CLIENTS", named("one"), "link").unwrap();
    let is_linked = |row: &[Option<String>]| row.iter().flatten().any(|value| *value == linked);
    assert_eq!(column(&mut bouncer, "SHOW SERVERS", is_linked, "remote_pid").unwrap(), pid);
    one.simple("COMMIT").unwrap();
    assert_eq!(two.answer().unwrap().rows, [[Some("2".to_owned())]]);
    assert_eq!((state(&mut admin, "one"), state(&mut admin, "two")), ("idle".into(), "idle".into()));
    // A temporary table pins, and goes with its reason.
    let pinned = |admin: &mut RawClient, name| column(admin, "SHOW PINS", |row| row[0].as_deref() == Some(&id), name);
    assert_eq!(pinned(&mut admin, "reason"), None);
    one.simple("CREATE TEMP TABLE seen (n int)").unwrap();
    assert_eq!(pinned(&mut admin, "reason").as_deref(), Some("temp_table"));
    assert!(pinned(&mut admin, "statement").unwrap().contains("CREATE TEMP TABLE seen"));
    assert_eq!(pinned(&mut admin, "node").as_deref(), Some("pg1"));
    assert!(proxy.http("/metrics").unwrap().1.contains("pgregent_pins{reason=\"temp_table\"} 1"));
    one.simple("DISCARD ALL").unwrap();
    assert_eq!(pinned(&mut admin, "reason"), None);
    // Totals grow by what was done; what was done before is added when its backend is released.
    wait_for("every backend is released", LIMIT, || pool(&mut bouncer, "sv_active") == "0");
    let total = |bouncer: &mut RawClient, name| -> u64 {
        column(bouncer, "SHOW STATS", |row| row[0].as_deref() == Some("app"), name).unwrap().parse().unwrap()
    };
    let names = ["total_xact_count", "total_query_count", "total_received", "total_sent", "total_xact_time"];
    let before = names.map(|name| total(&mut bouncer, name));
    for _ in 0..10 {
        two.value("SELECT repeat('x', 100) FOR UPDATE");
    }
    let after = names.map(|name| total(&mut bouncer, name));
    let grown: Vec<_> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
    assert!(grown[0] == 10 && grown[1] == 10 && grown[2] > 300 && grown[3] > 1000 && grown[4] > 0, "{grown:?}");
    assert!(total(&mut bouncer, "total_wait_time") > 0);
}

fn app_login(name: &str) -> Login {
    login(APP_USER).with("application_name", name)
}

#[test]
fn operators_get_in_when_all_places_are_taken_and_are_told_of_the_end() {
    let proxy = spec().set("server.max_client_connections", "1").set("server.accept_queue", "0").start_ready();
    let mut only = None;
    wait_for("the place is free", LIMIT, || {
        only = RawClient::login(proxy.port, &login(APP_USER)).ok();
        only.is_some()
    });
    assert_eq!(refused(RawClient::login(proxy.port, &login(APP_USER))).sqlstate(), "53300");
    let (mut one, mut two) = (console(&proxy, "pgregent"), console(&proxy, "pgbouncer"));
    assert_eq!(one.value("SHOW VERSION"), two.value("SHOW VERSION"));
    proxy.signal("TERM");
    for client in [&mut one, &mut two] {
        let told = message::Message::fields(&client.read().unwrap());
        assert_eq!((told.severity(), told.sqlstate()), ("FATAL", "57P01"));
    }
    wait_for("the proxy ends", LIMIT, || !proxy.is_running());
}

#[test]
fn every_startup_parameter_and_the_extended_protocol_are_accepted() {
    let proxy = spec().start_ready();
    let unusual =
        login("pgregent").with("extra_float_digits", "2").with("options", "-c geqo=off -d 5").with("x.y", "z");
    let mut client = RawClient::login(proxy.port, &unusual).unwrap();
    // A named statement, described, run twice in parts, closed.
    let batch = [
        message::parse("s", "SHOW LISTS"),
        message::describe_statement("s"),
        message::bind("p", "s", &[]),
        message::describe_portal("p"),
        message::execute("p", 5),
        message::execute("p", 100),
        message::close_statement("s"),
        message::sync(),
    ];
    client.send(&message::batch(&batch)).unwrap();
    let tags: String = client.read_until(b'Z').unwrap().iter().map(|message| char::from(message.tag)).collect();
    assert_eq!(tags, format!("1tT2T{}s{}C3Z", "D".repeat(5), "D".repeat(9)));
    // An error skips to Sync, once; afterwards all is well.
    let wrong = [
        message::parse("", "SHOW NONSENSE"),
        message::bind("", "", &[]),
        message::execute("", 0),
        message::sync(),
        message::parse("", "SHOW VERSION"),
        message::bind("", "", &[]),
        message::execute("", 0),
        message::sync(),
    ];
    client.send(&message::batch(&wrong)).unwrap();
    let tags =
        |messages: Vec<message::Message>| messages.iter().map(|message| char::from(message.tag)).collect::<String>();
    assert_eq!(tags(client.read_until(b'Z').unwrap()), "12EZ");
    assert_eq!(tags(client.read_until(b'Z').unwrap()), "12DCZ");
    let unknown = refused(client.simple("DROP TABLE everything"));
    assert_eq!(unknown.sqlstate(), "42601");
    assert!(unknown.field(b'H').contains("SHOW HELP"));
    assert_eq!(
        client.simple("SET DateStyle = 'ISO'; BEGIN; SHOW DateStyle; COMMIT").unwrap().rows,
        [[Some("ISO".to_owned())]]
    );
    assert_eq!(client.simple("").unwrap().rows.len(), 0);
    // Whatever no client should say ends its connection and nothing else.
    client.send(&message::frame(b'd', b"copy data")).unwrap();
    assert_eq!(client.read().unwrap().fields().sqlstate(), "08P01");
    assert_eq!(console(&proxy, "pgbouncer").value("SELECT 1"), "1");
    proxy.assert_no_panic();
}

#[test]
fn drivers_ask_the_console() {
    let proxy = spec().start_ready();
    drop(proxy.client());
    for database in ["pgregent", "pgbouncer"] {
        if !left_out("psycopg") {
            let told =
                output(program(&proxy, home().join("python/bin/python")).arg(script("psycopg3.py")).arg(database));
            let want = "version True\npools PREFIX True\nlists ('peers', 0)\nerror 42704 INERROR\nfloat ('3',)\nclients 1\nselect (1,)\n";
            assert_eq!(
                told,
                want.replace(
                    "PREFIX",
                    if database == "pgregent" {
                        "['node', 'database', 'user']"
                    } else {
                        "['database', 'user', 'cl_active']"
                    }
                )
            );
        }
        if !left_out("node") {
            let mut command = program(&proxy, "node");
            command.env("NODE_PATH", home().join("node/node_modules")).env("NODE_NO_WARNINGS", "1");
            let told = output(command.arg(script("node-postgres.cjs")).arg(database));
            let peers = r#"{"list":"peers","items":0}"#;
            let pools = if database == "pgregent" { "node database user" } else { "database user cl_active" };
            assert_eq!(
                told,
                format!("version true\nlists {peers} {peers}\npools {pools} true\nerror 42704\nboth 1 3\n")
            );
        }
        if !left_out("jdbc") {
            let mut command = program(&proxy, "java");
            command.arg("-cp").arg(home().join("java/postgresql.jar")).arg(script("Jdbc.java"));
            let told = output(command.arg(database));
            let lists = "lists peers 0\nrows 14\n".repeat(5);
            assert_eq!(told, format!("version true\n{lists}fetched 14\nerror 42704\nvalid true 2\n"));
        }
    }
    proxy.assert_no_panic();
}
