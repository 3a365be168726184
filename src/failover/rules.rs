//! The hard filters of an election. A new rule is a function and a line in [`RULES`].
//!
//! Invariants: a rule looks at one candidate and the bar, nothing else; the first veto in the order
//! of [`RULES`] is the one that people read, so identity comes before fitness.

use super::candidate::{Bar, Candidate};
use super::hold::Veto;
use crate::topology::Health;

/// Says why a candidate may not be promoted.
pub type Rule = fn(&Candidate, &Bar) -> Option<Veto>;

/// All rules, in the order in which their vetoes are told.
pub static RULES: &[Rule] = &[
    asked,
    same_system,
    answers,
    in_recovery,
    allowed,
    left_alone,
    same_history,
    later_history,
    same_line,
    undisputed,
    replays,
    not_just_failed,
    not_spoken_against,
    stands_still,
    close_enough,
    has_what_was_acknowledged,
];

fn asked(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    bar.asked.filter(|asked| *asked != candidate.node).map(|_| Veto::NotAsked)
}

fn same_system(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    let has = candidate.system_id;
    bar.system_id.filter(|need| *need != has).map(|_| Veto::OtherSystem { has })
}

fn answers(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    (candidate.health != Health::Healthy).then_some(Veto::NotHealthy)
}

fn in_recovery(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    (!candidate.in_recovery).then_some(Veto::NotInRecovery)
}

fn allowed(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    (candidate.priority == 0).then_some(Veto::PriorityZero)
}

fn left_alone(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    candidate.maintenance.then_some(Veto::Maintenance)
}

fn same_history(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    let has = candidate.timeline;
    let other = bar.beyond.is_some_and(|(promoted, _)| promoted != candidate.node);
    bar.timeline.filter(|need| !other && *need != has).map(|need| Veto::OtherTimeline { has, need })
}

fn later_history(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    let (_, need) = bar.beyond.filter(|(promoted, _)| *promoted != candidate.node)?;
    (candidate.timeline < need).then_some(Veto::OtherTimeline { has: candidate.timeline, need })
}

fn same_line(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    candidate.parted.map(|parted| Veto::OtherLine { parted })
}

// A person may know which of the histories was the last primary's.
fn undisputed(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    (candidate.disputed && bar.asked != Some(candidate.node)).then_some(Veto::LineUnclear)
}

// Promotion would end the pause, and someone paused replay in order to keep an old state.
fn replays(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    candidate.replay_paused.then_some(Veto::ReplayPaused)
}

fn not_just_failed(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    candidate.promotion_failed.then_some(Veto::PromotionFailed)
}

fn not_spoken_against(candidate: &Candidate, _bar: &Bar) -> Option<Veto> {
    candidate.spoken_against.then_some(Veto::SpokenAgainst)
}

fn stands_still(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    (bar.detached_only && !candidate.detached).then_some(Veto::NotDetached)
}

fn close_enough(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    let bytes = bar.highest.bytes_since(candidate.flush_lsn);
    (bytes > bar.lag_bytes_max).then_some(Veto::Behind { bytes, max: bar.lag_bytes_max })
}

fn has_what_was_acknowledged(candidate: &Candidate, bar: &Bar) -> Option<Veto> {
    let bytes = bar.floor?.bytes_since(candidate.flush_lsn);
    (bytes > 0).then_some(Veto::BehindMembers { bytes })
}
