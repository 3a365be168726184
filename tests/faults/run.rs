//! One fault on a running cluster under load, what it is judged by, and the way back to three healthy nodes.
//!
//! Invariants: every acknowledged row is looked for on the node that is primary in the end; whatever a fault
//! stopped, cut or filled goes on before anything is judged. Absent on purpose: the faults themselves (`rows`).

use crate::oracle;
use crate::rows::{Expect, Row};
use crate::support::load::{Clients, Load, Seen, lost};
use crate::support::net::Net;
use crate::support::rawclient::RawClient;
use crate::support::rig::{Rig, pause};
use pgregent::demo::cluster::Node;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Clients at work during every fault; with as many writers for each further proxy.
const CLIENTS: Clients = Clients { writers: 4, readers: 2, thinking: Duration::from_millis(5) };
/// Time to warm up, and to go on after the fault has ended: an old primary shows itself meanwhile.
const WARM_MS: u64 = 600;
const AFTER_MS: u64 = 1200;
/// How long a failover that must come is waited for, and how long writes may stay away after a fault.
const DECISION_LIMIT: Duration = Duration::from_secs(20);
/// How long everything may take to be healthy again.
const HEALTH_LIMIT: Duration = Duration::from_secs(40);
/// How long a standby gets to follow by itself before it is made to.
const FOLLOW_LIMIT: Duration = Duration::from_secs(4);

/// Where a fault happens.
pub struct Scene<'a> {
    pub rig: &'a Rig,
    /// The primary before the fault, and the others.
    pub primary: String,
    pub standbys: Vec<String>,
    /// Nodes whose files are of no use afterwards: their history has the primary's timeline number, not its WAL.
    pub spoiled: RefCell<BTreeSet<String>>,
    /// Sessions that take up slots.
    pub sessions: RefCell<Vec<RawClient>>,
}

impl<'a> Scene<'a> {
    pub fn new(rig: &'a Rig, primary: &str) -> Self {
        let names = rig.cluster.nodes().iter().map(|node| node.name().to_owned());
        let standbys = names.filter(|name| name != primary).collect();
        let (spoiled, sessions) = (RefCell::default(), RefCell::default());
        Self { rig, primary: primary.to_owned(), standbys, spoiled, sessions }
    }

    pub fn primary(&self) -> &Node {
        self.rig.node(&self.primary)
    }

    pub fn standby(&self, index: usize) -> &Node {
        self.rig.node(&self.standbys[index])
    }

    pub fn net(&self) -> &Net {
        self.rig.net.as_ref().expect("a row that cuts links is run on a network")
    }
}

/// What one run showed.
#[derive(Default)]
pub struct Outcome {
    /// Why the proxy gave the primary up; the kinds of its notices, in their order; its state while the fault lasted.
    pub verdict: String,
    pub notices: String,
    pub state: String,
    /// Failover: from the fault to the first write that another node acknowledged to a client that had been
    /// connected all the time. Otherwise: the longest time without an acknowledged write.
    pub time: Duration,
    pub acked: usize,
    pub lost: usize,
    /// Promotions that should not have been.
    pub wrong: u64,
    pub errors: BTreeMap<String, u64>,
    /// Everything that makes the run a failure, except times.
    pub problems: Vec<String>,
}

impl Outcome {
    /// Of a run that could not go on.
    pub fn failed(why: String) -> Self {
        Self { problems: vec![why], ..Self::default() }
    }
}

/// What the proxies' counters say.
fn counters(rig: &Rig) -> Vec<u64> {
    (0..rig.addresses().len()).map(|index| rig.control_of(index)["failover"]["failovers"].as_u64().unwrap()).collect()
}

/// Failovers carried out since; a proxy that was restarted counts from nothing.
fn failovers_since(rig: &Rig, before: &[u64]) -> u64 {
    let now = counters(rig).into_iter().zip(before);
    now.map(|(now, before)| if now < *before { now } else { now - before }).sum()
}

/// Waits until an answer is there, or not.
pub fn within<T>(limit: Duration, mut asked: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = asked() {
            return Some(answer);
        }
        if started.elapsed() > limit {
            return None;
        }
        pause(20);
    }
}

/// The primary, if writes flow to it.
pub fn open_primary(control: &Value) -> Option<String> {
    (control["writes"] == "open").then(|| control["primary"].as_str().map(str::to_owned))?
}

