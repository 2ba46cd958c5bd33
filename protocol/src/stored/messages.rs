//! What a body becomes when it is appended: as it is, or in JSON mode one or more messages, of which an array is one
//! level of wrapping (Durable Streams protocol, section 9.1).

use bytes::Bytes;
use serde_json::value::RawValue;

use super::content::Form;

/// What is appended at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payload {
    /// The bytes that are stored and go out: of JSON, messages joined by commas.
    pub data: Bytes,
    /// How many messages that is; of anything but JSON one.
    pub messages: usize,
}

/// A body was no JSON; the text says where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the body is not JSON: {0}")]
pub struct NotJson(pub String);

impl Payload {
    /// How many bytes these have together.
    #[must_use]
    pub fn bytes_of(payloads: &[Payload]) -> usize {
        payloads.iter().map(|payload| payload.data.len()).sum()
    }

    /// Takes a body in. Nothing to append gives no messages.
    ///
    /// # Errors
    /// When the stream is of JSON and the body is not.
    pub fn take(form: Form, body: Bytes) -> Result<Payload, NotJson> {
        if form != Form::Json || body.is_empty() {
            return Ok(Payload { messages: usize::from(!body.is_empty()), data: body });
        }
        let not_json = |error: serde_json::Error| NotJson(error.to_string());
        let array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        let messages: Vec<&RawValue> = match array {
            true => serde_json::from_slice(&body).map_err(not_json)?,
            false => vec![serde_json::from_slice(&body).map_err(not_json)?],
        };
        let mut data = Vec::with_capacity(body.len());
        for (i, message) in messages.iter().enumerate() {
            if i > 0 {
                data.push(b',');
            }
            data.extend_from_slice(message.get().as_bytes());
        }
        // Between tokens a line's end counts as a space, and event streams need no further lines then.
        for byte in &mut data {
            if matches!(*byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        Ok(Payload { data: data.into(), messages: messages.len() })
    }

    /// What the first `count` bytes, or of JSON messages, of one append are; none if it has fewer.
    #[must_use]
    pub fn prefix(form: Form, data: &[u8], count: u64) -> Option<Payload> {
        let count = usize::try_from(count).ok()?;
        if form != Form::Json {
            let data = data.get(..count)?;
            return Some(Payload { data: Bytes::copy_from_slice(data), messages: usize::from(count > 0) });
        }
        let array = [b"[", data, b"]"].concat();
        let messages: Vec<&RawValue> = serde_json::from_slice(&array).ok()?;
        let length: usize = messages.get(..count)?.iter().map(|message| message.get().len() + 1).sum();
        // Stored messages are joined by single commas.
        Some(Payload { data: Bytes::copy_from_slice(data.get(..length.saturating_sub(1))?), messages: count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(body: &str) -> (String, usize) {
        let payload = Payload::take(Form::Json, Bytes::copy_from_slice(body.as_bytes())).unwrap();
        (String::from_utf8(payload.data.to_vec()).unwrap(), payload.messages)
    }

    #[test]
    fn one_level_of_an_array_is_wrapping() {
        assert_eq!(taken(r#" {"a": 1} "#), (r#"{"a": 1}"#.into(), 1));
        assert_eq!(taken("[1, [2,3] ,\"x\"]"), ("1,[2,3],\"x\"".into(), 3));
        assert_eq!(taken("[[[1]]]"), ("[[1]]".into(), 1));
        assert_eq!(taken("[]"), (String::new(), 0));
        assert_eq!(taken("{\"a\":\r\n1}"), ("{\"a\":  1}".into(), 1));
        for bad in ["{", "[1,]", "1 2", "\u{1}", "[1]]"] {
            assert!(Payload::take(Form::Json, Bytes::copy_from_slice(bad.as_bytes())).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_counts_bytes_or_messages() {
        let of = |form, data: &str, count| {
            Payload::prefix(form, data.as_bytes(), count)
                .map(|part| String::from_utf8(part.data.to_vec()).unwrap())
        };
        assert_eq!(of(Form::Binary, "hello", 2).as_deref(), Some("he"));
        assert_eq!(of(Form::Binary, "hello", 6), None);
        assert_eq!(of(Form::Json, r#"{"a":1},[2,3],4"#, 2).as_deref(), Some(r#"{"a":1},[2,3]"#));
        assert_eq!(of(Form::Json, "1,2", 3), None);
    }
}
