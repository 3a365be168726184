//! Conversations that no friendly driver holds: errors at every step, names that clash, batches that
//! end in odd places.
//!
//! Every function is held with PostgreSQL itself and with proxies, and the records must agree. Absent
//! on purpose: expected values; PostgreSQL is the expectation.

use crate::support::message::*;
use crate::support::script::Script;

fn run(name: &str, values: &[Option<&[u8]>]) -> Vec<Vec<u8>> {
    vec![bind("", name, values), execute("", 0), sync()]
}

/// The same batch with its fault at each step, inside and outside a transaction; the names are used again.
pub fn errors_at_every_step(s: &mut Script) {
    s.exchange(&[parse("good", "SELECT 'good'"), parse("zero", "SELECT 1/$1::int"), sync()]);
    for inside in [false, true] {
        let tag = if inside { "in" } else { "out" };
        let fine = format!("fine_{tag}");
        for step in 0..6 {
            if inside {
                s.query("BEGIN");
            }
            let mut batch = vec![
                parse(&fine, "SELECT $1::int"),
                bind("p", &fine, &[Some(b"1")]),
                describe_portal("p"),
                execute("p", 0),
                close_portal("p"),
                close_statement(&fine),
            ];
            let fault = [
                parse("good", "SELECT 'again'"),
                bind("", "zero", &[Some(b"none")]),
                describe_statement("missing"),
                execute("missing", 0),
                parse("", "SELECT FROM WHERE"),
                bind("", "missing", &[]),
            ];
            batch.insert(step, fault[step].clone());
            batch.push(sync());
            s.exchange(&batch);
            s.exchange(&run("good", &[]));
            if inside {
                s.query("ROLLBACK");
                s.exchange(&run("good", &[]));
            }
            s.exchange(&[describe_statement(&fine), sync()]);
            s.exchange(&[close_statement(&fine), sync()]);
        }
    }
}

/// Two names for one text; names that are taken; the refusal names the name that was asked for.
pub fn names_that_clash(s: &mut Script) {
    s.exchange(&[parse("a", "SELECT 'same'"), parse("b", "SELECT 'same'"), sync()]);
    s.exchange(&[parse("b", "SELECT 'other'"), sync()]);
    s.exchange(&[parse("a", "SELECT 'same'"), sync()]);
    s.exchange(&[parse("", "SELECT 'unnamed'"), sync()]);
    s.exchange(&[parse("c", "SELECT 'c'"), parse("c", "SELECT 'c'"), parse("d", "SELECT 'd'"), sync()]);
    // A clash of names does not touch the unnamed statement.
    s.exchange(&run("", &[]));
    for name in ["a", "b", "c", "d"] {
        s.exchange(&run(name, &[]));
    }
    s.exchange(&[close_statement("a"), parse("a", "SELECT 'new'"), bind("", "a", &[]), execute("", 0), sync()]);
    s.exchange(&run("b", &[]));
    s.exchange(&[parse("A", "SELECT 'upper'"), bind("", "A", &[]), execute("", 0), sync()]);
    s.exchange(&run("a", &[]));
}

/// DEALLOCATE of names that the protocol made.
pub fn deallocate(s: &mut Script) {
    let make = [parse("one", "SELECT 1"), parse("two", "SELECT 2"), parse("Tres", "SELECT 3"), sync()];
    s.exchange(&make);
    s.query("BEGIN");
    s.exchange(&run("one", &[]));
    s.query("DEALLOCATE one");
    s.exchange(&[describe_statement("one"), sync()]);
    s.query("ROLLBACK");
    s.exchange(&run("two", &[]));
    s.query("BEGIN");
    s.query("SELECT 1/0");
    s.query("DEALLOCATE two");
    s.query("ROLLBACK");
    s.exchange(&run("two", &[]));
    s.query("DEALLOCATE tres");
    s.query("DEALLOCATE \"Tres\"");
    s.exchange(&run("Tres", &[]));
    s.exchange(&[
        query("DEALLOCATE ALL"),
        parse("two", "SELECT 'two again'"),
        bind("", "two", &[]),
        execute("", 0),
        sync(),
    ]);
    s.ready();
    s.exchange(&run("two", &[]));
    s.exchange(&[
        query("DEALLOCATE two"),
        parse("two", "SELECT 'third'"),
        bind("", "two", &[]),
        execute("", 0),
        sync(),
    ]);
    s.ready();
    s.exchange(&run("two", &[]));
    s.query("DISCARD ALL");
    s.exchange(&run("two", &[]));
}