/// What the proxy said about the primary, in words: the last notice that decided something.
fn verdict(control: &Value, since: Instant) -> String {
    let told = told(control, since).into_iter();
    let mut told = told.filter(|event| {
        ["primary_lost", "split_brain", "primary_restarting", "held"].iter().any(|kind| event["kind"] == *kind)
    });
    let text = told.next_back().map(|event| event["text"].as_str().unwrap_or_default().to_owned());
    text.unwrap_or_else(|| "nothing".to_owned())
}

/// Notices since the fault; steps of a change, which have a duration, are told by notices too.
fn told(control: &Value, since: Instant) -> Vec<&Value> {
    let age = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let events = control["recent"].as_array().unwrap().iter();
    events.filter(|event| event["took_ms"].is_null() && event["age_ms"].as_u64().unwrap() <= age).collect()
}

/// Names of the notices since the fault.
pub fn notices(control: &Value, since: Instant) -> String {
    let mut kinds: Vec<&str> = told(control, since).iter().filter_map(|event| event["kind"].as_str()).collect();
    kinds.dedup();
    kinds.join(" ")
}

/// Runs the row once.
pub fn run(rig: &Rig, row: &Row, sync: bool) -> Outcome {
    let before = rig.control_of(row.observer);
    let Some(primary) = open_primary(&before) else {
        return Outcome::failed(format!("no primary before the fault: {before}"));
    };
    let (scene, expect) = (Scene::new(rig, &primary), (row.expect)(sync));
    let (count, proxies) = (counters(rig), rig.addresses().len());
    let load = Load::of(rig, &Clients { writers: CLIENTS.writers * proxies, ..CLIENTS });
    pause(WARM_MS);
    let mut outcome = Outcome::default();
    let fault = Instant::now();
    (row.fault)(&scene);
    endure(&scene, row, expect, fault, &mut outcome);
    if expect == Expect::Refuse {
        outcome.wrong += failovers_since(rig, &count);
    }
    let undone = Instant::now();
    (row.undo)(&scene);
    release(rig);
    come_back(&scene, row, &mut outcome);
    pause(AFTER_MS);
    let (writers, readers) = load.stop();
    let after = rig.control_of(row.observer);
    (outcome.verdict, outcome.notices) = (verdict(&after, fault), notices(&after, fault));
    let promoted = failovers_since(rig, &count);
    let allowed = u64::from(expect != Expect::Stay);
    outcome.wrong += promoted.saturating_sub(allowed) + strays(&scene);
    let old = scene.primary().port().to_string();
    let elsewhere = writers.acked.iter().filter(|write| write.node != old && write.first_session);
    outcome.time = match elsewhere.map(|write| write.at).min() {
        Some(at) if promoted > 0 => at - fault,
        _ => gap_since(&writers, fault),
    };
    judge(&scene, row, sync, &mut outcome, &writers, &readers);
    if !writers.acked.iter().any(|write| write.at > undone) {
        outcome.problems.push("no write was acknowledged after the fault".to_owned());
    }
    if let Err(why) = restore(&scene, sync) {
        outcome.problems.push(format!("not healthy again: {why}"));
    }
    outcome
}

/// Waits for what must come of the fault, or for its end.
fn endure(scene: &Scene, row: &Row, expect: Expect, fault: Instant, outcome: &mut Outcome) {
    let control = || scene.rig.control_of(row.observer);
    let moved = if expect == Expect::Failover {
        let moved = within(DECISION_LIMIT, || open_primary(&control()).filter(|name| *name != scene.primary));
        pause(WARM_MS);
        moved.is_some()
    } else {
        let hold = Duration::from_millis(row.hold_ms);
        std::thread::sleep(hold.saturating_sub(fault.elapsed()));
        true
    };
    let during = control();
    outcome.state = during["failover"]["state"].as_str().unwrap_or("?").to_owned();
    // Whoever may not act says why.
    if expect == Expect::Refuse && during["holds"].as_array().is_none_or(Vec::is_empty) {
        outcome.problems.push(format!("nothing is done, and no reason is told: {during}"));
    }
    if !moved {
        outcome.problems.push(format!("no failover: {} {}", during["holds"], during["writes_why"]));
    }
}

/// Waits until writes flow again.
fn come_back(scene: &Scene, row: &Row, outcome: &mut Outcome) {
    let control = || scene.rig.control_of(row.observer);
    if within(DECISION_LIMIT, || open_primary(&control())).is_none() {
        let control = control();
        let (holds, why, nodes) = (&control["holds"], &control["writes_why"], &control["nodes"]);
        outcome.problems.push(format!("writes do not come back: {holds} {why}, nodes {nodes}"));
    }
}

