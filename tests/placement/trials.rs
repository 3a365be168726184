//! Transactions that begin on a standby and move to the primary with their first write (`optimistic_transactions`).
//!
//! Invariant shown: what the client was told holds on the primary too, or the transaction fails; nothing is done or told
//! twice. Absent on purpose: what it gains.

use super::support::cluster::Cluster;
use super::support::message::{batch, bind, execute, parse, query, sync};
use super::support::proxy::{Proxy, ProxySpec};
use super::support::rawclient::{Gone, RawClient};
use super::{ON_STANDBY, in_one_batch, last_value, ready};

/// How a statement is sent.
type Way = fn(&mut RawClient, &str) -> Result<super::Answer, Gone>;

fn proxy(cluster: &Cluster) -> Proxy {
    ProxySpec::in_front_of(cluster).set("route.optimistic_transactions", "true").start_splitting()
}

fn code(outcome: Result<super::Answer, Gone>) -> String {
    match outcome {
        Err(Gone::Refused(fields)) => fields.sqlstate().to_owned(),
        other => panic!("expected an error, got {other:?}"),
    }
}

fn trials(proxy: &Proxy, result: &str) -> f64 {
    let text = proxy.http("/metrics").unwrap().1;
    let line = text.lines().find(|line| line.starts_with(&format!("pgregent_trials_total{{result=\"{result}\"}}")));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn a_transaction_moves_with_its_first_write_and_nothing_is_told_twice() {
    let cluster = Cluster::start();
    let proxy = proxy(&cluster);
    proxy
        .client()
        .simple("CREATE TABLE seats (id int PRIMARY KEY, free int); INSERT INTO seats VALUES (1, 5)")
        .unwrap();
    cluster.wait_replayed();
    let ways: [Way; 2] = [|client, sql| client.simple(sql), |client, sql| in_one_batch(client, &[sql])];
    let mut free = 5;
    for round in 0..4 {
        let (read, write) = (ways[round % 2], ways[round / 2]);
        let mut client = ready(&proxy);
        client.simple("BEGIN").unwrap();
        assert_eq!(last_value(&read(&mut client, "SELECT free, pg_is_in_recovery() FROM seats").unwrap()), "5");
        // It told the client that it was on a standby, which the primary does not.
        assert_eq!(
            code(write(&mut client, "UPDATE seats SET free = free - 1 RETURNING free")),
            "40001",
            "round {round}"
        );
        assert_eq!(client.simple("ROLLBACK").unwrap().tags, ["ROLLBACK"]);
        client.simple("BEGIN").unwrap();
        assert_eq!(client.value(ON_STANDBY), "f", "a session that was wrong once begins on the primary");
        client.simple("COMMIT").unwrap();
    }
    assert!((trials(&proxy, "disagreed") - 4.0).abs() < f64::EPSILON);
    for round in 0..4 {
        let (read, write) = (ways[round % 2], ways[round / 2]);
        let mut client = ready(&proxy);
        client.simple("BEGIN").unwrap();
        assert_eq!(last_value(&read(&mut client, "SELECT free FROM seats").unwrap()), free.to_string());
        assert_eq!(last_value(&read(&mut client, "SELECT 'again'").unwrap()), "again");
        free -= 1;
        let written = write(&mut client, "UPDATE seats SET free = free - 1 RETURNING free").unwrap();
        assert_eq!((written.rows.len(), last_value(&written)), (1, free.to_string()), "round {round}");
        assert_eq!(client.value(ON_STANDBY), "f");
        assert_eq!(last_value(&write(&mut client, "SELECT free FROM seats").unwrap()), free.to_string());
        assert_eq!(client.simple("COMMIT").unwrap().tags, ["COMMIT"]);
        assert_eq!(cluster.superuser("app").value("SELECT free FROM seats"), free.to_string());
    }
    assert!((trials(&proxy, "moved") - 4.0).abs() < f64::EPSILON);
    proxy.assert_no_panic();
}

#[test]
fn reads_alone_stay_on_the_standby_and_what_the_primary_knows_better_fails() {
    let cluster = Cluster::start();
    let proxy = proxy(&cluster);
    proxy.client().simple("CREATE TABLE stock (n int); INSERT INTO stock VALUES (1)").unwrap();
    cluster.wait_replayed();
    let mut client = ready(&proxy);
    for end in ["COMMIT", "ROLLBACK"] {
        client.simple("BEGIN").unwrap();
        assert_eq!(client.value(ON_STANDBY), "t");
        assert_eq!(in_one_batch(&mut client, &["SELECT n FROM stock"]).unwrap().rows.len(), 1);
        assert_eq!(client.simple(end).unwrap().tags, [end]);
        client.simple("BEGIN").unwrap();
        assert_eq!(client.value("SELECT n FROM stock"), "1");
        assert_eq!(in_one_batch(&mut client, &[end]).unwrap().tags, [end]);
    }
    // A batch that reads and writes moves as a whole; a write first never begins on a standby.
    client.simple("BEGIN").unwrap();
    assert_eq!(client.value("SELECT n FROM stock"), "1");
    in_one_batch(&mut client, &["SELECT n FROM stock", "UPDATE stock SET n = 2", "SELECT n FROM stock"]).unwrap();
    client.simple("COMMIT").unwrap();
    client.simple("BEGIN").unwrap();
    client.simple("UPDATE stock SET n = 3").unwrap();
    client.simple("COMMIT").unwrap();
    // A named statement is prepared on the primary.
    let mut client = ready(&proxy);
    client.simple("BEGIN").unwrap();
    assert_eq!(client.value("SELECT n FROM stock"), "3");
    client.send(&batch(&[parse("q", "SELECT n + 1 FROM stock"), bind("", "q", &[]), execute("", 0), sync()])).unwrap();
    assert_eq!(last_value(&client.answer().unwrap()), "4");
    assert_eq!(client.value(ON_STANDBY), "f");
    client.simple("COMMIT").unwrap();

    let mut standbys = [1, 2].map(|index| cluster.superuser_on(index, "postgres"));
    let mut client = ready(&proxy);
    client.simple("BEGIN").unwrap();
    assert_eq!(client.value("SELECT n FROM stock"), "3");
    standbys.iter_mut().for_each(|standby| drop(standby.simple("SELECT pg_wal_replay_pause()").unwrap()));
    cluster.superuser("app").simple("UPDATE stock SET n = 30").unwrap();
    // Pipelined: the client does not wait for the read before it writes.
    client.send(&batch(&[query("SELECT n FROM stock"), query("UPDATE stock SET n = n + 1")])).unwrap();
    assert_eq!(last_value(&client.answer().unwrap()), "3");
    assert_eq!(code(client.answer()), "40001");
    assert_eq!(code(client.simple("SELECT 1")), "25P02");
    client.simple("ROLLBACK").unwrap();
    assert_eq!(cluster.superuser("app").value("SELECT n FROM stock"), "30");
    standbys.iter_mut().for_each(|standby| drop(standby.simple("SELECT pg_wal_replay_resume()").unwrap()));
    proxy.assert_no_panic();
}
