//! What must never happen, checked on the truth that no host sees.
//!
//! I1: no reply of an epoch is believed at or after the moment at which a promotion of a higher epoch was executed.
//! I2: permits that are live at one moment name one primary. I3: every believed write that waited for standbys is in
//! the history of every later primary; another one that is lost lies beyond the position at which its successor was
//! promoted. I4: an epoch names one primary. I5: no plan reads from a standby that is not on the primary's line.
//! I6: a candidate is promoted where it said that it stands still.
//!
//! What is not promised: I1 and I2 of what goes on without a quorum (`keep_primary`), I3 and I5 from then on; I3 of commits where
//! `synchronous_degrade = "allow"`, and of what a person gave up by an order (`loss_possible`, or one of two primaries named);
//! I6 of a lone proxy.

use crate::act::Permit;
use crate::setup::Store;
use crate::wal::Tip;
use crate::world::{Nanos, SEC, World, note};
use pgregent::failover::action::Plan;
use pgregent::topology::Role;

#[derive(Clone, Copy, Debug)]
struct Write {
    epoch: u64,
    node: usize,
    begun: Nanos,
    proxy: usize,
    record: Option<Tip>,
    believed: bool,
    lost: bool,
    /// It waited for standbys.
    promised: bool,
    /// It was routed, or believed, without a quorum.
    kept: bool,
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub violation: Option<String>,
    writes: Vec<Write>,
    /// The highest epoch of a promotion that a node has begun to execute.
    executed: u64,
    /// Epochs in which an operator was told that his order may lose writes, and had it carried out.
    pub risked: Vec<u64>,
    /// The last of them, and whom it names: whoever finishes that change takes the same risk.
    pub last_risk: Option<(u64, String)>,
    /// Somebody went on without a quorum: from then on two nodes may have been written to.
    pub without_quorum: bool,
    /// Epochs in which writes were opened.
    opened: Vec<u64>,
    /// By epoch, whom permits and promotions named.
    named: Vec<(u64, usize)>,
    /// The first record of every timeline that a promotion began, and the promotion's epoch.
    forks: Vec<(Tip, u64)>,
    /// Epoch and primary of the newest permit, and since when.
    pub latest: Option<(u64, usize, Nanos)>,
    pub promotions: u32,
    pub believed: u32,
    pub lost: u32,
    /// By proxy: the last believed write begun after the faults.
    pub healed: Vec<bool>,
    pub healed_at: Option<Nanos>,
    /// Why a person was needed at the end.
    pub person: Vec<String>,
}

impl Oracle {
    /// The highest epoch of a promotion that a node has begun to execute.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    pub fn begin(&mut self, proxy: usize, permit: Permit, now: Nanos) -> usize {
        let (epoch, node, kept) = (permit.epoch, permit.primary, permit.kept);
        self.without_quorum |= kept;
        self.writes.push(Write {
            epoch,
            node,
            begun: now,
            proxy,
            record: None,
            believed: false,
            lost: false,
            promised: false,
            kept,
        });
        self.writes.len() - 1
    }

    pub fn wrote(&mut self, write: usize, node: usize, record: Tip) {
        let write = &mut self.writes[write];
        debug_assert_eq!(write.node, node);
        write.record = Some(record);
    }

    pub fn promise(&mut self, write: usize) {
        self.writes[write].promised = true;
    }

    /// The highest that named anybody.
    pub fn newest_epoch(&self) -> u64 {
        self.named.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0)
    }

    pub fn epoch_of(&self, write: usize) -> u64 {
        self.writes[write].epoch
    }
}

impl World {
    pub fn violated(&mut self, what: String) {
        note!(self, "VIOLATION {what}");
        self.over = true;
        self.oracle.violation.get_or_insert(what);
    }

    fn name_epoch(&mut self, epoch: u64, node: usize) {
        match self.oracle.named.iter().find(|(named, _)| *named == epoch).copied() {
            None => self.oracle.named.push((epoch, node)),
            Some((_, other)) if other != node => {
                self.violated(format!("I4: epoch {epoch} names n{other} and n{node}"));
            }
            Some(_) => {}
        }
    }

