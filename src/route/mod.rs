//! Chooses the node for a unit of work. Pure: no await, no lock, no log, no clock.
//!
//! Invariants: a write goes to the primary of the snapshot or nowhere; a read goes to a standby only
//! if that shows what the session must see (I6). Absent on purpose: what a statement is (`sql`)
//! and how a backend is had (`pool`).

mod balance;
mod budget;
mod latency;
mod learned;
pub mod outlier;
mod standing;
mod watch;
mod wishes;

pub use balance::{BALANCES, Balance, Candidate, balance};
pub use budget::{Earning, RERUNS_PER_SECOND, RetryBudget};
pub use latency::{FADE_AFTER, Latency};
pub use learned::{LEARNED_MAX, LearnedWrites, Lesson};
pub use standing::{Service, Standing, Standings, Vitals, WHOLE};
pub use watch::Watch;
pub use wishes::{NodeSet, Reach, Wishes};

use crate::config::{Config, RouteConfig};
use crate::ids::{Epoch, NodeId};
use crate::sql::{Access, Settings};
use crate::topology::{Health, NodeView, Role, Topology, Writes};
use balance::draw;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// Nodes that one proxy can serve.
pub const NODES_MAX: usize = 64;
/// A standby of another zone takes a read only where it would wait less than one such part of the wait in ours.
const ZONE_TIMES: f32 = 4.0;

/// What clients that wait for a permit are told.
const NO_PERMIT: &str = "this proxy holds no permit to write at the moment";

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
    /// Anything, on a standby: the session is served by standbys only.
    StandbyOnly,
}

impl Reason {
    /// All of them, for metrics.
    pub const ALL: &'static [Self] =
        &[Self::Write, Self::Read, Self::SplitOff, Self::NoStandby, Self::NotFresh, Self::StandbyOnly];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::SplitOff => "split_off",
            Self::NoStandby => "no_standby",
            Self::NotFresh => "not_fresh",
            Self::StandbyOnly => "standby_only",
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
    /// No standby is fresh enough yet, and the session rather waits than reads on the primary.
    NotFresh,
    /// Not until an operator acts.
    Refused {
        /// Why, for people.
        why: Arc<str>,
    },
}

impl NoRoute {
    /// Why, for people.
    #[must_use]
    pub fn why(&self) -> Arc<str> {
        match self {
            Self::Held { why } | Self::Refused { why } => Arc::clone(why),
            Self::NotFresh => "no standby shows what the session must see yet".into(),
        }
    }
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

/// How standbys share reads, from the configuration.
pub struct Balancing {
    /// `[route] balance`
    pub algorithm: &'static dyn Balance,
    /// By [`NodeId::index`].
    pub nodes: Box<[Share]>,
    /// `[route] slow_start`
    pub slow_start: Duration,
}

/// One node's part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// `[[node]] weight`
    pub weight: u32,
    /// Is it in the zone of this proxy, or has this proxy none?
    pub local: bool,
}

impl Balancing {
    /// From a checked configuration.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let zone = config.server.zone.as_deref();
        let share = |node: &crate::config::NodeConfig| Share {
            weight: node.weight,
            local: zone.is_none() || node.zone.as_deref() == zone,
        };
        Self {
            algorithm: balance(config.route.balance),
            nodes: config.nodes.iter().map(share).collect(),
            slow_start: config.route.slow_start,
        }
    }

    /// One node's part.
    #[must_use]
    pub fn share(&self, node: NodeId) -> Share {
        self.nodes.get(node.index()).copied().unwrap_or(Share { weight: 0, local: true })
    }
}

/// How willingly a standby that may take the read is given it: the first kind that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// In this proxy's zone.
    Local,
    /// In another zone.
    Remote,
    /// About to be down perhaps, or ejected.
    Doubtful,
}

impl Rank {
    /// Of a node that may take the read.
    #[must_use]
    pub fn of(view: &NodeView, share: Share, vitals: &Vitals) -> Self {
        if view.health != Health::Healthy || vitals.ejected.is_some() {
            Self::Doubtful
        } else if share.local {
            Self::Local
        } else {
            Self::Remote
        }
    }
}

