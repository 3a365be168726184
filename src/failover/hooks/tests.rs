//! The runner against real programs.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

use super::*;
use crate::ids::{Epoch, TimelineId};
use std::sync::Arc;
use std::time::Instant;

fn hooks(script: &str, timeout: Duration) -> Hooks {
    let text = "[[node]]\nname = \"pg1\"\naddress = \"10.0.0.1:6001\"\n[[node]]\nname = \"pg2\"\naddress = \"10.0.0.2\"\n\
                [[auth.user]]\nname = \"u\"\npassword = \"p\"\n[cluster]\nname = \"shop\"\n";
    let mut config = Config::parse(text, "p.toml").unwrap();
    let program: Vec<String> = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    config.hooks =
        HooksConfig { fence_command: program.clone(), on_rejoin: program, timeout, ..HooksConfig::default() };
    Hooks::new(&config)
}

fn call(kind: HookKind) -> HookCall {
    HookCall {
        kind,
        node: NodeId(0),
        epoch: Epoch(7),
        old: Some(NodeId(0)),
        new: Some(NodeId(1)),
        timeline: Some(TimelineId(3)),
        reason: "it refuses connections",
    }
}

const LONG: Duration = Duration::from_secs(20);

async fn fence(script: &str, timeout: Duration) -> Outcome {
    hooks(script, timeout).run(call(HookKind::Fence)).await
}

fn failed(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_exit_status_is_the_answer() {
    assert_eq!(fence("exit 0", LONG).await, Outcome::Done);
    let why = failed(fence("echo 'no route to the power switch' >&2; exit 3", LONG).await);
    assert_eq!(why, "/bin/sh: exit status: 3: no route to the power switch");
    let why = failed(fence("kill -9 $$", LONG).await);
    assert!(why.contains("signal: 9"), "{why}");
    let none = hooks("exit 0", LONG).run(call(HookKind::AfterPromotion)).await;
    assert_eq!(failed(none), "no program is configured");
    let mut absent = hooks("", LONG);
    absent.config.fence_command = vec!["/nonexistent/fence".to_owned()];
    let why = failed(absent.run(call(HookKind::Fence)).await);
    assert!(why.starts_with("/nonexistent/fence cannot be started"), "{why}");
}

#[tokio::test]
async fn it_is_told_what_happens() {
    let file = std::env::temp_dir().join(format!("pgregent-hook-{}-env", std::process::id()));
    let script = format!("env | grep ^PGREGENT_ | sort > {}", file.display());
    assert_eq!(fence(&script, LONG).await, Outcome::Done);
    let told = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let expected = "PGREGENT_CLUSTER=shop\nPGREGENT_EPOCH=7\nPGREGENT_HOOK=fence_command\nPGREGENT_HOST=10.0.0.1\n\
                    PGREGENT_NEW_PRIMARY=pg2\nPGREGENT_NODE=pg1\nPGREGENT_OLD_PRIMARY=pg1\nPGREGENT_PORT=6001\n\
                    PGREGENT_REASON=it refuses connections\nPGREGENT_TIMELINE=3\n";
    assert_eq!(told, expected);
}

#[tokio::test]
async fn one_that_takes_too_long_is_killed_with_all_it_started() {
    let file = std::env::temp_dir().join(format!("pgregent-hook-{}-pid", std::process::id()));
    // A child that ignores polite signals.
    let script = format!("(trap '' TERM HUP INT; echo $$ > {0}; sleep 60) & sleep 60", file.display());
    let began = Instant::now();
    let why = failed(fence(&script, Duration::from_millis(300)).await);
    assert!(why.contains("was killed after 0.3 s"), "{why}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let number = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let group: i32 = number.trim().parse().unwrap();
    // Children of a killed process are reaped by init in its own time: alive means not a zombie.
    let ended = Instant::now();
    while !living(group).is_empty() {
        assert!(ended.elapsed() < Duration::from_secs(5), "still there: {:?}", living(group));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Processes of this group that are no zombies.
fn living(group: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|pid| stat(*pid).is_some_and(|(state, of, _)| of == group && state != 'Z')).collect()
}

/// State, process group and parent.
fn stat(pid: i32) -> Option<(char, i32, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, fields.next()?.parse().ok()?, parent))
}

#[tokio::test]
async fn a_flood_of_output_neither_blocks_it_nor_is_kept() {
    let began = Instant::now();
    assert_eq!(
        fence("head -c 20000000 /dev/zero | tr '\\0' 'x'; head -c 9000000 /dev/zero >&2", LONG).await,
        Outcome::Done
    );
    assert!(began.elapsed() < LONG);
    let kept = Kept::default();
    kept.read(Some(&b"a\n\x1b[31mb\n"[..])).await;
    kept.read(Some(&vec![b'x'; 3 * OUTPUT_BYTES_MAX][..])).await;
    assert_eq!(kept.0.lock().len(), OUTPUT_BYTES_MAX);
    assert_eq!(kept.lines()[..2], ["a", " [31mb"]);
}

#[tokio::test]
async fn what_it_leaves_behind_does_not_keep_us() {
    let began = Instant::now();
    assert_eq!(fence("sleep 8 & exit 0", LONG).await, Outcome::Done);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_of_a_kind_at_a_time_and_none_becomes_a_zombie() {
    let folder = std::env::temp_dir().join(format!("pgregent-hook-{}-turn", std::process::id()));
    // mkdir fails when another one is inside.
    let script = format!("mkdir {0} && sleep 0.02 && rmdir {0}", folder.display());
    let hooks = Arc::new(hooks(&script, LONG));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..WAITING_MAX + 4 {
        let hooks = Arc::clone(&hooks);
        running.spawn(async move { hooks.run(call(HookKind::Fence)).await });
    }
    let outcomes = running.join_all().await;
    let crowded = |outcome: &&Outcome| matches!(outcome, Outcome::Failed(why) if why.contains("wait for their turn"));
    let done = outcomes.iter().filter(|outcome| **outcome == Outcome::Done).count();
    assert_eq!(done + outcomes.iter().filter(crowded).count(), outcomes.len(), "{outcomes:?}");
    assert!((WAITING_MAX..=WAITING_MAX + 1).contains(&done), "{outcomes:?}");
    let ours = i32::try_from(std::process::id()).unwrap();
    let zombies: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|(state, _, parent)| parent == ours && state == 'Z'))
        .collect();
    assert_eq!(zombies, [] as [i32; 0]);
}

#[tokio::test]
async fn a_stop_of_ours_kills_what_runs() {
    let file = std::env::temp_dir().join(format!("pgregent-hook-{}-stop", std::process::id()));
    let script = format!("echo $$ > {}; sleep 60", file.display());
    let task = tokio::spawn(async move { fence(&script, LONG).await });
    let group: i32 = loop {
        let written = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(group) = written {
            break group;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    std::fs::remove_file(&file).unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let ended = Instant::now();
    while !living(group).is_empty() {
        assert!(ended.elapsed() < Duration::from_secs(5), "still there: {:?}", living(group));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
