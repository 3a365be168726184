//! Conversations along the chapter "Message Flow" of PostgreSQL's documentation, with an error at each step.
//!
//! Every function is held with PostgreSQL itself and with proxies, and the records must agree. Absent
//! on purpose: expected values; PostgreSQL is the expectation.

use crate::support::message::*;
use crate::support::script::Script;

pub fn step(sql: &str) -> Vec<Vec<u8>> {
    vec![parse("", sql), bind("", "", &[]), execute("", 0)]
}

/// One batch: these statements, then Sync.
pub fn batch_of(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().flat_map(|sql| step(sql)).chain([sync()]).collect()
}

pub fn table(s: &mut Script, stem: &str) -> String {
    let table = s.name(stem);
    s.query(&format!("CREATE TABLE {table} (i int PRIMARY KEY, t text)"));
    table
}

/// Five writes before one Sync, and the fault in front of each of them.
pub fn pipeline_errors(s: &mut Script) {
    let table = table(s, "piped");
    s.exchange(&[parse("put", &format!("INSERT INTO {table} VALUES ($1::int, 'put')")), sync()]);
    let faults = [
        vec![parse("", "SELEC")],
        vec![parse("", "SELECT * FROM no_such_table")],
        vec![bind("", "put", &[Some(b"not a number")])],
        vec![bind("", "put", &[])],
        vec![bind("", "put", &[Some(b"1")]), execute("", 0), bind("", "put", &[Some(b"1")]), execute("", 0)],
        vec![describe_statement("missing")],
        vec![describe_portal("missing")],
        vec![execute("missing", 1)],
        step("SELECT 1/0"),
        step("VACUUM"),
    ];
    for (number, fault) in faults.iter().enumerate() {
        for position in [0, 2, 5] {
            for begun in [false, true] {
                if begun {
                    s.query("BEGIN");
                }
                let mut messages = Vec::new();
                for i in 0..5 {
                    if i == position {
                        messages.extend(fault.clone());
                    }
                    let value = (100 * number + i + 10).to_string();
                    messages.extend([bind("", "put", &[Some(value.as_bytes())]), execute("", 0)]);
                }
                if position == 5 {
                    messages.extend(fault.clone());
                }
                messages.push(sync());
                s.exchange(&messages);
                if begun {
                    s.query("COMMIT");
                }
                s.query(&format!("DELETE FROM {table}"));
            }
        }
    }
    s.query(&format!("DROP TABLE {table}"));
}

/// Where an implicit transaction begins and ends.
pub fn implicit_transactions(s: &mut Script) {
    let table = table(s, "implicit");
    let put = |i: i32| format!("INSERT INTO {table} VALUES ({i}, 'x')");
    let texts = [
        format!("{}; {}; SELECT 1/0", put(1), put(2)),
        format!("{}; COMMIT; {}; SELECT 1/0", put(3), put(4)),
        format!("{}; ROLLBACK; {}", put(5), put(6)),
        format!("{}; BEGIN; {}", put(7), put(8)),
        "SELECT 'still open'; SELECT 1/0".to_owned(),
        "ROLLBACK".to_owned(),
        format!("BEGIN; {}; COMMIT; {}; SELECT 1/0", put(9), put(10)),
        format!("SAVEPOINT a; {}", put(11)),
        format!("BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; {}; COMMIT", put(12), put(13)),
        format!("{}; VACUUM", put(14)),
        format!("{}; CREATE DATABASE never_made", put(15)),
        "COMMIT; ROLLBACK; SELECT 'both warn'".to_owned(),
        "SET LOCAL work_mem = '3MB'; SHOW work_mem".to_owned(),
        "SHOW work_mem".to_owned(),
        "BEGIN; BEGIN; SELECT 1; COMMIT; COMMIT".to_owned(),
        "BEGIN; SELECT 1/0; SELECT 'skipped'; COMMIT".to_owned(),
        "SELECT 'in a failed one'".to_owned(),
        "ROLLBACK; SELECT 'out of it'".to_owned(),
        "; ; SELECT 'between'; ;".to_owned(),
        "LOCK TABLE pg_class".to_owned(),
        "DECLARE c CURSOR FOR SELECT 1".to_owned(),
        "DECLARE c CURSOR FOR SELECT 1; FETCH c".to_owned(),
        "COMMIT AND CHAIN".to_owned(),
        "BEGIN; COMMIT AND CHAIN; SELECT 'chained'; ROLLBACK".to_owned(),
    ];
    for text in &texts {
        s.query(text);
        s.query(&format!("SELECT i FROM {table} ORDER BY i"));
    }
    s.query("ROLLBACK");
    // The same in one batch of the extended protocol.
    for text in &texts {
        let pieces: Vec<&str> = text.split(';').map(str::trim).filter(|piece| !piece.is_empty()).collect();
        s.query(&format!("TRUNCATE {table}"));
        s.exchange(&batch_of(&pieces));
        s.query("ROLLBACK");
        s.query(&format!("SELECT i FROM {table} ORDER BY i"));
    }
    s.query(&format!("DROP TABLE {table}"));
}

