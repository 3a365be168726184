//! What the failover machine was told by the configuration, and the spans it does not ask for.
//!
//! Invariants: a policy holds one [`NodePolicy`] per configured node, in the order of `NodeId`.
//! Absent on purpose: anything that changes while the machine runs.

use super::action::HookKind;
use crate::config::{Config, Degrade, FailoverMode, Fencing, NodeConfig};
use crate::ids::NodeId;
use crate::topology::ReceiverView;
use std::sync::Arc;
use std::time::Duration;

/// After the start, how long nodes that have not answered are waited for before a primary is chosen
/// without them.
pub const START_GRACE: Duration = Duration::from_secs(10);
/// How long a failover waits for the standbys' receivers to confirm that the primary is gone. They
/// end within milliseconds of a dead postmaster, so this only bounds standbys that do not answer.
pub const RECEIVER_WAIT: Duration = Duration::from_secs(2);
/// A receiver that heard from the primary within this span vetoes a failover.
pub const HEARD_RECENTLY: Duration = Duration::from_secs(5);
/// How long a standby's receiver may take to connect anew to a silent primary; it takes some 50 ms.
pub const RECONNECT_SPAN: Duration = Duration::from_secs(1);
/// Least time between two such attempts of one standby.
pub const RECONNECT_GAP: Duration = Duration::from_secs(2);
/// WAL that a crash recovery replays per second, at the least; measured servers with ordinary disks do several times that.
pub const RECOVERY_BYTES_PER_SECOND: u64 = 64 << 20;
/// What a restart takes beside the replay, on a busy machine.
pub const RECOVERY_BASE: Duration = Duration::from_secs(5);
/// Least time between two `ProbeNow` of one node.
pub const PROBE_NOW_GAP: Duration = Duration::from_millis(50);
/// Outcomes in a row that end a postmaster's case, the last one being a refused connect.
pub const HARD_OUTCOMES: u32 = 2;
/// How long writes are held before clients are refused instead.
pub const HELD_SPAN: Duration = Duration::from_secs(20);
/// Least time between two attempts at the same change.
pub const RETRY_GAP: Duration = Duration::from_secs(5);
/// How long all standbys together may take to detach; those that took longer are left out.
pub const DETACH_SPAN: Duration = Duration::from_secs(5);
/// How long the store may take to accept a record.
pub const RECORD_SPAN: Duration = Duration::from_secs(10);
/// How long a primary that another proxy recorded may take to show itself before its change is taken over.
pub const FOLLOW_SPAN: Duration = Duration::from_secs(1);
/// How long other proxies may take to give way to an operator's order.
pub const ORDER_SPAN: Duration = Duration::from_secs(10);
/// How long writes to a primary that cannot do its work wait for other proxies to see it, too; fresh connections, which are
/// made every two seconds and may take one, tell them at most 3.2 s later.
pub const YIELD_SPAN: Duration = Duration::from_secs(5);
/// Longest gap between the beginnings of two such waits.
pub const YIELD_GAP_MAX: Duration = Duration::from_secs(300);
/// How long a proxy that must record the primary anew waits for leases to end before it asks other proxies to give way.
pub const FORSAKEN_SPAN: Duration = Duration::from_secs(4);
/// How long a lease may be missing before people are told, and before the primary is recorded anew where
/// the voters follow nobody.
pub const UNLEASED_SPAN: Duration = Duration::from_secs(1);
/// How long a primary that turned into a standby is left alone: someone may be switching over by hand.
pub const DEMOTED_GRACE: Duration = Duration::from_secs(5);
/// A node whose promotion failed is no candidate for this long.
pub const PROMOTE_PENALTY: Duration = Duration::from_secs(60);
/// How long a standby that lost its stream still takes reads while a primary is up.
pub const STREAM_GRACE: Duration = Duration::from_secs(2);
/// How long a standby may be without its stream before it is repointed.
pub const REPOINT_AFTER: Duration = Duration::from_secs(3);
/// Least time between two repoints of one standby.
pub const REPOINT_GAP: Duration = Duration::from_secs(10);
/// A repoint that has not ended after this span counts as failed.
pub const REPOINT_SPAN: Duration = Duration::from_secs(30);
/// Repoints of one standby before a person is needed (reset when it streams again).
pub const REPOINTS_MAX: u32 = 3;
/// A node that `before_promotion` spoke against is no candidate for this long.
pub const VETO_PENALTY: Duration = Duration::from_secs(60);
/// Beyond its time limit, how long the end of a hook is waited for.
pub const HOOK_MARGIN: Duration = Duration::from_secs(10);
/// Longest gap between two attempts at fencing.
pub const FENCE_RETRY_MAX: Duration = Duration::from_secs(60);
/// A fence by SQL that has not ended after this span counts as failed.
pub const FENCE_SQL_SPAN: Duration = Duration::from_secs(30);
/// How long after a change of it what a node reports about its fence may be older.
pub const FENCE_SQL_SEEN: Duration = Duration::from_secs(2);
/// Gap between two attempts at a fence by SQL that failed.
pub const FENCE_SQL_RETRY: Duration = Duration::from_secs(600);
/// How long setting `synchronous_standby_names` may take.
pub const SYNC_SPAN: Duration = Duration::from_secs(10);
/// Least gap between two attempts at it on a primary.
pub const SYNC_GAP: Duration = Duration::from_secs(10);
/// How long too few standbys must stream before commits stop waiting for them, where that is allowed.
pub const DEGRADE_AFTER: Duration = Duration::from_secs(2);
/// How long what Patroni said of a node counts.
pub const WORD_SPAN: Duration = Duration::from_secs(3);
/// Reports in a row by which a node is believed to be the primary where Patroni says nothing (follow mode).
pub const CLAIMS_MIN: u32 = 2;
/// The span that `max_per_hour` counts in.
pub const HOUR: Duration = Duration::from_secs(3600);

