//! What the tour saw, and whether that is what it claims.
//!
//! Pure: values in, claims out. Invariants: a claim without its measurement fails; every number shown is
//! counted, none is assumed. Absent on purpose: I/O and waiting.

use crate::clock::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Writes may be unacknowledged for this long around the loss of the primary.
const OUTAGE_MAX: Duration = Duration::from_secs(5);
/// A client may wait this long for one answer: a failover, and a little more.
const WAIT_MAX: Duration = Duration::from_secs(6);
/// With asynchronous replication, writes acknowledged up to this long before the kill may be lost.
const LOSS_WINDOW: Duration = Duration::from_millis(250);
/// Errors that one client may see because of one failover: the statement that was under way.
const ERRORS_PER_CLIENT_MAX: u64 = 1;

/// What a client of the tour does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientKind {
    /// Inserts ids and reads each back.
    Writer,
    /// Reads ids of others.
    Reader,
}

/// How long a client waited for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) took: Duration,
    /// When it asked.
    pub(super) asked: Time,
    /// For what: `connect`, `prepare`, `read`, `write`.
    pub(super) what: &'static str,
    /// Whether the client uses prepared statements.
    pub(super) prepared: bool,
}

/// What one client saw.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClientRecord {
    pub(super) kind: ClientKind,
    /// Ids whose INSERT was acknowledged, and when.
    pub(super) acknowledged: Vec<(u64, Time)>,
    /// Reads answered.
    pub(super) reads: u64,
    /// Own acknowledged ids that the same session did not find right afterwards.
    pub(super) unseen_own_ids: Vec<u64>,
    /// By SQLSTATE, or by what happened instead of an answer.
    pub(super) errors: BTreeMap<String, u64>,
    /// The longest wait, with or without an answer in the end.
    pub(super) longest_wait: Option<Wait>,
}

impl ClientRecord {
    pub(super) fn new(kind: ClientKind) -> Self {
        let (acknowledged, unseen_own_ids, errors) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { kind, acknowledged, reads: 0, unseen_own_ids, errors, longest_wait: None }
    }
}

/// Reads that a node answered, by its own statistics.
pub(super) type ReadsByNode = BTreeMap<String, u64>;

/// Everything measured.
#[derive(Clone, Debug)]
pub(super) struct Findings {
    pub(super) clients: Vec<ClientRecord>,
    /// Whether commits waited for a standby.
    pub(super) synchronous: bool,
    pub(super) killed_node: String,
    pub(super) killed_at: Time,
    /// When a standby was first seen out of recovery, and its name.
    pub(super) promoted: Option<(String, Time)>,
    /// Whether the killed node was rewound (not rebuilt), and how long it took until it streamed.
    pub(super) rejoined: Option<(bool, Duration)>,
    /// Reads before the kill and after the old primary rejoined.
    pub(super) reads_before: ReadsByNode,
    pub(super) reads_after: ReadsByNode,
    /// Nodes out of recovery at the end.
    pub(super) primaries: Vec<String>,
    /// Every id in the table at the end, in order, duplicates kept.
    pub(super) ids: Vec<u64>,
    /// The proxy's epoch before the kill and at the end, if it said so.
    pub(super) epochs: Option<(u64, u64)>,
}

/// One line of the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) holds: bool,
    pub(super) text: String,
}

impl Findings {
    fn acknowledged(&self) -> Vec<(u64, Time)> {
        let mut all: Vec<_> = self.clients.iter().flat_map(|client| client.acknowledged.iter().copied()).collect();
        all.sort_unstable_by_key(|(id, at)| (*at, *id));
        all
    }

    /// The longest time without an acknowledged write that ended after the kill. `None` if no write was
    /// acknowledged before or after.
    pub(super) fn outage(&self) -> Option<Duration> {
        let all = self.acknowledged();
        let pairs = all.windows(2).filter(|pair| pair[1].1 > self.killed_at);
        let longest = pairs.map(|pair| pair[1].1.since(pair[0].1)).max()?;
        // Gaps between writes that were all acknowledged on the dying primary prove nothing.
        let resumed = self.promoted.as_ref().is_some_and(|(_, at)| all.last().is_some_and(|last| last.1 > *at));
        resumed.then_some(longest)
    }