/// COPY with something before and behind it in the same pipeline, and everything that can go wrong with it.
pub fn copy_in_pipelines(s: &mut Script) {
    let table = table(s, "pipecopy");
    let copy = format!("COPY {table} FROM STDIN");
    let put = format!("INSERT INTO {table} VALUES (1, 'put')");
    let count = format!("SELECT count(*), sum(i) FROM {table}");
    let endings: [Vec<Vec<u8>>; 7] = [
        vec![copy_data(b"2\ttwo\n"), copy_done()],
        vec![copy_data(b"2\ttwo\n"), copy_fail("changed my mind")],
        vec![copy_data(b"x\ttwo\n"), copy_data(b"3\tthree\n"), copy_done()],
        vec![copy_data(b"2\ttwo\n2\ttwice\n"), copy_data(b"4\tfour\n"), copy_done()],
        vec![copy_data(b"2"), copy_data(b"\ttwo"), copy_data(b"\n\\.\n"), copy_data(b"5\tignored\n"), copy_done()],
        vec![copy_data(b"2\n"), copy_fail("")],
        vec![copy_done()],
    ];
    for ending in &endings {
        for begun in [false, true] {
            if begun {
                s.query("BEGIN");
            }
            // A driver that waits for CopyInResponse.
            s.send_all(&[step(&put), step(&copy), vec![flush()]].concat());
            s.until(b'G');
            s.exchange(&[ending.clone(), step(&count), vec![sync()]].concat());
            s.query("ROLLBACK");
            // One that does not: everything in one write.
            s.query(&format!("TRUNCATE {table}"));
            s.exchange(&[step(&put), step(&copy), ending.clone(), step(&count), vec![sync()]].concat());
            s.query(&count);
            // By simple Query, and another one right behind.
            s.send_all(&[vec![query(&copy)], ending.clone(), vec![query(&count)]].concat());
            s.ready();
            s.ready();
            s.query(&format!("TRUNCATE {table}"));
        }
    }
    s.exchange(
        &[
            step(&copy),
            vec![copy_data(b"7\tseven\n"), copy_done()],
            step(&copy),
            vec![copy_data(b"7\tagain\n")],
            vec![copy_done(), sync()],
        ]
        .concat(),
    );
    s.exchange(
        &[
            step(&copy),
            vec![copy_data(b"8\teight\n"), copy_done()],
            step(&format!("COPY {table} TO STDOUT")),
            step(&copy),
            vec![copy_fail("no"), sync()],
        ]
        .concat(),
    );
    s.exchange(
        &[vec![bind("", "missing", &[])], step(&copy), vec![copy_data(b"9\tnine\n"), copy_done(), sync()]].concat(),
    );
    s.query("BEGIN");
    s.query("SELECT 1/0");
    s.exchange(&[query(&copy), copy_data(b"9\tnine\n"), copy_done()]);
    s.query("ROLLBACK");
    s.exchange(&[
        query(&format!("COPY {table} FROM STDIN WITH (FORMAT binary)")),
        copy_data(b"no signature"),
        copy_done(),
    ]);
    s.query(&format!("DROP TABLE {table}"));
}

