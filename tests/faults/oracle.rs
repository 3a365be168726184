//! Whether two nodes ever took writes at the same time, judged from the clients' side alone.
//!
//! Each acknowledged write says which node carried it out, on which timeline, and between which two moments
//! of the client. A reign is all writes of one node on one timeline. Invariant: once the first write of a
//! reign is acknowledged, no write of an earlier reign may begin and be acknowledged, nor may an
//! acknowledgement of one arrive. Absent on purpose: what is on the nodes' disks (see `run`).

use crate::support::load::Write;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How late a client may look at an acknowledgement that the proxy had passed on in time.
const LATE_MAX: Duration = Duration::from_millis(100);

/// What was wrong, one sentence per pair of reigns.
pub fn violations(writes: &[Write]) -> Vec<String> {
    let mut reigns: BTreeMap<(&str, &str), Vec<&Write>> = BTreeMap::new();
    for write in writes {
        reigns.entry((&write.node, &write.timeline)).or_default().push(write);
    }
    let mut ordered: Vec<(Instant, (&str, &str), Vec<&Write>)> = reigns
        .into_iter()
        .filter_map(|(reign, writes)| Some((writes.iter().map(|write| write.at).min()?, reign, writes)))
        .collect();
    ordered.sort_by_key(|(first, ..)| *first);
    let mut found = Vec::new();
    for (index, (_, old, writes)) in ordered.iter().enumerate() {
        for (first, new, _) in &ordered[index + 1..] {
            found.extend(clash(*old, writes, *new, *first));
        }
    }
    found
}

fn clash(old: (&str, &str), writes: &[&Write], new: (&str, &str), first: Instant) -> Option<String> {
    let begun = writes.iter().filter(|write| write.began > first).count();
    let late = writes.iter().filter(|write| write.began <= first && write.at > first + LATE_MAX).count();
    let last = writes.iter().map(|write| write.at.saturating_duration_since(first)).max().unwrap_or_default();
    (begun + late > 0).then(|| {
        format!(
            "port {} timeline {}: {begun} writes begun and {late} acknowledged, the last {} ms, after the first of port {} timeline {}",
            old.0,
            old.1,
            last.as_millis(),
            new.0,
            new.1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes by node, timeline, begin and end in milliseconds.
    fn history(writes: &[(&str, &str, u64, u64)]) -> Vec<Write> {
        let zero = Instant::now();
        let at = |millis: u64| zero + Duration::from_millis(millis);
        let write = |(id, (node, timeline, began, end)): (usize, &(&str, &str, u64, u64))| Write {
            id: i64::try_from(id).unwrap(),
            began: at(*began),
            at: at(*end),
            node: (*node).to_owned(),
            timeline: (*timeline).to_owned(),
            first_session: true,
        };
        writes.iter().enumerate().map(write).collect()
    }

    #[test]
    fn one_reign_after_another_is_fine() {
        assert!(violations(&history(&[("1", "1", 0, 10), ("1", "1", 5, 20), ("2", "2", 6, 400)])).is_empty());
        let back = [("1", "1", 0, 10), ("2", "2", 20, 30), ("1", "3", 40, 50), ("1", "3", 60, 61)];
        assert!(violations(&history(&back)).is_empty(), "the same node with another timeline is another reign");
    }

    #[test]
    fn a_write_on_the_old_node_after_the_new_ones_first_is_found() {
        assert_eq!(violations(&history(&[("1", "1", 0, 10), ("2", "2", 20, 30), ("1", "1", 31, 32)])).len(), 1);
        assert_eq!(violations(&history(&[("1", "2", 0, 10), ("2", "2", 5, 30), ("1", "2", 40, 41)])).len(), 1);
    }

    #[test]
    fn an_acknowledgement_held_back_until_the_new_node_took_writes_is_found() {
        assert_eq!(violations(&history(&[("1", "1", 0, 10), ("1", "1", 8, 3000), ("2", "2", 20, 30)])).len(), 1);
    }

    #[test]
    fn two_nodes_that_take_turns_are_found() {
        let both = [("1", "1", 0, 1), ("2", "2", 2, 3), ("1", "1", 4, 5), ("2", "2", 6, 7)];
        assert_eq!(violations(&history(&both)).len(), 1);
    }
}
