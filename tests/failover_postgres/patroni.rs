//! Follow mode beside Patroni: real nodes promoted by hand, and small servers that answer as Patroni's REST API does.
//!
//! Absent on purpose: a real Patroni (it needs etcd), and the rules (`scenarios`).

use crate::load::{Load, lost, print};
use crate::rig::{LIMIT, Plan, Rig, pause, since};
use crate::support::wait_for;
use pgregent::demo::cluster::Shutdown;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A node is followed in about a second; this is a slow, busy machine.
const FOLLOWED_MAX: Duration = Duration::from_secs(5);

/// Patroni of one node: it has the lock or not, whatever PostgreSQL is.
struct Patroni {
    port: u16,
    leads: Arc<AtomicBool>,
}

impl Patroni {
    fn start(leads: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, leads) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(leads)));
        let shared = Arc::clone(&leads);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that leaves early is no concern of Patroni's.
                let _ = stream.and_then(|stream| answer(&stream, shared.load(Ordering::SeqCst)));
            }
        });
        Self { port, leads }
    }

    fn lead(&self, leads: bool) {
        self.leads.store(leads, Ordering::SeqCst);
    }
}

/// As Python's server does: HTTP/1.0, and the end of the connection ends the answer. The role is what PostgreSQL says.
fn answer(mut stream: &std::net::TcpStream, leads: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let status = match (request.starts_with("GET /primary "), leads) {
        (false, _) => "404 Not Found",
        (true, true) => "200 OK",
        (true, false) => "503 Service Unavailable",
    };
    let body = r#"{"state": "running", "role": "primary", "patroni": {"version": "4.1.5", "scope": "test"}}"#;
    write!(stream, "HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}")
}

/// Three nodes, the first of them primary and leader.
fn start() -> (Rig, [Patroni; 3]) {
    let patronis = [true, false, false].map(Patroni::start);
    let mut plan = Plan::new();
    plan.node_lines =
        patronis.iter().map(|patroni| format!("patroni_url = \"http://127.0.0.1:{}\"", patroni.port)).collect();
    let rig = plan.start_following();
    wait_for("Patroni was asked", LIMIT, || rig.node_status("pg3")["patroni"] == "member");
    assert_eq!(rig.node_status("pg1")["patroni"], "leader");
    (rig, patronis)
}

#[test]
fn a_node_that_patroni_calls_leader_is_followed() {
    let (rig, [one, two, _]) = start();
    let load = Load::start(&rig, 3, 2);
    pause(500);
    rig.node("pg1").stop(Shutdown::Fast).unwrap();
    one.lead(false);
    two.lead(true);
    pause(1000);
    assert!(!rig.control()["primary"].is_string(), "it is still in recovery: {}", rig.control());
    rig.node("pg2").promote().unwrap();
    let began = Instant::now();
    rig.wait_primary("pg2");
    println!("followed after {}", since(began));
    assert!(began.elapsed() < FOLLOWED_MAX);
    pause(500);
    let (writers, readers) = load.stop();
    print(&rig, "Patroni promoted", &writers, &readers);
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    assert_eq!(lost(&writers, rig.node("pg2")), 0);
    rig.assert_log_clean(&["held"]);
}

#[test]
fn a_node_that_patroni_does_not_call_leader_is_not_followed() {
    let (rig, [one, two, _]) = start();
    // Behind Patroni's back, while the primary works: writes stay there.
    rig.node("pg2").promote().unwrap();
    wait_for("pg2 is not used", LIMIT, || {
        let note = rig.node_status("pg2")["note"].as_str().unwrap_or_default().to_owned();
        rig.control()["primary"] == "pg1" && note.contains("Patroni does not call it the leader")
    });
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    assert_eq!(rig.node("pg1").psql_in("app", "SELECT count(*) FROM ledger WHERE id = -1").unwrap(), "1");
    assert_eq!(rig.node("pg2").psql_in("app", "SELECT count(*) FROM ledger WHERE id = -1").unwrap(), "0");
    // And when the primary is gone.
    rig.node("pg1").kill9().unwrap();
    let holds = || rig.control()["holds"].as_array().cloned().unwrap_or_default();
    wait_for("Patroni disagrees", LIMIT, || holds().iter().any(|hold| hold["kind"] == "patroni_disagrees"));
    pause(2000);
    assert!(!rig.control()["primary"].is_string(), "{}", rig.control());
    assert!(rig.log().contains("pg2 is not followed: pg2 accepts writes, but Patroni does not call it the leader"));
    one.lead(false);
    two.lead(true);
    let began = Instant::now();
    rig.wait_primary("pg2");
    println!("followed after {}", since(began));
    assert!(began.elapsed() < FOLLOWED_MAX);
    rig.client().simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
}
