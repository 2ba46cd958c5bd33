//! Answers that are final, by their URL: sealed chunks, ready to be sent again. What most readers of a history ask
//! for is answered here without parsing anything.

use std::sync::Arc;

use bourn_protocol::cache::matches_tag;
use bytes::Bytes;
use http::header::{ETAG, IF_NONE_MATCH};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use metrics::Counter;
use moka::sync::Cache;

use super::{Reply, ReplyBody};

/// What an entry costs beside its body.
const OVERHEAD: usize = 2_048;

struct FinalAnswer {
    headers: HeaderMap,
    body: Bytes,
    messages: usize,
}

/// A bounded cache of final answers.
pub struct HotAnswers {
    answers: Cache<String, Arc<FinalAnswer>, foldhash::fast::RandomState>,
    hits: Counter,
}

impl HotAnswers {
    /// A cache of so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> HotAnswers {
        let weigher = |url: &String, answer: &Arc<FinalAnswer>| {
            u32::try_from(url.len() + answer.body.len() + OVERHEAD).unwrap_or(u32::MAX)
        };
        let answers = Cache::builder()
            .max_capacity(bytes)
            .weigher(weigher)
            .build_with_hasher(foldhash::fast::RandomState::default());
        HotAnswers { answers, hits: metrics::counter!("bourn_chunk_cache_total", "outcome" => "answer") }
    }

    /// The answer to a request, if it is final and here; with the messages and bytes it delivers.
    pub(super) fn get<B>(&self, request: &Request<B>) -> Option<(Reply, usize, usize)> {
        if request.method() != Method::GET {
            return None;
        }
        let answer = self.answers.get(request.uri().path_and_query()?.as_str())?;
        self.hits.increment(1);
        let seen = match (request.headers().get(IF_NONE_MATCH), answer.headers.get(ETAG)) {
            (Some(sent), Some(tag)) => {
                sent == tag
                    || matches_tag(sent.to_str().unwrap_or_default(), tag.to_str().unwrap_or_default())
            }
            _ => false,
        };
        let mut reply = Response::new(if seen { ReplyBody::empty() } else { answer.body.clone().into() });
        *reply.headers_mut() = answer.headers.clone();
        if !seen {
            return Some((reply, answer.messages, answer.body.len()));
        }
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply.headers_mut().remove(http::header::CONTENT_TYPE);
        Some((reply, 0, 0))
    }

    /// Keeps a final answer: all its headers, as they were sent.
    pub(super) fn put<B>(&self, request: &Request<B>, headers: HeaderMap, body: Bytes, messages: usize) {
        if let Some(url) = request.uri().path_and_query() {
            self.answers.insert(url.as_str().to_owned(), Arc::new(FinalAnswer { headers, body, messages }));
        }
    }
}
