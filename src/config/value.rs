//! Texts with units: durations, sizes, addresses.
//!
//! Invariants: what is printed is read back as the same value. Absent on purpose: guessing units;
//! `30` is no duration, `16MB` is no size.

use std::fmt;
use std::time::Duration;

/// Units of durations, longest first, in microseconds. PostgreSQL's own, without `us` on printing.
const DURATION_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// Units of sizes, largest first, in bytes.
const SIZE_UNITS: &[(&str, u64)] = &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Why a text is no value, in the words of a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

impl Flaw {
    /// A flaw without a suggestion.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), suggestion: None }
    }

    /// With a suggestion.
    #[must_use]
    pub fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }
}

/// Reads `"30s"`, `"500ms"`, `"10min"`, `"1h"`, `"2d"`.
///
/// # Errors
/// If the text is not one whole number and one unit.
pub fn parse_duration(text: &str) -> Result<Duration, Flaw> {
    let flaw = || Flaw::new(format!("{} is not a duration", quoted(text)));
    let (number, unit) = split_unit(text);
    if let Some(micros) = exact(number, unit, DURATION_UNITS) {
        return Ok(Duration::from_micros(micros));
    }
    let usual = r#"write a number and a unit, such as "30s", "500ms", "10min" or "1h""#;
    let written = unit.trim().to_ascii_lowercase();
    let meant = match written.as_str() {
        "" => "s",
        "m" | "mins" | "minute" | "minutes" => "min",
        "sec" | "secs" | "second" | "seconds" => "s",
        "hr" | "hrs" | "hour" | "hours" => "h",
        "msec" | "millis" | "milliseconds" => "ms",
        "day" | "days" => "d",
        other if DURATION_UNITS.iter().any(|(unit, _)| *unit == other) => other,
        _ => return Err(flaw().suggest(usual)),
    };
    match meaning(number, meant, DURATION_UNITS) {
        Some(micros) => {
            Err(flaw().suggest(format!("did you mean \"{}\"?", format_duration(Duration::from_micros(micros)))))
        }
        None => Err(flaw().suggest(usual)),
    }
}

/// The shortest exact text of a duration; zero is `0s`.
#[must_use]
pub fn format_duration(value: Duration) -> String {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    if micros == 0 {
        return "0s".to_owned();
    }
    in_units(micros, DURATION_UNITS)
}

