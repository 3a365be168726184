//! The playground: a throwaway cluster with a proxy in front, to play with and to test against.
//!
//! `cluster` makes nodes; `proxy` starts this very program in front of them; `interactive` shows what
//! happens while a person plays; `tour` plays by itself and checks what it claims.
//!
//! Invariants: whatever ends the demo, no process and no file of it stays behind. Absent on purpose:
//! shortcuts into the proxy; the demo knows only what its clients and HTTP can see.

pub mod cluster;
mod heal;
mod http;
mod interactive;
mod proxy;
mod screen;
mod status;
pub mod tour;

use anyhow::Context as _;
use cluster::{APP_DATABASE, APP_USER, Cluster, ClusterOptions, Step};
use proxy::Proxy;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How long tasks may go on after the demo decided to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// What to play.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Port of the proxy; `None`: 5432 or the next free one.
    pub port: Option<u16>,
    /// Play the story unattended and check it.
    pub tour: bool,
    /// Repair nodes that stay broken for a few seconds.
    pub keep_healing: bool,
    /// Commits wait for one standby, so that a failover can lose no acknowledged write.
    pub synchronous: bool,
    /// The program to start as proxy; `None`: this one.
    pub program: Option<PathBuf>,
}

/// A cluster with a proxy in front. Fields are dropped in this order.
struct Playground {
    proxy: Proxy,
    cluster: Arc<Cluster>,
}

/// Plays until told to stop, or to the end of the tour. Starts its own runtime: not to be called from
/// inside one. The tour's code is success only if every claim held.
///
/// # Errors
/// When the cluster or the proxy does not come up; everything made until then is removed.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut playground = Playground::start(options)?;
    let outcome = if options.tour {
        let stage = tour::Stage {
            cluster: Arc::clone(&playground.cluster),
            port: playground.proxy.port(),
            admin_port: Some(playground.proxy.admin_port()),
            synchronous: options.synchronous,
        };
        runtime.block_on(Box::pin(interactive::unless_stopped(tour::play(stage))))
    } else {
        runtime.block_on(Box::pin(interactive::play(&mut playground, options.keep_healing))).map(|()| Some(true))
    };
    if outcome.is_err() || matches!(outcome, Ok(Some(false))) {
        println!("\nThe end of the proxy's log:\n{}", playground.proxy.log_tail());
    }
    println!("\nStopping the proxy and the nodes, removing {}", playground.cluster.dir().display());
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    playground.stop();
    match outcome? {
        Some(true) => Ok(ExitCode::SUCCESS),
        Some(false) => Ok(ExitCode::FAILURE),
        None => {
            println!("Interrupted.");
            Ok(ExitCode::from(130))
        }
    }
}

impl Playground {
    /// Says each step. Until this returns, a signal ends us at once; the cluster's guard cleans up.
    fn start(options: &Options) -> anyhow::Result<Self> {
        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("find our own program")?,
        };
        let mut settings = Vec::new();
        if options.synchronous {
            settings.push(("synchronous_standby_names".to_owned(), "ANY 1 (pg1, pg2, pg3)".to_owned()));
        }
        println!("A throwaway PostgreSQL cluster, one primary and two standbys:");
        let cluster_options = ClusterOptions { settings, ..ClusterOptions::default() };
        let cluster = Cluster::start_showing(cluster_options, &mut |step| println!("  {}", words(&step)))?;
        println!("  all standbys stream; files are in {}", cluster.dir().display());
        println!("Starting the proxy in front of them");
        let proxy = Proxy::start(&cluster, &program, options.port)?;
        Ok(Self { proxy, cluster: Arc::new(cluster) })
    }

    /// The line that people copy.
    fn psql_line(&self) -> String {
        let password = &self.cluster.passwords().app;
        format!("psql 'postgresql://{APP_USER}:{password}@127.0.0.1:{}/{APP_DATABASE}'", self.proxy.port())
    }

    /// The proxy first, so that it does not fail over while the nodes stop.
    fn stop(mut self) {
        match self.proxy.stop() {
            Ok(false) => {}
            Ok(true) => println!("The proxy did not stop when asked and was killed."),
            Err(error) => println!("The proxy could not be asked to stop: {error}"),
        }
    }
}

fn words(step: &Step) -> String {
    match step {
        Step::Creating => "initdb creates pg1".to_owned(),
        Step::StartingPrimary { node, port } => format!("{node} starts as primary on port {port}"),
        Step::CreatingRoles => {
            "roles: app (yours), pgregent (the proxy's monitor, no superuser), replicator (streaming)".to_owned()
        }
        Step::CopyingStandby { node, port } => {
            format!("pg_basebackup makes {node}, a standby on port {port} with a replication slot")
        }
    }
}
