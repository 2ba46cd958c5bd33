//! HTTP: requests in, answers out. [`layers`] stand before every endpoint; [`router`] finds the endpoint; each endpoint
//! parses what it is given into the protocol's types, asks the database or opens a read session, and [`renderers`] put on
//! the wire what comes back. [`errors`] is the one place where failures become statuses.

mod authorize;
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
mod session;
pub mod streams;

use std::sync::Arc;

use http::Response;

use crate::access::Access;
use crate::config::Limits;
use crate::tasks::stopping::Stopping;
use crate::telemetry::Metrics;
pub use body::{ReplyBody, RequestBody};
pub use errors::ApiError;
use feed::FeedContext;
pub use intake::{BodyMemory, Received, WatchBody};
pub use layers::gate::Gate;
pub use layers::hot::HotAnswers;
pub use layers::limits::{CallerLimits, PeerAddress};
pub use layers::resuming::come_back_bytes;
use ops::OpsContext;
pub use respond::plain_error;
pub use service::{Answering, BournService};
use streams::StreamsContext;

/// An answer.
pub type Reply = Response<ReplyBody>;

/// The endpoints, each group with the context that it works with, and what stands before all of them.
pub struct App {
    /// The feed of tables: lists, rows, activities, transactions.
    pub feed: Arc<FeedContext>,
    /// Stored streams, and subscriptions to them.
    pub streams: Arc<StreamsContext>,
    /// What operators ask.
    pub ops: OpsContext,
    /// Who may do what.
    pub access: Arc<Access>,
    /// How much each caller has asked.
    pub callers: Arc<CallerLimits>,
    /// Answers that are final.
    pub hot: Arc<HotAnswers>,
    /// Limits and durations.
    pub limits: Arc<Limits>,
    /// The server's figures.
    pub metrics: Arc<Metrics>,
    /// Fires when the server is to stop: live readers end.
    pub stopping: Stopping,
}
