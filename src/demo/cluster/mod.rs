//! A throwaway cluster of one primary and its streaming standbys, made with PostgreSQL's own tools.
//!
//! Used by `pgregent demo` and by every test that needs real nodes. Plain threads and processes, no
//! runtime: inside one, call it from `spawn_blocking`.
//!
//! Invariants: nothing is left behind, however we end (see `guard`); several clusters may run at once;
//! nothing listens but on 127.0.0.1, or on the [`Host`]s' addresses; PostgreSQL never runs as root. Absent on purpose: anything worth
//! keeping. The data is gone when the [`Cluster`] is dropped.

mod account;
mod binaries;
mod error;
mod guard;
mod node;
mod port;
mod processes;
mod roles;
mod settings;
mod sql;
mod standby;

pub use binaries::{BIN_VARIABLE, Binaries};
pub use error::ClusterError;
pub use node::{Node, Shutdown};
pub use port::Port;
pub(crate) use processes::signal_term;
pub use roles::{
    APP_DATABASE, APP_USER, AUTH_QUERY, MONITOR_DATABASE, MONITOR_USER, Passwords, REPLICATION_USER, SUPERUSER,
};
pub use settings::{AuthSource, ProxyOptions};
pub use standby::Rejoined;

use crate::clock::Clock;
use account::Account;
use guard::Guard;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Most standbys; a primary has 10 slots.
const STANDBYS_MAX: usize = 9;
/// Ports tried for one node before giving up.
const PORT_TRIES: usize = 4;
/// Characters of a failed tool's output shown, from its end.
const OUTPUT_SHOWN: usize = 2000;

/// Where a node lives.
#[derive(Clone, Debug)]
pub struct Host {
    /// The only address it listens on.
    pub address: Ipv4Addr,
    /// The network namespace of its processes, as a file; `None`: the caller's.
    pub namespace: Option<PathBuf>,
}

impl Default for Host {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST, namespace: None }
    }
}

/// What to make.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Streaming standbys, 0..=9. Default 2.
    pub standbys: usize,
    /// Whether nodes wait for the disk. Default `false`: a killed process loses nothing either way,
    /// only a crash of the machine does.
    pub fsync: bool,
    /// PostgreSQL's `hot_standby_feedback`. Default `true`.
    pub hot_standby_feedback: bool,
    /// PostgreSQL's `max_connections`, per node. Default 100.
    pub max_connections: u32,
    /// PostgreSQL's `wal_retrieve_retry_interval`. Default 200 ms (PostgreSQL's own: 5 s).
    pub wal_retrieve_retry_interval: Duration,
    /// More lines for every node's `postgresql.conf`; they win over ours.
    pub settings: Vec<(String, String)>,
    /// Password of the role `app`. Default `app`.
    pub app_password: String,
    /// Whether to create the function that [`AUTH_QUERY`] calls. Default `false`.
    pub auth_query: bool,
    /// PostgreSQL's programs; `None`: see [`Binaries::find`].
    pub binaries: Option<Binaries>,
    /// Where the nodes live, in their order. Default: all on 127.0.0.1.
    pub hosts: Vec<Host>,
    /// Where to make the directory; `None`: the temporary directory. A short path that PostgreSQL's
    /// user can enter.
    pub parent_dir: Option<PathBuf>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            standbys: 2,
            fsync: false,
            hot_standby_feedback: true,
            max_connections: 100,
            wal_retrieve_retry_interval: Duration::from_millis(200),
            settings: Vec::new(),
            app_password: "app".to_owned(),
            auth_query: false,
            binaries: None,
            hosts: Vec::new(),
            parent_dir: None,
        }
    }
}

/// What is about to happen while a cluster starts, for people who watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `initdb` runs.
    Creating,
    /// The primary starts.
    StartingPrimary {
        /// Its name.
        node: String,
        /// Its port.
        port: u16,
    },
    /// Roles, rights and the database `app` are created.
    CreatingRoles,
    /// A standby is copied from the primary and started.
    CopyingStandby {
        /// Its name.
        node: String,
        /// Its port.
        port: u16,
    },
}

