//! A throwaway cluster of real servers for these tests: one primary, streaming standbys, the monitor
//! role with exactly the rights that the manual asks for.
//!
//! Invariants: free loopback ports only; every server ends with its test. Absent on purpose: the
//! proxy.

use crate::rights::monitor_role;
use pgregent::config::{
    AdminConfig, AuthConfig, AuthMethod, BalanceKind, ClusterConfig, Config, Consistency, CoordinationKind, EtcdConfig,
    FailoverMode, ForeignTables, LogConfig, NodeConfig, Pinning, PoolConfig, PoolMode, RouteConfig, Secret,
    ServerConfig,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const SQL: &str = "\
    CREATE ROLE rep LOGIN REPLICATION PASSWORD 'rep''s \\ secret'; \
    CREATE TABLE t (id bigint PRIMARY KEY);";

/// How the cluster differs from the usual one.
#[derive(Clone, Copy)]
pub struct Shape {
    pub standbys: usize,
    pub retry_interval: &'static str,
    /// The monitor role has REPLICATION and may create slots.
    pub may_make_slots: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { standbys: 2, retry_interval: "5s", may_make_slots: true }
    }
}

pub struct Cluster {
    pub dir: PathBuf,
    pub ports: Vec<u16>,
}

impl Cluster {
    pub fn start(shape: Shape) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::SeqCst);
        let dir = std::env::temp_dir().join(format!("pgregent-control-{}-{serial}", std::process::id()));
        let ports = free_ports(shape.standbys + 1);
        let cluster = Self { dir, ports };
        cluster.pg("mkdir", &[cluster.dir.to_str().unwrap()]);
        let password = cluster.dir.join("password");
        cluster.pg("sh", &["-c", &format!("echo postgres > {}", password.display())]);
        let (first, pw) = (cluster.data(0), format!("--pwfile={}", password.display()));
        cluster.pg("initdb", &["-D", &first, "-A", "scram-sha-256", "-N", "-U", "postgres", &pw]);
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\nwal_log_hints = on\n\
             shared_buffers = 16MB\nmax_connections = 30\nwal_retrieve_retry_interval = '{}'\n",
            shape.retry_interval
        );
        cluster.configure(0, &settings);
        cluster.run_node(0);
        cluster.sql(0, &monitor_role("mon", "mon secret"));
        cluster.sql(0, SQL);
        if !shape.may_make_slots {
            cluster.sql(0, "ALTER ROLE mon NOREPLICATION");
        }
        for node in 1..=shape.standbys {
            let (port, slot, data) = (cluster.ports[0].to_string(), format!("slot_{node}"), cluster.data(node));
            let backup =
                ["-h", "127.0.0.1", "-p", &port, "-U", "rep", "-D", &data, "-R", "-C", "-S", &slot, "-c", "fast", "-N"];
            cluster.pg("pg_basebackup", &backup);
            cluster.configure(node, "");
            cluster.run_node(node);
        }
        cluster
    }

    pub fn data(&self, node: usize) -> String {
        self.dir.join(format!("n{node}")).display().to_string()
    }

    pub fn run_node(&self, node: usize) {
        let log = self.dir.join(format!("n{node}.log")).display().to_string();
        self.pg("pg_ctl", &["-D", &self.data(node), "-w", "-l", &log, "start"]);
    }

    fn configure(&self, node: usize, more: &str) {
        let (port, data) = (self.ports[node], self.data(node));
        self.pg("sh", &["-c", &format!("cat >> {data}/postgresql.conf <<'END'\nport = {port}\n{more}\nEND")]);
    }

    pub fn postmaster(&self, node: usize) -> String {
        let text = std::fs::read_to_string(Path::new(&self.data(node)).join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().to_owned()
    }

    pub fn kill(&self, node: usize) {
        assert!(Command::new("kill").args(["-9", &self.postmaster(node)]).status().unwrap().success());
    }

    /// As superuser; returns what psql prints, unaligned.
    pub fn sql(&self, node: usize, sql: &str) -> String {
        let port = self.ports[node].to_string();
        let args = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql];
        self.pg("psql", &args)
    }

    /// Runs a program as a user whom PostgreSQL accepts.
    fn pg(&self, program: &str, args: &[&str]) -> String {
        let installed = Path::new("/usr/lib/postgresql/15/bin").join(program);
        let program = if installed.exists() { installed } else { PathBuf::from(program) };
        let root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let mut command = if root { Command::new("runuser") } else { Command::new(&program) };
        if root {
            command.args(["-u", "postgres", "--"]).arg(&program);
        }
        let password = if args.contains(&"rep") { r"rep's \ secret" } else { "postgres" };
        let command = command.args(args).env("PGPASSWORD", password).current_dir("/").stdin(Stdio::null());
        let quiet = args.contains(&"start");
        // A server that stays must not hold our pipes.
        let output = if quiet {
            command.stdout(Stdio::null()).stderr(Stdio::null()).output().unwrap()
        } else {
            command.output().unwrap()
        };
        assert!(output.status.success(), "{program:?} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A configuration whose nodes are this cluster's.
    pub fn config(&self) -> Arc<Config> {
        let names = ["pg1", "pg2", "pg3", "pg4"];
        let nodes = self.ports.iter().zip(names).map(|(port, name)| node_config(name, *port)).collect();
        Arc::new(config(nodes, self.dir.with_extension("state")))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.ports.len() {
            if let Ok(text) = std::fs::read_to_string(Path::new(&self.data(node)).join("postmaster.pid")) {
                let pid = text.lines().next().unwrap_or_default().to_owned();
                let _ = Command::new("kill").args(["-QUIT", &pid]).stderr(Stdio::null()).status();
                for _ in 0..200 {
                    // An empty command line is a process that waits to be reaped.
                    let line = std::fs::read(Path::new("/proc").join(&pid).join("cmdline"));
                    if line.is_ok_and(|line| line.is_empty()) || !Path::new("/proc").join(&pid).exists() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        let _ = std::fs::remove_dir_all(self.dir.with_extension("state"));
    }
}

pub fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

pub fn node_config(name: &str, port: u16) -> NodeConfig {
    NodeConfig {
        tls: Default::default(),
        name: name.into(),
        host: "127.0.0.1".into(),
        port,
        replication_host: "127.0.0.1".into(),
        replication_port: port,
        weight: 100,
        drain: false,
        zone: None,
        failover_priority: 100,
        application_name: name.into(),
        patroni_url: None,
        budget: 10,
    }
}

pub fn config(nodes: Vec<NodeConfig>, state_dir: PathBuf) -> Config {
    let ms = Duration::from_millis;
    Config {
        etcd: EtcdConfig::default(),
        tls: Default::default(),
        server: ServerConfig {
            listen: vec![],
            unix_socket_dir: None,
            unix_socket_permissions: 0o777,
            proxy_protocol_from: vec![],
            max_client_connections: 1,
            accept_queue: 1,
            accept_queue_timeout: ms(1),
            login_timeout: ms(1),
            drain_timeout: ms(1),
            workers: 1,
            message_bytes_max: 1 << 20,
            client_write_timeout: ms(1),
            client_idle_timeout: None,
            zone: None,
        },
        admin: AdminConfig { listen: None, console: false, console_users: Vec::new(), console_readers: Vec::new() },
        cluster: cluster_config(state_dir),
        nodes,
        pool: PoolConfig {
            mode: PoolMode::Transaction,
            size: 1,
            node_budget: 1,
            replication_connections_max: 1,
            queue_timeout: ms(1),
            idle_timeout: None,
            lifetime: None,
            connects_max: 1,
            connect_timeout: ms(1),
            prepared_statements_max: 1,
            prepared_bytes_max: 1,
            pinning: Pinning::Allow,
            transaction_idle_timeout: None,
        },
        route: RouteConfig {
            read_write_split: true,
            consistency: Consistency::Session,
            balance: BalanceKind::Random2,
            slow_start: Duration::from_secs(10),
            lag_bytes_max: Some(16 << 20),
            replay_lag_max: Some(ms(10_000)),
            classify_bytes_max: 65_536,
            retry_budget_percent: 20,
            learned_ttl: ms(600_000),
            read_functions: vec![],
            write_functions: vec![],
            catalog: true,
            catalog_interval: None,
            foreign_tables: ForeignTables::Primary,
            optimistic_transactions: false,
            shadow: false,
            fresh_wait: Duration::ZERO,
            redirects: vec![],
        },
        auth: AuthConfig {
            method: AuthMethod::ScramSha256,
            users: vec![],
            userlist: None,
            auth_query: None,
            auth_query_user: String::new(),
            auth_query_password: Secret::default(),
            auth_query_database: String::new(),
            auth_query_ttl: ms(1),
            failed_logins_per_address: 0,
            failed_logins_per_user: 0,
            hba_file: None,
            ident_file: None,
        },
        hooks: Default::default(),
        log: LogConfig { json: false, filter: "info".into(), slow_statement: None, failed_statements: false },
    }
}

fn cluster_config(state_dir: PathBuf) -> ClusterConfig {
    let ms = Duration::from_millis;
    ClusterConfig {
        tls: Default::default(),
        name: "main".into(),
        monitor_user: "mon".into(),
        monitor_password: Secret::new("mon secret"),
        monitor_database: "postgres".into(),
        failover: FailoverMode::Automatic,
        coordination: CoordinationKind::Single,
        lease_duration: Duration::from_secs(2),
        on_quorum_loss: pgregent::config::QuorumLoss::StopWrites,
        witnesses: Vec::new(),
        state_dir,
        probe_interval: ms(500),
        probe_suspect_interval: ms(100),
        probe_timeout: ms(1000),
        probe_fall: 3,
        probe_rise: 2,
        write_probe_interval: ms(500),
        write_probe_warn: ms(2000),
        write_probe_fail: ms(5000),
        connect_probe_interval: ms(2000),
        connect_probe_fail: ms(10_000),
        sample_interval: ms(5),
        failover_min_gap: ms(60_000),
        failover_max_per_hour: 3,
        primary_start_timeout: ms(30_000),
        failover_lag_bytes_max: 1 << 20,
        promote_timeout: ms(30_000),
        fencing: Default::default(),
        fence_sql: false,
        synchronous_standbys: 0,
        synchronous_degrade: Default::default(),
        patroni_authorities: None,
        patroni_ca_file: None,
    }
}
