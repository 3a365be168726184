//! Reads the catalogs of the databases that clients use, and reads them again when they have changed.
//!
//! One task, one database at a time, over a connection as the monitor's role that is closed afterwards: when a
//! database gets its first session, soon after a statement that passed through has changed something, and at an
//! interval. A small question (the mark) tells first whether anything is different from what is known.
//!
//! Invariants: every call to a node has a limit; a database that cannot be read costs a connection attempt now and then
//! and leaves its statements to their texts; definitions are looked into on a thread of their own, since this one
//! also decides failovers. Absent on purpose: what the rows mean (`catalog`), alarms: nothing breaks without a catalog.

mod question;

use super::Connector;
use crate::catalog::{CatalogSlot, CatalogTable, Changes, Facts, Kind, Nature, Rows, TooLarge, build};
use crate::clock::{Clock, Time};
use crate::config::{Config, ForeignTables, RouteConfig};
use crate::ids::NodeId;
use crate::metrics::Metrics;
use crate::sql::Settings;
use crate::topology::{ProbeFailure, Role, Topology, TopologyReader};
use arc_swap::ArcSwap;
use futures::TryStreamExt;
use hashbrown::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

/// How long one attempt may take, connecting included.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(30);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// What comes within this time of the first change is read at once.
const GATHER: Duration = Duration::from_millis(100);
/// Pause between two looks that changes ask for which make no function untrusted (a temporary table, say).
const CALM: Duration = Duration::from_secs(1);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Pause after a question that failed: it waited for a lock, or took too long, which the node should not have often.
const RETRY_QUESTION: Duration = Duration::from_secs(15);
/// Pause after a node would not let us in.
const RETRY_REJECTED: Duration = Duration::from_secs(60);

/// What the task needs.
pub struct CatalogDeps {
    /// Settings in use; a reload replaces them and wakes the table.
    pub config: Arc<ArcSwap<Config>>,
    /// Where snapshots go.
    pub table: Arc<CatalogTable>,
    /// Whom to ask.
    pub topology: TopologyReader,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// How definitions are classified.
    pub classifier: fn(&RouteConfig) -> Settings,
}

/// Why a catalog was not read.
#[derive(Debug, thiserror::Error)]
enum LoadFailure {
    #[error("no node can be asked")]
    NoNode,
    #[error("not within {ATTEMPT_LIMIT:?}")]
    TimedOut,
    #[error("the node cannot be asked: {0:?}")]
    Node(ProbeFailure),
    #[error("the question failed: {0}")]
    Question(tokio_postgres::Error),
    #[error("the node's answer was not understood")]
    Answer,
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl From<tokio_postgres::Error> for LoadFailure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Question(error)
    }
}

impl LoadFailure {
    fn label(&self) -> &'static str {
        match self {
            Self::NoNode => "no_node",
            Self::TimedOut => "timed_out",
            Self::Node(failure) => failure.label(),
            Self::Question(_) => "failed",
            Self::Answer => "not_understood",
            Self::TooLarge(_) => "too_large",
        }
    }

    fn pause(&self) -> Duration {
        match self {
            Self::Node(ProbeFailure::Rejected(_)) | Self::Answer | Self::TooLarge(_) => RETRY_REJECTED,
            Self::TimedOut | Self::Question(_) => RETRY_QUESTION,
            Self::NoNode | Self::Node(_) => RETRY,
        }
    }
}

/// The settings that snapshots depend on.
#[derive(Clone, Debug, PartialEq)]
struct Basis {
    read: Vec<String>,
    write: Vec<String>,
    bytes_max: usize,
    foreign: bool,
}

impl Basis {
    fn of(config: &RouteConfig) -> Self {
        Self {
            read: config.read_functions.clone(),
            write: config.write_functions.clone(),
            bytes_max: config.classify_bytes_max,
            foreign: config.foreign_tables == ForeignTables::Primary,
        }
    }
}

/// What is known of a database besides its snapshot.
struct Known {
    seen: Changes,
    /// What the mark was when the snapshot was read.
    mark: Option<String>,
    basis: Basis,
    looked: Time,
    /// Not before, after a failure.
    retry: Time,
}

/// What a look at a database brought.
enum Look {
    Unchanged,
    Read { facts: Facts, mark: String },
}

/// The task's state.
struct Loader {
    deps: CatalogDeps,
    known: HashMap<Arc<str>, Known>,
}