/// Chooses. `vitals` tells how a node does now.
///
/// # Errors
/// [`NoRoute`] when no node may take it.
pub fn choose(
    wishes: &Wishes,
    topology: &Topology,
    balancing: &Balancing,
    vitals: impl Fn(NodeId) -> Vitals,
    dice: &mut Dice,
) -> Result<Target, NoRoute> {
    match (wishes.reach, wishes.access) {
        (Reach::Split | Reach::Primary, Access::Write) => return primary(wishes, topology, Reason::Write),
        (Reach::Primary, Access::Read) => return primary(wishes, topology, Reason::SplitOff),
        (Reach::Split, Access::Read) | (Reach::Standby, _) => {}
    }
    let mut candidates: SmallVec<[Candidate; NODES_MAX]> = SmallVec::new();
    let mut fastest: Option<Latency> = None;
    let mut stale = false;
    for view in topology.nodes.iter().filter(|view| takes_reads(view)) {
        if !wishes.floor.is_reached_by(view) {
            stale = true;
            continue;
        }
        let (share, vitals) = (balancing.share(view.id), vitals(view.id));
        let open = share.weight > 0 && vitals.service == Service::Enabled;
        let wanted = open && wishes.nodes.contains(view.id) && wishes.avoid != Some(view.id);
        if wanted && candidates.len() < NODES_MAX {
            fastest = vitals.latency.map(|own| fastest.map_or(own, |fastest| fastest.min(own))).or(fastest);
            candidates.push(candidate(view, share, &vitals));
        }
    }
    if !candidates.is_empty() {
        let node = pick(&mut candidates, fastest, balancing.algorithm, dice);
        let reason = if wishes.reach == Reach::Standby { Reason::StandbyOnly } else { Reason::Read };
        return Ok(target(topology, node, Role::Standby, reason));
    }
    if wishes.reach == Reach::Standby {
        let why = if stale { "no standby shows what the session must see yet" } else { "no standby takes reads" };
        return last_resort(wishes, topology, vitals, NoRoute::Held { why: why.into() });
    }
    if stale && wishes.patient {
        return Err(NoRoute::NotFresh);
    }
    primary(wishes, topology, if stale { Reason::NotFresh } else { Reason::NoStandby })
        .or_else(|no| last_resort(wishes, topology, vitals, no))
}

fn candidate(view: &NodeView, share: Share, vitals: &Vitals) -> Candidate {
    Candidate {
        node: view.id,
        rank: Rank::of(view, share, vitals),
        weight: share.weight.saturating_mul(vitals.share),
        in_flight: vitals.in_flight,
        latency: vitals.latency.map_or(Latency::LEAST, |latency| latency.faded(vitals.answered_ago)),
    }
}

/// One of the most willingly chosen ones. `candidates` is not empty.
fn pick(candidates: &mut [Candidate], fastest: Option<Latency>, algorithm: &dyn Balance, dice: &mut Dice) -> NodeId {
    for candidate in &mut *candidates {
        // Who was not measured, or not lately, may be as good as the fastest, not better.
        candidate.latency = candidate.latency.max(fastest.unwrap_or(Latency::LEAST));
    }
    let best = candidates.iter().map(|candidate| candidate.rank).min().unwrap_or(Rank::Doubtful);
    let (front, rest) = split(candidates, best);
    let picked = front[algorithm.pick(front, dice).min(front.len() - 1)];
    let (remote, _) = split(rest, Rank::Remote);
    if best == Rank::Local && !remote.is_empty() {
        let other = remote[draw(remote, dice)];
        if other.beats(&picked, ZONE_TIMES) {
            return other.node;
        }
    }
    picked.node
}

/// Those of this rank, and the others.
fn split(candidates: &mut [Candidate], rank: Rank) -> (&mut [Candidate], &mut [Candidate]) {
    let mut count = 0;
    for index in 0..candidates.len() {
        if candidates[index].rank == rank {
            candidates.swap(count, index);
            count += 1;
        }
    }
    candidates.split_at_mut(count)
}

fn takes_reads(view: &NodeView) -> bool {
    view.role == Role::Standby && view.accepts_reads
}

fn target(topology: &Topology, node: NodeId, role: Role, reason: Reason) -> Target {
    let fence = topology.node(node).map_or(0, |view| view.fence);
    Target { node, epoch: topology.epoch, role, reason, fence }
}

