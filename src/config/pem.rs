//! Certificates, keys and revocation lists that the config names: read once, checked, kept as values.
//!
//! Invariants: a key that is kept belongs to its certificate; a key file that others may read is a
//! problem, as it is to PostgreSQL; contents never become part of a message. Absent on purpose: the
//! TLS library's own configurations (`net`), and encrypted keys (nobody would be there to type).

use super::files;
use super::problem::Notes;
use super::raw::Fields;
use super::value::Flaw;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_cert::der::Decode;

/// Longest PEM file, bytes (a bundle of all public authorities takes a quarter of it).
const PEM_BYTES_MAX: usize = 1 << 20;
/// A certificate that ends within this many seconds is warned about.
const EXPIRES_SOON: u64 = 14 * 24 * 3600;

/// A certificate with what vouches for it, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, then intermediate ones.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Its private key; prints without content.
    pub key: Arc<PrivateKeyDer<'static>>,
}

/// Whom to believe about certificates of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// Certificates of the authorities.
    pub roots: Arc<[CertificateDer<'static>]>,
    /// Lists of what they have taken back.
    pub crls: Arc<[CertificateRevocationListDer<'static>]>,
}

/// What a file holds, or why it cannot be used.
type Read<T> = Result<T, Flaw>;

/// The file of a key, resolved against the config's folder.
pub(super) fn file(f: &Fields<'_, '_>, key: &str, folder: &Path, notes: &mut Notes) -> Option<PathBuf> {
    f.path(key, notes).map(|path| folder.join(path))
}

/// The identity in two files; a problem if there is only one of them. `None` without files.
pub(super) fn identity(
    f: &Fields<'_, '_>,
    (cert_key, cert_file): (&str, Option<&Path>),
    (key_key, key_file): (&str, Option<&Path>),
    notes: &mut Notes,
) -> Option<Identity> {
    let (cert, key) = match (cert_file, key_file) {
        (None, None) => return None,
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            let flaw = Flaw::new(format!("missing, although {cert_key} is given"));
            f.problem(key_key, flaw.suggest(format!("add {key_key}, the file of the private key")), notes);
            return None;
        }
        (None, Some(_)) => {
            let flaw = Flaw::new(format!("missing, although {key_key} is given"));
            f.problem(cert_key, flaw.suggest(format!("add {cert_key}, the file of the certificate")), notes);
            return None;
        }
    };
    let (read_chain, read_key) = (chain(cert), private_key(key));
    for (name, flaw) in [(cert_key, read_chain.as_ref().err()), (key_key, read_key.as_ref().err())] {
        if let Some(flaw) = flaw {
            f.problem(name, flaw.clone(), notes);
        }
    }
    let (chain, key) = (read_chain.ok()?, read_key.ok()?);
    match matched(chain, key, cert) {
        Ok(identity) => {
            warn_about_validity(f, cert_key, cert, &identity, notes);
            Some(identity)
        }
        Err(flaw) => {
            f.problem(key_key, flaw, notes);
            None
        }
    }
}

/// The identity in one file that holds both the chain and the key.
pub(super) fn bundle(f: &Fields<'_, '_>, name: &str, path: &Path, notes: &mut Notes) -> Option<Identity> {
    let read = chain(path).and_then(|chain| matched(chain, private_key(path)?, path));
    match read {
        Ok(identity) => {
            warn_about_validity(f, name, path, &identity, notes);
            Some(identity)
        }
        Err(flaw) => {
            f.problem(name, flaw, notes);
            None
        }
    }
}

/// Authorities, if a file of them is named; revocation lists need authorities.
pub(super) fn authorities(
    f: &Fields<'_, '_>,
    (ca_key, ca_file): (&str, Option<&Path>),
    (crl_key, crl_file): (&str, Option<&Path>),
    notes: &mut Notes,
) -> Option<Authorities> {
    if ca_file.is_none() && crl_file.is_some() {
        let flaw = Flaw::new(format!("has no effect without {ca_key}"));
        f.problem(crl_key, flaw.suggest(format!("add {ca_key}, or leave {crl_key} out")), notes);
    }
    let roots = chain(ca_file?).and_then(usable_roots);
    let roots = roots.map_err(|flaw| f.problem(ca_key, flaw, notes)).ok()?;
    let crls = match crl_file.map(revocations) {
        None => Vec::new(),
        Some(Ok(crls)) => crls,
        Some(Err(flaw)) => {
            f.problem(crl_key, flaw, notes);
            return None;
        }
    };
    Some(Authorities { roots: roots.into(), crls: crls.into() })
}

