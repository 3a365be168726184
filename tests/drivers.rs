//! Real clients: psql, pgbench, psycopg 3, asyncpg, node-postgres, pgjdbc and tokio-postgres do the same work
//! directly and through the proxy, and their output must be the same.
//!
//! `tests/drivers/setup.sh` installs the drivers below `target/drivers`; it runs here as well, and does
//! nothing when they are there. Invariant: a driver that is missing fails its test, unless its name is
//! in `PGREGENT_TEST_WITHOUT` (comma-separated: `psycopg`, `asyncpg`, `node`, `jdbc`). Absent on purpose: speed.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "drivers/rust.rs"]
mod rust;
mod support;

use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use support::cluster::{self, APP_PASSWORD, APP_USER};
use support::drivers::{home, left_out, scripts};
use support::proxy::{Proxy, ProxySpec};
use support::script::difference;

static PROXY: LazyLock<Proxy> = LazyLock::new(|| ProxySpec::in_front_of(cluster::shared()).start_splitting());

/// A program told by libpq's environment where to connect.
fn client_program(program: impl AsRef<std::ffi::OsStr>, port: u16) -> Command {
    let mut command = Command::new(program);
    command
        .envs([("PGHOST", "127.0.0.1"), ("PGUSER", APP_USER), ("PGPASSWORD", APP_PASSWORD), ("PGDATABASE", APP_USER)])
        .env("PGPORT", port.to_string())
        .env("PGCONNECT_TIMEOUT", "20")
        .stdin(Stdio::null());
    command
}

fn finished(command: &mut Command) -> Output {
    // `timeout` turns a hang into a failure with the output so far.
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=5", "240"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    let output = limited.output().unwrap();
    let [out, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{errors}", output.status);
    output
}

/// What of a program's output is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Results.
    Stdout,
    /// Results, then errors and notices (psql; other programs warn there about themselves).
    StdoutAndStderr,
}

/// Runs the same program directly and through the proxy; `make` is told port and suffix for names.
fn compare(heard: Heard, make: impl Fn(u16, &str) -> Command) {
    let lines = |port: u16, suffix: &str| -> Vec<String> {
        let output = finished(&mut make(port, suffix));
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if heard == Heard::StdoutAndStderr {
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        text.lines().map(|line| line.replace(suffix, "suffix")).collect()
    };
    same(&lines(cluster::shared().primary(), "plain"), &lines(PROXY.port, "proxy"));
}

fn same(expected: &[String], found: &[String]) {
    assert!(expected.len() > 5, "the program said nearly nothing: {expected:?}");
    PROXY.assert_no_panic();
    if let Some(difference) = difference(expected, found) {
        panic!("(- directly, + through the proxy):\n{difference}\n{}", PROXY.log());
    }
}

#[test]
fn psql() {
    compare(Heard::StdoutAndStderr, |port, suffix| {
        let mut command = client_program("psql", port);
        command.args(["-X", "-a", "-v", &format!("t=psql_{suffix}"), "-f"]).arg(scripts().join("psql.sql"));
        command
    });
}

#[test]
fn psycopg() {
    if left_out("psycopg") {
        return;
    }
    compare(Heard::Stdout, |port, suffix| {
        let mut command = client_program(home().join("python/bin/python"), port);
        command.arg(scripts().join("psycopg3.py")).arg(suffix);
        command
    });
}

#[test]
fn asyncpg() {
    if left_out("asyncpg") {
        return;
    }
    compare(Heard::Stdout, |port, suffix| {
        let mut command = client_program(home().join("python/bin/python"), port);
        command.arg(scripts().join("async-pg.py")).arg(suffix);
        command
    });
}

#[test]
fn tokio_postgres() {
    same(&rust::play(cluster::shared().primary(), "plain"), &rust::play(PROXY.port, "proxy"));
}

#[test]
fn node_postgres() {
    if left_out("node") {
        return;
    }
    compare(Heard::Stdout, |port, suffix| {
        let mut command = client_program("node", port);
        command.env("NODE_PATH", home().join("node/node_modules")).env("NODE_NO_WARNINGS", "1");
        command.arg(scripts().join("node-postgres.cjs")).arg(suffix);
        command
    });
}

#[test]
fn pgjdbc() {
    if left_out("jdbc") {
        return;
    }
    compare(Heard::Stdout, |port, suffix| {
        let mut command = client_program("java", port);
        command.arg("-cp").arg(home().join("java/postgresql.jar")).arg(scripts().join("Jdbc.java")).arg(suffix);
        command
    });
}

#[test]
fn pgbench() {
    let bench = |arguments: &[&str]| {
        let output = finished(client_program(cluster::bin_directory().join("pgbench"), PROXY.port).args(arguments));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    bench(&["--initialize", "--scale=1", "--quiet"]);
    for protocol in ["simple", "extended", "prepared"] {
        let protocol = format!("--protocol={protocol}");
        let report = bench(&["-n", "-S", "-c", "8", "-t", "200", &protocol]);
        assert!(report.contains("number of transactions actually processed: 1600/1600"), "{report}");
        // A thread per client: pgbench prepares with blocking calls, so that one client that waits for one of the five
        // backends would keep those that hold them inside their transactions from going on.
        let report = bench(&["-n", "-c", "8", "-j", "8", "-t", "40", &protocol]);
        assert!(report.contains("number of transactions actually processed: 320/320"), "{report}");
    }
    // Every transaction adds one number to four tables: the sums agree, and none is missing or doubled.
    let mut direct = cluster::shared().superuser("app");
    let sums = direct.value(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
            AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)
            AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)",
    );
    assert_eq!(sums, "t");
    assert_eq!(direct.value("SELECT count(*) FROM pgbench_history"), "960");
    PROXY.assert_no_panic();
}