    pub fn promotion_executed(&mut self, node: usize, epoch: u64) {
        let (still, at) = (self.nodes[node].still, self.wal.lsn(self.nodes[node].tip));
        // A proxy that is alone may promote one that it could not detach.
        let lenient = self.setup.store == Store::Single;
        if let Some(still) = still.filter(|still| *still != at && !lenient) {
            self.violated(format!("I6: n{node} is promoted at {at}, and said that it stands still at {still}"));
        }
        note!(self, "n{node} executes the promotion of epoch {epoch}");
        self.oracle.executed = self.oracle.executed.max(epoch);
        self.name_epoch(epoch, node);
    }

    pub fn promotion_done(&mut self, first: Tip, epoch: u64) {
        self.oracle.promotions += 1;
        self.oracle.forks.push((first, epoch));
    }

    pub fn permit_opened(&mut self, proxy: usize, permit: Permit) {
        for other in (0..self.proxies.len()).filter(|o| *o != proxy) {
            let live = self.permit_live(other).filter(|live| live.primary != permit.primary);
            // Going on without a quorum is a choice for writes over this promise.
            if let Some(live) = live.filter(|live| !live.kept && !permit.kept) {
                let what = format!("I2: p{proxy} may write to n{} ({}) while ", permit.primary, permit.epoch);
                return self.violated(format!("{what}p{other} may to n{} ({})", live.primary, live.epoch));
            }
        }
        self.name_epoch(permit.epoch, permit.primary);
        let newest = self.oracle.latest.is_none_or(|(epoch, ..)| permit.epoch > epoch);
        if newest {
            self.oracle.latest = Some((permit.epoch, permit.primary, self.now));
        }
        if !self.oracle.opened.contains(&permit.epoch) {
            self.oracle.opened.push(permit.epoch);
            note!(self, "p{proxy} opens writes to n{} in epoch {}", permit.primary, permit.epoch);
            self.check_history(permit.primary, permit.epoch);
        }
    }

    /// Which believed writes the primary lacks, and whether it may: only by a promotion of a higher epoch than
    /// theirs, of a standby that had not got as far.
    fn check_history(&mut self, primary: usize, epoch: u64) {
        let chosen = self.oracle.risked.contains(&epoch) || self.oracle.without_quorum;
        let tip = self.nodes[primary].tip;
        for index in 0..self.oracle.writes.len() {
            let write = self.oracle.writes[index];
            let Some(record) = write.record.filter(|_| write.believed && !write.lost) else { continue };
            if self.wal.holds(tip, record) {
                continue;
            }
            let fork = self.fork(tip, record);
            let promised =
                write.promised && !write.kept && !fork.is_some_and(|epoch| self.oracle.risked.contains(&epoch));
            if !chosen && (promised || fork.is_none_or(|epoch| epoch <= write.epoch)) {
                let (lsn, on) = (self.wal.lsn(record), write.node);
                let text = format!("I3: write {index} of epoch {} at {lsn} on n{on} is not on n{primary}", write.epoch);
                return self.violated(format!("{text}, whose line parted from it in epoch {fork:?}"));
            }
            self.oracle.writes[index].lost = true;
            self.oracle.lost += 1;
        }
    }

    /// The epoch of the promotion by which the line of `tip` left that of `record`.
    fn fork(&self, tip: Tip, record: Tip) -> Option<u64> {
        let ours = |first: Tip| self.wal.holds(tip, first) && !self.wal.holds(record, first);
        let first =
            self.oracle.forks.iter().filter(|(first, _)| ours(*first)).min_by_key(|(first, _)| self.wal.lsn(*first))?;
        self.wal.holds(record, self.wal.parent(first.0)).then_some(first.1)
    }

