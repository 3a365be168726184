//! Stopping: who is let finish, who is told, how long it may take.
//!
//! Invariants: the program is the test's own child, so that its exit code is seen. Absent on purpose: failover during a drain.

use crate::support::cluster::{APP_PASSWORD, APP_USER};
use crate::support::message;
use crate::support::proxy::{ProxySpec, Written};
use crate::support::rawclient::{Gone, Login, RawClient};
use crate::support::{cluster, wait_for};
use crate::{LATE_MAX, refused};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The program as our own child, so that its exit code is seen.
struct Running {
    child: Child,
    port: u16,
    _directory: Cleanup,
}

struct Cleanup(std::path::PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Running {
    fn start(spec: ProxySpec) -> Self {
        let Written { port, directory, config, .. } = spec.write();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgregent"));
        command.args(["serve", "--config"]).arg(config).stdin(Stdio::null()).stderr(Stdio::null());
        let running = Self { child: command.spawn().unwrap(), port, _directory: Cleanup(directory) };
        wait_for("the proxy serves", LATE_MAX, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && running.try_client().and_then(|mut client| client.simple("SELECT 1 FOR UPDATE")).is_ok()
        });
        running
    }

    fn try_client(&self) -> Result<RawClient, Gone> {
        RawClient::login(self.port, &Login::new(APP_USER, APP_PASSWORD, APP_USER))
    }

    fn client(&self) -> RawClient {
        self.try_client().unwrap()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end.
    fn ended(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        let mut status = None;
        wait_for("the proxy ends", LATE_MAX, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (status.unwrap(), started.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spec() -> ProxySpec {
    ProxySpec::new(&[cluster::shared().primary()])
}

/// The FATAL error with which the proxy says goodbye.
fn goodbye(client: &mut RawClient) {
    let told = client.read().unwrap();
    let fields = told.fields();
    assert_eq!((told.tag, fields.severity(), fields.sqlstate()), (b'E', "FATAL", "57P01"));
    assert_eq!(client.read(), Err(Gone::Closed));
}

#[test]
fn what_runs_is_finished_and_the_rest_is_told() {
    let mut proxy = Running::start(spec().set("server.drain_timeout", "\"20s\""));
    let (mut idle, mut busy, mut open, mut silent) =
        (proxy.client(), proxy.client(), proxy.client(), RawClient::tcp(proxy.port));
    let mut half = RawClient::tcp(proxy.port);
    half.send(&Login::new(APP_USER, APP_PASSWORD, APP_USER).packet()).unwrap();
    assert_eq!(half.read().unwrap().tag, b'R', "it is asked for its proof");
    open.simple("BEGIN; CREATE TABLE IF NOT EXISTS drained (n int)").unwrap();
    busy.send(&message::query("SELECT pg_sleep(0.8), 'finished'")).unwrap();
    let mut superuser = cluster::shared().superuser(APP_USER);
    let runs = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND query LIKE '%finished%'";
    wait_for("the statement runs", LATE_MAX, || superuser.value(runs) == "1");
    proxy.signal("TERM");
    goodbye(&mut idle);
    // Who is still logging in is refused, and keeps nobody waiting.
    for client in [&mut half, &mut silent] {
        let told = client.read().unwrap();
        assert_eq!((told.tag, told.fields().sqlstate()), (b'E', "57P03"));
    }
    assert!(TcpStream::connect(("127.0.0.1", proxy.port)).is_err(), "nobody new");
    let answer = busy.answer().unwrap();
    assert_eq!(answer.rows[0][1].as_deref(), Some("finished"));
    goodbye(&mut busy);
    // A transaction goes on to its end.
    assert!(proxy.child.try_wait().unwrap().is_none());
    open.simple("INSERT INTO drained VALUES (1)").unwrap();
    open.simple("COMMIT").unwrap();
    goodbye(&mut open);
    let (status, took) = proxy.ended();
    assert!(status.success() && took < Duration::from_secs(3), "{status} {took:?}");
    assert_eq!(superuser.value("WITH d AS (DELETE FROM drained RETURNING 1) SELECT count(*) FROM d"), "1");
}

#[test]
fn the_drain_has_a_deadline() {
    let mut proxy = Running::start(spec().set("server.drain_timeout", "\"1s\""));
    let mut open = proxy.client();
    open.simple("BEGIN; SELECT 1").unwrap();
    proxy.signal("TERM");
    let started = Instant::now();
    goodbye(&mut open);
    assert!(started.elapsed() > Duration::from_millis(800));
    let (status, took) = proxy.ended();
    assert!(status.success() && took < Duration::from_secs(4), "{status} {took:?}");
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut proxy = Running::start(spec().set("server.drain_timeout", "\"1h\""));
    let (mut open, mut busy) = (proxy.client(), proxy.client());
    open.simple("BEGIN; SELECT 1").unwrap();
    busy.send(&message::query("SELECT pg_sleep(60)")).unwrap();
    thread::sleep(Duration::from_millis(200));
    proxy.signal("TERM");
    thread::sleep(Duration::from_millis(500));
    assert!(proxy.child.try_wait().unwrap().is_none());
    proxy.signal("TERM");
    goodbye(&mut open);
    goodbye(&mut busy);
    let (status, took) = proxy.ended();
    assert!(status.success() && took < Duration::from_secs(3), "{status} {took:?}");
}

#[test]
fn waiting_clients_are_told_when_the_proxy_stops() {
    let spec = spec().set("server.max_client_connections", "1").set("server.drain_timeout", "\"20s\"");
    let mut proxy = Running::start(spec);
    let mut inside = None;
    wait_for("the only place", LATE_MAX, || {
        inside = proxy.try_client().ok();
        inside.is_some()
    });
    let mut inside = inside.unwrap();
    inside.simple("BEGIN; SELECT 1").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| refused(proxy.try_client()));
        thread::sleep(Duration::from_millis(300));
        proxy.signal("TERM");
        assert_eq!(waiting.join().unwrap().sqlstate(), "57P03");
    });
    inside.simple("COMMIT").unwrap();
    goodbye(&mut inside);
    assert!(proxy.ended().0.success());
}
