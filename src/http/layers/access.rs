//! Who asks: the token of a request, and the rights that it gives. A browser's `EventSource` can send no header, so a read may
//! carry its token in a cookie; writes may not, so that no other site's page can make them.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bourn_protocol::ErrorCode;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, Method, Request};
use tokio_util::either::Either;
use tower_layer::Layer;
use tower_service::Service;

use super::{Admitted, Answer, BoxedAnswer, EarlyOr, Outcome, add_common_headers, early, resuming};
use crate::access::{Access, Rights, TokenError};
use crate::config::Limits;
use crate::http::{ApiError, RequestBody};

/// Finds the rights of a request's caller; refuses those that must show a token and do not.
#[derive(Clone)]
pub(in crate::http) struct AccessLayer {
    pub(in crate::http) access: Arc<Access>,
    pub(in crate::http) limits: Arc<Limits>,
    /// Whether a request needs no token.
    pub(in crate::http) needs_no_token: fn(&Request<RequestBody>) -> bool,
}

impl<S> Layer<S> for AccessLayer {
    type Service = Controlled<S>;

    fn layer(&self, inner: S) -> Controlled<S> {
        Controlled { inner, layer: self.clone() }
    }
}

/// See [`AccessLayer`].
#[derive(Clone)]
pub struct Controlled<S> {
    inner: S,
    layer: AccessLayer,
}

impl<S> Service<Request<RequestBody>> for Controlled<S>
where
    S: Service<Admitted, Response = Answer, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = EarlyOr<Either<S::Future, BoxedAnswer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let access = &self.layer.access;
        let admission = match (self.layer.needs_no_token)(&request) {
            true => Ok(Admission::Known(access.at_least().clone())),
            false => admit(access, &request),
        };
        match admission {
            Ok(Admission::Known(rights)) => {
                Either::Right(Either::Left(self.inner.call(Admitted { request, rights })))
            }
            Ok(Admission::Unverified(token)) => {
                let verified = verify(self.clone(), token, request);
                Either::Right(Either::Right(Box::pin(verified)))
            }
            Err(refused) => early(Answer::refused(refused)),
        }
    }
}

async fn verify<S>(mut controlled: Controlled<S>, token: String, request: Request<RequestBody>) -> Outcome
where
    S: Service<Admitted, Response = Answer, Error = Infallible>,
{
    match controlled.layer.access.verify(&token).await {
        Ok(rights) => controlled.inner.call(Admitted { request, rights }).await,
        Err(denied) => {
            let resuming = resuming::is_resuming(&request);
            let not_accepted = matches!(denied, TokenError::Invalid(_));
            let mut reply = resuming::reply(denied.into(), resuming, &controlled.layer.limits);
            add_common_headers(reply.headers_mut());
            Ok(Answer { endpoint: "refused", reply, not_accepted })
        }
    }
}

/// Where the rights of a request stand.
enum Admission {
    /// They are known.
    Known(Arc<Rights>),
    /// The token has to be verified.
    Unverified(String),
}

/// The rights of a request, as far as they are at hand.
///
/// # Errors
/// When it shows a token where none can be, or none where one must be.
fn admit<B>(access: &Access, request: &Request<B>) -> Result<Admission, ApiError> {
    let token = if access.is_controlled() { token(access, request)? } else { None };
    let Some(token) = token else {
        return Ok(Admission::Known(access.without_token()?.clone()));
    };
    Ok(match access.known(token) {
        Some(rights) => Admission::Known(rights),
        None => Admission::Unverified(token.to_owned()),
    })
}

fn token<'a, B>(access: &Access, request: &'a Request<B>) -> Result<Option<&'a str>, ApiError> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let invalid = |message| ApiError::new(ErrorCode::TokenInvalid, message);
    if let Some(value) = values.next() {
        if values.next().is_some() {
            return Err(invalid("`Authorization` is there more than once; send it once"));
        }
        let token = value.to_str().ok().and_then(bearer);
        return token.map(Some).ok_or_else(|| invalid("send the token as Authorization: Bearer TOKEN"));
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads || access.cookie().is_empty() {
        return Ok(None);
    }
    Ok(cookie(request.headers(), access.cookie()))
}

/// The token of a value of `Authorization`.
pub(in crate::http) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The value of a cookie; of several of one name the first, which browsers send for the longest path.
pub(in crate::http) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_bearer_token() {
        for (value, token) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("bearer a.b.c", Some("a.b.c")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Basic YTpi", None),
            ("a.b.c", None),
        ] {
            assert_eq!(bearer(value), token, "{value}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, "theme=dark; __Host-bourn=a.b.c; x=__Host-bourn".parse().unwrap());
        assert_eq!(cookie(&headers, "__Host-bourn"), Some("a.b.c"));
        assert_eq!(cookie(&headers, "bourn"), None);
    }
}
