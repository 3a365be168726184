//! The table of the manual says what the classifier does.

use super::super::{Access, StringSyntax};
use super::rows::classifier;

const MANUAL: &str = include_str!("../../../docs/routing.md");

#[test]
fn every_example_of_the_manual_goes_where_it_says() {
    let table = MANUAL.split("## Functions").next().unwrap().lines().filter(|line| line.starts_with('|')).skip(2);
    let mut classifier = classifier();
    let mut rows = 0;
    for line in table {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [_, example, node, because] = cells[..] else { panic!("not four cells: {line}") };
        let class = classifier.classify(example.trim_matches('`').as_bytes(), StringSyntax::Standard);
        let found = if class.access == Access::Read { "any" } else { "primary" };
        assert_eq!((found, class.why.to_string().as_str()), (node, because), "{example}");
        rows += 1;
    }
    assert!(rows > 60, "{rows} rows");
}

#[test]
fn every_rule_to_migrate_from_has_its_answer() {
    for rule in 1..=33 {
        let row = MANUAL.lines().find(|line| line.starts_with(&format!("| R{rule} |")));
        let answer = row.and_then(|row| row.trim_matches('|').split('|').nth(2)).unwrap_or_default();
        assert!(answer.trim().len() > 3, "R{rule}");
    }
}
