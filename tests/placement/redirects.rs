//! Redirects by user, database, application and port; the session's own word; sessions of standbys only; tokens.
//!
//! Invariant shown: what a token tells, a session on another proxy reads. Absent on purpose: reloads.

use super::support::cluster::{Cluster, app_login, shared};
use super::support::proxy::ProxySpec;
use super::support::rawclient::{Gone, Login, RawClient};
use super::support::{free_port, wait_for};
use super::{ON_STANDBY, in_one_batch, last_value, told};
use std::time::{Duration, Instant};

const PORT: &str = "SELECT inet_server_port()";

fn code(outcome: Result<super::Answer, Gone>) -> String {
    match outcome {
        Err(Gone::Refused(fields)) => fields.sqlstate().to_owned(),
        other => panic!("expected an error, got {other:?}"),
    }
}

#[test]
fn redirects_decide_by_user_application_and_port() {
    let cluster = shared();
    let second = free_port();
    let proxy = ProxySpec::in_front_of(cluster)
        .listen_too(second)
        .toml_too(&format!(
            "[[route.redirect]]\nname = \"door\"\nport = {second}\ntarget_session_attrs = \"standby\"\n\
             [[route.redirect]]\nname = \"app\"\napplication_name = [\"/^batch\"]\ntarget_session_attrs = \"primary\"\n\
             [[route.redirect]]\nname = \"other\"\nuser = [\"other\"]\ntarget_session_attrs = \"read-only\"\nnodes = [\"pg3\"]\n"
        ))
        .start_splitting();
    let mut plain = proxy.client();
    assert_eq!(
        (plain.value(ON_STANDBY).as_str(), told(&plain.greeting, "in_hot_standby").as_deref()),
        ("t", Some("off"))
    );
    plain.simple("SET application_name = 'batch 7'").unwrap();
    assert_eq!(plain.value(ON_STANDBY), "f");
    plain.simple("SET application_name = 'web'").unwrap();
    assert_eq!(plain.value(ON_STANDBY), "t");
    let batch = app_login().with("application_name", "batch");
    assert_eq!(RawClient::login(proxy.port, &batch).unwrap().value(ON_STANDBY), "f");

    let mut other = RawClient::login(proxy.port, &Login::new("other", "other-secret", "app")).unwrap();
    assert_eq!(told(&other.greeting, "default_transaction_read_only").as_deref(), Some("on"));
    for _ in 0..20 {
        assert_eq!(other.value(PORT), cluster.ports[2].to_string());
    }
    assert_eq!(code(other.simple("CREATE TABLE never (n int)")), "25006");

    let mut standby = RawClient::login(second, &app_login()).unwrap();
    assert_eq!(told(&standby.greeting, "in_hot_standby").as_deref(), Some("on"));
    assert_eq!(standby.value(ON_STANDBY), "t");
    assert_eq!(code(standby.simple("CREATE TABLE never (n int)")), "25006");
    assert_eq!(code(standby.simple("SELECT nextval('pg_catalog.never')")), "42P01");
    standby.simple("BEGIN").unwrap();
    assert_eq!(standby.value(ON_STANDBY), "t");
    assert_eq!(code(standby.simple("SELECT txid_current()")), "25006");
    standby.simple("ROLLBACK").unwrap();
    assert_eq!(standby.value("SELECT pg_try_advisory_lock(42), pg_is_in_recovery()"), "t");
    assert_eq!(standby.value("SELECT pg_advisory_unlock(42)"), "t");
    assert_eq!(last_value(&in_one_batch(&mut standby, &["BEGIN", ON_STANDBY, "COMMIT", ON_STANDBY]).unwrap()), "t");
}

#[test]
fn a_session_can_say_where_it_is_served() {
    let proxy = ProxySpec::in_front_of(shared()).start_splitting();
    let login = app_login().with("options", "-c pgregent.target_session_attrs=standby");
    let mut standby = RawClient::login(proxy.port, &login).unwrap();
    assert_eq!(told(&standby.greeting, "in_hot_standby").as_deref(), Some("on"));
    assert_eq!(code(standby.simple("SELECT txid_current()")), "25006");
    let mut client = proxy.client();
    for (attrs, there) in [("primary", "f"), ("standby", "t"), ("read-write", "f"), ("prefer-standby", "t")] {
        client.simple(&format!("SET pgregent.target_session_attrs = '{attrs}'")).unwrap();
        assert_eq!(client.value(ON_STANDBY), there, "{attrs}");
    }
    client.simple("SET pgregent.target_session_attrs = 'primary'").unwrap();
    client.simple("RESET pgregent.target_session_attrs").unwrap();
    assert_eq!(client.value(ON_STANDBY), "t");
    for senseless in [
        "SET pgregent.target_session_attrs = 'replica'",
        "SET pgregent.consistency TO strong",
        "SET pgregent.causal_token = '1'",
        "SET pgregent.colour = 'red'",
        "SET LOCAL pgregent.consistency = 'global'",
        "SELECT set_config('pgregent.consistency', 'strong', false)",
        "SELECT 1; SET pgregent.consistency = strong",
    ] {
        assert_eq!(code(client.simple(senseless)), "22023", "{senseless}");
        if !senseless.starts_with("SELECT 1") {
            assert_eq!(code(in_one_batch(&mut client, &[senseless])), "22023", "{senseless}");
        }
        assert_eq!(client.value("SELECT 5"), "5");
    }
    for bad in ["-c pgregent.consistency=strong", "-c pgregent.nothing=1"] {
        match RawClient::login(proxy.port, &app_login().with("options", bad)) {
            Err(Gone::Refused(fields)) => assert_eq!(fields.sqlstate(), "22023", "{bad}"),
            other => panic!("{bad}: {:?}", other.map(|_| "logged in")),
        }
    }
}

