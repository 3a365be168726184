//! Rows of `[tls]`: how clients' connections are protected.
//!
//! Invariants: all rows are reloadable, and a reload reads the files again whether a row has changed or
//! not. Absent on purpose: connections to nodes (see `cluster`).

use super::Default::{Told, Toml};
use super::View::Whole;
use super::{Kind, Section, Shape, Shown, live};
use crate::config::choice::Choice;
use crate::config::{TlsMode, TlsVersion};

pub(super) static TLS: Section = Section {
    path: "tls",
    shape: Shape::One,
    doc: "Encryption of clients' connections. A reload reads the files again; connections that exist keep what they have.",
    settings: &[
        live(
            "mode",
            Kind::Word(TlsMode::WORDS),
            Told("allow with cert_file, else disable", r#""disable""#),
            Whole(|c| Shown::of(c.tls.mode.word())),
            "disable: no TLS. allow: the client decides. require: over TCP nothing else is accepted.",
        ),
        live(
            "cert_file",
            Kind::Path,
            Told("none", r#""server.crt""#),
            Whole(|c| Shown::file(c.tls.files.cert.as_ref())),
            "Certificate, then the intermediate ones, in PEM format.",
        ),
        live(
            "key_file",
            Kind::Path,
            Told("none", r#""server.key""#),
            Whole(|c| Shown::file(c.tls.files.key.as_ref())),
            "Its private key, not encrypted. Nobody but its owner may read the file (0600, or 0640 if root's).",
        ),
        live(
            "sni_cert_files",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.tls.files.sni)),
            "Further certificates for clients that ask for their names; each file holds the certificates and the key.",
        ),
        live(
            "ca_file",
            Kind::Path,
            Told("none", r#""clients-ca.crt""#),
            Whole(|c| Shown::file(c.tls.files.ca.as_ref())),
            "Authorities that vouch for clients. With it clients may present a certificate, and a bad one is refused.",
        ),
        live(
            "crl_file",
            Kind::Path,
            Told("none", r#""clients-ca.crl""#),
            Whole(|c| Shown::file(c.tls.files.crl.as_ref())),
            "Clients' certificates that the authorities have taken back.",
        ),
        live(
            "min_protocol_version",
            Kind::Word(TlsVersion::WORDS),
            Toml(r#""1.2""#),
            Whole(|c| Shown::of(c.tls.min_version.word())),
            "The oldest version of TLS that is spoken.",
        ),
        live(
            "ciphers",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.tls.ciphers)),
            "Cipher suites, most preferred first, named as in OpenSSL. []: all that are safe.",
        ),
    ],
};
