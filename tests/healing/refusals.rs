//! Statements that fail on a standby for being a standby.
//!
//! Invariant: whatever the way of speaking, a refusal is neither seen nor met twice by one shape. Absent on purpose:
//! statements that the classifier knows without being told.

use super::*;
use crate::support::proxy::ProxySpec;
use crate::support::rawclient::Login;

/// Functions that the config declares to be reads, though they are none.
const SETUP: &str = "
    CREATE SEQUENCE heal_numbers;
    CREATE TABLE heal_log (id int);
    CREATE UNLOGGED TABLE heal_unlogged AS SELECT 7 AS id;
    CREATE FUNCTION heal_nextval() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN nextval('heal_numbers'); END $$;
    CREATE FUNCTION heal_insert(n int) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN RAISE NOTICE 'about to write'; INSERT INTO heal_log VALUES (n); RETURN n; END $$;
    CREATE FUNCTION heal_late(n int, at int) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN IF n = at THEN INSERT INTO heal_log VALUES (n); END IF; RETURN n; END $$;
    CREATE FUNCTION heal_lo(n int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN lo_create(0) <> 0; END $$;
    CREATE FUNCTION heal_emit() RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN RETURN pg_logical_emit_message(false, 'heal', 'x') IS NOT NULL; END $$;
    CREATE FUNCTION heal_switch() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN RETURN pg_switch_wal() IS NOT NULL; END $$;
    CREATE FUNCTION heal_unlogged_count() RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN RETURN (SELECT count(*) FROM heal_unlogged); END $$;
    CREATE FUNCTION heal_xact() RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN RETURN pg_current_xact_id() IS NOT NULL; END $$;
    CREATE FUNCTION heal_own_error() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = '0A000'; END $$;
    GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;";

const DECLARED: &str = r#"["heal_nextval", "heal_insert", "heal_late", "heal_lo", "heal_emit", "heal_switch",
    "heal_unlogged_count", "heal_xact", "heal_own_error"]"#;

fn start() -> Proxy {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        cluster::shared().superuser("app").simple(SETUP).unwrap();
        cluster::shared().wait_replayed();
    });
    // With the catalog these are known beforehand, and nothing is to heal.
    let spec = ProxySpec::in_front_of(cluster::shared()).set("route.catalog", "false");
    spec.set("route.read_functions", DECLARED).start_splitting()
}

/// Statement, its only value, and the reason that is counted.
const CASES: [(&str, &str, &str); 8] = [
    ("SELECT heal_nextval() > 0", "t", "read_only"),
    ("SELECT heal_insert(1)", "1", "read_only"),
    ("SELECT heal_xact()", "t", "read_only"),
    ("SELECT id FROM heal_unlogged", "7", "recovery_unlogged"),
    ("SELECT heal_unlogged_count()", "1", "recovery_unlogged"),
    ("SELECT heal_lo(1)", "t", "recovery_wal"),
    ("SELECT heal_emit()", "t", "recovery_wal"),
    ("SELECT heal_switch()", "t", "in_recovery"),
];

#[test]
fn what_standbys_refuse_is_done_by_the_primary_and_refused_once() {
    for mode in MODES {
        let proxy = start();
        let mut client = proxy.client();
        for (sql, value, reason) in CASES {
            let before = reruns_for(&proxy, reason);
            for round in 0..3 {
                settle(&mut client);
                let answer = say(&mut client, mode, sql).unwrap_or_else(|gone| panic!("{mode:?} {sql}: {gone:?}"));
                assert_eq!(answer.rows, [[Some(value.to_owned())]], "{mode:?} {sql}, round {round}");
                let count = reruns_for(&proxy, reason) - before;
                assert_eq!(count, 1, "{mode:?} {sql}: refused {count} times after {} rounds", round + 1);
            }
        }
        // Each write happened once per round.
        proxy.assert_serving();
    }
    let mut superuser = cluster::shared().superuser("app");
    assert_eq!(superuser.value("SELECT count(*) FROM heal_log WHERE id = 1"), (3 * MODES.len()).to_string());
}

#[test]
fn an_error_of_the_statements_own_is_told_and_teaches_nothing() {
    let proxy = start();
    let mut client = proxy.client();
    for round in 1..=2 {
        for mode in MODES {
            settle(&mut client);
            let outcome = say(&mut client, mode, "SELECT heal_own_error()");
            let Err(Gone::Refused(fields)) = outcome else { panic!("{mode:?}: {outcome:?}") };
            assert_eq!((fields.sqlstate(), fields.message()), ("0A000", "mine"));
        }
        assert_eq!(reruns_for(&proxy, "unsupported"), round * MODES.len() as u64, "it is asked twice each time");
    }
}

