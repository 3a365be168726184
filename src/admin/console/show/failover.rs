//! SHOW FAILOVER, HOLDS, CANDIDATES and EVENTS: where the cluster stands, what keeps a failover from happening, whom it
//! would promote, and what happened last.
//!
//! Invariants: the same picture as `/api/v1/failover`; ages are as of the answer; what does not apply is NULL. Absent
//! on purpose: judgement (the machine's) and orders (`orders`).

use super::super::snapshot::Snapshot;
use super::super::table::{Row, Value, int8, text};
use super::{Report, Show};
use crate::config::{CoordinationKind, QuorumLoss};
use crate::failover::controller::{CandidateStatus, ClusterStatus, HoldStatus, NodeStatus};
use crate::topology::PatroniWord;

pub(super) static FAILOVER: Show = Show {
    name: "failover",
    alias: None,
    doc: "Where the cluster stands: state, primary, lease, limits, the last failover, and what one would come to now.",
    own: Some(Report { columns: &[text("item"), text("value")], rows: failover }),
    bouncer: None,
};

pub(super) static HOLDS: Show = Show {
    name: "holds",
    alias: None,
    doc: "What keeps the failover machine from acting now, and what would keep it if the primary were lost.",
    own: Some(Report {
        columns: &[text("when"), text("kind"), text("node"), text("needs_person"), text("text")],
        rows: holds,
    }),
    bouncer: None,
};

pub(super) static CANDIDATES: Show = Show {
    name: "candidates",
    alias: None,
    doc: "What each node's probes say, and why it could or could not be promoted now.",
    own: Some(Report {
        columns: &[
            text("node"),
            text("role"),
            text("health"),
            text("condition"),
            int8("misses"),
            int8("trouble_ms"),
            text("evidence"),
            int8("priority"),
            text("sync"),
            text("position"),
            text("history"),
            int8("behind_bytes"),
            int8("rank"),
            text("before"),
            text("veto"),
            text("verdict"),
        ],
        rows: candidates,
    }),
    bouncer: None,
};

pub(super) static EVENTS: Show = Show {
    name: "events",
    alias: None,
    doc: "What the control plane did and said last, the latest at the end, and how long each step took.",
    own: Some(Report {
        columns: &[int8("age_ms"), text("level"), text("kind"), text("node"), text("took_ms"), text("text")],
        rows: events,
    }),
    bouncer: None,
};

fn yes(truth: bool) -> Value {
    Value::from(if truth { "yes" } else { "no" })
}

/// Numbers are texts here, because the column holds both.
fn number(number: impl ToString) -> Value {
    Value::from(number.to_string())
}

fn failover(snapshot: &Snapshot) -> Vec<Row> {
    let status = snapshot.control.at(snapshot.now);
    let machine = &status.failover;
    let mut items = vec![
        ("state", Value::from(machine.state)),
        ("mode", Value::from(machine.mode)),
        ("paused", yes(machine.paused)),
        ("primary", Value::from(status.primary.clone())),
        ("epoch", number(status.epoch)),
        ("timeline", machine.timeline.map_or(Value::Null, number)),
        ("system_id", Value::from(machine.system_id.clone())),
        ("writes", Value::from(status.writes)),
        ("writes_why", Value::from(status.writes_why.clone())),
    ];
    items.extend([("patroni_leader", leads(&status)), ("patroni", patroni(&status))]);
    items.extend(shared(snapshot, &status));
    items.extend([
        ("would_promote", Value::from(status.outlook.candidate.clone())),
        ("holds", kinds(&status.holds)),
        ("would_be_held", kinds(&status.outlook.holds)),
        ("failovers_within_hour", number(status.outlook.within_hour)),
        ("failovers_max_per_hour", number(status.outlook.max_per_hour)),
        ("failover_gap_left_ms", number(status.outlook.gap_left_ms)),
        ("failovers", number(machine.failovers)),
    ]);
    items.extend(last(&status));
    items.into_iter().map(|(item, value)| vec![Value::from(item), value]).collect()
}

/// What Patroni says of each node, and how old that is; NULL where it is not asked.
fn patroni(status: &ClusterStatus) -> Value {
    let word = |node: &NodeStatus| {
        Some(format!("{}: {}, {} ms ago", node.name, node.patroni_text?, node.patroni_age_ms.unwrap_or_default()))
    };
    let words: Vec<String> = status.nodes.iter().filter_map(word).collect();
    Value::from((!words.is_empty()).then(|| words.join("; ")))
}

/// Whom Patroni calls its leader: one node, or NULL, or several for a moment while it moves its lock.
fn leads(status: &ClusterStatus) -> Value {
    let called = status.nodes.iter().filter(|node| node.patroni == Some(PatroniWord::Primary.word()));
    let names: Vec<&str> = called.map(|node| node.name.as_str()).collect();
    Value::from((!names.is_empty()).then(|| names.join(", ")))
}

