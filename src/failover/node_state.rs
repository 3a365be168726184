//! What the machine believes of one node: health by fall and rise counts and by hard evidence.
//!
//! Invariants: an outcome that shows life (a report, 53300, a refused login) never counts towards
//! down; a node leaves `Down` only after `rise` reports in a row. Absent on purpose: roles, and any
//! look at other nodes.

use super::action::ActionId;
use super::ailment::Vitals;
use super::machine::Reconnect;
use super::policy::{HARD_OUTCOMES, Policy};
use crate::clock::Time;
use crate::ids::{SystemId, TimelineId};
use crate::topology::{Ancestry, Health, NodeReport, Observation, PatroniWord, ProbeFailure, Sign};
use std::time::Duration;

/// What the latest outcome said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// No outcome yet.
    Unprobed,
    /// The latest probe brought a report.
    Answering,
    /// Alive, but it refused the monitor.
    Busy,
    /// No answer in time, but another session heard from it meanwhile.
    Slow,
    /// 57P03: it will come back by itself.
    Starting,
    /// 57P03 or 57P01: it is going down.
    Stopping,
    /// No life: `misses` outcomes in a row, the last `hard` of them with hard evidence.
    Failing { misses: u32, hard: u32, refused: bool },
}

/// Why a node may be called down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Nothing listens.
    Refused,
    /// No answer, `fall` times in a row.
    Silent,
    /// Starting or stopping for longer than a primary is waited for.
    Overdue,
}

/// Why a node that answers is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quarantine {
    /// Another cluster's node.
    OtherSystem(SystemId),
    /// Out of recovery on a timeline older than the primary's.
    OlderPrimary(TimelineId),
    /// Its history is not the recorded primary's.
    OtherLine(TimelineId),
    /// Out of recovery although we did not promote it.
    SecondPrimary(TimelineId),
}

impl Quarantine {
    /// Whether a node out of recovery is quarantined for that.
    pub(super) fn was_primary(self) -> bool {
        matches!(self, Self::OlderPrimary(_) | Self::OtherLine(_) | Self::SecondPrimary(_))
    }
}

/// Attempts to give a standby another upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Repoints {
    /// When the last one was asked for.
    pub last: Option<Time>,
    /// How many since it last streamed.
    pub count: u32,
    /// The one under way.
    pub under_way: Option<ActionId>,
}

/// A promotion that we asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Promotion {
    asked_at: Time,
    /// The node's life after that, as far as it was seen.
    incarnation: Option<i64>,
    /// Another node was primary since.
    pub passed_over: bool,
}

impl Promotion {
    pub fn asked(now: Time) -> Self {
        Self { asked_at: now, incarnation: None, passed_over: false }
    }

    /// What is left of it after this report: a node that has restarted in recovery has forgotten that it was asked. What was
    /// known of it before may be older than its present life, and until the order is given up it may still arrive.
    fn after(self, report: &NodeReport, policy: &Policy) -> Option<Self> {
        if report.sent_at <= self.asked_at + policy.promote_timeout {
            return Some(self);
        }
        let same = self.incarnation.is_none_or(|seen| seen == report.incarnation);
        (same || !report.in_recovery).then_some(Self { incarnation: Some(report.incarnation), ..self })
    }
}

/// Whether a former primary was made read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SqlFence {
    #[default]
    None,
    /// Asked for, or asked to be taken back.
    Asked {
        id: ActionId,
        on: bool,
    },
    On,
    /// The last attempt to set it, or to take it back, failed.
    Failed {
        on: bool,
    },
}

/// What Patroni said of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// What.
    pub what: PatroniWord,
    /// When it was asked.
    pub asked_at: Time,
    /// When it answered.
    pub at: Time,
}

