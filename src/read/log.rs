//! Sessions on the log: in step with the live tail where they can be, from the chunk cache and the log where not.

use std::sync::Arc;

use bourn_protocol::chunk::ChunkBuilder;
use bourn_protocol::{Epoch, Offset, Selector, Seq};
use tokio::sync::watch;

use super::chunks::{CachedChunk, Key, StreamKey};
use super::{Batch, Gone, ReadError, Reader};
use crate::storage::Kept;
use crate::tail::{Channel, Place};

pub(super) struct Follower {
    pub(super) channel: Arc<Channel>,
    pub(super) bell: watch::Receiver<Seq>,
}

/// A place in a stream that moves as batches are taken.
pub struct LogSession {
    pub(super) reader: Arc<Reader>,
    pub(super) stream: Selector,
    /// The log that the place is in.
    pub(super) epoch: Epoch,
    pub(super) position: Seq,
    /// Nothing of the stream lies between the position and here: a quiet stream's reader stands far behind the
    /// log's head, and still lacks nothing.
    pub(super) covered: Seq,
    /// The session has read all that is kept from the start, when deletions up to here were not any more.
    pub(super) since: Option<Seq>,
    pub(super) follower: Option<Follower>,
    /// Something was read.
    pub(super) begun: bool,
}

impl LogSession {
    /// The entity tag of a batch that ends where the session stands.
    pub(super) fn entity_tag(&self, batch: &Batch) -> String {
        let start = match batch {
            Batch::Live { batch, .. } => batch.first,
            Batch::Chunk(chunk) => chunk.start,
            Batch::Nothing { .. } => Seq::ZERO,
        };
        let stream = self.stream.fingerprint();
        // A batch from the tail has the tag of the chunk that a reader at its start was given, whatever followed since.
        let sealed = !batch.up_to_date() && !matches!(batch, Batch::Live { .. });
        bourn_protocol::cache::entity_tag(self.epoch, &stream, start, self.position, sealed)
    }

    /// The token of the place where the session stands.
    #[must_use]
    pub fn offset(&self) -> Offset {
        Offset { since: self.since, ..Offset::new(self.epoch, self.position) }
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
                Place::Next { batch, last } => {
                    self.position = batch.next;
                    self.covered = batch.next;
                    self.since = None;
                    return Ok(Batch::Live { batch, last });
                }
                // The tail may not have come as far as the log when the session begins: it has no part of that yet.
                Place::CaughtUp { .. }
                    if !std::mem::replace(&mut self.begun, true)
                        && self.covered < self.reader.head.borrow().seq
                        && self.reader.tail.head() < self.reader.head.borrow().seq => {}
                Place::CaughtUp { more } => return Ok(Batch::Nothing { closed: false, more }),
                Place::Gone => return Err(ReadError::Gone(Gone::OtherLog)),
                Place::Behind => {}
            }
        }
        // The tail may have come further than this server knew when it looked at the log's head.
        let rung = self.follower.as_ref().map_or(Seq::ZERO, |follower| *follower.bell.borrow());
        let known = self.reader.head.borrow().seq.max(rung);
        // Boxed: an event stream is in memory for a minute and reads the log once or twice.
        let chunk = Box::pin(self.chunk(known)).await?;
        // Deletions that followed this place are not kept any more; unless nothing before them is missing either.
        let (start, horizon) = (self.position, chunk.horizon);
        if start != Seq::ZERO && start < horizon && self.since != Some(horizon) {
            return Err(ReadError::Gone(Gone::BehindHorizon));
        }
        let next = chunk.next;
        self.position = next;
        self.since = since(next, horizon, chunk.gap);
        self.covered = if chunk.sealed { next } else { self.covered.max(known).max(next) };
        Ok(Batch::Chunk(chunk))
    }

    async fn chunk(&self, known: Seq) -> Result<Arc<CachedChunk>, ReadError> {
        let (stream, start, reader, epoch) = (&self.stream, self.position, &self.reader, self.epoch);
        let version = *reader.version.borrow();
        if version.epoch != epoch && version.epoch == reader.epoch() {
            return Err(ReadError::Gone(Gone::OtherLog));
        }
        let key = Key { stream: StreamKey::Derived(stream.clone(), version), start, head: None };
        let load = async {
            let builder = ChunkBuilder::new(stream.wording(), epoch, start, reader.limits);
            let (filled, Kept { version, horizon, lost, spans, gap }) =
                reader.storage.fill(stream, builder).await?;
            if version.epoch != epoch {
                return Err(ReadError::Gone(Gone::OtherLog));
            }
            if lost {
                return Err(ReadError::Gone(Gone::Lost));
            }
            let chunk = filled.finish();
            // At the tail nothing is missing, so the place may be told as one past the horizon.
            let next = if chunk.sealed { chunk.next } else { chunk.next.max(horizon) };
            let since = since(next, horizon, gap);
            let mut fingerprint = stream.fingerprint();
            if version.generation > 0 {
                fingerprint += &format!(".{}", version.generation);
            }
            Ok::<_, ReadError>(CachedChunk {
                body: chunk.body.into_boxed_slice().into(),
                messages: chunk.messages,
                start,
                next,
                offset: Offset { since, ..Offset::new(epoch, next) }.into(),
                sealed: chunk.sealed,
                spans_gap: spans,
                closed: false,
                etag: bourn_protocol::cache::entity_tag(epoch, &fingerprint, start, next, chunk.sealed),
                version: Some(version),
                horizon,
                gap,
                frame: std::sync::OnceLock::new(),
            })
        };
        reader.chunks.get(key, (known, false), load).await
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

/// What the token of a place carries beside it: the horizon where that lies ahead; else the end of the newest part of the
/// log that was lost, if that lies ahead. What is read in front of such a part has addresses of its own: under
/// the plain ones a cache may still have chunks that lead into what was lost.
fn since(next: Seq, horizon: Seq, gap: Option<Seq>) -> Option<Seq> {
    if next < horizon { Some(horizon) } else { gap.filter(|gap| next < *gap) }
}
