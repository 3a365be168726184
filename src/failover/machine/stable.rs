//! A primary is known: does it still stand, do writes flow, and do the standbys agree that it is lost?
//!
//! Invariants: a primary is given up only on evidence that no standby contradicts (A5); waiting for
//! the standbys' opinion is bounded.

use super::Machine;
use crate::clock::Time;
use crate::config::FailoverMode;
use crate::failover::action::Level;
use crate::failover::hold::Hold;
use crate::failover::node_state::{Condition, Evidence};
use crate::failover::policy::{HEARD_RECENTLY, RECEIVER_WAIT};
use crate::failover::state::{Cause, Flow, Outage, State};
use crate::ids::NodeId;
use crate::topology::Health;

impl Machine {
    pub(super) fn judge_stable(&mut self, primary: NodeId) -> bool {
        // Most voters know better than a second node's own word, and so does Patroni.
        let alone = self.standing.is_none() || !self.may_route(primary);
        if !self.rivals().is_empty() && alone && !self.stood_by(primary) {
            return self.contest(Some(primary));
        }
        if let Some(report) = self.node(primary).live_report() {
            let (timeline, in_recovery) = (report.timeline, report.in_recovery);
            match self.claim(primary) {
                None if in_recovery && self.system_id == Some(report.system_id) => {
                    return self.lose(primary, Cause::Demoted);
                }
                None => return self.lose(primary, Cause::Impostor),
                Some(claimed) if self.timeline != Some(claimed) => {
                    let name = self.name(primary).clone();
                    let text = format!("{name} moved to timeline {timeline} by itself");
                    self.tell(Level::Warn, "timeline_changed", Some(primary), text);
                    return self.lose(primary, Cause::Impostor);
                }
                Some(_) => {}
            }
        }
        if let Some(evidence) = self.node(primary).evidence(&self.policy, self.now) {
            match self.objection(primary, evidence) {
                None => return self.lose(primary, cause_of(evidence)),
                Some(hold) => self.object(primary, hold),
            }
        }
        if self.judge_ailing(primary) {
            return true;
        }
        self.direct_flow(primary);
        if self.forsaken(primary) && !self.paused && self.node(primary).health == Health::Healthy {
            let outage = Outage { old: Some(primary), since: self.now, cause: Cause::Forsaken, order: None };
            return self.adopt(primary, Some(outage));
        }
        false
    }

    /// Gives the primary up: nothing is routed there from now on.
    pub(super) fn lose(&mut self, primary: NodeId, cause: Cause) -> bool {
        let outage = Outage { old: Some(primary), since: self.now, cause, order: None };
        let node = self.node_mut(primary);
        match cause {
            Cause::Refused | Cause::Silent | Cause::Overdue => node.mark_down(),
            _ => node.fence += 1,
        }
        let name = self.name(primary).clone();
        let helpless = self.paused || self.policy.mode == FailoverMode::Manual;
        let level = if helpless { Level::Error } else { Level::Warn };
        self.tell(level, "primary_lost", Some(primary), format!("primary {name} was lost: {}", cause.words()));
        self.shift(State::Lost { outage })
    }

    /// Moves between open, doubted, restarting and yielding.
    fn direct_flow(&mut self, primary: NodeId) {
        let State::Stable { flow, vetoed, .. } = self.state else { return };
        let node = self.node(primary);
        let next = match node.condition {
            Condition::Starting | Condition::Stopping => Flow::Restarting,
            _ if node.refuses() => match flow {
                Flow::Doubted { .. } => flow,
                _ => Flow::Doubted { since: self.now },
            },
            // A lost probe session or silence says nothing about other backends, unless the port
            // was seen closed before.
            Condition::Failing { .. } => flow,
            _ => self.yielding(primary, flow).unwrap_or(Flow::Open),
        };
        let node = self.node(primary);
        let answers = node.live_report().is_some();
        let vetoed = vetoed && !answers;
        self.tell_flow(primary, flow, next);
        if next == Flow::Open && matches!(flow, Flow::Doubted { .. } | Flow::Restarting) {
            self.settled_at = self.now;
        }
        self.shift(State::Stable { primary, flow: next, vetoed });
    }

