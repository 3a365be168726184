//! `[tls]` and the `ssl…` keys of `[cluster]` and `[[node]]`: how connections are protected.
//!
//! Invariants: files are read with the config and kept as values, so that what was checked is what is
//! used; a mode that verifies has authorities. Absent on purpose: handshakes (`net`).

use super::Choice;
use super::cipher::{cipher_names, cipher_of_name};
use super::pem::{self, Authorities, Identity};
use super::problem::Notes;
use super::raw::Fields;
use super::suggest::nearest;
use super::value::{Flaw, quoted};
use std::path::{Path, PathBuf};

/// Whether clients speak TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// They cannot.
    Disable,
    /// They may.
    Allow,
    /// Over TCP they must.
    Require,
}

/// The oldest protocol version spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// libpq's `sslmode`, towards nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the node insists.
    Allow,
    /// TLS if the node offers it.
    Prefer,
    /// TLS always.
    Require,
    /// TLS, and an authority of ours vouches for the node's certificate.
    VerifyCa,
    /// TLS, and besides the certificate names the node's address.
    VerifyFull,
}

/// libpq's `channel_binding`, towards nodes: is a SCRAM login tied to the TLS channel, so that nobody in between can
/// pass it on?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If both sides can.
    Prefer,
    /// Or there is no login.
    Require,
}

/// `[tls]`
#[derive(Clone, Debug, PartialEq)]
pub struct TlsConfig {
    /// Default: allow with a certificate, disable without.
    pub mode: TlsMode,
    /// Certificates with keys; the first is the usual one, the others are chosen by server name.
    pub identities: Vec<Identity>,
    /// Who vouches for clients' certificates; `None`: clients are not asked for one.
    pub authorities: Option<Authorities>,
    /// Default 1.2.
    pub min_version: TlsVersion,
    /// Cipher suites, most preferred first; empty: the library's choice.
    pub ciphers: Vec<String>,
    /// The files named.
    pub files: TlsFiles,
}

/// The files that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Authorities.
    pub ca: Option<PathBuf>,
    /// Revocations.
    pub crl: Option<PathBuf>,
    /// Further certificates, each with its key.
    pub sni: Vec<String>,
}

/// How connections to a node are protected.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeTlsConfig {
    /// Default prefer.
    pub mode: SslMode,
    /// Who vouches for the node's certificate. With `require` they turn it into `verify-ca`, as in libpq.
    pub authorities: Option<Authorities>,
    /// What we present if the node asks.
    pub identity: Option<Identity>,
    /// Default prefer.
    pub channel_binding: ChannelBinding,
    /// The files named.
    pub files: TlsFiles,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            mode: TlsMode::Disable,
            identities: Vec::new(),
            authorities: None,
            min_version: TlsVersion::V1_2,
            ciphers: Vec::new(),
            files: TlsFiles::default(),
        }
    }
}

impl Default for NodeTlsConfig {
    fn default() -> Self {
        let channel_binding = ChannelBinding::Prefer;
        Self { mode: SslMode::Prefer, authorities: None, identity: None, channel_binding, files: TlsFiles::default() }
    }
}

impl NodeTlsConfig {
    /// The mode in force.
    #[must_use]
    pub fn effective_mode(&self) -> SslMode {
        if self.mode == SslMode::Require && self.authorities.is_some() { SslMode::VerifyCa } else { self.mode }
    }
}

/// Reads `[tls]`.
pub(super) fn towards_clients(f: &Fields<'_, '_>, folder: &Path, notes: &mut Notes) -> TlsConfig {
    let files = TlsFiles {
        cert: pem::file(f, "cert_file", folder, notes),
        key: pem::file(f, "key_file", folder, notes),
        ca: pem::file(f, "ca_file", folder, notes),
        crl: pem::file(f, "crl_file", folder, notes),
        sni: f.texts("sni_cert_files", notes).unwrap_or_default(),
    };
    let cert = ("cert_file", files.cert.as_deref());
    let mut identities: Vec<Identity> =
        pem::identity(f, cert, ("key_file", files.key.as_deref()), notes).into_iter().collect();
    identities.extend(files.sni.iter().filter_map(|file| pem::bundle(f, "sni_cert_files", &folder.join(file), notes)));
    let authorities = pem::authorities(f, ("ca_file", files.ca.as_deref()), ("crl_file", files.crl.as_deref()), notes);
    let usual = if files.cert.is_some() { TlsMode::Allow } else { TlsMode::Disable };
    let mode = if f.has("mode") { f.choice("mode", notes) } else { usual };
    if mode != TlsMode::Disable && files.cert.is_none() {
        let flaw = Flaw::new(format!("\"{}\" needs a certificate", mode.word()));
        f.problem("mode", flaw.suggest("add cert_file and key_file"), notes);
    }
    let min_version = f.choice("min_protocol_version", notes);
    TlsConfig { mode, identities, authorities, min_version, ciphers: ciphers(f, min_version, notes), files }
}

