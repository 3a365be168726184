//! Where a node's WAL comes from: its timeline, and for each timeline before it the position at which that was left.
//!
//! Two nodes that were promoted apart may both be on timeline 2: numbers alone say that they belong together, the points
//! at which they left timeline 1 say that they do not. Pure. Invariants: timelines ascend and positions never fall; a
//! text that breaks that, or a bound, is no history. A history never changes as long as its timeline does not. Absent
//! on purpose: how far a node is on its own timeline (its reports say so), and what no history file tells: two that left
//! the same timeline at the same position for the same number look alike.

use crate::ids::{Lsn, TimelineId};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest history file that is read, bytes.
pub const HISTORY_BYTES_MAX: usize = 60 * 1024;
/// Most timelines before the present one.
pub const SWITCHES_MAX: usize = 1000;

/// The timeline that a new cluster begins with.
const FIRST: TimelineId = TimelineId(1);

/// A timeline and the position at which it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline.
    pub timeline: TimelineId,
    /// What lies up to here belongs to both sides.
    pub at: Lsn,
}

/// Where a node's WAL comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    timeline: TimelineId,
    past: Vec<Switch>,
}

/// What is known of a node's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ancestry {
    /// Nothing: it could not be had. Timeline numbers must do.
    #[default]
    Unknown,
    /// Nothing yet: it is being asked for.
    Asked,
    /// All of it.
    Known(Arc<History>),
}

/// The text is no history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHistory {
    /// Longer than [`HISTORY_BYTES_MAX`], or more than [`SWITCHES_MAX`] timelines.
    #[error("the history is too long")]
    TooLong,
    /// A line is not `timeline position`.
    #[error("a line of the history is not a timeline and a position")]
    Line,
    /// Timelines must ascend up to the one that the history is of, and positions must not fall.
    #[error("the timelines of the history are not in order")]
    Order,
}

impl History {
    /// Of a node on timeline 1, which nothing precedes.
    #[must_use]
    pub fn first() -> Self {
        Self { timeline: FIRST, past: Vec::new() }
    }

    /// Of a node on `timeline`.
    ///
    /// # Errors
    /// When `past` is no past of it.
    pub fn new(timeline: TimelineId, past: Vec<Switch>) -> Result<Self, NoHistory> {
        if past.len() > SWITCHES_MAX {
            return Err(NoHistory::TooLong);
        }
        let ascends = past.windows(2).all(|two| two[0].timeline < two[1].timeline && two[0].at <= two[1].at);
        let begins = past.first().map_or(timeline, |first| first.timeline) > TimelineId(0);
        let ends = past.last().is_none_or(|last| last.timeline < timeline);
        if ascends && begins && ends { Ok(Self { timeline, past }) } else { Err(NoHistory::Order) }
    }

    /// Reads the file `timeline.history`, by the rules of PostgreSQL's own `readTimeLineHistory`: a line is a timeline,
    /// a position and whatever follows; blank lines and those that begin with `#` do not count.
    ///
    /// # Errors
    /// [`NoHistory`].
    pub fn read(timeline: TimelineId, text: &[u8]) -> Result<Self, NoHistory> {
        if text.len() > HISTORY_BYTES_MAX {
            return Err(NoHistory::TooLong);
        }
        // What follows a position is a person's text, in whatever encoding.
        let text = String::from_utf8_lossy(text);
        let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let past = lines.map(|line| {
            let mut words = line.split_whitespace();
            let timeline = words.next().and_then(|word| word.parse().ok()).map(TimelineId);
            let at = words.next().and_then(|word| word.parse().ok());
            timeline.zip(at).map(|(timeline, at)| Switch { timeline, at }).ok_or(NoHistory::Line)
        });
        // One more than allowed is enough to see that there are too many.
        Self::new(timeline, past.take(SWITCHES_MAX + 1).collect::<Result<_, _>>()?)
    }

