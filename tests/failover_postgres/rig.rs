//! A cluster with a proxy in front of it that can be stopped and started again.
//!
//! Invariants: the proxy's state directory and logs live in the cluster's directory and outlast one
//! run of the proxy; a panic or an unexplained ERROR line in its log fails the test.

use crate::support::guard::ProcessGuard;
use crate::support::rawclient::{Answer, Gone, Login, RawClient};
use crate::support::{free_port, wait_for};
use pgregent::demo::cluster::{AuthSource, Cluster, ClusterOptions, Node, ProxyOptions};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything may take on a slow machine.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Lines of one run of the proxy; more is a flood.
const LOG_LINES_MAX: usize = 400;

/// What to start.
pub struct Plan {
    pub cluster: ClusterOptions,
    pub settings: Vec<(&'static str, String)>,
}

impl Plan {
    pub fn new() -> Self {
        let settings = vec![("pool", "size = 8".to_owned()), ("cluster", "failover_min_gap = \"0s\"".to_owned())];
        Self { cluster: ClusterOptions::default(), settings }
    }

    /// Starts with `failover = "follow"`: somebody else promotes.
    pub fn start_following(self) -> Rig {
        self.start_changing(&|config| config.replace("failover = \"automatic\"", "failover = \"follow\""))
    }

    pub fn start(self) -> Rig {
        self.start_changing(&str::to_owned)
    }

