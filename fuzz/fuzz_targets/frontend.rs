//! Bodies of messages that clients send.
//!
//! Promises: what a view shows lies inside the body and adds up to it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::wire::frontend::{self, Named};

fuzz_target!(|body: &[u8]| {
    if let Ok(text) = frontend::query(body) {
        assert_eq!(text.len() + 1, body.len());
    }
    if let Ok(view) = frontend::parse(body) {
        assert_eq!(view.name.len() + 1 + view.content.len(), body.len());
        assert!(view.content.starts_with(view.text) && view.content[view.text.len()] == 0);
    }
    if let Ok(view) = frontend::bind(body) {
        assert!(view.names_len <= body.len());
        assert_eq!(view.portal.len() + view.statement.len() + 2, view.names_len);
    }
    if let Ok(Named::Statement(name) | Named::Portal(name)) = frontend::named(body) {
        assert_eq!(name.len() + 2, body.len());
    }
});
