//! A real Patroni on each of three nodes, etcd as its store, and a proxy in front that follows.
//!
//! The nodes are made as for every other test, stopped, and given to Patroni, which starts them itself from then on.
//! The proxy asks each Patroni over https, through a relay that can be shut. Invariants: Patroni and etcd end with the test process,
//! however it ends; PostgreSQL and Patroni run as the owner of the data. Absent on purpose: judging (`main`).

use crate::owner::Owner;
use crate::relay::Relay;
use crate::support::drivers::home;
use crate::support::etcd::Etcd;
use crate::support::free_port;
use crate::support::guard::ProcessGuard;
use crate::support::pki::Authority;
use crate::support::rig::{LIMIT, Plan, Rig};
use crate::support::wait_for;
use base64::Engine as _;
use pgregent::demo::cluster::{Node, SUPERUSER, Shutdown};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Patroni's least: a leader that is gone is missed after so long.
pub const TTL: Duration = Duration::from_secs(20);
/// How long Patroni may take to make three healthy nodes of what is left, rewinding included.
const HEALTH_LIMIT: Duration = Duration::from_secs(90);

/// Papers of the REST API, beside Patroni's configuration.
const AUTHORITY: &str = "authority.crt";
const CERTIFICATE: &str = "rest.crt";
const KEY: &str = "rest.key";

/// One node's Patroni.
struct Member {
    name: String,
    relay: Relay,
    config: PathBuf,
    log: PathBuf,
    process: RefCell<Option<ProcessGuard>>,
}

/// All of it. Patroni ends before the nodes do.
pub struct Ensemble {
    members: Vec<Member>,
    pub rig: Rig,
    owner: Owner,
    _etcd: Etcd,
}

impl Ensemble {
    /// Three healthy nodes, pg1 the leader.
    pub fn start() -> Self {
        let etcd = Etcd::start(1);
        let rest: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let relays: Vec<Relay> = rest.iter().map(|port| Relay::to(*port)).collect();
        let papers = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("follow-{}", std::process::id()));
        let authority = Authority::new(&papers, "authority");
        let issued = authority.server(&["127.0.0.1"]);
        let mut plan = Plan::new();
        plan.settings.push(("cluster", format!("patroni_ca_file = {:?}", authority.file)));
        plan.node_lines =
            relays.iter().map(|relay| format!("patroni_url = \"https://127.0.0.1:{}\"", relay.port)).collect();
        let rig = plan.start_following();
        for node in rig.cluster.nodes().iter().rev() {
            node.stop(Shutdown::Fast).unwrap();
        }
        let owner = Owner::of(&rig, "patroni");
        for (from, to) in [(&authority.file, AUTHORITY), (&issued.cert, CERTIFICATE), (&issued.key, KEY)] {
            owner.write(to, &fs::read_to_string(from).unwrap());
        }
        etcd.post("/v3/kv/put", &put("/service/test/config", &dynamic()));
        let store = etcd.endpoints()[0].replace("http://", "");
        let nodes = rig.cluster.nodes().iter().zip(rest.iter().zip(relays));
        let members = nodes.map(|(node, (rest, relay))| {
            // JSON is YAML.
            let text = local(&rig, node, *rest, &store, &owner.directory).to_string();
            let config = owner.write(&format!("{}.yml", node.name()), &text);
            let log = owner.directory.join(format!("{}.log", node.name()));
            Member { name: node.name().to_owned(), relay, config, log, process: RefCell::default() }
        });
        let ensemble = Self { members: members.collect(), rig, owner, _etcd: etcd };
        ensemble.may_run();
        ensemble.start_member("pg1");
        wait_for("Patroni leads with pg1", HEALTH_LIMIT, || ensemble.leader().as_deref() == Some("pg1"));
        ensemble.start_member("pg2");
        ensemble.start_member("pg3");
        ensemble.wait_healthy();
        ensemble
    }

    /// # Panics
    /// When the owner of the data cannot run what was installed.
    fn may_run(&self) {
        let said = self.owner.run(&program("patroni"), &["--version"]);
        let who = "the owner of the data cannot run Patroni (PGREGENT_TEST_WITHOUT=patroni leaves it out)";
        assert!(said.is_ok(), "{who}: {said:?}");
    }

    fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|member| member.name == name).unwrap()
    }

    /// Starts a node's Patroni, which starts the node.
    pub fn start_member(&self, name: &str) {
        let member = self.member(name);
        let (log, config) = (format!("{name}.log"), member.config.to_str().unwrap());
        *member.process.borrow_mut() = Some(self.owner.spawn(&log, &program("patroni"), &[config]));
    }

    /// Kills a node's Patroni, which leaves PostgreSQL as it is.
    pub fn kill_member(&self, name: &str) {
        *self.member(name).process.borrow_mut() = None;
    }

    /// Stops a node's Patroni where it stands, or lets it go on.
    pub fn freeze_member(&self, name: &str, on: bool) {
        let process = self.member(name).process.borrow();
        process.as_ref().expect("it runs").signal(if on { "STOP" } else { "CONT" });
    }

    /// Starts what was killed, lets go on what was stopped, opens what was shut.
    pub fn mend(&self) {
        for member in &self.members {
            self.rig.node(&member.name).thaw().unwrap();
            if member.process.borrow().as_ref().is_none_or(|process| !process.is_running()) {
                self.start_member(&member.name);
            }
            self.freeze_member(&member.name, false);
        }
        self.shut_rest(false);
    }

    /// Whether the proxy reaches Patroni's REST API.
    pub fn shut_rest(&self, shut: bool) {
        self.members.iter().for_each(|member| member.relay.shut(shut));
    }

    /// Runs `patronictl`; what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let config = self.members[0].config.to_str().unwrap();
        let all = [&["-c", config], arguments].concat();
        self.owner.run(&program("patronictl"), &all).unwrap_or_else(|why| panic!("{why}\n{}", self.logs()))
    }

    /// What Patroni calls its leader, if that one is running.
    pub fn leader(&self) -> Option<String> {
        let members: Value = serde_json::from_str(&self.ctl(&["list", "-f", "json"])).unwrap();
        let leads = |member: &&Value| member["Role"] == "Leader" && member["State"] == "running";
        members.as_array().unwrap().iter().find(leads).map(|member| member["Member"].as_str().unwrap().to_owned())
    }

    /// Waits for a leader that two standbys stream from, and for a proxy that is content with all of them.
    pub fn wait_healthy(&self) {
        let started = std::time::Instant::now();
        while !self.healthy() {
            let limit = started.elapsed() < HEALTH_LIMIT;
            assert!(limit, "not healthy: {}\n{}\n{}", self.ctl(&["list"]), self.rig.control(), self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn healthy(&self) -> bool {
        let control = self.rig.control();
        let nodes = control["nodes"].as_array().unwrap();
        let content = control["writes"] == "open" && nodes.iter().all(|node| node["health"] == "healthy");
        let known = nodes.iter().filter(|node| node["patroni"] == "leader").count() == 1
            && nodes.iter().filter(|node| node["patroni"] == "member").count() == 2;
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let primary = control["primary"].as_str().map(|name| self.rig.node(name));
        content && known && primary.is_some_and(|node| node.psql(streams).is_ok_and(|count| count == "2"))
    }

    /// What a node and its Patroni have logged.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(&self.member(name).log).unwrap_or_default()
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let tail = |member: &Member| {
            let log = self.log(&member.name);
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(25)..].join("\n");
            format!("--- {} ---\n{shown}\n", member.name)
        };
        self.members.iter().map(tail).collect()
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // Before the nodes: Patroni would start them again.
        self.members.iter().for_each(|member| *member.process.borrow_mut() = None);
    }
}