fn primary(wishes: &Wishes, topology: &Topology, reason: Reason) -> Result<Target, NoRoute> {
    match (&topology.writes, topology.primary) {
        (Writes::Open, Some(_)) if !wishes.permitted => Err(NoRoute::Held { why: NO_PERMIT.into() }),
        (Writes::Open, Some(node)) => Ok(target(topology, node, Role::Primary, reason)),
        (Writes::Refused { why }, _) => Err(NoRoute::Refused { why: Arc::clone(why) }),
        (Writes::Held { why }, _) => Err(NoRoute::Held { why: Arc::clone(why) }),
        (Writes::Open, None) => Err(NoRoute::Held { why: "no primary is known".into() }),
    }
}

/// Without a primary, weight 0, draining and "avoid" and preferred nodes no longer keep a fresh enough standby from reads.
fn last_resort(
    wishes: &Wishes,
    topology: &Topology,
    vitals: impl Fn(NodeId) -> Vitals,
    no: NoRoute,
) -> Result<Target, NoRoute> {
    let fit = |view: &&NodeView| {
        takes_reads(view) && wishes.floor.is_reached_by(view) && vitals(view.id).service != Service::Maintenance
    };
    let fit = topology.nodes.iter().find(fit);
    fit.map(|view| target(topology, view.id, Role::Standby, Reason::Read)).ok_or(no)
}

#[cfg(test)]
mod tests {
    mod simulation;

