//! What classification costs: a hit (the text was seen lately), a hit by shape, and a miss (grammar and rules).
//!
//! `cargo bench --bench classify`. A miss is measured with a classifier that has just been made.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgregent::sql::{Classifier, Settings, StringSyntax};

/// Name and text.
fn texts() -> [(&'static str, String); 6] {
    let columns: Vec<String> = (0..15).map(|n| format!("\"o\".\"column_{n:02}\" AS \"o_{n:02}\"")).collect();
    let join = format!(
        "SELECT {} FROM \"orders\" AS \"o\" INNER JOIN \"customers\" AS \"c\" ON \"c\".\"id\" = \"o\".\"customer_id\" \
         LEFT OUTER JOIN \"addresses\" AS \"a\" ON \"a\".\"customer_id\" = \"c\".\"id\" WHERE \"o\".\"state\" IN \
         ($1, $2, $3) AND \"c\".\"country\" = 'de' ORDER BY \"o\".\"created_at\" DESC LIMIT 50 OFFSET 100",
        columns.join(", ")
    );
    [
        ("point_select", "SELECT abalance FROM pgbench_accounts WHERE aid = 4711123".to_owned()),
        ("tpcb_update", "UPDATE pgbench_accounts SET abalance = abalance + -1423 WHERE aid = 4711123;".to_owned()),
        (
            "select_200",
            "SELECT u.id, u.name, u.email, count(o.id) AS orders FROM users u JOIN orders o ON o.user_id = u.id \
             WHERE u.created_at > '2024-01-01' AND o.total > 99.5 GROUP BY u.id ORDER BY orders DESC LIMIT 20"
                .to_owned(),
        ),
        ("orm_join", join),
        ("begin", "BEGIN".to_owned()),
        ("in_list_5mb", format!("SELECT * FROM t WHERE id IN ({}1)", "1234567,".repeat(625_000))),
    ]
}

fn classifier() -> Classifier {
    let settings = Settings { classify_bytes_max: 8 << 20, read_functions: Vec::new(), write_functions: Vec::new() };
    Classifier::new(7, &settings)
}

fn classify(criterion: &mut Criterion) {
    for (name, text) in texts() {
        let mut group = criterion.benchmark_group(format!("{name} ({} B)", text.len()));
        group.throughput(Throughput::Bytes(text.len() as u64));
        let mut warm = classifier();
        group.bench_function("hit", |bench| {
            bench.iter(|| warm.classify(black_box(text.as_bytes()), StringSyntax::Standard));
        });
        // The same shape, and more texts of it than are kept: a line comment is no part of a shape.
        let count = if text.len() < 4096 { 4096 } else { 0 };
        let others: Vec<String> = (0..count).map(|number| format!("{text} -- {number}")).collect();
        if !others.is_empty() {
            let mut turn = 0;
            group.bench_function("hit_by_shape", |bench| {
                bench.iter(|| {
                    turn = (turn + 1) % others.len();
                    warm.classify(black_box(others[turn].as_bytes()), StringSyntax::Standard)
                });
            });
        }
        group.bench_function("miss", |bench| {
            bench.iter_batched_ref(
                classifier,
                |cold| cold.classify(black_box(text.as_bytes()), StringSyntax::Standard),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, classify);
criterion_main!(benches);
