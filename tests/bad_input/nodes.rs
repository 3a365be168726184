//! Nodes that die at any byte of an answer, or talk nonsense.
//!
//! The cut moves through every byte of the answer, one statement per position. Contracts: rows that
//! arrive are the first rows of the right answer; a write whose bytes were sent reaches the nodes once;
//! whoever got no answer is told so by an error that does not promise what is not known.
//! Absent on purpose: silence without end, which only the client can tell from a long statement.

use crate::sqlstate;
use crate::support::bystander::Bystander;
use crate::support::cluster;
use crate::support::fakenode::{ChaosNode, Fault};
use crate::support::message::*;
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::{Answer, Gone, RawClient};
use std::time::Duration;

/// More bytes than any answer here has.
const ANSWER_BYTES_MAX: usize = 600;
/// "It may or may not have happened": all that may be said about a write without an answer.
pub const UNKNOWN: [&str; 2] = ["08006", "08007"];

/// Nodes that lie, with a proxy in front.
pub struct Stage {
    pub nodes: Vec<ChaosNode>,
    pub proxy: Proxy,
}

impl Stage {
    pub fn new() -> Self {
        Self::with("pool.queue_timeout", "\"10s\"")
    }

    /// With one setting more.
    pub fn with(key: &str, value: &str) -> Self {
        let nodes: Vec<ChaosNode> = cluster::shared().ports.iter().map(|port| ChaosNode::in_front_of(*port)).collect();
        let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
        let proxy = ProxySpec::new(&ports).set("pool.queue_timeout", "\"10s\"").set(key, value).start_splitting();
        Self { nodes, proxy }
    }

    pub fn fired(&self) -> usize {
        self.nodes.iter().map(ChaosNode::fired).sum()
    }

    fn passed(&self, marker: &str) -> usize {
        self.nodes.iter().map(|node| node.passed(marker)).sum()
    }

    /// Breaks the next statement with this marker on whichever node it arrives; tells whether it happened.
    fn broken(&self, marker: &str, fault: &Fault, act: impl FnOnce()) -> bool {
        let before = self.fired();
        self.nodes.iter().for_each(|node| node.watch(marker));
        ChaosNode::rule_for_any(&self.nodes, marker, fault, 1);
        act();
        self.nodes.iter().for_each(ChaosNode::calm);
        self.fired() > before
    }

    /// Runs `act` with the cut at every byte of the answer to the statement that carries its marker.
    pub fn cut_everywhere(&self, stem: &str, mut act: impl FnMut(&str)) {
        for at in 0..ANSWER_BYTES_MAX {
            let marker = format!("{stem}_cut_at_{at}_");
            if !self.broken(&marker, &Fault::CutAnswer(at), || act(&marker)) {
                assert!(at > 10, "the answer to {stem} has only {at} bytes: nothing was tested");
                return;
            }
        }
        panic!("the answer to {stem} never ended");
    }
}

impl Stage {
    /// The same for a statement that the proxy sends by itself: `act` prepares, calls its second argument, and causes it.
    /// A stem with capitals or parentheses is a text that the proxy always sends so.
    pub fn cut_everywhere_in(&self, stem: &str, mut act: impl FnMut(&str, &dyn Fn())) {
        let fixed = stem.contains(|c: char| c.is_uppercase() || c == '(');
        for at in 0..ANSWER_BYTES_MAX {
            let marker = if fixed { stem.to_owned() } else { format!("{stem}_cut_at_{at}_") };
            let before = self.fired();
            act(&marker, &|| ChaosNode::rule_for_any(&self.nodes, &marker, &Fault::CutAnswer(at), 1));
            self.nodes.iter().for_each(ChaosNode::calm);
            if self.fired() == before {
                assert!(at > 10, "the answer to {stem} has only {at} bytes: nothing was tested");
                return;
            }
        }
        panic!("the answer to {stem} never ended");
    }
}

fn stored(table: &str, marker: &str) -> usize {
    let mut superuser = cluster::shared().superuser("app");
    superuser.value(&format!("SELECT count(*) FROM {table} WHERE id = '{marker}'")).parse().unwrap()
}

