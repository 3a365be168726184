//! Failover cases as text files: commands, a line `----`, and the trace that the machine leaves.
//!
//! `UPDATE_SCENARIOS=1 cargo test --test scenarios` rewrites the traces; read the diff afterwards.
//!
//! Commands, one per line (`#` begins a comment line):
//!
//! ```text
//! cluster a b c mode=automatic priority=a:100,b:200 lag=1048576 min_gap=60s per_hour=3
//!         zone=b,c                  (the nodes in this proxy's zone)
//!         start_timeout=30s promote_timeout=30s fall=3 rise=2
//!         fencing=command fence_sql hooks=before_promotion,on_rejoin synchronous=1 degrade
//!                                    (on one line; all settings optional)
//! kept PRIMARY [SETTING]             before recall: what its commits waited for when this proxy last ran
//! recall none | recall epoch=7 primary=a tli=3 [promoting] [given_up=b]
//! running a lsn=0/500 tli=1 [shared] recalled as primary of epoch 1, everyone streams from it (no trace)
//! probe NODE primary|standby [lsn= replay= tli= sys= inc= from=NODE|ADDRESS age= paused sent=-20ms pending= fenced read-only]
//!       [history=1@0/500,2|asked|unknown]     its timeline's history; that of the last probe of the same life otherwise
//! fail NODE refused|unreachable|timeout|lost|starting|stopping|full|rejected|starved [took=]
//! connect NODE ok|refused|timeout|... [took=]            a fresh connection
//! write NODE ok|pending|full|failed|forbidden|read-only|unknown [took=]     the write probe
//! heard NODE                         a client's session had a byte from it
//! patroni NODE leader|member|unknown [took=]     what Patroni's REST API says of it
//! fact NODE refused|timeout|lost|shutdown|write-refused
//! done HOOK | done name NODE | done fence NODE | done unfence NODE (and failed)
//! done record | done detach NODE [lsn= replay=] | done promote NODE | done repoint NODE | done reconnect NODE
//! failed record|detach|promote|repoint|reconnect [NODE] [WHY]
//! sync NODE [SETTING]                what its synchronous_standby_names is from its next probe on
//! senders NODE [NAME..]              which standbys its pg_stat_replication shows from its next probe on
//! cmd pause | cmd resume | cmd failover [NODE]
//! standing [register=NODE@EPOCH tli= given_up=NODE] [lease=2s] [right=2s] [lack=taken|split|pending|voters:x,y]
//!          [held=x,y] [highest=EPOCH] [chosen=NODE] [least=TLI] [pending=NODE] [unmarked=x,y] [ordered]
//!                                    where this proxy stands with a store that several share
//! wait 500ms                         time passes; the alarms that the machine set go off on the way
//! holds                              prints why nothing happens
//! outlook                            prints what a failover would come to if the primary were lost now
//! ```
//!
//! Values of `lsn`, `tli`, `sys` and `inc` that a probe leaves out are those of the node's last probe.
//! Nodes listen on `NODE:5432`. Absent on purpose: alarms in the trace, because they are no decision.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/scenario.rs"]
mod scenario;

use pgregent::clock::Time;
use pgregent::failover::action::{Action, ActionId, Level, NodePlan, Notice, Plan};
use pgregent::failover::event::{Command, Event, Outcome, Record};
use pgregent::failover::promise::{Asked, Promise};
use pgregent::failover::standing::{Lack, Lease, Right, Standing};
use pgregent::failover::sync::{Demand, parse};
use pgregent::failover::{Machine, Policy};
use pgregent::ids::{Epoch, Lsn, NodeId, SystemId, TimelineId};
use pgregent::topology::{
    Ancestry, History, NodeReport, Observation, PatroniSilence, PatroniWord, PendingWrite, ReadOnly, ReceiverView,
    Sign, SignKind, SyncView, WriteSign, Writes,
};
use scenario::{SYSTEM, parse_cluster, parse_fact, parse_failure, parse_record, sender, span, value};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const SCENARIOS_MIN: usize = 30;

