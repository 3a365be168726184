//! Bad input: anything may come, nothing may break, and what is not examined is a write.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::{Access, StringSyntax, Why};
use super::rows::classifier;

/// What a tokio worker has.
const WORKER_STACK_BYTES: usize = 2 << 20;
/// Far more than any of these takes, far less than a hang.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn deep_and_long_texts_end_quickly_on_a_workers_stack() {
    let texts = [
        format!("select {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("select {}1", "1+".repeat(10_000)),
        format!("select {}true", "not ".repeat(20_000)),
        format!("select 1{}", " union all select 1".repeat(3_000)),
        format!("select {}1{}", "(select ".repeat(5_000), ")".repeat(5_000)),
        format!("select {}1{}", "f(".repeat(20_000), ")".repeat(20_000)),
        format!("select {}1{}", "array[".repeat(10_000), "]".repeat(10_000)),
        format!("select 1{}", " or a = 1".repeat(7_000)),
        format!("{}1{}", "/*".repeat(30_000), "*/".repeat(30_000)),
        "explain ".repeat(8_000),
        "select 1;".repeat(7_000),
        "'".repeat(60_000),
        "$".repeat(60_000),
        "$a".repeat(30_000),
    ];
    #[expect(clippy::disallowed_methods, reason = "a test may measure itself")]
    let started = Instant::now();
    let worker = std::thread::Builder::new().stack_size(WORKER_STACK_BYTES).spawn(move || {
        let mut generous = super::super::Classifier::new(
            1,
            &super::super::Settings { classify_bytes_max: 10 << 20, read_functions: vec![], write_functions: vec![] },
        );
        for text in &texts {
            classifier().classify(text.as_bytes(), StringSyntax::Standard);
            let class = generous.classify(text.as_bytes(), StringSyntax::Standard);
            let is_flat = text.starts_with("select 1;") || text.starts_with("/*") || text.contains(" or ");
            assert_eq!(class.access == Access::Read, is_flat, "{}: {}", &text[..20], class.why);
        }
    });
    worker.unwrap().join().unwrap();
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn what_is_not_examined_is_a_write_and_pins_unless_it_plainly_leaves_nothing() {
    let mut classifier = classifier();
    let long = |start: &str, end: &str| format!("{start}{}{end}", "'x', ".repeat(20_000)).into_bytes();
    let rows: [(Vec<u8>, Why, bool); 12] = [
        (long("insert into t values (", "1)"), Why::TooLong, false),
        (long("insert into t values (", "1); "), Why::TooLong, false),
        (long("/* x */ (select ", "1)"), Why::TooLong, false),
        (long("insert into t values (", "1); set a.b = 1"), Why::TooLong, true),
        (long("select set_config(", "1)"), Why::TooLong, true),
        (long("select ", "1 into temp x"), Why::TooLong, true),
        (long("set a.b = ", "1"), Why::TooLong, true),
        (long("do ", "1"), Why::TooLong, true),
        (b"select '\xe9'".to_vec(), Why::NotText, false),
        (b"set a.b = '\xe9'".to_vec(), Why::NotText, true),
        (b"select 1\0; set a.b = 1".to_vec(), Why::NotText, true),
        (b"'\xff".to_vec(), Why::NotText, true),
    ];
    for (text, why, pins) in rows {
        let class = classifier.classify(&text, StringSyntax::Standard);
        let start = String::from_utf8_lossy(&text[..text.len().min(30)]);
        assert_eq!((class.access, &class.why), (Access::Write, &why), "{start}");
        assert_eq!(class.effects.uncertain, pins, "{start}");
    }
    assert_eq!(classifier.counts().entries, 0);
}

#[test]
fn long_texts_without_a_short_shape_are_not_examined() {
    let settings =
        super::super::Settings { classify_bytes_max: 8 << 20, read_functions: vec![], write_functions: vec![] };
    let mut classifier = super::super::Classifier::new(1, &settings);
    for (text, syntax) in [
        ("select ".to_owned() + &"a, ".repeat(1_000_000) + "a", StringSyntax::Standard),
        ("select ".to_owned() + &"(".repeat(2_000_000), StringSyntax::Standard),
        ("select ".to_owned() + &"a".repeat(2_000_000), StringSyntax::Standard),
        (format!("select \"{}\"", "a".repeat(2_000_000)), StringSyntax::Standard),
        ("select ".to_owned() + &"1 ".repeat(1_000_000), StringSyntax::Standard),
        (format!("do '{}'", "x".repeat(1_000_000)), StringSyntax::Standard),
        (format!("select set_config('a', '{}', true)", "x".repeat(1_000_000)), StringSyntax::Standard),
        (format!("select 1a, {}2", "1, ".repeat(1_000_000)), StringSyntax::Standard),
        (format!("select {}2", "1, ".repeat(1_000_000)), StringSyntax::Backslash),
    ] {
        let class = classifier.classify(text.as_bytes(), syntax);
        assert_eq!((class.access, &class.why), (Access::Write, &Why::TooLong), "{}", &text[..20]);
    }
    // What is kept is that DO and set_config() must be looked up with their literals.
    assert_eq!(classifier.counts().entries, 2);
}

#[test]
fn a_statement_nested_too_deeply_still_pins_by_its_words() {
    let mut classifier = classifier();
    let deep = "1||".repeat(200);
    let class = classifier.classify(format!("select {deep}1").as_bytes(), StringSyntax::Standard);
    assert_eq!((&class.why, class.effects.is_none()), (&Why::TooDeep, true));
    let class = classifier.classify(format!("select {deep}pg_advisory_lock(1)").as_bytes(), StringSyntax::Standard);
    assert!(class.effects.uncertain);
}

const FRAGMENTS: [&str; 40] = [
    "select",
    "insert",
    "set",
    "(",
    ")",
    ",",
    ";",
    "'",
    "\"",
    "E'",
    "U&\"",
    "$$",
    "$a$",
    "--",
    "/*",
    "*/",
    "\n",
    " ",
    "1",
    "1.5e",
    "$1",
    "a",
    "f(",
    "from",
    "for update",
    "\\",
    "''",
    ".",
    "::",
    "[",
    "]",
    "*",
    "-",
    "/",
    "into",
    "begin",
    "null",
    "set_config",
    "\u{e9}",
    "with x as (",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_have_a_class(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        classifier().classify(&bytes, StringSyntax::Standard);
        classifier().classify(&bytes, StringSyntax::Backslash);
    }

    /// Fragments that open and close things in any order: the cached answer is the fresh one.
    #[test]
    fn any_fragments_have_one_class(picks in proptest::collection::vec(0..FRAGMENTS.len(), 0..25)) {
        let text: String = picks.iter().map(|pick| FRAGMENTS[*pick]).collect();
        let mut classifier = classifier();
        let first = classifier.classify(text.as_bytes(), StringSyntax::Standard);
        let second = classifier.classify(text.as_bytes(), StringSyntax::Standard);
        prop_assert_eq!(first, second);
    }
}
