//! TLS towards nodes: libpq's `sslmode`, verification, and the handshake.
//!
//! Invariants: the signature in the handshake is verified in every mode, so that whoever answers has the
//! key of the certificate shown; a name is forgiven only where the mode says so, and only after the
//! chain was found good. Absent on purpose: asking the node (SSLRequest is `backend`'s, or the driver's).

use super::super::TlsInfo;
use super::accept::version_name;
use super::certificate::{common_name_covers, end_point_hash, is_in_time};
use super::{ALPN_POSTGRESQL, Ahead, Secured, TlsSetupError, provider, root_store};
use crate::config::{ChannelBinding, NodeTlsConfig, SslMode, cipher_name};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, TlsStream, client};
use x509_cert::der::Decode;

/// How one connection to a node begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsAttempt {
    /// Without asking for TLS.
    Plain,
    /// With TLS if the node offers it.
    IfOffered,
    /// With TLS or not at all.
    Always,
}

/// How connections to a node are protected.
#[derive(Clone)]
pub struct NodeTls {
    attempts: &'static [TlsAttempt],
    binding: ChannelBinding,
    setup: Setup,
}

#[derive(Clone)]
enum Setup {
    Off,
    Ready(Arc<ClientConfig>),
    /// No handshake succeeds, so that a mistake opens nothing.
    Broken(Arc<str>),
}

impl NodeTls {
    /// Never.
    pub const NEVER: Self = Self { attempts: &[TlsAttempt::Plain], binding: ChannelBinding::Prefer, setup: Setup::Off };

    /// As configured. What the TLS library does not take is told by [`NodeTls::problem`], and by every
    /// handshake.
    #[must_use]
    pub fn new(config: &NodeTlsConfig) -> Self {
        let attempts: &[_] = match config.mode {
            SslMode::Disable => return Self::NEVER,
            SslMode::Allow => &[TlsAttempt::Plain, TlsAttempt::Always],
            SslMode::Prefer => &[TlsAttempt::IfOffered, TlsAttempt::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[TlsAttempt::Always],
        };
        let setup = client_config(config);
        let setup = setup.map_or_else(|error| Setup::Broken(error.to_string().into()), Setup::Ready);
        Self { attempts, binding: config.channel_binding, setup }
    }

    /// Why no handshake can succeed.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match &self.setup {
            Setup::Broken(why) => Some(why),
            Setup::Off | Setup::Ready(_) => None,
        }
    }

    /// Whether logins are tied to the channel.
    #[must_use]
    pub fn channel_binding(&self) -> ChannelBinding {
        self.binding
    }

    /// What to try, in this order.
    #[must_use]
    pub fn attempts(&self) -> &'static [TlsAttempt] {
        self.attempts
    }

    /// The same, for another connection that must be as protected as this one turned out to be.
    #[must_use]
    pub fn as_used(&self, encrypted: bool) -> Self {
        let attempts: &[_] = if encrypted { &[TlsAttempt::Always] } else { &[TlsAttempt::Plain] };
        Self { attempts, binding: self.binding, setup: self.setup.clone() }
    }

    /// Shakes hands with the node at `host`.
    ///
    /// # Errors
    /// Why not: the other side is not who it should be, or does not speak TLS.
    pub(in crate::net) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        below: S,
    ) -> io::Result<client::TlsStream<S>> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        let config = match &self.setup {
            Setup::Ready(config) => Arc::clone(config),
            Setup::Broken(why) => return Err(invalid(why)),
            Setup::Off => return Err(invalid("TLS to this node is disabled")),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| invalid("not a name that TLS knows"))?;
        TlsConnector::from(config).connect(name, below).await
    }

    pub(in crate::net) async fn secure(&self, host: &str, below: Ahead) -> io::Result<Secured> {
        let stream = self.handshake(host, below).await?;
        let (info, named) = (info_of(&stream), stream.get_ref().1.alpn_protocol() == Some(ALPN_POSTGRESQL));
        Ok(Secured::new(TlsStream::Client(stream), info, named))
    }
}

