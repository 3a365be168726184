//! `pgregent check` on certificates and keys: what is wrong with files is told before they are used.
//!
//! Absent on purpose: handshakes.

use crate::scratch;
use crate::support::pki::{Authority, Twist, quoted};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// What `pgregent check` prints about a config with these tables.
fn check(tables: &str) -> (bool, String) {
    let directory = scratch("check");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("pgregent.toml");
    let nodes = "[cluster]\nfailover = \"manual\"\n[[node]]\nname = \"pg1\"\naddress = \"10.0.0.1\"\n\
                 [[auth.user]]\nname = \"u\"\npassword = \"p\"\n";
    let text = if tables.contains("[cluster]") { tables.to_owned() } else { format!("{nodes}{tables}") };
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pgregent")).arg("check").arg("--config").arg(&file).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[track_caller]
fn complains(tables: &str, about: &str) {
    let (fine, said) = check(tables);
    assert!(!fine && said.contains(about), "{tables}\n{about}: {said}");
}

#[track_caller]
fn warns(tables: &str, about: &str) {
    let (fine, said) = check(tables);
    assert!(fine && said.contains(about), "{tables}\n{about}: {said}");
}

#[test]
fn files_are_checked_before_they_are_used() {
    let authority = Authority::new(&scratch("files"), "authority");
    let server = authority.server(&["localhost"]);
    let (cert, key) = (quoted(&server.cert), quoted(&server.key));
    let tls = |more: &str| format!("[tls]\ncert_file = {cert}\nkey_file = {key}\n{more}\n");
    let (fine, said) = check(&tls(""));
    assert!(fine, "{said}");
    complains("[tls]\ncert_file = \"none.crt\"\nkey_file = \"none.key\"\n", "there is no such file");
    complains(&format!("[tls]\ncert_file = {cert}\n"), "key_file: missing");
    complains(&format!("[tls]\nkey_file = {key}\n"), "cert_file: missing");
    complains("[tls]\nmode = \"require\"\n", "needs a certificate");
    let other = authority.server(&["localhost"]);
    complains(&format!("[tls]\ncert_file = {cert}\nkey_file = {}\n", quoted(&other.key)), "is not the key of");
    complains(&format!("[tls]\ncert_file = {key}\nkey_file = {key}\n"), "holds no certificate");
    complains(&format!("[tls]\ncert_file = {cert}\nkey_file = {cert}\n"), "key_file");
    complains(&tls("ciphers = [\"TLS_AES_256_GCM_SHA38\"]"), "did you mean \"TLS_AES_256_GCM_SHA384\"?");
    complains(
        &tls("min_protocol_version = \"1.3\"\nciphers = [\"ECDHE-RSA-AES256-GCM-SHA384\"]"),
        "none of these suites",
    );
    complains(&tls("crl_file = \"x\""), "has no effect without ca_file");
    let expired = authority.issue("localhost", &["localhost"], Twist { expired: true, ..Twist::default() });
    let old = format!("[tls]\ncert_file = {}\nkey_file = {}\n", quoted(&expired.cert), quoted(&expired.key));
    warns(&old, "expired on");
    fs::set_permissions(&server.key, fs::Permissions::from_mode(0o644)).unwrap();
    complains(&tls(""), "a private key that others may read");
}

#[test]
fn what_is_asked_of_nodes_is_checked_too() {
    let authority = Authority::new(&scratch("nodes"), "authority");
    let file = |cluster: &str, node: &str| {
        format!(
            "[cluster]\nfailover = \"manual\"\n{cluster}\n[[node]]\nname = \"pg1\"\naddress = \"10.0.0.1\"\n{node}\n\
             [[auth.user]]\nname = \"u\"\npassword = \"p\"\n"
        )
    };
    complains(&file("sslmode = \"verify-full\"", ""), "add ssl_ca_file");
    complains(&file("sslmode = \"verify\"", ""), "verify-");
    complains(&file("", "sslmode = \"verify-ca\""), "add ssl_ca_file");
    let ca = format!("ssl_ca_file = {}", quoted(&authority.file));
    let (fine, said) = check(&file(&ca, "sslmode = \"verify-full\""));
    assert!(fine, "{said}");
    complains(&file("ssl_cert_file = \"a.crt\"", ""), "ssl_key_file: missing");
}
