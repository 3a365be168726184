//! How often the class of a statement is known: pgbench in its three protocols, and what an ORM sends.
//!
//! Rates are read from `/metrics` and printed. They must be high: a miss costs a parse. SECONDS is how long each pgbench run
//! takes. Absent on purpose: what a hit costs (`benches/classify.rs`).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use support::cluster::{self, APP_PASSWORD, APP_USER};
use support::proxy::{Proxy, ProxySpec};
use support::{drivers, number};

/// Hits of a hundred that a load must reach, once it runs.
const BENCH_LEAST: f64 = 99.0;
/// SQLAlchemy casts each bound value, so that its lists and batches have a shape for each length.
const ORM_LEAST: f64 = 90.0;

fn counter(proxy: &Proxy, name: &str) -> f64 {
    let (_, text) = proxy.http("/metrics").unwrap();
    let line =
        text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Runs a load; tells the rate of hits in percent.
fn rate(proxy: &Proxy, load: &str, run: impl FnOnce()) -> f64 {
    let read = || ["pgregent_classify_hits_total", "pgregent_classify_misses_total"].map(|name| counter(proxy, name));
    let before = read();
    run();
    let after = read();
    let (hits, misses) = (after[0] - before[0], after[1] - before[1]);
    let rate = 100.0 * hits / (hits + misses);
    println!("{load}: {hits} hits, {misses} misses, {rate:.3} %");
    rate
}

fn finished(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn pgbench(proxy: &Proxy, arguments: &[&str]) {
    let mut command = Command::new(cluster::bin_directory().join("pgbench"));
    command.env("PGPASSWORD", APP_PASSWORD).args(["-h", "127.0.0.1", "-p", &proxy.port.to_string(), "-U", APP_USER]);
    finished(command.args(arguments).arg("app"));
}

#[test]
fn classes_of_statements_that_come_again_are_known() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).start_splitting();
    pgbench(&proxy, &["-i", "-q", "-s", "1"]);
    let seconds = number("SECONDS", 1).to_string();
    for script in ["tpcb-like", "select-only"] {
        for protocol in ["simple", "extended", "prepared"] {
            let run = || pgbench(&proxy, &["-b", script, "-M", protocol, "-c", "4", "-T", &seconds]);
            let rate = rate(&proxy, &format!("pgbench {script} {protocol}"), run);
            // A prepared statement is classified once per session, and a short run has few statements.
            assert!(rate > if protocol == "prepared" { 50.0 } else { BENCH_LEAST }, "{script} {protocol}: {rate}");
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hit_rate/orm.py");
    let url = format!("postgresql+psycopg://{APP_USER}:{APP_PASSWORD}@127.0.0.1:{}/app", proxy.port);
    let run = || finished(Command::new(drivers::home().join("python/bin/python")).arg(script).arg(url));
    let rate = rate(&proxy, "SQLAlchemy", run);
    assert!(rate > ORM_LEAST, "{rate}");
    println!(
        "kept: {} classes, {} bytes",
        counter(&proxy, "pgregent_classify_cache_entries"),
        counter(&proxy, "pgregent_classify_cache_bytes")
    );
}
