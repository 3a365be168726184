//! What splitting bytes into messages costs: one header, a node's answer of 100 rows, a client's inbox.
//!
//! Absent on purpose: sockets on the measured path (the inbox is filled once, before).

#![allow(clippy::unwrap_used, reason = "a bench stops at what it did not expect")]

use criterion::{Criterion, Throughput};
use pgregent::net::Stream;
use pgregent::relay::{Inbox, NodeScan, Scanned};
use pgregent::wire::{LENGTH_MAX, TxStatus, backend as tags, encode, frontend, header};
use std::future::poll_fn;
use std::hint::black_box;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const ROWS: usize = 100;
/// Bytes of one row's body: some ten short columns.
const ROW_LEN: usize = 100;
/// Statements in the inbox, pipelined.
const STATEMENTS: usize = 64;

fn result_of_rows() -> Vec<u8> {
    let mut out = Vec::new();
    encode::message(&mut out, tags::ROW_DESCRIPTION, |out| out.extend_from_slice(&[0; 250]));
    for _ in 0..ROWS {
        encode::message(&mut out, tags::DATA_ROW, |out| out.extend_from_slice(&[7; ROW_LEN]));
    }
    encode::command_complete(&mut out, "SELECT 100");
    encode::ready(&mut out, TxStatus::Idle);
    out
}

fn scan(bytes: &[u8]) -> usize {
    let mut scan = NodeScan::default();
    let (mut at, mut messages) = (0, 0);
    while at < bytes.len() {
        at += match scan.next(&bytes[at..]).unwrap() {
            Scanned::Begin { take, .. } | Scanned::Rest { take } => take,
            Scanned::More => unreachable!("the answer is whole"),
        };
        messages += 1;
    }
    messages
}

/// Bind, Execute, Sync, again and again, as a driver pipelines them.
fn pipelined() -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..STATEMENTS {
        encode::message(&mut out, frontend::BIND, |out| out.extend_from_slice(b"\0s1\0\0\0\0\0\0\0"));
        encode::message(&mut out, frontend::EXECUTE, |out| out.extend_from_slice(b"\0\0\0\0\0"));
        encode::message(&mut out, frontend::SYNC, |_| {});
    }
    out
}

async fn filled_inbox() -> Inbox {
    let bytes = pipelined();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (tcp, peer) = listener.accept().await.unwrap();
    let mut stream = Stream::tcp(tcp, peer).unwrap();
    client.write_all(&bytes).await.unwrap();
    let mut inbox = Inbox::default();
    while inbox.unread().len() < bytes.len() {
        assert_ne!(poll_fn(|cx| inbox.poll_fill(&mut stream, cx, 0)).await.unwrap(), 0);
    }
    inbox
}

fn walk(inbox: &Inbox) -> usize {
    let (mut at, mut messages) = (0, 0);
    while let Some(message) = inbox.message_at(at, LENGTH_MAX).unwrap() {
        at += message.len;
        messages += usize::from(message.whole);
    }
    messages
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();

    let answer = result_of_rows();
    let mut group = criterion.benchmark_group("frame");
    group.bench_function("header", |bench| bench.iter(|| header(black_box(&answer), LENGTH_MAX).unwrap()));

    assert_eq!(scan(&answer), ROWS + 3);
    group.throughput(Throughput::Bytes(answer.len() as u64));
    group.bench_function("node_scan_100_rows", |bench| bench.iter(|| scan(black_box(&answer))));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let inbox = runtime.block_on(filled_inbox());
    assert_eq!(walk(&inbox), STATEMENTS * 3);
    group.throughput(Throughput::Elements((STATEMENTS * 3) as u64));
    group.bench_function("inbox_192_messages", |bench| bench.iter(|| walk(black_box(&inbox))));
    group.finish();

    criterion.final_summary();
}
