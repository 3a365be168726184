//! Login: pumps an authentication exchange over the socket.
//!
//! Invariants: messages are bounded before they are read; the answers of a failed login do not tell
//! an unknown user from a wrong password. Absent on purpose: the exchanges themselves (`auth`).

use super::{EnterError, Hello};
use crate::auth::{NodeCredential, RESPONSE_BYTES_MAX, SecretSource, ServerExchange, ServerStep, StoredSecret};
use crate::clock::Clock;
use crate::config::AuthMethod;
use crate::net::Stream;
use crate::wire::{HEADER_LEN, PROTOCOL_3_2, encode, frontend, header};
use std::sync::Arc;

/// What logins need.
#[derive(Debug)]
pub struct AuthDeps {
    /// How clients prove who they are.
    pub method: AuthMethod,
    /// What is known of users.
    pub secrets: SecretSource,
    /// Random secret of this process, for users that do not exist.
    pub mock_seed: [u8; 32],
    /// Time.
    pub clock: Clock,
}

/// Lets the client prove who it is, up to and including AuthenticationOk; answers with what it
/// takes to log in to nodes as this user.
///
/// # Errors
/// [`EnterError`]; the caller tells the client and closes.
pub async fn login(
    stream: &mut Stream,
    input: &mut Vec<u8>,
    hello: &Hello,
    deps: &AuthDeps,
) -> Result<NodeCredential, EnterError> {
    if let Some(unknown) = &hello.negotiate {
        let mut out = Vec::new();
        encode::negotiate(&mut out, PROTOCOL_3_2, unknown);
        stream.write_all(&out).await?;
    }
    let stored = deps.secrets.lookup(&hello.user, deps.clock.now()).await?;
    let (mut exchange, mut step) = ServerExchange::begin(deps.method, &hello.user, stored.as_deref(), &deps.mock_seed);
    loop {
        let mut out = Vec::new();
        let proof = match step {
            ServerStep::Send(body) => {
                encode::authentication(&mut out, &body);
                None
            }
            ServerStep::SendAndDone(body, proof) => {
                encode::authentication(&mut out, &body);
                Some(proof)
            }
            ServerStep::Done(proof) => Some(proof),
        };
        if let Some(proof) = proof {
            encode::authentication(&mut out, &0u32.to_be_bytes());
            stream.write_all(&out).await?;
            return Ok(NodeCredential::of(&proof, stored.as_deref()));
        }
        stream.write_all(&out).await?;
        let body = read_password(stream, input).await?;
        step = answer(&mut exchange, &body, hello, stored.as_ref(), deps).await?;
    }
}

async fn answer(
    exchange: &mut ServerExchange,
    body: &[u8],
    hello: &Hello,
    stored: Option<&Arc<StoredSecret>>,
    deps: &AuthDeps,
) -> Result<ServerStep, EnterError> {
    let error = match exchange.step(body) {
        Ok(step) => return Ok(step),
        Err(error) => error,
    };
    // The secret may have changed since it was looked up.
    match deps.secrets.refresh(&hello.user, stored, deps.clock.now()).await? {
        Some(newer) => Ok(exchange.recheck(&newer)?),
        None => Err(error.into()),
    }
}

async fn read_password(stream: &mut Stream, input: &mut Vec<u8>) -> Result<Vec<u8>, EnterError> {
    loop {
        if let Some(&tag) = input.first()
            && tag != frontend::PASSWORD
        {
            return Err(EnterError::OutOfOrder(char::from(tag)));
        }
        if let Some(head) = header(input, RESPONSE_BYTES_MAX)?
            && input.len() >= head.message_len()
        {
            let body = input[HEADER_LEN..head.message_len()].to_vec();
            input.drain(..head.message_len());
            return Ok(body);
        }
        stream.read_more(input).await?;
    }
}
