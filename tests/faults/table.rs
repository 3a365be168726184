//! Results of all rows: a line per run as it ends, a table in the end, and the verdict on the whole.
//!
//! Invariant: a row fails by any problem of any run, by a bar, or by not having been run. Absent on purpose:
//! files of results; the table is the result.

use crate::matrix::Order;
use crate::rows::Row;
use crate::run::Outcome;
use std::collections::BTreeMap;
use std::time::Duration;

/// Characters of a verdict shown in the table.
const VERDICT_SHOWN: usize = 60;

/// One row's runs.
struct Line {
    name: &'static str,
    row: Option<Row>,
    outcomes: Vec<Outcome>,
    skipped: Option<String>,
}

/// All rows.
pub struct Table {
    order: Order,
    lines: Vec<Line>,
}

impl Table {
    pub fn new(order: Order) -> Self {
        Self { order, lines: Vec::new() }
    }

    fn line(&mut self, name: &'static str) -> &mut Line {
        let at = self.lines.iter().position(|line| line.name == name);
        let at = at.unwrap_or_else(|| {
            self.lines.push(Line { name, row: None, outcomes: Vec::new(), skipped: None });
            self.lines.len() - 1
        });
        &mut self.lines[at]
    }

    pub fn skip(&mut self, name: &'static str, why: &str) {
        println!("{name}: SKIPPED, {why}");
        self.line(name).skipped = Some(why.to_owned());
    }

    pub fn add(&mut self, row: &Row, number: u64, outcome: Outcome) {
        println!(
            "{} #{number}: {} s, lost {} of {}, wrong {}, errors {:?}, state {}, said: {}: {}{}",
            row.name,
            seconds(outcome.time),
            outcome.lost,
            outcome.acked,
            outcome.wrong,
            outcome.errors,
            outcome.state,
            outcome.verdict,
            outcome.notices,
            outcome.problems.iter().map(|problem| format!("\n    PROBLEM {problem}")).collect::<String>()
        );
        let line = self.line(row.name);
        line.row = Some(*row);
        line.outcomes.push(outcome);
    }

    /// Prints the table.
    ///
    /// # Panics
    /// When anything is not as it has to be.
    pub fn finish(self) {
        println!(
            "\n{:<46} {:>4} {:>8} {:>8} {:>8} {:>5} {:>5}  {:<11} {:<24} verdict",
            if self.order.sync { "fault (synchronous replication)" } else { "fault" },
            "runs",
            "median s",
            "worst s",
            "acked",
            "lost",
            "wrong",
            "state",
            "errors"
        );
        let mut failures = Vec::new();
        for line in &self.lines {
            failures.extend(self.print(line).into_iter().map(|failure| format!("{}: {failure}", line.name)));
        }
        println!(
            "median and worst: from the fault to the first write on another primary; longest time without a write where none was due"
        );
        assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    }

    fn print(&self, line: &Line) -> Vec<String> {
        let mut failures = Vec::new();
        if let Some(why) = &line.skipped {
            println!("{:<46} skipped: {why}", line.name);
            if !self.order.allow_skips {
                failures.push(format!("skipped: {why} (ALLOW_SKIPS=1 allows it)"));
            }
            return failures;
        }
        let Some(last) = line.outcomes.last() else { return failures };
        let mut times: Vec<Duration> = line.outcomes.iter().map(|outcome| outcome.time).collect();
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
        for (state, count) in line.outcomes.iter().flat_map(|outcome| &outcome.errors) {
            *errors.entry(state).or_default() += count;
        }
        let errors: Vec<String> = errors.iter().map(|(state, count)| format!("{state} x{count}")).collect();
        println!(
            "{:<46} {:>4} {:>8} {:>8} {:>8} {:>5} {:>5}  {:<11} {:<24} {}",
            line.name,
            line.outcomes.len(),
            seconds(median),
            seconds(worst),
            line.outcomes.iter().map(|outcome| outcome.acked).sum::<usize>(),
            line.outcomes.iter().map(|outcome| outcome.lost).sum::<usize>(),
            line.outcomes.iter().map(|outcome| outcome.wrong).sum::<u64>(),
            last.state,
            errors.join(" "),
            last.verdict.chars().take(VERDICT_SHOWN).collect::<String>()
        );
        for (index, outcome) in line.outcomes.iter().enumerate() {
            failures.extend(outcome.problems.iter().map(|problem| format!("run {}: {problem}", index + 1)));
        }
        if let Some(bar) = line.row.and_then(|row| row.bar).filter(|_| !self.order.sync) {
            for (what, found, most) in [("median", median, bar.median), ("worst", worst, bar.worst)] {
                if found > most * self.order.factor {
                    failures.push(format!(
                        "{what} {} s, more than {} s",
                        seconds(found),
                        seconds(most * self.order.factor)
                    ));
                }
            }
        }
        failures
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}
