//! Certificates and keys that the config names, and what nodes inherit from the cluster.

use super::super::*;
use super::BASE;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A new certificate and its key, in files that are removed with it.
struct Issued {
    directory: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Issued {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("pgregent-config-tls-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let issued = Self { cert: directory.join("a.crt"), key: directory.join("a.key"), directory };
        fs::write(&issued.cert, cert.pem()).unwrap();
        fs::write(&issued.key, signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&issued.key, fs::Permissions::from_mode(0o600)).unwrap();
        issued
    }

    fn names(&self) -> (String, String) {
        (self.cert.display().to_string(), self.key.display().to_string())
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn shown(config: &Config, key: &str) -> String {
    config.settings().into_iter().find(|setting| setting.key == key).unwrap().value.to_string()
}

#[test]
fn every_file_arrives_in_the_place_it_shows() {
    let issued = Issued::new("arrives");
    let (cert, key) = issued.names();
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
    let issued = Issued::new("overrides");
    let (cert, _) = issued.names();
    let text = format!("{BASE}[cluster]\nsslmode = \"require\"\n[[node]]\nname = \"pg3\"\naddress = \"10.0.0.13\"\n");
    let config = Config::parse(&format!("{text}ssl_ca_file = {cert:?}\n"), "p.toml").unwrap();
    assert_eq!(config.nodes[0].tls.effective_mode(), SslMode::Require);
    // As in libpq: an authority makes it look.
    assert_eq!((config.nodes[2].tls.mode, config.nodes[2].tls.effective_mode()), (SslMode::Require, SslMode::VerifyCa));
    let config = Config::parse(&format!("{text}sslmode = \"disable\"\n"), "p.toml").unwrap();
    assert_eq!((config.nodes[1].tls.mode, config.nodes[2].tls.mode), (SslMode::Require, SslMode::Disable));
    assert_eq!(Config::parse(BASE, "p.toml").unwrap().nodes[0].tls.mode, SslMode::Prefer);
}

#[test]
fn patroni_is_verified_over_https() {
    let issued = Issued::new("patroni");
    let (cert, _) = issued.names();
    let https = BASE.replacen("\"\naddress", "\"\npatroni_url = \"https://pg1:8008\"\naddress", 1);
    let lines = format!("[cluster]\nfailover = \"follow\"\npatroni_ca_file = {cert:?}\n");
    let config = Config::parse(&format!("{https}{lines}"), "p.toml").unwrap();
    assert_eq!(shown(&config, "node.pg1.patroni_url"), "https://pg1:8008");
    assert_eq!(shown(&config, "cluster.patroni_ca_file"), cert);
    assert!(config.nodes[0].patroni_url.as_ref().unwrap().secured && config.cluster.patroni_authorities.is_some());
    let unused = Report::of_text(&format!("{BASE}{lines}"), "p.toml").warnings;
    assert!(unused.iter().any(|problem| problem.line_in("p.toml").contains("patroni_ca_file: has no effect")));
}

#[test]
fn keys_never_show() {
    let issued = Issued::new("hidden");
    let (cert, key) = issued.names();
    let files = format!("cert_file = {cert:?}\nkey_file = {key:?}\n");
    let config = Config::parse(&format!("{BASE}[tls]\n{files}"), "p.toml").unwrap();
    let secret: String = fs::read_to_string(&key).unwrap().lines().nth(1).unwrap().to_owned();
    let told = format!("{config:?}");
    assert!(!told.contains(&secret) && told.contains("elided"), "{told}");
}

#[test]
fn logins_can_only_be_tied_to_tls_that_is_ensured() {
    let read = |lines: &str| Config::parse(&format!("{BASE}[cluster]\n{lines}"), "p.toml");
    let config = read("sslmode = \"require\"\nchannel_binding = \"require\"\n").unwrap();
    assert_eq!(config.nodes[0].tls.channel_binding, ChannelBinding::Require);
    let problem = read("channel_binding = \"require\"\n").unwrap_err().to_string();
    assert!(problem.contains("channel_binding") && problem.contains("sslmode"), "{problem}");
}
