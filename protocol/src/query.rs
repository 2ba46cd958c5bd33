//! Query strings: split once, every parameter asked for by name at most once, the rest refused by name. Split here and not by
//! `form_urlencoded`, which takes broken escapes and bytes that are not UTF-8 for text.

use std::str::FromStr;

use crate::cursor::Cursor;
use crate::error::ErrorCode;
use crate::limits::QUERY_MAX_BYTES;
use crate::offset::{InvalidOffset, Offset, ReadFrom};
use crate::percent::percent_decode;

/// A query string was refused: a code and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidQuery {
    /// The code for the answer.
    pub code: ErrorCode,
    /// What was wrong and what would be right.
    pub message: String,
}

impl InvalidQuery {
    /// A parameter broke its rule.
    #[must_use]
    pub fn parameter(message: impl Into<String>) -> Self {
        InvalidQuery { code: ErrorCode::InvalidParameter, message: message.into() }
    }
}

/// The parameters of one request, decoded, in the order they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Splits and decodes a query string.
    ///
    /// # Errors
    /// When it is too long, or an escape is broken or hides text that is not UTF-8.
    pub fn parse(raw: Option<&str>) -> Result<Query, InvalidQuery> {
        let Some(raw) = raw.filter(|raw| !raw.is_empty()) else { return Ok(Query::default()) };
        if raw.len() > QUERY_MAX_BYTES {
            let message = format!("the query string has {} bytes; {QUERY_MAX_BYTES} are the most", raw.len());
            return Err(InvalidQuery { code: ErrorCode::UriTooLong, message });
        }
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Ok(Query { pairs })
    }

    /// The value of a parameter, if it is there once.
    ///
    /// # Errors
    /// `repeated` when it is there more than once.
    fn once(&self, name: &str, repeated: ErrorCode) -> Result<Option<&str>, InvalidQuery> {
        let mut values = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let first = values.next();
        if values.next().is_some() {
            return Err(InvalidQuery {
                code: repeated,
                message: format!("`{name}` is there more than once; send it once"),
            });
        }
        Ok(first)
    }

    /// The value of a parameter that may be absent.
    ///
    /// # Errors
    /// When it is there more than once.
    pub fn get(&self, name: &str) -> Result<Option<&str>, InvalidQuery> {
        self.once(name, ErrorCode::InvalidParameter)
    }

    /// Adds a parameter that was given elsewhere.
    pub fn set(&mut self, name: &str, value: &str) {
        self.pairs.push((name.to_owned(), value.to_owned()));
    }

    /// A whole number between bounds, or the default when absent.
    ///
    /// # Errors
    /// When it is not such a number, or there more than once.
    pub fn number(
        &self,
        name: &str,
        default: usize,
        least: usize,
        most: usize,
    ) -> Result<usize, InvalidQuery> {
        let Some(text) = self.get(name)? else { return Ok(default) };
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| {
                InvalidQuery::parameter(format!("`{name}` must be a whole number from {least} to {most}"))
            })
    }

    /// Refuses what the endpoint does not know: a misspelt filter must not widen what is read.
    ///
    /// # Errors
    /// With the unknown name and the known ones.
    pub fn only(&self, known: &[&str]) -> Result<(), InvalidQuery> {
        match self.pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => Err(InvalidQuery::parameter(format!(
                "there is no parameter `{}` here; this endpoint knows {}",
                name.escape_debug(),
                known.join(", ")
            ))),
        }
    }
}

fn decode(text: &str) -> Result<String, InvalidQuery> {
    percent_decode(text, true)
        .ok_or_else(|| InvalidQuery::parameter("a query parameter must be percent-encoded UTF-8"))
}

/// How a stream is followed past its tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// One answer with what comes next.
    LongPoll,
    /// Server-sent events.
    Sse,
}

/// The parameters of a stream read (Durable Streams protocol, 5.6 to 5.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRead<T = Offset> {
    /// Where to start.
    pub from: ReadFrom<T>,
    /// How to follow, if at all.
    pub live: Option<Live>,
    /// The cursor the client echoes.
    pub cursor: Option<Cursor>,
}

