//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS: two messages in, two out.
//!
//! Each step consumes the state before it, so that messages cannot be replayed or reordered.
//! Invariants: the client's key is recovered only from a right proof; a doomed exchange takes the
//! same path as any other and fails at the end. Absent on purpose: framing, and users.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;
use subtle::ConstantTimeEq;

use super::{Attributes, CHANNEL_BINDING, Flaw, check_message, check_nonce, decode_key, hash, hmac_sha256, xor};
use crate::auth::secret::{ScramKeys, ScramVerifier};

/// Why a client-first message is refused.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::auth) enum FirstError {
    Flawed(Flaw),
    AuthorizationIdentity,
    Extension,
    /// The client could bind and was made to believe that we cannot.
    Downgrade,
    /// It binds to something else than our certificate.
    BindingType(Box<str>),
}

/// How an exchange is tied to the TLS channel that it runs over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::auth) enum Binding {
    /// We cannot bind.
    NotOffered,
    /// We offered to bind, and the client chose the mechanism without.
    NotChosen,
    /// To this hash of our certificate.
    To(Arc<[u8]>),
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
    /// `c=` must say this, in base64: the GS2 header and the channel's data.
    channel: Vec<u8>,
    bound: bool,
    client_first_bare: Vec<u8>,
    server_first: Vec<u8>,
    nonce: Vec<u8>,
}

impl ServerFirst {
    /// Answers a client-first message. `nonce` is fresh and printable.
    pub(in crate::auth) fn answer(
        verifier: ScramVerifier,
        message: &[u8],
        nonce: &str,
        binding: &Binding,
    ) -> Result<Self, FirstError> {
        check_message(message)?;
        let (header, bare) = split_gs2(message, binding)?;
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
            channel: match binding {
                Binding::To(data) => [header, data].concat(),
                Binding::NotOffered | Binding::NotChosen => header.to_vec(),
            },
            bound: matches!(binding, Binding::To(_)),
            client_first_bare: bare.to_vec(),
            server_first: reply.clone(),
            nonce,
        };
        Ok(Self { message: reply, next })
    }
}

/// The GS2 header and what follows it, as `read_client_first_message` of PostgreSQL's
/// `auth-scram.c` checks it.
fn split_gs2<'m>(message: &'m [u8], binding: &Binding) -> Result<(&'m [u8], &'m [u8]), FirstError> {
    let bound = matches!(binding, Binding::To(_));
    let flag_len = match message.first() {
        Some(b'n' | b'y') if bound => return Err(Flaw::ChannelBindingMissing.into()),
        // The client could bind and thinks that we cannot: somebody has taken our offer away.
        Some(b'y') if *binding == Binding::NotChosen => return Err(FirstError::Downgrade),
        Some(b'n' | b'y') => 1,
        Some(b'p') if !bound => return Err(Flaw::ChannelBindingData.into()),
        Some(b'p') => {
            let end = message.iter().position(|byte| *byte == b',').ok_or(Flaw::ChannelBindingFlag)?;
            let kind = message[..end].strip_prefix(b"p=").ok_or(Flaw::ChannelBindingFlag)?;
            if kind != CHANNEL_BINDING.as_bytes() {
                return Err(FirstError::BindingType(String::from_utf8_lossy(kind).escape_debug().to_string().into()));
            }
            end
        }
        _ => return Err(Flaw::ChannelBindingFlag.into()),
    };
    match &message[flag_len..] {
        [b',', b',', ..] => Ok(message.split_at(flag_len + 2)),
        [b',', b'a', ..] => Err(FirstError::AuthorizationIdentity),
        _ => Err(Flaw::ChannelBindingFlag.into()),
    }
}

