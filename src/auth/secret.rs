//! What is stored of a user, and the keys that a SCRAM login leaves us with.
//!
//! Invariants: everything secret is wiped when dropped; `Debug` never prints it; iteration counts
//! and salts are within bounds once they are in here. Absent on purpose: where secrets come from.

use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::md5;
use super::scram::{self, ITERATIONS_MAX, KEY_BYTES, SALT_BYTES_MAX};
use crate::config::Secret;

const SCRAM_PREFIX: &str = "SCRAM-SHA-256$";

/// What is known of a user, in one of the forms of `pg_authid.rolpassword`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredSecret {
    /// The password itself.
    Plain(Plain),
    /// An MD5 hash of password and user name.
    Md5(Md5Hash),
    /// A SCRAM-SHA-256 verifier.
    Scram(ScramVerifier),
}

/// A text that cannot be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// PostgreSQL refuses empty passwords, so nobody could log in with it.
    #[error("the secret is empty")]
    Empty,
    /// It begins like a verifier. Taken as a password it would let in whoever can read the file.
    #[error(
        "the secret begins with SCRAM-SHA-256$ but is not SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>"
    )]
    BrokenVerifier,
}

impl StoredSecret {
    /// Reads a text of `pg_authid.rolpassword`, a userlist or the config file: a SCRAM verifier,
    /// `md5` with 32 lower-case digits, or else a password.
    ///
    /// # Errors
    /// [`BadSecret`] for an empty text and for one that begins like a SCRAM verifier but is none.
    pub fn parse(text: &str) -> Result<Self, BadSecret> {
        if text.is_empty() {
            return Err(BadSecret::Empty);
        }
        if text.starts_with(SCRAM_PREFIX) {
            return ScramVerifier::parse(text).map(Self::Scram).ok_or(BadSecret::BrokenVerifier);
        }
        Ok(match Md5Hash::parse(text) {
            Some(hash) => Self::Md5(hash),
            None => Self::Plain(Plain::new(Secret::new(text))),
        })
    }
}

/// A password, with the verifier made of it once.
#[derive(Clone)]
pub struct Plain {
    password: Secret,
    /// Thousands of hash rounds are spent once per user, not at each login.
    verifier: OnceLock<ScramVerifier>,
}

impl Plain {
    /// Wraps a password.
    #[must_use]
    pub fn new(password: Secret) -> Self {
        Self { password, verifier: OnceLock::new() }
    }

    /// The password.
    #[must_use]
    pub fn password(&self) -> &Secret {
        &self.password
    }

    pub(super) fn has_verifier(&self) -> bool {
        self.verifier.get().is_some()
    }

    /// The verifier for this salt; the one of the first salt asked for is kept.
    pub(super) fn verifier(&self, salt: &[u8]) -> ScramVerifier {
        let make = || ScramVerifier::derive(self.password.expose().as_bytes(), salt, scram::ITERATIONS);
        let kept = self.verifier.get_or_init(make);
        if kept.salt == salt { kept.clone() } else { make() }
    }
}

impl PartialEq for Plain {
    fn eq(&self, other: &Self) -> bool {
        self.password == other.password
    }
}

impl Eq for Plain {}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain(…)")
    }
}

/// `md5` and 32 lower-case hexadecimal digits. Whoever has it can log in where md5 is asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Hash(Secret);

impl Md5Hash {
    /// Reads the text; `None` if it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("md5")?;
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (digits.len() == 32 && digits.bytes().all(digit)).then(|| Self(Secret::new(text)))
    }

    /// Of a password.
    #[must_use]
    pub fn derive(password: &str, user: &str) -> Self {
        Self(Secret::new(md5::stored(password.as_bytes(), user)))
    }

    /// The text, `md5` included.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(…)")
    }
}

/// A SCRAM-SHA-256 verifier: enough to check a client, not enough to log in to a node.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) stored_key: Zeroizing<[u8; KEY_BYTES]>,
    pub(super) server_key: Zeroizing<[u8; KEY_BYTES]>,
}

