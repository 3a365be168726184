//! Certificates and channel binding, judged by PostgreSQL with the same certificate, rules and maps.
//!
//! Absent on purpose: TLS itself (the tests of TLS).

use crate::support::free_port;
use crate::support::message;
use crate::support::pki::{Authority, Issued, quoted};
use crate::support::proxy::Proxy;
use crate::support::rawclient::{Login, RawClient};
use crate::support::tlsclient::{Offers, presented};
use crate::{BENCH, Files, JUDGING, judge_by, node, proxy, ready};
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::PoisonError;

/// Both present the same certificate and trust the same authority.
struct Rig {
    authority: Authority,
    proxy: Proxy,
    _files: Files,
}

impl Rig {
    fn new(rules: &str, maps: &str) -> Self {
        let files = Files::new();
        let text = format!("{}{rules}", crate::ALWAYS);
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hba-{}-{}", std::process::id(), free_port()));
        let authority = Authority::new(&directory, "authority");
        let server = authority.server(&["localhost", "127.0.0.1"]);
        judge_with_tls(&authority, &server);
        judge_by(&text, maps);
        let spec = proxy(&files.write("hba", &text))
            .set("auth.ident_file", &quoted(&files.write("ident", maps)))
            .set("tls.cert_file", &quoted(&server.cert))
            .set("tls.key_file", &quoted(&server.key))
            .set("tls.ca_file", &quoted(&authority.file));
        Self { authority, proxy: ready(spec), _files: files }
    }

    /// What psql says through the proxy, and what it says to the judge.
    fn both(&self, conninfo: &str) -> [Result<String, String>; 2] {
        [self.proxy.port, node(&BENCH.judge).port()].map(|port| psql(port, conninfo))
    }
}

/// Gives the judge a certificate and an authority, in its own directory.
fn judge_with_tls(authority: &Authority, server: &Issued) {
    let judge = node(&BENCH.judge);
    let data = judge.data_dir();
    let copy = |from: &Path, name: &str| {
        let to: PathBuf = data.join(name);
        fs::copy(from, &to).unwrap();
        Command::new("chmod").arg("600").arg(&to).status().unwrap();
        Command::new("chown").arg("--reference").arg(&data).arg(&to).status().unwrap();
    };
    copy(&server.cert, "server.crt");
    copy(&server.key, "server.key");
    copy(&authority.file, "root.crt");
    judge.psql("ALTER SYSTEM SET ssl = on").unwrap();
    judge.psql("ALTER SYSTEM SET ssl_ca_file = 'root.crt'").unwrap();
}

fn psql(port: u16, conninfo: &str) -> Result<String, String> {
    let conninfo =
        format!("host=localhost hostaddr=127.0.0.1 port={port} gssencmode=disable connect_timeout=20 {conninfo}");
    let output = Command::new("psql")
        .args(["-X", "-A", "-t", "-d", &conninfo, "-c", "SELECT current_user || '@' || current_database()"])
        .env("PGPASSWORD", "pencil")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let errors = text(&output.stderr);
    Err(errors.split_once("failed: ").map_or(errors.clone(), |(_, why)| why.to_owned()))
}

#[test]
fn certificates() {
    let _alone = JUDGING.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::new(
        "hostssl app joe all cert\n\
         hostssl app ann all cert map=m\n\
         hostssl app boss all cert map=dn clientname=DN\n\
         hostssl staff all all scram-sha-256 clientcert=verify-ca\n\
         hostssl joe all all scram-sha-256 clientcert=verify-full\n\
         hostssl all all all trust clientcert=verify-full\n\
         hostnossl all all all reject\n",
        "m /^(.*)@example\\.com$ \\1\nm joe ann\ndn /^CN=jo boss\ndn CN=ann joe\n",
    );
    let names = [None, Some("joe"), Some("ann"), Some("ann@example.com")];
    let certificates = names.map(|name| name.map(|name| rig.authority.client(name)));
    let mut admitted = 0;
    for (name, certificate) in names.iter().zip(&certificates) {
        let shown = certificate.as_ref().map_or_else(String::new, |issued| {
            format!("sslcert={} sslkey={}", issued.cert.display(), issued.key.display())
        });
        for (user, database) in [
            ("joe", "app"),
            ("ann", "app"),
            ("boss", "app"),
            ("joe", "staff"),
            ("ann", "joe"),
            ("joe", "joe"),
            ("ann", "all"),
        ] {
            for mode in ["require", "disable"] {
                let [ours, theirs] = rig.both(&format!("user={user} dbname={database} sslmode={mode} {shown}"));
                assert_eq!(ours, theirs, "{user} to {database} with {name:?}, sslmode={mode}");
                admitted += usize::from(ours.is_ok());
            }
        }
    }
    assert!(admitted >= 8, "{admitted}");
    let log = rig.proxy.log();
    assert!(log.contains("no match in usermap \"m\" for \"ann\"") && log.contains("login failed"), "{log}");
}

#[test]
fn channel_binding_as_libpq_asks_for_it() {
    let _alone = JUDGING.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::new("host app joe all scram-sha-256\nhost app ann all password\nhost app boss all trust\n", "");
    for binding in ["require", "prefer", "disable"] {
        for (user, mode) in [("joe", "require"), ("joe", "disable"), ("ann", "require"), ("boss", "require")] {
            let [ours, theirs] = rig.both(&format!("user={user} dbname=app sslmode={mode} channel_binding={binding}"));
            assert_eq!(ours, theirs, "{user}, sslmode={mode}, channel_binding={binding}");
            if user == "joe" && mode == "require" {
                assert!(ours.is_ok(), "{ours:?}");
            }
        }
    }
    let [ours, theirs] = ["require"; 2]
        .map(|_| psql(rig.proxy.port, "user=joe dbname=app sslmode=require channel_binding=require password=pen"));
    assert_eq!((ours.clone(), ours.is_err()), (theirs, true));
}

