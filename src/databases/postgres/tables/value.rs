//! From PostgreSQL's text form of a value to its one JSON form, the one `to_jsonb` gives. The replication protocol
//! sends text, and lists and rows are selected as text as well, so all three go through here and agree to the byte.

use std::sync::Arc;

use bourn_protocol::json::push_string;
use serde_json::value::RawValue;

use crate::feed::entity::{Columns, Json};

/// How deep arrays and composite values may nest before they are shown as the text they are.
const DEPTH_MAX: usize = 16;
/// Digits that an exponent may expand to; double precision needs some 330.
const EXPONENT_MAX: i32 = 400;

/// What kind of JSON a type's values become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Form {
    /// `t` and `f`.
    Bool,
    /// Whole numbers, floating point and numeric: in full digits.
    Number,
    /// JSON itself: without its white space.
    Json,
    /// A date and a time, with or without zone: ISO 8601 has a `T` between them.
    Timestamp,
    /// Values of this form with a space between them.
    Words(Arc<Form>),
    /// An hstore: keys with texts or nothing.
    Pairs,
    /// An array of such, its elements divided by this byte.
    Array(Arc<Form>, u8),
    /// A composite value with these fields.
    Record(Arc<[(String, Form)]>),
    /// Anything else: a string of its text.
    Text,
}

impl Form {
    /// Appends a value as JSON.
    pub(in super::super) fn push(&self, text: &str, out: &mut Vec<u8>) {
        self.push_at(text, out, 0);
    }

    /// The text that the database accepts for this value, where that is not the JSON it gives.
    pub(in super::super) fn input(&self, value: Json<'_>) -> Option<String> {
        self.input_at(value.text(), 0)
    }

    /// Whether values of this form, or values within them, are accepted in another form than they are given.
    fn differs(&self) -> bool {
        match self {
            Form::Words(_) | Form::Pairs => true,
            Form::Array(element, _) => element.differs(),
            Form::Record(fields) => fields.iter().any(|(_, form)| form.differs()),
            _ => false,
        }
    }

