//! The store that needs no component of its own: PostgreSQL's advisory locks on the nodes and witnesses.
//!
//! One task keeps a session to each voter ([`session`]), one drives the rules ([`core`]). Why it is safe, and what it
//! does not cover: docs/decisions/0008-voters.md.
//!
//! Invariants: rules live in `core` only; a voter that hangs delays nothing but itself; what changes a node runs on the
//! session that holds the node's lock ([`LockSessions`]). Absent on purpose: decisions.

pub mod core;
mod session;
mod sessions;

pub use sessions::LockSessions;

use self::core::{Input, Lock, Output, Rules, View, Voters};
use super::{Backwards, Store, StoreError};
use crate::clock::{Clock, Time};
use crate::config::{Config, QuorumLoss};
use crate::failover::Policy;
use crate::failover::event::{Outcome, Record};
use crate::failover::standing::{Claim, Standing};
use crate::ids::{Epoch, NodeId, TimelineId};
use crate::monitor::Connector;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use session::{Common, Session, VoterAt, record_on_witness};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Pause before a session that ended is opened again.
const REOPEN: Duration = Duration::from_millis(100);
/// Longest wait for a majority of voters at the start.
const RECALL_WAIT: Duration = Duration::from_secs(3);
/// Once most voters have a record, how long the others are waited for.
const RECORD_GRACE: Duration = Duration::from_millis(200);
/// Inputs that wait for the driver; a voter has one at a time.
const INPUTS_MAX: usize = 64;

/// Writes a primary into a node, over the session that holds its lock.
pub trait Chooser: Send + Sync {
    /// Lets `node` follow `primary` (itself, where it is the one) in `epoch`, durably; the primary has or will have
    /// `timeline` at least.
    fn choose(&self, node: NodeId, primary: NodeId, epoch: Epoch, timeline: TimelineId) -> BoxFuture<'_, Outcome>;

    /// Keeps a connection string that was seen on a node, for a time when it has been emptied.
    fn seen(&self, node: NodeId, conninfo: String) -> BoxFuture<'_, ()>;
}

/// The store.
pub struct VotersStore {
    shared: Arc<Shared>,
    claims: watch::Sender<Claim>,
    standing: watch::Receiver<Standing>,
    publisher: watch::Sender<Standing>,
    driver: parking_lot::Mutex<Option<Driver>>,
    /// Counts records, so that a later one ends an earlier one.
    turn: AtomicU64,
}

struct Shared {
    common: Common,
    rules: Rules,
    nodes: usize,
    sessions: Arc<LockSessions>,
    chooser: Arc<dyn Chooser>,
}

/// What the driving task owns.
struct Driver {
    shared: Arc<Shared>,
    voters: Vec<VoterAt>,
    clock: Clock,
    claims: watch::Receiver<Claim>,
    standing: watch::Sender<Standing>,
}

/// Sessions to lend, one slot per voter.
#[must_use]
pub fn lock_sessions(config: &Config) -> Arc<LockSessions> {
    Arc::new(LockSessions::new(config.nodes.len() + config.cluster.witnesses.len()))
}