/// A SASLInitialResponse.
fn initial(mechanism: &str, first: &str) -> Vec<u8> {
    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
    message::frame(b'p', &[mechanism.as_bytes(), b"\0", &length, first.as_bytes()].concat())
}

/// What the server says to a client that begins SCRAM so: the error's fields, or the first message.
fn answered(port: u16, tls: bool, mechanism: &str, first: &str) -> Result<String, Vec<String>> {
    let mut client = if tls { Offers::default().client(port).unwrap() } else { RawClient::tcp(port) };
    client.send(&Login::new("joe", "pencil", "app").packet()).unwrap();
    let offer = client.read().unwrap();
    let offers: &[u8] =
        if tls { b"\0\0\0\nSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0" } else { b"\0\0\0\nSCRAM-SHA-256\0\0" };
    assert_eq!(offer.body, offers, "the better mechanism first, and only over TLS");
    client.send(&initial(mechanism, first)).unwrap();
    let message = client.read().unwrap();
    if message.tag == b'R' {
        return Ok(String::from_utf8_lossy(&message.body[4..]).into_owned());
    }
    let fields = message.fields();
    Err([fields.severity(), fields.sqlstate(), fields.message()].map(str::to_owned).to_vec())
}

#[test]
fn downgrades_are_refused_as_postgresql_does() {
    const PLUS: &str = "SCRAM-SHA-256-PLUS";
    const PLAIN: &str = "SCRAM-SHA-256";
    let _alone = JUDGING.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::new("host app joe all scram-sha-256\n", "");
    let both = |tls: bool, mechanism: &str, first: &str| {
        [rig.proxy.port, node(&BENCH.judge).port()].map(|port| answered(port, tls, mechanism, first))
    };
    // The client could bind, and somebody took the offer away.
    let [ours, theirs] = both(true, PLAIN, "y,,n=,r=abcdefghijklmnopqr");
    assert_eq!(ours, theirs);
    let refusal = ["FATAL", "28000", "SCRAM channel binding negotiation error"].map(str::to_owned).to_vec();
    assert_eq!(ours, Err(refusal));
    for (tls, mechanism, first) in
        [(true, PLAIN, "n,,"), (false, PLAIN, "n,,"), (false, PLAIN, "y,,"), (true, PLUS, "p=tls-server-end-point,,")]
    {
        for answer in both(tls, mechanism, &format!("{first}n=,r=abcdefghijklmnopqr")) {
            assert!(
                answer.clone().is_ok_and(|first| first.starts_with("r=abcdefghijklmnopqr")),
                "{tls} {mechanism} {first}: {answer:?}"
            );
        }
    }
    // Nonsense has the same code at both; PostgreSQL says more in the detail.
    for (tls, mechanism, first) in [
        (true, PLUS, "n,,"),
        (true, PLUS, "y,,"),
        (true, PLUS, "p=tls-unique,,"),
        (true, PLAIN, "p=tls-server-end-point,,"),
        (false, PLAIN, "p=tls-server-end-point,,"),
        (false, PLUS, "p=tls-server-end-point,,"),
        (true, "SCRAM-SHA-1", "n,,"),
        (true, PLUS, "p=tls-server-end-point,a=ann,"),
    ] {
        let [ours, theirs] = both(tls, mechanism, &format!("{first}n=,r=abcdefghijklmnopqr"));
        let codes = [ours, theirs].map(|answer| answer.expect_err(first)[..2].to_vec());
        assert_eq!(codes[0], codes[1], "{tls} {mechanism} {first}");
    }
}

/// Somebody in between has a certificate of its own and passes everything on.
#[test]
fn a_proof_for_another_certificate_is_refused() {
    let _alone = JUDGING.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::new("host app joe all scram-sha-256\n", "");
    let finished = |port: u16, forged: bool| {
        let wire = Offers::default().connect(port).unwrap();
        let certificate = presented(&wire);
        let mut client = RawClient::over(wire);
        client.send(&Login::new("joe", "pencil", "app").packet()).unwrap();
        client.read().unwrap();
        client.send(&initial("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=,r=abcdefghijklmnopqr")).unwrap();
        let first = String::from_utf8(client.read().unwrap().body[4..].to_vec()).unwrap();
        let nonce = first.split(',').next().unwrap().to_owned();
        let seen = if forged {
            digest::digest(&digest::SHA256, b"another")
        } else {
            digest::digest(&digest::SHA256, &certificate)
        };
        let channel = STANDARD.encode([&b"p=tls-server-end-point,,"[..], seen.as_ref()].concat());
        let proof = STANDARD.encode([7; 32]);
        client.send(&message::frame(b'p', format!("c={channel},{nonce},p={proof}").as_bytes())).unwrap();
        let fields = client.read().unwrap().fields();
        [fields.severity(), fields.sqlstate(), fields.message()].map(str::to_owned)
    };
    for forged in [true, false] {
        let (ours, theirs) = (finished(rig.proxy.port, forged), finished(node(&BENCH.judge).port(), forged));
        assert_eq!(ours, theirs, "forged: {forged}");
        let (code, text) = if forged {
            ("28000", "SCRAM channel binding check failed")
        } else {
            ("28P01", "password authentication failed for user \"joe\"")
        };
        assert_eq!((&*ours[1], &*ours[2]), (code, text));
    }
}
