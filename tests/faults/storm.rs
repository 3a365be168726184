//! Faults at random, several at a time, on two proxies and three nodes under load; then calm.
//!
//! While it storms only one thing is judged, and at every moment: no two nodes take writes at once. When it is
//! over, everything that was stopped goes on, and writes must come back by themselves; with synchronous
//! replication no acknowledged row may be missing. Somebody starts nodes again and brings back those that do not
//! follow, as an operator would, also in the middle of it. Invariant: the same seed rolls the same faults; servers
//! answer in their own time, so that a replay is only alike. Absent on purpose: promotions by hand, after which
//! somebody has to say who is right.

use crate::rows::{self, Row};
use crate::run::{self, Outcome, Scene};
use crate::support::Dice;
use crate::support::load::{Clients, Load, lost};
use crate::support::rig::{Rig, pause};
use pgregent::demo::cluster::{Node, Shutdown};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

pub const NAME: &str = "storm";
const CLIENTS: Clients = Clients { writers: 6, readers: 4, thinking: Duration::from_millis(5) };
/// Between two faults, at most.
const GAP_MS: u64 = 1500;
/// How long a fault lasts, at most.
const LASTS_MS: u64 = 6000;
/// How long writes may stay away once all is calm.
const CALM_LIMIT: Duration = Duration::from_secs(30);
/// Longer than this is explained by the proxies' logs, this many lines of each.
const SLOW: Duration = Duration::from_secs(6);
const LINES_SHOWN: usize = 60;
/// Once they flow, whoever waited has an answer within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// What clients may be told while no primary may be had, or while their proxy is stopped or killed. Clients are less
/// patient than the proxy's queue.
const ERRORS: &[&str] = &["57P03", "closed", "hung", "login closed", "login 57P03", "login hung"];

/// What the table shows and judges it by.
pub fn row() -> Row {
    Row { errors: ERRORS, stage: rows::Stage::TwoProxies, network: true, ..rows::named(NAME) }
}

/// What ends by itself.
enum Undo {
    Thaw(usize),
    Continue(usize),
    StartProxy(usize),
    Mend,
}

struct Storm<'a> {
    rig: &'a Rig,
    dice: Dice,
    /// What is to be undone, and when.
    undo: Vec<(Instant, Undo)>,
    began: Instant,
    told: Vec<String>,
}

