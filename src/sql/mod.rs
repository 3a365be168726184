//! Text to [`Classification`]: what may this statement (or string of statements) do, told cheaply and conservatively.
//!
//! The way of a text: [`shape`] copies its tokens ([`lexer`]) without literals, comments and letter case into a key;
//! [`cache`] knows the class of that key; on a miss PostgreSQL's own grammar ([`grammar`]) gives a tree, [`statement`]
//! holds a rule per statement kind, [`walk`] visits every expression, and [`functions`] says which functions only read.
//!
//! Invariants: what is not known to be a read is a write. A class depends on nothing but the text, so it may be kept.
//! A text whose literals matter for its class is keyed with them. Work is bounded by `classify_bytes_max`, and the
//! grammar sees 64 KiB at most: of longer texts one with shorter lists and literals. Nothing here panics or overflows
//! the stack, whatever the bytes. No tokio, no clock.
//!
//! Absent on purpose: where a statement goes (`route`), what views and user functions do (`catalog`, which is told
//! their names), operators and casts that hide user functions.

mod cache;
mod class;
mod classifier;
mod constants;
mod function_table;
mod functions;
mod grammar;
mod hint;
mod label;
mod lexer;
mod pieces;
mod recent;
mod setting;
mod shape;
mod statement;
mod walk;
mod walk_json;

#[cfg(test)]
mod tests;

pub use cache::CacheCounts;
pub use class::{
    Access, BackendSignal, BeginOptions, Change, Classification, Effects, Isolation, Name, Names, PinReason, Pins,
    Sequences, Step, TxControl, Why,
};
pub use classifier::{Classifier, Judge, LearnedShapes, Settings};
pub use functions::reads_by_name;
pub use grammar::StringSyntax;
pub use hint::{Hint, HintNode, HintScope};
pub use pieces::{begins_with, integers, may_begin_read, pieces, prepared_name, set_value};
