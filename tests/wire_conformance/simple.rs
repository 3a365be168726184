//! Conversations in the simple query protocol, one function each.
//!
//! Every function is held with PostgreSQL itself and with proxies, and the records must agree. Absent
//! on purpose: expected values; PostgreSQL is the expectation.

use crate::support::script::Script;

pub fn plain_queries(s: &mut Script) {
    s.query("SELECT 1 AS one, NULL AS nothing, 'text'::text, 1.5::numeric, true, '\\x00ff'::bytea");
    s.query("SELECT generate_series(1, 5) AS i");
    s.query("VALUES (1, 'a'), (2, 'b')");
    s.query("SELECT");
    s.query("SELECT 1 WHERE false");
    s.query("SHOW server_version");
    s.query("EXPLAIN (COSTS OFF) SELECT 1");
}

pub fn multi_statement(s: &mut Script) {
    let table = s.name("multi");
    s.query("SELECT 1; SELECT 2 AS two; SELECT 'three'");
    s.query(&format!("CREATE TABLE {table} (i int); INSERT INTO {table} VALUES (1); SELECT * FROM {table}"));
    // The whole string is one transaction: the row must not stay.
    s.query(&format!("INSERT INTO {table} VALUES (2); SELECT 1/0; INSERT INTO {table} VALUES (3)"));
    s.query(&format!("SELECT * FROM {table} ORDER BY i"));
    // Until the string itself commits.
    s.query(&format!("BEGIN; INSERT INTO {table} VALUES (4); COMMIT; SELECT 1/0"));
    s.query(&format!("SELECT count(*) FROM {table}; UPDATE {table} SET i = i + 1; SELECT sum(i) FROM {table}"));
    s.query(&format!("SELECT 1; BEGIN; INSERT INTO {table} VALUES (5)"));
    s.query("ROLLBACK");
    s.query(&format!("SELECT count(*) FROM {table}; DROP TABLE {table}"));
}

pub fn empty_queries(s: &mut Script) {
    for text in ["", ";", " ; ; ", "-- nothing", "/* nothing */", "SELECT 1;;", "-- a\n;SELECT 2"] {
        s.query(text);
    }
}

pub fn errors(s: &mut Script) {
    s.query("SELEC 1");
    s.query("SELECT * FROM no_such_table");
    s.query("SELECT no_such_column FROM pg_class");
    s.query("SELECT no_such_function(1)");
    s.query("SELECT 1/(3 - i) FROM generate_series(1, 5) i");
    s.query("SELECT 'x'::int");
    s.query("SELECT 1; SELECT 'unterminated");
    s.query("SET work_mem = 'nonsense'");
    s.query("SET no_such_setting = 1");
    s.query("SELECT 1");
}

pub fn notices(s: &mut Script) {
    let table = s.name("noticed");
    s.query("DO $$ BEGIN RAISE NOTICE 'first'; RAISE WARNING 'second %', 2; RAISE INFO 'third'; END $$");
    s.query(&format!("DROP TABLE IF EXISTS {table}"));
    s.query("DO $$ BEGIN RAISE NOTICE 'before'; RAISE EXCEPTION 'own' USING ERRCODE = 'ZX001', HINT = 'none'; END $$");
    s.query("SET client_min_messages = error");
    s.query("DO $$ BEGIN RAISE NOTICE 'unheard'; END $$");
    s.query("RESET client_min_messages");
}

pub fn transactions(s: &mut Script) {
    let table = s.name("tx");
    s.query(&format!("CREATE TABLE {table} (i int)"));
    s.query("BEGIN");
    s.query(&format!("INSERT INTO {table} VALUES (1)"));
    s.query("SELECT 1/0");
    s.query("SELECT 1");
    s.query("COMMIT");
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.query("BEGIN");
    s.query(&format!("INSERT INTO {table} VALUES (2)"));
    s.query("SAVEPOINT a");
    s.query("SELECT 1/0");
    s.query("ROLLBACK TO a");
    s.query(&format!("INSERT INTO {table} VALUES (3)"));
    s.query("COMMIT AND CHAIN");
    s.query(&format!("SELECT i FROM {table} ORDER BY i"));
    s.query("ROLLBACK");
    s.query("COMMIT");
    s.query("ROLLBACK");
    s.query("BEGIN");
    s.query("BEGIN");
    s.query("END");
    s.query("SAVEPOINT outside");
    s.query(&format!("DROP TABLE {table}"));
}