/// How the machine decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Who promotes.
    pub mode: FailoverMode,
    /// One per node, indexed by `NodeId`.
    pub nodes: Vec<NodePolicy>,
    /// Missed probes until a node is down, at least 1.
    pub fall: u32,
    /// Good probes until a node that was down is healthy, at least 1.
    pub rise: u32,
    /// Least time between two automatic failovers.
    pub min_gap: Duration,
    /// Automatic failovers per hour; 0: none.
    pub max_per_hour: u32,
    /// How long a primary that restarts in place is waited for.
    pub primary_start_timeout: Duration,
    /// WAL that a candidate may lack against the highest position seen, bytes.
    pub lag_bytes_max: u64,
    /// How long one promotion may take.
    pub promote_timeout: Duration,
    /// How long a primary may be half dead.
    pub ailing: AilingPolicy,
    /// What else is done at a change.
    pub means: Means,
}

/// How long a primary that answers may fail at what else a primary must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AilingPolicy {
    /// A commit that takes longer is told.
    pub write_warn: Duration,
    /// Without a commit for this long it is given up.
    pub write_fail: Duration,
    /// Without a fresh connection for this long it is given up.
    pub connect_fail: Duration,
}

impl Default for AilingPolicy {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { write_warn: seconds(2), write_fail: seconds(5), connect_fail: seconds(10) }
    }
}

/// Fencing, hooks and synchronous replication; the default is none of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Means {
    /// What a promotion waits for.
    pub fencing: Fencing,
    /// Whether former primaries are made read-only.
    pub fence_sql: bool,
    /// The hooks that have a program.
    pub hooks: Vec<HookKind>,
    /// How long one may run.
    pub hook_timeout: Duration,
    /// The k of `ANY k (…)`; 0: not ours.
    pub synchronous: usize,
    /// Whether k may shrink.
    pub degrade: Degrade,
}

impl Means {
    fn from_config(config: &Config) -> Self {
        let hooks = &config.hooks;
        let programs = [
            (HookKind::Fence, &hooks.fence_command),
            (HookKind::BeforePromotion, &hooks.before_promotion),
            (HookKind::AfterPromotion, &hooks.after_promotion),
            (HookKind::RoleChange, &hooks.on_role_change),
            (HookKind::Rejoin, &hooks.on_rejoin),
        ];
        Self {
            fencing: config.cluster.fencing,
            fence_sql: config.cluster.fence_sql,
            hooks: programs.iter().filter(|(_, program)| !program.is_empty()).map(|(kind, _)| *kind).collect(),
            hook_timeout: hooks.timeout,
            synchronous: config.cluster.synchronous_standbys,
            degrade: config.cluster.synchronous_degrade,
        }
    }
}

