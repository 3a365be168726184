//! Shapes: what must not matter does not, what matters does, and a class is a function of the shape.

use proptest::prelude::*;
use std::sync::Arc;

use super::super::lexer::{Kind, Lexer};
use super::super::shape::{Shape, literals_matter};
use super::super::{Access, Classifier, Hint, HintNode, HintScope, Settings, StringSyntax, Why};
use super::rows::{classifier, describe};

fn shape(text: &str) -> Vec<u8> {
    shape_of(text).unwrap_or_else(|| panic!("no shape: {text}"))
}

fn shape_of(text: &str) -> Option<Vec<u8>> {
    let mut shape = Shape::default();
    shape.copy(text.as_bytes()).ok()?;
    if literals_matter(text.as_bytes()) {
        shape.copy_with_literals(text.as_bytes()).ok()?;
    }
    Some(shape.bytes().to_vec())
}

#[test]
fn layout_case_comments_and_literals_do_not_matter() {
    for (one, other) in [
        ("select a from t", "SELECT  a\n\tFROM t"),
        ("select a from t", "select/**/a/* x /* y */ z */from -- w\nt"),
        ("select 1", "select 2.5e-3"),
        ("select 1", "select 'x'"),
        ("select 1", "select E'\\'x'"),
        ("select 1", "select $1"),
        ("select 1", "select $$ from t $$"),
        ("select 1", "select $a$ $b$ $a$"),
        ("select 1", "select b'01'"),
        ("select 1", "select x'ff'"),
        ("select 1", "select U&'d'"),
        ("select 1", "select null"),
        ("select 1", "select 'it''s'"),
        ("select * from t where a in (1)", "select * from t where a in (1, -2, 'x', null, $4)"),
        ("insert into t values (1, 'a')", "insert into t values (1), (2, 3), (-4)"),
        ("select array[1]", "select array[-1, +2]"),
        ("select * from t where a in ($1)", "select * from t where a in ($1, $2,$3 , $4/**/,$5)"),
        ("select * from t where a in (1)", "select * from t where a in ('it''s', 'a', E'\\'', 'b', 1.5, 2, x'f', 3)"),
        ("select * from t where a = any ('x')", "select * from t where a = any ('{1,2,3}')"),
        ("select array[1] || array[2]", "select array[1, 2] || array[3, 4, 5]"),
        (
            "select * from t where (a, b) in ((1, 2))",
            "select * from t where (a, b) in ((1, 'x'), (3, 'y'), (-4, null))",
        ),
        ("insert into t values (1, 'a', true)", "insert into t values ($1, $2, $3), ($4, $5, $6),\n($7, $8, $9)"),
        ("values (1) limit 3", "values (1, 2), (3, 4) limit 5"),
        ("select a-1", "select a - 1"),
    ] {
        assert_eq!(shape(one), shape(other), "{one} / {other}");
    }
}

#[test]
fn words_identifiers_and_structure_matter() {
    for (one, other) in [
        ("select a from t", "select b from t"),
        ("select a from t", "select \"a\" from t"),
        ("select \"a\"", "select \"A\""),
        ("select \"a\" \"b\"", "select \"a\"\"b\""),
        ("select a b", "select ab"),
        ("select 1", "select a"),
        ("select 'a'", "select \"a\""),
        ("select a from t", "select a from t for update"),
        ("select a /* from t */", "select a from t"),
        ("select a -- from t", "select a from t"),
        ("select 1; select 1", "select 1"),
        ("select f(1)", "select g(1)"),
        ("select f(1)", "select \"F\"(1)"),
        ("select a.f(1)", "select f(1)"),
        ("select (1), a", "select (1)"),
        ("select '\u{e9}' as \u{e9}", "select '\u{e9}' as \u{e8}"),
        ("select a -1", "select a +1"),
        ("select a", "select /* pgregent: node=primary */ a"),
        ("select a", "select /* pgregent: node=nowhere */ a"),
        ("select /* pgregent: node=any */ a", "select /* pgregent: node=primary */ a"),
    ] {
        assert_ne!(shape(one), shape(other), "{one} / {other}");
    }
}

