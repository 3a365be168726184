//! What is wrong with a primary that is not dead: it cannot write WAL, or it accepts no sessions.
//!
//! [`Vitals`] collects what sessions other than the probe's say about one node. Invariants: only an outcome that was
//! observed counts, never the mere passing of time (a process that was stopped itself must not wake up to a verdict),
//! except for a disk error, which stands until a commit succeeds; a commit hangs only if the node says so, too. Absent
//! on purpose: what follows from an ailment (`machine::ailing`).

use super::policy::AilingPolicy;
use super::state::Cause;
use crate::clock::Time;
use crate::topology::{NodeReport, ProbeFailure, Sign, SignKind, WriteSign};
use std::time::Duration;

/// The share of its limit after which a hanging listener is told, as a divisor: one slow connection is no news.
const LISTENER_TOLD_SHARE: u32 = 4;

/// Why a primary that is alive may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ailment {
    /// No space for WAL.
    DiskFull,
    /// The disk with the WAL reports errors.
    DiskFails,
    /// Commits do not end.
    WritesHang,
    /// Fresh connections are never served.
    ListenerHangs,
}

impl Ailment {
    /// How long it has to last.
    pub(super) fn limit(self, policy: &AilingPolicy) -> Duration {
        match self {
            Self::DiskFull | Self::DiskFails | Self::WritesHang => policy.write_fail,
            Self::ListenerHangs => policy.connect_fail,
        }
    }

    pub(super) fn cause(self) -> Cause {
        match self {
            Self::DiskFull => Cause::DiskFull,
            Self::DiskFails => Cause::DiskFails,
            Self::WritesHang => Cause::WritesHang,
            Self::ListenerHangs => Cause::ListenerHangs,
        }
    }
}

/// The beginning of an ailment, and how long it has lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symptom {
    pub of: Ailment,
    pub lasts: Duration,
    /// The span after which it is an ailment.
    pub limit: Duration,
}

/// Whether the write probe's commits end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wal {
    #[default]
    Unknown,
    Flows,
    Pending {
        since: Time,
        at: Time,
    },
    Failing {
        full: bool,
        since: Time,
    },
}

/// Whether fresh connections are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Listener {
    #[default]
    Unknown,
    Serves {
        at: Time,
    },
    Hangs {
        since: Time,
        at: Time,
    },
}

/// What is known of one node besides its reports.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Vitals {
    /// When any session last had a sign of life.
    pub alive_at: Time,
    wal: Wal,
    listener: Listener,
    /// What people were told of.
    pub told: Option<Ailment>,
    /// People were told that the role may not run the write probe.
    pub forbidden_told: bool,
}

impl Vitals {
    pub(super) fn heard(&mut self, at: Time) {
        self.alive_at = self.alive_at.max(at);
    }

    pub(super) fn take(&mut self, sign: &Sign) {
        match &sign.what {
            SignKind::Traffic => self.heard(sign.at),
            // Says nothing about the life of PostgreSQL.
            SignKind::Patroni(_) => {}
            SignKind::Connect(outcome) => self.connected(outcome, sign),
            SignKind::Write(outcome) => self.wrote(outcome, sign),
        }
    }

    fn connected(&mut self, outcome: &Result<(), ProbeFailure>, sign: &Sign) {
        match outcome {
            Err(ProbeFailure::Starved) => {}
            Err(ProbeFailure::TimedOut) => {
                let since = match self.listener {
                    Listener::Hangs { since, .. } => since,
                    Listener::Unknown | Listener::Serves { .. } => sign.began,
                };
                self.listener = Listener::Hangs { since, at: sign.at };
            }
            Err(ProbeFailure::Refused | ProbeFailure::Unreachable | ProbeFailure::SessionLost) => {
                self.listener = Listener::Unknown;
            }
            // Who refuses listens.
            Ok(()) | Err(_) => {
                self.heard(sign.at);
                self.listener = Listener::Serves { at: sign.at };
            }
        }
    }

