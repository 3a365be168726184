//! The failover machine under arbitrary events, and against a small model of a cluster.
//!
//! `any_events_keep_the_promises`: whatever arrives, in any order, the promises hold. Seen from the
//! outside only, so that a defect in the machine's own checks cannot hide one.
//! `a_cluster_heals`: nodes are killed, frozen and cut off at random while the actions are carried
//! out on the model; the promises hold at every instant, and once the faults stop writes flow again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod model;
mod watch;

use pgregent::clock::Time;
use pgregent::config::FailoverMode;
use pgregent::failover::action::Action;
use pgregent::failover::event::{Command, Event, Outcome, Record};
use pgregent::ids::{Epoch, Lsn, NodeId, TimelineId};
use pgregent::topology::{
    Fact, NodeReport, Observation, PatroniSilence, PatroniWord, PendingWrite, ProbeFailure, ReceiverView, Sign,
    SignKind, WriteSign,
};
use proptest::prelude::*;
use std::time::Duration;
use watch::{NODES, OTHER_SYSTEM, SYSTEM, Watch, address, name};

#[derive(Clone, Debug)]
enum Op {
    Recalled(Option<(u16, u64, u32)>),
    Report { node: u16, report: NodeReport, early: u64 },
    Fail(u16, ProbeFailure),
    Fact(u16, u8),
    Sign { node: u16, kind: u8, took: u64 },
    Answer { which: usize, good: bool, lsn: u64 },
    Pass(u64),
    Tick,
    Command(Command),
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES;
    prop_oneof![
        1 => proptest::option::of((node.clone(), 1..5u64, 1..3u32)).prop_map(Op::Recalled),
        12 => (node.clone(), report(), 0..200u64).prop_map(|(node, report, early)| Op::Report { node, report, early }),
        8 => (node.clone(), failure()).prop_map(|(node, failure)| Op::Fail(node, failure)),
        1 => (node.clone(), 0..6u8).prop_map(|(node, kind)| Op::Fact(node, kind)),
        5 => (node.clone(), 0..12u8, 0..15_000u64).prop_map(|(node, kind, took)| Op::Sign { node, kind, took }),
        12 => (any::<usize>(), prop::bool::weighted(0.85), 0..3000u64)
            .prop_map(|(which, good, lsn)| Op::Answer { which, good, lsn }),
        4 => prop_oneof![0..100u64, 0..3000u64, 0..20_000u64].prop_map(Op::Pass),
        2 => Just(Op::Tick),
        1 => command(node).prop_map(Op::Command),
    ]
}

fn command(node: std::ops::Range<u16>) -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => Just(Command::Pause),
        3 => Just(Command::Resume),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Command::Maintain { node: NodeId(node), on }),
        2 => proptest::option::of(node).prop_map(|to| Command::Failover { to: to.map(NodeId) }),
    ]
}

fn failure() -> impl Strategy<Value = ProbeFailure> {
    prop_oneof![
        4 => Just(ProbeFailure::Refused),
        2 => Just(ProbeFailure::TimedOut),
        2 => Just(ProbeFailure::SessionLost),
        1 => Just(ProbeFailure::Unreachable),
        1 => Just(ProbeFailure::StartingUp),
        1 => Just(ProbeFailure::ShuttingDown),
        1 => Just(ProbeFailure::TooManyConnections),
        1 => Just(ProbeFailure::Rejected("no".to_owned())),
    ]
}

