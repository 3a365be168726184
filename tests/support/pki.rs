//! Certificates for tests, made anew each time: an authority, servers, clients, lists of revoked ones.
//!
//! Absent on purpose: anything that outlives the test.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// An authority and a directory full of what it has signed.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
    /// Its own certificate.
    pub file: PathBuf,
}

/// A certificate in files.
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificate as it goes over the wire.
    pub der: CertificateDer<'static>,
    /// Its number.
    pub serial: u64,
}

/// How a certificate differs from the usual.
#[derive(Clone, Copy, Default)]
pub struct Twist {
    /// Its time is over.
    pub expired: bool,
    /// Its only name is the subject's.
    pub no_alternative_names: bool,
}

impl Authority {
    /// A new one, with its certificate in this directory.
    pub fn new(directory: &Path, name: &str) -> Self {
        fs::create_dir_all(directory).expect("the directory can be made");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.self_signed(&key).expect("a certificate");
        let file = directory.join(format!("{name}.crt"));
        fs::write(&file, cert.pem()).expect("the directory is writable");
        Self { issuer: Issuer::new(params, key), directory: directory.to_owned(), file }
    }

    /// A server's certificate for these names (addresses become addresses); the first is its subject.
    pub fn server(&self, names: &[&str]) -> Issued {
        self.issue(names[0], names, Twist::default())
    }

    /// A client's certificate.
    pub fn client(&self, common_name: &str) -> Issued {
        self.issue(common_name, &[], Twist::default())
    }

    /// Any certificate.
    pub fn issue(&self, common_name: &str, names: &[&str], twist: Twist) -> Issued {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let names = if twist.no_alternative_names { &[] } else { names };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, "Tests");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if twist.expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |extension: &str| self.directory.join(format!("{common_name}-{serial}.{extension}"));
        let issued = Issued { cert: file("crt"), key: file("key"), der: cert.der().clone(), serial };
        fs::write(&issued.cert, cert.pem()).expect("the directory is writable");
        write_private(&issued.key, &key.serialize_pem());
        issued
    }

    /// A list of revoked certificates.
    pub fn revoke(&self, revoked: &[&Issued]) -> PathBuf {
        let revoked = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list");
        let file = self.directory.join(format!("list-{}.crl", SERIAL.fetch_add(1, Ordering::Relaxed)));
        fs::write(&file, list.pem().expect("PEM")).expect("the directory is writable");
        file
    }
}

impl Issued {
    /// Certificate and key in one file.
    pub fn bundle(&self) -> PathBuf {
        let read = |path: &Path| fs::read_to_string(path).expect("written before");
        let file = self.cert.with_extension("pem");
        write_private(&file, &(read(&self.cert) + &read(&self.key)));
        file
    }
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("the directory is writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our own file");
}

/// A TOML string.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
