//! Both sides of a login against somebody who does not know the password.
//!
//! Promises: no client gets in by any messages; once a node has asked for SCRAM, it is believed only after it
//! has proved that it knows the password too.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::auth::{
    ClientExchange, ClientStep, NodeChannel, NodeCredential, NodePassword, ServerExchange, ServerStep, StoredSecret,
};
use pgregent::config::{AuthMethod, Secret};
use std::sync::{Arc, OnceLock};

const PASSWORD: &str = "correct horse battery staple 5174920";
const SASL: u32 = 10;

fn stored() -> &'static [Option<StoredSecret>; 3] {
    static STORED: OnceLock<[Option<StoredSecret>; 3]> = OnceLock::new();
    STORED.get_or_init(|| {
        let verifier = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$\
            MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=:MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=";
        let parse = |text| Some(StoredSecret::parse(text).expect("a secret"));
        [None, parse(PASSWORD), parse(verifier)]
    })
}

fn client_side(method: AuthMethod, secret: Option<&StoredSecret>, bind: bool, bodies: &[Vec<u8>]) {
    let end_point = bind.then(|| Arc::from([9; 32]));
    let (mut exchange, _) = ServerExchange::begin(method, "joe", secret, &[7; 32], end_point);
    for body in bodies {
        match exchange.step(body) {
            Ok(ServerStep::Send(_)) | Err(_) => {}
            Ok(ServerStep::Done(_) | ServerStep::SendAndDone(..)) => panic!("let in without the password"),
        }
    }
}

fn node_side(channel: NodeChannel, bodies: &[Vec<u8>]) {
    let demanding = matches!(channel, NodeChannel::Required(_));
    let mut exchange = ClientExchange::new("joe", &NodeCredential::Password(NodePassword::new(Secret::new(PASSWORD)))).over(channel);
    let mut asked = false;
    for body in bodies {
        let code = body.first_chunk().map(|code| u32::from_be_bytes(*code));
        let step = exchange.on_auth(body);
        assert!(!asked || !matches!(step, Ok(ClientStep::Ok)), "a node was believed without proof");
        assert!(!demanding || asked || !matches!(step, Ok(ClientStep::Ok)), "let in without the exchange demanded");
        asked |= code == Some(SASL) && step.is_ok();
        if step.is_err() {
            return;
        }
    }
}

fuzz_target!(|input: (u8, u8, Vec<Vec<u8>>)| {
    let (choice, channel, bodies) = input;
    let method = [AuthMethod::Password, AuthMethod::Md5, AuthMethod::ScramSha256][usize::from(choice) % 3];
    client_side(method, stored()[usize::from(choice / 3) % 3].as_ref(), channel & 1 == 1, &bodies);
    let channel = match channel / 2 % 4 {
        0 => NodeChannel::None,
        1 => NodeChannel::Preferred(Arc::from([9; 32])),
        2 => NodeChannel::Required(Some(Arc::from([9; 32]))),
        _ => NodeChannel::Required(None),
    };
    node_side(channel, &bodies);
});
