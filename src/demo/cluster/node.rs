//! One node of a throwaway cluster: start it, stop it, kill it, freeze it, ask it.
//!
//! Invariants: the postmaster is our child, so it never stays behind as a zombie and its end is
//! noticed; a node keeps its port for life. Absent on purpose: judging roles; a test asks with SQL.

use super::error::ClusterError;
use super::port::Port;
use super::processes::{self, Signal};
use super::roles::{MONITOR_DATABASE, SUPERUSER};
use super::{Host, Shared, sql};
use crate::clock::Time;
use parking_lot::Mutex;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How long a node may take to start, crash recovery included, or to stop.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the processes of a killed postmaster get to notice before they are killed too.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);
/// Bytes of a log's end shown in errors.
const LOG_TAIL_BYTES: usize = 4096;

/// PostgreSQL's three ways to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Waits for clients to leave.
    Smart,
    /// Ends sessions, sends all WAL to the standbys, writes a checkpoint.
    Fast,
    /// Stops at once; the next start recovers from a crash.
    Immediate,
}

/// One PostgreSQL instance of a [`Cluster`](super::Cluster).
#[derive(Debug)]
pub struct Node {
    pub(super) name: Arc<str>,
    pub(super) shared: Arc<Shared>,
    host: Host,
    port: Mutex<Port>,
    postmaster: Mutex<Option<Child>>,
}

impl Node {
    pub(super) fn new(name: &str, host: Host, shared: &Arc<Shared>) -> Result<Self, ClusterError> {
        let port = Mutex::new(Port::reserve()?);
        Ok(Self { name: name.into(), shared: Arc::clone(shared), host, port, postmaster: Mutex::new(None) })
    }

