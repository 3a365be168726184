//! `pgregent check`: tells what is wrong before it matters.
//!
//! Invariants: changes nothing, anywhere; problems decide the exit code, warnings do not; every
//! node is visited at once and within a time limit. Absent on purpose: mending; it prints the SQL.

use super::CheckArgs;
use super::connect;
use crate::config::{Config, Report};
use crate::net::{NodeTls, TlsAcceptor};
use std::io::{self, Write};
use std::process::ExitCode;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No problem; there may be warnings.
    Good,
    /// At least one problem.
    Bad,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Good => Self::SUCCESS,
            Verdict::Bad => Self::FAILURE,
        }
    }
}

/// Checks the file, then, if it is right and this is asked for, the nodes. Not to be called from
/// within an async runtime: it makes its own.
///
/// # Errors
/// If `out` cannot be written, or the runtime cannot start.
pub fn run(args: &CheckArgs, out: &mut dyn Write) -> io::Result<Verdict> {
    let report = Report::of_file(&args.config);
    for problem in &report.problems {
        writeln!(out, "{}", problem.line_in(&report.file))?;
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {}", warning.line_in(&report.file))?;
    }
    let Some(config) = &report.config else {
        writeln!(out, "{}", told(&report.file, report.problems.len(), report.warnings.len()))?;
        return Ok(Verdict::Bad);
    };
    let mut problems = crate::app::login_files(config).err().unwrap_or_default();
    problems.extend(unusable_tls(config));
    if !problems.is_empty() {
        for problem in &problems {
            writeln!(out, "{problem}")?;
        }
        writeln!(out, "{}", told(&report.file, problems.len(), report.warnings.len()))?;
        return Ok(Verdict::Bad);
    }
    writeln!(out, "{}: valid; {}", report.file, summary(config))?;
    if !args.connect {
        return Ok(Verdict::Good);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(connect::visit_all(config));
    runtime.shutdown_background();
    let counts = connect::print(config, &findings, out)?;
    writeln!(out, "\n{}", told("nodes", counts.problems, counts.warnings))?;
    Ok(if counts.problems == 0 { Verdict::Good } else { Verdict::Bad })
}

/// What the TLS library does not take, although each file is what it should be.
fn unusable_tls(config: &Config) -> Vec<String> {
    let clients = TlsAcceptor::new(&config.tls).err().map(|error| format!("[tls]: cannot be used: {error}"));
    let nodes = config.nodes.iter().filter_map(|node| {
        NodeTls::new(&node.tls).problem().map(|why| format!("[[node]] {}: TLS cannot be used: {why}", node.name))
    });
    clients.into_iter().chain(nodes).collect()
}

/// "pgregent.toml: 2 problems, 1 warning".
fn told(what: &str, problems: usize, warnings: usize) -> String {
    let count = |n: usize, word: &str| match n {
        0 => format!("no {word}s"),
        1 => format!("1 {word}"),
        _ => format!("{n} {word}s"),
    };
    format!("{what}: {}, {}", count(problems, "problem"), count(warnings, "warning"))
}

/// What the file asks for, in a line.
fn summary(config: &Config) -> String {
    use crate::config::Choice;
    let nodes = match config.nodes.len() {
        1 => "1 node".to_owned(),
        n => format!("{n} nodes"),
    };
    let split = if config.route.read_write_split { "reads on standbys" } else { "reads on the primary" };
    format!(
        "{nodes}, {} pools of {}, {split}, {} failover",
        config.pool.mode.word(),
        config.pool.size,
        config.cluster.failover.word()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn check(config: &str, args: impl FnOnce(PathBuf) -> CheckArgs) -> (Verdict, String) {
        let path = std::env::temp_dir().join(format!("pgregent-check-{}-{:p}.toml", std::process::id(), &config));
        std::fs::write(&path, config).unwrap();
        let mut out = Vec::new();
        let verdict = run(&args(path.clone()), &mut out).unwrap();
        std::fs::remove_file(&path).unwrap();
        let text = String::from_utf8(out).unwrap();
        (verdict, text.replace(&path.display().to_string(), "p.toml"))
    }

    #[test]
    fn problems_and_warnings_decide_differently() {
        let file = |config| CheckArgs { config, connect: false };
        let good = "[[node]]\nname = \"standby1\"\naddress = \"a\"\n[cluster]\nfailover = \"manual\"\n\
                    [auth]\nauth_query = \"SELECT $1\"\n";
        assert_eq!(
            check(good, file),
            (
                Verdict::Good,
                "warning: p.toml:2:8: [[node]] name: \"standby1\" holds \"standby\", but roles move; \
                 name nodes after machines or numbers, such as \"pg1\"\n\
                 p.toml: valid; 1 node, transaction pools of 20, reads on standbys, manual failover\n"
                    .to_owned()
            )
        );
        let bad = format!("{good}auth_querry_ttl = \"1s\"\n");
        let (verdict, text) = check(&bad, file);
        assert_eq!(verdict, Verdict::Bad);
        assert!(
            text.starts_with("p.toml:8:1: [auth] auth_querry_ttl: unknown key; did you mean \"auth_query_ttl\"?\n")
        );
        assert!(text.ends_with("p.toml: 1 problem, 1 warning\n"), "{text}");
    }

    /// A file that is wrong is not worth a visit: nothing connects.
    #[test]
    fn a_wrong_file_is_not_taken_to_the_nodes() {
        let (verdict, text) = check("[[node]]\n", |config| CheckArgs { config, connect: true });
        assert_eq!(verdict, Verdict::Bad);
        assert!(!text.contains("not reached"), "{text}");
    }
}