/// Reads `"16MiB"`, `"64KiB"`, `"512B"`, as bytes.
///
/// # Errors
/// If the text is not one whole number and one unit.
pub fn parse_size(text: &str) -> Result<u64, Flaw> {
    let flaw = || Flaw::new(format!("{} is not a size", quoted(text)));
    let (number, unit) = split_unit(text);
    if let Some(bytes) = exact(number, unit, SIZE_UNITS) {
        return Ok(bytes);
    }
    let meant = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" | "byte" | "bytes" => "B",
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        "t" | "tb" | "tib" => "TiB",
        _ => return Err(flaw().suggest(r#"write a number of bytes, or a text such as "64KiB" or "16MiB""#)),
    };
    match meaning(number, meant, SIZE_UNITS) {
        Some(bytes) => Err(flaw().suggest(format!("did you mean \"{}\"?", format_size(bytes)))),
        None => Err(flaw().suggest(r#"write a number of bytes, or a text such as "64KiB" or "16MiB""#)),
    }
}

/// The shortest exact text of a size; zero is `0B`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0B".to_owned();
    }
    in_units(bytes, SIZE_UNITS)
}

/// The port of a node whose address names none.
pub const NODE_PORT: u16 = 5432;

/// Longest host name of an address, bytes (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// Reads `host`, `host:port`, `10.0.0.11:5432`, `[::1]:5432`.
///
/// # Errors
/// If the text is no such address.
pub fn parse_address(text: &str) -> Result<(String, u16), Flaw> {
    let flaw = |suggestion: &str| Flaw::new(format!("{} is not an address", quoted(text))).suggest(suggestion);
    let usual = r#"write a host name or IP address and a port, such as "10.0.0.11:5432""#;
    if text.contains("://") {
        return Err(flaw("leave the scheme out: only host and port"));
    }
    if text.starts_with('/') {
        return parse_directory(text)
            .ok_or_else(|| flaw("write a directory and a port, such as \"/run/postgresql:5432\""));
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(flaw(&format!("did you mean \"[{text}]:{NODE_PORT}\"?")));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(|| flaw("close the bracket: \"[::1]:5432\""))?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| flaw("within brackets an IPv6 address is expected"))?;
        let port = match port.strip_prefix(':') {
            Some(port) => parse_port(port).ok_or_else(|| flaw("the port is a number from 1 to 65535"))?,
            None if port.is_empty() => NODE_PORT,
            None => return Err(flaw(usual)),
        };
        return Ok((host.to_owned(), port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, parse_port(port).ok_or_else(|| flaw("the port is a number from 1 to 65535"))?),
        None => (text, NODE_PORT),
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.chars().all(valid) {
        return Err(flaw(usual));
    }
    Ok((host.to_owned(), port))
}

/// A directory of Unix sockets and a port.
fn parse_directory(text: &str) -> Option<(String, u16)> {
    let (directory, port) = match text.split_once(':') {
        Some((directory, port)) => (directory, parse_port(port)?),
        None => (text, NODE_PORT),
    };
    let fine = directory.len() <= HOST_BYTES_MAX && !directory.contains(|c: char| c.is_control() || c == ',');
    fine.then(|| (directory.to_owned(), port))
}

/// Where an HTTP server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAddress {
    /// Whether it speaks TLS (`https`).
    pub secured: bool,
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secured { "https" } else { "http" };
        write!(f, "{scheme}://{}", format_address(&self.host, self.port))
    }
}

/// Reads `http://host:port` or `https://host:port`.
///
/// # Errors
/// If the text is anything else.
pub fn parse_http(text: &str) -> Result<HttpAddress, Flaw> {
    let usual = r#"write http:// or https://, a host and a port, such as "http://10.0.0.11:8008""#;
    let flaw = || Flaw::new(format!("{} is no such address", quoted(text))).suggest(usual);
    let schemes = [("http://", false), ("https://", true)].into_iter();
    let mut rest = schemes.filter_map(|(scheme, secured)| Some((text.strip_prefix(scheme)?, secured)));
    let (rest, secured) = rest.next().filter(|(rest, _)| !rest.starts_with('/')).ok_or_else(flaw)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let with_port = rest.rsplit_once(':').is_some_and(|(_, port)| parse_port(port).is_some());
    let (host, port) = parse_address(rest).ok().filter(|_| with_port).ok_or_else(flaw)?;
    Ok(HttpAddress { secured, host, port })
}

/// `host:port`, with brackets around an IPv6 address.
#[must_use]
pub fn format_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Longest part of a text from outside that is repeated in a message, characters.
const QUOTED_LEN_MAX: usize = 60;

/// A text from outside, in quotes, without control characters, not longer than a line.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", shortened(text))
}

/// A text from outside, without control characters, not longer than a line.
#[must_use]
pub fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_LEN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED_LEN_MAX).is_some() {
        short.push('…');
    }
    short
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port > 0)
}

/// The number and what follows it.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// The value of a whole number in exactly this unit.
fn exact(number: &str, unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// What a number with a fraction, in this unit, would be; for suggestions only.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn meaning(number: &str, unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    let value = number.parse::<f64>().ok()? * *factor as f64;
    // Beyond 2^53 a float is no longer exact, and a suggestion would be nonsense.
    (value > 0.0 && value < 9e15).then_some(value.round() as u64)
}

