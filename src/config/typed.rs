//! One value of the file against one row of settings.
//!
//! Invariants: a value that passes is of the row's kind and within its range; texts that may be
//! secrets are never repeated. Absent on purpose: places (the caller knows them).

use super::settings::{Kind, Zero};
use super::suggest::nearest;
use super::value::{Flaw, format_duration, format_size, parse_address, parse_duration, parse_size, quoted};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// Longest text of a setting, bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Longest name, bytes (PostgreSQL's NAMEDATALEN - 1, so that names fit application_name).
const NAME_BYTES_MAX: usize = 63;
/// Items of a list.
const LIST_LEN_MAX: usize = 1_000;

/// A value that is of its kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Number(u64),
    Duration(Duration),
    Text(String),
    Path(PathBuf),
    Listen(Option<SocketAddr>),
    Listens(Vec<SocketAddr>),
    Address((String, u16)),
    Texts(Vec<String>),
}

/// Reads a value of the file.
pub(super) fn read(kind: Kind, value: &DeValue<'_>) -> Result<Value, Flaw> {
    match kind {
        Kind::Bool => value.as_bool().map(Value::Bool).ok_or_else(|| bad_flag(value)),
        Kind::Count { min, max } => read_count(value, min, max),
        Kind::Duration { min, max, zero } => read_duration(value, min, max, zero),
        Kind::Size { min, max, zero } => read_size(value, min, max, zero),
        Kind::Word(words) => read_word(text(value)?, words),
        Kind::Text | Kind::Secret => filled(text(value)?).map(|text| Value::Text(text.to_owned())),
        Kind::Name => read_name(text(value)?),
        Kind::Path => filled(text(value)?).map(|text| Value::Path(PathBuf::from(text))),
        Kind::Listen => match text(value)? {
            "" => Ok(Value::Listen(None)),
            address => read_listen(address).map(|address| Value::Listen(Some(address))),
        },
        Kind::Listens => read_listens(value),
        Kind::Address => parse_address(text(value)?).map(Value::Address),
        Kind::Texts => {
            let texts = list(value, r#"["a", "b"]"#)?;
            texts.into_iter().map(|text| filled(text).map(str::to_owned)).collect::<Result<_, _>>().map(Value::Texts)
        }
    }
}

/// Reads a default, which is ours and right (a test reads all of them).
pub(super) fn read_default(kind: Kind, toml: &str) -> Value {
    let value = DeValue::parse(toml).unwrap_or_else(|e| panic!("the default {toml} is TOML: {e}"));
    read(kind, value.get_ref()).unwrap_or_else(|flaw| panic!("the default {toml} is right: {}", flaw.message))
}

/// "is a text", with the article that its kind needs.
fn is_a(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "is a text",
        DeValue::Integer(_) => "is an integer",
        DeValue::Float(_) => "is a number with a fraction",
        DeValue::Boolean(_) => "is true or false",
        DeValue::Datetime(_) => "is a date",
        DeValue::Array(_) => "is a list",
        DeValue::Table(_) => "is a table",
    }
}

fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Flaw> {
    let text = value
        .as_str()
        .ok_or_else(|| Flaw::new(format!("{}; a text is expected", is_a(value))).suggest("put it in quotes"))?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(Flaw::new(format!("is longer than {}", format_size(TEXT_BYTES_MAX as u64))));
    }
    if text.contains('\0') {
        return Err(Flaw::new("holds a NUL character"));
    }
    Ok(text)
}

fn filled(text: &str) -> Result<&str, Flaw> {
    if text.is_empty() { Err(Flaw::new("is empty").suggest("write a value, or leave the line out")) } else { Ok(text) }
}

fn bad_flag(value: &DeValue<'_>) -> Flaw {
    let meant = match value.as_str().map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "on" | "yes") => Some("true"),
        Some("false" | "off" | "no") => Some("false"),
        _ => None,
    };
    let flaw = Flaw::new(format!("{}; true or false is expected", is_a(value)));
    match meant {
        Some(word) => flaw.suggest(format!("write {word}, without quotes")),
        None => flaw,
    }
}

fn integer(value: &DeValue<'_>) -> Option<Result<u64, Flaw>> {
    let integer = value.as_integer()?;
    let parsed = u64::from_str_radix(integer.as_str(), integer.radix());
    Some(parsed.map_err(|_| Flaw::new("is out of range")))
}

fn read_count(value: &DeValue<'_>, min: u64, max: u64) -> Result<Value, Flaw> {
    let expected = || format!("write an integer from {min} to {max}");
    let Some(number) = integer(value) else {
        let flaw = Flaw::new(format!("{}; an integer is expected", is_a(value)));
        let digits = value.as_str().is_some_and(|text| text.parse::<u64>().is_ok());
        return Err(flaw.suggest(if digits { "leave the quotes out".to_owned() } else { expected() }));
    };
    match number {
        Ok(number) if (min..=max).contains(&number) => Ok(Value::Number(number)),
        Ok(number) => Err(Flaw::new(format!("{number} is out of range")).suggest(expected())),
        Err(flaw) => Err(flaw.suggest(expected())),
    }
}