/// One of Patroni's programs.
fn program(name: &str) -> PathBuf {
    home().join("patroni/bin").join(name)
}

/// A call of etcd's gateway.
fn put(key: &str, value: &Value) -> String {
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({"key": encoded(key), "value": encoded(&value.to_string())}).to_string()
}

/// What all of them share: the shortest times that Patroni takes, and no patience with a primary that crashed.
fn dynamic() -> Value {
    json!({
        "ttl": TTL.as_secs(), "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0,
        "maximum_lag_on_failover": 100_000_000,
        "postgresql": {"use_pg_rewind": true, "use_slots": true,
            "parameters": {"wal_log_hints": "on", "max_wal_senders": 10, "max_replication_slots": 10}},
    })
}

fn local(rig: &Rig, node: &Node, rest: u16, store: &str, directory: &Path) -> Value {
    let passwords = rig.cluster.passwords();
    let superuser = json!({"username": SUPERUSER, "password": passwords.superuser});
    let replication = json!({"username": pgregent::demo::cluster::REPLICATION_USER, "password": passwords.replication});
    let postgres = format!("127.0.0.1:{}", node.port());
    let api = format!("127.0.0.1:{rest}");
    json!({
        "scope": "test", "name": node.name(),
        "restapi": {"listen": api, "connect_address": api,
            "certfile": directory.join(CERTIFICATE), "keyfile": directory.join(KEY)},
        "ctl": {"cacert": directory.join(AUTHORITY)},
        "etcd3": {"hosts": store},
        "postgresql": {
            "listen": postgres, "connect_address": postgres, "data_dir": node.data_dir(),
            "bin_dir": rig.cluster.binaries().dir(), "pgpass": directory.join(format!("{}.pass", node.name())),
            "authentication": {"superuser": superuser, "replication": replication, "rewind": superuser},
            "parameters": {"unix_socket_directories": rig.cluster.dir()},
        },
    })
}

/// Waits for what Patroni decides.
pub fn wait_patroni(what: &str, asked: impl FnMut() -> bool) {
    wait_for(what, TTL + LIMIT, asked);
}
