//! CORS: any page may read and write, as far as access control lets it with a token that the page itself has. Cookies are for the
//! pages of configured origins alone.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bourn_protocol::headers::{ALLOWED, EXPOSED};
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Answer, Outcome};
use crate::access::Access;
use crate::http::respond::Build;
use crate::http::{Reply, ReplyBody, RequestBody};

/// Every method of the contract.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// How long a browser may keep the answer to a preflight, in seconds.
const PREFLIGHT_AGE: &str = "86400";

/// Adds what every answer carries. It does not depend on the request, so that caches need not tell origins apart.
pub(in crate::http) fn add_headers(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}

/// Answers a preflight.
pub(in crate::http) fn preflight() -> Reply {
    Build::new(StatusCode::NO_CONTENT)
        .header(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS))
        .header(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED))
        .header(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_AGE))
        .body(ReplyBody::empty())
}

/// Lets pages of configured origins use the cookie. Where there are such origins, answers differ by origin, and say so.
#[derive(Clone)]
pub(in crate::http) struct CredentialsLayer(pub(in crate::http) Arc<Access>);

impl<S> Layer<S> for CredentialsLayer {
    type Service = Credentials<S>;

    fn layer(&self, inner: S) -> Credentials<S> {
        Credentials { inner, access: self.0.clone() }
    }
}

/// See [`CredentialsLayer`].
#[derive(Clone)]
pub struct Credentials<S> {
    inner: S,
    access: Arc<Access>,
}

/// How an answer depends on its request's origin.
#[derive(Clone)]
enum ByOrigin {
    /// Not at all.
    Same,
    /// Its pages may not send the cookie, where others may.
    Other,
    /// Its pages may.
    Trusted(HeaderValue),
}

impl<S> Service<Request<RequestBody>> for Credentials<S>
where
    S: Service<Request<RequestBody>, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Allowing<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let origins = self.access.origins();
        let by_origin = match request.headers().get(ORIGIN) {
            _ if origins.is_empty() => ByOrigin::Same,
            Some(origin) if origins.iter().any(|known| origin == known.as_str()) => {
                ByOrigin::Trusted(origin.clone())
            }
            _ => ByOrigin::Other,
        };
        Allowing { answer: self.inner.call(request), by_origin }
    }
}

pin_project! {
    /// An answer that gets the headers for its request's origin.
    pub struct Allowing<F> {
        #[pin]
        answer: F,
        by_origin: ByOrigin,
    }
}

impl<F: Future<Output = Outcome>> Future for Allowing<F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(cx))?;
        let headers = answer.reply.headers_mut();
        if let ByOrigin::Trusted(origin) = this.by_origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if !matches!(this.by_origin, ByOrigin::Same) {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        Poll::Ready(Ok(answer))
    }
}
