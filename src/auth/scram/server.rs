//! The server's side of SCRAM-SHA-256: two messages in, two out.
//!
//! Each step consumes the state before it, so that messages cannot be replayed or reordered.
//! Invariants: the client's key is recovered only from a right proof; a doomed exchange takes the
//! same path as any other and fails at the end. Absent on purpose: framing, and users.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::{Attributes, Flaw, check_message, check_nonce, decode_key, hash, hmac_sha256, xor};
use crate::auth::secret::{ScramKeys, ScramVerifier};

/// Why a client-first message is refused.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::auth) enum FirstError {
    Flawed(Flaw),
    AuthorizationIdentity,
    Extension,
}

impl From<Flaw> for FirstError {
    fn from(flaw: Flaw) -> Self {
        Self::Flawed(flaw)
    }
}

/// What answers a client-first message.
pub(in crate::auth) struct ServerFirst {
    pub(in crate::auth) message: Vec<u8>,
    pub(in crate::auth) next: AwaitClientFinal,
}

/// Waits for the proof.
pub(in crate::auth) struct AwaitClientFinal {
    verifier: ScramVerifier,
    /// `c=` must repeat this, in base64.
    gs2_header: &'static [u8; 3],
    client_first_bare: Vec<u8>,
    server_first: Vec<u8>,
    nonce: Vec<u8>,
}

