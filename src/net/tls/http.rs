//! TLS towards servers that speak HTTP.
//!
//! Invariants: an authority of ours vouches for the certificate, which names the host that was asked for; there is no
//! mode without. Absent on purpose: certificates of our own, and HTTP.

use super::{TlsSetupError, provider, root_store};
use crate::config::Authorities;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How such a connection is protected.
#[derive(Clone, Debug)]
pub struct HttpTls(Arc<ClientConfig>);

impl HttpTls {
    /// With these authorities.
    ///
    /// # Errors
    /// When the library does not take one of them.
    pub fn new(authorities: &Authorities) -> Result<Self, TlsSetupError> {
        let builder = ClientConfig::builder_with_provider(provider(&[])).with_safe_default_protocol_versions()?;
        let mut client = builder.with_root_certificates(root_store(&authorities.roots)?).with_no_client_auth();
        client.resumption = Resumption::disabled();
        Ok(Self(Arc::new(client)))
    }

    /// Shakes hands with the server at `host`.
    ///
    /// # Errors
    /// Why not: the other side is not who it should be, or does not speak TLS.
    pub async fn secure(&self, host: &str, below: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a name that TLS knows"))?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, below).await
    }
}
