//! What a session asks of the node for its next unit of work.
//!
//! Pure. Absent on purpose: where the wishes come from (`session`), and choosing among nodes that fit.

use super::NODES_MAX;
use crate::ids::NodeId;
use crate::sql::Access;
use crate::topology::Floor;
use std::fmt;

/// Which roles may serve a session at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Writes the primary, reads the standbys, or the primary where no standby can.
    #[default]
    Split,
    /// Everything the primary.
    Primary,
    /// Everything a standby, which refuses writes; nothing where there is none.
    Standby,
}

/// Nodes that a session's reads prefer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NodeSet(u64);

const _: () = assert!(NODES_MAX <= 64, "a set of nodes is one word");

impl NodeSet {
    /// Every node.
    pub const ALL: Self = Self(u64::MAX);

    /// Is the node in the set?
    #[must_use]
    pub fn contains(self, node: NodeId) -> bool {
        node.index() < NODES_MAX && self.0 >> node.index() & 1 == 1
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        let bits =
            nodes.into_iter().filter(|node| node.index() < NODES_MAX).fold(0, |bits, node| bits | 1 << node.index());
        Self(bits)
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL { f.write_str("all") } else { write!(f, "{:#b}", self.0) }
    }
}

/// What a session asks of the node for its next unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Read or write.
    pub access: Access,
    /// Which roles may serve it.
    pub reach: Reach,
    /// Nodes that its reads prefer.
    pub nodes: NodeSet,
    /// What it must be able to read.
    pub floor: Floor,
    /// A node that has just failed this unit; avoided while there is another.
    pub avoid: Option<NodeId>,
    /// Rather wait for a standby that is fresh enough than read on the primary.
    pub patient: bool,
    /// This proxy holds a permit to write: without one there is no primary for it.
    pub permitted: bool,
}

impl Wishes {
    /// A unit without any wish beyond what it does.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self {
            access,
            reach: Reach::Split,
            nodes: NodeSet::ALL,
            floor: Floor::default(),
            avoid: None,
            patient: false,
            permitted: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_nodes() {
        let set: NodeSet = [NodeId(0), NodeId(63), NodeId(64)].into_iter().collect();
        assert!(set.contains(NodeId(0)) && set.contains(NodeId(63)));
        assert!(!set.contains(NodeId(1)) && !set.contains(NodeId(64)));
        assert!(NodeSet::ALL.contains(NodeId(7)));
    }
}
