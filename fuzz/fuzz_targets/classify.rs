//! Any bytes as the text of a statement.
//!
//! Promises: a text that parses has the same class whether or not a text of the same shape was seen before
//! (the cache leaves literals out); a text behind a write is a write.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::sql::{Access, Classifier, Settings, StringSyntax, Why};

fn fresh() -> Classifier {
    let settings = Settings { classify_bytes_max: 64 * 1024, read_functions: vec![], write_functions: vec![] };
    Classifier::new(1, &settings)
}

/// The same text with other numbers, which mostly has the same shape.
fn sibling(text: &[u8]) -> Vec<u8> {
    text.iter().map(|byte| if byte.is_ascii_digit() { b'7' } else { *byte }).collect()
}

fuzz_target!(|text: &[u8]| {
    for strings in [StringSyntax::Standard, StringSyntax::Backslash] {
        let alone = fresh().classify(text, strings);
        let mut primed = fresh();
        primed.classify(&sibling(text), strings);
        let behind = primed.classify(text, strings);
        if alone.why != Why::DoesNotParse {
            assert_eq!(alone.access, behind.access, "the cache changed a class");
            assert_eq!((&alone.tx, alone.statements), (&behind.tx, behind.statements));
            assert_eq!(alone.effects, behind.effects);
        }
        let after_write = fresh().classify(&[b"DELETE FROM t;", text].concat(), strings);
        assert_eq!(after_write.access, Access::Write);
    }
});
