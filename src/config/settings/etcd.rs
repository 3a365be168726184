//! Rows of `[etcd]`: the store that several proxies share, where it is etcd.
//!
//! Invariants: none is reloadable, because the store is opened once. Absent on purpose: how long leases
//! last (`[cluster]`, since it holds for every store that is shared).

use super::Default::{Told, Toml};
use super::View::{Whole, Within};
use super::{Kind, Section, Shape, Shown, row};

pub(super) static ETCD: Section = Section {
    path: "etcd",
    shape: Shape::One,
    doc: "etcd, where several proxies agree who may route writes and who may change the primary ([cluster] coordination = \"etcd\").",
    settings: &[
        row(
            "endpoints",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.etcd.endpoints)),
            "Client URLs of the members of one etcd cluster, such as \"http://10.0.0.31:2379\". List all of them: one is asked, \
             and the next if it does not answer. With https:// the certificate must name the host.",
        ),
        row(
            "prefix",
            Kind::Text,
            Toml(r#""pgregent""#),
            Whole(|c| Shown::of(&c.etcd.prefix)),
            "Before all keys, followed by the cluster's name. All proxies in front of the same nodes need the same.",
        ),
        row(
            "user",
            Kind::Text,
            Told("none: no login", r#""pgregent""#),
            Whole(|c| Shown::of(c.etcd.user.as_deref().unwrap_or_default())),
            "User of etcd. It needs readwrite permission on the keys below <prefix>/<cluster>/.",
        ),
        row(
            "password",
            Kind::Secret,
            Told("none", r#""change me""#),
            Whole(|c| Shown::Hidden(c.etcd.password.clone())),
            "Its password.",
        ),
        row(
            "password_file",
            Kind::Path,
            Told("none", r#""etcd.password""#),
            Within("password"),
            "File that holds the password, instead of password.",
        ),
        row(
            "ca_file",
            Kind::Path,
            Told("none", r#""etcd-ca.crt""#),
            Whole(|c| Shown::file(c.etcd.files.ca.as_ref())),
            "Certificates of the authorities that vouch for the members. Needed with https://.",
        ),
        row(
            "cert_file",
            Kind::Path,
            Told("none", r#""pgregent.crt""#),
            Whole(|c| Shown::file(c.etcd.files.cert.as_ref())),
            "Certificate to present to members that ask for one (etcd's --client-cert-auth).",
        ),
        row(
            "key_file",
            Kind::Path,
            Told("none", r#""pgregent.key""#),
            Whole(|c| Shown::file(c.etcd.files.key.as_ref())),
            "Its private key.",
        ),
    ],
};
