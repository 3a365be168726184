//! How connections are protected, on real servers: TLS from clients and to nodes, Unix sockets, PROXY headers.
//!
//! Certificates are made by the tests. Absent on purpose: logins by certificate (the authentication
//! tests), pools, failover.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

#[path = "tls/balancer.rs"]
mod balancer;
#[path = "tls/clients.rs"]
mod clients;
#[path = "tls/doors.rs"]
mod doors;
#[path = "tls/nodes.rs"]
mod nodes;

use pgregent::demo::cluster::{Cluster, ClusterOptions};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;
use support::cluster::{APP_PASSWORD, APP_USER};
use support::free_port;
use support::pki::{Authority, Issued, quoted};
use support::proxy::{Proxy, ProxySpec};

/// A busy machine may be this late.
const LATE_MAX: Duration = Duration::from_secs(9);

/// Certificates and a node of one test, and a proxy that presents one of them.
struct Rig {
    cluster: Cluster,
    authority: Authority,
    server: Issued,
}

impl Rig {
    fn new(name: &str) -> Self {
        let options =
            ClusterOptions { standbys: 0, app_password: APP_PASSWORD.to_owned(), ..ClusterOptions::default() };
        let authority = Authority::new(&scratch(name), "authority");
        let server = authority.server(&["localhost", "127.0.0.1"]);
        Self { cluster: Cluster::start(options).unwrap(), authority, server }
    }

    /// A proxy in front of the node.
    fn plain_proxy(&self) -> ProxySpec {
        let password = format!("{:?}", self.cluster.passwords().monitor);
        ProxySpec::new(&[self.cluster.nodes()[0].port()]).set("cluster.monitor_password", &password)
    }

    /// The same, with this certificate.
    fn proxy(&self) -> ProxySpec {
        self.plain_proxy()
            .set("tls.cert_file", &quoted(&self.server.cert))
            .set("tls.key_file", &quoted(&self.server.key))
    }
}

/// A directory of a test's own.
fn scratch(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    path.join(format!("tls-{name}-{}-{}", std::process::id(), free_port()))
}

/// `psql` through the proxy: what it printed, or what it complained about.
fn psql(proxy: &Proxy, conninfo: &str, command: &str) -> Result<String, String> {
    psql_at(&format!("host=localhost hostaddr=127.0.0.1 port={} {conninfo}", proxy.port), command)
}

fn psql_at(conninfo: &str, command: &str) -> Result<String, String> {
    let conninfo = format!("user={APP_USER} dbname=app gssencmode=disable connect_timeout=10 {conninfo}");
    let output = Command::new("psql")
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &conninfo, "-c", command])
        .env("PGPASSWORD", APP_PASSWORD)
        .output()
        .unwrap();
    told(output)
}

fn told(output: Output) -> Result<String, String> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
