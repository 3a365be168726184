//! All WAL ever written by any node, as one tree: what PostgreSQL names by timeline and position is here a record
//! with a parent, so that two histories with the same numbers can be told apart.
//!
//! Invariants: a record never changes; its position is greater than its parent's.

/// A record, and with it everything before it.
pub type Tip = u32;

/// Bytes of one record.
pub const RECORD_BYTES: u64 = 64;

#[derive(Clone, Copy, Debug)]
struct Rec {
    parent: Tip,
    /// An ancestor much further back, so that looking for one takes few steps.
    jump: Tip,
    depth: u32,
    lsn: u64,
    timeline: u32,
}

#[derive(Debug)]
pub struct Wal {
    recs: Vec<Rec>,
}

impl Wal {
    pub const ROOT: Tip = 0;

    pub fn new() -> Self {
        Self { recs: vec![Rec { parent: 0, jump: 0, depth: 0, lsn: 1024, timeline: 1 }] }
    }

    pub fn append(&mut self, parent: Tip, timeline: u32) -> Tip {
        let above = self.at(parent);
        let (first, second) = (self.at(above.jump), above.jump);
        let level = above.depth - first.depth == first.depth - self.at(first.jump).depth;
        let jump = if level { self.at(second).jump } else { parent };
        let rec = Rec { parent, jump, depth: above.depth + 1, lsn: above.lsn + RECORD_BYTES, timeline };
        self.recs.push(rec);
        u32::try_from(self.recs.len() - 1).unwrap_or(u32::MAX)
    }

    fn at(&self, tip: Tip) -> Rec {
        self.recs[tip as usize]
    }

    pub fn parent(&self, tip: Tip) -> Tip {
        self.at(tip).parent
    }

    pub fn lsn(&self, tip: Tip) -> u64 {
        self.at(tip).lsn
    }

    pub fn timeline(&self, tip: Tip) -> u32 {
        self.at(tip).timeline
    }

    /// Whether the history that ends at `tip` has the record.
    pub fn holds(&self, tip: Tip, record: Tip) -> bool {
        let depth = self.at(record).depth;
        let mut at = tip;
        while self.at(at).depth > depth {
            let jump = self.at(at).jump;
            at = if self.at(jump).depth >= depth { jump } else { self.at(at).parent };
        }
        at == record
    }

    /// Whether one of the two histories is the beginning of the other.
    pub fn same_line(&self, one: Tip, other: Tip) -> bool {
        if self.at(one).depth <= self.at(other).depth { self.holds(other, one) } else { self.holds(one, other) }
    }
}

#[test]
fn ancestors_are_found() {
    let mut wal = Wal::new();
    let mut trunk = vec![Wal::ROOT];
    for _ in 0..300 {
        trunk.push(wal.append(*trunk.last().unwrap(), 1));
    }
    let branch = (0..70).fold(trunk[100], |tip, _| wal.append(tip, 2));
    for (index, record) in trunk.iter().enumerate() {
        assert_eq!(wal.holds(branch, *record), index <= 100);
        assert!(wal.holds(trunk[300], *record));
    }
    assert!(!wal.holds(trunk[300], branch) && !wal.same_line(branch, trunk[101]) && wal.same_line(branch, trunk[100]));
}