#[test]
fn literals_matter_where_they_decide() {
    for (one, other) in [
        ("set work_mem = 1", "set work_mem = 2"),
        ("reset a; select 1", "reset a; select 2"),
        ("select 1; set a.b = 1", "select 1; set a.b = 2"),
        ("notify a, 'b'", "notify a, 'c'"),
        ("execute p(1)", "execute p(2)"),
        ("copy t to 'a'", "copy t to 'b'"),
        ("explain (analyze 0) delete from t", "explain (analyze 1) delete from t"),
        ("select set_config('a', 'b', true)", "select set_config('a', 'b', false)"),
        ("select \"set_config\"('a', 'b', true)", "select \"set_config\"('a', 'b', false)"),
        ("select U&\"a\" uescape '!'", "select U&\"a\" uescape '?'"),
        ("fetch 1 2", "fetch 12"),
        ("fetch a 2", "fetch a2"),
        ("do 'a' 'b'", "do 'a''b'"),
    ] {
        assert_ne!(shape(one), shape(other), "{one} / {other}");
    }
}

/// A text whose lists are cut short, and whether its shape is that of the text, by either way to copy one.
fn reduced(text: &str) -> Option<(String, bool)> {
    let mut shape = Shape::default();
    shape.copy(text.as_bytes()).ok().filter(|_| !literals_matter(text.as_bytes()))?;
    let before = shape.bytes().to_vec();
    let reduced = shape.reduce(text.as_bytes())?;
    // Hints are comments, and those are gone.
    let without_hint = before.iter().position(|byte| *byte == 2).map_or(&before[..], |end| &before[..end]);
    Some((reduced.clone(), before == shape.bytes() && shape_of(&reduced)? == without_hint))
}

#[test]
fn a_reduced_text_keeps_what_the_grammar_needs() {
    for (text, expected) in [
        (
            "select * from t where a in (1,2, 3,4,5, 'six', -7) limit 5",
            "select\n*\nfrom\nt\nwhere\na\nin\n(1,2,\n3,4\n)\nlimit\n5",
        ),
        ("values (-1,2), (3,4), (5,6)", "values\n(1,2)"),
        ("select f(1,2,3,4,5), g(a, 1, 2)", "select\nf(1,2,3,4\n),\ng(a,\n1,\n2)"),
        ("select 'a'\n'b', $$c$$", "select\n'a'\n'b',\n$$c$$"),
        ("select a<=-1 and b - - 2 > 3 -- x", "select\na<=-1\nand\nb\n-\n-\n2\n>\n3"),
        ("select array[[1,2],[3,4]] /* y */", "select\narray[[1,2],[3,4]]"),
    ] {
        assert_eq!(reduced(text), Some((expected.to_owned(), true)), "{text}");
    }
    let long = format!("select '{}', E'{}'", "x".repeat(1000), "y".repeat(1000));
    assert_eq!(reduced(&long).unwrap().0, "select\n'',\n''");
    assert_eq!(reduced("set a = 1"), None);
}

#[test]
fn every_rows_reduced_text_has_its_shape_and_its_class() {
    for text in super::rows::all().chain(super::kinds::all()) {
        let Some((reduced, same_shape)) = reduced(text) else { continue };
        assert!(same_shape, "{text}\n{reduced}");
        if !text.contains("pgregent:") {
            assert_eq!(afresh(text), afresh(&reduced), "{text}\n{reduced}");
        }
    }
}

#[test]
fn a_long_text_is_what_a_short_one_of_its_shape_is() {
    let settings = Settings { classify_bytes_max: 8 << 20, read_functions: vec![], write_functions: vec![] };
    let mut classifier = Classifier::new(1, &settings);
    let list = |element: &str, times: usize| element.repeat(times);
    for (long, short) in [
        (format!("select * from t where a in ({}0)", list("1234567, ", 600_000)), "select * from t where a in (1)"),
        (format!("select * from t where a in ({}$1)", list("$12,", 300_000)), "select * from t where a in (1)"),
        (
            format!("select * from t where a in ({}null) for update", list("'it''s', 'x',", 300_000)),
            "select * from t where a in (1) for update",
        ),
        (
            format!("insert into t values {} (1, 'x', f(2))", list("(1, 'a', null), ", 200_000)),
            "insert into t values (1), (1, 'x', f(2))",
        ),
        (format!("select '{}'", list("x", 5_000_000)), "select 1"),
        (format!("select f(array[{}2])", list("-1,", 100_000)), "select f(array[1])"),
        (format!("select 1 /* {} */; delete from t", list("long ", 500_000)), "select 1; delete from t"),
    ] {
        let class = classifier.classify(long.as_bytes(), StringSyntax::Standard);
        let misses = classifier.counts().misses;
        assert_eq!(class, classifier.classify(short.as_bytes(), StringSyntax::Standard), "{short}");
        assert_eq!(classifier.counts().misses, misses, "found by its shape: {short}");
    }
}

