//! The client's side of SCRAM-SHA-256: we log in to a node by password or by keys.
//!
//! Each step consumes the state before it. Invariants: a proof is sent only for a nonce that
//! extends ours and a cost within bounds; the node has proved itself before the exchange is over.
//! Absent on purpose: framing, and what to do with a node that refuses.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;
use subtle::ConstantTimeEq;

use super::{
    Attributes, CHANNEL_BINDING, Flaw, Key, SALT_BYTES_MAX, check_message, check_nonce, decode_key, hash, hmac_sha256,
    parse_iterations, xor,
};
use crate::auth::error::NodeRefusal;
use crate::auth::secret::{NodePassword, ScramKeys};

/// What we tell the node of the channel, in the GS2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::auth) enum ClientBinding {
    /// We do not bind.
    Unable,
    /// We would, but the node did not offer it. If it did, somebody has taken the offer away, and it refuses.
    NotOffered,
    /// To this hash of the node's certificate.
    To(Arc<[u8]>),
}

impl ClientBinding {
    fn header(&self) -> String {
        match self {
            Self::Unable => "n,,".to_owned(),
            Self::NotOffered => "y,,".to_owned(),
            Self::To(_) => format!("p={CHANNEL_BINDING},,"),
        }
    }

    /// What `c=` says: the header and the channel's data.
    fn channel(&self) -> String {
        let header = self.header().into_bytes();
        STANDARD.encode(match self {
            Self::To(data) => [&header, &data[..]].concat(),
            Self::Unable | Self::NotOffered => header,
        })
    }
}

/// What we prove ourselves with.
#[derive(Clone)]
pub(in crate::auth) enum ClientSecret {
    Password(NodePassword),
    Keys(ScramKeys),
}

/// Waits for salt and iteration count.
pub(in crate::auth) struct AwaitServerFirst {
    secret: ClientSecret,
    binding: ClientBinding,
    nonce: String,
}

/// Waits for the node's own proof.
pub(in crate::auth) struct AwaitServerFinal {
    signature: Key,
}

impl AwaitServerFirst {
    /// The client-first message and the state that awaits its answer. `nonce` is fresh and printable.
    pub(in crate::auth) fn begin(secret: ClientSecret, binding: ClientBinding, nonce: String) -> (Self, Vec<u8>) {
        let message = format!("{}n=,r={nonce}", binding.header()).into_bytes();
        (Self { secret, binding, nonce }, message)
    }

    /// Answers a server-first message with the client-final message.
    pub(in crate::auth) fn answer(self, message: &[u8]) -> Result<(AwaitServerFinal, Vec<u8>), NodeRefusal> {
        let flawed = NodeRefusal::Malformed;
        check_message(message).map_err(flawed)?;
        let mut attributes = Attributes::new(message);
        let nonce = attributes.take(b'r').map_err(flawed)?;
        check_nonce(nonce).map_err(flawed)?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(self.nonce.as_bytes()) {
            return Err(flawed(Flaw::NonceMismatch));
        }
        let salt = STANDARD.decode(attributes.take(b's').map_err(flawed)?).map_err(|_| flawed(Flaw::Salt))?;
        if !(1..=SALT_BYTES_MAX).contains(&salt.len()) {
            return Err(flawed(Flaw::Salt));
        }
        let iterations = attributes.take(b'i').map_err(flawed)?;
        let iterations = parse_iterations(iterations).ok_or(flawed(Flaw::Iterations))?;
        let (client_key, server_key) = self.keys(&salt, iterations)?;

        let mut reply = format!("c={},r=", self.binding.channel()).into_bytes();
        reply.extend_from_slice(nonce);
        let client_first_bare = format!("n=,r={}", self.nonce);
        let auth_message: [&[u8]; 5] = [client_first_bare.as_bytes(), b",", message, b",", &reply];
        let proof = xor(&client_key, &hmac_sha256(&*hash(&client_key), &auth_message));
        let signature = hmac_sha256(&*server_key, &auth_message);
        reply.extend_from_slice(format!(",p={}", STANDARD.encode(*proof)).as_bytes());
        Ok((AwaitServerFinal { signature }, reply))
    }

    fn keys(&self, salt: &[u8], iterations: u32) -> Result<(Key, Key), NodeRefusal> {
        match &self.secret {
            ClientSecret::Password(password) => {
                let keys = password.keys(salt, iterations);
                Ok((keys.client_key, keys.server_key))
            }
            ClientSecret::Keys(keys) if keys.salt == salt && keys.iterations == iterations => {
                Ok((keys.client_key.clone(), keys.server_key.clone()))
            }
            ClientSecret::Keys(_) => Err(NodeRefusal::KeysDoNotFit),
        }
    }
}