impl AwaitClientFinal {
    /// Checks a client-final message. `Ok(None)`: well formed, but the proof is wrong.
    /// Else the server-final message and the client's keys.
    pub(in crate::auth) fn check(self, message: &[u8]) -> Result<Option<(Vec<u8>, ScramKeys)>, Flaw> {
        check_message(message)?;
        let mut attributes = Attributes::new(message);
        let channel = STANDARD.encode(&self.channel);
        if !bool::from(attributes.take(b'c')?.ct_eq(channel.as_bytes())) {
            return Err(if self.bound { Flaw::ChannelBindingForged } else { Flaw::ChannelBindingMismatch });
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
        ServerFirst::answer(verifier, CLIENT_FIRST, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", &Binding::NotOffered).unwrap()
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
            ServerFirst::answer(verifier, message, "nonce", &Binding::NotOffered).map(|first| first.message)
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

    #[test]
    fn channel_binding_is_checked_as_rfc_5802_and_postgresql_do() {
        let certificate: Arc<[u8]> = Arc::from(&b"hash of a certificate"[..]);
        let answer = |message: &[u8], binding: &Binding| {
            let verifier = ScramVerifier::derive(b"pencil", b"salt", 1);
            ServerFirst::answer(verifier, message, "nonce", binding).map(|first| (first.next.channel, first.next.bound))
        };
        let (none, plain, bound) = (Binding::NotOffered, Binding::NotChosen, Binding::To(Arc::clone(&certificate)));
        assert_eq!(answer(b"y,,n=,r=abc", &none), Ok((b"y,,".to_vec(), false)), "right: we cannot");
        assert_eq!(answer(b"n,,n=,r=abc", &plain), Ok((b"n,,".to_vec(), false)));
        assert_eq!(answer(b"y,,n=,r=abc", &plain), Err(FirstError::Downgrade));
        let wanted = [&b"p=tls-server-end-point,,"[..], &certificate].concat();
        assert_eq!(answer(b"p=tls-server-end-point,,n=,r=abc", &bound), Ok((wanted, true)));
        for flag in ["n", "y"] {
            let message = format!("{flag},,n=,r=abc");
            assert_eq!(answer(message.as_bytes(), &bound), Err(Flaw::ChannelBindingMissing.into()));
        }
        for binding in [&none, &plain] {
            let refused = answer(b"p=tls-server-end-point,,n=,r=abc", binding);
            assert_eq!(refused, Err(Flaw::ChannelBindingData.into()));
        }
        assert_eq!(answer(b"p=tls-unique,,n=,r=abc", &bound), Err(FirstError::BindingType("tls-unique".into())));
        assert_eq!(answer(b"p=tls-server-end-point,a=x,n=,r=abc", &bound), Err(FirstError::AuthorizationIdentity));
        assert_eq!(answer(b"p,,n=,r=abc", &bound), Err(Flaw::ChannelBindingFlag.into()));
        assert_eq!(answer(b"p=tls-server-end-point", &bound), Err(Flaw::ChannelBindingFlag.into()));
    }

    /// Somebody in between shows another certificate than ours, and passes everything on.
    #[test]
    fn a_proof_for_another_channel_does_not_get_in() {
        let salted = super::super::salted_password(b"pencil", b"salt", 1);
        let client_key = super::super::client_key(&salted);
        let header = "p=tls-server-end-point,,";
        let run = |seen_by_client: &[u8], ours: &[u8]| {
            let verifier = ScramVerifier::derive(b"pencil", b"salt", 1);
            let first = format!("{header}n=,r=abc");
            let binding = Binding::To(Arc::from(ours));
            let server = ServerFirst::answer(verifier, first.as_bytes(), "nonce", &binding).unwrap();
            let channel = STANDARD.encode([header.as_bytes(), seen_by_client].concat());
            let without_proof = format!("c={channel},r=abcnonce");
            let bare = &first.as_bytes()[header.len()..];
            let auth_message: [&[u8]; 5] = [bare, b",", &server.message, b",", without_proof.as_bytes()];
            let proof = xor(&client_key, &hmac_sha256(&*hash(&client_key), &auth_message));
            let message = format!("{without_proof},p={}", STANDARD.encode(*proof));
            server.next.check(message.as_bytes()).map(|checked| checked.is_some())
        };
        assert_eq!(run(b"certificate", b"certificate"), Ok(true));
        assert_eq!(run(b"forged", b"certificate"), Err(Flaw::ChannelBindingForged));
        assert_eq!(run(b"", b"certificate"), Err(Flaw::ChannelBindingForged));
    }
}
