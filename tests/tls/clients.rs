//! TLS from clients, as libpq and a client of our own ask for it.
//!
//! Absent on purpose: what a certificate means for the login (the authentication tests).

use crate::support::cluster::app_login;
use crate::support::fakenode::ChaosNode;
use crate::support::message;
use crate::support::pki::{Authority, Twist, quoted};
use crate::support::rawclient::RawClient;
use crate::support::tlsclient::{Offers, presented};
use crate::support::wait_for;
use crate::{LATE_MAX, Rig, psql, psql_at, scratch};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn every_sslmode_of_libpq_means_what_it_says() {
    let rig = Rig::new("modes");
    let proxy = rig.proxy().start_ready();
    let root = format!("sslrootcert={}", rig.authority.file.display());
    let encrypted = |conninfo: &str| {
        let said = psql(&proxy, conninfo, "\\conninfo").unwrap_or_else(|error| panic!("{conninfo}: {error}"));
        said.contains("SSL connection")
    };
    assert!(!encrypted("sslmode=disable"));
    assert!(!encrypted("sslmode=allow"));
    assert!(encrypted("sslmode=prefer"));
    assert!(encrypted("sslmode=require"));
    assert!(encrypted(&format!("sslmode=verify-ca {root}")));
    assert!(encrypted(&format!("sslmode=verify-full {root}")));
    assert_eq!(psql(&proxy, "sslmode=require", "SELECT 6 * 7").as_deref(), Ok("42"));

    let elsewhere = format!("sslmode=verify-full {root} host=elsewhere.test hostaddr=127.0.0.1 port={}", proxy.port);
    assert!(psql_at(&elsewhere, "SELECT 1").unwrap_err().contains("does not match host name"));
    let stranger = Authority::new(&scratch("stranger"), "stranger");
    let strange = format!("sslmode=verify-ca sslrootcert={}", stranger.file.display());
    assert!(psql(&proxy, &strange, "SELECT 1").unwrap_err().contains("certificate verify failed"));
    wait_for("the failed handshake is in the log, with the peer", LATE_MAX, || {
        proxy.log().lines().any(|line| line.contains("TLS handshake failed") && line.contains("client=127.0.0.1:"))
    });
}

#[test]
fn required_tls_is_required_of_sessions_and_not_of_cancels() {
    let rig = Rig::new("required");
    let proxy = rig.proxy().set("tls.mode", "\"require\"").start();
    let refused = psql(&proxy, "sslmode=disable", "SELECT 1").unwrap_err();
    assert!(refused.contains("encrypted connections only"), "{refused}");
    wait_for("the proxy serves", LATE_MAX, || psql(&proxy, "sslmode=require", "SELECT 1").is_ok());
    let mut stranger = RawClient::tcp(proxy.port);
    stranger.send(&message::cancel(1, b"1234")).unwrap();
    assert_eq!(stranger.read_to_end().unwrap(), b"");
}

#[test]
fn old_versions_and_unknown_suites_are_refused() {
    let rig = Rig::new("old");
    let spec = rig.proxy().set("tls.ciphers", "[\"TLS_AES_256_GCM_SHA384\", \"ECDHE-ECDSA-AES256-GCM-SHA384\"]");
    let proxy = spec.clone().start_ready();
    let said = psql(&proxy, "sslmode=require ssl_max_protocol_version=TLSv1.2", "\\conninfo").unwrap();
    assert!(said.contains("protocol: TLSv1.2, cipher: ECDHE-ECDSA-AES256-GCM-SHA384"), "{said}");
    let said = psql(&proxy, "sslmode=require", "\\conninfo").unwrap();
    assert!(said.contains("protocol: TLSv1.3, cipher: TLS_AES_256_GCM_SHA384"), "{said}");
    let ancient = "sslmode=require ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.1";
    psql(&proxy, ancient, "SELECT 1").unwrap_err();

    let strict = spec.set("tls.min_protocol_version", "\"1.3\"").start_ready();
    assert!(psql(&strict, "sslmode=require", "SELECT 1").is_ok());
    psql(&strict, "sslmode=require ssl_max_protocol_version=TLSv1.2", "SELECT 1").unwrap_err();
}

#[test]
fn client_certificates_are_optional_and_verified() {
    let rig = Rig::new("certificates");
    let revoked = rig.authority.client("revoked");
    let list = rig.authority.revoke(&[&revoked]);
    let spec = rig.proxy().set("tls.ca_file", &quoted(&rig.authority.file)).set("tls.crl_file", &quoted(&list));
    let proxy = spec.start_ready();
    let with = |issued: &crate::support::pki::Issued| {
        let files = format!("sslcert={} sslkey={}", issued.cert.display(), issued.key.display());
        psql(&proxy, &format!("sslmode=require {files}"), "SELECT 1")
    };
    assert_eq!(psql(&proxy, "sslmode=require sslcert=/none sslkey=/none", "SELECT 1").as_deref(), Ok("1"));
    assert_eq!(with(&rig.authority.client("app")).as_deref(), Ok("1"));
    let stranger = Authority::new(&scratch("other-ca"), "strangers");
    with(&stranger.client("app")).unwrap_err();
    with(&rig.authority.issue("app", &[], Twist { expired: true, ..Twist::default() })).unwrap_err();
    with(&revoked).unwrap_err();
    for why in ["UnknownIssuer", "certificate expired", "Revoked"] {
        wait_for(why, LATE_MAX, || proxy.log().contains(why));
    }
}