    fn start_changing(self, changed: &dyn Fn(&str) -> String) -> Rig {
        let cluster = Cluster::start(self.cluster).unwrap_or_else(|error| panic!("the cluster starts: {error}"));
        let (port, admin) = (free_port(), free_port());
        let state = cluster.dir().join("state");
        fs::create_dir_all(&state).unwrap();
        let options =
            ProxyOptions { port, admin_port: admin, state_dir: state, auth: AuthSource::Users, extra: self.settings };
        let config = cluster.dir().join("pgregent.toml");
        fs::write(&config, changed(&cluster.proxy_config(&options))).unwrap();
        let sql = "CREATE TABLE ledger (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())";
        let primary = cluster.node("pg1").unwrap();
        primary.psql_in("app", &format!("SET ROLE app; {sql}")).unwrap();
        cluster.wait_streaming(LIMIT).unwrap();
        let mut rig = Rig { process: None, cluster, port, admin, config, runs: 0 };
        rig.start_proxy();
        wait_for("the proxy splits reads", LIMIT, || rig.splits());
        rig
    }
}

/// The running pair.
pub struct Rig {
    process: Option<ProcessGuard>,
    pub cluster: Cluster,
    pub port: u16,
    admin: u16,
    config: PathBuf,
    runs: u32,
}

impl Rig {
    pub fn start_proxy(&mut self) {
        self.runs += 1;
        let directory = self.cluster.dir().join(format!("run{}", self.runs));
        fs::create_dir_all(&directory).unwrap();
        let log = File::create(self.log_path()).unwrap();
        let arguments = ["serve", "--config", self.config.to_str().unwrap()];
        let program = Path::new(env!("CARGO_BIN_EXE_pgregent"));
        self.process = Some(ProcessGuard::spawn(program, &arguments, &directory, log));
        wait_for("the proxy listens", LIMIT, || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// Kills the proxy at once.
    pub fn kill_proxy(&mut self) {
        self.process = None;
    }

    fn log_path(&self) -> PathBuf {
        self.cluster.dir().join(format!("proxy{}.log", self.runs))
    }

    /// What the present run of the proxy has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn node(&self, name: &str) -> &Node {
        self.cluster.node(name).unwrap()
    }

    /// The node that listens on this port.
    pub fn name_of(&self, port: &str) -> String {
        let found = self.cluster.nodes().iter().find(|node| node.port().to_string() == port);
        found.map_or_else(|| format!("port {port}?"), |node| node.name().to_owned())
    }

    pub fn login(&self) -> Login {
        login()
    }

    pub fn client(&self) -> RawClient {
        RawClient::login(self.port, &login()).unwrap_or_else(|gone| panic!("login: {gone:?}\n{}", self.log()))
    }

    fn splits(&self) -> bool {
        let Ok(mut client) = RawClient::login(self.port, &login()) else { return false };
        let mut port = |sql: &str| client.simple(sql).ok().and_then(|answer| answer.rows.first()?.first()?.clone());
        let (read, write) = (port("SELECT inet_server_port()"), port("SELECT inet_server_port() FOR UPDATE"));
        read.is_some() && write.is_some() && read != write
    }

    /// `/api/v1/cluster`.
    pub fn status(&self) -> Value {
        let body = self.http("/api/v1/cluster");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// The body of a GET on the admin port.
    pub fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap()
    }

    /// The control plane's part of the status.
    pub fn control(&self) -> Value {
        let status = self.status();
        if status.get("failover").is_some() { status } else { status["control"].clone() }
    }

    /// One node's part of it.
    pub fn node_status(&self, name: &str) -> Value {
        let control = self.control();
        let nodes = control["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == name).unwrap().clone()
    }

    pub fn wait_primary(&self, name: &str) {
        wait_for(&format!("{name} is primary"), LIMIT, || self.control()["primary"] == name);
    }

    /// Waits until each of these nodes answers reads.
    pub fn wait_reads_on(&self, names: &[&str]) {
        wait_for(&format!("reads on {names:?}"), LIMIT, || {
            names.iter().all(|name| self.node_status(name)["accepts_reads"] == true)
        });
    }

    /// Backends of the application on a node, whoever opened them.
    pub fn app_backends(&self, name: &str) -> String {
        self.node(name).psql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'").unwrap()
    }

    /// How long the parts of the last failover took.
    pub fn print_parts(&self, title: &str) {
        let control = self.control();
        println!("{title}: last failover {}", control["failover"]["last_failover"]);
        let recent = control["recent"].as_array().unwrap();
        let lost =
            recent.iter().rfind(|event| event["kind"] == "primary_lost").map_or(0.0, |e| e["at_s"].as_f64().unwrap());
        for event in recent.iter().filter(|event| event["at_s"].as_f64().unwrap() >= lost - 4.0) {
            let at = (event["at_s"].as_f64().unwrap() - lost) * 1000.0;
            println!("  {at:8.1} ms  {} {} {} took {}", event["kind"], event["node"], event["text"], event["took_ms"]);
        }
    }

    /// The ERROR lines of the log that are not among these kinds.
    pub fn assert_log_clean(&self, expected: &[&str]) {
        let log = self.log();
        let bad: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("ERROR") && !expected.iter().any(|kind| line.contains(kind)))
            .collect();
        assert!(bad.is_empty(), "unexpected errors in the log:\n{}", bad.join("\n"));
        assert!(log.lines().count() < LOG_LINES_MAX, "a log of {} lines:\n{log}", log.lines().count());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let log = self.log();
        self.process = None;
        if std::thread::panicking() || std::env::var_os("PGREGENT_TEST_SHOW_LOG").is_some() {
            eprintln!("--- log of the proxy ---\n{log}\n---");
        } else {
            assert!(!log.contains("panicked at"), "the proxy panicked:\n{log}");
        }
    }
}

pub fn login() -> Login {
    Login::new("app", "app", "app")
}

/// SQLSTATE of a failure; other failures in a word.
pub fn code(gone: &Gone) -> String {
    match gone {
        Gone::Refused(fields) => fields.sqlstate().to_owned(),
        Gone::Closed => "closed".to_owned(),
        Gone::TimedOut => "hung".to_owned(),
        Gone::Garbage(what) => format!("garbage {what}"),
    }
}

/// SQLSTATE of a refusal; `ok` for none.
pub fn outcome(answer: &Result<Answer, Gone>) -> String {
    answer.as_ref().map_or_else(code, |_| "ok".to_owned())
}

/// Waits, without asking anything.
pub fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// Seconds since, for people.
pub fn since(from: Instant) -> String {
    format!("{:.3} s", from.elapsed().as_secs_f64())
}
