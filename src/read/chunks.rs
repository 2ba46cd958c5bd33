//! The chunk cache: what catch-up reads return, kept within a budget of bytes. Concurrent misses of one chunk
//! are one query.

use std::sync::Arc;

use bourn_protocol::chunk::{ChunkBuilder, ChunkLimits};
use bourn_protocol::{Epoch, Selector, Seq};
use bytes::Bytes;
use metrics::Counter;
use moka::future::Cache;

use crate::storage::{Storage, StorageError};

/// A chunk as the renderers need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedChunk {
    /// A JSON array of messages.
    pub body: Bytes,
    /// How many messages it holds.
    pub messages: usize,
    /// Where it starts.
    pub start: Seq,
    /// Where reading continues.
    pub next: Seq,
    /// It is final.
    pub sealed: bool,
    /// Its entity tag.
    pub etag: String,
}

/// What a chunk depends on: the stream and the start; and, while it is not final, the head of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    stream: Selector,
    start: Seq,
    head: Option<Seq>,
}

pub(super) struct ChunkCache {
    storage: Arc<dyn Storage>,
    epoch: Epoch,
    limits: ChunkLimits,
    cache: Cache<Key, Arc<CachedChunk>>,
    hits: Counter,
    misses: Counter,
}

impl ChunkCache {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        epoch: Epoch,
        limits: ChunkLimits,
        bytes: u64,
    ) -> ChunkCache {
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(|key: &Key, chunk: &Arc<CachedChunk>| {
                let names = key.stream.scope.as_ref().map_or(0, |scope| scope.as_str().len());
                u32::try_from(chunk.body.len() + names + 512).unwrap_or(u32::MAX)
            })
            .build();
        let counted = |outcome| metrics::counter!("bourn_chunk_cache_total", "outcome" => outcome);
        ChunkCache { storage, epoch, limits, cache, hits: counted("hit"), misses: counted("miss") }
    }

    /// The chunk that follows `start`; `head` is the head of the log as this server knows it.
    pub(super) async fn get(
        &self,
        stream: &Selector,
        start: Seq,
        head: Seq,
    ) -> Result<Arc<CachedChunk>, StorageError> {
        let final_key = Key { stream: stream.clone(), start, head: None };
        if let Some(chunk) = self.cache.get(&final_key).await {
            self.hits.increment(1);
            return Ok(chunk);
        }
        let key = Key { head: Some(head), ..final_key.clone() };
        let entry = self.cache.entry(key.clone()).or_try_insert_with(self.load(stream, start)).await;
        let entry = entry.map_err(|error: Arc<StorageError>| StorageError::clone(&error))?;
        if entry.is_fresh() { &self.misses } else { &self.hits }.increment(1);
        let chunk = entry.into_value();
        if chunk.sealed {
            self.cache.insert(final_key, chunk.clone()).await;
            self.cache.invalidate(&key).await;
        }
        Ok(chunk)
    }

    async fn load(&self, stream: &Selector, start: Seq) -> Result<Arc<CachedChunk>, StorageError> {
        let builder = ChunkBuilder::new(stream.wording(), self.epoch, start, self.limits);
        let chunk = self.storage.fill(stream, builder).await?.finish();
        let etag = bourn_protocol::cache::entity_tag(
            self.epoch,
            &stream.fingerprint(),
            start,
            chunk.next,
            chunk.sealed,
        );
        let body = Bytes::from(chunk.body);
        Ok(Arc::new(CachedChunk {
            body,
            messages: chunk.messages,
            start,
            next: chunk.next,
            sealed: chunk.sealed,
            etag,
        }))
    }
}