/// Keeps snapshots until the control plane ends.
pub async fn keep(deps: CatalogDeps) {
    let mut loader = Loader { deps, known: HashMap::new() };
    loop {
        let wait = loader.work().await;
        let changed = loader.deps.table.changed();
        match wait {
            None => changed.await,
            Some(wait) if tokio::time::timeout(wait, changed).await.is_err() => continue,
            Some(_) => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

impl Loader {
    /// Looks at every database that is due; returns when the next one will be, if any.
    async fn work(&mut self) -> Option<Duration> {
        let config = self.deps.config.load_full();
        let slots = self.deps.table.all();
        self.known.retain(|name, _| slots.iter().any(|(slot, ..)| slot == name));
        let mut next: Option<Time> = None;
        for (database, slot, used) in &slots {
            if !config.route.catalog {
                slot.clear();
                self.known.remove(database);
                continue;
            }
            let Some(mut due) = self.due(&config.route, database, slot, *used) else { continue };
            if due <= self.deps.clock.now() {
                self.look(&config, database, slot).await;
                match self.due(&config.route, database, slot, *used) {
                    Some(again) => due = again,
                    None => continue,
                }
            }
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        let loaded = slots.iter().filter(|(_, slot, _)| slot.load().loaded().is_some()).count();
        self.deps.metrics.route.catalogs.set(i64::try_from(loaded).unwrap_or(i64::MAX));
        next.map(|next| next.since(self.deps.clock.now()))
    }

    /// When is this database to be looked at?
    fn due(&self, config: &RouteConfig, database: &str, slot: &CatalogSlot, used: bool) -> Option<Time> {
        // Whoever comes back to it finds what is known, and it is looked at soon.
        if !used {
            return None;
        }
        let Some(known) = self.known.get(database) else { return Some(self.deps.clock.now()) };
        let changes = slot.changes();
        let due = if known.basis != Basis::of(config) {
            Some(Time::ZERO)
        } else if changes.code != known.seen.code {
            Some(known.looked + GATHER)
        } else if changes != known.seen {
            Some(known.looked + CALM)
        } else {
            let failed = (known.retry > known.looked).then_some(known.retry);
            failed.or_else(|| config.catalog_interval.map(|interval| known.looked + interval))
        };
        due.map(|due| due.max(known.retry))
    }

    async fn look(&mut self, config: &Arc<Config>, database: &Arc<str>, slot: &CatalogSlot) {
        let seen = slot.changes();
        let basis = Basis::of(&config.route);
        let known = self.known.get(database).filter(|known| known.basis == basis);
        let mark = known.and_then(|known| known.mark.clone());
        let attempt = tokio::time::timeout(ATTEMPT_LIMIT, self.ask(config, database, mark.as_deref())).await;
        let outcome = attempt.unwrap_or(Err(LoadFailure::TimedOut));
        let now = self.deps.clock.now();
        let (label, mark, retry) = match outcome {
            Ok(Look::Unchanged) => {
                slot.publish(None, seen, now);
                ("unchanged", mark, Time::ZERO)
            }
            Ok(Look::Read { facts, mark }) => {
                tracing::debug!(%database, functions = facts.functions(), "catalog read");
                slot.publish(Some(Arc::new(facts)), seen, now);
                ("loaded", Some(mark), Time::ZERO)
            }
            Err(failure) => {
                tracing::debug!(%database, %failure, "no catalog");
                if matches!(failure, LoadFailure::TooLarge(_)) {
                    slot.clear();
                }
                (failure.label(), None, now + failure.pause())
            }
        };
        self.deps.metrics.route.catalog_loads.inc(label);
        self.known.insert(Arc::clone(database), Known { seen, mark, basis, looked: now, retry });
    }

    async fn ask(&self, config: &Arc<Config>, database: &str, mark: Option<&str>) -> Result<Look, LoadFailure> {
        let node = node_to_ask(&self.deps.topology.load()).ok_or(LoadFailure::NoNode)?;
        let connector = Connector::new(config, node).to_database(database);
        let session = connector.open(CONNECT_LIMIT).await.map_err(LoadFailure::Node)?;
        session.client.batch_execute(question::PREPARATION).await?;
        // Before the rows: what changes in between is found the next time.
        let now = session.client.query_one(question::MARK, &[]).await?;
        let now: String = now.try_get(0).map_err(|_| LoadFailure::Answer)?;
        if mark == Some(now.as_str()) {
            return Ok(Look::Unchanged);
        }
        let settings = (self.deps.classifier)(&config.route);
        let rows = rows(&session.client, settings.classify_bytes_max).await?;
        let foreign = config.route.foreign_tables == ForeignTables::Primary;
        let built = tokio::task::spawn_blocking(move || build(rows, &settings, foreign)).await;
        Ok(Look::Read { facts: built.map_err(|_| LoadFailure::Answer)?, mark: now })
    }
}

/// The primary, or else a standby that takes reads.
fn node_to_ask(topology: &Topology) -> Option<NodeId> {
    let standby = || topology.nodes.iter().find(|node| node.role == Role::Standby && node.accepts_reads);
    topology.primary.or_else(|| standby().map(|node| node.id))
}

async fn rows(client: &Client, definition_max: usize) -> Result<Rows, LoadFailure> {
    // One more than is looked into, so that a longer one is seen to be.
    let definition_max = i32::try_from(definition_max.saturating_add(1)).unwrap_or(i32::MAX);
    let parameters: [&(dyn ToSql + Sync); 1] = [&definition_max];
    let answer = client.query_raw(question::ROWS, parameters).await?;
    futures::pin_mut!(answer);
    let mut rows = Rows::default();
    while let Some(row) = answer.try_next().await? {
        let column = |index| row.try_get::<_, &str>(index).map_err(|_| LoadFailure::Answer);
        rows.add(kind(column(0)?)?, column(1)?, column(2)?, column(3)?)?;
    }
    Ok(rows)
}

fn kind(word: &str) -> Result<Kind, LoadFailure> {
    Ok(match word {
        "function 0" => Kind::Function(Nature::Reads),
        "function 1" => Kind::Function(Nature::NodeLocal),
        "function 2" => Kind::Function(Nature::Volatile),
        "unlogged" => Kind::Unlogged,
        "foreign" => Kind::Foreign,
        "view" => Kind::View,
        "policy" => Kind::Policy,
        _ => return Err(LoadFailure::Answer),
    })
}
