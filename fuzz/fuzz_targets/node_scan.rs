//! A node's bytes, cut anywhere, into messages; every body read by the readers of its kind.
//!
//! Promises: no piece is longer than what is there, cuts change nothing but the pieces, a header's length
//! is within its limit, and the queue of replies owed survives any order of tags.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::backend::{Owed, Pipeline};
use pgregent::relay::{NodeScan, Scanned};
use pgregent::wire::{HEADER_LEN, backend, header};

/// What came out: tags with the bytes taken for each, and whether the bytes were refused.
fn scan(bytes: &[u8], cut: usize) -> (Vec<(u8, usize)>, bool) {
    let mut scan = NodeScan::default();
    let (mut seen, mut fed) = (0, 0);
    let mut messages: Vec<(u8, usize)> = Vec::new();
    loop {
        match scan.next(&bytes[seen..fed]) {
            Err(_) => return (messages, true),
            Ok(Scanned::More) if fed == bytes.len() => return (messages, false),
            Ok(Scanned::More) => fed = (fed + cut).min(bytes.len()),
            Ok(Scanned::Begin { tag, take, whole }) => {
                assert!((HEADER_LEN..=fed - seen).contains(&take));
                assert_eq!(whole, !scan.is_inside());
                messages.push((tag, take));
                seen += take;
            }
            Ok(Scanned::Rest { take }) => {
                assert!((1..=fed - seen).contains(&take));
                messages.last_mut().expect("begun before").1 += take;
                seen += take;
            }
        }
    }
}

fn reply_queue(tags: &[u8]) {
    let mut pipeline = Pipeline::default();
    for owed in [
        Owed::Parse { swallow: true, id: 7 },
        Owed::Bind { id: 0 },
        Owed::Describe { swallow: false, id: 0 },
        Owed::Execute,
        Owed::InventClose,
        Owed::Sync { swallow: false },
        Owed::Query { swallow: false },
    ] {
        pipeline.push(owed);
    }
    for tag in tags {
        let before = pipeline.len();
        let answered = pipeline.on_reply(*tag).is_ok();
        assert!(pipeline.len() <= before);
        assert!(answered || pipeline.len() == before, "a reply nobody asked for changed the queue");
        pipeline.take_invented();
    }
}

fuzz_target!(|input: (u16, Vec<u8>)| {
    let (cut, bytes) = (usize::from(input.0).max(1), input.1);
    if let Ok(Some(head)) = header(&bytes, 1000) {
        assert!(head.body_len <= 1000 && head.message_len() == head.body_len + HEADER_LEN);
    }
    let (whole, refused) = scan(&bytes, bytes.len().max(1));
    let (cut, cut_refused) = scan(&bytes, cut);
    assert_eq!((&whole, refused), (&cut, cut_refused), "cuts changed what was seen");
    let _ = (backend::error(&bytes), backend::ready(&bytes), backend::parameter(&bytes), backend::key_data(&bytes));
    reply_queue(&whole.iter().map(|(tag, _)| *tag).collect::<Vec<_>>());
    reply_queue(&bytes);
});
