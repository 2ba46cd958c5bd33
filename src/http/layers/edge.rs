//! What a listener of the role `edge` adds, for a proxy or CDN that keeps answers for all who may have them: an address has
//! one spelling there, so that the rules of a cache match what the server understands; and headers that only caches with
//! such rules obey say how long they may keep an answer, whose `Cache-Control` is `private`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bourn_protocol::ErrorCode;
use http::header::{CACHE_CONTROL, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request};
use pin_project_lite::pin_project;
use tokio_util::either::Either;
use tower_layer::Layer;
use tower_service::Service;

use super::{Answer, EarlyOr, Outcome, early};
use crate::config::ListenerRole;
use crate::http::{ApiError, RequestBody};

/// nginx obeys it before `Cache-Control`, and versions before 1.23 only where it comes first.
const X_ACCEL_EXPIRES: HeaderName = HeaderName::from_static("x-accel-expires");
/// RFC 9213.
const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// The endpoint whose answers depend on the token that is shown, as metrics name it: no cache may keep them for others.
pub(in crate::http) const AUTHORIZE: &str = "authorize";

/// Adds what an edge needs, on its own listener.
#[derive(Clone)]
pub(in crate::http) struct EdgeLayer(pub(in crate::http) ListenerRole);

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge { inner, is_edge: self.0 == ListenerRole::Edge }
    }
}

/// See [`EdgeLayer`].
#[derive(Clone)]
pub struct Edge<S> {
    inner: S,
    is_edge: bool,
}

impl<S> Service<Request<RequestBody>> for Edge<S>
where
    S: Service<Request<RequestBody>, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = EarlyOr<Targeting<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        if self.is_edge && !request.uri().path_and_query().is_some_and(is_canonical) {
            let message = "on this listener an address must be spelled in the one way that is canonical: no escapes of letters, \
                           digits, `-`, `.`, `_` and `~`, upper-case escapes, no empty segments or parameters";
            return early(Answer::refused(ApiError::new(ErrorCode::UrlNotCanonical, message)));
        }
        Either::Right(Targeting { answer: self.inner.call(request), is_edge: self.is_edge })
    }
}

pin_project! {
    /// An answer that gets the headers for caches.
    pub struct Targeting<F> {
        #[pin]
        answer: F,
        is_edge: bool,
    }
}

impl<F: Future<Output = Outcome>> Future for Targeting<F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(cx))?;
        if *this.is_edge && answer.endpoint != AUTHORIZE {
            target(answer.reply.headers_mut());
        }
        Poll::Ready(Ok(answer))
    }
}

/// Lets an edge keep what the caller's own cache may keep.
fn target(headers: &mut HeaderMap) {
    let Some(control) = headers.get(CACHE_CONTROL).and_then(|value| value.to_str().ok()) else { return };
    let Some(rest) = control.strip_prefix("private, ").or_else(|| control.strip_prefix("public, ")) else {
        return;
    };
    let Some(age) = rest.split(',').find_map(|part| part.trim().strip_prefix("max-age=")) else { return };
    let Ok(age) = HeaderValue::from_str(age) else { return };
    let Ok(shared) = HeaderValue::from_str(&format!("public, {rest}")) else { return };
    let own = std::mem::take(headers);
    headers.insert(X_ACCEL_EXPIRES, age);
    headers.extend(own);
    headers.insert(CDN_CACHE_CONTROL, shared.clone());
    headers.insert(SURROGATE_CONTROL, shared);
}

/// Whether an address is spelled in the one way in which nothing in it could be spelled shorter.
pub(in crate::http) fn is_canonical(address: &PathAndQuery) -> bool {
    let path = address.path();
    let segments = || path.split('/').skip(1);
    let plain_path = path.starts_with('/')
        && segments().all(|segment| !segment.is_empty() && !matches!(segment, "." | ".."))
        && has_canonical_escapes(path);
    plain_path && address.query().is_none_or(is_canonical_query)
}

fn is_canonical_query(query: &str) -> bool {
    let mut names = Vec::new();
    query.split('&').all(|pair| {
        let Some((name, value)) = pair.split_once('=') else { return false };
        let new = !names.contains(&name);
        names.push(name);
        new && !name.is_empty() && name.bytes().all(is_unreserved) && has_canonical_escapes(value)
    })
}

fn has_canonical_escapes(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        let digit =
            |i: usize| rest.get(at + i).copied().filter(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b));
        let (Some(high), Some(low)) = (digit(1), digit(2)) else { return false };
        let value = |digit: u8| if digit <= b'9' { digit - b'0' } else { digit - b'A' + 10 };
        if is_unreserved(value(high) * 16 + value(low)) {
            return false;
        }
        rest = &rest[at + 3..];
    }
    true
}

/// RFC 3986, section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling() {
        let canonical = |text: &str| is_canonical(&text.parse().unwrap());
        for good in [
            "/v1/entities/pages?offset=-1",
            "/v1/scopes/acme/entities/pages?offset=-1&live=sse",
            "/v1/scopes/a%20b%2Fc/activities?offset=0a_01",
            "/v1/entities/pages?organizationId=a%26b&offset=-1",
            "/v1/stream/chats/%C3%A9",
            "/health",
        ] {
            assert!(canonical(good), "{good}");
        }
        for bad in [
            "/v1/entities/pages?organization%49d=acme",
            "/v1/entities/pages?offset=-1&&live=sse",
            "/v1/entities/pages?offset=-1&",
            "/v1/entities/pages?",
            "/v1/entities/pages?offset",
            "/v1/entities/pages?offset=-1&offset=-1",
            "/v1/entities/%70ages",
            "/v1/scopes/a%2fc/activities",
            "/v1/scopes/a%2/activities",
            "/v1//entities/pages",
            "/v1/entities/pages/",
            "/v1/entities/../pages",
            "/",
        ] {
            assert!(!canonical(bad), "{bad}");
        }
    }

    #[test]
    fn an_edge_may_keep_what_a_caller_may_keep_and_is_told_first() {
        let mut headers = HeaderMap::new();
        headers.insert("etag", HeaderValue::from_static("\"a\""));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=60, immutable"));
        target(&mut headers);
        assert_eq!(headers.iter().next().unwrap(), (&X_ACCEL_EXPIRES, &HeaderValue::from_static("60")));
        assert_eq!(headers[CDN_CACHE_CONTROL], "public, max-age=60, immutable");
        assert_eq!(headers[CACHE_CONTROL], "private, max-age=60, immutable");
        for control in ["no-store", "no-cache, no-store"] {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(control));
            target(&mut headers);
            assert_eq!(headers.len(), 1, "{control}");
        }
    }
}