/// A token that one session was told makes another session, on another proxy, see what the first one wrote.
#[test]
fn a_token_carries_what_was_written_to_another_proxy() {
    let cluster = Cluster::start();
    let proxies = [1, 2].map(|_| ProxySpec::in_front_of(&cluster).start_splitting());
    let [mut writer, mut reader] = [proxies[0].client(), proxies[1].client()];
    writer.simple("CREATE TABLE seen (n int); INSERT INTO seen VALUES (0)").unwrap();
    cluster.wait_replayed();
    let mut standbys = [1, 2].map(|index| cluster.superuser_on(index, "postgres"));
    for standby in &mut standbys {
        standby.simple("SELECT pg_wal_replay_pause()").unwrap();
    }
    let mut stale = 0;
    for round in 1..=30 {
        if round % 3 == 0 {
            writer.simple("SET synchronous_commit = off").unwrap();
        }
        writer.simple(&format!("UPDATE seen SET n = {round}")).unwrap();
        let token = if round % 2 == 0 {
            writer.value("SHOW pgregent.causal_token")
        } else {
            last_value(&in_one_batch(&mut writer, &["SHOW pgregent.causal_token"]).unwrap())
        };
        writer.simple("SET synchronous_commit = on").unwrap();
        // Without the token the other proxy knows nothing of the write.
        stale += i32::from(reader.value("SELECT n FROM seen") != round.to_string());
        reader.simple(&format!("SET pgregent.causal_token = '{token}'")).unwrap();
        assert_eq!(reader.value("SELECT n FROM seen"), round.to_string(), "{token}");
        assert_eq!(last_value(&in_one_batch(&mut reader, &["SELECT n FROM seen"]).unwrap()), round.to_string());
        reader.simple("RESET pgregent.causal_token").unwrap();
        if round == 20 {
            for standby in &mut standbys {
                standby.simple("SELECT pg_wal_replay_resume()").unwrap();
            }
        }
    }
    assert!(stale > 10, "without the token only {stale} of 30 reads were stale: nothing was shown");
    let token = writer.value("SHOW pgregent.causal_token");
    reader.simple(&format!("SET pgregent.causal_token = '{token}'")).unwrap();
    wait_for("a standby reaches the token", Duration::from_secs(5), || reader.value(ON_STANDBY) == "t");
}

#[test]
fn a_read_waits_for_a_standby_as_long_as_it_may() {
    let cluster = Cluster::start();
    let proxy = ProxySpec::in_front_of(&cluster).set("route.fresh_wait", "\"2s\"").start_splitting();
    let mut client = proxy.client();
    client.simple("CREATE TABLE late (n int)").unwrap();
    client.simple("INSERT INTO late VALUES (1)").unwrap();
    // Replay goes on: the read waits a moment and finds a standby.
    assert_eq!(client.simple("SELECT n, pg_is_in_recovery() FROM late").unwrap().rows[0][1].as_deref(), Some("t"));
    let mut standbys = [1, 2].map(|index| cluster.superuser_on(index, "postgres"));
    for standby in &mut standbys {
        standby.simple("SELECT pg_wal_replay_pause()").unwrap();
    }
    client.simple("INSERT INTO late VALUES (2)").unwrap();
    let began = Instant::now();
    assert_eq!(
        client.simple("SELECT count(*), pg_is_in_recovery() FROM late").unwrap().rows[0][1].as_deref(),
        Some("f")
    );
    let waited = began.elapsed();
    assert!(waited > Duration::from_millis(1900) && waited < Duration::from_secs(4), "{waited:?}");
    for standby in &mut standbys {
        standby.simple("SELECT pg_wal_replay_resume()").unwrap();
    }
}

#[test]
fn hints_hold_for_a_statement_a_transaction_or_the_session() {
    let proxy = ProxySpec::in_front_of(shared()).start_splitting();
    let mut client = proxy.client();
    let there = |client: &mut RawClient, hint: &str| client.value(&format!("{hint} {ON_STANDBY}"));
    // What a hint sends to the primary may have written there, so that the next read needs a standby that has seen it.
    let goes_to_standbys = |client: &mut RawClient, hint: &str| {
        wait_for("reads go to standbys", Duration::from_secs(5), || there(client, hint) == "t");
    };
    assert_eq!(there(&mut client, "/* pgregent: node=primary */"), "f");
    goes_to_standbys(&mut client, "");
    client.simple("BEGIN READ ONLY /* pgregent: node=primary, scope=transaction */").unwrap();
    assert_eq!(there(&mut client, ""), "f");
    client.simple("COMMIT").unwrap();
    client.simple("BEGIN /* pgregent: node=standby scope=transaction */").unwrap();
    assert_eq!(there(&mut client, ""), "t");
    assert_eq!(code(client.simple("CREATE TABLE never (n int)")), "25006");
    client.simple("ROLLBACK").unwrap();
    assert_eq!(there(&mut client, "/* pgregent: node=primary scope=session */"), "f");
    assert_eq!(there(&mut client, ""), "f");
    assert_eq!(last_value(&in_one_batch(&mut client, &[ON_STANDBY]).unwrap()), "f");
    goes_to_standbys(&mut client, "/* pgregent: node=standby */");
    in_one_batch(&mut client, &["/* pgregent: node=any scope=session */ SELECT 1"]).unwrap();
    goes_to_standbys(&mut client, "");
    assert_eq!(there(&mut client, "/* pgregent: node=first */"), "t");
}