/// What the machine knows of one node beforehand.
#[derive(Clone, Debug, PartialEq)]
pub struct NodePolicy {
    /// Configured name.
    pub name: Arc<str>,
    /// `host:port` as other nodes may stream from it, lower case.
    pub addresses: Vec<String>,
    /// Preference among equally advanced candidates; 0: never promoted.
    pub priority: u32,
    /// How it calls itself when it streams.
    pub application_name: Arc<str>,
    /// It stands in this proxy's zone.
    pub local: bool,
}

impl NodePolicy {
    fn from_config(node: &NodeConfig, zone: Option<&str>) -> Self {
        let mut addresses = vec![format!("{}:{}", node.host, node.port).to_lowercase()];
        let replication = format!("{}:{}", node.replication_host, node.replication_port).to_lowercase();
        if !addresses.contains(&replication) {
            addresses.push(replication);
        }
        Self {
            name: Arc::clone(&node.name),
            addresses,
            priority: node.failover_priority,
            application_name: Arc::clone(&node.application_name),
            local: zone.is_some() && node.zone.as_deref() == zone,
        }
    }
}

impl Policy {
    /// Picks from a checked configuration what failover needs.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let cluster = &config.cluster;
        let zone = config.server.zone.as_deref();
        Self {
            mode: cluster.failover,
            nodes: config.nodes.iter().map(|node| NodePolicy::from_config(node, zone)).collect(),
            fall: cluster.probe_fall.max(1),
            rise: cluster.probe_rise.max(1),
            min_gap: cluster.failover_min_gap,
            max_per_hour: cluster.failover_max_per_hour,
            primary_start_timeout: cluster.primary_start_timeout,
            lag_bytes_max: cluster.failover_lag_bytes_max,
            promote_timeout: cluster.promote_timeout,
            ailing: AilingPolicy {
                write_warn: cluster.write_probe_warn,
                write_fail: cluster.write_probe_fail,
                connect_fail: cluster.connect_probe_fail,
            },
            means: Means::from_config(config),
        }
    }

    /// The configured node that a receiver streams from, if its address is one of ours.
    #[must_use]
    pub fn upstream(&self, receiver: &ReceiverView) -> Option<NodeId> {
        let wanted = receiver.upstream.to_lowercase();
        self.ids().find(|id| self.nodes[id.index()].addresses.contains(&wanted))
    }

    /// The node with this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<NodeId> {
        self.ids().find(|id| &*self.nodes[id.index()].name == name)
    }

    /// Every configured node.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..u16::try_from(self.nodes.len()).unwrap_or(u16::MAX)).map(NodeId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_found_by_either_address_in_any_case() {
        let node = |name: &str, addresses: &[&str]| NodePolicy {
            name: name.into(),
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
            priority: 100,
            application_name: name.into(),
            local: false,
        };
        let policy = Policy {
            mode: FailoverMode::Automatic,
            nodes: vec![node("a", &["a.example:5432"]), node("b", &["b.example:5432", "10.0.0.2:5432"])],
            fall: 3,
            rise: 2,
            min_gap: Duration::ZERO,
            max_per_hour: 3,
            primary_start_timeout: Duration::ZERO,
            lag_bytes_max: 0,
            promote_timeout: Duration::ZERO,
            ailing: AilingPolicy::default(),
            means: Means::default(),
        };
        let from = |upstream: &str| {
            let view = ReceiverView { streaming: true, upstream: upstream.into(), last_message_age: Duration::ZERO };
            policy.upstream(&view)
        };
        assert_eq!(from("A.Example:5432"), Some(NodeId(0)));
        assert_eq!(from("10.0.0.2:5432"), Some(NodeId(1)));
        assert_eq!(from("10.0.0.2:5433"), None);
        assert_eq!(policy.by_name("b"), Some(NodeId(1)));
        assert_eq!(policy.by_name("B"), None);
    }
}
