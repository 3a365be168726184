//! `pg_hba.conf`: the same file given to the proxy and to a PostgreSQL server, the same logins tried at both.
//!
//! The judge is a server of its own, so that its rules are for clients only; behind the proxy stands another
//! with the same roles. Invariants: PostgreSQL's answer is the expected one, to the letter. Absent
//! on purpose: what PostgreSQL refuses and we refuse with other words (unit tests of `auth::hba`).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

#[path = "hba/passwords.rs"]
mod passwords;
#[path = "hba/tls.rs"]
mod tls;

use pgregent::demo::cluster::{Cluster, ClusterOptions, Node};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;
use support::cluster::APP_PASSWORD;
use support::proxy::{Proxy, ProxySpec};
use support::rawclient::{Gone, Login, RawClient};
use support::{free_port, wait_for};

const LATE_MAX: Duration = Duration::from_secs(20);

const ROLES: &str = "
    CREATE ROLE joe LOGIN PASSWORD 'pencil';
    CREATE ROLE ann LOGIN PASSWORD 'pencil';
    CREATE ROLE boss LOGIN SUPERUSER PASSWORD 'pencil';
    CREATE ROLE \"odd, name\" LOGIN PASSWORD 'pencil';
    CREATE ROLE \"all\" LOGIN PASSWORD 'pencil';
    CREATE ROLE staff; CREATE ROLE clerks; CREATE ROLE lone;
    GRANT staff TO clerks; GRANT clerks TO ann; GRANT lone TO joe;";

const USERS: [&str; 6] = ["joe", "ann", "boss", "odd, name", "all", "nobody"];
const DATABASES: [&str; 4] = ["app", "joe", "staff", "all"];

/// What the test's own superuser needs, at both.
const ALWAYS: &str = "host all postgres 127.0.0.1/32 scram-sha-256\nlocal all postgres trust\n";

struct Bench {
    judge: Cluster,
    behind: Cluster,
}

/// A static is never dropped; its guardian cleans up when we end.
static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let start = || {
        let app_password = APP_PASSWORD.to_owned();
        let options = ClusterOptions { standbys: 0, auth_query: true, app_password, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).unwrap();
        node(&cluster).psql(ROLES).unwrap();
        for database in DATABASES.iter().filter(|name| **name != "app") {
            node(&cluster).psql(&format!("CREATE DATABASE \"{database}\"")).unwrap();
        }
        node(&cluster).psql("GRANT CONNECT ON DATABASE app TO public").unwrap();
        cluster
    };
    Bench { judge: start(), behind: start() }
});

/// The judge has one set of rules at a time.
static JUDGING: Mutex<()> = Mutex::new(());

fn node(cluster: &Cluster) -> &Node {
    &cluster.nodes()[0]
}

fn version() -> u32 {
    node(&BENCH.judge).psql("SHOW server_version_num").unwrap().trim().parse().unwrap()
}

/// A proxy that knows everybody's password.
fn proxy(rules: &Path) -> ProxySpec {
    let monitor = format!("{:?}", BENCH.behind.passwords().monitor);
    let spec = ProxySpec::new(&[node(&BENCH.behind).port()])
        .without_users()
        .set("cluster.monitor_password", &monitor)
        .set("auth.hba_file", &format!("{:?}", rules.display().to_string()));
    USERS.iter().filter(|user| **user != "nobody").fold(spec, |spec, user| spec.user(user, "pencil"))
}

fn ready(spec: ProxySpec) -> Proxy {
    let proxy = spec.start();
    wait_for("the proxy is ready", LATE_MAX, || proxy.http("/health/ready").is_ok_and(|(status, _)| status == 200));
    proxy
}

/// A directory of this test's files, removed afterwards.
struct Files(std::path::PathBuf);

impl Files {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("pgregent-hba-{}-{}", std::process::id(), free_port()));
        fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a login ends: in, or the error's severity, code and text.
fn outcome(port: u16, from: Ipv4Addr, user: &str, password: &str, database: &str) -> Result<(), String> {
    let login = Login::new(user, password, database);
    let mut client = RawClient::tcp_from(from, port);
    client.send(&login.packet()).unwrap();
    match client.authenticate(&login) {
        Ok(()) => Ok(()),
        Err(Gone::Refused(fields)) => Err(format!("{} {} {}", fields.severity(), fields.sqlstate(), fields.message())),
        Err(gone) => panic!("login as {user} from {from}: {gone:?}"),
    }
}

/// Gives the judge these rules.
fn judge_by(text: &str, maps: &str) {
    let judge = node(&BENCH.judge);
    fs::write(judge.data_dir().join("pg_ident.conf"), maps).unwrap();
    fs::write(judge.data_dir().join("pg_hba.conf"), text).unwrap();
    let wrong =
        judge.psql("SELECT line_number, error FROM pg_hba_file_rules WHERE error NOT LIKE '%cannot match%'").unwrap();
    assert_eq!(wrong.trim(), "", "PostgreSQL does not read these rules");
    judge.psql("SELECT pg_reload_conf()").unwrap();
    // The reload is asynchronous: what the postmaster forks from now on must have the new rules.
    std::thread::sleep(Duration::from_millis(300));
}

