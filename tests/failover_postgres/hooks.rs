//! Programs at a failover, and the fence of a former primary, on real servers.
//!
//! Invariant: every bound holds on a slow machine with two cores. Absent on purpose: the runner's own cases (its unit
//! tests) and the rig (`rig`).

use crate::rig::{LIMIT, Plan, Rig, pause};
use crate::support::wait_for;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Files of programs, outside of the cluster's directory: they are named before it exists.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("pgregent-hooks-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// A setting that runs this shell script; `$D` is the folder.
    fn script(&self, key: &str, script: &str) -> (&'static str, String) {
        let text = format!("D={}; {script}", self.0.display());
        ("hooks", format!("{key} = [\"/bin/sh\", \"-c\", {}]", serde_json::to_string(&text).unwrap()))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn another_primary(rig: &Rig) -> String {
    wait_for("another primary", LIMIT, || {
        let control = rig.control();
        control["primary"].is_string() && control["primary"] != "pg1"
    });
    rig.control()["primary"].as_str().unwrap().to_owned()
}

#[test]
fn programs_are_told_of_a_failover() {
    let folder = Folder::new();
    let mut plan = Plan::new();
    let note = "env | grep ^PGREGENT_ | sort > $D/$PGREGENT_HOOK.new; mv $D/$PGREGENT_HOOK.new $D/$PGREGENT_HOOK";
    for key in ["before_promotion", "after_promotion", "on_role_change"] {
        plan.settings.push(folder.script(key, note));
    }
    let rig = plan.start();
    rig.node("pg1").kill9().unwrap();
    let primary = another_primary(&rig);
    // It ran at the start, too, for the first primary.
    wait_for("the programs have run", LIMIT, || folder.read("on_role_change").contains("PGREGENT_EPOCH=2"));
    wait_for("the programs have run", LIMIT, || !folder.read("after_promotion").is_empty());
    let port = rig.node(&primary).port();
    let expected = |hook: &str, timeline: u32| {
        format!(
            "PGREGENT_CLUSTER=playground\nPGREGENT_EPOCH=2\nPGREGENT_HOOK={hook}\nPGREGENT_HOST=127.0.0.1\n\
             PGREGENT_NEW_PRIMARY={primary}\nPGREGENT_NODE={primary}\nPGREGENT_OLD_PRIMARY=pg1\nPGREGENT_PORT={port}\n\
             PGREGENT_REASON=it refuses connections\nPGREGENT_TIMELINE={timeline}\n"
        )
    };
    assert_eq!(folder.read("before_promotion"), expected("before_promotion", 1));
    assert_eq!(folder.read("after_promotion"), expected("after_promotion", 2));
    assert_eq!(folder.read("on_role_change"), expected("on_role_change", 2));
    rig.print_parts("hooks");
    rig.assert_log_clean(&[]);
}

#[test]
fn a_promotion_waits_for_the_fence_command() {
    let folder = Folder::new();
    let mut plan = Plan::new();
    plan.settings.push(("cluster", "fencing = \"command\"".to_owned()));
    // Twice it cannot, then it can; it says what it found when it ran.
    let script =
        "echo $PGREGENT_NODE >> $D/runs; [ $(wc -l < $D/runs) -ge 3 ] || { echo no power switch >&2; exit 7; }";
    plan.settings.push(folder.script("fence_command", script));
    let rig = plan.start();
    rig.node("pg1").kill9().unwrap();
    wait_for("the failover is held", LIMIT, || rig.log().contains("could not be fenced"));
    let holds = rig.control()["holds"].to_string();
    println!("fence: {holds}");
    assert!(holds.contains("no power switch") && holds.contains("exit status: 7"), "{holds}");
    assert!(!rig.control()["primary"].is_string(), "{}", rig.control());
    // 5 s and 10 s lie between the attempts.
    let primary = another_primary(&rig);
    assert_eq!(folder.read("runs"), "pg1\npg1\npg1\n");
    let mut client = rig.client();
    client.simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    println!("fence: {primary} is primary after three attempts");
    rig.print_parts("fence");
    rig.assert_log_clean(&["fence_failed", "held"]);
}

#[test]
fn a_former_primary_that_takes_writes_is_made_read_only() {
    let rig = Plan::new().start();
    let old = rig.node("pg1");
    old.kill9().unwrap();
    let primary = another_primary(&rig);
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    old.start().unwrap();
    wait_for("it is fenced", LIMIT, || rig.log().contains("fenced_sql"));
    wait_for("it is read-only", LIMIT, || old.psql("SHOW default_transaction_read_only").is_ok_and(|on| on == "on"));
    let status = rig.http("/metrics");
    assert!(status.contains("pgregent_notices_total{kind=\"quarantined\"} 1"), "{status}");
    // The primary is not.
    assert_eq!(rig.node(&primary).psql("SHOW default_transaction_read_only").unwrap(), "off");
    rig.client().simple("INSERT INTO ledger (id) VALUES (-2)").unwrap();
    old.stop(pgregent::demo::cluster::Shutdown::Fast).unwrap();
    old.rejoin(rig.node(&primary)).unwrap();
    rig.wait_reads_on(&["pg1"]);
    wait_for("it is writable again", LIMIT, || {
        old.psql("SHOW default_transaction_read_only").is_ok_and(|on| on == "off")
    });
    rig.assert_log_clean(&["quarantined"]);
}

#[test]
fn synchronous_names_are_set_before_the_promotion() {
    let mut plan = Plan::new();
    plan.settings.push(("cluster", "synchronous_standbys = 1".to_owned()));
    let rig = plan.start();
    let names = |name: &str| rig.node(name).psql("SHOW synchronous_standby_names").unwrap();
    wait_for("the primary names its standbys", LIMIT, || names("pg1") == "ANY 1 (\"pg2\", \"pg3\")");
    wait_for("nothing is held", LIMIT, || rig.control()["holds"] == serde_json::json!([]));
    pause(600);
    rig.node("pg1").kill9().unwrap();
    let primary = another_primary(&rig);
    let other = if primary == "pg2" { "pg3" } else { "pg2" };
    println!("names after the failover: {}", names(&primary));
    assert_eq!(names(&primary), format!("ANY 1 (\"{other}\")"));
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    rig.assert_log_clean(&["held"]);
}

fn read_only(rig: &Rig, node: &str) -> bool {
    rig.node(node).psql("SHOW default_transaction_read_only").is_ok_and(|on| on == "on")
}

#[test]
fn a_fence_is_known_to_a_proxy_that_never_set_it() {
    let rig = Plan::new().start();
    let old = rig.node("pg1");
    old.kill9().unwrap();
    let primary = another_primary(&rig);
    old.start().unwrap();
    wait_for("it is fenced", LIMIT, || rig.log().contains("fenced_sql"));
    let conninfo = old.psql("SHOW primary_conninfo").unwrap();
    assert!(conninfo.contains("-cpgregent.fenced=1"), "{conninfo}");
    // A restarted proxy sees that it is done already.
    rig.kill_proxy();
    rig.start_proxy();
    rig.wait_primary(&primary);
    wait_for("it is in quarantine", LIMIT, || rig.log().contains("quarantined"));
    pause(2500);
    assert!(!rig.log().contains("fenced_sql"), "{}", rig.log());
    assert!(read_only(&rig, "pg1"));
    // Made a standby by a person, and the setting kept somehow: taken back by a proxy that knows of nothing.
    rig.kill_proxy();
    old.rejoin(rig.node(&primary)).unwrap();
    old.psql("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    old.psql("SELECT pg_reload_conf()").unwrap();
    rig.start_proxy();
    wait_for("the standby's is taken back", LIMIT, || rig.log().contains("unfenced_sql") && !read_only(&rig, "pg1"));
    rig.wait_reads_on(&["pg1"]);
    // What an operator sets on the primary stays, and is told.
    rig.node(&primary).psql("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    rig.node(&primary).psql("SELECT pg_reload_conf()").unwrap();
    wait_for("it is told", LIMIT, || rig.log().contains("primary_read_only"));
    pause(1500);
    assert!(read_only(&rig, &primary));
    rig.assert_log_clean(&["quarantined"]);
}

#[test]
fn a_fenced_node_that_is_adopted_takes_writes() {
    let rig = Plan::new().start();
    rig.node("pg1").kill9().unwrap();
    let primary = another_primary(&rig);
    rig.node("pg1").start().unwrap();
    wait_for("it is fenced", LIMIT, || rig.log().contains("fenced_sql"));
    // A person decides that the old one was right after all: the others go, and what the proxy remembers.
    rig.kill_proxy();
    for node in ["pg2", "pg3"] {
        rig.node(node).stop(pgregent::demo::cluster::Shutdown::Fast).unwrap();
    }
    fs::remove_dir_all(rig.cluster.dir().join("proxy1/state")).unwrap();
    rig.start_proxy();
    rig.wait_primary("pg1");
    wait_for("it is writable", LIMIT, || !read_only(&rig, "pg1"));
    rig.client().simple("INSERT INTO ledger (id) VALUES (-1)").unwrap();
    assert!(!rig.node("pg1").psql("SHOW primary_conninfo").unwrap().contains("fenced"));
    println!("{primary} was given up for pg1 by a person");
    rig.assert_log_clean(&[]);
}
