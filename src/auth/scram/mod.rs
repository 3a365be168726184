//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it: the parts both sides share.
//!
//! Invariants: messages are bytes and stay as they were sent, because both sides sign them;
//! everything that the other side chooses has a bound. Absent on purpose: channel bindings other than
//! `tls-server-end-point`, user names inside SCRAM (PostgreSQL takes the one of the startup packet), random numbers (nonces are arguments).
//! `docs/decisions/0001-own-scram-server.md` says why this is not `pgwire`'s.

mod client;
mod server;

use std::borrow::Cow;
use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::error::Flaw;

pub(super) use client::{AwaitServerFinal, AwaitServerFirst, ClientBinding, ClientSecret};
pub(super) use server::{AwaitClientFinal, Binding, FirstError, ServerFirst};

/// The mechanism's name.
pub(super) const MECHANISM: &str = "SCRAM-SHA-256";
/// The one with channel binding.
pub(super) const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The channel binding that PostgreSQL does: a hash of the server's certificate (RFC 5929, section 4).
pub(super) const CHANNEL_BINDING: &str = "tls-server-end-point";
/// Bytes of every key, hash and signature.
pub(super) const KEY_BYTES: usize = 32;
/// Iterations where we choose: PostgreSQL's default.
pub(super) const ITERATIONS: u32 = 4096;
/// Most iterations that we accept of a stored secret or a node: each costs us a hash or two, on
/// a thread that serves others.
pub(super) const ITERATIONS_MAX: u32 = 1_000_000;
/// Longest salt accepted, bytes; PostgreSQL's are 16.
pub(super) const SALT_BYTES_MAX: usize = 256;
/// Longest SCRAM message accepted, bytes (PostgreSQL's `PG_MAX_SASL_MESSAGE_LENGTH`).
pub(super) const MESSAGE_BYTES_MAX: usize = 1024;
/// Longest nonce accepted, bytes, in what the other side sends; PostgreSQL's are 24.
pub(super) const NONCE_BYTES_MAX: usize = 512;

pub(super) type Key = Zeroizing<[u8; KEY_BYTES]>;

/// Eighteen random bytes as a nonce: 24 letters, as PostgreSQL makes them.
pub(super) fn nonce_of(random: [u8; 18]) -> String {
    STANDARD.encode(random)
}

pub(super) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    key_of(context.sign().as_ref())
}

pub(super) fn hash(data: &[u8; KEY_BYTES]) -> Key {
    key_of(digest::digest(&digest::SHA256, data).as_ref())
}

pub(super) fn client_key(salted: &Key) -> Key {
    hmac_sha256(&**salted, &[b"Client Key"])
}

pub(super) fn server_key(salted: &Key) -> Key {
    hmac_sha256(&**salted, &[b"Server Key"])
}

pub(super) fn xor(left: &[u8; KEY_BYTES], right: &[u8; KEY_BYTES]) -> Key {
    let mut both = Zeroizing::new(*left);
    both.iter_mut().zip(right).for_each(|(byte, other)| *byte ^= other);
    both
}

/// `Hi(password, salt, iterations)`; the cost is proportional to `iterations`.
pub(super) fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let mut salted = Zeroizing::new([0; KEY_BYTES]);
    let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, &prepare(password), &mut *salted);
    salted
}

/// SASLprep where the password allows it, the bytes as they are where not: PostgreSQL does the
/// same on both sides, so that passwords in other encodings work as long as both sides agree.
fn prepare(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    Zeroizing::new(match prepared {
        Some(Cow::Owned(text)) if !text.is_empty() => text.into_bytes(),
        _ => password.to_vec(),
    })
}

/// A number of 1..=[`ITERATIONS_MAX`], digits only.
pub(super) fn parse_iterations(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|count| (1..=ITERATIONS_MAX).contains(count))
}

/// 32 bytes in base64.
pub(super) fn decode_key(text: &[u8]) -> Option<Key> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    (bytes.len() == KEY_BYTES).then(|| key_of(&bytes))
}

fn key_of(bytes: &[u8]) -> Key {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    key.copy_from_slice(bytes);
    key
}

fn check_nonce(nonce: &[u8]) -> Result<(), Flaw> {
    let printable = nonce.iter().all(|byte| (0x21..=0x7e).contains(byte) && *byte != b',');
    let fits = (1..=NONCE_BYTES_MAX).contains(&nonce.len());
    if printable && fits { Ok(()) } else { Err(Flaw::Nonce) }
}

fn check_message(message: &[u8]) -> Result<(), Flaw> {
    match message.len() {
        0 => Err(Flaw::TooShort),
        1..=MESSAGE_BYTES_MAX if message.contains(&0) => Err(Flaw::LengthMismatch),
        1..=MESSAGE_BYTES_MAX => Ok(()),
        _ => Err(Flaw::TooLong),
    }
}

/// Reads `k=value,k=value…` from the front, in the order that the caller demands.
struct Attributes<'a>(Option<&'a [u8]>);

impl<'a> Attributes<'a> {
    fn new(message: &'a [u8]) -> Self {
        Self(Some(message))
    }

    /// The value of the next attribute, which must have this name.
    fn take(&mut self, name: u8) -> Result<&'a [u8], Flaw> {
        let rest = self.0.ok_or(Flaw::Attribute)?;
        let value = rest.strip_prefix(&[name, b'=']).ok_or(Flaw::Attribute)?;
        let Some(comma) = value.iter().position(|byte| *byte == b',') else {
            self.0 = None;
            return Ok(value);
        };
        self.0 = Some(&value[comma + 1..]);
        Ok(&value[..comma])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare_plain(password: &[u8]) -> Vec<u8> {
        prepare(password).to_vec()
    }

    #[test]
    fn passwords_are_prepared_as_postgresql_does() {
        assert_eq!(prepare_plain(b"pencil"), b"pencil");
        assert_eq!(prepare_plain("I\u{ad}X".as_bytes()), b"IX", "mapped to nothing");
        assert_eq!(prepare_plain("\u{2168}".as_bytes()), b"IX", "compatibility form");
        assert_eq!(prepare_plain("\u{aa}".as_bytes()), b"a");
        assert_eq!(prepare_plain(b"a\x07b"), b"a\x07b", "prohibited: as it is");
        assert_eq!(prepare_plain("\u{627}1".as_bytes()), "\u{627}1".as_bytes(), "bidirectional rule broken: as it is");
        assert_eq!(prepare_plain(b"caf\xe9"), b"caf\xe9", "not UTF-8: as it is");
        assert_eq!(prepare_plain("\u{ad}".as_bytes()), "\u{ad}".as_bytes(), "empty when prepared: as it is");
    }

    #[test]
    fn attributes_come_in_order() {
        let mut attributes = Attributes::new(b"n=,r=a=b,x=1");
        assert_eq!(attributes.take(b'n'), Ok(&b""[..]));
        assert_eq!(attributes.take(b'n'), Err(Flaw::Attribute));
        assert_eq!(attributes.take(b'r'), Ok(&b"a=b"[..]));
        assert_eq!(attributes.take(b'x'), Ok(&b"1"[..]));
        assert_eq!(attributes.take(b'x'), Err(Flaw::Attribute));
    }
}
