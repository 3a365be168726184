//! Drives the failover machine: feeds it what happens, starts what it wants done, publishes what it believes.
//!
//! One task owns all control-plane state: it waits in `next_input` and changes only in `apply`. Actions
//! run as tasks with deadlines and come back as events.
//!
//! Invariants: the write permit is revoked before a snapshot is published in which its primary is another, or fenced,
//! and when this task ends for whatever reason (writes that are merely held, because the primary restarts say, leave
//! it: what it still answers counts); nothing in here waits for a node or a disk; a snapshot
//! takes freshness and lag from the same moment as the plan. Absent on purpose: decisions (the
//! machine's) and knowledge of how to ask a node (`execute`, `monitor`).

mod brain;
mod compose;
mod status;
mod thread;
mod view;

pub use compose::LagLimits;
pub use status::{BrainSummary, ClusterStatus, FailoverStatus, NodeStatus, RECENT_MAX, RecentEvent};
pub use thread::{CommandError, ControlChannel, ControlDeps, ControlHandle, ControlThread, Services, spawn};
pub use view::{CandidateStatus, HoldStatus, LeaseStatus, OutlookStatus, RightStatus, StandingStatus};

use super::action::{Action, ActionId, Level, Notice, Plan};
use super::event::{Event, Outcome};
use super::execute::SharedExecutor;
use super::hold::Hold;
use super::hooks::Hooks;
use super::machine::Outlook;
use super::standing::{Claim, Standing};
use crate::clock::{Clock, Time};
use crate::config::Config;
use crate::coordination::Store;
use crate::ids::{Epoch, NodeId};
use crate::monitor::freshness::Freshness;
use crate::monitor::{Aim, Monitor, Report};
use crate::topology::{
    Fact, FactReceiver, NodeReport, Observation, PatroniWord, ProbeFailure, Role, Sign, SignKind, Topology,
    TopologyPublisher, WriteDemand, Writes,
};
use status::Recent;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use thread::Request;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use view::HoldLog;

/// How long the store may take to keep a record; a disk that needs longer is in trouble.
pub const RECORD_LIMIT: Duration = Duration::from_secs(10);
/// Inputs handled in a row before a snapshot is composed and published.
const BATCH_MAX: usize = 64;

/// The notice kind by which the machine refuses a command.
pub const COMMAND_REFUSED: &str = "command_refused";
/// How long after a commit that nobody flushed standbys are looked at more closely: an unfinished transaction can
/// keep WAL unflushed for long, and standbys from reaching it.
const UNFLUSHED_CHASED_FOR: Duration = Duration::from_secs(2);
/// How old a status may get while only positions move.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// The decider: the failover machine, or a script in tests.
pub trait Brain: Send + 'static {
    /// One input in, outputs out, to be started in order.
    fn step(&mut self, event: Event, now: Time) -> Vec<Action>;
    /// Why it does not act; empty when nothing keeps it.
    fn holds(&self) -> Vec<Hold>;
    /// What a failover would come to now.
    fn outlook(&self) -> Outlook;
    /// Its state, for people.
    fn summary(&self) -> BrainSummary;
}

