//! Views of the frontend messages that must be understood.
//!
//! Invariant: a view borrows the body and checks every field it names. Absent on purpose: COPY
//! data, parameter values, and everything else that is only passed on.

use super::frame::{FrameError, Reader};

/// Bind
pub const BIND: u8 = b'B';
/// Close
pub const CLOSE: u8 = b'C';
/// CopyData (also from the node)
pub const COPY_DATA: u8 = b'd';
/// CopyDone (also from the node)
pub const COPY_DONE: u8 = b'c';
/// CopyFail
pub const COPY_FAIL: u8 = b'f';
/// Describe
pub const DESCRIBE: u8 = b'D';
/// Execute
pub const EXECUTE: u8 = b'E';
/// Flush
pub const FLUSH: u8 = b'H';
/// FunctionCall
pub const FUNCTION_CALL: u8 = b'F';
/// Parse
pub const PARSE: u8 = b'P';
/// PasswordMessage, SASLInitialResponse, SASLResponse
pub const PASSWORD: u8 = b'p';
/// Query
pub const QUERY: u8 = b'Q';
/// Sync
pub const SYNC: u8 = b'S';
/// Terminate
pub const TERMINATE: u8 = b'X';

/// Does a message of this type belong to a batch that only Sync (or another kind of request) ends?
#[must_use]
pub fn is_extended(tag: u8) -> bool {
    matches!(tag, PARSE | BIND | DESCRIBE | EXECUTE | CLOSE)
}

/// What a Describe or Close names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// A prepared statement.
    Statement(&'a [u8]),
    /// A portal.
    Portal(&'a [u8]),
}

/// Query: the text without its NUL.
///
/// # Errors
/// [`FrameError`] when the text is not terminated, or something follows.
pub fn query(body: &[u8]) -> Result<&[u8], FrameError> {
    let mut reader = Reader::new(body);
    let text = reader.cstr()?;
    reader.finish()?;
    Ok(text)
}

/// Parse: name, text, and what follows (parameter types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseView<'a> {
    /// Name, empty for the unnamed statement.
    pub name: &'a [u8],
    /// Statement text without its NUL.
    pub text: &'a [u8],
    /// Everything after the name: text, NUL, types. Two statements with equal bytes here are equal.
    pub content: &'a [u8],
}

/// Reads a Parse body.
///
/// # Errors
/// [`FrameError`] when it is malformed.
pub fn parse(body: &[u8]) -> Result<ParseView<'_>, FrameError> {
    let mut reader = Reader::new(body);
    let name = reader.cstr()?;
    let content = reader.rest();
    let text = reader.cstr()?;
    let types = reader.count16()?;
    reader.bytes(types * 4)?;
    reader.finish()?;
    Ok(ParseView { name, text, content })
}

/// Bind: portal, statement, and the length of these two with their NULs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindView<'a> {
    /// Portal name.
    pub portal: &'a [u8],
    /// Statement name.
    pub statement: &'a [u8],
    /// Bytes of both names and their NULs; formats and values follow.
    pub names_len: usize,
}

/// Reads the beginning of a Bind body; the rest may not be there yet.
///
/// # Errors
/// [`FrameError`] when the names are not complete.
pub fn bind(body: &[u8]) -> Result<BindView<'_>, FrameError> {
    let mut reader = Reader::new(body);
    let portal = reader.cstr()?;
    let statement = reader.cstr()?;
    Ok(BindView { portal, statement, names_len: portal.len() + statement.len() + 2 })
}

/// Reads the portal name at the beginning of an Execute body.
///
/// # Errors
/// [`FrameError`] when it is not terminated.
pub fn portal(body: &[u8]) -> Result<&[u8], FrameError> {
    Reader::new(body).cstr()
}

/// Functions of large objects (`pg_proc.dat`), which leave nothing on the backend: `lo_create` and others
/// that clients call by FunctionCall.
const LARGE_OBJECT_FUNCTIONS: [u32; 14] = [715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170];
/// `lo_tell64` and `lo_truncate64`, the newest of them.
const LARGE_OBJECT_FUNCTIONS_64: [u32; 2] = [3171, 3172];

/// Does a FunctionCall body begin with the number of a function of large objects?
#[must_use]
pub fn calls_large_object(body: &[u8]) -> bool {
    body.first_chunk().is_some_and(|oid| {
        let oid = u32::from_be_bytes(*oid);
        LARGE_OBJECT_FUNCTIONS.contains(&oid) || LARGE_OBJECT_FUNCTIONS_64.contains(&oid)
    })
}

/// Reads a Describe or Close body.
///
/// # Errors
/// [`FrameError`] when it is malformed or names neither kind.
pub fn named(body: &[u8]) -> Result<Named<'_>, FrameError> {
    let mut reader = Reader::new(body);
    let kind = reader.byte()?;
    let name = reader.cstr()?;
    reader.finish()?;
    match kind {
        b'S' => Ok(Named::Statement(name)),
        b'P' => Ok(Named::Portal(name)),
        _ => Err(FrameError::Short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn views_name_what_is_there() {
        assert_eq!(query(b"select 1\0"), Ok(&b"select 1"[..]));
        assert_eq!(query(b"select 1"), Err(FrameError::Short));
        assert_eq!(query(b"select\0x\0"), Err(FrameError::Long));
        let view = parse(b"s1\0select $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!((view.name, view.text), (&b"s1"[..], &b"select $1"[..]));
        assert_eq!(parse(b"s1\0select $1\0\0\x02\0\0\0\x17"), Err(FrameError::Short));
        let many = [&b"s1\0select 1\0\xff\xff"[..], &[0; 65535 * 4]].concat();
        assert_eq!(parse(&many).map(|view| view.text), Ok(&b"select 1"[..]), "65535 parameters");
        assert_eq!(bind(b"\0s1\0\0\0").unwrap().names_len, 4);
        assert_eq!(named(b"Ss1\0"), Ok(Named::Statement(b"s1")));
        assert_eq!(named(b"Xs1\0"), Err(FrameError::Short));
        assert!(calls_large_object(&952u32.to_be_bytes()) && calls_large_object(&3171u32.to_be_bytes()));
        assert!(!calls_large_object(&2077u32.to_be_bytes()) && !calls_large_object(b"abc"));
    }

    proptest! {
        #[test]
        fn any_body_is_answered(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (query(&body), parse(&body), bind(&body), named(&body));
        }
    }
}