/// One node.
#[derive(Clone, Debug)]
pub(super) struct NodeState {
    pub health: Health,
    pub condition: Condition,
    /// The first outcome without a report since the last report (or since 53300 and the like).
    pub trouble_since: Option<Time>,
    /// When `trouble_since` first became evidence enough to call the node down.
    pub evidence_at: Option<Time>,
    hits: u32,
    /// The last report, however old.
    pub report: Option<NodeReport>,
    /// When it arrived.
    pub report_at: Time,
    /// The highest timeline seen in this incarnation: a standby without a receiver reports the
    /// timeline of its last restart point, which may be older than what it has replayed.
    pub timeline: Option<TimelineId>,
    /// The history of that timeline.
    pub ancestry: Ancestry,
    /// Reports in a row in which it was out of recovery on one timeline, and when the first of them came.
    pub claims: u32,
    pub claims_since: Time,
    /// The last word of Patroni about it that counts.
    pub word: Option<Word>,
    /// Since when its receiver has not been streaming.
    pub unstreamed_since: Option<Time>,
    /// We asked it to stop streaming and have not seen it stream since.
    pub detached: bool,
    /// We asked for its promotion, and that may still take effect or has.
    pub promotion: Option<Promotion>,
    /// When its promotion last failed.
    pub promote_failed_at: Option<Time>,
    /// When `before_promotion` last spoke against it.
    pub vetoed_at: Option<Time>,
    /// It was primary and has not streamed as a standby since.
    pub former: bool,
    pub sql_fence: SqlFence,
    /// When it was last asked for, or answered.
    pub sql_fence_at: Option<Time>,
    /// A failure of it was told.
    pub sql_fence_told: bool,
    /// That it is read-only, and not by us, was told.
    pub read_only_told: bool,
    /// An operator works on it.
    pub maintenance: bool,
    pub quarantine: Option<Quarantine>,
    pub fence: u64,
    pub repoints: Repoints,
    /// What sessions other than the probe's say.
    pub vitals: Vitals,
    /// How long it is waited for while it restarts; `None`: for `primary_start_timeout`.
    pub restart_limit: Option<Duration>,
    /// The last time that its receiver was told to connect anew.
    pub reconnect: Option<Reconnect>,
    /// A `ProbeNow` wanted from this time on.
    pub probe_due: Option<Time>,
    /// When the last `ProbeNow` was asked for.
    pub probe_asked: Option<Time>,
}

impl NodeState {
    pub(super) fn new() -> Self {
        Self {
            health: Health::Unknown,
            condition: Condition::Unprobed,
            trouble_since: None,
            evidence_at: None,
            hits: 0,
            report: None,
            report_at: Time::ZERO,
            timeline: None,
            ancestry: Ancestry::Unknown,
            claims: 0,
            claims_since: Time::ZERO,
            word: None,
            unstreamed_since: None,
            detached: false,
            promotion: None,
            promote_failed_at: None,
            vetoed_at: None,
            former: false,
            sql_fence: SqlFence::None,
            sql_fence_at: None,
            sql_fence_told: false,
            read_only_told: false,
            maintenance: false,
            quarantine: None,
            fence: 0,
            repoints: Repoints::default(),
            vitals: Vitals::default(),
            reconnect: None,
            restart_limit: None,
            probe_due: None,
            probe_asked: None,
        }
    }

    /// Takes a probe's outcome in; health moves, except into `Down`.
    pub(super) fn observe(&mut self, observation: &Observation, policy: &Policy) {
        match &observation.outcome {
            Ok(report) => self.answered(report, observation.at, policy),
            Err(ProbeFailure::Starved) => return,
            Err(ProbeFailure::TimedOut | ProbeFailure::Unreachable) if self.vitals.alive_at > observation.began => {
                self.slow();
            }
            Err(failure) => self.missed(failure, observation.at),
        }
        if self.evidence(policy, observation.at).is_none() {
            self.evidence_at = None;
        } else if self.evidence_at.is_none() {
            self.evidence_at = Some(observation.at);
        }
    }

    fn answered(&mut self, report: &NodeReport, at: Time, policy: &Policy) {
        self.condition = Condition::Answering;
        self.vitals.heard(at);
        self.trouble_since = None;
        self.hits = self.hits.saturating_add(1);
        if self.health != Health::Down || self.hits >= policy.rise {
            self.health = Health::Healthy;
        }
        let same_run = self.report.as_ref().is_some_and(|old| old.incarnation == report.incarnation);
        let before = self.timeline.filter(|_| same_run);
        if before.is_none_or(|before| before < report.timeline) {
            (self.timeline, self.ancestry) = (Some(report.timeline), report.ancestry.clone());
        } else if before == Some(report.timeline)
            && (report.ancestry.known().is_some() || self.ancestry.known().is_none())
        {
            self.ancestry = report.ancestry.clone();
        }
        self.promotion = self.promotion.and_then(|asked| asked.after(report, policy));
        self.count_claim(report, at);
        let streaming = !report.in_recovery || report.receiver.as_ref().is_some_and(|r| r.streaming);
        self.unstreamed_since = if streaming { None } else { self.unstreamed_since.or(Some(at)) };
        self.report = Some(report.clone());
        self.report_at = at;
    }

    fn count_claim(&mut self, report: &NodeReport, at: Time) {
        let run = |r: &NodeReport| (r.in_recovery, r.timeline, r.incarnation);
        let same = self.report.as_ref().is_some_and(|old| run(old) == run(report));
        self.claims = match (report.in_recovery, same) {
            (true, _) => 0,
            (false, true) => self.claims.saturating_add(1),
            (false, false) => 1,
        };
        if self.claims == 1 {
            self.claims_since = at;
        }
    }