    fn input_at(&self, json: &str, depth: usize) -> Option<String> {
        if depth > DEPTH_MAX || !self.differs() {
            return None;
        }
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let plain = |json: &RawValue| {
            Json::of(json.get()).as_text().map_or_else(|| json.get().to_owned(), std::borrow::Cow::into_owned)
        };
        let string = |text: &str| {
            let mut json = Vec::new();
            push_string(&mut json, text);
            String::from_utf8(json).ok()
        };
        match (self, json.as_bytes().first()?) {
            (Form::Words(_), b'[') => {
                let words: Vec<&RawValue> = serde_json::from_str(json).ok()?;
                string(&words.into_iter().map(plain).collect::<Vec<_>>().join(" "))
            }
            (Form::Pairs, b'{') => {
                let pairs: Columns = serde_json::from_str(json).ok()?;
                let pair = |(key, value): (&str, Json<'_>)| match (value.is_null(), value.as_text()) {
                    (true, _) => format!("{}=>NULL", quoted(key)),
                    (_, Some(text)) => format!("{}=>{}", quoted(key), quoted(&text)),
                    (_, None) => format!("{}=>{}", quoted(key), quoted(value.text())),
                };
                string(&pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
            }
            (Form::Array(element, _), b'[') => {
                let values: Vec<&RawValue> = serde_json::from_str(json).ok()?;
                let taken = values.into_iter().map(|value| {
                    // An array within an array is another dimension of the same.
                    let nested = value.get().starts_with('[') && !matches!(**element, Form::Words(_));
                    let form = if nested { self } else { &**element };
                    form.input_at(value.get(), depth + 1).unwrap_or_else(|| value.get().to_owned())
                });
                Some(format!("[{}]", taken.collect::<Vec<_>>().join(",")))
            }
            (Form::Record(fields), b'{') => {
                let members: Columns = serde_json::from_str(json).ok()?;
                let taken = members.iter().map(|(name, value)| {
                    let form = fields.iter().find(|(field, _)| field == name).map(|(_, form)| form);
                    let taken = form.and_then(|form| form.input_at(value.text(), depth + 1));
                    let value = taken.unwrap_or_else(|| value.text().to_owned());
                    Some(format!("{}:{value}", string(name)?))
                });
                Some(format!("{{{}}}", taken.collect::<Option<Vec<_>>>()?.join(",")))
            }
            _ => None,
        }
    }

    fn push_at(&self, text: &str, out: &mut Vec<u8>, depth: usize) {
        let mark = out.len();
        let done = match self {
            Form::Bool => push_bool(text, out),
            Form::Number => push_number(text, out),
            Form::Json => push_compact(text, out),
            Form::Timestamp => push_timestamp(text, out),
            Form::Words(word) if depth < DEPTH_MAX => push_words(text, word, out, depth + 1),
            Form::Pairs => push_pairs(text, out),
            Form::Array(element, delimiter) if depth < DEPTH_MAX => {
                push_array(text, element, *delimiter, out, depth + 1)
            }
            Form::Record(fields) if depth < DEPTH_MAX => push_record(text, fields, out, depth + 1),
            _ => None,
        };
        if done.is_none() {
            out.truncate(mark);
            push_string(out, text);
        }
    }
}

fn push_bool(text: &str, out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(match text {
        "t" | "true" => b"true",
        "f" | "false" => b"false",
        _ => return None,
    });
    Some(())
}

/// A number in full digits. A value that is no number (`NaN`, `Infinity`) is left to become a string.
fn push_number(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text),
    };
    if !is_number(digits) {
        return None;
    }
    if digits == "0" {
        // Double precision has a negative zero, which JSON numbers need not keep.
        out.push(b'0');
        return Some(());
    }
    out.extend_from_slice(sign.as_bytes());
    let Some((mantissa, exponent)) = digits.split_once(['e', 'E']) else {
        out.extend_from_slice(digits.as_bytes());
        return Some(());
    };
    let exponent: i32 = exponent.parse().ok().filter(|e: &i32| e.abs() <= EXPONENT_MAX)?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole.as_bytes(), fraction.as_bytes()].concat();
    let point = i32::try_from(whole.len()).ok()? + exponent;
    match usize::try_from(point) {
        Ok(point) if point > 0 => {
            out.extend(all.iter().take(point));
            out.extend(std::iter::repeat_n(b'0', point.saturating_sub(all.len())));
            if point < all.len() {
                out.push(b'.');
                out.extend_from_slice(&all[point..]);
            }
        }
        _ => {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', usize::try_from(-point).ok()?));
            out.extend_from_slice(&all);
        }
    }
    Some(())
}

/// Whether these are the digits of a number, without its sign: `12`, `1.50`, `1.5e-07`.
fn is_number(text: &str) -> bool {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    digits(whole) && digits(fraction) && digits(exponent) && (whole == "0" || !whole.starts_with('0'))
}

/// `1 2 3`.
fn push_words(text: &str, word: &Form, out: &mut Vec<u8>, depth: usize) -> Option<()> {
    out.push(b'[');
    for (i, piece) in text.split_ascii_whitespace().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        word.push_at(piece, out, depth);
    }
    out.push(b']');
    Some(())
}

/// `"a"=>"1", "b"=>NULL`.
fn push_pairs(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    out.push(b'{');
    while scanner.peek().is_some() {
        if scanner.at > 0 {
            scanner.expect(b',')?;
            scanner.expect(b' ')?;
            out.push(b',');
        }
        push_string(out, &scanner.quoted()?);
        out.push(b':');
        scanner.expect(b'=')?;
        scanner.expect(b'>')?;
        match scanner.peek()? {
            b'"' => push_string(out, &scanner.quoted()?),
            _ => {
                for &byte in b"NULL" {
                    scanner.expect(byte)?;
                }
                out.extend_from_slice(b"null");
            }
        }
    }
    out.push(b'}');
    Some(())
}

/// JSON without white space between its tokens: a line break would end a line of an event stream.
fn push_compact(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        let end = match byte {
            b' ' | b'\n' | b'\r' | b'\t' => {
                at += 1;
                continue;
            }
            b'"' => string_end(bytes, at)?,
            _ => at + 1,
        };
        out.extend_from_slice(&bytes[at..end]);
        at = end;
    }
    Some(())
}

