//! Protocol messages for tests: builders for what clients send, readers for what nodes send.
//!
//! Written on its own, without the crate's wire module, so that a mistake there cannot hide here.
//! Absent on purpose: sockets.

use std::fmt::Write;

/// Longest value shown in full by [`Message::describe`]; longer ones are shown by length and sum.
const SHOWN_MAX: usize = 60;

/// Protocol 3.0 as the startup packet says it.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// Protocol 3.2.
pub const PROTOCOL_3_2: u32 = 3 << 16 | 2;
/// Request codes that stand in place of a version.
pub const CANCEL_REQUEST: u32 = 80_877_102;
/// `SSLRequest`.
pub const SSL_REQUEST: u32 = 80_877_103;
/// `GSSENCRequest`.
pub const GSSENC_REQUEST: u32 = 80_877_104;

/// A message from the node's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The type byte.
    pub tag: u8,
    /// Everything after the length.
    pub body: Vec<u8>,
}

/// The fields of an error or a notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields(pub Vec<(u8, String)>);

impl ErrorFields {
    /// One field, empty if absent.
    pub fn field(&self, code: u8) -> &str {
        self.0.iter().find(|(key, _)| *key == code).map_or("", |(_, value)| value)
    }

    /// The SQLSTATE.
    pub fn sqlstate(&self) -> &str {
        self.field(b'C')
    }

    /// The message.
    pub fn message(&self) -> &str {
        self.field(b'M')
    }

    /// ERROR, FATAL, NOTICE … not translated.
    pub fn severity(&self) -> &str {
        self.field(b'V')
    }
}

/// Reads a body; running over its end yields zeros and empty texts, which then differ from the expected.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn number(&mut self, width: usize) -> i64 {
        let bytes = self.take(width);
        let value = bytes.iter().fold(0_i64, |value, byte| value << 8 | i64::from(*byte));
        // Two's complement of `width` bytes.
        let bits = 8 * width as u32;
        if bytes.len() == width && value >> (bits - 1) & 1 == 1 { value - (1 << bits) } else { value }
    }

    fn text(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        let text = String::from_utf8_lossy(self.take(end)).into_owned();
        self.take(1);
        text
    }
}

impl Message {
    /// The fields of an `E` or `N`.
    pub fn fields(&self) -> ErrorFields {
        let mut reader = Reader(&self.body);
        let mut fields = Vec::new();
        while let [code, ..] = reader.0 {
            if *code == 0 {
                break;
            }
            let code = *code;
            reader.take(1);
            fields.push((code, reader.text()));
        }
        ErrorFields(fields)
    }

    /// The values of a `D`.
    pub fn row(&self) -> Vec<Option<Vec<u8>>> {
        let mut reader = Reader(&self.body);
        let count = reader.number(2);
        (0..count)
            .map(|_| {
                let length = reader.number(4);
                usize::try_from(length).ok().map(|length| reader.take(length).to_vec())
            })
            .collect()
    }

    /// The values of a `D` as texts, NULL as `None`.
    pub fn row_text(&self) -> Vec<Option<String>> {
        self.row().into_iter().map(|value| value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())).collect()
    }

    /// The text of a `C`, or of one that starts with a string.
    pub fn text(&self) -> String {
        Reader(&self.body).text()
    }

    /// Name and value of an `S`.
    pub fn parameter(&self) -> (String, String) {
        let mut reader = Reader(&self.body);
        (reader.text(), reader.text())
    }

    /// Pid and secret of a `K`.
    pub fn cancel_key(&self) -> (u32, Vec<u8>) {
        let (pid, secret) = self.body.split_at(4.min(self.body.len()));
        (u32::from_be_bytes(pid.try_into().unwrap_or_default()), secret.to_vec())
    }

    /// One line that is the same for every correct peer: no pids, no relation numbers, no source lines.
    pub fn describe(&self) -> String {
        let tag = char::from(self.tag);
        let mut reader = Reader(&self.body);
        match tag {
            'T' => self.describe_columns(),
            'D' => format!("D {}", self.row().iter().map(|v| shown(v.as_deref())).collect::<Vec<_>>().join("|")),
            'C' => format!("C {}", self.text()),
            'E' | 'N' => {
                let fields = self.fields();
                let (severity, sqlstate, message) = (fields.severity(), fields.sqlstate(), fields.message());
                format!("{tag} {severity} {sqlstate} {message} at={}", fields.field(b'P'))
            }
            'S' => format!("S {}={}", self.parameter().0, self.parameter().1),
            'K' => format!("K {} bytes", self.body.len()),
            'A' => {
                reader.take(4); // the pid of the notifying backend
                format!("A {} {:?}", reader.text(), reader.text())
            }
            'G' | 'H' | 'W' => {
                let overall = reader.number(1);
                let columns = reader.number(2);
                format!("{tag} format={overall} columns={columns} rest={:?}", reader.0)
            }
            't' => {
                let count = reader.number(2);
                let types: Vec<i64> = (0..count).map(|_| reader.number(4)).collect();
                format!("t {types:?}")
            }
            'd' | 'V' => format!("{tag} {}", shown(Some(&self.body))),
            _ => format!("{tag} {}", String::from_utf8_lossy(&self.body)),
        }
    }

    fn describe_columns(&self) -> String {
        let mut reader = Reader(&self.body);
        let count = reader.number(2);
        let mut line = format!("T {count}:");
        for _ in 0..count {
            let name = reader.text();
            let table = if reader.number(4) == 0 { "" } else { "table." };
            let (column, kind, length) = (reader.number(2), reader.number(4), reader.number(2));
            let (modifier, format) = (reader.number(4), reader.number(2));
            let _ = write!(line, " {table}{name}#{column}:{kind}/{length}/{modifier}/{format}");
        }
        line
    }
}