#[test]
fn every_scenario_leaves_its_trace() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= SCENARIOS_MIN, "only {} scenarios in {}", files.len(), folder.display());
    let update = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let mut wrong = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let (script, expected) = text.split_once("----\n").unwrap_or((&text, ""));
        let name = file.file_name().unwrap().to_string_lossy();
        let trace = play(&name, script);
        if trace == expected {
            continue;
        }
        if update {
            std::fs::write(file, format!("{}\n----\n{trace}", script.trim_end())).unwrap();
        } else {
            wrong.push(format!("== {name}\n{}", difference(expected, &trace)));
        }
    }
    assert!(wrong.is_empty(), "{} scenarios differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_tests_that_the_manual_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/failover-pains.md")).unwrap();
    let shown = text.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.rsplit('|').nth(1));
    let names: Vec<&str> = shown.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > SCENARIOS_MIN, "{names:?}");
    for name in names.into_iter().filter(|name| !name.contains(' ')) {
        let places = [format!("tests/scenarios/{name}.txt"), format!("tests/{name}"), format!("tests/{name}.rs")];
        assert!(places.iter().any(|place| root.join(place).exists()), "{name} is no test");
    }
}

/// The first line that differs, with what came before it.
fn difference(expected: &str, trace: &str) -> String {
    let (want, got): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), trace.lines().collect());
    let at = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let mut out = String::new();
    for line in &got[at.saturating_sub(6)..at] {
        let _ = writeln!(out, "  {line}");
    }
    for (sign, side) in [('-', &want), ('+', &got)] {
        for line in side.iter().skip(at).take(6) {
            let _ = writeln!(out, "{sign} {line}");
        }
    }
    out
}

fn play(name: &str, script: &str) -> String {
    let mut lines = script.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let cluster = lines.next().unwrap_or_else(|| panic!("{name}: no cluster line"));
    let mut player = Player::new(name, cluster);
    for line in lines {
        player.line(line);
    }
    player.end()
}

struct Player {
    name: String,
    policy: Policy,
    machine: Machine,
    start: Time,
    now: Time,
    alarm: Option<Time>,
    reports: HashMap<u16, NodeReport>,
    sync: HashMap<u16, SyncView>,
    open: Vec<(ActionId, &'static str, Option<NodeId>)>,
    plan: Option<Plan>,
    state: &'static str,
    trace: String,
}

impl Player {
    fn new(name: &str, line: &str) -> Self {
        let policy = parse_cluster(line);
        let start = Time::ZERO + Duration::from_secs(1);
        let machine = Machine::new(policy.clone(), start);
        Self {
            name: name.to_owned(),
            policy,
            machine,
            start,
            now: start,
            alarm: None,
            reports: HashMap::new(),
            sync: HashMap::new(),
            open: Vec::new(),
            plan: None,
            state: "starting",
            trace: String::new(),
        }
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "wait" => self.wait(line, span(words[1])),
            "holds" => self.note(line, &self.holds()),
            "outlook" => self.note(line, &self.outlook()),
            "running" => self.running(&words),
            "sync" => self.view(words[1]).standby_names = words[2..].join(" "),
            "senders" => {
                self.view(words[1]).standbys = words[2..].iter().map(|name| sender(name)).collect();
            }
            _ => {
                let event = self.event(&words);
                let out = self.step(event);
                self.note(line, &out);
            }
        }
    }

    fn view(&mut self, node: &str) -> &mut SyncView {
        let node = self.node(node);
        self.sync.entry(node.0).or_default()
    }

    fn note(&mut self, head: &str, out: &str) {
        if !out.is_empty() {
            let _ = writeln!(self.trace, "[{:.3}s] {head}", self.now.since(self.start).as_secs_f64());
            self.trace.push_str(out);
        }
    }

    fn wait(&mut self, line: &str, span: Duration) {
        let until = self.now + span;
        let mut rounds = 0;
        while let Some(at) = self.alarm.filter(|at| *at <= until) {
            rounds += 1;
            assert!(rounds < 2000, "{}: `{line}` never comes to rest", self.name);
            self.now = self.now.max(at);
            self.alarm = None;
            let out = self.step(Event::Tick);
            self.note("(alarm)", &out);
        }
        self.now = until;
    }

