//! What a database's pools have done so far.
//!
//! Added to where a pool's lock is held anyway. Invariant: a database's totals never fall, also when its
//! pools are forgotten. Absent on purpose: figures of one statement.

use super::PoolSet;
use hashbrown::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Databases whose totals are kept after their pools are gone.
const RETIRED_MAX: usize = 10_000;

/// Use made of backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Totals {
    /// Times a backend was checked out: transactions, unless the pool mode is session.
    pub checkouts: u64,
    /// Statements (simple queries, pipelines up to Sync) answered.
    pub statements: u64,
    /// Bytes from clients for the node.
    pub sent: u64,
    /// Bytes from the node.
    pub received: u64,
    /// How long backends were checked out.
    pub busy: Duration,
    /// How long sessions waited for them.
    pub waited: Duration,
}

impl Totals {
    /// Adds these.
    pub fn add(&mut self, other: Self) {
        self.checkouts += other.checkouts;
        self.statements += other.statements;
        self.sent += other.sent;
        self.received += other.received;
        self.busy += other.busy;
        self.waited += other.waited;
    }
}

/// Totals of pools that were forgotten, by database.
#[derive(Debug, Default)]
pub(super) struct Retired(HashMap<Arc<str>, Totals>);

impl Retired {
    pub fn add(&mut self, database: &Arc<str>, totals: Totals) {
        if self.0.len() < RETIRED_MAX || self.0.contains_key(database) {
            self.0.entry(Arc::clone(database)).or_default().add(totals);
        }
    }
}

impl PoolSet {
    /// Totals by database, sorted by name.
    #[must_use]
    pub fn totals(&self) -> Vec<(Arc<str>, Totals)> {
        let mut all: HashMap<Arc<str>, Totals> = self.shared.retired.lock().0.clone();
        for pool in self.shared.snapshot() {
            let totals = pool.state.lock().totals;
            all.entry(Arc::clone(&pool.key.database)).or_default().add(totals);
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_retired_is_kept() {
        let mut retired = Retired::default();
        let used = Totals { checkouts: 2, busy: Duration::from_secs(1), ..Totals::default() };
        retired.add(&"db".into(), used);
        retired.add(&"db".into(), used);
        let want = Totals { checkouts: 4, busy: Duration::from_secs(2), ..Totals::default() };
        assert_eq!(retired.0["db"], want);
    }
}
