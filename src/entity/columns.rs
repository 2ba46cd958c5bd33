//! The columns of a table and the JSON values that fit them. Checked here once for every storage; how a value
//! is bound is the storage's own business.

use super::members::Kind;
use super::{Columns, EntityType, Json, Kept};

/// The kinds of column, as far as their JSON form differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// Whole numbers of 64 bits.
    Integer,
    /// Double precision.
    Real,
    /// Numbers of any precision.
    Numeric,
    /// Text.
    Text,
    /// True or false.
    Boolean,
    /// Any JSON.
    Json,
    /// Bytes, as `\x` and hexadecimal digits.
    Blob,
    /// A date or a time, ISO 8601.
    Timestamp,
    /// A JSON array.
    Array,
    /// No declared type: text, numbers and booleans.
    Any,
}

impl ColumnKind {
    const fn wanted(self) -> &'static str {
        match self {
            ColumnKind::Integer => "a whole number of 64 bits",
            ColumnKind::Real | ColumnKind::Numeric => "a number",
            ColumnKind::Text => "a string without NUL and without halves of surrogate pairs",
            ColumnKind::Boolean => "true or false",
            ColumnKind::Json => "JSON without NUL in its strings, nested at most 1000 levels deep",
            ColumnKind::Blob => "a string of `\\x` and pairs of hexadecimal digits",
            ColumnKind::Timestamp => "an ISO 8601 string such as 2026-01-15T10:30:00.123Z",
            ColumnKind::Array => "an array without NUL in its strings",
            ColumnKind::Any => "a string, a number or a boolean",
        }
    }

    fn fits(self, value: Json<'_>) -> bool {
        match (self, value.kind()) {
            (ColumnKind::Integer, Kind::Number(n)) => n.parse::<i64>().is_ok(),
            (ColumnKind::Real, Kind::Number(n)) => n.parse::<f64>().is_ok_and(f64::is_finite),
            (ColumnKind::Numeric, Kind::Number(_))
            | (ColumnKind::Boolean, Kind::Bool(_))
            | (ColumnKind::Any, Kind::Number(_) | Kind::Bool(_)) => true,
            (ColumnKind::Text | ColumnKind::Any, Kind::Text(s)) => !s.contains('\0'),
            (ColumnKind::Json, _) | (ColumnKind::Array, Kind::Array) => {
                !value.has_nul() && !value.is_too_deep()
            }
            (ColumnKind::Blob, Kind::Text(s)) => unhex(&s).is_some(),
            (ColumnKind::Timestamp, Kind::Text(s)) => is_timestamp(&s),
            // What JSON has no number for is given out as text, and taken back as that.
            (ColumnKind::Real | ColumnKind::Numeric, Kind::Text(s)) => NO_NUMBERS.contains(&&*s),
            _ => false,
        }
    }
}

/// The bytes that `\x` and hexadecimal digits stand for.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs
        .map(|pair| {
            let hex = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            Some(hex(pair[0])? << 4 | hex(pair[1])?)
        })
        .collect()
}

/// The numbers that JSON has not.
const NO_NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// Whether the text has the shape of an ISO 8601 date, time, or both; or of what a database has beyond those: no end
/// of time, and the years before our era.
fn is_timestamp(text: &str) -> bool {
    if matches!(text, "infinity" | "-infinity") {
        return true;
    }
    let text = text.strip_suffix(" BC").unwrap_or(text);
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    let (date, time) = match shape.split_once(['T', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None if shape.contains(':') => ("9999-99-99", Some(shape.as_str())),
        None => (shape.as_str(), None),
    };
    let time_fits = |time: &str| {
        let clock = time.trim_end_matches('Z');
        let clock = clock.find(['+', '-']).map_or(clock, |at| &clock[..at]);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "9"));
        (clock == "99:99" || clock == "99:99:99")
            && (1..=9).contains(&fraction.len())
            && fraction.bytes().all(|b| b == b'9')
    };
    // Years may have more than four digits.
    let date = date.strip_prefix("99").filter(|short| short.len() >= 10).unwrap_or(date);
    let date = date.strip_prefix('9').filter(|short| short.len() >= 10).unwrap_or(date);
    date == "9999-99-99" && time.is_none_or(time_fits) && text.len() <= 40
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name, in the database and in JSON.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
    /// A row must have a value for it.
    pub required: bool,
    /// The database fills it in when a new row has none.
    pub has_default: bool,
    /// The database computes it; nobody writes it.
    pub generated: bool,
    /// It is the database's own number of the row, and never holds anything else.
    pub rowid: bool,
    /// The database turns every number into text: none of its values is one.
    pub never_number: bool,
}

