//! Other ways in: Unix sockets, and load balancers that say whom they speak for.
//!
//! Absent on purpose: every malformed header (unit and property tests of the parser).

use crate::support::cluster::app_login;
use crate::support::proxy::Proxy;
use crate::support::rawclient::{Gone, Login, RawClient};
use crate::support::tlsclient::Offers;
use crate::support::wait_for;
use crate::{LATE_MAX, Rig, psql_at};
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

#[test]
fn a_unix_socket_leads_in_and_out() {
    let rig = Rig::new("unix");
    // Short: a socket's path has at most 107 bytes.
    let directory = std::env::temp_dir().join(format!("pgr-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let place = directory.display().to_string();
    let spec = rig.plain_proxy().set("server.unix_socket_dir", &format!("{place:?}"));
    let proxy = spec.set("server.unix_socket_permissions", "\"0770\"").start_ready();
    let socket = directory.join(format!(".s.PGSQL.{}", proxy.port));
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o770);
    let at = format!("host={place} port={}", proxy.port);
    assert_eq!(psql_at(&at, "SELECT 6 * 7").as_deref(), Ok("42"));
    assert!(psql_at(&format!("{at} user=nobody"), "SELECT 1").is_err());
    wait_for("who failed is in the log", LATE_MAX, || {
        proxy.log().lines().any(|line| line.contains("unix:uid=") && line.contains("login failed"))
    });

    // A node on the same machine.
    let sockets = rig.cluster.dir().display().to_string();
    let inner = rig.plain_proxy().node_host(&sockets).set("cluster.sslmode", "\"require\"").start_ready();
    assert_eq!(inner.client().value("SELECT inet_client_addr() IS NULL"), "t");
    drop(inner);

    proxy.signal("TERM");
    wait_for("the proxy has ended", LATE_MAX, || !proxy.is_running());
    assert!(!socket.exists() && !directory.join(format!(".s.PGSQL.{}.lock", proxy.port)).exists());
    drop(rig);
    fs::remove_dir_all(directory).unwrap();
}

const SOURCE: &str = "192.0.2.7:4711";

/// A version 2 header for [`SOURCE`], or for the balancer itself.
fn version2(command: u8) -> Vec<u8> {
    let body = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 0x15, 0x38];
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, 0x11, 0, 12], &body].concat()
}

fn log_in(proxy: &Proxy, preamble: &[u8], user: &str) -> Result<RawClient, Gone> {
    let login = Login { user: user.to_owned(), ..app_login() };
    let mut client = RawClient::tcp(proxy.port);
    client.send(&[preamble, &login.packet()].concat())?;
    client.authenticate(&login)?;
    Ok(client)
}

#[test]
fn a_trusted_balancer_says_whom_it_speaks_for() {
    let rig = Rig::new("balancer");
    let proxy = rig.proxy().set("server.proxy_protocol_from", "[\"127.0.0.1\"]").start();
    let version1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 5432\r\n".to_vec();
    wait_for("the proxy serves", LATE_MAX, || log_in(&proxy, &version1, "app").is_ok());
    for header in [version1.clone(), version2(1), version2(0), b"PROXY UNKNOWN\r\n".to_vec()] {
        assert_eq!(log_in(&proxy, &header, "app").unwrap().value("SELECT 1"), "1");
    }
    // The header's author is the peer from then on, in TLS too.
    for (number, header) in [version1.clone(), version2(1)].iter().enumerate() {
        log_in(&proxy, header, &format!("nobody{number}")).err().unwrap();
        let said = format!("client={SOURCE} user=\"nobody{number}\"");
        wait_for(&said, LATE_MAX, || proxy.log().contains(&said));
    }
    for direct in [false, true] {
        let offers = Offers { preamble: version2(1), direct, ..Offers::default() };
        let mut client = offers.client(proxy.port).unwrap();
        client.send(&app_login().packet()).unwrap();
        client.authenticate(&app_login()).unwrap();
        assert_eq!(client.value("SELECT 2"), "2");
    }
    // One byte at a time.
    let mut tcp = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
    tcp.set_nodelay(true).unwrap();
    for byte in [version2(1), vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]].concat() {
        tcp.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut answer = [0];
    std::io::Read::read_exact(&mut tcp, &mut answer).unwrap();
    assert_eq!(&answer, b"S");
}

#[test]
fn a_header_is_neither_guessed_nor_believed_from_anybody() {
    let rig = Rig::new("hostile");
    let trusting = rig.plain_proxy().set("server.proxy_protocol_from", "[\"127.0.0.0/8\"]").start();
    let refusals: [(&[u8], &str); 4] = [
        (b"", "no PROXY header"),
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 99999\r\n", "malformed PROXY header"),
        (&[b'P'; 300], "no PROXY header"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "PROXY header too long"),
    ];
    for (preamble, why) in refusals {
        match log_in(&trusting, preamble, "app") {
            Err(Gone::Refused(error)) => assert!(error.message().contains(why), "{error:?}"),
            other => panic!("{why}: {:?}", other.err()),
        }
    }
    let mut endless = RawClient::tcp(trusting.port);
    let _ = endless.send(&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 4000]].concat());
    assert_eq!(endless.read_to_end().unwrap().first(), Some(&b'E'));

    let other =
        rig.plain_proxy().set("server.proxy_protocol_from", "[\"10.0.0.0/8\", \"2001:db8::/32\"]").start_ready();
    assert!(log_in(&other, &version2(1), "app").is_err());
    assert_eq!(log_in(&other, b"", "app").unwrap().value("SELECT 1"), "1");
    assert!(!other.log().contains(SOURCE), "nobody is believed");
}
