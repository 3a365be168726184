//! Chooses the node for a unit of work. Pure: no await, no lock, no log, no clock.
//!
//! Invariants: a write goes to the primary of the snapshot or nowhere; a read goes to a standby only
//! if that is as fresh as the session's floor (I6). Absent on purpose: what a statement is (`sql`)
//! and how a backend is had (`pool`).

mod balance;

pub use balance::{BALANCES, Balance, Candidate, balance};

use crate::clock::Time;
use crate::config::RouteConfig;
use crate::ids::{Epoch, NodeId};
use crate::sql::{Access, Settings};
use crate::topology::{Health, NodeView, Role, Topology, Writes};
use std::sync::Arc;

/// Nodes that one proxy can serve.
pub const NODES_MAX: usize = 64;

/// What a session asks of the node for its next unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Read or write.
    pub access: Access,
    /// May reads go to standbys at all (setting, session state)?
    pub split: bool,
    /// The session's floor: every write acknowledged up to this point must be visible.
    pub floor: Time,
    /// A node that has just failed this unit; avoided while there is another.
    pub avoid: Option<NodeId>,
}

/// Why this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Only the primary may do it.
    Write,
    /// A read, on a standby.
    Read,
    /// A read, on the primary: splitting is off for it.
    SplitOff,
    /// A read, on the primary: no standby takes reads now.
    NoStandby,
    /// A read, on the primary: no standby has replayed the session's own writes yet.
    NotFresh,
}

impl Reason {
    /// All of them, for metrics.
    pub const ALL: &'static [Self] = &[Self::Write, Self::Read, Self::SplitOff, Self::NoStandby, Self::NotFresh];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::SplitOff => "split_off",
            Self::NoStandby => "no_standby",
            Self::NotFresh => "not_fresh",
        }
    }
}

/// The choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The node.
    pub node: NodeId,
    /// The epoch of the snapshot it was chosen from.
    pub epoch: Epoch,
    /// Its role there.
    pub role: Role,
    /// Why.
    pub reason: Reason,
    /// The node's fence generation in that snapshot: a pool fenced since is not to be waited for.
    pub fence: u64,
}

/// Why there is no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// Not now; a newer snapshot may have one.
    Held {
        /// Why, for people.
        why: Arc<str>,
    },
    /// Not until an operator acts.
    Refused {
        /// Why, for people.
        why: Arc<str>,
    },
}

