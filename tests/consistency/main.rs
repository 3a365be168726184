//! Reads that sessions of their own writes never see stale, while standbys lag in every way.
//!
//! Each client owns a row and a counter: after every write, however it was made, each of its reads must show the
//! counter, on whatever node it runs; so must the first read of its next session. Meanwhile replay is paused, the WAL
//! receiver, the startup process or all processes of a standby are stopped, and a standby applies with delay. At the end: no stale read, and most reads were a standby's.
//! `make test` checks some ten thousand reads, `make consistency` a million (CONSISTENCY_READS). Absent on purpose:
//! what one client sees of another's writes (counted, not judged), failover.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "../support/mod.rs"]
mod support;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::cluster::{Cluster, app_login};
use support::message::{batch, bind, execute, parse, query, sync};
use support::proxy::ProxySpec;
use support::rawclient::{Answer, Gone, RawClient};
use support::{Dice, number};

/// Clients at work.
const CLIENTS: u64 = 12;
/// Without CONSISTENCY_READS.
const READS: u64 = 15_000;
/// A standby that answers half as often as it could is not worth having.
const STANDBY_SHARE_MIN: f64 = 0.25;
/// Sessions of a client end after so many writes.
const WRITES_PER_SESSION: u64 = 100;
/// One client in so many acknowledges commits before they are flushed.
const LAZY_EVERY: u64 = 6;

/// What all clients saw.
#[derive(Default)]
struct Seen {
    reads: AtomicU64,
    on_standbys: AtomicU64,
    writes: AtomicU64,
    logins: AtomicU64,
    /// Another client's counter went back, from one read to the next.
    back: AtomicU64,
    /// Another client's counter was looked at.
    strangers: AtomicU64,
}

struct Client<'a> {
    number: u64,
    port: u16,
    session: RawClient,
    counter: u64,
    /// What it last saw of its neighbour's counter.
    neighbour: u64,
    dice: Dice,
    seen: &'a Seen,
}

impl<'a> Client<'a> {
    fn new(number: u64, port: u16, seen: &'a Seen) -> Self {
        let session = RawClient::login(port, &app_login()).unwrap();
        let mut client = Self { number, port, session, counter: 0, neighbour: 0, dice: Dice(number * 7919 + 1), seen };
        client.begin_session();
        client
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice.roll(sides)
    }

    fn begin_session(&mut self) {
        self.seen.logins.fetch_add(1, Ordering::Relaxed);
        self.neighbour = 0;
        if self.number.is_multiple_of(LAZY_EVERY) {
            self.session.simple("SET synchronous_commit = off").unwrap();
        }
        self.session
            .send(&batch(&[parse("mine", "SELECT n, pg_is_in_recovery() FROM marks WHERE client = $1"), sync()]))
            .unwrap();
        self.session.answer().unwrap();
    }

    fn reconnect(&mut self) {
        self.session = RawClient::login(self.port, &app_login()).unwrap();
        self.begin_session();
    }