/// Tries every user at every database from every address at both; answers how many got in.
fn compare(text: &str, addresses: &[Ipv4Addr]) -> usize {
    let _alone = JUDGING.lock().unwrap_or_else(PoisonError::into_inner);
    let text = format!("{ALWAYS}{text}");
    judge_by(&text, "");
    let files = Files::new();
    let proxy = ready(proxy(&files.write("hba", &text)));
    let mut admitted = 0;
    for from in addresses {
        for user in USERS {
            for database in DATABASES {
                for password in ["pencil", "pen"] {
                    let theirs = outcome(node(&BENCH.judge).port(), *from, user, password, database);
                    let ours = outcome(proxy.port, *from, user, password, database);
                    // A trusted role that does not exist is found out by the node, after the login.
                    assert_eq!(ours, theirs, "{user} ({password}) to {database} from {from} by\n{text}");
                    admitted += usize::from(ours.is_ok());
                }
            }
        }
    }
    admitted
}

const HOME: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const NEAR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);
const FAR: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 1);

#[test]
fn addresses_databases_and_roles() {
    let admitted = compare(
        "host app joe 127.0.0.1/32 scram-sha-256\n\
         hostssl all joe 0.0.0.0/0 trust\n\
         hostgssenc all all 0.0.0.0/0 trust\n\
         hostnossl joe,staff joe 127.0.0.0 255.255.255.0 password\n\
         host sameuser all samehost reject\n\
         host all +staff 127.0.0.77/32 scram-sha-256\n\
         host samerole ann 127.9.0.0/16 scram-sha-256\n\
         host all boss ::1/128 trust\n\
         host app \"odd, name\",nobody 127.0.0.1/8 scram-sha-256\n\
         hostnogssenc \"all\" \"all\" all md5\n\
         host all boss,+lone 127.9.0.1/32 reject\n",
        &[HOME, NEAR, FAR],
    );
    assert!(admitted > 8, "{admitted}");
}

#[test]
fn keywords_quotes_comments_and_lines_that_go_on() {
    let admitted = compare(
        "# a comment\n\
         host \"sameuser\" all all trust # no such database\n\
         host\tall  joe, ann\t127.0.0.1/32 \\\n   scram-sha-256\n\
         \"host\" app,joe all 127.0.0.77/32 \"password\"\n\
         host replication all 127.0.0.1/32 trust\n\
         host samegroup +ann samenet scram-sha-256\n",
        &[HOME, NEAR],
    );
    assert!(admitted > 8, "{admitted}");
    assert_eq!(compare("host all all 10.0.0.0/8 trust\n", &[HOME]), 0);
    assert_eq!(compare("host all all all reject\n", &[HOME]), 0);
}

#[test]
fn included_lists_and_files() {
    let files = Files::new();
    let names = files.write("names", "joe, ann # people\n\"odd, name\"\n");
    let everybody = Command::new("chmod").args(["-R", "a+rX"]).arg(&files.0).status().unwrap();
    assert!(everybody.success());
    assert_eq!(compare(&format!("host app @{} all scram-sha-256\n", names.display()), &[HOME]), 3);
    if version() < 160_000 {
        return eprintln!("not judged: PostgreSQL before 16 includes no files and knows no expressions");
    }
    let more = files.write("more", "host app joe all scram-sha-256\n");
    Command::new("chmod").args(["-R", "a+rX"]).arg(&files.0).status().unwrap();
    let text = format!(
        "include {}\ninclude_if_exists {}/gone\nhost /^sta /^an?n$ all password\n",
        more.display(),
        files.0.display()
    );
    assert_eq!(compare(&text, &[HOME]), 2);
}

#[test]
fn replication_has_rules_of_its_own() {
    let _alone = JUDGING.lock().unwrap_or_else(PoisonError::into_inner);
    let text = format!(
        "{ALWAYS}host all all all reject\nhost replication ann 127.0.0.1/32 scram-sha-256\n\
                        host replication boss 127.0.0.1/32 reject\n"
    );
    judge_by(&text, "");
    let files = Files::new();
    let proxy = ready(proxy(&files.write("hba", &text)));
    for (user, password) in [("joe", "pencil"), ("boss", "pencil"), ("ann", "pen"), ("nobody", "pen")] {
        for mode in ["true", "database"] {
            let refused = |port: u16| {
                let login = Login::new(user, password, "app").with("replication", mode);
                match RawClient::login(port, &login) {
                    Err(Gone::Refused(fields)) => format!("{} {}", fields.sqlstate(), fields.message()),
                    Err(gone) => panic!("{user}: {gone:?}"),
                    Ok(_) => panic!("{user} got in"),
                }
            };
            let (ours, theirs) = (refused(proxy.port), refused(node(&BENCH.judge).port()));
            assert_eq!(ours, theirs, "{user}, replication={mode}");
        }
    }
}

