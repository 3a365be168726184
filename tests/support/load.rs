//! Clients that write and read until told to stop, and what became of every statement.
//!
//! Invariants: an id is used once; a write counts as acknowledged only by its CommandComplete and
//! ReadyForQuery; a client whose connection ended logs in again and counts it. Absent on purpose: judging
//! which node should have answered.

use super::rawclient::{Gone, RawClient};
use super::rig::{Rig, code, login, pause};
use pgregent::demo::cluster::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Ids of all writers of this process.
static NEXT: AtomicI64 = AtomicI64::new(1);
/// Pause of a reader between statements, so that the machine has time for the rest.
const READER_PAUSE: Duration = Duration::from_millis(2);

/// An acknowledged write.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: i64,
    /// Before it was sent.
    pub began: Instant,
    /// When it was acknowledged.
    pub at: Instant,
    /// The port of the node that carried it out, as that node says.
    pub node: String,
    /// That node's timeline, hexadecimal.
    pub timeline: String,
    /// Its client's connection is the one it began with.
    pub first_session: bool,
}

/// What one client saw.
#[derive(Default)]
pub struct Seen {
    /// Acknowledged writes.
    pub acked: Vec<Write>,
    /// Ids whose fate the client was not told.
    pub unknown: BTreeSet<i64>,
    /// Failures by SQLSTATE.
    pub errors: BTreeMap<String, u64>,
    /// When a statement or a login was given up that had no answer for [`super::rawclient::READ_TIMEOUT`].
    pub hung: Vec<Instant>,
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
        self.hung.extend(other.hung);
        for (key, count) in other.errors {
            *self.errors.entry(key).or_default() += count;
        }
        for (key, count) in other.ports {
            *self.ports.entry(key).or_default() += count;
        }
        self.slowest = self.slowest.max(other.slowest);
    }

    fn fail(&mut self, gone: &Gone, what: &str) {
        if matches!(gone, Gone::TimedOut) {
            self.hung.push(Instant::now());
        }
        *self.errors.entry(format!("{what}{}", code(gone))).or_default() += 1;
    }

    /// The longest time without an acknowledged write.
    pub fn write_gap(&self) -> Duration {
        gap(self.acked.iter().map(|write| write.at).collect())
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

/// What clients are there.
pub struct Clients {
    pub writers: usize,
    pub readers: usize,
    /// How long a writer thinks after each statement.
    pub thinking: Duration,
}

/// Running clients.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Seen>>,
    readers: Vec<JoinHandle<Seen>>,
}

impl Load {
    /// Writers that never think, and readers.
    pub fn start(rig: &Rig, writers: usize, readers: usize) -> Self {
        Self::of(rig, &Clients { writers, readers, thinking: Duration::ZERO })
    }

    /// Clients, shared out among the proxies.
    pub fn of(rig: &Rig, clients: &Clients) -> Self {
        let (stop, addresses, thinking) = (Arc::new(AtomicBool::new(false)), rig.addresses(), clients.thinking);
        let spawn = |index: usize, work: fn(SocketAddr, Duration, &AtomicBool) -> Seen| {
            let (stop, address) = (Arc::clone(&stop), addresses[index % addresses.len()]);
            std::thread::spawn(move || work(address, thinking, &stop))
        };
        let writers = (0..clients.writers).map(|index| spawn(index, write)).collect();
        let readers = (0..clients.readers).map(|index| spawn(index, read)).collect();
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

fn connect(address: SocketAddr, seen: &mut Seen) -> Option<RawClient> {
    let client = RawClient::login_at(address, &login());
    client
        .map_err(|gone| {
            seen.fail(&gone, "login ");
            pause(50);
        })
        .ok()
}

/// Whether the session goes on after this.
fn survives(gone: &Gone) -> bool {
    matches!(gone, Gone::Refused(fields) if fields.severity() == "ERROR")
}

fn write(address: SocketAddr, thinking: Duration, stop: &AtomicBool) -> Seen {
    let (mut seen, mut client, mut sessions) = (Seen::default(), None, 0);
    while !stop.load(Ordering::Relaxed) {
        let Some(session) = client.as_mut() else {
            client = connect(address, &mut seen);
            sessions += 1;
            continue;
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        match RawClient::simple(session, &format!("INSERT INTO ledger (id) VALUES ({id}) RETURNING node, timeline")) {
            Ok(mut answer) => {
                let [node, timeline] = [0, 1].map(|column| answer.rows[0][column].take().unwrap());
                seen.acked.push(Write { id, began, at: Instant::now(), node, timeline, first_session: sessions == 1 });
            }
            Err(gone) => {
                let state = code(&gone);
                if state == "08007" || state == "closed" || state == "hung" {
                    seen.unknown.insert(id);
                }
                if !survives(&gone) {
                    client = None;
                }
                seen.fail(&gone, "");
                pause(10);
            }
        }
        seen.slowest = seen.slowest.max(began.elapsed());
        std::thread::sleep(thinking);
    }
    seen
}

fn read(address: SocketAddr, _thinking: Duration, stop: &AtomicBool) -> Seen {
    let (mut seen, mut client) = (Seen::default(), None);
    while !stop.load(Ordering::Relaxed) {
        let Some(session) = client.as_mut() else {
            client = connect(address, &mut seen);
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
                if !survives(&gone) {
                    client = None;
                }
                seen.fail(&gone, "");
                pause(10);
            }
        }
        seen.slowest = seen.slowest.max(began.elapsed());
        std::thread::sleep(READER_PAUSE);
    }
    seen
}

/// The ids on a node, from this one on.
pub fn ids_from(node: &Node, first: i64) -> BTreeSet<i64> {
    let text = node.psql_in("app", &format!("SELECT id FROM ledger WHERE id >= {first}")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The ids on a node.
pub fn ids_on(node: &Node) -> BTreeSet<i64> {
    ids_from(node, i64::MIN)
}

/// Acknowledged ids that the node lacks.
pub fn lost(writers: &Seen, node: &Node) -> usize {
    let there = ids_from(node, writers.acked.iter().map(|write| write.id).min().unwrap_or(0));
    writers.acked.iter().filter(|write| !there.contains(&write.id)).count()
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