/// Reads rows until the answer ends; the rows count even if an error follows.
fn rows_and_end(client: &mut RawClient) -> (Vec<String>, Result<(), Gone>) {
    let (mut rows, mut refused) = (Vec::new(), Ok(()));
    loop {
        match client.read() {
            Ok(message) if message.tag == b'D' => rows.push(message.row_text()[0].clone().unwrap_or_default()),
            Ok(message) if message.tag == b'E' => refused = Err(Gone::Refused(message.fields())),
            Ok(message) if message.tag == b'Z' => return (rows, refused),
            Ok(_) => {}
            Err(Gone::Closed) => return (rows, refused.and(Err(Gone::Closed))),
            Err(gone) => return (rows, Err(gone)),
        }
    }
}

fn check_read(client: &mut RawClient, marker: &str) {
    let (rows, end) = rows_and_end(client);
    let right = ["row 1", "row 2", "row 3"];
    assert!(rows.len() <= right.len() && rows == right[..rows.len()], "{marker}: wrong rows {rows:?}");
    match end {
        Ok(()) => assert_eq!(rows, right, "{marker}: fewer rows than there are, and no error"),
        Err(Gone::Refused(fields)) => {
            let known = ["08006", "08007", "40001", "57P01", "57P03"];
            assert!(known.contains(&fields.sqlstate()), "{marker}: {fields:?}");
        }
        Err(gone) => panic!("{marker}: {gone:?} without an error"),
    }
}

