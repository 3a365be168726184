//! Conversations about what comes at any time: notifications, cancel requests, goodbyes.
//!
//! Every function is held with PostgreSQL itself and with proxies, and the records must agree. Absent
//! on purpose: expected values; PostgreSQL is the expectation.

use crate::flow::{batch_of, step, table};
use crate::support::cluster;
use crate::support::message::*;
use crate::support::rawclient::RawClient;
use crate::support::script::Script;
use crate::support::wait_for;
use std::thread::sleep;
use std::time::Duration;

/// Long enough for a signal to arrive on a busy machine.
const SIGNAL_PAUSE: Duration = Duration::from_millis(300);

/// Notifications between any two messages.
pub fn notifications(s: &mut Script) {
    let channel = s.name("bell");
    let mut other = s.other();
    let mut ring = |what: &str| {
        other.simple(&format!("NOTIFY {channel}, '{what}'")).unwrap();
        sleep(SIGNAL_PAUSE);
    };
    s.query(&format!("LISTEN {channel}"));
    ring("idle");
    s.until(b'A');
    s.query("BEGIN");
    ring("in a transaction");
    s.query("SELECT 1");
    s.exchange(&step("SELECT 2").into_iter().chain([sync()]).collect::<Vec<_>>());
    s.query("COMMIT");
    s.query("BEGIN");
    s.query("SELECT 1/0");
    ring("in a failed one");
    s.query("ROLLBACK");
    s.send_all(&[parse("", "SELECT 3"), flush()]);
    s.until(b'1');
    ring("in a batch");
    s.exchange(&[bind("", "", &[]), execute("", 0), sync()]);
    // Its own, in a pipeline and in a transaction; equal ones count once.
    let own = format!("NOTIFY {channel}, 'own'");
    s.exchange(&batch_of(&[&own, "SELECT 4", &own]));
    s.query(&format!("BEGIN; {own}; {own}; NOTIFY {channel}, 'other'; SELECT 5"));
    s.query("COMMIT");
    s.query(&format!("BEGIN; {own}"));
    s.query("ROLLBACK");
    s.query(&format!("BEGIN; UNLISTEN {channel}; {own}; ROLLBACK; {own}"));
    s.query(&format!("SELECT pg_notify('{channel}', 'by function')"));
    s.query(&format!("NOTIFY {channel}, '{}'", "x".repeat(7999)));
    s.query(&format!("NOTIFY {channel}, '{}'", "x".repeat(8000)));
    s.query("UNLISTEN *");
    ring("unheard");
    s.query("SELECT 6");
}

/// Cancel requests: at the right time, at the wrong time, with the wrong key.
pub fn cancel_requests(s: &mut Script) {
    let port = s.port();
    let (pid, secret) = s.client().cancel_key.clone();
    let cancel_now = |pid: u32, secret: &[u8]| {
        let mut canceller = RawClient::tcp(port);
        canceller.send(&cancel(pid, secret)).unwrap();
        let _ = canceller.read_to_end();
    };
    let mark = s.name("sleeper");
    let sleeping = format!("SELECT pg_sleep(60) /* {mark} */ FOR UPDATE");
    for begin in ["SELECT 'nothing open'", "BEGIN"] {
        s.query(begin);
        s.send(&query(&sleeping));
        asleep(&mark);
        cancel_now(pid, &secret);
        s.ready();
        s.query("SELECT 'behind it'");
        s.query("ROLLBACK");
        s.query(begin);
        s.send_all(&[step("SELECT 'first'"), step(&sleeping), step("SELECT 'never'"), vec![sync()]].concat());
        asleep(&mark);
        cancel_now(pid, &secret);
        s.ready();
        s.query("ROLLBACK");
    }
    // Nothing runs: nothing happens, to nobody.
    cancel_now(pid, &secret);
    sleep(SIGNAL_PAUSE);
    s.query("SELECT 'idle'");
    s.query("BEGIN");
    cancel_now(pid, &secret);
    sleep(SIGNAL_PAUSE);
    s.query("SELECT 'idle in a transaction'");
    s.query("COMMIT");
    let wrong: Vec<u8> = secret.iter().map(|byte| byte ^ 0x55).collect();
    s.send(&query(&format!("SELECT pg_sleep(1) /* {mark} */ FOR UPDATE")));
    asleep(&mark);
    cancel_now(pid, &wrong);
    cancel_now(pid ^ 1, &secret);
    s.ready();
    s.send(&query(&format!("COPY (SELECT pg_sleep(30) /* {mark} */ FOR UPDATE) TO STDOUT")));
    asleep(&mark);
    cancel_now(pid, &secret);
    s.ready();
}

/// Waits until the marked statement sleeps on the primary: a cancel that comes before would be lost by right.
fn asleep(mark: &str) {
    let mut superuser = cluster::shared().superuser("postgres");
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{mark}%' AND wait_event = 'PgSleep' AND pid <> pg_backend_pid()"
    );
    wait_for("the statement sleeps", Duration::from_secs(15), || superuser.value(&sql) == "1");
}

/// Goodbyes at odd times, and what is left of the work before them.
pub fn terminate_anywhere(s: &mut Script) {
    let table = table(s, "byes");
    let put = |i: i32| format!("INSERT INTO {table} VALUES ({i}, 'x')");
    let copy = format!("COPY {table} FROM STDIN");
    let goodbyes: [Vec<Vec<u8>>; 9] = [
        vec![],
        vec![query(&put(1))],
        vec![query("BEGIN"), query(&put(2))],
        [step(&put(3)), vec![sync()]].concat(),
        step(&put(4)),
        vec![query("BEGIN"), query(&put(5)), query("SELECT 1/0")],
        vec![query(&copy), copy_data(b"6\tsix\n")],
        vec![query(&copy), copy_data(b"7\tseven\n"), copy_done()],
        vec![query(&put(8)), query("SELECT pg_sleep(0.2) FOR UPDATE"), query(&put(9))],
    ];
    for (number, messages) in goodbyes.into_iter().enumerate() {
        let mut other = s.other();
        other.send(&[messages.concat(), terminate(), query("SELECT 'nobody hears this'")].concat()).unwrap();
        loop {
            match other.read() {
                // PostgreSQL scolds a client that leaves in the middle of its COPY data; the client is not there any more.
                Ok(message) if number == 6 && message.tag == b'E' => {}
                Ok(message) => s.note(message.describe().replace(&table, "byes")),
                Err(gone) => {
                    s.note(format!("{gone:?}"));
                    break;
                }
            }
        }
    }
    sleep(SIGNAL_PAUSE);
    s.query(&format!("SELECT i FROM {table} ORDER BY i"));
    s.query(&format!("DROP TABLE {table}"));
}