/// All certificates of a file, at least one.
fn chain(path: &Path) -> Read<Vec<CertificateDer<'static>>> {
    let pem = files::read_private(path, PEM_BYTES_MAX)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(Flaw::new(format!("{} holds no certificate", path.display())).suggest("it must be in PEM format")),
        Err(_) => Err(Flaw::new(format!("{} is not in PEM format", path.display()))),
    }
}

fn private_key(path: &Path) -> Read<PrivateKeyDer<'static>> {
    let pem = files::read_private(path, PEM_BYTES_MAX)?;
    if let Some(why) = loose_permissions(path) {
        let flaw = Flaw::new(format!("{} {why}", path.display()));
        return Err(flaw.suggest(format!("run: chmod 0600 {}", path.display())));
    }
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
        let flaw = Flaw::new(format!("{} holds no private key", path.display()));
        flaw.suggest("it must be in PEM format, and not encrypted")
    })
}

fn revocations(path: &Path) -> Read<Vec<CertificateRevocationListDer<'static>>> {
    let pem = files::read_private(path, PEM_BYTES_MAX)?;
    let read: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => {
            let flaw = Flaw::new(format!("{} holds no revocation list", path.display()));
            Err(flaw.suggest("it must be in PEM format"))
        }
    }
}

fn usable_roots(roots: Vec<CertificateDer<'static>>) -> Read<Vec<CertificateDer<'static>>> {
    let unusable = roots.iter().position(|root| x509_cert::Certificate::from_der(root).is_err());
    match unusable {
        Some(index) => Err(Flaw::new(format!("certificate {} of the file cannot be read", index + 1))),
        None => Ok(roots),
    }
}

/// PostgreSQL's rule: only the owner may read it, or, if it belongs to root, root's group too.
fn loose_permissions(path: &Path) -> Option<&'static str> {
    let metadata = path.metadata().ok()?;
    let (mode, owner, we) = (metadata.mode(), metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != we && we != 0 {
        return Some("must be owned by the user that runs pgregent, or by root");
    }
    let forbidden = if owner == 0 { 0o027 } else { 0o077 };
    (mode & forbidden != 0).then_some("is a private key that others may read")
}

fn matched(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, cert: &Path) -> Read<Identity> {
    match CertifiedKey::from_der(chain.clone(), key.clone_key(), &aws_lc_rs::default_provider()) {
        Ok(_) => Ok(Identity { chain: chain.into(), key: Arc::new(key) }),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(Flaw::new(format!("is not the key of the certificate in {}", cert.display())))
        }
        Err(error) => Err(Flaw::new(format!("cannot be used with {}: {error}", cert.display()))),
    }
}

fn warn_about_validity(f: &Fields<'_, '_>, name: &str, path: &Path, identity: &Identity, notes: &mut Notes) {
    let Ok(certificate) = x509_cert::Certificate::from_der(&identity.chain[0]) else {
        f.problem(name, Flaw::new(format!("{} holds a certificate that cannot be read", path.display())), notes);
        return;
    };
    let validity = certificate.tbs_certificate.validity;
    let (from, until) = (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration());
    let now = UnixTime::now().as_secs();
    let told = if until.as_secs() < now {
        format!("expired on {}", validity.not_after)
    } else if from > now {
        format!("is not valid before {}", validity.not_before)
    } else if until.as_secs() - now < EXPIRES_SOON {
        format!("expires on {}", validity.not_after)
    } else {
        return;
    };
    let flaw = Flaw::new(format!("the certificate in {} {told}", path.display()));
    f.warn(name, flaw.suggest("replace the file, then reload"), notes);
}
