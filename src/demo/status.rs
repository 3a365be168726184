//! What the proxy says about itself, read over HTTP, and how the demo shows it.
//!
//! Invariants: a field that is missing or null is shown as unknown, never as zero; reading never fails the
//! demo. Absent on purpose: asking the nodes; the point is to show what the proxy believes.

use super::http;
use serde::Deserialize;
use std::collections::BTreeMap;

const HTTP_OK: u16 = 200;
const STATEMENTS: &str = "pgregent_statements_total";

/// The answer of `/api/v1/cluster`, as far as the demo needs it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct ClusterStatus {
    pub(super) epoch: Option<u64>,
    pub(super) primary: Option<String>,
    pub(super) writes: Option<String>,
    pub(super) why: Option<String>,
    pub(super) nodes: Vec<NodeStatus>,
}

/// One node in it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    pub(super) name: String,
    pub(super) role: Option<String>,
    pub(super) health: Option<String>,
    pub(super) accepts_reads: Option<bool>,
    pub(super) lag_bytes: Option<u64>,
    pub(super) timeline: Option<u32>,
    pub(super) note: Option<String>,
}

/// Statements that the proxy counted, by (node, class).
pub(super) type Statements = BTreeMap<(String, String), u64>;

/// Asks the proxy about the cluster. Blocks; `None` if it does not answer as expected.
pub(super) fn cluster(admin_port: u16) -> Option<ClusterStatus> {
    let (status, body) = http::ask(admin_port, "/api/v1/cluster").ok()?;
    (status == HTTP_OK).then(|| serde_json::from_str(&body).ok()).flatten()
}

/// Whether the proxy serves clients. Blocks.
pub(super) fn ready(admin_port: u16) -> bool {
    http::ask(admin_port, "/health/ready").is_ok_and(|(status, _)| status == HTTP_OK)
}

/// What the proxy has counted so far. Blocks; empty if it does not answer.
pub(super) fn statements(admin_port: u16) -> Statements {
    http::ask(admin_port, "/metrics").map(|(_, body)| count(&body)).unwrap_or_default()
}

/// Reads `pgregent_statements_total{class="…",node="…"} n` lines of Prometheus' text format.
fn count(metrics: &str) -> Statements {
    let mut found = Statements::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix(STATEMENTS)?.strip_prefix('{')) {
        let Some((labels, value)) = line.split_once('}') else { continue };
        let label = |name: &str| {
            let pair = labels.split(',').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='));
            pair.map(|quoted| quoted.trim_matches('"').to_owned())
        };
        let value = value.trim().parse::<f64>().unwrap_or(0.0);
        if let (Some(node), Some(class)) = (label("node"), label("class")) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of statements")]
            let value = value as u64;
            *found.entry((node, class)).or_default() += value;
        }
    }
    found
}

/// A line about the cluster and one per node. `pids` are the postmasters' by node name.
pub(super) fn lines(status: Option<&ClusterStatus>, pids: &[(String, Option<u32>)], per_second: &Rates) -> Vec<String> {
    let Some(status) = status else { return vec!["the proxy does not answer".to_owned()] };
    let unknown = || "?".to_owned();
    let epoch = status.epoch.map_or_else(unknown, |epoch| epoch.to_string());
    let writes = status.writes.clone().unwrap_or_else(unknown);
    let why = status.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let (reads, others) = (per_second.reads, per_second.others);
    let mut lines = vec![format!("epoch {epoch}, writes {writes}{why}; {reads} reads and {others} other statements/s")];
    for node in &status.nodes {
        let pid = pids.iter().find(|(name, _)| *name == node.name).and_then(|(_, pid)| *pid);
        let pid = pid.map_or_else(|| "no process".to_owned(), |pid| format!("pid {pid}"));
        let reads = if node.accepts_reads == Some(true) { "takes reads" } else { "" };
        let lag = node.lag_bytes.map(|bytes| format!("lag {bytes} B")).unwrap_or_default();
        lines.push(format!(
            "  {:4} {:10} {:9} {:12} timeline {:<3} {:11} {:12} {}",
            node.name,
            node.role.as_deref().unwrap_or("?"),
            node.health.as_deref().unwrap_or("?"),
            pid,
            node.timeline.map_or_else(unknown, |timeline| timeline.to_string()),
            reads,
            lag,
            node.note.as_deref().unwrap_or_default()
        ));
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// The part of the status whose change is news.
pub(super) fn key(status: Option<&ClusterStatus>) -> String {
    let Some(status) = status else { return "silent".to_owned() };
    let nodes = status.nodes.iter().map(|node| format!("{:?}", (&node.role, &node.health, node.accepts_reads)));
    format!("{:?} {}", (status.epoch, &status.primary, &status.writes), nodes.collect::<String>())
}

/// Statements per second over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) reads: u64,
    pub(super) others: u64,
}

impl Rates {
    /// From two counts, one second apart.
    pub(super) fn between(before: &Statements, after: &Statements) -> Self {
        let mut rates = Self::default();
        for (key, count) in after {
            let grown = count.saturating_sub(before.get(key).copied().unwrap_or_default());
            if key.1 == "read" { rates.reads += grown } else { rates.others += grown }
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_read_from_metrics_in_any_label_order() {
        let metrics = "# HELP pgregent_statements_total Statements.\n\
            pgregent_statements_total{node=\"pg1\",class=\"write\"} 12\n\
            pgregent_statements_total{class=\"read\",node=\"pg2\"} 30\n\
            pgregent_statements_total_other 5\nother{node=\"pg1\"} 7\n";
        let found = count(metrics);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&("pg1".to_owned(), "write".to_owned())], 12);
        assert_eq!(found[&("pg2".to_owned(), "read".to_owned())], 30);
        assert_eq!(Rates::between(&Statements::new(), &found), Rates { reads: 30, others: 12 });
    }

    #[test]
    fn missing_and_null_fields_are_unknown() {
        let body = r#"{"epoch":3,"primary":null,"nodes":[{"name":"pg1","lag_bytes":null,"new_field":1}]}"#;
        let status: ClusterStatus = serde_json::from_str(body).unwrap();
        assert_eq!((status.epoch, &status.primary), (Some(3), &None));
        let lines = lines(Some(&status), &[("pg1".to_owned(), Some(77))], &Rates::default());
        assert_eq!(lines[0], "epoch 3, writes ?; 0 reads and 0 other statements/s");
        assert!(lines[1].contains("pg1") && lines[1].contains("pid 77") && !lines[1].contains("lag"), "{}", lines[1]);
    }
}
