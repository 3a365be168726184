//! Writes whole messages, most of them through `pgwire`'s types.
//!
//! Invariant: what is appended is always one complete message. Absent on purpose: flushing.

use super::TxStatus;
use super::frontend;
use crate::error::ClientError;
use bytes::{Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};
use pgwire::messages::startup::{BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey};

/// Appends one message whose body `fill` writes.
pub fn message(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    // Our own messages are far below 4 GiB; a longer one would be refused by the other side.
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn append<M: Message>(out: &mut Vec<u8>, message: &M) {
    let mut buffer = BytesMut::new();
    // Encoding into memory has no way to fail; a failure would append nothing, which the peer notices.
    if message.encode(&mut buffer).is_ok() {
        out.extend_from_slice(&buffer);
    }
}

/// ErrorResponse.
pub fn error(out: &mut Vec<u8>, error: &ClientError) {
    let mut fields = vec![
        (b'S', error.severity.word().to_owned()),
        (b'V', error.severity.word().to_owned()),
        (b'C', error.sqlstate.0.to_owned()),
        (b'M', clean(&error.message)),
    ];
    fields.extend(error.detail.as_ref().map(|text| (b'D', clean(text))));
    fields.extend(error.hint.as_ref().map(|text| (b'H', clean(text))));
    fields.extend(error.routine.map(|name| (b'R', name.to_owned())));
    append(out, &ErrorResponse::new(fields));
}

/// NoticeResponse of the severity NOTICE.
pub fn notice(out: &mut Vec<u8>, message: &str) {
    let field = |code: u8, text: &str| (code, clean(text));
    let fields = vec![field(b'S', "NOTICE"), field(b'V', "NOTICE"), field(b'C', "00000"), field(b'M', message)];
    append(out, &NoticeResponse::new(fields));
}

/// A NUL inside a field would end it early and garble what follows.
fn clean(text: &str) -> String {
    text.replace('\0', " ")
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    append(out, &ParameterStatus::new(name.to_owned(), value.to_owned()));
}

/// BackendKeyData with a secret of 4 to 256 bytes.
pub fn key_data(out: &mut Vec<u8>, pid: i32, secret: &[u8]) {
    append(out, &BackendKeyData::new(pid, SecretKey::Bytes(Bytes::copy_from_slice(secret))));
}

/// NegotiateProtocolVersion: the newest version we speak, and the options we do not know.
pub fn negotiate(out: &mut Vec<u8>, newest: u32, unknown: &[String]) {
    append(out, &NegotiateProtocolVersion::new(newest as i32, unknown.to_vec()));
}

/// Authentication with a body made by an exchange (starts with the request code).
pub fn authentication(out: &mut Vec<u8>, body: &[u8]) {
    message(out, super::backend::AUTHENTICATION, |out| out.extend_from_slice(body));
}

/// ReadyForQuery.
pub fn ready(out: &mut Vec<u8>, status: TxStatus) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status.byte()]);
}

/// A message without a body.
pub fn bare(out: &mut Vec<u8>, tag: u8) {
    out.extend_from_slice(&[tag, 0, 0, 0, 4]);
}

/// CommandComplete with this tag.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, super::backend::COMMAND_COMPLETE, |out| {
        out.extend_from_slice(tag.as_bytes());
        out.push(0);
    });
}

/// Query.
pub fn query(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    message(out, frontend::QUERY, |out| {
        out.extend_from_slice(text.as_ref());
        out.push(0);
    });
}

/// PasswordMessage or a SASL response with this body.
pub fn password(out: &mut Vec<u8>, body: &[u8]) {
    message(out, frontend::PASSWORD, |out| out.extend_from_slice(body));
}

/// Close of a prepared statement.
pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    message(out, frontend::CLOSE, |out| {
        out.push(b'S');
        out.extend_from_slice(name);
        out.push(0);
    });
}

/// StartupMessage with these parameters.
pub fn startup(out: &mut Vec<u8>, version: u32, parameters: &[(&str, &str)]) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&version.to_be_bytes());
    for text in parameters.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    }
    out.push(0);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// SSLRequest.
pub fn ssl_request(out: &mut Vec<u8>) {
    out.extend_from_slice(&8_u32.to_be_bytes());
    out.extend_from_slice(&80_877_103_u32.to_be_bytes());
}

/// CancelRequest for this key.
pub fn cancel_request(out: &mut Vec<u8>, pid: i32, secret: &[u8]) {
    let length = u32::try_from(12 + secret.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&80_877_102_u32.to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(secret);
}

#[cfg(test)]
mod tests {
    use super::super::{HEADER_LEN, LENGTH_MAX, StartupPacket, backend, header, parse_startup};
    use super::*;
    use crate::error::SqlState;

    #[test]
    fn errors_read_back_as_they_were_written() {
        let mut out = Vec::new();
        error(&mut out, &ClientError::fatal(SqlState::INVALID_PASSWORD, "no \0 entry").hint("Try."));
        let head = header(&out, LENGTH_MAX).unwrap().unwrap();
        assert_eq!(head.message_len(), out.len());
        let view = backend::error(&out[HEADER_LEN..]).unwrap();
        assert_eq!((view.severity, view.sqlstate, view.message), (&b"FATAL"[..], &b"28P01"[..], &b"no   entry"[..]));
    }

    #[test]
    fn requests_read_back_as_they_were_written() {
        let mut out = Vec::new();
        cancel_request(&mut out, 7, b"secret");
        assert_eq!(parse_startup(&out[4..]), Ok(StartupPacket::Cancel { pid: 7, secret: b"secret".to_vec() }));
        assert_eq!(u32::from_be_bytes(out[..4].try_into().unwrap()) as usize, out.len());
        out.clear();
        ssl_request(&mut out);
        assert_eq!((out.len(), parse_startup(&out[4..])), (8, Ok(StartupPacket::SslRequest)));
        out.clear();
        startup(&mut out, super::super::PROTOCOL_3_0, &[("user", "ann")]);
        assert!(matches!(parse_startup(&out[4..]), Ok(StartupPacket::Session { .. })));
        out.clear();
        key_data(&mut out, -3, &[1; 32]);
        assert_eq!(backend::key_data(&out[HEADER_LEN..]), Ok((-3, &[1; 32][..])));
        out.clear();
        negotiate(&mut out, super::super::PROTOCOL_3_2, &["_pq_.x".into()]);
        assert_eq!(out[0], b'v');
        assert_eq!(&out[HEADER_LEN..HEADER_LEN + 8], &[0, 3, 0, 2, 0, 0, 0, 1]);
    }
}