/// Sync and Flush between the data, before the client knows that the node waits for data.
pub fn copy_with_syncs(s: &mut Script) {
    let table = table(s, "synccopy");
    let copy = format!("COPY {table} FROM STDIN");
    let count = format!("SELECT count(*), sum(i) FROM {table}");
    let data = [copy_data(b"2\ttwo\n"), sync(), copy_data(b"3\tthree\n"), flush(), copy_done()];
    // Everything in one write; the last Sync is the only one that counts.
    s.exchange(&[step(&copy), vec![copy_data(b"1\tone\n"), copy_done(), sync()]].concat());
    s.exchange(&[step(&copy), data.to_vec(), vec![sync()]].concat());
    s.exchange(&[step(&copy), data.to_vec(), step(&count), vec![sync()]].concat());
    s.query(&count);
    s.exchange(&[vec![query(&format!("TRUNCATE {table}; {copy}"))], data.to_vec()].concat());
    s.query(&count);
    s.exchange(&[vec![query(&copy), sync(), sync()], data.to_vec()].concat());
    s.query(&count);
    s.exchange(&[vec![query(&copy), copy_data(b"4\tfour\n"), sync(), copy_fail("no")]].concat());
    s.query(&count);
    s.query(&format!("DROP TABLE {table}"));
}

/// Notices of every level, also those that come with an error, and who wants to hear which.
pub fn notices(s: &mut Script) {
    let raise = "DO $$ BEGIN RAISE DEBUG 'debug'; RAISE LOG 'log'; RAISE INFO 'info'; RAISE NOTICE 'notice'; \
                 RAISE WARNING 'warning' USING ERRCODE = '01004', HINT = 'a hint', DETAIL = 'a detail', TABLE = 't'; END $$";
    let fail =
        "DO $$ BEGIN RAISE NOTICE 'before'; RAISE EXCEPTION 'failed' USING ERRCODE = 'P7777', HINT = 'h'; END $$";
    for level in ["debug1", "log", "info", "notice", "warning", "error"] {
        s.query(&format!("SET client_min_messages = {level}"));
        s.query(raise);
        s.query(fail);
        s.exchange(&batch_of(&[raise, "SELECT 'between'", fail, raise]));
        s.query("BEGIN");
        s.query(raise);
        s.query("COMMIT");
        s.query("SELECT 1; SELECT 2");
        s.query("COMMIT");
    }
    s.query("RESET client_min_messages");
    s.query("DROP TABLE IF EXISTS no_such_table, nor_this_one");
    s.query("BEGIN; SELECT 1; BEGIN; COMMIT; COMMIT");
    s.exchange(&batch_of(&["DROP TABLE IF EXISTS no_such_table", "ROLLBACK", "SELECT 'done'"]));
}

