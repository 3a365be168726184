//! Clients that write and read until told to stop, and what became of every statement.
//!
//! Invariants: an id is used once; a write counts as acknowledged only by its CommandComplete and
//! ReadyForQuery; a client whose connection ended logs in again and counts it.

use crate::rig::{Rig, code, login, pause};
use crate::support::rawclient::RawClient;
use pgregent::demo::cluster::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Ids of all writers of this process.
static NEXT: AtomicI64 = AtomicI64::new(1);
/// Pause of a reader between statements, so that the machine has time for the rest.
const READER_PAUSE: Duration = Duration::from_millis(2);

/// What one client saw.
#[derive(Default)]
pub struct Seen {
    /// Acknowledged ids and when.
    pub acked: Vec<(i64, Instant)>,
    /// Ids whose fate the client was not told.
    pub unknown: BTreeSet<i64>,
    /// Failures by SQLSTATE.
    pub errors: BTreeMap<String, u64>,
    /// Answers by node port.
    pub ports: BTreeMap<String, u64>,
    /// The longest statement.
    pub slowest: Duration,
    /// When each answer came.
    pub answers: Vec<Instant>,
}

impl Seen {
    fn merge(&mut self, other: Self) {
        self.acked.extend(other.acked);
        self.unknown.extend(other.unknown);
        self.answers.extend(other.answers);
        for (key, count) in other.errors {
            *self.errors.entry(key).or_default() += count;
        }
        for (key, count) in other.ports {
            *self.ports.entry(key).or_default() += count;
        }
        self.slowest = self.slowest.max(other.slowest);
    }

    fn fail(&mut self, state: String) {
        *self.errors.entry(state).or_default() += 1;
    }

    /// The longest time without an acknowledged write.
    pub fn write_gap(&self) -> Duration {
        gap(self.acked.iter().map(|(_, at)| *at).collect())
    }

    /// The longest time without an answered read.
    pub fn read_gap(&self) -> Duration {
        gap(self.answers.clone())
    }

    /// Errors other than these.
    pub fn assert_only(&self, allowed: &[&str]) {
        let other: Vec<_> = self.errors.iter().filter(|(state, _)| !allowed.contains(&state.as_str())).collect();
        assert!(other.is_empty(), "errors that clients should not see: {other:?}");
    }
}

fn gap(mut times: Vec<Instant>) -> Duration {
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
}

/// Running clients.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Seen>>,
    readers: Vec<JoinHandle<Seen>>,
}

impl Load {
    pub fn start(rig: &Rig, writers: usize, readers: usize) -> Self {
        let (stop, port) = (Arc::new(AtomicBool::new(false)), rig.port);
        let spawn = |work: fn(u16, &AtomicBool) -> Seen| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || work(port, &stop))
        };
        let writers = (0..writers).map(|_| spawn(write)).collect();
        let readers = (0..readers).map(|_| spawn(read)).collect();
        Self { stop, writers, readers }
    }

    /// Ends all clients; what writers and readers saw.
    pub fn stop(self) -> (Seen, Seen) {
        self.stop.store(true, Ordering::Relaxed);
        let all = |handles: Vec<JoinHandle<Seen>>| {
            let mut whole = Seen::default();
            handles.into_iter().for_each(|handle| whole.merge(handle.join().unwrap()));
            whole
        };
        (all(self.writers), all(self.readers))
    }
}

fn connect(port: u16, seen: &mut Seen) -> Option<RawClient> {
    let client = RawClient::login(port, &login());
    client
        .map_err(|gone| {
            seen.fail(format!("login {}", code(&gone)));
            pause(50);
        })
        .ok()
}

fn write(port: u16, stop: &AtomicBool) -> Seen {
    let (mut seen, mut client) = (Seen::default(), None);
    while !stop.load(Ordering::Relaxed) {
        let Some(session) = client.as_mut() else {
            client = connect(port, &mut seen);
            continue;
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        match RawClient::simple(session, &format!("INSERT INTO ledger (id) VALUES ({id})")) {
            Ok(_) => seen.acked.push((id, Instant::now())),
            Err(gone) => {
                let state = code(&gone);
                if state == "08007" || state == "closed" || state == "hung" {
                    seen.unknown.insert(id);
                }
                if !matches!(gone, crate::support::rawclient::Gone::Refused(ref f) if f.severity() == "ERROR") {
                    client = None;
                }
                seen.fail(state);
                pause(10);
            }
        }
        seen.slowest = seen.slowest.max(began.elapsed());
    }
    seen
}

fn read(port: u16, stop: &AtomicBool) -> Seen {
    let (mut seen, mut client) = (Seen::default(), None);
    while !stop.load(Ordering::Relaxed) {
        let Some(session) = client.as_mut() else {
            client = connect(port, &mut seen);
            continue;
        };
        let began = Instant::now();
        match RawClient::simple(session, "SELECT inet_server_port(), (SELECT max(id) FROM ledger)") {
            Ok(answer) => {
                let port = answer.rows[0][0].clone().unwrap();
                *seen.ports.entry(port).or_default() += 1;
                seen.answers.push(Instant::now());
            }
            Err(gone) => {
                if !matches!(gone, crate::support::rawclient::Gone::Refused(ref f) if f.severity() == "ERROR") {
                    client = None;
                }
                seen.fail(code(&gone));
                pause(10);
            }
        }
        seen.slowest = seen.slowest.max(began.elapsed());
        std::thread::sleep(READER_PAUSE);
    }
    seen
}

/// The ids on a node.
pub fn ids_on(node: &Node) -> BTreeSet<i64> {
    let text = node.psql_in("app", "SELECT id FROM ledger").unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Acknowledged ids that the node lacks.
pub fn lost(writers: &Seen, node: &Node) -> usize {
    let there = ids_on(node);
    writers.acked.iter().filter(|(id, _)| !there.contains(id)).count()
}

/// Prints what clients saw.
pub fn print(rig: &Rig, title: &str, writers: &Seen, readers: &Seen) {
    let ports: Vec<String> =
        readers.ports.iter().map(|(port, count)| format!("{} {count}", rig.name_of(port))).collect();
    println!(
        "{title}: {} writes, longest gap {:.3} s, errors {:?}; {} reads ({}), longest gap {:.3} s, slowest {:.3} s, errors {:?}",
        writers.acked.len(),
        writers.write_gap().as_secs_f64(),
        writers.errors,
        readers.answers.len(),
        ports.join(", "),
        readers.read_gap().as_secs_f64(),
        readers.slowest.as_secs_f64(),
        readers.errors,
    );
}
