//! What is counted and logged of each answer; and that an answer to HEAD has no body.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{Method, Request, Uri};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Answer, Outcome};
use crate::http::{Reply, ReplyBody, RequestBody};
use crate::telemetry::Metrics;

/// Counts and logs.
#[derive(Clone)]
pub(in crate::http) struct ObserveLayer(pub(in crate::http) Arc<Metrics>);

impl<S> Layer<S> for ObserveLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, metrics: self.0.clone() }
    }
}

/// See [`ObserveLayer`].
#[derive(Clone)]
pub struct Observed<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Service<Request<RequestBody>> for Observed<S>
where
    S: Service<Request<RequestBody>, Response = Answer, Error = Infallible>,
{
    type Response = Reply;
    type Error = Infallible;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        Observing {
            began: Instant::now(),
            is_head: *request.method() == Method::HEAD,
            // Cloned only where debug logging is on: this runs for every request.
            asked: tracing::enabled!(tracing::Level::DEBUG)
                .then(|| Box::new((request.method().clone(), request.uri().clone()))),
            metrics: self.metrics.clone(),
            answer: self.inner.call(request),
        }
    }
}

pin_project! {
    /// An answer that is counted and logged when it is there.
    pub struct Observing<F> {
        #[pin]
        answer: F,
        began: Instant,
        is_head: bool,
        asked: Option<Box<(Method, Uri)>>,
        metrics: Arc<Metrics>,
    }
}

impl<F: Future<Output = Outcome>> Future for Observing<F> {
    type Output = Result<Reply, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Answer { endpoint, mut reply, .. } = ready!(this.answer.poll(cx))?;
        if *this.is_head {
            *reply.body_mut() = ReplyBody::empty();
        }
        let elapsed = this.began.elapsed();
        if let Some(asked) = this.asked.take() {
            let (method, uri) = *asked;
            tracing::debug!(%method, %uri, status = reply.status().as_u16(), micros = elapsed.as_micros(), "answered");
        }
        this.metrics.answered(endpoint, reply.status(), elapsed);
        Poll::Ready(Ok(reply))
    }
}
