//! Conversations in the extended query protocol, one function each.
//!
//! Every function is held with PostgreSQL itself and with proxies, and the records must agree. Absent
//! on purpose: expected values; PostgreSQL is the expectation.

use crate::support::message::*;
use crate::support::script::Script;

fn run(name: &str, values: &[Option<&[u8]>]) -> Vec<Vec<u8>> {
    vec![bind("", name, values), execute("", 0), sync()]
}

pub fn one_batch(s: &mut Script) {
    s.exchange(&[
        parse("", "SELECT $1::int + 1 AS next, $2::text"),
        describe_statement(""),
        bind("", "", &[Some(b"41"), None]),
        describe_portal(""),
        execute("", 0),
        sync(),
    ]);
    let three = 3_u32.to_be_bytes();
    s.exchange(&[
        parse("", "SELECT $1::int * 2, 'text'"),
        bind_formats("", "", &[1], &[Some(&three)], &[1]),
        describe_portal(""),
        execute("", 0),
        sync(),
    ]);
    s.exchange(&[parse("", ""), bind("", "", &[]), describe_portal(""), execute("", 0), sync()]);
    s.exchange(&[frame(b'P', b"typed\0SELECT $1\0\0\x01\0\0\0\x17"), describe_statement("typed"), sync()]);
    s.exchange(&[sync()]);
}

pub fn named_statements(s: &mut Script) {
    s.exchange(&[parse("plus", "SELECT $1::int + 1"), describe_statement("plus"), sync()]);
    for value in ["1", "2", "3"] {
        s.exchange(&run("plus", &[Some(value.as_bytes())]));
        s.query("SELECT 'between'");
    }
    s.exchange(&[parse("plus", "SELECT 2"), sync()]);
    s.exchange(&run("plus", &[Some(b"4")]));
    s.exchange(&[close_statement("plus"), sync()]);
    s.exchange(&run("plus", &[Some(b"5")]));
    s.exchange(&[parse("plus", "SELECT 'another'"), sync()]);
    s.exchange(&run("plus", &[]));
    s.exchange(&[describe_statement("unknown"), sync()]);
    s.exchange(&[close_statement("unknown"), close_portal("unknown"), sync()]);
}

pub fn statements_in_transactions(s: &mut Script) {
    s.exchange(&[parse("begin", "BEGIN"), parse("commit", "COMMIT"), parse("rollback", "ROLLBACK"), sync()]);
    s.exchange(&[parse("value", "SELECT $1::text"), parse("fail", "SELECT 1/$1::int"), sync()]);
    s.exchange(&run("begin", &[]));
    s.exchange(&run("value", &[Some(b"inside")]));
    s.exchange(&run("fail", &[Some(b"0")]));
    s.exchange(&run("value", &[Some(b"failed")]));
    s.exchange(&run("rollback", &[]));
    s.exchange(&run("value", &[Some(b"after")]));
    // A statement parsed in a transaction outlives its rollback.
    s.exchange(&run("begin", &[]));
    s.exchange(&[parse("inner", "SELECT 'inner'"), sync()]);
    s.exchange(&run("rollback", &[]));
    s.exchange(&run("inner", &[]));
    // One that failed to parse does not exist.
    s.exchange(&[parse("broken", "SELEC"), sync()]);
    s.exchange(&run("broken", &[]));
    // Their Sync comes late.
    s.send_all(&[run("begin", &[]), run("value", &[Some(b"x")]), run("commit", &[])].concat()[..2]);
    s.exchange(&[sync()]);
    s.query("ROLLBACK");
}

pub fn unnamed_statement(s: &mut Script) {
    s.exchange(&[parse("", "SELECT $1::text || '!'"), sync()]);
    s.exchange(&run("", &[Some(b"first")]));
    s.exchange(&run("", &[Some(b"second")]));
    s.exchange(&[parse("", "SELECT 'replaced'"), sync()]);
    s.exchange(&run("", &[]));
    // A simple query drops the unnamed statement.
    s.query("SELECT 1");
    s.exchange(&run("", &[]));
    s.exchange(&[parse("", "SELEC"), sync()]);
    s.exchange(&run("", &[]));
}

