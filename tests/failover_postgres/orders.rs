//! What operators order in the console, and what it tells them before, meanwhile and afterwards.
//!
//! Invariant: an order is obeyed while the old primary lives, and no acknowledged row is lost by it. Absent on purpose:
//! who may order (`console`), two proxies (`voters`), the machine's rules (`scenarios`).

use crate::load::{Load, ids_on, lost, print};
use crate::rig::{LIMIT, Plan, Rig, outcome, pause};
use crate::support::message;
use crate::support::rawclient::{Gone, Login, RawClient};
use crate::support::wait_for;
use std::time::{Duration, Instant};

/// On a slow, busy machine.
const ORDERED_OUTAGE_MAX: Duration = Duration::from_secs(5);

fn plan() -> Plan {
    let mut plan = Plan::new();
    plan.settings.push(("admin", "console_users = [\"app\"]".to_owned()));
    plan
}

fn console(rig: &Rig) -> RawClient {
    RawClient::login_at(rig.address(), &Login::new("app", "app", "pgregent")).unwrap()
}

/// A row of SHOW FAILOVER.
fn item(console: &mut RawClient, name: &str) -> String {
    let rows = console.simple("SHOW FAILOVER").unwrap().rows;
    let row = rows.iter().find(|row| row[0].as_deref() == Some(name)).unwrap_or_else(|| panic!("{name} in {rows:?}"));
    row[1].clone().unwrap_or_else(|| "NULL".to_owned())
}

/// The kinds of holds that stand now.
fn holds(console: &mut RawClient) -> Vec<String> {
    let rows = console.simple("SHOW HOLDS").unwrap().rows;
    rows.into_iter().filter(|row| row[0].as_deref() == Some("now")).map(|row| row[1].clone().unwrap()).collect()
}

/// What a node is told to be as a candidate.
fn verdict(console: &mut RawClient, node: &str) -> String {
    let rows = console.simple("SHOW CANDIDATES").unwrap().rows;
    let row = rows.into_iter().find(|row| row[0].as_deref() == Some(node)).unwrap();
    row.last().unwrap().clone().unwrap()
}

/// Gives an order; what the proxy says to it.
fn order(console: &mut RawClient, sql: &str) -> String {
    console.send(&message::query(sql)).unwrap();
    let messages = console.read_until(b'Z').unwrap();
    let notice = messages.iter().find(|message| message.tag == b'N');
    let fields = notice.unwrap_or_else(|| panic!("{sql}: {messages:?}")).fields();
    println!("{sql}: {}", fields.field(b'M'));
    fields.field(b'M').to_owned()
}

fn events(console: &mut RawClient) {
    for row in console.simple("SHOW EVENTS").unwrap().rows {
        let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        println!("  {}", row.join(" | "));
    }
}

#[test]
fn a_paused_failover_waits_for_resume() {
    let rig = plan().start();
    let mut console = console(&rig);
    assert_eq!((item(&mut console, "state"), item(&mut console, "paused")), ("stable".into(), "no".into()));
    let would = item(&mut console, "would_promote");
    assert!(["pg2", "pg3"].contains(&&*would), "{would}");
    assert_eq!(verdict(&mut console, "pg1"), "is the primary");
    // One picture: by the next one the other standby may have more WAL.
    let rows = console.simple("SHOW CANDIDATES").unwrap().rows;
    let first = rows.iter().find(|row| row[12].as_deref() == Some("1")).unwrap_or_else(|| panic!("{rows:?}"));
    assert_eq!(first.last().unwrap().as_deref(), Some("would be promoted"));
    let why = first[13].as_deref().unwrap();
    assert!(why.contains("it has more WAL") || why == "pg3: it comes first in the configuration", "{why}");
    assert_eq!(order(&mut console, "PAUSE FAILOVER"), "automatic decisions are paused");
    wait_for("the pause is shown", LIMIT, || item(&mut console, "would_be_held") == "paused");
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    rig.node("pg1").kill9().unwrap();
    wait_for("the primary is given up", LIMIT, || item(&mut console, "state") == "lost");
    assert_eq!(item(&mut console, "paused"), "yes");
    wait_for("only the pause holds", LIMIT, || holds(&mut console) == ["paused"]);
    pause(1000);
    assert_eq!((item(&mut console, "state"), item(&mut console, "failovers")), ("lost".into(), "0".into()));
    let told: serde_json::Value = serde_json::from_str(&rig.http("/api/v1/failover")).unwrap();
    assert_eq!((&told["holds"][0]["kind"], &told["holds"][0]["needs_person"]), (&"paused".into(), &true.into()));
    let metrics = rig.http("/metrics");
    for line in ["pgregent_failover_paused 1", "pgregent_holds{kind=\"paused\"} 1", "pgregent_lease_seconds NaN"] {
        assert!(metrics.lines().any(|have| have == line), "{line} in {metrics}");
    }
    assert!(rig.log().contains("\"holds\":\"paused\"") || rig.log().contains("holds=\"paused\""), "{}", rig.log());
    let resumed = order(&mut console, "RESUME FAILOVER");
    assert!(resumed.starts_with("automatic decisions are made again; failover begins"), "{resumed}");
    rig.client().simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    wait_for("the failover is over", LIMIT, || item(&mut console, "state") == "stable");
    assert_eq!(item(&mut console, "last_cause"), "it refuses connections");
    assert_eq!(
        (item(&mut console, "last_from"), item(&mut console, "failovers_within_hour")),
        ("pg1".into(), "1".into())
    );
    events(&mut console);
    rig.assert_log_clean(&["primary_lost", "held"]);
}

