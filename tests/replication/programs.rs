//! pg_basebackup, pg_receivewal, pg_recvlogical and a subscription.
//!
//! Invariants: results are compared with the node's own files and rows. Absent on purpose: how connections end (`ends`).

use crate::support::{cluster, free_port, wait_for};
use crate::{LIMIT, REPLICATOR, Rig, Running, finished};
use pgregent::demo::cluster::{Cluster, ClusterOptions};
use std::fs;
use std::path::Path;

/// Verifies a base backup against its manifest, starts it, and asks it.
fn assert_starts(rig: &Rig, backup: &Path, sql: &str, expected: &str) {
    finished(rig.program("pg_verifybackup").arg(backup));
    let _ = fs::remove_file(backup.join("standby.signal"));
    let port = free_port();
    let options = format!("-p {port} -k {} -c wal_level=replica", rig.directory.display());
    let log = rig.directory.join("restored.log");
    finished(
        rig.program("pg_ctl")
            .args(["start", "-w", "-s", "-t", "60", "-D"])
            .arg(backup)
            .arg("-l")
            .arg(&log)
            .args(["-o", &options]),
    );
    let mut psql = rig.program("psql");
    psql.env("PGPORT", port.to_string()).env("PGUSER", "app").env("PGPASSWORD", cluster::APP_PASSWORD);
    let output = finished(psql.args(["-X", "-A", "-t", "-d", "app", "-c", sql]));
    finished(rig.program("pg_ctl").args(["stop", "-w", "-s", "-m", "immediate", "-D"]).arg(backup));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
}

#[test]
fn base_backups_start() {
    let rig = Rig::start(1, |spec| spec);
    rig.sql("app", "CREATE TABLE t AS SELECT n, repeat('x', 500) AS filler FROM generate_series(1, 20000) AS n; GRANT SELECT ON t TO app");
    // Streaming opens a second connection while the first one copies.
    for (name, method, node) in
        [("stream", "stream", None), ("fetch", "fetch", None), ("standby", "stream", Some("pg2"))]
    {
        let backup = rig.directory.join(name);
        let mut command = rig.program("pg_basebackup");
        command.args(["-c", "fast", "--no-sync", "-X", method, "-D"]).arg(&backup);
        if let Some(node) = node {
            command.env("PGOPTIONS", format!("-c pgregent.node={node}"));
        }
        finished(&mut command);
        let label = fs::read_to_string(backup.join("backup_label")).unwrap();
        let from = if node.is_some() { "BACKUP FROM: standby" } else { "BACKUP FROM: primary" };
        assert!(label.contains(from), "{name}: {label}");
        assert_starts(&rig, &backup, "SELECT count(*), sum(length(filler)) FROM t", "20000|10000000");
    }
    rig.assert_nothing_open();
    let (_, text) = rig.proxy.http("/metrics").unwrap();
    let ends = text.lines().filter(|line| line.starts_with("pgregent_replication_ends_total"));
    let ended: u64 = ends.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(ended, 5, "streaming takes two connections, fetching one:\n{text}");
}

#[test]
fn received_wal_is_the_nodes_own() {
    let rig = Rig::start(1, |spec| spec);
    let directory = rig.directory.join("wal");
    fs::create_dir(&directory).unwrap();
    if cluster::is_root() {
        assert!(std::process::Command::new("chown").arg("postgres").arg(&directory).status().unwrap().success());
    }
    finished(rig.program("pg_receivewal").args(["--slot", "archive", "--create-slot"]));
    let mut receive = rig.program("pg_receivewal");
    receive.args(["--slot", "archive", "--synchronous", "--no-loop", "-D"]).arg(&directory);
    let mut receiver = Running::start(&mut receive, &rig.directory.join("pg_receivewal.log"));
    let first = rig.sql("postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())");
    for round in 0..3 {
        rig.sql("app", &format!("CREATE TABLE w{round} AS SELECT n, md5(n::text) FROM generate_series(1, 50000) AS n"));
        rig.sql("postgres", "SELECT pg_switch_wal()");
    }
    let last = rig.sql("postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())");
    assert!(first < last);
    // A finished segment loses its `.partial`.
    let own = |name: &str| rig.cluster.nodes()[0].data_dir().join("pg_wal").join(name);
    let segments = || {
        let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut whole: Vec<_> = names.filter(|name| !name.ends_with(".partial") && *name >= first).collect();
        whole.sort();
        whole
    };
    wait_for("three segments are received", LIMIT, || segments().len() >= 3);
    for name in segments() {
        let (received, kept) = (fs::read(directory.join(&name)).unwrap(), fs::read(own(&name)).unwrap());
        assert!(received == kept, "{name} differs from the node's");
    }
    // With --synchronous the node knows at once what was flushed.
    let flushed = "SELECT bool_or(flush_lsn >= pg_current_wal_flush_lsn()) FROM pg_stat_replication WHERE application_name = 'pg_receivewal'";
    wait_for("the receiver confirms what it flushed", LIMIT, || rig.sql("postgres", flushed) == "t");
    receiver.end();
    rig.assert_nothing_open();
    finished(rig.program("pg_receivewal").args(["--slot", "archive", "--drop-slot"]));
}