    use super::*;
    use crate::clock::Time;
    use crate::topology::{Floor, Health};

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
        Wishes::new(access)
    }

    const FINE: Vitals = Vitals::UNKNOWN;

    fn balancing(local: [bool; 3]) -> Balancing {
        let nodes = local.map(|local| Share { weight: 100, local });
        Balancing { algorithm: BALANCES[0], nodes: nodes.into(), slow_start: Duration::ZERO }
    }

    fn ask(wishes: &Wishes, topology: &Topology) -> Result<Target, NoRoute> {
        choose(wishes, topology, &balancing([true; 3]), |_| FINE, &mut Dice::new(7))
    }

    /// How many of a hundred reads each node gets, when all are as fresh as need be.
    fn reads(topology: &Topology, balancing: &Balancing, vitals: [Vitals; 3]) -> [usize; 3] {
        let mut counts = [0; 3];
        for seed in 0..100 {
            let vitals = |node: NodeId| vitals[node.index()];
            let got = choose(&wishes(Access::Read), topology, balancing, vitals, &mut Dice::new(seed)).unwrap();
            counts[got.node.index()] += 1;
        }
        counts
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
        let at = |nanos| {
            let floor = Floor { flushed: Time::from_nanos(nanos), ..Floor::default() };
            Wishes { floor, ..wishes(Access::Read) }
        };
        assert_eq!(ask(&at(100), &t).unwrap().role, Role::Standby);
        let stale = ask(&at(101), &t).unwrap();
        assert_eq!((stale.node, stale.reason), (NodeId(0), Reason::NotFresh));
        assert_eq!(ask(&Wishes { patient: true, ..at(101) }, &t), Err(NoRoute::NotFresh));
        assert_eq!(ask(&Wishes { patient: true, ..at(100) }, &t).unwrap().role, Role::Standby);
    }

    #[test]
    fn preferred_nodes_come_before_the_primary_and_no_others() {
        let mut t = topology();
        let only = |id| Wishes { nodes: [NodeId(id)].into_iter().collect(), ..wishes(Access::Read) };
        assert_eq!(ask(&only(2), &t).unwrap().node, NodeId(2));
        assert_eq!(ask(&only(0), &t).unwrap(), primary(&only(0), &t, Reason::NoStandby).unwrap());
        t.nodes[2].accepts_reads = false;
        assert_eq!(ask(&only(2), &t).unwrap().node, NodeId(0));
    }

    #[test]
    fn a_session_of_standbys_never_sees_the_primary() {
        let mut t = topology();
        for access in [Access::Read, Access::Write] {
            let there = ask(&Wishes { reach: Reach::Standby, ..wishes(access) }, &t).unwrap();
            assert_eq!((there.role, there.reason), (Role::Standby, Reason::StandbyOnly));
        }
        let floor = Floor { flushed: Time::from_nanos(101), ..Floor::default() };
        let only = Wishes { reach: Reach::Standby, patient: true, floor, ..wishes(Access::Read) };
        assert!(matches!(ask(&only, &t), Err(NoRoute::Held { .. })));
        (t.nodes[1].accepts_reads, t.nodes[2].accepts_reads) = (false, false);
        let only = Wishes { floor: Floor::default(), ..only };
        assert!(matches!(ask(&only, &t), Err(NoRoute::Held { .. })));
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
        assert_eq!(reads(&t, &balancing([true; 3]), [FINE; 3]), [0, 0, 100]);
        t.nodes[2].health = Health::Suspect;
        assert_eq!(ask(&wishes(Access::Read), &t).unwrap().role, Role::Standby);
    }

    #[test]
    fn an_ejected_standby_is_left_alone_while_another_can() {
        let mut t = topology();
        let ejected = Vitals { ejected: Some(outlier::Outlier::Slow), ..FINE };
        assert_eq!(reads(&t, &balancing([true; 3]), [FINE, ejected, FINE]), [0, 0, 100]);
        t.nodes[2].accepts_reads = false;
        assert_eq!(reads(&t, &balancing([true; 3]), [FINE, ejected, FINE]), [0, 100, 0]);
    }

    #[test]
    fn a_drained_standby_takes_no_reads_and_one_in_maintenance_not_even_the_last() {
        let mut t = topology();
        let draining = Vitals { service: Service::Draining, ..FINE };
        let maintenance = Vitals { service: Service::Maintenance, ..FINE };
        assert_eq!(reads(&t, &balancing([true; 3]), [FINE, draining, FINE]), [0, 0, 100]);
        // The primary takes writes whatever it is, and reads when no standby can.
        assert_eq!(reads(&t, &balancing([true; 3]), [maintenance, draining, maintenance]), [100, 0, 0]);
        t.primary = None;
        t.writes = Writes::Held { why: "failover".into() };
        assert_eq!(reads(&t, &balancing([true; 3]), [FINE, maintenance, draining]), [0, 0, 100]);
        let ask = choose(&wishes(Access::Read), &t, &balancing([true; 3]), |_| maintenance, &mut Dice::new(1));
        assert!(ask.is_err());
    }

    #[test]
    fn the_own_zone_comes_first_unless_it_is_much_worse() {
        let mut t = topology();
        let two = balancing([false, true, false]);
        let busy = |in_flight| Vitals { in_flight, ..FINE };
        assert_eq!(reads(&t, &two, [FINE; 3]), [0, 100, 0]);
        assert_eq!(reads(&t, &two, [FINE, busy(3), FINE]), [0, 100, 0]);
        assert_eq!(reads(&t, &two, [FINE, busy(4), FINE]), [0, 0, 100]);
        // One that starts slowly is busy sooner.
        assert_eq!(reads(&t, &two, [FINE, Vitals { share: WHOLE / 32, ..busy(1) }, FINE]), [0, 0, 100]);
        t.nodes[1].health = Health::Suspect;
        assert_eq!(reads(&t, &two, [FINE; 3]), [0, 0, 100]);
    }

    #[test]
    fn a_standby_that_nobody_measured_counts_as_the_fastest() {
        let t = topology();
        let taking = |millis| Vitals { latency: Some(Latency::of(Duration::from_millis(millis))), ..FINE };
        let counts = reads(&t, &balancing([true; 3]), [FINE, taking(9), FINE]);
        assert!(counts[1] > 30 && counts[2] > 30, "{counts:?}");
        assert_eq!(reads(&t, &balancing([true; 3]), [FINE, taking(1), taking(9)]), [0, 100, 0]);
        // An old measurement fades until it is as good as the fastest.
        let old = Vitals { answered_ago: FADE_AFTER * 4, ..taking(9) };
        let counts = reads(&t, &balancing([true; 3]), [FINE, taking(1), old]);
        assert!(counts[1] > 30 && counts[2] > 30, "{counts:?}");
    }

    #[test]
    fn splitting_can_be_off() {
        let off = Wishes { reach: Reach::Primary, ..wishes(Access::Read) };
        assert_eq!(ask(&off, &topology()).unwrap().reason, Reason::SplitOff);
    }
}