    /// What a promotion at this position makes of it.
    ///
    /// # Errors
    /// When the new timeline is no later one, or the position lies before the present timeline.
    pub fn promoted(&self, at: Lsn, timeline: TimelineId) -> Result<Self, NoHistory> {
        let mut past = self.past.clone();
        past.push(Switch { timeline: self.timeline, at });
        Self::new(timeline, past)
    }

    /// The same with the beginning of `earlier`, if it goes through the timeline that `earlier` is on.
    ///
    /// # Errors
    /// When the two do not fit together.
    pub fn begun_as(&self, earlier: &Self) -> Result<Self, NoHistory> {
        let own = self.past.iter().position(|switch| switch.timeline == earlier.timeline);
        let Some(own) = own else { return Ok(self.clone()) };
        Self::new(self.timeline, [&earlier.past, &self.past[own..]].concat())
    }

    /// The present timeline.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The timelines before it, and where each was left.
    #[must_use]
    pub fn past(&self) -> &[Switch] {
        &self.past
    }

    /// Where it left a timeline, and for which.
    #[must_use]
    pub fn next(&self, timeline: TimelineId) -> Option<(Lsn, TimelineId)> {
        let own = self.past.iter().position(|switch| switch.timeline == timeline)?;
        let next = self.past.get(own + 1).map_or(self.timeline, |switch| switch.timeline);
        Some((self.past[own].at, next))
    }

    /// Whether this timeline is a part of it.
    #[must_use]
    pub fn passes(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.past.iter().any(|switch| switch.timeline == timeline)
    }

    /// Whether it goes through `other`: the same timelines left at the same positions, up to the one that `other` is on.
    #[must_use]
    pub fn descends_from(&self, other: &Self) -> bool {
        let next = self.past.get(other.past.len()).map_or(self.timeline, |switch| switch.timeline);
        self.past.starts_with(&other.past) && next == other.timeline
    }

    /// The last position that both have, with its timeline; `None` when neither ever left the other.
    #[must_use]
    pub fn parting(&self, other: &Self) -> Option<Switch> {
        let first = |history: &Self| history.past.first().map_or(history.timeline, |switch| switch.timeline);
        let mut last = Switch { timeline: first(self).min(first(other)), at: Lsn(0) };
        for (ours, theirs) in self.stretches().zip(other.stretches()) {
            if ours.timeline != theirs.timeline {
                return Some(last);
            }
            last = Switch { timeline: ours.timeline, at: ours.at.min(theirs.at) };
            if ours.at != theirs.at {
                return Some(last);
            }
        }
        None
    }

    /// All its timelines; the present one has no end.
    fn stretches(&self) -> impl Iterator<Item = Switch> + '_ {
        let present = Switch { timeline: self.timeline, at: Lsn(u64::MAX) };
        self.past.iter().copied().chain([present])
    }
}

impl Ancestry {
    /// The history, if it is known.
    #[must_use]
    pub fn known(&self) -> Option<&Arc<History>> {
        match self {
            Self::Known(history) => Some(history),
            Self::Unknown | Self::Asked => None,
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.timeline, self.at)
    }
}

/// The short form, `1@0/3000060 2`: timeline 1 was left at 0/3000060 for timeline 2.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.past.iter().try_for_each(|switch| write!(f, "{switch} "))?;
        write!(f, "{}", self.timeline)
    }
}

impl FromStr for History {
    type Err = NoHistory;

