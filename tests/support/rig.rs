//! A cluster with proxies in front of it that can be stopped and started again.
//!
//! Invariants: a proxy's state directory and logs live in the cluster's directory and outlast one
//! run of the proxy; a panic or an unexplained ERROR line in its log fails the test. What is asked of the
//! rig about "the proxy" is asked of the first one. Absent on purpose: judging what clients saw (`load`).

use super::etcd::Etcd;
use super::guard::ProcessGuard;
use super::net::Net;
use super::rawclient::{Answer, Gone, Login, RawClient};
use super::{free_port, wait_for};
use pgregent::demo::cluster::{AuthSource, Cluster, ClusterOptions, Host, MONITOR_USER, Node, ProxyOptions};
use serde_json::Value;
use std::cell::{RefCell, RefMut};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything may take on a slow machine.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Lines of one run of the proxy; more is a flood.
const LOG_LINES_MAX: usize = 400;
/// Names the program to test, instead of the one that was built with the tests.
const PROGRAM_VARIABLE: &str = "PGREGENT";

/// Names of the hosts of what several proxies share.
pub const WITNESS: &str = "witness1";
pub const ETCD: &str = "etcd1";

/// What to start.
pub struct Plan {
    pub cluster: ClusterOptions,
    pub settings: Vec<(&'static str, String)>,
    /// How many proxies.
    pub proxies: usize,
    /// Whether every node and every proxy gets a network namespace of its own.
    pub network: bool,
    /// Changes the text of the configuration.
    pub config: fn(String) -> String,
    /// A line more in each node's table, in the order of the nodes.
    pub node_lines: Vec<String>,
    /// Whether there is a witness too, for the store `voters`.
    pub witness: bool,
    /// Whether there is an etcd of one member, for the store of that name.
    pub etcd: bool,
}

impl Plan {
    pub fn new() -> Self {
        let settings = vec![("pool", "size = 8".to_owned()), ("cluster", "failover_min_gap = \"0s\"".to_owned())];
        let cluster = ClusterOptions::default();
        Self {
            cluster,
            settings,
            proxies: 1,
            network: false,
            config: |text| text,
            node_lines: Vec::new(),
            witness: false,
            etcd: false,
        }
    }

    /// Starts with `failover = "follow"`: somebody else promotes.
    pub fn start_following(mut self) -> Rig {
        self.config = |text| text.replace("failover = \"automatic\"", "failover = \"follow\"");
        self.start()
    }

    pub fn start(self) -> Rig {
        self.try_start().unwrap_or_else(|why| panic!("no network of its own: {why}"))
    }

