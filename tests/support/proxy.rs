//! The proxy as a child process, configured by key and value, killed when dropped.
//!
//! Invariants: its log is shown when a test fails; a panic inside the proxy fails the test that
//! started it, even if every answer was right. Absent on purpose: linking the proxy into the test;
//! what is tested is the program.

use super::cluster::{APP_PASSWORD, APP_USER, Cluster, MONITOR_PASSWORD, MONITOR_USER, app_login};
use super::guard::ProcessGuard;
use super::rawclient::{Gone, RawClient};
use super::{free_port, wait_for};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(30);
const LOG_BYTES_SHOWN: usize = 12_000;

/// What to start.
#[derive(Clone)]
pub struct ProxySpec {
    nodes: Vec<u16>,
    settings: BTreeMap<String, BTreeMap<String, String>>,
    users: Vec<(String, String)>,
    node_host: String,
    more_ports: Vec<u16>,
    more: String,
}

impl ProxySpec {
    /// A proxy in front of nodes at these loopback ports, with the test's usual settings.
    pub fn new(nodes: &[u16]) -> Self {
        let users = [(APP_USER, APP_PASSWORD), ("other", "other-secret"), ("app_md5", APP_PASSWORD)];
        let users = users.map(|(name, secret)| (name.to_owned(), secret.to_owned())).to_vec();
        let node_host = "127.0.0.1".to_owned();
        let (settings, more_ports, more) = (BTreeMap::new(), Vec::new(), String::new());
        let spec = Self { nodes: nodes.to_vec(), settings, users, node_host, more_ports, more };
        spec.set("cluster.name", "\"test\"")
            .set("cluster.monitor_user", &format!("{MONITOR_USER:?}"))
            .set("cluster.monitor_password", &format!("{MONITOR_PASSWORD:?}"))
            .set("cluster.failover", "\"manual\"")
            .set("cluster.coordination", "\"single\"")
            .set("pool.mode", "\"transaction\"")
            .set("pool.size", "5")
            .set("route.read_write_split", "true")
    }

    /// In front of all nodes of a cluster.
    pub fn in_front_of(cluster: &Cluster) -> Self {
        Self::new(&cluster.ports)
    }

    /// Sets `section.key` to a TOML value.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        let (section, key) = key.split_once('.').expect("section.key");
        self.settings.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// With another user that the proxy knows.
    pub fn user(mut self, name: &str, secret: &str) -> Self {
        self.users.push((name.to_owned(), secret.to_owned()));
        self
    }

    /// Listens on another port as well.
    pub fn listen_too(mut self, port: u16) -> Self {
        self.more_ports.push(port);
        self
    }

