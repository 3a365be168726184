//! What one seed fixes for the whole run: the shape of the cluster, its store and its settings.
//!
//! Invariants: everything is drawn from the seed; the machine's policy is read from a configuration file, so that it has
//! every rule that the product has.

use crate::random::Random;
use crate::world::{MS, Nanos, SEC, node_name};
use pgregent::config::Config;
use pgregent::failover::Policy;
use std::fmt::Write as _;

/// The store that the proxies share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Voters,
    Etcd,
    /// One proxy, its own file.
    Single,
}

/// What `fence_command` is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    None,
    /// It turns the node off, or fails now and then.
    Honest,
    /// It says that the node is off, and it is not.
    Lies,
}

/// What one seed fixes for the whole run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub store: Store,
    pub nodes: usize,
    pub witnesses: usize,
    pub proxies: usize,
    pub clients: usize,
    /// `ANY k` of the other nodes; 0: asynchronous.
    pub sync: usize,
    /// By `synchronous_standbys`, not by the nodes' own configuration.
    pub managed: bool,
    /// `synchronous_degrade = "allow"`.
    pub degrade: bool,
    /// `on_quorum_loss = "keep_primary"`.
    pub keep_primary: bool,
    pub fence_sql: bool,
    pub fence: Fence,
    /// How often `before_promotion` speaks against a candidate, of a thousand; `None`: there is no such hook.
    pub veto: Option<u64>,
    /// `failover_priority`, by node.
    pub priorities: Vec<u32>,
    /// `lease_duration`.
    pub span: Nanos,
    /// `wal_retrieve_retry_interval`.
    pub retry: Nanos,
    /// `wal_receiver_timeout`.
    pub receiver_timeout: Nanos,
    /// When faults end.
    pub faults_end: Nanos,
    /// Faults that are drawn beforehand.
    pub faults: usize,
    /// Duels, late answers and dozing proxies and half-done changes among the faults, in a thousand each, besides the usual share.
    pub duels: u64,
    pub late: u64,
    pub doze: u64,
    pub halves: u64,
    /// Leases that etcd ends too early, likewise.
    pub revokes: u64,
    /// Clients that go around the proxies write often.
    pub direct: bool,
    /// Faults that strike right after something decisive, in a thousand.
    pub ambush: u64,
}

impl Setup {
    pub fn voters(&self) -> usize {
        self.nodes + self.witnesses
    }

    /// Members of etcd.
    pub fn members(&self) -> usize {
        if self.store == Store::Etcd { 3 } else { 0 }
    }

    pub fn draw(random: &mut Random, seconds: u64) -> Self {
        let store = [Store::Voters, Store::Voters, Store::Voters, Store::Etcd, Store::Single][random.below(5)];
        let voters = [(3, 0), (3, 0), (3, 0), (2, 1), (3, 2), (3, 1), (5, 0)][random.below(7)];
        let shape = if store == Store::Voters { voters } else { ([2, 3, 3][random.below(3)], 0) };
        let proxies = if random.chance(600) { 2 } else { 3 };
        let sync = if random.chance(400) { 1 + usize::from(shape.0 > 3 && random.chance(500)) } else { 0 };
        let priority = |random: &mut Random| if random.chance(800) { 100 } else { [0, 50, 200][random.below(3)] };
        let mut priorities: Vec<u32> = (0..shape.0).map(|_| priority(random)).collect();
        // Somebody must be fit to take over, and to be waited for.
        if priorities.iter().filter(|priority| **priority > 0).count() <= sync.max(1) {
            priorities.fill(100);
        }
        Self {
            store,
            nodes: shape.0,
            witnesses: shape.1,
            proxies: if store == Store::Single { 1 } else { proxies },
            clients: 2,
            sync: if shape.0 > 2 { sync } else { 0 },
            managed: random.chance(400),
            degrade: random.chance(300),
            keep_primary: random.chance(100),
            fence_sql: random.chance(700),
            fence: if random.chance(750) {
                Fence::None
            } else {
                [Fence::Honest, Fence::Honest, Fence::Lies][random.below(3)]
            },
            veto: random.chance(250).then(|| random.between(0, 400)),
            priorities,
            span: 2 * SEC,
            retry: if random.chance(700) { 200 * MS } else { 5 * SEC },
            receiver_timeout: random.between(2, 60) * SEC,
            faults_end: seconds * SEC,
            faults: usize::try_from(random.between(2, 40)).unwrap_or(2),
            duels: 0,
            late: 0,
            doze: 0,
            halves: 0,
            revokes: 0,
            direct: random.chance(200),
            ambush: if random.chance(500) { random.between(20, 300) } else { 0 },
        }
    }

    /// The policy of its proxies.
    pub fn policy(&self) -> Policy {
        let mut text = String::from(
            "[server]\nlisten = [\"127.0.0.1:1\"]\n[cluster]\nname = \"sim\"\nmonitor_user = \"m\"\nmonitor_password = \"m\"\n\
             failover_min_gap = \"0s\"\nprimary_start_timeout = \"5s\"\npromote_timeout = \"5s\"\n\
             failover_lag_bytes_max = \"1GiB\"\n",
        );
        let _ = writeln!(text, "fence_sql = {}", self.fence_sql);
        if self.managed && self.sync > 0 {
            let degrade = if self.degrade { "allow" } else { "never" };
            let _ = write!(text, "synchronous_standbys = {}\nsynchronous_degrade = \"{degrade}\"\n", self.sync);
        }
        if self.fence != Fence::None {
            text.push_str("fencing = \"command\"\n");
        }
        for (node, priority) in self.priorities.iter().enumerate() {
            let name = node_name(node);
            let _ = write!(
                text,
                "[[node]]\nname = \"{name}\"\naddress = \"{name}:5432\"\nfailover_priority = {priority}\n"
            );
        }
        text.push_str(
            "[[auth.user]]\nname = \"u\"\npassword = \"p\"\n[hooks]\ntimeout = \"4s\"\non_rejoin = [\"/tell\"]\n",
        );
        if self.fence != Fence::None {
            text.push_str("fence_command = [\"/fence\"]\n");
        }
        if self.veto.is_some() {
            text.push_str("before_promotion = [\"/ask\"]\n");
        }
        let config =
            Config::parse(&text, "sim.toml").unwrap_or_else(|e| panic!("the simulation's configuration: {e:?}"));
        let mut policy = Policy::from_config(&config);
        policy.max_per_hour = 100_000;
        policy.lag_bytes_max = u64::MAX;
        policy
    }
}
