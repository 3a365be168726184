//! Several proxies against a model of PostgreSQL and of a network, from a seed: `make sim SEED=n TRACE=1` is a replay.
//!
//! Real are the failover machine and the rules of the stores `voters` and `etcd`; simulated are servers, etcd, links,
//! clocks, pauses, crashes, programs and people. The promises are in `check`, the faults in `fault`, what a seed draws
//! beforehand in `setup`. `no_seed_breaks_a_promise` runs many seeds; `every_seeded_bug_is_found` builds defects in and
//! sees the checks find them; `a_seed_is_a_replay` sees that a seed tells all. Settings: SEED (one), SEEDS (how many),
//! FIRST (from which), TRACE=1 (everything, not only the end), BUG (a defect by name).
//!
//! A failing seed is printed with the end of its trace and the promise that it broke. `make sim SEED=n TRACE=1` shows the
//! whole of it: first the setup, then a line per thing that happened, with the true time in seconds, which no host
//! knows. n0 is a node, w0 a witness, p0 a proxy; FAULT is fate, `says` what a proxy tells people, `stands` what its store
//! says (register, highest epoch and whom it names, epoch of the lease, nodes held under the right, whether somebody
//! ordered a change; what is lacking). Read it from the end: which promotion or permit broke the promise, who decided it, what
//! did that proxy know, and what did it not know. A seed is good for one version of the simulation only: whoever changes what is
//! drawn changes all seeds. So what a seed has found becomes a unit test or a scenario.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod act;
mod bug;
mod check;
mod client;
mod commit;
mod dispatch;
mod etcd;
mod fault;
mod net;
mod node;
mod probe;
mod proxy;
mod random;
mod record;
mod server;
mod setup;
mod wal;
mod world;

use bug::Bug;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use world::World;

/// Seeds of a run without settings.
const SEEDS: u64 = 100;
/// Seeds within which every seeded bug must be found.
const BUG_SEEDS_MAX: u64 = 400;
/// Seconds with faults.
const SECONDS: u64 = 60;
/// Lines of the trace that are printed of a failing seed, unless TRACE=1 wants all.
const TRACE_LINES: usize = 120;
/// Lines that the traces of all replays have at least, together.
const LINES_TOLD: usize = 1000;
/// Failing seeds after which a run ends.
const FAILURES_MAX: usize = 20;

thread_local! {
    /// A seed is being run on this thread.
    static PLAYING: Cell<bool> = const { Cell::new(false) };
}

/// Seeds that are played twice.
const REPLAYS: u64 = 6;

/// What one seed came to.
#[derive(Debug, Default)]
struct Outcome {
    violation: Option<String>,
    trace: Vec<String>,
    promotions: u32,
    believed: u32,
    lost: u32,
    healed_ms: Option<u64>,
    person: Vec<String>,
    events: u64,
}

fn play(seed: u64, bug: Option<Bug>, tracing: bool) -> Outcome {
    let mut world = World::new(seed, SECONDS, bug, tracing);
    PLAYING.set(true);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    PLAYING.set(false);
    let panic = ended.err().map(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    });
    let oracle = &world.oracle;
    Outcome {
        violation: panic.map(|text| format!("panic: {text}")).or(oracle.violation.clone()),
        trace: world.trace().to_vec(),
        promotions: oracle.promotions,
        believed: oracle.believed,
        lost: oracle.lost,
        healed_ms: oracle.healed_at.map(|at| at / world::MS),
        person: oracle.person.clone(),
        events: world.events,
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|v| !v.is_empty()).map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v}")))
}

#[derive(Debug, Default)]
struct Total {
    failures: BTreeMap<u64, String>,
    seeds: u64,
    promotions: u64,
    believed: u64,
    lost: u64,
    events: u64,
    healed_ms: Vec<u64>,
    person: BTreeMap<String, Vec<u64>>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.promotions += u64::from(outcome.promotions);
        self.believed += u64::from(outcome.believed);
        self.lost += u64::from(outcome.lost);
        self.events += outcome.events;
        self.healed_ms.extend(outcome.healed_ms);
        for hold in outcome.person {
            self.person.entry(hold).or_default().push(seed);
        }
        if let Some(violation) = outcome.violation {
            self.failures.insert(seed, violation);
        }
    }

    fn print(&mut self) {
        self.healed_ms.sort_unstable();
        let at = |share: usize| self.healed_ms.get(self.healed_ms.len().saturating_sub(1) * share / 100).copied();
        println!(
            "{} seeds, {} events, {} promotions, {} writes believed, {} lost (asynchronous only); writable again after ms: \
             median {:?}, 99% {:?}, at most {:?}",
            self.seeds,
            self.events,
            self.promotions,
            self.believed,
            self.lost,
            at(50),
            at(99),
            at(100)
        );
        for (hold, seeds) in &self.person {
            println!("a person is needed: {hold} in {} seeds, e.g. {:?}", seeds.len(), &seeds[..seeds.len().min(5)]);
        }
    }
}

