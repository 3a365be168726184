//! The first packet: length, encryption requests answered, TLS begun, cancel or session.
//!
//! Invariants: at most [`STARTUP_LEN_MAX`] bytes are read before login; plaintext behind an
//! encryption request is refused (CVE-2021-23214); TLS without being asked first (direct TLS) names the
//! protocol, so that nobody's HTTPS request ends up here. Absent on purpose: TLS itself (`net`); whether
//! a plain cancel request is welcome where TLS is required (it is, as by PostgreSQL).

use super::EnterError;
use crate::error::{ClientError, SqlState};
use crate::net::{Stream, TlsAcceptor};
use crate::wire::{PROTOCOL_3_2, STARTUP_LEN_MAX, StartupError, StartupPacket, parse_startup};
use std::sync::Arc;

/// Encryption requests answered on one connection (libpq sends at most two).
const ENCRYPTION_REQUESTS_MAX: usize = 2;

/// First byte of a TLS handshake; no startup packet is long enough to begin with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// How a connection begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Cancel a statement and close.
    Cancel {
        /// Process id half of the key.
        pid: i32,
        /// Secret half.
        secret: Vec<u8>,
    },
    /// A session.
    Session(Hello),
}

/// Which kind of replication connection (PostgreSQL docs, "Streaming Replication Protocol").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// `replication=true`: of the whole cluster, in no database.
    Physical,
    /// `replication=database`: logical, in a database, where SQL works too.
    Logical,
}

impl Replication {
    /// The value of the startup parameter.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Physical => "true",
            Self::Logical => "database",
        }
    }

    /// Reads the startup parameter as PostgreSQL does: a boolean or `database`.
    fn read(value: &str) -> Result<Option<Self>, EnterError> {
        let lower = value.to_ascii_lowercase();
        let is = |word: &str, least: usize| lower.len() >= least && word.starts_with(&*lower);
        if value == "database" {
            Ok(Some(Self::Logical))
        } else if lower == "1" || is("true", 1) || is("yes", 1) || is("on", 2) {
            Ok(Some(Self::Physical))
        } else if lower == "0" || is("false", 1) || is("no", 1) || is("off", 2) {
            Ok(None)
        } else {
            let error = ClientError::fatal(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"replication\": \"{value}\""),
            )
            .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".");
            Err(EnterError::Refused(Box::new(error)))
        }
    }
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Role.
    pub user: Arc<str>,
    /// Database; the role's name where the client names none.
    pub database: Arc<str>,
    /// It wants to replicate instead of a session.
    pub replication: Option<Replication>,
    /// The other parameters, in order.
    pub parameters: Vec<(String, String)>,
    /// Protocol version spoken: the client's, or the newest we know.
    pub version: u32,
    /// NegotiateProtocolVersion must be sent, naming these options.
    pub negotiate: Option<Vec<String>>,
}

/// Reads up to the packet that begins a session or a cancel.
///
/// # Errors
/// [`EnterError`]; the caller tells the client and closes.
pub async fn receive(
    stream: &mut Stream,
    input: &mut Vec<u8>,
    tls: Option<&TlsAcceptor>,
) -> Result<Entrance, EnterError> {
    // Like PostgreSQL, no TLS over Unix sockets: nobody is in between.
    let tls = tls.filter(|_| !stream.is_unix());
    if input.is_empty() {
        stream.read_more(input).await?;
    }
    if let Some(tls) = tls.filter(|_| input[0] == TLS_HANDSHAKE) {
        stream.accept_tls(tls, &std::mem::take(input)).await.map_err(EnterError::Tls)?;
        if !stream.is_protocol_named() {
            return Err(EnterError::Unnamed);
        }
    }
    for _ in 0..=ENCRYPTION_REQUESTS_MAX {
        match read_packet(stream, input).await? {
            StartupPacket::SslRequest | StartupPacket::GssEncRequest if stream.tls_info().is_some() => {
                return Err(EnterError::BadStartup(StartupError::BadLayout));
            }
            packet @ (StartupPacket::SslRequest | StartupPacket::GssEncRequest) => {
                if !input.is_empty() {
                    return Err(EnterError::Smuggled);
                }
                match tls.filter(|_| packet == StartupPacket::SslRequest) {
                    Some(tls) => {
                        stream.write_all(b"S").await?;
                        stream.accept_tls(tls, &[]).await.map_err(EnterError::Tls)?;
                    }
                    None => stream.write_all(b"N").await?,
                }
            }
            StartupPacket::Cancel { pid, secret } => return Ok(Entrance::Cancel { pid, secret }),
            StartupPacket::Session { version, parameters, options } => {
                if stream.tls_info().is_none() && tls.is_some_and(TlsAcceptor::is_required) {
                    return Err(unencrypted());
                }
                return Ok(Entrance::Session(hello(version, parameters, options)?));
            }
        }
    }
    Err(EnterError::BadStartup(StartupError::BadLayout))
}