pub fn deallocate_extended(s: &mut Script) {
    s.exchange(&[parse("one", "SELECT 1"), parse("two", "SELECT 2"), sync()]);
    s.exchange(&[parse("", "DEALLOCATE one"), bind("", "", &[]), execute("", 0), sync()]);
    s.exchange(&run("one", &[]));
    s.query("BEGIN");
    s.exchange(&[parse("", "DEALLOCATE two"), bind("", "", &[]), execute("", 0), sync()]);
    s.exchange(&[describe_statement("two"), sync()]);
    s.query("ROLLBACK");
    s.exchange(&[parse("two", "SELECT 'two'"), sync()]);
    s.exchange(&run("two", &[]));
    s.exchange(&[parse("", "DEALLOCATE ALL"), bind("", "", &[]), execute("", 0), sync()]);
    s.exchange(&run("two", &[]));
}

pub fn portals_across_syncs(s: &mut Script) {
    let rows = "SELECT i FROM generate_series(1, 10) i";
    s.query("BEGIN");
    s.exchange(&[parse("rows", rows), bind("p", "rows", &[]), bind("q", "rows", &[]), sync()]);
    s.exchange(&[execute("p", 3), sync()]);
    s.exchange(&[execute("q", 2), execute("p", 2), sync()]);
    s.exchange(&[describe_portal("p"), close_statement("rows"), sync()]);
    s.exchange(&[execute("p", 0), execute("p", 0), sync()]);
    s.exchange(&[close_portal("p"), execute("p", 0), sync()]);
    s.exchange(&[execute("q", 1), sync()]);
    s.query("ROLLBACK");
    s.exchange(&[execute("q", 1), sync()]);
    // Without a transaction a portal ends with its Sync.
    s.exchange(&[parse("rows", rows), bind("p", "rows", &[]), execute("p", 2), sync()]);
    s.exchange(&[execute("p", 2), sync()]);
    s.exchange(&[bind("p", "rows", &[]), execute("p", 2), flush(), execute("p", 3), flush(), execute("p", 0), sync()]);
    s.query("BEGIN");
    s.exchange(&[parse("", "DECLARE c CURSOR FOR SELECT 7"), bind("", "", &[]), execute("", 0), sync()]);
    s.exchange(&[describe_portal("c"), execute("c", 0), sync()]);
    s.query("COMMIT");
}

/// Answers come at Flush, and nothing is decided before Sync.
pub fn flush_batches(s: &mut Script) {
    let table = s.name("flushed");
    s.query(&format!("CREATE TABLE {table} (i int)"));
    let insert = format!("INSERT INTO {table} VALUES ($1::int)");
    // Right behind another unit, so that the backend has answered before.
    s.send_all(&[query("SELECT 'before' FOR UPDATE"), parse("ins", &insert), flush()]);
    s.until(b'1');
    s.send_all(&[bind("", "ins", &[Some(b"1")]), flush()]);
    s.until(b'2');
    s.send_all(&[execute("", 0), flush()]);
    s.until(b'C');
    s.exchange(&[sync()]);
    s.query(&format!("SELECT count(*) FROM {table}"));
    // An error undoes what was flushed before it.
    s.send_all(&[bind("", "ins", &[Some(b"2")]), execute("", 0), flush()]);
    s.until(b'C');
    s.send_all(&[bind("", "ins", &[Some(b"x")]), flush()]);
    s.until(b'E');
    s.exchange(&[execute("", 0), sync()]);
    s.query(&format!("SELECT count(*) FROM {table}"));
    s.send_all(&[flush(), flush(), flush()]);
    s.exchange(&[parse("", "SELECT 1"), flush(), flush(), bind("", "", &[]), flush(), execute("", 0), flush(), sync()]);
    s.send_all(&[parse("late", "SELECT 'late'"), describe_statement("late"), flush()]);
    s.until(b'T');
    // A simple query ends the batch.
    s.exchange(&[query("SELECT 'ends it'")]);
    s.exchange(&run("late", &[]));
    s.query(&format!("DROP TABLE {table}"));
}

