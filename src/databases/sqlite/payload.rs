//! How the log keeps a row. Triggers run in whatever SQLite the writer's process has: its JSON functions may be missing
//! or forbidden to triggers, and it may print numbers in its own way. So a trigger writes values as they are, each in a
//! frame of its own between the names of the columns, and the server makes the JSON: the same for a list and for the
//! log, whichever process wrote. A frame begins with a byte that JSON does not have, and records the type of the value:
//! an undo restores that value, and not what JSON shows of it.
//!
//! | frame | value |
//! |---|---|
//! | `t` length `:` bytes | text |
//! | `d` length `:` bytes | text in a column of times |
//! | `j` length `:` bytes | text in a column of JSON |
//! | `r` n `:` integer `;` | floating point: the integer, divided by 2 to the power of n |
//! | `b` hexadecimal digits `;` | bytes |
//!
//! Whole numbers, truth values and nulls stand as in JSON; and what an older version wrote is JSON throughout.

use std::borrow::Cow;

use bourn_protocol::json::push_string;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, Row};

use super::sql::{bytes, field, literal};
use crate::feed::entity::{Column, ColumnKind, Columns, Json, Kind, TableSchema, unhex};

const MARK: u8 = 1;
/// The power that stands for infinity.
const INFINITE: i64 = 9_999;
/// Digits that a number has before its exponent is written, at least.
const DIGITS_MIN: usize = 15;

/// The row as the log keeps it, as an SQL expression. `alias` is `NEW`, `OLD` or a table's alias.
pub(super) fn row(schema: &TableSchema, alias: &str) -> String {
    let mut separator = "{";
    let mut parts = Vec::new();
    for column in &schema.columns {
        let name = serde_json::Value::String(column.name.clone()).to_string();
        parts.push(format!("{}||{}", literal(&format!("{separator}{name}:")), value(column, alias)));
        separator = ",";
    }
    // Grouped, because SQLite bounds the depth of an expression and a chain of `||` is as deep as it is long.
    let groups: Vec<String> = parts.chunks(20).map(|group| format!("({})", group.join("||"))).collect();
    format!("{}||'}}'", groups.join("\n||"))
}

/// One column's value. SQLite types values, not columns, so every type can turn up anywhere.
fn value(column: &Column, alias: &str) -> String {
    let x = field(alias, &column.name);
    if column.rowid {
        return x;
    }
    let frame = match column.kind {
        ColumnKind::Json => 'j',
        ColumnKind::Timestamp => 'd',
        _ => 't',
    };
    let text = format!("WHEN 'text' THEN char(1)||'{frame}'||length(CAST({x} AS BLOB))||':'||{x}");
    let blob = format!("WHEN 'blob' THEN char(1)||'b'||hex({x})||';'");
    if column.never_number {
        return format!("CASE typeof({x}) {text} {blob} ELSE 'null' END");
    }
    let integer = match column.kind {
        ColumnKind::Boolean => format!("CASE {x} WHEN 1 THEN 'true' WHEN 0 THEN 'false' ELSE {x} END"),
        _ => x.clone(),
    };
    format!(
        "CASE typeof({x}) WHEN 'null' THEN 'null' {text} WHEN 'integer' THEN {integer} {blob} ELSE char(1)||'r'||\
         (SELECT n||':'||CAST({x}*p*q AS INTEGER) FROM bourn_scale WHERE least<=abs({x}) ORDER BY least DESC LIMIT 1)||';' END"
    )
}