    fn running(&mut self, words: &[&str]) {
        let primary = self.node(words[1]);
        let record = Record {
            system_id: SystemId(SYSTEM),
            epoch: Epoch(value(words, "epoch").map_or(1, |v| v.parse().unwrap())),
            primary: words[1].to_owned(),
            timeline: TimelineId(value(words, "tli").unwrap().parse().unwrap()),
            promoted: true,
            given_up: Vec::new(),
        };
        if words.contains(&"shared") {
            let lease =
                Lease { primary: words[1].into(), epoch: record.epoch, until: self.now + Duration::from_secs(2) };
            let (register, highest) = (Some(record.clone()), record.epoch);
            self.step(Event::Standing(Standing { register, highest, lease: Some(lease), ..Standing::default() }));
        }
        self.step(Event::Recalled(Some(record)));
        for id in self.policy.ids() {
            let name = self.policy.nodes[id.index()].name.clone();
            let rest: Vec<&str> = words[2..].to_vec();
            let from = format!("from={}", words[1]);
            let head =
                if id == primary { vec!["probe", &*name, "primary"] } else { vec!["probe", &*name, "standby", &from] };
            let event = self.event(&[head, rest].concat());
            self.step(event);
        }
        assert_eq!(self.state, "stable", "{}: not running", self.name);
    }

    fn step(&mut self, event: Event) -> String {
        let actions = self.machine.step(event, self.now);
        let mut out = String::new();
        for action in actions {
            self.show(&mut out, action);
        }
        let state = self.machine.summary().state;
        if state != self.state {
            let _ = writeln!(out, "  state {} -> {state}", self.state);
            self.state = state;
        }
        out
    }

    fn show(&mut self, out: &mut String, action: Action) {
        match action {
            Action::Publish(plan) => self.show_plan(out, plan),
            Action::Record(id, r) => {
                self.open.push((id, "record", None));
                let given_up = if r.given_up.is_empty() { "" } else { &format!(" given_up={}", r.given_up.join(",")) };
                let _ = writeln!(out, "  record epoch={} primary={} tli={}{given_up}", r.epoch, r.primary, r.timeline);
            }
            Action::Detach(id, node, epoch) => {
                self.open.push((id, "detach", Some(node)));
                let _ = writeln!(out, "  detach {} epoch={epoch}", self.called(node));
            }
            Action::Promote(id, node, epoch) => {
                self.open.push((id, "promote", Some(node)));
                let _ = writeln!(out, "  promote {} epoch={epoch}", self.called(node));
            }
            Action::Reconnect { id, node, epoch } => {
                self.open.push((id, "reconnect", Some(node)));
                let _ = writeln!(out, "  reconnect {} epoch={epoch}", self.called(node));
            }
            Action::Repoint { id, node, upstream, epoch, .. } => {
                self.open.push((id, "repoint", Some(node)));
                let _ = writeln!(out, "  repoint {} to {} epoch={epoch}", self.called(node), self.called(upstream));
            }
            Action::Claim(claim) => {
                let _ = writeln!(out, "  claim {}", format!("{claim:?}").to_lowercase());
            }
            Action::Hook(id, call) => {
                self.open.push((id, call.kind.word(), None));
                let called = |node: Option<NodeId>| node.map_or("-", |n| self.called(n));
                let _ = writeln!(
                    out,
                    "  run {} for {} epoch={} old={} new={} tli={} ({})",
                    call.kind.word(),
                    self.called(call.node),
                    call.epoch,
                    called(call.old),
                    called(call.new),
                    call.timeline.map_or_else(|| "-".to_owned(), |t| t.to_string()),
                    call.reason
                );
            }
            Action::NameSync { id, node, names, epoch } => {
                self.open.push((id, "name", Some(node)));
                let names = if names.is_empty() { "nobody" } else { &names };
                let _ = writeln!(out, "  name {names} on {} epoch={epoch}", self.called(node));
            }
            Action::FenceSql { id, node, epoch, on } => {
                let kind = if on { "fence" } else { "unfence" };
                self.open.push((id, kind, Some(node)));
                let _ = writeln!(out, "  {kind} {} by SQL epoch={epoch}", self.called(node));
            }
            Action::Keep(promise) => {
                let asked = |asked: &Asked| {
                    let names = [&asked.members[..], &asked.strangers[..]].concat().join(", ");
                    format!("{} {} of {names}", asked.method.word(), asked.k)
                };
                let present = promise.present.as_ref().map_or_else(|| "nobody".to_owned(), asked);
                let before =
                    promise.before.as_ref().map(|(before, until)| format!(", up to {until} {}", asked(before)));
                let _ = writeln!(out, "  keep {}: {present}{}", promise.primary, before.unwrap_or_default());
            }
            Action::ProbeNow(node) => {
                let _ = writeln!(out, "  probe {} now", self.called(node));
            }
            Action::WakeAt(at) => self.alarm = Some(at),
            Action::Tell(Notice { level, kind, text, .. }) => {
                let level = match level {
                    Level::Info => "info",
                    Level::Warn => "warn",
                    Level::Error => "error",
                };
                let _ = writeln!(out, "  tell {level} {kind}: {text}");
            }
        }
    }

