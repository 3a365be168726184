//! A throwaway etcd cluster on free ports of loopback or of one host, whose members can be stopped and killed one by one.
//!
//! Invariants: a member keeps its data and ports from one run to the next; everything is gone when the test
//! process ends. Absent on purpose: an etcd client (tests look through the store, or at the HTTP gateway).

use super::guard::{ClusterGuard, ProcessGuard};
use super::{free_port, wait_for};
use pgregent::demo::cluster::Host;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Debian's place, or the one that the environment names.
fn program() -> PathBuf {
    std::env::var_os("PGREGENT_ETCD").map_or_else(|| PathBuf::from("/usr/bin/etcd"), PathBuf::from)
}

/// Certificates for clients' connections.
pub struct ClientTls<'a> {
    /// Of each member.
    pub cert: &'a Path,
    /// Its key.
    pub key: &'a Path,
    /// Who vouches for clients; each needs a certificate.
    pub ca: &'a Path,
}

/// The cluster.
pub struct Etcd {
    members: Vec<Member>,
    host: Host,
    directory: PathBuf,
    tls: Vec<String>,
    _guard: ClusterGuard,
}

struct Member {
    client: u16,
    peer: u16,
    runs: usize,
    process: Option<ProcessGuard>,
}

impl Etcd {
    /// Starts so many members.
    pub fn start(members: usize) -> Self {
        Self::start_with(members, None)
    }

    /// Starts so many members that speak TLS, or not.
    pub fn start_with(members: usize, tls: Option<&ClientTls<'_>>) -> Self {
        Self::start_on(Host::default(), members, tls)
    }

    /// Starts them on another host than this one.
    pub fn start_on(host: Host, members: usize, tls: Option<&ClientTls<'_>>) -> Self {
        let directory = std::env::temp_dir().join(format!("pgregent-etcd-{}-{}", std::process::id(), free_port()));
        fs::create_dir_all(&directory).expect("the temporary directory is writable");
        let tls = tls.map_or_else(Vec::new, |tls| {
            let file = |option: &str, path: &Path| format!("--{option}={}", path.display());
            let mut options = vec![file("cert-file", tls.cert), file("key-file", tls.key)];
            options.extend([file("trusted-ca-file", tls.ca), "--client-cert-auth".to_owned()]);
            options
        });
        let member = |_| Member { client: free_port(), peer: free_port(), runs: 0, process: None };
        let guard = ClusterGuard::new(&directory);
        let mut etcd = Self { members: (0..members).map(member).collect(), host, directory, tls, _guard: guard };
        for member in 0..members {
            etcd.spawn(member);
        }
        for member in 0..members {
            etcd.wait(member);
        }
        etcd
    }

    /// Client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        let (scheme, address) = (self.scheme(), self.host.address);
        self.members.iter().map(|member| format!("{scheme}://{address}:{}", member.client)).collect()
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_empty() { "http" } else { "https" }
    }

    fn spawn(&mut self, index: usize) {
        let peers: Vec<String> =
            self.members.iter().enumerate().map(|(i, m)| format!("m{i}={}", url(&self.host, m.peer))).collect();
        let (peers, scheme, host) = (peers.join(","), self.scheme(), &self.host);
        let member = &mut self.members[index];
        member.runs += 1;
        let clients = format!("{scheme}://{}:{}", host.address, member.client);
        let mut options = vec![
            format!("--name=m{index}"),
            format!("--data-dir={}", self.directory.join(format!("data{index}")).display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={}", url(host, member.peer)),
            format!("--initial-advertise-peer-urls={}", url(host, member.peer)),
            format!("--initial-cluster={peers}"),
            // Another leader within a second, so that a time to live of two outlasts the election.
            "--heartbeat-interval=50".to_owned(),
            "--election-timeout=500".to_owned(),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        options.extend(self.tls.iter().cloned());
        let (mut program, namespace) = (program(), host.namespace.as_ref());
        if let Some(namespace) = namespace {
            let entered = [format!("--net={}", namespace.display()), "--".to_owned(), program.display().to_string()];
            options.splice(0..0, entered);
            program = PathBuf::from("nsenter");
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let run = self.directory.join(format!("run{index}-{}", member.runs));
        fs::create_dir_all(&run).expect("the directory is writable");
        let log = File::create(self.directory.join(format!("etcd{index}-{}.log", member.runs))).expect("a log");
        member.process = Some(ProcessGuard::spawn(&program, &options, &run, log));
    }

    /// Waits until the member listens, and, in plain text, until it is healthy.
    fn wait(&self, index: usize) {
        let address = SocketAddr::from((self.host.address, self.members[index].client));
        wait_for(&format!("etcd member {index}"), START_TIMEOUT, || {
            if self.tls.is_empty() {
                http(address, "GET", "/health", "").is_some_and(|answer| answer.contains("true"))
            } else {
                TcpStream::connect(address).is_ok()
            }
        });
    }

    /// Kills a member at once.
    pub fn kill(&mut self, index: usize) {
        self.members[index].process = None;
    }

    /// Starts a killed member again, on its data, and waits until it is healthy: most members must run.
    pub fn restart(&mut self, index: usize) {
        self.respawn(index);
        self.wait(index);
    }

    /// The same without waiting.
    pub fn respawn(&mut self, index: usize) {
        self.spawn(index);
    }

    /// Stops a member where it stands, or lets it go on.
    pub fn freeze(&self, index: usize, on: bool) {
        let process = self.members[index].process.as_ref().expect("it runs");
        process.signal(if on { "STOP" } else { "CONT" });
    }

    /// Where a member listens for clients.
    pub fn port(&self, member: usize) -> u16 {
        self.members[member].client
    }

    /// The answer to a call of the first member's HTTP gateway, which must succeed.
    pub fn post(&self, path: &str, body: &str) -> String {
        let first = SocketAddr::from((self.host.address, self.members[0].client));
        let answer = http(first, "POST", path, body).expect("etcd answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{path} {body}: {answer}");
        answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())
    }
}

fn url(host: &Host, port: u16) -> String {
    format!("http://{}:{port}", host.address)
}

fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(START_TIMEOUT)).ok()?;
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