/// Where the JSON string that begins here ends.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// `2026-01-15 10:30:00.123+00` as `2026-01-15T10:30:00.123+00:00`. Infinity stays as it is.
fn push_timestamp(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let (date, rest) = text.split_once(' ')?;
    if !date.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (clock, era) = rest.split_once(' ').map_or((rest, None), |(clock, era)| (clock, Some(era)));
    let zone = clock.rfind(['+', '-']).map(|at| &clock[at..]);
    let minutes = if zone.is_some_and(|zone| zone.len() == 3) { ":00" } else { "" };
    let era = era.map(|era| format!(" {era}")).unwrap_or_default();
    push_string(out, &format!("{date}T{clock}{minutes}{era}"));
    Some(())
}

/// `{1,NULL,"a b"}`, of any number of dimensions, with or without its bounds before it.
fn push_array(text: &str, element: &Form, delimiter: u8, out: &mut Vec<u8>, depth: usize) -> Option<()> {
    let text = match text.starts_with('[') {
        true => text.split_once('=')?.1,
        false => text,
    };
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    push_dimension(&mut scanner, element, delimiter, out, depth)?;
    (scanner.at == text.len()).then_some(())
}

fn push_dimension(
    scanner: &mut Scanner<'_>,
    element: &Form,
    delimiter: u8,
    out: &mut Vec<u8>,
    depth: usize,
) -> Option<()> {
    scanner.expect(b'{')?;
    out.push(b'[');
    if scanner.peek()? == b'}' {
        scanner.at += 1;
        out.push(b']');
        return Some(());
    }
    loop {
        match scanner.peek()? {
            b'{' if depth < DEPTH_MAX => push_dimension(scanner, element, delimiter, out, depth + 1)?,
            b'"' => element.push_at(&scanner.quoted()?, out, depth),
            _ => match scanner.bare(&[delimiter, b'}'])?.as_str() {
                "NULL" => out.extend_from_slice(b"null"),
                bare => element.push_at(bare, out, depth),
            },
        }
        match scanner.next()? {
            b'}' => break,
            byte if byte == delimiter => out.push(b','),
            _ => return None,
        }
    }
    out.push(b']');
    Some(())
}

/// `(1,"a b",)`: nothing between two commas is null.
fn push_record(text: &str, fields: &[(String, Form)], out: &mut Vec<u8>, depth: usize) -> Option<()> {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    scanner.expect(b'(')?;
    out.push(b'{');
    for (i, (name, form)) in fields.iter().enumerate() {
        if i > 0 {
            scanner.expect(b',')?;
            out.push(b',');
        }
        push_string(out, name);
        out.push(b':');
        match scanner.peek()? {
            b',' | b')' => out.extend_from_slice(b"null"),
            b'"' => form.push_at(&scanner.quoted()?, out, depth),
            _ => form.push_at(&scanner.bare(b",)")?, out, depth),
        }
    }
    scanner.expect(b')')?;
    out.push(b'}');
    (scanner.at == text.len()).then_some(())
}

