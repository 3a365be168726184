//! PostgreSQL's grammar, called safely.
//!
//! Invariants: a panic of the binding is an answer, not the end of a session; the parser keeps its state per thread and
//! measures that thread's stack, so threads may parse at the same time; the tree that comes back is at most [`TREE_DEPTH_MAX`] levels deep, so walking and dropping
//! it need no depth check of their own. Absent on purpose: any reading of the tree.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pg_query::protobuf::RawStmt;
use pg_query::{Error, ParserOptions};

/// The protobuf decoder's own limit on nested messages; an expression level costs two.
#[cfg(test)]
pub(super) const TREE_DEPTH_MAX: usize = 100;

/// Why there is no tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTree {
    /// Not valid SQL for this grammar.
    DoesNotParse,
    /// Valid perhaps, but nested too deeply for us; the server may run it.
    TooDeep,
}

/// How plain strings treat backslashes (`standard_conforming_strings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringSyntax {
    /// On, the default since PostgreSQL 9.1: a backslash is a character like any other.
    Standard,
    /// Off: a backslash escapes what follows. Such texts are classified without the cache.
    Backslash,
}

/// The statements of a text.
///
/// # Errors
///
/// [`NoTree`] says why there are none.
pub(super) fn parse(text: &str, strings: StringSyntax) -> Result<Vec<RawStmt>, NoTree> {
    let options = match strings {
        StringSyntax::Standard => ParserOptions::DEFAULT,
        StringSyntax::Backslash => ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| pg_query::parse(text, options)));
    match outcome {
        Ok(Ok(result)) => Ok(result.protobuf.stmts),
        Ok(Err(Error::Decode(_))) => Err(NoTree::TooDeep),
        Ok(Err(Error::Parse(message))) if is_depth_message(&message) => Err(NoTree::TooDeep),
        Ok(Err(_)) => Err(NoTree::DoesNotParse),
        Err(_) => Err(NoTree::TooDeep),
    }
}

/// The C parser's two ways to say that a text nests too deeply.
fn is_depth_message(message: &str) -> bool {
    message.contains("stack depth") || message.contains("memory exhausted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_name() {
        assert_eq!(parse("select 1; select 2", StringSyntax::Standard).map(|s| s.len()), Ok(2));
        assert_eq!(parse("selec 1", StringSyntax::Standard), Err(NoTree::DoesNotParse));
        let deep = format!("select {}1", "1||".repeat(TREE_DEPTH_MAX));
        assert_eq!(parse(&deep, StringSyntax::Standard), Err(NoTree::TooDeep));
        let deeper = format!("select {}1{}", "(".repeat(20_000), ")".repeat(20_000));
        assert_eq!(parse(&deeper, StringSyntax::Standard), Err(NoTree::TooDeep));
    }

    #[test]
    fn backslashes_escape_only_when_asked() {
        assert!(parse(r"select 'a\'", StringSyntax::Standard).is_ok());
        assert!(parse(r"select 'a\'", StringSyntax::Backslash).is_err());
        assert!(parse(r"select 'a\'b'", StringSyntax::Backslash).is_ok());
    }

    /// The C library can be built so that it swaps the process's standard error for a pipe while it parses, which
    /// threads that parse together would never put right again. Ours must not be built so.
    #[test]
    fn standard_error_stays_where_it_is_while_threads_parse() {
        let standard_error = || std::fs::read_link("/proc/self/fd/2").ok();
        let before = standard_error();
        let parse_and_look = || parse("select 1", StringSyntax::Standard).is_ok() && standard_error() == before;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..300).all(|_| parse_and_look()))).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        });
    }
}