#[test]
fn changes_are_decoded() {
    let rig = Rig::start(0, |spec| spec);
    rig.sql("app", "CREATE TABLE d (n int PRIMARY KEY, t text)");
    let file = rig.directory.join("changes");
    let logical = || {
        let mut command = rig.program("pg_recvlogical");
        command.args(["-d", "app", "--slot", "decoded"]);
        command
    };
    finished(logical().args(["--create-slot", "-P", "test_decoding"]));
    rig.sql("app", "INSERT INTO d SELECT n, 'row ' || n FROM generate_series(1, 500) AS n");
    let end = rig.sql("postgres", "SELECT pg_current_wal_lsn()");
    finished(logical().args(["--start", "--no-loop", "--endpos", &end, "-f"]).arg(&file));
    let text = fs::read_to_string(&file).unwrap();
    let rows: Vec<_> = text.lines().filter(|line| line.contains("table public.d: INSERT:")).collect();
    assert_eq!(rows.len(), 500);
    assert!(rows[41].contains("n[integer]:42 t[text]:'row 42'"), "{}", rows[41]);
    finished(logical().arg("--drop-slot"));
    rig.assert_nothing_open();
}

#[test]
fn a_subscription_follows() {
    let rig = Rig::start(0, |spec| spec);
    let setup = format!(
        "CREATE TABLE s (n int PRIMARY KEY, t text); INSERT INTO s SELECT n, 'before' FROM generate_series(1, 1000) AS n;
         GRANT SELECT ON s TO {REPLICATOR}; CREATE PUBLICATION p FOR TABLE s"
    );
    rig.sql("app", &setup);
    let subscriber = Cluster::start(ClusterOptions { standbys: 0, ..ClusterOptions::default() }).unwrap();
    let there = |sql: &str| subscriber.nodes()[0].psql_in("app", sql).unwrap();
    there("CREATE TABLE s (n int PRIMARY KEY, t text)");
    let (port, password) = (rig.proxy.port, &rig.cluster.passwords().replication);
    there(&format!(
        "CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port={port} user={REPLICATOR} password={password} dbname=app' PUBLICATION p"
    ));
    wait_for("the table is copied", LIMIT, || there("SELECT count(*) FROM s") == "1000");
    rig.sql("app", "INSERT INTO s SELECT n, 'after' FROM generate_series(1001, 1500) AS n; UPDATE s SET t = 'changed' WHERE n <= 10; DELETE FROM s WHERE n = 11");
    wait_for("changes arrive", LIMIT, || {
        there("SELECT count(*), count(*) FILTER (WHERE t = 'changed'), count(*) FILTER (WHERE t = 'after') FROM s")
            == "1499|10|500"
    });
    assert_eq!(rig.metric("pgregent_replication_connections{node=\"pg1\"}"), 1);
    there("DROP SUBSCRIPTION sub");
    assert_eq!(
        rig.sql("app", "SELECT count(*) FROM pg_replication_slots"),
        "0",
        "the slot was dropped through the proxy"
    );
    rig.assert_nothing_open();
}
