//! The PROXY protocol header, versions 1 and 2, by which a load balancer tells whom it speaks for
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).
//!
//! Pure: bytes in, a value out. Invariants: at most [`PROXY_HEADER_MAX`] bytes are asked for; whatever
//! the bytes, an answer comes; bytes that cannot become a header are refused as soon as that shows.
//! Absent on purpose: whom to believe (the caller knows the trusted networks), and the extensions of
//! version 2, which are skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header believed, bytes. Version 1 has at most 107; the addresses of version 2 take at most
/// 216, the rest is for extensions.
pub const PROXY_HEADER_MAX: usize = 2048;
/// Longest version 1 header, bytes, line end included.
const V1_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Start, version and command, family, length.
const V2_FIXED: usize = 16;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client's address; `None` where the balancer speaks for itself (a health check) or does not
    /// know, and the connection's own address stands.
    pub source: Option<SocketAddr>,
    /// Bytes it took.
    pub len: usize,
}

/// Why there is no header, nor will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProxyHeader {
    /// The connection begins with something else.
    #[error("no PROXY header")]
    Missing,
    /// It goes on and on.
    #[error("PROXY header too long")]
    TooLong,
    /// It begins as one, and is none.
    #[error("malformed PROXY header")]
    Malformed,
    /// A version, command or family that does not exist.
    #[error("PROXY header of an unknown kind")]
    Unknown,
}

/// Reads the header that a connection begins with; `Ok(None)`: not all of it is there.
///
/// # Errors
/// [`BadProxyHeader`], whatever the bytes.
pub fn parse_proxy_header(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    let begins = |start: &[u8]| {
        let len = start.len().min(bytes.len());
        bytes[..len] == start[..len]
    };
    if begins(V2_START) {
        version2(bytes)
    } else if begins(V1_START) {
        version1(bytes)
    } else {
        Err(BadProxyHeader::Missing)
    }
}

fn version1(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    let within = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= V1_MAX { Err(BadProxyHeader::TooLong) } else { Ok(None) };
    };
    let line = std::str::from_utf8(within.get(V1_START.len()..end).unwrap_or_default());
    let line = line.map_err(|_| BadProxyHeader::Malformed)?;
    let len = end + 2;
    let mut words = line.split(' ');
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(Some(ProxyHeader { source: None, len }));
    }
    let mut word = || words.next().ok_or(BadProxyHeader::Malformed);
    let (source, destination) = (address(family, word()?)?, address(family, word()?)?);
    let (source_port, _) = (port(word()?)?, port(word()?)?);
    if words.next().is_some() || source.is_ipv4() != destination.is_ipv4() {
        return Err(BadProxyHeader::Malformed);
    }
    Ok(Some(ProxyHeader { source: Some(SocketAddr::new(source, source_port)), len }))
}

fn address(family: &str, text: &str) -> Result<IpAddr, BadProxyHeader> {
    let read = match family {
        "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4),
        "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6),
        _ => return Err(BadProxyHeader::Unknown),
    };
    read.map_err(|_| BadProxyHeader::Malformed)
}

/// Digits only, no leading zero, as the specification has it.
fn port(text: &str) -> Result<u16, BadProxyHeader> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| BadProxyHeader::Malformed) } else { Err(BadProxyHeader::Malformed) }
}

fn version2(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    if command >> 4 != 2 || command & 0xf > 1 {
        return Err(BadProxyHeader::Unknown);
    }
    let len = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if len > PROXY_HEADER_MAX {
        return Err(BadProxyHeader::TooLong);
    }
    let Some(body) = bytes.get(V2_FIXED..len) else { return Ok(None) };
    let is_local = command & 0xf == 0;
    let source = match family {
        // The sender must be listened to even if it fills these in.
        _ if is_local => None,
        0x00 => None,
        0x11 => Some(ipv4(body).ok_or(BadProxyHeader::Malformed)?),
        0x21 => Some(ipv6(body).ok_or(BadProxyHeader::Malformed)?),
        // A Unix socket at the balancer: no address.
        0x31 => None,
        _ => return Err(BadProxyHeader::Unknown),
    };
    Ok(Some(ProxyHeader { source, len }))
}

/// Source, destination, source port, destination port.
fn ipv4(body: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = body.split_first_chunk::<4>()?;
    let port = rest.get(4..8)?.first_chunk::<2>()?;
    Some(SocketAddr::new(Ipv4Addr::from(*address).into(), u16::from_be_bytes(*port)))
}