pub fn transaction_modes(s: &mut Script) {
    let table = s.name("modes");
    s.query(&format!("CREATE TABLE {table} (i int)"));
    s.query("BEGIN READ ONLY");
    s.query("SHOW transaction_read_only");
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.query(&format!("INSERT INTO {table} VALUES (1)"));
    s.query("ROLLBACK");
    s.query("START TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    s.query("SHOW transaction_isolation");
    s.query(&format!("INSERT INTO {table} VALUES (2)"));
    s.query("COMMIT");
    s.query("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE");
    s.query("SHOW transaction_isolation");
    s.query(&format!("SELECT i FROM {table}"));
    s.query("COMMIT");
    s.query("BEGIN");
    s.query("SET TRANSACTION READ ONLY");
    s.query("SELECT 1");
    s.query("SET TRANSACTION READ WRITE");
    s.query("ROLLBACK");
    s.query("SET default_transaction_read_only = on");
    s.query(&format!("INSERT INTO {table} VALUES (3)"));
    s.query("SET default_transaction_read_only = off");
    s.query(&format!("INSERT INTO {table} VALUES (4)"));
    s.query("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    s.query("SHOW transaction_isolation");
    s.query("RESET default_transaction_isolation");
    s.query(&format!("DROP TABLE {table}"));
}

pub fn settings(s: &mut Script) {
    s.query("SET application_name = 'first name'");
    s.query("SHOW application_name");
    s.query("SET DateStyle = 'German'");
    s.query("SELECT date '2020-02-03'");
    s.query("SET TIME ZONE 'UTC'");
    s.query("SET search_path TO pg_catalog, public");
    s.query("SHOW search_path");
    s.query("BEGIN");
    s.query("SET LOCAL DateStyle = 'SQL'");
    s.query("SET work_mem = '7MB'");
    s.query("SELECT date '2020-02-03'");
    s.query("ROLLBACK");
    s.query("SELECT date '2020-02-03', current_setting('work_mem')");
    s.query("BEGIN; SET work_mem = '8MB'; COMMIT");
    s.query("SHOW work_mem");
    s.query("SELECT set_config('work_mem', '9MB', false)");
    s.query("SHOW work_mem");
    s.query("SELECT set_config('own.variable', 'mine', false)");
    s.query("SELECT current_setting('own.variable')");
    s.query("RESET work_mem");
    s.query("SET client_encoding = 'LATIN1'");
    s.query("SELECT chr(233)");
    s.query("SET NAMES 'UTF8'");
    s.query("SELECT chr(233)");
    s.query("RESET ALL");
    s.query("SELECT date '2020-02-03', current_setting('application_name'), current_setting('work_mem')");
    s.query("SET statement_timeout = '50ms'");
    s.query("SELECT pg_sleep(5)");
    s.query("DISCARD ALL");
    s.query("SHOW statement_timeout");
}

pub fn session_state(s: &mut Script) {
    s.query("PREPARE plus AS SELECT $1::int + 1");
    s.query("EXECUTE plus(41)");
    s.query("SELECT 1");
    s.query("EXECUTE plus(1)");
    s.query("DEALLOCATE plus");
    s.query("EXECUTE plus(1)");
    s.query("CREATE TEMP TABLE scratch (i int)");
    s.query("INSERT INTO scratch SELECT generate_series(1, 3)");
    s.query("SELECT sum(i) FROM scratch");
    s.query("BEGIN");
    s.query("DECLARE held CURSOR WITH HOLD FOR SELECT i FROM scratch ORDER BY i");
    s.query("COMMIT");
    s.query("FETCH 2 FROM held");
    s.query("FETCH 2 FROM held");
    s.query("CLOSE held");
    s.query("SELECT pg_advisory_lock(hashtext(current_user || 'conformance'))");
    s.query("SELECT 1");
    s.query("SELECT pg_advisory_unlock(hashtext(current_user || 'conformance'))");
    s.query("DROP TABLE scratch");
    s.query("SELECT * FROM scratch");
    s.query("BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 4); FETCH 2 FROM c");
    s.query("MOVE 1 FROM c");
    s.query("FETCH ALL FROM c");
    s.query("COMMIT");
    s.query("FETCH 1 FROM c");
}

pub fn listen_notify(s: &mut Script) {
    let channel = s.name("news");
    s.query(&format!("LISTEN {channel}"));
    s.query(&format!("NOTIFY {channel}, 'to myself'"));
    let mut other = s.other();
    other.simple(&format!("NOTIFY {channel}, 'from another'")).expect("notifies");
    s.until(b'A');
    s.query("SELECT 1");
    s.query("BEGIN");
    other.simple(&format!("SELECT pg_notify('{channel}', 'during a transaction')")).expect("notifies");
    s.query("SELECT 2");
    s.query("COMMIT");
    s.query(&format!("UNLISTEN {channel}"));
    other.simple(&format!("NOTIFY {channel}, 'unheard'")).expect("notifies");
    s.query("SELECT 3");
}

pub fn big_results(s: &mut Script) {
    s.query("SELECT repeat('x', 10000000)");
    s.query("SELECT i, repeat('y', i % 100) FROM generate_series(1, 20000) i");
    s.query(&format!("SELECT length('{}')", "z".repeat(3_000_000)));
    s.query("SELECT 1");
}

pub fn read_your_writes(s: &mut Script) {
    let table = s.name("ryw");
    s.query(&format!("CREATE TABLE {table} (i int PRIMARY KEY)"));
    for i in 0..40 {
        s.query(&format!("INSERT INTO {table} VALUES ({i})"));
        s.query(&format!("SELECT count(*), max(i) FROM {table}"));
    }
    s.query(&format!("INSERT INTO {table} VALUES (100) RETURNING i"));
    s.query(&format!("INSERT INTO {table} VALUES (100)"));
    s.query(&format!("WITH gone AS (DELETE FROM {table} WHERE i > 5 RETURNING i) SELECT count(*) FROM gone"));
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.query(&format!("SELECT i FROM {table} WHERE i = 1 FOR UPDATE"));
    s.query(&format!("TRUNCATE {table}"));
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.query(&format!("DROP TABLE {table}"));
}

pub fn function_calls(s: &mut Script) {
    use crate::support::message::function_call;
    const INT4_ABS: u32 = 1397;
    s.exchange(&[function_call(INT4_ABS, &[b"-42"])]);
    s.exchange(&[function_call(INT4_ABS, &[b"nonsense"])]);
    s.exchange(&[function_call(4_000_000, &[])]);
    s.query("BEGIN");
    s.exchange(&[function_call(INT4_ABS, &[b"-7"])]);
    s.query("COMMIT");
}