fn in_units(value: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().find(|(_, factor)| value.is_multiple_of(*factor));
    exact.map_or_else(|| value.to_string(), |(name, factor)| format!("{}{name}", value / factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("10min", 600_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
        for (text, suggestion) in [
            ("30", "did you mean \"30s\"?"),
            ("1m", "did you mean \"1min\"?"),
            ("0.5s", "did you mean \"500ms\"?"),
            ("30 s", "did you mean \"30s\"?"),
            ("2 hours", "did you mean \"2h\"?"),
            ("soon", "write a number and a unit, such as \"30s\", \"500ms\", \"10min\" or \"1h\""),
            ("", "write a number and a unit, such as \"30s\", \"500ms\", \"10min\" or \"1h\""),
            ("-5s", "write a number and a unit, such as \"30s\", \"500ms\", \"10min\" or \"1h\""),
            ("99999999999999999999d", "write a number and a unit, such as \"30s\", \"500ms\", \"10min\" or \"1h\""),
        ] {
            let flaw = parse_duration(text).unwrap_err();
            assert_eq!(flaw.message, format!("\"{text}\" is not a duration"));
            assert_eq!(flaw.suggestion.as_deref(), Some(suggestion), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("16MiB", 16 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(format_size(bytes), text);
        }
        assert_eq!(parse_size("16MB").unwrap_err().suggestion.as_deref(), Some("did you mean \"16MiB\"?"));
        assert_eq!(parse_size("1.5k").unwrap_err().suggestion.as_deref(), Some("did you mean \"1536B\"?"));
        assert!(parse_size("99999999999TiB").is_err());
        assert!(parse_size("MiB").is_err());
    }

    #[test]
    fn addresses() {
        for (text, host, port) in [
            ("10.0.0.11:5432", "10.0.0.11", 5432),
            ("pg-1.example_net", "pg-1.example_net", 5432),
            ("pg1:6000", "pg1", 6000),
            ("[::1]:5433", "::1", 5433),
            ("[::1]", "::1", 5432),
        ] {
            assert_eq!(parse_address(text), Ok((host.to_owned(), port)));
        }
        for (text, suggestion) in [
            ("", "write a host name or IP address and a port, such as \"10.0.0.11:5432\""),
            ("a b:1", "write a host name or IP address and a port, such as \"10.0.0.11:5432\""),
            ("::1", "did you mean \"[::1]:5432\"?"),
            ("pg1:0", "the port is a number from 1 to 65535"),
            ("pg1:+1", "the port is a number from 1 to 65535"),
            ("pg1:70000", "the port is a number from 1 to 65535"),
            ("[::1:5432", "close the bracket: \"[::1]:5432\""),
            ("[pg1]:5432", "within brackets an IPv6 address is expected"),
            ("postgres://pg1", "leave the scheme out: only host and port"),
            ("/var/run/postgresql:x", "write a directory and a port, such as \"/run/postgresql:5432\""),
        ] {
            assert_eq!(parse_address(text).unwrap_err().suggestion.as_deref(), Some(suggestion), "{text}");
        }
    }

    #[test]
    fn texts_from_outside_cannot_move_the_cursor() {
        assert_eq!(quoted("a\u{1b}[2Jb\n"), r#""a\u{1b}[2Jb\n""#);
        assert_eq!(shortened(&"x".repeat(100)), format!("{}…", "x".repeat(60)));
    }

    proptest! {
        #[test]
        fn durations_read_what_they_print(micros in 0u64..1 << 50) {
            let value = Duration::from_micros(micros);
            prop_assert_eq!(parse_duration(&format_duration(value)), Ok(value));
        }

        #[test]
        fn sizes_read_what_they_print(bytes: u64) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn suggestions_are_valid(text in "[0-9]{0,4}\\.?[0-9]{0,2} ?[a-zA-Z]{0,4}") {
            for suggestion in [parse_duration(&text).err(), parse_size(&text).err()].into_iter().flatten() {
                let told = suggestion.suggestion.unwrap();
                if let Some(meant) = told.strip_prefix("did you mean \"") {
                    let meant = meant.trim_end_matches("\"?");
                    prop_assert!(parse_duration(meant).is_ok() || parse_size(meant).is_ok(), "{}", told);
                }
            }
        }
    }
}
