//! Why statements went where they went: decisions kept, counted, logged; shadow mode.
//!
//! Invariant shown: what is told of a statement is what happened to it. Absent on purpose: EXPLAIN ROUTE (`tests/console`).

use super::support::cluster::{Cluster, app_login, shared};
use super::support::message::{batch, bind, execute, parse, sync};
use super::support::proxy::{Proxy, ProxySpec};
use super::support::rawclient::{Login, RawClient};
use super::support::wait_for;
use super::{ON_STANDBY, in_one_batch};
use serde_json::Value;
use std::time::Duration;

fn decisions(proxy: &Proxy, query: &str) -> Vec<Value> {
    let (status, text) = proxy.http(&format!("/api/v1/decisions{query}")).unwrap();
    assert_eq!(status, 200, "{query}: {text}");
    let body = text.split_once("\r\n\r\n").map_or(text.as_str(), |(_, body)| body);
    let answer: Value = serde_json::from_str(body).unwrap();
    answer["decisions"].as_array().unwrap().clone()
}

fn metric(proxy: &Proxy, name: &str, labels: &[&str]) -> f64 {
    let text = proxy.http("/metrics").unwrap().1;
    let fits = |line: &&str| line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label));
    text.lines().filter(fits).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn decisions_are_kept_with_their_reasons_and_can_be_filtered() {
    let proxy = ProxySpec::in_front_of(shared()).set("admin.console_users", "[\"app\"]").start_splitting();
    let mut client = proxy.client();
    client.simple("SELECT 'mark one', pg_is_in_recovery()").unwrap();
    client.simple("CREATE TEMP TABLE mark_two (n int)").unwrap();
    let mut other = RawClient::login(proxy.port, &Login::new("other", "other-secret", "app")).unwrap();
    in_one_batch(&mut other, &["SELECT 'mark three'"]).unwrap();
    let named = [parse("q", "SELECT 'mark four'"), bind("", "q", &[]), execute("", 0), sync()];
    other.send(&batch(&named)).unwrap();
    other.answer().unwrap();
    other.send(&batch(&named[1..])).unwrap();
    other.answer().unwrap();

    let one = &decisions(&proxy, "?statement=mark%20one")[0];
    assert_eq!(
        (one["class"].as_str(), one["reason"].as_str(), one["why"].as_str()),
        (Some("read"), Some("read"), Some("select"))
    );
    assert!(one["node"] == "pg2" || one["node"] == "pg3", "{one}");
    assert_eq!((one["user"].as_str(), one["shadow"].as_bool()), (Some("app"), Some(false)));
    let two = &decisions(&proxy, "?statement=mark_two&class=write&node=pg1")[0];
    assert_eq!(two["reason"], "write");
    assert!(decisions(&proxy, "?statement=mark_two&class=read").is_empty());
    let of_other = decisions(&proxy, "?user=other&statement=mark");
    assert_eq!(of_other.len(), 3, "{of_other:?}");
    assert!(
        of_other.iter().all(|decision| decision["why"] == "select" && decision["database"] == "app"),
        "{of_other:?}"
    );
    assert_eq!(decisions(&proxy, "?user=other&limit=1")[0]["statement"], "SELECT 'mark four'");
    assert_eq!(proxy.http("/api/v1/decisions?colour=red").unwrap().0, 400);

    let mut console = RawClient::login(proxy.port, &Login::new("app", &app_login().password, "pgregent")).unwrap();
    let shown = console.simple("SHOW DECISIONS").unwrap();
    assert!(
        shown
            .rows
            .iter()
            .any(|row| row[4].as_deref() == Some("SELECT 'mark three'") && row[5].as_deref() == Some("read"))
    );
    let counted = |class: &str, node: &str| metric(&proxy, "pgregent_route_total", &[class, node]);
    assert!(counted("class=\"write\"", "node=\"pg1\"") >= 1.0);
    assert!(counted("class=\"read\"", "node=\"pg2\"") + counted("class=\"read\"", "node=\"pg3\"") >= 4.0);
    assert!((counted("class=\"write\"", "node=\"pg2\"") - 0.0).abs() < f64::EPSILON);
}

#[test]
fn shadow_mode_reads_on_the_primary_and_tells_where_it_would_have_read() {
    let cluster = shared();
    let proxy = ProxySpec::in_front_of(cluster).set("route.shadow", "true").start_ready();
    let mut client = proxy.client();
    let would = || metric(&proxy, "pgregent_shadow_route_total", &["class=\"read\"", "reason=\"read\""]);
    wait_for("a read would go to a standby", Duration::from_secs(10), || {
        assert_eq!(client.value(ON_STANDBY), "f");
        would() > 0.0
    });
    let before = would();
    client.simple("BEGIN READ ONLY").unwrap();
    assert_eq!(client.value(ON_STANDBY), "f");
    client.simple("COMMIT").unwrap();
    in_one_batch(&mut client, &["SELECT 'shade', pg_is_in_recovery()"]).unwrap();
    client.simple("CREATE TEMP TABLE shade (n int)").unwrap();
    assert!((would() - before - 2.0).abs() < f64::EPSILON);
    let shade = decisions(&proxy, "?statement='shade'");
    assert_eq!(shade.len(), 2, "{shade:?}");
    assert_eq!((shade[0]["shadow"].as_bool(), shade[0]["node"].as_str()), (Some(false), Some("pg1")));
    assert_eq!((shade[1]["shadow"].as_bool(), shade[1]["reason"].as_str()), (Some(true), Some("read")));
    assert!((metric(&proxy, "pgregent_route_total", &["node=\"pg2\""]) - 0.0).abs() < f64::EPSILON);
    assert!(metric(&proxy, "pgregent_shadow_route_total", &["class=\"write\"", "node=\"pg1\""]) >= 1.0);
}

#[test]
fn slow_and_failed_statements_are_logged_with_their_decision() {
    let cluster = Cluster::start();
    let proxy = ProxySpec::in_front_of(&cluster)
        .set("log.slow_statement", "\"300ms\"")
        .set("log.failed_statements", "true")
        .start_splitting();
    let mut client = proxy.client();
    client.simple("SELECT 'quick'").unwrap();
    in_one_batch(&mut client, &["SELECT 'late too', count(*) FROM generate_series(1, 5000000) i WHERE i % 7 = 8"])
        .unwrap();
    client.simple("SELECT 'late', pg_sleep(0.4)").unwrap();
    client.simple("SELECT 1 / 0 AS wrong").unwrap_err();
    client.simple("BEGIN").unwrap();
    client.simple("SELECT no_such_column FROM pg_class").unwrap_err();
    client.simple("ROLLBACK").unwrap();
    wait_for("it is logged", Duration::from_secs(5), || proxy.log().contains("no_such_column"));
    let log = proxy.log();
    let line = |text: &str| {
        log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in {log}")).to_owned()
    };
    assert!(line("'late',").contains("a statement was slow") && line("'late',").contains("node=\"pg1\""));
    assert!(line("'late too'").contains("reason=\"read\""), "{}", line("'late too'"));
    assert!(line("AS wrong").contains("22012") && line("AS wrong").contains("a statement failed"));
    assert!(line("no_such_column").contains("42703"));
    assert!(!log.contains("'quick'"), "{log}");
}
