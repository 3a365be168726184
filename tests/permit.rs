//! A session under a write permit that ends: whatever the client was about to be told, success is not it.
//!
//! Real servers, sessions begun by hand, and a permit that the test moves while a statement is under way: before
//! it is sent, before its answer, in the middle of a result or a COPY, at COMMIT, between statements. What the server has
//! done meanwhile is looked up beside the proxy, so that a test shows that there was a success to be withheld. Absent on
//! purpose: who moves the permit (the control plane's lease).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

#[path = "permit/plane.rs"]
mod plane;

use plane::{EPOCH, Plane};
use std::time::{Duration, Instant};
use support::cluster;
use support::message::*;
use support::rawclient::{Answer, Gone, RawClient};
use support::wait_for;

/// How long the statements take that a permit ends under.
const SLOW: &str = "0.4";

/// A read that takes a while.
const LONG: &str = "generate_series(1, 3000) a, generate_series(1, 3000) b";

/// More rows than the sockets on the way can hold: whoever reads only the first finds the statement still under way.
const MANY: &str = "repeat('x', 2000) FROM generate_series(1, 20000) i";

/// A table of this name; rows of it count what was really committed.
fn table(name: &str) -> RawClient {
    let mut superuser = cluster::shared().superuser("app");
    superuser.simple(&format!("CREATE TABLE {name} (i int); GRANT ALL ON {name} TO app")).unwrap();
    superuser
}

fn count(superuser: &mut RawClient, table: &str) -> String {
    superuser.value(&format!("SELECT count(*) FROM {table}"))
}

/// Waits until a statement that contains this runs on the primary.
fn under_way(superuser: &mut RawClient, text: &str) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active' AND query LIKE '%{text}%'"
    );
    wait_for("the statement is under way", Duration::from_secs(10), || superuser.value(&sql) == "1");
}

fn code(outcome: Result<Answer, Gone>) -> String {
    match outcome {
        Err(Gone::Refused(fields)) => fields.sqlstate().to_owned(),
        Err(gone) => format!("{gone:?}"),
        Ok(answer) => format!("success: {:?}", answer.tags),
    }
}

/// All that comes before the connection ends or is silent; the tags of the messages.
fn rest(client: &mut RawClient) -> String {
    let mut tags = String::new();
    loop {
        match client.read() {
            Ok(message) => tags.push(char::from(message.tag)),
            Err(_) => return tags,
        }
    }
}

