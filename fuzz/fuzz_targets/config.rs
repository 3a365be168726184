//! Any text as a configuration file.
//!
//! Promises: there is a configuration or there are problems, never both, never neither; every problem can be
//! shown; a valid file has nodes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::config::Report;

fuzz_target!(|text: &str| {
    let report = Report::of_text(text, "fuzz.toml");
    for problem in report.problems.iter().chain(&report.warnings) {
        assert!(!problem.line_in(&report.file).is_empty());
    }
    assert_eq!(report.config.is_none(), !report.problems.is_empty());
    if let Ok(config) = report.into_result() {
        assert!(!config.nodes.is_empty());
        assert!(config.changes(&config).is_empty());
    }
});