#[test]
fn an_order_moves_the_primary_while_it_lives() {
    let rig = plan().start();
    let mut console = console(&rig);
    let load = Load::start(&rig, 4, 2);
    let mut inside = rig.client();
    inside.simple("BEGIN; INSERT INTO ledger (id) VALUES (-1)").unwrap();
    pause(800);
    let refused = console.simple("FAILOVER TO pg1").unwrap_err();
    let Gone::Refused(fields) = refused else { panic!("{refused:?}") };
    assert_eq!((fields.sqlstate(), fields.field(b'M')), ("55000", "failover refused: pg1 is the primary already"));
    assert!(fields.field(b'H').contains("SHOW FAILOVER"), "{fields:?}");
    assert_eq!(outcome(&console.simple("FAILOVER TO pg9")), "42704");
    let began = Instant::now();
    assert!(order(&mut console, "FAILOVER TO pg3").starts_with("failover begins, detaching"));
    rig.wait_primary("pg3");
    println!("ordered: another primary after {:.3} s", began.elapsed().as_secs_f64());
    assert_eq!(outcome(&inside.simple("SELECT 1")), "40001", "sessions of the old primary are cut");
    wait_for("the old primary is quarantined", LIMIT, || rig.log().contains("quarantined"));
    pause(800);
    let (writers, readers) = load.stop();
    print(&rig, "ordered", &writers, &readers);
    events(&mut console);
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
    println!("ordered: {} of {} acknowledged rows lost", lost(&writers, rig.node("pg3")), writers.acked.len());
    assert!(writers.write_gap() < ORDERED_OUTAGE_MAX, "{:?}", writers.write_gap());
    // It lives, and nobody writes there.
    let (on_old, on_new) = (ids_on(rig.node("pg1")), ids_on(rig.node("pg3")));
    let late = writers.acked.iter().filter(|write| on_old.contains(&write.id) && !on_new.contains(&write.id));
    assert_eq!(late.filter(|write| write.at > began + Duration::from_secs(1)).count(), 0);
    assert_eq!(rig.app_backends("pg1"), "0");
    assert_eq!((item(&mut console, "last_to"), item(&mut console, "primary")), ("pg3".into(), "pg3".into()));
    assert_eq!(item(&mut console, "last_cause"), "an operator asked for a failover");
    assert_eq!(item(&mut console, "failovers_within_hour"), "0", "orders do not count");
    assert!(verdict(&mut console, "pg1").starts_with("no: it is not in recovery"), "{}", verdict(&mut console, "pg1"));
    rig.assert_log_clean(&["quarantined"]);
}

#[test]
fn in_manual_mode_a_person_orders_the_failover() {
    let mut plan = plan();
    plan.config = |text| text.replace("failover = \"automatic\"", "failover = \"manual\"");
    let rig = plan.start();
    let mut console = console(&rig);
    assert_eq!(
        (item(&mut console, "mode"), item(&mut console, "would_be_held")),
        ("manual".into(), "manual_mode".into())
    );
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    pause(500);
    rig.node("pg1").kill9().unwrap();
    wait_for("only the mode holds", LIMIT, || holds(&mut console) == ["manual_mode"]);
    pause(1000);
    assert_eq!(item(&mut console, "primary"), "NULL");
    order(&mut console, "FAILOVER");
    let mut client = rig.client();
    client.simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    assert_eq!(client.value("SELECT count(*) FROM ledger WHERE id = -1 /* pgregent: node=primary */"), "1");
    wait_for("the order is carried out", LIMIT, || item(&mut console, "failovers") == "1");
    assert_eq!(holds(&mut console), Vec::<String>::new());
    rig.assert_log_clean(&["primary_lost", "held"]);
}
