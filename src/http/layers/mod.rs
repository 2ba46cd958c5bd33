//! The layers that stand before every endpoint, outermost first: [`observed`] counts and logs; [`cors`] lets pages use a cookie; [`gate`] refuses what may not be
//! answered at all; [`edge`] adds what a cache in front needs; [`access`] finds out who asks; [`limits`] counts how much; [`hot`] gives answers that are at hand. Each is a layer of `tower`. What
//! they have in common with the endpoints is here: an admitted request, and an answer with the endpoint that made it.

pub(super) mod access;
pub(super) mod caching;
pub(super) mod cors;
pub(super) mod edge;
pub(super) mod gate;
pub(super) mod hot;
pub(super) mod limits;
pub(super) mod observed;
pub(super) mod resuming;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;

use bourn_protocol::ErrorCode;
use http::header::X_CONTENT_TYPE_OPTIONS;
use http::{HeaderMap, HeaderValue, Request};
use tokio_util::either::Either;

use super::respond::CORP;
use super::{ApiError, Reply, RequestBody};
use crate::access::Rights;

/// A request, with the rights of its caller.
pub struct Admitted {
    pub(super) request: Request<RequestBody>,
    pub(super) rights: Arc<Rights>,
}

/// An answer, with the endpoint that made it, as metrics name it.
pub struct Answer {
    pub(super) endpoint: &'static str,
    pub(super) reply: Reply,
    /// The request showed a token that is not accepted.
    pub(super) not_accepted: bool,
}

impl Answer {
    /// The answer to a request that reaches no endpoint.
    fn refused(error: ApiError) -> Answer {
        let not_accepted = error.code() == ErrorCode::TokenInvalid;
        let mut reply = error.into_reply();
        add_common_headers(reply.headers_mut());
        Answer { endpoint: "refused", reply, not_accepted }
    }
}

/// The outcome of a layer's service: there is no failure that is not an answer.
type Outcome = Result<Answer, Infallible>;

/// An answer that is being made. Boxed: hyper keeps room for the largest future as long as the connection lives, and an event
/// stream's would be idle.
pub(in crate::http) type BoxedAnswer = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The layer's own answer, or that of the service within.
pub(in crate::http) type EarlyOr<F> = Either<Ready<Outcome>, F>;

fn early<F>(answer: Answer) -> EarlyOr<F> {
    Either::Left(ready(Ok(answer)))
}

/// Adds what every answer carries (Durable Streams protocol, section 12.7, and CORS).
pub(super) fn add_common_headers(headers: &mut HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CORP, HeaderValue::from_static("cross-origin"));
    cors::add_headers(headers);
}
