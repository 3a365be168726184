//! The words of scenario files: clusters, failures, facts, spans.
//!
//! Absent on purpose: what they do to the machine (`scenarios`), and tolerance: a word that is not known panics.

use pgregent::config::{Choice, Degrade, FailoverMode, Fencing};
use pgregent::failover::Policy;
use pgregent::failover::action::HookKind;
use pgregent::failover::event::Record;
use pgregent::failover::policy::{AilingPolicy, Means, NodePolicy};
use pgregent::ids::{Epoch, NodeId, SystemId, TimelineId};
use pgregent::topology::{Fact, ProbeFailure, SyncStandby, SyncState};
use std::time::Duration;

pub const SYSTEM: u64 = 7000;

pub fn parse_cluster(line: &str) -> Policy {
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[0], "cluster", "the first line describes the cluster");
    let priority = |name: &str| {
        let given = value(&words, "priority").into_iter().flat_map(|v| v.split(','));
        given.filter_map(|p| p.split_once(':')).find(|(n, _)| *n == name).map_or(100, |(_, p)| p.parse().unwrap())
    };
    let local: Vec<&str> = value(&words, "zone").into_iter().flat_map(|v| v.split(',')).collect();
    let flags = ["fence_sql", "degrade"];
    let names = words[1..].iter().filter(|w| !w.contains('=') && !flags.contains(w));
    let hooks: Vec<&str> = value(&words, "hooks").into_iter().flat_map(|v| v.split(',')).collect();
    let number = |key: &str, otherwise: u64| value(&words, key).map_or(otherwise, |v| v.parse().unwrap());
    let time = |key: &str, otherwise: u64| value(&words, key).map_or(Duration::from_secs(otherwise), span);
    Policy {
        mode: match value(&words, "mode").unwrap_or("automatic") {
            "automatic" => FailoverMode::Automatic,
            "manual" => FailoverMode::Manual,
            "follow" => FailoverMode::Follow,
            other => panic!("unknown mode {other}"),
        },
        nodes: names
            .map(|n| NodePolicy {
                name: (*n).into(),
                addresses: vec![format!("{n}:5432")],
                priority: priority(n),
                application_name: (*n).into(),
                local: local.contains(n),
            })
            .collect(),
        fall: u32::try_from(number("fall", 3)).unwrap(),
        rise: u32::try_from(number("rise", 2)).unwrap(),
        min_gap: time("min_gap", 60),
        max_per_hour: u32::try_from(number("per_hour", 3)).unwrap(),
        primary_start_timeout: time("start_timeout", 30),
        lag_bytes_max: number("lag", 1 << 20),
        promote_timeout: time("promote_timeout", 30),
        ailing: AilingPolicy::default(),
        means: Means {
            fencing: Fencing::of_word(value(&words, "fencing").unwrap_or("proxy")).unwrap(),
            fence_sql: words.contains(&"fence_sql"),
            hooks: HookKind::ALL.into_iter().filter(|kind| hooks.contains(&kind.word())).collect(),
            hook_timeout: Duration::from_secs(30),
            synchronous: usize::try_from(number("synchronous", 0)).unwrap(),
            degrade: if words.contains(&"degrade") { Degrade::Allow } else { Degrade::Never },
        },
    }
}

pub fn sender(name: &str) -> SyncStandby {
    SyncStandby { application_name: name.to_owned(), streaming: true, sync_state: SyncState::Quorum, flush_lsn: None }
}

pub fn parse_record(words: &[&str]) -> Option<Record> {
    (words[1] != "none").then(|| Record {
        system_id: SystemId(SYSTEM),
        epoch: Epoch(value(words, "epoch").unwrap().parse().unwrap()),
        primary: value(words, "primary").unwrap().to_owned(),
        timeline: TimelineId(value(words, "tli").unwrap().parse().unwrap()),
        promoted: !words.contains(&"promoting"),
        given_up: value(words, "given_up")
            .map(|names| names.split(',').map(str::to_owned).collect())
            .unwrap_or_default(),
    })
}

pub fn parse_failure(word: &str) -> ProbeFailure {
    match word {
        "refused" => ProbeFailure::Refused,
        "unreachable" => ProbeFailure::Unreachable,
        "timeout" => ProbeFailure::TimedOut,
        "lost" => ProbeFailure::SessionLost,
        "starting" => ProbeFailure::StartingUp,
        "stopping" => ProbeFailure::ShuttingDown,
        "full" => ProbeFailure::TooManyConnections,
        "starved" => ProbeFailure::Starved,
        "rejected" => ProbeFailure::Rejected("password authentication failed".to_owned()),
        other => panic!("unknown failure {other}"),
    }
}

pub fn parse_fact(node: NodeId, word: &str) -> Fact {
    match word {
        "refused" => Fact::ConnectRefused(node),
        "timeout" => Fact::ConnectTimedOut(node),
        "lost" => Fact::BackendLost(node),
        "shutdown" => Fact::ShutdownSaid(node),
        "write-refused" => Fact::WriteRefused(node),
        "role-changed" => Fact::RoleChanged(node),
        other => panic!("unknown fact {other}"),
    }
}

pub fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|w| w.split_once('=').filter(|(k, _)| *k == key).map(|(_, v)| v))
}

pub fn span(text: &str) -> Duration {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let number: f64 = digits.parse().unwrap_or_else(|_| panic!("not a span: {text}"));
    match &text[digits.len()..] {
        "ms" => Duration::from_secs_f64(number / 1000.0),
        "s" => Duration::from_secs_f64(number),
        "m" => Duration::from_secs_f64(number * 60.0),
        other => panic!("unknown unit {other} in {text}"),
    }
}
