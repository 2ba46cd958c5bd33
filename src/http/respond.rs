//! Putting answers together.

use std::sync::Arc;

use bourn_protocol::{ErrorBody, ErrorCode, Place, Selector, headers};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName};
use http::{HeaderValue, Response, StatusCode};

use super::{Reply, ReplyBody};
use crate::reading::CachedChunk;

/// The media type of everything but events and metrics.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// `Cache-Control` of what is true only now.
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// The value of flags.
pub(super) const TRUE: HeaderValue = HeaderValue::from_static("true");

pub(super) const CORP: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// An answer under construction.
pub(super) struct Build(Response<()>);

impl Build {
    pub(super) fn new(status: StatusCode) -> Build {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response.headers_mut().reserve(16);
        Build(response)
    }

    pub(super) fn header(mut self, name: impl Into<HeaderName>, value: HeaderValue) -> Build {
        self.0.headers_mut().insert(name.into(), value);
        self
    }

    /// A header whose value is made of text; one that cannot stand in a header is left out.
    pub(super) fn text(self, name: impl Into<HeaderName>, value: &str) -> Build {
        match HeaderValue::from_str(value) {
            Ok(value) => self.header(name, value),
            Err(_) => self,
        }
    }

    pub(super) fn next_offset(self, offset: impl Into<Place>) -> Build {
        self.text(HeaderName::from_static(headers::STREAM_NEXT_OFFSET), &offset.into().to_string())
    }

    pub(super) fn up_to_date(self) -> Build {
        self.header(HeaderName::from_static(headers::STREAM_UP_TO_DATE), TRUE)
    }

    pub(super) fn closed_if(self, closed: bool) -> Build {
        match closed {
            true => self.header(HeaderName::from_static(headers::STREAM_CLOSED), TRUE),
            false => self,
        }
    }

    pub(super) fn etag(self, tag: &str) -> Build {
        self.text(ETAG, tag)
    }

    pub(super) fn cache(self, value: &str) -> Build {
        self.text(CACHE_CONTROL, value)
    }

    pub(super) fn no_store(self) -> Build {
        self.header(CACHE_CONTROL, NO_STORE)
    }

    pub(super) fn json(self, body: impl Into<ReplyBody>) -> Reply {
        self.header(CONTENT_TYPE, JSON).body(body.into())
    }

    pub(super) fn body(self, body: ReplyBody) -> Reply {
        self.0.map(|()| body)
    }
}

/// Goes with an answer that never changes while the log has this version's content: it may be kept and given again.
#[derive(Clone)]
pub(super) struct Final(pub(super) Arc<CachedChunk>);

/// Goes with an answer that is a part of this derived stream.
#[derive(Clone)]
pub(super) struct SelectorRead(pub(super) Selector);

/// A whole HTTP/1.1 answer as bytes, for connections on which no request could be read.
#[must_use]
pub fn plain_error(code: ErrorCode, message: &str, retry_after: Option<u32>) -> Vec<u8> {
    let body = ErrorBody::new(code, message).to_json();
    let reason =
        StatusCode::from_u16(code.status()).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    let retry = retry_after.map(|secs| format!("retry-after: {secs}\r\n")).unwrap_or_default();
    let mut bytes = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         {retry}connection: close\r\n\r\n",
        code.status(),
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}
