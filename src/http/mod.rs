//! HTTP: requests in, answers out. [`router`] finds the endpoint; each endpoint parses what it is given into the
//! protocol's types, asks the storage or opens a read session, and renders what comes back. [`errors`] is the
//! one place where failures become statuses.

mod activities;
mod body;
mod cors;
mod entities;
mod errors;
mod intake;
mod ops;
mod respond;
mod router;
mod sse;
mod streams;
mod transactions;

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::entity::Catalog;
use crate::read::Reader;
use crate::storage::Storage;
use crate::tail::Tail;
use crate::telemetry::Metrics;
pub use body::ReplyBody;
pub use errors::ApiError;
pub use respond::plain_error;

/// An answer.
pub type Reply = Response<ReplyBody>;

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
    /// Limits and durations.
    pub limits: Arc<Limits>,
    /// The server's figures.
    pub metrics: Metrics,
    /// Fires when the server is to stop: live readers end.
    pub stopping: CancellationToken,
}

impl App {
    /// Answers one request.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let started = Instant::now();
        let head = request.method() == Method::HEAD;
        // Access control will stand here, before anything is routed.
        let (endpoint, result) = router::dispatch(&self, request).await;
        let mut reply = match result {
            Ok(reply) => reply,
            Err(error) => error.into_reply(),
        };
        respond::add_common_headers(reply.headers_mut());
        if head {
            *reply.body_mut() = ReplyBody::empty();
        }
        self.metrics.answered(endpoint, reply.status(), started.elapsed());
        reply
    }
}