fn read_duration(value: &DeValue<'_>, min: Duration, max: Duration, zero: Zero) -> Result<Value, Flaw> {
    let Some(text) = value.as_str() else {
        let flaw = Flaw::new(format!("{}; a duration is expected", is_a(value)));
        let seconds = integer(value).and_then(Result::ok).filter(|&seconds| seconds < 1 << 40).map(Duration::from_secs);
        return Err(flaw.suggest(match seconds {
            Some(seconds) => format!("write a unit, such as \"{}\"", format_duration(seconds)),
            None => r#"write a text such as "30s""#.to_owned(),
        }));
    };
    let duration = parse_duration(text)?;
    if (min..=max).contains(&duration) || (duration.is_zero() && zero == Zero::Off) {
        return Ok(Value::Duration(duration));
    }
    let range = range_told(&format_duration(min), &format_duration(max), zero, "\"0s\"");
    Err(Flaw::new(format!("{} is out of range", quoted(text))).suggest(range))
}

fn read_size(value: &DeValue<'_>, min: u64, max: u64, zero: Zero) -> Result<Value, Flaw> {
    let range = || range_told(&format_size(min), &format_size(max), zero, "0");
    let bytes = match (integer(value), value.as_str()) {
        (Some(number), _) => number.map_err(|flaw| flaw.suggest(range()))?,
        (None, Some(text)) => parse_size(text)?,
        (None, None) => {
            let flaw = Flaw::new(format!("{}; a size is expected", is_a(value)));
            return Err(flaw.suggest(r#"write a number of bytes, or a text such as "64KiB""#));
        }
    };
    if (min..=max).contains(&bytes) || (bytes == 0 && zero == Zero::Off) {
        return Ok(Value::Number(bytes));
    }
    Err(Flaw::new(format!("{} is out of range", format_size(bytes))).suggest(range()))
}

/// "from 1s to 1h, or "0s" for off".
fn range_told(min: &str, max: &str, zero: Zero, off: &str) -> String {
    let off = if zero == Zero::Off { format!(", or {off} for no limit") } else { String::new() };
    format!("write a value from \"{min}\" to \"{max}\"{off}")
}

fn read_word(word: &str, words: &[&str]) -> Result<Value, Flaw> {
    if words.contains(&word) {
        return Ok(Value::Text(word.to_owned()));
    }
    let flaw = Flaw::new(format!("{} is not known here", quoted(word)));
    Err(match nearest(word, words.iter().copied()) {
        Some(near) => flaw.suggest(format!("did you mean \"{near}\"?")),
        None => {
            let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
            flaw.suggest(format!("write {}", words.join(" or ")))
        }
    })
}

fn read_name(text: &str) -> Result<Value, Flaw> {
    let name = filled(text)?;
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > NAME_BYTES_MAX {
        return Err(Flaw::new(format!("is longer than {NAME_BYTES_MAX} bytes")));
    }
    if !name.chars().all(valid) || name.starts_with('.') {
        let flaw = Flaw::new(format!("{} is not a name", quoted(name)));
        return Err(flaw.suggest("write letters, digits, \"-\", \"_\" and \".\", not beginning with \".\""));
    }
    Ok(Value::Text(name.to_owned()))
}

fn read_listen(text: &str) -> Result<SocketAddr, Flaw> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let flaw = Flaw::new(format!("{} is not an IP address with a port", quoted(text)));
    let port = |text: &str| text.parse::<u16>().ok();
    Err(if let Some(port) = text.strip_prefix('*').and_then(|rest| rest.strip_prefix(':')).and_then(port) {
        flaw.suggest(format!("for all addresses write \"0.0.0.0:{port}\" and \"[::]:{port}\""))
    } else if let Some(port) = text.strip_prefix("localhost:").and_then(port) {
        flaw.suggest(format!("did you mean \"127.0.0.1:{port}\"?"))
    } else if let Some(port) = port(text.trim_start_matches(':')) {
        flaw.suggest(format!("did you mean \"0.0.0.0:{port}\"?"))
    } else {
        match text.parse::<IpAddr>() {
            Ok(address) => flaw.suggest(format!("add the port: \"{}\"", SocketAddr::new(address, 5432))),
            Err(_) => flaw.suggest("write an address of this machine, such as \"0.0.0.0:5432\""),
        }
    })
}

fn read_listens(value: &DeValue<'_>) -> Result<Value, Flaw> {
    let texts = list(value, r#"["0.0.0.0:5432"]"#)?;
    if texts.is_empty() {
        return Err(Flaw::new("is empty").suggest(r#"write at least one address, such as ["0.0.0.0:5432"]"#));
    }
    let mut addresses = Vec::new();
    for text in texts {
        let address = read_listen(text)?;
        if addresses.contains(&address) {
            return Err(Flaw::new(format!("{} is listed twice", quoted(text))));
        }
        addresses.push(address);
    }
    Ok(Value::Listens(addresses))
}

fn list<'v>(value: &'v DeValue<'_>, example: &str) -> Result<Vec<&'v str>, Flaw> {
    let Some(items) = value.as_array() else {
        let flaw = Flaw::new(format!("{}; a list of texts is expected", is_a(value)));
        return Err(flaw.suggest(format!("write it in brackets, such as {example}")));
    };
    if items.len() > LIST_LEN_MAX {
        return Err(Flaw::new(format!("has more than {LIST_LEN_MAX} items")));
    }
    let texts = items.iter().enumerate().map(|(index, item)| {
        text(item.get_ref()).map_err(|flaw| Flaw { message: format!("item {} {}", index + 1, flaw.message), ..flaw })
    });
    texts.collect()
}