    fn show_plan(&mut self, out: &mut String, plan: Plan) {
        let primary = plan.primary.map_or("-", |p| self.called(p));
        let writes = match &plan.writes {
            Writes::Open => "open".to_owned(),
            Writes::Held { why } => format!("held ({why})"),
            Writes::Refused { why } => format!("refused ({why})"),
        };
        let _ = writeln!(out, "  publish epoch={} primary={primary} writes={writes}", plan.epoch);
        for (index, node) in plan.nodes.iter().enumerate() {
            let before = self.plan.as_ref().map(|p| &p.nodes[index]);
            if before != Some(node) {
                let _ = writeln!(out, "    {}", show_node(&self.policy.nodes[index].name, node));
            }
        }
        self.plan = Some(plan);
    }

    fn holds(&self) -> String {
        let mut out = String::new();
        for hold in self.machine.holds() {
            let _ = writeln!(out, "  hold: {hold}");
        }
        if out.is_empty() { "  nothing is held\n".to_owned() } else { out }
    }

    fn outlook(&self) -> String {
        let outlook = self.machine.outlook();
        let mut out = format!("  would promote {}\n", outlook.candidate.as_deref().unwrap_or("nobody"));
        for (policy, node) in self.policy.nodes.iter().zip(&outlook.nodes).filter(|(_, node)| node.in_question) {
            let veto = node.veto.map_or_else(|| "yes".to_owned(), |veto| format!("no: {veto}"));
            let before = node.before.as_ref().map(|(next, edge)| format!(", before {next}: {}", edge.words()));
            let _ = writeln!(out, "    {} {}: {veto}{}", policy.name, node.condition, before.unwrap_or_default());
        }
        for hold in outlook.holds {
            let _ = writeln!(out, "  would be held: {hold}");
        }
        out
    }

    fn end(mut self) -> String {
        let s = self.machine.summary();
        let timeline = s.timeline.map_or_else(|| "-".to_owned(), |t| t.to_string());
        let mut out =
            format!("  {} epoch={} primary={} tli={timeline}\n", s.state, s.epoch, s.primary.as_deref().unwrap_or("-"));
        if !s.holds.is_empty() {
            out.push_str(&self.holds());
        }
        self.note("end", &out);
        self.trace
    }

    fn called(&self, node: NodeId) -> &str {
        &self.policy.nodes[node.index()].name
    }

    fn node(&self, name: &str) -> NodeId {
        self.policy.by_name(name).unwrap_or_else(|| panic!("{}: no node {name}", self.name))
    }

    fn event(&mut self, words: &[&str]) -> Event {
        match words[0] {
            "recall" => Event::Recalled(parse_record(words)),
            "kept" => Event::Promised(self.promise(words)),
            "standing" => Event::Standing(self.standing(words)),
            "probe" => self.report(words),
            "fail" => {
                let outcome = Err(parse_failure(words[2]));
                let took = value(words, "took").map_or(Duration::ZERO, span);
                Event::Observed(Observation {
                    node: self.node(words[1]),
                    began: self.now - took,
                    at: self.now,
                    outcome,
                })
            }
            "connect" | "write" | "heard" | "patroni" => Event::Signed(self.sign(words)),
            "fact" => Event::Fact(parse_fact(self.node(words[1]), words[2])),
            "done" | "failed" => self.action_done(words),
            "cmd" => Event::Command(match words[1] {
                "pause" => Command::Pause,
                "resume" => Command::Resume,
                "maintenance" => Command::Maintain { node: self.node(words[2]), on: true },
                "enable" => Command::Maintain { node: self.node(words[2]), on: false },
                "failover" => Command::Failover { to: words.get(2).map(|n| self.node(n)) },
                other => panic!("{}: unknown cmd {other}", self.name),
            }),
            other => panic!("{}: unknown command {other}", self.name),
        }
    }