    /// Takes Patroni's word. That it does not answer takes back a yes, but no no: both lead to more caution.
    pub(super) fn told(&mut self, what: PatroniWord, sign: &Sign) {
        self.word = match (what, self.word) {
            (PatroniWord::Unknown(_), Some(Word { what: PatroniWord::Member, .. })) => self.word,
            (PatroniWord::Unknown(_), _) => None,
            (PatroniWord::Primary | PatroniWord::Member, _) => Some(Word { what, asked_at: sign.began, at: sign.at }),
        };
    }

    /// No answer in time, but the node was heard elsewhere while the probe waited: silence has not begun yet.
    fn slow(&mut self) {
        self.condition = Condition::Slow;
        self.hits = 0;
        self.trouble_since = None;
    }

    fn missed(&mut self, failure: &ProbeFailure, at: Time) {
        self.hits = 0;
        self.claims = 0;
        let (misses, hard) = match self.condition {
            Condition::Failing { misses, hard, .. } => (misses, hard),
            // 57P03 while shutting down announces the refused connect.
            Condition::Stopping => (0, 1),
            _ => (0, 0),
        };
        let failing = |hard, refused| Condition::Failing { misses: misses.saturating_add(1), hard, refused };
        self.condition = match failure {
            ProbeFailure::Refused => failing(hard.saturating_add(1), true),
            ProbeFailure::SessionLost => failing(hard.saturating_add(1), false),
            ProbeFailure::TimedOut | ProbeFailure::Unreachable => failing(0, false),
            ProbeFailure::StartingUp => Condition::Starting,
            ProbeFailure::ShuttingDown => Condition::Stopping,
            ProbeFailure::TooManyConnections | ProbeFailure::Rejected(_) => Condition::Busy,
            ProbeFailure::Starved => self.condition,
        };
        if self.condition == Condition::Busy {
            self.vitals.heard(at);
            self.trouble_since = None;
            self.health = match self.health {
                Health::Suspect | Health::Healthy if self.report.is_some() => Health::Healthy,
                _ => Health::Suspect,
            };
            return;
        }
        self.trouble_since.get_or_insert(at);
        if self.health == Health::Healthy {
            self.health = Health::Suspect;
        }
    }

    /// Whether what was seen is enough to call the node down.
    pub(super) fn evidence(&self, policy: &Policy, now: Time) -> Option<Evidence> {
        match self.condition {
            Condition::Failing { hard, refused: true, .. } if hard >= HARD_OUTCOMES => Some(Evidence::Refused),
            Condition::Failing { misses, refused: true, .. } if misses >= policy.fall => Some(Evidence::Refused),
            Condition::Failing { misses, .. } if misses >= policy.fall => Some(Evidence::Silent),
            Condition::Starting | Condition::Stopping => {
                let since = self.trouble_since.unwrap_or(now);
                let limit = self.restart_limit.unwrap_or(policy.primary_start_timeout);
                (now.since(since) >= limit).then_some(Evidence::Overdue)
            }
            _ => None,
        }
    }

    /// Calls the node down and cuts its backends. Idempotent.
    pub(super) fn mark_down(&mut self) {
        if self.health != Health::Down {
            self.health = Health::Down;
            self.hits = 0;
            self.fence += 1;
        }
    }

    /// The report, if the latest outcome was one.
    pub(super) fn live_report(&self) -> Option<&NodeReport> {
        self.report.as_ref().filter(|_| self.condition == Condition::Answering)
    }

    /// Whether the latest outcome is evidence that no new backend can be opened.
    pub(super) fn refuses(&self) -> bool {
        matches!(self.condition, Condition::Failing { refused: true, .. })
    }

    /// Starting or stopping.
    pub(super) fn restarting(&self) -> bool {
        matches!(self.condition, Condition::Starting | Condition::Stopping)
    }

