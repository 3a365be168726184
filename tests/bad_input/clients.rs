//! Clients that send garbage, or stop in the middle.
//!
//! One table per phase: startup, login, session. Absent on purpose: messages that are merely out of
//! order; there the comparison with PostgreSQL decides (`wire_conformance`).

use crate::support::bystander::Bystander;
use crate::support::cluster::{self, app_login};
use crate::support::message::*;
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::{Gone, RawClient};
use crate::{first_message, sqlstate};
use std::thread;
use std::time::{Duration, Instant};

fn usual() -> Proxy {
    ProxySpec::in_front_of(cluster::shared()).start_ready()
}

/// Sends bytes, then hears nothing, or an error, or a line of HTTP, and the end.
fn refused(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut client = RawClient::tcp(port);
    // The proxy may close before it has read everything.
    let _ = client.send(bytes);
    let answer = client.read_to_end().unwrap_or_else(|gone| panic!("{bytes:02x?}: {gone:?}"));
    let is_error =
        first_message(&answer).is_some_and(|message| message.tag == b'E' && message.fields().severity() == "FATAL");
    assert!(answer.is_empty() || is_error || answer.starts_with(b"HTTP/1."), "{bytes:02x?}: {answer:02x?}");
    answer
}

#[test]
fn startup_garbage_is_refused() {
    let proxy = usual();
    let bystander = Bystander::start(&proxy);
    let length =
        |length: u32| [length.to_be_bytes().as_slice(), &PROTOCOL_3_0.to_be_bytes(), b"user\0app\0\0"].concat();
    let mut garbage: Vec<Vec<u8>> =
        [0, 1, 3, 4, 7, 10_001, 1 << 20, 0x7FFF_FFFF, 0x8000_0000, u32::MAX].map(length).to_vec();
    garbage.extend([
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        vec![0xFF; 64],
        vec![0; 64],
        untagged(PROTOCOL_3_0, b""),
        untagged(PROTOCOL_3_0, b"\0"),
        untagged(PROTOCOL_3_0, b"user\0app"),
        untagged(PROTOCOL_3_0, b"user\0app\0database\0\0"),
        untagged(PROTOCOL_3_0, b"database\0app\0\0"),
        untagged(PROTOCOL_3_0, b"user\0\0\0"),
        untagged(PROTOCOL_3_0, b"user\0\xff\xfe\0\0"),
        untagged(0, b"\0"),
        untagged(CANCEL_REQUEST, b""),
        untagged(CANCEL_REQUEST, b"\0\0\0\x01"),
        untagged(CANCEL_REQUEST, &[7; 4096]),
        untagged(SSL_REQUEST, b"more than nothing"),
    ]);
    for bytes in &garbage {
        let mut client = RawClient::tcp(proxy.port);
        let _ = client.send(bytes);
        // What the proxy cannot yet know to be garbage, it learns at the end of the stream.
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
        let answer = client.read_to_end().unwrap_or_else(|gone| panic!("{bytes:02x?}: {gone:?}"));
        let tag = answer.first().copied();
        assert!(matches!(tag, None | Some(b'E' | b'N' | b'R')), "{bytes:02x?}: {answer:02x?}");
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}

#[test]
fn a_web_browser_is_told() {
    let proxy = usual();
    for request in [
        "GET / HTTP/1.1\r\nHost: db\r\n\r\n",
        "POST /x HTTP/1.0\r\n\r\n",
        "HEAD / HTTP/1.1\r\n\r\n",
        "PUT / HTTP/1.1\r\n\r\n",
    ] {
        let answer = refused(proxy.port, request.as_bytes());
        assert!(!answer.is_empty(), "{request:?} is answered with silence");
    }
    proxy.assert_serving();
}

#[test]
fn login_garbage_is_refused() {
    let proxy = usual();
    let bystander = Bystander::start(&proxy);
    let lengths =
        [0_u32, 1, 3, 4, 70_000, 0x7FFF_FFFF, u32::MAX].map(|length| [b"p".as_slice(), &length.to_be_bytes()].concat());
    let mut garbage: Vec<Vec<u8>> = lengths.to_vec();
    garbage.extend([
        query("SELECT 1"),
        sync(),
        frame(b'p', b""),
        frame(b'p', b"\0"),
        frame(b'p', b"SCRAM-SHA-256"),
        frame(b'p', b"SCRAM-SHA-256\0"),
        frame(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
        frame(b'p', b"SCRAM-SHA-256\0\0\0\0\x05n,,n="),
        frame(b'p', b"SCRAM-SHA-256\0\0\0\0\xffn,,n=,r=x"),
        frame(b'p', b"SCRAM-SHA-999\0\0\0\0\x08n,,n=,r=x"),
        frame(b'p', b"SCRAM-SHA-256-PLUS\0\0\0\0\x0ap=x,,n=,r=y"),
        frame(b'p', b"SCRAM-SHA-256\0\0\0\0\x0ay,,n=,r=\xff\xfe"),
        frame(b'p', &vec![b'A'; 60_000]),
        vec![0; 16],
    ]);
    for bytes in &garbage {
        let mut client = RawClient::tcp(proxy.port);
        client.send(&app_login().packet()).unwrap();
        assert_eq!(client.read().map(|message| message.tag), Ok(b'R'));
        let _ = client.send(bytes);
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
        let answer = client.read_to_end().unwrap_or_else(|gone| panic!("{bytes:02x?}: {gone:?}"));
        let first = first_message(&answer);
        // SCRAM may go one step on before it fails; nobody gets in.
        assert!(
            first.is_none_or(|m| m.tag == b'E' || m.body.starts_with(&[0, 0, 0, 11])),
            "{bytes:02x?}: {answer:02x?}"
        );
        assert!(!answer.windows(6).any(|window| window == b"Z\0\0\0\x05I"), "{bytes:02x?} logged in");
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}

/// Frames that end a session in one way or another.
fn session_garbage() -> Vec<Vec<u8>> {
    let mut garbage = Vec::new();
    for tag in *b"QPBDECSHdcfXFp" {
        for length in [0_u32, 1, 3, 70_000, 0x7FFF_FFFF, 0x8000_0000, u32::MAX] {
            garbage.push([[tag].as_slice(), &length.to_be_bytes()].concat());
        }
    }
    garbage.extend([0, 1, b'A', b'R', b'Z', b'z', b'~', 0x80, 0xFF].map(|tag| frame(tag, b"what is this")));
    garbage
}

/// Whole frames with a body that is no such message.
fn malformed_bodies() -> Vec<Vec<u8>> {
    vec![
        frame(b'Q', b""),
        frame(b'Q', b"SELECT 1"),
        frame(b'P', b""),
        frame(b'P', b"name"),
        frame(b'P', b"name\0SELECT 1"),
        frame(b'P', b"name\0SELECT 1\0"),
        frame(b'P', b"name\0SELECT 1\0\xff\xff"),
        frame(b'B', b""),
        frame(b'B', b"portal\0statement\0"),
        frame(b'B', b"\0\0\xff\xff"),
        frame(b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff"),
        frame(b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe"),
        frame(b'B', b"\0\0\0\0\xff\xff"),
        frame(b'D', b""),
        frame(b'D', b"X\0"),
        frame(b'D', b"S"),
        frame(b'C', b""),
        frame(b'C', b"Q\0"),
        frame(b'E', b""),
        frame(b'E', b"portal\0"),
        frame(b'E', b"\0\0\0"),
        frame(b'F', b""),
        frame(b'F', b"\0\0\x05\x75\xff\xff"),
        frame(b'p', b"password after the login\0"),
    ]
}

#[test]
fn session_garbage_ends_its_session_only() {
    // 64 KiB is the least limit the configuration allows.
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("server.message_bytes_max", "65536").start_ready();
    let bystander = Bystander::start(&proxy);
    for bytes in session_garbage() {
        let mut client = proxy.client();
        let _ = client.send(&bytes);
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
        let answer = client.read_to_end().unwrap_or_else(|gone| panic!("{bytes:02x?}: {gone:?}"));
        if let Some(first) = first_message(&answer) {
            assert!(matches!(first.tag, b'E' | b'Z'), "{bytes:02x?}: {}", first.describe());
        }
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}

#[test]
fn a_message_beyond_the_limit_is_refused_before_it_is_sent() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("server.message_bytes_max", "65536").start_ready();
    let mut client = proxy.client();
    client.send(&[b"Q".as_slice(), &70_000_u32.to_be_bytes()].concat()).unwrap();
    let message = client.read().expect("an error, not a wait for 70 kB");
    assert_eq!((message.tag, message.fields().sqlstate().to_owned()), (b'E', "08P01".to_owned()));
    let mut client = proxy.client();
    let fits = "x".repeat(65_000);
    assert_eq!(client.value(&format!("SELECT length('{fits}')")), "65000");
}

#[test]
fn malformed_messages_are_errors() {
    let proxy = usual();
    let bystander = Bystander::start(&proxy);
    for bytes in malformed_bodies() {
        let mut client = proxy.client();
        client.send(&[bytes.clone(), sync()].concat()).unwrap();
        let outcome = client.answer();
        match &outcome {
            // PostgreSQL 15 takes some of these for what they almost are; most are 08P01.
            Err(Gone::Refused(fields)) => assert!(!fields.sqlstate().starts_with("XX"), "{bytes:02x?}: {fields:?}"),
            other => panic!("{bytes:02x?}: {other:?}"),
        }
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}

#[test]
fn a_login_that_is_not_finished_is_cut() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("server.login_timeout", "\"1s\"").start_ready();
    let bystander = Bystander::start(&proxy);
    let packet = app_login().packet();
    let beginnings: [&[u8]; 4] = [b"", &packet[..3], &packet[..20], &packet];
    thread::scope(|scope| {
        for beginning in beginnings {
            let port = proxy.port;
            scope.spawn(move || {
                let mut client = RawClient::tcp(port);
                let started = Instant::now();
                client.send(beginning).unwrap();
                client.read_to_end().expect("cut, not kept");
                let waited = started.elapsed();
                assert!(waited > Duration::from_millis(700) && waited < Duration::from_secs(8), "{waited:?}");
            });
        }
        // Dripping bytes does not extend the time.
        scope.spawn(|| {
            let mut client = RawClient::tcp(proxy.port);
            let started = Instant::now();
            let _: Vec<_> = app_login()
                .with("application_name", &"x".repeat(200))
                .packet()
                .iter()
                .map_while(|byte| {
                    thread::sleep(Duration::from_millis(50));
                    client.send(&[*byte]).ok()
                })
                .collect();
            let _ = client.read_to_end();
            assert!(started.elapsed() < Duration::from_secs(8));
        });
    });
    bystander.assert_untouched();
    proxy.assert_serving();
}

#[test]
fn clients_that_hang_up_at_any_byte_disturb_nobody() {
    let proxy = usual();
    let bystander = Bystander::start(&proxy);
    let packet = app_login().packet();
    for length in 0..packet.len() {
        RawClient::tcp(proxy.port).send(&packet[..length]).unwrap();
    }
    let bytes = [query("SELECT 1"), parse("a", "SELECT $1::int"), bind("", "a", &[Some(b"1")]), execute("", 0), sync()]
        .concat();
    for length in (0..bytes.len()).step_by(3) {
        proxy.client().send(&bytes[..length]).unwrap();
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}

#[test]
fn unknown_users_and_databases_use_nothing_up() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("server.max_client_connections", "20").start_ready();
    let bystander = Bystander::start(&proxy);
    for number in 0..30 {
        let mut login = app_login();
        login.database = format!("no_such_database_{number}");
        let outcome = RawClient::login(proxy.port, &login).map(|_| crate::support::rawclient::Answer::default());
        assert_eq!(sqlstate(&outcome), "3D000");
        let mut login = app_login();
        login.user = format!("no_such_user_{number}");
        let outcome = RawClient::login(proxy.port, &login).map(|_| crate::support::rawclient::Answer::default());
        assert_eq!(sqlstate(&outcome), "28P01");
    }
    bystander.assert_untouched();
    proxy.assert_serving();
}