/// Makes the rows of the table of powers as they must be: a database that was restored from SQL text may have others.
pub(super) fn mend_scale(connection: &Connection) -> rusqlite::Result<()> {
    let power = |exponent: i32| 2_f64.powi(exponent);
    let expected = (-108..=102).map(|j| {
        let k = 10 * j;
        let first = (50 - k).min(1_000);
        // Below the smallest power lies zero.
        let least = if k < -1_074 { 0.0 } else { tiny_power(k) };
        (least, i64::from(52 - k), 4.0 * power(first), power(50 - k - first))
    });
    let mut expected: Vec<(f64, i64, f64, f64)> = expected.collect();
    expected.push((f64::INFINITY, INFINITE, 1.0, 1.0));
    let found: Vec<(f64, i64, f64, f64)> = connection
        .prepare("SELECT least, n, p, q FROM bourn_scale ORDER BY least")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    if found == expected {
        return Ok(());
    }
    connection.execute_batch("SAVEPOINT scale; DELETE FROM bourn_scale")?;
    for (least, n, p, q) in expected {
        connection
            .prepare_cached("INSERT INTO bourn_scale (least, n, p, q) VALUES (?1, ?2, ?3, ?4)")?
            .execute(rusqlite::params![least, n, p, q])?;
    }
    connection.execute_batch("RELEASE scale")
}

/// A power of two that may be subnormal.
fn tiny_power(exponent: i32) -> f64 {
    let first = exponent.max(-1_000);
    2_f64.powi(first) * 2_f64.powi(exponent - first)
}

/// A value as the database holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoredValue {
    Text(Vec<u8>),
    /// The bits of a number: any two numbers whose bits differ are two values.
    Real(u64),
    Blob(Vec<u8>),
    /// The value as JSON shows it.
    Json(String),
}

impl StoredValue {
    /// The value as a parameter, and the expression that takes it.
    pub(super) fn bind(&self, column: &Column) -> (&'static str, Sql) {
        match self {
            StoredValue::Text(bytes) => match String::from_utf8(bytes.clone()) {
                Ok(text) => ("?", Sql::Text(text)),
                Err(broken) => ("CAST(? AS TEXT)", Sql::Blob(broken.into_bytes())),
            },
            StoredValue::Real(bits) => ("?", Sql::Real(f64::from_bits(*bits))),
            StoredValue::Blob(bytes) => ("?", Sql::Blob(bytes.clone())),
            StoredValue::Json(json) => ("?", bind(column, Json::of(json))),
        }
    }
}

/// One frame, and where it ends.
struct Frame<'a> {
    kind: u8,
    content: &'a [u8],
    end: usize,
}

impl<'a> Frame<'a> {
    /// The frame that begins at this mark.
    fn at(payload: &'a [u8], mark: usize) -> Option<Frame<'a>> {
        let kind = *payload.get(mark + 1)?;
        let rest = &payload[mark + 2..];
        match kind {
            b'r' | b'b' => {
                let length = rest.iter().position(|&byte| byte == b';')?;
                Some(Frame { kind, content: &rest[..length], end: mark + 2 + length + 1 })
            }
            b't' | b'd' | b'j' => {
                let digits = rest.iter().position(|&byte| byte == b':')?;
                let length: usize = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
                let start = digits + 1;
                let content = rest.get(start..start.checked_add(length)?)?;
                Some(Frame { kind, content, end: mark + 2 + start + length })
            }
            _ => None,
        }
    }

    fn push_json(&self, out: &mut Vec<u8>) {
        let text = || String::from_utf8_lossy(self.content);
        match self.kind {
            b'r' => push_real(real(self.content), out),
            b'b' => {
                out.extend_from_slice(b"\"\\\\x");
                out.extend(self.content.iter().map(u8::to_ascii_lowercase));
                out.push(b'"');
            }
            b'd' => push_string(out, &iso(text())),
            b'j' => push_json(&text(), out),
            _ => push_string(out, &text()),
        }
    }

    fn held(&self) -> Option<StoredValue> {
        Some(match self.kind {
            b'r' => StoredValue::Real(real(self.content).to_bits()),
            b'b' => StoredValue::Blob(unhex(&format!("\\x{}", std::str::from_utf8(self.content).ok()?))?),
            _ => StoredValue::Text(self.content.to_vec()),
        })
    }
}

/// Passes on the pieces of a payload: plain text, and frames.
fn pieces<'a>(payload: &'a [u8], mut plain: impl FnMut(&'a [u8]), mut frame: impl FnMut(&Frame<'a>)) {
    let mut rest = 0;
    while let Some(at) = payload[rest..].iter().position(|&byte| byte == MARK) {
        plain(&payload[rest..rest + at]);
        rest += at;
        match Frame::at(payload, rest) {
            Some(found) => {
                frame(&found);
                rest = found.end;
            }
            // A trigger of ours did not write it.
            None => rest += 1,
        }
    }
    plain(&payload[rest..]);
}