fn unencrypted() -> EnterError {
    let error = ClientError::fatal(SqlState::INVALID_AUTHORIZATION, "the proxy accepts encrypted connections only");
    EnterError::Refused(Box::new(error.hint("Connect with sslmode=require, or better sslmode=verify-full.")))
}

async fn read_packet(stream: &mut Stream, input: &mut Vec<u8>) -> Result<StartupPacket, EnterError> {
    loop {
        if let Some(&length) = input.first_chunk::<4>() {
            if is_http(&length) {
                return Err(EnterError::Http);
            }
            let length = u32::from_be_bytes(length) as usize;
            if !(8..=STARTUP_LEN_MAX).contains(&length) {
                return Err(EnterError::BadStartup(StartupError::BadLength));
            }
            if input.len() >= length {
                let packet = parse_startup(&input[4..length])?;
                input.drain(..length);
                return Ok(packet);
            }
        }
        stream.read_more(input).await?;
    }
}

fn is_http(start: &[u8; 4]) -> bool {
    matches!(start, b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" | b"DELE" | b"PRI " | b"CONN" | b"TRAC" | b"PATC")
}

fn hello(version: u32, parameters: Vec<(String, String)>, options: Vec<String>) -> Result<Hello, EnterError> {
    let value = |name: &str| parameters.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let user = value("user").unwrap_or_default();
    if user.is_empty() {
        let error =
            ClientError::fatal(SqlState::INVALID_AUTHORIZATION, "no PostgreSQL user name specified in startup packet");
        return Err(EnterError::Refused(Box::new(error)));
    }
    let database = value("database").filter(|name| !name.is_empty()).unwrap_or(user);
    let replication = value("replication").map_or(Ok(None), Replication::read)?;
    let newer = version > PROTOCOL_3_2 || version == PROTOCOL_3_2 - 1;
    let spoken = if newer { PROTOCOL_3_2 } else { version };
    let negotiate = (version > PROTOCOL_3_2 || !options.is_empty()).then_some(options);
    Ok(Hello {
        user: user.into(),
        database: database.into(),
        version: spoken,
        negotiate,
        replication,
        parameters: parameters
            .into_iter()
            .filter(|(name, _)| !matches!(name.as_str(), "user" | "database" | "replication"))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PROTOCOL_3_0;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn the_database_defaults_to_the_user() {
        let got = hello(PROTOCOL_3_0, pairs(&[("user", "ann"), ("application_name", "x")]), vec![]).unwrap();
        assert_eq!((&*got.database, got.version, got.negotiate), ("ann", PROTOCOL_3_0, None));
        assert_eq!(got.parameters, pairs(&[("application_name", "x")]));
        assert!(hello(PROTOCOL_3_0, pairs(&[("database", "d")]), vec![]).is_err());
    }

    #[test]
    fn replication_is_read_as_postgresql_reads_it() {
        let mode = |value: &str| {
            let asked = pairs(&[("user", "u"), ("replication", value)]);
            hello(PROTOCOL_3_0, asked, vec![]).map(|hello| (hello.replication, hello.parameters.len()))
        };
        for value in ["true", "on", "yes", "1", "TRUE", "t", "y"] {
            assert_eq!(mode(value).unwrap(), (Some(Replication::Physical), 0), "{value}");
        }
        assert_eq!(mode("database").unwrap(), (Some(Replication::Logical), 0));
        for value in ["false", "off", "no", "0", "f", "n"] {
            assert_eq!(mode(value).unwrap(), (None, 0), "{value}");
        }
        for value in ["", "o", "maybe", "data"] {
            assert!(matches!(mode(value), Err(EnterError::Refused(_))), "{value}");
        }
    }

    #[test]
    fn newer_versions_and_options_are_negotiated() {
        let user = pairs(&[("user", "ann")]);
        let newer = hello(3 << 16 | 9999, user.clone(), vec![]).unwrap();
        assert_eq!((newer.version, newer.negotiate), (PROTOCOL_3_2, Some(vec![])));
        let option = hello(PROTOCOL_3_2, user.clone(), vec!["_pq_.x".into()]).unwrap();
        assert_eq!(option.negotiate, Some(vec!["_pq_.x".to_owned()]));
        assert_eq!(hello(PROTOCOL_3_2, user, vec![]).unwrap().negotiate, None);
    }
}