    pub fn believed(&mut self, write: usize) {
        let executed = self.oracle.executed;
        let proxy = self.oracle.writes[write].proxy;
        let kept = self.proxies[proxy].permit.is_some_and(|permit| permit.kept);
        self.oracle.without_quorum |= kept;
        let entry = &mut self.oracle.writes[write];
        entry.believed = true;
        entry.kept |= kept;
        self.oracle.believed += 1;
        let entry = *entry;
        if self.faults.healed.is_some_and(|at| entry.begun >= at) {
            self.oracle.healed[entry.proxy] = true;
        }
        if executed > entry.epoch && !kept {
            let text =
                format!("I1: p{} believes write {write} of epoch {} on n{}", entry.proxy, entry.epoch, entry.node);
            self.violated(format!("{text} after a promotion of epoch {executed}"));
        }
    }

    /// What the proxy knew when it planned: where each standby was at its last report.
    pub fn check_reads(&mut self, proxy: usize, plan: &Plan) {
        let free = self.oracle.without_quorum || self.proxies[proxy].standing.kept;
        let Some(primary) = plan.primary.map(|p| p.index()).filter(|_| !free) else { return };
        for (node, planned) in plan.nodes.iter().enumerate() {
            if planned.role != Role::Standby || !planned.readable {
                continue;
            }
            let known = self.proxies[proxy].reported[node];
            if self.nodes[node].diverged || !self.wal.same_line(known, self.nodes[primary].tip) {
                let (at, tip) = (self.wal.lsn(known), self.wal.lsn(self.nodes[primary].tip));
                self.violated(format!(
                    "I5: p{proxy} reads from n{node} at {at}, which is not on the line of n{primary} at {tip}"
                ));
                return;
            }
        }
    }

    pub fn check_reads_again(&mut self, proxy: usize) {
        if let Some(plan) = self.proxies[proxy].plan.take() {
            self.check_reads(proxy, &plan);
            self.proxies[proxy].plan = Some(plan);
        }
    }

    /// What a node is, in truth.
    fn shown(&self, node: usize) -> String {
        let (data, up) = (&self.nodes[node], self.servers[node].up);
        let role = if data.primary { "primary" } else { "standby" };
        let at = (self.wal.lsn(data.tip), data.conninfo, &data.names, data.read_only, data.diverged);
        format!(
            "n{node} {role} up={up} on {} at, following, waiting for, read-only, diverged: {at:?}",
            self.wal.timeline(data.tip)
        )
    }

    /// After the faults: is the cluster writable through every proxy yet?
    pub fn verdict(&mut self, bound: Nanos) {
        let healed = self.faults.healed.unwrap_or(self.now);
        if self.oracle.healed.iter().all(|h| *h) {
            self.oracle.healed_at = Some(self.now - healed);
            self.over = true;
            if let Some((epoch, primary, _)) = self.oracle.latest {
                self.check_history(primary, epoch);
            }
            return;
        }
        if self.now - healed < bound {
            return self.later(SEC / 4, crate::world::Event::Verdict);
        }
        self.over = true;
        let mut stuck = Vec::new();
        for proxy in 0..self.proxies.len() {
            if self.oracle.healed[proxy] {
                continue;
            }
            let machine = &self.proxies[proxy].machine;
            let holds = machine.holds();
            let person: Vec<String> =
                holds.iter().filter(|h| h.needs_person()).map(|h| kind(&format!("{h:?}"))).collect();
            if person.is_empty() {
                let state = machine.summary().state;
                stuck.push(format!("p{proxy} {state} {holds:?}"));
            } else {
                self.oracle.person.extend(person);
            }
        }
        self.oracle.person.sort();
        self.oracle.person.dedup();
        if self.oracle.person.is_empty() {
            stuck.extend((0..self.nodes.len()).map(|node| self.shown(node)));
            self.violated(format!("not writable {} s after the last fault: {}", bound / SEC, stuck.join("; ")));
        }
    }
}

/// The variant's name, and that of a variant in it.
fn kind(debug: &str) -> String {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric()).collect::<String>();
    match debug.split_once("why: ") {
        Some((_, why)) => format!("{}/{}", word(debug), word(why)),
        None => word(debug),
    }
}
