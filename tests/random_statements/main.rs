//! Random statements: what is classified as a read is one.
//!
//! A statement that the classifier calls a read runs on a standby, where it must not fail for being there, and on the
//! primary, where it must leave its transaction without an id: it wrote nothing. Other errors are the statement's own.
//! Statements come from a grammar of ours and from `sqlsmith` (Debian). STATEMENTS is how many of each, SEED where they
//! begin. The other direction is counted and told: statements called writes that would have been harmless.
//! Absent on purpose: the proxy; healing would hide what this looks for.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod generator;
mod sqlsmith;
#[path = "../support/mod.rs"]
mod support;

use pgregent::sql::{Access, Classification, Classifier, Settings, StringSyntax, Why};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::cluster::Cluster;
use support::message::ErrorFields;
use support::number;
use support::rawclient::{Answer, Gone, RawClient};

/// Without STATEMENTS, of each source.
const STATEMENTS: u64 = 300;

/// One node's session, made anew when it is lost.
struct Node {
    client: RawClient,
    at: usize,
}

impl Node {
    fn new(cluster: &Cluster, at: usize) -> Self {
        let mut client = cluster.superuser_on(at, "app");
        client.simple("SET statement_timeout = '2s'; SET lock_timeout = '200ms'").unwrap();
        Self { client, at }
    }

    /// Runs it in a transaction, and tells its answer and whether the transaction has got an id.
    fn run(&mut self, cluster: &Cluster, sql: &str) -> Option<(Result<Answer, ErrorFields>, bool)> {
        self.client.simple("BEGIN").unwrap();
        let answer = match self.client.simple(sql) {
            Ok(answer) => Ok(answer),
            Err(Gone::Refused(fields)) => Err(fields),
            Err(_) => {
                *self = Self::new(cluster, self.at);
                return None;
            }
        };
        let has_id = answer.is_ok()
            && self.at == 0
            && self.client.value("SELECT coalesce(pg_current_xact_id_if_assigned()::text, 'none')") != "none";
        let _ = self.client.simple("ROLLBACK");
        Some((answer, has_id))
    }
}

/// Does a standby fail this because it is one?
fn is_about_recovery(fields: &ErrorFields) -> bool {
    let message = fields.message();
    fields.sqlstate() == "25006" || message.contains("recovery") || message.contains("hot standby")
}

/// Runs statements where their class says, and counts.
pub struct Judge {
    cluster: Cluster,
    primary: Node,
    standby: Node,
    classifier: Classifier,
    all: u64,
    reads: u64,
    ran: u64,
    wrong: Vec<String>,
    /// Reasons of writes that would have been harmless.
    harmless: BTreeMap<String, u64>,
    writes: u64,
}

impl Judge {
    /// A cluster with these objects in its database.
    pub fn start(objects: &str) -> Self {
        let cluster = Cluster::start();
        let mut primary = Node::new(&cluster, 0);
        primary.client.simple(objects).unwrap();
        cluster.wait_replayed();
        let standby = Node::new(&cluster, 1);
        let settings =
            Settings { classify_bytes_max: 1 << 20, read_functions: Vec::new(), write_functions: Vec::new() };
        let (wrong, harmless) = (Vec::new(), BTreeMap::new());
        let classifier = Classifier::new(1, &settings);
        Self { cluster, primary, standby, classifier, all: 0, reads: 0, ran: 0, wrong, harmless, writes: 0 }
    }

    /// The port of the primary.
    pub fn port(&self) -> u16 {
        self.cluster.primary()
    }

    /// Classifies a statement and runs it.
    pub fn judge(&mut self, sql: &str) {
        self.all += 1;
        let class = self.classifier.classify(sql.as_bytes(), StringSyntax::Standard);
        if class.access == Access::Write {
            self.judge_write(sql, &class);
            return;
        }
        self.reads += 1;
        match self.standby.run(&self.cluster, sql) {
            Some((Err(fields), _)) if is_about_recovery(&fields) => self.wrong.push(format!("{fields:?}\n{sql}")),
            Some((Ok(_), _)) => self.ran += 1,
            _ => {}
        }
        if let Some((Ok(_), true)) = self.primary.run(&self.cluster, sql) {
            self.wrong.push(format!("wrote something\n{sql}"));
        }
    }

    /// Would a query that is called a write have been harmless, as far as can be seen?
    fn judge_write(&mut self, sql: &str, class: &Arc<Classification>) {
        let begins = |word: &str| sql.len() > word.len() && sql[..word.len()].eq_ignore_ascii_case(word);
        if !["select", "with", "(", "values", "table"].iter().any(|word| begins(word)) {
            return;
        }
        self.writes += 1;
        let Some((Ok(_), _)) = self.standby.run(&self.cluster, sql) else { return };
        if let Some((Ok(_), false)) = self.primary.run(&self.cluster, sql) {
            let reason = match &class.why {
                Why::Function(name) => format!("function {name}"),
                other => other.to_string(),
            };
            *self.harmless.entry(reason).or_default() += 1;
        }
    }

    /// Tells what was found, and fails if a read was none, or if there were too few to prove anything.
    pub fn finish(self, source: &str, least_reads_of_a_hundred: u64) {
        let Self { all, reads, ran, wrong, writes, harmless, .. } = self;
        println!(
            "{source}: {all} statements, {reads} called reads, {ran} of them ran without an error, {} wrong",
            wrong.len()
        );
        let count: u64 = harmless.values().sum();
        println!("{source}: {writes} queries called writes, {count} of them harmless as far as seen: {harmless:?}");
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        assert!(
            reads * 100 > all * least_reads_of_a_hundred && ran * 5 > reads,
            "{reads} of {all} were reads, {ran} ran"
        );
    }
}

#[test]
fn what_is_called_a_read_is_one() {
    let mut judge = Judge::start(generator::OBJECTS);
    let mut generator = generator::Generator::new(number("SEED", 1));
    for _ in 0..number("STATEMENTS", STATEMENTS) {
        judge.judge(&generator.statement());
    }
    judge.finish("generator", 30);
}
