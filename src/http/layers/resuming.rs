//! Event streams that a browser resumes. A native `EventSource` gives up for ever when a reconnect is answered with anything
//! but an event stream, whatever `Retry-After` says. So one that cannot be served now is answered with a stream that only
//! says when to come back.

use bourn_protocol::headers::LAST_EVENT_ID;
use bourn_protocol::sse::push_retry;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, Request, StatusCode};

use crate::config::Limits;
use crate::http::respond::Build;
use crate::http::retry::retry_millis;
use crate::http::{ApiError, Reply};

/// Whether a request resumes an event stream.
pub(in crate::http) fn is_resuming<B>(request: &Request<B>) -> bool {
    request.headers().get(LAST_EVENT_ID).is_some_and(|id| !id.is_empty())
        && *request.method() == Method::GET
        && request.uri().query().is_some_and(asks_for_events)
}

fn asks_for_events(query: &str) -> bool {
    query.split('&').any(|pair| pair == "live=sse")
}

/// The answer to a request that failed; `resuming` when it resumes an event stream.
pub(in crate::http) fn reply(error: ApiError, resuming: bool, limits: &Limits) -> Reply {
    if resuming && may_pass(&error) { come_back(limits) } else { error.into_reply() }
}

/// Whether an error may be over when the browser comes back.
fn may_pass(error: &ApiError) -> bool {
    let status = error.code().status();
    status >= 500 || status == StatusCode::TOO_MANY_REQUESTS.as_u16()
}

/// The answer that only says when to come back.
fn come_back(limits: &Limits) -> Reply {
    Build::new(StatusCode::OK)
        .header(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))
        .header(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"))
        .header(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))
        .body(retry(limits).into())
}

fn retry(limits: &Limits) -> Vec<u8> {
    let mut body = Vec::new();
    push_retry(&mut body, retry_millis(limits));
    body
}

/// The same as bytes, where the beginning of the request's head is one that resumes an event stream; for connections that
/// there is no place for.
#[must_use]
pub fn come_back_bytes(head: &[u8], limits: &Limits) -> Option<Vec<u8>> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let target = lines.next()?.strip_prefix("GET ")?.split(' ').next()?;
    let (_, query) = target.split_once('?')?;
    let resumes = lines.any(|line| {
        line.split_once(':')
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case(LAST_EVENT_ID) && !value.trim().is_empty())
    });
    if !resumes || !asks_for_events(query) {
        return None;
    }
    let body = retry(limits);
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\ncache-control: no-cache, no-store\r\n\
         access-control-allow-origin: *\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    Some(bytes)
}