#[test]
fn members_are_asked_of_the_cluster_and_soon_known() {
    let files = Files::new();
    let rules = files.write("hba", "host all +passing all scram-sha-256\nhost all +pg_monitor all reject\n");
    let behind = node(&BENCH.behind);
    behind.psql("CREATE ROLE passing; CREATE ROLE guest LOGIN PASSWORD 'pencil'").unwrap();
    let proxy = ready(proxy(&rules).user("guest", "pencil"));
    let tried = || outcome(proxy.port, HOME, "guest", "pencil", "app");
    let none =
        "FATAL 28000 no pg_hba.conf entry for host \"127.0.0.1\", user \"guest\", database \"app\", no encryption";
    assert_eq!(tried(), Err(none.to_owned()));
    behind.psql("GRANT passing TO guest").unwrap();
    wait_for("the grant counts", LATE_MAX, || tried().is_ok());
    behind.psql("REVOKE passing FROM guest; GRANT pg_monitor TO guest").unwrap();
    let rejected = none.replace("no pg_hba.conf entry for", "pg_hba.conf rejects connection for");
    wait_for("the revocation counts", LATE_MAX, || tried() == Err(rejected.clone()));
}

#[test]
fn a_bad_file_on_reload_keeps_the_old_rules() {
    let files = Files::new();
    let rules = files.write("hba", "host app joe all scram-sha-256\n");
    let proxy = ready(proxy(&rules));
    let tried = |user: &str| outcome(proxy.port, HOME, user, "pencil", "app").is_ok();
    assert!(tried("joe") && !tried("ann"));
    fs::write(&rules, "host app ann all scram-sha-256\nhost app joe all ldap\n\nhost app joe all skram\n").unwrap();
    proxy.signal("HUP");
    wait_for("the problems are told", LATE_MAX, || proxy.log().contains("invalid authentication method \"skram\""));
    let log = proxy.log();
    assert!(log.contains(&format!("{}:2: authentication method \"ldap\" is not supported", rules.display())), "{log}");
    assert!(log.contains(&format!("{}:4: invalid authentication method", rules.display())), "{log}");
    assert!(tried("joe") && !tried("ann"));
    let check = Command::new(env!("CARGO_BIN_EXE_pgregent")).args(["check", "--config"]).arg(proxy.config()).output();
    let check = check.unwrap();
    assert!(!check.status.success());
    let told = String::from_utf8(check.stdout).unwrap();
    assert!(told.contains("hba:2: ") && told.contains("hba:4: ") && told.contains("2 problems"), "{told}");
    fs::write(&rules, "host app ann all scram-sha-256\n").unwrap();
    proxy.signal("HUP");
    wait_for("the new rules count", LATE_MAX, || tried("ann") && !tried("joe"));
}

#[test]
fn host_names_are_looked_up_both_ways() {
    let files = Files::new();
    let name = Command::new("getent").args(["hosts", "127.0.0.1"]).output().unwrap();
    let name = String::from_utf8(name.stdout).unwrap();
    let Some(name) = name.split_whitespace().nth(1) else { return eprintln!("not tried: 127.0.0.1 has no name here") };
    let rules =
        files.write("hba", &format!("host app joe {name} scram-sha-256\nhost app ann .nowhere.invalid trust\n"));
    let proxy = ready(proxy(&rules));
    assert_eq!(outcome(proxy.port, HOME, "joe", "pencil", "app"), Ok(()));
    assert!(outcome(proxy.port, FAR, "joe", "pencil", "app").is_err());
    assert!(outcome(proxy.port, HOME, "ann", "pencil", "app").is_err());
}

#[test]
fn every_failed_login_is_one_line_with_the_rule() {
    let files = Files::new();
    let rules = files.write("hba", "host app joe all scram-sha-256\nhost app ann all reject\n");
    let proxy = ready(proxy(&rules));
    for (user, wanted) in [
        ("joe", format!("scram-sha-256 ({}:1)", rules.display())),
        ("ann", format!("reject ({}:2)", rules.display())),
        ("boss", "no pg_hba.conf entry".to_owned()),
    ] {
        assert!(outcome(proxy.port, HOME, user, "pen", "app").is_err());
        let line = || {
            proxy
                .log()
                .lines()
                .filter(|line| line.contains(&format!("user=\"{user}\"")))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        wait_for("the line is there", LATE_MAX, || !line().is_empty());
        let lines = line();
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(
            lines[0].contains(&wanted) && lines[0].contains("127.0.0.1:") && lines[0].contains("login failed"),
            "{lines:?}"
        );
    }
}