    fn promise(&self, words: &[&str]) -> Promise {
        let names: Vec<Arc<str>> = self.policy.nodes.iter().map(|n| Arc::clone(&n.application_name)).collect();
        let rule = parse(&words[2..].join(" ")).unwrap();
        let demand = rule.map(|rule| Demand::new(&rule, self.node(words[1]), &names, &[]));
        let present = demand.map(|demand| Asked::of(&demand, &self.policy));
        Promise { primary: words[1].to_owned(), present, before: None }
    }

    fn sign(&self, words: &[&str]) -> Sign {
        let what = match words[0] {
            "heard" => SignKind::Traffic,
            "patroni" => SignKind::Patroni(
                [PatroniWord::Primary, PatroniWord::Member, PatroniWord::Unknown(PatroniSilence::Late)]
                    .into_iter()
                    .find(|word| word.word() == words[2])
                    .unwrap_or_else(|| panic!("{}: Patroni never says {}", self.name, words[2])),
            ),
            "connect" if words[2] == "ok" => SignKind::Connect(Ok(())),
            "connect" => SignKind::Connect(Err(parse_failure(words[2]))),
            _ => SignKind::Write(match words[2] {
                "ok" => WriteSign::Committed,
                "pending" => WriteSign::Pending,
                "full" => WriteSign::DiskFull,
                "failed" => WriteSign::DiskFailed,
                "forbidden" => WriteSign::Forbidden("permission denied".to_owned()),
                "read-only" => WriteSign::ReadOnly,
                "unknown" => WriteSign::Unknown,
                other => panic!("{}: unknown end of a write {other}", self.name),
            }),
        };
        let took = value(words, "took").map_or(Duration::ZERO, span);
        Sign { node: self.node(words[1]), began: self.now - took, at: self.now, what }
    }

    fn report(&mut self, words: &[&str]) -> Event {
        let node = self.node(words[1]);
        let last = self.reports.get(&node.0);
        let number = |key: &str, otherwise: u64| value(words, key).map_or(otherwise, |v| v.parse().unwrap());
        let lsn = |key: &str| value(words, key).map(|v| v.parse::<Lsn>().unwrap());
        let flush_lsn = lsn("lsn").or(last.map(|r| r.flush_lsn)).unwrap();
        let in_recovery = words[2] == "standby";
        assert!(in_recovery || words[2] == "primary", "{}: {} is no role", self.name, words[2]);
        let receiver = value(words, "from").map(|from| ReceiverView {
            streaming: true,
            upstream: if from.contains(':') { from.to_owned() } else { format!("{from}:5432") },
            last_message_age: value(words, "age").map_or(Duration::from_millis(10), span),
        });
        let early = value(words, "sent").map_or(Duration::ZERO, |v| span(v.trim_start_matches('-')));
        let report = NodeReport {
            sent_at: self.now - early,
            system_id: SystemId(number("sys", last.map_or(SYSTEM, |r| r.system_id.0))),
            in_recovery,
            timeline: TimelineId(u32::try_from(number("tli", last.map_or(1, |r| r.timeline.0.into()))).unwrap()),
            flush_lsn,
            replay_lsn: lsn("replay").unwrap_or(flush_lsn),
            replay_paused: words.contains(&"paused"),
            receiver,
            incarnation: i64::try_from(number("inc", 1)).unwrap(),
            redo_lsn: lsn("redo").unwrap_or(Lsn(0)),
            version_num: 150_000,
            pending_write: value(words, "pending")
                .map(|age| PendingWrite { age: span(age), wait: "IO:WALSync".to_owned() }),
            sync: self.sync.get(&node.0).cloned(),
            read_only: match (words.contains(&"fenced"), words.contains(&"read-only")) {
                (true, _) => ReadOnly::Fenced,
                (_, true) => ReadOnly::Set,
                _ => ReadOnly::No,
            },
            ancestry: Ancestry::Unknown,
        };
        let report = NodeReport { ancestry: ancestry(words, &report, last), ..report };
        self.reports.insert(node.0, report.clone());
        Event::Observed(Observation { node, began: report.sent_at, at: self.now, outcome: Ok(report) })
    }

