//! Views of the backend messages that must be understood.
//!
//! Invariant: a view borrows the body and checks every field it names. Absent on purpose: rows.

use super::TxStatus;
use super::frame::{FrameError, Reader};
use std::hash::{BuildHasher, Hash, Hasher};

/// Authentication
pub const AUTHENTICATION: u8 = b'R';
/// BackendKeyData
pub const KEY_DATA: u8 = b'K';
/// BindComplete
pub const BIND_COMPLETE: u8 = b'2';
/// CloseComplete
pub const CLOSE_COMPLETE: u8 = b'3';
/// CommandComplete
pub const COMMAND_COMPLETE: u8 = b'C';
/// CopyInResponse
pub const COPY_IN: u8 = b'G';
/// CopyOutResponse
pub const COPY_OUT: u8 = b'H';
/// CopyBothResponse
pub const COPY_BOTH: u8 = b'W';
/// DataRow
pub const DATA_ROW: u8 = b'D';
/// EmptyQueryResponse
pub const EMPTY_QUERY: u8 = b'I';
/// ErrorResponse
pub const ERROR: u8 = b'E';
/// FunctionCallResponse
pub const FUNCTION_RESULT: u8 = b'V';
/// NegotiateProtocolVersion
pub const NEGOTIATE: u8 = b'v';
/// NoData
pub const NO_DATA: u8 = b'n';
/// NoticeResponse
pub const NOTICE: u8 = b'N';
/// NotificationResponse
pub const NOTIFICATION: u8 = b'A';
/// ParameterDescription
pub const PARAMETER_DESCRIPTION: u8 = b't';
/// ParameterStatus
pub const PARAMETER_STATUS: u8 = b'S';
/// ParseComplete
pub const PARSE_COMPLETE: u8 = b'1';
/// PortalSuspended
pub const PORTAL_SUSPENDED: u8 = b's';
/// ReadyForQuery
pub const READY: u8 = b'Z';
/// RowDescription
pub const ROW_DESCRIPTION: u8 = b'T';

/// The fields of an ErrorResponse that decide something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorView<'a> {
    /// Field V (or S): ERROR, FATAL, PANIC.
    pub severity: &'a [u8],
    /// Field C.
    pub sqlstate: &'a [u8],
    /// Field M.
    pub message: &'a [u8],
    /// Field R: the server's function that says so. Unlike the message it is never translated.
    pub routine: &'a [u8],
}

/// Reads an ErrorResponse (or NoticeResponse) body.
///
/// # Errors
/// [`FrameError`] when it is malformed.
pub fn error(body: &[u8]) -> Result<ErrorView<'_>, FrameError> {
    let mut reader = Reader::new(body);
    let mut view = ErrorView { severity: b"", sqlstate: b"", message: b"", routine: b"" };
    loop {
        match reader.byte()? {
            0 => return Ok(view),
            b'S' if view.severity.is_empty() => view.severity = reader.cstr()?,
            b'V' => view.severity = reader.cstr()?,
            b'C' => view.sqlstate = reader.cstr()?,
            b'M' => view.message = reader.cstr()?,
            b'R' => view.routine = reader.cstr()?,
            _ => {
                reader.cstr()?;
            }
        }
    }
}

/// What rows look like, as one number for names, types and type modifiers, by a whole RowDescription (or NoData)
/// message; `None` when it is malformed or not whole. Where the columns come from does not count, as in
/// PostgreSQL's own comparison (`equalTupleDescs`).
#[must_use]
pub fn row_shape(message: &[u8]) -> Option<u64> {
    let head = super::header(message, super::LENGTH_MAX).ok()??;
    let mut reader = Reader::new(message.get(super::HEADER_LEN..head.message_len())?);
    let mut hasher = foldhash::fast::FixedState::with_seed(0x7072_6f77).build_hasher();
    if head.tag == ROW_DESCRIPTION {
        let columns = reader.int16().ok()?;
        columns.hash(&mut hasher);
        for _ in 0..columns {
            reader.cstr().ok()?.hash(&mut hasher);
            reader.bytes(6).ok()?;
            let oid = reader.int32().ok()?;
            reader.bytes(2).ok()?;
            let modifier = reader.int32().ok()?;
            reader.bytes(2).ok()?;
            (oid, modifier).hash(&mut hasher);
        }
        reader.finish().ok()?;
    }
    Some(hasher.finish())
}

/// Reads a ReadyForQuery body.
///
/// # Errors
/// [`FrameError`] when it is malformed.
pub fn ready(body: &[u8]) -> Result<TxStatus, FrameError> {
    match body {
        [byte] => TxStatus::from_byte(*byte).ok_or(FrameError::Short),
        _ => Err(FrameError::Short),
    }
}

/// Reads a ParameterStatus body: name and value.
///
/// # Errors
/// [`FrameError`] when it is malformed.
pub fn parameter(body: &[u8]) -> Result<(&[u8], &[u8]), FrameError> {
    let mut reader = Reader::new(body);
    let pair = (reader.cstr()?, reader.cstr()?);
    reader.finish()?;
    Ok(pair)
}

/// Reads a BackendKeyData body: process id and secret (4 to 256 bytes).
///
/// # Errors
/// [`FrameError`] when it is malformed.
pub fn key_data(body: &[u8]) -> Result<(i32, &[u8]), FrameError> {
    let mut reader = Reader::new(body);
    let pid = reader.int32()?;
    let secret = reader.rest();
    if (4..=super::CANCEL_KEY_LEN_MAX).contains(&secret.len()) { Ok((pid, secret)) } else { Err(FrameError::Short) }
}

/// Is this byte a message type that a node may send in a session?
#[must_use]
pub fn is_known(tag: u8) -> bool {
    matches!(
        tag,
        BIND_COMPLETE
            | CLOSE_COMPLETE
            | COMMAND_COMPLETE
            | COPY_IN
            | COPY_OUT
            | COPY_BOTH
            | DATA_ROW
            | EMPTY_QUERY
            | ERROR
            | FUNCTION_RESULT
            | NO_DATA
            | NOTICE
            | NOTIFICATION
            | PARAMETER_DESCRIPTION
            | PARAMETER_STATUS
            | PARSE_COMPLETE
            | PORTAL_SUSPENDED
            | READY
            | ROW_DESCRIPTION
            | super::frontend::COPY_DATA
            | super::frontend::COPY_DONE
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_error_gives_its_code() {
        let view = error(b"SFATAL\0VFATAL\0C57P01\0Mgone\0\0").unwrap();
        assert_eq!((view.severity, view.sqlstate, view.message), (&b"FATAL"[..], &b"57P01"[..], &b"gone"[..]));
        assert_eq!(error(b"SFATAL\0"), Err(FrameError::Short));
    }

    #[test]
    fn ready_takes_three_bytes_only() {
        assert_eq!(ready(b"I"), Ok(TxStatus::Idle));
        assert_eq!(ready(b"x"), Err(FrameError::Short));
        assert_eq!(ready(b"II"), Err(FrameError::Short));
    }

    proptest! {
        #[test]
        fn any_body_is_answered(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (error(&body), ready(&body), parameter(&body), key_data(&body));
        }
    }
}
