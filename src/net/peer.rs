//! Who is at the other end of a client's connection, and how it is protected.
//!
//! Plain values. Invariant: what is said here was seen on the connection itself (or told by a trusted
//! load balancer), never claimed by the client. Absent on purpose: judging it (`auth`).

use std::net::SocketAddr;
use std::sync::Arc;

/// The other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP: the client's address, which a trusted PROXY header may have told.
    Tcp(SocketAddr),
    /// Over a Unix socket: the process that connected, as the kernel tells it.
    Unix {
        /// Effective user id.
        uid: u32,
        /// Process id, where the kernel tells it.
        pid: Option<i32>,
    },
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix { uid, pid: Some(pid) } => write!(f, "unix:uid={uid},pid={pid}"),
            Self::Unix { uid, pid: None } => write!(f, "unix:uid={uid}"),
        }
    }
}

/// What TLS has established. On a connection to a node, "our certificate" below is the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// Hash of our certificate for channel binding `tls-server-end-point` (RFC 5929, section 4.1);
    /// `None` where its signature algorithm has no hash of its own (Ed25519, say).
    pub server_end_point: Option<Arc<[u8]>>,
    /// The client's certificate, if it sent one that our authorities vouch for.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// Protocol version as PostgreSQL names it, `TLSv1.3` say.
    pub version: &'static str,
    /// Cipher suite as OpenSSL names it, `TLS_AES_256_GCM_SHA384` say.
    pub cipher: Box<str>,
}

/// A client's verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Common name of the subject, if there is exactly one.
    pub common_name: Option<Box<str>>,
    /// The subject as a distinguished name (RFC 2253).
    pub subject: Box<str>,
}
