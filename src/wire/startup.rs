//! The first packet of a connection (PostgreSQL docs, "Message Formats": StartupMessage,
//! SSLRequest, GSSENCRequest, CancelRequest).
//!
//! Invariants: nothing is believed beyond [`STARTUP_LEN_MAX`]; parameter names and values are kept
//! as bytes that are valid UTF-8. Absent on purpose: the answer (the client module's matter).

use super::frame::{FrameError, Reader};

/// Longest startup packet, bytes (PostgreSQL: `MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_LEN_MAX: usize = 10_000;
/// Longest secret in a CancelRequest, bytes (protocol 3.2).
pub const CANCEL_KEY_LEN_MAX: usize = 256;
/// Protocol 3.0.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// Protocol 3.2, the newest.
pub const PROTOCOL_3_2: u32 = 3 << 16 | 2;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupPacket {
    /// May we speak TLS?
    SslRequest,
    /// May we speak GSS encryption?
    GssEncRequest,
    /// Cancel the statement of the session with this key.
    Cancel {
        /// Process id half of the key.
        pid: i32,
        /// Secret half of the key, 4 to 256 bytes.
        secret: Vec<u8>,
    },
    /// Begin a session.
    Session {
        /// Requested protocol version.
        version: u32,
        /// Parameters in order, without `_pq_.` options.
        parameters: Vec<(String, String)>,
        /// Names of `_pq_.` protocol options.
        options: Vec<String>,
    },
}

/// Why the first packet is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length word is out of range.
    #[error("invalid length of startup packet")]
    BadLength,
    /// The packet does not hold what it should.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    BadLayout,
    /// A major version we do not speak.
    #[error("unsupported frontend protocol {}.{}: server supports 3.0 to 3.2", .0 >> 16, .0 & 0xffff)]
    UnsupportedProtocol(u32),
    /// A cancel request whose key cannot be one.
    #[error("invalid length of cancel key")]
    BadCancel,
    /// A name or value is not UTF-8.
    #[error("startup parameter is not valid UTF-8")]
    BadEncoding,
}

impl From<FrameError> for StartupError {
    fn from(_: FrameError) -> Self {
        Self::BadLayout
    }
}

/// Parses the packet after its length word.
///
/// # Errors
/// [`StartupError`], whatever the bytes.
pub fn parse_startup(body: &[u8]) -> Result<StartupPacket, StartupError> {
    let mut reader = Reader::new(body);
    let code = reader.int32()? as u32;
    match code {
        SSL_REQUEST if reader.rest().is_empty() => Ok(StartupPacket::SslRequest),
        GSSENC_REQUEST if reader.rest().is_empty() => Ok(StartupPacket::GssEncRequest),
        CANCEL_REQUEST => {
            let pid = reader.int32()?;
            let secret = reader.rest();
            if !(4..=CANCEL_KEY_LEN_MAX).contains(&secret.len()) {
                return Err(StartupError::BadCancel);
            }
            Ok(StartupPacket::Cancel { pid, secret: secret.to_vec() })
        }
        version if version >> 16 == 3 => parse_session(version, reader),
        other => Err(StartupError::UnsupportedProtocol(other)),
    }
}

fn parse_session(version: u32, mut reader: Reader<'_>) -> Result<StartupPacket, StartupError> {
    let mut parameters = Vec::new();
    let mut options = Vec::new();
    loop {
        let name = text(reader.cstr()?)?;
        if name.is_empty() {
            break;
        }
        let value = text(reader.cstr()?)?;
        match name.strip_prefix("_pq_.") {
            Some(_) => options.push(name),
            None => parameters.push((name, value)),
        }
    }
    reader.finish()?;
    Ok(StartupPacket::Session { version, parameters, options })
}

fn text(bytes: &[u8]) -> Result<String, StartupError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| StartupError::BadEncoding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        [&code.to_be_bytes()[..], rest].concat()
    }

    #[test]
    fn a_session_keeps_its_parameters_in_order() {
        let got = parse_startup(&packet(PROTOCOL_3_2, b"user\0ann\0_pq_.x\0y\0database\0db\0\0")).unwrap();
        let want = StartupPacket::Session {
            version: PROTOCOL_3_2,
            parameters: vec![("user".into(), "ann".into()), ("database".into(), "db".into())],
            options: vec!["_pq_.x".into()],
        };
        assert_eq!(got, want);
    }

    #[test]
    fn malformed_packets_are_refused() {
        assert_eq!(parse_startup(b"GET"), Err(StartupError::BadLayout));
        assert_eq!(parse_startup(&packet(2 << 16, b"")), Err(StartupError::UnsupportedProtocol(2 << 16)));
        assert_eq!(parse_startup(&packet(PROTOCOL_3_0, b"user\0ann\0")), Err(StartupError::BadLayout));
        assert_eq!(parse_startup(&packet(PROTOCOL_3_0, b"user\0ann\0\0x")), Err(StartupError::BadLayout));
        assert_eq!(parse_startup(&packet(PROTOCOL_3_0, b"user\0\xff\0\0")), Err(StartupError::BadEncoding));
        assert_eq!(parse_startup(&packet(CANCEL_REQUEST, b"\0\0\0\x01abc")), Err(StartupError::BadCancel));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_startup(&bytes);
            let _ = parse_startup(&packet(PROTOCOL_3_0, &bytes));
        }
    }
}
