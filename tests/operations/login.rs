//! Logins: every method, every source of secrets, every refusal, compared with PostgreSQL's own.
//!
//! Invariants: PostgreSQL's own answer is the expected one. Absent on purpose: the exchanges step by step (unit tests of auth).

use crate::solo;
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::{Gone, Login, RawClient};
use crate::support::{message, wait_for};
use crate::{LATE_MAX, refused};
use pgregent::demo::cluster::{AUTH_QUERY, Cluster};
use std::sync::LazyLock;
use std::time::Duration;

const ROLES: &str = "
    CREATE ROLE joe LOGIN PASSWORD 'pencil';
    CREATE ROLE eve LOGIN PASSWORD 'pencil';
    CREATE ROLE amy LOGIN PASSWORD 'pencil';
    CREATE ROLE nologin NOLOGIN PASSWORD 'pencil';
    CREATE ROLE expired LOGIN PASSWORD 'pencil' VALID UNTIL '2001-01-01';
    CREATE ROLE barred LOGIN PASSWORD 'pencil';
    CREATE ROLE digest LOGIN;";

/// Beside what the playground has: one role that only md5 fits, one that is not let in.
const HBA: &str = "host all digest 127.0.0.1/32 md5\nhost all barred 127.0.0.1/32 reject\n";

/// One cluster for these tests. A static is never dropped; its guardian cleans up when we end.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = solo::start();
    let node = solo::node(&cluster);
    let hba = node.data_dir().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("{HBA}{rules}")).unwrap();
    node.psql(ROLES).unwrap();
    node.psql("SET password_encryption = 'md5'; ALTER ROLE digest PASSWORD 'pencil'").unwrap();
    node.psql("SELECT pg_reload_conf()").unwrap();
    cluster
});

fn node_port() -> u16 {
    solo::node(&CLUSTER).port()
}

fn sql(text: &str) -> String {
    solo::node(&CLUSTER).psql(text).unwrap().trim().to_owned()
}

