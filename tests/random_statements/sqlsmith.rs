//! Statements of `sqlsmith`: of the catalog and of tables like an application's.
//!
//! Absent on purpose: writes; it makes queries only.

use super::{Judge, STATEMENTS};
use crate::support::number;
use std::process::{Command, Stdio};

const OBJECTS: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, customer int, at timestamptz DEFAULT now(), total numeric, note text, tags text[]);
    CREATE TABLE customers (id serial PRIMARY KEY, name text, seen date, place point, data jsonb);
    CREATE VIEW totals AS SELECT customer, sum(total) AS total, max(at) AS last FROM orders GROUP BY customer;
    CREATE MATERIALIZED VIEW names AS SELECT name FROM customers;
    INSERT INTO customers (name, seen, data) SELECT 'c' || i, current_date - i, jsonb_build_object('i', i) FROM generate_series(1, 50) i;
    INSERT INTO orders SELECT i, i % 50, now(), i * 1.5, 'n' || i, ARRAY['a', 'b'] FROM generate_series(1, 300) i;
    CREATE FUNCTION note_it(int) RETURNS int LANGUAGE sql VOLATILE AS 'UPDATE orders SET note = note WHERE id = $1 RETURNING id'";

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

#[test]
fn what_is_called_a_read_of_sqlsmith_is_one() {
    let mut judge = Judge::start(OBJECTS);
    let (count, seed) = (number("STATEMENTS", STATEMENTS), number("SEED", 1));
    for of_catalog in [false, true] {
        for sql in statements(judge.port(), of_catalog, seed, count / 2) {
            judge.judge(&sql);
        }
    }
    judge.finish("sqlsmith", 8);
}
