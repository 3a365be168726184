//! TLS to nodes: every `sslmode`, for backends, cancel requests, probes and `auth_query`.
//!
//! The superuser's connections (the test's own) may always be plain. Absent on purpose: promotion over
//! TLS; it connects as probes do.

use crate::support::message;
use crate::support::pki::{Authority, Issued, Twist, quoted};
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::{Gone, RawClient};
use crate::support::wait_for;
use crate::{LATE_MAX, Rig, scratch};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ANY: &str = "host all all 127.0.0.1/32 scram-sha-256\n";
const TLS_ONLY: &str = "host all postgres 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
const PLAIN_ONLY: &str = "host all postgres 127.0.0.1/32 scram-sha-256\nhostnossl all all 127.0.0.1/32 scram-sha-256\n";
const WITH_CERT: &str = "host all postgres 127.0.0.1/32 scram-sha-256\n\
                         hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n";

impl Rig {
    /// Gives the node this certificate, and lets it ask clients for theirs.
    fn arm(&self, issued: &Issued, clients: &Authority) {
        let node = &self.cluster.nodes()[0];
        let data = node.data_dir();
        let install = |from: &Path, name: &str| {
            let (to, owner) = (data.join(name), data.metadata().unwrap());
            fs::copy(from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        };
        install(&issued.cert, "server.crt");
        install(&issued.key, "server.key");
        install(&clients.file, "clients.crt");
        node.psql("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").unwrap();
        node.psql("ALTER SYSTEM SET ssl = on").unwrap();
        node.psql("SELECT pg_reload_conf()").unwrap();
        wait_for("the node offers TLS", LATE_MAX, || {
            let mut tcp = TcpStream::connect(("127.0.0.1", node.port())).unwrap();
            tcp.write_all(&message::untagged(message::SSL_REQUEST, &[])).unwrap();
            let mut answer = [0];
            tcp.read_exact(&mut answer).is_ok() && answer == *b"S"
        });
    }

    fn hba(&self, lines: &str) {
        let node = &self.cluster.nodes()[0];
        let file = node.data_dir().join("pg_hba.conf");
        // Written in place, so that it stays PostgreSQL's.
        fs::write(&file, format!("local all all scram-sha-256\n{lines}")).unwrap();
        node.psql("SELECT pg_reload_conf()").unwrap();
        let count = lines.lines().count() + 1;
        wait_for("the node has read pg_hba.conf", LATE_MAX, || {
            node.psql("SELECT count(*) FROM pg_hba_file_rules").unwrap() == count.to_string()
        });
        std::thread::sleep(Duration::from_millis(200));
    }

    fn to_node(&self, sslmode: &str) -> ProxySpec {
        self.plain_proxy().set("cluster.sslmode", &format!("{sslmode:?}"))
    }
}

const IS_ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Whether the proxy's backends are encrypted.
fn encrypted(spec: ProxySpec) -> bool {
    let proxy = spec.start_ready();
    let yes = proxy.client().value(IS_ENCRYPTED) == "t";
    assert_eq!(proxy.client().value("SELECT repeat('x', 3000000)").len(), 3_000_000);
    yes
}

/// Why the proxy does not come to terms with the node, as its log says.
fn refused(spec: ProxySpec, why: &str) {
    let proxy = spec.start();
    wait_for(why, LATE_MAX, || proxy.log().contains(why));
}

#[test]
fn every_sslmode_means_what_it_says() {
    let rig = Rig::new("node-modes");
    assert!(!encrypted(rig.to_node("prefer")), "the node does not offer it");
    refused(rig.to_node("require"), "server does not support TLS");
    rig.arm(&rig.authority.server(&["localhost", "127.0.0.1"]), &rig.authority);
    let ca = quoted(&rig.authority.file);
    let with_ca = |mode: &str| rig.to_node(mode).set("cluster.ssl_ca_file", &ca);
    for (spec, expected) in [
        (rig.to_node("disable"), false),
        (rig.to_node("allow"), false),
        (rig.plain_proxy(), true),
        (rig.to_node("require"), true),
        (with_ca("verify-ca"), true),
        (with_ca("verify-full"), true),
    ] {
        assert_eq!(encrypted(spec), expected);
    }
    let stranger = Authority::new(&scratch("node-stranger"), "stranger");
    for mode in ["require", "verify-ca", "verify-full"] {
        let wrong = rig.to_node(mode).set("cluster.ssl_ca_file", &quoted(&stranger.file));
        refused(wrong, "invalid peer certificate: UnknownIssuer");
    }
}

#[test]
fn logins_to_nodes_are_tied_to_the_channel() {
    let rig = Rig::new("node-binding");
    rig.arm(&rig.authority.server(&["localhost", "127.0.0.1"]), &rig.authority);
    let bound = |how: &str| rig.to_node("require").set("cluster.channel_binding", &format!("{how:?}"));
    for how in ["disable", "prefer", "require"] {
        assert!(encrypted(bound(how)), "{how}");
    }
    // A node that asks for the password itself could be anybody.
    rig.hba("host all postgres 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 password\n");
    assert!(encrypted(bound("prefer")));
    refused(bound("require"), "channel binding");
}

#[test]
fn the_name_in_the_certificate_counts() {
    let rig = Rig::new("node-names");
    let ca = quoted(&rig.authority.file);
    let spec = |mode: &str| rig.to_node(mode).set("cluster.ssl_ca_file", &ca);
    let elsewhere = rig.authority.server(&["elsewhere.test", "10.0.0.1"]);
    rig.arm(&elsewhere, &rig.authority);
    refused(spec("verify-full"), "not valid for");
    assert!(encrypted(spec("verify-ca")));
    // A list of revoked certificates.
    let list = rig.authority.revoke(&[&elsewhere]);
    refused(spec("verify-ca").set("cluster.ssl_crl_file", &quoted(&list)), "Revoked");
    // Only a common name, as many clusters have it; and for an address that is not its name.
    let twist = Twist { no_alternative_names: true, ..Twist::default() };
    rig.arm(&rig.authority.issue("localhost", &[], twist), &rig.authority);
    assert!(encrypted(spec("verify-full").node_host("localhost")));
    refused(spec("verify-full"), "not valid for");
    // The node's own certificate as authority, as libpq takes it.
    let alone = rig.authority.server(&["127.0.0.1"]);
    rig.arm(&alone, &rig.authority);
    assert!(encrypted(rig.to_node("verify-full").set("cluster.ssl_ca_file", &quoted(&alone.cert))));
    refused(rig.to_node("verify-full").set("cluster.ssl_ca_file", &quoted(&elsewhere.cert)), "UnknownIssuer");
}

#[test]
fn the_control_plane_goes_where_the_backends_go() {
    let rig = Rig::new("node-hba");
    let node = &rig.cluster.nodes()[0];
    node.psql(
        "CREATE FUNCTION public.look(wanted name) RETURNS TABLE (n name, s text) LANGUAGE sql SECURITY DEFINER \
               AS 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = wanted'",
    )
    .unwrap();
    rig.arm(&rig.authority.server(&["127.0.0.1"]), &rig.authority);
    rig.hba(TLS_ONLY);
    let full = |spec: ProxySpec| spec.set("cluster.ssl_ca_file", &quoted(&rig.authority.file));
    let spec =
        full(rig.to_node("verify-full")).without_users().set("auth.auth_query", "\"SELECT * FROM public.look($1)\"");
    let proxy = spec.start_ready();
    assert_eq!(proxy.client().value(IS_ENCRYPTED), "t");
    let of = |sql: &str| node.psql(sql).unwrap();
    let sessions = "FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename IN ('pgregent', 'app')";
    assert_eq!(of(&format!("SELECT bool_and(ssl), count(DISTINCT application_name) >= 3 {sessions}")), "t|t");
    check_connect(&proxy);
    drop(proxy);
    assert!(encrypted(rig.to_node("allow")), "plain is refused, so TLS is tried");
    assert!(encrypted(rig.to_node("prefer")));
    refused(rig.to_node("disable"), "no pg_hba.conf entry");
    rig.hba(PLAIN_ONLY);
    assert!(!encrypted(rig.to_node("prefer")), "TLS is refused, so plain is tried");
    refused(rig.to_node("require"), "no pg_hba.conf entry");
    rig.hba(WITH_CERT);
    let client = rig.authority.client("pgregent");
    let present = |client: &Issued| {
        let spec = full(rig.to_node("verify-full"));
        spec.set("cluster.ssl_cert_file", &quoted(&client.cert)).set("cluster.ssl_key_file", &quoted(&client.key))
    };
    assert!(encrypted(present(&client)));
    refused(full(rig.to_node("verify-full")), "connection requires a valid client certificate");
    rig.hba(ANY);
}

/// `pgregent check --connect` goes the same way.
fn check_connect(proxy: &Proxy) {
    let mut check = Command::new(env!("CARGO_BIN_EXE_pgregent"));
    let output = check.args(["check", "--connect", "--config"]).arg(proxy.config()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("PostgreSQL") && !said.contains("pg_hba"), "{said}");
}

/// Passes everything on, and notes how each connection begins.
fn eavesdrop(node: u16) -> (u16, Arc<Mutex<Vec<[u8; 8]>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&heard);
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (mut near, mut far) = (near.unwrap(), TcpStream::connect(("127.0.0.1", node)).unwrap());
            let notes = Arc::clone(&notes);
            std::thread::spawn(move || {
                let mut start = [0; 8];
                if near.read_exact(&mut start).is_err() || far.write_all(&start).is_err() {
                    return;
                }
                notes.lock().unwrap().push(start);
                let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back_from, &mut back_to);
                    let _ = back_to.shutdown(Shutdown::Both);
                });
                let _ = std::io::copy(&mut near, &mut far);
                let _ = far.shutdown(Shutdown::Write);
            });
        }
    });
    (port, heard)
}

