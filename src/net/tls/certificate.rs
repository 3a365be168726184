//! What is read out of certificates: the hash for channel binding, names, subjects.
//!
//! Invariants: whatever the bytes, an answer comes without a panic; a name with a zero byte is none
//! (CVE-2009-4034). Absent on purpose: verification, which is the TLS library's.

use super::super::ClientCertificate;
use aws_lc_rs::digest::{self, Algorithm};
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Any, ObjectIdentifier};
use x509_cert::der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::spki::AlgorithmIdentifierOwned;

const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");

/// Signature algorithms, and the hash that channel binding uses for them: their own, but SHA-256
/// instead of MD5 and SHA-1.
static SIGNATURES: &[(ObjectIdentifier, &Algorithm)] = &[
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"), &digest::SHA256), // md5WithRSA
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"), &digest::SHA256), // sha1WithRSA
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.14"), &digest::SHA224),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"), &digest::SHA256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12"), &digest::SHA384),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13"), &digest::SHA512),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"), &digest::SHA256), // ecdsa-with-SHA1
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.1"), &digest::SHA224),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"), &digest::SHA256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"), &digest::SHA384),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4"), &digest::SHA512),
];

/// Hashes that RSASSA-PSS names in its parameters.
static PSS_HASHES: &[(ObjectIdentifier, &Algorithm)] = &[
    (ObjectIdentifier::new_unwrap("1.3.14.3.2.26"), &digest::SHA256), // SHA-1
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.4"), &digest::SHA224),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"), &digest::SHA256),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"), &digest::SHA384),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"), &digest::SHA512),
];

/// The `tls-server-end-point` of a certificate (RFC 5929, section 4.1); `None` where its signature
/// algorithm has no hash of its own (Ed25519).
#[must_use]
pub fn end_point_hash(certificate: &[u8]) -> Option<Arc<[u8]>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = signature_hash(&parsed.signature_algorithm)?;
    Some(digest::digest(algorithm, certificate).as_ref().into())
}

fn signature_hash(signature: &AlgorithmIdentifierOwned) -> Option<&'static Algorithm> {
    if signature.oid == RSA_PSS {
        let named = signature.parameters.as_ref().map_or(Some(None), pss_hash)?;
        // Left out, it is SHA-1.
        return named.map_or(Some(&digest::SHA256), |oid| lookup(PSS_HASHES, oid));
    }
    lookup(SIGNATURES, signature.oid)
}

fn lookup(table: &[(ObjectIdentifier, &'static Algorithm)], oid: ObjectIdentifier) -> Option<&'static Algorithm> {
    table.iter().find(|(known, _)| *known == oid).map(|(_, algorithm)| *algorithm)
}

/// The hash in `RSASSA-PSS-params`, whose first field is `[0] AlgorithmIdentifier`; `Some(None)` if it is
/// left out, `None` if the parameters are malformed.
fn pss_hash(parameters: &Any) -> Option<Option<ObjectIdentifier>> {
    let fields = (parameters.tag() == Tag::Sequence).then(|| parameters.value())?;
    if fields.first() != Some(&0xa0) {
        return Some(None);
    }
    let mut reader = x509_cert::der::SliceReader::new(fields).ok()?;
    let tagged = x509_cert::der::asn1::AnyRef::decode(&mut reader).ok()?;
    let algorithm = AlgorithmIdentifierOwned::from_der(tagged.value()).ok()?;
    Some(Some(algorithm.oid))
}

/// Who a verified client certificate is about.
pub(super) fn client_certificate(certificate: &[u8]) -> Option<ClientCertificate> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let subject = &parsed.tbs_certificate.subject;
    Some(ClientCertificate { common_name: common_name(&parsed), subject: subject.to_string().into() })
}

/// The subject's common name, if it has exactly one.
pub(super) fn common_name(certificate: &Certificate) -> Option<Box<str>> {
    let attributes = certificate.tbs_certificate.subject.0.iter().flat_map(|rdn| rdn.0.iter());
    let mut names = attributes.filter(|attribute| attribute.oid == COMMON_NAME);
    let name = names.next().filter(|_| names.next().is_none())?;
    text(name)
}

fn text(attribute: &AttributeTypeAndValue) -> Option<Box<str>> {
    let plain = matches!(
        attribute.value.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString | Tag::VisibleString
    );
    let bytes = plain.then(|| attribute.value.value())?;
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then(|| text.into())
}

/// Whether a certificate without alternative names is for this host: libpq falls back to the common
/// name then, and many clusters have such certificates.
pub(super) fn common_name_covers(certificate: &[u8], host: &str) -> bool {
    let Ok(parsed) = Certificate::from_der(certificate) else { return false };
    let extensions = parsed.tbs_certificate.extensions.as_deref().unwrap_or_default();
    let has_names = extensions.iter().any(|extension| {
        extension.extn_id == SUBJECT_ALT_NAME
            && SubjectAltName::from_der(extension.extn_value.as_bytes()).map_or(true, |names| !names.0.is_empty())
    });
    !has_names && common_name(&parsed).is_some_and(|name| covers(&name, host))
}

/// Exactly, or with one `*.` in place of the first label.
fn covers(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(parent), Some((label, rest))) => {
            !is_address && !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

/// Whether a certificate is within its time.
pub(super) fn is_in_time(certificate: &Certificate, now_secs: u64) -> bool {
    let validity = &certificate.tbs_certificate.validity;
    let (from, until) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
    (from.as_secs()..=until.as_secs()).contains(&now_secs)
}
