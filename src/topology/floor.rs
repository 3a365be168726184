//! What a session must be able to read, and whether a node shows it.
//!
//! Pure. Invariant: whether a node is fresh enough is decided here and nowhere else (I6). Absent on purpose: what
//! positions prove (`monitor::freshness`).

use super::NodeView;
use crate::clock::Time;
use crate::ids::{Lsn, TimelineId};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A point in the WAL that a client was told, perhaps by another proxy: `timeline/position`, as in `1/0/3000060`.
///
/// A node on this timeline or a later one that has replayed up to the position shows all that was committed before
/// it, as far as it has survived: what a later timeline lacks of an earlier one, no node of the cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CausalToken {
    /// The timeline of the primary that told it.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a causal token looks like 1/0/3000060: timeline and WAL position")]
pub struct NotAToken;

impl FromStr for CausalToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (timeline, lsn) = text.split_once('/').ok_or(NotAToken)?;
        let timeline = timeline.parse().ok().filter(|number| *number > 0).ok_or(NotAToken)?;
        Ok(Self { timeline: TimelineId(timeline), lsn: lsn.parse().map_err(|_| NotAToken)? })
    }
}

impl fmt::Display for CausalToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.timeline.0, self.lsn)
    }
}

/// What a session must be able to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// Every write acknowledged up to this point, once it was flushed.
    pub flushed: Time,
    /// Every write acknowledged up to this point, also those acknowledged before they were flushed
    /// (`synchronous_commit = off`).
    pub lazy: Time,
    /// When all that `lazy` covers must have been flushed, if nothing else tells.
    pub lazy_flushed_by: Time,
    /// What a token told.
    pub token: Option<CausalToken>,
}

impl Floor {
    /// A write that was acknowledged at `now`; `unflushed_for`: how long it may stay unflushed.
    pub fn raise(&mut self, now: Time, unflushed_for: Option<Duration>) {
        match unflushed_for {
            None => self.flushed = self.flushed.max(now),
            Some(delay) => {
                self.lazy = self.lazy.max(now);
                self.lazy_flushed_by = self.lazy_flushed_by.max(now + delay);
            }
        }
    }

    /// Both floors.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            flushed: self.flushed.max(other.flushed),
            lazy: self.lazy.max(other.lazy),
            lazy_flushed_by: self.lazy_flushed_by.max(other.lazy_flushed_by),
            token: self.token.or(other.token),
        }
    }

    /// Does the node show all of it?
    #[must_use]
    pub fn is_reached_by(&self, view: &NodeView) -> bool {
        let lazy = self.lazy == Time::ZERO
            || view.fresh_as_of_unflushed >= self.lazy
            || view.fresh_as_of >= self.lazy_flushed_by;
        let token = self.token.is_none_or(|token| {
            view.replayed.is_some_and(|(timeline, lsn)| timeline >= token.timeline && lsn >= token.lsn)
        });
        view.fresh_as_of >= self.flushed && lazy && token
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;
    use std::time::Duration;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn view(fresh: u64, unflushed: u64) -> NodeView {
        let mut view = Topology::starting(&["a".into()]).nodes[0].clone();
        (view.fresh_as_of, view.fresh_as_of_unflushed) = (at(fresh), at(unflushed));
        view.replayed = Some((TimelineId(2), Lsn(0x100)));
        view
    }

    #[test]
    fn a_lazy_write_is_there_once_replayed_or_once_it_must_have_been_flushed() {
        let mut floor = Floor::default();
        assert!(floor.is_reached_by(&view(0, 0)));
        floor.raise(at(10), Some(Duration::from_millis(600)));
        assert!(!floor.is_reached_by(&view(500, 9)));
        assert!(floor.is_reached_by(&view(0, 10)));
        assert!(floor.is_reached_by(&view(610, 0)));
        floor.raise(at(20), None);
        assert!(!floor.is_reached_by(&view(19, 19)));
        assert!(floor.is_reached_by(&view(20, 20)));
    }

    #[test]
    fn a_token_wants_its_position_on_its_timeline_or_a_later_one() {
        let floor = |token: &str| Floor { token: Some(token.parse().unwrap()), ..Floor::default() };
        assert!(floor("2/0/100").is_reached_by(&view(0, 0)));
        assert!(floor("1/0/FF").is_reached_by(&view(0, 0)));
        assert!(!floor("2/0/101").is_reached_by(&view(0, 0)));
        assert!(!floor("3/0/1").is_reached_by(&view(0, 0)));
        assert!(!floor("1/0/1").is_reached_by(&NodeView { replayed: None, ..view(0, 0) }));
    }

    #[test]
    fn tokens_are_read_as_they_are_written() {
        for text in ["1/0/3000060", "4294967295/FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<CausalToken>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1/", "1/2", "0/0/1", "x/0/1", "1/0/1/2", "-1/0/1", "1/0/G", " 1/0/1"] {
            assert!(text.parse::<CausalToken>().is_err(), "{text}");
        }
    }
}