#[test]
fn what_versions_split_differently_has_no_shape() {
    for text in [
        "select 'a",
        "select \"a",
        "select $$a",
        "select $a$ a $b$",
        "select /* a",
        "select /* /* */",
        "select E'a\\'",
        "select E'a'\n'b'",
        "select E'a' -- x\n 'b'",
        "select 1a",
        "select 1e",
        "select 1_a",
        "select 0xg",
        "select $1a",
        "select $a",
        "select \u{1}",
        "select \u{7f}",
        "select 1.5e+x",
        "select 'a' $",
    ] {
        assert!(shape_of(text).is_none(), "{text}");
    }
}

#[test]
fn hints_are_found_where_comments_stand_and_kept_with_the_shape() {
    let mut classifier = classifier();
    let mut hint = |text: &str| {
        let class = classifier.classify(text.as_bytes(), StringSyntax::Standard);
        (class.hint, class.hint_ignored, class.wanted())
    };
    let primary = Hint { node: HintNode::Primary, scope: HintScope::Statement };
    let session = Hint { scope: HintScope::Session, ..primary };
    let standby = Hint { node: HintNode::Standby, ..primary };
    for (text, expected) in [
        ("/* pgregent: node=primary */ select 1", (Some(primary), false, Access::Write)),
        ("select /* pgregent: node=primary, scope=session */ 1", (Some(session), false, Access::Write)),
        ("select 1 /*pgregent:node=standby*/", (Some(standby), false, Access::Read)),
        ("insert into t values (1) /*pgregent:node=standby*/", (Some(standby), false, Access::Write)),
        ("select /* a */ 1 /* pgregent: node=primary */ /* b */", (Some(primary), false, Access::Write)),
        ("/* pgregent: node=primary */ set a.b = 1", (Some(primary), false, Access::Write)),
        ("/* pgregent: node=primary */ /* pgregent: node=x */ select 1", (Some(primary), true, Access::Write)),
        ("/* pgregent: node=primery */ select 1", (None, true, Access::Read)),
        ("-- pgregent: node=primary\nselect 1", (None, true, Access::Read)),
        ("select 1", (None, false, Access::Read)),
        ("/* x pgregent: node=primary */ select 1", (None, false, Access::Read)),
        ("select '/* pgregent: node=primary */'", (None, false, Access::Read)),
        ("select \"/* pgregent: node=primary */\" from t", (None, false, Access::Read)),
        ("select 1 /*traceparent='00-01',route='%2Fx'*/", (None, false, Access::Read)),
    ] {
        assert_eq!(hint(text), expected, "{text}");
        assert_eq!(hint(text), expected, "again: {text}");
    }
}

#[test]
fn plain_strings_with_backslashes_are_read_as_the_server_reads_them() {
    let mut classifier = classifier();
    let sql = br"select 'a\'; delete from t; --'";
    let standard = classifier.classify(sql, StringSyntax::Standard);
    assert_eq!((standard.access, standard.statements), (Access::Write, 2));
    let backslash = classifier.classify(sql, StringSyntax::Backslash);
    assert_eq!((backslash.access, backslash.statements), (Access::Read, 1));
    let sql = br"select '\'; set a.b = 1";
    assert_eq!(describe(&classifier.classify(sql, StringSyntax::Standard)), "write [1:set=a.b]");
    assert_eq!(classifier.classify(sql, StringSyntax::Backslash).why, Why::DoesNotParse);
}

#[test]
fn what_was_learned_is_a_write_until_it_is_forgotten() {
    let mut classifier = classifier();
    let before = classifier.classify(b"select * from v where a = 1", StringSyntax::Standard);
    assert_eq!(before.access, Access::Read);
    let shape = Arc::from(classifier.shape_of_read(b"select * from v where a = 2").unwrap());
    classifier.go_by(Arc::new([shape].into_iter().collect()));
    for _ in 0..2 {
        let after = classifier.classify(b"SELECT * FROM v WHERE a = 3", StringSyntax::Standard);
        assert_eq!((after.access, &after.why), (Access::Write, &Why::Refused));
    }
    assert_eq!(classifier.classify(b"select * from v", StringSyntax::Standard).access, Access::Read);
    for text in [&b"select * from v where a = 4"[..], b"select 'x", b"\xff", b"nonsense", b"begin"] {
        assert_eq!(classifier.shape_of_read(text), None, "nothing to learn");
    }
    classifier.go_by(Arc::default());
    assert_eq!(classifier.classify(b"select * from v where a = 5", StringSyntax::Standard), before);
}

