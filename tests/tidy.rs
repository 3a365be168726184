//! Style as a test: layers, walls, sizes, headers and words of `src` (docs: the map in `lib.rs`).
//!
//! Every rule is a function from sources to findings, so that each has a self-test that shows it
//! failing on a bad snippet. Absent on purpose: what clippy and rustfmt already see.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the sources has to fail")]

#[path = "support/source.rs"]
mod source;

use source::{Source, functions, is_test_file, line_of, mask};
use std::fs;
use std::path::Path;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const HEADER_SENTENCES_MIN: usize = 2;

const L0: &[&str] = &["ids", "clock", "error"];
const L1: &[&str] = &["wire", "sql"];
const L2: &[&str] = &["config", "metrics", "topology"];

/// A module, the whole layers it may import, and the single modules besides.
type Allowed = (&'static str, &'static [&'static [&'static str]], &'static [&'static str]);

/// What each module may import, besides itself.
/// A module that is not listed may import nothing; L8 (`serve`, `app`, `demo`, `ctl`, `main`) is free.
const LAYERS: &[Allowed] = &[
    ("clock", &[], &[]),
    ("ids", &[], &[]),
    ("error", &[], &["ids", "clock"]),
    ("wire", &[L0], &[]),
    ("sql", &[L0], &[]),
    ("catalog", &[L0], &["sql"]),
    ("config", &[L0], &[]),
    ("metrics", &[L0], &[]),
    ("topology", &[L0], &[]),
    ("net", &[L0, L2], &[]),
    ("auth", &[L0, L1, L2], &["net"]),
    ("failover", &[], &["ids", "clock", "topology", "config"]),
    ("backend", &[L0, L1, L2], &["net", "auth"]),
    ("route", &[L0, L2], &["sql"]),
    ("coordination", &[L0, L2], &["failover"]),
    ("coordination::voters", &[L0, L2], &["failover", "monitor", "coordination"]),
    ("pool", &[L0, L2], &["wire", "net", "auth", "backend", "route"]),
    ("client", &[L0, L2], &["wire", "net", "auth", "backend"]),
    ("relay", &[L0], &["wire", "net", "metrics", "topology"]),
    ("monitor", &[L0, L2], &["wire", "net", "auth", "backend", "sql", "catalog"]),
    ("decision", &[L0, L2], &["sql", "route", "client"]),
    ("session", &[L0, L1, L2], &["net", "auth", "backend", "route", "pool", "client", "relay", "decision", "catalog"]),
    ("failover::controller", &[L0, L2], &["failover", "monitor", "coordination", "backend"]),
    ("failover::execute", &[L0, L2], &["failover", "monitor", "coordination", "backend", "wire", "net", "auth"]),
    ("admin", &[L0, L1, L2], &["net", "client", "pool", "failover", "route", "decision", "catalog"]),
];

/// The composition root and the verbs of the command line.
const TOP: &[&str] = &["serve", "app", "demo", "ctl"];
const DATA_PLANE: &[&str] =
    &["serve", "client", "session", "relay", "pool", "route", "sql", "wire", "backend", "auth", "net"];
const CONTROL_PLANE: &[&str] = &["monitor", "failover", "coordination"];
/// Modules that perform I/O in `failover`; all its other files are pure.
const FAILOVER_IO: &[&str] = &["failover::controller", "failover::execute", "failover::hooks"];
/// Who may name the one publisher.
const PUBLISHERS: &[&str] = &["topology", "failover::controller", "failover::execute", "app"];

/// Words that are not ours (one word per concept), and where they are input or another's vocabulary.
const BANNED: &[(&str, &[&str])] = &[
    ("master", &[]),
    ("slave", &[]),
    ("slaves", &[]),
    ("replica", &["config", "admin", "sql::tests"]),
    ("replicas", &["config", "admin"]),
    ("leader", &["coordination"]),
    ("follower", &[]),
    ("followers", &[]),
    ("secondary", &[]),
    ("frontends", &[]),
    ("checkin", &[]),
    ("stonith", &[]),
    ("whitelist", &[]),
    ("blacklist", &[]),
];

fn module_of(source: &Source) -> String {
    source.module().join("::")
}

fn is_in(module: &str, parent: &str) -> bool {
    module == parent || module.strip_prefix(parent).is_some_and(|rest| rest.starts_with("::"))
}