fn ipv6(body: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = body.split_first_chunk::<16>()?;
    let port = rest.get(16..20)?.first_chunk::<2>()?;
    Some(SocketAddr::new(Ipv6Addr::from(*address).into(), u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&V2_START[..], &[command, family], &length, body].concat()
    }

    fn source(bytes: &[u8]) -> Result<Option<SocketAddr>, BadProxyHeader> {
        parse_proxy_header(bytes).map(|header| {
            let header = header.expect("a whole header");
            assert_eq!(header.len, bytes.len());
            header.source
        })
    }

    #[test]
    fn both_versions_tell_the_source() {
        let four: SocketAddr = "192.0.2.7:4711".parse().unwrap();
        let six: SocketAddr = "[2001:db8::1]:4711".parse().unwrap();
        assert_eq!(source(b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 5432\r\n"), Ok(Some(four)));
        assert_eq!(source(b"PROXY TCP6 2001:db8::1 ::1 4711 5432\r\n"), Ok(Some(six)));
        assert_eq!(source(b"PROXY UNKNOWN\r\n"), Ok(None));
        assert_eq!(source(b"PROXY UNKNOWN whatever it says\r\n"), Ok(None));
        let body = [&[192, 0, 2, 7, 10, 0, 0, 1][..], &4711_u16.to_be_bytes(), &5432_u16.to_be_bytes()].concat();
        assert_eq!(source(&v2(0x21, 0x11, &body)), Ok(Some(four)));
        assert_eq!(source(&v2(0x21, 0x11, &[&body[..], b"\x04\0\x01x"].concat())), Ok(Some(four)));
        assert_eq!(source(&v2(0x20, 0x11, &body)), Ok(None), "LOCAL");
        assert_eq!(source(&v2(0x20, 0x00, b"")), Ok(None));
        assert_eq!(source(&v2(0x21, 0x00, b"")), Ok(None));
        assert_eq!(source(&v2(0x21, 0x31, &[b'/'; 216])), Ok(None));
    }

    #[test]
    fn what_is_none_is_refused() {
        for (bytes, why) in [
            (&b"\0\0\0\x08\x04\xd2\x16\x2f"[..], BadProxyHeader::Missing),
            (b"GET / HTTP/1.1\r\n", BadProxyHeader::Missing),
            (b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n", BadProxyHeader::Missing),
            (b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n", BadProxyHeader::Unknown),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n", BadProxyHeader::Malformed),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n", BadProxyHeader::Malformed),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n", BadProxyHeader::Malformed),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n", BadProxyHeader::Malformed),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n", BadProxyHeader::Malformed),
            (b"PROXY TCP4 ::1 ::1 1 1\r\n", BadProxyHeader::Malformed),
            (b"PROXY TCP4  1.1.1.1 1.1.1.1 1 1\r\n", BadProxyHeader::Malformed),
            (b"PROXY \xff\r\n", BadProxyHeader::Malformed),
            (b"PROXY \r\n", BadProxyHeader::Malformed),
        ] {
            assert_eq!(parse_proxy_header(bytes), Err(why), "{bytes:?}");
        }
        assert_eq!(parse_proxy_header(&[V1_START, &[b'x'; 200]].concat()), Err(BadProxyHeader::TooLong));
        assert_eq!(parse_proxy_header(&v2(0x31, 0x11, &[0; 12])), Err(BadProxyHeader::Unknown));
        assert_eq!(parse_proxy_header(&v2(0x22, 0x11, &[0; 12])), Err(BadProxyHeader::Unknown));
        assert_eq!(parse_proxy_header(&v2(0x21, 0x41, &[0; 12])), Err(BadProxyHeader::Unknown));
        assert_eq!(parse_proxy_header(&v2(0x21, 0x11, &[0; 11])), Err(BadProxyHeader::Malformed));
        assert_eq!(parse_proxy_header(&v2(0x21, 0x21, &[0; 35])), Err(BadProxyHeader::Malformed));
        assert_eq!(parse_proxy_header(&v2(0x21, 0x11, &[0; 3000])), Err(BadProxyHeader::TooLong));
    }

    proptest! {
        /// A prefix of a header is never refused and never taken for the whole; what follows does not matter.
        #[test]
        fn headers_may_arrive_in_pieces(
            old in any::<bool>(), ip in any::<IpAddr>(), port in any::<u16>(), tail in prop::collection::vec(any::<u8>(), 0..40)
        ) {
            let header = match ip {
                _ if old => {
                    let family = if ip.is_ipv4() { "TCP4" } else { "TCP6" };
                    format!("PROXY {family} {ip} {ip} {port} 5432\r\n").into_bytes()
                }
                IpAddr::V4(ip) => {
                    let ip = ip.octets();
                    v2(0x21, 0x11, &[&ip[..], &ip, &port.to_be_bytes(), &[0, 1]].concat())
                }
                IpAddr::V6(ip) => {
                    let ip = ip.octets();
                    v2(0x21, 0x21, &[&ip[..], &ip, &port.to_be_bytes(), &[0, 1]].concat())
                }
            };
            for len in 0..header.len() {
                prop_assert_eq!(parse_proxy_header(&header[..len]), Ok(None));
            }
            let whole = ProxyHeader { source: Some(SocketAddr::new(ip, port)), len: header.len() };
            prop_assert_eq!(parse_proxy_header(&[&header[..], &tail].concat()), Ok(Some(whole)));
        }

        #[test]
        fn any_bytes_are_answered(start in 0_usize..3, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let start: &[u8] = [&b""[..], V1_START, V2_START][start];
            let bytes = [start, &bytes].concat();
            if let Ok(Some(header)) = parse_proxy_header(&bytes) {
                prop_assert!(header.len <= bytes.len() && header.len <= PROXY_HEADER_MAX);
            } else if bytes.len() >= PROXY_HEADER_MAX {
                prop_assert!(parse_proxy_header(&bytes).is_err());
            }
        }
    }
}