impl Storm<'_> {
    fn node(&self, index: usize) -> &Node {
        &self.rig.cluster.nodes()[index]
    }

    /// What a proxy says that neither is stopped nor down.
    fn control(&self) -> Option<Value> {
        let stopped = |index: usize| {
            self.undo.iter().any(|(_, undo)| matches!(undo, Undo::Continue(i) | Undo::StartProxy(i) if *i == index))
        };
        (0..self.rig.addresses().len()).find(|index| !stopped(*index)).map(|index| self.rig.control_of(index))
    }

    fn any_node(&mut self) -> usize {
        let nodes = self.rig.cluster.nodes().len() as u64;
        usize::try_from(self.dice.roll(nodes)).unwrap()
    }

    /// The primary more often than others: that is where it hurts.
    fn victim(&mut self) -> usize {
        let any = self.any_node();
        let primary = self.control().and_then(|c| c["primary"].as_str().map(str::to_owned));
        let found = self.rig.cluster.nodes().iter().position(|node| Some(node.name()) == primary.as_deref());
        found.filter(|_| self.dice.roll(2) == 0).unwrap_or(any)
    }

    fn later(&mut self, undo: Undo) {
        let after = Duration::from_millis(200 + self.dice.roll(LASTS_MS));
        self.undo.push((Instant::now() + after, undo));
    }

    fn tell(&mut self, what: String) {
        let line = format!("{:7.3} {what}", self.began.elapsed().as_secs_f64());
        println!("  {line}");
        self.told.push(line);
    }

    /// One fault.
    fn strike(&mut self) {
        match self.dice.roll(12) {
            0 | 1 => self.kill(),
            2 => self.stop(),
            3 | 4 => self.freeze(),
            5 => self.break_backend(),
            6 | 7 => self.cut(),
            8 => self.isolate(),
            9 => self.freeze_proxy(),
            10 => self.restart_proxy(),
            _ => self.repair(),
        }
    }

    fn kill(&mut self) {
        let victim = self.victim();
        let all = self.dice.roll(2) == 0;
        let name = self.node(victim).name().to_owned();
        self.tell(format!("kill -9 of {name}, {}", if all { "every process" } else { "its postmaster" }));
        let node = self.node(victim);
        if all { node.kill9_all().unwrap() } else { node.kill9().unwrap() }
    }

    fn stop(&mut self) {
        let victim = self.victim();
        let how = if self.dice.roll(2) == 0 { Shutdown::Fast } else { Shutdown::Immediate };
        let name = self.node(victim).name().to_owned();
        self.tell(format!("{how:?} stop of {name}"));
        // A frozen server never stops.
        self.node(victim).thaw().unwrap();
        let _ = self.node(victim).stop(how);
    }

    fn freeze(&mut self) {
        let victim = self.victim();
        let name = self.node(victim).name().to_owned();
        self.tell(format!("{name} frozen"));
        self.node(victim).freeze().unwrap();
        self.later(Undo::Thaw(victim));
    }

    /// A crash restart.
    fn break_backend(&mut self) {
        let victim = self.victim();
        let name = self.node(victim).name().to_owned();
        let node = self.node(victim);
        let postmaster = node.pid();
        let child = node.processes().into_iter().rfind(|pid| Some(*pid) != postmaster);
        if let Some(pid) = child {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            self.tell(format!("a process of {name} killed"));
        }
    }

    fn hosts(&self) -> Vec<String> {
        let proxies = (1..=self.rig.addresses().len()).map(|number| format!("proxy{number}"));
        self.rig.cluster.nodes().iter().map(|node| node.name().to_owned()).chain(proxies).collect()
    }

    fn pick(&mut self, hosts: &[String]) -> String {
        hosts[usize::try_from(self.dice.roll(hosts.len() as u64)).unwrap()].clone()
    }

    fn cut(&mut self) {
        let hosts = self.hosts();
        let (from, to) = (self.pick(&hosts), self.pick(&hosts));
        if from == to {
            return;
        }
        let net = self.rig.net.as_ref().expect("a network");
        if self.dice.roll(2) == 0 {
            net.cut(&from, &to);
            self.tell(format!("{from} > {to} cut"));
        } else {
            net.cut_both(&from, &to);
            self.tell(format!("{from} | {to} cut"));
        }
        self.later(Undo::Mend);
    }

    fn isolate(&mut self) {
        let hosts = self.hosts();
        let alone = self.pick(&hosts);
        self.tell(format!("{alone} cut off"));
        let net = self.rig.net.as_ref().expect("a network");
        for other in hosts.iter().filter(|host| **host != alone) {
            net.cut_both(&alone, other);
        }
        self.later(Undo::Mend);
    }

    fn any_proxy(&mut self) -> usize {
        usize::try_from(self.dice.roll(self.rig.addresses().len() as u64)).unwrap()
    }

    fn freeze_proxy(&mut self) {
        let index = self.any_proxy();
        self.tell(format!("proxy{} frozen", index + 1));
        self.rig.signal_proxy(index, "STOP");
        self.later(Undo::Continue(index));
    }

    fn restart_proxy(&mut self) {
        let index = self.any_proxy();
        if self.undo.iter().any(|(_, undo)| matches!(undo, Undo::StartProxy(other) if *other == index)) {
            return;
        }
        self.tell(format!("proxy{} killed", index + 1));
        self.rig.kill_proxy_number(index);
        self.later(Undo::StartProxy(index));
    }

    /// What an operator does: starts what is down; brings back what does not follow the primary that all agree on.
    fn repair(&mut self) {
        let Some(primary) = self.control().and_then(|control| run::open_primary(&control)) else {
            let down = self.any_node();
            let name = self.node(down).name().to_owned();
            if !self.node(down).is_running() {
                self.tell(format!("{name} started"));
                let _ = self.node(down).start();
            }
            return;
        };
        let source = self.rig.node(&primary);
        if is_frozen(source) {
            return;
        }
        for node in self.rig.cluster.nodes().iter().filter(|node| node.name() != primary) {
            if is_frozen(node) || node.is_running() && run::follows(node, source) {
                continue;
            }
            let started = !node.is_running() && self.dice.roll(2) == 0;
            let result = if started {
                node.start().map(|()| "started".to_owned())
            } else {
                node.rejoin(source).map(|how| format!("rejoins {primary}: {how:?}"))
            };
            let name = node.name().to_owned();
            self.tell(match result {
                Ok(what) => format!("{name} {what}"),
                Err(error) => format!("{name} cannot be brought back yet: {error}"),
            });
            return;
        }
    }

    /// Undoes what is due.
    fn relent(&mut self, all: bool) {
        let now = Instant::now();
        let (due, rest) =
            std::mem::take(&mut self.undo).into_iter().partition::<Vec<_>, _>(|(at, _)| all || *at <= now);
        self.undo = rest;
        for (_, undo) in due {
            match undo {
                Undo::Thaw(index) => {
                    let name = self.node(index).name().to_owned();
                    self.node(index).thaw().unwrap();
                    self.tell(format!("{name} thawed"));
                }
                Undo::Continue(index) => {
                    self.rig.signal_proxy(index, "CONT");
                    self.tell(format!("proxy{} goes on", index + 1));
                }
                Undo::StartProxy(index) => {
                    self.rig.start_proxy_number(index);
                    self.tell(format!("proxy{} started", index + 1));
                }
                Undo::Mend => {
                    self.rig.net.as_ref().expect("a network").mend();
                    self.tell("links mended".to_owned());
                }
            }
        }
    }

    fn rage(&mut self, lasting: Duration) {
        let mut next = Instant::now();
        while self.began.elapsed() < lasting {
            self.relent(false);
            if Instant::now() >= next {
                self.strike();
                next = Instant::now() + Duration::from_millis(50 + self.dice.roll(GAP_MS));
            }
            pause(20);
        }
        self.relent(true);
    }
}

