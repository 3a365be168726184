//! Whole logins in memory: our client's side against our server's side, and broken messages.

use proptest::prelude::*;
use std::sync::Arc;

use super::*;
use crate::config::{AuthMethod, Secret};
use crate::error::Classify;

const SEED: [u8; 32] = [7; 32];
const METHODS: [AuthMethod; 4] = [AuthMethod::Trust, AuthMethod::Password, AuthMethod::Md5, AuthMethod::ScramSha256];

fn plain(password: &str) -> StoredSecret {
    StoredSecret::parse(password).unwrap()
}

fn md5(password: &str) -> StoredSecret {
    StoredSecret::Md5(Md5Hash::derive(password, "joe"))
}

fn verifier(password: &str) -> StoredSecret {
    StoredSecret::Scram(ScramVerifier::derive(password.as_bytes(), b"0123456789abcdef", 10))
}

fn password(text: &str) -> NodeCredential {
    NodeCredential::Password(NodePassword::new(Secret::new(text)))
}

/// Runs a login to its end; the client also sees AuthenticationOk.
fn login(
    method: AuthMethod,
    stored: Option<&StoredSecret>,
    credential: &NodeCredential,
) -> Result<(Proof, Vec<Vec<u8>>), AuthError> {
    let (mut server, mut step) = ServerExchange::begin(method, "joe", stored, &SEED, None);
    let mut client = ClientExchange::new("joe", credential);
    let mut sent = Vec::new();
    loop {
        let (body, proof) = match step {
            ServerStep::Send(body) => (Some(body), None),
            ServerStep::SendAndDone(body, proof) => (Some(body), Some(proof)),
            ServerStep::Done(proof) => (None, Some(proof)),
        };
        let mut reply = None;
        if let Some(body) = body {
            reply = Some(client.on_auth(&body)?);
            sent.push(body);
        }
        if let Some(proof) = proof {
            assert!(matches!(reply, None | Some(ClientStep::Continue)));
            assert_eq!(client.on_auth(&[0, 0, 0, 0]), Ok(ClientStep::Ok));
            return Ok((proof, sent));
        }
        let Some(ClientStep::Send(body)) = reply else { panic!("the client has nothing to say to {sent:?}") };
        step = server.step(&body)?;
    }
}

fn rejected(why: Rejection) -> AuthError {
    AuthError::Rejected { user: "joe".into(), why }
}

#[test]
fn every_method_with_every_stored_form() {
    let right = Proof::Password(Secret::new("pencil"));
    for (stored, method) in [
        (plain("pencil"), AuthMethod::Password),
        (md5("pencil"), AuthMethod::Password),
        (verifier("pencil"), AuthMethod::Password),
        (plain("pencil"), AuthMethod::Md5),
        (plain("pencil"), AuthMethod::ScramSha256),
    ] {
        let (proof, _) = login(method, Some(&stored), &password("pencil")).unwrap();
        assert_eq!(proof, right, "{method:?} {stored:?}");
    }
    assert_eq!(login(AuthMethod::Md5, Some(&md5("pencil")), &password("pencil")).unwrap().0, Proof::None);
    for method in [AuthMethod::Md5, AuthMethod::ScramSha256] {
        let (proof, _) = login(method, Some(&verifier("pencil")), &password("pencil")).unwrap();
        assert!(matches!(proof, Proof::ScramKeys(_)), "{method:?}");
    }
    assert_eq!(login(AuthMethod::Trust, None, &NodeCredential::None).unwrap().0, Proof::None);
}

#[test]
fn a_wrong_password_is_rejected_in_every_form() {
    for method in [AuthMethod::Password, AuthMethod::Md5, AuthMethod::ScramSha256] {
        for stored in [plain("pencil"), md5("pencil"), verifier("pencil")] {
            let why = match (method, &stored) {
                (AuthMethod::ScramSha256, StoredSecret::Md5(_)) => Rejection::NoScramSecret,
                _ => Rejection::WrongPassword,
            };
            assert_eq!(login(method, Some(&stored), &password("pencil ")).err(), Some(rejected(why)), "{method:?}");
        }
        assert_eq!(login(method, None, &password("pencil")).err(), Some(rejected(Rejection::UnknownUser)));
    }
    let scram = login(AuthMethod::ScramSha256, Some(&md5("pencil")), &password("pencil"));
    assert_eq!(scram.err(), Some(rejected(Rejection::NoScramSecret)), "as PostgreSQL does");
}