#[test]
fn a_read_is_cut_at_every_byte() {
    let stage = Stage::new();
    let bystander = Bystander::start(&stage.proxy);
    stage.cut_everywhere("read", |marker| {
        let mut client = stage.proxy.client();
        client.send(&query(&format!("SELECT 'row ' || i /* {marker} */ FROM generate_series(1, 3) i"))).unwrap();
        check_read(&mut client, marker);
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

#[test]
fn an_extended_read_is_cut_at_every_byte() {
    let stage = Stage::new();
    let bystander = Bystander::start(&stage.proxy);
    stage.cut_everywhere("extended_read", |marker| {
        let mut client = stage.proxy.client();
        let sql = "SELECT 'row ' || i FROM generate_series(1, 3) i WHERE $1::text <> ''";
        let bound = bind("", "", &[Some(marker.as_bytes())]);
        client.send(&batch(&[parse("", sql), bound, describe_portal(""), execute("", 0), sync()])).unwrap();
        check_read(&mut client, marker);
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

fn check_write(stage: &Stage, table: &str, marker: &str, outcome: &Result<Answer, Gone>) {
    assert!(stage.passed(marker) <= 1, "{marker} was sent {} times", stage.passed(marker));
    match outcome {
        Ok(answer) => {
            assert_eq!((answer.tags.last().map(String::as_str), stored(table, marker)), (Some("INSERT 0 1"), 1))
        }
        Err(_) => assert!(UNKNOWN.contains(&sqlstate(outcome).as_str()), "{marker}: {outcome:?}"),
    }
    assert!(stored(table, marker) <= 1, "{marker} was stored twice");
}

#[test]
fn a_write_is_cut_at_every_byte() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_write (id text)").unwrap();
    let bystander = Bystander::start(&stage.proxy);
    stage.cut_everywhere("write", |marker| {
        let outcome = stage.proxy.client().simple(&format!("INSERT INTO cut_write VALUES ('{marker}')"));
        check_write(&stage, "cut_write", marker, &outcome);
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

#[test]
fn an_extended_write_is_cut_at_every_byte() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_extended (id text)").unwrap();
    let bystander = Bystander::start(&stage.proxy);
    stage.cut_everywhere("extended_write", |marker| {
        let mut client = stage.proxy.client();
        client.send(&batch(&[parse("put", "INSERT INTO cut_extended VALUES ($1)"), sync()])).unwrap();
        client.answer().unwrap();
        client.send(&batch(&[bind("", "put", &[Some(marker.as_bytes())]), execute("", 0), sync()])).unwrap();
        check_write(&stage, "cut_extended", marker, &client.answer());
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

#[test]
fn a_commit_is_cut_at_every_byte() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_commit (id text)").unwrap();
    let bystander = Bystander::start(&stage.proxy);
    stage.cut_everywhere("commit", |marker| {
        let mut client = stage.proxy.client();
        client.simple("BEGIN").unwrap();
        client.simple(&format!("INSERT INTO cut_commit VALUES ('{}')", marker.to_uppercase())).unwrap();
        let outcome = client.simple(&format!("COMMIT /* {marker} */"));
        assert!(stage.passed(marker) <= 1, "COMMIT was sent twice");
        let rows = stored("cut_commit", &marker.to_uppercase());
        match &outcome {
            Ok(answer) => assert_eq!((answer.tags[0].as_str(), rows), ("COMMIT", 1)),
            Err(_) => assert!(UNKNOWN.contains(&sqlstate(&outcome).as_str()), "{marker}: {outcome:?}"),
        }
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

#[test]
fn a_node_that_dies_inside_a_transaction_undoes_it() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_inside (id text)").unwrap();
    for at in [0, 1, 5, 12] {
        let (first, marker) = (format!("inside_first_{at}"), format!("inside_{at}_"));
        let mut client = stage.proxy.client();
        client.simple("BEGIN").unwrap();
        client.simple(&format!("INSERT INTO cut_inside VALUES ('{first}')")).unwrap();
        assert!(stage.broken(&marker, &Fault::CutAnswer(at), || {
            let outcome = client.simple(&format!("INSERT INTO cut_inside VALUES ('{marker}')"));
            assert!(["40001", "08006", "57P01"].contains(&sqlstate(&outcome).as_str()), "{outcome:?}");
        }));
        // Whatever the client says next, nothing of the transaction may come to stay.
        let _ = client.simple("COMMIT");
        assert_eq!((stored("cut_inside", &first), stored("cut_inside", &marker)), (0, 0));
    }
    stage.proxy.assert_serving();
}

/// The client had nothing under way, so nothing told it; its COMMIT must not look like one.
#[test]
fn a_commit_after_an_unseen_loss_is_an_error() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_unseen (id text)").unwrap();
    let commit = |client: &mut RawClient, extended: bool, sql: &str| {
        if extended {
            client
                .send(&batch(&[parse("", sql), bind("", "", &[]), describe_portal(""), execute("", 0), sync()]))
                .unwrap();
            client.answer()
        } else {
            client.simple(sql)
        }
    };
    for extended in [false, true] {
        for sql in ["COMMIT", "END", "PREPARE TRANSACTION 'unseen'", "SELECT 1", "ROLLBACK"] {
            let mut client = stage.proxy.client();
            client.simple("BEGIN").unwrap();
            client.simple(&format!("INSERT INTO cut_unseen VALUES ('{}')", sql.replace('\'', ""))).unwrap();
            stage.nodes.iter().for_each(ChaosNode::cut_all);
            std::thread::sleep(Duration::from_millis(100));
            let outcome = commit(&mut client, extended, sql);
            if sql == "ROLLBACK" {
                assert_eq!(outcome.unwrap().tags, ["ROLLBACK"]);
            } else {
                assert_eq!(sqlstate(&outcome), "40001", "{sql}: {outcome:?}");
            }
            // Whatever it was, a ROLLBACK behind it ends the transaction, and the session goes on.
            client.simple("ROLLBACK").unwrap();
            assert_eq!(client.value("SELECT 'on'"), "on");
        }
    }
    let mut superuser = cluster::shared().superuser("app");
    assert_eq!(superuser.value("SELECT count(*) FROM cut_unseen"), "0");
    stage.proxy.assert_serving();
}

#[test]
fn a_request_that_never_arrived_is_not_promised() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_request (id text)").unwrap();
    for round in 0..5 {
        let marker = format!("request_{round}_");
        let mut outcome = Ok(Answer::default());
        assert!(stage.broken(&marker, &Fault::CutRequest, || {
            outcome = stage.proxy.client().simple(&format!("INSERT INTO cut_request VALUES ('{marker}')"));
        }));
        // The bytes left the proxy: it cannot know that they were lost, and must not send them again.
        assert!(UNKNOWN.contains(&sqlstate(&outcome).as_str()), "{outcome:?}");
        assert_eq!((stage.passed(&marker), stored("cut_request", &marker)), (0, 0));
    }
    stage.proxy.assert_serving();
}

/// What no node says.
fn nonsense() -> Vec<Vec<u8>> {
    vec![
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        vec![0; 32],
        vec![0xFF; 32],
        [b"D".as_slice(), &0_u32.to_be_bytes()].concat(),
        [b"D".as_slice(), &3_u32.to_be_bytes()].concat(),
        [b"T".as_slice(), &u32::MAX.to_be_bytes()].concat(),
        [b"C".as_slice(), &0x7FFF_FFFF_u32.to_be_bytes()].concat(),
        frame(b'Z', b""),
        frame(b'Z', b"?"),
        frame(b'Z', b"II"),
        frame(b'~', b"what"),
        frame(b'R', b"\0\0\0\x05salt"),
        frame(b'S', b"unfinished"),
        frame(b'1', b""),
        frame(b'K', b"\0"),
    ]
}

#[test]
fn nonsense_from_a_node_ends_in_an_error() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE nonsense (id text)").unwrap();
    let bystander = Bystander::start(&stage.proxy);
    for (number, bytes) in nonsense().into_iter().enumerate() {
        // Then the connection ends, so that a proxy that waits for the rest of a message learns it.
        let marker = format!("nonsense_{number}_");
        let fault = Fault::InjectAndCut(bytes.clone());
        let mut outcome = Ok(Answer::default());
        assert!(stage.broken(&marker, &fault, || {
            outcome = stage.proxy.client().simple(&format!("INSERT INTO nonsense VALUES ('{marker}')"));
        }));
        assert!(matches!(outcome, Err(Gone::Refused(_))), "{bytes:02x?}: {outcome:?}");
        assert_eq!((stage.passed(&marker), stored("nonsense", &marker)), (1, 1));
        let marker = format!("nonsense_read_{number}_");
        stage.broken(&marker, &fault, || {
            let mut client = stage.proxy.client();
            client.send(&query(&format!("SELECT 'row ' || i /* {marker} */ FROM generate_series(1, 3) i"))).unwrap();
            let (rows, end) = rows_and_end(&mut client);
            assert!(rows.is_empty() || end.is_ok() && rows.len() == 3, "{bytes:02x?}: {rows:?}");
            assert!(matches!(end, Ok(()) | Err(Gone::Refused(_))), "{bytes:02x?}: {end:?}");
        });
    }
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

#[test]
fn a_slow_node_is_waited_for() {
    let stage = Stage::new();
    let marker = "slowly";
    assert!(stage.broken(marker, &Fault::Delay(Duration::from_millis(1500)), || {
        assert_eq!(stage.proxy.client().value(&format!("SELECT '{marker}'")), marker);
    }));
    assert_eq!(stage.passed(marker), 1, "a slow read is not sent twice");
    stage.proxy.assert_serving();
}

#[test]
fn connections_cut_while_idle_are_noticed_before_reuse() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_idle (id text)").unwrap();
    for round in 0..5 {
        let mut client = stage.proxy.client();
        client.simple("SELECT 1 FOR UPDATE").unwrap();
        stage.nodes.iter().for_each(ChaosNode::cut_all);
        std::thread::sleep(Duration::from_millis(100));
        // The proxy has had time to see the end of its idle backends: no client needs to suffer.
        let marker = format!("idle_{round}");
        let outcome = client.simple(&format!("INSERT INTO cut_idle VALUES ('{marker}')"));
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(stored("cut_idle", &marker), 1);
    }
}