#[test]
fn notices_of_the_first_run_are_not_seen() {
    let proxy = start();
    let mut client = proxy.client();
    settle(&mut client);
    client.send(&query("SELECT heal_insert(2)")).unwrap();
    let messages = client.read_until(b'Z').unwrap();
    let tags: String = messages.iter().map(|message| char::from(message.tag)).collect();
    assert_eq!(tags, "TNDCZ", "one notice, and one answer");
}

#[test]
fn a_refusal_behind_the_first_rows_heals_or_is_told_once_as_a_conflict() {
    let proxy = start();
    let mut client = proxy.client();
    // Rows and refusal come together: nothing has left yet.
    for (mode, at) in MODES.into_iter().zip([3, 4, 5, 6]) {
        let sql = format!("SELECT heal_late(i, {at}) /* {mode:?} */ FROM generate_series(1, 20) i");
        settle(&mut client);
        let answer = say(&mut client, mode, &sql).unwrap();
        assert_eq!(answer.rows.len(), 20, "{mode:?}");
    }
    settle(&mut client);
    let answer = client.simple("SELECT 'one'; SELECT heal_late(10, 10)").unwrap();
    assert_eq!(answer.rows.len(), 2);
    // Rows have left when the refusal comes. The text differs in more than literals, so that it is new.
    for mode in MODES {
        let sql = format!("SELECT heal_late(i, 4000) AS {mode:?}, repeat('x', 100) FROM generate_series(1, 5000) i");
        settle(&mut client);
        let outcome = say(&mut client, mode, &sql).map(|answer| answer.rows.len());
        let Err(Gone::Refused(fields)) = outcome else { panic!("{mode:?}: {outcome:?}") };
        assert_eq!(fields.sqlstate(), "40001", "{fields:?}");
        assert!(fields.field(b'H').contains("retried"), "{fields:?}");
        settle(&mut client);
        let answer = say(&mut client, mode, &sql).unwrap_or_else(|gone| panic!("{mode:?}: {gone:?}"));
        assert_eq!(answer.rows.len(), 5000, "{mode:?}: a retry goes to the primary");
    }
    let mut superuser = cluster::shared().superuser("app");
    assert_eq!(superuser.value("SELECT count(*) FROM heal_log WHERE id = 4000"), MODES.len().to_string());
}

/// A batch that binds a statement that was parsed in an earlier one.
#[test]
fn an_unnamed_statement_that_is_bound_again_is_learned() {
    let proxy = start();
    let mut client = proxy.client();
    client.send(&[parse("", "SELECT heal_insert(3)"), sync()].concat()).unwrap();
    client.answer().unwrap();
    for _ in 0..3 {
        client.send(&unit("", "")).unwrap();
        assert_eq!(client.answer().unwrap().rows, [[Some("3".to_owned())]]);
    }
    assert_eq!(reruns_for(&proxy, "read_only"), 1);
}

#[test]
fn what_was_learned_holds_for_all_threads_and_statements_until_its_time_is_over() {
    start();
    let spec = ProxySpec::in_front_of(cluster::shared()).set("route.read_functions", DECLARED);
    let spec =
        spec.set("route.learned_ttl", "\"5s\"").set("server.workers", "4").set("admin.console_users", "[\"app\"]");
    let proxy = spec.start_splitting();
    let login = Login::new(cluster::APP_USER, cluster::APP_PASSWORD, "pgregent");
    let mut console = RawClient::login(proxy.port, &login).unwrap();
    let mut clients: Vec<RawClient> = (0..12).map(|_| proxy.client()).collect();
    // Prepared before anything is learned.
    for client in &mut clients {
        client.send(&[parse("known", "SELECT heal_insert(77)"), sync()].concat()).unwrap();
        client.answer().unwrap();
    }
    let refused = |proxy: &Proxy| reruns_for(proxy, "read_only");
    let round = |clients: &mut Vec<RawClient>, mode: Option<Mode>| {
        for client in clients {
            settle(client);
            let answer = match mode {
                Some(mode) => say(client, mode, "SELECT heal_insert(77)"),
                None => client.send(&unit("known", "")).and_then(|()| client.answer()),
            };
            assert_eq!(answer.unwrap().rows, [[Some("77".to_owned())]]);
        }
    };
    round(&mut clients, Some(Mode::Simple));
    round(&mut clients, None);
    assert_eq!(refused(&proxy), 1, "one refusal teaches all");
    let shown = console.simple("SHOW LEARNED").unwrap().rows;
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(shown[0][0].as_deref(), Some("select heal_insert(?)"));
    assert_eq!(console.simple("FORGET LEARNED").unwrap().tags, ["FORGET 1"]);
    round(&mut clients, None);
    assert_eq!(refused(&proxy), 2, "asked again, and learned by a statement that was prepared before");
    std::thread::sleep(Duration::from_secs(6));
    round(&mut clients, Some(Mode::Extended));
    assert_eq!(refused(&proxy), 3, "its time was over");
}
