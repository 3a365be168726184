//! What people and scrapers may see of the control plane.
//!
//! Invariants: a status is one consistent picture, taken when something happened; the list of recent
//! events is bounded; no connection string, password or client data is in it. Absent on purpose:
//! wall-clock times (ages instead).

use super::view::{CandidateStatus, HoldStatus, OutlookStatus, StandingStatus};
use super::{Brain, Controller};
use crate::clock::Time;
use crate::failover::action::{Level, Notice};
use crate::failover::event::Outcome;
use crate::failover::machine::Outlook;
use crate::ids::{Epoch, NodeId, SystemId, TimelineId};
use crate::topology::{NodeView, Role, Writes};
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;

/// Recent events kept.
pub const RECENT_MAX: usize = 64;

/// The cluster as the control plane sees it; `/api/v1/failover` is this as JSON, and `/api/v1/cluster` has it as
/// `control`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// When it was taken: ages and times left in it are as of then ([`ClusterStatus::at`]).
    #[serde(skip)]
    pub taken_at: Time,
    /// `[cluster] name`.
    pub cluster: String,
    /// Who-is-primary number.
    pub epoch: Epoch,
    /// Name of the primary that writes may reach.
    pub primary: Option<String>,
    /// `open`, `held` or `refused`.
    pub writes: &'static str,
    /// Why writes do not flow.
    pub writes_why: Option<String>,
    /// What the machine says about itself.
    pub failover: BrainSummary,
    /// Why it does not act.
    pub holds: Vec<HoldStatus>,
    /// What a failover would come to now.
    pub outlook: OutlookStatus,
    /// Where the right to change the primary is kept.
    pub coordination: &'static str,
    /// Where this proxy stands with a store that several share; `None` with one of its own.
    pub standing: Option<StandingStatus>,
    /// All nodes, in configuration order.
    pub nodes: Vec<NodeStatus>,
    /// What happened last, oldest first.
    pub recent: Vec<RecentEvent>,
}

/// The machine about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BrainSummary {
    /// Its state, one word.
    pub state: &'static str,
    /// Who promotes: `automatic`, `manual` or `follow`.
    pub mode: &'static str,
    /// An operator said pause.
    pub paused: bool,
    /// The primary's timeline.
    pub timeline: Option<TimelineId>,
    /// Cluster identity; a text, since it does not fit a JSON number.
    pub system_id: Option<String>,
    /// Failovers carried out since the start.
    pub failovers: u64,
    /// The last of them; how long its steps took is in [`ClusterStatus::recent`].
    pub last_failover: Option<FailoverStatus>,
}