    /// Acknowledged ids that are not in the table, with the time of their acknowledgement.
    pub(super) fn lost(&self) -> Vec<(u64, Time)> {
        let present: BTreeSet<u64> = self.ids.iter().copied().collect();
        self.acknowledged().into_iter().filter(|(id, _)| !present.contains(id)).collect()
    }

    fn duplicates(&self) -> usize {
        self.ids.windows(2).filter(|pair| pair[0] == pair[1]).count()
    }

    fn errors(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (label, count) in self.clients.iter().flat_map(|client| &client.errors) {
            *all.entry(label.clone()).or_default() += count;
        }
        all
    }

    /// All claims, in the order of the story.
    pub(super) fn claims(&self) -> Vec<Claim> {
        let standbys = |reads: &ReadsByNode, primary: Option<&str>| {
            let others: Vec<_> = reads.iter().filter(|(name, _)| Some(name.as_str()) != primary).collect();
            let served = others.iter().filter(|(_, count)| **count > 0).count();
            (others.len() >= 2 && served == others.len(), show(reads))
        };
        let new_primary = self.promoted.as_ref().map(|(name, _)| name.as_str());
        let (before_holds, before) = standbys(&self.reads_before, Some(&self.killed_node));
        let (after_holds, after) = standbys(&self.reads_after, new_primary);
        let mut claims = vec![
            claim(before_holds, format!("before the kill both standbys served reads: {before}")),
            self.promotion(),
            self.short_outage(),
            self.small_loss(),
            claim(self.duplicates() == 0, format!("no write was carried out twice: {} were", self.duplicates())),
            self.own_writes(),
            self.few_errors(),
            self.short_waits(),
            self.rejoin(),
            claim(after_holds, format!("after that both standbys, the old primary among them, served reads: {after}")),
            claim(
                self.primaries.len() == 1 && self.primaries.first().map(String::as_str) == new_primary,
                format!("exactly one node is primary at the end: {}", self.primaries.join(", ")),
            ),
        ];
        if let Some((before, after)) = self.epochs {
            claims.push(claim(after == before + 1, format!("the epoch moved by one: {before} to {after}")));
        }
        claims
    }

    fn promotion(&self) -> Claim {
        match &self.promoted {
            Some((name, at)) => {
                let took = seconds(at.since(self.killed_at));
                claim(*name != self.killed_node, format!("{name} was promoted: {took} after the kill"))
            }
            None => claim(false, "a standby was promoted: none was".to_owned()),
        }
    }

    fn short_outage(&self) -> Claim {
        let bar = seconds(OUTAGE_MAX);
        match self.outage() {
            Some(outage) => claim(
                outage < OUTAGE_MAX,
                format!("writes resumed: longest time without an acknowledged write {} (bar {bar})", seconds(outage)),
            ),
            None => claim(false, format!("writes resumed (bar {bar}): they did not")),
        }
    }

    fn small_loss(&self) -> Claim {
        let (lost, all) = (self.lost(), self.acknowledged().len());
        if all == 0 {
            return claim(false, "no acknowledged write was lost: none was acknowledged".to_owned());
        }
        if lost.is_empty() || self.synchronous {
            return claim(lost.is_empty(), format!("no acknowledged write was lost: {} of {all} were", lost.len()));
        }
        let earliest = lost.iter().map(|(_, at)| *at).min().unwrap_or(Time::ZERO);
        claim(
            earliest >= self.killed_at - LOSS_WINDOW,
            format!(
                "asynchronous replication lost {} of {all} acknowledged writes; all were acknowledged less than {} before \
                 the kill, or after it (the earliest {} before; start with --synchronous to lose none)",
                lost.len(),
                seconds(LOSS_WINDOW),
                seconds(self.killed_at.since(earliest)),
            ),
        )
    }

    fn own_writes(&self) -> Claim {
        // What the failover lost is not there to be read; it counts as lost, not as a stale read.
        let present: BTreeSet<u64> = self.ids.iter().copied().collect();
        let unseen = self.clients.iter().flat_map(|client| &client.unseen_own_ids);
        let unseen = unseen.filter(|id| present.contains(id)).count();
        claim(unseen == 0, format!("every session read its own writes: {unseen} were missing"))
    }

