//! A soak: clients of every kind, backends killed, a standby restarted, and the proxy stays as it was.
//!
//! Every statement carries its client's token and must bring it back, with the client's own settings and
//! role. At the end: no wrong echo, resident memory flat, descriptors and sessions back to the start, no
//! panic, as many backends on the nodes as the pools know. `make test` runs it for half a minute,
//! `make soak` for thirty minutes (SOAK_MINUTES). Absent on purpose: failover, which has tests of its own.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "../support/mod.rs"]
mod support;

mod life;
mod trouble;
mod watch;

use life::{Book, Life};
use pgregent::demo::cluster::{AuthSource, Cluster, ClusterOptions, ProxyOptions};
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::guard::ProcessGuard;
use support::rawclient::{Login, RawClient};
use support::{free_port, wait_for};
use watch::{Sample, Watch};

/// Clients at work.
const CLIENTS: u64 = 24;
/// Backends per node and user.
const POOL: usize = 6;
/// Without SOAK_MINUTES.
const SHORT: Duration = Duration::from_secs(25);
/// How long anything may take on a slow machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The application's login; its zone is known, so that RESET has a known result.
fn login() -> Login {
    Login::new("app", "app", "app").with("TimeZone", "UTC")
}

fn asked_for() -> Duration {
    let minutes = std::env::var("SOAK_MINUTES").ok().map(|text| text.parse::<f64>().expect("SOAK_MINUTES is a number"));
    minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(minutes * 60.0))
}

/// The program under test: PGREGENT_PROGRAM, or the one built with this test.
fn program() -> PathBuf {
    std::env::var_os("PGREGENT_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_pgregent").into(), PathBuf::from)
}

/// A cluster with the proxy in front.
struct Rig {
    process: ProcessGuard,
    cluster: Cluster,
    port: u16,
    admin: u16,
    log: PathBuf,
}

impl Rig {
    fn start() -> Self {
        let cluster =
            Cluster::start(ClusterOptions::default()).unwrap_or_else(|error| panic!("the cluster starts: {error}"));
        let primary = cluster.node("pg1").unwrap();
        let objects = "CREATE ROLE app_group; GRANT app_group TO app; CREATE TABLE soak (client int, token text); \
                       ALTER TABLE soak OWNER TO app; GRANT ALL ON soak TO app_group";
        primary.psql_in("app", objects).unwrap();
        cluster.wait_streaming(LIMIT).unwrap();
        let (port, admin) = (free_port(), free_port());
        let (state, run) = (cluster.dir().join("state"), cluster.dir().join("run"));
        fs::create_dir_all(&state).unwrap();
        fs::create_dir_all(&run).unwrap();
        let extra = vec![("pool", format!("size = {POOL}"))];
        let options = ProxyOptions { port, admin_port: admin, state_dir: state, auth: AuthSource::Users, extra };
        let config = cluster.dir().join("pgregent.toml");
        // Killed backends and a restarted standby must not look like a lost primary on a busy machine.
        fs::write(&config, cluster.proxy_config(&options).replace("failover = \"automatic\"", "failover = \"manual\""))
            .unwrap();
        let log = cluster.dir().join("proxy.log");
        let arguments = ["serve", "--config", config.to_str().unwrap()];
        let process = ProcessGuard::spawn(&program(), &arguments, &run, File::create(&log).unwrap());
        let rig = Self { process, cluster, port, admin, log };
        wait_for("the proxy listens", LIMIT, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        wait_for("the proxy splits reads", LIMIT, || rig.splits());
        rig
    }

    fn splits(&self) -> bool {
        let Ok(mut client) = RawClient::login(self.port, &login()) else { return false };
        let mut port = |sql: &str| client.simple(sql).ok().and_then(|answer| answer.rows.first()?.first()?.clone());
        let (read, write) = (port("SELECT inet_server_port()"), port("SELECT inet_server_port() FOR UPDATE"));
        read.is_some() && write.is_some() && read != write
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(20_000);
            eprintln!("--- end of the proxy's log ---\n{}\n---", String::from_utf8_lossy(&log.as_bytes()[from..]));
        }
    }
}

/// Plays until the time is over; samples while clients are at work.
fn play(rig: &Rig, watch: &Watch, lasting: Duration) -> (Book, Vec<Sample>) {
    let stop = Arc::new(AtomicBool::new(false));
    let book = std::sync::Mutex::new(Book::default());
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (stop, book, port) = (Arc::clone(&stop), &book, rig.port);
            scope.spawn(move || {
                let seen = Life::new(number, port).run(&stop);
                book.lock().unwrap().add(seen);
            });
        }
        let (stopped, cluster) = (Arc::clone(&stop), &rig.cluster);
        scope.spawn(move || trouble::kill_backends(cluster, &stopped));
        let (stopped, cluster) = (Arc::clone(&stop), &rig.cluster);
        scope.spawn(move || trouble::restart_standbys(cluster, &stopped, lasting));
        let (started, pause) =
            (Instant::now(), (lasting / 60).clamp(Duration::from_millis(500), Duration::from_secs(5)));
        while started.elapsed() < lasting && rig.process.is_running() {
            std::thread::sleep(pause);
            samples.push(watch.sample(started.elapsed()));
        }
        stop.store(true, Ordering::SeqCst);
    });
    (book.into_inner().unwrap(), samples)
}

#[test]
fn the_proxy_stays_as_it_was() {
    let (rig, lasting) = (Rig::start(), asked_for());
    let watch = Watch::new(rig.process.pid, rig.admin);
    let before = watch.settled();
    let (book, samples) = play(&rig, &watch, lasting);
    assert!(rig.process.is_running(), "the proxy ended");
    println!("{}", book.summary());
    println!("{}", watch::table(&samples));
    let after = watch.settled();
    println!("before: {before}\nafter:  {after}");
    book.assert_right();
    watch::assert_flat(&samples);
    // Descriptors beyond backends: nothing of a client that left may be open. A backend has two: its socket, and
    // the duplicate by which a fence cuts it.
    let spare = |sample: &Sample| sample.descriptors.saturating_sub(2 * sample.backends);
    assert!(spare(&after) <= spare(&before) + 2, "descriptors stay open: {before} / {after}");
    assert_eq!((after.sessions, after.active), (0, 0), "somebody is still there: {after}");
    assert_eq!(watch.metric("pgregent_panics_total"), 0.0, "the proxy panicked");
    assert!(!rig.log().contains("panicked at"), "the proxy panicked");
    wait_for("no backend is left on the nodes that no pool knows", LIMIT, || {
        let there = rig.cluster.nodes().iter().map(trouble::app_backends).sum::<u64>();
        there == watch.sample(lasting).backends_of_pools
    });
}
