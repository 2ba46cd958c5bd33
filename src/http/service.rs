//! Bourn as a service of `tower`: the endpoints, and the layers before them. Our own sockets use it, and another application's
//! router can mount it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use hyper::body::Body;
use tower::ServiceBuilder;
use tower_service::Service;

use super::layers::access::{AccessLayer, Controlled};
use super::layers::caching::{ForEverybody, make_private};
use super::layers::cors::{Credentials, CredentialsLayer};
use super::layers::edge::{Edge, EdgeLayer};
use super::layers::gate::{GateLayer, Gated};
use super::layers::hot::{Hot, HotLayer};
use super::layers::limits::{FailuresLayer, Guarded, Limited, LimitsLayer};
use super::layers::observed::{ObserveLayer, Observed};
use super::layers::{Admitted, Answer, BoxedAnswer, add_common_headers, resuming};
use super::{App, Gate, Reply, RequestBody, router};
use crate::config::ListenerRole;

type Stack = Observed<Credentials<Gated<Edge<Guarded<Controlled<Limited<Hot<Endpoints>>>>>>>>;

/// Answers requests whose paths begin with `/v1/`, `/health`, `/ready` or `/metrics`. A router that mounts it under a path takes
/// that off; `public_url` then has to end with it, for the links in answers.
#[derive(Clone)]
pub struct BournService(Stack);

impl BournService {
    /// The endpoints of a server that a listener of this role has, behind their layers.
    #[must_use]
    pub fn new(app: &Arc<App>, gate: Arc<Gate>, role: ListenerRole) -> BournService {
        let stack = ServiceBuilder::new()
            .layer(ObserveLayer(app.metrics.clone()))
            .layer(CredentialsLayer(app.access.clone()))
            .layer(GateLayer(gate))
            .layer(EdgeLayer(role))
            .layer(FailuresLayer(app.callers.clone()))
            .layer(AccessLayer {
                access: app.access.clone(),
                limits: app.limits.clone(),
                needs_no_token: router::needs_no_token,
            })
            .layer(LimitsLayer(app.callers.clone()))
            .layer(HotLayer { answers: app.hot.clone(), metrics: app.metrics.clone() })
            .service(Endpoints { app: app.clone(), role });
        BournService(stack)
    }

    /// Answers one request.
    pub fn answer(&mut self, request: Request<RequestBody>) -> Answering {
        self.0.call(request)
    }
}

/// An answer that is there, or being made.
pub type Answering = <Stack as Service<Request<RequestBody>>>::Future;

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
        self.answer(request.map(RequestBody::foreign))
    }
}

/// The endpoints behind the layers.
#[derive(Clone)]
pub struct Endpoints {
    app: Arc<App>,
    role: ListenerRole,
}

impl Service<Admitted> for Endpoints {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxedAnswer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted) -> BoxedAnswer {
        let (app, role) = (self.app.clone(), self.role);
        Box::pin(async move {
            let resuming = resuming::is_resuming(&admitted.request);
            let (endpoint, result) = router::dispatch(&app, role, &admitted.rights, admitted.request).await;
            let mut reply = result.unwrap_or_else(|error| resuming::reply(error, resuming, &app.limits));
            if app.access.is_controlled() && reply.extensions_mut().remove::<ForEverybody>().is_none() {
                make_private(reply.headers_mut());
            }
            add_common_headers(reply.headers_mut());
            Ok(Answer { endpoint, reply, not_accepted: false })
        })
    }
}
