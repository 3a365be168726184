//! A throwaway cluster: one primary, two streaming standbys, on free loopback ports.
//!
//! One cluster is shared by all tests of a test binary; a guardian removes it when the binary ends.
//! Nodes demand scram-sha-256 over TCP. Absent on purpose: failover; tests that kill nodes make
//! their own clusters.

use super::guard::ClusterGuard;
use super::rawclient::{Login, RawClient};
use super::rights::monitor_role;
use super::{free_port, wait_for};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

const STANDBYS: usize = 2;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const SUPERUSER_PASSWORD: &str = "postgres-secret";
/// The password of `replicator`.
pub const REPLICATION_PASSWORD: &str = "replicator-secret";

/// The role that tests log in as; it owns the database of the same name.
pub const APP_USER: &str = "app";
/// Its password.
pub const APP_PASSWORD: &str = "app-secret";
/// The monitor's role.
pub const MONITOR_USER: &str = "pgregent";
/// Its password.
pub const MONITOR_PASSWORD: &str = "monitor-secret";

/// All but the monitor's.
const ROLES: &str = "
    CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'replicator-secret';
    CREATE ROLE app LOGIN PASSWORD 'app-secret';
    CREATE ROLE app_group;
    GRANT app_group TO app;
    CREATE ROLE other LOGIN PASSWORD 'other-secret';
    CREATE ROLE app_md5 LOGIN PASSWORD 'app-secret'";

/// The running cluster.
pub struct Cluster {
    /// Ports, the primary's first.
    pub ports: Vec<u16>,
    directory: PathBuf,
    _guard: ClusterGuard,
}

/// The cluster of this test binary, started by the first test that asks.
pub fn shared() -> &'static Cluster {
    static SHARED: LazyLock<Cluster> = LazyLock::new(Cluster::start);
    &SHARED
}

/// The login that tests use.
pub fn app_login() -> Login {
    Login::new(APP_USER, APP_PASSWORD, APP_USER)
}

