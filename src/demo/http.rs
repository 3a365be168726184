//! The few HTTP requests that the demo sends to its own proxy.
//!
//! Invariants: loopback only; every request has a time limit and a bound on the answer. Absent on purpose:
//! everything else about HTTP; with version 1.0 the answer ends when the connection does.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Time limit of connecting, and of each read and write.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer read, bytes.
const ANSWER_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Asks 127.0.0.1 for a path and gives status and body. Blocks.
///
/// # Errors
/// When nobody answers, in time and in HTTP.
pub(super) fn ask(port: u16, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), STEP_TIMEOUT)?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    parts(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

fn parts(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(parts(answer), Some((503, "{}".to_owned())));
        assert_eq!(parts("SSH-2.0-OpenSSH\r\n\r\n"), None);
    }
}