    fn few_errors(&self) -> Claim {
        let most = self.clients.iter().map(|client| client.errors.values().sum::<u64>()).max().unwrap_or_default();
        claim(
            most <= ERRORS_PER_CLIENT_MAX && !self.clients.is_empty(),
            format!("no client saw more than {ERRORS_PER_CLIENT_MAX} error: the worst saw {most}"),
        )
    }

    /// The outage is seen by all clients together; one that hangs alone shows here.
    fn short_waits(&self) -> Claim {
        let bar = seconds(WAIT_MAX);
        let waits = self.clients.iter().filter_map(|client| Some((client.kind, client.longest_wait.as_ref()?)));
        let Some((kind, wait)) = waits.max_by_key(|(_, wait)| wait.took) else {
            return claim(false, format!("no client waited longer than {bar}: none waited at all"));
        };
        let protocol = if wait.prepared { "prepared" } else { "simple" };
        let since = if wait.asked < self.killed_at {
            format!("{} before", seconds(self.killed_at.since(wait.asked)))
        } else {
            format!("{} after", seconds(wait.asked.since(self.killed_at)))
        };
        let worst = format!("a {kind:?}, {} ({protocol}), asked {since} the kill", wait.what);
        let text = format!("no client waited longer than {bar} for an answer: {} ({worst})", seconds(wait.took));
        claim(wait.took <= WAIT_MAX, text)
    }

    fn rejoin(&self) -> Claim {
        let name = &self.killed_node;
        match self.rejoined {
            Some((true, took)) => {
                claim(true, format!("{name} was rewound and streams as a standby: it took {}", seconds(took)))
            }
            Some((false, _)) => claim(false, format!("{name} was rewound: it had to be rebuilt")),
            None => claim(false, format!("{name} rejoined as a standby: it did not")),
        }
    }

    fn longest_wait(&self) -> String {
        let waits = self.clients.iter().filter_map(|client| Some(client.longest_wait.as_ref()?.took));
        waits.max().map_or_else(|| "unknown".to_owned(), seconds)
    }

    /// The figures, one per line.
    pub(super) fn summary(&self) -> Vec<String> {
        let clients = |kind| self.clients.iter().filter(move |client| client.kind == kind).count();
        let reads: u64 = self.clients.iter().map(|client| client.reads).sum();
        let errors = show(&self.errors());
        let outage = self.outage().map_or_else(|| "writes did not resume".to_owned(), seconds);
        vec![
            format!(
                "clients               {} writers, {} readers",
                clients(ClientKind::Writer),
                clients(ClientKind::Reader)
            ),
            format!("writes acknowledged   {}", self.acknowledged().len()),
            format!("reads answered        {reads}"),
            format!("outage for writes     {outage}"),
            format!("longest wait          {}", self.longest_wait()),
            format!("acknowledged and lost {}", self.lost().len()),
            format!("errors by SQLSTATE    {}", if errors.is_empty() { "none" } else { &errors }),
            format!("reads before, by node {}", show(&self.reads_before)),
            format!("reads after, by node  {}", show(&self.reads_after)),
        ]
    }
}

fn claim(holds: bool, text: String) -> Claim {
    Claim { holds, text }
}

