//! What must never happen, checked on the truth that no host sees.
//!
//! I1: no reply of an epoch is believed at or after the moment at which a promotion of a higher epoch was executed.
//! I2: permits that are live at one moment name one primary. I3: in synchronous mode every believed write is in the
//! history of every later primary; in asynchronous mode a lost one lies beyond the position at which its successor was
//! promoted. I4: an epoch names one primary. I5: no plan reads from a standby that is not on the primary's line.
//! I6: a candidate is promoted where it said that it stands still.

use crate::proxy::Permit;
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
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub violation: Option<String>,
    writes: Vec<Write>,
    /// The highest epoch of a promotion that a node has begun to execute.
    executed: u64,
    /// Epochs in which an operator was told that his order may lose writes, and had it carried out.
    pub risked: Vec<u64>,
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
    pub fn begin(&mut self, proxy: usize, permit: Permit, now: Nanos) -> usize {
        let (epoch, node) = (permit.epoch, permit.primary);
        self.writes.push(Write { epoch, node, begun: now, proxy, record: None, believed: false, lost: false });
        self.writes.len() - 1
    }

    pub fn wrote(&mut self, write: usize, node: usize, record: Tip) {
        let write = &mut self.writes[write];
        debug_assert_eq!(write.node, node);
        write.record = Some(record);
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
        if let Some(still) = still.filter(|still| *still != at) {
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
            if let Some(live) = self.permit_live(other).filter(|live| live.primary != permit.primary) {
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
            self.check_history(permit.primary);
        }
    }

    /// Which believed writes the primary lacks, and whether it may: only by a promotion of a higher epoch than
    /// theirs, of a standby that had not got as far.
    fn check_history(&mut self, primary: usize) {
        let tip = self.nodes[primary].tip;
        for index in 0..self.oracle.writes.len() {
            let write = self.oracle.writes[index];
            let Some(record) = write.record.filter(|_| write.believed && !write.lost) else { continue };
            if self.wal.holds(tip, record) {
                continue;
            }
            let fork = self.fork(tip, record);
            let promised = self.setup.sync > 0 && !fork.is_some_and(|epoch| self.oracle.risked.contains(&epoch));
            if promised || fork.is_none_or(|epoch| epoch <= write.epoch) {
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
        let entry = &mut self.oracle.writes[write];
        entry.believed = true;
        self.oracle.believed += 1;
        let entry = *entry;
        if self.faults.healed.is_some_and(|at| entry.begun >= at) {
            self.oracle.healed[entry.proxy] = true;
        }
        if executed > entry.epoch {
            let text =
                format!("I1: p{} believes write {write} of epoch {} on n{}", entry.proxy, entry.epoch, entry.node);
            self.violated(format!("{text} after a promotion of epoch {executed}"));
        }
    }

    /// What the proxy knew when it planned: where each standby was at its last report.
    pub fn check_reads(&mut self, proxy: usize, plan: &Plan) {
        let Some(primary) = plan.primary.map(|p| p.index()) else { return };
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

    /// After the faults: is the cluster writable through every proxy yet?
    pub fn verdict(&mut self, bound: Nanos) {
        let healed = self.faults.healed.unwrap_or(self.now);
        if self.oracle.healed.iter().all(|h| *h) {
            self.oracle.healed_at = Some(self.now - healed);
            self.over = true;
            if let Some((_, primary, _)) = self.oracle.latest {
                self.check_history(primary);
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
                stuck.push(format!("p{proxy} {state} {holds:?} {:?}", self.proxies[proxy].standing));
            } else {
                self.oracle.person.extend(person);
            }
        }
        self.oracle.person.sort();
        self.oracle.person.dedup();
        if self.oracle.person.is_empty() {
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
