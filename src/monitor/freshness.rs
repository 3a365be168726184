//! How fresh each standby is, from samples of the primary's WAL and positions replayed.
//!
//! Pure. A sample *sent* at time t that returned position L proves that every write acknowledged
//! before t lies at or below L. A standby that has replayed up to L is therefore fresh as of t, and a
//! session may read there if its last write was acknowledged at or before t.
//!
//! Invariants: `fresh_as_of` is never later than a sample that the standby has provably reached on the
//! primary's own timeline; everything proven is void after a change of epoch or primary, after the
//! standby's session was lost (a restarted standby may show older data for a while), and after its
//! shared memory was re-created. Samples are bounded.
//!
//! Which position: there are two watermarks. The flush position covers every acknowledged commit except those made
//! with `synchronous_commit = off`; only the insert position covers these too, but it also counts records
//! that nobody flushes until the next commit, so that an idle cluster would look behind for many seconds. So the
//! insert position counts only for sessions that have to do with such commits. The flush position may lie
//! inside a record whose rest is not flushed yet; such a sample is reached only when the record is
//! complete, which is late but never wrong.
//!
//! Absent on purpose: any extension beyond what a sample proved ("nobody has written since").

use crate::clock::Time;
use crate::ids::{Epoch, Lsn, NodeId, TimelineId};
use crate::topology::NodeReport;
use std::collections::VecDeque;
use std::time::Duration;

/// Samples kept. When full, they are thinned out so that old samples stay available at a coarser
/// grain for a standby that is far behind.
pub const SAMPLES_MAX: usize = 256;
/// Missing WAL up to this many bytes (one WAL page) is no time lag: the flush position may be a page
/// boundary in the middle of a record, which nobody can replay.
const PAGE_BYTES: u64 = 8192;

/// The state. One per cluster.
#[derive(Debug)]
pub struct Freshness {
    epoch: Epoch,
    primary: Option<NodeId>,
    round: u64,
    timeline: Option<TimelineId>,
    flushed: Watermark,
    inserted: Watermark,
    nodes: Vec<Proof>,
}

/// Samples of one kind of position, both times and positions ascending.
#[derive(Debug)]
struct Watermark {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    sent_at: Time,
    lsn: Lsn,
}

/// What is proven about one standby.
#[derive(Clone, Copy, Debug, Default)]
struct Proof {
    fresh_as_of: Time,
    fresh_as_of_unflushed: Time,
    replayed: Option<Lsn>,
    timeline: Option<TimelineId>,
    incarnation: Option<i64>,
}