fn top(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

fn layer_findings(source: &Source) -> Vec<String> {
    let module = module_of(source);
    if module.is_empty() || TOP.contains(&top(&module)) {
        return Vec::new();
    }
    let rule = LAYERS.iter().filter(|(name, ..)| is_in(&module, name)).max_by_key(|(name, ..)| name.len());
    let allows = |import: &str| {
        rule.is_some_and(|(_, layers, single)| {
            single.contains(&import) || layers.iter().any(|layer| layer.contains(&import))
        })
    };
    let mut findings = Vec::new();
    for path in source.crate_paths() {
        if top(&path) != top(&module) && !allows(top(&path)) {
            findings.push(format!("{}: {module} must not import {path}", source.path));
        }
    }
    findings
}

fn wall_findings(source: &Source) -> Vec<String> {
    let module = module_of(source);
    let mut findings = Vec::new();
    for path in source.crate_paths() {
        // `serve` starts sessions, and is as much the data plane as they are.
        let (from, to) = (top(&module), top(&path));
        let crosses_out = DATA_PLANE.contains(&from) && CONTROL_PLANE.contains(&to);
        let crosses_in = CONTROL_PLANE.contains(&from) && ["client", "session", "relay", "pool"].contains(&to);
        if crosses_out || crosses_in {
            findings.push(format!("{}: the planes meet in topology only, not by importing {path}", source.path));
        }
    }
    let named = source.production().contains("TopologyPublisher");
    if named && !PUBLISHERS.iter().any(|allowed| is_in(&module, allowed)) {
        findings.push(format!("{}: {module} must not name TopologyPublisher", source.path));
    }
    findings
}

fn purity_findings(source: &Source) -> Vec<String> {
    let module = module_of(source);
    let pure_failover = is_in(&module, "failover") && !FAILOVER_IO.iter().any(|io| is_in(&module, io));
    if !pure_failover && !["wire", "sql", "route"].contains(&top(&module)) {
        return Vec::new();
    }
    let code = source.production();
    let mut findings = Vec::new();
    let impure =
        ["tokio::", "std::net::TcpStream", "std::fs::", "std::thread::", "Instant::now", "SystemTime", "tracing::"];
    for word in impure {
        if let Some(at) = code.find(word) {
            findings.push(format!("{}:{}: pure module names {word}", source.path, line_of(&code, at)));
        }
    }
    if code.contains(" async ") || code.contains(".await") {
        findings.push(format!("{}: pure module is async", source.path));
    }
    findings
}

fn size_findings(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("{}: {lines} lines, more than {FILE_LINES_MAX}", source.path));
    }
    for function in source.functions().iter().filter(|function| function.lines > FUNCTION_LINES_MAX) {
        let (name, line, lines) = (&function.name, function.line, function.lines);
        findings.push(format!("{}:{line}: fn {name} has {lines} lines, more than {FUNCTION_LINES_MAX}", source.path));
    }
    findings
}

fn header_findings(source: &Source) -> Vec<String> {
    let header = source.header();
    let sentences = header.split_inclusive(['.', '?', '!']).zip(header.split(['.', '?', '!']).skip(1));
    // A full stop inside a word (`tests/tidy.rs`) ends no sentence.
    let count = sentences.filter(|(_, next)| next.is_empty() || next.starts_with(char::is_whitespace)).count();
    let least = if is_test_file(&source.path) { 1 } else { HEADER_SENTENCES_MIN };
    if count < least {
        let problem = "needs a //! header: purpose, invariants, what is deliberately absent";
        return vec![format!("{}: {problem} ({count} sentences)", source.path)];
    }
    Vec::new()
}

/// `CancelKey`, `cancel_key` and `CANCEL_KEY` are the words cancel, key.
fn words(identifier: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut previous_lower = false;
    for c in identifier.chars() {
        let starts = c == '_' || (c.is_uppercase() && previous_lower) || words.is_empty();
        if starts {
            words.push(String::new());
        }
        previous_lower = c.is_lowercase() || c.is_ascii_digit();
        if c != '_' {
            words.last_mut().expect("pushed above").extend(c.to_lowercase());
        }
    }
    words
}

fn word_findings(source: &Source) -> Vec<String> {
    let module = module_of(source);
    let mut findings = Vec::new();
    for (line, identifier) in source.identifiers() {
        for word in words(&identifier) {
            let banned = BANNED.iter().find(|(banned, _)| *banned == word);
            if banned.is_some_and(|(_, exempt)| !exempt.iter().any(|parent| is_in(&module, parent))) {
                findings.push(format!("{}:{line}: {identifier}: `{word}` is not our word", source.path));
            }
        }
    }
    for function in functions(&source.code) {
        if function.name.starts_with("get_") || function.name.starts_with("is_not_") {
            findings.push(format!("{}:{}: fn {}: no get_, no is_not_", source.path, function.line, function.name));
        }
    }
    findings
}