/// Nodes, other than the primaries before and after and those promoted by hand, that left recovery.
fn strays(scene: &Scene) -> u64 {
    let now = (0..scene.rig.addresses().len()).map(|index| scene.rig.control_of(index)["primary"].clone());
    let now: Vec<Value> = now.collect();
    let out = scene.rig.cluster.primaries().into_iter().filter(|node| {
        let name = node.name();
        name != scene.primary && !now.iter().any(|primary| primary == name) && !scene.spoiled.borrow().contains(name)
    });
    out.count() as u64
}

/// The longest time without an acknowledged write, from the fault to the last one.
pub fn gap_since(writers: &Seen, fault: Instant) -> Duration {
    let mut times: Vec<Instant> = writers.acked.iter().map(|write| write.at).filter(|at| *at >= fault).collect();
    times.push(fault);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// What clients were told, against what is there.
pub fn judge(scene: &Scene, row: &Row, sync: bool, outcome: &mut Outcome, writers: &Seen, readers: &Seen) {
    outcome.acked = writers.acked.len();
    outcome.problems.extend(oracle::violations(&writers.acked));
    let control = scene.rig.control_of(row.observer);
    match control["primary"].as_str() {
        Some(primary) => outcome.lost = lost(writers, scene.rig.node(primary)),
        None => outcome.problems.push("no primary in the end: rows cannot be looked for".to_owned()),
    }
    if outcome.lost > 0 && (sync || row.lossless) {
        outcome.problems.push(format!("{} acknowledged rows lost", outcome.lost));
    }
    if outcome.wrong > 0 {
        outcome.problems.push(format!("{} wrong promotions", outcome.wrong));
    }
    for seen in [writers, readers] {
        for (state, count) in &seen.errors {
            *outcome.errors.entry(state.clone()).or_default() += count;
            if state != "08007" && !row.errors.contains(&state.as_str()) {
                outcome.problems.push(format!("clients saw {state} {count} times"));
            }
        }
    }
}

/// Everything that was stopped goes on, every link is mended.
pub fn release(rig: &Rig) {
    if let Some(net) = &rig.net {
        net.mend();
    }
    for node in rig.cluster.nodes() {
        node.thaw().unwrap();
    }
    (0..rig.addresses().len()).for_each(|index| rig.signal_proxy(index, "CONT"));
}

/// Makes three healthy nodes of what is left.
pub fn restore(scene: &Scene, sync: bool) -> Result<(), String> {
    let rig = scene.rig;
    scene.sessions.borrow_mut().clear();
    let primary = within(DECISION_LIMIT, || open_primary(&rig.control())).ok_or("no primary")?;
    let source = rig.node(&primary);
    for node in rig.cluster.nodes().iter().filter(|node| node.name() != primary) {
        let follows = || follows(node, source).then_some(());
        if scene.spoiled.borrow().contains(node.name()) {
            node.rebuild_from(source).map_err(|error| error.to_string())?;
        } else if !node.is_running() || within(FOLLOW_LIMIT, follows).is_none() {
            node.rejoin(source).map_err(|error| error.to_string())?;
        }
    }
    synchronous(rig, sync);
    rig.cluster.wait_streaming(HEALTH_LIMIT).map_err(|error| error.to_string())?;
    settled(rig)
}

/// Waits until every proxy is content with every node.
pub fn settled(rig: &Rig) -> Result<(), String> {
    let content = |index: usize| {
        let control = rig.control_of(index);
        let nodes = control["nodes"].as_array().unwrap();
        let healthy = nodes.iter().all(|node| node["health"] == "healthy");
        let reads = nodes.iter().filter(|node| node["role"] == "standby" && node["accepts_reads"] == true).count();
        control["failover"]["state"] == "stable"
            && open_primary(&control).is_some()
            && healthy
            && reads + 1 == nodes.len()
    };
    let all = || (0..rig.addresses().len()).all(content).then_some(());
    within(HEALTH_LIMIT, all).ok_or_else(|| rig.control().to_string())
}

/// Whether a node is out of the way: a standby that streams from this very node.
pub fn follows(node: &Node, source: &Node) -> bool {
    node.streams_from(source) && node.psql("SELECT pg_is_in_recovery()").is_ok_and(|recovers| recovers == "t")
}

/// Each node, once it is primary, waits for one of the others; or for nobody.
pub fn synchronous(rig: &Rig, sync: bool) {
    for node in rig.cluster.nodes() {
        let others = rig.cluster.nodes().iter().map(Node::name).filter(|name| *name != node.name());
        let names = if sync { format!("ANY 1 ({})", others.collect::<Vec<_>>().join(", ")) } else { String::new() };
        node.psql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).unwrap();
        node.psql("SELECT pg_reload_conf()").unwrap();
    }
}
