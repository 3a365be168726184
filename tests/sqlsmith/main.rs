//! Random statements of `sqlsmith` (Debian): what is classified as a read is one.
//!
//! A statement that the classifier calls a read runs on a standby, where it must not fail for being there, and on the
//! primary, where it must leave its transaction without an id: it wrote nothing. Other errors are the statement's own.
//! SQLSMITH_STATEMENTS is how many, SQLSMITH_SEED where they begin. Absent on purpose: writes, which are not run.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

#[path = "../support/mod.rs"]
mod support;

use pgregent::sql::{Access, Classifier, Settings, StringSyntax};
use std::process::{Command, Stdio};
use support::cluster::Cluster;
use support::message::ErrorFields;
use support::number;
use support::rawclient::{Answer, Gone, RawClient};

/// Without SQLSMITH_STATEMENTS, of each kind.
const STATEMENTS: u64 = 250;
/// Fewer reads than this part of the statements would prove little.
const READS_MIN: usize = 12;
const OBJECTS: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, customer int, at timestamptz DEFAULT now(), total numeric, note text, tags text[]);
    CREATE TABLE customers (id serial PRIMARY KEY, name text, seen date, place point, data jsonb);
    CREATE VIEW totals AS SELECT customer, sum(total) AS total, max(at) AS last FROM orders GROUP BY customer;
    CREATE MATERIALIZED VIEW names AS SELECT name FROM customers;
    INSERT INTO customers (name, seen, data) SELECT 'c' || i, current_date - i, jsonb_build_object('i', i) FROM generate_series(1, 50) i;
    INSERT INTO orders SELECT i, i % 50, now(), i * 1.5, 'n' || i, ARRAY['a', 'b'] FROM generate_series(1, 300) i;
    CREATE FUNCTION note_it(int) RETURNS int LANGUAGE sql VOLATILE AS 'UPDATE orders SET note = note WHERE id = $1 RETURNING id'";

fn session(cluster: &Cluster, node: usize) -> RawClient {
    let mut client = cluster.superuser_on(node, "app");
    client.simple("SET statement_timeout = '2s'; SET lock_timeout = '200ms'").unwrap();
    client
}

/// Statements of sqlsmith; of the catalog or of the tables above.
fn statements(port: u16, of_catalog: bool, seed: u64, count: u64) -> Vec<String> {
    let target = format!("--target=host=127.0.0.1 port={port} user=postgres password=postgres-secret dbname=app");
    let mut command = Command::new("sqlsmith");
    command.args([&target, "--dry-run", &format!("--seed={seed}"), &format!("--max-queries={count}")]);
    if !of_catalog {
        command.arg("--exclude-catalog");
    }
    let output = command.stderr(Stdio::null()).output().expect("sqlsmith is installed (make setup)");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(";\n").map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned).collect()
}

/// Does a standby fail this because it is one?
fn is_about_recovery(fields: &ErrorFields) -> bool {
    let message = fields.message();
    fields.sqlstate() == "25006" || message.contains("recovery") || message.contains("hot standby")
}

/// Runs it; a lost connection is made anew.
fn run(client: &mut RawClient, cluster: &Cluster, node: usize, sql: &str) -> Option<Result<Answer, ErrorFields>> {
    match client.simple(sql) {
        Ok(answer) => Some(Ok(answer)),
        Err(Gone::Refused(fields)) => Some(Err(fields)),
        Err(_) => {
            *client = session(cluster, node);
            None
        }
    }
}

#[test]
fn what_is_called_a_read_is_one() {
    let cluster = Cluster::start();
    let mut primary = session(&cluster, 0);
    primary.simple(OBJECTS).unwrap();
    cluster.wait_replayed();
    let mut standby = session(&cluster, 1);
    let settings = Settings { classify_bytes_max: 1 << 20, read_functions: Vec::new(), write_functions: Vec::new() };
    let mut classifier = Classifier::new(1, &settings);
    let (count, seed) = (number("SQLSMITH_STATEMENTS", STATEMENTS), number("SQLSMITH_SEED", 1));
    let (mut all, mut reads, mut ran, mut wrong) = (0, 0, 0, Vec::new());
    for of_catalog in [false, true] {
        for sql in statements(cluster.primary(), of_catalog, seed, count) {
            all += 1;
            if classifier.classify(sql.as_bytes(), StringSyntax::Standard).access != Access::Read {
                continue;
            }
            reads += 1;
            match run(&mut standby, &cluster, 1, &sql) {
                Some(Err(fields)) if is_about_recovery(&fields) => wrong.push(format!("{fields:?}\n{sql}")),
                Some(Ok(_)) => ran += 1,
                _ => {}
            }
            primary.simple("BEGIN").unwrap();
            if let Some(Ok(_)) = run(&mut primary, &cluster, 0, &sql) {
                let id = primary.value("SELECT coalesce(pg_current_xact_id_if_assigned()::text, 'none')");
                if id != "none" {
                    wrong.push(format!("wrote something\n{sql}"));
                }
            }
            let _ = primary.simple("ROLLBACK");
        }
    }
    println!("{all} statements, {reads} called reads, {ran} of them ran without an error, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(reads * READS_MIN > all && ran > 0, "{reads} of {all} were reads, {ran} ran");
}
