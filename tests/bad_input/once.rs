//! No write reaches a node twice, wherever in the conversation the connection ends.
//!
//! For every way of saying a write the connection is cut after each number of bytes that the node received of it, and
//! after each number of bytes that it answered. Contracts: the bytes of a write arrive in full at most once, over all
//! nodes; success is told only of what was stored; whoever gets no answer is told that the outcome is not known, or,
//! where nothing can have happened, that it may be retried. Absent on purpose: reads that move (`nodes`, `healing`).

use super::nodes::{Stage, UNKNOWN};
use crate::support::cluster;
use crate::support::fakenode::{ChaosNode, Fault};
use crate::support::message::*;
use crate::support::rawclient::{Answer, Gone};

/// More bytes than any marked message or answer here has.
const BYTES_MAX: usize = 400;
const TABLE: &str = "once";

/// How a write is said. Its marker stands in exactly one message.
struct Way {
    name: &'static str,
    /// Said and answered before the cut.
    before: fn(&str) -> Vec<u8>,
    /// The messages with the write, by its marker.
    said: fn(&str) -> Vec<u8>,
    /// Answers (ReadyForQuery) to `said`, and which of them is the write's.
    answers: (usize, usize),
}

fn nothing(_: &str) -> Vec<u8> {
    Vec::new()
}

fn insert(marker: &str) -> String {
    format!("INSERT INTO {TABLE} VALUES ('{marker}')")
}

fn named() -> Vec<u8> {
    [parse("put", &format!("INSERT INTO {TABLE} VALUES ($1)")), sync()].concat()
}

const WAYS: [Way; 8] = [
    Way { name: "simple", before: nothing, said: |marker| query(&insert(marker)), answers: (1, 0) },
    Way {
        name: "several",
        before: nothing,
        said: |marker| query(&format!("SELECT 1; {}; SELECT 2", insert(marker))),
        answers: (1, 0),
    },
    Way {
        name: "extended",
        before: nothing,
        said: |marker| [parse("", &insert(marker)), bind("", "", &[]), execute("", 0), sync()].concat(),
        answers: (1, 0),
    },
    Way {
        name: "named",
        before: |_| named(),
        said: |marker| [bind("", "put", &[Some(marker.as_bytes())]), execute("", 0), sync()].concat(),
        answers: (1, 0),
    },
    Way {
        name: "pipeline",
        before: nothing,
        said: |marker| {
            let other = format!("INSERT INTO {TABLE} VALUES ('other')");
            [query(&other), query("SELECT 1"), query(&insert(marker)), query("SELECT 2")].concat()
        },
        answers: (4, 2),
    },
    Way {
        name: "copy",
        before: nothing,
        said: |marker| {
            [query(&format!("COPY {TABLE} FROM STDIN")), copy_data(format!("{marker}\n").as_bytes()), copy_done()]
                .concat()
        },
        answers: (1, 0),
    },
    Way {
        name: "commit",
        before: |marker| query(&format!("BEGIN; INSERT INTO {TABLE} VALUES (upper('{marker}'))")),
        said: |marker| query(&format!("COMMIT /* {marker} */")),
        answers: (1, 0),
    },
    // Looks like a read: a standby refuses it first, so that it arrives twice, but only once at the primary.
    Way {
        name: "misrouted",
        before: nothing,
        said: |marker| query(&format!("SELECT once_put('{marker}') AS {marker}")),
        answers: (1, 0),
    },
];

fn stored(marker: &str) -> usize {
    let sql = format!("SELECT count(*) FROM {TABLE} WHERE id IN ('{marker}', upper('{marker}'))");
    cluster::shared().superuser("app").value(&sql).parse().unwrap()
}

/// Says a write while one fault waits for it at the primary; true: it struck.
fn strike(stage: &Stage, way: &Way, marker: &str, fault: &Fault) -> bool {
    let mut client = stage.proxy.client();
    let before = (way.before)(marker);
    if !before.is_empty() {
        client.send(&before).unwrap();
        client.answer().unwrap();
    }
    stage.nodes.iter().for_each(|node| node.watch(marker));
    let struck = stage.nodes[0].fired();
    // Those before the cut may hold the marker as well.
    ChaosNode::rule_for_any(&stage.nodes[..1], marker, fault, 1);
    client.send(&(way.said)(marker)).unwrap();
    let (count, own) = way.answers;
    let mut all: Vec<Result<Answer, Gone>> = (0..count).map(|_| client.answer()).collect();
    let outcome = all.swap_remove(own);
    stage.nodes.iter().for_each(ChaosNode::calm);
    let what = format!("{}, {fault:?}", way.name);
    let (arrived, rows) = (stage.nodes[0].passed(marker), stored(marker));
    assert!(arrived <= 1, "{what}: arrived {arrived} times at the primary");
    assert!(rows <= 1, "{what}: stored {rows} times");
    match outcome {
        Ok(_) => assert_eq!(rows, 1, "{what}: told that it is stored"),
        Err(Gone::Refused(fields)) => {
            let known = UNKNOWN.contains(&fields.sqlstate()) || fields.sqlstate() == "40001" && rows == 0;
            assert!(known, "{what}, {rows} rows: {fields:?}");
        }
        Err(gone) => panic!("{what}: {gone:?}"),
    }
    stage.nodes[0].fired() > struck
}

#[test]
fn no_write_arrives_twice_wherever_the_connection_ends() {
    let stage = Stage::with("route.read_functions", r#"["once_put"]"#);
    let set_up = format!(
        "CREATE TABLE {TABLE} (id text); GRANT ALL ON {TABLE} TO app; CREATE FUNCTION once_put(id text) RETURNS int \
         LANGUAGE plpgsql AS $$ BEGIN INSERT INTO {TABLE} VALUES (id); RETURN 1; END $$"
    );
    cluster::shared().superuser("app").simple(&set_up).unwrap();
    cluster::shared().wait_replayed();
    for way in &WAYS {
        for (kind, fault) in [("sent", Fault::CutRequestAt as fn(usize) -> Fault), ("answered", Fault::CutAnswer)] {
            let mut strikes = 0;
            for at in 0..BYTES_MAX {
                let marker = format!("once_{}_{kind}_{at}_", way.name);
                if !strike(&stage, way, &marker, &fault(at)) {
                    break;
                }
                strikes += 1;
            }
            println!("{}: {strikes} bytes {kind}", way.name);
            assert!((10..BYTES_MAX).contains(&strikes), "{}: {strikes} cuts when bytes are {kind}", way.name);
        }
    }
    stage.proxy.assert_serving();
}