/// What a client that leaves in the middle of a batch has not committed is not committed.
pub fn leaving_in_mid_batch(s: &mut Script) {
    let table = s.name("left");
    s.query(&format!("CREATE TABLE {table} (i int)"));
    let insert = |i: i32| parse("", &format!("INSERT INTO {table} VALUES ({i})"));
    for ending in [Vec::new(), terminate()] {
        let mut other = s.other();
        other.send(&[insert(1), bind("", "", &[]), execute("", 0), flush()].concat()).unwrap();
        other.read_until(b'C').unwrap();
        other.send(&ending).unwrap();
        other.hang_up();
        drop(other);
        // Whoever gets that backend next must not commit it.
        std::thread::sleep(std::time::Duration::from_millis(150));
        for _ in 0..6 {
            s.query(&format!("SELECT count(*) FROM {table} WHERE i = 1"));
            s.exchange(&[parse("", "SELECT 'x' FOR UPDATE"), bind("", "", &[]), execute("", 0), sync()]);
        }
    }
    // What was complete before the goodbye is carried out.
    let mut other = s.other();
    other.send(&[query(&format!("INSERT INTO {table} VALUES (2)")), terminate()].concat()).unwrap();
    let _ = other.read_to_end();
    let mut other = s.other();
    other
        .send(
            &[
                insert(3),
                bind("", "", &[]),
                execute("", 0),
                sync(),
                insert(4),
                bind("", "", &[]),
                execute("", 0),
                terminate(),
            ]
            .concat(),
        )
        .unwrap();
    let _ = other.read_to_end();
    std::thread::sleep(std::time::Duration::from_millis(300));
    s.query(&format!("SELECT i FROM {table} ORDER BY i"));
    s.query(&format!("DROP TABLE {table}"));
}

pub fn many_syncs(s: &mut Script) {
    s.send(&sync().repeat(1000));
    for _ in 0..1000 {
        s.ready();
    }
    let mut all = Vec::new();
    for i in 0..300 {
        all.extend([parse("", &format!("SELECT {i}")), bind("", "", &[]), execute("", 0), sync()].concat());
        if i % 50 == 7 {
            all.extend([bind("", "missing", &[]), execute("", 0), sync()].concat());
            all.extend(query("SELECT 'simple'"));
        }
    }
    s.send(&all);
    for _ in 0..312 {
        s.ready();
    }
}

pub fn long_names(s: &mut Script) {
    // PostgreSQL takes no Describe, Execute or Close of more than 10000 bytes.
    let long = "n".repeat(9_900);
    s.exchange(&[parse(&long, "SELECT $1::int"), sync()]);
    s.exchange(&[describe_statement(&long), bind(&long, &long, &[Some(b"5")]), execute(&long, 0), sync()]);
    s.exchange(&[parse(&long, "SELECT 2"), sync()]);
    s.exchange(&[close_statement(&long), sync()]);
    s.exchange(&[bind("", &long, &[]), sync()]);
}