#[test]
fn direct_tls_names_the_protocol() {
    let rig = Rig::new("direct");
    let proxy = rig.proxy().start_ready();
    let mut client = Offers::direct().client(proxy.port).unwrap();
    client.send(&app_login().packet()).unwrap();
    client.authenticate(&app_login()).unwrap();
    assert_eq!(client.value("SELECT 6 * 7"), "42");
    // The answer to SSLRequest may be followed by ALPN as well, or by none.
    let wire = Offers::default().connect(proxy.port).unwrap();
    assert_eq!(wire.conn.alpn_protocol(), Some(&b"postgresql"[..]));
    let wire = Offers { alpn: Vec::new(), ..Offers::default() }.connect(proxy.port).unwrap();
    assert_eq!(wire.conn.alpn_protocol(), None);

    let silent = Offers { alpn: Vec::new(), ..Offers::direct() };
    // The handshake may succeed; the connection ends all the same.
    if let Ok(mut wire) = silent.connect(proxy.port) {
        let _ = wire.write_all(&app_login().packet()).and_then(|()| wire.flush());
        assert_eq!(wire.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    }
    let other = Offers { alpn: vec![b"http/1.1".to_vec()], ..Offers::direct() };
    assert!(other.connect(proxy.port).is_err());
    wait_for("both are in the log", LATE_MAX, || {
        proxy.log().contains("direct TLS without ALPN") && proxy.log().contains("doesn't support any known protocol")
    });
    proxy.assert_serving();
}

#[test]
fn direct_tls_where_none_is_offered_is_a_bad_packet() {
    let proxy = crate::support::proxy::ProxySpec::new(&[1]).start();
    assert!(Offers::direct().connect(proxy.port).is_err());
    let refused = Offers::default().connect(proxy.port).err().unwrap();
    assert!(refused.to_string().contains("'N'"), "{refused}");
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let rig = Rig::new("names");
    let (one, two) = (rig.authority.server(&["one.test"]), rig.authority.server(&["*.two.test"]));
    let files = format!("[{}, {}]", quoted(&one.bundle()), quoted(&two.bundle()));
    let proxy = rig.proxy().set("tls.sni_cert_files", &files).start_ready();
    let shown = |name: &str| {
        let offers = Offers { server_name: name.to_owned(), ..Offers::default() };
        presented(&offers.connect(proxy.port).unwrap())
    };
    assert_eq!(shown("one.test"), one.der);
    assert_eq!(shown("db.two.test"), two.der);
    assert_eq!(shown("localhost"), rig.server.der);
    assert_eq!(shown("unknown.test"), rig.server.der);
    assert_eq!(shown("127.0.0.1"), rig.server.der);
}

#[test]
fn plaintext_behind_the_request_is_refused() {
    let rig = Rig::new("smuggled");
    let proxy = rig.proxy().start_ready();
    let mut client = RawClient::tcp(proxy.port);
    client.send(&[message::untagged(message::SSL_REQUEST, &[]), app_login().packet()].concat()).unwrap();
    let answer = client.read_to_end().unwrap();
    assert_eq!(answer.first(), Some(&b'E'), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer).contains("unencrypted data after"));
    // GSS encryption is declined, and TLS may follow.
    let mut tcp = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
    tcp.write_all(&message::untagged(message::GSSENC_REQUEST, &[])).unwrap();
    let mut answer = [0];
    tcp.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"N");
    let mut client = RawClient::over(Offers::default().connect_over(tcp).unwrap());
    client.send(&app_login().packet()).unwrap();
    client.authenticate(&app_login()).unwrap();
    assert_eq!(client.value("SELECT 1"), "1");
    // TLS is not asked for within TLS.
    let mut twice = Offers::default().client(proxy.port).unwrap();
    twice.send(&message::untagged(message::SSL_REQUEST, &[])).unwrap();
    assert_eq!(twice.read().unwrap().tag, b'E');
}

