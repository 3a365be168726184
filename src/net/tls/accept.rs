//! TLS towards clients: which certificate, and the handshake.
//!
//! Each certificate has a configuration of its own, so that it is known which one a client was shown
//! (channel binding hashes it). Invariants: sessions are not resumed, as by PostgreSQL: who a client is
//! was seen in this connection. Absent on purpose: deadlines (the caller's).

use super::super::{ClientCertificate, TlsInfo};
use super::certificate::{client_certificate, end_point_hash};
use super::{ALPN_POSTGRESQL, Ahead, Secured, TlsSetupError, provider, root_store};
use crate::config::{Identity, TlsConfig, TlsMode, TlsVersion, cipher_name};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use std::io;
use std::sync::Arc;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

/// Offers TLS to clients.
#[derive(Debug)]
pub struct TlsAcceptor {
    required: bool,
    /// The usual one first; never empty.
    offers: Vec<Offer>,
}

/// One certificate to show.
#[derive(Debug)]
struct Offer {
    leaf: CertificateDer<'static>,
    config: Arc<ServerConfig>,
    end_point: Option<Arc<[u8]>>,
}

impl TlsAcceptor {
    /// As configured; `None` where TLS is not offered.
    ///
    /// # Errors
    /// What the TLS library does not take.
    pub fn new(config: &TlsConfig) -> Result<Option<Self>, TlsSetupError> {
        if config.mode == TlsMode::Disable {
            return Ok(None);
        }
        let provider = provider(&config.ciphers);
        let verifier = verifier(config, &provider)?;
        let make = |identity| offer(config.min_version, identity, &provider, verifier.clone());
        let offers: Vec<Offer> = config.identities.iter().map(make).collect::<Result<_, _>>()?;
        let required = config.mode == TlsMode::Require;
        Ok((!offers.is_empty()).then_some(Self { required, offers }))
    }

    /// Must clients use it?
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Shakes hands. Not cancel-safe: a handshake that is dropped ends the connection.
    pub(in crate::net) async fn accept(&self, below: Ahead) -> io::Result<Secured> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), below).await?;
        let offer = self.choose(start.client_hello().server_name());
        let stream = start.into_stream(Arc::clone(&offer.config)).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let suite = session.negotiated_cipher_suite();
        let info = TlsInfo {
            server_end_point: offer.end_point.clone(),
            client_certificate: certificate.map(told).transpose()?.map(Arc::new),
            version: version_name(session.protocol_version()),
            cipher: suite.map(cipher_name).unwrap_or_default().into(),
        };
        let named = session.alpn_protocol() == Some(ALPN_POSTGRESQL);
        Ok(Secured::new(TlsStream::Server(stream), info, named))
    }

    /// The certificate for the name that the client asks for; the usual one if none fits.
    fn choose(&self, name: Option<&str>) -> &Offer {
        let usual = &self.offers[0];
        let Some(name) = name.and_then(|name| ServerName::try_from(name).ok()) else { return usual };
        if self.offers.len() == 1 {
            return usual;
        }
        let fits = |offer: &&Offer| {
            let parsed = ParsedCertificate::try_from(&offer.leaf);
            parsed.is_ok_and(|leaf| rustls::client::verify_server_name(&leaf, &name).is_ok())
        };
        self.offers.iter().find(fits).unwrap_or(usual)
    }
}

/// What the client's verified certificate says.
fn told(certificate: &CertificateDer<'_>) -> io::Result<ClientCertificate> {
    client_certificate(certificate)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the client's certificate cannot be read"))
}

pub(super) fn version_name(version: Option<rustls::ProtocolVersion>) -> &'static str {
    match version {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    }
}

fn verifier(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsSetupError> {
    let Some(authorities) = &config.authorities else { return Ok(None) };
    let roots = root_store(&authorities.roots)?;
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = builder.with_crls(authorities.crls.iter().cloned()).allow_unauthenticated();
    // As OpenSSL's CRL check of the leaf: an authority without a list does not make all its clients unwelcome.
    Ok(Some(builder.only_check_end_entity_revocation().allow_unknown_revocation_status().build()?))
}

fn offer(
    min_version: TlsVersion,
    identity: &Identity,
    provider: &Arc<CryptoProvider>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Offer, TlsSetupError> {
    let versions: &[_] = match min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(versions)?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(identity.chain.to_vec(), identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let leaf = identity.chain[0].clone();
    Ok(Offer { end_point: end_point_hash(&leaf), leaf, config: Arc::new(config) })
}