#[test]
fn a_client_opens_a_node_with_its_own_proof() {
    let stored = verifier("pencil");
    let (proof, _) = login(AuthMethod::ScramSha256, Some(&stored), &password("pencil")).unwrap();
    let credential = NodeCredential::of(&proof, Some(&stored));
    assert!(matches!(credential, NodeCredential::ScramKeys(_)));
    let (again, _) = login(AuthMethod::ScramSha256, Some(&stored), &credential).unwrap();
    assert_eq!(again, proof, "keys prove the same keys");

    let salted_anew = StoredSecret::Scram(ScramVerifier::derive(b"pencil", b"another salt....", 10));
    let slower = StoredSecret::Scram(ScramVerifier::derive(b"pencil", b"0123456789abcdef", 11));
    for changed in [salted_anew, slower] {
        let error = login(AuthMethod::ScramSha256, Some(&changed), &credential).unwrap_err();
        assert_eq!(error, AuthError::Node { user: "joe".into(), why: NodeRefusal::KeysDoNotFit });
    }
    assert_eq!(
        login(AuthMethod::ScramSha256, Some(&verifier("other")), &credential).err(),
        Some(rejected(Rejection::WrongPassword)),
        "same salt, other password"
    );
}

#[test]
fn a_verifier_alone_opens_nothing() {
    assert_eq!(NodeCredential::of(&Proof::None, Some(&verifier("pencil"))), NodeCredential::None);
    assert_eq!(NodeCredential::of(&Proof::None, None), NodeCredential::None);
    assert_eq!(NodeCredential::of(&Proof::None, Some(&plain("pencil"))), password("pencil"));
    let hash = NodeCredential::of(&Proof::None, Some(&md5("pencil")));
    assert!(login(AuthMethod::Md5, Some(&md5("pencil")), &hash).is_ok());
    assert!(login(AuthMethod::Md5, Some(&plain("pencil")), &hash).is_ok());
}

