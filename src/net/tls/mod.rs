//! TLS on both sides.
//!
//! | file | what |
//! |---|---|
//! | `ahead` | ciphertext read in large pieces for a library that asks for small ones |
//! | `secured` | a stream after its handshake, with the few questions an idle backend is asked |
//! | `accept` | towards clients: certificates by server name, handshakes |
//! | `http` | towards HTTP servers: verification, handshakes |
//! | `connect` | towards nodes: `sslmode`, verification, handshakes |
//! | `certificate` | what is read out of certificates: channel binding, names |
//!
//! Invariants: nothing that was decrypted is lost between two reads; a write that is ready has left.
//! Absent on purpose: when TLS is spoken (`client` and `backend` know).

mod accept;
mod ahead;
mod certificate;
mod connect;
mod http;
mod secured;

pub use accept::TlsAcceptor;
pub(super) use ahead::Ahead;
pub use certificate::end_point_hash;
pub(super) use connect::node_end_point;
pub use connect::{NodeTls, TlsAttempt};
pub use http::HttpTls;
pub(super) use secured::Secured;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use std::sync::Arc;

/// The protocol's name in ALPN.
pub const ALPN_POSTGRESQL: &[u8] = b"postgresql";

/// Why TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The library refuses a certificate, key or suite.
    #[error("{0}")]
    Library(#[from] rustls::Error),
    /// It refuses the authorities or revocation lists.
    #[error("{0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The cryptography, with these suites (all if there are none).
fn provider(ciphers: &[String]) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    if !ciphers.is_empty() {
        provider.cipher_suites = ciphers.iter().filter_map(|name| crate::config::cipher_of_name(name)).collect();
    }
    Arc::new(provider)
}

/// Authorities as the library wants them.
fn root_store(
    roots: &[rustls::pki_types::CertificateDer<'static>],
) -> Result<Arc<rustls::RootCertStore>, rustls::Error> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(Arc::new(store))
}

#[cfg(test)]
mod tests;
