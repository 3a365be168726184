//! Findings as text.
//!
//! Invariants: every finding is one line, its cure the next. Absent on purpose: colours.

use super::{Counts, Facts, Finding, Findings, Level, Where, identifier};
use crate::config::Config;
use crate::config::value::format_address;
use std::io::{self, Write};

/// Prints every node with its findings, then what else was looked at, then the cluster.
pub(in crate::ctl) fn print(config: &Config, findings: &Findings, out: &mut dyn Write) -> io::Result<Counts> {
    let mut counts = Counts::default();
    for (node, (visit, list)) in config.nodes.iter().zip(&findings.nodes) {
        let state = visit.as_ref().map_or_else(|_| "not reached".to_owned(), state);
        writeln!(out, "\n{}  {}  {state}", node.name, format_address(&node.host, node.port))?;
        print_list(config, &node.name, list, &mut counts, out)?;
    }
    for other in &findings.others {
        writeln!(out, "\n{}{}", other.name, other.state)?;
        print_list(config, &other.name, &other.findings, &mut counts, out)?;
    }
    if !findings.cluster.is_empty() {
        writeln!(out, "\ncluster {}", config.cluster.name)?;
        print_list(config, "", &findings.cluster, &mut counts, out)?;
    }
    Ok(counts)
}

/// "PostgreSQL 15.14, primary, timeline 1, system 7400000000000000000".
fn state(facts: &Facts) -> String {
    let role = if facts.in_recovery { "standby" } else { "primary" };
    let timeline = facts.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
    let version = facts.version.split_whitespace().next().unwrap_or_default();
    format!("PostgreSQL {version}, {role}{timeline}, system {}", facts.system_id)
}

fn print_list(
    config: &Config,
    node: &str,
    list: &[Finding],
    counts: &mut Counts,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut sorted: Vec<_> = list.iter().collect();
    sorted.sort_by_key(|finding| finding.level);
    for finding in sorted {
        let word = match finding.level {
            Level::Problem => {
                counts.problems += 1;
                "problem"
            }
            Level::Warning => {
                counts.warnings += 1;
                "warning"
            }
        };
        writeln!(out, "  {word}: {}", finding.text)?;
        if let Some((place, fix)) = &finding.fix {
            let place = match place {
                Where::Primary => {
                    format!(" on the primary, in database {}", identifier(&config.cluster.monitor_database))
                }
                Where::Here => format!(" on {node}"),
                Where::Outside => String::new(),
            };
            writeln!(out, "    fix{place}: {fix}")?;
        }
    }
    if list.is_empty() {
        writeln!(out, "  ok")?;
    }
    Ok(())
}