impl<T: FromStr<Err = InvalidOffset>> StreamRead<T> {
    /// The names of the parameters this reads.
    pub const PARAMETERS: [&'static str; 3] = ["offset", "live", "cursor"];

    /// Reads the parameters; `None` when there is no `offset`, so that this is not a stream read at all.
    ///
    /// # Errors
    /// When one of them is malformed or repeated, or `live` comes without `offset`.
    pub fn parse(query: &Query) -> Result<Option<StreamRead<T>>, InvalidQuery> {
        let live = match query.once("live", ErrorCode::InvalidLive)? {
            None => None,
            Some("long-poll") => Some(Live::LongPoll),
            Some("sse") => Some(Live::Sse),
            Some(_) => {
                let message =
                    "`live` must be `long-poll` or `sse`; leave it out to read what is there now".into();
                return Err(InvalidQuery { code: ErrorCode::InvalidLive, message });
            }
        };
        let Some(offset) = query.once("offset", ErrorCode::InvalidOffset)? else {
            return match live {
                None => Ok(None),
                Some(_) => Err(InvalidQuery {
                    code: ErrorCode::InvalidOffset,
                    message: "a live read needs an `offset`: `-1`, `now`, or where you left off".into(),
                }),
            };
        };
        let from = offset.parse().map_err(|error: InvalidOffset| InvalidQuery {
            code: ErrorCode::InvalidOffset,
            message: error.to_string(),
        })?;
        let cursor = query.get("cursor")?.and_then(Cursor::parse);
        Ok(Some(StreamRead { from, live, cursor }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(raw: &str) -> Result<Option<StreamRead>, ErrorCode> {
        Query::parse(Some(raw)).and_then(|query| StreamRead::parse(&query)).map_err(|error| error.code)
    }

    #[test]
    fn without_an_offset_it_is_a_list() {
        assert_eq!(read("limit=3"), Ok(None));
        assert_eq!(read("live=sse"), Err(ErrorCode::InvalidOffset));
    }

    #[test]
    fn live_is_long_poll_or_sse_and_stands_once() {
        assert_eq!(read("offset=-1&live=sse").unwrap().unwrap().live, Some(Live::Sse));
        assert_eq!(read("offset=now&live=long%2Dpoll").unwrap().unwrap().live, Some(Live::LongPoll));
        for bad in ["offset=-1&live=", "offset=-1&live=SSE", "offset=-1&live=sse&live=sse", "offset=-1&live"]
        {
            assert_eq!(read(bad), Err(ErrorCode::InvalidLive), "{bad}");
        }
    }

    #[test]
    fn an_offset_stands_once_and_is_one_of_ours() {
        for bad in ["offset=", "offset=5", "offset=-1&offset=-1", "offset=k3f9_1"] {
            assert_eq!(read(bad), Err(ErrorCode::InvalidOffset), "{bad}");
        }
    }

    #[test]
    fn a_misspelt_filter_is_refused_with_the_names_that_exist() {
        let query = Query::parse(Some("organisationId=acme")).unwrap();
        let message = query.only(&["organizationId", "limit"]).unwrap_err().message;
        assert_eq!(
            message,
            "there is no parameter `organisationId` here; this endpoint knows organizationId, limit"
        );
    }

    #[test]
    fn numbers_have_bounds() {
        let query = Query::parse(Some("a=10&b=0&c=+1&d=99999999999999999999&e=x")).unwrap();
        assert_eq!(query.number("a", 1, 1, 10), Ok(10));
        assert_eq!(query.number("z", 7, 1, 10), Ok(7));
        for name in ["b", "c", "d", "e"] {
            assert!(query.number(name, 1, 1, 10).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(raw in "[a-z=&%+0-9-]{0,80}|\\PC{0,40}") {
            if let Ok(query) = Query::parse(Some(&raw)) {
                let _ = StreamRead::<Offset>::parse(&query);
            }
        }
    }
}
