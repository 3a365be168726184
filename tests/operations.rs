//! Running the proxy: pools and queues, logins, reload, drain, and what operators see, on real servers.
//!
//! Each test has roles of its own, so that what PostgreSQL counts per role is this test's. Times are
//! checked with room for a busy machine. Absent on purpose: failover, the protocol in detail, faults of
//! nodes (other test programs).

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

#[path = "operations/budget.rs"]
mod budget;
#[path = "operations/login.rs"]
mod login;
#[path = "operations/pool.rs"]
mod pool;
#[path = "operations/reload.rs"]
mod reload;
#[path = "operations/seeing.rs"]
mod seeing;
#[path = "operations/solo.rs"]
mod solo;
#[path = "operations/stop.rs"]
mod stop;

use std::time::Duration;
use support::cluster::{self, APP_PASSWORD};
use support::proxy::{Proxy, ProxySpec};
use support::rawclient::{Gone, Login, RawClient};

/// A busy machine may be this late.
const LATE_MAX: Duration = Duration::from_secs(9);

/// A proxy in front of the shared primary alone, with a new role of this test's name.
fn with_role(role: &str) -> ProxySpec {
    make_role(role);
    ProxySpec::new(&[cluster::shared().primary()]).user(role, APP_PASSWORD)
}

/// Makes a role on the shared cluster.
fn make_role(role: &str) {
    let sql = format!("CREATE ROLE {role} LOGIN PASSWORD '{APP_PASSWORD}'");
    cluster::shared().superuser("app").simple(&sql).unwrap();
}

fn login(proxy: &Proxy, role: &str) -> RawClient {
    try_login(proxy.port, role, APP_PASSWORD).unwrap_or_else(|gone| panic!("login as {role}: {gone:?}"))
}

fn try_login(port: u16, role: &str, password: &str) -> Result<RawClient, Gone> {
    RawClient::login(port, &Login::new(role, password, "app"))
}

/// Counts what PostgreSQL has open for roles whose names begin so.
struct Census(RawClient);

impl Census {
    fn new() -> Self {
        Self(cluster::shared().superuser("postgres"))
    }

    fn of(&mut self, roles: &str) -> usize {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename LIKE '{roles}'");
        self.0.value(&sql).parse().unwrap()
    }
}

/// The error that a client was told; fails the test on anything else.
fn refused<T>(outcome: Result<T, Gone>) -> support::message::ErrorFields {
    match outcome {
        Err(Gone::Refused(fields)) => fields,
        Err(gone) => panic!("expected an error message, got {gone:?}"),
        Ok(_) => panic!("expected an error message, got an answer"),
    }
}
