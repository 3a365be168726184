//! Transactions that only read, and sessions whose transactions only read by default.
//!
//! Invariant shown: what they would be refused by a single server they are refused here, with the same code. Absent on
//! purpose: how fresh the standby is.

use super::support::cluster::{Cluster, app_login, shared};
use super::support::proxy::{Proxy, ProxySpec};
use super::support::rawclient::{Gone, RawClient};
use super::support::wait_for;
use super::{ON_STANDBY, in_one_batch, last_value, ready};
use std::time::Duration;

fn proxy() -> (&'static Cluster, Proxy) {
    (shared(), ProxySpec::in_front_of(shared()).start_splitting())
}

fn refused(outcome: Result<super::Answer, Gone>) -> String {
    match outcome {
        Err(Gone::Refused(fields)) => fields.sqlstate().to_owned(),
        other => panic!("expected an error, got {other:?}"),
    }
}

#[test]
fn sessions_that_only_read_by_default_begin_on_standbys() {
    let (_, proxy) = proxy();
    let ways: [fn(&mut RawClient); 4] = [
        |client| drop(client.simple("SET default_transaction_read_only = on").unwrap()),
        |client| drop(client.simple("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").unwrap()),
        |client| drop(client.simple("SELECT set_config('default_transaction_read_only', 'true', false)").unwrap()),
        |client| drop(in_one_batch(client, &["SET default_transaction_read_only TO yes"]).unwrap()),
    ];
    for (way, set) in ways.into_iter().enumerate() {
        let mut client = ready(&proxy);
        set(&mut client);
        assert_eq!(client.value(ON_STANDBY), "t", "way {way}: alone");
        client.simple("BEGIN").unwrap();
        assert_eq!(client.value(ON_STANDBY), "t", "way {way}: in a transaction");
        client.simple("COMMIT").unwrap();
        assert_eq!(refused(client.simple("CREATE TABLE never (n int)")), "25006", "way {way}");
        client.simple("BEGIN READ WRITE").unwrap();
        assert_eq!(client.value(ON_STANDBY), "f", "way {way}: READ WRITE");
        client.simple("ROLLBACK").unwrap();
        client.simple("SET default_transaction_read_only = off").unwrap();
        client.simple("BEGIN").unwrap();
        assert_eq!(client.value(ON_STANDBY), "f", "way {way}: no longer");
        client.simple("ROLLBACK").unwrap();
    }
}

#[test]
fn a_role_that_only_reads_or_is_serializable_by_default_is_known_from_its_login() {
    let (cluster, proxy) = proxy();
    let mut superuser = cluster.superuser("app");
    let mut with = |settings: &str| {
        superuser.simple(&format!("ALTER ROLE other RESET ALL; {settings}")).unwrap();
        cluster.wait_replayed();
        // Through the proxy, so that it knows; it also looks again after five minutes.
        let other = super::support::rawclient::Login::new("other", "other-secret", "app");
        proxy.client().simple("ALTER ROLE app SET work_mem = '5MB'").unwrap();
        RawClient::login(proxy.port, &other).unwrap()
    };
    let mut reader = with("ALTER ROLE other SET default_transaction_read_only = on");
    reader.simple("BEGIN").unwrap();
    assert_eq!(reader.value(ON_STANDBY), "t");
    let mut serial = with("ALTER ROLE other SET default_transaction_isolation = serializable");
    assert_eq!(serial.value(ON_STANDBY), "f");
    serial.simple("BEGIN READ ONLY").unwrap();
    assert_eq!(serial.value(ON_STANDBY), "f");
    serial.simple("COMMIT").unwrap();
    serial.simple("SET default_transaction_isolation = 'read committed'").unwrap();
    assert_eq!(serial.value(ON_STANDBY), "t");
}

#[test]
fn a_batch_that_begins_a_transaction_to_read_runs_on_a_standby() {
    let (_, proxy) = proxy();
    let mut client = ready(&proxy);
    for begin in ["BEGIN READ ONLY", "START TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"] {
        assert_eq!(last_value(&in_one_batch(&mut client, &[begin, ON_STANDBY]).unwrap()), "t", "{begin}");
        assert_eq!(last_value(&in_one_batch(&mut client, &[ON_STANDBY]).unwrap()), "t", "{begin}");
        assert_eq!(refused(in_one_batch(&mut client, &["CREATE TABLE never (n int)"])), "25006");
        in_one_batch(&mut client, &["ROLLBACK"]).unwrap();
    }
    let serializable = "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY";
    assert_eq!(last_value(&in_one_batch(&mut client, &[serializable, ON_STANDBY]).unwrap()), "f");
    in_one_batch(&mut client, &["COMMIT"]).unwrap();
    assert_eq!(last_value(&in_one_batch(&mut client, &["BEGIN", ON_STANDBY]).unwrap()), "f");
    in_one_batch(&mut client, &["COMMIT"]).unwrap();
    assert_eq!(client.value(ON_STANDBY), "t");
}

/// The first statement of such a transaction has not been answered: it may run where it can.
#[test]
fn a_transaction_moves_with_its_first_statement() {
    let cluster = Cluster::start();
    let proxy = ProxySpec::in_front_of(&cluster).start_splitting();
    let mut client = proxy.client();
    client.simple("CREATE UNLOGGED TABLE here (n int); INSERT INTO here VALUES (7)").unwrap();
    cluster.wait_replayed();
    for round in 0..4 {
        client = RawClient::login(proxy.port, &app_login()).unwrap();
        // A shape of its own each time: what a standby refuses is learned.
        let [alone, in_batch] = ["a", "b"].map(|name| format!("SELECT n AS {name}{round} FROM here"));
        client.simple("BEGIN READ ONLY").unwrap();
        let there = if round % 2 == 0 {
            client.value(&alone)
        } else {
            last_value(&in_one_batch(&mut client, &[&alone]).unwrap())
        };
        assert_eq!(there, "7", "round {round}");
        assert_eq!(client.value(ON_STANDBY), "f", "round {round}: the transaction has moved");
        client.simple("COMMIT").unwrap();
        let there = in_one_batch(&mut client, &["BEGIN READ ONLY", &in_batch]).unwrap();
        assert_eq!((there.tags[0].as_str(), last_value(&there).as_str()), ("BEGIN", "7"), "round {round}: one batch");
        assert_eq!(client.value(ON_STANDBY), "f");
        client.simple("COMMIT").unwrap();
    }
    wait_for("transactions to read begin on standbys", Duration::from_secs(5), || {
        client.simple("BEGIN READ ONLY").unwrap();
        let there = client.value(ON_STANDBY);
        client.simple("COMMIT").unwrap();
        there == "t"
    });
}