impl Freshness {
    /// Nothing is proven for any of `nodes` nodes.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            epoch: Epoch(0),
            primary: None,
            round: 0,
            timeline: None,
            flushed: Watermark::default(),
            inserted: Watermark::default(),
            nodes: vec![Proof::default(); nodes],
        }
    }

    /// Whose WAL counts now. A new epoch or another primary voids everything and starts a new round;
    /// a primary that is merely absent for a while voids nothing.
    pub fn follow(&mut self, epoch: Epoch, primary: Option<NodeId>) {
        let replaced = primary.is_some() && primary != self.primary;
        if epoch != self.epoch || replaced {
            self.epoch = epoch;
            self.round += 1;
            self.timeline = None;
            self.flushed.samples.clear();
            self.inserted.samples.clear();
            self.nodes.fill(Proof::default());
        }
        self.primary = primary.or(self.primary);
    }

    /// Grows whenever everything was voided; samples and positions of an older round must be ignored.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.round
    }

    /// A probe's answer: a sample if it came from the primary, a position otherwise.
    pub fn probed(&mut self, node: NodeId, report: &NodeReport) {
        if Some(node) == self.primary && !report.in_recovery {
            self.timeline = Some(report.timeline);
            self.sampled(self.round, node, report.sent_at, report.flush_lsn, None);
            return;
        }
        let Some(proof) = self.nodes.get_mut(node.index()) else { return };
        if !report.in_recovery || proof.incarnation.is_some_and(|known| known != report.incarnation) {
            *proof = Proof::default();
        }
        proof.incarnation = Some(report.incarnation);
        proof.timeline = Some(report.timeline);
        if report.in_recovery {
            self.replayed(self.round, node, report.replay_lsn);
        }
    }

    /// A sample of the primary's flush position and, if it was asked for, its insert position, sent at `sent_at`.
    pub fn sampled(&mut self, round: u64, node: NodeId, sent_at: Time, flushed: Lsn, inserted: Option<Lsn>) {
        if round != self.round || Some(node) != self.primary {
            return;
        }
        self.flushed.add(sent_at, flushed);
        if let Some(inserted) = inserted {
            self.inserted.add(sent_at, inserted);
        }
        for index in 0..self.nodes.len() {
            self.prove(index);
        }
    }

    /// A standby has replayed up to `lsn`.
    pub fn replayed(&mut self, round: u64, node: NodeId, lsn: Lsn) {
        if round != self.round {
            return;
        }
        let Some(proof) = self.nodes.get_mut(node.index()) else { return };
        proof.replayed = proof.replayed.max(Some(lsn));
        self.prove(node.index());
    }

    /// Nothing is known about a standby any more.
    pub fn lost(&mut self, node: NodeId) {
        if let Some(proof) = self.nodes.get_mut(node.index()) {
            *proof = Proof::default();
        }
    }

    /// Every write acknowledged by the primary at or before this point is visible on the standby.
    #[must_use]
    pub fn fresh_as_of(&self, node: NodeId) -> Time {
        self.nodes.get(node.index()).map_or(Time::ZERO, |proof| proof.fresh_as_of)
    }

    /// The same, counting writes that were acknowledged before they were flushed.
    #[must_use]
    pub fn fresh_as_of_unflushed(&self, node: NodeId) -> Time {
        self.nodes.get(node.index()).map_or(Time::ZERO, |proof| proof.fresh_as_of_unflushed)
    }

    /// The primary's newest known flush position.
    #[must_use]
    pub fn newest(&self) -> Option<Lsn> {
        self.flushed.newest()
    }

    /// The position that standbys should reach: where the primary has flushed to or, while somebody waits for
    /// commits that may not be flushed yet, where it has written to.
    #[must_use]
    pub fn goal(&self, unflushed: bool) -> Lsn {
        let inserted = if unflushed { self.inserted.newest() } else { None };
        self.flushed.newest().max(inserted).unwrap_or_default()
    }

    /// The newest position a standby is known to have replayed.
    #[must_use]
    pub fn replay_lsn(&self, node: NodeId) -> Option<Lsn> {
        self.nodes.get(node.index()).and_then(|proof| proof.replayed)
    }

    /// The same, with the timeline it is on.
    #[must_use]
    pub fn replayed_on(&self, node: NodeId) -> Option<(TimelineId, Lsn)> {
        let proof = self.nodes.get(node.index())?;
        proof.timeline.zip(proof.replayed)
    }

    /// WAL bytes between the newest sample and what the standby has replayed, where both are known.
    #[must_use]
    pub fn lag_bytes(&self, node: NodeId) -> Option<u64> {
        Some(self.newest()?.bytes_since(self.replay_lsn(node)?))
    }

    /// How long ago, at `now`, the oldest WAL existed that the standby has not replayed: a lower bound
    /// for its lag in time, zero when it has reached the newest sample.
    #[must_use]
    pub fn replay_lag(&self, node: NodeId, now: Time) -> Option<Duration> {
        let replayed = self.replay_lsn(node)?;
        if self.lag_bytes(node)? <= PAGE_BYTES {
            return Some(Duration::ZERO);
        }
        self.flushed.first_above(replayed).map(|missed| now.since(missed))
    }

    fn prove(&mut self, index: usize) {
        let proof = &mut self.nodes[index];
        // On another timeline equal positions are different records.
        if self.timeline.is_none() || proof.timeline != self.timeline {
            (proof.fresh_as_of, proof.fresh_as_of_unflushed) = (Time::ZERO, Time::ZERO);
            return;
        }
        let Some(replayed) = proof.replayed else { return };
        proof.fresh_as_of = proof.fresh_as_of.max(self.flushed.reached(replayed));
        proof.fresh_as_of_unflushed = proof.fresh_as_of_unflushed.max(self.inserted.reached(replayed));
    }
}