/// Randomness for balancing: a small generator that each session keeps.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From any seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number (xorshift64*, Vigna 2016).
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound` (0 when `bound` is 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.roll()) * u128::from(bound)) >> 64) as u64
    }
}

/// What of the configuration the classifier goes by.
#[must_use]
pub fn classifier_settings(config: &RouteConfig) -> Settings {
    Settings {
        classify_bytes_max: config.classify_bytes_max,
        read_functions: config.read_functions.clone(),
        write_functions: config.write_functions.clone(),
    }
}

/// Chooses. `weights` and `load` (work in flight) are indexed by node.
///
/// # Errors
/// [`NoRoute`] when no node may take it.
pub fn choose(
    wishes: &Wishes,
    topology: &Topology,
    weights: &[u32],
    balance: &dyn Balance,
    load: impl Fn(NodeId) -> usize,
    dice: &mut Dice,
) -> Result<Target, NoRoute> {
    if wishes.access == Access::Write {
        return primary(topology, Reason::Write);
    }
    if !wishes.split {
        return primary(topology, Reason::SplitOff);
    }
    let mut candidates = [Candidate::NONE; NODES_MAX];
    let mut count = 0;
    let mut stale = false;
    for view in topology.nodes.iter().filter(|view| takes_reads(view)) {
        let weight = weights.get(view.id.index()).copied().unwrap_or(0);
        if view.fresh_as_of < wishes.floor {
            stale = true;
        } else if weight > 0 && wishes.avoid != Some(view.id) && count < NODES_MAX {
            candidates[count] = Candidate { node: view.id, weight, load: load(view.id) };
            count += 1;
        }
    }
    count = prefer_healthy(&mut candidates[..count], topology);
    if count > 0 {
        let picked = candidates[balance.pick(&candidates[..count], dice).min(count - 1)];
        return Ok(target(topology, picked.node, Role::Standby, Reason::Read));
    }
    primary(topology, if stale { Reason::NotFresh } else { Reason::NoStandby })
        .or_else(|no| last_resort(wishes, topology, no))
}

/// A suspect node may be about to be down: it is left alone while another can take the read. Moves
/// the healthy candidates to the front and returns how many are to be chosen among.
fn prefer_healthy(candidates: &mut [Candidate], topology: &Topology) -> usize {
    let healthy =
        |candidate: &Candidate| topology.node(candidate.node).is_some_and(|view| view.health == Health::Healthy);
    let mut front = 0;
    for index in 0..candidates.len() {
        if healthy(&candidates[index]) {
            candidates.swap(front, index);
            front += 1;
        }
    }
    if front == 0 { candidates.len() } else { front }
}

fn takes_reads(view: &NodeView) -> bool {
    view.role == Role::Standby && view.accepts_reads
}

fn target(topology: &Topology, node: NodeId, role: Role, reason: Reason) -> Target {
    let fence = topology.node(node).map_or(0, |view| view.fence);
    Target { node, epoch: topology.epoch, role, reason, fence }
}

fn primary(topology: &Topology, reason: Reason) -> Result<Target, NoRoute> {
    match (&topology.writes, topology.primary) {
        (Writes::Open, Some(node)) => Ok(target(topology, node, Role::Primary, reason)),
        (Writes::Refused { why }, _) => Err(NoRoute::Refused { why: Arc::clone(why) }),
        (Writes::Held { why }, _) => Err(NoRoute::Held { why: Arc::clone(why) }),
        (Writes::Open, None) => Err(NoRoute::Held { why: "no primary is known".into() }),
    }
}

/// Without a primary, weight 0 and "avoid" no longer keep a fresh enough standby from reads.
fn last_resort(wishes: &Wishes, topology: &Topology, no: NoRoute) -> Result<Target, NoRoute> {
    let fit = topology.nodes.iter().find(|view| takes_reads(view) && view.fresh_as_of >= wishes.floor);
    fit.map(|view| target(topology, view.id, Role::Standby, Reason::Read)).ok_or(no)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Health;

    fn topology() -> Topology {
        let mut topology = Topology::starting(&["a".into(), "b".into(), "c".into()]);
        topology.epoch = Epoch(4);
        topology.primary = Some(NodeId(0));
        topology.writes = Writes::Open;
        for view in &mut topology.nodes {
            view.health = Health::Healthy;
            view.role = if view.id == NodeId(0) { Role::Primary } else { Role::Standby };
            view.accepts_reads = true;
            view.fresh_as_of = if view.id == NodeId(0) { Time::NEVER } else { Time::from_nanos(100) };
        }
        topology
    }

    fn wishes(access: Access) -> Wishes {
        Wishes { access, split: true, floor: Time::ZERO, avoid: None }
    }

    fn ask(wishes: &Wishes, topology: &Topology) -> Result<Target, NoRoute> {
        choose(wishes, topology, &[100, 100, 100], BALANCES[0], |_| 0, &mut Dice::new(7))
    }

    #[test]
    fn writes_go_to_the_primary_or_nowhere() {
        let mut t = topology();
        assert_eq!(ask(&wishes(Access::Write), &t).unwrap().node, NodeId(0));
        t.writes = Writes::Held { why: "failover".into() };
        t.primary = None;
        assert_eq!(ask(&wishes(Access::Write), &t), Err(NoRoute::Held { why: "failover".into() }));
        t.writes = Writes::Refused { why: "two primaries".into() };
        assert!(matches!(ask(&wishes(Access::Write), &t), Err(NoRoute::Refused { .. })));
    }

    #[test]
    fn reads_need_a_standby_as_fresh_as_the_floor() {
        let t = topology();
        let at = |floor| Wishes { floor: Time::from_nanos(floor), ..wishes(Access::Read) };
        assert_eq!(ask(&at(100), &t).unwrap().role, Role::Standby);
        let stale = ask(&at(101), &t).unwrap();
        assert_eq!((stale.node, stale.reason), (NodeId(0), Reason::NotFresh));
    }

    #[test]
    fn reads_go_on_without_a_primary_and_avoid_the_node_that_failed() {
        let mut t = topology();
        let avoid = Wishes { avoid: Some(NodeId(1)), ..wishes(Access::Read) };
        assert_eq!(ask(&avoid, &t).unwrap().node, NodeId(2));
        t.nodes[2].accepts_reads = false;
        assert_eq!(ask(&avoid, &t).unwrap().node, NodeId(0));
        t.primary = None;
        t.writes = Writes::Held { why: "failover".into() };
        assert_eq!(ask(&avoid, &t).unwrap().node, NodeId(1));
        t.nodes[1].accepts_reads = false;
        assert!(ask(&avoid, &t).is_err());
    }

    #[test]
    fn a_suspect_standby_is_left_alone_while_another_can() {
        let mut t = topology();
        t.nodes[1].health = Health::Suspect;
        for seed in 0..50 {
            let got =
                choose(&wishes(Access::Read), &t, &[100, 100, 100], BALANCES[0], |_| 0, &mut Dice::new(seed)).unwrap();
            assert_eq!(got.node, NodeId(2));
        }
        t.nodes[2].health = Health::Suspect;
        assert_eq!(ask(&wishes(Access::Read), &t).unwrap().role, Role::Standby);
    }

    #[test]
    fn splitting_can_be_off() {
        let off = Wishes { split: false, ..wishes(Access::Read) };
        assert_eq!(ask(&off, &topology()).unwrap().reason, Reason::SplitOff);
    }
}
