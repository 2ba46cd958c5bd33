//! A column, and the JSON values that fit it. Checked here once for every storage; how a value is bound is the storage's own
//! business.

use super::members::{Json, Kind};

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
    pub(super) const fn wanted(self) -> &'static str {
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

    pub(super) fn fits(self, value: Json<'_>) -> bool {
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
            // Values that are no JSON numbers go out as text, and are accepted as text.
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

/// The numbers that JSON cannot express.
const NO_NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// Whether the text has the shape of an ISO 8601 date, time, or both; or of a value that a database has beyond those:
/// infinity, and the years BC.
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
    /// The database computes it; it cannot be written.
    pub generated: bool,
    /// It is the database's own number of the row, and never holds anything else.
    pub rowid: bool,
    /// The database stores every number as text, so no value of the column is a number.
    pub never_number: bool,
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
