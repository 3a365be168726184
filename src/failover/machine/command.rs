//! What operators ask for.
//!
//! Invariants: a command is obeyed or refused with a sentence; nothing is cut before a candidate
//! qualifies; who names a node that accepts writes knows better than its history. Absent on purpose: a way around the
//! system identifier and the timeline number.

use super::Machine;
use crate::config::FailoverMode;
use crate::failover::action::Level;
use crate::failover::candidate::elect;
use crate::failover::event::Command;
use crate::failover::state::{Cause, Order, Outage, State};
use crate::ids::NodeId;

impl Machine {
    pub(super) fn command(&mut self, command: &Command) {
        match command {
            Command::Pause if !self.paused => {
                self.paused = true;
                self.tell(Level::Info, "paused", None, "automatic decisions are paused".to_owned());
            }
            Command::Resume if self.paused => {
                self.paused = false;
                self.tell(Level::Info, "resumed", None, "automatic decisions are made again".to_owned());
            }
            Command::Pause | Command::Resume => {}
            Command::Maintain { node, .. } if node.index() >= self.nodes.len() => {
                self.tell(Level::Warn, "command_refused", None, "no such node".to_owned());
            }
            Command::Maintain { node, on } => {
                if std::mem::replace(&mut self.node_mut(*node).maintenance, *on) != *on {
                    let text = if *on { "in maintenance: not promoted" } else { "no longer in maintenance" };
                    let text = format!("{} is {text}", self.name(*node));
                    self.tell(Level::Info, "maintenance", Some(*node), text);
                }
            }
            Command::Failover { to } => {
                if let Err(why) = self.failover(*to) {
                    self.tell(Level::Warn, "command_refused", *to, format!("failover refused: {why}"));
                }
            }
        }
    }

    fn failover(&mut self, to: Option<NodeId>) -> Result<(), String> {
        if to.is_some_and(|n| n.index() >= self.nodes.len()) {
            return Err("no such node".to_owned());
        }
        if !self.recalled {
            return Err("the record of the last primary has not been read yet".to_owned());
        }
        if let Some(to) = to
            && self.names_survivor(to)?
        {
            return Ok(());
        }
        let old = match &self.state {
            State::Stable { primary, .. } => Some(*primary),
            State::Lost { outage } => outage.old,
            State::Starting { .. } => self.recorded_primary(),
            State::Contested { .. } => return Err("several nodes accept writes: name the one that stays".to_owned()),
            State::Adopting { .. }
            | State::Freezing { .. }
            | State::Preparing { .. }
            | State::Recording { .. }
            | State::Promoting { .. }
            | State::Following { .. }
            | State::Confirming { .. } => return Err("a change is under way".to_owned()),
        };
        if self.policy.mode == FailoverMode::Follow {
            return Err("failover = \"follow\": another tool promotes".to_owned());
        }
        let since = self.state.outage().map_or(self.now, |o| o.since);
        self.begin_ordered(Outage { old, since, cause: Cause::Commanded, order: Some(Order { to }) })
    }

    /// A node that accepts writes already needs no promotion, only to be believed.
    fn names_survivor(&mut self, to: NodeId) -> Result<bool, String> {
        let undecided = matches!(self.state, State::Contested { .. } | State::Lost { .. } | State::Starting { .. });
        if matches!(self.state, State::Stable { primary, .. } if primary == to) {
            return Err(format!("{} is the primary already", self.name(to)));
        }
        let report = self.node(to).live_report().filter(|report| !report.in_recovery);
        if undecided && report.is_some_and(|report| self.left_line(to, report).is_some() || self.passed_over(to)) {
            let text = format!("by an operator's order: what the last primary had is not all on {}", self.name(to));
            self.tell(Level::Warn, "loss_possible", Some(to), text);
            self.line = None;
            self.node_mut(to).promotion = None;
        }
        if !undecided || self.claim(to).is_none() {
            return Ok(false);
        }
        if self.system_id.is_none() {
            self.system_id = self.node(to).report.as_ref().map(|r| r.system_id);
        }
        let outage = match &self.state {
            State::Lost { outage } => Some(*outage),
            State::Contested { primary, .. } => primary.map(|_| self.outage(*primary, Cause::Commanded)),
            _ => None,
        };
        if self.begin_adoption(to, outage, true) {
            Ok(true)
        } else {
            Err("the record could not be stored a moment ago".to_owned())
        }
    }

    /// A proxy that has never seen a primary knows what standbys tell: whose system they are, and the timeline that the
    /// last primary had at least. Enough for an operator, not for a decision of its own.
    fn learn_from_standbys(&mut self) {
        let Some(system) = self.system_id.or_else(|| self.majority_system()).filter(|_| self.claimants().is_empty())
        else {
            return;
        };
        let ours = |id: &NodeId| self.node(*id).live_report().is_some_and(|r| r.in_recovery && r.system_id == system);
        let newest = self.policy.ids().filter(ours).filter_map(|id| self.node(id).timeline).max();
        if let Some(timeline) = newest {
            (self.system_id, self.timeline, self.timeline_epoch) = (Some(system), Some(timeline), self.epoch);
        }
    }

    fn begin_ordered(&mut self, outage: Outage) -> Result<(), String> {
        if self.timeline.is_none() {
            self.learn_from_standbys();
        }
        if self.system_id.is_none() || self.timeline.is_none() {
            return Err("no primary has ever been seen, and no standbys of one system answer".to_owned());
        }
        let candidates = self.candidates(&[]);
        let bar = self.bar(&outage, false);
        if elect(&candidates, &bar).is_none() {
            let holds = self.candidate_holds(&candidates, &bar);
            let reasons: Vec<String> = holds.iter().map(ToString::to_string).collect();
            return Err(reasons.join("; "));
        }
        if let Some(old) = outage.old {
            self.cut(old);
        }
        self.ordered_at = self.now;
        if self.may_begin_ordered(&outage) {
            self.freeze(outage);
        } else {
            let to = outage.order.and_then(|order| order.to);
            let whom = to.map_or_else(|| "a failover".to_owned(), |to| format!("a failover to {}", self.name(to)));
            let text = format!("{whom} is ordered and begins when other proxies have given way");
            self.tell(Level::Info, "failover_ordered", to, text);
            self.shift(State::Lost { outage });
        }
        Ok(())
    }
}
