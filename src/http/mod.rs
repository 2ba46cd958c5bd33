//! HTTP: requests in, answers out. [`layers`] stand before every endpoint; [`router`] finds the endpoint; each endpoint
//! parses what it is given into the protocol's types, asks the database or opens a read session, and [`renderers`] put on
//! the wire what comes back. [`errors`] is the one place where failures become statuses.

mod body;
mod errors;
pub mod feed;
mod intake;
mod layers;
pub mod ops;
pub mod renderers;
mod respond;
mod retry;
mod router;
mod service;
pub mod streams;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Method, Request, Response};

use crate::access::Access;
use crate::config::Limits;
use crate::tasks::stopping::Stopping;
use crate::telemetry::{Metrics, ReadMode};
pub use body::{ReplyBody, RequestBody};
pub use errors::ApiError;
use feed::FeedContext;
pub use intake::{BodyMemory, Received, WatchBody};
use layers::access::{self, Admission};
use layers::caching::ForEverybody;
pub use layers::gate::Gate;
pub use layers::hot::HotAnswers;
use layers::resuming;
pub use layers::resuming::come_back_bytes;
use ops::OpsContext;
pub use respond::plain_error;
pub use service::BournService;
use streams::StreamsContext;

/// An answer.
pub type Reply = Response<ReplyBody>;

/// An answer that is there, or on its way.
pub enum Answering {
    /// It is there; taken when polled.
    Now(Option<Reply>),
    /// It is being made.
    Later(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

impl Future for Answering {
    type Output = Result<Reply, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Answering::Now(reply) => reply.take().map_or(Poll::Pending, |reply| Poll::Ready(Ok(reply))),
            Answering::Later(reply) => reply.as_mut().poll(cx).map(Ok),
        }
    }
}

/// The endpoints, each group with the context that it works with, and what stands before all of them.
pub struct App {
    /// The feed of tables: lists, rows, activities, transactions.
    pub feed: Arc<FeedContext>,
    /// Stored streams, and subscriptions to them.
    pub streams: Arc<StreamsContext>,
    /// What operators ask.
    pub ops: OpsContext,
    /// Which requests are answered at all.
    pub gate: Gate,
    /// Who may do what.
    pub access: Arc<Access>,
    /// Answers that are final.
    pub hot: HotAnswers,
    /// Limits and durations.
    pub limits: Arc<Limits>,
    /// The server's figures.
    pub metrics: Metrics,
    /// Fires when the server is to stop: live readers end.
    pub stopping: Stopping,
}

impl App {
    /// Answers one request: at once where the answer is final and at hand.
    pub fn call(self: &Arc<Self>, request: Request<RequestBody>) -> Answering {
        let admitted = match self.gate.check(&request) {
            Ok(()) if router::needs_no_token(&request) => {
                Ok(Admission::Known(self.access.at_least().clone()))
            }
            Ok(()) => access::admit(&self.access, &request),
            Err(refused) => Err(refused),
        };
        let admission = match admitted {
            Ok(admission) => admission,
            Err(refused) => return Answering::Now(Some(self.refused(refused))),
        };
        let started = Instant::now();
        if let Admission::Known(rights) = &admission
            && let Some((reply, endpoint)) =
                self.hot.get(&request, rights, self.metrics.mode(ReadMode::CatchUp))
        {
            self.metrics.answered(endpoint, reply.status(), started.elapsed());
            return Answering::Now(Some(reply));
        }
        // Boxed: hyper keeps room for the largest future as long as the connection lives, and an event stream's
        // would be idle.
        Answering::Later(Box::pin(self.clone().handle(request, admission)))
    }

    fn refused(&self, error: ApiError) -> Reply {
        let mut reply = error.into_reply();
        layers::add_common_headers(reply.headers_mut());
        self.metrics.answered("refused", reply.status(), Duration::ZERO);
        reply
    }

    async fn handle(self: Arc<Self>, request: Request<RequestBody>, admission: Admission) -> Reply {
        let started = Instant::now();
        let head = request.method() == Method::HEAD;
        // Cloned only where debug logging is on: this runs for every request.
        let asked = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (request.method().clone(), request.uri().clone()));
        let resuming = resuming::is_resuming(&request);
        let url = request.uri().path_and_query().cloned();
        let rights = match admission {
            Admission::Known(rights) => Ok(rights),
            Admission::Unverified(token) => self.access.verify(&token).await.map_err(ApiError::from),
        };
        let (endpoint, result) = match rights {
            Ok(rights) => router::dispatch(&self, &rights, request).await,
            Err(refused) => ("refused", Err(refused)),
        };
        let mut reply = match result {
            Ok(reply) => reply,
            Err(error) if resuming && resuming::may_pass(&error) => resuming::come_back(&self.limits),
            Err(error) => error.into_reply(),
        };
        if self.access.is_controlled() && reply.extensions_mut().remove::<ForEverybody>().is_none() {
            layers::caching::make_private(reply.headers_mut());
        }
        layers::add_common_headers(reply.headers_mut());
        if let Some(url) = url {
            self.hot.keep(&url, endpoint, &mut reply);
        }
        if head {
            *reply.body_mut() = ReplyBody::empty();
        }
        if let Some((method, uri)) = asked {
            let (status, micros) = (reply.status().as_u16(), started.elapsed().as_micros());
            tracing::debug!(%method, %uri, status, micros, "answered");
        }
        self.metrics.answered(endpoint, reply.status(), started.elapsed());
        reply
    }
}
