//! Everything the SHOW commands look at, taken at one moment.
//!
//! Invariant: made by copying from handles; but for the decisions and the status nothing of it is held afterwards. Absent on purpose:
//! changing anything.

use crate::catalog::{Catalog, CatalogTable};
use crate::client::{CancelRegistry, ClientView};
use crate::clock::{Clock, Time};
use crate::config::Config;
use crate::decision::Decisions;
use crate::failover::controller::{ClusterStatus, ControlHandle};
use crate::ids::{NodeId, PoolKey};
use crate::pool::{BackendView, PoolSet, PoolStats, Totals};
use crate::route::LearnedWrites;
use crate::route::Lesson;
use crate::route::{Standing, Standings, Vitals};
use crate::topology::{Topology, TopologyReader};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::SystemTime;

/// Where it is taken from.
#[derive(Debug)]
pub struct Sources {
    /// All clients.
    pub registry: Arc<CancelRegistry>,
    /// All backends.
    pub pools: PoolSet,
    /// The nodes.
    pub topology: TopologyReader,
    /// What standbys have refused.
    pub learned: Arc<LearnedWrites>,
    /// How they do.
    pub standings: Arc<Standings>,
    /// What is known of functions and views.
    pub catalogs: Arc<CatalogTable>,
    /// Where statements went last.
    pub decisions: Arc<Decisions>,
    /// The control plane: what it believes, and who gives it commands.
    pub control: ControlHandle,
    /// Settings in use; a reload replaces them.
    pub config: Arc<ArcSwap<Config>>,
    /// Time.
    pub clock: Clock,
}

/// The moment.
#[derive(Debug)]
pub struct Snapshot {
    /// On our clock.
    pub now: Time,
    /// On the wall, for showing.
    pub wall: SystemTime,
    /// By number.
    pub clients: Vec<ClientView>,
    /// By number.
    pub backends: Vec<BackendView>,
    /// By node, database, user.
    pub pools: Vec<(PoolKey, PoolStats)>,
    /// By database.
    pub totals: Vec<(Arc<str>, Totals)>,
    /// Places taken and the limit, by node.
    pub budgets: Vec<(usize, usize)>,
    /// The nodes.
    pub topology: Arc<Topology>,
    /// How they do, by number.
    pub vitals: Vec<Vitals>,
    /// Functions and views, by database.
    pub catalogs: Vec<(Arc<str>, Arc<Catalog>)>,
    /// Where statements went last: not copied, since one command asks for them.
    pub decisions: Arc<Decisions>,
    /// What standbys have refused, the newest first.
    pub learned: Vec<(Arc<[u8]>, Lesson)>,
    /// What the control plane believes, as of its making.
    pub control: Arc<ClusterStatus>,
    /// Settings in use.
    pub config: Arc<Config>,
}

impl Sources {
    /// Looks.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "people read wall-clock times; nothing is decided by them")]
    pub fn look(&self) -> Snapshot {
        let mut clients: Vec<_> = self.registry.sessions().iter().map(|handle| handle.view()).collect();
        clients.sort_by_key(|client| client.id);
        let mut pools = self.pools.stats();
        pools.sort_by(|(one, _), (two, _)| {
            (one.node, &one.database, &one.user).cmp(&(two.node, &two.database, &two.user))
        });
        let config = self.config.load_full();
        let nodes = (0..).map(NodeId).take(config.nodes.len());
        let now = self.clock.now();
        let vitals = |(_, standing): (_, &Standing)| standing.vitals(now, config.route.slow_start);
        Snapshot {
            now,
            wall: SystemTime::now(),
            clients,
            backends: self.pools.backends(),
            pools,
            totals: self.pools.totals(),
            budgets: nodes.map(|node| self.pools.budget(node)).collect(),
            topology: self.topology.snapshot(),
            decisions: Arc::clone(&self.decisions),
            vitals: self.standings.iter().map(vitals).collect(),
            catalogs: self.catalogs.all().into_iter().map(|(name, slot, _)| (name, slot.load_full())).collect(),
            learned: self.learned.lessons(now),
            control: Arc::clone(&self.control.status().borrow()),
            config,
        }
    }
}

impl Snapshot {
    /// How a node does.
    #[must_use]
    pub fn vitals(&self, node: NodeId) -> Vitals {
        self.vitals.get(node.index()).copied().unwrap_or(Vitals::UNKNOWN)
    }

    /// A node's name.
    #[must_use]
    pub fn node_name(&self, node: NodeId) -> &str {
        self.topology.node(node).map_or("?", |view| &*view.name)
    }

    /// Whole seconds since then.
    #[must_use]
    pub fn seconds_since(&self, then: Time) -> u64 {
        self.now.since(then).as_secs()
    }

    /// A moment as PgBouncer writes it: `2026-01-31 23:59:59 UTC`.
    #[must_use]
    pub fn wall_text(&self, then: Time) -> String {
        let at = self.wall.checked_sub(self.now.since(then)).unwrap_or(SystemTime::UNIX_EPOCH);
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |span| span.as_secs());
        utc(seconds)
    }

    /// The client that holds this backend.
    #[must_use]
    pub fn holder(&self, backend: &BackendView) -> Option<&ClientView> {
        self.clients.iter().find(|client| {
            client.holding.as_ref().is_some_and(|holding| Arc::ptr_eq(&holding.control, &backend.control))
        })
    }

    /// The backend that this client holds.
    #[must_use]
    pub fn held(&self, client: &ClientView) -> Option<&BackendView> {
        let holding = client.holding.as_ref()?;
        self.backends.iter().find(|backend| Arc::ptr_eq(&holding.control, &backend.control))
    }
}

/// Date and time of seconds since 1970 (days to civil date: Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms").
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