fn shown(value: Option<&[u8]>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some(bytes) if bytes.len() <= SHOWN_MAX => String::from_utf8_lossy(bytes).into_owned(),
        Some(bytes) => {
            let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("<{} bytes, sum {sum:016x}>", bytes.len())
        }
    }
}

/// A typed message: tag, length, body.
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend(u32::try_from(body.len() + 4).expect("a test message is small").to_be_bytes());
    out.extend(body);
    out
}

/// A message without a tag, as before the login.
pub fn untagged(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).expect("a test message is small");
    [length.to_be_bytes().as_slice(), &code.to_be_bytes(), body].concat()
}

fn strings(parts: &[&str]) -> Vec<u8> {
    parts.iter().flat_map(|part| [part.as_bytes(), &[0]].concat()).collect()
}

/// A startup packet with these parameters.
pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body: Vec<u8> = parameters.iter().flat_map(|(name, value)| strings(&[name, value])).collect();
    body.push(0);
    untagged(version, &body)
}

/// `CancelRequest`.
pub fn cancel(pid: u32, secret: &[u8]) -> Vec<u8> {
    untagged(CANCEL_REQUEST, &[pid.to_be_bytes().as_slice(), secret].concat())
}

/// `Query`.
pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &strings(&[sql]))
}

/// `Parse` without declared types.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', &[strings(&[name, sql]).as_slice(), &[0, 0]].concat())
}

/// `Bind` with text parameters and text results.
pub fn bind(portal: &str, statement: &str, values: &[Option<&[u8]>]) -> Vec<u8> {
    bind_formats(portal, statement, &[], values, &[])
}

/// `Bind` with format codes of parameters and results.
pub fn bind_formats(
    portal: &str,
    statement: &str,
    formats: &[u16],
    values: &[Option<&[u8]>],
    results: &[u16],
) -> Vec<u8> {
    let count = |length: usize| u16::try_from(length).expect("few values").to_be_bytes();
    let mut body = strings(&[portal, statement]);
    body.extend(count(formats.len()));
    body.extend(formats.iter().flat_map(|code| code.to_be_bytes()));
    body.extend(count(values.len()));
    for value in values {
        match value {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(bytes) => {
                body.extend(u32::try_from(bytes.len()).expect("a test value is small").to_be_bytes());
                body.extend(*bytes);
            }
        }
    }
    body.extend(count(results.len()));
    body.extend(results.iter().flat_map(|code| code.to_be_bytes()));
    frame(b'B', &body)
}

/// `Describe` of a statement.
pub fn describe_statement(name: &str) -> Vec<u8> {
    frame(b'D', &strings(&[&format!("S{name}")]))
}

/// `Describe` of a portal.
pub fn describe_portal(name: &str) -> Vec<u8> {
    frame(b'D', &strings(&[&format!("P{name}")]))
}

/// `Execute`; 0 rows means all.
pub fn execute(portal: &str, rows_max: u32) -> Vec<u8> {
    frame(b'E', &[strings(&[portal]).as_slice(), &rows_max.to_be_bytes()].concat())
}

/// `Close` of a statement.
pub fn close_statement(name: &str) -> Vec<u8> {
    frame(b'C', &strings(&[&format!("S{name}")]))
}

/// `Close` of a portal.
pub fn close_portal(name: &str) -> Vec<u8> {
    frame(b'C', &strings(&[&format!("P{name}")]))
}

/// `Sync`.
pub fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

/// `Flush`.
pub fn flush() -> Vec<u8> {
    frame(b'H', &[])
}

/// `Terminate`.
pub fn terminate() -> Vec<u8> {
    frame(b'X', &[])
}

/// `CopyData`.
pub fn copy_data(bytes: &[u8]) -> Vec<u8> {
    frame(b'd', bytes)
}

/// `CopyDone`.
pub fn copy_done() -> Vec<u8> {
    frame(b'c', &[])
}

/// `CopyFail`.
pub fn copy_fail(why: &str) -> Vec<u8> {
    frame(b'f', &strings(&[why]))
}

/// `FunctionCall` with text arguments and a text result.
pub fn function_call(function: u32, values: &[&[u8]]) -> Vec<u8> {
    let count = u16::try_from(values.len()).expect("few values").to_be_bytes();
    let mut body = [function.to_be_bytes().as_slice(), &[0, 0], &count].concat();
    for value in values {
        body.extend(u32::try_from(value.len()).expect("a test value is small").to_be_bytes());
        body.extend(*value);
    }
    body.extend([0, 0]);
    frame(b'F', &body)
}

/// Several messages in one write.
pub fn batch(messages: &[Vec<u8>]) -> Vec<u8> {
    messages.concat()
}
