//! What a console client may say: SHOW, RELOAD, DRAIN, FAILOVER and the like, and what drivers say unasked.
//!
//! Pure. Invariants: every command that is listed by SHOW HELP works; what is not understood is an error
//! that says where to look. Absent on purpose: carrying anything out (`session`).

use super::show::{self, Show};
use super::table::{Column, Kind, Value};
use super::words::Word;
use crate::error::{ClientError, SqlState};
use crate::route::Service;

/// A statement.
#[derive(Clone, Debug)]
pub enum Command {
    /// SHOW of one of the tables.
    Show(&'static Show),
    /// SHOW of a setting that drivers know.
    Variable(String),
    /// SELECT of one value, for connection checks.
    Value(Column, Value),
    /// SET, `None`: to its default.
    Set(String, Option<String>),
    /// RESET ALL, DISCARD ALL
    ResetAll(&'static str),
    /// Something without effect here; the command tag.
    Nothing(&'static str),
    /// BEGIN
    Begin,
    /// COMMIT
    Commit,
    /// ROLLBACK
    Rollback,
    /// DEALLOCATE, `None`: ALL.
    Deallocate(Option<String>),
    /// RELOAD
    Reload,
    /// ENABLE, DRAIN or MAINTENANCE of the node of this name.
    Serve(Service, String),
    /// FAILOVER, perhaps TO the node of this name.
    Failover(Option<String>),
    /// PAUSE FAILOVER, or RESUME FAILOVER.
    PauseFailover(bool),
    /// FORGET LEARNED
    ForgetLearned,
    /// EXPLAIN ROUTE of this text.
    ExplainRoute(String),
}

fn unknown() -> ClientError {
    ClientError::error(SqlState("42601"), "the console does not know this statement")
        .hint("SHOW HELP lists what it knows.")
}

/// Reads a statement.
///
/// # Errors
/// For the client.
pub fn parse(words: &[Word]) -> Result<Command, ClientError> {
    let Some((Word::Plain(verb), rest)) = words.split_first() else { return Err(unknown()) };
    match (verb.as_str(), rest) {
        ("show", rest) => show(rest),
        ("select", rest) => select(rest),
        ("set", rest) => set(rest),
        ("reset", [word]) if word.is("all") => Ok(Command::ResetAll("RESET")),
        ("reset", [name]) => Ok(Command::Set(name_of(name)?, None)),
        ("discard", [word]) if word.is("all") => Ok(Command::ResetAll("DISCARD ALL")),
        ("begin", _) => Ok(Command::Begin),
        ("start", [word, ..]) if word.is("transaction") => Ok(Command::Begin),
        ("commit" | "end", _) => Ok(Command::Commit),
        ("rollback" | "abort", _) => Ok(Command::Rollback),
        ("deallocate", [prepare, rest @ ..]) if prepare.is("prepare") => deallocate(rest),
        ("deallocate", rest) => deallocate(rest),
        ("reload", []) => Ok(Command::Reload),
        ("enable", rest) => serve(Service::Enabled, rest),
        ("drain", rest) => serve(Service::Draining, rest),
        ("maintenance", rest) => serve(Service::Maintenance, rest),
        ("failover", []) => Ok(Command::Failover(None)),
        ("failover", [to, name @ ..]) if to.is("to") => Ok(Command::Failover(Some(node_name(name)?))),
        ("pause", [word]) if word.is("failover") => Ok(Command::PauseFailover(true)),
        ("resume", [word]) if word.is("failover") => Ok(Command::PauseFailover(false)),
        ("forget", [word]) if word.is("learned") => Ok(Command::ForgetLearned),
        ("explain", [word, Word::Quoted(text)]) if word.is("route") => Ok(Command::ExplainRoute(text.clone())),
        _ => Err(unknown()),
    }
}

fn name_of(word: &Word) -> Result<String, ClientError> {
    word.text().map(str::to_owned).ok_or_else(unknown)
}

/// `NODE name`
fn serve(service: Service, rest: &[Word]) -> Result<Command, ClientError> {
    match rest {
        [node, name @ ..] if node.is("node") => Ok(Command::Serve(service, node_name(name)?)),
        _ => Err(unknown()),
    }
}

/// A node's name, which may have a `-` in it.
fn node_name(name: &[Word]) -> Result<String, ClientError> {
    let mut text = String::new();
    for word in name {
        match word {
            Word::Plain(part) | Word::Quoted(part) => text.push_str(part),
            Word::Symbol('-') => text.push('-'),
            Word::Symbol(_) => return Err(unknown()),
        }
    }
    if text.is_empty() { Err(unknown()) } else { Ok(text) }
}

fn show(rest: &[Word]) -> Result<Command, ClientError> {
    match rest {
        [one, two, three] if one.is("transaction") && two.is("isolation") && three.is("level") => {
            Ok(Command::Variable("transaction_isolation".to_owned()))
        }
        [one, two] if one.is("time") && two.is("zone") => Ok(Command::Variable("TimeZone".to_owned())),
        [name] => {
            let name = name_of(name)?;
            Ok(show::find(&name).map_or(Command::Variable(name), Command::Show))
        }
        _ => Err(unknown()),
    }
}

/// `SELECT 1` and a few functions; `SELECT x` is `SHOW x`, as in PgBouncer.
fn select(rest: &[Word]) -> Result<Command, ClientError> {
    let value = |name, value: Value| {
        let kind = if matches!(value, Value::Number(_)) { Kind::Int4 } else { Kind::Text };
        Ok(Command::Value(Column { name, kind }, value))
    };
    match rest {
        [Word::Plain(word)] => match word.parse::<i32>() {
            Ok(number) => value("?column?", Value::from(number)),
            Err(_) => show::find(word).map(Command::Show).ok_or_else(unknown),
        },
        [Word::Quoted(text)] => value("?column?", Value::from(text.as_str())),
        [Word::Plain(name), Word::Symbol('('), Word::Symbol(')')] => match name.trim_start_matches("pg_catalog.") {
            "version" => value("version", Value::from(show::VERSION)),
            "current_schema" => value("current_schema", Value::from("public")),
            _ => Err(unknown()),
        },
        _ => Err(unknown()),
    }
}

fn set(rest: &[Word]) -> Result<Command, ClientError> {
    let rest = match rest {
        [scope, rest @ ..] if scope.is("local") || scope.is("session") => rest,
        rest => rest,
    };
    match rest {
        [word, ..] if word.is("transaction") || word.is("characteristics") => Ok(Command::Nothing("SET")),
        [one, two, value] if one.is("time") && two.is("zone") => given("TimeZone", std::slice::from_ref(value)),
        [one, value] if one.is("names") => given("client_encoding", std::slice::from_ref(value)),
        [name, between, value @ ..] if between.is("to") || *between == Word::Symbol('=') => {
            given(&name_of(name)?, value)
        }
        _ => Err(unknown()),
    }
}

/// SET to a value, or to a list of values.
fn given(name: &str, value: &[Word]) -> Result<Command, ClientError> {
    let name = name.to_owned();
    match value {
        [] => Err(unknown()),
        [word] if word.is("default") => Ok(Command::Set(name, None)),
        [Word::Symbol('-'), Word::Plain(number)] => Ok(Command::Set(name, Some(format!("-{number}")))),
        words => {
            let texts: Vec<_> = words.iter().filter_map(Word::text).collect();
            Ok(Command::Set(name, Some(texts.join(", "))))
        }
    }
}

fn deallocate(rest: &[Word]) -> Result<Command, ClientError> {
    match rest {
        [word] if word.is("all") => Ok(Command::Deallocate(None)),
        [name] => Ok(Command::Deallocate(Some(name_of(name)?))),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::words::statements;
    use super::*;

    fn read(text: &str) -> Result<Command, ClientError> {
        parse(&statements(text)[0])
    }

    #[test]
    fn what_drivers_say_is_understood() {
        for (text, name, value) in [
            ("SET extra_float_digits = 3", "extra_float_digits", Some("3")),
            ("set client_encoding to 'UTF8'", "client_encoding", Some("UTF8")),
            ("SET SESSION DateStyle = ISO, MDY", "datestyle", Some("iso, mdy")),
            ("SET NAMES 'utf8'", "client_encoding", Some("utf8")),
            ("SET TIME ZONE 'Europe/Berlin'", "TimeZone", Some("Europe/Berlin")),
            ("SET LOCAL application_name TO DEFAULT", "application_name", None),
            ("SET extra_float_digits = -1", "extra_float_digits", Some("-1")),
            ("RESET application_name", "application_name", None),
        ] {
            let Ok(Command::Set(got_name, got_value)) = read(text) else { panic!("{text}") };
            assert_eq!((&*got_name, got_value.as_deref()), (name, value), "{text}");
        }
        assert!(matches!(read("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"), Ok(Command::Nothing("SET"))));
        assert!(matches!(read("SELECT 1"), Ok(Command::Value(_, Value::Number(1)))));
        assert!(matches!(read("SELECT version()"), Ok(Command::Value(..))));
        assert!(matches!(read("SHOW TRANSACTION ISOLATION LEVEL"), Ok(Command::Variable(_))));
        assert!(matches!(read("DEALLOCATE PREPARE x"), Ok(Command::Deallocate(Some(_)))));
    }

    #[test]
    fn nodes_are_named_as_they_are_written() {
        for (text, service, name) in [
            ("DRAIN NODE pg2", Service::Draining, "pg2"),
            ("maintenance node eu-1a.pg_2", Service::Maintenance, "eu-1a.pg_2"),
            ("Enable Node \"PG-2\"", Service::Enabled, "PG-2"),
        ] {
            let got = read(text).unwrap();
            assert!(matches!(&got, Command::Serve(of, node) if *of == service && node == name), "{got:?}");
        }
        for text in ["DRAIN", "DRAIN NODE", "DRAIN pg2", "ENABLE NODE (pg2)"] {
            assert_eq!(read(text).unwrap_err().sqlstate.0, "42601", "{text}");
        }
    }

    #[test]
    fn failovers_are_ordered_paused_and_resumed() {
        for (text, name) in
            [("FAILOVER", None), ("failover to eu-1.pg2", Some("eu-1.pg2")), ("Failover TO \"PG-2\"", Some("PG-2"))]
        {
            let got = read(text).unwrap();
            assert!(matches!(&got, Command::Failover(to) if to.as_deref() == name), "{got:?}");
        }
        assert!(matches!(read("PAUSE FAILOVER"), Ok(Command::PauseFailover(true))));
        assert!(matches!(read("resume failover"), Ok(Command::PauseFailover(false))));
        // PAUSE and RESUME alone are PgBouncer's, and mean something else there.
        for text in
            ["PAUSE", "RESUME", "PAUSE app", "FAILOVER pg2", "FAILOVER TO", "FAILOVER TO (pg2)", "FAILOVER TO \"\""]
        {
            assert_eq!(read(text).unwrap_err().sqlstate.0, "42601", "{text}");
        }
    }

    #[test]
    fn tables_are_found_by_name_whatever_the_case() {
        for text in ["SHOW POOLS", "show \"pools\"", "SELECT pools"] {
            assert!(matches!(read(text), Ok(Command::Show(show)) if show.name == "pools"), "{text}");
        }
        for text in
            ["SHOW", "SHOW A B", "SELECT 1, 2", "DROP TABLE t", "SET", "SET x", "SET x =", "'text'", "SELECT now()"]
        {
            assert_eq!(read(text).unwrap_err().sqlstate.0, "42601", "{text}");
        }
    }
}