#[test]
fn a_write_waits_for_a_permit_before_it_is_sent() {
    let mut superuser = table("unsent");
    let plane = Plane::of_primary("pool.queue_timeout = \"20s\"");
    let mut client = plane.client();
    client.simple("INSERT INTO unsent VALUES (1)").unwrap();
    plane.lapse();
    client.send(&query("INSERT INTO unsent VALUES (2)")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(count(&mut superuser, "unsent"), "1", "a write was sent without a permit");
    let renewed = Instant::now();
    plane.renew();
    assert_eq!(client.answer().unwrap().tags, ["INSERT 0 1"]);
    assert!(renewed.elapsed() < Duration::from_secs(2), "the permit did not wake who waited: {:?}", renewed.elapsed());
}

#[test]
fn a_write_that_finds_no_permit_is_refused_as_in_a_failover() {
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    plane.lapse();
    let Err(Gone::Refused(fields)) = client.simple("CREATE TABLE refused (i int)") else {
        panic!("it was not refused")
    };
    assert_eq!(fields.sqlstate(), "57P03");
    assert!(fields.field(b'D').contains("no permit to write"), "{fields:?}");
    plane.renew();
    assert_eq!(client.value("SELECT to_regclass('refused') IS NULL"), "t");
}

#[test]
fn a_write_answered_too_late_is_not_known_to_be_made() {
    let mut superuser = table("late");
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    let before = client.value("SELECT pg_backend_pid()");
    client.send(&query(&format!("INSERT INTO late SELECT 1 FROM pg_sleep({SLOW})"))).unwrap();
    under_way(&mut superuser, "INTO late");
    plane.lapse();
    let Err(Gone::Refused(fields)) = client.answer() else { panic!("a success after the permit has ended") };
    assert_eq!(fields.sqlstate(), "08007");
    let (why, hint) = (fields.field(b'D').to_owned(), fields.field(b'H').to_owned());
    assert!(why.contains(&format!("permit of epoch {EPOCH} ended before the reply")), "{why}");
    assert!(hint.contains("Look whether the change was made"), "{hint}");
    assert_eq!(count(&mut superuser, "late"), "1", "there was no success to be withheld");
    plane.renew();
    assert_ne!(client.value("SELECT pg_backend_pid()"), before, "the backend was used again");
    assert_eq!(plane.discarded("unpermitted"), 1);
}

#[test]
fn a_commit_answered_too_late_is_not_known_to_be_made() {
    let mut superuser = table("committed");
    superuser
        .simple(&format!(
            "CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN PERFORM pg_sleep({SLOW}); RETURN NULL; END'; \
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON committed DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION slow_commit()"
        ))
        .unwrap();
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    client.simple("BEGIN").unwrap();
    client.simple("INSERT INTO committed VALUES (1)").unwrap();
    client.send(&query("COMMIT")).unwrap();
    under_way(&mut superuser, "COMMIT");
    plane.lapse();
    assert_eq!(code(client.answer()), "08007");
    assert_eq!(count(&mut superuser, "committed"), "1", "there was no success to be withheld");
    plane.renew();
    assert_eq!(client.value("SELECT count(*) FROM committed"), "1", "the session goes on");
}

#[test]
fn a_transaction_is_rolled_back_where_its_permit_ends_between_statements() {
    let mut superuser = table("idle_inside");
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    for last in ["SELECT 1", "INSERT INTO idle_inside VALUES (2)"] {
        let mut client = plane.client();
        client.simple("BEGIN").unwrap();
        client.simple("INSERT INTO idle_inside VALUES (1)").unwrap();
        plane.lapse();
        assert_eq!(code(client.simple(last)), "40001", "{last}");
        plane.renew();
        assert_eq!(code(client.simple("SELECT 1")), "25P02", "only its end is accepted");
        client.simple("ROLLBACK").unwrap();
        assert_eq!(client.value("SELECT count(*) FROM idle_inside"), "0", "{last}");
    }
    assert_eq!(count(&mut superuser, "idle_inside"), "0");
}

#[test]
fn a_statement_of_a_transaction_answered_too_late_fails_it() {
    let mut superuser = table("inside");
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    client.simple("BEGIN").unwrap();
    client.send(&query(&format!("INSERT INTO inside SELECT 1 FROM pg_sleep({SLOW})"))).unwrap();
    under_way(&mut superuser, "INTO inside");
    plane.lapse();
    assert_eq!(code(client.answer()), "40001");
    plane.renew();
    client.simple("ROLLBACK").unwrap();
    assert_eq!(client.value("SELECT count(*) FROM inside"), "0");
}

#[test]
fn a_result_that_has_begun_does_not_end_well() {
    let mut superuser = cluster::shared().superuser("app");
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    client.send(&query(&format!("SELECT {MANY} /*half*/"))).unwrap();
    client.read_until(b'D').unwrap();
    under_way(&mut superuser, "/*half*/");
    plane.lapse();
    assert_eq!(code(client.answer()), "40001");
    plane.renew();
    assert_eq!(client.value("SELECT 1"), "1", "the session goes on");
}

#[test]
fn a_row_that_is_half_told_ends_the_connection() {
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    client.send(&query("SELECT repeat('r', 30000000)")).unwrap();
    client.read_until(b'T').unwrap();
    // The row is larger than what the sockets on the way can hold, and is read no further for now.
    std::thread::sleep(Duration::from_millis(200));
    plane.lapse();
    let tags = rest(&mut client);
    assert!(!tags.contains('C') && !tags.contains('Z'), "the row was told to its end: {tags}");
    plane.renew();
}

#[test]
fn a_pipeline_is_answered_in_order_and_without_success() {
    let mut superuser = table("piped");
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    let unit = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
    let slow = format!("INSERT INTO piped SELECT 2 FROM pg_sleep({SLOW})");
    let all = [unit("INSERT INTO piped VALUES (1)"), unit(&slow), unit("INSERT INTO piped VALUES (3)")].concat();
    client.send(&all).unwrap();
    assert_eq!(client.answer().unwrap().tags, ["INSERT 0 1"], "this was told while the permit was live");
    under_way(&mut superuser, "INTO piped");
    plane.lapse();
    assert_eq!(code(client.answer()), "08007");
    assert_eq!(code(client.answer()), "08007");
    plane.renew();
    assert_eq!(client.value("SELECT count(*) > 1 FROM piped"), "t", "there was no success to be withheld");
}

#[test]
fn a_copy_does_not_end_well() {
    let mut superuser = table("copied");
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    client.send(&query("COPY copied FROM STDIN")).unwrap();
    client.read_until(b'G').unwrap();
    client.send(&copy_data(b"1\n")).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    plane.lapse();
    client.send(&[copy_data(b"2\n"), copy_done()].concat()).unwrap();
    let refused = code(client.answer());
    assert!(["08007", "40001"].contains(&&*refused), "{refused}");
    plane.renew();
    assert_eq!(client.value("SELECT 1"), "1", "the session goes on");

    let mut client = plane.client();
    client.send(&query(&format!("COPY (SELECT {MANY}) TO STDOUT /*out*/"))).unwrap();
    client.read_until(b'd').unwrap();
    under_way(&mut superuser, "/*out*/");
    plane.lapse();
    let refused = code(client.answer());
    assert!(["08007", "40001"].contains(&&*refused), "{refused}");
    plane.renew();
}

#[test]
fn a_read_of_the_primary_answered_too_late_runs_again() {
    let mut superuser = cluster::shared().superuser("app");
    let plane = Plane::of_primary("pool.queue_timeout = \"20s\"");
    let mut client = plane.client();
    client.send(&query(&format!("SELECT count(*) /*again*/ FROM {LONG}"))).unwrap();
    under_way(&mut superuser, "/*again*/");
    plane.lapse();
    plane.publish_next();
    client.read_timeout(Duration::from_secs(1));
    assert_eq!(client.read().map(|message| message.tag), Err(Gone::TimedOut), "an answer without a permit");
    client.read_timeout(Duration::from_secs(20));
    plane.renew_next();
    assert_eq!(client.answer().unwrap().rows, [[Some("9000000".to_owned())]]);
    assert_eq!(plane.discarded("unpermitted"), 1, "it is the old answer");
}

#[test]
fn what_was_heard_in_a_lapse_counts_when_the_same_epoch_is_permitted_again() {
    let mut superuser = table("spanned");
    let plane = Plane::of_primary("pool.queue_timeout = \"20s\"");
    let mut client = plane.client();
    client.send(&query(&format!("INSERT INTO spanned SELECT 1 FROM pg_sleep({SLOW})"))).unwrap();
    under_way(&mut superuser, "INTO spanned");
    plane.lapse();
    client.read_timeout(Duration::from_secs(1));
    assert_eq!(client.read().map(|message| message.tag), Err(Gone::TimedOut), "a success without a permit");
    client.read_timeout(Duration::from_secs(20));
    plane.renew();
    assert_eq!(client.answer().unwrap().tags, ["INSERT 0 1"]);

    client.simple("BEGIN").unwrap();
    client.simple("INSERT INTO spanned VALUES (2)").unwrap();
    plane.lapse();
    client.send(&query("INSERT INTO spanned VALUES (3)")).unwrap();
    client.send(&query("COMMIT")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(count(&mut superuser, "spanned"), "1", "COMMIT was sent without a permit");
    plane.renew();
    assert_eq!(client.answer().unwrap().tags, ["INSERT 0 1"]);
    assert_eq!(client.answer().unwrap().tags, ["COMMIT"]);
    assert_eq!(count(&mut superuser, "spanned"), "3");
    assert_eq!(plane.discarded("unpermitted"), 0);
}

#[test]
fn what_was_heard_in_a_lapse_is_void_as_soon_as_there_is_another_epoch() {
    let mut superuser = table("superseded");
    let plane = Plane::of_primary("pool.queue_timeout = \"20s\"");
    let mut client = plane.client();
    client.send(&query(&format!("INSERT INTO superseded SELECT 1 FROM pg_sleep({SLOW})"))).unwrap();
    under_way(&mut superuser, "INTO superseded");
    plane.lapse();
    wait_for("it is committed", Duration::from_secs(10), || count(&mut superuser, "superseded") == "1");
    let published = Instant::now();
    plane.publish_next();
    assert_eq!(code(client.answer()), "08007");
    assert!(published.elapsed() < Duration::from_secs(5), "{:?}", published.elapsed());
    plane.renew_next();
    assert_eq!(client.value("SELECT count(*) FROM superseded"), "1", "the session goes on");
}

#[test]
fn a_replication_connection_ends_when_its_primary_speaks_without_a_permit() {
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.replication();
    assert_eq!(client.simple("IDENTIFY_SYSTEM").unwrap().rows.len(), 1);
    plane.lapse();
    assert_eq!(code(client.simple("IDENTIFY_SYSTEM")), "57P01");
    assert_eq!(plane.discarded("unpermitted"), 1);
}

#[test]
fn standbys_answer_without_a_permit() {
    let plane = Plane::of_all("pool.queue_timeout = \"20s\"\nroute.consistency = \"eventual\"");
    let mut client = plane.client();
    plane.lapse();
    assert_eq!(client.value("SELECT pg_is_in_recovery()"), "t");
    client.send(&query("SELECT pg_is_in_recovery() FOR UPDATE")).unwrap();
    client.read_timeout(Duration::from_millis(300));
    assert_eq!(client.read().map(|message| message.tag), Err(Gone::TimedOut), "the primary answers without a permit");
    plane.renew();
    client.read_timeout(Duration::from_secs(20));
    assert_eq!(client.answer().unwrap().rows, [[Some("f".to_owned())]]);
}

#[test]
fn a_permit_that_is_only_extended_is_never_over() {
    let plane = Plane::of_primary("pool.queue_timeout = \"300ms\"");
    let mut client = plane.client();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                plane.renew();
            }
        });
        for number in 0..500 {
            assert_eq!(client.value(&format!("SELECT {number}")), number.to_string());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(plane.discarded("unpermitted"), 0);
}
