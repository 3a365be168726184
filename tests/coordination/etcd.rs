//! The `etcd` store on a real etcd: what every store must do, death and silence of members, logins, certificates.
//!
//! Each test has an etcd of its own. Absent on purpose: PostgreSQL and whole proxies (`etcd_proxies`).

use crate::proxy::Proxy;
use crate::support::etcd::{ClientTls, Etcd};
use crate::support::pki::{Authority, Issued};
use futures::FutureExt;
use futures::future::BoxFuture;
use pgregent::clock::Clock;
use pgregent::config::Config;
use pgregent::coordination::conformance::{self, Handle, Site, sample};
use pgregent::coordination::{EtcdError, EtcdStore, StoreError};
use pgregent::failover::event::Record;
use pgregent::failover::standing::Claim;
use std::path::Path;
use std::time::Duration;

/// The least that etcd can count, and what a proxy takes as long.
const SPAN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(20);

/// The least that is valid, with these lines of `[etcd]`.
fn config(endpoints: &[String], lines: &str) -> Config {
    let text = format!(
        "[cluster]\ncoordination = \"etcd\"\nfailover = \"manual\"\n[[node]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n\
         [auth]\nmethod = \"trust\"\n[server]\nlisten = [\"127.0.0.1:2\"]\n[etcd]\nendpoints = {endpoints:?}\n{lines}"
    );
    Config::parse(&text, "p.toml").unwrap_or_else(|problems| panic!("{problems}"))
}

fn open(config: Config, clock: &Clock) -> Proxy {
    assert_eq!(config.cluster.lease_duration, SPAN);
    let clock = clock.clone();
    Proxy::open(move || EtcdStore::new(&config, &clock).expect("the configuration is good"))
}

struct Server {
    etcd: Etcd,
    clock: Clock,
}

impl Server {
    fn start() -> Self {
        Self { etcd: Etcd::start(1), clock: Clock::machine() }
    }
}

impl Site for Server {
    fn open(&self) -> BoxFuture<'_, Box<dyn Handle>> {
        let proxy: Box<dyn Handle> = Box::new(open(config(&self.etcd.endpoints(), ""), &self.clock));
        async { proxy }.boxed()
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn span(&self) -> Duration {
        SPAN
    }

    fn records(&self) -> [Record; 2] {
        [sample(1, "a", 1), sample(2, "b", 1)]
    }

    fn outage(&self, on: bool) -> BoxFuture<'_, ()> {
        self.etcd.freeze(0, on);
        async {}.boxed()
    }
}

#[tokio::test]
async fn it_does_what_every_store_must() {
    let server = Server::start();
    conformance::check(server.open().await.store()).await.unwrap();
}

#[tokio::test]
async fn it_does_what_every_shared_store_must() {
    conformance::check_shared(&Server::start()).await.unwrap();
}

/// Whether the lease runs at this moment.
fn leased(proxy: &Proxy, clock: &Clock) -> bool {
    let standing = proxy.store().standing().expect("it is shared");
    let lease = standing.borrow().lease.clone();
    lease.is_some_and(|lease| lease.until > clock.now())
}

async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let clock = Clock::machine();
    let began = clock.now();
    while !holds() {
        assert!(clock.now().since(began) < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(LOOK).await;
    }
    clock.now().since(began)
}

/// Records a primary and takes a lease.
async fn route(proxy: &Proxy, clock: &Clock) {
    proxy.store().claim(Claim::Change);
    let recorded = tokio::time::timeout(LIMIT, proxy.store().record(sample(1, "a", 1))).await;
    recorded.expect("etcd answers").unwrap();
    proxy.store().claim(Claim::Route);
    until("a lease", LIMIT, || leased(proxy, clock)).await;
}

#[tokio::test]
async fn a_killed_etcd_ends_leases_in_time_and_a_restarted_one_gives_them_back() {
    let clock = Clock::machine();
    let mut etcd = Etcd::start(1);
    let proxy = open(config(&etcd.endpoints(), ""), &clock);
    route(&proxy, &clock).await;
    etcd.kill(0);
    let took = until("the lease runs out", SPAN, || !leased(&proxy, &clock)).await;
    assert!(took > SPAN / 2, "a lease of {SPAN:?} ended after {took:?}: a killed etcd alone ends none");
    let refused = tokio::time::timeout(LIMIT, proxy.store().recall()).await.expect("it says so");
    assert!(matches!(refused, Err(StoreError::Etcd(EtcdError::Unreachable { .. }))), "{refused:?}");
    etcd.restart(0);
    until("a lease again", LIMIT, || leased(&proxy, &clock)).await;
    assert_eq!(proxy.store().recall().await.unwrap(), Some(sample(1, "a", 1)));
}