/// FunctionCall in every state, good and bad.
pub fn function_calls_and_errors(s: &mut Script) {
    const INT4_ABS: u32 = 1397;
    const INT4_DIV: u32 = 154;
    const TEXT_UPPER: u32 = 871;
    let calls = [
        function_call(INT4_ABS, &[b"-42"]),
        function_call(INT4_DIV, &[b"84", b"2"]),
        function_call(INT4_DIV, &[b"1", b"0"]),
        function_call(INT4_DIV, &[b"1"]),
        function_call(INT4_ABS, &[b"1", b"2"]),
        function_call(INT4_ABS, &[b"99999999999"]),
        function_call(0, &[]),
        function_call(TEXT_UPPER, &["grüße".as_bytes()]),
        function_call(TEXT_UPPER, &[b"\xff\xfe"]),
        // A NULL argument of a strict function, one in binary, a result in binary.
        frame(b'F', &[&INT4_ABS.to_be_bytes()[..], &[0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]].concat()),
        frame(
            b'F',
            &[&INT4_ABS.to_be_bytes()[..], &[0, 1, 0, 1, 0, 1, 0, 0, 0, 4, 0xFF, 0xFF, 0xFF, 0xF0, 0, 1]].concat(),
        ),
        frame(b'F', &[&INT4_ABS.to_be_bytes()[..], &[0, 1, 0, 7, 0, 1, 0, 0, 0, 1, b'1', 0, 0]].concat()),
    ];
    for call in &calls {
        s.exchange(std::slice::from_ref(call));
        s.query("BEGIN");
        s.exchange(std::slice::from_ref(call));
        s.exchange(std::slice::from_ref(call));
        s.query("SELECT 'behind it'");
        s.query("COMMIT");
        s.send_all(&[query("SELECT 'around'"), call.clone(), query("SELECT 'and behind'")]);
        s.ready();
        s.ready();
        s.ready();
    }
    s.query("BEGIN");
    s.query("SELECT 1/0");
    s.exchange(&[calls[0].clone()]);
    s.query("ROLLBACK");
}

/// Two-phase commit, from this session and from another.
pub fn two_phase(s: &mut Script) {
    let table = table(s, "phases");
    let [first, second, third] = ["one", "two", "six"].map(|stem| s.name(stem));
    let put = |s: &mut Script, i: i32| s.query(&format!("BEGIN; INSERT INTO {table} VALUES ({i}, 'x')"));
    put(s, 1);
    s.query(&format!("PREPARE TRANSACTION '{first}'"));
    s.query(&format!("SELECT count(*) FROM {table}"));
    let mut other = s.other();
    let answer = other.simple(&format!("COMMIT PREPARED '{first}'"));
    s.note(format!("{answer:?}"));
    // On the primary: what another session wrote, a standby may show later.
    s.query(&format!("SELECT i FROM {table} FOR UPDATE"));
    put(s, 2);
    s.query(&format!("PREPARE TRANSACTION '{second}'"));
    put(s, 3);
    s.query(&format!("PREPARE TRANSACTION '{second}'"));
    s.query("BEGIN");
    s.query(&format!("COMMIT PREPARED '{second}'"));
    s.query("ROLLBACK");
    s.query(&format!("ROLLBACK PREPARED '{second}'"));
    s.query(&format!("COMMIT PREPARED '{second}'"));
    s.query(&format!("PREPARE TRANSACTION '{third}'"));
    s.query("BEGIN");
    s.query("SELECT 1/0");
    s.query(&format!("PREPARE TRANSACTION '{third}'"));
    s.query("BEGIN; CREATE TEMP TABLE temporary (i int)");
    s.query(&format!("PREPARE TRANSACTION '{third}'"));
    s.query("ROLLBACK");
    s.query("BEGIN; SET work_mem = '5MB'");
    s.query(&format!("PREPARE TRANSACTION '{third}'"));
    s.query("SHOW work_mem");
    s.exchange(&batch_of(&[&format!("ROLLBACK PREPARED '{third}'")]));
    s.exchange(&batch_of(&[
        "BEGIN",
        &format!("INSERT INTO {table} VALUES (4, 'y')"),
        &format!("PREPARE TRANSACTION '{third}'"),
    ]));
    s.exchange(&batch_of(&[&format!("COMMIT PREPARED '{third}'"), "SELECT 1"]));
    s.exchange(&batch_of(&[&format!("COMMIT PREPARED '{third}'")]));
    s.query(&format!("SELECT i FROM {table} ORDER BY i"));
    s.query(&format!("DROP TABLE {table}"));
}

