//! repmgr beside the nodes: it promotes and repoints by itself, and says nothing that the proxy could ask.
//!
//! `make follow` runs it; it needs Debian's `postgresql-15-repmgr` (or another's `repmgr` in the path). Absent on
//! purpose: repmgr's switchover, which needs ssh.

use crate::owner::Owner;
use crate::support::guard::ProcessGuard;
use crate::support::load::{Load, lost, print};
use crate::support::rig::{LIMIT, Plan, Rig, pause};
use crate::support::wait_for;
use crate::{CLIENTS, FOLLOWED_MAX, accepted, after, oracle};
use pgregent::demo::cluster::SUPERUSER;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How long repmgr may take to be sure, vote and promote.
const DECISION_LIMIT: Duration = Duration::from_secs(60);

/// Registers all nodes with repmgr; each one's configuration.
fn register(rig: &Rig, owner: &Owner) -> Vec<String> {
    let bin = rig.cluster.binaries().dir().display();
    let passwords = rig.cluster.passwords();
    let file = owner.write("passwords", &format!("*:*:*:{SUPERUSER}:{}\n", passwords.superuser));
    rig.node("pg1").psql("CREATE EXTENSION repmgr").unwrap();
    let nodes = rig.cluster.nodes().iter().enumerate();
    let configs = nodes.map(|(index, node)| {
        let name = node.name();
        let path = owner.directory.join(format!("{name}.conf")).display().to_string();
        // It streams without slots: repmgr's own have other names.
        node.psql("ALTER SYSTEM RESET primary_slot_name").unwrap();
        node.psql("SELECT pg_reload_conf()").unwrap();
        let command = format!("/usr/bin/env repmgr -f {path} --log-to-file standby");
        let text = format!(
            "node_id={}\nnode_name='{name}'\n\
             conninfo='host=127.0.0.1 port={} user={SUPERUSER} dbname=postgres connect_timeout=2'\n\
             data_directory='{}'\npg_bindir='{bin}'\npassfile='{}'\nlog_file='{path}.log'\n\
             failover=automatic\nreconnect_attempts=2\nreconnect_interval=1\nmonitor_interval_secs=1\n\
             promote_command='{command} promote'\nfollow_command='{command} follow --upstream-node-id=%n'\n",
            index + 1,
            node.port(),
            node.data_dir().display(),
            file.display(),
        );
        owner.write(&format!("{name}.conf"), &text);
        path
    });
    let configs: Vec<String> = configs.collect();
    let repmgr = |index: usize, words: &[&str]| {
        owner.run(Path::new("repmgr"), &[&["-f", &configs[index]], words].concat()).unwrap();
    };
    repmgr(0, &["primary", "register"]);
    repmgr(1, &["standby", "register", "--upstream-node-id=1"]);
    repmgr(2, &["standby", "register", "--upstream-node-id=1"]);
    configs
}

#[test]
#[ignore = "needs repmgr: make follow"]
fn repmgr_promotes_and_the_proxy_follows() {
    if crate::left_out("repmgr") {
        println!("SKIPPED: PGREGENT_TEST_WITHOUT leaves repmgr out");
        return;
    }
    let mut plan = Plan::new();
    plan.cluster.settings.push(("shared_preload_libraries".to_owned(), "repmgr".to_owned()));
    let rig = plan.start_following();
    let owner = Owner::of(&rig, "repmgr");
    let configs = register(&rig, &owner);
    let daemon = |config: &String| {
        owner.spawn("repmgrd", Path::new("repmgrd"), &["-f", config, "--daemonize=false", "--no-pid-file"])
    };
    let _daemons: Vec<ProcessGuard> = configs.iter().map(daemon).collect();
    pause(3000);
    let load = Load::of(&rig, &CLIENTS);
    pause(600);
    let began = (Instant::now(), SystemTime::now());
    rig.node("pg1").kill9_all().unwrap();
    wait_for("repmgr promotes, the proxy follows", DECISION_LIMIT, || {
        let control = rig.control();
        control["writes"] == "open" && control["primary"] != "pg1"
    });
    let now = rig.control()["primary"].as_str().unwrap().to_owned();
    let other = if now == "pg2" { "pg3" } else { "pg2" };
    rig.wait_reads_on(&[other]);
    // What comes back is on an old timeline, and takes writes for whoever asks it.
    rig.node("pg1").start().unwrap();
    wait_for("the old primary is not used", LIMIT, || rig.node_status("pg1")["note"].is_string());
    pause(1000);
    let (writers, readers) = load.stop();
    print(&rig, "repmgr promoted", &writers, &readers);
    let node = rig.node(&now);
    let first = writers.acked.iter().filter(|write| write.node == node.port().to_string() && write.first_session);
    let first = first.map(|write| write.at).min().unwrap();
    let since = after(first, began, accepted(&std::fs::read_to_string(node.log_path()).unwrap()).unwrap());
    let missing = lost(&writers, node);
    println!(
        "pg1 to {now}: {} ms after the kill, {} ms after the promotion, lost {missing} of {}",
        (first - began.0).as_millis(),
        since.as_millis(),
        writers.acked.len()
    );
    assert!(since < FOLLOWED_MAX, "{since:?}");
    assert_eq!(oracle::violations(&writers.acked), Vec::<String>::new());
    assert_eq!(rig.control()["failover"]["failovers"], 0, "the proxy promoted");
    writers.assert_only(&["08007"]);
    readers.assert_only(&[]);
}