    fn wrote(&mut self, outcome: &WriteSign, sign: &Sign) {
        if !matches!(outcome, WriteSign::Pending | WriteSign::Unknown) {
            self.heard(sign.at);
        }
        let failing = |wal: Wal, full: bool| match wal {
            Wal::Failing { since, .. } | Wal::Pending { since, .. } => Wal::Failing { full, since },
            Wal::Unknown | Wal::Flows => Wal::Failing { full, since: sign.at },
        };
        self.wal = match (outcome, self.wal) {
            (WriteSign::Committed, _) => Wal::Flows,
            (WriteSign::DiskFull, wal) => failing(wal, true),
            (WriteSign::DiskFailed, wal) => failing(wal, false),
            (WriteSign::Forbidden(_) | WriteSign::ReadOnly, _) => Wal::Unknown,
            // A server that goes down over its disk loses our session, too.
            (WriteSign::Pending | WriteSign::Unknown, wal @ Wal::Failing { .. }) => wal,
            (WriteSign::Pending, _) => Wal::Pending { since: sign.began, at: sign.at },
            (WriteSign::Unknown, _) => Wal::Unknown,
        };
    }

    /// What is enough to give the node up. `report`: its latest outcome, if that was one.
    pub(super) fn ailment(&self, policy: &AilingPolicy, report: Option<&NodeReport>, now: Time) -> Option<Ailment> {
        let symptom = self.symptom(policy, now).filter(|s| s.lasts >= s.limit)?;
        let agrees = match symptom.of {
            Ailment::DiskFull | Ailment::DiskFails => true,
            Ailment::WritesHang => self.admitted(policy, report),
            // The older sessions must be known to live on; else it is the probe's case.
            Ailment::ListenerHangs => report.is_some_and(|r| now.since(r.sent_at) < symptom.limit),
        };
        agrees.then_some(symptom.of)
    }

    /// Whether the node itself says that a commit has not ended for so long. Without that it may be the network.
    pub(super) fn admitted(&self, policy: &AilingPolicy, report: Option<&NodeReport>) -> bool {
        let Wal::Pending { since, .. } = self.wal else { return false };
        let pending = report.filter(|r| r.sent_at > since).and_then(|r| r.pending_write.as_ref());
        pending.is_some_and(|p| p.age >= policy.write_fail)
    }

    /// The worst of what is wrong, long before it is an ailment.
    pub(super) fn symptom(&self, policy: &AilingPolicy, now: Time) -> Option<Symptom> {
        match (self.wal, self.listener) {
            (Wal::Failing { full, since }, _) => {
                let of = if full { Ailment::DiskFull } else { Ailment::DiskFails };
                Some(Symptom { of, lasts: now.since(since), limit: of.limit(policy) })
            }
            (Wal::Pending { since, at }, _) if at.since(since) >= policy.write_warn.min(policy.write_fail) => {
                Some(Symptom { of: Ailment::WritesHang, lasts: at.since(since), limit: policy.write_fail })
            }
            (_, Listener::Hangs { since, at }) if at.since(since) * LISTENER_TOLD_SHARE >= policy.connect_fail => {
                Some(Symptom { of: Ailment::ListenerHangs, lasts: at.since(since), limit: policy.connect_fail })
            }
            _ => None,
        }
    }

    /// Whether a fresh connection was served at `since` or later.
    pub(super) fn serves_since(&self, since: Time) -> bool {
        matches!(self.listener, Listener::Serves { at } if at >= since)
    }

