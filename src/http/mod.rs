//! HTTP: requests in, answers out. [`router`] finds the endpoint; each endpoint parses what it is given into the
//! protocol's types, asks the storage or opens a read session, and renders what comes back. [`errors`] is the
//! one place where failures become statuses.

mod activities;
mod body;
mod cors;
mod entities;
mod errors;
mod gate;
mod hot;
mod intake;
mod ops;
mod render;
mod respond;
mod resuming;
mod router;
mod sse;
mod stored;
mod streams;
mod transactions;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::entity::Catalog;
use crate::read::Reader;
use crate::stopping::Stopping;
use crate::storage::Storage;
use crate::subscriptions::Subscriptions;
use crate::supervisor::Supervisor;
use crate::tail::Tail;
use crate::telemetry::{Metrics, ReadMode};
pub use body::ReplyBody;
pub use errors::ApiError;
pub use gate::Gate;
pub use hot::HotAnswers;
use http::{Method, Request, Response};
use hyper::body::Incoming;
pub use intake::{BodyMemory, Received, WatchBody};
pub use respond::plain_error;
pub use resuming::come_back_bytes;

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

/// What the endpoints work with.
pub struct App {
    /// The database.
    pub storage: Arc<dyn Storage>,
    /// The streams' readers.
    pub reader: Arc<Reader>,
    /// The live tail, for its figures.
    pub tail: Arc<Tail>,
    /// The streamed tables.
    pub catalog: Arc<Catalog>,
    /// Subscriptions to stored streams.
    pub subscriptions: Arc<Subscriptions>,
    /// Memory for what is being received to be appended to stored streams.
    pub uploads: BodyMemory,
    /// Memory for all other bodies.
    pub bodies: BodyMemory,
    /// Which requests are answered at all.
    pub gate: Gate,
    /// Where the server is reached.
    pub public_url: String,
    /// Answers that are final.
    pub hot: HotAnswers,
    /// Limits and durations.
    pub limits: Arc<Limits>,
    /// The server's figures.
    pub metrics: Metrics,
    /// Fires when the server is to stop: live readers end.
    pub stopping: Stopping,
    /// The background, for whether it works.
    pub supervisor: Supervisor,
}

impl App {
    /// Answers one request: at once where the answer is final and at hand.
    pub fn call(self: &Arc<Self>, request: Request<Incoming>) -> Answering {
        // Access control will stand here, before anything is routed.
        if let Err(refused) = self.gate.check(&request) {
            return Answering::Now(Some(self.refused(refused)));
        }
        let started = Instant::now();
        if let Some((reply, endpoint)) = self.hot.get(&request, self.metrics.mode(ReadMode::CatchUp)) {
            self.metrics.answered(endpoint, reply.status(), started.elapsed());
            return Answering::Now(Some(reply));
        }
        // Boxed: hyper keeps room for the largest future as long as the connection lives, and an event stream's
        // would be idle.
        Answering::Later(Box::pin(self.clone().handle(request)))
    }

    fn refused(&self, error: ApiError) -> Reply {
        let mut reply = error.into_reply();
        respond::add_common_headers(reply.headers_mut());
        self.metrics.answered("refused", reply.status(), Duration::ZERO);
        reply
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let started = Instant::now();
        let head = request.method() == Method::HEAD;
        // Asked for only where somebody listens: this is done for every request.
        let asked = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (request.method().clone(), request.uri().clone()));
        let resuming = resuming::is_resuming(&request);
        let (endpoint, result) = router::dispatch(&self, request).await;
        let mut reply = match result {
            Ok(reply) => reply,
            Err(error) if resuming && resuming::may_pass(&error) => resuming::come_back(&self.limits),
            Err(error) => error.into_reply(),
        };
        respond::add_common_headers(reply.headers_mut());
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
