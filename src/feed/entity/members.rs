//! The columns that a request sets, or that a row had, each with its value as the JSON text that was given. They are
//! not parsed into a tree: a JSON column gets exactly what the client sent, with its order of keys, its numbers and its
//! escapes, and a body takes only the memory of its text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Most members of one object; no table has as many columns, and few values of type hstore as many keys.
const MEMBERS_MAX: usize = 20_000;
/// How deep arrays and objects may nest within a value. SQLite does not accept deeper JSON.
pub(super) const DEPTH_MAX: usize = 1_000;

/// The members of a JSON object, in their order, no name twice.
#[derive(Debug, Clone, Default)]
pub struct Columns(Vec<(String, Box<RawValue>)>);

impl Columns {
    /// Reads an object.
    ///
    /// # Errors
    /// When the text is not JSON, no object, or has a name twice.
    pub fn parse(json: &[u8]) -> Result<Columns, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The value of a column.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Json<'_>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| Json(value.get()))
    }

    /// Whether it has a value for the column, be it null.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Takes a column out.
    pub fn remove(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// Sets a column.
    pub fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Sets a column to a string, or to null.
    pub fn set_text(&mut self, name: &str, text: Option<&str>) {
        let mut json = Vec::new();
        match text {
            Some(text) => bourn_protocol::json::push_string(&mut json, text),
            None => json.extend_from_slice(b"null"),
        }
        if let Some(value) = String::from_utf8(json).ok().and_then(|json| RawValue::from_string(json).ok()) {
            self.set(name, value);
        }
    }

    /// Keeps the columns for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, Json<'_>) -> bool) {
        self.0.retain(|(name, value)| keep(name, Json(value.get())));
    }

    /// Every column with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Json<'_>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), Json(value.get())))
    }

    /// The same object in any order and with any white space between its tokens gives the same text.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut members: Vec<_> = self.iter().collect();
        members.sort_unstable_by_key(|(name, _)| *name);
        let mut text = Vec::new();
        for (i, (name, value)) in members.into_iter().enumerate() {
            text.push(if i == 0 { b'{' } else { b',' });
            bourn_protocol::json::push_string(&mut text, name);
            text.push(b':');
            value.push_compact(&mut text);
        }
        if text.is_empty() {
            text.push(b'{');
        }
        text.push(b'}');
        text
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Columns, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of columns and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if members.len() == MEMBERS_MAX {
                        return Err(A::Error::custom(format!("more than {MEMBERS_MAX} columns")));
                    }
                    members.push((name, value));
                }
                let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                    let name = printable(pair[0]);
                    return Err(A::Error::custom(format!("column `{name}` is given twice")));
                }
                Ok(Columns(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// The text of one JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(pub(super) &'a str);

/// What a JSON value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as it is written.
    Number(&'a str),
    /// A string, decoded.
    Text(Cow<'a, str>),
    /// A string with half of a surrogate pair: no text can hold it.
    BrokenText,
    /// An array.
    Array,
    /// An object.
    Object,
}

impl<'a> Json<'a> {
    /// The value of this text, which is JSON without white space around it.
    #[must_use]
    pub const fn of(text: &'a str) -> Json<'a> {
        Json(text)
    }

    /// The text, without the white space around it.
    #[must_use]
    pub fn text(self) -> &'a str {
        self.0
    }

    /// What the value is.
    #[must_use]
    pub fn kind(self) -> Kind<'a> {
        match self.0.as_bytes().first() {
            Some(b'n') => Kind::Null,
            Some(b't') => Kind::Bool(true),
            Some(b'f') => Kind::Bool(false),
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') if !self.0.contains('\\') => Kind::Text(Cow::Borrowed(&self.0[1..self.0.len() - 1])),
            Some(b'"') => match serde_json::from_str::<String>(self.0) {
                Ok(text) => Kind::Text(Cow::Owned(text)),
                Err(_) => Kind::BrokenText,
            },
            _ => Kind::Number(self.0),
        }
    }

    /// Whether it is null.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// The string that it is.
    #[must_use]
    pub fn as_text(self) -> Option<Cow<'a, str>> {
        match self.kind() {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it, or anything in it, is a string with a NUL.
    #[must_use]
    pub fn has_nul(self) -> bool {
        let bytes = self.0.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            // Backslashes are in strings only, and each takes the next byte with it.
            if bytes[at] == b'\\' {
                if bytes[at + 1..].starts_with(b"u0000") {
                    return true;
                }
                at += 1;
            }
            at += 1;
        }
        false
    }

    /// Whether arrays and objects nest deeper than databases take.
    #[must_use]
    pub fn is_too_deep(self) -> bool {
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        for byte in self.0.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'[' | b'{' => {
                    depth += 1;
                    if depth > DEPTH_MAX {
                        return true;
                    }
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        false
    }

    /// Appends the text without the white space between its tokens.
    pub fn push_compact(self, out: &mut Vec<u8>) {
        let (mut in_string, mut escaped) = (false, false);
        for byte in self.0.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = !in_string,
                b' ' | b'\n' | b'\r' | b'\t' if !in_string => continue,
                _ => {}
            }
            out.push(byte);
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

    fn columns(json: &str) -> Columns {
        Columns::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn values_are_kept_as_they_were_given() {
        let nested = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        for value in [
            r#"{"b":1,"a":2,"b":3}"#,
            r#"{"$serde_json::private::RawValue":"[1,2]"}"#,
            r#"{"$serde_json::private::Number":"7"}"#,
            "123456789012345678901234567890.00",
            r#""\ud800""#,
            "[1, 2]",
            &nested,
        ] {
            let json = format!(r#"{{"id":"x", "data" : {value} }}"#);
            assert_eq!(columns(&json).get("data").unwrap().text(), value);
        }
        let twice = Columns::parse(br#"{"a":1,"\u0061":2}"#).unwrap_err().to_string();
        assert!(twice.contains("column `a` is given twice"), "{twice}");
        for bad in ["[]", "1", "{", r#"{"a":01}"#, r#"{"\ud800":1}"#, "{} x"] {
            assert!(Columns::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_order_and_the_white_space_of_an_object_do_not_tell_it_from_another() {
        let one = columns(r#"{"a": [1, " x\" "], "b":2}"#).canonical();
        assert_eq!(one, columns(r#"{"b":2,"a":[1," x\" "]}"#).canonical());
        assert_eq!(one, br#"{"a":[1," x\" "],"b":2}"#);
        assert_eq!(columns("{ }").canonical(), b"{}");
    }

    #[test]
    fn strings_are_read_as_text() {
        assert_eq!(Json(r#""a\nb""#).kind(), Kind::Text("a\nb".into()));
        assert_eq!(Json(r#""a""#).kind(), Kind::Text(Cow::Borrowed("a")));
        assert_eq!(Json(r#""\udc00""#).kind(), Kind::BrokenText);
        assert!(Json(r#"{"a":["\u0000"]}"#).has_nul() && !Json(r#""\\u0000""#).has_nul());
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Json(&deep(DEPTH_MAX + 1)).is_too_deep() && !Json(&deep(DEPTH_MAX)).is_too_deep());
        assert!(!Json(&format!("\"{}\"", "[".repeat(2 * DEPTH_MAX))).is_too_deep());
    }
}