/// Large objects by function calls, as libpq does it, and by SQL.
pub fn large_objects(s: &mut Script) {
    let [open, close, read, write, seek, tell, unlink, truncate] = [952, 953, 954, 955, 956, 958, 964, 1004];
    // A number of its own for each peer, of equal length.
    let number = (770_000 + u32::from(s.name("").as_bytes()[5])).to_string();
    let id = number.as_bytes();
    s.query(&format!("SELECT lo_create({number}) = {number}"));
    s.query("BEGIN");
    s.exchange(&[function_call(open, &[id, b"393216"])]);
    s.exchange(&[function_call(write, &[b"0", b"some bytes of an object"])]);
    s.exchange(&[function_call(seek, &[b"0", b"5", b"0"])]);
    s.exchange(&[function_call(tell, &[b"0"])]);
    s.exchange(&[function_call(read, &[b"0", b"100"])]);
    s.exchange(&[function_call(truncate, &[b"0", b"10"])]);
    s.exchange(&[function_call(close, &[b"0"])]);
    s.exchange(&[function_call(close, &[b"0"])]);
    s.query("SELECT 'failed by that'");
    s.query("ROLLBACK");
    s.query(&format!("SELECT length(lo_get({number}))"));
    // Descriptors end with their transaction.
    s.exchange(&[function_call(read, &[b"0", b"100"])]);
    s.query("BEGIN");
    s.query(&format!("SELECT lo_open({number}, 393216), lowrite(0, 'by SQL'), lo_lseek(0, 0, 0), loread(0, 100)"));
    s.query("COMMIT");
    s.query(&format!("SELECT lo_put({number}, 2, 'XX')"));
    s.query(&format!("SELECT lo_get({number})"));
    s.query(&format!("SELECT lo_get({number}, 1, 3), md5(lo_get({number}))"));
    s.exchange(&[parse("", "SELECT lo_get($1::oid)"), bind("", "", &[Some(id)]), execute("", 0), sync()]);
    s.exchange(&[function_call(open, &[b"1", b"393216"])]);
    s.query("SELECT lo_get(1)");
    s.exchange(&[function_call(unlink, &[id])]);
    s.query(&format!("SELECT count(*) FROM pg_largeobject_metadata WHERE oid = {number}"));
    s.query(&format!("SELECT lo_from_bytea({number}, 'whole') = {number}"));
    s.query(&format!("SELECT lo_get({number})"));
    s.query(&format!("SELECT lo_unlink({number})"));
}

/// Every kind of message in a transaction that has failed.
pub fn in_a_failed_transaction(s: &mut Script) {
    let simple = [
        "SELECT 1",
        "",
        "SHOW work_mem",
        "SET work_mem = '1MB'",
        "RESET ALL",
        "PREPARE x AS SELECT 1",
        "EXECUTE x",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "LISTEN c",
        "NOTIFY c",
        "BEGIN",
        "SAVEPOINT b",
        "RELEASE a",
        "COPY pg_class TO STDOUT",
        "SELEC",
        "PREPARE TRANSACTION 'never'",
        "ROLLBACK TO missing",
        "FETCH c",
        "DECLARE c CURSOR FOR SELECT 1",
        "SELECT 1; ROLLBACK",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET TRANSACTION READ ONLY",
        "CHECKPOINT",
        "LOCK pg_class",
        "ROLLBACK TO a; SELECT 'saved'",
        "COMMIT",
        "ROLLBACK",
        "END",
        "ABORT AND CHAIN",
    ];
    s.exchange(&[
        parse("known", "SELECT 'known', $1::int"),
        parse("back", "ROLLBACK TO a"),
        parse("end", "COMMIT"),
        sync(),
    ]);
    let mut trials: Vec<Vec<Vec<u8>>> = simple.iter().map(|sql| vec![query(sql)]).collect();
    trials.extend(simple.iter().map(|sql| [step(sql), vec![sync()]].concat()));
    trials.extend([
        vec![describe_statement("known"), sync()],
        vec![describe_statement("end"), sync()],
        vec![describe_statement("missing"), sync()],
        vec![describe_portal("p"), sync()],
        vec![bind("", "known", &[Some(b"1")]), execute("", 0), sync()],
        vec![bind("", "end", &[]), execute("", 0), bind("", "known", &[Some(b"1")]), execute("", 0), sync()],
        vec![bind("", "back", &[]), execute("", 0), bind("", "known", &[Some(b"1")]), execute("", 0), sync()],
        vec![execute("p", 1), sync()],
        vec![close_portal("p"), close_statement("known"), close_statement("missing"), sync()],
        vec![parse("known", "SELECT 'known', $1::int"), sync()],
        vec![flush(), sync()],
        vec![copy_data(b"x"), copy_done(), copy_fail("x"), sync()],
        vec![function_call(1397, &[b"1"])],
    ]);
    for trial in &trials {
        s.query("BEGIN; SAVEPOINT a");
        s.exchange(&[parse("", "SELECT generate_series(1, 3)"), bind("p", "", &[]), execute("p", 1), sync()]);
        s.query("SELECT 1/0");
        s.exchange(trial);
        s.query("SELECT 'then'");
        s.query("ROLLBACK");
    }
    s.query("DISCARD ALL");
}

