//! Clients behind a load balancer: the PROXY header that comes before everything else.
//!
//! From a trusted network the header is required: whether one is there is not guessed, or a client
//! behind the balancer could send its own. Invariants: from any other network none is read; bounded
//! before it is read. Absent on purpose: the header's format (`net`).

use super::EnterError;
use crate::net::{Peer, Stream, parse_proxy_header};

/// Takes the header off the connection's beginning, and notes whom the balancer speaks for.
///
/// # Errors
/// [`EnterError::Balancer`] for anything that is no header.
pub async fn take_proxy_header(stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), EnterError> {
    loop {
        match parse_proxy_header(input)? {
            Some(header) => {
                input.drain(..header.len);
                if let Some(source) = header.source {
                    stream.set_peer(Peer::Tcp(source));
                }
                return Ok(());
            }
            None => stream.read_more(input).await?,
        }
    }
}
