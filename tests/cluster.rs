//! The throwaway cluster itself: it comes up, survives what tests do to it, and leaves nothing behind.
//!
//! Real PostgreSQL. Every test makes its own cluster on its own ports, so they run in parallel. Absent on
//! purpose: the proxy.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use pgregent::demo::cluster::{
    APP_DATABASE, AUTH_QUERY, Binaries, Cluster, ClusterOptions, MONITOR_USER, Node, Rejoined, Shutdown,
};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Makes `owner_process` below act; without it that test passes at once.
const OWNER_VARIABLE: &str = "PGREGENT_TEST_CLUSTER_OWNER";

fn start(options: ClusterOptions) -> Cluster {
    Cluster::start(options).unwrap_or_else(|error| panic!("the cluster starts: {error}"))
}

fn one_standby() -> ClusterOptions {
    ClusterOptions { standbys: 1, ..ClusterOptions::default() }
}

fn sql(node: &Node, statements: &str) -> String {
    node.psql_in(APP_DATABASE, statements).unwrap_or_else(|error| panic!("{error}"))
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LIMIT.as_millis() / 20 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("not within {LIMIT:?}: {what}");
}

/// Everything that a cluster in `dir` could leave behind.
fn leftovers(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = dir.exists().then(|| dir.display().to_string()).into_iter().collect();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        if std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir)) {
            found.push(process.path().display().to_string());
        }
    }
    found
}

/// Ids of the System V segments that the nodes say they hold (line 7 of postmaster.pid).
fn segments(cluster: &Cluster) -> Vec<String> {
    let segment = |node: &Node| {
        let text = std::fs::read_to_string(node.data_dir().join("postmaster.pid")).unwrap();
        text.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    cluster.nodes().iter().map(segment).collect()
}

fn segment_exists(id: &str) -> bool {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    table.lines().any(|line| line.split_whitespace().nth(1) == Some(id))
}

#[test]
fn one_primary_and_two_standbys_stream() {
    let cluster = start(ClusterOptions::default());
    let [primary, standbys @ ..] = cluster.nodes() else { panic!("no nodes") };
    assert_eq!(cluster.primaries().iter().map(|node| node.name()).collect::<Vec<_>>(), ["pg1"]);
    sql(primary, "CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 1000)");
    cluster.wait_streaming(LIMIT).unwrap();
    for standby in standbys {
        assert_eq!(sql(standby, "SELECT count(*) FROM t"), "1000", "{}", standby.name());
        assert_eq!(standby.psql("SHOW primary_slot_name").unwrap(), standby.name());
        assert_eq!(standby.psql("SHOW wal_retrieve_retry_interval").unwrap(), "200ms");
    }
    let slots = "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots WHERE active";
    assert_eq!(primary.psql(slots).unwrap(), "pg2,pg3");
    let trusting = "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method <> 'scram-sha-256'";
    assert_eq!(primary.psql(trusting).unwrap(), "0");
}

#[test]
fn the_monitor_can_promote_and_repoint_but_is_no_superuser() {
    let cluster = start(ClusterOptions::default());
    let [primary, candidate, other] = cluster.nodes() else { panic!("three nodes") };
    let as_monitor = |node: &Node, statement: &str| {
        let mut config = node.superuser_config("postgres");
        config.user(MONITOR_USER).password(&cluster.passwords().monitor);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client.simple_query(statement).await.map(drop)
        })
    };
    primary.kill9().unwrap();
    as_monitor(candidate, "SELECT pg_promote(true, 30)").unwrap();
    as_monitor(candidate, "SELECT pg_create_physical_replication_slot('pg3', true)").unwrap();
    let conninfo = other.psql("SHOW primary_conninfo").unwrap();
    let conninfo = conninfo.replace(&format!("port={}", primary.port()), &format!("port={}", candidate.port()));
    as_monitor(other, &format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'")).unwrap();
    as_monitor(other, "ALTER SYSTEM SET primary_slot_name = 'pg3'").unwrap();
    as_monitor(other, "SELECT pg_reload_conf()").unwrap();
    cluster.wait_streaming(LIMIT).unwrap();
    for refused in ["SELECT rolpassword FROM pg_authid", "CREATE ROLE r", "ALTER SYSTEM SET fsync = off", "CHECKPOINT"]
    {
        let error = as_monitor(candidate, refused).expect_err(refused);
        assert_eq!(error.code().map(|code| code.code().to_owned()).as_deref(), Some("42501"), "{refused}: {error}");
    }
}

