//! Nothing fails: a starved machine, servers without a free connection, and a proxy that is stopped now and
//! then must never lead to a failover.
//!
//! Invariant: the burners are threads of this process and end with it. Absent on purpose: slow disks.

use crate::rows::{self, Row};
use crate::run::{self, Outcome, Scene};
use crate::support::Dice;
use crate::support::load::{Clients, Load};
use crate::support::rig::{Rig, pause};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const NAME: &str = "no false failover";
const CLIENTS: Clients = Clients { writers: 4, readers: 2, thinking: Duration::from_millis(20) };
/// Burners per core.
const BURNERS: usize = 2;

/// What the result is judged by.
pub fn row() -> Row {
    Row { lossless: true, ..rows::named(NAME) }
}

/// Threads that use all the time they can get.
struct Burners(Arc<AtomicBool>);

impl Burners {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..cores * BURNERS {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {});
        }
        Self(stop)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Goes on for this long, in rounds: full servers, then a stopped proxy.
pub fn run(rig: &Rig, lasting: Duration) -> Outcome {
    let before = rig.control();
    let scene = Scene::new(rig, before["primary"].as_str().unwrap_or("pg1"));
    let (load, burners, began) = (Load::of(rig, &CLIENTS), Burners::start(), Instant::now());
    let mut dice = Dice(u64::from(std::process::id()));
    let mut rounds = 0;
    while began.elapsed() < lasting {
        rounds += 1;
        pause(500);
        rows::exhaust(&scene);
        pause(1500);
        scene.sessions.borrow_mut().clear();
        pause(500);
        rig.signal_proxy(0, "STOP");
        pause(1000 + dice.roll(4001));
        rig.signal_proxy(0, "CONT");
        pause(1000);
    }
    drop(burners);
    pause(1000);
    let (writers, readers) = load.stop();
    let after = rig.control();
    let mut outcome = Outcome {
        verdict: format!("{rounds} rounds in {} s", began.elapsed().as_secs()),
        notices: run::notices(&after, began),
        state: after["failover"]["state"].as_str().unwrap_or("?").to_owned(),
        time: run::gap_since(&writers, began),
        ..Outcome::default()
    };
    let count = |control: &serde_json::Value| control["failover"]["failovers"].as_u64().unwrap_or(u64::MAX);
    outcome.wrong = count(&after).abs_diff(count(&before));
    if after["primary"] != before["primary"] {
        outcome.problems.push(format!("the primary was {}, and is {}", before["primary"], after["primary"]));
    }
    run::judge(&scene, &row(), false, &mut outcome, &writers, &readers);
    if let Err(why) = run::settled(rig) {
        outcome.problems.push(format!("not healthy again: {why}"));
    }
    outcome
}