impl ScramVerifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`; `None` if it is
    /// anything else or its numbers are out of bounds (iterations 1..=1 000 000, salt 1..=256 bytes).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (front, keys) = text.strip_prefix(SCRAM_PREFIX)?.split_once('$')?;
        let (iterations, salt) = front.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let iterations = scram::parse_iterations(iterations.as_bytes())?;
        let salt = STANDARD.decode(salt).ok().filter(|salt| (1..=SALT_BYTES_MAX).contains(&salt.len()))?;
        Some(Self {
            iterations,
            salt,
            stored_key: scram::decode_key(stored.as_bytes())?,
            server_key: scram::decode_key(server.as_bytes())?,
        })
    }

    /// Makes the verifier of a password (prepared by SASLprep where that is possible).
    /// `iterations` is clamped to 1..=1 000 000; the cost is proportional to it (about 0.1 µs to 0.5 µs each).
    #[must_use]
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let iterations = iterations.clamp(1, ITERATIONS_MAX);
        let salted = scram::salted_password(password, salt, iterations);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: scram::hash(&scram::client_key(&salted)),
            server_key: scram::server_key(&salted),
        }
    }

    /// Is this the password of the verifier? Compares in constant time; costs what [`Self::derive`] costs.
    #[must_use]
    pub fn accepts(&self, password: &[u8]) -> bool {
        use subtle::ConstantTimeEq;
        let other = Self::derive(password, &self.salt, self.iterations);
        bool::from(self.stored_key.ct_eq(&*other.stored_key) & self.server_key.ct_eq(&*other.server_key))
    }
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScramVerifier({} iterations, …)", self.iterations)
    }
}

/// What a client's SCRAM proof taught us: enough to log in, as this user, to every node that holds
/// the same verifier (same password, salt and iteration count).
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    pub(super) client_key: Zeroizing<[u8; KEY_BYTES]>,
    pub(super) server_key: Zeroizing<[u8; KEY_BYTES]>,
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScramKeys({} iterations, …)", self.iterations)
    }
}

/// A password for logins to nodes, with the keys made of it for the salt that nodes asked with last: all nodes of a
/// cluster ask with the same, so that thousands of hash rounds are spent once, not per backend.
#[derive(Clone)]
pub struct NodePassword {
    password: Secret,
    keys: Arc<Mutex<Option<ScramKeys>>>,
}

impl NodePassword {
    /// Wraps a password.
    #[must_use]
    pub fn new(password: Secret) -> Self {
        Self { password, keys: Arc::default() }
    }

    /// The password.
    #[must_use]
    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// The keys for this salt and cost; the latest are kept.
    pub(super) fn keys(&self, salt: &[u8], iterations: u32) -> ScramKeys {
        let mut kept = self.keys.lock();
        if let Some(keys) = kept.as_ref().filter(|keys| keys.salt == salt && keys.iterations == iterations) {
            return keys.clone();
        }
        let salted = scram::salted_password(self.password.expose().as_bytes(), salt, iterations);
        let keys = ScramKeys {
            client_key: scram::client_key(&salted),
            server_key: scram::server_key(&salted),
            salt: salt.to_vec(),
            iterations,
        };
        kept.insert(keys).clone()
    }
}

impl PartialEq for NodePassword {
    fn eq(&self, other: &Self) -> bool {
        self.password == other.password
    }
}

impl Eq for NodePassword {}

impl fmt::Debug for NodePassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodePassword(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `CREATE ROLE joe PASSWORD 'pencil'` in PostgreSQL 15, read back from `pg_authid`.
    const VERIFIER: &str = "SCRAM-SHA-256$4096:JA6CkpbvCU6W+FIIMPa8/g==\
        $BDerfys0I5YmGVLBZNKFGsgSXrm2vGh9kXBDPlpp1+0=:g3xY5x8E2pAeYfvufvYR9Udt7hBUGZDsWBbpF5qqSH4=";

    #[test]
    fn a_verifier_of_postgresql_15_accepts_its_password_only() {
        let StoredSecret::Scram(verifier) = StoredSecret::parse(VERIFIER).unwrap() else { panic!("not a verifier") };
        assert_eq!(verifier.iterations, 4096);
        assert_eq!(verifier.salt.len(), 16);
        assert!(verifier.accepts(b"pencil"));
        assert!(!verifier.accepts(b"pencil "));
        assert_eq!(ScramVerifier::derive(b"pencil", &verifier.salt, 4096), verifier);
    }

    #[test]
    fn passwords_beyond_ascii_are_prepared_as_postgresql_15_does() {
        // PASSWORD E'I\u00adX\u2168' (SASLprep: IXIX) and E'a\u0007\u00e9' (prohibited, taken as it is)
        let prepared = "SCRAM-SHA-256$4096:kPs18CHDF+seIaUoJ2ZQlg==\
            $Td27WgAGQdxH8G4gabkdnnq9of73szkKC3gicG2Xsis=:q8ONcOioi76dlyZS+pc12/Q6Y0CGiBXVvElwwv78pnc=";
        let verifier = ScramVerifier::parse(prepared).unwrap();
        assert!(verifier.accepts("I\u{ad}X\u{2168}".as_bytes()) && verifier.accepts(b"IXIX"));
        let prohibited = "SCRAM-SHA-256$4096:h9TLSZpWsL8PGarqQo0ZcA==\
            $tpy6pyGd1T9L0oZCB4DM4TE917On8fOxAlxIZkyfrbI=:3bgE16GOrap3Z0R2kpDCexvK8Q6U95DhcrJehuB1m0U=";
        assert!(ScramVerifier::parse(prohibited).unwrap().accepts("a\u{7}\u{e9}".as_bytes()));
    }

    #[test]
    fn a_broken_verifier_is_never_a_password() {
        for cut in SCRAM_PREFIX.len()..VERIFIER.len() {
            assert_eq!(StoredSecret::parse(&VERIFIER[..cut]), Err(BadSecret::BrokenVerifier), "cut at {cut}");
        }
        for iterations in ["0", "-1", "+1", "1000001", "99999999999", "", "4096 "] {
            let text = VERIFIER.replace("$4096:", &format!("${iterations}:"));
            assert_eq!(StoredSecret::parse(&text), Err(BadSecret::BrokenVerifier), "{text}");
        }
        assert_eq!(StoredSecret::parse(""), Err(BadSecret::Empty));
    }

    #[test]
    fn only_md5_and_32_digits_is_a_hash() {
        let kind = |text: &str| matches!(StoredSecret::parse(text).unwrap(), StoredSecret::Md5(_));
        assert!(kind("md5c59ec932d911ffdf487595b5a2adf973"));
        for text in [
            "md5",
            "md5C59EC932D911FFDF487595B5A2ADF973",
            "md5c59ec932d911ffdf487595b5a2adf97",
            "MD5c59ec932d911ffdf487595b5a2adf973",
        ] {
            assert!(!kind(text), "{text}");
        }
    }

    #[test]
    fn debug_prints_no_secret() {
        let plain = StoredSecret::parse("pencil").unwrap();
        let md5 = StoredSecret::parse("md5c59ec932d911ffdf487595b5a2adf973").unwrap();
        let scram = StoredSecret::parse(VERIFIER).unwrap();
        let StoredSecret::Scram(verifier) = &scram else { panic!("not a verifier") };
        let key = ScramKeys {
            client_key: verifier.stored_key.clone(),
            server_key: verifier.server_key.clone(),
            salt: verifier.salt.clone(),
            iterations: 4096,
        };
        assert_eq!(
            format!("{plain:?} {md5:?} {scram:?} {key:?}"),
            "Plain(Plain(…)) Md5(Md5Hash(…)) Scram(ScramVerifier(4096 iterations, …)) ScramKeys(4096 iterations, …)"
        );
    }

    #[test]
    fn a_password_keeps_its_first_verifier_and_is_right_for_others() {
        let plain = Plain::new(Secret::new("pencil"));
        for salt in [b"one", b"two", b"one"] {
            assert_eq!(plain.verifier(salt), ScramVerifier::derive(b"pencil", salt, scram::ITERATIONS));
        }
    }

    #[test]
    fn keys_for_nodes_are_made_once_per_salt_and_shared_by_clones() {
        let password = NodePassword::new(Secret::new("pencil"));
        let verifier = ScramVerifier::derive(b"pencil", b"salt", 10);
        let keys = password.clone().keys(b"salt", 10);
        assert_eq!((scram::hash(&keys.client_key), &keys.server_key), (verifier.stored_key, &verifier.server_key));
        assert_eq!(password.keys.lock().as_ref(), Some(&keys), "made by a clone, kept for all");
        for (salt, iterations) in [(&b"salt"[..], 11), (b"other", 10)] {
            let other = password.keys(salt, iterations);
            assert_ne!(other.client_key, keys.client_key);
            assert_eq!((&*other.salt, other.iterations), (salt, iterations));
        }
        assert_eq!(format!("{password:?}"), "NodePassword(…)");
    }
}