    /// Enough was seen to say what the node is (or that it is not there).
    pub(super) fn classified(&self) -> bool {
        self.report.is_some() || self.health == Health::Down
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FailoverMode;
    use crate::failover::policy::AilingPolicy;
    use crate::ids::{Lsn, NodeId};

    fn policy() -> Policy {
        Policy {
            mode: FailoverMode::Automatic,
            nodes: Vec::new(),
            fall: 3,
            rise: 2,
            min_gap: Duration::ZERO,
            max_per_hour: 3,
            primary_start_timeout: Duration::from_secs(30),
            lag_bytes_max: 0,
            promote_timeout: Duration::ZERO,
            ailing: AilingPolicy::default(),
            means: Default::default(),
        }
    }

    fn report() -> NodeReport {
        NodeReport {
            sent_at: Time::ZERO,
            system_id: SystemId(1),
            in_recovery: true,
            timeline: TimelineId(2),
            flush_lsn: Lsn(1),
            replay_lsn: Lsn(1),
            replay_paused: false,
            receiver: None,
            incarnation: 1,
            redo_lsn: Lsn(0),
            version_num: 150_000,
            ..NodeReport::default()
        }
    }

    fn after(failures: &[ProbeFailure]) -> NodeState {
        let mut node = NodeState::new();
        observe(&mut node, Ok(report()));
        for failure in failures {
            observe(&mut node, Err(failure.clone()));
        }
        node
    }

    fn observe(node: &mut NodeState, outcome: Result<NodeReport, ProbeFailure>) {
        node.observe(
            &Observation { node: NodeId(0), began: Time::from_nanos(7), at: Time::from_nanos(7), outcome },
            &policy(),
        );
    }

    fn evidence(failures: &[ProbeFailure]) -> Option<Evidence> {
        after(failures).evidence(&policy(), Time::from_nanos(7))
    }

    #[test]
    fn what_counts_as_evidence() {
        use ProbeFailure::{Refused, Rejected, SessionLost, ShuttingDown, StartingUp, TimedOut, TooManyConnections};
        assert_eq!(evidence(&[Refused]), None);
        assert_eq!(evidence(&[Refused, Refused]), Some(Evidence::Refused));
        assert_eq!(evidence(&[SessionLost, Refused]), Some(Evidence::Refused));
        assert_eq!(evidence(&[ShuttingDown, Refused]), Some(Evidence::Refused));
        assert_eq!(evidence(&[SessionLost, SessionLost]), None);
        assert_eq!(evidence(&[Refused, SessionLost]), None);
        assert_eq!(evidence(&[Refused, TimedOut]), None);
        assert_eq!(evidence(&[StartingUp, Refused]), None);
        assert_eq!(evidence(&[TimedOut, TimedOut]), None);
        assert_eq!(evidence(&[TimedOut, TimedOut, TimedOut]), Some(Evidence::Silent));
        assert_eq!(evidence(&[TimedOut, TooManyConnections, TimedOut, TimedOut]), None);
        assert_eq!(evidence(&[TimedOut, TimedOut, Rejected(String::new()), TimedOut]), None);
    }

    #[test]
    fn a_node_rises_only_after_enough_reports_in_a_row() {
        let mut node = after(&[ProbeFailure::TimedOut]);
        node.mark_down();
        node.mark_down();
        assert_eq!(node.fence, 1);
        observe(&mut node, Ok(report()));
        assert_eq!(node.health, Health::Down);
        observe(&mut node, Err(ProbeFailure::TimedOut));
        observe(&mut node, Ok(report()));
        assert_eq!(node.health, Health::Down);
        observe(&mut node, Ok(report()));
        assert_eq!(node.health, Health::Healthy);
    }

    #[test]
    fn a_timeline_once_reached_is_kept_until_the_node_restarts() {
        let mut node = after(&[]);
        observe(&mut node, Ok(NodeReport { timeline: TimelineId(1), ..report() }));
        assert_eq!(node.timeline, Some(TimelineId(2)));
        observe(&mut node, Ok(NodeReport { timeline: TimelineId(1), incarnation: 2, ..report() }));
        assert_eq!(node.timeline, Some(TimelineId(1)));
    }

    #[test]
    fn a_history_is_that_of_the_timeline_and_of_one_life() {
        let known = |text: &str| Ancestry::Known(std::sync::Arc::new(text.parse().unwrap()));
        let said = |timeline, incarnation, ancestry| {
            Ok(NodeReport { timeline: TimelineId(timeline), incarnation, ancestry, ..report() })
        };
        let mut node = after(&[]);
        observe(&mut node, said(2, 1, known("1@0/10 2")));
        // Without a receiver it shows the timeline of its last restart point, and the history of that.
        observe(&mut node, said(1, 1, known("1")));
        assert_eq!(node.ancestry, known("1@0/10 2"));
        observe(&mut node, said(2, 1, Ancestry::Unknown));
        assert_eq!(node.ancestry, known("1@0/10 2"));
        observe(&mut node, said(3, 1, Ancestry::Asked));
        assert_eq!(node.ancestry, Ancestry::Asked);
        observe(&mut node, said(3, 2, known("1@0/20 3")));
        observe(&mut node, said(3, 3, Ancestry::Asked));
        assert_eq!(node.ancestry, Ancestry::Asked, "it may have been given other data");
    }
}