/// What all nodes share.
#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    binaries: Binaries,
    account: Account,
    passwords: Passwords,
    clock: Clock,
}

impl Shared {
    /// A PostgreSQL program, whether it exists or not.
    fn command(&self, program: &str) -> Command {
        self.account.command(self.binaries.path(program), &self.dir)
    }

    /// A PostgreSQL program in a network namespace, if one is given.
    fn command_in(&self, namespace: Option<&Path>, program: &str) -> Command {
        match namespace {
            Some(namespace) => self.account.command_in(namespace, &self.binaries.path(program), &self.dir),
            None => self.command(program),
        }
    }

    /// A PostgreSQL program that some packages lack.
    fn tool(&self, program: &'static str) -> Result<Command, ClusterError> {
        if self.binaries.has(program) {
            Ok(self.command(program))
        } else {
            Err(ClusterError::NoTool { tool: program, dir: self.binaries.dir().to_owned() })
        }
    }

    fn run(&self, tool: &'static str, command: &mut Command) -> Result<(), ClusterError> {
        let output = command.output().map_err(ClusterError::at("run", &self.binaries.path(tool)))?;
        if output.status.success() {
            return Ok(());
        }
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let skipped = text.chars().count().saturating_sub(OUTPUT_SHOWN);
        let output_end = text.trim().chars().skip(skipped).collect();
        Err(ClusterError::Tool { tool: tool.to_owned(), status: output.status.to_string(), output: output_end })
    }
}

/// A running cluster. Dropping it stops every process and removes every file.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    shared: Arc<Shared>,
    options: ClusterOptions,
    guard: Option<Guard>,
}

