//! Answers as rows of texts and numbers.
//!
//! Invariant: a row has as many values as its report has columns; a value fits its column's type.
//! Absent on purpose: any other type than text and integers, so that text and binary format are both
//! plain.

use crate::wire::{backend as tags, encode};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A 32-bit integer, as PgBouncer says it.
    Int4,
    /// A 64-bit integer.
    Int8,
}

impl Kind {
    /// Number of the type in `pg_type`, and its size (-1: varies).
    fn wire(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
        }
    }
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
}

/// A column of texts.
pub const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

/// A column of 32-bit integers.
pub const fn int4(name: &'static str) -> Column {
    Column { name, kind: Kind::Int4 }
}

/// A column of 64-bit integers.
pub const fn int8(name: &'static str) -> Column {
    Column { name, kind: Kind::Int8 }
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Not known, or not there.
    Null,
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::from(number as u64)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row.
pub type Row = Vec<Value>;

/// How a client wants a column (PostgreSQL docs, "Bind").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As text.
    #[default]
    Text,
    /// As the type's own bytes.
    Binary,
}

/// Formats of a portal's columns: none (all text), one for all, or one each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats(pub Vec<Format>);

impl Formats {
    fn of(&self, column: usize) -> Format {
        match self.0.as_slice() {
            [all] => *all,
            each => each.get(column).copied().unwrap_or_default(),
        }
    }
}

/// RowDescription.
pub fn describe(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) {
    encode::message(out, tags::ROW_DESCRIPTION, |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (index, column) in columns.iter().enumerate() {
            let (oid, size) = column.kind.wire();
            out.extend_from_slice(column.name.as_bytes());
            out.push(0);
            // No table, no column of one.
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(&(-1i32).to_be_bytes());
            out.extend_from_slice(&(formats.of(index) as u16).to_be_bytes());
        }
    });
}

/// DataRow.
pub fn row(out: &mut Vec<u8>, columns: &[Column], row: &Row, formats: &Formats) {
    debug_assert_eq!(columns.len(), row.len(), "{columns:?}");
    encode::message(out, tags::DATA_ROW, |out| {
        out.extend_from_slice(&(row.len() as u16).to_be_bytes());
        for (index, (column, value)) in columns.iter().zip(row).enumerate() {
            match bytes(column.kind, value, formats.of(index)) {
                Some(bytes) => {
                    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                    out.extend_from_slice(&bytes);
                }
                None => out.extend_from_slice(&(-1i32).to_be_bytes()),
            }
        }
    });
}

fn bytes(kind: Kind, value: &Value, format: Format) -> Option<Vec<u8>> {
    match (value, kind, format) {
        (Value::Null, ..) => None,
        (Value::Text(text), ..) => Some(text.replace('\0', " ").into_bytes()),
        (Value::Number(number), Kind::Int4, Format::Binary) => {
            Some(i32::try_from(*number).unwrap_or(i32::MAX).to_be_bytes().to_vec())
        }
        (Value::Number(number), Kind::Int8, Format::Binary) => Some(number.to_be_bytes().to_vec()),
        (Value::Number(number), ..) => Some(number.to_string().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_in_both_formats() {
        assert_eq!(bytes(Kind::Int8, &Value::Number(258), Format::Text).unwrap(), b"258");
        assert_eq!(bytes(Kind::Int8, &Value::Number(258), Format::Binary).unwrap(), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(bytes(Kind::Int4, &Value::Number(258), Format::Binary).unwrap(), [0, 0, 1, 2]);
        assert_eq!(bytes(Kind::Text, &Value::from("a\0b"), Format::Binary).unwrap(), b"a b");
        assert_eq!(bytes(Kind::Text, &Value::Null, Format::Text), None);
    }

    #[test]
    fn one_format_is_for_all_columns() {
        assert_eq!(Formats(vec![]).of(3), Format::Text);
        assert_eq!(Formats(vec![Format::Binary]).of(3), Format::Binary);
        assert_eq!(Formats(vec![Format::Binary, Format::Text]).of(1), Format::Text);
    }
}