#[test]
fn a_cancel_request_is_as_protected_as_its_backend() {
    let rig = Rig::new("node-cancel");
    rig.arm(&rig.authority.server(&["127.0.0.1"]), &rig.authority);
    let (port, heard) = eavesdrop(rig.cluster.nodes()[0].port());
    let password = format!("{:?}", rig.cluster.passwords().monitor);
    let proxy = ProxySpec::new(&[port])
        .set("cluster.monitor_password", &password)
        .set("cluster.sslmode", "\"verify-full\"")
        .set("cluster.ssl_ca_file", &quoted(&rig.authority.file))
        .start_ready();
    let mut client = proxy.client();
    client.send(&message::query("SELECT pg_sleep(30)")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let before = heard.lock().unwrap().len();
    let (pid, secret) = client.cancel_key.clone();
    RawClient::tcp(proxy.port).send(&message::cancel(pid, &secret)).unwrap();
    assert!(matches!(client.answer(), Err(Gone::Refused(error)) if error.sqlstate() == "57014"));
    let heard = heard.lock().unwrap();
    assert!(heard.len() > before, "the request has its own connection");
    let request = message::untagged(message::SSL_REQUEST, &[]);
    assert!(heard.iter().all(|start| start[..] == request[..]), "{heard:?}");
}
