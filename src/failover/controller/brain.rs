//! Lets the controller drive the failover machine.
//!
//! Invariants: a plain translation. Absent on purpose: everything else.

use super::Brain;
use super::status::{BrainSummary, FailoverStatus};
use crate::clock::Time;
use crate::config::FailoverMode;
use crate::failover::action::Action;
use crate::failover::event::Event;
use crate::failover::hold::Hold;
use crate::failover::machine::{Machine, Outlook};

impl Brain for Machine {
    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        Self::step(self, event, now)
    }

    fn holds(&self) -> Vec<Hold> {
        Self::holds(self)
    }

    fn outlook(&self) -> Outlook {
        Self::outlook(self)
    }

    fn summary(&self) -> BrainSummary {
        let summary = Self::summary(self);
        BrainSummary {
            state: summary.state,
            mode: match summary.mode {
                FailoverMode::Automatic => "automatic",
                FailoverMode::Manual => "manual",
                FailoverMode::Follow => "follow",
            },
            paused: summary.paused,
            timeline: summary.timeline,
            system_id: summary.system_id.map(|id| id.to_string()),
            failovers: summary.failovers,
            last_failover: summary.last_failover.map(|last| FailoverStatus {
                from: last.from.map(|name| name.to_string()),
                to: last.to.to_string(),
                epoch: last.epoch,
                cause: last.cause.words().to_owned(),
                took_ms: u64::try_from(last.done_at.since(last.lost_at).as_millis()).unwrap_or(u64::MAX),
                done_at: last.done_at,
                age_ms: 0,
                missing_bytes: last.missing_bytes,
            }),
        }
    }
}