    fn tell_flow(&mut self, primary: NodeId, before: Flow, after: Flow) {
        let name = self.name(primary).clone();
        match (before, after) {
            (Flow::Open | Flow::Doubted { .. }, Flow::Restarting) => {
                let text = format!("primary {name} restarts in place, writes wait");
                self.tell(Level::Warn, "primary_restarting", Some(primary), text);
            }
            (Flow::Yielding { .. }, Flow::Open) => {
                let text = format!("{name} stays primary: other proxies have not given it up, or its trouble is over");
                self.tell(Level::Warn, "primary_kept", Some(primary), text);
            }
            (Flow::Open | Flow::Doubted { .. } | Flow::Restarting, Flow::Yielding { .. }) => {
                let text = format!("primary {name} cannot do its work: writes wait until other proxies agree");
                self.tell(Level::Warn, "primary_yields", Some(primary), text);
            }
            (Flow::Doubted { .. } | Flow::Restarting, Flow::Open) => {
                self.tell(Level::Info, "primary_back", Some(primary), format!("primary {name} is back, writes flow"));
            }
            _ => {}
        }
    }

    /// Tells a standby's veto once, and asks those whose opinion is missing.
    fn object(&mut self, primary: NodeId, hold: Hold) {
        let State::Stable { flow, vetoed, .. } = self.state else { return };
        if matches!(hold, Hold::AwaitingReceiver { .. }) {
            self.want_observers(primary);
            return;
        }
        if !vetoed {
            let name = self.name(primary).clone();
            self.tell(Level::Warn, "held", Some(primary), format!("primary {name} is not given up: {hold}"));
            self.shift(State::Stable { primary, flow, vetoed: true });
        }
    }

    /// What the standbys' receivers say against calling the primary down.
    pub(super) fn objection(&self, primary: NodeId, evidence: Evidence) -> Option<Hold> {
        if evidence == Evidence::Overdue {
            return None;
        }
        let node = self.node(primary);
        let since = node.trouble_since.unwrap_or(self.now);
        let waited = self.now.since(node.evidence_at.unwrap_or(self.now)) >= RECEIVER_WAIT;
        self.policy.ids().filter(|id| *id != primary).find_map(|id| {
            let report = self.node(id).live_report()?;
            if self.system_id != Some(report.system_id) || !report.in_recovery {
                return None;
            }
            let name = self.name(id).clone();
            let heard = self.heard_at(id, primary);
            // Nothing listens: the receivers of a dead postmaster end within milliseconds.
            let unsettled = report.sent_at < since || (evidence == Evidence::Refused && heard.is_some());
            // It was heard from after it fell silent for us: alive, and only we cannot see it.
            let hears = heard.is_some_and(|at| at > since && self.now.since(at) < HEARD_RECENTLY);
            let asking = evidence == Evidence::Silent && self.reconnecting(id, since);
            if (unsettled && !waited) || asking {
                return Some(Hold::AwaitingReceiver { node: name });
            }
            hears.then(|| Hold::StandbyHears { node: name, primary: self.name(primary).clone() })
        })
    }

    /// When the standby last heard from the primary through a stream that still stands.
    pub(super) fn heard_at(&self, standby: NodeId, primary: NodeId) -> Option<Time> {
        let node = self.node(standby);
        let report = node.live_report()?;
        let again = self.reconnected_at(standby);
        let Some(receiver) = report.receiver.as_ref().filter(|r| r.streaming) else {
            // A report from the moment in which it connected anew.
            return again.filter(|at| report.sent_at <= *at);
        };
        // An address we do not know may be the primary's under another name: it counts.
        let from = self.policy.upstream(receiver);
        let heard = node.report_at - receiver.last_message_age;
        from.is_none_or(|from| from == primary).then(|| again.map_or(heard, |at| at.max(heard)))
    }

    /// Times at which the standing of the primary may change without an event.
    pub(super) fn primary_alarms(&self, primary: NodeId) -> Vec<Time> {
        let node = self.node(primary);
        let mut alarms = self.ailing_alarms(primary);
        if let Some(since) = node.trouble_since.filter(|_| node.restarting()) {
            alarms.push(since + node.restart_limit.unwrap_or(self.policy.primary_start_timeout));
        }
        if let Some(at) = node.evidence_at {
            alarms.push(at + RECEIVER_WAIT);
            let others = self.policy.ids().filter(|id| *id != primary);
            alarms.extend(others.filter_map(|id| self.heard_at(id, primary)).map(|at| at + HEARD_RECENTLY));
        }
        alarms
    }
}

fn cause_of(evidence: Evidence) -> Cause {
    match evidence {
        Evidence::Refused => Cause::Refused,
        Evidence::Silent => Cause::Silent,
        Evidence::Overdue => Cause::Overdue,
    }
}
