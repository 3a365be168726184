//! PostgreSQL's MD5 challenge, for clients and nodes that know nothing better.
//!
//! Invariant: results are compared in constant time by the callers. Absent on purpose: any use of
//! MD5 where the other side did not ask for it.

use md5::{Digest, Md5};

/// Random bytes of a challenge.
pub(super) const CHALLENGE_BYTES: usize = 4;

/// `md5` and the hash of password and user, as `pg_authid` stores it.
pub(super) fn stored(password: &[u8], user: &str) -> String {
    prefixed_hash(&[password, user.as_bytes()])
}

/// The answer to a challenge by who knows the stored text (`md5` and 32 digits).
pub(super) fn response(stored: &str, challenge: [u8; CHALLENGE_BYTES]) -> String {
    let digits = stored.strip_prefix("md5").unwrap_or(stored);
    prefixed_hash(&[digits.as_bytes(), &challenge])
}

fn prefixed_hash(parts: &[&[u8]]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let mut text = String::with_capacity(35);
    text.push_str("md5");
    for byte in hash.finalize() {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_text_is_the_one_of_postgresql() {
        // SELECT rolpassword after SET password_encryption = 'md5'; CREATE ROLE joe PASSWORD 'secret'
        assert_eq!(stored(b"secret", "joe"), "md5c59ec932d911ffdf487595b5a2adf973");
    }
}