    fn write(&mut self) {
        self.counter += 1;
        let number = self.number;
        let update = format!("UPDATE marks SET n = n + 1 WHERE client = {number}");
        let outcome = match self.roll(6) {
            0 => self.session.simple(&update),
            1 => {
                let messages = [parse("", &update), bind("", "", &[]), execute("", 0), sync()];
                self.session.send(&batch(&messages)).and_then(|()| self.session.answer())
            }
            2 => self
                .session
                .simple("BEGIN")
                .and_then(|_| self.session.simple(&update))
                .and_then(|_| self.session.simple("COMMIT")),
            3 => self.session.simple(&format!("SELECT 1; {update}; SELECT 2")),
            4 => self.session.simple(&format!("WITH moved AS ({update} RETURNING n) SELECT n FROM moved")),
            _ => self.session.simple(&format!("SELECT bump({number})")),
        };
        outcome.unwrap();
        self.seen.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// One read of its own row, in one of the ways that reads are made.
    fn read(&mut self) {
        let sql = format!("SELECT n, pg_is_in_recovery() FROM marks WHERE client = {}", self.number);
        let value = self.number.to_string();
        let run = [bind("", "mine", &[Some(value.as_bytes())]), execute("", 0), sync()];
        let answer = match self.roll(4) {
            0 => self.session.simple(&sql),
            1 => self.session.send(&batch(&run)).and_then(|()| self.session.answer()),
            2 => self.in_read_only(&sql),
            // Right behind one another, without waiting.
            _ => self.session.send(&[query("SELECT 1"), batch(&run)].concat()).and_then(|()| {
                self.session.answer()?;
                self.session.answer()
            }),
        };
        let rows = answer.unwrap().rows;
        let [Some(n), Some(standby)] = rows[0].as_slice() else { panic!("{rows:?}") };
        assert_eq!(*n, self.counter.to_string(), "client {} read a stale row (on a standby: {standby})", self.number);
        self.seen.reads.fetch_add(1, Ordering::Relaxed);
        self.seen.on_standbys.fetch_add(u64::from(standby == "t"), Ordering::Relaxed);
    }

    fn in_read_only(&mut self, sql: &str) -> Result<Answer, Gone> {
        self.session.simple("BEGIN READ ONLY")?;
        let answer = self.session.simple(sql)?;
        self.session.simple("COMMIT")?;
        Ok(answer)
    }

    fn look_next_door(&mut self) {
        let next = (self.number + 1) % CLIENTS;
        let n: u64 = self.session.value(&format!("SELECT n FROM marks WHERE client = {next}")).parse().unwrap();
        self.seen.strangers.fetch_add(1, Ordering::Relaxed);
        self.seen.back.fetch_add(u64::from(n < self.neighbour), Ordering::Relaxed);
        self.neighbour = n;
    }

    fn live(mut self, wanted: u64) {
        while self.seen.reads.load(Ordering::Relaxed) < wanted {
            self.write();
            for _ in 0..=self.roll(12) {
                self.read();
            }
            self.look_next_door();
            if self.counter.is_multiple_of(WRITES_PER_SESSION) {
                self.reconnect();
                self.read();
            }
        }
    }
}

/// Stops processes of a standby for a while.
fn freeze(standby: &mut RawClient, which: &str, wait: impl Fn()) {
    let answer = standby.simple(&format!("SELECT pid FROM pg_stat_activity WHERE {which}")).unwrap();
    let pids: Vec<String> = answer.rows.into_iter().filter_map(|row| row[0].clone()).collect();
    let signal = |name: &str| {
        // A process may have ended meanwhile.
        let _ = Command::new("kill").arg(name).args(&pids).stderr(std::process::Stdio::null()).status();
    };
    signal("-STOP");
    wait();
    signal("-CONT");
}

/// Makes standbys lag, in turn and in every way, until told to stop.
fn trouble(cluster: &Cluster, stop: &AtomicBool) {
    let wait = |millis: u64| {
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(millis) && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut standbys = [1, 2].map(|index| cluster.superuser_on(index, "postgres"));
    let mut turn = 0;
    while !stop.load(Ordering::SeqCst) {
        turn += 1;
        let standby = &mut standbys[turn % 2];
        match turn % 5 {
            3 => freeze(standby, "backend_type = 'startup'", || wait(500)),
            4 => freeze(standby, "pid <> pg_backend_pid()", || wait(400)),
            0 => {
                standby.simple("SELECT pg_wal_replay_pause()").unwrap();
                wait(400);
                standby.simple("SELECT pg_wal_replay_resume()").unwrap();
            }
            1 => {
                let receiver = standby.value("SELECT coalesce((SELECT pid FROM pg_stat_wal_receiver), 0)");
                if receiver != "0" {
                    let signal = |name: &str| Command::new("kill").args([name, &receiver]).status().unwrap();
                    signal("-STOP");
                    wait(500);
                    signal("-CONT");
                }
            }
            _ => {
                standby.simple("ALTER SYSTEM SET recovery_min_apply_delay = '250ms'").unwrap();
                standby.simple("SELECT pg_reload_conf()").unwrap();
                wait(700);
                standby.simple("ALTER SYSTEM RESET recovery_min_apply_delay").unwrap();
                standby.simple("SELECT pg_reload_conf()").unwrap();
            }
        }
        wait(300);
    }
}

#[test]
fn no_session_reads_less_than_it_wrote() {
    let cluster = Cluster::start();
    let proxy = ProxySpec::in_front_of(&cluster).set("pool.size", "8").start_splitting();
    let mut maker = proxy.client();
    maker.simple("CREATE TABLE marks (client int PRIMARY KEY, n bigint NOT NULL)").unwrap();
    maker.simple(&format!("INSERT INTO marks SELECT i, 0 FROM generate_series(0, {CLIENTS} - 1) i")).unwrap();
    let bump = "CREATE FUNCTION bump(int) RETURNS bigint LANGUAGE sql VOLATILE \
                AS 'UPDATE marks SET n = n + 1 WHERE client = $1 RETURNING n'";
    maker.simple(bump).unwrap();
    let (seen, stop, wanted, started) =
        (Seen::default(), AtomicBool::new(false), number("CONSISTENCY_READS", READS), Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| trouble(&cluster, &stop));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn({
                    let (seen, port) = (&seen, proxy.port);
                    move || Client::new(number, port, seen).live(wanted)
                })
            })
            .collect();
        let outcomes: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::SeqCst);
        assert!(outcomes.iter().all(Result::is_ok), "a client saw what it must not");
    });
    let count = |what: &AtomicU64| what.load(Ordering::Relaxed);
    let (reads, on_standbys) = (count(&seen.reads), count(&seen.on_standbys));
    let share = on_standbys as f64 / reads as f64;
    println!(
        "{reads} reads of what was written in {} writes and {} sessions, none stale, {:.0} % on standbys, in {:.0?}; \
         another client's row was read {} times and went back {} times",
        count(&seen.writes),
        count(&seen.logins),
        share * 100.0,
        started.elapsed(),
        count(&seen.strangers),
        count(&seen.back),
    );
    assert!(share > STANDBY_SHARE_MIN, "only {:.0} % of the reads were on standbys", share * 100.0);
    proxy.assert_no_panic();
}