impl VotersStore {
    /// Opens nothing yet; [`Store::task`] does. `seed` makes the pauses of several proxies differ.
    #[must_use]
    pub fn new(
        config: &Config,
        clock: &Clock,
        sessions: Arc<LockSessions>,
        chooser: Arc<dyn Chooser>,
        seed: u64,
    ) -> Self {
        let policy = Policy::from_config(config);
        let node = |id: NodeId| VoterAt {
            name: Arc::clone(&policy.nodes[id.index()].name),
            connector: Connector::new(config, id),
            witness: false,
        };
        let witnesses = config.cluster.witnesses.iter().map(|witness| VoterAt {
            name: Arc::clone(&witness.name),
            connector: Connector::to_witness(config, witness),
            witness: true,
        });
        let voters: Vec<VoterAt> = policy.ids().map(node).chain(witnesses).collect();
        let rules = Rules {
            voters: voters.iter().map(|voter| Arc::clone(&voter.name)).collect(),
            span: config.cluster.lease_duration,
            keep_primary: config.cluster.on_quorum_loss == QuorumLoss::KeepPrimary,
            seed,
        };
        let cluster = config.cluster.name.clone();
        let key = Common::key_of(&cluster);
        let common = Common { cluster, span: rules.span, nodes: policy.nodes.into(), key };
        let shared = Arc::new(Shared { common, rules, nodes: config.nodes.len(), sessions, chooser });
        let (claims, claims_rx) = watch::channel(Claim::Nothing);
        let (standing_tx, standing) = watch::channel(Standing::default());
        let publisher = standing_tx.clone();
        let driver = Driver {
            shared: Arc::clone(&shared),
            voters,
            clock: clock.clone(),
            claims: claims_rx,
            standing: standing_tx,
        };
        Self {
            shared,
            claims,
            standing,
            publisher,
            driver: parking_lot::Mutex::new(Some(driver)),
            turn: AtomicU64::new(0),
        }
    }

    /// Waits until the primary may be changed; ends when that is no longer wanted.
    async fn right(&self, stale: &(dyn Fn() -> bool + Sync)) -> Result<(), StoreError> {
        let (mut claims, mut standing) = (self.claims.subscribe(), self.standing.clone());
        let stopping = |_| StoreError::Stopping;
        // Claimed before the record was asked for.
        claims.wait_for(|claim| claim.changes()).await.map_err(stopping)?;
        tokio::select! {
            had = standing.wait_for(|standing| stale() || standing.right.is_some()) => match had {
                Ok(_) if stale() => Err(StoreError::NotOurs),
                had => had.map(|_| ()).map_err(stopping),
            },
            _ = claims.wait_for(|claim| !claim.changes()) => Err(StoreError::NotOurs),
        }
    }
}

impl Store for VotersStore {
    fn name(&self) -> &'static str {
        "voters"
    }

    fn recall(&self) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let mut standing = self.standing.clone();
        Box::pin(async move {
            let known = tokio::time::timeout(RECALL_WAIT, standing.wait_for(|s| s.register.is_some())).await;
            let known = known.map_err(|_| StoreError::Undecided)?.map_err(|_| StoreError::Stopping)?;
            Ok(known.register.clone())
        })
    }

    fn record(&self, record: Record) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let holds = |standing: &Standing| {
                standing.register.as_ref().is_some_and(|r| r.epoch == record.epoch && r.primary == record.primary)
            };
            if holds(&self.standing.borrow()) {
                return Ok(());
            }
            // A later record ends this one, which the machine has given up then.
            let turn = self.turn.fetch_add(1, Ordering::SeqCst) + 1;
            let stale = || self.turn.load(Ordering::SeqCst) != turn;
            self.right(&stale).await?;
            may_record(&self.standing.borrow(), &record)?;
            let mut claims = self.claims.subscribe();
            tokio::select! {
                written = self.shared.write(&record) => written,
                _ = claims.wait_for(|claim| !claim.changes()) => Err(StoreError::NotOurs),
            }
        })
    }

    fn claim(&self, claim: Claim) {
        // The driver takes claims before all other inputs, so that nothing older is published after this.
        self.publisher.send_if_modified(|standing| standing.let_go(claim));
        self.claims.send_replace(claim);
    }

    fn standing(&self) -> Option<watch::Receiver<Standing>> {
        Some(self.standing.clone())
    }

    fn task(&self) -> Option<BoxFuture<'static, ()>> {
        let driver = self.driver.lock().take()?;
        Some(Box::pin(driver.run()))
    }
}