impl AwaitServerFinal {
    /// Checks the server-final message: does the node know the user's secret?
    pub(in crate::auth) fn check(self, message: &[u8]) -> Result<(), NodeRefusal> {
        check_message(message).map_err(NodeRefusal::Malformed)?;
        if message.starts_with(b"e=") {
            return Err(NodeRefusal::ScramRefused);
        }
        let signature = Attributes::new(message).take(b'v').map_err(NodeRefusal::Malformed)?;
        let signature = decode_key(signature).ok_or(NodeRefusal::Malformed(Flaw::Signature))?;
        if bool::from(signature.ct_eq(&*self.signature)) { Ok(()) } else { Err(NodeRefusal::SignatureWrong) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::{Binding, ServerFirst};
    use super::*;
    use crate::auth::secret::ScramVerifier;
    use crate::config::Secret;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

    fn pencil() -> ClientSecret {
        ClientSecret::Password(NodePassword::new(Secret::new("pencil")))
    }

    fn begin() -> AwaitServerFirst {
        AwaitServerFirst::begin(pencil(), ClientBinding::Unable, NONCE.to_owned()).0
    }

    fn refusal(message: &[u8]) -> NodeRefusal {
        begin().answer(message).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_a_node_may_not_ask() {
        let first = |salt: &str, iterations: &str| format!("r={NONCE}XYZ,s={salt},i={iterations}").into_bytes();
        assert!(begin().answer(&first("c2FsdA==", "1")).is_ok());
        let malformed = NodeRefusal::Malformed;
        for iterations in ["0", "-1", "1000001", "4294967297", "x", ""] {
            assert_eq!(refusal(&first("c2FsdA==", iterations)), malformed(Flaw::Iterations), "{iterations}");
        }
        for salt in ["", "!", &STANDARD.encode([0; SALT_BYTES_MAX + 1])] {
            assert_eq!(refusal(&first(salt, "1")), malformed(Flaw::Salt), "{salt}");
        }
        for nonce in [NONCE, "other", &NONCE[..5]] {
            let message = format!("r={nonce},s=c2FsdA==,i=1");
            assert_eq!(refusal(message.as_bytes()), malformed(Flaw::NonceMismatch), "{nonce}");
        }
        assert_eq!(refusal(b"m=ext,r=a"), malformed(Flaw::Attribute));
        assert_eq!(refusal(b""), malformed(Flaw::TooShort));
        assert_eq!(refusal(&[b'r'; 4000]), malformed(Flaw::TooLong));
    }

    #[test]
    fn the_node_must_prove_itself() {
        let run = |server_password: &[u8], tamper: fn(&mut Vec<u8>)| {
            let (client, message) = AwaitServerFirst::begin(pencil(), ClientBinding::Unable, NONCE.to_owned());
            let verifier = ScramVerifier::derive(server_password, b"salt", 2);
            let first = ServerFirst::answer(verifier, &message, "server", &Binding::NotOffered).unwrap();
            let (client, message) = client.answer(&first.message).unwrap();
            let (mut message, _) = first.next.check(&message).unwrap()?;
            tamper(&mut message);
            Some(client.check(&message))
        };
        assert_eq!(run(b"pencil", |_| ()), Some(Ok(())));
        assert_eq!(run(b"other", |_| ()), None, "refused by the server");
        let wrong = run(b"pencil", |message| *message = format!("v={}", STANDARD.encode([7; 32])).into_bytes());
        assert_eq!(wrong, Some(Err(NodeRefusal::SignatureWrong)));
        let error = run(b"pencil", |message| *message = b"e=other-error".to_vec());
        assert_eq!(error, Some(Err(NodeRefusal::ScramRefused)));
        let short = run(b"pencil", |message| message.truncate(20));
        assert_eq!(short, Some(Err(NodeRefusal::Malformed(Flaw::Signature))));
    }

    #[test]
    fn both_sides_agree_on_the_channel_or_part() {
        let run = |ours: ClientBinding, theirs: &Binding| {
            let (client, message) = AwaitServerFirst::begin(pencil(), ours, NONCE.to_owned());
            let verifier = ScramVerifier::derive(b"pencil", b"salt", 2);
            let first = ServerFirst::answer(verifier, &message, "server", theirs).ok()?;
            let (client, message) = client.answer(&first.message).ok()?;
            let (message, _) = first.next.check(&message).ok()??;
            Some(client.check(&message))
        };
        let (hash, other): (Arc<[u8]>, Arc<[u8]>) = (Arc::from([1; 32]), Arc::from([2; 32]));
        let to = |hash: &Arc<[u8]>| ClientBinding::To(Arc::clone(hash));
        assert_eq!(run(to(&hash), &Binding::To(Arc::clone(&hash))), Some(Ok(())));
        assert_eq!(run(to(&hash), &Binding::To(other)), None, "another certificate");
        assert_eq!(run(ClientBinding::NotOffered, &Binding::NotOffered), Some(Ok(())));
        assert_eq!(run(ClientBinding::NotOffered, &Binding::NotChosen), None, "the offer was taken away");
        assert_eq!(run(ClientBinding::Unable, &Binding::NotChosen), Some(Ok(())));
    }
}