fn client_config(config: &NodeTlsConfig) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let provider = provider(&[]);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier(config, &provider)?);
    let mut client = match &config.identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.to_vec(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
    client.resumption = Resumption::disabled();
    Ok(Arc::new(client))
}

/// The node's certificate, hashed for channel binding.
pub(in crate::net) fn node_end_point<S>(stream: &client::TlsStream<S>) -> Option<Arc<[u8]>> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().and_then(<[_]>::first).and_then(|leaf| end_point_hash(leaf))
}

fn info_of<S>(stream: &client::TlsStream<S>) -> TlsInfo {
    let (_, session) = stream.get_ref();
    TlsInfo {
        server_end_point: node_end_point(stream),
        client_certificate: None,
        version: version_name(session.protocol_version()),
        cipher: session.negotiated_cipher_suite().map(cipher_name).unwrap_or_default().into(),
    }
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeTls").field(&self.attempts).finish()
    }
}

impl PartialEq for NodeTls {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.setup, &other.setup) {
            (Setup::Off, Setup::Off) => true,
            (Setup::Ready(one), Setup::Ready(two)) => Arc::ptr_eq(one, two),
            (Setup::Broken(one), Setup::Broken(two)) => one == two,
            _ => false,
        };
        same && self.attempts == other.attempts && self.binding == other.binding
    }
}

impl Eq for NodeTls {}

/// What is verified of a node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verify {
    Nothing,
    Chain,
    ChainAndName,
}

#[derive(Debug)]
struct NodeVerifier {
    verify: Verify,
    /// `None` where nothing is verified.
    chains: Option<Arc<WebPkiServerVerifier>>,
    roots: Arc<[CertificateDer<'static>]>,
    provider: Arc<CryptoProvider>,
}

fn verifier(
    config: &NodeTlsConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsSetupError> {
    let verify = match config.effective_mode() {
        SslMode::VerifyFull => Verify::ChainAndName,
        SslMode::VerifyCa => Verify::Chain,
        _ => Verify::Nothing,
    };
    let authorities = config.authorities.as_ref().filter(|_| verify != Verify::Nothing);
    let chains = authorities.map(|authorities| {
        let roots = root_store(&authorities.roots)?;
        let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
        let builder = builder.with_crls(authorities.crls.iter().cloned());
        let built = builder.only_check_end_entity_revocation().allow_unknown_revocation_status().build()?;
        Ok::<_, TlsSetupError>(built)
    });
    let roots = authorities.map(|authorities| Arc::clone(&authorities.roots)).unwrap_or_default();
    Ok(Arc::new(NodeVerifier { verify, chains: chains.transpose()?, roots, provider: Arc::clone(provider) }))
}

impl NodeVerifier {
    /// A node's own certificate as authority: libpq takes it, although it may sign nothing.
    fn verify_own(leaf: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        let bad = |why| Error::InvalidCertificate(why);
        let parsed = x509_cert::Certificate::from_der(leaf).map_err(|_| bad(CertificateError::BadEncoding))?;
        if !is_in_time(&parsed, now.as_secs()) {
            return Err(bad(CertificateError::Expired));
        }
        let parsed = ParsedCertificate::try_from(leaf).map_err(|_| bad(CertificateError::NotValidForName))?;
        verify_server_name(&parsed, name)
    }
}

fn is_about_the_name(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
    )
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chains) = &self.chains else { return Ok(ServerCertVerified::assertion()) };
        let outcome = if self.roots.iter().any(|root| root == leaf) {
            Self::verify_own(leaf, name, now)
        } else {
            chains.verify_server_cert(leaf, intermediates, name, ocsp, now).map(|_| ())
        };
        let forgiven = |error: &Error| {
            is_about_the_name(error) && (self.verify == Verify::Chain || common_name_covers(leaf, &name.to_str()))
        };
        match outcome {
            Err(error) if !forgiven(&error) => Err(error),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
