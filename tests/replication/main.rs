//! Replication connections through the proxy: PostgreSQL's own programs, real servers.
//!
//! What arrives must be what the node has: a base backup starts, received WAL is byte-equal, a
//! subscriber has the rows. Invariants: a connection ends when its node is fenced, when the proxy stops
//! and when its client leaves, and gives its place back each time. Absent on purpose: speed.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "../support/mod.rs"]
mod support;

mod ends;
mod programs;

use pgregent::demo::cluster::{Cluster, ClusterOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use support::cluster::{is_root, postgres_command};
use support::proxy::{Proxy, ProxySpec};
use support::rawclient::{Gone, Login, RawClient};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The role of `ClusterOptions` that may replicate.
const REPLICATOR: &str = "replicator";

/// A cluster that can decode, and a proxy that knows its replication role.
struct Rig {
    proxy: Proxy,
    cluster: Cluster,
    directory: PathBuf,
}

impl Rig {
    fn start(standbys: usize, change: impl FnOnce(ProxySpec) -> ProxySpec) -> Self {
        let settings = vec![("wal_level".to_owned(), "logical".to_owned())];
        let app_password = support::cluster::APP_PASSWORD.to_owned();
        let options = ClusterOptions { standbys, settings, app_password, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).unwrap();
        let ports: Vec<u16> = cluster.nodes().iter().map(|node| node.port()).collect();
        let spec = ProxySpec::new(&ports)
            .user(REPLICATOR, &cluster.passwords().replication)
            .set("cluster.monitor_password", &format!("{:?}", cluster.passwords().monitor));
        let proxy = change(spec).start_ready();
        let directory = std::env::temp_dir().join(format!("pgregent-replication-{}", proxy.port));
        std::fs::create_dir_all(&directory).unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&directory).status().unwrap().success());
        }
        Self { proxy, cluster, directory }
    }

    fn login(&self, mode: &str) -> Login {
        Login::new(REPLICATOR, &self.cluster.passwords().replication, "app").with("replication", mode)
    }

    /// A replication connection through the proxy.
    fn replicate(&self, mode: &str) -> RawClient {
        RawClient::login(self.proxy.port, &self.login(mode)).unwrap_or_else(|gone| panic!("{mode}: {gone:?}"))
    }

    /// One of PostgreSQL's programs, told to connect to this port as the replication role.
    fn program(&self, name: &str) -> Command {
        let mut command = postgres_command(name);
        command
            .envs([("PGHOST", "127.0.0.1"), ("PGUSER", REPLICATOR), ("PGCONNECT_TIMEOUT", "30")])
            .env("PGPORT", self.proxy.port.to_string())
            .env("PGPASSWORD", &self.cluster.passwords().replication);
        command
    }

    /// As superuser, on the primary of the start.
    fn sql(&self, database: &str, statements: &str) -> String {
        self.cluster.nodes()[0].psql_in(database, statements).unwrap()
    }

    /// A figure of `/metrics`.
    fn metric(&self, line: &str) -> u64 {
        let (_, text) = self.proxy.http("/metrics").unwrap();
        let found = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |value| value.parse().unwrap())
    }

    fn assert_nothing_open(&self) {
        for node in ["pg1", "pg2"] {
            let line = format!("pgregent_replication_connections{{node=\"{node}\"}}");
            support::wait_for("replication connections are gone", LIMIT, || self.metric(&line) == 0);
        }
        support::wait_for("pins are gone", LIMIT, || self.metric("pgregent_pins{reason=\"replication\"}") == 0);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn finished(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    output
}

fn refused<T>(outcome: Result<T, Gone>) -> support::message::ErrorFields {
    match outcome {
        Err(Gone::Refused(fields)) => fields,
        Err(gone) => panic!("expected an error message, got {gone:?}"),
        Ok(_) => panic!("expected an error message, got an answer"),
    }
}

/// A program in the background, ended when dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// Asks it to end (the program itself may be a child of `runuser`, which passes signals on).
    fn end(&mut self) {
        let _ = Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
