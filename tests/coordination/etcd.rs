//! The `etcd` store on a real etcd: what every store must do and survive; and a strange etcd, logins, certificates.
//!
//! Each test has an etcd of its own. Absent on purpose: PostgreSQL and whole proxies (`pairs`).

use crate::link::Link;
use crate::proxy::Proxy;
use crate::support::etcd::{ClientTls, Etcd};
use crate::support::pki::{Authority, Issued};
use pgregent::clock::Clock;
use pgregent::config::Config;
use pgregent::coordination::conformance::{self, Fault, Ground, Handle, Site, sample};
use pgregent::coordination::{EtcdError, EtcdStore, StoreError};
use pgregent::ctl::CheckArgs;
use pgregent::ctl::check;
use pgregent::failover::standing::Claim;
use serde_json::Value;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// Longer than the shortest that etcd counts: on a busy machine an election takes its time.
const SPAN: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(20);

/// The least that is valid, with these lines of `[etcd]`.
fn config(endpoints: &[String], lines: &str) -> Config {
    Config::parse(&text(endpoints, lines), "p.toml").unwrap_or_else(|problems| panic!("{problems}"))
}

fn text(endpoints: &[String], lines: &str) -> String {
    format!(
        "[cluster]\ncoordination = \"etcd\"\nlease_duration = \"3s\"\nfailover = \"manual\"\n[[node]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n\
         [auth]\nmethod = \"trust\"\n[server]\nlisten = [\"127.0.0.1:2\"]\n[etcd]\nendpoints = {endpoints:?}\n{lines}"
    )
}

fn open(links: Vec<Link>, config: Config, clock: &Clock) -> Proxy {
    assert_eq!(config.cluster.lease_duration, SPAN);
    let clock = clock.clone();
    Proxy::open(links, move || EtcdStore::new(&config, &clock).expect("the configuration is good"))
}

struct Server {
    etcd: Mutex<Etcd>,
    clock: Clock,
}

impl Server {
    fn start() -> Self {
        Self { etcd: Mutex::new(Etcd::start(3)), clock: Clock::machine() }
    }
}