/// One failover that was carried out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailoverStatus {
    /// Name of the primary before.
    pub from: Option<String>,
    /// Name of the primary after.
    pub to: String,
    /// The new epoch.
    pub epoch: Epoch,
    /// Why.
    pub cause: String,
    /// From giving up the old primary to writes flowing again, ms.
    pub took_ms: u64,
    /// When writes flowed again.
    #[serde(skip)]
    pub done_at: Time,
    /// How long ago that was, ms.
    pub age_ms: u64,
    /// WAL seen somewhere that the new primary lacked, bytes.
    pub missing_bytes: u64,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeStatus {
    /// Configured name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Assigned role.
    pub role: &'static str,
    /// Observed role (`primary` or `standby`), once probed.
    pub observed_role: Option<&'static str>,
    /// Health.
    pub health: &'static str,
    /// May take reads.
    pub accepts_reads: bool,
    /// Label of the last probe's failure; `None` after a good one.
    pub probe_failure: Option<&'static str>,
    /// What the node said when it rejected the monitor.
    pub rejected: Option<String>,
    /// Age of the last good probe, ms.
    pub report_age_ms: Option<u64>,
    /// Cluster identity; a text, since it does not fit a JSON number.
    pub system_id: Option<String>,
    /// Timeline last observed.
    pub timeline: Option<TimelineId>,
    /// Where its WAL comes from, where known: `1@0/3000060 2` left timeline 1 at 0/3000060.
    pub history: Option<String>,
    /// Position: flushed on the primary, received on a standby (at the last probe).
    pub flush_lsn: Option<String>,
    /// Position: inserted on the primary, replayed on a standby (at the last probe).
    pub replay_lsn: Option<String>,
    /// Replay is paused by an operator.
    pub replay_paused: bool,
    /// WAL bytes not replayed, where known.
    pub lag_bytes: Option<u64>,
    /// Time behind, ms, where known.
    pub replay_lag_ms: Option<u64>,
    /// `host:port` a standby streams from.
    pub upstream: Option<String>,
    /// The receiver is streaming.
    pub streaming: bool,
    /// How long ago the moment was as of which all acknowledged writes are visible here, ms;
    /// `None` on the primary and where nothing is proven.
    pub fresh_as_of_age_ms: Option<u64>,
    /// `server_version_num`.
    pub version_num: Option<u32>,
    /// What Patroni says of it: `leader`, `member` or `unknown`; `None` if it is not asked.
    pub patroni: Option<&'static str>,
    /// The same for people, with the reason where it is unknown.
    pub patroni_text: Option<&'static str>,
    /// How long ago that was, ms.
    pub patroni_age_ms: Option<u64>,
    /// Why the node is not used.
    pub note: Option<String>,
    /// What is believed of it, and whether it could be promoted.
    pub candidate: Option<CandidateStatus>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecentEvent {
    /// Seconds since this process started.
    pub at_s: f64,
    /// How long ago when the status was taken, ms.
    pub age_ms: u64,
    /// `info`, `warn` or `error`.
    pub level: &'static str,
    /// From a closed set: a notice's kind, or the kind of action.
    pub kind: &'static str,
    /// The node it is about.
    pub node: Option<String>,
    /// One sentence.
    pub text: String,
    /// How long an action took, ms.
    pub took_ms: Option<f64>,
}

/// The bounded list behind [`ClusterStatus::recent`].
#[derive(Debug, Default)]
pub(super) struct Recent {
    events: VecDeque<(Time, Option<NodeId>, RecentEvent)>,
}

impl Recent {
    pub(super) fn notice(&mut self, notice: &Notice, now: Time) {
        let level = match notice.level {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        self.keep(level, notice.kind, notice.node, notice.text.clone(), None, now);
    }

    pub(super) fn action(
        &mut self,
        kind: &'static str,
        node: Option<NodeId>,
        outcome: &Outcome,
        took: Duration,
        now: Time,
    ) {
        let (level, text) = match outcome {
            Outcome::Done => ("info", "done".to_owned()),
            Outcome::Detached { flush_lsn, replay_lsn } => {
                ("info", format!("detached, received {flush_lsn}, replayed {replay_lsn}"))
            }
            Outcome::Failed(why) => ("warn", why.clone()),
        };
        self.keep(level, kind, node, text, Some(took.as_secs_f64() * 1000.0), now);
    }

    fn keep(
        &mut self,
        level: &'static str,
        kind: &'static str,
        node: Option<NodeId>,
        text: String,
        took_ms: Option<f64>,
        now: Time,
    ) {
        if self.events.len() == RECENT_MAX {
            self.events.pop_front();
        }
        let at_s = now.since(Time::ZERO).as_secs_f64();
        self.events.push_back((now, node, RecentEvent { at_s, age_ms: 0, level, kind, node: None, text, took_ms }));
    }

    fn list(&self, now: Time, name: impl Fn(NodeId) -> Option<String>) -> Vec<RecentEvent> {
        let dated = self.events.iter().map(|(at, node, event)| RecentEvent {
            age_ms: millis(now.since(*at)),
            node: node.and_then(&name),
            ..event.clone()
        });
        dated.collect()
    }
}

impl ClusterStatus {
    /// The same picture with ages and times left as of `now`.
    #[must_use]
    pub fn at(&self, now: Time) -> Self {
        let span = now.since(self.taken_at);
        let mut status = Self { taken_at: now.max(self.taken_at), ..self.clone() };
        status.failover.last_failover.iter_mut().for_each(|last| older(&mut last.age_ms, span));
        status.outlook.age(span);
        status.standing.iter_mut().for_each(|standing| standing.age(span));
        for node in &mut status.nodes {
            node.patroni_age_ms.iter_mut().for_each(|age| older(age, span));
            node.report_age_ms.iter_mut().for_each(|age| older(age, span));
            node.fresh_as_of_age_ms.iter_mut().for_each(|age| older(age, span));
            node.candidate.iter_mut().for_each(|candidate| candidate.age(span));
        }
        status.recent.iter_mut().for_each(|event| older(&mut event.age_ms, span));
        status
    }
}

impl<B: Brain> Controller<B> {
    /// The picture as of now.
    pub(super) fn compose_status(&self) -> ClusterStatus {
        let now = self.clock.now();
        let Some(snapshot) = self.published.as_ref() else { return ClusterStatus::default() };
        let outlook = self.brain.outlook();
        let standing = self.standing.as_ref().map(|standing| StandingStatus::new(&standing.borrow(), now));
        let mut failover = self.brain.summary();
        failover.last_failover.iter_mut().for_each(|last| last.age_ms = millis(now.since(last.done_at)));
        let name = |id: NodeId| self.config.nodes.get(id.index()).map(|node| node.name.to_string());
        let (writes, writes_why) = match &snapshot.writes {
            Writes::Open => ("open", None),
            Writes::Held { why } => ("held", Some(why.to_string())),
            Writes::Refused { why } => ("refused", Some(why.to_string())),
        };
        ClusterStatus {
            taken_at: now,
            cluster: self.config.cluster.name.clone(),
            epoch: snapshot.epoch,
            primary: snapshot.primary.and_then(name),
            writes,
            writes_why,
            failover,
            holds: self.brain.holds().iter().map(HoldStatus::from).collect(),
            outlook: OutlookStatus::from(&outlook),
            coordination: self.store.name(),
            standing,
            nodes: snapshot.nodes.iter().map(|view| self.node_status(view, &outlook, now)).collect(),
            recent: self.recent.list(now, name),
        }
    }

    fn node_status(&self, view: &NodeView, outlook: &Outlook, now: Time) -> NodeStatus {
        let at = view.id.index();
        let config = &self.config.nodes[at];
        let report = self.reports[at].as_ref();
        let failure = self.failures[at].as_ref();
        let receiver = report.and_then(|report| report.receiver.as_ref());
        let proven = view.role == Role::Standby && view.fresh_as_of > Time::ZERO;
        NodeStatus {
            name: view.name.to_string(),
            address: format!("{}:{}", config.host, config.port),
            role: view.role.word(),
            observed_role: report.map(|report| if report.in_recovery { "standby" } else { "primary" }),
            health: view.health.word(),
            accepts_reads: view.accepts_reads,
            probe_failure: failure.map(crate::topology::ProbeFailure::label),
            rejected: match failure {
                Some(crate::topology::ProbeFailure::Rejected(text)) => Some(text.clone()),
                _ => None,
            },
            report_age_ms: report.map(|report| millis(now.since(report.sent_at))),
            system_id: report.map(|report| SystemId::to_string(&report.system_id)),
            timeline: view.timeline,
            history: report.and_then(|report| report.ancestry.known()).map(|history| history.to_string()),
            flush_lsn: report.map(|report| report.flush_lsn.to_string()),
            replay_lsn: report.map(|report| report.replay_lsn.to_string()),
            replay_paused: report.is_some_and(|report| report.replay_paused),
            lag_bytes: view.lag_bytes,
            replay_lag_ms: view.replay_lag.map(millis),
            upstream: receiver.map(|receiver| receiver.upstream.clone()),
            streaming: receiver.is_some_and(|receiver| receiver.streaming),
            fresh_as_of_age_ms: proven.then(|| millis(now.since(view.fresh_as_of))),
            version_num: report.map(|report| report.version_num),
            patroni: self.words[at].map(|(word, _)| word.word()),
            patroni_text: self.words[at].map(|(word, _)| word.text()),
            patroni_age_ms: self.words[at].map(|(_, said)| millis(now.since(said))),
            note: view.note.as_deref().map(str::to_owned),
            candidate: outlook.nodes.get(at).map(|node| CandidateStatus::new(node, now)),
        }
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// An age, that much later.
pub(super) fn older(age_ms: &mut u64, span: Duration) {
    *age_ms = age_ms.saturating_add(millis(span));
}

/// A time left, that much later.
pub(super) fn sooner(left_ms: &mut u64, span: Duration) {
    *left_ms = left_ms.saturating_sub(millis(span));
}

#[cfg(test)]
mod tests {
    use super::super::view::RightStatus;
    use super::*;
    use crate::failover::standing::Standing;

    #[test]
    fn recent_events_are_bounded_and_dated() {
        let mut recent = Recent::default();
        for n in 0..RECENT_MAX as u64 + 5 {
            let notice = Notice { level: Level::Warn, kind: "test", node: Some(NodeId(0)), text: n.to_string() };
            recent.notice(&notice, Time::from_nanos(n * 1_000_000));
        }
        let list = recent.list(Time::from_nanos(1_000_000_000), |_| Some("pg1".into()));
        assert_eq!(list.len(), RECENT_MAX);
        assert_eq!((list[0].text.as_str(), list[0].age_ms, list[0].node.as_deref()), ("5", 995, Some("pg1")));
    }
    #[test]
    fn a_status_is_shown_as_of_later() {
        let mut recent = Recent::default();
        let notice = Notice { level: Level::Info, kind: "test", node: None, text: String::new() };
        recent.notice(&notice, Time::from_nanos(0));
        let taken_at = Time::from_nanos(2_000_000_000);
        let left = |left_ms| Some(RightStatus { left_ms, nodes: None });
        let standing = StandingStatus { right: left(900), ..StandingStatus::new(&Standing::default(), taken_at) };
        let status = ClusterStatus {
            taken_at,
            recent: recent.list(taken_at, |_| None),
            standing: Some(standing),
            ..ClusterStatus::default()
        };
        let later = status.at(taken_at + Duration::from_millis(700));
        assert_eq!((later.recent[0].age_ms, &later.standing.as_ref().unwrap().right), (2_700, &left(200)));
        let much_later = status.at(taken_at + Duration::from_secs(700));
        assert_eq!(much_later.standing.unwrap().right, left(0));
    }
}
