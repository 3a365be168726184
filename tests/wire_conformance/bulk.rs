//! Values of tens of megabytes and pipelines of ten thousand statements: right, and in bounded memory.
//!
//! The proxy's resident memory is read from the kernel while the bytes pass. Absent on purpose:
//! comparison with PostgreSQL; sums of what went in are the expectation.

use crate::support::cluster::{self, app_login};
use crate::support::message::*;
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::RawClient;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

/// Size of the values.
const VALUE_BYTES: usize = 40 << 20;
/// How much the proxy may grow while such a value passes, whatever its size.
const GROWTH_KB_MAX: u64 = 12 << 10;
/// Statements of the long pipelines.
const STATEMENTS: usize = 10_000;

/// A value in `/proc/PID/status`, in kB.
fn status_kb(proxy: &Proxy, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("the proxy runs");
    let line = status.lines().find(|line| line.starts_with(key)).expect("the kernel tells");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Does something twice: once to warm up with a small size, once measured; the peak may not grow by more than the limit.
fn assert_bounded(proxy: &Proxy, what: &str, mut act: impl FnMut(usize)) {
    act(1 << 20);
    // Forgets the peak so far.
    fs::write(format!("/proc/{}/clear_refs", proxy.pid()), "5").expect("the process is ours");
    let before = status_kb(proxy, "VmRSS:");
    act(VALUE_BYTES);
    let growth = status_kb(proxy, "VmHWM:").saturating_sub(before);
    assert!(growth < GROWTH_KB_MAX, "{what}: the proxy grew by {growth} kB for a value of {VALUE_BYTES} bytes");
}

fn start() -> Proxy {
    ProxySpec::in_front_of(cluster::shared()).start_splitting()
}

#[test]
fn big_values_pass_in_bounded_memory() {
    let proxy = start();
    assert_bounded(&proxy, "a row", |size| {
        let mut client = proxy.client();
        let answer = client.simple(&format!("SELECT repeat('r', {size})")).unwrap();
        assert_eq!(answer.rows[0][0].as_ref().map(String::len), Some(size));
    });
    assert_bounded(&proxy, "a row to a client that reads slowly", |size| {
        let mut client = proxy.client();
        client.send(&query(&format!("SELECT repeat('s', {size}) FOR UPDATE"))).unwrap();
        thread::sleep(Duration::from_millis(700));
        assert_eq!(client.answer().unwrap().rows[0][0].as_ref().map(String::len), Some(size));
    });
    assert_bounded(&proxy, "a parameter", |size| {
        let mut client = proxy.client();
        let value = vec![b'p'; size];
        let messages =
            [parse("", "SELECT length($1::text) FOR UPDATE"), bind("", "", &[Some(&value)]), execute("", 0), sync()];
        client.send(&messages.concat()).unwrap();
        assert_eq!(client.answer().unwrap().rows, [[Some(size.to_string())]]);
    });
    assert_bounded(&proxy, "a statement's text", |size| {
        let text = format!("SELECT length('{}') FOR UPDATE", "t".repeat(size));
        assert_eq!(proxy.client().value(&text), size.to_string());
    });
    proxy.client().simple("CREATE TABLE bulk_copy (t text)").unwrap();
    assert_bounded(&proxy, "a line of COPY in", |size| {
        let mut client = proxy.client();
        client.send(&query("TRUNCATE bulk_copy; COPY bulk_copy FROM STDIN")).unwrap();
        client.read_until(b'G').unwrap();
        for block in vec![b'c'; size].chunks(1 << 20) {
            client.send(&copy_data(block)).unwrap();
        }
        client.send(&[copy_data(b"\n"), copy_done()].concat()).unwrap();
        client.answer().unwrap();
        assert_eq!(client.value("SELECT length(t) FROM bulk_copy FOR UPDATE"), size.to_string());
    });
    assert_bounded(&proxy, "one CopyData message", |size| {
        let mut client = proxy.client();
        client.send(&query("TRUNCATE bulk_copy; COPY bulk_copy FROM STDIN")).unwrap();
        client.read_until(b'G').unwrap();
        client.send(&[copy_data(&[vec![b'c'; size], b"\n".to_vec()].concat()), copy_done()].concat()).unwrap();
        client.answer().unwrap();
    });
    assert_bounded(&proxy, "a line of COPY out", |_| {
        let mut client = proxy.client();
        client.send(&query("COPY bulk_copy TO STDOUT")).unwrap();
        let messages = client.read_until(b'Z').unwrap();
        assert_eq!(messages.iter().filter(|m| m.tag == b'd').map(|m| m.body.len()).sum::<usize>(), VALUE_BYTES + 1);
    });
    assert_bounded(&proxy, "an error text", |size| {
        // No bigger: PostgreSQL writes it to its log, and libraries hold it whole.
        let sql = format!("DO $$ BEGIN RAISE EXCEPTION '%', repeat('e', {}); END $$", size / 8);
        assert!(proxy.client().simple(&sql).is_err());
    });
    proxy.assert_serving();
}

/// What came back for a long pipeline, read on a thread of its own.
fn answers(mut stream: TcpStream, readies: usize) -> thread::JoinHandle<Vec<(u8, Vec<u8>)>> {
    thread::spawn(move || {
        let (mut bytes, mut messages, mut seen) = (Vec::new(), Vec::new(), 0);
        let mut chunk = vec![0; 64 << 10];
        while seen < readies {
            let count = stream.read(&mut chunk).expect("answers come");
            assert!(count > 0, "the connection ended after {seen} of {readies}");
            bytes.extend_from_slice(&chunk[..count]);
            let mut at = 0;
            while bytes.len() >= at + 5 {
                let length = u32::from_be_bytes(bytes[at + 1..at + 5].try_into().unwrap()) as usize;
                if bytes.len() < at + 1 + length {
                    break;
                }
                seen += usize::from(bytes[at] == b'Z');
                messages.push((bytes[at], bytes[at + 5..at + 1 + length].to_vec()));
                at += 1 + length;
            }
            bytes.drain(..at);
        }
        messages
    })
}

/// Rows of a pipeline whose statements return their number.
fn assert_numbers(messages: &[(u8, Vec<u8>)], except: impl Fn(usize) -> bool) {
    let rows = messages.iter().filter(|(tag, _)| *tag == b'D');
    let found: Vec<String> = rows.map(|(_, body)| String::from_utf8_lossy(&body[6..]).into_owned()).collect();
    let expected: Vec<String> = (0..STATEMENTS).filter(|i| !except(*i)).map(|i| i.to_string()).collect();
    assert_eq!(found.len(), expected.len());
    assert!(found == expected, "answers out of order");
}

/// Sends everything before it reads anything.
fn pipeline(proxy: &Proxy, bytes: &[u8], readies: usize) -> Vec<(u8, Vec<u8>)> {
    let client = RawClient::login(proxy.port, &app_login()).unwrap();
    let mut stream = client.stream().try_clone().unwrap();
    stream.write_all(bytes).expect("a pipeline is taken while its answers are not read");
    answers(client.stream().try_clone().unwrap(), readies).join().unwrap()
}

#[test]
fn ten_thousand_statements_before_the_first_answer_is_read() {
    let proxy = start();
    let one = |i: usize, sql: &str| {
        [parse("", &sql.replace("$i", &i.to_string())), bind("", "", &[]), execute("", 0)].concat()
    };
    let before = status_kb(&proxy, "VmRSS:");
    // One Sync for all; one each; simple Queries; named, and every thousandth fails.
    let mut all: Vec<u8> = (0..STATEMENTS).flat_map(|i| one(i, "SELECT $i")).collect();
    all.extend(sync());
    assert_numbers(&pipeline(&proxy, &all, 1), |_| false);
    let all: Vec<u8> = (0..STATEMENTS).flat_map(|i| [one(i, "SELECT $i"), sync()].concat()).collect();
    assert_numbers(&pipeline(&proxy, &all, STATEMENTS), |_| false);
    let all: Vec<u8> = (0..STATEMENTS).flat_map(|i| query(&format!("SELECT {i}"))).collect();
    assert_numbers(&pipeline(&proxy, &all, STATEMENTS), |_| false);
    let mut all = [parse("named", "SELECT 1000 * $1::int / $1::int * $2::int / 1000"), sync()].concat();
    for i in 0..STATEMENTS {
        let (divisor, number) = (if i % 1000 == 7 { "0" } else { "1" }, i.to_string());
        let values = [Some(divisor.as_bytes()), Some(number.as_bytes())];
        all.extend([bind("", "named", &values), execute("", 0), sync()].concat());
    }
    assert_numbers(&pipeline(&proxy, &all, STATEMENTS + 1), |i| i % 1000 == 7);
    let mut all = query("BEGIN");
    (0..STATEMENTS).for_each(|i| all.extend([one(i, "SELECT $i FOR UPDATE"), sync()].concat()));
    all.extend(query("COMMIT"));
    assert_numbers(&pipeline(&proxy, &all, STATEMENTS + 2), |_| false);
    let growth = status_kb(&proxy, "VmRSS:").saturating_sub(before);
    assert!(growth < GROWTH_KB_MAX, "the proxy grew by {growth} kB");
    proxy.assert_serving();
}

#[test]
fn a_read_with_a_list_of_five_megabytes_goes_to_a_standby() {
    let proxy = start();
    let mut client = proxy.client();
    let primary = client.value("SELECT inet_server_port() FOR UPDATE");
    let select =
        |list: &str| format!("SELECT inet_server_port(), count(*) FROM generate_series(1, 10) i WHERE i IN ({list})");
    let list = "1234567,".repeat(650_000) + "3";
    let answer = client.simple(&select(&list)).unwrap();
    assert_eq!(answer.rows[0][1].as_deref(), Some("1"));
    assert_ne!(answer.rows[0][0].as_deref(), Some(primary.as_str()), "a read of {} bytes", list.len());
    // The same in the extended protocol, and a write that is as long.
    client.send(&[parse("", &select(&list)), bind("", "", &[]), execute("", 0), sync()].concat()).unwrap();
    let answer = client.answer().unwrap();
    assert_ne!(answer.rows[0][0].as_deref(), Some(primary.as_str()));
    let answer = client.simple(&format!("{} FOR UPDATE", select(&list).replace(", count(*)", ""))).unwrap();
    assert_eq!(answer.rows[0][0].as_deref(), Some(primary.as_str()));
}