impl ServerFirst {
    /// Answers a client-first message. `nonce` is fresh and printable.
    pub(in crate::auth) fn answer(verifier: ScramVerifier, message: &[u8], nonce: &str) -> Result<Self, FirstError> {
        check_message(message)?;
        let (gs2_header, bare) = split_gs2(message)?;
        if bare.starts_with(b"m=") {
            return Err(FirstError::Extension);
        }
        let mut attributes = Attributes::new(bare);
        attributes.take(b'n')?; // PostgreSQL ignores it: the user is the one of the startup packet
        let client_nonce = attributes.take(b'r')?;
        check_nonce(client_nonce)?;
        let nonce = [client_nonce, nonce.as_bytes()].concat();
        let mut reply = b"r=".to_vec();
        reply.extend_from_slice(&nonce);
        reply.extend_from_slice(format!(",s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations).as_bytes());
        let next = AwaitClientFinal {
            verifier,
            gs2_header,
            client_first_bare: bare.to_vec(),
            server_first: reply.clone(),
            nonce,
        };
        Ok(Self { message: reply, next })
    }
}

fn split_gs2(message: &[u8]) -> Result<(&'static [u8; 3], &[u8]), FirstError> {
    // 'y': the client could bind to the channel and thinks that we cannot. Right, we did not offer it.
    let header: &[u8; 3] = match message.first() {
        Some(b'n') => b"n,,",
        Some(b'y') => b"y,,",
        Some(b'p') => return Err(Flaw::ChannelBindingData.into()),
        _ => return Err(Flaw::ChannelBindingFlag.into()),
    };
    match message.strip_prefix(header) {
        Some(bare) => Ok((header, bare)),
        None if message[1..].starts_with(b",a=") => Err(FirstError::AuthorizationIdentity),
        None => Err(Flaw::ChannelBindingFlag.into()),
    }
}

impl AwaitClientFinal {
    /// Checks a client-final message. `Ok(None)`: well formed, but the proof is wrong.
    /// Else the server-final message and the client's keys.
    pub(in crate::auth) fn check(self, message: &[u8]) -> Result<Option<(Vec<u8>, ScramKeys)>, Flaw> {
        check_message(message)?;
        let mut attributes = Attributes::new(message);
        if attributes.take(b'c')? != STANDARD.encode(self.gs2_header).as_bytes() {
            return Err(Flaw::ChannelBindingMismatch);
        }
        if attributes.take(b'r')? != self.nonce {
            return Err(Flaw::NonceMismatch);
        }
        // Extensions may stand between nonce and proof; the proof is last and signs all before it.
        let proof_at = message.windows(3).rposition(|window| window == b",p=").ok_or(Flaw::Attribute)?;
        let proof = decode_key(&message[proof_at + 3..]).ok_or(Flaw::Proof)?;
        let auth_message: [&[u8]; 5] = [&self.client_first_bare, b",", &self.server_first, b",", &message[..proof_at]];

        let client_key = xor(&proof, &hmac_sha256(&*self.verifier.stored_key, &auth_message));
        if !bool::from(hash(&client_key).ct_eq(&*self.verifier.stored_key)) {
            return Ok(None);
        }
        let signature = hmac_sha256(&*self.verifier.server_key, &auth_message);
        let server_final = format!("v={}", STANDARD.encode(*signature)).into_bytes();
        let ScramVerifier { iterations, salt, server_key, .. } = self.verifier;
        Ok(Some((server_final, ScramKeys { client_key, server_key, salt, iterations })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    /// The exchange of RFC 7677, section 3.
    fn rfc7677() -> ServerFirst {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = ScramVerifier::derive(b"pencil", &salt, 4096);
        ServerFirst::answer(verifier, CLIENT_FIRST, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0").unwrap()
    }

    #[test]
    fn the_vector_of_rfc_7677() {
        let first = rfc7677();
        assert_eq!(first.message, SERVER_FIRST.as_bytes());
        let (server_final, keys) = first.next.check(CLIENT_FINAL.as_bytes()).unwrap().unwrap();
        assert_eq!(server_final, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(keys.iterations, 4096);
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(hash(&keys.client_key), ScramVerifier::derive(b"pencil", &salt, 4096).stored_key);
    }

    #[test]
    fn no_changed_byte_of_the_final_message_gets_in() {
        for at in 0..CLIENT_FINAL.len() {
            for flip in [1, 2, 4, 0x20, 0x80] {
                let mut message = CLIENT_FINAL.as_bytes().to_vec();
                message[at] ^= flip;
                assert!(!matches!(rfc7677().next.check(&message), Ok(Some(_))), "byte {at} flipped by {flip}");
            }
            assert!(!matches!(rfc7677().next.check(&CLIENT_FINAL.as_bytes()[..at]), Ok(Some(_))), "cut at {at}");
        }
    }

    /// Who knows the password can sign any client-final message; it must still be the one due.
    #[test]
    fn a_right_proof_of_a_wrong_message_does_not_get_in() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = super::super::salted_password(b"pencil", &salt, 4096);
        let client_key = super::super::client_key(&salted);
        let signed = |without_proof: &str| {
            let auth_message: [&[u8]; 4] = [&CLIENT_FIRST[3..], b",", SERVER_FIRST.as_bytes(), b","];
            let auth_message = [auth_message.concat().as_slice(), without_proof.as_bytes()].concat();
            let proof = xor(&client_key, &hmac_sha256(&*hash(&client_key), &[&auth_message]));
            let message = format!("{without_proof},p={}", STANDARD.encode(*proof));
            rfc7677().next.check(message.as_bytes()).map(|checked| checked.is_some())
        };
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        assert_eq!(signed(&format!("c=biws,r={nonce}")), Ok(true));
        assert_eq!(signed(&format!("c=biws,r={nonce},x=later")), Ok(true), "extensions are signed, not read");
        assert_eq!(signed(&format!("c=biws,r={nonce}0")), Err(Flaw::NonceMismatch));
        assert_eq!(signed("c=biws,r=rOprNGfwEbeRWgbNEkqO"), Err(Flaw::NonceMismatch));
        assert_eq!(signed(&format!("c=eSws,r={nonce}")), Err(Flaw::ChannelBindingMismatch), "y,, after n,,");
        assert_eq!(signed(&format!("r={nonce},c=biws")), Err(Flaw::Attribute));
    }

    #[test]
    fn first_messages_that_ask_for_too_much() {
        let answer = |message: &[u8]| {
            let verifier = ScramVerifier::derive(b"pencil", b"salt", 1);
            ServerFirst::answer(verifier, message, "nonce").map(|first| first.message)
        };
        assert!(answer(b"n,,n=,r=abc").is_ok());
        assert!(answer(b"y,,n=,r=abc").is_ok(), "we did not offer channel binding");
        assert!(answer(b"n,,n=caf\xe9,r=abc,x=later").is_ok(), "name and later extensions are ignored");
        assert_eq!(answer(b"p=tls-server-end-point,,n=,r=abc"), Err(Flaw::ChannelBindingData.into()));
        assert_eq!(answer(b"n,a=joe,n=,r=abc"), Err(FirstError::AuthorizationIdentity));
        assert_eq!(answer(b"n,,m=ext,n=,r=abc"), Err(FirstError::Extension));
        assert_eq!(answer(b"x,,n=,r=abc"), Err(Flaw::ChannelBindingFlag.into()));
        assert_eq!(answer(b"n"), Err(Flaw::ChannelBindingFlag.into()));
        assert_eq!(answer(b"n,,r=abc"), Err(Flaw::Attribute.into()));
        assert_eq!(answer(b"n,,n="), Err(Flaw::Attribute.into()));
        assert_eq!(answer(b"n,,n=,r="), Err(Flaw::Nonce.into()));
        assert_eq!(answer(b"n,,n=,r=a b"), Err(Flaw::Nonce.into()));
        assert_eq!(answer(b"n,,n=,r=a\0b"), Err(Flaw::LengthMismatch.into()));
        assert_eq!(answer(b""), Err(Flaw::TooShort.into()));
        let long = [b"n,,n=,r=".as_slice(), &[b'a'; 2000]].concat();
        assert_eq!(answer(&long), Err(Flaw::TooLong.into()));
    }
}
