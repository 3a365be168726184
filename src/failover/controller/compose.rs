//! From the machine's plan and what the monitor knows to the snapshot that sessions read.
//!
//! Pure. Invariants: one [`NodeView`] per configured node, in order; a standby takes reads only if the
//! plan allows it and no lag limit is broken. Absent on purpose: any change of role or health.

use crate::clock::Time;
use crate::config::{NodeConfig, RouteConfig};
use crate::failover::action::{NodePlan, Plan};
use crate::ids::NodeId;
use crate::monitor::freshness::Freshness;
use crate::topology::{Health, NodeReport, NodeView, Role, Topology};
use std::sync::Arc;
use std::time::Duration;

/// Beyond these a standby takes no reads; `None`: no limit.
#[derive(Clone, Copy, Debug)]
pub struct LagLimits {
    /// WAL bytes not replayed.
    pub bytes: Option<u64>,
    /// Time behind.
    pub time: Option<Duration>,
}

impl LagLimits {
    /// `[route] lag_bytes_max` and `replay_lag_max`.
    #[must_use]
    pub fn from_config(route: &RouteConfig) -> Self {
        Self { bytes: route.lag_bytes_max, time: route.replay_lag_max }
    }

    /// What is wrong with a lag; unknown is within every limit: with no position of the primary
    /// there is nothing to be behind of, and sessions that wrote are kept away by freshness.
    fn broken(self, bytes: Option<u64>, time: Option<Duration>) -> Option<String> {
        if let (Some(lag), Some(max)) = (bytes, self.bytes)
            && lag > max
        {
            return Some(format!("{lag} bytes of WAL behind, more than lag_bytes_max = {max}"));
        }
        if let (Some(lag), Some(max)) = (time, self.time)
            && lag > max
        {
            return Some(format!("{} ms behind, more than replay_lag_max = {} ms", lag.as_millis(), max.as_millis()));
        }
        None
    }
}

/// The snapshot at `now`.
pub(super) fn topology(
    nodes: &[NodeConfig],
    plan: &Plan,
    reports: &[Option<NodeReport>],
    freshness: &Freshness,
    limits: LagLimits,
    now: Time,
) -> Topology {
    let views = nodes.iter().enumerate().map(|(index, config)| {
        let id = NodeId(u16::try_from(index).unwrap_or(u16::MAX));
        let report = reports.get(index).and_then(Option::as_ref);
        view(id, &config.name, plan.nodes.get(index), report, freshness, limits, now)
    });
    Topology { epoch: plan.epoch, primary: plan.primary, writes: plan.writes.clone(), nodes: views.collect() }
}

