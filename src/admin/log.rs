//! Where log lines go and what they look like: text for people or JSON for machines, to stderr.
//!
//! A JSON line is one flat object: `timestamp`, `level`, `message`, `target`, and then the fields of
//! the event and of all spans around it (`client`, `user`, `database`, `node`, …); where names
//! collide the innermost wins. The spans are made by [`crate::metrics::client_span`] and its neighbours.
//!
//! Invariants: one event is one line, whatever clients put into names. Absent on purpose: the
//! environment (the filter comes from the config), files and rotation (the service manager's work).

use crate::config::LogConfig;
use serde::Serializer as _;
use serde::ser::SerializeMap;
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, IsTerminal};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

pub use crate::metrics::{client_span, connection_span, node_span};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one that `tracing` understands.
    #[error("{filter:?} is not a log filter ({why}); examples: \"info\", \"warn,pgregent::failover=debug\"")]
    BadFilter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Logging was set up before in this process.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Sets up logging for the whole process, to stderr.
///
/// # Errors
/// If the filter cannot be read, or logging was set up before.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let colour = if io::stderr().is_terminal() { Colour::Terminal } else { Colour::None };
    let subscriber = subscriber(config, colour, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadySet)
}

/// Whether the filter can be read.
///
/// # Errors
/// [`LogError::BadFilter`] if not.
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    env_filter(filter).map(drop)
}

/// Whether lines of text may hold colour codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// The reader is a terminal.
    Terminal,
    /// The reader is a file or a program.
    None,
}

/// What [`init`] installs, writing to `writer`.
///
/// # Errors
/// If the filter cannot be read.
pub fn subscriber<W>(
    config: &LogConfig,
    colour: Colour,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(env_filter(&config.filter)?).with_writer(OneLine(writer));
    Ok(if config.json {
        Box::new(builder.fmt_fields(JsonFields::new()).event_format(FlatJson).finish())
    } else {
        Box::new(builder.with_ansi(colour == Colour::Terminal).finish())
    })
}

fn env_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter)
        .map_err(|error| LogError::BadFilter { filter: filter.to_owned(), why: error.to_string() })
}

/// Makes writers that keep each event on one line: a line feed within it (from a node's message,
/// say) is shown as `\\n`, so that nobody can forge a line.
struct OneLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLineWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLineWriter(self.0.make_writer())
    }
}

/// Takes one event per write, which is how the formatter writes.
struct OneLineWriter<W>(W);

impl<W: io::Write> io::Write for OneLineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let body = event.strip_suffix(b"\n").unwrap_or(event);
        if memchr::memchr2(b'\n', b'\r', body).is_none() {
            self.0.write_all(event)?;
            return Ok(event.len());
        }
        let mut line = Vec::with_capacity(event.len() + 8);
        for byte in body {
            match byte {
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                byte => line.push(*byte),
            }
        }
        line.push(b'\n');
        self.0.write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// One flat JSON object per line.
struct FlatJson;

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let recorded = extensions.get::<FormattedFields<JsonFields>>();
            if let Some(Ok(of_span)) = recorded.map(|text| serde_json::from_str::<Map<String, Value>>(text)) {
                fields.0.extend(of_span);
            }
        }
        event.record(&mut fields);
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let line = line(&timestamp, event, fields.0).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

/// The fixed keys first, in the order people read them.
fn line(timestamp: &str, event: &Event<'_>, mut fields: Map<String, Value>) -> Result<String, serde_json::Error> {
    const FIXED: [&str; 4] = ["timestamp", "level", "message", "target"];
    let message = fields.remove("message");
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    let mut object = serializer.serialize_map(None)?;
    object.serialize_entry("timestamp", timestamp)?;
    object.serialize_entry("level", event.metadata().level().as_str())?;
    object.serialize_entry("message", &message.unwrap_or_else(|| Value::from("")))?;
    object.serialize_entry("target", event.metadata().target())?;
    for (name, value) in fields.iter().filter(|(name, _)| !FIXED.contains(&name.as_str())) {
        object.serialize_entry(name, value)?;
    }
    object.end()?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Collects an event's fields.
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        let name = field.name();
        self.0.insert(name.strip_prefix("r#").unwrap_or(name).to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use tracing::{debug, info, warn};

    /// What `speak` logs under this configuration.
    fn logged(json: bool, filter: &str, speak: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let writer = sink.clone();
        let filter = filter.to_owned();
        let config = LogConfig { json, filter, slow_statement: None, failed_statements: false };
        let subscriber = subscriber(&config, Colour::None, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, speak);
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_json_line_names_client_user_database_and_node() {
        let lines = logged(true, "warn", || {
            client_span(&"10.0.0.9:4711", "ali\"ce\n", "app").in_scope(|| {
                node_span("pg2").in_scope(|| warn!(bytes = 7_u64, lost = true, why = %"gone", "backend lost"));
            });
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("{\"timestamp\":\""), "{}", lines[0]);
        let mut line: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        let timestamp = line.remove("timestamp").unwrap();
        assert!(timestamp.as_str().unwrap().ends_with('Z'), "{timestamp}");
        let expected = serde_json::json!({
            "level": "WARN", "message": "backend lost", "target": "pgregent::admin::log::tests",
            "client": "10.0.0.9:4711", "user": "ali\"ce\n", "database": "app", "node": "pg2",
            "bytes": 7, "lost": true, "why": "gone",
        });
        assert_eq!(Value::Object(line), expected);
    }

    #[test]
    fn the_innermost_field_wins_and_fixed_keys_cannot_be_forged() {
        let lines = logged(true, "info", || {
            node_span("pg1").in_scope(|| info!(node = "pg2", level = "x", target = "y", "moved"));
        });
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&line["node"], &line["level"]), (&"pg2".into(), &"INFO".into()));
        assert_eq!(lines[0].matches("\"target\"").count(), 1, "{}", lines[0]);
    }

    #[test]
    fn the_filter_of_the_config_decides() {
        let speak = || {
            debug!("quiet");
            info!("loud");
        };
        assert_eq!(logged(true, "info", speak).len(), 1);
        assert_eq!(logged(true, "warn", speak).len(), 0);
        assert_eq!(logged(true, "warn,pgregent::admin=debug", speak).len(), 2);
        assert!(matches!(check_filter("pgregent=loud"), Err(LogError::BadFilter { .. })));
        assert!(check_filter("warn,pgregent::failover=debug").is_ok());
    }

    #[test]
    fn a_text_line_names_the_client_and_cannot_be_forged() {
        let lines = logged(false, "info", || {
            let span = client_span(&"10.0.0.9:4711", "eve\n2031 ERROR \u{1b}[31mforged", "app");
            span.in_scope(|| warn!(why = %"line\r\nbreak", "refused"));
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line = &lines[0];
        for part in
            [" WARN ", "client=10.0.0.9:4711", "user=\"eve\\n2031", "database=\"app\"", "refused", "line\\r\\nbreak"]
        {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}
