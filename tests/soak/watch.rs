//! What the proxy holds: memory, descriptors, sessions, backends; and whether memory is flat.
//!
//! Memory is judged by the slope of a line through the last two thirds of the samples, so that warming
//! up and single peaks do not count. Absent on purpose: causes.

use crate::support::wait_for;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What resident memory may grow by over the last two thirds of a run, whatever its length, in KiB.
const GROWTH_KIB_MAX: f64 = 4096.0;
/// Lines of the table that is printed.
const TABLE_LINES: usize = 16;

/// One reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub at: Duration,
    /// VmRSS and RssAnon, KiB.
    pub resident: u64,
    pub anonymous: u64,
    pub descriptors: u64,
    pub sessions: u64,
    /// Backends of pools: in use, and all.
    pub active: u64,
    pub backends_of_pools: u64,
    /// With those that are being opened.
    pub backends: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, resident, anonymous, descriptors, sessions, active, backends_of_pools, .. } = self;
        write!(
            f,
            "{:7.1} s  rss {resident:6} KiB  anon {anonymous:6} KiB  fds {descriptors:4}  sessions {sessions:3}  \
             backends {active:2} active of {backends_of_pools:2}",
            at.as_secs_f64()
        )
    }
}

/// Reads the kernel's and the proxy's own figures.
pub struct Watch {
    pid: u32,
    admin: u16,
}

impl Watch {
    pub fn new(pid: u32, admin: u16) -> Self {
        Self { pid, admin }
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        sum(&self.metrics(), name, "")
    }

    pub fn sample(&self, at: Duration) -> Sample {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let kib = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count) as u64;
        let metrics = self.metrics();
        let backends = |state: &str| sum(&metrics, "pgregent_backends", &format!("state=\"{state}\"")) as u64;
        let (active, idle, connecting) = (backends("active"), backends("idle"), backends("connecting"));
        Sample {
            at,
            resident: kib("VmRSS:"),
            anonymous: kib("RssAnon:"),
            descriptors,
            sessions: sum(&metrics, "pgregent_clients", "") as u64,
            active,
            backends_of_pools: active + idle,
            backends: active + idle + connecting,
        }
    }

    /// A reading when no client is there and nothing is under way.
    pub fn settled(&self) -> Sample {
        wait_for("clients' sessions end", Duration::from_secs(60), || {
            let sample = self.sample(Duration::ZERO);
            sample.sessions == 0 && sample.active == 0 && sample.backends == sample.backends_of_pools
        });
        // Connections of probes and of this watch come and go.
        let readings = (0..5).map(|_| {
            std::thread::sleep(Duration::from_millis(300));
            self.sample(Duration::ZERO)
        });
        readings.min_by_key(|sample| sample.descriptors).unwrap_or_default()
    }
}

/// The sum of the lines of a metric that have this label.
fn sum(text: &str, name: &str, label: &str) -> f64 {
    let of_it = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            && line.contains(label)
    };
    text.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Growth over the last two thirds: the slope of the line of least squares, times their length. KiB.
fn growth(points: &[(f64, f64)]) -> f64 {
    let last = &points[points.len() / 3..];
    let count = last.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| last.iter().map(pick).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = last.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let under: f64 = last.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let length = last.last().map_or(0.0, |point| point.0) - last.first().map_or(0.0, |point| point.0);
    if under == 0.0 { 0.0 } else { over / under * length }
}

/// Fails if memory grew.
pub fn assert_flat(samples: &[Sample]) {
    assert!(samples.len() >= 9, "only {} samples", samples.len());
    for (what, pick) in [("resident", (|s: &Sample| s.resident) as fn(&Sample) -> u64), ("anonymous", |s| s.anonymous)]
    {
        let points: Vec<(f64, f64)> =
            samples.iter().map(|sample| (sample.at.as_secs_f64(), pick(sample) as f64)).collect();
        let grown = growth(&points);
        println!("{what} memory: {grown:+.0} KiB over the last two thirds (limit {GROWTH_KIB_MAX})");
        assert!(
            grown < GROWTH_KIB_MAX,
            "{what} memory grew by {grown:.0} KiB over the last two thirds:\n{}",
            table(samples)
        );
    }
}

/// Some of the samples, for people.
pub fn table(samples: &[Sample]) -> String {
    let step = samples.len().div_ceil(TABLE_LINES).max(1);
    let lines: Vec<String> = samples.iter().step_by(step).chain(samples.last()).map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn a_leak_is_seen_and_noise_is_not() {
    let noise = |i: u32| f64::from(i * 7919 % 13) * 100.0;
    let flat: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 50_000.0 + noise(i))).collect();
    assert!(growth(&flat).abs() < GROWTH_KIB_MAX / 2.0);
    let warming: Vec<(f64, f64)> =
        (0..100).map(|i| (f64::from(i), 30_000.0 + 20_000.0 * f64::from(i.min(30)) / 30.0)).collect();
    assert!(growth(&warming) < GROWTH_KIB_MAX);
    let leaking: Vec<(f64, f64)> = flat.iter().map(|(x, y)| (*x, y + 100.0 * x)).collect();
    assert!(growth(&leaking) > GROWTH_KIB_MAX);
}

#[test]
fn metrics_are_summed_by_name_and_label() {
    let text = "pgregent_backends{node=\"a\",state=\"idle\"} 2\npgregent_backends{node=\"b\",state=\"idle\"} 3\n\
                pgregent_backends{node=\"b\",state=\"active\"} 7\npgregent_backends_total 100\npgregent_sessions 4\n";
    assert_eq!(sum(text, "pgregent_backends", "state=\"idle\""), 5.0);
    assert_eq!((sum(text, "pgregent_sessions", ""), sum(text, "pgregent_panics_total", "")), (4.0, 0.0));
}