    /// Its name: `pg1`, `pg2`, …; also its `cluster_name` and the name of its slot.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.host.address
    }

    /// Its port at its address.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.lock().number()
    }

    /// Another port, for the first start if the first choice was taken meanwhile.
    pub(super) fn change_port(&self) -> Result<(), ClusterError> {
        let port = Port::reserve()?;
        *self.port.lock() = port;
        Ok(())
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.shared.dir.join(&*self.name)
    }

    /// Its log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.shared.dir.join(format!("{}.log", self.name))
    }

    /// The last 4 KiB of its log, from a line's beginning.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
        match tail.split_once('\n') {
            Some((_, whole_lines)) if log.len() > LOG_TAIL_BYTES => whole_lines.to_owned(),
            _ => tail,
        }
    }

    /// Starts it and waits until it accepts connections. Does nothing if it runs.
    ///
    /// # Errors
    /// When it ends or is not ready within 60 s, or when its port is taken.
    pub fn start(&self) -> Result<(), ClusterError> {
        if self.is_running() {
            return Ok(());
        }
        self.clear_orphans()?;
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(ClusterError::at("open", &log_path))?;
        let errors = log.try_clone().map_err(ClusterError::at("open", &log_path))?;
        let log_start = log.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let mut command = self.shared.command_in(self.host.namespace.as_deref(), "postgres");
        command.arg("-D").arg(self.data_dir()).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
        let sockets = self.shared.dir.display().to_string();
        let (address, port) = (self.address().to_string(), self.port().to_string());
        for (setting, value) in [
            ("listen_addresses", &*address),
            ("port", &*port),
            ("unix_socket_directories", &*sockets),
            ("cluster_name", &*self.name),
        ] {
            command.arg("-c").arg(format!("{setting}={value}"));
        }
        let child = command.spawn().map_err(ClusterError::at("start", &self.shared.binaries.path("postgres")))?;
        *self.postmaster.lock() = Some(child);
        self.wait_ready(log_start)
    }

    /// The state is the eighth line of postmaster.pid, the postmaster's id the first (PostgreSQL
    /// source, `miscadmin.h`, LOCK_FILE_LINE_PM_STATUS).
    fn wait_ready(&self, log_start: u64) -> Result<(), ClusterError> {
        let pid_file = self.data_dir().join("postmaster.pid");
        let deadline = self.deadline(MOVE_TIMEOUT);
        while self.is_running() {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            let mut lines = text.lines();
            let first = lines.next().and_then(|line| line.trim().parse().ok());
            if first.is_some() && first == self.pid() && lines.nth(6).is_some_and(|state| state.trim() == "ready") {
                return Ok(());
            }
            if self.passed(deadline) {
                return Err(self.late("start", MOVE_TIMEOUT));
            }
            std::thread::sleep(POLL);
        }
        let log = fs::read(self.log_path()).unwrap_or_default();
        let from = usize::try_from(log_start).unwrap_or(usize::MAX).min(log.len());
        if String::from_utf8_lossy(&log[from..]).contains("Address already in use") {
            return Err(ClusterError::PortTaken { node: self.name.to_string(), port: self.port() });
        }
        Err(ClusterError::Ended { node: self.name.to_string(), log: self.log_tail() })
    }

    /// Stops it and waits for its end. Does nothing if it does not run.
    ///
    /// # Errors
    /// When it still runs after 60 s.
    pub fn stop(&self, how: Shutdown) -> Result<(), ClusterError> {
        let Some(pid) = self.pid() else { return self.clear_orphans() };
        let signal = match how {
            Shutdown::Smart => Signal::Term,
            Shutdown::Fast => Signal::Int,
            Shutdown::Immediate => Signal::Quit,
        };
        processes::signal(&[pid], signal)?;
        let deadline = self.deadline(MOVE_TIMEOUT);
        while self.is_running() {
            if self.passed(deadline) {
                return Err(self.late("stop", MOVE_TIMEOUT));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Kills the postmaster alone with SIGKILL. Its children notice by themselves, a little later:
    /// a busy one may still acknowledge what it was doing.
    ///
    /// # Errors
    /// When the system refuses the signal.
    pub fn kill9(&self) -> Result<(), ClusterError> {
        let child = self.postmaster.lock().take();
        if let Some(mut child) = child {
            let killed = child.kill().and_then(|()| child.wait());
            killed.map_err(|source| ClusterError::Io { what: format!("kill node {}", self.name), source })?;
        }
        Ok(())
    }

    /// Kills every process of the node with SIGKILL, as a power failure would.
    ///
    /// # Errors
    /// When the system refuses the signal.
    pub fn kill9_all(&self) -> Result<(), ClusterError> {
        // The postmaster first, so that it starts nobody new.
        self.kill9()?;
        processes::signal(&self.processes(), Signal::Kill)
    }

    /// Stops every process of the node with SIGSTOP: connections stay, nothing answers.
    ///
    /// # Errors
    /// When the system refuses the signal.
    pub fn freeze(&self) -> Result<(), ClusterError> {
        // The postmaster first, so that it starts nobody new.
        processes::signal(&self.pid().into_iter().collect::<Vec<_>>(), Signal::Stop)?;
        processes::signal(&self.processes(), Signal::Stop)
    }

    /// Lets every process of the node go on after [`Node::freeze`].
    ///
    /// # Errors
    /// When the system refuses the signal.
    pub fn thaw(&self) -> Result<(), ClusterError> {
        processes::signal(&self.processes(), Signal::Cont)
    }

    /// Whether its postmaster lives (frozen counts as living).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Its postmaster's process id, if it lives.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let mut postmaster = self.postmaster.lock();
        let child = postmaster.as_mut()?;
        match child.try_wait() {
            Ok(None) => Some(child.id()),
            Ok(Some(_)) | Err(_) => {
                *postmaster = None;
                None
            }
        }
    }

    /// Ids of all its processes, the postmaster's included, orphans of a killed one too.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        processes::in_directory(&self.data_dir())
    }

    /// Runs statements as superuser in database `postgres`, over TCP, and gives the rows as
    /// `psql -At` prints them. Callable from anywhere, but blocks the calling thread.
    ///
    /// # Errors
    /// What PostgreSQL or the connection said, or [`ClusterError::Late`] after 60 s.
    pub fn psql(&self, statements: &str) -> Result<String, ClusterError> {
        self.psql_in(MONITOR_DATABASE, statements)
    }

    /// As [`Node::psql`], in another database.
    ///
    /// # Errors
    /// As [`Node::psql`].
    pub fn psql_in(&self, database: &str, statements: &str) -> Result<String, ClusterError> {
        let config = self.superuser_config(database);
        sql::on_connection(&self.name, &config, statements, async |client| sql::text(client, statements).await)
    }

    /// Statements that make the cluster: `what` is shown instead of their text, which may hold passwords,
    /// and they wait for no standby, since there is none yet.
    pub(super) fn set_up(&self, what: &str, statements: &str) -> Result<(), ClusterError> {
        let mut config = self.superuser_config(MONITOR_DATABASE);
        config.options("-c synchronous_commit=local");
        sql::on_connection(&self.name, &config, what, async |client| sql::text(client, statements).await).map(drop)
    }

    /// How to reach it as superuser.
    #[must_use]
    pub fn superuser_config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host(self.address().to_string())
            .port(self.port())
            .user(SUPERUSER)
            .password(&self.shared.passwords.superuser);
        config.dbname(database).application_name("playground").connect_timeout(Duration::from_secs(10));
        config
    }

    /// Waits until no process of a killed postmaster is left, since a new one would refuse to start.
    pub(super) fn clear_orphans(&self) -> Result<(), ClusterError> {
        let killed_after = self.deadline(ORPHAN_TIMEOUT);
        let deadline = self.deadline(MOVE_TIMEOUT);
        loop {
            let orphans = self.processes();
            if orphans.is_empty() {
                return Ok(());
            }
            if self.passed(deadline) {
                return Err(self.late("end all its processes", MOVE_TIMEOUT));
            }
            if self.passed(killed_after) {
                processes::signal(&orphans, Signal::Kill)?;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Removes the System V segment of a killed postmaster. A restart would find it by the data directory's
    /// inode and reuse it; once the directory is gone nobody would.
    pub(super) fn free_shared_memory(&self) {
        let text = fs::read_to_string(self.path("postmaster.pid")).unwrap_or_default();
        // Line 7: its key and its id.
        if let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            // Gone already is what we want.
            let _ = Command::new("ipcrm").args(["-m", id]).stdin(Stdio::null()).stderr(Stdio::null()).status();
        }
    }

    /// Takes the postmaster's exit status from the system, once it has been stopped by others.
    pub(super) fn reap(&self) {
        if let Some(mut child) = self.postmaster.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn late(&self, wanted: &'static str, limit: Duration) -> ClusterError {
        ClusterError::Late { node: self.name.to_string(), wanted, limit, log: self.log_tail() }
    }

    pub(super) fn deadline(&self, limit: Duration) -> Time {
        self.shared.clock.now() + limit
    }

    pub(super) fn passed(&self, deadline: Time) -> bool {
        self.shared.clock.now() > deadline
    }

    /// A path inside the data directory.
    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.data_dir().join(name)
    }
}
