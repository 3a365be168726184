//! Certificates and keys that the config names, and what nodes inherit from the cluster.

use super::super::*;
use super::BASE;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A new certificate and its key, in files of these names.
fn issue(name: &str) -> (PathBuf, PathBuf) {
    let directory = std::env::temp_dir().join(format!("pgregent-config-tls-{}-{name}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert_file, key_file) = (directory.join("a.crt"), directory.join("a.key"));
    fs::write(&cert_file, cert.pem()).unwrap();
    fs::write(&key_file, signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    (cert_file, key_file)
}

fn shown(config: &Config, key: &str) -> String {
    config.settings().into_iter().find(|setting| setting.key == key).unwrap().value.to_string()
}

#[test]
fn every_file_arrives_in_the_place_it_shows() {
    let (cert, key) = issue("arrives");
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let text = format!(
        "{BASE}[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\nca_file = {cert:?}\n\
         [cluster]\nsslmode = \"verify-ca\"\nssl_ca_file = {cert:?}\nssl_cert_file = {cert:?}\nssl_key_file = {key:?}\n"
    );
    let config = Config::parse(&text, "p.toml").unwrap();
    assert_eq!(config.tls.mode, TlsMode::Allow);
    assert_eq!(config.tls.identities.len(), 1);
    assert!(config.tls.authorities.is_some());
    for (row, file) in [
        ("tls.cert_file", &cert),
        ("tls.key_file", &key),
        ("tls.ca_file", &cert),
        ("cluster.ssl_ca_file", &cert),
        ("cluster.ssl_cert_file", &cert),
        ("cluster.ssl_key_file", &key),
        ("node.pg1.ssl_ca_file", &cert),
        ("node.pg2.ssl_key_file", &key),
    ] {
        assert_eq!(shown(&config, row), *file, "{row}");
    }
    assert_eq!(shown(&config, "node.pg1.sslmode"), "verify-ca");
    assert!(config.nodes[0].tls.identity.is_some() && config.nodes[1].tls.authorities.is_some());
}

#[test]
fn a_node_overrides_what_it_says_and_no_more() {
    let (cert, _) = issue("overrides");
    let text = format!("{BASE}[cluster]\nsslmode = \"require\"\n[[node]]\nname = \"pg3\"\naddress = \"10.0.0.13\"\n");
    let config = Config::parse(&format!("{text}ssl_ca_file = {:?}\n", cert.display().to_string()), "p.toml").unwrap();
    assert_eq!(config.nodes[0].tls.effective_mode(), SslMode::Require);
    // As in libpq: an authority makes it look.
    assert_eq!((config.nodes[2].tls.mode, config.nodes[2].tls.effective_mode()), (SslMode::Require, SslMode::VerifyCa));
    let config = Config::parse(&format!("{text}sslmode = \"disable\"\n"), "p.toml").unwrap();
    assert_eq!((config.nodes[1].tls.mode, config.nodes[2].tls.mode), (SslMode::Require, SslMode::Disable));
    assert_eq!(Config::parse(BASE, "p.toml").unwrap().nodes[0].tls.mode, SslMode::Prefer);
}

#[test]
fn keys_never_show() {
    let (cert, key) = issue("hidden");
    let files = format!("cert_file = {:?}\nkey_file = {:?}\n", cert.display().to_string(), key.display().to_string());
    let config = Config::parse(&format!("{BASE}[tls]\n{files}"), "p.toml").unwrap();
    let secret: String = fs::read_to_string(&key).unwrap().lines().nth(1).unwrap().to_owned();
    let told = format!("{config:?}");
    assert!(!told.contains(&secret) && told.contains("elided"), "{told}");
}
