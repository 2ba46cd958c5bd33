//! Sessions on the log: in step with the live tail where they can be, from the chunk cache and the log where not.

use std::sync::Arc;

use bourn_protocol::chunk::ChunkBuilder;
use bourn_protocol::{Offset, Selector, Seq};
use tokio::sync::watch;

use super::chunks::{CachedChunk, Key, StreamKey};
use super::{Batch, ReadError, Reader};
use crate::storage::StorageError;
use crate::tail::{Channel, Place};

pub(super) struct Follower {
    pub(super) channel: Arc<Channel>,
    pub(super) bell: watch::Receiver<Seq>,
}

/// A place in a stream that moves as batches are taken.
pub struct LogSession {
    pub(super) reader: Arc<Reader>,
    pub(super) stream: Selector,
    pub(super) position: Seq,
    /// Nothing of the stream lies between the position and here: a quiet stream's reader stands far behind the
    /// log's head, and still lacks nothing.
    pub(super) covered: Seq,
    pub(super) follower: Option<Follower>,
}

impl LogSession {
    /// The entity tag of a batch that ends where the session stands.
    pub(super) fn entity_tag(&self, batch: &Batch) -> String {
        let start = match batch {
            Batch::Live(live) => live.first,
            Batch::Chunk(chunk) => chunk.start,
            Batch::Nothing { .. } => Seq::ZERO,
        };
        let (epoch, stream) = (self.reader.epoch(), self.stream.fingerprint());
        bourn_protocol::cache::entity_tag(epoch, &stream, start, self.position, !batch.up_to_date())
    }

    /// The token of the place where the session stands.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.reader.offset(self.position)
    }

    /// Takes what follows, at once; it is empty at the tail.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read(&mut self) -> Result<Batch, ReadError> {
        if let Some(follower) = &mut self.follower {
            // What is rung for from here on is news.
            follower.bell.mark_unchanged();
            match follower.channel.after(self.covered) {
                Place::Next(batch) => {
                    self.position = batch.next;
                    self.covered = batch.next;
                    return Ok(Batch::Live(batch));
                }
                Place::CaughtUp => return Ok(Batch::Nothing { closed: false }),
                Place::Behind => {}
            }
        }
        // The tail may have come further than this server knew when it looked at the log's head.
        let rung = self.follower.as_ref().map_or(Seq::ZERO, |follower| *follower.bell.borrow());
        let known = (*self.reader.head.borrow()).max(rung);
        // Boxed: an event stream is in memory for a minute and reads the log once or twice.
        let chunk = Box::pin(self.chunk(known)).await?;
        let next = chunk.next;
        self.position = next;
        self.covered = if chunk.sealed { next } else { self.covered.max(known).max(next) };
        Ok(Batch::Chunk(chunk))
    }

    async fn chunk(&self, known: Seq) -> Result<Arc<CachedChunk>, ReadError> {
        let (stream, start, reader) = (&self.stream, self.position, &self.reader);
        let key = Key { stream: StreamKey::Derived(stream.clone()), start, head: None };
        let load = async {
            let epoch = reader.epoch();
            let builder = ChunkBuilder::new(stream.wording(), epoch, start, reader.limits);
            let chunk = reader.storage.fill(stream, builder).await?.finish();
            let fingerprint = stream.fingerprint();
            Ok::<_, StorageError>(CachedChunk {
                body: chunk.body.into(),
                messages: chunk.messages,
                start,
                next: chunk.next,
                offset: reader.offset(chunk.next).into(),
                sealed: chunk.sealed,
                closed: false,
                etag: bourn_protocol::cache::entity_tag(epoch, &fingerprint, start, chunk.next, chunk.sealed),
                frame: std::sync::OnceLock::new(),
            })
        };
        Ok(reader.chunks.get(key, (known, false), load).await?)
    }

    /// Waits until the stream may have gained something since the last [`LogSession::read`]. Never ends for a
    /// session that was not opened live.
    pub async fn changed(&mut self) {
        let rung = match &mut self.follower {
            Some(follower) => follower.bell.changed().await.is_ok(),
            None => false,
        };
        if !rung {
            std::future::pending::<()>().await;
        }
    }
}