/// Whether its postmaster is stopped (state T of /proc/pid/stat).
fn is_frozen(node: &Node) -> bool {
    let Some(pid) = node.pid() else { return false };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// Why writes stayed away so long.
fn show_logs(rig: &Rig) {
    for index in 0..rig.addresses().len() {
        let log = rig.log_of(index);
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("login refused")).collect();
        println!("--- proxy{}\n{}\n---", index + 1, lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"));
    }
}

/// One storm, and the calm after it.
pub fn run(rig: &Rig, sync: bool, seed: u64, lasting: Duration) -> Outcome {
    let primary = rig.control()["primary"].as_str().unwrap_or("pg1").to_owned();
    let scene = Scene::new(rig, &primary);
    let load = Load::of(rig, &CLIENTS);
    pause(500);
    let mut storm = Storm { rig, dice: Dice(seed), undo: Vec::new(), began: Instant::now(), told: Vec::new() };
    println!("storm of seed {seed}");
    storm.rage(lasting);
    let calm = Instant::now();
    run::release(rig);
    // Whoever has all the rows may be down: without a start nobody may be promoted.
    for node in rig.cluster.nodes() {
        if !node.is_running()
            && let Err(error) = node.start()
        {
            println!("  {} does not start: {error}", node.name());
        }
    }
    let mut outcome = Outcome::default();
    let writable = || (0..rig.addresses().len()).all(|i| run::open_primary(&rig.control_of(i)).is_some()).then_some(());
    if run::within(CALM_LIMIT, writable).is_none() {
        for index in 0..rig.addresses().len() {
            let control = rig.control_of(index);
            outcome.problems.push(format!(
                "proxy{} takes no writes after the storm: {} {} {}",
                index + 1,
                control["holds"],
                control["writes_why"],
                control["nodes"]
            ));
        }
    }
    outcome.time = calm.elapsed();
    if outcome.time > SLOW {
        show_logs(rig);
    }
    let writable = Instant::now();
    std::thread::sleep(ANSWER_LIMIT);
    let (writers, readers) = load.stop();
    let hung = writers.hung.iter().chain(&readers.hung).filter(|at| **at > writable + ANSWER_LIMIT).count();
    if hung > 0 {
        outcome.problems.push(format!("{hung} clients had no answer after the storm"));
    }
    outcome.state = rig.control()["failover"]["state"].as_str().unwrap_or("?").to_owned();
    outcome.verdict = format!("seed {seed}, {} faults", storm.told.len());
    run::judge(&scene, &Row { lossless: false, ..row() }, sync, &mut outcome, &writers, &readers);
    let after = writers.acked.iter().filter(|write| write.at > calm).count();
    if after == 0 {
        outcome.problems.push("no write was acknowledged after the storm".to_owned());
    }
    if let Err(why) = run::restore(&scene, sync) {
        outcome.problems.push(format!("not healthy again: {why}"));
    } else if sync && let Some(primary) = rig.control()["primary"].as_str() {
        // A rewind must not have thrown away what was acknowledged.
        let missing = lost(&writers, rig.node(primary));
        if missing > 0 {
            outcome.problems.push(format!("{missing} acknowledged rows lost in the end"));
        }
    }
    outcome
}