impl Cluster {
    /// Starts a cluster.
    pub fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("pgregent-test-{}-{}", std::process::id(), free_port()));
        fs::create_dir_all(&directory).expect("the temporary directory is writable");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&directory));
        }
        let mut cluster = Self { ports: Vec::new(), _guard: ClusterGuard::new(&directory), directory };
        cluster.make_primary();
        for index in 1..=STANDBYS {
            cluster.make_standby(index);
        }
        cluster
    }

    /// The primary's port.
    pub fn primary(&self) -> u16 {
        self.ports[0]
    }

    /// A superuser's connection to the primary.
    pub fn superuser(&self, database: &str) -> RawClient {
        self.superuser_on(0, database)
    }

    /// A superuser's connection to a node; the primary is the first.
    pub fn superuser_on(&self, node: usize, database: &str) -> RawClient {
        RawClient::login(self.ports[node], &Login::new("postgres", SUPERUSER_PASSWORD, database))
            .expect("superuser logs in")
    }

    fn node_directory(&self, index: usize) -> PathBuf {
        self.directory.join(format!("node{index}"))
    }

    fn make_primary(&mut self) {
        let data = self.node_directory(0);
        let password_file = self.directory.join("superuser-password");
        fs::write(&password_file, SUPERUSER_PASSWORD).expect("the directory is writable");
        run(postgres_command("initdb")
            .args(["--auth=scram-sha-256", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg(format!("--pwfile={}", password_file.display()))
            .args(["-D".as_ref(), data.as_os_str()]));
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 200\n\
             shared_buffers = 32MB\nwal_level = replica\nmax_wal_senders = 10\nhot_standby = on\nwal_log_hints = on\n\
             hot_standby_feedback = on\nmax_prepared_transactions = 4\nlogging_collector = off\nlog_statement = none\n",
            self.directory.display()
        );
        append(&data.join("postgresql.conf"), &settings);
        let access = "local all postgres trust\nhost replication replicator 127.0.0.1/32 scram-sha-256\n\
                      host all app_md5 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), access).expect("the directory is writable");
        self.start_node(0);
        let mut superuser = self.superuser("postgres");
        superuser.simple(ROLES).expect("roles are created");
        superuser.simple(&monitor_role(MONITOR_USER, MONITOR_PASSWORD)).expect("the monitor's role is created");
        superuser.simple("SET password_encryption = md5; ALTER ROLE app_md5 PASSWORD 'app-secret'").expect("md5 role");
        superuser.simple("CREATE DATABASE app OWNER app").expect("the test database is created");
    }

    fn make_standby(&mut self, index: usize) {
        let source = format!(
            "host=127.0.0.1 port={} user=replicator password={REPLICATION_PASSWORD} application_name=node{index}",
            self.primary()
        );
        run(postgres_command("pg_basebackup")
            .args(["--dbname", &source, "--checkpoint=fast", "--write-recovery-conf", "--no-sync", "--create-slot"])
            .args(["--slot", &format!("node{index}"), "-D"])
            .arg(self.node_directory(index)));
        self.start_node(index);
    }

    /// Starts a node on a free port, on another one if that was taken meanwhile.
    fn start_node(&mut self, index: usize) {
        let (data, log) = (self.node_directory(index), self.directory.join(format!("node{index}.log")));
        for _ in 0..3 {
            let port = free_port();
            let started = postgres_command("pg_ctl")
                .args(["start", "--wait", "--silent", "-D"])
                .arg(&data)
                .arg("-l")
                .arg(&log)
                .args(["-o", &format!("-p {port}")])
                .stdout(Stdio::null())
                .status();
            if started.is_ok_and(|status| status.success()) {
                self.ports.push(port);
                return;
            }
        }
        panic!("node {index} did not start:\n{}", fs::read_to_string(&log).unwrap_or_default());
    }

    /// Kills a node's postmaster with SIGKILL; its backends follow when they notice.
    #[allow(dead_code, reason = "not every test binary kills nodes")]
    pub fn kill(&self, index: usize) {
        let file = fs::read_to_string(self.node_directory(index).join("postmaster.pid")).expect("the node runs");
        run(Command::new("kill").args(["-9", file.lines().next().expect("it begins with the process")]));
    }

    /// Starts a killed node on its port.
    #[allow(dead_code, reason = "not every test binary kills nodes")]
    pub fn revive(&self, index: usize) {
        let (data, log) = (self.node_directory(index), self.directory.join(format!("node{index}.log")));
        wait_for("the killed node starts", START_TIMEOUT, || {
            let mut command = postgres_command("pg_ctl");
            command.args(["start", "--wait", "--silent", "-D"]).arg(&data).arg("-l").arg(&log);
            command.args(["-o", &format!("-p {}", self.ports[index])]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        });
    }

    /// Waits until every standby has replayed everything the primary has written.
    pub fn wait_replayed(&self) {
        let mut superuser = self.superuser("postgres");
        let lsn = superuser.value("SELECT pg_current_wal_insert_lsn()");
        let sql = format!("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{lsn}'");
        wait_for("standbys replay", START_TIMEOUT, || superuser.value(&sql) == STANDBYS.to_string());
    }
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// A PostgreSQL program, run as a user it accepts.
pub fn postgres_command(program: &str) -> Command {
    let path = bin_directory().join(program);
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// Where the server programs are: `PG_BINDIR`, or the newest packaged version.
pub fn bin_directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("PG_BINDIR") {
        return directory.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let numbers = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let newest = numbers.max().expect("PostgreSQL server programs are installed, or PG_BINDIR names them");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

fn run(command: &mut Command) {
    let output = command.output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
}

fn append(path: &Path, text: &str) {
    let before = fs::read_to_string(path).expect("initdb wrote it");
    fs::write(path, before + text).expect("the directory is writable");
}