#[test]
fn a_node_that_asks_for_what_we_cannot_do() {
    let keys = {
        let (proof, _) = login(AuthMethod::ScramSha256, Some(&verifier("pencil")), &password("pencil")).unwrap();
        NodeCredential::of(&proof, None)
    };
    let hash = NodeCredential::Md5(Md5Hash::derive("pencil", "joe"));
    let why = |credential: &NodeCredential, body: &[u8]| match ClientExchange::new("joe", credential).on_auth(body) {
        Err(AuthError::Node { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let sasl = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    use NodeMethod as M;
    use NodeRefusal::{CredentialUnfit, Malformed, Method, NoCredential};
    assert_eq!(why(&NodeCredential::None, sasl), NoCredential(M::ScramSha256));
    assert_eq!(why(&NodeCredential::None, b"\0\0\0\x03"), NoCredential(M::Password));
    assert_eq!(why(&NodeCredential::None, b"\0\0\0\x05salt"), NoCredential(M::Md5));
    assert_eq!(why(&keys, b"\0\0\0\x05salt"), CredentialUnfit(M::Md5));
    assert_eq!(why(&keys, b"\0\0\0\x03"), CredentialUnfit(M::Password));
    assert_eq!(why(&hash, sasl), CredentialUnfit(M::ScramSha256));
    let any = password("pencil");
    assert_eq!(why(&any, b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0\0"), Method(M::ScramSha256Plus));
    assert_eq!(why(&any, b"\0\0\0\x0aOAUTHBEARER\0\0"), Method(M::SaslOther));
    assert_eq!(why(&any, b"\0\0\0\x0a"), Method(M::SaslOther));
    for (code, method) in [(2, M::KerberosV5), (7, M::Gss), (9, M::Sspi), (6, M::Other(6)), (99, M::Other(99))] {
        assert_eq!(why(&any, &[0, 0, 0, code]), Method(method));
    }
    assert_eq!(why(&any, b"\0\0\0\x05sal"), Malformed(Flaw::LengthMismatch));
    assert_eq!(why(&any, b"\0\0\0"), Malformed(Flaw::TooShort));
}

#[test]
fn a_node_may_not_skip_its_own_proof() {
    let mut client = ClientExchange::new("joe", &password("pencil"));
    assert!(matches!(client.on_auth(b"\0\0\0\x0aSCRAM-SHA-256\0\0"), Ok(ClientStep::Send(_))));
    let skipped = Err(AuthError::Node { user: "joe".into(), why: NodeRefusal::ProofSkipped });
    assert_eq!(client.on_auth(&[0, 0, 0, 0]), skipped);
    let after = Err(AuthError::Node { user: "joe".into(), why: NodeRefusal::Malformed(Flaw::OutOfTurn) });
    assert_eq!(client.on_auth(&[0, 0, 0, 0]), after, "an exchange that failed stays failed");

    let mut client = ClientExchange::new("joe", &password("pencil"));
    assert!(matches!(client.on_auth(b"\0\0\0\x05salt"), Ok(ClientStep::Send(_))));
    assert_eq!(client.on_auth(b"\0\0\0\x03"), after, "first the hash, then the password: no");
}

/// Drives a fresh SCRAM login up to the client-final message, the last body the server has to check.
fn up_to_final(stored: Option<&StoredSecret>) -> (ServerExchange, Vec<u8>) {
    let (mut server, step) = ServerExchange::begin(AuthMethod::ScramSha256, "joe", stored, &SEED, None);
    let mut client = ClientExchange::new("joe", &password("pencil"));
    let ServerStep::Send(offer) = step else { panic!("{step:?}") };
    let Ok(ClientStep::Send(initial)) = client.on_auth(&offer) else { panic!("no initial response") };
    let Ok(ServerStep::Send(first)) = server.step(&initial) else { panic!("no server-first") };
    let Ok(ClientStep::Send(last)) = client.on_auth(&first) else { panic!("no client-final") };
    (server, last.to_vec())
}

#[test]
fn an_exchange_that_is_over_takes_nothing_more() {
    let (mut server, last) = up_to_final(Some(&verifier("pencil")));
    assert!(matches!(server.step(&last), Ok(ServerStep::SendAndDone(..))));
    assert_eq!(server.step(&last).err(), Some(AuthError::Malformed(Flaw::OutOfTurn)), "replayed");
    let (mut server, last) = up_to_final(Some(&verifier("pencil")));
    assert!(server.step(b"c=biws,r=x,p=").is_err());
    assert_eq!(server.step(&last).err(), Some(AuthError::Malformed(Flaw::OutOfTurn)), "a second try");
}

/// What the server says up to the verdict, without the random parts.
fn visible(user: &str, stored: Option<&StoredSecret>) -> String {
    let (mut server, step) = ServerExchange::begin(AuthMethod::ScramSha256, user, stored, &SEED, None);
    let initial = [b"SCRAM-SHA-256\0", &13u32.to_be_bytes()[..], b"n,,n=,r=abcde"].concat();
    let ServerStep::Send(first) = server.step(&initial).unwrap() else { panic!("no server-first") };
    let first = String::from_utf8(first).unwrap();
    let (nonce, rest) = first.split_once(",s=").unwrap();
    format!("{step:?} {} {rest}", nonce.len())
}

#[test]
fn an_unknown_user_looks_like_a_known_one() {
    let unknown = visible("joe", None);
    assert_eq!(visible("joe", Some(&plain("pencil"))), unknown, "same salt and iterations at each try");
    assert_eq!(visible("joe", Some(&md5("pencil"))), unknown);
    assert!(unknown.contains("i=4096"), "{unknown}");
    assert_ne!(visible("ann", None), unknown, "every user has a salt of its own");
    let real = verifier("pencil");
    assert_eq!(visible("joe", Some(&real)).len(), unknown.replace("4096", "10").len(), "salts are equally long");
    let client = |stored| {
        let (mut server, last) = up_to_final(stored);
        server.step(&last).unwrap_err().client()
    };
    assert_eq!(client(None), client(Some(&verifier("other"))));
}

#[test]
fn sasl_initial_responses_that_are_wrong() {
    let try_body = |body: &[u8]| {
        let (mut server, _) =
            ServerExchange::begin(AuthMethod::ScramSha256, "joe", Some(&plain("pencil")), &SEED, None);
        server.step(body)
    };
    assert!(matches!(try_body(b"SCRAM-SHA-256\0\0\0\0\x0dn,,n=,r=abcde"), Ok(ServerStep::Send(_))));
    let malformed = |flaw| Some(AuthError::Malformed(flaw));
    assert_eq!(try_body(b"SCRAM-SHA-256").err(), malformed(Flaw::LengthMismatch));
    assert_eq!(try_body(b"SCRAM-SHA-256\0\0\0\0").err(), malformed(Flaw::TooShort));
    assert_eq!(try_body(b"SCRAM-SHA-256\0\0\0\0\x0en,,n=,r=abcde").err(), malformed(Flaw::LengthMismatch));
    assert_eq!(try_body(b"SCRAM-SHA-256\0\0\0\0\x0cn,,n=,r=abcde").err(), malformed(Flaw::LengthMismatch));
    assert_eq!(try_body(b"SCRAM-SHA-256\0\xff\xff\xff\xffn").err(), malformed(Flaw::LengthMismatch));
    assert_eq!(try_body(b"SCRAM-SHA-256\0\xff\xff\xff\xfen").err(), malformed(Flaw::LengthMismatch));
    assert_eq!(try_body(b"SCRAM-SHA-256\0\0\0\0\0").err(), malformed(Flaw::TooShort));
    assert_eq!(try_body(&[b'x'; RESPONSE_BYTES_MAX + 1]).err(), malformed(Flaw::TooLong));
    for mechanism in ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", "scram-sha-256", ""] {
        let body = [mechanism.as_bytes(), b"\0\0\0\0\x0dn,,n=,r=abcde"].concat();
        let error = try_body(&body).unwrap_err();
        assert_eq!(error, AuthError::MechanismNotOffered, "{mechanism}");
        assert_eq!(error.client().sqlstate.0, "08P01");
    }
}

#[test]
fn a_client_may_choose_the_mechanism_first_and_speak_later() {
    let (mut server, _) = ServerExchange::begin(AuthMethod::ScramSha256, "joe", Some(&plain("pencil")), &SEED, None);
    let Ok(ServerStep::Send(body)) = server.step(b"SCRAM-SHA-256\0\xff\xff\xff\xff") else { panic!("refused") };
    assert_eq!(body, [0, 0, 0, 11], "an empty challenge");
    let Ok(ServerStep::Send(body)) = server.step(b"n,,n=,r=abcde") else { panic!("refused") };
    assert!(body.starts_with(b"\0\0\0\x0br=abcde"));
}

#[test]
fn password_messages_that_are_wrong() {
    for method in [AuthMethod::Password, AuthMethod::Md5] {
        let try_body = |body: &[u8]| {
            let (mut server, _) = ServerExchange::begin(method, "joe", Some(&plain("pencil")), &SEED, None);
            server.step(body).err()
        };
        assert_eq!(try_body(b"\0"), Some(AuthError::EmptyPassword));
        for body in [&b""[..], b"pencil", b"pencil\0x", b"pencil\0\0", b"\0pencil\0"] {
            assert_eq!(try_body(body), Some(AuthError::Malformed(Flaw::LengthMismatch)), "{body:?}");
        }
        assert_eq!(try_body(b"other\0"), Some(rejected(Rejection::WrongPassword)));
    }
}

#[test]
fn an_answer_can_be_held_against_a_newer_secret() {
    let attempt = |method, stored: Option<&StoredSecret>, newer: &StoredSecret| {
        let (mut server, step) = ServerExchange::begin(method, "joe", stored, &SEED, None);
        let ServerStep::Send(body) = step else { panic!("{step:?}") };
        let Ok(ClientStep::Send(answer)) = ClientExchange::new("joe", &password("new")).on_auth(&body) else {
            panic!("nothing to say")
        };
        assert!(matches!(server.step(&answer), Err(AuthError::Rejected { .. })));
        let outcome = server.recheck(newer);
        assert!(server.recheck(newer).is_err(), "once only");
        outcome.is_ok()
    };
    for newer in [plain("new"), md5("new"), verifier("new")] {
        assert!(attempt(AuthMethod::Password, Some(&plain("old")), &newer));
        assert!(attempt(AuthMethod::Password, None, &newer), "the user was created just now");
    }
    assert!(!attempt(AuthMethod::Password, Some(&plain("old")), &plain("other")));
    assert!(attempt(AuthMethod::Md5, Some(&md5("old")), &md5("new")));
    assert!(!attempt(AuthMethod::Md5, Some(&md5("old")), &md5("other")));
    assert!(!attempt(AuthMethod::Md5, Some(&md5("old")), &verifier("new")));

    let (mut server, last) = up_to_final(Some(&verifier("old")));
    assert!(server.step(&last).is_err());
    assert!(server.recheck(&verifier("pencil")).is_err(), "a SCRAM proof is for one salt");
    let (mut server, _) = ServerExchange::begin(AuthMethod::Password, "joe", Some(&plain("pencil")), &SEED, None);
    assert!(server.recheck(&plain("pencil")).is_err(), "nothing was answered yet");
}

#[test]
fn no_cut_or_changed_final_message_gets_in() {
    let length = up_to_final(Some(&verifier("pencil"))).1.len();
    for at in 0..length {
        let (mut server, last) = up_to_final(Some(&verifier("pencil")));
        assert!(server.step(&last[..at]).is_err(), "cut at {at}");
        let (mut server, mut last) = up_to_final(Some(&verifier("pencil")));
        last[at] ^= 1;
        assert!(server.step(&last).is_err(), "changed at {at}");
    }
}

proptest! {
    /// Whatever a client without the password sends, in any number of messages: no panic, no way in.
    #[test]
    fn noise_from_a_client(method in 1usize..4, bodies in prop::collection::vec(noise(), 1..4)) {
        for stored in [None, Some(plain("a long password")), Some(md5("a long password")), Some(verifier("a long password"))] {
            let (mut server, _) = ServerExchange::begin(METHODS[method], "joe", stored.as_ref(), &SEED, None);
            for body in &bodies {
                let step = server.step(body);
                prop_assert!(matches!(step, Ok(ServerStep::Send(_)) | Err(_)), "{step:?}");
            }
        }
    }

    /// Whatever a node sends: no panic; AuthenticationOk only for its code.
    #[test]
    fn noise_from_a_node(bodies in prop::collection::vec((prop::sample::select(vec![0u32, 3, 5, 10, 11, 12]), noise()), 1..5)) {
        let mut client = ClientExchange::new("joe", &password("pencil"));
        for (code, noise) in bodies {
            let body = [&code.to_be_bytes()[..], &noise].concat();
            if client.on_auth(&body) == Ok(ClientStep::Ok) {
                prop_assert_eq!(code, 0);
            }
        }
    }
}

/// Bytes, and bytes that nearly are messages.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let near = prop::sample::select(vec![
        &b"SCRAM-SHA-256\0\0\0\0\x0dn,,n=,r=abcde"[..],
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\0",
        b"n,,n=,r=abcde",
        b"r=abc,s=c2FsdA==,i=1",
        b"c=biws,r=abcde,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        b"v=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        b"md5c59ec932d911ffdf487595b5a2adf973\0",
        b"secret\0",
    ]);
    let broken = (near, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(message, at, byte)| {
        let mut message = message.to_vec();
        let at = at.index(message.len() + 1);
        match byte % 4 {
            0 => message.truncate(at),
            1 => message.insert(at, byte),
            2 if at < message.len() => message[at] ^= byte,
            _ => {}
        }
        message
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..80), broken]
}

/// A login of ours to a server of ours, each with what it knows of the channel: the mechanism chosen, if it succeeds.
fn over(channel: NodeChannel, end_point: Option<Arc<[u8]>>) -> Result<String, AuthError> {
    let stored = plain("pencil");
    let (mut server, step) = ServerExchange::begin(AuthMethod::ScramSha256, "joe", Some(&stored), &SEED, end_point);
    let mut client = ClientExchange::new("joe", &password("pencil")).over(channel);
    let ServerStep::Send(offer) = step else { panic!("{step:?}") };
    let ClientStep::Send(initial) = client.on_auth(&offer)? else { panic!("no initial response") };
    let mechanism = initial.split(|byte| *byte == 0).next().unwrap_or_default();
    let mechanism = String::from_utf8_lossy(mechanism).into_owned();
    let ServerStep::Send(first) = server.step(&initial)? else { panic!("no server-first") };
    let ClientStep::Send(last) = client.on_auth(&first)? else { panic!("no client-final") };
    let ServerStep::SendAndDone(last, _) = server.step(&last)? else { panic!("no server-final") };
    assert_eq!(client.on_auth(&last)?, ClientStep::Continue);
    Ok(mechanism)
}

#[test]
fn we_bind_to_a_node_s_channel_where_both_can() {
    let hash: Arc<[u8]> = Arc::from([7; 32]);
    let other: Arc<[u8]> = Arc::from([8; 32]);
    let plus = Ok("SCRAM-SHA-256-PLUS".to_owned());
    let plain = Ok("SCRAM-SHA-256".to_owned());
    let refused = |why| Err(AuthError::Node { user: "joe".into(), why });
    let preferred = |hash: &Arc<[u8]>| NodeChannel::Preferred(Arc::clone(hash));
    let required = |hash: &Arc<[u8]>| NodeChannel::Required(Some(Arc::clone(hash)));
    assert_eq!(over(preferred(&hash), Some(Arc::clone(&hash))), plus);
    assert_eq!(over(required(&hash), Some(Arc::clone(&hash))), plus);
    assert_eq!(over(preferred(&hash), None), plain);
    assert_eq!(over(NodeChannel::None, Some(Arc::clone(&hash))), plain);
    assert_eq!(over(required(&hash), None), refused(NodeRefusal::NoChannelBinding));
    assert_eq!(over(NodeChannel::Required(None), Some(Arc::clone(&hash))), refused(NodeRefusal::NoChannelBinding));
    // Somebody in between with a certificate of its own.
    assert_eq!(over(preferred(&other), Some(Arc::clone(&hash))), Err(AuthError::ChannelBindingFailed));
}

#[test]
fn where_binding_is_required_nothing_else_is_answered() {
    for body in [&b"\0\0\0\0"[..], b"\0\0\0\x03", b"\0\0\0\x05abcd", b"\0\0\0\nSCRAM-SHA-256\0\0"] {
        let mut client = ClientExchange::new("joe", &password("pencil")).over(NodeChannel::Required(None));
        let refused = client.on_auth(body);
        assert_eq!(
            refused,
            Err(AuthError::Node { user: "joe".into(), why: NodeRefusal::NoChannelBinding }),
            "{body:?}"
        );
    }
}

#[test]
fn a_proof_that_was_refused_is_not_shown_again() {
    for body in [&b"\0\0\0\x03"[..], b"\0\0\0\x05abcd", b"\0\0\0\nSCRAM-SHA-256\0\0"] {
        let refused = ClientExchange::new("joe", &NodeCredential::Outdated).on_auth(body);
        assert_eq!(refused, Err(AuthError::Node { user: "joe".into(), why: NodeRefusal::KeysDoNotFit }), "{body:?}");
    }
    let trusted = ClientExchange::new("joe", &NodeCredential::Outdated).on_auth(&[0; 4]);
    assert_eq!(trusted, Ok(ClientStep::Ok), "a node that trusts asks for nothing");
}
