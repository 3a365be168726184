//! Nodes that die at any byte of an answer that the client never sees, or of an error.
//!
//! The proxy's own statements on a client's backend: settings made again, the reset behind a session that
//! kept one, the question what a backend holds. Contracts: a session sees its own state or an error,
//! never another's; a backend whose reset or answer was cut is not used again. Absent on purpose:
//! statements of the client that succeed (`nodes`).

use crate::nodes::Stage;
use crate::sqlstate;
use crate::support::bystander::Bystander;
use crate::support::message::*;
use crate::support::rawclient::{Answer, Gone, RawClient};

/// What a client may hear when a node is lost: a statement that may have run, one that did not, an end.
const LOST: [&str; 6] = ["08006", "08007", "40001", "57P01", "57P03", "25P02"];

fn assert_lost(what: &str, outcome: &Result<Answer, Gone>) {
    match outcome {
        Err(Gone::Refused(fields)) => assert!(LOST.contains(&fields.sqlstate()), "{what}: {fields:?}"),
        other => panic!("{what}: {other:?}"),
    }
}

/// A client of the same proxy that occupies the primary's backend used last, so that the next statement needs another.
fn occupy(stage: &Stage) -> RawClient {
    let mut other = stage.proxy.client();
    other.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
    other
}

#[test]
fn settings_made_again_are_cut_at_every_byte() {
    let stage = Stage::new();
    stage.proxy.client().simple("CREATE TABLE cut_replay (id text, who text)").unwrap();
    let bystander = Bystander::start(&stage.proxy);
    let show = "SELECT current_setting('app.who')";
    stage.cut_everywhere_in("replay_read", |marker, arm| {
        let mut client = stage.proxy.client();
        // In a transaction, so that the primary has it.
        for sql in ["BEGIN", &format!("SET app.who = '{marker}'"), "COMMIT"] {
            client.simple(sql).unwrap();
        }
        arm();
        // A read that may go to a standby goes there soon; that node must learn the setting first.
        let before = stage.fired();
        for _ in 0..15 {
            match client.simple("SELECT 'read'") {
                Ok(answer) => assert_eq!(answer.rows, [[Some("read".to_owned())]]),
                outcome => assert_lost(marker, &outcome),
            }
            if stage.fired() > before {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        match client.simple(show) {
            Ok(answer) => assert_eq!(answer.rows, [[Some(marker.to_owned())]]),
            outcome => assert_lost(marker, &outcome),
        }
    });
    stage.cut_everywhere_in("replay_write", |marker, arm| {
        let mut client = stage.proxy.client();
        for sql in ["BEGIN", &format!("SET app.who = '{marker}'"), "COMMIT"] {
            client.simple(sql).unwrap();
        }
        let _others: Vec<RawClient> = (0..3).map(|_| occupy(&stage)).collect();
        arm();
        let name = marker.to_uppercase();
        let outcome = client.simple(&format!("INSERT INTO cut_replay VALUES ('{name}', current_setting('app.who'))"));
        let stored = format!("SELECT coalesce(string_agg(who, ','), '') FROM cut_replay WHERE id = '{name}'");
        let stored_now = || stage.proxy.client().value(&stored);
        match &outcome {
            Ok(_) => assert_eq!(stored_now(), marker),
            Err(_) => {
                assert_lost(marker, &outcome);
                assert!(
                    ["", marker].contains(&stored_now().as_str()),
                    "{marker}: stored twice, or with another's setting"
                );
                if sqlstate(&outcome) == "40001" {
                    assert_eq!(stored_now(), "", "{marker}: told that it may be repeated, although it ran");
                }
            }
        }
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

#[test]
fn a_reset_is_cut_at_every_byte() {
    let stage = Stage::new();
    let bystander = Bystander::start(&stage.proxy);
    stage.cut_everywhere_in("DISCARD ALL", |_, arm| {
        let mut client = stage.proxy.client();
        client.simple("CREATE TEMP TABLE secret (t text); SET app.who = 'secret'").unwrap();
        // Behind this one nothing is under way: the session leaves a clean backend with state.
        client.simple("SELECT 1").unwrap();
        arm();
        client.send(&terminate()).unwrap();
        let _ = client.read_to_end();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let mut clients: Vec<RawClient> = (0..2).map(|_| stage.proxy.client()).collect();
        for client in &mut clients {
            let seen = client
                .simple("BEGIN; SELECT to_regclass('secret'), nullif(current_setting('app.who', true), '') FOR UPDATE");
            assert_eq!(seen.unwrap().rows, [[None, None]], "a session begins with another's state");
        }
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}

#[test]
fn the_question_what_a_backend_holds_is_cut_at_every_byte() {
    let stage = Stage::new();
    // No bystander: the same question is asked for others too, and would be cut.
    let mut round = 0;
    stage.cut_everywhere_in("pg_my_temp_schema()", |_, arm| {
        round += 1;
        let value = format!("secret {round}");
        let mut client = stage.proxy.client();
        arm();
        let told = client.simple(&format!("DO $$ BEGIN PERFORM set_config('app.who', '{value}', false); END $$"));
        if told.is_err() {
            assert_lost(&value, &told);
        }
        for sql in ["SELECT current_setting('app.who')", "SELECT current_setting('app.who') FOR UPDATE"] {
            match client.simple(sql) {
                Ok(answer) => assert_eq!(answer.rows, [[Some(value.clone())]], "after {told:?}"),
                Err(Gone::Closed) => break,
                // The question was under way in front of this statement, and the node is gone with both; or the
                // client was told that its setting may be there or not.
                Err(Gone::Refused(fields)) if LOST.contains(&fields.sqlstate()) => break,
                Err(gone) => assert!(told.is_err(), "{gone:?} although the client was told that it is set"),
            }
        }
        let seen = stage
            .proxy
            .client()
            .value("SELECT coalesce(nullif(current_setting('app.who', true), ''), 'nothing') FOR UPDATE");
        assert_eq!(seen, "nothing", "another session sees it");
    });
    stage.proxy.assert_serving();
}

#[test]
fn errors_are_cut_at_every_byte() {
    let stage = Stage::new();
    stage
        .proxy
        .client()
        .simple("CREATE TABLE cut_error (id text PRIMARY KEY); INSERT INTO cut_error VALUES ('there')")
        .unwrap();
    let bystander = Bystander::start(&stage.proxy);
    let checked = |marker: &str, expected: &str, outcome: &Result<Answer, Gone>| {
        if sqlstate(outcome) != expected {
            assert_lost(marker, outcome);
        }
    };
    stage.cut_everywhere("error_read", |marker| {
        checked(marker, "22012", &stage.proxy.client().simple(&format!("SELECT 1/0 /* {marker} */")));
    });
    stage.cut_everywhere("error_write", |marker| {
        checked(
            marker,
            "23505",
            &stage.proxy.client().simple(&format!("INSERT INTO cut_error VALUES ('there') /* {marker} */")),
        );
    });
    stage.cut_everywhere("error_begun", |marker| {
        let mut client = stage.proxy.client();
        client.simple(&format!("BEGIN; INSERT INTO cut_error VALUES ('{}')", marker.to_uppercase())).unwrap();
        checked(marker, "22012", &client.simple(&format!("SELECT 1/0 /* {marker} */")));
        let end = client.simple("COMMIT");
        assert!(end.as_ref().is_ok_and(|answer| answer.tags == ["ROLLBACK"]) || end.is_err(), "{marker}: {end:?}");
        assert_eq!(
            stage
                .proxy
                .client()
                .value(&format!("SELECT count(*) FROM cut_error WHERE id = '{}'", marker.to_uppercase())),
            "0"
        );
    });
    stage.cut_everywhere("error_extended", |marker| {
        let mut client = stage.proxy.client();
        let bad = bind("", "", &[Some(marker.as_bytes())]);
        client
            .send(&batch(&[parse("", "SELECT 1/length(replace($1, $1, '')) FOR UPDATE"), bad, execute("", 0), sync()]))
            .unwrap();
        checked(marker, "22012", &client.answer());
    });
    bystander.assert_untouched();
    stage.proxy.assert_serving();
}
