//! A TLS client for tests: says what it offers, shows what it was given, can begin without being asked.
//!
//! Blocking, like the raw client that it is put under. Absent on purpose: verification, unless a root is
//! given; what is tested is what the proxy presents.

use super::message::{SSL_REQUEST, untagged};
use super::pki::Issued;
use super::rawclient::{READ_TIMEOUT, RawClient};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// A TLS connection.
pub type TlsWire = StreamOwned<ClientConnection, TcpStream>;

/// What a client offers.
#[derive(Clone)]
pub struct Offers {
    /// Begin at once, without SSLRequest.
    pub direct: bool,
    /// Protocols named in ALPN.
    pub alpn: Vec<Vec<u8>>,
    /// The server's name.
    pub server_name: String,
    /// TLS 1.2 only.
    pub old: bool,
    /// Sent before anything else.
    pub preamble: Vec<u8>,
    /// The client's certificate.
    pub identity: Option<(CertificateDer<'static>, Arc<PrivateKeyDer<'static>>)>,
}

impl Default for Offers {
    fn default() -> Self {
        Self {
            direct: false,
            alpn: vec![b"postgresql".to_vec()],
            server_name: "localhost".to_owned(),
            old: false,
            preamble: Vec::new(),
            identity: None,
        }
    }
}

impl Offers {
    /// Begins at once.
    pub fn direct() -> Self {
        Self { direct: true, ..Self::default() }
    }

    /// With a client certificate.
    pub fn presenting(mut self, issued: &Issued) -> Self {
        let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
        self.identity = Some((issued.der.clone(), Arc::new(key)));
        self
    }

    /// Connects and shakes hands.
    pub fn connect(&self, port: u16) -> io::Result<TlsWire> {
        self.connect_over(TcpStream::connect(("127.0.0.1", port))?)
    }

    /// Shakes hands on a connected socket.
    pub fn connect_over(&self, mut tcp: TcpStream) -> io::Result<TlsWire> {
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(READ_TIMEOUT))?;
        tcp.set_write_timeout(Some(READ_TIMEOUT))?;
        tcp.write_all(&self.preamble)?;
        if !self.direct {
            tcp.write_all(&untagged(SSL_REQUEST, &[]))?;
            let mut answer = [0];
            tcp.read_exact(&mut answer)?;
            if answer != *b"S" {
                return Err(io::Error::other(format!("the answer is {:?}", char::from(answer[0]))));
            }
        }
        let name = ServerName::try_from(self.server_name.clone()).map_err(io::Error::other)?;
        let mut session = ClientConnection::new(Arc::new(self.config()), name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut tcp)?;
        }
        Ok(StreamOwned::new(session, tcp))
    }

    /// A raw client over it.
    pub fn client(&self, port: u16) -> io::Result<RawClient> {
        Ok(RawClient::over(self.connect(port)?))
    }

    fn config(&self) -> ClientConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: &[_] =
            if self.old { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(versions).expect("versions");
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Believer(provider)));
        let mut config = match &self.identity {
            Some((cert, key)) => {
                builder.with_client_auth_cert(vec![cert.clone()], key.clone_key()).expect("an identity")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config
    }
}

/// The certificate that the server presented.
pub fn presented(wire: &TlsWire) -> CertificateDer<'static> {
    wire.conn.peer_certificates().expect("a handshake")[0].clone().into_owned()
}

/// Believes every certificate.
#[derive(Debug)]
struct Believer(Arc<CryptoProvider>);

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