#[tokio::test]
async fn nothing_happens_when_one_member_of_three_dies_or_is_silent() {
    let clock = Clock::machine();
    let mut etcd = Etcd::start(3);
    let proxy = open(config(&etcd.endpoints(), ""), &clock);
    route(&proxy, &clock).await;
    for member in 0..3 {
        for silent in [false, true] {
            if silent {
                etcd.freeze(member, true)
            } else {
                etcd.kill(member)
            }
            let began = clock.now();
            while clock.now().since(began) < SPAN * 2 {
                assert!(leased(&proxy, &clock), "the lease is lost: member {member}, silent {silent}");
                tokio::time::sleep(LOOK).await;
            }
            if silent {
                etcd.freeze(member, false)
            } else {
                etcd.restart(member)
            }
            // So that the others are two again before the next one goes.
            tokio::time::sleep(SPAN).await;
            assert!(leased(&proxy, &clock));
        }
    }
}

#[tokio::test]
async fn members_of_another_etcd_are_not_asked() {
    let clock = Clock::machine();
    let (first, second) = (Etcd::start(1), Etcd::start(1));
    let both = [first.endpoints(), second.endpoints()].concat();
    let proxy = open(config(&both, ""), &clock);
    route(&proxy, &clock).await;
    // Whichever it began with. The other one is healthy, and of no use.
    first.freeze(0, true);
    second.freeze(0, true);
    until("the lease runs out", LIMIT, || !leased(&proxy, &clock)).await;
    for (one, other) in [(&first, &second), (&second, &first)] {
        one.freeze(0, false);
        tokio::time::sleep(SPAN).await;
        if leased(&proxy, &clock) {
            one.freeze(0, true);
            other.freeze(0, false);
            until("the lease runs out", LIMIT, || !leased(&proxy, &clock)).await;
            tokio::time::sleep(SPAN * 2).await;
            assert!(!leased(&proxy, &clock), "another etcd gave a lease");
            return;
        }
        one.freeze(0, true);
    }
    panic!("neither gave a lease back");
}

#[tokio::test]
async fn it_logs_in_with_a_password() {
    let clock = Clock::machine();
    let etcd = Etcd::start(1);
    etcd.post("/v3/auth/user/add", r#"{"name": "root", "password": "root-secret"}"#);
    etcd.post("/v3/auth/user/grant", r#"{"user": "root", "role": "root"}"#);
    etcd.post("/v3/auth/role/add", r#"{"name": "proxies"}"#);
    // base64 of "pgregent/main/" and "pgregent/main0".
    let range = r#"{"name": "proxies", "perm": {"permType": "READWRITE", "key": "cGdyZWdlbnQvbWFpbi8=", "range_end": "cGdyZWdlbnQvbWFpbjA="}}"#;
    etcd.post("/v3/auth/role/grant", range);
    etcd.post("/v3/auth/user/add", r#"{"name": "pgregent", "password": "etcd-secret"}"#);
    etcd.post("/v3/auth/user/grant", r#"{"user": "pgregent", "role": "proxies"}"#);
    etcd.post("/v3/auth/enable", "{}");
    let login =
        |password: &str| config(&etcd.endpoints(), &format!("user = \"pgregent\"\npassword = \"{password}\"\n"));
    route(&open(login("etcd-secret"), &clock), &clock).await;
    for wrong in [login("wrong"), config(&etcd.endpoints(), "")] {
        let refused = open(wrong, &clock).store().recall().await;
        assert!(matches!(refused, Err(StoreError::Etcd(EtcdError::Unreachable { .. }))), "{refused:?}");
    }
}

#[tokio::test]
async fn it_speaks_tls_with_certificates_on_both_sides() {
    let clock = Clock::machine();
    let directory = std::env::temp_dir().join(format!("pgregent-etcd-pki-{}", std::process::id()));
    let (authority, stranger) = (Authority::new(&directory, "etcd-ca"), Authority::new(&directory, "stranger"));
    let server = authority.server(&["127.0.0.1"]);
    let (client, unknown) = (authority.client("pgregent"), stranger.client("pgregent"));
    let tls = ClientTls { cert: &server.cert, key: &server.key, ca: &authority.file };
    let etcd = Etcd::start_with(1, Some(&tls));
    let with = |ca: &Path, own: &Issued| {
        let files = [("ca_file", ca), ("cert_file", &own.cert), ("key_file", &own.key)];
        let lines = files.map(|(key, path)| format!("{key} = {:?}\n", path.display().to_string()));
        config(&etcd.endpoints(), &lines.concat())
    };
    route(&open(with(&authority.file, &client), &clock), &clock).await;
    for wrong in [with(&stranger.file, &client), with(&authority.file, &unknown)] {
        let refused = open(wrong, &clock).store().recall().await;
        assert!(matches!(refused, Err(StoreError::Etcd(EtcdError::Unreachable { .. }))), "{refused:?}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
