//! From the first byte to the first `ReadyForQuery`, and the last message: encryption requests,
//! versions, parameters, logins, Terminate.
//!
//! What the proxy may answer differently from PostgreSQL 15 (it knows protocol 3.2) is asserted; all
//! else is compared. Absent on purpose: TLS itself.

use crate::support::cluster::{self, APP_PASSWORD, app_login};
use crate::support::message::*;
use crate::support::proxy::ProxySpec;
use crate::support::rawclient::{Gone, Login, RawClient};
use crate::{CHOPPED_CLIENT, PROXY};

/// The greeting as comparable lines; parameters come in any order.
fn greeting(client: &RawClient) -> Vec<String> {
    let mut lines: Vec<String> = client.greeting.iter().filter(|m| m.tag != b'R').map(Message::describe).collect();
    lines.sort();
    lines
}

fn refusal(port: u16, login: &Login) -> String {
    match RawClient::login(port, login) {
        Err(Gone::Refused(fields)) => format!("{} {} {}", fields.severity(), fields.sqlstate(), fields.message()),
        Err(gone) => format!("{gone:?}"),
        Ok(_) => "logged in".to_owned(),
    }
}

#[test]
fn encryption_is_declined_and_the_login_goes_on() {
    for port in [PROXY.port, CHOPPED_CLIENT.port] {
        let requests: [&[u32]; 4] =
            [&[SSL_REQUEST], &[GSSENC_REQUEST], &[SSL_REQUEST, GSSENC_REQUEST], &[GSSENC_REQUEST, SSL_REQUEST]];
        for codes in requests {
            let mut client = RawClient::tcp(port);
            for code in codes {
                client.send(&untagged(*code, &[])).unwrap();
                assert_eq!(client.read_byte(), Ok(b'N'));
            }
            client.send(&app_login().packet()).unwrap();
            client.authenticate(&app_login()).unwrap();
            assert_eq!(client.value("SELECT 1"), "1");
        }
    }
}

#[test]
fn greetings_agree() {
    let logins = [
        app_login(),
        app_login().with("application_name", "greeting"),
        app_login().with("client_encoding", "LATIN1").with("DateStyle", "German, DMY").with("TimeZone", "Asia/Tokyo"),
        app_login().with("options", "-c work_mem=5MB -c intervalstyle=iso_8601"),
        app_login().with("extra_float_digits", "3").with("search_path", "pg_catalog"),
    ];
    let questions = "SELECT current_setting('application_name'), current_setting('client_encoding'), \
                     current_setting('DateStyle'), current_setting('TimeZone'), current_setting('work_mem'), \
                     current_setting('intervalstyle'), current_setting('extra_float_digits'), current_setting('search_path')";
    for login in logins {
        let mut direct = RawClient::login(cluster::shared().primary(), &login).unwrap();
        let mut proxied = RawClient::login(PROXY.port, &login).unwrap_or_else(|gone| panic!("{login:?}: {gone:?}"));
        assert_eq!(greeting(&direct), greeting(&proxied), "{login:?}");
        // Several times: each may run on another backend.
        for _ in 0..6 {
            assert_eq!(direct.simple(questions), proxied.simple(questions), "{login:?}");
        }
    }
}

#[test]
fn refusals_agree() {
    let login = |user: &str, password: &str, database: &str| Login::new(user, password, database);
    let logins = [
        login("app", "wrong", "app"),
        login("nobody_knows_me", "x", "app"),
        login("app", APP_PASSWORD, "no_such_database"),
        login("app", "", "app"),
        app_login().with("no_such_parameter", "1"),
        app_login().with("client_encoding", "no such encoding"),
    ];
    for login in logins {
        let (direct, proxied) = (refusal(cluster::shared().primary(), &login), refusal(PROXY.port, &login));
        assert_eq!(direct, proxied, "{login:?}");
        assert!(direct.starts_with("FATAL"), "{direct}");
    }
}

#[test]
fn protocol_versions() {
    let mut newer = app_login();
    newer.protocol = PROTOCOL_3_2;
    let mut client = RawClient::login(PROXY.port, &newer).unwrap();
    assert!(!client.greeting.iter().any(|message| message.tag == b'v'), "3.2 needs no negotiation");
    assert!((4..=256).contains(&client.cancel_key.1.len()));
    assert_eq!(client.value("SELECT 1"), "1");

    // An unknown minor version and unknown protocol options: negotiated down, the options named.
    let mut newest = app_login().with("_pq_.fancy", "1").with("_pq_.plain", "0");
    newest.protocol = 3 << 16 | 9999;
    let mut client = RawClient::login(PROXY.port, &newest).unwrap();
    let negotiation = client.greeting.iter().find(|message| message.tag == b'v').expect("NegotiateProtocolVersion");
    let (version, rest) = negotiation.body.split_at(4);
    assert!([PROTOCOL_3_0, PROTOCOL_3_2].contains(&u32::from_be_bytes(version.try_into().unwrap())));
    assert_eq!(rest, b"\0\0\0\x02_pq_.fancy\0_pq_.plain\0");
    assert_eq!(client.value("SELECT 1"), "1");

    for version in [2 << 16, 4 << 16, 1] {
        let mut other = app_login();
        other.protocol = version;
        assert!(refusal(PROXY.port, &other).starts_with("FATAL 0A000"), "{version:#x}");
    }
}

