//! Upkeep of what sessions know of nodes: outliers ejected, drained nodes left with no idle backend.
//!
//! Invariants: nothing here is waited for by a statement; it ends with the proxy. Absent on purpose: judging
//! (`route::watch`), and roles (the control plane's).

use super::SessionDeps;
use crate::ids::NodeId;
use crate::route::outlier::Change;
use crate::route::{Service, Watch};
use crate::topology::Role;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often nodes are looked at when nothing is published.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks at the nodes until `stop`.
pub async fn watch_nodes(deps: Arc<SessionDeps>, stop: CancellationToken) {
    let mut watch = Watch::new(deps.standings.iter().count());
    let mut topology = deps.topology.clone();
    loop {
        tokio::select! {
            () = topology.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let now = deps.clock.now();
        let changes = watch.look(&topology.load(), &deps.standings, &deps.tunables.load().balancing, now);
        for (node, change) in changes {
            tell(&deps, node, change);
        }
        empty_drained(&deps);
    }
}

fn tell(deps: &SessionDeps, node: NodeId, change: Change) {
    let topology = deps.topology.load();
    let name = topology.node(node).map(|view| &*view.name);
    match change {
        Change::Ejected(why, span) => {
            deps.metrics.node(node).ejections.inc(why.word());
            tracing::warn!(node = name, why = why.word(), ?span, "standby ejected: others take its reads for a while");
        }
        Change::Returned => tracing::info!(node = name, "standby takes part again"),
    }
}

/// A standby that takes no reads needs no idle backend. (The primary takes writes all the same.)
fn empty_drained(deps: &SessionDeps) {
    for view in deps.topology.load().nodes.iter().filter(|view| view.role != Role::Primary) {
        if deps.standings.of(view.id).service() != Service::Enabled {
            deps.pools.vacate_node(view.id);
        }
    }
}