fn view(
    id: NodeId,
    name: &Arc<str>,
    plan: Option<&NodePlan>,
    report: Option<&NodeReport>,
    freshness: &Freshness,
    limits: LagLimits,
    now: Time,
) -> NodeView {
    let role = plan.map_or(Role::Unassigned, |plan| plan.role);
    let standby = role == Role::Standby;
    let lag_bytes = if standby { freshness.lag_bytes(id) } else { None };
    let replay_lag = if standby { freshness.replay_lag(id, now) } else { None };
    let too_far = limits.broken(lag_bytes, replay_lag);
    NodeView {
        id,
        name: Arc::clone(name),
        role,
        health: plan.map_or(Health::Unknown, |plan| plan.health),
        accepts_reads: plan.is_some_and(|plan| plan.readable) && too_far.is_none(),
        fresh_as_of: match role {
            Role::Primary => Time::NEVER,
            Role::Standby => freshness.fresh_as_of(id),
            Role::Unassigned => Time::ZERO,
        },
        fresh_as_of_unflushed: match role {
            Role::Primary => Time::NEVER,
            Role::Standby => freshness.fresh_as_of_unflushed(id),
            Role::Unassigned => Time::ZERO,
        },
        replayed: freshness.replayed_on(id).filter(|_| standby),
        lag_bytes,
        replay_lag,
        timeline: report.map(|report| report.timeline),
        lsn: match (report, standby) {
            (Some(report), false) if !report.in_recovery => Some(report.flush_lsn),
            (report, _) => freshness.replay_lsn(id).or(report.map(|report| report.replay_lsn)),
        },
        fence: plan.map_or(0, |plan| plan.fence),
        note: plan.and_then(|plan| plan.note.clone()).or(too_far.map(Arc::from)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Lsn, SystemId, TimelineId};
    use crate::topology::Writes;

    fn node(name: &str) -> NodeConfig {
        NodeConfig {
            application_name: name.into(),
            name: name.into(),
            host: "h".into(),
            port: 1,
            replication_host: "h".into(),
            replication_port: 1,
            weight: 100,
            drain: false,
            zone: None,
            failover_priority: 100,
            patroni_url: None,
            budget: 1,
            tls: Default::default(),
        }
    }

    fn report(sent_at: u64, in_recovery: bool, lsn: u64) -> NodeReport {
        NodeReport {
            sent_at: Time::from_nanos(sent_at),
            system_id: SystemId(1),
            in_recovery,
            timeline: TimelineId(1),
            flush_lsn: Lsn(lsn),
            replay_lsn: Lsn(lsn),
            replay_paused: false,
            receiver: None,
            incarnation: 1,
            redo_lsn: Lsn(0),
            version_num: 150_000,
            ..NodeReport::default()
        }
    }

    fn plan() -> Plan {
        let node = |role| NodePlan { role, health: Health::Healthy, readable: true, fence: 3, note: None };
        Plan {
            epoch: Epoch(1),
            primary: Some(NodeId(0)),
            writes: Writes::Open,
            nodes: vec![node(Role::Primary), node(Role::Standby)],
        }
    }

    fn composed(standby_at: u64, limits: LagLimits) -> Topology {
        let reports = [Some(report(10, false, 100_000)), Some(report(11, true, standby_at))];
        let mut freshness = Freshness::new(2);
        freshness.follow(Epoch(1), Some(NodeId(0)));
        for (index, report) in reports.iter().enumerate() {
            freshness.probed(NodeId(index as u16), report.as_ref().unwrap());
        }
        topology(&[node("a"), node("b")], &plan(), &reports, &freshness, limits, Time::from_nanos(1_000_000_010))
    }

    #[test]
    fn the_plan_decides_roles_and_freshness_is_added() {
        let snapshot = composed(100_000, LagLimits { bytes: Some(0), time: Some(Duration::ZERO) });
        let [a, b] = &*snapshot.nodes else { panic!() };
        assert_eq!((a.role, a.fresh_as_of, a.lag_bytes, a.fence), (Role::Primary, Time::NEVER, None, 3));
        assert_eq!((b.role, b.fresh_as_of, b.lag_bytes), (Role::Standby, Time::from_nanos(10), Some(0)));
        assert!(a.accepts_reads && b.accepts_reads);
    }

    #[test]
    fn a_broken_limit_of_either_kind_stops_reads_and_says_why() {
        let free = LagLimits { bytes: None, time: None };
        assert!(composed(0, free).nodes[1].accepts_reads);
        let by_bytes = composed(0, LagLimits { bytes: Some(99_999), ..free });
        assert!(!by_bytes.nodes[1].accepts_reads && by_bytes.nodes[0].accepts_reads);
        assert!(by_bytes.nodes[1].note.as_deref().unwrap().contains("lag_bytes_max"));
        let by_time = composed(0, LagLimits { time: Some(Duration::from_millis(999)), ..free });
        assert!(by_time.nodes[1].note.as_deref().unwrap().contains("1000 ms behind"));
        assert!(composed(0, LagLimits { time: Some(Duration::from_secs(1)), ..free }).nodes[1].accepts_reads);
    }
}