pub fn many_statements(s: &mut Script) {
    for i in 0..60 {
        s.exchange(&[parse(&format!("s{i}"), &format!("SELECT {i} + $1::int")), sync()]);
    }
    for i in (0..60).rev().step_by(7) {
        s.exchange(&run(&format!("s{i}"), &[Some(b"1000")]));
    }
    s.query("SELECT count(*) FROM pg_prepared_statements WHERE false");
    s.query("DEALLOCATE s1");
    s.exchange(&run("s1", &[Some(b"1")]));
    s.exchange(&run("s2", &[Some(b"1")]));
    s.query("DEALLOCATE no_such_statement");
    s.query("DEALLOCATE ALL");
    s.exchange(&run("s2", &[Some(b"1")]));
    s.exchange(&[parse("s2", "SELECT 'again'"), sync()]);
    s.exchange(&run("s2", &[]));
    s.query("DISCARD ALL");
    s.exchange(&run("s2", &[]));
}

pub fn errors_skip_to_sync(s: &mut Script) {
    s.exchange(&[
        parse("", "SELECT 1/$1::int"),
        bind("", "", &[Some(b"0")]),
        execute("", 0),
        parse("never", "SELECT 'never'"),
        bind("", "never", &[]),
        execute("", 0),
        flush(),
        sync(),
    ]);
    s.exchange(&run("never", &[]));
    s.exchange(&[parse("", "SELEC"), bind("", "", &[]), execute("", 0), sync()]);
    s.exchange(&[parse("", "SELECT $1::int"), bind("", "", &[]), sync()]);
    s.exchange(&[parse("", "SELECT $1::int"), bind("", "", &[Some(b"x")]), execute("", 0), sync()]);
    s.exchange(&[execute("no_such_portal", 0), sync()]);
    s.exchange(&[describe_portal("no_such_portal"), sync()]);
    s.exchange(&[bind("", "no_such_statement", &[]), sync()]);
    s.exchange(&[parse("", "SELECT 1; SELECT 2"), sync()]);
    s.exchange(&[parse("", "SELECT 'fine'"), bind("", "", &[]), execute("", 0), sync()]);
}

pub fn portals(s: &mut Script) {
    s.query("BEGIN");
    s.exchange(&[
        parse("", "SELECT generate_series(1, 7)"),
        bind("p", "", &[]),
        execute("p", 2),
        execute("p", 2),
        sync(),
    ]);
    s.exchange(&[execute("p", 2), sync()]);
    s.exchange(&[describe_portal("p"), execute("p", 0), execute("p", 0), close_portal("p"), sync()]);
    s.exchange(&[execute("p", 0), sync()]);
    s.query("ROLLBACK");
    // Outside a transaction Sync ends the portal.
    s.exchange(&[parse("", "SELECT generate_series(1, 3)"), bind("q", "", &[]), execute("q", 1), sync()]);
    s.exchange(&[execute("q", 1), sync()]);
    s.send_all(&[parse("", "SELECT generate_series(1, 3)"), bind("r", "", &[]), execute("r", 1), flush()]);
    s.until(b's');
    s.send_all(&[execute("r", 1), flush()]);
    s.until(b's');
    s.exchange(&[execute("r", 0), sync()]);
    s.query("BEGIN");
    s.exchange(&[parse("", "SELECT 1"), bind("twice", "", &[]), bind("twice", "", &[]), sync()]);
    s.query("ROLLBACK");
}

pub fn several_syncs_in_one_write(s: &mut Script) {
    let table = s.name("pipe");
    s.query(&format!("CREATE TABLE {table} (i int)"));
    let insert = parse("insert", &format!("INSERT INTO {table} VALUES ($1::int)"));
    let count = parse("count", &format!("SELECT count(*) FROM {table}"));
    s.exchange(&[insert, count, sync()]);
    let mut batches: Vec<Vec<Vec<u8>>> = Vec::new();
    for i in 0..5 {
        batches.push(run("insert", &[Some(i.to_string().as_bytes())]));
        batches.push(run("count", &[]));
        batches.push(run(if i == 2 { "missing" } else { "count" }, &[]));
    }
    let readies = batches.len();
    s.send_all(&batches.concat());
    for _ in 0..readies {
        s.ready();
    }
    // An implicit transaction up to Sync: the insert before the error is undone.
    s.exchange(&[
        bind("", "insert", &[Some(b"77")]),
        execute("", 0),
        bind("", "count", &[]),
        execute("", 0),
        bind("", "insert", &[Some(b"x")]),
        execute("", 0),
        sync(),
    ]);
    s.exchange(&run("count", &[]));
    s.query(&format!("DROP TABLE {table}"));
}

