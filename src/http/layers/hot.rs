//! Answers that are final, by their URL: sealed chunks, ready to be sent again. What most readers of a history ask
//! for is answered here without parsing anything.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bourn_protocol::Selector;
use bourn_protocol::cache::matches_tag;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use metrics::Counter;
use moka::sync::Cache;
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tokio_util::either::Either;
use tower_layer::Layer;
use tower_service::Service;

use super::{Admitted, Answer, EarlyOr, Outcome, early};
use crate::access::{Guarded, Rights};
use crate::head::Version;
use crate::http::respond::{CORP, Final, SelectorRead};
use crate::http::{Reply, ReplyBody};
use crate::telemetry::{Metrics, ModeFigures, ReadMode};

/// What an entry takes beside its URL, its headers and its body: the answer itself, and the cache's own notes.
const OVERHEAD: usize = 768;
/// What one header takes in a map beside its name and value.
const HEADER_OVERHEAD: usize = 112;

struct FinalAnswer {
    /// What was read: those who may not read it are not given it.
    stream: Selector,
    headers: HeaderMap,
    /// Those that go with 304.
    unmodified: HeaderMap,
    tag: HeaderValue,
    /// The content of the log that it was read from.
    version: Version,
    body: Bytes,
    messages: usize,
    /// Where it was asked for, as metrics name it.
    endpoint: &'static str,
}

impl FinalAnswer {
    /// What it takes to keep under a URL.
    fn weight(&self, url: &str) -> usize {
        let of = |headers: &HeaderMap| -> usize {
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD).sum()
        };
        url.len() + of(&self.headers) + of(&self.unmodified) + self.tag.len() + self.body.len() + OVERHEAD
    }
}

/// A bounded cache of final answers.
pub struct HotAnswers {
    answers: Cache<String, Arc<FinalAnswer>, foldhash::fast::RandomState>,
    /// The content of the log now: an answer of another one may hold what has left the log.
    version: watch::Receiver<Version>,
    hits: Counter,
}

impl HotAnswers {
    /// A cache of so many bytes, for a log of this version.
    #[must_use]
    pub fn new(bytes: u64, version: watch::Receiver<Version>) -> HotAnswers {
        let weigher =
            |url: &String, answer: &Arc<FinalAnswer>| u32::try_from(answer.weight(url)).unwrap_or(u32::MAX);
        let answers = Cache::builder()
            .max_capacity(bytes)
            .weigher(weigher)
            .build_with_hasher(foldhash::fast::RandomState::default());
        HotAnswers {
            answers,
            version,
            hits: metrics::counter!("bourn_chunk_cache_total", "outcome" => "answer"),
        }
    }

    /// The answer to a request and the endpoint it is of, if it is final and here; counted as delivered.
    fn get<B>(
        &self,
        request: &Request<B>,
        rights: &Rights,
        delivered: &ModeFigures,
    ) -> Option<(Reply, &'static str)> {
        if request.method() != Method::GET {
            return None;
        }
        let answer = self.answers.get(request.uri().path_and_query()?.as_str())?;
        if answer.version != *self.version.borrow() || answer.stream.check(rights).is_err() {
            return None;
        }
        self.hits.increment(1);
        let seen = request.headers().get(IF_NONE_MATCH).is_some_and(|sent| {
            sent == answer.tag
                || matches_tag(sent.to_str().unwrap_or_default(), answer.tag.to_str().unwrap_or_default())
        });
        if seen {
            let mut reply = Response::new(ReplyBody::empty());
            *reply.status_mut() = StatusCode::NOT_MODIFIED;
            *reply.headers_mut() = answer.unmodified.clone();
            return Some((reply, answer.endpoint));
        }
        delivered.count(answer.messages, answer.body.len());
        let mut reply = Response::new(answer.body.clone().into());
        *reply.headers_mut() = answer.headers.clone();
        Some((reply, answer.endpoint))
    }

    /// Keeps an answer if it is final: all its headers, as they are sent.
    fn keep(&self, url: &PathAndQuery, endpoint: &'static str, reply: &mut Reply) {
        let Some(Final(chunk)) = reply.extensions_mut().remove() else { return };
        let Some(SelectorRead(stream)) = reply.extensions_mut().remove() else { return };
        let headers = reply.headers().clone();
        let (Some(tag), Some(version)) = (headers.get(ETAG).cloned(), chunk.version) else { return };
        // What describes the body goes with the body.
        let of_body = [CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS, CORP];
        let kept = headers.iter().filter(|(name, _)| !of_body.contains(name));
        let unmodified = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        let (body, messages) = (chunk.body.clone(), chunk.messages);
        let answer = FinalAnswer { stream, headers, unmodified, tag, version, body, messages, endpoint };
        self.answers.insert(url.as_str().to_owned(), Arc::new(answer));
    }
}

/// Gives answers that are at hand, and keeps those that are final.
#[derive(Clone)]
pub(in crate::http) struct HotLayer {
    pub(in crate::http) answers: Arc<HotAnswers>,
    pub(in crate::http) metrics: Arc<Metrics>,
}

impl<S> Layer<S> for HotLayer {
    type Service = Hot<S>;

    fn layer(&self, inner: S) -> Hot<S> {
        Hot { inner, answers: self.answers.clone(), metrics: self.metrics.clone() }
    }
}

/// See [`HotLayer`].
#[derive(Clone)]
pub struct Hot<S> {
    inner: S,
    answers: Arc<HotAnswers>,
    metrics: Arc<Metrics>,
}

impl<S> Service<Admitted> for Hot<S>
where
    S: Service<Admitted, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = EarlyOr<Keeping<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, admitted: Admitted) -> Self::Future {
        let delivered = self.metrics.mode(ReadMode::CatchUp);
        match self.answers.get(&admitted.request, &admitted.rights, delivered) {
            Some((reply, endpoint)) => early(Answer { endpoint, reply, not_accepted: false }),
            None => Either::Right(Keeping {
                url: admitted.request.uri().path_and_query().cloned(),
                answers: self.answers.clone(),
                answer: self.inner.call(admitted),
            }),
        }
    }
}

pin_project! {
    /// An answer that is kept, if it is final.
    pub struct Keeping<F> {
        #[pin]
        answer: F,
        url: Option<PathAndQuery>,
        answers: Arc<HotAnswers>,
    }
}

impl<F: Future<Output = Outcome>> Future for Keeping<F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(cx))?;
        if let Some(url) = this.url {
            this.answers.keep(url, answer.endpoint, &mut answer.reply);
        }
        Poll::Ready(Ok(answer))
    }
}
