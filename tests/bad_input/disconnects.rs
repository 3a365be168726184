//! A client that is gone after any byte of a request leaves nothing behind.
//!
//! Each request is sent up to every byte, by a client of its own that then vanishes. Contracts: what was
//! not sent whole does not happen; afterwards every backend is idle without a transaction, and the next
//! clients find a clean session on each. Absent on purpose: logins that are cut (`clients`).

use crate::sqlstate;
use crate::support::bystander::Bystander;
use crate::support::cluster;
use crate::support::message::*;
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::RawClient;
use crate::support::wait_for;
use std::time::Duration;

/// Backends per node; small, so that every one of them is met again.
const POOL: usize = 3;
/// How long a backend may take to notice that its client is gone.
const CLEAN_WITHIN: Duration = Duration::from_secs(15);

/// What a session must look like when nobody has touched it.
const STATE: &str = "SELECT current_setting('work_mem'), current_user, nullif(current_setting('app.who', true), ''), \
    pg_my_temp_schema() = 0 OR NOT EXISTS \
    (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema()), (SELECT count(*) FROM pg_locks WHERE \
    locktype = 'advisory' AND pid = pg_backend_pid()), (SELECT count(*) FROM pg_listening_channels()), \
    (SELECT count(*) FROM pg_cursors WHERE is_holdable)";

fn start() -> Proxy {
    ProxySpec::in_front_of(cluster::shared())
        .set("pool.size", &POOL.to_string())
        .set("auth.method", "\"trust\"")
        .start_splitting()
}

/// Every backend of the test's user is idle, without a transaction, and shows a clean session.
fn assert_clean(proxy: &Proxy, what: &str) {
    for port in &cluster::shared().ports {
        let login = crate::support::rawclient::Login::new("postgres", "postgres-secret", "postgres");
        let mut superuser = RawClient::login(*port, &login).unwrap();
        wait_for(&format!("{what}: all backends are idle"), CLEAN_WITHIN, || {
            superuser.value(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND (state <> 'idle' OR xact_start IS NOT NULL)",
            ) == "0"
        });
    }
    // As many transactions at once as there are backends: each meets another one.
    let mut clients: Vec<RawClient> = (0..POOL).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
    }
    let fresh = ["4MB", "app", "NULL", "t", "0", "0", "0"].map(str::to_owned);
    for client in &mut clients {
        let answer = client.simple(STATE).unwrap_or_else(|gone| panic!("{what}: {gone:?}"));
        let row: Vec<String> = answer.rows[0].iter().map(|v| v.clone().unwrap_or_else(|| "NULL".into())).collect();
        assert_eq!(row, fresh, "{what}: a session begins with another's state");
        // What a backend keeps of another client's PREPARE is not this client's.
        assert_eq!(sqlstate(&client.simple("EXECUTE q")), "26000", "{what}: a session knows another's statement");
    }
    for client in &mut clients {
        client.simple("ROLLBACK").unwrap();
    }
}

/// Sends `before` and waits for its answer; then `request` up to each byte, and vanishes. `kept`: how many
/// bytes make the request complete, so that it may have happened.
fn vanish_everywhere(proxy: &Proxy, what: &str, before: &str, request: &[u8]) {
    for length in 0..=request.len() {
        let mut client = proxy.client();
        if !before.is_empty() {
            client.simple(before).unwrap_or_else(|gone| panic!("{what}: {gone:?}"));
        }
        client.send(&request[..length]).unwrap();
        if length % 3 == 0 {
            // The node has had time to see what was sent.
            std::thread::sleep(Duration::from_millis(3));
        }
        if length % 2 == 0 {
            client.hang_up();
        }
        drop(client);
        if length % 64 == 63 {
            assert_clean(proxy, &format!("{what}, {length} bytes"));
        }
    }
    assert_clean(proxy, what);
}

fn stored(marker: &str) -> usize {
    let mut superuser = cluster::shared().superuser("app");
    superuser.value(&format!("SELECT count(*) FROM vanished WHERE id = '{marker}'")).parse().unwrap()
}

#[test]
fn a_client_vanishes_at_every_byte_of_a_request() {
    let proxy = start();
    proxy.client().simple("CREATE TABLE vanished (id text)").unwrap();
    let bystander = Bystander::start(&proxy);
    let put = |marker: &str| format!("INSERT INTO vanished VALUES ('{marker}')");
    vanish_everywhere(&proxy, "a simple query", "", &query(&put("simple")));
    assert!(stored("simple") <= 1, "only the last one was whole");
    let batch = |marker: &str| {
        let list = [parse("put", &put(marker)), bind("", "put", &[]), describe_portal(""), execute("", 0), sync()];
        list.concat()
    };
    // A batch without its Sync is not committed.
    vanish_everywhere(&proxy, "a batch", "", &batch("batch"));
    assert!(stored("batch") <= 1, "a batch without Sync was committed");
    vanish_everywhere(&proxy, "a batch in a transaction", &format!("BEGIN; {}", put("begun")), &batch("begun"));
    vanish_everywhere(
        &proxy,
        "a batch in a failed transaction",
        "BEGIN; SELECT 1",
        &[query("SELECT 1/0"), batch("begun")].concat(),
    );
    assert_eq!(stored("begun"), 0, "nobody committed");
    let copy =
        [query("COPY vanished FROM STDIN"), copy_data(b"copied\n"), copy_data(b"copied\n"), copy_done()].concat();
    vanish_everywhere(&proxy, "COPY data", "", &copy);
    assert!(stored("copied") <= 2, "COPY data without their end were stored");
    vanish_everywhere(
        &proxy,
        "COPY out",
        "",
        &query("COPY (SELECT repeat('c', 100) FROM generate_series(1, 9999)) TO STDOUT"),
    );
    vanish_everywhere(&proxy, "a function call", "", &function_call(1397, &[b"-42"]));
    vanish_everywhere(&proxy, "a function call in a transaction", "BEGIN", &function_call(1397, &[b"-42"]));
    bystander.assert_untouched();
    proxy.assert_serving();
}

#[test]
fn a_client_with_state_vanishes_at_every_byte_of_a_request() {
    let proxy = start();
    proxy.client().simple("CREATE TABLE vanished_state (id text)").unwrap();
    let bystander = Bystander::start(&proxy);
    let batch = [parse("q", "SELECT $1::int"), bind("", "q", &[Some(b"1")]), execute("", 0), sync()].concat();
    for (what, before) in [
        ("settings", "SET work_mem = '7MB'; SET app.who = 'vanished'"),
        ("a role", "SET ROLE app_group"),
        ("a prepared statement", "PREPARE q AS SELECT 1"),
        ("a temporary table", "CREATE TEMP TABLE t (i int)"),
        ("an advisory lock", "SELECT pg_advisory_lock(4242)"),
        ("a channel", "LISTEN vanished"),
        ("a held cursor", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
        ("what a text hides", "DO $$ BEGIN PERFORM set_config('work_mem', '9MB', false); END $$"),
    ] {
        vanish_everywhere(&proxy, what, before, &batch);
    }
    // The request itself makes the state.
    for sql in [
        "SET work_mem = '7MB'",
        "SET ROLE app_group",
        "SELECT pg_advisory_lock(4243)",
        "PREPARE q AS SELECT 1",
        "DISCARD ALL",
    ] {
        vanish_everywhere(&proxy, sql, "SET app.who = 'vanished'", &query(sql));
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}