/// Whether a record fits what the voters say by now, whoever else has changed the primary meanwhile.
fn may_record(standing: &Standing, record: &Record) -> Result<(), StoreError> {
    let other = |name: &Option<Arc<str>>| name.as_ref().is_some_and(|name| **name != *record.primary);
    let (epoch, stored, asked) = (record.epoch, standing.highest, record.epoch);
    if asked < stored {
        return Err(StoreError::Backwards(Backwards::Epoch { stored, asked }));
    }
    let named = if asked == stored { &standing.chosen } else { &None };
    let named = if other(named) { named } else { &standing.pending };
    match named.as_ref().filter(|_| other(named)) {
        None => Ok(()),
        Some(named) => {
            let (stored, asked) = (named.to_string(), record.primary.clone());
            Err(StoreError::Backwards(Backwards::Primary { epoch, stored, asked }))
        }
    }
}

impl Shared {
    /// Writes a record into every voter whose lock is held alone; done when most have it, the primary among them.
    /// The primary's own comes once the others suffice: a standby that names itself can only be promoted.
    async fn write(&self, record: &Record) -> Result<(), StoreError> {
        let index = self.rules.voters.iter().position(|name| **name == *record.primary);
        let Some(primary) = index.filter(|index| *index < self.nodes) else {
            return Err(StoreError::NoMajority { needed: self.rules.majority(), why: "no such node".to_owned() });
        };
        let write = |voter| async move { (voter, self.write_one(voter, primary, record).await) };
        let others = (0..self.rules.voters.len()).filter(|voter| *voter != primary);
        let mut writes: FuturesUnordered<_> = others.map(write).collect();
        let (mut have, mut failed, mut until, mut own) = (Vec::new(), Vec::new(), None, false);
        loop {
            let next = match until {
                None => writes.next().await,
                Some(at) => tokio::time::timeout_at(at, writes.next()).await.unwrap_or(None),
            };
            match next {
                None => break,
                Some((voter, Outcome::Failed(why))) => failed.push(format!("{}: {why}", self.rules.voters[voter])),
                Some((voter, Outcome::Done | Outcome::Detached { .. })) => have.push(voter),
            }
            if !own && have.len() + 1 >= self.rules.majority() {
                own = true;
                writes.push(write(primary));
            }
            if until.is_none() && have.len() >= self.rules.majority() && have.contains(&primary) {
                until = Some(tokio::time::Instant::now() + RECORD_GRACE);
            }
        }
        match until {
            Some(_) => Ok(()),
            None => Err(StoreError::NoMajority { needed: self.rules.majority(), why: failed.join("; ") }),
        }
    }

    async fn write_one(&self, voter: usize, primary: usize, record: &Record) -> Outcome {
        let id = |index: usize| NodeId(u16::try_from(index).unwrap_or(u16::MAX));
        if voter < self.nodes {
            return self.chooser.choose(id(voter), id(primary), record.epoch, record.least_timeline()).await;
        }
        let Some(client) = self.sessions.lend(voter, Lock::Exclusive) else {
            return Outcome::Failed("its lock is not held".to_owned());
        };
        let write = record_on_witness(&client, &self.common.cluster, record);
        match tokio::time::timeout(self.common.span, write).await {
            Ok(Ok(())) => Outcome::Done,
            Ok(Err(error)) => Outcome::Failed(error.to_string()),
            Err(_) => Outcome::Failed("it did not answer".to_owned()),
        }
    }
}

/// A question on its way to a voter's task.
#[derive(Clone, Copy, Debug)]
struct Ask {
    session: u64,
    lock: Lock,
    order: bool,
}