#[test]
fn a_killed_primary_is_rewound_and_streams_from_its_successor() {
    let cluster = start(one_standby());
    let [old, new] = cluster.nodes() else { panic!("two nodes") };
    sql(old, "CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    cluster.wait_streaming(LIMIT).unwrap();
    // Cut off the standby, so that the old primary has a row that the new one never saw.
    new.psql("ALTER SYSTEM SET primary_conninfo = ''; ").unwrap();
    new.psql("SELECT pg_reload_conf()").unwrap();
    wait_for("the standby is cut off", || old.psql("SELECT count(*) FROM pg_stat_replication").unwrap() == "0");
    sql(old, "INSERT INTO t VALUES (2)");
    let pid = old.pid().unwrap();
    old.kill9().unwrap();
    assert!(!old.is_running());
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the postmaster is reaped");
    new.promote().unwrap();
    sql(new, "INSERT INTO t VALUES (3)");
    // The npm packages of `make test-matrix` carry no pg_rewind.
    let (possible, how) = (cluster.binaries().has("pg_rewind"), old.rejoin(new).unwrap());
    assert_eq!(how == Rejoined::Rewound, possible, "{how}");
    cluster.wait_streaming(LIMIT).unwrap();
    assert_eq!(sql(old, "SELECT id FROM t ORDER BY id"), "1\n3");
    assert_eq!(old.psql("SELECT pg_is_in_recovery()").unwrap(), "t");
    assert_eq!(cluster.primaries().iter().map(|node| node.name()).collect::<Vec<_>>(), ["pg2"]);
}

#[test]
fn nodes_stop_in_every_way_and_start_again() {
    let cluster = start(one_standby());
    let [primary, standby] = cluster.nodes() else { panic!("two nodes") };
    let port = standby.port();
    for how in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate] {
        standby.stop(how).unwrap();
        assert!(!standby.is_running() && standby.processes().is_empty(), "{how:?}");
        standby.start().unwrap();
    }
    primary.kill9_all().unwrap();
    wait_for("all processes are gone", || primary.processes().is_empty());
    assert!(primary.psql("SELECT 1").is_err());
    primary.start().unwrap();
    assert_eq!(standby.port(), port);
    standby.kill9_all().unwrap();
    assert_eq!(standby.rejoin(primary).unwrap(), Rejoined::Restarted);
    cluster.wait_streaming(LIMIT).unwrap();
}

#[test]
fn a_frozen_node_answers_nobody_until_thawed() {
    let cluster = start(ClusterOptions { standbys: 0, ..ClusterOptions::default() });
    let node = &cluster.nodes()[0];
    node.freeze().unwrap();
    assert!(node.is_running());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| node.psql("SELECT 1"));
        sleep(Duration::from_millis(300));
        assert!(!asking.is_finished(), "a frozen node answered");
        node.thaw().unwrap();
        assert_eq!(asking.join().unwrap().unwrap(), "1");
    });
}

#[test]
fn standbys_can_be_copied_without_pg_basebackup() {
    // Below the temporary directory, because PostgreSQL's user must be able to follow the links.
    let bin = std::env::temp_dir().join(format!("pgregent-bin-{}", std::process::id()));
    std::fs::create_dir_all(&bin).unwrap();
    let whole = Binaries::find().unwrap();
    for program in ["initdb", "postgres"] {
        symlink(whole.path(program), bin.join(program)).unwrap();
    }
    let result = std::panic::catch_unwind(|| {
        let cluster = start(ClusterOptions { binaries: Some(Binaries::at(&bin).unwrap()), ..one_standby() });
        let [primary, standby] = cluster.nodes() else { panic!("two nodes") };
        sql(primary, "CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
        cluster.wait_streaming(LIMIT).unwrap();
        assert_eq!(sql(standby, "SELECT count(*) FROM t"), "100");
        primary.kill9().unwrap();
        standby.promote().unwrap();
        assert!(matches!(primary.rejoin(standby).unwrap(), Rejoined::Rebuilt { .. }));
        cluster.wait_streaming(LIMIT).unwrap();
    });
    std::fs::remove_dir_all(&bin).unwrap();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn auth_query_reads_ordinary_secrets_only() {
    let cluster = start(ClusterOptions { standbys: 0, auth_query: true, ..ClusterOptions::default() });
    let node = &cluster.nodes()[0];
    let ask = |role: &str| {
        let query = AUTH_QUERY.replace("$1", &format!("'{role}'"));
        node.psql(&format!("SET ROLE pgregent; {query}")).unwrap()
    };
    assert!(ask("app").starts_with("app|SCRAM-SHA-256$"), "{}", ask("app"));
    assert_eq!(ask("postgres"), "");
    assert_eq!(ask("nobody"), "");
    let error = node.psql("SET ROLE app; SELECT * FROM pgregent_secret('app')").unwrap_err();
    assert_eq!(error.sqlstate(), Some("42501"), "{error}");
}

#[test]
fn dropping_leaves_no_process_no_directory_and_no_shared_memory() {
    let cluster = start(one_standby());
    let (dir, held) = (cluster.dir().to_owned(), segments(&cluster));
    assert!(leftovers(&dir).len() > 4, "the test sees what there is: {:?}", leftovers(&dir));
    assert!(held.iter().all(|id| segment_exists(id)));
    cluster.nodes()[0].kill9().unwrap();
    cluster.nodes()[1].freeze().unwrap();
    drop(cluster);
    assert_eq!(leftovers(&dir), Vec::<String>::new());
    assert!(!held.iter().any(|id| segment_exists(id)), "{held:?}");
}

#[test]
fn a_killed_owner_leaves_nothing_behind() {
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner.args(["--exact", "owner_process", "--nocapture", "--test-threads=1"]).env(OWNER_VARIABLE, "1");
    let mut owner = owner.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let dir = lines.find_map(|line| line.unwrap().split_once("CLUSTER ").map(|(_, dir)| PathBuf::from(dir)));
    let dir = dir.expect("the owner names its directory");
    assert!(leftovers(&dir).len() > 4);
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for("everything is gone", || leftovers(&dir).is_empty());
}

/// Not a test of its own: the other process of the test above.
#[test]
fn owner_process() {
    if std::env::var_os(OWNER_VARIABLE).is_none() {
        return;
    }
    let cluster = start(one_standby());
    println!("CLUSTER {}", cluster.dir().display());
    sleep(Duration::from_secs(600));
}
