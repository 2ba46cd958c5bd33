//! Bourn as a service of `tower`, to be mounted in another application's router.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use hyper::body::Body;
use tower_service::Service;

use super::{Answering, App, Reply, RequestBody};

/// Answers requests whose paths begin with `/v1/`, `/health`, `/ready` or `/metrics`. A router that mounts it under a path takes
/// that off; `public_url` then has to end with it, for the links in answers.
#[derive(Clone)]
pub struct BournService(Arc<App>);

impl BournService {
    /// The endpoints of a server.
    #[must_use]
    pub fn new(app: Arc<App>) -> BournService {
        BournService(app)
    }
}

impl<B> Service<Request<B>> for BournService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Reply;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // What there is no room for is refused with an answer of its own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answering {
        self.0.call(request.map(RequestBody::foreign))
    }
}
