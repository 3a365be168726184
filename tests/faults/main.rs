//! Real faults on real servers: what the proxy makes of them, how long writes stay away, what is lost.
//!
//! `make faults` runs every row and prints a table; a few rows run with all other tests. For each run: the
//! proxy's verdict, the time from the fault to the first acknowledged write of a client that was connected
//! before, acknowledged writes that the final primary lacks, promotions that should not have been, errors by
//! SQLSTATE, and whether two nodes ever took writes at once (`oracle`). Environment: `RUNS` of each row, `ROWS`
//! (parts of names, separated by commas), `SYNC=1` (synchronous replication: nothing may be lost), `FAULTS=n`
//! (n faults of the quick rows), `FALSE_MINUTES`, `ALLOW_SKIPS=1`, `PGREGENT` (the program).
//! `make storm` rolls faults at random, several at a time (`storm`): `STORMS`, `STORM_SECONDS`, `SEED`, `SYNC=1`. Absent
//! on purpose: a reboot of the machine.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[path = "../support/mod.rs"]
mod support;

mod disk;
mod matrix;
mod oracle;
mod rows;
mod run;
mod steady;
mod stores;
mod storm;
mod table;

use matrix::{Matrix, Order};
use std::time::Duration;
use support::number;

/// Rows that every test run can afford.
const SHORT: [&str; 4] = [
    "kill -9 of the postmaster",
    "everything frozen for 1 s",
    "primary cut off from everybody",
    "proxy | primary, both ways",
];
/// A slow machine, a debug build, and other tests beside it.
const SHORT_FACTOR: u32 = 5;
/// How long nothing may be mistaken for a failure in the short version.
const SHORT_STEADY: Duration = Duration::from_secs(10);
/// Storms, and how long each of them lasts.
const STORMS: u64 = 10;
const STORM_SECONDS: u64 = 40;
/// Runs of a row that has a bar, and of others.
const BAR_RUNS: u64 = 10;

#[test]
fn a_few_faults() {
    let order = Order { sync: false, factor: SHORT_FACTOR, allow_skips: true };
    let mut matrix = Matrix::new(order);
    let few = rows::all().into_iter().filter(|row| SHORT.contains(&row.name));
    matrix.run(few.map(|row| (row, 1)));
    matrix.steady(SHORT_STEADY);
    matrix.finish();
}

#[test]
#[ignore = "takes long: make storm"]
fn storms() {
    let order = Order { sync: number("SYNC", 0) > 0, factor: 1, allow_skips: number("ALLOW_SKIPS", 0) > 0 };
    let mut matrix = Matrix::new(order);
    let lasting = Duration::from_secs(number("STORM_SECONDS", STORM_SECONDS));
    matrix.storms(number("SEED", 1), number("STORMS", STORMS), lasting);
    matrix.finish();
}

#[test]
#[ignore = "takes long: make faults"]
fn the_whole_matrix() {
    let (sync, faults) = (number("SYNC", 0) > 0, number("FAULTS", 0));
    let order = Order { sync, factor: 1, allow_skips: number("ALLOW_SKIPS", 0) > 0 };
    let mut matrix = Matrix::new(order);
    let wanted = std::env::var("ROWS").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').filter(|part| !part.is_empty()).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let rows = rows::all().into_iter().filter(|row| is_wanted(row.name));
    if faults > 0 {
        let quick: Vec<_> = rows.filter(|row| row.quick).collect();
        let each = faults.div_ceil(quick.len().max(1) as u64);
        matrix.run(quick.into_iter().map(|row| (row, each)));
    } else {
        matrix.run(rows.map(|row| (row, number("RUNS", if row.bar.is_some() && !sync { BAR_RUNS } else { 1 }))));
        if is_wanted(steady::NAME) {
            matrix.steady(Duration::from_secs(60 * number("FALSE_MINUTES", 1)));
        }
    }
    matrix.finish();
}
