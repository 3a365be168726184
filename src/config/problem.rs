//! What is wrong with a config file, and where, printed as a compiler would.
//!
//! Invariants: problems are sorted by place; no secret is ever part of one. Absent on purpose:
//! colours and source excerpts; the place is enough for an editor to jump to.

use super::value::Flaw;
use std::fmt;

/// Problems kept; a file with more is beyond repair by list.
const PROBLEMS_MAX: usize = 100;

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1; 0 means the file as a whole.
    pub line: usize,
    /// Column, from 1, in characters; 0 means the file as a whole.
    pub column: usize,
    /// The setting, as in `[pool] size`; empty if the problem is none of a setting.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

impl Problem {
    /// A problem of the file as a whole.
    pub(super) fn of_file(message: impl Into<String>) -> Self {
        Self { line: 0, column: 0, key: String::new(), message: message.into(), suggestion: None }
    }

    /// The problem as one line, for a file of this name.
    #[must_use]
    pub fn line_in(&self, file: &str) -> String {
        let mut out = file.to_owned();
        if self.line > 0 {
            out.push_str(&format!(":{}:{}", self.line, self.column));
        }
        for part in [Some(&self.key), Some(&self.message)].into_iter().flatten().filter(|part| !part.is_empty()) {
            out.push_str(": ");
            out.push_str(part);
        }
        if let Some(suggestion) = &self.suggestion {
            out.push_str("; ");
            out.push_str(suggestion);
        }
        out
    }
}

/// All that is wrong with a file, sorted by place. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file's name, as it was given.
    pub file: String,
    /// The problems.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let end = if index > 0 { "\n" } else { "" };
            write!(f, "{end}{}", problem.line_in(&self.file))?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems and warnings of one file.
pub(super) struct Notes {
    lines: Lines,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    dropped: usize,
}

impl Notes {
    pub(super) fn new(text: &str) -> Self {
        Self { lines: Lines::new(text), problems: Vec::new(), warnings: Vec::new(), dropped: 0 }
    }

    /// Something that must be mended, at this byte of the text.
    pub(super) fn problem(&mut self, at: usize, key: impl Into<String>, flaw: Flaw) {
        if self.problems.len() == PROBLEMS_MAX {
            self.dropped += 1;
            return;
        }
        self.problems.push(self.lines.note(at, key.into(), flaw));
    }

    /// Something that works, but hardly as meant.
    pub(super) fn warn(&mut self, at: usize, key: impl Into<String>, flaw: Flaw) {
        if self.warnings.len() < PROBLEMS_MAX {
            self.warnings.push(self.lines.note(at, key.into(), flaw));
        }
    }

    /// Problems and warnings, each sorted by place.
    pub(super) fn finish(mut self) -> (Vec<Problem>, Vec<Problem>) {
        for list in [&mut self.problems, &mut self.warnings] {
            list.sort_by(|a, b| (a.line, a.column, &a.key, &a.message).cmp(&(b.line, b.column, &b.key, &b.message)));
        }
        if self.dropped > 0 {
            self.problems.push(Problem::of_file(format!("{} more problems", self.dropped)));
        }
        (self.problems, self.warnings)
    }
}

/// Finds line and column of a byte.
struct Lines {
    text: String,
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text: text.to_owned(), starts }
    }

    fn note(&self, at: usize, key: String, flaw: Flaw) -> Problem {
        let (line, column) = self.place(at);
        Problem { line, column, key, message: flaw.message, suggestion: flaw.suggestion }
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        // `starts` begins with 0, so at least one start is not after `at`.
        let line = self.starts.partition_point(|&start| start <= at);
        (line, self.text[self.starts[line - 1]..at].chars().count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let lines = Lines::new("ab\nüx\n\nlast");
        for (at, place) in [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 2)), (4, (2, 1)), (7, (3, 1)), (99, (4, 5))]
        {
            assert_eq!(lines.place(at), place, "{at}");
        }
        assert_eq!(Lines::new("").place(0), (1, 1));
    }

    #[test]
    fn lists_are_bounded_and_sorted() {
        let mut notes = Notes::new("a\nb\nc\n");
        for round in 0..60 {
            notes.problem(4, "k", Flaw::new(format!("{round}")));
            notes.problem(0, "k", Flaw::new("first"));
        }
        let (problems, warnings) = notes.finish();
        assert_eq!(problems.len(), PROBLEMS_MAX + 1);
        assert_eq!((problems[0].line, problems[PROBLEMS_MAX - 1].line), (1, 3));
        assert_eq!(problems[PROBLEMS_MAX].line_in("f"), "f: 20 more problems");
        assert!(warnings.is_empty());
    }

    #[test]
    fn printed_as_a_compiler_would() {
        let flaw = Flaw::new("unknown key").suggest("did you mean \"size\"?");
        let problem = Lines::new("x\n").note(0, "[pool] sise".to_owned(), flaw);
        let problems = Problems { file: "a.toml".to_owned(), list: vec![problem, Problem::of_file("is bad")] };
        assert_eq!(
            problems.to_string(),
            "a.toml:1:1: [pool] sise: unknown key; did you mean \"size\"?\na.toml: is bad"
        );
    }
}