    fn from_str(text: &str) -> Result<Self, NoHistory> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let number = |word: &str| word.parse().map(TimelineId).map_err(|_| NoHistory::Line);
        let timeline = words.pop().ok_or(NoHistory::Line).and_then(number)?;
        let past = words.into_iter().map(|word| {
            let (timeline, at) = word.split_once('@').ok_or(NoHistory::Line)?;
            Ok(Switch { timeline: number(timeline)?, at: at.parse().map_err(|_| NoHistory::Line)? })
        });
        Self::new(timeline, past.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn history(text: &str) -> History {
        text.parse().unwrap()
    }

    fn switch(timeline: u32, at: u64) -> Switch {
        Switch { timeline: TimelineId(timeline), at: Lsn(at) }
    }

    fn parting(one: &str, other: &str) -> Option<Switch> {
        let (one, other) = (history(one), history(other));
        assert_eq!(one.parting(&other), other.parting(&one));
        one.parting(&other)
    }

    #[test]
    fn a_file_is_read_as_postgresql_reads_it() {
        let text =
            b"# a comment\n\n1\t0/3000060\tno recovery target specified\n  \n\t# another\n  3\t1/A0 before \xe9t\xe9";
        assert_eq!(History::read(TimelineId(4), text), Ok(history("1@0/3000060 3@1/A0 4")));
        assert_eq!(History::read(TimelineId(2), b"1\t0/1000\r\n"), Ok(history("1@0/1000 2")));
        assert_eq!(History::read(TimelineId(1), b"\n#\n"), Ok(History::first()));
    }

    #[test]
    fn what_makes_no_sense_is_no_history() {
        let read = |text: &str| History::read(TimelineId(4), text.as_bytes());
        for text in ["x", "1", "1 2", "1\t0/G", "-1\t0/1", "1.0\t0/1", "1\t0/1\nx"] {
            assert_eq!(read(text), Err(NoHistory::Line), "{text}");
        }
        for text in ["2\t0/1\n1\t0/2", "1\t0/1\n1\t0/2", "4\t0/1", "5\t0/1", "1\t0/2\n2\t0/1", "0\t0/1"] {
            assert_eq!(read(text), Err(NoHistory::Order), "{text}");
        }
        assert_eq!(read(&"#".repeat(HISTORY_BYTES_MAX + 1)), Err(NoHistory::TooLong));
        let many: String = (1..=SWITCHES_MAX + 1).map(|n| format!("{n}\t0/1\n")).collect();
        assert_eq!(History::read(TimelineId(u32::MAX), many.as_bytes()), Err(NoHistory::TooLong));
        assert_eq!(History::new(TimelineId(0), Vec::new()), Err(NoHistory::Order));
    }

    #[test]
    fn the_short_form_is_read_as_it_is_written() {
        for text in ["1", "1@0/3000060 2", "1@0/10 3@0/10 4@A/0 7"] {
            assert_eq!(history(text).to_string(), text);
        }
        for text in ["", "x", "1@ 2", "@0/1 2", "2@0/1 2", "1 2"] {
            assert!(text.parse::<History>().is_err(), "{text}");
        }
    }

    #[test]
    fn equal_numbers_are_not_equal_histories() {
        assert_eq!(parting("1@0/10 2", "1@0/10 2"), None);
        assert_eq!(parting("1@0/10 2", "1@0/20 2"), Some(switch(1, 0x10)));
        assert_eq!(parting("1@0/10 2", "1"), Some(switch(1, 0x10)));
        assert_eq!(parting("1@0/10 2@0/30 3", "1@0/10 2@0/20 3"), Some(switch(2, 0x20)));
        assert_eq!(parting("1@0/10 2", "1@0/10 3"), Some(switch(1, 0x10)));
        assert_eq!(parting("1@0/10 2@0/30 3", "1@0/20 3"), Some(switch(1, 0x10)));
        assert_eq!(parting("1", "2"), Some(switch(1, 0)), "nothing in common");
    }

    #[test]
    fn a_descendant_goes_through_all_of_its_ancestor() {
        let descends = |one: &str, other: &str| history(one).descends_from(&history(other));
        for (one, other) in [("1", "1"), ("1@0/10 2", "1"), ("1@0/10 2", "1@0/10 2"), ("1@0/10 2@0/30 5", "1@0/10 2")] {
            assert!(descends(one, other), "{one}, {other}");
        }
        for (one, other) in [("1", "1@0/10 2"), ("1@0/20 2", "1@0/10 2"), ("1@0/10 3", "1@0/10 2"), ("2", "1")] {
            assert!(!descends(one, other), "{one}, {other}");
        }
        assert!(history("1@0/10 3").passes(TimelineId(1)) && !history("1@0/10 3").passes(TimelineId(2)));
        assert_eq!(history("1@0/10 2").promoted(Lsn(0x30), TimelineId(5)), Ok(history("1@0/10 2@0/30 5")));
        assert_eq!(history("1@0/10 2").promoted(Lsn(1), TimelineId(5)), Err(NoHistory::Order));
    }

    #[test]
    fn a_beginning_is_replaced_as_a_whole() {
        let begun = |one: &str, other: &str| history(one).begun_as(&history(other));
        assert_eq!(begun("1@0/10 2@0/30 3", "1@0/20 2"), Ok(history("1@0/20 2@0/30 3")));
        assert_eq!(begun("1@0/10 2@0/30 3@0/40 4", "1@0/20 3"), Ok(history("1@0/20 3@0/40 4")));
        assert_eq!(begun("1@0/10 3", "1@0/20 2"), Ok(history("1@0/10 3")), "never was there");
        assert_eq!(begun("1@0/10 2@0/30 3", "1@0/40 2"), Err(NoHistory::Order));
        let next = |timeline: u32| history("1@0/10 2@0/30 5").next(TimelineId(timeline));
        assert_eq!((next(1), next(2)), (Some((Lsn(0x10), TimelineId(2))), Some((Lsn(0x30), TimelineId(5)))));
        assert_eq!((next(3), next(5)), (None, None));
    }

    /// A branch of WAL by its number in the tree, not its timeline's: whence it comes, and where it left that.
    #[derive(Clone, Debug)]
    struct Branch {
        way: Vec<(usize, Lsn)>,
        begin: u64,
        history: History,
    }

    /// A tree of promotions; whoever promotes takes the next number after its own, whatever others have taken.
    fn tree() -> impl Strategy<Value = Vec<Branch>> {
        prop::collection::vec((any::<prop::sample::Index>(), 0..200u64), 1..20).prop_map(|promotions| {
            let mut branches = vec![Branch { way: Vec::new(), begin: 0, history: History::first() }];
            for (index, (parent, span)) in promotions.into_iter().enumerate() {
                let number = parent.index(branches.len());
                let parent = &branches[number];
                // Never twice at the same position, which no file tells apart.
                let at = Lsn((parent.begin + span) * 64 + index as u64);
                let mut way = parent.way.clone();
                way.push((number, at));
                let next = TimelineId(parent.history.timeline().0 + 1);
                let history = parent.history.promoted(at, next).unwrap();
                let begin = at.0 / 64 + 1;
                branches.push(Branch { way, begin, history });
            }
            branches
        })
    }

    proptest! {
        #[test]
        fn histories_part_where_their_branches_do(branches in tree()) {
            for (a, one) in branches.iter().enumerate() {
                for (b, other) in branches.iter().enumerate() {
                    let end = |number, branch: &Branch| (number, Lsn(u64::MAX), branch.history.timeline());
                    let whole = |number: usize, branch: &Branch| -> Vec<(usize, Lsn, TimelineId)> {
                        let past = branch.way.iter().map(|(n, at)| (*n, *at, branches[*n].history.timeline()));
                        past.chain([end(number, branch)]).collect()
                    };
                    let common = whole(a, one).into_iter().zip(whole(b, other)).rfind(|(x, y)| x.0 == y.0);
                    let (x, y) = common.unwrap();
                    let at = x.1.min(y.1);
                    let want = (at < Lsn(u64::MAX)).then_some(Switch { timeline: x.2, at });
                    prop_assert_eq!(one.history.parting(&other.history), want, "{} and {}", one.history, other.history);
                    let through = a == b || one.way.iter().any(|(number, _)| *number == b);
                    prop_assert_eq!(one.history.descends_from(&other.history), through);
                }
                let text: String = one.history.past().iter().map(|s| format!("{}\t{}\twhy\n", s.timeline, s.at)).collect();
                prop_assert_eq!(&History::read(one.history.timeline(), text.as_bytes()).unwrap(), &one.history);
                prop_assert_eq!(&one.history.to_string().parse::<History>().unwrap(), &one.history);
            }
        }

        #[test]
        fn no_text_is_too_much(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = History::read(TimelineId(9), &text);
        }
    }
}