impl Driver {
    async fn run(mut self) {
        let (inputs_tx, mut inputs) = mpsc::channel(INPUTS_MAX);
        let mut tasks = JoinSet::new();
        let mut asks = Vec::new();
        for (index, at) in self.voters.drain(..).enumerate() {
            let (tx, rx) = mpsc::channel(1);
            asks.push(tx);
            let (shared, clock) = (Arc::clone(&self.shared), self.clock.clone());
            tasks.spawn(VoterTask { index, at, shared, clock, asks: rx, inputs: inputs_tx.clone() }.run());
        }
        let mut rules = Voters::new(self.shared.rules.clone());
        let mut wake: Option<Time> = None;
        loop {
            let tick = wake.map(|at| self.clock.instant(at));
            let input = tokio::select! {
                biased;
                changed = self.claims.changed() => match changed {
                    Ok(()) => Input::Claim(*self.claims.borrow_and_update()),
                    Err(_) => return,
                },
                input = inputs.recv() => match input {
                    Some(input) => input,
                    None => return,
                },
                () = sleep_until(tick) => Input::Tick,
                ended = tasks.join_next() => panic!("a voter's task ended: {ended:?}"),
            };
            let now = self.clock.now();
            wake = None;
            for output in rules.step(input, now) {
                match output {
                    Output::Ask { voter, session, lock, order } => {
                        // One question at a time is under way, so there is room; a task that is gone has ended its session.
                        let _ = asks[voter].try_send(Ask { session, lock, order });
                    }
                    Output::WakeAt(at) => wake = Some(at),
                }
            }
            let next = rules.standing(now);
            self.standing.send_if_modified(|current| {
                let changed = *current != next;
                *current = next;
                changed
            });
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The task of one voter.
struct VoterTask {
    index: usize,
    at: VoterAt,
    shared: Arc<Shared>,
    clock: Clock,
    asks: mpsc::Receiver<Ask>,
    inputs: mpsc::Sender<Input>,
}

impl VoterTask {
    async fn run(mut self) {
        let (mut number, mut told) = (0, String::new());
        loop {
            let opened =
                tokio::time::timeout(self.shared.common.span, Session::open(&self.at, &self.shared.common)).await;
            match opened.unwrap_or_else(|_| Err(session::VoterError::Connect("it did not answer".to_owned()))) {
                Ok(session) => {
                    number += 1;
                    told.clear();
                    if !self.serve(session, number).await {
                        return;
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != told {
                        tracing::warn!(voter = %self.at.name, error = %text, "voter cannot be used");
                        told = text;
                    }
                }
            }
            tokio::time::sleep(REOPEN).await;
        }
    }

    /// Answers questions until the session ends; false when nobody asks any more.
    async fn serve(&mut self, mut session: Session, number: u64) -> bool {
        let voter = self.index;
        if self.inputs.send(Input::Opened { voter, session: number }).await.is_err() {
            return false;
        }
        loop {
            let ask = tokio::select! {
                biased;
                () = session.ended() => break,
                ask = self.asks.recv() => match ask {
                    Some(ask) => ask,
                    None => return false,
                },
            };
            if ask.session != number {
                continue;
            }
            let Some((sent_at, view)) = self.ask(&mut session, ask).await else { break };
            let input = Input::Answered { voter, session: number, sent_at, lock: session.lock, view };
            if self.inputs.send(input).await.is_err() {
                return false;
            }
        }
        self.shared.sessions.recall(voter);
        drop(session);
        self.inputs.send(Input::Closed { voter, session: number }).await.is_ok()
    }

    /// One question, within a span; `None` when the session is of no use any more.
    async fn ask(&self, session: &mut Session, ask: Ask) -> Option<(Time, View)> {
        let sessions = &self.shared.sessions;
        if ask.lock != session.lock && !sessions.recall(self.index) {
            tracing::debug!(voter = %self.at.name, "closing a session that a change still uses");
            return None;
        }
        let common = &self.shared.common;
        let sent_at = self.clock.now();
        let asked = tokio::time::timeout(common.span, session.ask(ask.lock, ask.order, common)).await;
        let (view, conninfo) = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(voter = %self.at.name, %error, "voter's session failed");
                return None;
            }
            Err(_) => return None,
        };
        sessions.put(self.index, &session.client, session.lock);
        if let Some(conninfo) = conninfo.filter(|text| !text.is_empty()) {
            let node = NodeId(u16::try_from(self.index).unwrap_or(u16::MAX));
            self.shared.chooser.seen(node, conninfo).await;
        }
        Some((sent_at, view))
    }
}