impl Default for Watermark {
    fn default() -> Self {
        Self { samples: VecDeque::with_capacity(SAMPLES_MAX) }
    }
}

impl Watermark {
    fn add(&mut self, sent_at: Time, lsn: Lsn) {
        if let Some(newest) = self.samples.back_mut() {
            if sent_at <= newest.sent_at {
                return;
            }
            if lsn <= newest.lsn {
                // Nothing was written in between, so reaching the older one proves as much as reaching this one.
                newest.sent_at = if lsn == newest.lsn { sent_at } else { newest.sent_at };
                return;
            }
        }
        if self.samples.len() == SAMPLES_MAX {
            self.thin_out();
        }
        self.samples.push_back(Sample { sent_at, lsn });
    }

    fn newest(&self) -> Option<Lsn> {
        self.samples.back().map(|sample| sample.lsn)
    }

    /// When the newest sample was sent that lies at or below `lsn`.
    fn reached(&self, lsn: Lsn) -> Time {
        let reached = self.samples.partition_point(|sample| sample.lsn <= lsn);
        reached.checked_sub(1).and_then(|last| self.samples.get(last)).map_or(Time::ZERO, |sample| sample.sent_at)
    }

    /// When the oldest sample was sent that lies above `lsn`.
    fn first_above(&self, lsn: Lsn) -> Option<Time> {
        let next = self.samples.partition_point(|sample| sample.lsn <= lsn);
        self.samples.get(next).map(|sample| sample.sent_at)
    }

    /// Drops the sample whose neighbours are closest together for its age: what is left is dense among
    /// the young and sparse among the old, and a standby at any lag finds one not much older than that.
    fn thin_out(&mut self) {
        let Some(newest) = self.samples.back().map(|sample| sample.sent_at) else { return };
        let worth = |at: usize| {
            let gap = self.samples[at + 1].sent_at.since(self.samples[at - 1].sent_at);
            let age = newest.since(self.samples[at].sent_at) + Duration::from_micros(1);
            gap.as_secs_f64() / age.as_secs_f64()
        };
        let inner = 1..self.samples.len().saturating_sub(1);
        if let Some(cheapest) = inner.min_by(|a, b| worth(*a).total_cmp(&worth(*b))) {
            self.samples.remove(cheapest);
        }
    }
}

/// Length of the header of a WAL page, and of the first page of a segment (`XLogPageHeaderData` and
/// `XLogLongPageHeaderData` in PostgreSQL's `xlog_internal.h`, aligned to 8 bytes).
const PAGE_HEADER_BYTES: u64 = 24;
/// See [`PAGE_HEADER_BYTES`].
const SEGMENT_HEADER_BYTES: u64 = 40;