fn report() -> impl Strategy<Value = NodeReport> {
    let receiver = proptest::option::of((prop::bool::weighted(0.8), 0..=NODES, 0..8000u64));
    let bits = (prop::bool::weighted(0.65), prop::bool::weighted(0.05), prop::bool::weighted(0.04));
    (bits, 1..4u32, 0..3000u64, receiver, 0..3i64).prop_map(|(bits, timeline, lsn, receiver, incarnation)| NodeReport {
        sent_at: Time::ZERO,
        system_id: if bits.2 { OTHER_SYSTEM } else { SYSTEM },
        in_recovery: bits.0,
        timeline: TimelineId(timeline),
        flush_lsn: Lsn(lsn),
        replay_lsn: Lsn(lsn),
        replay_paused: bits.1,
        receiver: receiver.filter(|_| bits.0).map(|(streaming, from, age)| ReceiverView {
            streaming,
            upstream: address(from),
            last_message_age: Duration::from_millis(age),
        }),
        incarnation,
        redo_lsn: Lsn(0),
        version_num: 150_000,
        pending_write: (lsn > 1500).then(|| PendingWrite { age: Duration::from_millis(lsn * 3), wait: String::new() }),
        ..NodeReport::default()
    })
}

fn mode() -> impl Strategy<Value = FailoverMode> {
    prop_oneof![3 => Just(FailoverMode::Automatic), 1 => Just(FailoverMode::Manual), 1 => Just(FailoverMode::Follow)]
}

fn play(watch: &mut Watch, op: Op) {
    let observed = |watch: &Watch, node: u16, outcome| {
        Event::Observed(Observation { node: NodeId(node), began: watch.now, at: watch.now, outcome })
    };
    let event = match op {
        Op::Recalled(record) => {
            let record = record.map(|(node, epoch, timeline)| Record {
                system_id: SYSTEM,
                epoch: Epoch(epoch),
                primary: name(node),
                timeline: TimelineId(timeline),
                promoted: true,
                given_up: Vec::new(),
            });
            watch.recall(record);
            return;
        }
        Op::Report { node, report, early } => {
            let sent_at = watch.now - Duration::from_millis(early);
            observed(watch, node, Ok(NodeReport { sent_at, ..report }))
        }
        Op::Fail(node, failure) => observed(watch, node, Err(failure)),
        Op::Fact(node, kind) => Event::Fact([
            Fact::ConnectRefused,
            Fact::ConnectTimedOut,
            Fact::BackendLost,
            Fact::ShutdownSaid,
            Fact::WriteRefused,
            Fact::RoleChanged,
        ][usize::from(kind)](NodeId(node))),
        Op::Sign { node, kind, took } => {
            let what = match kind {
                0 | 1 => SignKind::Write(WriteSign::Pending),
                2 => SignKind::Write(WriteSign::DiskFull),
                3 => SignKind::Write(WriteSign::Committed),
                4 => SignKind::Write(WriteSign::Unknown),
                5 => SignKind::Connect(Err(ProbeFailure::TimedOut)),
                6 => SignKind::Connect(Ok(())),
                8 => SignKind::Patroni(PatroniWord::Primary),
                9 => SignKind::Patroni(PatroniWord::Member),
                10 => SignKind::Patroni(PatroniWord::Unknown(PatroniSilence::Late)),
                _ => SignKind::Traffic,
            };
            let began = watch.now - Duration::from_millis(took);
            Event::Signed(Sign { node: NodeId(node), began, at: watch.now, what })
        }
        Op::Answer { which, good, lsn } => {
            if !watch.open.is_empty() {
                let at = which % watch.open.len();
                let outcome = match (&watch.open[at], good) {
                    (_, false) => Outcome::Failed("random".to_owned()),
                    (Action::Detach(..), true) => Outcome::Detached { flush_lsn: Lsn(lsn), replay_lsn: Lsn(lsn) },
                    (_, true) => Outcome::Done,
                };
                watch.answer(at, outcome);
            }
            return;
        }
        Op::Pass(ms) => {
            watch.now = watch.now + Duration::from_millis(ms);
            Event::Tick
        }
        Op::Tick => Event::Tick,
        Op::Command(command) => Event::Command(command),
    };
    watch.step(event);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_events_keep_the_promises(mode in mode(), recalled in any::<bool>(), ops in prop::collection::vec(op(), 0..150)) {
        let mut watch = Watch::new(mode);
        if recalled {
            play(&mut watch, Op::Recalled(Some((0, 1, 1))));
        }
        for op in ops {
            play(&mut watch, op);
        }
    }
}