/// A column of a set that must be unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueColumn {
    /// Its name.
    pub name: String,
    /// The collation by which values are the same.
    pub collation: String,
}

/// A table's columns, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    /// The columns.
    pub columns: Vec<Column>,
    /// Which of them the server keeps.
    pub kept: Kept,
    /// The sets of columns in which no two rows may be equal, besides the text of the key; as far as a storage must know.
    pub unique: Vec<Vec<UniqueColumn>>,
    /// Columns that look as if the server should keep them, and why it does not; in words for the operator.
    pub left_alone: Vec<String>,
}

/// A request body did not fit the table; each names its column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// The table has no such column.
    #[error("there is no column `{0}`; the columns are {1}")]
    Unknown(String, String),
    /// The server keeps that column itself.
    #[error("`{0}` is kept by the server; leave it out (transaction and client ids go into headers)")]
    ReadOnly(String),
    /// The value does not fit.
    #[error("`{0}` must be {1}")]
    WrongType(String, String),
    /// The column must have a value.
    #[error("`{0}` must have a value")]
    Missing(String),
}

impl TableSchema {
    /// The schema of an entity type's table with these columns.
    ///
    /// # Errors
    /// When a column that the configuration names is missing or does not fit, in words.
    pub fn new(entity: &EntityType, mut columns: Vec<Column>) -> Result<TableSchema, String> {
        let (kept, left_alone) = Kept::find(&entity.kept, &entity.table, &columns)?;
        let ids = columns.iter_mut().find(|column| kept.transactions.as_ref() == Some(&column.name));
        if let Some(column) = ids {
            column.kind = ColumnKind::Json;
        }
        Ok(TableSchema { columns, kept, unique: Vec::new(), left_alone })
    }

    /// The column of this name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether the table has a column of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.column(name).is_some()
    }

    /// Checks the columns that a request sets; `whole` when they are to become a new row.
    ///
    /// # Errors
    /// For the first column that is unknown, kept by the server, of the wrong type or missing.
    pub fn check(&self, values: &Columns, whole: bool) -> Result<(), ColumnError> {
        for (name, value) in values.iter() {
            let Some(column) = self.column(name) else {
                let known: Vec<_> = self.columns.iter().map(|column| column.name.as_str()).collect();
                return Err(ColumnError::Unknown(printable(name), known.join(", ")));
            };
            if column.generated || self.kept.is_read_only(name) {
                return Err(ColumnError::ReadOnly(name.to_owned()));
            }
            if value.is_null() {
                if column.required {
                    return Err(ColumnError::Missing(name.to_owned()));
                }
            } else if !column.kind.fits(value) {
                return Err(ColumnError::WrongType(name.to_owned(), column.kind.wanted().into()));
            }
        }
        let filled = |column: &Column| {
            let name = column.name.as_str();
            !column.required
                || column.has_default
                || column.generated
                || values.has(name)
                || self.kept.is_filled_in(name)
        };
        match self.columns.iter().find(|column| whole && !filled(column)) {
            Some(missing) => Err(ColumnError::Missing(missing.name.clone())),
            None => Ok(()),
        }
    }
}

/// A client's own text, made fit to be repeated in a message.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_checked_against_their_columns() {
        let fits = |kind: ColumnKind, value: serde_json::Value| kind.fits(Json(&value.to_string()));
        assert!(fits(ColumnKind::Integer, json!(5)) && !fits(ColumnKind::Integer, json!(5.5)));
        assert!(fits(ColumnKind::Real, json!(5)) && !fits(ColumnKind::Real, json!("5")));
        assert!(fits(ColumnKind::Boolean, json!(true)) && !fits(ColumnKind::Boolean, json!(1)));
        assert!(fits(ColumnKind::Text, json!("a")) && !fits(ColumnKind::Text, json!("a\u{0}")));
        assert!(fits(ColumnKind::Blob, json!("\\x00fF")) && !fits(ColumnKind::Blob, json!("\\x0")));
        assert!(fits(ColumnKind::Json, json!({"a": [1]})) && !fits(ColumnKind::Json, json!(["\u{0}"])));
        for good in [
            "2026-01-15",
            "2026-01-15T10:30:00.123Z",
            "2026-01-15 10:30",
            "10:30:00",
            "2026-01-15T10:30:00+02:00",
            "infinity",
            "0044-03-15T10:00:00+00:00 BC",
            "12345-01-01",
            "294276-12-31T23:59:59+00:00",
        ] {
            assert!(fits(ColumnKind::Timestamp, json!(good)), "{good}");
        }
        for bad in ["", "yesterday", "2026-1-15", "2026-01-15T", "2026-01-15T10:30:00.x"] {
            assert!(!fits(ColumnKind::Timestamp, json!(bad)), "{bad}");
        }
    }
}