/// A commit that is acknowledged before it is flushed, and a session that begins right after.
#[test]
fn a_new_session_sees_what_is_not_yet_flushed() {
    let cluster = Cluster::start();
    let proxy = ProxySpec::in_front_of(&cluster).start_splitting();
    let mut writers = [proxy.client(), proxy.client(), proxy.client(), proxy.client()];
    writers[0].simple("CREATE TABLE lazy AS SELECT 0 AS n; SET synchronous_commit = off").unwrap();
    writers[1].simple("SET synchronous_commit = off").unwrap();
    let function = "CREATE FUNCTION lazily() RETURNS void LANGUAGE plpgsql AS \
                    $$ BEGIN PERFORM set_config('synchronous_commit', 'off', true); UPDATE lazy SET n = n + 1; END $$";
    writers[3].simple(function).unwrap();
    // A name that a pattern would read otherwise.
    writers[3]
        .simple("CREATE FUNCTION \"a(b\"() RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_lock(1); END'")
        .unwrap();
    cluster.wait_replayed();
    for round in 1..=60 {
        let update = "UPDATE lazy SET n = n + 1";
        match round % 4 {
            3 => writers[3].simple("SELECT lazily()"),
            2 => writers[2].simple(&format!("BEGIN; SET LOCAL synchronous_commit = off; {update}; COMMIT")),
            other => writers[other as usize].simple(update),
        }
        .unwrap();
        // Long enough for a WAL sample, and less than the flush may take.
        std::thread::sleep(Duration::from_millis(round % 5 * 10));
        assert_eq!(proxy.client().value("SELECT n FROM lazy"), round.to_string());
    }
}