    /// # Errors
    /// Why there can be no namespaces.
    pub fn try_start(mut self) -> Result<Rig, String> {
        let nodes: Vec<_> = (1..=self.cluster.standbys + 1).map(|number| format!("pg{number}")).collect();
        let proxies: Vec<_> = (1..=self.proxies).map(|number| format!("proxy{number}")).collect();
        let mut hosts: Vec<&str> = nodes.iter().chain(&proxies).map(String::as_str).collect();
        hosts.extend(
            [(WITNESS, self.witness), (ETCD, self.etcd)].iter().filter(|(_, there)| *there).map(|(name, _)| name),
        );
        let net = if self.network { Some(Net::enter(&hosts)?) } else { None };
        let host = |name: &str| {
            let own = |net: &Net| Host { address: net.address(name), namespace: Some(net.namespace(name)) };
            net.as_ref().map(own).unwrap_or_default()
        };
        if net.is_some() {
            self.cluster.hosts = nodes.iter().map(|name| host(name)).collect();
        }
        let etcd = self.etcd.then(|| RefCell::new(Etcd::start_on(host(ETCD), 1, None)));
        let witness = self.witness.then(|| witness(host(WITNESS), self.network));
        let cluster = Cluster::start(self.cluster).unwrap_or_else(|error| panic!("the cluster starts: {error}"));
        let mut stores = String::new();
        if let Some(witness) = &witness {
            let node = &witness.nodes()[0];
            let password = &cluster.passwords().monitor;
            node.psql(&format!("ALTER ROLE {MONITOR_USER} PASSWORD '{password}'")).unwrap();
            node.psql(&format!("GRANT CREATE ON SCHEMA public TO {MONITOR_USER}")).unwrap();
            let address = format!("{}:{}", node.address(), node.port());
            stores.push_str(&format!("\n[[witness]]\nname = \"{WITNESS}\"\naddress = \"{address}\"\n"));
        }
        if let Some(etcd) = &etcd {
            stores.push_str(&format!("\n[etcd]\nendpoints = {:?}\n", etcd.borrow().endpoints()));
        }
        let fronts = proxies.iter().map(|name| {
            let changed = |options: &ProxyOptions| {
                let text = (self.config)(cluster.proxy_config(options)) + &stores;
                self.node_lines.iter().zip(&nodes).fold(text, |text, (line, node)| {
                    let name = format!("name = \"{node}\"\n");
                    text.replace(&name, &format!("{name}{line}\n"))
                })
            };
            RefCell::new(Front::new(name, cluster.dir(), net.as_ref(), &self.settings, &changed))
        });
        let fronts = fronts.collect();
        let sql = "CREATE TABLE ledger (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), \
                   node int DEFAULT inet_server_port(), \
                   timeline text DEFAULT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))";
        let primary = cluster.node("pg1").unwrap();
        primary.psql_in("app", &format!("SET ROLE app; {sql}")).unwrap();
        cluster.wait_streaming(LIMIT).unwrap();
        let rig = Rig { fronts, etcd, witness, cluster, net };
        for index in 0..self.proxies {
            rig.start_proxy_number(index);
        }
        wait_for("every proxy splits reads", LIMIT, || (0..self.proxies).all(|index| rig.splits(index)));
        Ok(rig)
    }
}

/// One proxy.
struct Front {
    address: SocketAddr,
    admin: SocketAddr,
    namespace: Option<PathBuf>,
    directory: PathBuf,
    runs: u32,
    process: Option<ProcessGuard>,
}

impl Front {
    fn new(
        name: &str,
        cluster: &Path,
        net: Option<&Net>,
        settings: &[(&'static str, String)],
        config: &dyn Fn(&ProxyOptions) -> String,
    ) -> Self {
        let (port, admin_port) = (free_port(), free_port());
        let directory = cluster.join(name);
        let state_dir = directory.join("state");
        fs::create_dir_all(&state_dir).unwrap();
        let ip = net.map_or(Ipv4Addr::LOCALHOST, |net| net.address(name));
        let options = ProxyOptions { port, admin_port, state_dir, auth: AuthSource::Users, extra: settings.to_vec() };
        let text = [port, admin_port].iter().fold(config(&options), |text, port| {
            text.replace(&format!("\"127.0.0.1:{port}\""), &format!("\"{ip}:{port}\""))
        });
        fs::write(directory.join("pgregent.toml"), text).unwrap();
        let [address, admin] = [port, admin_port].map(|port| SocketAddr::from((ip, port)));
        Self { address, admin, namespace: net.map(|net| net.namespace(name)), directory, runs: 0, process: None }
    }

    fn start(&mut self) {
        self.runs += 1;
        let directory = self.directory.with_file_name(format!("{}run{}", self.name(), self.runs));
        fs::create_dir_all(&directory).unwrap();
        let (log, config) = (File::create(self.log_path()).unwrap(), self.directory.join("pgregent.toml"));
        let (program, entered) = (program(), self.namespace.as_ref().map(|file| format!("--net={}", file.display())));
        let mut arguments = vec!["serve", "--config", config.to_str().unwrap()];
        let nsenter = Path::new("nsenter");
        if let Some(namespace) = &entered {
            arguments.splice(0..0, [namespace, "--", program.to_str().unwrap()]);
        }
        let started: &Path = if entered.is_some() { nsenter } else { &program };
        self.process = Some(ProcessGuard::spawn(started, &arguments, &directory, log));
        let address = self.address;
        wait_for("the proxy listens", LIMIT, || TcpStream::connect(address).is_ok());
    }

    fn name(&self) -> String {
        self.directory.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join(format!("log{}", self.runs))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The body of a GET on the admin port.
    fn http(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }
}

/// The running cluster and its proxies.
pub struct Rig {
    fronts: Vec<RefCell<Front>>,
    etcd: Option<RefCell<Etcd>>,
    witness: Option<Cluster>,
    pub cluster: Cluster,
    /// The network, if the hosts have one of their own.
    pub net: Option<Net>,
}

impl Rig {
    pub fn start_proxy(&self) {
        self.start_proxy_number(0);
    }

    /// Starts one of the proxies.
    pub fn start_proxy_number(&self, index: usize) {
        self.fronts[index].borrow_mut().start();
    }

    /// Kills the proxy at once.
    pub fn kill_proxy(&self) {
        self.kill_proxy_number(0);
    }

    /// Kills one of the proxies at once.
    pub fn kill_proxy_number(&self, index: usize) {
        self.fronts[index].borrow_mut().process = None;
    }

    /// Sends a proxy a signal by name.
    pub fn signal_proxy(&self, index: usize, signal: &str) {
        if let Some(process) = &self.fronts[index].borrow().process {
            process.signal(signal);
        }
    }

    /// What the present run of the proxy has logged.
    pub fn log(&self) -> String {
        self.log_of(0)
    }

    /// What the present run of one of the proxies has logged.
    pub fn log_of(&self, index: usize) -> String {
        self.fronts[index].borrow().log()
    }

    /// Where clients of the proxy connect.
    pub fn address(&self) -> SocketAddr {
        self.fronts[0].borrow().address
    }

    /// Where clients of each proxy connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.fronts.iter().map(|front| front.borrow().address).collect()
    }

    /// The store, where it is an etcd.
    pub fn etcd(&self) -> RefMut<'_, Etcd> {
        self.etcd.as_ref().expect("the plan has an etcd").borrow_mut()
    }

    pub fn witness(&self) -> &Node {
        &self.witness.as_ref().expect("the plan has a witness").nodes()[0]
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
        RawClient::login_at(self.address(), &login()).unwrap_or_else(|gone| panic!("login: {gone:?}\n{}", self.log()))
    }

    fn splits(&self, index: usize) -> bool {
        let address = self.fronts[index].borrow().address;
        let Ok(mut client) = RawClient::login_at(address, &login()) else { return false };
        let mut port = |sql: &str| client.simple(sql).ok().and_then(|answer| answer.rows.first()?.first()?.clone());
        let (read, write) = (port("SELECT inet_server_port()"), port("SELECT inet_server_port() FOR UPDATE"));
        read.is_some() && write.is_some() && read != write
    }

    /// `/api/v1/cluster`.
    pub fn status(&self) -> Value {
        self.status_of(0)
    }

    /// `/api/v1/cluster` of one of the proxies.
    pub fn status_of(&self, index: usize) -> Value {
        let body = self.fronts[index].borrow().http("/api/v1/cluster").unwrap();
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// The body of a GET on the admin port.
    pub fn http(&self, path: &str) -> String {
        self.fronts[0].borrow().http(path).unwrap()
    }

    /// The control plane's part of the status.
    pub fn control(&self) -> Value {
        self.control_of(0)
    }

    /// The same as one of the proxies sees it.
    pub fn control_of(&self, index: usize) -> Value {
        let status = self.status_of(index);
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
        for front in &self.fronts {
            let mut front = front.borrow_mut();
            let log = front.log();
            front.process = None;
            if std::thread::panicking() || std::env::var_os("PGREGENT_TEST_SHOW_LOG").is_some() {
                eprintln!("--- log of {} ---\n{log}\n---", front.name());
            } else {
                assert!(!log.contains("panicked at"), "{} panicked:\n{log}", front.name());
            }
        }
    }
}

/// A small PostgreSQL that only votes.
fn witness(host: Host, network: bool) -> Cluster {
    let hosts = if network { vec![host] } else { Vec::new() };
    Cluster::start(ClusterOptions { standbys: 0, hosts, ..ClusterOptions::default() })
        .unwrap_or_else(|error| panic!("the witness starts: {error}"))
}

/// The program to test.
pub fn program() -> PathBuf {
    let named = std::env::var_os(PROGRAM_VARIABLE).filter(|name| !name.is_empty());
    named.map_or_else(|| env!("CARGO_BIN_EXE_pgregent").into(), PathBuf::from)
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