#[test]
fn every_login_method() {
    for method in ["trust", "password", "md5", "scram-sha-256"] {
        let spec = ProxySpec::in_front_of(cluster::shared()).set("auth.method", &format!("{method:?}"));
        let proxy = spec.start_ready();
        let mut client = proxy.client();
        assert_eq!(client.value("SELECT current_user"), "app", "{method}");
        let wrong = refusal(proxy.port, &Login::new("app", "wrong", "app"));
        if method == "trust" {
            assert_eq!(wrong, "logged in");
        } else {
            assert_eq!(wrong, "FATAL 28P01 password authentication failed for user \"app\"", "{method}");
        }
        // A role that the nodes know by an md5 secret.
        let mut client = RawClient::login(proxy.port, &Login::new("app_md5", APP_PASSWORD, "app")).unwrap();
        assert_eq!(client.value("SELECT current_user"), "app_md5", "{method}");
    }
}

#[test]
fn terminate_closes_at_once() {
    for before in [&b""[..], &query("BEGIN"), &query("SELECT 1")] {
        let mut client = PROXY.client();
        if !before.is_empty() {
            client.send(before).unwrap();
            client.answer().unwrap();
        }
        client.send(&terminate()).unwrap();
        assert_eq!(client.read_to_end(), Ok(Vec::new()));
    }
}

/// A client's process id, as it was told, can be signaled by another client.
#[test]
fn a_told_process_id_can_be_signaled() {
    let connect = || {
        let client = RawClient::login(PROXY.port, &app_login()).unwrap();
        let pid = client.greeting.iter().find(|message| message.tag == b'K').unwrap().cancel_key().0;
        (client, pid)
    };
    let mut killer = connect().0;
    // In a transaction: the node ends it, and its client hears what the node said.
    let (mut busy, pid) = connect();
    busy.simple("BEGIN").unwrap();
    assert_eq!(killer.simple(&format!("SELECT pg_terminate_backend({pid})")).unwrap().rows[0][0].as_deref(), Some("t"));
    let refused = busy.simple("SELECT 1").unwrap_err();
    assert!(matches!(&refused, Gone::Refused(fields) if fields.sqlstate() == "57P01"), "{refused:?}");
    // Canceled by a parameter in the extended protocol.
    let (mut sleeper, pid) = connect();
    sleeper.send(&query("SELECT pg_sleep(20)")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let value = pid.to_string();
    killer
        .send(&batch(&[
            parse("", "SELECT pg_cancel_backend($1)"),
            bind("", "", &[Some(value.as_bytes())]),
            execute("", 0),
            sync(),
        ]))
        .unwrap();
    assert_eq!(killer.answer().unwrap().rows[0][0].as_deref(), Some("t"));
    let refused = sleeper.answer().unwrap_err();
    assert!(matches!(&refused, Gone::Refused(fields) if fields.sqlstate() == "57014"), "{refused:?}");
    assert_eq!(sleeper.value("SELECT 1"), "1");
    // Idle, so that no node knows of it: it is ended all the same.
    let (mut idle, pid) = connect();
    killer.simple(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
    let refused = idle.simple("SELECT 1").unwrap_err();
    assert!(matches!(&refused, Gone::Refused(fields) if fields.sqlstate() == "57P01"), "{refused:?}");
    // By the node's own number, in the middle of a write.
    let (mut busy, _) = connect();
    let pid = busy.value("SELECT pg_backend_pid()");
    busy.send(&query("SELECT pg_sleep(20) FOR UPDATE")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    killer
        .send(&batch(&[
            parse("", "SELECT pg_terminate_backend($1)"),
            bind("", "", &[Some(pid.as_bytes())]),
            execute("", 0),
            sync(),
        ]))
        .unwrap();
    assert_eq!(killer.answer().unwrap().rows[0][0].as_deref(), Some("t"));
    let refused = busy.answer().unwrap_err();
    assert!(matches!(&refused, Gone::Refused(fields) if fields.sqlstate() == "57P01"), "{refused:?}");
    // By itself.
    let (mut own, _) = connect();
    let refused = own.simple("SELECT pg_terminate_backend(pg_backend_pid())").unwrap_err();
    assert!(matches!(&refused, Gone::Refused(fields) if fields.sqlstate() == "57P01"), "{refused:?}");
    assert_eq!(own.read(), Err(Gone::Closed), "nothing more is said");
}