    /// When something becomes an ailment without an event.
    pub(super) fn alarm(&self, policy: &AilingPolicy) -> Option<Time> {
        match self.wal {
            Wal::Failing { since, .. } => Some(since + policy.write_fail),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use crate::topology::PendingWrite;

    const POLICY: AilingPolicy = AilingPolicy {
        write_warn: Duration::from_secs(2),
        write_fail: Duration::from_secs(5),
        connect_fail: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(100 + seconds)
    }

    fn after(signs: &[(u64, u64, SignKind)]) -> Vitals {
        let mut vitals = Vitals::default();
        for (began, known, what) in signs {
            vitals.take(&Sign { node: NodeId(0), began: at(*began), at: at(*known), what: what.clone() });
        }
        vitals
    }

    fn report(sent: u64, pending: u64) -> NodeReport {
        let pending = PendingWrite { age: Duration::from_secs(pending), wait: "IO:WALSync".to_owned() };
        NodeReport { sent_at: at(sent), pending_write: Some(pending), ..NodeReport::default() }
    }

    #[test]
    fn a_commit_hangs_only_if_the_node_says_so_too() {
        let pending = |known| (0, known, SignKind::Write(WriteSign::Pending));
        let ailing = after(&[pending(2), pending(5)]);
        let told = |vitals: &Vitals, report: &NodeReport| vitals.ailment(&POLICY, Some(report), at(5));
        assert_eq!(told(&ailing, &report(5, 5)), Some(Ailment::WritesHang));
        assert_eq!(told(&ailing, &report(5, 4)), None);
        assert_eq!(told(&ailing, &NodeReport { pending_write: None, ..report(5, 5) }), None);
        assert_eq!(told(&after(&[pending(4)]), &report(5, 5)), None, "time alone is no outcome");
        assert_eq!(ailing.ailment(&POLICY, None, at(5)), None);
    }

    #[test]
    fn what_says_nothing_about_the_disk() {
        for harmless in [WriteSign::Unknown, WriteSign::ReadOnly, WriteSign::Forbidden(String::new())] {
            let pending = (0, 5, SignKind::Write(WriteSign::Pending));
            let vitals = after(&[pending, (0, 6, SignKind::Write(harmless.clone()))]);
            assert_eq!(vitals.symptom(&POLICY, at(60)), None, "{harmless:?}");
            let vitals = after(&[(0, 6, SignKind::Write(harmless.clone()))]);
            assert_eq!(vitals.symptom(&POLICY, at(60)), None, "{harmless:?}");
        }
    }

    #[test]
    fn a_full_disk_stays_full_until_a_commit_ends() {
        let write = |known, sign| (known, known, SignKind::Write(sign));
        let mut vitals = after(&[write(1, WriteSign::DiskFull), write(2, WriteSign::Unknown)]);
        assert_eq!(vitals.ailment(&POLICY, None, at(5)), None);
        assert_eq!(vitals.ailment(&POLICY, None, at(6)), Some(Ailment::DiskFull));
        assert_eq!(vitals.alarm(&POLICY), Some(at(6)));
        vitals.take(&Sign { node: NodeId(0), began: at(7), at: at(7), what: SignKind::Write(WriteSign::Committed) });
        assert_eq!(vitals.ailment(&POLICY, None, at(60)), None);
    }

    #[test]
    fn a_listener_hangs_only_while_older_sessions_live() {
        let hangs = |known| (0, known, SignKind::Connect(Err(ProbeFailure::TimedOut)));
        let vitals = after(&[hangs(1), hangs(10)]);
        assert_eq!(vitals.ailment(&POLICY, Some(&report(9, 0)), at(10)), Some(Ailment::ListenerHangs));
        assert_eq!(vitals.ailment(&POLICY, None, at(10)), None);
        let busy = (10, 10, SignKind::Connect(Err(ProbeFailure::TooManyConnections)));
        assert_eq!(after(&[hangs(1), busy, (10, 11, hangs(1).2)]).ailment(&POLICY, Some(&report(9, 0)), at(11)), None);
        let starved = (10, 20, SignKind::Connect(Err(ProbeFailure::Starved)));
        assert_eq!(after(&[hangs(1), starved]).ailment(&POLICY, Some(&report(20, 0)), at(20)), None);
    }

    #[test]
    fn every_answer_is_a_sign_of_life_and_no_silence_is() {
        let life = |what| after(&[(1, 2, what)]).alive_at == at(2);
        assert!(life(SignKind::Traffic) && life(SignKind::Connect(Ok(()))));
        assert!(life(SignKind::Connect(Err(ProbeFailure::TooManyConnections))));
        assert!(life(SignKind::Connect(Err(ProbeFailure::StartingUp))));
        assert!(!life(SignKind::Connect(Err(ProbeFailure::TimedOut))));
        assert!(!life(SignKind::Connect(Err(ProbeFailure::Refused))));
        assert!(life(SignKind::Write(WriteSign::Committed)) && life(SignKind::Write(WriteSign::DiskFull)));
        assert!(!life(SignKind::Write(WriteSign::Pending)) && !life(SignKind::Write(WriteSign::Unknown)));
    }
}