fn ciphers(f: &Fields<'_, '_>, min_version: TlsVersion, notes: &mut Notes) -> Vec<String> {
    let names = f.texts("ciphers", notes).unwrap_or_default();
    let mut usable = 0;
    for name in &names {
        match cipher_of_name(name) {
            Some(suite) if min_version == TlsVersion::V1_2 || suite.tls13().is_some() => usable += 1,
            Some(_) => {}
            None => {
                let known = cipher_names();
                let flaw = Flaw::new(format!("{} is not a cipher suite known here", quoted(name)));
                let suggestion = match nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("known are {}", known.join(", ")),
                };
                f.problem("ciphers", flaw.suggest(suggestion), notes);
                return Vec::new();
            }
        }
    }
    if usable == 0 && !names.is_empty() {
        let flaw = Flaw::new(format!("none of these suites is used by TLS {}", min_version.word()));
        f.problem("ciphers", flaw.suggest("add \"TLS_AES_256_GCM_SHA384\", or lower min_protocol_version"), notes);
    }
    names
}

/// Reads the `ssl…` keys of `[cluster]` (`inherited` is `None`) or of a node, where what is not
/// written is the cluster's.
pub(super) fn towards_nodes(
    f: &Fields<'_, '_>,
    inherited: Option<&NodeTlsConfig>,
    folder: &Path,
    notes: &mut Notes,
) -> NodeTlsConfig {
    let own = TlsFiles {
        cert: pem::file(f, "ssl_cert_file", folder, notes),
        key: pem::file(f, "ssl_key_file", folder, notes),
        ca: pem::file(f, "ssl_ca_file", folder, notes),
        crl: pem::file(f, "ssl_crl_file", folder, notes),
        sni: Vec::new(),
    };
    let identity =
        pem::identity(f, ("ssl_cert_file", own.cert.as_deref()), ("ssl_key_file", own.key.as_deref()), notes);
    let ca = own.ca.as_deref().or_else(|| inherited.and_then(|tls| tls.files.ca.as_deref()));
    // A list of its own needs the authorities again, which may be the cluster's.
    let own_authorities = own.ca.is_some() || own.crl.is_some();
    let crl = ("ssl_crl_file", own.crl.as_deref());
    let authorities = if own_authorities { pem::authorities(f, ("ssl_ca_file", ca), crl, notes) } else { None };
    let written = f.has("sslmode").then(|| f.choice("sslmode", notes));
    let mode = written.or(inherited.map(|tls| tls.mode)).unwrap_or(SslMode::Prefer);
    let binding = f.has("channel_binding").then(|| f.choice("channel_binding", notes));
    let channel_binding = binding.or(inherited.map(|tls| tls.channel_binding)).unwrap_or(ChannelBinding::Prefer);
    let tls = NodeTlsConfig {
        mode,
        channel_binding,
        authorities: authorities.or_else(|| inherited?.authorities.clone()),
        identity: identity.or_else(|| inherited?.identity.clone()),
        files: TlsFiles {
            ca: ca.map(Path::to_owned),
            cert: own.cert.or_else(|| inherited?.files.cert.clone()),
            key: own.key.or_else(|| inherited?.files.key.clone()),
            crl: own.crl.or_else(|| inherited?.files.crl.clone()),
            sni: Vec::new(),
        },
    };
    if matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) && written.is_some() && ca.is_none() {
        let flaw = Flaw::new(format!("\"{}\" needs the certificates of those who vouch for nodes", mode.word()));
        f.problem("sslmode", flaw.suggest("add ssl_ca_file"), notes);
    }
    if channel_binding == ChannelBinding::Require && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer)
    {
        let flaw =
            Flaw::new(format!("\"require\" binds logins to TLS, which sslmode \"{}\" does not ensure", mode.word()));
        let row = if binding.is_some() { "channel_binding" } else { "sslmode" };
        if binding.is_some() || written.is_some() {
            f.problem(row, flaw.suggest("set sslmode = \"require\" or stronger"), notes);
        }
    }
    tls
}