    fn standing(&self, words: &[&str]) -> Standing {
        let register = value(words, "register").map(|at| {
            let (primary, epoch) = at.split_once('@').unwrap();
            Record {
                system_id: SystemId(SYSTEM),
                epoch: Epoch(epoch.parse().unwrap()),
                primary: primary.to_owned(),
                timeline: TimelineId(value(words, "tli").map_or(1, |v| v.parse().unwrap())),
                promoted: true,
                given_up: value(words, "given_up").into_iter().map(str::to_owned).collect(),
            }
        });
        let until = |key| value(words, key).map(|v| self.now + span(v));
        let lease = until("lease").map(|until| {
            let register = register.as_ref().unwrap();
            Lease { primary: register.primary.as_str().into(), epoch: register.epoch, until }
        });
        let lack = value(words, "lack").map(|lack| match lack.split_once(':') {
            None => {
                [("taken", Lack::Taken), ("split", Lack::Split), ("pending", Lack::Pending)]
                    .into_iter()
                    .find(|(word, _)| *word == lack)
                    .unwrap()
                    .1
            }
            Some((_, names)) => Lack::Voters { missing: names.split(',').map(Into::into).collect(), needed: 2 },
        });
        let epoch = register.as_ref().map_or(Epoch(0), |r| r.epoch);
        Standing {
            highest: value(words, "highest").map_or(epoch, |v| Epoch(v.parse().unwrap())),
            chosen: value(words, "chosen").map(Into::into),
            least_timeline: TimelineId(value(words, "least").map_or(0, |v| v.parse().unwrap())),
            pending: value(words, "pending").map(Into::into),
            unmarked: value(words, "unmarked")
                .map(|names| names.split(',').map(Into::into).collect())
                .unwrap_or_default(),
            right: until("right").map(|until| {
                let held = value(words, "held").map(|names| names.split(',').map(Into::into).collect());
                Right { until, held, stubborn: Vec::new(), idle: Vec::new() }
            }),
            ordered: words.contains(&"ordered"),
            register,
            lease,
            lack,
            ..Standing::default()
        }
    }

    /// Answers the latest action of this kind (on this node).
    fn action_done(&mut self, words: &[&str]) -> Event {
        let node = words.get(2).and_then(|w| self.policy.by_name(w));
        let found = self.open.iter().rposition(|(_, kind, on)| *kind == words[1] && (on.is_none() || *on == node));
        let at = found.unwrap_or_else(|| panic!("{}: no {} is under way", self.name, words[1..].join(" ")));
        let (id, kind, on) = self.open.remove(at);
        let outcome = match (words[0], kind) {
            ("done", "detach") => {
                let last = &self.reports[&on.unwrap().0];
                let flush_lsn = value(words, "lsn").map_or(last.flush_lsn, |v| v.parse().unwrap());
                Outcome::Detached {
                    flush_lsn,
                    replay_lsn: value(words, "replay").map_or(flush_lsn, |v| v.parse().unwrap()),
                }
            }
            ("done", _) => Outcome::Done,
            _ => {
                let why = words[if on.is_some() { 3 } else { 2 }..].join(" ");
                Outcome::Failed(if why.is_empty() { "timed out".to_owned() } else { why })
            }
        };
        Event::ActionDone { id, outcome }
    }
}

fn ancestry(words: &[&str], report: &NodeReport, last: Option<&NodeReport>) -> Ancestry {
    let seen = |r: &NodeReport| (r.timeline, r.incarnation, r.in_recovery);
    match value(words, "history") {
        None => last.filter(|last| seen(last) == seen(report)).map_or(Ancestry::Unknown, |last| last.ancestry.clone()),
        Some("asked") => Ancestry::Asked,
        Some("unknown") => Ancestry::Unknown,
        Some(text) => {
            let history: History = text.replace(',', " ").parse().unwrap();
            assert_eq!(history.timeline(), report.timeline, "history={text} is of another timeline");
            Ancestry::Known(history.into())
        }
    }
}

fn show_node(name: &str, node: &NodePlan) -> String {
    let mut out = format!("{name}: {} {}", node.role.word(), node.health.word());
    if node.readable {
        out.push_str(" reads");
    }
    if node.fence > 0 {
        let _ = write!(out, " fence={}", node.fence);
    }
    if let Some(note) = &node.note {
        let _ = write!(out, " ({note})");
    }
    out
}
