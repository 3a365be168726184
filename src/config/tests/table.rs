//! The table of settings against what reads it, and random edits against everything.

use super::super::settings::{Default, SECTIONS, View};
use super::super::*;
use super::{BASE, base};
use proptest::prelude::*;

/// A setting that is read but not shown would be a change that a reload misses.
#[test]
fn every_row_is_shown_and_within_names_a_row() {
    let mut config = base();
    let redirect = "[[witness]]\nname = \"w\"\naddress = \"w\"\n[[route.redirect]]\nname = \"a\"\n[[node]]\nname = \"pg1\"\naddress = \"a\"\n[cluster]\nfailover = \"manual\"\n\
                    [auth]\nmethod = \"trust\"\n";
    let given = Config::parse(redirect, "p.toml").unwrap();
    config.route.redirects = given.route.redirects;
    config.cluster.witnesses = given.cluster.witnesses;
    let shown = config.settings();
    for section in SECTIONS {
        for setting in section.settings {
            match setting.view {
                View::Within(other) => assert!(section.setting(other).is_some(), "{other}"),
                _ => {
                    let named =
                        |key: &str| key.starts_with(section.path) && key.ends_with(&format!(".{}", setting.key));
                    assert!(shown.iter().any(|s| named(&s.key)), "{} {}", section.path, setting.key);
                }
            }
        }
    }
}