/// The end of the last record, from an insert position: at the beginning of a page this counts the page's header,
/// which no replay reaches until there is a record behind it. Sizes in bytes, as the server has them.
#[must_use]
pub fn end_of_records(insert: Lsn, segment_bytes: u64, page_bytes: u64) -> Lsn {
    let into = |size: u64| insert.0.checked_rem(size).unwrap_or(u64::MAX);
    if into(segment_bytes) == SEGMENT_HEADER_BYTES {
        Lsn(insert.0 - SEGMENT_HEADER_BYTES)
    } else if into(page_bytes) == PAGE_HEADER_BYTES && into(segment_bytes) != PAGE_HEADER_BYTES {
        Lsn(insert.0 - PAGE_HEADER_BYTES)
    } else {
        insert
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SystemId;
    use proptest::prelude::*;

    const P: NodeId = NodeId(0);
    const S: NodeId = NodeId(1);

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    fn report(sent: u64, in_recovery: bool, timeline: u32, lsn: u64) -> NodeReport {
        NodeReport {
            sent_at: at(sent),
            system_id: SystemId(1),
            in_recovery,
            timeline: TimelineId(timeline),
            flush_lsn: Lsn(lsn),
            replay_lsn: Lsn(lsn),
            replay_paused: false,
            receiver: None,
            incarnation: 1,
            redo_lsn: Lsn(0),
            version_num: 150_000,
            ..NodeReport::default()
        }
    }

    /// Primary at 1000 sent at 10 ms, standby known and at 0.
    fn pair() -> Freshness {
        let mut f = Freshness::new(2);
        f.follow(Epoch(1), Some(P));
        f.probed(S, &report(9, true, 1, 0));
        f.probed(P, &report(10, false, 1, 1000));
        f
    }

    #[test]
    fn a_standby_is_as_fresh_as_the_newest_sample_it_has_reached() {
        let mut f = pair();
        assert_eq!(f.fresh_as_of(S), Time::ZERO);
        f.sampled(f.round(), P, at(20), Lsn(2000), None);
        f.replayed(f.round(), S, Lsn(999));
        assert_eq!(f.fresh_as_of(S), Time::ZERO);
        f.replayed(f.round(), S, Lsn(1999));
        assert_eq!(f.fresh_as_of(S), at(10));
        f.replayed(f.round(), S, Lsn(2000));
        assert_eq!(f.fresh_as_of(S), at(20));
    }

    #[test]
    fn a_sample_counts_at_once_where_it_is_already_replayed() {
        let mut f = pair();
        f.replayed(f.round(), S, Lsn(5000));
        f.sampled(f.round(), P, at(30), Lsn(1000), None);
        assert_eq!(f.fresh_as_of(S), at(30), "same position, later proof");
        f.sampled(f.round(), P, at(40), Lsn(5000), None);
        assert_eq!(f.fresh_as_of(S), at(40));
        f.sampled(f.round(), P, at(35), Lsn(5000), None);
        f.sampled(f.round(), P, at(50), Lsn(4000), None);
        assert_eq!(f.fresh_as_of(S), at(40), "an older or shrinking sample proves nothing new");
    }

    #[test]
    fn a_new_epoch_voids_everything_and_late_answers_of_the_old_round_are_ignored() {
        let mut f = pair();
        f.replayed(f.round(), S, Lsn(1000));
        let old = f.round();
        f.follow(Epoch(1), None);
        assert_eq!(f.fresh_as_of(S), at(10), "an absent primary voids nothing");
        f.follow(Epoch(2), Some(P));
        assert_eq!((f.fresh_as_of(S), f.newest()), (Time::ZERO, None));
        f.sampled(old, P, at(20), Lsn(1000), None);
        f.replayed(old, S, Lsn(1000));
        assert_eq!((f.fresh_as_of(S), f.newest(), f.replay_lsn(S)), (Time::ZERO, None, None));
    }

    #[test]
    fn a_standby_on_another_timeline_is_never_fresh() {
        let mut f = pair();
        f.follow(Epoch(2), Some(P));
        f.probed(P, &report(20, false, 2, 1500));
        f.probed(S, &report(21, true, 1, 9000));
        f.replayed(f.round(), S, Lsn(9999));
        assert_eq!(f.fresh_as_of(S), Time::ZERO);
        f.probed(S, &report(22, true, 2, 1500));
        assert_eq!(f.fresh_as_of(S), at(20));
        f.probed(S, &report(23, true, 1, 1500));
        assert_eq!(f.fresh_as_of(S), Time::ZERO);
    }

    #[test]
    fn a_restarted_standby_must_prove_itself_anew() {
        let mut f = pair();
        f.replayed(f.round(), S, Lsn(1000));
        let restarted = NodeReport { incarnation: 2, ..report(30, true, 1, 400) };
        f.probed(S, &restarted);
        assert_eq!((f.fresh_as_of(S), f.replay_lsn(S)), (Time::ZERO, Some(Lsn(400))));
        f.replayed(f.round(), S, Lsn(1000));
        assert_eq!(f.fresh_as_of(S), at(10));
        f.lost(S);
        assert_eq!((f.fresh_as_of(S), f.replay_lsn(S)), (Time::ZERO, None));
    }

    #[test]
    fn lag_is_counted_from_the_first_sample_not_reached() {
        let mut f = pair();
        f.replayed(f.round(), S, Lsn(1000));
        f.sampled(f.round(), P, at(100), Lsn(50_000), None);
        f.sampled(f.round(), P, at(200), Lsn(60_000), None);
        assert_eq!(f.lag_bytes(S), Some(59_000));
        assert_eq!(f.replay_lag(S, at(500)), Some(Duration::from_millis(400)));
        f.replayed(f.round(), S, Lsn(59_000));
        assert_eq!(f.replay_lag(S, at(500)), Some(Duration::ZERO), "less than a page is an unfinished record");
    }

    #[test]
    fn a_standby_far_behind_still_becomes_fresher_while_samples_pour_in() {
        let mut f = pair();
        // One sample per 5 ms, the standby 20 s (4000 samples) behind.
        for n in 1..=8000u64 {
            f.sampled(f.round(), P, at(10 + n * 5), Lsn(1000 + n), None);
            if n > 4000 {
                f.replayed(f.round(), S, Lsn(1000 + n - 4000));
            }
            assert!(f.flushed.samples.len() <= SAMPLES_MAX);
        }
        let behind = at(10 + 8000 * 5).since(f.fresh_as_of(S));
        assert!(behind >= Duration::from_secs(20), "{behind:?}");
        assert!(behind < Duration::from_secs(23), "{behind:?}");
    }

    #[test]
    fn unflushed_writes_have_a_watermark_of_their_own() {
        let mut f = pair();
        f.sampled(f.round(), P, at(20), Lsn(1000), Some(Lsn(3000)));
        f.replayed(f.round(), S, Lsn(2999));
        assert_eq!((f.fresh_as_of(S), f.fresh_as_of_unflushed(S)), (at(20), Time::ZERO));
        assert_eq!((f.goal(false), f.goal(true)), (Lsn(1000), Lsn(3000)));
        f.replayed(f.round(), S, Lsn(3000));
        assert_eq!((f.fresh_as_of_unflushed(S), f.replayed_on(S)), (at(20), Some((TimelineId(1), Lsn(3000)))));
        f.lost(S);
        assert_eq!((f.fresh_as_of_unflushed(S), f.replayed_on(S)), (Time::ZERO, None));
    }

    #[test]
    fn headers_of_pages_are_no_records() {
        let (segment, page) = (1 << 24, 8192);
        let end = |lsn: u64| end_of_records(Lsn(lsn), segment, page).0;
        assert_eq!(end(8192 + 24), 8192);
        assert_eq!(end(8192 + 25), 8192 + 25);
        assert_eq!(end((1 << 24) + 40), 1 << 24);
        // On any other page a record may end there.
        assert_eq!(end(8192 + 40), 8192 + 40);
        assert_eq!(end((1 << 24) + 24), (1 << 24) + 24);
        assert_eq!(end_of_records(Lsn(8216), 0, 0), Lsn(8216));
    }

    proptest! {
        /// Whatever the order of events: fresh as of t means that the position of some sample sent at
        /// or after t... was replayed, that is: all writes acknowledged up to t are there.
        #[test]
        fn never_fresher_than_the_truth(steps in prop::collection::vec((0u8..4, 0u64..40), 1..200)) {
            let mut f = pair();
            let (mut now, mut wal, mut replayed) = (10u64, 1000u64, 0u64);
            // (time, position): every write acknowledged up to then lies at or below.
            let mut history = vec![(10u64, 1000u64)];
            for (what, amount) in steps {
                now += 1;
                match what {
                    0 => { wal += amount; history.push((now, wal)); }
                    1 => f.sampled(f.round(), P, at(now), Lsn(wal), None),
                    2 => { replayed = (replayed + amount * 30).min(wal); f.replayed(f.round(), S, Lsn(replayed)); }
                    _ => f.lost(S),
                }
                if what == 3 { f.probed(S, &report(now, true, 1, replayed)); }
                let fresh = f.fresh_as_of(S);
                let needed = history.iter().filter(|(t, _)| at(*t) < fresh).map(|(_, p)| *p).max().unwrap_or(0);
                prop_assert!(replayed >= needed, "fresh as of {fresh} but {replayed} < {needed}");
            }
        }
    }
}
