//! SCRAM-SHA-256 for the test client (RFC 5802, RFC 7677), without channel binding.
//!
//! Written on its own, so that a mistake in the crate's own SCRAM cannot cancel itself out. Absent on
//! purpose: SASLprep; test passwords are ASCII.

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::num::NonZeroU32;

/// A login under way, after the client's first message.
pub struct Scram {
    password: String,
    first_bare: String,
    nonce: String,
}

/// What the client sends last, and what it then demands to hear.
pub struct Final {
    /// The client-final-message.
    pub message: String,
    /// The server's signature, as `v=` must give it.
    pub signature: String,
}

impl Scram {
    /// Starts; `nonce` is printable and contains no comma.
    pub fn new(password: &str, nonce: &str) -> Self {
        let first_bare = format!("n=,r={nonce}");
        Self { password: password.to_owned(), first_bare, nonce: nonce.to_owned() }
    }

    /// The client-first-message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// Answers the server-first-message; `None` if it is not one for us.
    pub fn answer(&self, server_first: &str) -> Option<Final> {
        let field = |key: &str| server_first.split(',').find_map(|part| part.strip_prefix(key));
        let (nonce, salt) = (field("r=")?, STANDARD.decode(field("s=")?).ok()?);
        let rounds: NonZeroU32 = field("i=")?.parse().ok()?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return None;
        }
        let mut salted = [0_u8; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, self.password.as_bytes(), &mut salted);
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        let signature = sign(stored_key.as_ref(), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let server_key = sign(&salted, b"Server Key");
        Some(Final {
            message: format!("{without_proof},p={}", STANDARD.encode(proof)),
            signature: STANDARD.encode(sign(&server_key, signed.as_bytes())),
        })
    }
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}
