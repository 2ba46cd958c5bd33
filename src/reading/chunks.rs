//! The chunk cache: what reads return, kept within a budget of bytes. Concurrent misses of one chunk are one query.

use std::sync::{Arc, OnceLock};

use bourn_protocol::{Place, Selector, Seq};
use bytes::Bytes;
use metrics::Counter;
use moka::future::Cache;

use crate::head::Version;

/// Bytes that an entry of the cache takes beside its body and names: key, chunk and the cache's own bookkeeping.
const OVERHEAD: usize = 768;
/// Bytes that an event has beside those of its chunk.
const FRAME_OVERHEAD: usize = 256;

/// A chunk as the renderers need it.
#[derive(Debug)]
pub struct CachedChunk {
    /// Its bytes: of JSON an array of messages.
    pub body: Bytes,
    /// How many messages it holds.
    pub messages: usize,
    /// Where it starts.
    pub start: Seq,
    /// Where reading continues.
    pub next: Seq,
    /// The token of that place.
    pub offset: Place,
    /// It does not reach the tail: more follows at once.
    pub sealed: bool,
    /// It spans a part of the log that was lost: another chunk may have been served under its URL before, and a cache
    /// may still have that one.
    pub spans_gap: bool,
    /// The stream ends with it for good.
    pub closed: bool,
    /// Its entity tag.
    pub etag: String,
    /// The version of the log that it was read from; `None` for a stored stream.
    pub version: Option<Version>,
    /// Deletions up to this place had been removed from the stream when it was read.
    pub horizon: Seq,
    /// The end of the newest part of the log that was lost, if it lies ahead of where the chunk starts.
    pub gap: Option<Seq>,
    /// The chunk as an event, made by the first reader at the tail that needs it.
    pub(crate) frame: OnceLock<Bytes>,
}

impl CachedChunk {
    /// The chunk rendered, once for all who read it at the tail.
    pub fn frame(&self, render: impl FnOnce() -> Bytes) -> Bytes {
        self.frame.get_or_init(render).clone()
    }
}

/// The streams that chunks are of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StreamKey {
    /// As it was in this version of the log.
    Derived(Selector, Version),
    /// A stored stream, by its number, which is never reused.
    Stored(u64),
}

/// What a chunk depends on: the stream and the start; and, while it is not final, how far the stream was known to
/// reach, and whether it was known to be closed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChunkKey {
    /// The stream.
    pub stream: StreamKey,
    /// Where the chunk starts.
    pub start: Seq,
    /// How far the stream was known to reach, and whether it was closed; none where the chunk is final.
    pub head: Option<(Seq, bool)>,
}

/// Chunks of both products, within one budget of bytes.
pub struct ChunkCache {
    cache: Cache<ChunkKey, Arc<CachedChunk>>,
    hits: Counter,
    misses: Counter,
}

impl ChunkCache {
    /// A cache of so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> ChunkCache {
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(|key: &ChunkKey, chunk: &Arc<CachedChunk>| {
                let names = match &key.stream {
                    StreamKey::Derived(stream, _) => {
                        stream.scope.as_ref().map_or(0, |scope| scope.as_str().len())
                    }
                    StreamKey::Stored(_) => 0,
                };
                // A chunk at the tail may be kept as an event, too; in base64 that has a third more.
                let frame = if chunk.sealed { 0 } else { chunk.body.len() / 3 * 4 + FRAME_OVERHEAD };
                let weight = chunk.body.len() + frame + names + chunk.etag.len() + OVERHEAD;
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .build();
        let counted = |outcome| metrics::counter!("bourn_chunk_cache_total", "outcome" => outcome);
        ChunkCache { cache, hits: counted("hit"), misses: counted("miss") }
    }

    /// The chunk of a key without a head; `head` is how far the stream reaches as this server knows it, and whether it
    /// is closed; `load` asks the database.
    ///
    /// # Errors
    /// When `load` fails.
    pub async fn get<E: Clone + Send + Sync + 'static>(
        &self,
        key: ChunkKey,
        head: (Seq, bool),
        load: impl Future<Output = Result<CachedChunk, E>>,
    ) -> Result<Arc<CachedChunk>, E> {
        if let Some(chunk) = self.cache.get(&key).await {
            self.hits.increment(1);
            return Ok(chunk);
        }
        let passing = ChunkKey { head: Some(head), ..key.clone() };
        let load = async { load.await.map(Arc::new) };
        let entry = self.cache.entry(passing.clone()).or_try_insert_with(load).await;
        let entry = entry.map_err(|error: Arc<E>| E::clone(&error))?;
        if entry.is_fresh() { &self.misses } else { &self.hits }.increment(1);
        let chunk = entry.into_value();
        if chunk.sealed {
            self.cache.insert(key, chunk.clone()).await;
            self.cache.invalidate(&passing).await;
        }
        Ok(chunk)
    }
}
