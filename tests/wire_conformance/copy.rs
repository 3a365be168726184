//! Conversations with COPY, one function each.
//!
//! Every function is held with PostgreSQL itself and with proxies, and the records must agree. Absent
//! on purpose: expected values; PostgreSQL is the expectation.

use crate::support::message::*;
use crate::support::script::Script;

fn table(s: &mut Script, stem: &str) -> String {
    let table = s.name(stem);
    s.query(&format!("CREATE TABLE {table} (i int, t text)"));
    table
}

pub fn copy_in(s: &mut Script) {
    let table = table(s, "copyin");
    let start = query(&format!("COPY {table} FROM STDIN"));
    s.send(&start);
    s.until(b'G');
    s.exchange(&[copy_data(b"1\tone\n2\tt"), copy_data(b"wo\n"), copy_data(b""), flush(), sync(), copy_done()]);
    s.query(&format!("SELECT * FROM {table} ORDER BY i"));
    // All in one write, without waiting for the answer to COPY.
    s.exchange(&[start.clone(), copy_data(b"3\tthree\n"), copy_done()]);
    s.exchange(&[start.clone(), copy_data(b"4\tfour\n"), copy_fail("changed my mind")]);
    s.exchange(&[start.clone(), copy_data(b"x\tbad number\n"), copy_data(b"5\tfive\n"), copy_done()]);
    s.exchange(&[start, copy_done()]);
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.query(&format!("DROP TABLE {table}"));
}

pub fn copy_in_transactions(s: &mut Script) {
    let table = table(s, "copytx");
    let copy = format!("COPY {table} FROM STDIN");
    s.query("BEGIN");
    s.exchange(&[query(&copy), copy_data(b"1\tone\n"), copy_done()]);
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.exchange(&[query(&copy), copy_fail("no")]);
    s.query("SELECT 1");
    s.query("ROLLBACK");
    s.exchange(&[
        query(&format!("{copy}; SELECT 'and then', count(*) FROM {table}")),
        copy_data(b"2\ttwo\n"),
        copy_done(),
    ]);
    s.exchange(&[
        query(&format!("{copy}; {copy}")),
        copy_data(b"3\t3\n"),
        copy_done(),
        copy_data(b"4\t4\n"),
        copy_done(),
    ]);
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.query(&format!("DROP TABLE {table}"));
}

pub fn copy_out(s: &mut Script) {
    let table = table(s, "copyout");
    s.query(&format!("INSERT INTO {table} SELECT i, 'text ' || i FROM generate_series(1, 5) i"));
    s.query(&format!("COPY {table} TO STDOUT"));
    s.query(&format!("COPY (SELECT i FROM {table} ORDER BY i) TO STDOUT WITH (FORMAT csv, HEADER)"));
    s.query(&format!("COPY {table} TO STDOUT WITH (FORMAT binary)"));
    s.query(&format!("COPY (SELECT 1/(3 - i) FROM {table} ORDER BY i) TO STDOUT"));
    s.query("COPY no_such_table TO STDOUT");
    s.query("COPY no_such_table FROM STDIN");
    s.query("COPY (SELECT repeat('c', 1000) FROM generate_series(1, 3000)) TO STDOUT");
    s.query(&format!("DROP TABLE {table}"));
}

pub fn copy_extended(s: &mut Script) {
    let table = table(s, "copyext");
    let start =
        [parse("", &format!("COPY {table} FROM STDIN")), bind("", "", &[]), describe_portal(""), execute("", 0)];
    s.send_all(&start);
    s.send(&flush());
    s.until(b'G');
    s.exchange(&[copy_data(b"1\tone\n"), copy_done(), sync()]);
    // The usual driver: Sync right behind Execute is ignored by the node while it copies.
    s.send_all(&start);
    s.send(&sync());
    s.until(b'G');
    s.exchange(&[copy_data(b"2\ttwo\n"), copy_done(), sync()]);
    // After an error everything up to Sync is skipped.
    s.send_all(&start);
    s.send(&flush());
    s.until(b'G');
    s.exchange(&[copy_data(b"x\n"), copy_data(b"more\n"), copy_done(), sync()]);
    s.send_all(&start);
    s.send(&flush());
    s.until(b'G');
    s.exchange(&[copy_fail("no"), sync()]);
    s.exchange(&[parse("", &format!("COPY {table} TO STDOUT")), bind("", "", &[]), execute("", 0), sync()]);
    s.query(&format!("DROP TABLE {table}"));
}

pub fn copy_large(s: &mut Script) {
    let table = table(s, "copybig");
    s.send(&query(&format!("COPY {table} FROM STDIN")));
    s.until(b'G');
    let line = format!("7\t{}\n", "w".repeat(990));
    let block = line.repeat(60);
    for _ in 0..60 {
        s.send(&copy_data(block.as_bytes()));
    }
    s.exchange(&[copy_done()]);
    s.query(&format!("SELECT count(*), sum(length(t)) FROM {table}"));
    s.query(&format!("DROP TABLE {table}"));
}

pub fn copy_messages_without_copy(s: &mut Script) {
    // PostgreSQL ignores them: they may be the rest of a COPY that failed.
    s.exchange(&[copy_data(b"stray"), copy_done(), copy_fail("stray"), query("SELECT 'after stray messages'")]);
    s.exchange(&[copy_data(b"stray"), parse("", "SELECT 2"), bind("", "", &[]), execute("", 0), sync()]);
    s.query("BEGIN");
    s.exchange(&[copy_done(), query("SELECT 'in a transaction'")]);
    s.query("COMMIT");
}

pub fn query_during_copy(s: &mut Script) {
    let table = table(s, "copyodd");
    s.send(&query(&format!("COPY {table} FROM STDIN")));
    s.until(b'G');
    s.send(&query("SELECT 1"));
    s.until(b'E');
}
