//! Content types of stored streams, and what follows from them: whether messages have boundaries, and how event
//! streams carry them (Durable Streams protocol, section 9).

use std::fmt;
use std::sync::Arc;

use super::Refused;
use crate::limits::STREAM_HEADER_MAX_BYTES;

/// How a stream's bytes are taken in and given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON messages: appended singly or as an array, read as an array.
    Json,
    /// Text: event streams carry it as it is.
    Text,
    /// Anything else: event streams carry it in base64.
    Binary,
}

/// A content type as it was given; compared without its parameters and without regard to case.
#[derive(Debug, Clone)]
pub struct ContentType(Arc<str>);

impl ContentType {
    /// The content type of a stream that was created without one.
    #[must_use]
    pub fn octets() -> ContentType {
        ContentType("application/octet-stream".into())
    }

    /// JSON.
    #[must_use]
    pub fn json() -> ContentType {
        ContentType("application/json".into())
    }

    /// Checks and takes a header's text.
    ///
    /// # Errors
    /// With the rule that it breaks.
    pub fn new(text: &str) -> Result<ContentType, Refused> {
        let essence = essence(text);
        let token = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+'*`|~%".contains(&b))
        };
        let fits = text.len() <= STREAM_HEADER_MAX_BYTES && text.bytes().all(|b| (b' '..0x7f).contains(&b));
        match essence.split_once('/') {
            Some((kind, subkind)) if fits && token(kind) && token(subkind) => {
                Ok(ContentType(text.trim().into()))
            }
            _ => Err(Refused("Content-Type must be a media type of at most 256 bytes, such as text/plain")),
        }
    }

    /// The text, as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How bytes of this type are taken in and given out.
    #[must_use]
    pub fn form(&self) -> Form {
        let essence = essence(&self.0);
        if essence.eq_ignore_ascii_case("application/json") {
            Form::Json
        } else if essence.get(..5).is_some_and(|kind| kind.eq_ignore_ascii_case("text/")) {
            Form::Text
        } else {
            Form::Binary
        }
    }
}

fn essence(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

impl PartialEq for ContentType {
    fn eq(&self, other: &ContentType) -> bool {
        essence(&self.0).eq_ignore_ascii_case(essence(&other.0))
    }
}

impl Eq for ContentType {}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_tell_types_apart() {
        let of = |text| ContentType::new(text).unwrap();
        assert_eq!(of("Application/JSON; charset=utf-8"), of("application/json"));
        assert_ne!(of("text/plain"), of("text/html"));
        assert_eq!(of("application/json;charset=utf-8").form(), Form::Json);
        assert_eq!(of("TEXT/csv").form(), Form::Text);
        assert_eq!(of("application/ndjson").form(), Form::Binary);
        for bad in ["", "text", "text/", "/plain", "text /plain", "te\u{fc}xt/plain"] {
            assert!(ContentType::new(bad).is_err(), "{bad}");
        }
    }
}