#[test]
fn a_text_that_does_not_parse_does_not_speak_for_its_shape() {
    let mut classifier = classifier();
    let bad = classifier.classify(br"select E'\u00zz'", StringSyntax::Standard);
    assert_eq!(bad.why, Why::DoesNotParse);
    assert_eq!(classifier.classify(b"select E'x'", StringSyntax::Standard).access, Access::Read);
}

/// The statement with other layout, letter case and comments, and, where asked, other literals of the same sort.
fn disguised(text: &str, dice: &[u8], literals: bool) -> Option<String> {
    const GAPS: [&str; 6] = [" ", "\n", " \t ", "/* x' \" $$ */", " -- it's\n", "/**//* /* ; */ */ "];
    let mut lexer = Lexer::new(text.as_bytes());
    let mut disguise = String::new();
    let mut last_end = 0;
    let mut rolls = dice.iter().cycle().copied();
    while let Some(token) = lexer.next_token().ok()? {
        let had_gap = token.start > last_end;
        let roll = rolls.next()?;
        if had_gap {
            disguise += GAPS[usize::from(roll) % GAPS.len()];
        }
        let bytes = &text[token.start..token.end];
        match token.kind {
            Kind::Word if roll % 2 == 0 => disguise += &bytes.to_ascii_uppercase(),
            // Numbers may be a type's precision, and sequences of literals are sensitive to their sort.
            Kind::Literal if literals && bytes.starts_with('\'') => disguise += &format!("'{roll};--/*{roll}'"),
            Kind::Literal if literals && bytes.bytes().all(|b| b.is_ascii_digit()) => {
                disguise += &(1 + roll % 5).to_string();
            }
            _ => disguise += bytes,
        }
        last_end = token.end;
    }
    Some(disguise)
}

fn keeps_literals(text: &str) -> bool {
    shape_of(text).is_none()
        || !["select", "insert", "update", "delete", "with", "values", "table", "merge", "("]
            .iter()
            .any(|word| text.to_ascii_lowercase().starts_with(word))
        || text.contains("set_config")
        || text.contains("current_setting")
        || text.contains(';')
        || text.contains("U&")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every row's shape and class survive a disguise. The class is computed afresh, so the cache proves nothing.
    #[test]
    fn a_disguise_changes_neither_shape_nor_class(dice in proptest::collection::vec(any::<u8>(), 1..20)) {
        for text in super::rows::all() {
            let Some(disguise) = disguised(text, &dice, !keeps_literals(text)) else { continue };
            prop_assert_eq!(shape(text), shape(&disguise), "{} / {}", text, disguise);
            let (one, other) = (afresh(text), afresh(&disguise));
            if other != "write why:DoesNotParse" && one != "write why:DoesNotParse" {
                prop_assert_eq!(one, other, "{} / {}", text, disguise);
            }
        }
    }

    /// A letter more in any one word is another shape.
    #[test]
    fn another_word_is_another_shape(pick in any::<prop::sample::Index>()) {
        for text in super::rows::all() {
            let mut lexer = Lexer::new(text.as_bytes());
            let mut words = Vec::new();
            while let Ok(Some(token)) = lexer.next_token() {
                if token.kind == Kind::Word { words.push(token) }
            }
            if words.is_empty() || shape_of(text).is_none() { continue }
            let word = pick.get(&words);
            let changed = format!("{}q{}", &text[..word.end], &text[word.end..]);
            prop_assert_ne!(shape(text), shape(&changed), "{}", changed);
        }
    }
}

fn afresh(text: &str) -> String {
    let settings = Settings {
        classify_bytes_max: 64 << 10,
        read_functions: vec!["app.report".into()],
        write_functions: vec!["pg_sleep_until".into()],
    };
    let class = Classifier::new(1, &settings).classify(text.as_bytes(), StringSyntax::Standard);
    if class.why == Why::DoesNotParse { "write why:DoesNotParse".to_owned() } else { describe(&class) }
}
