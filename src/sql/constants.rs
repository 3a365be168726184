//! Literals in a tree.
//!
//! Invariant: only what PostgreSQL reads as this value without doubt is told as one. Absent on purpose: computing
//! anything.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, a_const};

fn constant(node: &Node) -> Option<&a_const::Val> {
    match node.node.as_ref()? {
        NodeEnum::AConst(constant) => constant.val.as_ref(),
        NodeEnum::TypeCast(cast) => constant(cast.arg.as_ref()?),
        _ => None,
    }
}

/// The text of a string literal, perhaps cast.
pub(super) fn string_constant(node: &Node) -> Option<&str> {
    match constant(node)? {
        a_const::Val::Sval(string) => Some(&string.sval),
        _ => None,
    }
}

/// The value of an integer literal.
pub(super) fn integer_constant(node: &Node) -> Option<i32> {
    match constant(node)? {
        a_const::Val::Ival(integer) => Some(integer.ival),
        _ => None,
    }
}

/// The literal FALSE, or a string that PostgreSQL reads as false without doubt.
pub(super) fn is_false(node: &Node) -> bool {
    match constant(node) {
        Some(a_const::Val::Boolval(value)) => !value.boolval,
        Some(a_const::Val::Sval(string)) => matches!(string.sval.as_str(), "f" | "false" | "off" | "no" | "0"),
        _ => false,
    }
}

/// The literal TRUE, or a string that PostgreSQL reads as true without doubt.
pub(super) fn is_true(node: &Node) -> bool {
    match constant(node) {
        Some(a_const::Val::Boolval(value)) => value.boolval,
        Some(a_const::Val::Sval(string)) => matches!(string.sval.as_str(), "t" | "true" | "on" | "yes" | "1"),
        _ => false,
    }
}
