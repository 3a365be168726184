//! Who should be sent where: the answers of the health endpoints, as values.
//!
//! Invariants: a proxy that does not serve clients (starting, draining) takes nothing; writes need
//! an open topology, a primary and a permit that is not over. Absent on purpose: HTTP.

use crate::clock::Clock;
use crate::route::{Service, Vitals};
use crate::topology::{NodeView, Role, Topology, TopologyReader, Writes};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Where this proxy is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Clients are not accepted yet.
    Starting,
    /// Clients are served.
    Serving,
    /// New clients should go elsewhere; those connected may finish.
    Draining,
}

impl Phase {
    /// Lower-case word for JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// The [`Phase`], shared: the composition root sets it, the health endpoints read it.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<AtomicU8>);

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Starts at [`Phase::Starting`].
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(AtomicU8::new(Phase::Starting as u8)))
    }

    /// Enters a phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    /// The present phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            byte if byte == Phase::Starting as u8 => Phase::Starting,
            byte if byte == Phase::Serving as u8 => Phase::Serving,
            _ => Phase::Draining,
        }
    }
}

/// Whether writes flow, with the permit taken into account.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum WritesNow {
    Open,
    Held(Arc<str>),
    Refused(Arc<str>),
}

/// What the topology says, and whether its permit still allows writes.
pub(super) fn writes_now(topology: &Topology, reader: &TopologyReader, clock: &Clock) -> WritesNow {
    let permitted = reader.permit().allows(topology.epoch, || clock.now());
    match &topology.writes {
        Writes::Refused { why } => WritesNow::Refused(Arc::clone(why)),
        Writes::Held { why } => WritesNow::Held(Arc::clone(why)),
        Writes::Open if topology.primary.is_none() => WritesNow::Held("no primary is known".into()),
        Writes::Open if !permitted => {
            WritesNow::Held(format!("the permit for writes of epoch {} is over", topology.epoch).into())
        }
        Writes::Open => WritesNow::Open,
    }
}

/// Why clients should not be sent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotReady {
    Starting,
    Draining,
    /// No node takes reads or writes.
    NoNode,
}

impl NotReady {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::NoNode => "no_node",
        }
    }

    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Starting => "This proxy does not accept clients yet.",
            Self::Draining => "This proxy is stopping and accepts no new clients.",
            Self::NoNode => "No node can take reads or writes.",
        }
    }
}

/// Does this proxy serve clients at all?
pub(super) fn serving(phase: Phase) -> Result<(), NotReady> {
    match phase {
        Phase::Starting => Err(NotReady::Starting),
        Phase::Draining => Err(NotReady::Draining),
        Phase::Serving => Ok(()),
    }
}

/// Should clients be sent here? Either kind of work is enough.
pub(super) fn ready(phase: Phase, topology: &Topology, writes: &WritesNow) -> Result<(), NotReady> {
    serving(phase)?;
    let reads = topology.nodes.iter().any(|node| node.accepts_reads);
    if reads || *writes == WritesNow::Open { Ok(()) } else { Err(NotReady::NoNode) }
}

/// The primary that a write would reach.
pub(super) fn writable_primary(topology: &Topology, writes: &WritesNow) -> Option<Arc<str>> {
    let primary = topology.node(topology.primary?)?;
    (*writes == WritesNow::Open).then(|| Arc::clone(&primary.name))
}

/// The standbys that a read could reach, but for those that an operator has taken out.
pub(super) fn readable_standbys(topology: &Topology, vitals: &[Vitals]) -> Vec<Arc<str>> {
    let enabled = |node: &NodeView| vitals.get(node.id.index()).is_none_or(|v| v.service == Service::Enabled);
    let takes = |node: &&NodeView| node.role == Role::Standby && node.accepts_reads && enabled(node);
    let readable = topology.nodes.iter().filter(takes);
    readable.map(|node| Arc::clone(&node.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::ids::{Epoch, NodeId};
    use crate::topology::topology_channel;
    use std::time::Duration;

    fn topology(writes: Writes, primary: Option<u16>, readers: &[usize]) -> Topology {
        let mut topology = Topology::starting(&["a".into(), "b".into(), "c".into()]);
        topology.epoch = Epoch(4);
        topology.writes = writes;
        topology.primary = primary.map(NodeId);
        for (place, node) in topology.nodes.iter_mut().enumerate() {
            node.role = if primary.map(usize::from) == Some(place) { Role::Primary } else { Role::Standby };
            node.accepts_reads = readers.contains(&place);
        }
        topology
    }

    #[test]
    fn a_phase_survives_the_round_trip() {
        let readiness = Readiness::new();
        assert_eq!(readiness.phase(), Phase::Starting);
        for phase in [Phase::Serving, Phase::Draining, Phase::Starting] {
            readiness.set(phase);
            assert_eq!(readiness.clone().phase(), phase);
        }
    }

    #[test]
    fn writes_need_an_open_topology_a_primary_and_a_permit() {
        let clock = Clock::manual();
        let (publisher, reader) = topology_channel(Topology::starting(&[]));
        let now = |topology: &Topology| writes_now(topology, &reader, &clock);
        let open = topology(Writes::Open, Some(0), &[]);
        assert_eq!(now(&open), WritesNow::Held("the permit for writes of epoch 4 is over".into()));
        publisher.permit().extend(Epoch(4), clock.now() + Duration::from_secs(1));
        assert_eq!(now(&open), WritesNow::Open);
        assert_eq!(now(&topology(Writes::Open, None, &[])), WritesNow::Held("no primary is known".into()));
        assert_eq!(now(&topology(Writes::Held { why: "x".into() }, Some(0), &[])), WritesNow::Held("x".into()));
        assert_eq!(now(&topology(Writes::Refused { why: "y".into() }, Some(0), &[])), WritesNow::Refused("y".into()));
        clock.advance(Duration::from_secs(2));
        assert!(matches!(now(&open), WritesNow::Held(_)));
        publisher.permit().extend(Epoch(3), Time::NEVER);
        assert!(matches!(now(&open), WritesNow::Held(_)), "a permit of another epoch");
    }

    #[test]
    fn ready_means_serving_and_some_node_works() {
        let held = WritesNow::Held("x".into());
        let nothing = topology(Writes::Open, Some(0), &[]);
        let reads = topology(Writes::Open, Some(0), &[2]);
        assert_eq!(ready(Phase::Serving, &nothing, &held), Err(NotReady::NoNode));
        assert_eq!(ready(Phase::Serving, &nothing, &WritesNow::Open), Ok(()));
        assert_eq!(ready(Phase::Serving, &reads, &held), Ok(()));
        assert_eq!(ready(Phase::Starting, &reads, &WritesNow::Open), Err(NotReady::Starting));
        assert_eq!(ready(Phase::Draining, &reads, &WritesNow::Open), Err(NotReady::Draining));
    }

    #[test]
    fn a_primary_that_takes_reads_is_no_readable_standby() {
        let both = topology(Writes::Open, Some(0), &[0, 2]);
        assert_eq!(readable_standbys(&both, &[]), ["c".into()] as [Arc<str>; 1]);
        let drained = [Vitals { service: Service::Draining, ..Vitals::UNKNOWN }; 3];
        assert!(readable_standbys(&both, &drained).is_empty());
        assert_eq!(writable_primary(&both, &WritesNow::Open), Some("a".into()));
        assert_eq!(writable_primary(&both, &WritesNow::Held("x".into())), None);
    }
}