/// Reads the pieces of arrays and composite values.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    /// A piece in quotes; inside, a backslash or a second quote takes the next byte as it is.
    fn quoted(&mut self) -> Option<String> {
        self.expect(b'"')?;
        let mut piece = Vec::new();
        loop {
            match self.next()? {
                b'\\' => piece.push(self.next()?),
                b'"' if self.peek() == Some(b'"') => {
                    self.at += 1;
                    piece.push(b'"');
                }
                b'"' => return String::from_utf8(piece).ok(),
                byte => piece.push(byte),
            }
        }
    }

    fn bare(&mut self, ends: &[u8]) -> Option<String> {
        let start = self.at;
        while !ends.contains(&self.peek()?) {
            self.at += 1;
        }
        std::str::from_utf8(&self.bytes[start..self.at]).ok().map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(form: &Form, text: &str) -> String {
        let mut out = Vec::new();
        form.push(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_have_full_digits() {
        for (text, expected) in [
            ("1.50", "1.50"),
            ("-0", "0"),
            ("12345678901234567890.123456789", "12345678901234567890.123456789"),
            ("1e+20", "100000000000000000000"),
            ("1.5e-07", "0.00000015"),
            ("-2.25e+01", "-22.5"),
            ("1.5e+01", "15"),
            ("NaN", "\"NaN\""),
            ("-Infinity", "\"-Infinity\""),
            // Text where a number was: the column has another type by now.
            ("7 of 2", "\"7 of 2\""),
            ("007", "\"007\""),
            ("1.", "\"1.\""),
        ] {
            assert_eq!(json(&Form::Number, text), expected);
        }
    }

    #[test]
    fn times_are_iso_8601() {
        for (text, expected) in [
            ("2026-01-15 10:30:00", "\"2026-01-15T10:30:00\""),
            ("2026-01-15 10:30:00.123+00", "\"2026-01-15T10:30:00.123+00:00\""),
            ("2026-01-15 10:30:00-05:30", "\"2026-01-15T10:30:00-05:30\""),
            ("0044-03-15 10:00:00+00 BC", "\"0044-03-15T10:00:00+00:00 BC\""),
            ("infinity", "\"infinity\""),
        ] {
            assert_eq!(json(&Form::Timestamp, text), expected);
        }
    }

    #[test]
    fn arrays_and_composite_values_nest() {
        let numbers = Form::Array(Form::Number.into(), b',');
        assert_eq!(json(&numbers, "{}"), "[]");
        assert_eq!(json(&numbers, "{1,NULL,3}"), "[1,null,3]");
        assert_eq!(json(&numbers, "{{1,2},{3,4}}"), "[[1,2],[3,4]]");
        assert_eq!(json(&numbers, "[0:1]={1,2}"), "[1,2]");
        let texts = Form::Array(Form::Text.into(), b',');
        assert_eq!(json(&texts, r#"{a,"b \"c\" \\d","NULL",""}"#), r#"["a","b \"c\" \\d","NULL",""]"#);
        let record = Form::Record([("n".to_owned(), Form::Number), ("t".to_owned(), texts)].into());
        assert_eq!(json(&record, r#"(1,"{a,""b c""}")"#), r#"{"n":1,"t":["a","b c"]}"#);
        assert_eq!(json(&record, "(,)"), r#"{"n":null,"t":null}"#);
        assert_eq!(json(&numbers, "{1,2"), r#""{1,2""#, "what cannot be read is shown as it is");
    }

    #[test]
    fn vectors_are_arrays_and_an_hstore_is_an_object() {
        assert_eq!(json(&Form::Words(Form::Number.into()), "1 2 3"), "[1,2,3]");
        assert_eq!(json(&Form::Words(Form::Text.into()), ""), "[]");
        assert_eq!(json(&Form::Pairs, ""), "{}");
        assert_eq!(
            json(&Form::Pairs, r#""a"=>"1", "b \"c\""=>NULL, "d"=>"""#),
            r#"{"a":"1","b \"c\"":null,"d":""}"#
        );
        assert_eq!(json(&Form::Pairs, "a=>1"), r#""a=>1""#, "what cannot be read is shown as it is");
    }

    #[test]
    fn json_loses_its_white_space_and_nothing_else() {
        assert_eq!(
            json(&Form::Json, "{\"a b\" : [1, 2.50],\n \"c\\\" \": null}"),
            r#"{"a b":[1,2.50],"c\" ":null}"#
        );
    }

    proptest! {
        #[test]
        fn whatever_the_text_the_outcome_is_json(text in any::<String>(), which in 0_usize..9) {
            // JSON columns hold JSON, so that form is not among these.
            let form = [
                Form::Bool,
                Form::Timestamp,
                Form::Array(Form::Text.into(), b','),
                Form::Array(Form::Array(Form::Bool.into(), b',').into(), b','),
                Form::Record([("a".to_owned(), Form::Text), ("b".to_owned(), Form::Text)].into()),
                Form::Text,
                Form::Number,
                Form::Words(Form::Number.into()),
                Form::Pairs,
            ][which].clone();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json(&form, &text)).is_ok());
        }

        #[test]
        fn any_double_reads_back(number in any::<f64>().prop_filter("finite", |n| n.is_finite())) {
            let written = json(&Form::Number, &format!("{number:e}"));
            prop_assert_eq!(written.parse::<f64>().unwrap(), number);
        }
    }
}
