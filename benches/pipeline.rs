//! What the queue of replies owed costs per statement: entries pushed, replies matched.
//!
//! Absent on purpose: the bytes of the replies (see `frame`).

#![allow(clippy::unwrap_used, reason = "a bench stops at what it did not expect")]

use criterion::Criterion;
use pgregent::backend::{Owed, Pipeline};
use std::hint::black_box;

fn answer(pipeline: &mut Pipeline, tags: &[u8]) {
    for tag in tags {
        black_box(pipeline.on_reply(*tag).unwrap());
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("pipeline");
    let mut pipeline = Pipeline::default();

    group.bench_function("simple_one_row", |bench| {
        bench.iter(|| {
            pipeline.push(Owed::Query { swallow: false });
            answer(&mut pipeline, black_box(b"TDCZ"));
        });
    });
    group.bench_function("prepared_one_row", |bench| {
        bench.iter(|| {
            for owed in [Owed::Bind { id: 0 }, Owed::Execute, Owed::Sync { swallow: false }] {
                pipeline.push(owed);
            }
            answer(&mut pipeline, black_box(b"2DCZ"));
        });
    });
    group.bench_function("error_skips_to_sync", |bench| {
        bench.iter(|| {
            for owed in [
                Owed::Parse { swallow: false, id: 0 },
                Owed::Bind { id: 0 },
                Owed::Execute,
                Owed::Sync { swallow: false },
            ] {
                pipeline.push(owed);
            }
            answer(&mut pipeline, black_box(b"EZ"));
            black_box(pipeline.take_failed());
        });
    });
    assert!(pipeline.is_empty());
    group.finish();
    criterion.final_summary();
}