/// Portals with row limits: of every kind of statement, over Syncs, savepoints and their end.
pub fn portals_with_limits(s: &mut Script) {
    let table = table(s, "portals");
    s.query(&format!("INSERT INTO {table} SELECT i, 'row' FROM generate_series(1, 5) i"));
    let kinds = [
        format!("SELECT i FROM {table} ORDER BY i"),
        format!("INSERT INTO {table} SELECT i + 10, 'new' FROM generate_series(1, 4) i RETURNING i"),
        format!("UPDATE {table} SET t = 'upd' WHERE i < 5 RETURNING i, t"),
        format!("WITH gone AS (DELETE FROM {table} WHERE i < 4 RETURNING i) SELECT i FROM gone ORDER BY i"),
        "SHOW work_mem".to_owned(),
        "SHOW ALL".to_owned(),
        "EXPLAIN (COSTS OFF) SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3".to_owned(),
        "FETCH 3 FROM c".to_owned(),
        "VALUES (1), (2), (3)".to_owned(),
        String::new(),
        "SET LOCAL work_mem = '1MB'".to_owned(),
    ];
    for sql in &kinds {
        s.query("BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 9); SAVEPOINT a");
        s.exchange(&[parse("", sql), bind("p", "", &[]), describe_portal("p"), execute("p", 2), sync()]);
        s.exchange(&[execute("p", 1), flush(), execute("p", 1), sync()]);
        s.query("SELECT 'between'");
        s.exchange(&[execute("p", 2), bind("q", "", &[]), execute("q", 1), sync()]);
        s.query("ROLLBACK TO a");
        s.exchange(&[execute("p", 1), sync()]);
        s.query("ROLLBACK");
        // Outside a transaction: what is left at Sync is not run to its end, but what was begun counts.
        s.exchange(&[parse("", sql), bind("p", "", &[]), execute("p", 1), execute("p", 1), sync()]);
        s.exchange(&[execute("p", 1), sync()]);
        s.query(&format!("SELECT count(*), max(t) FROM {table}"));
    }
    s.query("BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 4)");
    s.exchange(&[execute("h", 1), sync()]);
    s.query("COMMIT");
    s.exchange(&[execute("h", 2), sync()]);
    s.exchange(&[describe_portal("h"), close_portal("h"), sync()]);
    s.exchange(&[execute("h", 1), sync()]);
    s.query("BEGIN");
    s.exchange(&[
        parse("", "SELECT 1/(3 - i) FROM generate_series(1, 5) i"),
        bind("p", "", &[]),
        execute("p", 2),
        sync(),
    ]);
    s.exchange(&[execute("p", 2), execute("p", 2), sync()]);
    s.query("COMMIT");
    s.query(&format!("DROP TABLE {table}"));
}