fn show(counts: &BTreeMap<String, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// `1.234 s`.
pub(super) fn seconds(span: Duration) -> String {
    format!("{:.3} s", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn reads(counts: [(&str, u64); 3]) -> ReadsByNode {
        counts.map(|(name, count)| (name.to_owned(), count)).into()
    }

    /// Killed at 10 s, promoted at 10.3 s; writes every 100 ms but for 9.9 s to 10.5 s.
    fn good() -> Findings {
        let mut writer = ClientRecord::new(ClientKind::Writer);
        let times = (80..100).chain(105..120);
        writer.acknowledged = times.enumerate().map(|(id, tenth)| (id as u64, at(tenth * 100))).collect();
        writer.errors.insert("57P01".to_owned(), 1);
        let took = Duration::from_millis(600);
        writer.longest_wait = Some(Wait { took, asked: at(9_900), what: "write", prepared: false });
        Findings {
            ids: (0..35).collect(),
            clients: vec![writer, ClientRecord::new(ClientKind::Reader)],
            synchronous: false,
            killed_node: "pg1".to_owned(),
            killed_at: at(10_000),
            promoted: Some(("pg2".to_owned(), at(10_300))),
            rejoined: Some((true, Duration::from_secs(1))),
            reads_before: reads([("pg1", 0), ("pg2", 5), ("pg3", 6)]),
            reads_after: reads([("pg1", 3), ("pg2", 0), ("pg3", 6)]),
            primaries: vec!["pg2".to_owned()],
            epochs: Some((1, 2)),
        }
    }

    /// The words that a failed claim begins with, for every claim that fails.
    fn failing(change: impl FnOnce(&mut Findings)) -> Vec<String> {
        let mut findings = good();
        change(&mut findings);
        findings.claims().into_iter().filter(|claim| !claim.holds).map(|claim| claim.text).collect()
    }

    #[test]
    fn a_good_run_passes_and_its_outage_is_the_gap_around_the_kill() {
        assert_eq!(failing(|_| ()), Vec::<String>::new());
        assert_eq!(good().outage(), Some(Duration::from_millis(600)));
    }

    /// How a failed claim begins, and what makes it fail.
    type Case = (&'static str, fn(&mut Findings));

    #[test]
    fn each_claim_can_fail_alone() {
        let cases: [Case; 13] = [
            ("before the kill", |f| f.reads_before = reads([("pg1", 9), ("pg2", 5), ("pg3", 0)])),
            ("writes resumed", |f| {
                let late = f.clients[0].acknowledged.iter_mut().filter(|(_, time)| *time > at(10_300));
                late.for_each(|(_, time)| *time = *time + OUTAGE_MAX);
            }),
            ("no acknowledged write was lost", |f| {
                f.synchronous = true;
                f.ids.retain(|id| *id != 19);
            }),
            ("asynchronous replication lost 1 of 35", |f| f.ids.retain(|id| *id != 3)),
            ("no write was carried out twice: 1", |f| f.ids.insert(4, 4)),
            ("every session read its own writes: 2", |f| f.clients[0].unseen_own_ids = vec![3, 4]),
            ("no client saw more than 1 error: the worst saw 2", |f| {
                f.clients[1].errors.insert("08006".to_owned(), 2);
            }),
            (
                "no client waited longer than 6.000 s for an answer: 20.000 s (a Reader, read (prepared), asked 0.100 s after",
                |f| {
                    let took = Duration::from_secs(20);
                    f.clients[1].longest_wait = Some(Wait { took, asked: at(10_100), what: "read", prepared: true });
                },
            ),
            ("pg1 was rewound: it had to be rebuilt", |f| f.rejoined = Some((false, Duration::ZERO))),
            ("pg1 rejoined as a standby: it did not", |f| f.rejoined = None),
            ("after that both standbys", |f| f.reads_after = reads([("pg1", 0), ("pg2", 5), ("pg3", 6)])),
            ("exactly one node is primary", |f| f.primaries.push("pg1".to_owned())),
            ("the epoch moved by one: 1 to 3", |f| f.epochs = Some((1, 3))),
        ];
        for (beginning, change) in cases {
            let failed = failing(change);
            assert!(failed.len() == 1 && failed[0].starts_with(beginning), "{beginning}: {failed:?}");
        }
    }

    #[test]
    fn no_promotion_fails_what_hangs_on_it() {
        let failed = failing(|f| f.promoted = None);
        assert!(failed.iter().any(|text| text.starts_with("a standby was promoted")), "{failed:?}");
        assert!(failed.iter().any(|text| text.starts_with("writes resumed")), "{failed:?}");
    }

    #[test]
    fn writes_acknowledged_just_before_the_kill_may_be_lost_without_synchronous_replication() {
        // Id 19 was acknowledged at 9.9 s.
        assert_eq!(failing(|f| f.ids.retain(|id| *id != 19)), Vec::<String>::new());
        let mut findings = good();
        findings.ids.retain(|id| *id != 19);
        assert_eq!(findings.lost(), [(19, at(9_900))]);
        // Not found after the failover, because it is lost: no stale read.
        findings.clients[0].unseen_own_ids.push(19);
        assert!(findings.claims().iter().all(|claim| claim.holds), "{:#?}", findings.claims());
    }

    #[test]
    fn writes_that_stop_for_good_are_no_short_outage() {
        let failed = failing(|f| f.clients[0].acknowledged.retain(|(_, t)| *t < at(10_100)));
        assert!(failed.iter().any(|text| text.ends_with("they did not")), "{failed:?}");
    }
}