impl Cluster {
    /// Makes a cluster and waits until all standbys stream. `pg1` is the primary.
    ///
    /// # Errors
    /// When programs are missing, a tool fails or a node does not start; everything made until then
    /// is removed.
    pub fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        Self::start_showing(options, &mut |_| ())
    }

    /// As [`Cluster::start`], telling each step before it is taken.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_showing(options: ClusterOptions, show: &mut dyn FnMut(Step)) -> Result<Self, ClusterError> {
        let binaries = options.binaries.clone().map_or_else(Binaries::find, Ok)?;
        let account = Account::find()?;
        let guard = Guard::new(options.parent_dir.as_deref(), account)?;
        let passwords = Passwords::new(&options);
        let dir = guard.dir().to_owned();
        let shared = Arc::new(Shared { dir, binaries, account, passwords, clock: Clock::machine() });
        let names = (1..=options.standbys.min(STANDBYS_MAX) + 1).map(|number| format!("pg{number}"));
        let hosts = options.hosts.iter().cloned().chain(std::iter::repeat_with(Host::default));
        let nodes = names.zip(hosts).map(|(name, host)| Node::new(&name, host, &shared)).collect::<Result<_, _>>()?;
        let cluster = Self { nodes, shared, options, guard: Some(guard) };
        cluster.make_primary(show)?;
        cluster.make_standbys(show)?;
        cluster.wait_streaming(Duration::from_secs(60))?;
        Ok(cluster)
    }

    /// All nodes; the first was the primary at the start.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name() == name)
    }

    /// Nodes that run and are not in recovery. More than one is a split brain.
    #[must_use]
    pub fn primaries(&self) -> Vec<&Node> {
        let is_primary = |node: &&Node| {
            node.is_running() && node.psql("SELECT pg_is_in_recovery()").is_ok_and(|recovering| recovering == "f")
        };
        self.nodes.iter().filter(is_primary).collect()
    }

    /// The directory of all files. Processes named `pgregent` that work in a directory right below it
    /// end with the cluster.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The roles' passwords.
    #[must_use]
    pub fn passwords(&self) -> &Passwords {
        &self.shared.passwords
    }

    /// PostgreSQL's programs in use.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.shared.binaries
    }

    /// What it was made from.
    #[must_use]
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    /// A `pgregent.toml` for a proxy in front of this cluster.
    #[must_use]
    pub fn proxy_config(&self, options: &ProxyOptions) -> String {
        settings::pgregent_toml(&self.nodes, &self.shared.passwords, options)
    }

    /// Waits until every other running node streams from a running primary and has replayed what that
    /// had written when asked.
    ///
    /// # Errors
    /// [`ClusterError::Late`] after `limit`.
    pub fn wait_streaming(&self, limit: Duration) -> Result<(), ClusterError> {
        let deadline = self.shared.clock.now() + limit;
        let standbys = self.nodes.iter().filter(|node| node.is_running()).count().saturating_sub(1);
        let streaming = "SELECT count(*) FROM pg_stat_replication \
                         WHERE state = 'streaming' AND replay_lsn >= pg_current_wal_flush_lsn()";
        loop {
            let primaries = self.primaries();
            let count = primaries.first().and_then(|primary| primary.psql(streaming).ok()?.parse().ok());
            if count.is_some_and(|count: usize| count >= standbys) {
                return Ok(());
            }
            if self.shared.clock.now() > deadline {
                let node = primaries.first().copied().unwrap_or(&self.nodes[0]);
                return Err(node.late("have all standbys streaming", limit));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn make_primary(&self, show: &mut dyn FnMut(Step)) -> Result<(), ClusterError> {
        let (shared, primary) = (&self.shared, &self.nodes[0]);
        show(Step::Creating);
        let password_file = shared.dir.join("superuser-password");
        shared.account.write(&password_file, &shared.passwords.superuser)?;
        let mut initdb = shared.command("initdb");
        initdb.arg("-D").arg(primary.data_dir()).arg(format!("--pwfile={}", password_file.display()));
        initdb.args(["-U", SUPERUSER, "-E", "UTF8", "--locale=C", "--no-sync", "--auth=scram-sha-256"]);
        shared.run("initdb", &mut initdb)?;
        fs::remove_file(&password_file).map_err(ClusterError::at("remove", &password_file))?;
        shared.account.write(&primary.path("postgresql.conf"), &settings::postgresql_conf(&self.options))?;
        shared.account.write(&primary.path("pg_hba.conf"), &settings::hba(&self.options))?;
        show(Step::StartingPrimary { node: primary.name().to_owned(), port: primary.port() });
        first_start(primary)?;
        show(Step::CreatingRoles);
        primary.set_up("create roles", &roles::statements(&shared.passwords))?;
        primary.set_up("create the database", roles::CREATE_DATABASE)?;
        if self.options.auth_query {
            primary.set_up("create the function for auth_query", roles::SECRET_FUNCTION)?;
        }
        Ok(())
    }

    /// All standbys at once.
    fn make_standbys(&self, show: &mut dyn FnMut(Step)) -> Result<(), ClusterError> {
        let (primary, standbys) = self.nodes.split_at(1);
        for standby in standbys {
            show(Step::CopyingStandby { node: standby.name().to_owned(), port: standby.port() });
        }
        std::thread::scope(|scope| {
            let make = |standby| move || first_copy(standby, &primary[0]);
            let threads: Vec<_> = standbys.iter().map(|standby| scope.spawn(make(standby))).collect();
            let mut joined = threads.into_iter().map(|thread| thread.join());
            joined.try_for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.guard.take());
        for node in &self.nodes {
            node.reap();
        }
    }
}

fn first_start(node: &Node) -> Result<(), ClusterError> {
    retry_ports(node, || node.start())
}

fn first_copy(standby: &Node, primary: &Node) -> Result<(), ClusterError> {
    match standby.rebuild_from(primary) {
        Err(ClusterError::PortTaken { .. }) => {
            standby.change_port()?;
            first_start(standby)
        }
        done => done,
    }
}

/// Before anybody knows the node, its port may still change.
fn retry_ports(node: &Node, start: impl Fn() -> Result<(), ClusterError>) -> Result<(), ClusterError> {
    for _ in 1..PORT_TRIES {
        match start() {
            Err(ClusterError::PortTaken { .. }) => node.change_port()?,
            done => return done,
        }
    }
    start()
}