/// The payload as the JSON that is sent.
pub(super) fn json(payload: &[u8]) -> Cow<'_, str> {
    if !payload.contains(&MARK) {
        return String::from_utf8_lossy(payload);
    }
    let out = std::cell::RefCell::new(Vec::with_capacity(payload.len() + payload.len() / 8));
    pieces(
        payload,
        |plain| out.borrow_mut().extend_from_slice(plain),
        |frame| frame.push_json(&mut out.borrow_mut()),
    );
    match String::from_utf8(out.into_inner()) {
        Ok(json) => json.into(),
        Err(broken) => String::from_utf8_lossy(broken.as_bytes()).into_owned().into(),
    }
}

/// The values of the row as the database held them, by column.
pub(super) fn held(payload: &[u8]) -> Option<Vec<(String, StoredValue)>> {
    let (skeleton, frames) = (std::cell::RefCell::new(Vec::new()), std::cell::RefCell::new(Vec::new()));
    // Each frame is replaced by its number in brackets: values outside frames are never arrays.
    pieces(
        payload,
        |plain| skeleton.borrow_mut().extend_from_slice(plain),
        |frame| {
            let mut frames = frames.borrow_mut();
            skeleton.borrow_mut().extend_from_slice(format!("[{}]", frames.len()).as_bytes());
            frames.push(frame.held());
        },
    );
    let frames = frames.into_inner();
    let columns = Columns::parse(&skeleton.into_inner()).ok()?;
    let value = |json: Json<'_>| match json.text().strip_prefix('[').filter(|_| !frames.is_empty()) {
        Some(number) => frames.get(number.strip_suffix(']')?.parse::<usize>().ok()?)?.clone(),
        None => Some(StoredValue::Json(json.text().to_owned())),
    };
    columns.iter().map(|(name, json)| Some((name.to_owned(), value(json)?))).collect()
}

/// JSON without the white space between its tokens; text that is not JSON as a string.
fn push_json(text: &str, out: &mut Vec<u8>) {
    let trimmed = text.trim_matches([' ', '\n', '\r', '\t']);
    let value = Json::of(trimmed);
    let valid = serde_json::from_str::<&serde_json::value::RawValue>(trimmed).is_ok();
    match valid && !value.is_too_deep() {
        true => value.push_compact(out),
        false => push_string(out, text),
    }
}

/// ISO 8601 has a `T` between a date and a time.
fn iso(text: Cow<'_, str>) -> Cow<'_, str> {
    let shape = b"9999-99-99 9";
    let bytes = text.as_bytes();
    let fits =
        |(&byte, &wanted): (&u8, &u8)| if wanted == b'9' { byte.is_ascii_digit() } else { byte == wanted };
    match bytes.len() >= shape.len() && bytes.iter().zip(shape).all(fits) {
        true => format!("{}T{}", &text[..10], &text[11..]).into(),
        false => text,
    }
}

/// The number of a frame.
fn real(content: &[u8]) -> f64 {
    let parts = || -> Option<(i64, i64)> {
        let (n, whole) = std::str::from_utf8(content).ok()?.split_once(':')?;
        Some((n.parse().ok()?, whole.parse().ok()?))
    };
    match parts() {
        Some((INFINITE, sign)) if sign < 0 => f64::NEG_INFINITY,
        Some((INFINITE, _)) => f64::INFINITY,
        Some((n, whole)) => {
            let exponent = i32::try_from(-n).unwrap_or_default().clamp(-2_000, 2_000);
            let first = exponent.clamp(-1_000, 1_000);
            // Exact: the integer has no more digits than the floating point number that it was made of.
            #[allow(clippy::cast_precision_loss, reason = "see above")]
            let whole = whole as f64;
            whole * 2_f64.powi(first) * 2_f64.powi(exponent - first)
        }
        None => 0.0,
    }
}

/// A number in the fewest digits that give it back, laid out as SQLite lays numbers out. JSON has no infinite ones.
fn push_real(number: f64, out: &mut Vec<u8>) {
    if number.is_infinite() {
        let text: &[u8] = if number > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" };
        return out.extend_from_slice(text);
    }
    let shortest = format!("{:e}", number.abs());
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number < 0.0 {
        out.push(b'-');
    }
    let fraction = |digits: &str| if digits.is_empty() { "0".to_owned() } else { digits.to_owned() };
    let text = match usize::try_from(exponent) {
        Ok(point) if point < digits.len().max(DIGITS_MIN) => {
            let whole = format!("{digits:0<width$}", width = point + 1);
            format!("{}.{}", &whole[..=point], fraction(&whole[point + 1..]))
        }
        Err(_) if exponent >= -4 => {
            let zeros = "0".repeat(usize::try_from(-exponent - 1).unwrap_or(0));
            format!("0.{zeros}{digits}")
        }
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}.{}e{sign}{:02}", &digits[..1], fraction(&digits[1..]), exponent.abs())
        }
    };
    out.extend_from_slice(text.as_bytes());
}