/// Each row, written with a value that is not its default, arrives in the value that the row shows.
#[test]
fn every_row_is_read_into_the_place_it_shows() {
    let values = [
        ("cluster.coordination", "\"etcd\"\n[etcd]\nendpoints = [\"http://h:2379\"]", "etcd"),
        ("etcd.endpoints", r#"["http://h:2379"]"#, "http://h:2379"),
        ("listen", r#"["127.0.0.2:7000"]"#, "127.0.0.2:7000"),
        ("admin.listen", r#""127.0.0.2:7001""#, "127.0.0.2:7001"),
        ("server.unix_socket_permissions", r#""0770""#, "0770"),
        ("server.proxy_protocol_from", r#"["10.0.0.0/8"]"#, "10.0.0.0/8"),
        // With two voters only a person may promote.
        ("cluster.coordination", "\"voters\"\nfailover = \"manual\"", "voters"),
        ("cluster.fencing", "\"command\"\n[hooks]\nfence_command = [\"/bin/true\"]", "command"),
        ("cluster.synchronous_standbys", "1", "1"),
        ("tls.ciphers", r#"["TLS_AES_256_GCM_SHA384"]"#, "TLS_AES_256_GCM_SHA384"),
    ];
    // Files of certificates are read and checked; `tests::tls` has some.
    let told = |setting: &settings::Setting| {
        !matches!(setting.view, View::Within(_)) && !setting.key.ends_with("_file") && !setting.key.ends_with("_files")
    };
    for section in SECTIONS.iter().filter(|section| section.shape == settings::Shape::One) {
        for setting in section.settings.iter().filter(|setting| told(setting)) {
            let path = format!("{}.{}", section.path, setting.key);
            let given =
                values.iter().find(|(key, ..)| *key == path).or(values.iter().find(|(key, ..)| *key == setting.key));
            let (written, shown) = match given {
                Some((_, written, shown)) => ((*written).to_owned(), Some(*shown)),
                None => (another(setting), None),
            };
            let text = format!("{BASE}[{}]\n{} = {written}\n", section.path, setting.key);
            // Rules over several settings may object, but reading must not.
            let report = Report::of_text(&text, "p.toml");
            let Some(config) = report.config else {
                panic!("{path} = {written}: {:?}", report.problems);
            };
            let value = config.settings().into_iter().find(|s| s.key == path).unwrap().value;
            match (value, shown) {
                (settings::Shown::Hidden(secret), _) => assert_eq!(format!("\"{}\"", secret.expose()), written),
                (settings::Shown::Text(text), Some(shown)) => assert_eq!(text, shown),
                (settings::Shown::Text(text), None) => assert_eq!(text, written.trim_matches(['"', '[', ']'])),
            }
        }
    }
}

/// A valid value of this row, as TOML, other than its default.
fn another(setting: &settings::Setting) -> String {
    use settings::Kind;
    match setting.kind {
        Kind::Bool => (setting.default == Default::Toml("false")).to_string(),
        Kind::Count { min, .. } => {
            let usual = if setting.key == "node_budget" { 91 } else { 7 };
            usual.max(min).to_string()
        }
        Kind::Duration { max, .. } if setting.key.starts_with("probe_suspect") => {
            assert!(max > std::time::Duration::from_millis(99));
            r#""99ms""#.to_owned()
        }
        Kind::Duration { min, .. } => {
            format!("\"{}\"", value::format_duration(min.max(std::time::Duration::from_millis(999))))
        }
        Kind::Size { .. } => r#""65KiB""#.to_owned(),
        Kind::Word(words) => {
            let other = words
                .iter()
                .find(|word| !matches!(setting.default, Default::Toml(text) if text.trim_matches('"') == **word));
            format!("\"{}\"", other.unwrap_or(&words[0]))
        }
        Kind::Texts => r#"["one"]"#.to_owned(),
        Kind::Path => r#""/etc/passwd""#.to_owned(),
        Kind::Text if setting.key == "auth_query" => r#""SELECT $1""#.to_owned(),
        Kind::Text if setting.key == "filter" => r#""debug""#.to_owned(),
        Kind::Text | Kind::Name | Kind::Secret => r#""other""#.to_owned(),
        Kind::Listen | Kind::Listens | Kind::Address => panic!("given in the table of the test"),
    }
}

#[test]
fn the_reference_is_valid_once_uncommented() {
    let uncommented = |keep: &dyn Fn(&str) -> bool| {
        let lines = reference();
        let lines = lines.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() && keep(rest) => rest.to_owned(),
            _ => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    // With all defaults written out, nothing differs from a file without them. `auth_query…` and
    // zones and files have no default, only examples.
    let defaults = uncommented(&|line| {
        !line.contains("_file = ")
            && !line.starts_with("auth_query")
            && !line.starts_with("userlist")
            && !line.starts_with("unix_socket_dir")
            && !line.starts_with("zone")
            && !line.starts_with("patroni_url")
            // Programs: the only lists of paths.
            && !line.contains("[\"/etc/")
    });
    let text = format!("{defaults}\n[[node]]\nname = \"pg2\"\naddress = \"10.0.0.12\"\n");
    let written = Config::parse(&text, "p.toml").unwrap();
    let plain = "[[node]]\nname = \"pg1\"\naddress = \"10.0.0.11\"\nreplication_address = \"10.0.1.11:5432\"\n\
                 [[node]]\nname = \"pg2\"\naddress = \"10.0.0.12\"\n[cluster]\nmonitor_password = \"change me\"\n\
                 [etcd]\nuser = \"pgregent\"\npassword = \"change me\"\n\
                 [[auth.user]]\nname = \"alice\"\npassword = \"change me\"\n\
                 [[witness]]\nname = \"witness1\"\naddress = \"10.0.0.21\"\n\
                 [[route.redirect]]\nname = \"reports\"\nport = 5432\n";
    let plain = Config::parse(plain, "p.toml").unwrap();
    assert_eq!(written.changes(&plain), []);
    assert_eq!(written, plain);
}

#[test]
fn the_reference_file_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/reference.toml");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let file = std::fs::read_to_string(path).unwrap();
    assert_eq!(file, reference(), "run: UPDATE_REFERENCE=1 cargo test --lib the_reference_file_is_true");
}

#[test]
fn the_example_works() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/pgregent.example.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let report = Report::of_text(&text, "pgregent.example.toml");
    assert_eq!((&report.problems, &report.warnings), (&vec![], &vec![]));
    assert_eq!(report.config.unwrap().nodes.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever an editor leaves behind gives problems within the file, and no panic.
    #[test]
    fn edits_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..20, edit()), 1..6)) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/pgregent.example.toml");
        let mut text: Vec<char> = std::fs::read_to_string(path).unwrap().chars().collect();
        for (at, cut, insert) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + cut).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        let lines = text.lines().count() + 1;
        let report = Report::of_text(&text, "p.toml");
        prop_assert_eq!(report.config.is_some(), report.problems.is_empty());
        for problem in report.problems.iter().chain(&report.warnings) {
            prop_assert!(problem.line <= lines && !problem.line_in("f").contains('\n'), "{:?}", problem);
        }
    }
}

/// Things that editors and tired people insert.
fn edit() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[\\[\\]\"'=#,{}.0-9a-z\n_-]{1,8}",
        "\\PC{1,4}",
        prop::sample::select(vec![
            "[pool]\n",
            "[[node]]\n",
            "[auth]\n",
            "\"0s\"",
            "= []",
            "= {}",
            "-1",
            "1e9",
            "\0",
            "\r",
            "\u{feff}",
            "\"\"\"",
            "pool.size = ",
        ])
        .prop_map(str::to_owned),
    ]
}