/// What the control plane counts. All methods must return at once.
pub trait ControlMetrics: Send + Sync {
    /// A probe ended; `outcome` is `ok` or the failure's label.
    fn probed(&self, node: NodeId, outcome: &'static str, took: Duration);
    /// Another session than the probe's said something.
    fn signed(&self, sign: &Sign);
    /// An action ended; `kind` is from a closed set (`record`, `promote`, a hook's name).
    fn acted(&self, kind: &'static str, succeeded: bool, took: Duration);
    /// The machine told people something; `kind` is from a closed set.
    fn noticed(&self, kind: &'static str);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMetrics;

impl ControlMetrics for NoMetrics {
    fn probed(&self, _: NodeId, _: &'static str, _: Duration) {}
    fn signed(&self, _: &Sign) {}
    fn acted(&self, _: &'static str, _: bool, _: Duration) {}
    fn noticed(&self, _: &'static str) {}
}

/// One thing that happened.
enum Input {
    Report(Report),
    Fact(Fact),
    Ended(ActionEnd),
    Tick,
    Standing,
    Request(Request),
    Stop,
}

/// How an action task ended.
struct ActionEnd {
    id: ActionId,
    kind: &'static str,
    node: Option<NodeId>,
    outcome: Outcome,
    began: Time,
}

/// The task's state.
struct Controller<B> {
    brain: B,
    config: Arc<Config>,
    clock: Clock,
    publisher: TopologyPublisher,
    facts: FactReceiver,
    demand: WriteDemand,
    facts_ended: bool,
    monitor: Monitor,
    freshness: Freshness,
    executor: SharedExecutor,
    hooks: Arc<Hooks>,
    store: Arc<dyn Store>,
    metrics: Arc<dyn ControlMetrics>,
    requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
    status: watch::Sender<Arc<ClusterStatus>>,
    actions: JoinSet<ActionEnd>,
    /// What a panicking action was, so that the machine hears of its end.
    under_way: HashMap<tokio::task::Id, (ActionId, &'static str)>,
    wake_at: Option<Time>,
    plan: Option<Plan>,
    /// The snapshot that readers have.
    published: Option<Topology>,
    /// Where this proxy stands with a store that several share.
    standing: Option<watch::Receiver<Standing>>,
    /// The primary that writes were last open to, its epoch, and its fence then.
    open_to: Option<(NodeId, Epoch, u64)>,
    /// The epoch that the permit is open for, and until when.
    permitted: Option<(Epoch, Time)>,
    reports: Vec<Option<NodeReport>>,
    failures: Vec<Option<ProbeFailure>>,
    /// What Patroni said of each node last, for people.
    words: Vec<Option<(PatroniWord, Time)>>,
    recent: Recent,
    hold_log: HoldLog,
    /// When the status was last made, and whether something worth a new one has happened since.
    status_at: Time,
    status_due: bool,
}

impl<B> Drop for Controller<B> {
    fn drop(&mut self) {
        // Nobody guards the permit from now on, be it a stop or a panic.
        self.publisher.permit().revoke();
    }
}

impl<B: Brain> Controller<B> {
    async fn run(mut self) {
        self.recall().await;
        self.show();
        loop {
            let input = self.next_input().await;
            if matches!(input, Input::Stop) {
                break;
            }
            self.apply(input);
            // What else is ready joins the same snapshot.
            for _ in 0..BATCH_MAX {
                let Some(report) = self.monitor.report_ready() else { break };
                self.apply(Input::Report(report));
            }
            self.show();
        }
        self.publisher.permit().revoke();
        self.actions.shutdown().await;
        self.monitor.stop().await;
    }

    /// Tells the machine what the store remembers, before anything else.
    async fn recall(&mut self) {
        let recalled = loop {
            match self.store.recall().await {
                Ok(recalled) => break recalled,
                Err(error) if self.standing.is_some() => {
                    // What a shared store says comes by itself as soon as it answers; until then reads go on.
                    tracing::warn!(store = self.store.name(), %error, "who is primary is not known yet");
                    break None;
                }
                Err(error) => {
                    tracing::error!(store = self.store.name(), %error, "cannot recall who is primary");
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
        };
        if let Some(promise) = self.executor.promised() {
            self.step(Event::Promised(promise));
        }
        self.step(Event::Recalled(recalled));
    }

    /// Waits for the next thing to happen. Cancel-safe. Facts come last: a storm of them must not
    /// delay what decides.
    async fn next_input(&mut self) -> Input {
        let tick = self.wake_at.map(|at| self.clock.instant(at));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Input::Stop,
            Some(ended) = self.actions.join_next_with_id(), if !self.actions.is_empty() => Self::ended(&mut self.under_way, ended),
            () = changed(&mut self.standing) => Input::Standing,
            () = sleep_until(tick) => Input::Tick,
            Some(request) = self.requests.recv() => Input::Request(request),
            report = self.monitor.report() => Input::Report(report),
            fact = self.facts.recv(), if !self.facts_ended => match fact {
                Some(fact) => Input::Fact(fact),
                None => { self.facts_ended = true; Input::Tick }
            },
        }
    }

    fn ended(
        under_way: &mut HashMap<tokio::task::Id, (ActionId, &'static str)>,
        ended: Result<(tokio::task::Id, ActionEnd), tokio::task::JoinError>,
    ) -> Input {
        match ended {
            Ok((task, end)) => {
                under_way.remove(&task);
                Input::Ended(end)
            }
            Err(error) => {
                tracing::error!(%error, "an action ended by a defect");
                let Some((id, kind)) = under_way.remove(&error.id()) else { return Input::Tick };
                let outcome = Outcome::Failed("internal error".to_owned());
                Input::Ended(ActionEnd { id, kind, node: None, outcome, began: Time::NEVER })
            }
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Report(report) => self.apply_report(report),
            Input::Fact(fact) => {
                self.step(Event::Fact(fact));
            }
            Input::Ended(end) => self.apply_end(end),
            Input::Tick => {
                if self.wake_at.is_some_and(|at| at <= self.clock.now()) {
                    self.wake_at = None;
                }
                self.step(Event::Tick);
            }
            Input::Standing => self.apply_standing(),
            Input::Request(request) => self.apply_request(request),
            Input::Stop => {}
        }
    }

    fn apply_report(&mut self, report: Report) {
        match report {
            Report::Probed { observation, took } => self.apply_observation(observation, took),
            Report::Signed(sign) => {
                self.metrics.signed(&sign);
                if let SignKind::Patroni(word) = sign.what {
                    let before = self.words[sign.node.index()].replace((word, sign.at));
                    self.status_due |= before.is_none_or(|(before, _)| before != word);
                }
                self.step(Event::Signed(sign));
            }
            Report::Sampled { node, round, sent_at, flush_lsn, insert_lsn } => {
                self.freshness.sampled(round, node, sent_at, flush_lsn, Some(insert_lsn));
            }
            Report::Replayed { node, round, replay_lsn } => self.freshness.replayed(round, node, replay_lsn),
            Report::ReplayLost { node } => {
                self.freshness.lost(node);
                self.monitor.probe_now(node);
            }
        }
    }

    fn apply_observation(&mut self, observation: Observation, took: Duration) {
        let node = observation.node;
        match &observation.outcome {
            Ok(report) => {
                self.metrics.probed(node, "ok", took);
                self.freshness.probed(node, report);
                self.reports[node.index()] = Some(report.clone());
                self.failures[node.index()] = None;
            }
            Err(failure) => {
                self.metrics.probed(node, failure.label(), took);
                // A node that is merely slow or full shows no older data than before.
                if !matches!(failure, ProbeFailure::TimedOut | ProbeFailure::TooManyConnections) {
                    self.freshness.lost(node);
                }
                if self.failures[node.index()].as_ref() != Some(failure) {
                    tracing::info!(node = %self.config.nodes[node.index()].name, ?failure, "probe failed");
                }
                self.failures[node.index()] = Some(failure.clone());
            }
        }
        self.step(Event::Observed(observation));
    }

    fn apply_end(&mut self, end: ActionEnd) {
        let took = self.clock.now().since(end.began);
        let succeeded = !matches!(end.outcome, Outcome::Failed(_));
        self.metrics.acted(end.kind, succeeded, took);
        self.recent.action(end.kind, end.node, &end.outcome, took, self.clock.now());
        match &end.outcome {
            Outcome::Failed(why) => {
                tracing::warn!(action = end.kind, node = end.node.map(|n| &*self.config.nodes[n.index()].name), %why, "action failed");
            }
            _ => tracing::info!(
                action = end.kind,
                node = end.node.map(|n| &*self.config.nodes[n.index()].name),
                took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                "action done"
            ),
        }
        if let Some(node) = end.node {
            // What it changed shall be seen at once.
            self.monitor.probe_now(node);
        }
        self.step(Event::ActionDone { id: end.id, outcome: end.outcome });
    }

    fn apply_request(&mut self, request: Request) {
        let notices = self.step(Event::Command(request.command));
        let refused = notices.iter().any(|notice| notice.kind == COMMAND_REFUSED);
        let text = notices.into_iter().map(|notice| notice.text).collect::<Vec<_>>().join("; ");
        let answer = match (refused, text.is_empty()) {
            (true, _) => Err(CommandError::Refused(text)),
            (false, true) => Ok("accepted".to_owned()),
            (false, false) => Ok(text),
        };
        // Whoever asked may be gone.
        let _ = request.reply.send(answer);
    }

    /// Feeds the machine and starts what it wants; returns what it told people.
    fn step(&mut self, event: Event) -> Vec<Notice> {
        let mut notices = Vec::new();

        let actions = self.brain.step(event, self.clock.now());
        self.status_due |= !actions.is_empty();
        for action in actions {
            match action {
                Action::Publish(plan) => self.publish(plan),
                Action::Claim(claim) => self.claim(claim),
                Action::Keep(promise) => drop(tokio::spawn(self.executor.keep(promise))),
                Action::ProbeNow(node) => self.monitor.probe_now(node),
                Action::WakeAt(at) => self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at))),
                Action::Tell(notice) => {
                    self.tell(&notice);
                    notices.push(notice);
                }
                other => self.start(other),
            }
        }
        notices
    }

    fn tell(&mut self, notice: &Notice) {
        let node = notice.node.map(|n| &*self.config.nodes[n.index()].name);
        match notice.level {
            Level::Info => tracing::info!(kind = notice.kind, node, "{}", notice.text),
            Level::Warn => tracing::warn!(kind = notice.kind, node, "{}", notice.text),
            Level::Error => tracing::error!(kind = notice.kind, node, "{}", notice.text),
        }
        self.metrics.noticed(notice.kind);
        self.recent.notice(notice, self.clock.now());
    }

    /// Starts an action as a task of its own.
    fn start(&mut self, action: Action) {
        let executor = Arc::clone(&self.executor);
        match action {
            Action::Record(id, record) => {
                let store = Arc::clone(&self.store);
                self.spawn(id, "record", None, async move {
                    match tokio::time::timeout(RECORD_LIMIT, store.record(record)).await {
                        Ok(Ok(())) => Outcome::Done,
                        Ok(Err(error)) => Outcome::Failed(error.to_string()),
                        Err(_) => Outcome::Failed(format!("not recorded within {} s", RECORD_LIMIT.as_secs())),
                    }
                });
            }
            Action::Detach(id, node, epoch) => {
                self.spawn(id, "detach", Some(node), async move { executor.detach(node, epoch).await });
            }
            Action::Promote(id, node, epoch) => {
                self.spawn(id, "promote", Some(node), async move { executor.promote(node, epoch).await });
            }
            Action::Reconnect { id, node, epoch } => {
                self.spawn(id, "reconnect", Some(node), async move { executor.reconnect(node, epoch).await });
            }
            Action::Repoint { id, node, upstream, epoch, timeline } => {
                let work = async move { executor.repoint(node, upstream, epoch, timeline).await };
                self.spawn(id, "repoint", Some(node), work);
            }
            Action::Hook(id, call) => {
                let hooks = Arc::clone(&self.hooks);
                self.spawn(id, call.kind.word(), Some(call.node), async move { hooks.run(call).await });
            }
            Action::NameSync { id, node, names, epoch } => {
                self.spawn(id, "name_sync", Some(node), async move { executor.name_sync(node, &names, epoch).await });
            }
            Action::FenceSql { id, node, epoch, on } => {
                let kind = if on { "fence_sql" } else { "unfence_sql" };
                self.spawn(id, kind, Some(node), async move { executor.fence_sql(node, epoch, on).await });
            }
            Action::Publish(_)
            | Action::Claim(_)
            | Action::Keep(_)
            | Action::ProbeNow(_)
            | Action::WakeAt(_)
            | Action::Tell(_) => {}
        }
    }

    fn spawn(
        &mut self,
        id: ActionId,
        kind: &'static str,
        node: Option<NodeId>,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let began = self.clock.now();
        let task = self.actions.spawn(async move {
            let outcome = work.await;
            ActionEnd { id, kind, node, outcome, began }
        });
        self.under_way.insert(task.id(), (id, kind));
    }

    /// Takes over a plan: permit first where it closes, aims of the samplers, then the snapshot.
    fn publish(&mut self, plan: Plan) {
        self.permit(&plan);
        let assigned = plan.nodes.iter().position(|node| node.role == Role::Primary);
        let primary = plan.primary.or(assigned.map(|index| NodeId(u16::try_from(index).unwrap_or(u16::MAX))));
        let round = self.freshness.round();
        self.freshness.follow(plan.epoch, primary);
        if self.freshness.round() != round {
            // Everything must be proven anew; without this that would wait for the next interval.
            for index in 0..plan.nodes.len() {
                self.monitor.probe_now(NodeId(u16::try_from(index).unwrap_or(u16::MAX)));
            }
        }
        self.plan = Some(plan);
        // Roles must be out before the next input is looked at: sessions wait for them.
        self.publish_snapshot();
    }

    /// Claims something else of the store. Nothing is believed any more under a lease that is let go, before any voter
    /// hears of it: another proxy may change the primary from then on.
    fn claim(&mut self, claim: Claim) {
        if claim != Claim::Route {
            (self.open_to, self.permitted) = (None, None);
            self.publisher.permit().revoke();
        }
        self.store.claim(claim);
    }

    /// Brings the permit in line with a plan and with the lease, where one is needed.
    fn permit(&mut self, plan: &Plan) {
        let fence = |node: NodeId| plan.nodes.get(node.index()).map_or(0, |node| node.fence);
        self.open_to = match plan.primary.filter(|_| plan.writes == Writes::Open) {
            Some(primary) => Some((primary, plan.epoch, fence(primary))),
            // Held, but not given up: it restarts, say, and what it answers until it is gone still counts.
            None => self.open_to.filter(|(node, epoch, at)| *epoch == plan.epoch && *at == fence(*node)),
        };
        let until = self.open_to.and_then(|(primary, epoch, _)| Some((epoch, self.leased(primary, epoch)?)));
        if until != self.permitted {
            match until {
                Some((epoch, until)) => self.publisher.permit().extend(epoch, until),
                None => self.publisher.permit().revoke(),
            }
            self.permitted = until;
        }
    }

    /// Until when writes of this epoch may go to this primary.
    fn leased(&self, primary: NodeId, epoch: Epoch) -> Option<Time> {
        let Some(standing) = &self.standing else { return Some(Time::NEVER) };
        let standing = standing.borrow();
        let lease = standing.lease.as_ref().filter(|_| !standing.ordered)?;
        (lease.epoch == epoch && *lease.primary == *self.config.nodes[primary.index()].name).then_some(lease.until)
    }

    /// The store said something new: the machine hears of it, and the permit follows the lease at once.
    fn apply_standing(&mut self) {
        let Some(standing) = self.standing.as_mut() else { return };
        let standing = standing.borrow_and_update().clone();
        self.step(Event::Standing(standing));
        if let Some(plan) = self.plan.take() {
            self.permit(&plan);
            self.plan = Some(plan);
        }
    }

    fn publish_snapshot(&mut self) {
        let Some(plan) = self.plan.as_ref() else { return };
        let limits = LagLimits::from_config(&self.config.route);
        let next =
            compose::topology(&self.config.nodes, plan, &self.reports, &self.freshness, limits, self.clock.now());
        if self.published.as_ref() != Some(&next) {
            self.publisher.publish(next.clone());
            self.published = Some(next);
        }
    }

    /// Brings snapshot, aims and status up to date.
    fn show(&mut self) {
        let Some(plan) = self.plan.as_ref() else { return };
        let unflushed = self.demand.floor().lazy;
        let chased = unflushed > Time::ZERO && self.clock.now().since(unflushed) < UNFLUSHED_CHASED_FOR;
        self.monitor.set_aim(Aim {
            round: self.freshness.round(),
            primary: plan.primary,
            standbys: plan.nodes.iter().map(|node| node.role == Role::Standby).collect(),
            goal: self.freshness.goal(chased),
        });
        self.publish_snapshot();
        let now = self.clock.now();
        if self.status_due || now.since(self.status_at) >= STATUS_INTERVAL {
            (self.status_due, self.status_at) = (false, now);
            let status = self.compose_status();
            self.hold_log.note(&status.holds);
            self.status.send_replace(Arc::new(status));
        }
    }
}

async fn changed(standing: &mut Option<watch::Receiver<Standing>>) {
    let Some(standing) = standing else { return std::future::pending().await };
    if standing.changed().await.is_err() {
        // The store has stopped; what it said last runs out by itself.
        std::future::pending::<()>().await;
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