impl Site for Server {
    fn open(&self) -> Box<dyn Handle> {
        let etcd = self.etcd.lock().unwrap();
        let links: Vec<Link> = (0..self.members()).map(|member| Link::to(etcd.port(member))).collect();
        let endpoints: Vec<String> = links.iter().map(|link| format!("http://127.0.0.1:{}", link.port)).collect();
        Box::new(open(links, config(&endpoints, ""), &self.clock))
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn span(&self) -> Duration {
        SPAN
    }

    fn slowness(&self) -> Duration {
        // A request is given a fifth.
        SPAN / 10
    }

    fn ground(&self) -> Ground {
        Ground::empty()
    }

    fn members(&self) -> usize {
        3
    }

    fn fault(&self, member: usize, fault: Fault) {
        let mut etcd = self.etcd.lock().unwrap();
        match fault {
            Fault::Freeze => etcd.freeze(member, true),
            Fault::Thaw => etcd.freeze(member, false),
            Fault::Kill => etcd.kill(member),
            Fault::Restart => etcd.respawn(member),
        }
    }

    fn expires(&self) -> bool {
        true
    }

    fn expire(&self) {
        let etcd = self.etcd.lock().unwrap();
        let leases: Value = serde_json::from_str(&etcd.post("/v3/lease/leases", "{}")).unwrap();
        for lease in leases["leases"].as_array().unwrap() {
            etcd.post("/v3/lease/revoke", &lease.to_string());
        }
    }
}

#[tokio::test]
async fn it_does_what_every_store_must() {
    let server = Server::start();
    conformance::check(server.open().store(), &Ground::empty()).await.unwrap();
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
async fn members_of_another_etcd_are_not_asked() {
    let clock = Clock::machine();
    let (first, second) = (Etcd::start(1), Etcd::start(1));
    let both = [first.endpoints(), second.endpoints()].concat();
    let proxy = open(Vec::new(), config(&both, ""), &clock);
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
    route(&open(Vec::new(), login("etcd-secret"), &clock), &clock).await;
    for wrong in [login("wrong"), config(&etcd.endpoints(), "")] {
        let refused = open(Vec::new(), wrong, &clock).store().recall().await;
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
    route(&open(Vec::new(), with(&authority.file, &client), &clock), &clock).await;
    for wrong in [with(&stranger.file, &client), with(&authority.file, &unknown)] {
        let refused = open(Vec::new(), wrong, &clock).store().recall().await;
        assert!(matches!(refused, Err(StoreError::Etcd(EtcdError::Unreachable { .. }))), "{refused:?}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

/// What `check --connect` says of etcd; the one node is not there.
fn checked(endpoints: &[String], lines: &str) -> String {
    let folder = std::env::temp_dir().join(format!("pgregent-etcd-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("p.toml");
    std::fs::write(&file, text(endpoints, lines)).unwrap();
    let mut out = Vec::new();
    check::run(&CheckArgs { config: file, connect: true }, &mut out).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let said = String::from_utf8(out).unwrap();
    let from = said.find("\nhttp").unwrap_or_else(|| panic!("nothing of etcd: {said}"));
    said[from..said.rfind("\nnodes: ").unwrap()].to_owned()
}

// Not within a runtime: the check makes its own.
#[test]
fn check_says_what_is_missing_in_etcd_and_what_mends_it() {
    let (mut etcd, stranger) = (Etcd::start(3), Etcd::start(1));
    let ok = checked(&etcd.endpoints(), "");
    assert_eq!(ok.matches("  ok\n").count(), 3, "{ok}");
    assert!(ok.contains("  etcd 3."), "{ok}");
    // Members that are not listed, one that belongs elsewhere, one that is nowhere.
    let some = [&etcd.endpoints()[..2], &stranger.endpoints(), &["http://127.0.0.1:1".to_owned()]].concat();
    let said = checked(&some, "");
    assert_eq!(said.matches("problem: it belongs to another etcd cluster").count(), 1, "{said}");
    assert_eq!(said.matches("problem: no answer: ").count(), 1, "{said}");
    assert_eq!(said.matches("warning: this etcd has 1 of the three members").count(), 1, "{said}");
    let said = checked(&etcd.endpoints()[..2], "");
    assert_eq!(said.matches("lists 2: the others would not be asked").count(), 2, "{said}");
    // Most members are gone.
    etcd.kill(1);
    etcd.kill(2);
    let said = checked(&etcd.endpoints(), "");
    assert_eq!(said.matches("problem: no answer: ").count(), 2, "{said}");
    assert_eq!(said.matches("problem: it answers and cannot read or write: ").count(), 1, "{said}");
    etcd.restart(1);
    etcd.restart(2);

    etcd.post("/v3/auth/user/add", r#"{"name": "root", "password": "root-secret"}"#);
    etcd.post("/v3/auth/user/grant", r#"{"user": "root", "role": "root"}"#);
    etcd.post("/v3/auth/user/add", r#"{"name": "pgregent", "password": "etcd-secret"}"#);
    etcd.post("/v3/auth/enable", "{}");
    let one = &etcd.endpoints()[..1];
    let said = checked(one, "");
    assert!(
        said.contains("problem: login refused: ") && said.contains("fix: write [etcd] user and password"),
        "{said}"
    );
    let said = checked(one, "user = \"pgregent\"\npassword = \"wrong\"\n");
    assert!(said.contains("problem: login refused: ") && said.contains("fix: correct [etcd] password"), "{said}");
    let said = checked(one, "user = \"pgregent\"\npassword = \"etcd-secret\"\n");
    assert!(said.contains("problem: keys below pgregent/main/ may not be read and written"), "{said}");
    let grant = "etcdctl role grant-permission pgregent --prefix=true readwrite pgregent/main/;";
    assert!(said.contains(grant), "{said}");
}
