//! Streams between two ends in one process, with certificates made on the spot.

use super::super::Stream;
use super::*;
use crate::config::{Authorities, Identity, NodeTlsConfig, SslMode, TlsConfig, TlsMode};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Pair {
    cert: CertificateDer<'static>,
    identity: Identity,
}

fn pair() -> Pair {
    let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
        generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let cert = cert.der().clone();
    Pair { identity: Identity { chain: vec![cert.clone()].into(), key: Arc::new(key) }, cert }
}

async fn sockets() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, peer) = listener.accept().await.unwrap();
    far.set_nodelay(true).unwrap();
    (Stream::tcp(near, peer).unwrap(), far)
}

fn towards(cert: &CertificateDer<'static>) -> NodeTls {
    let authorities = Authorities { roots: vec![cert.clone()].into(), crls: Vec::new().into() };
    NodeTls::new(&NodeTlsConfig {
        mode: SslMode::VerifyFull,
        authorities: Some(authorities),
        ..NodeTlsConfig::default()
    })
}

/// A backend's stream, and the node's end of it. The node sends `tickets` session tickets.
async fn node(pair: &Pair, tickets: usize) -> (Stream, tokio_rustls::server::TlsStream<TcpStream>) {
    let (mut near, far) = sockets().await;
    let chain = pair.identity.chain.to_vec();
    let builder = rustls::ServerConfig::builder_with_provider(provider(&[])).with_safe_default_protocol_versions();
    let mut config =
        builder.unwrap().with_no_client_auth().with_single_cert(chain, pair.identity.key.clone_key()).unwrap();
    config.send_tls13_tickets = tickets;
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let tls = towards(&pair.cert);
    let (near_done, far_done) = tokio::join!(near.connect_tls(&tls, "localhost"), acceptor.accept(far));
    near_done.unwrap();
    (near, far_done.unwrap())
}

fn acceptor(pair: &Pair) -> TlsAcceptor {
    let config = TlsConfig {
        mode: TlsMode::Allow,
        identities: vec![Identity { chain: Arc::clone(&pair.identity.chain), key: Arc::clone(&pair.identity.key) }],
        ..TlsConfig::default()
    };
    TlsAcceptor::new(&config).unwrap().unwrap()
}

/// Polls once.
async fn once<T>(mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>) -> Poll<T> {
    poll_fn(|cx| Poll::Ready(poll(cx))).await
}

#[tokio::test]
async fn late_tickets_do_not_disturb_an_idle_backend() {
    let pair = pair();
    let (mut near, mut far) = node(&pair, 4).await;
    assert_eq!(near.tls_info().unwrap().server_end_point, end_point_hash(&pair.cert));
    // The tickets are in the kernel, and neither the reactor nor TLS has seen them.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut byte = [0];
    assert!(near.has_input(), "something came");
    assert_eq!(near.try_read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert!(!near.has_input(), "and was nothing");
    assert!(!near.has_arrived());
    far.write_all(b"notice").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(near.has_arrived());
    assert!(near.has_input(), "what was decrypted is remembered");
    let mut got = Vec::with_capacity(64);
    near.read_more(&mut got).await.unwrap();
    assert_eq!(got, b"notice");
    assert!(!near.has_arrived());
    drop(far);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(near.has_arrived(), "the end");
}

#[tokio::test]
async fn tickets_straight_from_the_kernel_do_not_disturb_either() {
    let (mut near, _far) = node(&pair(), 2).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!near.has_arrived());
    assert!(!near.has_arrived());
}

#[tokio::test]
async fn what_was_decrypted_comes_without_the_socket() {
    let (mut near, mut far) = node(&pair(), 0).await;
    far.write_all(&[7; 10_000]).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 10_000 {
        let mut little = Vec::with_capacity(100);
        tokio::time::timeout(Duration::from_secs(5), near.read_more(&mut little)).await.unwrap().unwrap();
        assert!(!little.is_empty() && little.len() <= 100);
        got.extend(little);
    }
    assert!(got.len() == 10_000 && got.iter().all(|byte| *byte == 7));
    assert!(once(|cx| near.poll_read(cx, &mut Vec::with_capacity(1))).await.is_pending());
}

#[tokio::test]
async fn a_ready_write_has_left_and_a_slow_reader_holds_it_back() {
    let (mut near, mut far) = node(&pair(), 0).await;
    let block = [1_u8; 32 * 1024];
    let mut sent = 0;
    // Until the kernel takes no more: what is pending must be offered again.
    while let Poll::Ready(written) = once(|cx| near.poll_write(cx, &block)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "nothing holds it back");
    }
    for _ in 0..3 {
        assert!(once(|cx| near.poll_write(cx, &block)).await.is_pending());
    }
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        all
    });
    near.write_all(&block).await.unwrap();
    near.write_all(b"end").await.unwrap();
    drop(near);
    let all = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    assert_eq!(all.len(), sent + block.len() + 3, "each byte once, and the goodbye came");
    assert!(all.ends_with(b"end") && all[..all.len() - 3].iter().all(|byte| *byte == 1));
}

#[tokio::test]
async fn bytes_read_before_the_handshake_belong_to_it() {
    let pair = pair();
    let (mut near, far) = sockets().await;
    let tls = towards(&pair.cert);
    let far = Stream::tcp(far, "127.0.0.1:1".parse().unwrap()).unwrap();
    let client = async {
        let mut far = far;
        far.connect_tls(&tls, "localhost").await.unwrap();
        far.write_all(b"hello").await.unwrap();
        far
    };
    let server = async {
        let mut read = Vec::with_capacity(20);
        near.read_more(&mut read).await.unwrap();
        assert_eq!(read[0], 0x16);
        near.accept_tls(&acceptor(&pair), &read).await.unwrap();
        let mut got = Vec::with_capacity(64);
        near.read_more(&mut got).await.unwrap();
        got
    };
    let (far, got) = tokio::join!(client, server);
    assert_eq!(got, b"hello");
    assert!(far.is_protocol_named() && near.is_protocol_named());
    assert_eq!(near.tls_info().unwrap().version, "TLSv1.3");
    assert_eq!(near.tls_info().unwrap().server_end_point, far.tls_info().unwrap().server_end_point);
}

#[tokio::test]
async fn a_failed_handshake_leaves_nothing_to_use() {
    let (mut near, mut far) = sockets().await;
    far.write_all(b"this is not TLS, but long enough to be looked at").await.unwrap();
    near.accept_tls(&acceptor(&pair()), &[]).await.unwrap_err();
    assert_eq!(near.write_all(b"x").await.unwrap_err().kind(), std::io::ErrorKind::NotConnected);
    assert_eq!(near.read_more(&mut Vec::new()).await.unwrap_err().kind(), std::io::ErrorKind::NotConnected);
    assert!(near.severer().is_err() && near.has_arrived() && near.tls_info().is_none());
}

#[test]
fn hashes_follow_the_signature_algorithm() {
    let of = |algorithm: &'static rcgen::SignatureAlgorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let cert = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&key).unwrap();
        end_point_hash(cert.der()).map(|hash| hash.len())
    };
    assert_eq!(of(&rcgen::PKCS_ECDSA_P256_SHA256), Some(32));
    assert_eq!(of(&rcgen::PKCS_ECDSA_P384_SHA384), Some(48));
    assert_eq!(of(&rcgen::PKCS_ED25519), None);
    assert_eq!(end_point_hash(b"no certificate"), None);
}
