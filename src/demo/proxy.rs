//! The proxy in front of the playground, as a process of its own: what is shown is the real program.
//!
//! Invariants: it ends with the playground, by request or with the cluster's directory it works in (see
//! `cluster::guard`); its configuration, which holds passwords, is readable by nobody else. Absent on
//! purpose: calling the proxy's code in this process.

use super::cluster::{AuthSource, Cluster, ClusterError, Port, ProxyOptions, signal_term};
use super::status;
use crate::clock::Clock;
use anyhow::{Context as _, bail};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where people expect a database.
const PORT_WANTED: u16 = 5432;
/// Where people expect metrics.
const ADMIN_PORT_WANTED: u16 = 9187;
/// Until it serves clients, which takes finding the primary.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// Bytes of its log's end shown when it fails.
const LOG_TAIL_BYTES: usize = 4096;

/// A running proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    child: Child,
    port: Port,
    admin_port: Port,
    dir: PathBuf,
    clock: Clock,
}

impl Proxy {
    /// Starts `program serve` in front of a cluster and waits until it serves clients. `port` is the
    /// port asked for; without it, the first free one from 5432.
    pub(super) fn start(cluster: &Cluster, program: &Path, port: Option<u16>) -> anyhow::Result<Self> {
        let port = match port {
            Some(number) => Port::claim(number).with_context(|| format!("port {number} is taken"))?,
            None => Port::reserve_from(PORT_WANTED)?,
        };
        let admin_port = Port::reserve_from(ADMIN_PORT_WANTED)?;
        let dir = cluster.dir().join("proxy");
        DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("create {}", dir.display()))?;
        let config = cluster.proxy_config(&ProxyOptions {
            port: port.number(),
            admin_port: admin_port.number(),
            state_dir: dir.clone(),
            auth: AuthSource::Users,
            // People kill nodes more often here than a real cluster should ever see.
            extra: vec![
                ("cluster", "failover_min_gap = \"2s\"".to_owned()),
                ("cluster", "failover_max_per_hour = 1000".to_owned()),
            ],
        });
        let config_path = dir.join("pgregent.toml");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&config_path)?;
        file.write_all(config.as_bytes())?;
        let log = File::create(dir.join("log"))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&config_path).current_dir(&dir).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let mut proxy = Self { child, port, admin_port, dir, clock: Clock::machine() };
        proxy.wait_ready()?;
        Ok(proxy)
    }

    /// Where clients connect.
    pub(super) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where HTTP answers.
    pub(super) fn admin_port(&self) -> u16 {
        self.admin_port.number()
    }

    /// Its log.
    pub(super) fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Whether the process lives.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = self.clock.now() + READY_TIMEOUT;
        while !status::ready(self.admin_port()) {
            if !self.is_running() {
                bail!("the proxy ended while starting; its log:\n{}", self.log_tail());
            }
            if self.clock.now() > deadline {
                bail!("the proxy did not serve within {READY_TIMEOUT:?}; the end of its log:\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Asks it to stop and waits; kills it when that takes too long. Returns whether it had to be killed.
    pub(super) fn stop(&mut self) -> Result<bool, ClusterError> {
        let deadline = self.clock.now() + STOP_TIMEOUT;
        if self.is_running() {
            signal_term(self.child.id())?;
        }
        while self.is_running() {
            if self.clock.now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return Ok(true);
            }
            std::thread::sleep(POLL);
        }
        Ok(false)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The good way is `stop`; this one only makes sure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