/// Settings that come and go with transactions and savepoints.
pub fn settings_in_transactions(s: &mut Script) {
    // A backend on which a custom setting was once made shows '' in place of NULL ever after.
    let show =
        "SELECT current_setting('work_mem'), current_setting('datestyle'), nullif(current_setting('my.own', true), '')";
    let step = |s: &mut Script, lines: &[&str]| {
        for sql in lines {
            s.query(sql);
        }
        // Reads on any node, and on the primary.
        for _ in 0..3 {
            s.query(show);
            s.query(&format!("{show} FOR UPDATE"));
        }
    };
    step(s, &["BEGIN", "SET work_mem = '5MB'", "ROLLBACK"]);
    step(s, &["BEGIN", "SET work_mem = '6MB'", "COMMIT"]);
    step(s, &["BEGIN", "SET work_mem = '7MB'", "SELECT 1/0", "COMMIT"]);
    step(s, &["BEGIN", "SET LOCAL datestyle = 'German'", "COMMIT"]);
    step(s, &["BEGIN; SET my.own = 'multi'; COMMIT"]);
    step(s, &["BEGIN; SET my.own = 'gone'; ROLLBACK"]);
    step(s, &["SET my.own = 'undone'; SELECT 1/0"]);
    step(s, &["SET my.own = 'kept'; COMMIT; SELECT 1/0"]);
    s.query("DISCARD ALL");
    step(s, &["BEGIN", "SET work_mem = '8MB'", "SAVEPOINT a", "SET work_mem = '9MB'", "ROLLBACK TO a", "COMMIT"]);
    step(s, &["BEGIN", "SAVEPOINT a", "SET datestyle = 'SQL'", "RELEASE a", "COMMIT"]);
    step(s, &["BEGIN", "SET work_mem = '10MB'", "COMMIT AND CHAIN", "SET work_mem = '11MB'", "ROLLBACK"]);
    s.query("DISCARD ALL");
    let batch = |sql: &[&str]| -> Vec<Vec<u8>> {
        sql.iter().flat_map(|sql| [parse("", sql), bind("", "", &[]), execute("", 0)]).chain([sync()]).collect()
    };
    for lines in [
        &["SET work_mem = '12MB'", "SELECT 1/0"][..],
        &["SET work_mem = '13MB'", "COMMIT", "SELECT 1/0"],
        &["BEGIN", "SET work_mem = '14MB'", "COMMIT", "SELECT 1/0"],
        &["SET work_mem = '15MB'", "RESET work_mem"],
        &["SET my.own = 'a'", "SET my.own = 'b'"],
    ] {
        s.exchange(&batch(lines));
        step(s, &[]);
        s.query("DISCARD ALL");
    }
    // Bound, never executed; executed in a later unit.
    s.exchange(&[parse("set", "SET work_mem = '16MB'"), bind("", "set", &[]), sync()]);
    step(s, &[]);
    s.query("BEGIN");
    s.exchange(&[bind("p", "set", &[]), sync()]);
    s.exchange(&[execute("p", 0), sync()]);
    step(s, &["COMMIT"]);
}

/// Each message where it does not belong.
pub fn messages_in_the_wrong_state(s: &mut Script) {
    let fatal = [frame(b'p', b"late\0"), frame(b'Z', b"I"), frame(b'R', b"\0\0\0\0"), frame(b'x', b"")];
    for message in &fatal {
        let mut other = s.other();
        other.send(&message.clone()).unwrap();
        let answer = other.read().map(|message| (message.tag, message.fields().sqlstate().to_owned()));
        s.note(format!("{answer:?}"));
    }
    for message in [copy_data(b"x"), copy_done(), copy_fail("x"), flush()] {
        s.exchange(&[message.clone(), query("SELECT 1")]);
        s.exchange(&[
            parse("", "SELECT 2"),
            message.clone(),
            bind("", "", &[]),
            execute("", 0),
            message.clone(),
            sync(),
        ]);
        s.query("BEGIN");
        s.exchange(&[message.clone(), sync()]);
        s.exchange(&[message.clone(), query("SELECT 1/0")]);
        s.exchange(&[message.clone(), sync()]);
        s.query("ROLLBACK");
        // While the rest of a failed batch is skipped.
        s.exchange(&[parse("", "SELEC"), message.clone(), query("SELECT 'skipped'"), message.clone(), sync()]);
    }
    s.exchange(&[execute("", 0), sync()]);
    s.exchange(&[describe_portal(""), sync()]);
    s.exchange(&[describe_statement(""), sync()]);
    s.exchange(&[close_portal(""), close_statement(""), sync()]);
}
