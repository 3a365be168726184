//! What a primary's commits waited for, in a form that outlives this process.
//!
//! Invariants: holds names, because numbers change with the configuration; a name that is no node any more counts as a
//! stranger's, and so never as one who can vouch. Pure. Absent on purpose: the file (`execute::kept`), and what
//! follows from it (`machine::sync`).

use super::policy::Policy;
use super::sync::{Demand, Method};
use crate::ids::Lsn;

/// The memory of one primary's settings.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Promise {
    /// Name of the primary.
    pub primary: String,
    /// What its commits wait for; `None`: for nobody.
    pub present: Option<Asked>,
    /// What settings before it asked for, and up to which position.
    pub before: Option<(Asked, Lsn)>,
}

/// A [`Demand`] with names.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Asked {
    /// Who acknowledges.
    pub method: Method,
    /// How many of them each commit waits for.
    pub k: usize,
    /// Names of nodes.
    pub members: Vec<String>,
    /// Names of others.
    pub strangers: Vec<String>,
}

impl Asked {
    /// The demand with the names of this configuration.
    #[must_use]
    pub fn of(demand: &Demand, policy: &Policy) -> Self {
        let name = |id: &crate::ids::NodeId| policy.nodes[id.index()].name.to_string();
        Self {
            method: demand.method,
            k: demand.k,
            members: demand.members.iter().map(name).collect(),
            strangers: demand.strangers.iter().map(ToString::to_string).collect(),
        }
    }

    /// The demand for the nodes of this configuration.
    #[must_use]
    pub fn demand(&self, policy: &Policy) -> Demand {
        let mut demand = Demand { method: self.method, k: self.k, members: Vec::new(), strangers: Vec::new() };
        for name in &self.members {
            match policy.by_name(name) {
                Some(id) => demand.members.push(id),
                None => demand.strangers.push(name.as_str().into()),
            }
        }
        demand.strangers.extend(self.strangers.iter().map(|name| name.as_str().into()));
        demand
    }
}