fn leftover_findings(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    for word in ["todo!", "unimplemented!", "dbg!", "unsafe "] {
        for (at, _) in source.code.match_indices(word) {
            findings.push(format!("{}:{}: {word} left over", source.path, line_of(&source.code, at)));
        }
    }
    let production = source.production();
    for (at, _) in production.match_indices(".unwrap()") {
        findings.push(format!("{}:{}: unwrap outside tests", source.path, line_of(&production, at)));
    }
    if source.text.contains("(being built)") {
        findings.push(format!("{}: still a placeholder", source.path));
    }
    findings
}

fn rust_files(directory: &Path, below: &Path, found: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, below, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(below).unwrap().to_string_lossy().replace('\\', "/");
            found.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
        }
    }
}

fn sources(directory: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found = Vec::new();
    rust_files(&root, &root, &mut found);
    assert!(!found.is_empty(), "no sources in {}", root.display());
    found
}

fn assert_clean(directory: &str, rule: fn(&Source) -> Vec<String>) {
    let findings: Vec<String> = sources(directory).iter().flat_map(rule).collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn layers() {
    assert_clean("src", layer_findings);
}

#[test]
fn walls() {
    assert_clean("src", wall_findings);
}

#[test]
fn pure_modules_are_pure() {
    assert_clean("src", purity_findings);
}

#[test]
fn files_and_functions_are_small() {
    assert_clean("src", size_findings);
}

#[test]
fn test_files_are_small() {
    assert_clean("tests", |source| size_findings(source).into_iter().filter(|f| !f.contains(": fn ")).collect());
}

#[test]
fn headers_say_purpose_and_absence() {
    assert_clean("src", header_findings);
    assert_clean("tests", header_findings);
}

#[test]
fn words_are_ours() {
    assert_clean("src", word_findings);
}

#[test]
fn nothing_is_left_over() {
    assert_clean("src", leftover_findings);
}

/// A test file counts as tests only because its `mod` says so.
fn undeclared_test_modules(source: &Source) -> Vec<String> {
    let code: String = source.production().split_whitespace().collect();
    let declared = code.contains("modtests;");
    if declared { vec![format!("{}: `mod tests;` without #[cfg(test)]", source.path)] } else { Vec::new() }
}

#[test]
fn test_modules_are_only_compiled_for_tests() {
    assert_clean("src", undeclared_test_modules);
}

#[test]
fn every_module_has_a_layer() {
    for source in sources("src") {
        let module = module_of(&source);
        let known = LAYERS.iter().any(|(name, ..)| *name == top(&module)) || TOP.contains(&top(&module));
        assert!(known || module.is_empty(), "{} has no place in the layer table", source.path);
    }
}

mod self_tests {
    use super::*;

    fn finds(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> bool {
        !rule(&Source::new(path, text)).is_empty()
    }

    #[test]
    fn masking_hides_literals_and_comments_only() {
        let text =
            r##"let a = "{ \" }"; let b = '{'; let c = r#"fn x() {"#; /* { /* { */ */ fn f<'a>() { '\'' } // }"##;
        let masked = mask(text);
        assert_eq!(masked.len(), text.len());
        assert_eq!(masked.matches('{').count(), 1);
        assert_eq!(masked.matches('}').count(), 1);
        assert!(masked.contains("fn f<'a>()") && !masked.contains("fn x"));
        let masked = mask("for\"x\" b'{' br\"{\" 'é' r#type");
        assert_eq!(masked.split_whitespace().collect::<Vec<_>>(), ["for", "r#type"]);
    }

    #[test]
    fn imports_are_seen_in_every_form() {
        let forms = [
            "use crate::pool::Checkout;",
            "use crate::{ids::NodeId, pool::{Checkout, Pool}};",
            "fn f() { crate::pool::open() }",
            "use super::pool;",
            "pub(crate) use crate::pool;",
        ];
        for form in forms {
            assert!(finds(wall_findings, "monitor/mod.rs", form), "{form}");
        }
        assert!(finds(wall_findings, "monitor/probe.rs", "use super::super::pool::Pool;"));
        assert!(!finds(wall_findings, "monitor/probe.rs", "use super::pool::Pool;"));
        assert!(!finds(wall_findings, "monitor/probe.rs", "// use crate::pool\nconst A: &str = \"crate::pool\";"));
        assert!(!finds(wall_findings, "monitor/mod.rs", "#[cfg(test)]\nmod tests { use crate::pool::Pool; }"));
    }

    #[test]
    fn layers_fail_upwards_and_sideways() {
        assert!(finds(layer_findings, "wire/frame.rs", "use crate::pool::Pool;"));
        assert!(finds(layer_findings, "wire/frame.rs", "use crate::sql::classify;"));
        assert!(finds(layer_findings, "relay/mod.rs", "use crate::{ids::NodeId, sql};"));
        assert!(finds(layer_findings, "failover/machine.rs", "use crate::monitor::Monitor;"));
        assert!(!finds(layer_findings, "failover/controller.rs", "use crate::monitor::Monitor;"));
        assert!(!finds(layer_findings, "session/mod.rs", "use crate::{pool::Pool, sql, ids::NodeId};"));
        assert!(!finds(layer_findings, "app.rs", "use crate::{monitor, session};"));
    }

    #[test]
    fn walls_fail() {
        assert!(finds(wall_findings, "session/mod.rs", "use crate::failover::ControlHandle;"));
        assert!(finds(wall_findings, "serve.rs", "use crate::monitor::Monitor;"));
        assert!(finds(wall_findings, "coordination/mod.rs", "use crate::relay::relay;"));
        assert!(finds(wall_findings, "admin/mod.rs", "use crate::topology::TopologyPublisher;"));
        assert!(finds(wall_findings, "failover/machine.rs", "use crate::topology::TopologyPublisher;"));
        assert!(!finds(wall_findings, "failover/controller.rs", "use crate::topology::TopologyPublisher;"));
        assert!(!finds(wall_findings, "app.rs", "use crate::{topology::TopologyPublisher, failover, session};"));
    }

    #[test]
    fn purity_fails() {
        assert!(finds(purity_findings, "wire/frame.rs", "use tokio::io::AsyncRead;"));
        assert!(finds(purity_findings, "failover/machine.rs", "fn f() { tokio::spawn(x) }"));
        assert!(finds(purity_findings, "route/mod.rs", "pub async fn choose() {}"));
        assert!(!finds(purity_findings, "failover/execute.rs", "use tokio::time;"));
        assert!(!finds(
            purity_findings,
            "route/mod.rs",
            "// tokio::time\n#[cfg(test)]\nmod tests { use tokio::time; }"
        ));
    }

    #[test]
    fn sizes_fail() {
        let body = "    let x = \"}\";\n".repeat(FUNCTION_LINES_MAX);
        let long = format!("fn long(a: [u8; 3]) -> bool\nwhere\n{{\n{body}}}\n");
        assert!(finds(size_findings, "a.rs", &long));
        assert!(!finds(size_findings, "a.rs", &format!("#[cfg(test)]\nmod tests {{\n{long}}}\n")));
        assert!(!finds(size_findings, "a.rs", "trait T { fn a(&self); fn b(&self) {} }\n"));
        assert!(finds(size_findings, "a.rs", &"\n".repeat(FILE_LINES_MAX + 1)));
        assert!(!finds(size_findings, "a.rs", &"\n".repeat(FILE_LINES_MAX)));
    }

    #[test]
    fn headers_fail() {
        assert!(finds(header_findings, "a.rs", "use std::fmt;\n//! Late. Header.\n"));
        assert!(finds(header_findings, "a.rs", "//! (being built)\n"));
        assert!(finds(header_findings, "a.rs", "//! One sentence about `a.rs` only.\n"));
        assert!(!finds(header_findings, "a/tests.rs", "//! Tests of `a`.\n"));
        assert!(!finds(header_findings, "a.rs", "//! Moves bytes. Absent on purpose:\n//! SQL.\n\nfn f() {}\n"));
    }

    #[test]
    fn words_fail() {
        for bad in
            ["fn master() {}", "struct OldLeader;", "let replica_count = 1;", "const SLAVE: u8 = 1;", "fn get_x() {}"]
        {
            assert!(finds(word_findings, "pool/mod.rs", bad), "{bad}");
        }
        let fine = "fn replication_lag() {} // the master\nconst A: &str = \"replica\"; fn target() {}";
        assert!(!finds(word_findings, "pool/mod.rs", fine));
        assert!(!finds(word_findings, "config/raw.rs", "const REPLICA: u8 = 1;"));
    }

    #[test]
    fn leftovers_fail() {
        for bad in
            ["fn f() { todo!() }", "unimplemented!()", "dbg!(1)", "unsafe { x }", "x.unwrap()", "//! (being built)"]
        {
            assert!(finds(leftover_findings, "a.rs", bad), "{bad}");
        }
        assert!(!finds(leftover_findings, "a/tests.rs", "fn f() { x.unwrap() }"));
        assert!(finds(undeclared_test_modules, "a.rs", "mod tests;"));
        assert!(!finds(undeclared_test_modules, "a.rs", "#[cfg(test)]\nmod tests;"));
        assert!(is_test_file("a/tests/b.rs") && !is_test_file("attests.rs"));
        assert!(!finds(leftover_findings, "a.rs", "// todo!()\n#[cfg(test)]\nmod tests { fn f() { x.unwrap() } }"));
    }
}