/// A row that was selected by [`row`], or that the log has, as JSON.
pub(super) fn row_json(row: &Row<'_>, i: usize) -> rusqlite::Result<Option<String>> {
    Ok(bytes(row, i)?.map(|payload| json(payload).into_owned()))
}

/// A JSON value as the column stores it. A request's values were checked against their columns before; a value from
/// another writer's row may be of any type, and keeps it.
pub(super) fn bind(column: &Column, value: Json<'_>) -> Sql {
    let number = |text: &str| match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(integer), _) if column.kind != ColumnKind::Real => Sql::Integer(integer),
        (_, Ok(real)) => Sql::Real(real),
        (Ok(integer), Err(_)) => Sql::Integer(integer),
        (Err(_), Err(_)) => Sql::Text(text.to_owned()),
    };
    match (column.kind, value.kind()) {
        (_, Kind::Null) => Sql::Null,
        (ColumnKind::Json, _) => Sql::Text(value.text().to_owned()),
        (_, Kind::Bool(truth)) => Sql::Integer(i64::from(truth)),
        (_, Kind::Number(text)) => number(text),
        (ColumnKind::Real | ColumnKind::Numeric, Kind::Text(s)) if s == "Infinity" => {
            Sql::Real(f64::INFINITY)
        }
        (ColumnKind::Real | ColumnKind::Numeric, Kind::Text(s)) if s == "-Infinity" => {
            Sql::Real(f64::NEG_INFINITY)
        }
        (ColumnKind::Blob, Kind::Text(s)) => unhex(&s).map_or_else(|| Sql::Text(s.into_owned()), Sql::Blob),
        (_, Kind::Text(s)) => Sql::Text(s.into_owned()),
        (_, Kind::Array | Kind::Object | Kind::BrokenText) => Sql::Text(value.text().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn real_json(number: f64) -> String {
        let mut out = Vec::new();
        push_real(number, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_laid_out_as_sqlite_lays_them_out() {
        for (number, text) in [
            (0.1, "0.1"),
            (-5.0, "-5.0"),
            (0.0, "0.0"),
            (1e-5, "1.0e-05"),
            (0.00012, "0.00012"),
            (1e14, "100000000000000.0"),
            (1e15, "1.0e+15"),
            (1234567890123456.0, "1234567890123456.0"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (5e-324, "5.0e-324"),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ] {
            assert_eq!(real_json(number), text);
        }
    }

    /// What a trigger's expression makes of any number, including infinity and the smallest ones.
    #[test]
    fn triggers_write_every_number_exactly() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../migrations/sqlite/0006_scale.sql")).unwrap();
        let column = |name: &str| Column {
            name: name.into(),
            kind: ColumnKind::Any,
            required: false,
            has_default: false,
            generated: false,
            rowid: false,
            never_number: false,
        };
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let schema = TableSchema {
            columns: vec![column("x")],
            kept: crate::feed::entity::KeptColumnNames::default(),
            unique: Vec::new(),
            left_alone: Vec::new(),
        };
        let insert = |number: f64| {
            connection.execute("INSERT INTO t VALUES (?1)", [number]).unwrap();
            number
        };
        let edges = [
            0.0,
            1.0,
            5e-324,
            f64::MIN_POSITIVE,
            f64::MAX,
            f64::MIN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e300,
            0.1,
        ];
        let mut seed = 88_172_645_463_325_252_u64;
        let random = std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            f64::from_bits(seed)
        });
        let powers = (-1_074..1_024).flat_map(|k| [tiny_power(k), tiny_power(k) * 1.5]);
        let random = random.filter(|number| !number.is_nan()).take(20_000);
        connection.execute_batch("BEGIN").unwrap();
        let numbers: Vec<f64> = edges.into_iter().chain(powers).chain(random).map(insert).collect();
        let compare = || {
            let mut select =
                connection.prepare(&format!("SELECT {} FROM t ORDER BY rowid", row(&schema, "t"))).unwrap();
            let payloads: Vec<String> =
                select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
            numbers.iter().zip(&payloads).all(|(number, payload)| {
                held(payload.as_bytes()).unwrap()[0].1 == StoredValue::Real(number.to_bits())
            })
        };
        assert!(compare());
        // Powers that were changed by way of text are corrected.
        let changes =
            || connection.query_row("SELECT total_changes()", [], |row| row.get::<_, i64>(0)).unwrap();
        let before = changes();
        mend_scale(&connection).unwrap();
        assert_eq!(changes(), before, "they are right as they are made");
        connection.execute_batch("UPDATE bourn_scale SET p = p * 1.0000000000000002").unwrap();
        assert!(!compare());
        mend_scale(&connection).unwrap();
        assert!(compare());
    }

    #[test]
    fn what_a_frame_has_is_text_whatever_it_looks_like() {
        let payload = b"{\"a\":\x01t9:\"x\",\x01b:1\x00,\"b\":\x01j3: [],\"c\":\x01j2:no,\"d\":\x01d12:2026-01-02 3,\"e\":\x01b00FF;,\"f\":null,\"g\":-7,\"h\":\x01t1:\xff}";
        assert_eq!(
            json(payload),
            r#"{"a":"\"x\",\u0001b:1\u0000","b":[],"c":"no","d":"2026-01-02T3","e":"\\x00ff","f":null,"g":-7,"h":"�"}"#
        );
        let held: Vec<StoredValue> = held(payload).unwrap().into_iter().map(|(_, value)| value).collect();
        let text = |text: &[u8]| StoredValue::Text(text.to_vec());
        assert_eq!(
            held,
            [
                text(b"\"x\",\x01b:1\x00"),
                text(b" []"),
                text(b"no"),
                text(b"2026-01-02 3"),
                StoredValue::Blob(vec![0, 255]),
                StoredValue::Json("null".into()),
                StoredValue::Json("-7".into()),
                text(b"\xff"),
            ]
        );
    }

    #[test]
    fn what_an_older_version_wrote_is_json() {
        let old = br#"{"a":"x","b":[1]}"#;
        assert_eq!(json(old), std::str::from_utf8(old).unwrap());
        assert_eq!(held(old).unwrap()[1], ("b".into(), StoredValue::Json("[1]".into())));
    }

    proptest! {
        #[test]
        fn any_double_reads_back_in_its_fewest_digits(bits in any::<u64>()) {
            let number = f64::from_bits(bits);
            prop_assume!(number.is_finite());
            let text = real_json(number);
            prop_assert_eq!(text.parse::<f64>().unwrap(), number);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            let digits = |text: &str| {
                let mantissa = text.trim_start_matches('-').split('e').next().unwrap_or_default().replace('.', "");
                mantissa.trim_matches('0').len()
            };
            let shortest = format!("{number:e}");
            prop_assert_eq!(digits(&text), digits(&shortest));
        }

        #[test]
        fn whatever_the_bytes_the_outcome_is_text(payload in any::<Vec<u8>>()) {
            let _ = (json(&payload), held(&payload));
        }
    }
}