/// What the store gives, where several proxies share one.
fn shared(snapshot: &Snapshot, status: &ClusterStatus) -> [(&'static str, Value); 9] {
    let standing = status.standing.as_ref();
    let lease = standing.and_then(|standing| standing.lease.as_ref());
    let right = standing.and_then(|standing| standing.right.as_ref());
    let cluster = &snapshot.config.cluster;
    let nodes = |nodes: &Option<Vec<String>>| nodes.as_ref().map_or("all".to_owned(), |names| names.join(", "));
    let loss = (cluster.coordination != CoordinationKind::Single).then(|| match standing {
        Some(standing) if standing.quorum_lost_and_kept => "keep_primary: the quorum is lost, writes go on",
        _ if cluster.on_quorum_loss == QuorumLoss::KeepPrimary => "keep_primary",
        _ => "stop_writes",
    });
    [
        ("coordination", Value::from(status.coordination)),
        ("lease_primary", Value::from(lease.map(|lease| lease.primary.clone()))),
        ("lease_epoch", lease.map_or(Value::Null, |lease| number(lease.epoch))),
        ("lease_left_ms", lease.map_or(Value::Null, |lease| number(lease.left_ms))),
        ("right_left_ms", right.map_or(Value::Null, |right| number(right.left_ms))),
        ("right_nodes", Value::from(right.map(|right| nodes(&right.nodes)))),
        ("lack", Value::from(standing.and_then(|standing| standing.lack.clone()))),
        ("ordered_elsewhere", standing.map_or(Value::Null, |standing| yes(standing.ordered))),
        ("on_quorum_loss", Value::from(loss)),
    ]
}

fn last(status: &ClusterStatus) -> Vec<(&'static str, Value)> {
    let Some(last) = &status.failover.last_failover else { return Vec::new() };
    vec![
        ("last_from", Value::from(last.from.clone())),
        ("last_to", Value::from(last.to.clone())),
        ("last_epoch", number(last.epoch)),
        ("last_cause", Value::from(last.cause.clone())),
        ("last_took_ms", number(last.took_ms)),
        ("last_missing_bytes", number(last.missing_bytes)),
        ("last_age_ms", number(last.age_ms)),
    ]
}

/// The kinds of holds, each once; NULL: none.
fn kinds(holds: &[HoldStatus]) -> Value {
    let mut kinds: Vec<&str> = holds.iter().map(|hold| hold.kind).collect();
    kinds.dedup();
    Value::from((!kinds.is_empty()).then(|| kinds.join(", ")))
}

fn holds(snapshot: &Snapshot) -> Vec<Row> {
    let status = &snapshot.control;
    let row = |when: &'static str, hold: &HoldStatus| {
        vec![
            Value::from(when),
            Value::from(hold.kind),
            Value::from(hold.node.clone()),
            yes(hold.needs_person),
            Value::from(hold.text.clone()),
        ]
    };
    let now = status.holds.iter().map(|hold| row("now", hold));
    let then = status.outlook.holds.iter().map(|hold| row("at a failover", hold));
    now.chain(then).collect()
}

fn candidates(snapshot: &Snapshot) -> Vec<Row> {
    let status = snapshot.control.at(snapshot.now);
    status.nodes.iter().filter_map(|node| Some(candidate(&status, node, node.candidate.as_ref()?))).collect()
}

fn candidate(status: &ClusterStatus, node: &NodeStatus, candidate: &CandidateStatus) -> Row {
    let verdict = match &candidate.why {
        Some(why) => format!("no: {why}"),
        None if status.outlook.candidate.as_ref() == Some(&node.name) => "would be promoted".to_owned(),
        None if status.primary.as_ref() == Some(&node.name) => "is the primary".to_owned(),
        None if candidate.in_question => "could be promoted".to_owned(),
        None => "was the primary".to_owned(),
    };
    vec![
        Value::from(node.name.clone()),
        Value::from(node.role),
        Value::from(node.health),
        Value::from(candidate.condition),
        Value::from(u64::from(candidate.misses)),
        Value::from(candidate.trouble_ms),
        Value::from(candidate.evidence),
        Value::from(u64::from(candidate.priority)),
        yes(candidate.sync_member),
        Value::from(candidate.position.clone()),
        Value::from(node.history.clone()),
        Value::from(candidate.behind_bytes),
        Value::from(candidate.rank.and_then(|rank| u64::try_from(rank).ok())),
        Value::from(candidate.before.clone()),
        Value::from(candidate.veto),
        Value::from(verdict),
    ]
}

fn events(snapshot: &Snapshot) -> Vec<Row> {
    let status = snapshot.control.at(snapshot.now);
    let rows = status.recent.iter().map(|event| {
        vec![
            Value::from(event.age_ms),
            Value::from(event.level),
            Value::from(event.kind),
            Value::from(event.node.clone()),
            Value::from(event.took_ms.map(|took| format!("{took:.1}"))),
            Value::from(event.text.clone()),
        ]
    });
    rows.collect()
}