#[test]
fn a_cancel_request_may_come_encrypted() {
    let rig = Rig::new("cancel");
    let proxy = rig.proxy().start_ready();
    for offers in [Offers::default(), Offers::direct()] {
        let mut client = offers.client(proxy.port).unwrap();
        client.send(&app_login().packet()).unwrap();
        client.authenticate(&app_login()).unwrap();
        client.send(&message::query("SELECT pg_sleep(30)")).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let (pid, secret) = client.cancel_key.clone();
        let started = Instant::now();
        let mut other = offers.client(proxy.port).unwrap();
        other.send(&message::cancel(pid, &secret)).unwrap();
        assert_eq!(other.read_to_end().unwrap(), b"");
        let answer = client.answer().unwrap_err();
        assert!(matches!(&answer, crate::support::rawclient::Gone::Refused(error) if error.sqlstate() == "57014"));
        assert!(started.elapsed() < LATE_MAX);
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

#[test]
fn certificates_are_replaced_under_open_connections() {
    let rig = Rig::new("reload");
    let proxy = rig.proxy().start_ready();
    let log_in = || {
        let mut client = Offers::default().client(proxy.port).unwrap();
        client.send(&app_login().packet()).unwrap();
        client.authenticate(&app_login()).unwrap();
        client
    };
    let mut veteran = log_in();
    let reload = |said: &str| {
        let before = proxy.log().matches(said).count();
        proxy.signal("HUP");
        wait_for(said, LATE_MAX, || proxy.log().matches(said).count() > before);
    };
    let newer = rig.authority.server(&["localhost"]);
    let (old_cert, old_key) = (fs::read(&rig.server.cert).unwrap(), fs::read(&rig.server.key).unwrap());
    fs::copy(&newer.cert, &rig.server.cert).unwrap();
    // Half of a replacement is refused, and what runs goes on.
    reload("the config was not reloaded");
    assert!(proxy.log().contains("is not the key of the certificate in"), "{}", proxy.log());
    assert_eq!(presented(&Offers::default().connect(proxy.port).unwrap()), rig.server.der);
    fs::copy(&newer.key, &rig.server.key).unwrap();
    reload("new certificates are in use");
    assert_eq!(presented(&Offers::default().connect(proxy.port).unwrap()), newer.der);
    assert_eq!(veteran.value("SELECT 'goes on'"), "goes on");
    assert_eq!(log_in().value("SELECT 1"), "1");
    fs::write(&rig.server.cert, old_cert).unwrap();
    fs::write(&rig.server.key, old_key).unwrap();
    reload("new certificates are in use");
    assert_eq!(veteran.value("SELECT 'still'"), "still");
}

#[test]
fn bytes_may_arrive_one_by_one() {
    let rig = Rig::new("chopped");
    let proxy = rig.proxy().start_ready();
    let chopping = ChaosNode::chopping(proxy.port);
    let at = format!("host=localhost hostaddr=127.0.0.1 port={} sslmode=require", chopping.port);
    assert_eq!(psql_at(&at, "SELECT count(*) FROM generate_series(1, 1000)").as_deref(), Ok("1000"));
    let rows = psql_at(&at, "SELECT i FROM generate_series(1, 300) i").unwrap();
    assert_eq!(rows.lines().count(), 300);
    let mut direct = Offers::direct().client(chopping.port).unwrap();
    direct.send(&app_login().packet()).unwrap();
    direct.authenticate(&app_login()).unwrap();
    assert_eq!(direct.value("SELECT 6 * 7"), "42");
}

/// Most memory the proxy may ever have used while 100 MB went through, KiB.
const MEMORY_MAX: u64 = 80 * 1024;

#[test]
fn a_long_result_goes_through_with_bounded_memory() {
    let rig = Rig::new("long");
    let proxy = rig.proxy().start_ready();
    let mut client = Offers::default().client(proxy.port).unwrap();
    client.send(&app_login().packet()).unwrap();
    client.authenticate(&app_login()).unwrap();
    client.send(&message::query("SELECT repeat('x', 10000) FROM generate_series(1, 10000)")).unwrap();
    // A client that does not read: nothing piles up.
    std::thread::sleep(Duration::from_millis(1500));
    let (mut rows, mut bytes) = (0, 0);
    loop {
        let message = client.read().unwrap();
        match message.tag {
            b'D' => {
                rows += 1;
                bytes += message.body.len();
                assert!(message.body[6..].iter().all(|byte| *byte == b'x'));
            }
            b'Z' => break,
            b'E' => panic!("{:?}", message.fields()),
            _ => {}
        }
    }
    assert_eq!((rows, bytes), (10_000, 10_000 * 10_006));
    let peak = peak_memory(proxy.pid());
    assert!(peak < MEMORY_MAX, "{peak} KiB");
    // The other way: one statement of 20 MB.
    let text = "y".repeat(20_000_000);
    assert_eq!(client.value(&format!("SELECT length('{text}')")), "20000000");
}

fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_end_of_a_session_is_said_in_tls() {
    let rig = Rig::new("goodbye");
    let proxy = rig.proxy().start_ready();
    let mut wire = Offers::default().connect(proxy.port).unwrap();
    let mut login = app_login();
    login.user = "nobody".to_owned();
    wire.write_all(&login.packet()).unwrap();
    wire.flush().unwrap();
    let mut client = RawClient::over(wire);
    client.authenticate(&login).unwrap_err();
    // A stream that ends without close_notify would be an error here, which a raw client calls closed; so ask TLS.
    let mut wire = Offers::default().connect(proxy.port).unwrap();
    wire.write_all(&message::untagged(message::PROTOCOL_3_0, b"no\0zero")).unwrap();
    wire.flush().unwrap();
    let mut bytes = Vec::new();
    wire.read_to_end(&mut bytes).expect("close_notify");
    assert_eq!(bytes.first(), Some(&b'E'));
}
