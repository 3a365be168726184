//! One simple Query of our own on a backend that nobody else uses: asked, answered, done.
//!
//! For what the proxy itself wants to know or to change (greeting, reset); statements of clients go
//! through the relay. Invariants: whatever the node sends is bounded; success means that every
//! message up to ReadyForQuery (idle) was understood and nothing is left over, so that the backend is
//! as clean as before. After an error the caller discards the backend. Absent on purpose: a time limit
//! (the caller's), statements with COPY.

use super::{Backend, NodeRejection};
use crate::net::Stream;
use crate::wire::{HEADER_LEN, TxStatus, backend as tags, encode, header};
use std::io;

/// Longest message believed, bytes.
const MESSAGE_MAX: usize = 64 * 1024;
/// Messages believed before ReadyForQuery.
const MESSAGES_MAX: usize = 10_000;

/// Why a Query of our own did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueryError {
    /// The connection ended or failed.
    #[error("connection lost")]
    Lost,
    /// What arrived does not answer a Query.
    #[error("the node does not speak the protocol")]
    Garbage,
    /// The node answered with an error.
    #[error("{}: {}", .0.sqlstate, .0.message)]
    Refused(NodeRejection),
}

/// Why there is no next message.
#[derive(Debug)]
pub(super) enum ReadError {
    Socket(io::Error),
    Length,
}

/// Runs `text` and gives each DataRow's body to `on_row`; parameters that the node reports are noted.
/// Not cancel-safe: dropped before its end, the backend must be discarded.
///
/// # Errors
/// [`QueryError`]; the backend must be discarded.
pub async fn simple_query(
    backend: &mut Backend,
    text: impl AsRef<[u8]>,
    mut on_row: impl FnMut(&[u8]),
) -> Result<(), QueryError> {
    let mut out = Vec::new();
    encode::query(&mut out, text);
    backend.stream.write_all(&out).await.map_err(|_| QueryError::Lost)?;
    let mut input = Vec::with_capacity(1024);
    let mut refused = None;
    for _ in 0..MESSAGES_MAX {
        let (tag, body) = next_message(&mut backend.stream, &mut input, MESSAGE_MAX).await?;
        match tag {
            tags::PARAMETER_STATUS => {
                let (name, value) = tags::parameter(&body).map_err(|_| QueryError::Garbage)?;
                backend.parameters.note(name, value);
            }
            tags::DATA_ROW => on_row(&body),
            tags::ROW_DESCRIPTION | tags::COMMAND_COMPLETE | tags::EMPTY_QUERY | tags::NOTICE | tags::NOTIFICATION => {}
            tags::ERROR => refused = Some(NodeRejection::read(&body).ok_or(QueryError::Garbage)?),
            tags::READY => {
                let idle = matches!(tags::ready(&body), Ok(TxStatus::Idle));
                return match refused {
                    Some(rejection) => Err(QueryError::Refused(rejection)),
                    None if idle && input.is_empty() => Ok(()),
                    None => Err(QueryError::Garbage),
                };
            }
            _ => return Err(QueryError::Garbage),
        }
    }
    Err(QueryError::Garbage)
}

/// Takes the next whole message, of at most `body_len_max` bytes, off `input`; reads more as needed.
pub(super) async fn next_message(
    stream: &mut Stream,
    input: &mut Vec<u8>,
    body_len_max: usize,
) -> Result<(u8, Vec<u8>), ReadError> {
    loop {
        if let Some(head) = header(input, body_len_max).map_err(|_| ReadError::Length)?
            && input.len() >= head.message_len()
        {
            let body = input[HEADER_LEN..head.message_len()].to_vec();
            input.drain(..head.message_len());
            return Ok((head.tag, body));
        }
        stream.read_more(input).await.map_err(ReadError::Socket)?;
    }
}

impl From<ReadError> for QueryError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Socket(_) => Self::Lost,
            ReadError::Length => Self::Garbage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::NodeCredential;
    use crate::backend::{Login, Target, connect};
    use crate::clock::Clock;
    use crate::ids::{BackendId, NodeId};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Asks a node that lets everybody in, answers one Query with `answer`, and hangs up.
    async fn ask(answer: Vec<u8>) -> Result<Vec<Vec<u8>>, QueryError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let node = async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut heard = [0; 512];
            assert_ne!(tcp.read(&mut heard).await.unwrap(), 0);
            let mut hello = Vec::new();
            encode::authentication(&mut hello, &0u32.to_be_bytes());
            encode::ready(&mut hello, TxStatus::Idle);
            tcp.write_all(&hello).await.unwrap();
            assert_ne!(tcp.read(&mut heard).await.unwrap(), 0);
            tcp.write_all(&answer).await.unwrap();
        };
        let asking = async move {
            let login = Login {
                user: "u".into(),
                database: "d".into(),
                credential: NodeCredential::None,
                parameters: Vec::new(),
            };
            let target = Target::plain("127.0.0.1", port);
            let limit = Duration::from_secs(10);
            let clock = Clock::machine();
            let connecting = connect(NodeId(0), BackendId(1), &target, &login, 1, limit, &clock);
            let mut backend = connecting.await.unwrap();
            let mut rows = Vec::new();
            simple_query(&mut backend, "SELECT 1", |row| rows.push(row.to_vec())).await?;
            assert!(backend.is_clean());
            Ok(rows)
        };
        tokio::join!(node, asking).1
    }

    fn answer(tags: &str, status: u8) -> Vec<u8> {
        let mut out = Vec::new();
        for tag in tags.bytes() {
            let body: &[u8] = match tag {
                tags::ERROR => b"SERROR\0C42601\0Mno\0\0",
                tags::PARAMETER_STATUS => b"name\0value\0",
                tags::READY => std::slice::from_ref(&status),
                _ => b"row",
            };
            encode::message(&mut out, tag, |out| out.extend_from_slice(body));
        }
        out
    }

    #[tokio::test]
    async fn rows_come_out_and_notices_do_not_matter() {
        assert_eq!(ask(answer("NTDSDCIZ", b'I')).await.unwrap(), [b"row".to_vec(), b"row".to_vec()]);
    }

    #[tokio::test]
    async fn an_error_is_told_once_the_backend_is_ready_again() {
        let refused = ask(answer("TDEZ", b'I')).await.unwrap_err();
        assert!(matches!(refused, QueryError::Refused(rejection) if &*rejection.sqlstate == "42601"));
        assert!(matches!(ask(answer("TDE", b'I')).await, Err(QueryError::Lost)));
    }

    #[tokio::test]
    async fn whatever_would_leave_the_backend_unclean_is_no_success() {
        assert!(matches!(ask(answer("CZ", b'T')).await, Err(QueryError::Garbage)), "a transaction is open");
        assert!(matches!(ask(answer("CZN", b'I')).await, Err(QueryError::Garbage)), "something is left over");
        assert!(matches!(ask(answer("G", b'I')).await, Err(QueryError::Garbage)), "the node waits for COPY data");
        assert!(matches!(ask(b"D\0\0\0\x03".to_vec()).await, Err(QueryError::Garbage)), "a length below 4");
        assert!(matches!(ask(Vec::new()).await, Err(QueryError::Lost)), "the node hung up");
    }
}
