//! What taking a backend from its pool and giving it back costs, with nobody else in the way.
//!
//! The backends are real connections to a listener of this bench that lets everybody in. Absent on
//! purpose: contention (`make bench-compare` shows what it does to whole statements).

#![allow(clippy::unwrap_used, reason = "a bench stops at what it did not expect")]

use criterion::Criterion;
use pgregent::backend::Target;
use pgregent::clock::Clock;
use pgregent::config::Config;
use pgregent::ids::{NodeId, PoolKey};
use pgregent::metrics::Metrics;
use pgregent::pool::{Checkout, Pool, PoolDeps, PoolNode, PoolSet};
use pgregent::topology::{Topology, TopologyPublisher, fact_channel, topology_channel};
use pgregent::wire::{TxStatus, encode};
use std::future::poll_fn;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Backends on the idle stack.
const BACKENDS: usize = 20;

/// Only for its `[pool]`.
const CONFIG: &str = r#"
[cluster]
failover = "manual"
[[node]]
name = "pg1"
address = "10.0.0.1"
[auth]
method = "trust"
[[auth.user]]
name = "app"
password = "app"
"#;

/// A node that lets everybody in and then says nothing.
async fn node(listener: TcpListener) {
    loop {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut heard = [0; 1024];
            let mut hello = Vec::new();
            encode::authentication(&mut hello, &0u32.to_be_bytes());
            encode::ready(&mut hello, TxStatus::Idle);
            while tcp.read(&mut heard).await.is_ok_and(|len| len > 0) {
                if tcp.write_all(&hello).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// The publisher must outlive the pools: its end would end their upkeep.
async fn pool(clock: &Clock) -> (PoolSet, Arc<Pool>, TopologyPublisher) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::plain("127.0.0.1", listener.local_addr().unwrap().port());
    tokio::spawn(node(listener));
    let config = Config::parse(CONFIG, "bench.toml").unwrap();
    let names = ["pg1".into()];
    let (publisher, topology) = topology_channel(Topology::starting(&names));
    let set = PoolSet::start(PoolDeps {
        standings: Arc::new(pgregent::route::Standings::new(1)),
        nodes: vec![PoolNode { name: "pg1".into(), target, budget: BACKENDS }],
        config: config.pool,
        clock: clock.clone(),
        metrics: Metrics::new(&names, &["read"]),
        facts: fact_channel().0,
        topology,
    });
    let pool = set.pool(&PoolKey { node: NodeId(0), database: "app".into(), user: "app".into() });
    (set, pool, publisher)
}

async fn queue(pool: &Arc<Pool>, clock: &Clock) -> Checkout {
    let ticket = pool.join(clock.now() + Duration::from_secs(10), 0).unwrap();
    poll_fn(|cx| pool.poll_ticket(ticket, cx, || clock.now())).await.unwrap()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let clock = Clock::machine();
    let (set, pool, _publisher) = runtime.block_on(async {
        let (set, pool, publisher) = pool(&clock).await;
        let mut taken = Vec::new();
        for _ in 0..BACKENDS {
            taken.push(queue(&pool, &clock).await);
        }
        taken.into_iter().for_each(|checkout| checkout.release(clock.now()));
        (set, pool, publisher)
    });
    assert_eq!(pool.stats().idle, BACKENDS);

    let _inside = runtime.enter();
    let mut group = criterion.benchmark_group("pool");
    group.bench_function("checkout_release", |bench| {
        bench.iter(|| {
            let checkout = pool.try_checkout(black_box(clock.now()), None).unwrap();
            checkout.release(clock.now());
        });
    });
    group.bench_function("clock_now_twice", |bench| bench.iter(|| (clock.now(), clock.now())));
    group.finish();
    assert_eq!(pool.stats().idle, BACKENDS, "a backend was lost on the way");
    runtime.block_on(set.close());
    criterion.final_summary();
}
