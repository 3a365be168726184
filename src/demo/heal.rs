//! Brings broken nodes of the playground back: what an operator would do by hand.
//!
//! Invariants: a node is touched only while the proxy names a primary that runs and is another node.
//! Absent on purpose: choosing a primary. That is the proxy's work, and the thing to be watched.

use super::cluster::{Cluster, ClusterError, Node, Rejoined};
use crate::clock::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a node stays broken before it is repaired, so that people see it.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same for a standby that does not stream: it may be on its way to another upstream.
const STREAM_PATIENCE: Duration = Duration::from_secs(15);

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ailment {
    /// Its postmaster is gone.
    Down,
    /// It is out of recovery, and not the primary.
    SecondPrimary,
    /// A standby that receives no WAL.
    NotStreaming,
}

impl Ailment {
    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Down => "is down",
            Self::SecondPrimary => "is out of recovery but not the primary",
            Self::NotStreaming => "does not stream",
        }
    }

    fn patience(self) -> Duration {
        match self {
            Self::Down | Self::SecondPrimary => PATIENCE,
            Self::NotStreaming => STREAM_PATIENCE,
        }
    }
}

/// Looks at every node but the primary. Blocks.
pub(super) fn examine<'a>(cluster: &'a Cluster, primary: &str) -> Vec<(&'a Node, Ailment)> {
    let others = cluster.nodes().iter().filter(|node| node.name() != primary);
    others.filter_map(|node| Some((node, ailment(node)?))).collect()
}

fn ailment(node: &Node) -> Option<Ailment> {
    if !node.is_running() {
        return Some(Ailment::Down);
    }
    let state = "SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')";
    match node.psql(state).as_deref() {
        Ok("f|f") => Some(Ailment::SecondPrimary),
        Ok("t|f") => Some(Ailment::NotStreaming),
        // It does not answer: it may be frozen, or busy starting. Neither is cured by a rewind.
        _ => None,
    }
}

/// Makes a broken node a standby of the primary. Blocks.
pub(super) fn heal(cluster: &Cluster, node: &Node, primary: &str) -> Result<Option<Rejoined>, ClusterError> {
    match cluster.node(primary).filter(|source| source.is_running() && source.name() != node.name()) {
        Some(source) => node.rejoin(source).map(Some),
        None => Ok(None),
    }
}

/// Since when each node has been ill.
#[derive(Debug, Default)]
pub(super) struct Chart(BTreeMap<String, (Ailment, Time)>);

impl Chart {
    /// Notes what is wrong now and names who has been ill long enough.
    pub(super) fn due(&mut self, ill: &[(String, Ailment)], now: Time) -> Vec<String> {
        self.0.retain(|name, (ailment, _)| ill.iter().any(|(ill, what)| ill == name && what == ailment));
        for (name, ailment) in ill {
            self.0.entry(name.clone()).or_insert((*ailment, now));
        }
        let long = |(ailment, since): &(Ailment, Time)| now.since(*since) >= ailment.patience();
        self.0.iter().filter(|(_, entry)| long(entry)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_node_is_due_after_three_seconds_of_the_same_ailment() {
        let (mut chart, down) = (Chart::default(), [("pg1".to_owned(), Ailment::Down)]);
        assert!(chart.due(&down, at(1)).is_empty());
        assert!(chart.due(&down, at(3)).is_empty());
        assert_eq!(chart.due(&down, at(4)), ["pg1"]);
        let second = [("pg1".to_owned(), Ailment::SecondPrimary)];
        assert!(chart.due(&second, at(5)).is_empty(), "another ailment starts anew");
    }

    #[test]
    fn a_node_that_recovers_is_forgotten() {
        let (mut chart, down) = (Chart::default(), [("pg1".to_owned(), Ailment::Down)]);
        chart.due(&down, at(1));
        chart.due(&[], at(2));
        assert!(chart.due(&down, at(5)).is_empty());
        assert_eq!(chart.due(&down, at(8)), ["pg1"]);
    }
}