    /// With further tables, as TOML.
    pub fn toml_too(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    /// Knows no users but those that other settings tell of.
    pub fn without_users(mut self) -> Self {
        self.users.clear();
        self
    }

    /// Calls the nodes' machine by another name, or by the directory of its Unix sockets.
    pub fn node_host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.node_host);
        self
    }

    fn toml(&self) -> String {
        let mut text = String::new();
        for (section, settings) in &self.settings {
            let _ = writeln!(text, "[{section}]");
            for (key, value) in settings {
                let _ = writeln!(text, "{key} = {value}");
            }
            text.push('\n');
        }
        for (index, port) in self.nodes.iter().enumerate() {
            let _ = writeln!(text, "[[node]]\nname = \"pg{}\"\naddress = \"{}:{port}\"\n", index + 1, self.node_host);
        }
        for (name, password) in &self.users {
            let _ = writeln!(text, "[[auth.user]]\nname = {name:?}\npassword = {password:?}\n");
        }
        text + &self.more
    }

    /// Chooses ports and writes the config, for tests that start the program themselves.
    pub fn write(self) -> Written {
        let (port, admin) = (free_port(), free_port());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("proxy-{}-{port}", std::process::id()));
        fs::create_dir_all(&directory).expect("the target directory is writable");
        let ports = [port].into_iter().chain(self.more_ports.iter().copied());
        let listen: Vec<_> = ports.map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let spec = self
            .set("server.listen", &format!("[{}]", listen.join(", ")))
            .set("admin.listen", &format!("\"127.0.0.1:{admin}\""))
            .set("cluster.state_dir", &format!("{:?}", directory.display().to_string()));
        let config = directory.join("pgregent.toml");
        fs::write(&config, spec.toml()).expect("the directory is writable");
        Written { port, admin, directory, config }
    }

    /// Starts it and waits until its port accepts connections.
    pub fn start(self) -> Proxy {
        let Written { port, admin, directory, config } = self.write();
        let log = File::create(directory.join("log")).expect("the directory is writable");
        let arguments = ["serve", "--config", config.to_str().expect("a plain path")];
        let process = ProcessGuard::spawn(Path::new(env!("CARGO_BIN_EXE_pgregent")), &arguments, &directory, log);
        let proxy = Proxy { port, admin, process: Some(process), directory };
        wait_for("the proxy listens", START_TIMEOUT, || {
            assert!(proxy.is_running(), "the proxy ended at once:\n{}", proxy.log());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        proxy
    }

    /// Starts it and waits until writes reach the primary.
    pub fn start_ready(self) -> Proxy {
        let proxy = self.start();
        let mut last = None;
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            match RawClient::login(proxy.port, &app_login()).and_then(|mut client| client.simple("SELECT 1 FOR UPDATE"))
            {
                Ok(_) => return proxy,
                Err(gone) => last = Some(gone),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the proxy took no write within {START_TIMEOUT:?}: {last:?}");
    }

    /// Starts it and waits until writes reach the primary and reads reach a standby.
    pub fn start_splitting(self) -> Proxy {
        let proxy = self.start_ready();
        let primary = proxy.client().value("SELECT inet_server_port() FOR UPDATE");
        // A session of its own each time: what a test begins must see what was written before, too.
        wait_for("reads reach a standby", START_TIMEOUT, || {
            proxy.client().value("SELECT inet_server_port()") != primary
        });
        proxy
    }
}

/// A config that was written, and what it says.
pub struct Written {
    /// Where clients connect.
    pub port: u16,
    /// Where HTTP answers.
    pub admin: u16,
    /// Everything of this proxy lives here.
    pub directory: PathBuf,
    /// The file.
    pub config: PathBuf,
}

/// A running proxy.
pub struct Proxy {
    /// Where clients connect.
    pub port: u16,
    /// Where HTTP answers.
    pub admin: u16,
    process: Option<ProcessGuard>,
    directory: PathBuf,
}

impl Proxy {
    /// A client that is logged in as the usual test user.
    pub fn client(&self) -> RawClient {
        RawClient::login(self.port, &app_login()).unwrap_or_else(|gone| panic!("login through the proxy: {gone:?}"))
    }

    /// Whether the process still runs.
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(ProcessGuard::is_running)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.pid)
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        if let Some(process) = &self.process {
            process.signal(name);
        }
    }

    /// Its config file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("pgregent.toml")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Fails the test if anything inside the proxy panicked.
    pub fn assert_no_panic(&self) {
        let log = self.log();
        assert!(!log.contains("panicked at"), "the proxy panicked:\n{log}");
    }

    /// Status and body of a GET on the admin port.
    pub fn http(&self, path: &str) -> Result<(u16, String), Gone> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).map_err(|_| Gone::Closed)?;
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(|_| Gone::Closed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|_| Gone::Closed)?;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| Gone::Garbage(answer.clone()))?;
        Ok((status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())))
    }

    /// The proxy is alive and serves reads and writes.
    pub fn assert_serving(&self) {
        assert!(self.is_running(), "the proxy ended:\n{}", self.log());
        let mut client = self.client();
        assert_eq!(client.value("SELECT 6 * 7"), "42");
        assert_eq!(client.value("BEGIN; SELECT 6 * 8; COMMIT"), "48");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let log = self.log();
        drop(self.process.take());
        let from = log.len().saturating_sub(LOG_BYTES_SHOWN);
        let shown = log.char_indices().find(|(at, _)| *at >= from).map_or("", |(at, _)| &log[at..]);
        if std::thread::panicking() {
            eprintln!("--- log of the proxy on port {} ---\n{shown}\n---", self.port);
        } else {
            assert!(!log.contains("panicked at"), "the proxy panicked:\n{shown}");
        }
    }
}
