//! "Did you mean": the nearest known word.
//!
//! Invariants: work is bounded by the length of the word asked for. Absent on purpose: guessing
//! far; a wrong suggestion is worse than none.

/// Words longer than this get no suggestion, characters.
const WORD_LEN_MAX: usize = 64;

/// A beginning this long stands for the whole, characters.
const PREFIX_LEN_MIN: usize = 3;

/// The known word nearest to `word`, if it is near enough to be meant.
#[must_use]
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let length = word.chars().count();
    if length > WORD_LEN_MAX {
        return None;
    }
    let typed = normal(word);
    let known: Vec<&str> = known.into_iter().collect();
    // A beginning says more than its distance: "auto" means "automatic".
    let begun = known.iter().filter(|candidate| length >= PREFIX_LEN_MIN && normal(candidate).starts_with(&typed));
    if let [only] = begun.collect::<Vec<_>>()[..] {
        return Some(only);
    }
    known
        .into_iter()
        .map(|candidate| (distance(&typed, &normal(candidate)), candidate))
        .filter(|&(distance, candidate)| distance <= allowance(length.max(candidate.len())))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Typing errors forgiven in a word of this length.
fn allowance(length: usize) -> usize {
    match length {
        0..=3 => 1,
        4..=6 => 2,
        _ => length / 3,
    }
}

/// Without case, and with `-` as `_`.
fn normal(word: &str) -> Vec<char> {
    word.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut least = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("size", "sise", 1), ("size", "szie", 1), ("ab", "", 2), ("abc", "cba", 2)]
        {
            assert_eq!(distance(&normal(a), &normal(b)), expected, "{a} {b}");
        }
    }

    #[test]
    fn near_is_suggested_and_far_is_not() {
        let known = ["size", "mode", "queue_timeout", "idle_timeout"];
        assert_eq!(nearest("sise", known), Some("size"));
        assert_eq!(nearest("Mode", known), Some("mode"));
        assert_eq!(nearest("queue-timeout", known), Some("queue_timeout"));
        assert_eq!(nearest("queue_time", known), Some("queue_timeout"));
        assert_eq!(nearest("que", known), Some("queue_timeout"));
        assert_eq!(nearest("qu", known), None);
        assert_eq!(nearest("idle_t", ["idle_timeout", "idle_time"]), Some("idle_time"));
        assert_eq!(nearest("banana", known), None);
        assert_eq!(nearest(&"size".repeat(100), known), None);
    }
}
