//! Runs rows, each as often as wanted, on clusters that are kept while they can be brought back to health.
//!
//! Invariants: a row that cannot be run is told with its reason, and fails the whole unless skips are
//! allowed; a failure of one run never hides the others. Absent on purpose: what a run does (`run`).

use crate::disk::Disk;
use crate::rows::{Row, Stage};
use crate::run::{self, Outcome};
use crate::steady;
use crate::storm;
use crate::support::rig::{Plan, Rig, program};
use crate::table::Table;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

/// Failovers within an hour: the matrix makes more than any operator wants.
const UNLIMITED: &str = "failover_max_per_hour = 1000";
/// What stands there for one proxy.
const SINGLE: &str = "coordination = \"single\"";
/// What a proxy must understand for the rows with two of them.
const SHARED: &str = "coordination = \"voters\"";
/// The same with etcd; and what may go on without it.
const IN_ETCD: &str = "coordination = \"etcd\"";
const KEPT: &str = "on_quorum_loss = \"keep_primary\"";

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// With synchronous replication.
    pub sync: bool,
    /// Times may be longer by this.
    pub factor: u32,
    /// Rows that cannot be run are no failure.
    pub allow_skips: bool,
}

/// A cluster and what it was made for.
struct Running {
    stage: Stage,
    rig: Rig,
    // After the rig: its servers have files open there.
    _disk: Option<Disk>,
}

/// Rows, results, and the cluster at hand.
pub struct Matrix {
    order: Order,
    running: Option<Running>,
    /// Why there is no network, once that was tried.
    no_network: Option<String>,
    table: Table,
}

impl Matrix {
    pub fn new(order: Order) -> Self {
        Self { order, running: None, no_network: None, table: Table::new(order) }
    }

    /// Runs each row this often.
    pub fn run(&mut self, rows: impl Iterator<Item = (Row, u64)>) {
        let sync = self.order.sync;
        for (row, runs) in rows {
            for number in 1..=runs {
                match self.stage(row.stage, row.network) {
                    Err(why) => {
                        self.table.skip(row.name, &why);
                        break;
                    }
                    Ok(rig) => {
                        let log = rig.log().len();
                        let outcome = caught(|| run::run(rig, &row, sync)).unwrap_or_else(Outcome::failed);
                        self.after(&row, number, outcome, log);
                    }
                }
            }
        }
    }

    fn after(&mut self, row: &Row, number: u64, mut outcome: Outcome, log: usize) {
        if !outcome.problems.is_empty()
            && let Some(running) = &self.running
        {
            let all = running.rig.log();
            eprintln!(
                "--- {} #{number}: {}\n{}---",
                row.name,
                outcome.problems.join("; "),
                all.get(log..).unwrap_or(&all)
            );
        }
        // A cluster that something went wrong on says nothing about the next row.
        if !outcome.problems.is_empty() || row.stage == Stage::SmallWal {
            outcome.problems.extend(self.end());
        }
        self.table.add(row, number, outcome);
    }

    /// Ends the cluster at hand. A proxy that panicked is told now.
    fn end(&mut self) -> Option<String> {
        let running = self.running.take();
        caught(|| drop(running)).err()
    }

    /// Nothing fails, and nothing may be taken for a failure.
    pub fn steady(&mut self, lasting: Duration) {
        match self.stage(Stage::Common, false) {
            Err(why) => self.table.skip(steady::NAME, &why),
            Ok(rig) => {
                let outcome = caught(|| steady::run(rig, lasting)).unwrap_or_else(Outcome::failed);
                self.after(&steady::row(), 1, outcome, 0);
            }
        }
    }

    /// Storms, each of a seed of its own.
    pub fn storms(&mut self, first: u64, count: u64, lasting: Duration) {
        let (row, sync) = (storm::row(), self.order.sync);
        for seed in first..first + count {
            match self.stage(row.stage, row.network) {
                Err(why) => return self.table.skip(storm::NAME, &why),
                Ok(rig) => {
                    let outcome = caught(|| storm::run(rig, sync, seed, lasting)).unwrap_or_else(Outcome::failed);
                    self.after(&row, seed, outcome, 0);
                }
            }
        }
    }

    /// Prints the table.
    ///
    /// # Panics
    /// When a row failed.
    pub fn finish(mut self) {
        let ended = self.end();
        self.table.finish();
        assert_eq!(ended, None, "the last cluster");
    }

    /// A healthy cluster for this stage, the one at hand if it will do.
    fn stage(&mut self, stage: Stage, network: bool) -> Result<&Rig, String> {
        if network && let Some(why) = &self.no_network {
            return Err(why.clone());
        }
        if self.running.as_ref().is_none_or(|running| running.stage != stage) {
            // The old one goes first: two clusters at once would slow each other down.
            self.end().map_or(Ok(()), Err)?;
            if stage.proxies() == 2 {
                understands_shared()?;
            }
            let rig = self.make(stage, network)?;
            run::synchronous(&rig, self.order.sync);
            let disk = match stage {
                Stage::SmallWal => Some(Disk::under(&rig, rig.node("pg1"))?),
                _ => None,
            };
            run::settled(&rig).map_err(|why| format!("a new cluster is not healthy: {why}"))?;
            self.running = Some(Running { stage, rig, _disk: disk });
        }
        Ok(&self.running.as_ref().expect("made above").rig)
    }

    /// On a network of its own, or on loopback where that is impossible and not needed.
    fn make(&mut self, stage: Stage, network: bool) -> Result<Rig, String> {
        let plan = |network| {
            let mut plan = Plan::new();
            plan.settings.push(("cluster", UNLIMITED.to_owned()));
            plan.network = network;
            plan.proxies = stage.proxies();
            match stage {
                Stage::Common | Stage::SmallWal => {}
                Stage::TwoProxies => plan.config = |text| text.replace(SINGLE, SHARED),
                Stage::Witness => {
                    plan.config = |text| text.replace(SINGLE, SHARED);
                    (plan.witness, plan.cluster.standbys) = (true, 1);
                }
                Stage::Etcd | Stage::EtcdKept => {
                    plan.config = |text| text.replace(SINGLE, IN_ETCD);
                    plan.etcd = true;
                }
            }
            if stage == Stage::EtcdKept {
                plan.settings.push(("cluster", KEPT.to_owned()));
            }
            plan
        };
        if self.no_network.is_none() {
            match plan(true).try_start() {
                Ok(rig) => return Ok(rig),
                Err(why) => {
                    println!("no network namespaces: {why}");
                    self.no_network = Some(why);
                }
            }
        }
        if network {
            return Err(self.no_network.clone().unwrap_or_default());
        }
        plan(false).try_start()
    }
}

/// What a closure gives, or what it said when it panicked.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// Whether this build has a store that several proxies can share.
fn understands_shared() -> Result<(), String> {
    let reference = Command::new(program()).arg("reference").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&reference.stdout).into_owned();
    let known = text.lines().any(|line| line.contains("single") && line.contains("voters"));
    if known { Ok(()) } else { Err(format!("the configuration does not know {SHARED}")) }
}