fn secret_of(role: &str) -> String {
    sql(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"))
}

fn try_login(port: u16, role: &str, password: &str) -> Result<RawClient, Gone> {
    RawClient::login(port, &Login::new(role, password, "app"))
}

fn asking_the_nodes(ttl: &str) -> ProxySpec {
    solo::proxy(&CLUSTER)
        .without_users()
        .set("auth.auth_query", &format!("{AUTH_QUERY:?}"))
        .set("auth.auth_query_ttl", &format!("{ttl:?}"))
}

/// Ready without the usual test user having to be known.
fn start(spec: ProxySpec) -> Proxy {
    let proxy = spec.start();
    wait_for("the proxy is ready", LATE_MAX, || proxy.http("/health/ready").is_ok_and(|(status, _)| status == 200));
    proxy
}

fn works(port: u16, role: &str, password: &str) {
    let mut client = try_login(port, role, password).unwrap_or_else(|gone| panic!("login as {role}: {gone:?}"));
    assert_eq!(client.value("SELECT current_user"), role);
    assert_eq!(client.value("BEGIN; SELECT session_user; COMMIT"), role);
}

#[test]
fn every_method_and_every_kind_of_secret() {
    let verifier = secret_of("joe");
    assert!(verifier.starts_with("SCRAM-SHA-256$"));
    let hash = secret_of("digest");
    let wrong = |port| assert_eq!(refused(try_login(port, "joe", "pen")).sqlstate(), "28P01");
    for method in ["scram-sha-256", "md5", "password"] {
        for secret in ["pencil", &verifier] {
            let users = solo::proxy(&CLUSTER).user("joe", secret).user("digest", "pencil");
            let proxy = start(users.set("auth.method", &format!("{method:?}")));
            works(proxy.port, "digest", "pencil");
            wrong(proxy.port);
            works(proxy.port, "joe", "pencil");
        }
    }
    let digest = solo::proxy(&CLUSTER).user("digest", &hash).set("auth.method", "\"md5\"");
    works(start(digest).port, "digest", "pencil");
    let trusting = start(solo::proxy(&CLUSTER).user("joe", "pencil").set("auth.method", "\"trust\""));
    works(trusting.port, "joe", "whatever");
}

#[test]
fn a_userlist_is_read() {
    let spec = solo::proxy(&CLUSTER).without_users();
    let path = std::env::temp_dir().join(format!("pgregent-userlist-{}", std::process::id()));
    std::fs::write(&path, format!("; ours\n\"joe\" \"{}\"\n\"eve\" \"pencil\"\n", secret_of("joe"))).unwrap();
    let proxy = start(spec.set("auth.userlist", &format!("{:?}", path.display().to_string())));
    std::fs::remove_file(&path).unwrap();
    works(proxy.port, "joe", "pencil");
    works(proxy.port, "eve", "pencil");
    assert_eq!(refused(try_login(proxy.port, "amy", "pencil")).sqlstate(), "28P01");
}

#[test]
fn with_auth_query_alone_the_clients_proof_opens_the_node() {
    let proxy = start(asking_the_nodes("10s"));
    works(proxy.port, "joe", "pencil");
    for (role, password) in [("joe", "pen"), ("nologin", "pencil"), ("expired", "pencil"), ("nobody", "pencil")] {
        let fields = refused(try_login(proxy.port, role, password));
        let text = format!("password authentication failed for user \"{role}\"");
        assert_eq!((fields.sqlstate(), fields.message()), ("28P01", &*text));
    }
    assert!(!std::fs::read_to_string(proxy.config()).unwrap().contains("pencil"));
    // Every new backend needs the proof again: more of them than one login ever opened.
    let mut clients: Vec<_> = (0..4).map(|_| try_login(proxy.port, "joe", "pencil").unwrap()).collect();
    clients.iter_mut().for_each(|client| drop(client.simple("BEGIN; SELECT 1").unwrap()));
    assert_eq!(sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'joe' AND state LIKE 'idle in%'"), "4");
}

#[test]
fn a_changed_password_counts_at_once() {
    for (ttl, role) in [("0s", "amy"), ("1s", "eve")] {
        sql(&format!("ALTER ROLE {role} PASSWORD 'pencil'"));
        let proxy = start(asking_the_nodes(ttl));
        works(proxy.port, role, "pencil");
        let mut veteran = try_login(proxy.port, role, "pencil").unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        sql(&format!("ALTER ROLE {role} PASSWORD 'crayon'"));
        works(proxy.port, role, "crayon");
        assert_eq!(refused(try_login(proxy.port, role, "pencil")).sqlstate(), "28P01", "ttl {ttl}");
        assert_eq!(veteran.value("SELECT 'still here'"), "still here");
        // New backends are opened by the new proof.
        sql(&format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'"));
        works(proxy.port, role, "crayon");
        sql(&format!("ALTER ROLE {role} PASSWORD 'pencil'"));
    }
}

#[test]
fn refusals_read_as_postgresqls_own() {
    let proxy = start(solo::proxy(&CLUSTER).user("joe", "pencil").user("barred", "pencil"));
    let own = |role: &str, password: &str, database: &str| {
        let login = Login::new(role, password, database);
        (refused(RawClient::login(proxy.port, &login)), refused(RawClient::login(node_port(), &login)))
    };
    for (role, password, database) in [("joe", "pen", "app"), ("nobody", "x", "app"), ("joe", "pencil", "nowhere")] {
        let (ours, theirs) = own(role, password, database);
        assert_eq!(
            (ours.severity(), ours.sqlstate(), ours.message()),
            (theirs.severity(), theirs.sqlstate(), theirs.message())
        );
    }
    let (ours, theirs) = own("barred", "pencil", "app");
    assert_eq!((ours.severity(), ours.sqlstate()), ("FATAL", theirs.sqlstate()));
    assert_eq!(ours.message(), theirs.message());
    works(proxy.port, "joe", "pencil");
}

#[test]
fn an_unknown_user_looks_like_a_wrong_password() {
    let proxies = [
        start(solo::proxy(&CLUSTER).user("joe", "pencil").set("auth.method", "\"scram-sha-256\"")),
        // As in PostgreSQL, md5 becomes SCRAM for such a user, and for one that is not known.
        start(solo::proxy(&CLUSTER).user("joe", &secret_of("joe")).set("auth.method", "\"md5\"")),
        start(asking_the_nodes("10s")),
    ];
    let shape = |port: u16, role: &str| {
        let mut client = RawClient::tcp(port);
        let login = Login::new(role, "wrong", "app");
        client.send(&login.packet()).unwrap();
        let outcome = client.authenticate(&login);
        assert_eq!(refused(outcome).sqlstate(), "28P01");
        let sizes: Vec<_> = client.greeting.iter().map(|message| (message.tag, message.body.len())).collect();
        assert_eq!(client.read(), Err(Gone::Closed));
        sizes
    };
    for proxy in &proxies {
        assert_eq!(shape(proxy.port, "joe"), shape(proxy.port, "job"));
        // The salt of a user that does not exist is the same each time, as a real one's is.
        let salt = |role: &str| {
            let mut client = RawClient::tcp(proxy.port);
            let login = Login::new(role, "wrong", "app");
            client.send(&login.packet()).unwrap();
            drop(client.authenticate(&login));
            let first = client.greeting.iter().find(|message| message.body.starts_with(&[0, 0, 0, 11]))?;
            let text = String::from_utf8_lossy(&first.body[4..]).into_owned();
            text.split(',').find(|part| part.starts_with("s=")).map(str::to_owned)
        };
        assert_eq!(salt("job"), salt("job"));
        assert!(salt("job").is_none() || salt("job") != salt("jub"));
    }
    // Out of turn: a statement in place of the proof.
    let mut client = RawClient::tcp(proxies[0].port);
    client.send(&Login::new("joe", "pencil", "app").packet()).unwrap();
    client.read().unwrap();
    client.send(&message::query("SELECT 1")).unwrap();
    assert_eq!(client.read().unwrap().fields().sqlstate(), "08P01");
}