pub fn simple_and_extended_mixed(s: &mut Script) {
    s.send_all(&[
        parse("", "SELECT 'extended'"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
        query("SELECT 'simple'"),
        query("SELECT 1/0"),
        parse("", "SELECT 'extended again'"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
        query("BEGIN"),
        query("SELECT 'in a transaction'"),
        query("COMMIT"),
    ]);
    for _ in 0..7 {
        s.ready();
    }
}

pub fn flush_without_sync(s: &mut Script) {
    s.send_all(&[parse("f", "SELECT $1::int"), describe_statement("f"), flush()]);
    s.until(b'T');
    s.send_all(&[bind("", "f", &[Some(b"1")]), describe_portal(""), flush()]);
    s.until(b'T');
    s.send_all(&[execute("", 0), flush()]);
    s.until(b'C');
    s.send_all(&[bind("", "f", &[Some(b"x")]), flush()]);
    s.until(b'E');
    s.exchange(&[sync()]);
    s.send_all(&[parse("", "SELECT 2"), flush()]);
    s.until(b'1');
    s.send(&flush());
    s.exchange(&[bind("", "", &[]), execute("", 0), sync()]);
}

pub fn writes_and_transactions(s: &mut Script) {
    let table = s.name("ext");
    s.query(&format!("CREATE TABLE {table} (i int PRIMARY KEY, t text)"));
    s.exchange(&[
        parse("", &format!("INSERT INTO {table} VALUES ($1, $2)")),
        describe_statement(""),
        bind("", "", &[Some(b"1"), Some(b"one")]),
        describe_portal(""),
        execute("", 0),
        sync(),
    ]);
    s.exchange(&[
        parse("", &format!("SELECT * FROM {table}")),
        bind("", "", &[]),
        describe_portal(""),
        execute("", 0),
        sync(),
    ]);
    // BEGIN, a write, a read and COMMIT in one batch.
    let mut batch = Vec::new();
    for sql in [
        "BEGIN".to_owned(),
        format!("INSERT INTO {table} VALUES (2, 'two')"),
        format!("TABLE {table}"),
        "COMMIT".to_owned(),
    ] {
        batch.extend([parse("", &sql), bind("", "", &[]), execute("", 0)]);
    }
    batch.push(sync());
    s.exchange(&batch);
    s.exchange(&[
        parse("", &format!("INSERT INTO {table} VALUES (2, 'twice') RETURNING i")),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]);
    s.query("BEGIN READ ONLY");
    s.exchange(&[parse("", &format!("DELETE FROM {table}")), bind("", "", &[]), execute("", 0), sync()]);
    s.query("ROLLBACK");
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.query(&format!("DROP TABLE {table}"));
}

pub fn big_parameters(s: &mut Script) {
    let big = vec![b'p'; 5_000_000];
    s.exchange(&[
        parse("", "SELECT length($1::text), md5($1), right($2::text, 3)"),
        bind("", "", &[Some(&big), Some(&big)]),
        execute("", 0),
        sync(),
    ]);
    s.exchange(&[
        parse("", "SELECT $1::bytea"),
        bind_formats("", "", &[1], &[Some(&big)], &[1]),
        execute("", 0),
        sync(),
    ]);
    let many: Vec<Option<&[u8]>> = (0..2000).map(|_| Some(b"1".as_slice())).collect();
    let sum = (1..=2000).map(|i| format!("${i}::int")).collect::<Vec<_>>().join("+");
    s.exchange(&[parse("", &format!("SELECT {sum}")), bind("", "", &many), execute("", 0), sync()]);
}

pub fn session_settings(s: &mut Script) {
    s.exchange(&[parse("set", "SET DateStyle = 'German'"), bind("", "set", &[]), execute("", 0), sync()]);
    s.exchange(&[parse("day", "SELECT date '2020-02-03'"), bind("", "day", &[]), execute("", 0), sync()]);
    s.exchange(&[
        parse("", "SELECT set_config('work_mem', $1, false)"),
        bind("", "", &[Some(b"6MB")]),
        execute("", 0),
        sync(),
    ]);
    s.exchange(&[parse("", "SHOW work_mem"), describe_statement(""), bind("", "", &[]), execute("", 0), sync()]);
    s.query("RESET ALL");
    s.exchange(&run("day", &[]));
    s.exchange(&run("set", &[]));
    s.exchange(&run("day", &[]));
}