/// Does this with each seed, on as many threads as there are processors, until there are none left or it is enough.
fn each_seed(first: u64, count: u64, enough: impl Fn() -> bool + Sync, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count || enough() {
                        break;
                    }
                    work(seed);
                }
            });
        }
    });
}

fn run_seeds(first: u64, count: u64) -> Total {
    let total = Mutex::new(Total::default());
    let enough = || total.lock().unwrap().failures.len() >= FAILURES_MAX;
    each_seed(first, count, enough, |seed| {
        let outcome = play(seed, None, false);
        total.lock().unwrap().add(seed, outcome);
    });
    total.into_inner().unwrap()
}

/// The end of a failing seed's trace, and how to see all of it.
fn explain(seed: u64, bug: Option<Bug>, all: bool) -> String {
    let outcome = play(seed, bug, true);
    let from = if all { 0 } else { outcome.trace.len().saturating_sub(TRACE_LINES) };
    let mut text = String::new();
    for line in &outcome.trace[from..] {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "seed {seed}: {}", outcome.violation.unwrap_or_else(|| "no violation".to_owned()));
    let _ = writeln!(text, "replay: make sim SEED={seed} TRACE=1");
    text
}

/// A panic inside a seed is a finding and told as one.
fn quiet_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !PLAYING.get() {
            usual(info);
        }
    }));
}

#[test]
fn no_seed_breaks_a_promise() {
    quiet_panics();
    let all = setting("TRACE").is_some();
    if let Some(seed) = setting("SEED") {
        let bug = std::env::var("BUG").ok().and_then(|name| bug::named(&name));
        println!("{}", explain(seed, bug, all));
        assert_eq!(play(seed, bug, false).violation, None);
        return;
    }
    let mut total = run_seeds(setting("FIRST").unwrap_or(1), setting("SEEDS").unwrap_or(SEEDS));
    total.print();
    if let Some((seed, _)) = total.failures.first_key_value() {
        println!("{}", explain(*seed, None, all));
    }
    let failures: Vec<String> = total.failures.iter().map(|(seed, what)| format!("SEED={seed}: {what}")).collect();
    assert!(failures.is_empty(), "{} seeds fail:\n{}", failures.len(), failures.join("\n"));
}

/// Runs seeds with a defect until one is found out; says by which seed and check.
fn hunt(bug: Bug, most: u64) -> Option<(u64, String)> {
    let found = Mutex::new(None::<(u64, String)>);
    each_seed(
        1,
        most,
        || found.lock().unwrap().is_some(),
        |seed| {
            if let Some(what) = play(seed, Some(bug), false).violation {
                found.lock().unwrap().get_or_insert((seed, what));
            }
        },
    );
    found.into_inner().unwrap()
}

#[test]
fn every_seeded_bug_is_found() {
    quiet_panics();
    let most = setting("SEEDS").unwrap_or(BUG_SEEDS_MAX);
    let mut missed = Vec::new();
    for bug in bug::ALL {
        match hunt(bug, most) {
            Some((seed, what)) => println!("{bug:?}: seed {seed}: {what}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within {most} seeds: {missed:?}");
}

#[test]
fn a_seed_is_a_replay() {
    quiet_panics();
    let mut told = 0;
    for seed in 1..=REPLAYS {
        let (once, again) = (play(seed, None, true), play(seed, None, true));
        told += once.trace.len();
        let parting = once.trace.iter().zip(&again.trace).find(|(a, b)| a != b);
        assert_eq!(parting, None, "seed {seed}");
        assert_eq!((once.trace.len(), once.events), (again.trace.len(), again.events), "seed {seed}");
    }
    assert!(told > LINES_TOLD, "{told} lines: traces tell nothing");
}
