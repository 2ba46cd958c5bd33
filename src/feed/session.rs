//! Read sessions on the log: in step with the live tail where they can be, from the chunk cache and the log where not.

use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::chunk::{ChunkBuilder, ChunkLimits};
use bourn_protocol::stored::Form;
use bourn_protocol::{ContentType, Epoch, Offset, Place, ReadFrom, Selector, Seq};
use tokio::sync::watch;

use super::entity::Catalog;
use super::tail::{Channel, ChannelRead, Tail};
use super::{Capture, Log, ReadLosses};
use crate::access::Permitted;
use crate::head::{Head, Version};
use crate::reading::{Batch, CachedChunk, ChunkCache, ChunkKey, Session, StreamKey};
use crate::storage_error::StorageError;

/// Why the log cannot be read from a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedReadError {
    /// The offset is not one that can be read from.
    #[error("{}", .0.explain())]
    Gone(Gone),
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why an offset is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It belongs to another log.
    OtherLog,
    /// It lies past the end of the log.
    PastTail,
    /// It lies in a part of the log that the database has lost.
    Lost,
    /// What followed it is not kept any more.
    BehindHorizon,
}

impl Gone {
    const fn explain(self) -> &'static str {
        match self {
            Gone::OtherLog => {
                "the offset belongs to another log: the database was replaced or restored; start again from -1 or from the list"
            }
            Gone::PastTail => {
                "the offset lies past the end of the log: the database has lost changes; start again from -1 or from the list"
            }
            Gone::Lost => {
                "the offset lies in a part of the log that the database has lost; start again from -1 or from the list"
            }
            Gone::BehindHorizon => {
                "what followed the offset is not kept any more; start again from -1 or from the list"
            }
        }
    }
}

/// Reads the streams that are derived from the log.
pub struct LogReader {
    log: Arc<dyn Log>,
    chunks: Arc<ChunkCache>,
    limits: ChunkLimits,
    tail: Arc<Tail>,
    catalog: Arc<Catalog>,
    head: watch::Receiver<Head>,
    version: watch::Receiver<Version>,
}

impl LogReader {
    /// A reader of the log that `capture` fills.
    #[must_use]
    pub fn new(
        log: Arc<dyn Log>,
        capture: &dyn Capture,
        tail: Arc<Tail>,
        catalog: Arc<Catalog>,
        chunks: Arc<ChunkCache>,
        limits: ChunkLimits,
    ) -> LogReader {
        let (head, version) = (capture.head(), capture.version());
        LogReader { log, chunks, limits, tail, catalog, head, version }
    }

    /// The epoch of the log as it is now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.head.borrow().epoch
    }

    /// The token of a place in the log as it is now.
    #[must_use]
    pub fn offset(&self, seq: Seq) -> Offset {
        Offset::new(self.epoch(), seq)
    }

    /// Opens a session; `live` when it is to be followed past the tail.
    ///
    /// # Errors
    /// When the offset is gone, or the database cannot be asked.
    pub async fn open(
        self: &Arc<Self>,
        stream: Permitted<Selector>,
        from: ReadFrom,
        live: bool,
    ) -> Result<LogSession, FeedReadError> {
        let stream = stream.into_inner();
        // The channel is opened first, so that every later commit is in the log when it is read, or in the channel.
        let channel = live.then(|| self.tail.channel(&stream));
        let mut since = None;
        let Head { epoch, seq: position } = match from {
            ReadFrom::Start => Head { epoch: self.epoch(), seq: Seq::ZERO },
            ReadFrom::Now => self.log.stream_tail(&stream).await?,
            ReadFrom::At(offset) => {
                self.check(offset).await?;
                since = offset.since;
                Head { epoch: offset.epoch, seq: offset.seq }
            }
        };
        if channel.as_ref().is_some_and(|channel| channel.epoch() != epoch) {
            // The log was replaced a moment ago.
            return Err(FeedReadError::Gone(Gone::OtherLog));
        }
        let follower = channel.map(|channel| Follower { bell: channel.bell(), channel });
        Ok(LogSession {
            reader: self.clone(),
            stream,
            epoch,
            position,
            covered: position,
            since,
            follower,
            begun: false,
        })
    }

    /// The place of a stream's last activity.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn tail(&self, stream: &Permitted<Selector>) -> Result<Head, StorageError> {
        self.log.stream_tail(stream).await
    }

    async fn check(&self, offset: Offset) -> Result<(), FeedReadError> {
        let known = *self.head.borrow();
        if offset.epoch == known.epoch && offset.seq <= known.seq {
            return Ok(());
        }
        // This server may be a moment behind another one: the database decides.
        let head = self.log.bounds().await?;
        match offset {
            offset if offset.epoch != head.epoch => Err(FeedReadError::Gone(Gone::OtherLog)),
            offset if offset.seq > head.seq => Err(FeedReadError::Gone(Gone::PastTail)),
            _ => Ok(()),
        }
    }
}

struct Follower {
    channel: Arc<Channel>,
    bell: watch::Receiver<Seq>,
}

/// A place in a stream that moves as batches are taken.
pub struct LogSession {
    reader: Arc<LogReader>,
    stream: Selector,
    /// The log that the place is in.
    epoch: Epoch,
    position: Seq,
    /// The stream has no message between the position and this place: the reader of a quiet stream may stand far behind
    /// the log's head and still lack nothing.
    covered: Seq,
    /// Set once the session has read from the start all that is kept: deletions up to this place had been removed by
    /// then.
    since: Option<Seq>,
    follower: Option<Follower>,
    /// Something was read.
    begun: bool,
}

impl LogSession {
    /// The token of the place where the session stands.
    fn offset(&self) -> Offset {
        Offset { since: self.since, ..Offset::new(self.epoch, self.position) }
    }

    async fn chunk(&self, known: Seq) -> Result<Arc<CachedChunk>, FeedReadError> {
        let (stream, start, reader, epoch) = (&self.stream, self.position, &self.reader, self.epoch);
        let version = *reader.version.borrow();
        if version.epoch != epoch && version.epoch == reader.epoch() {
            return Err(FeedReadError::Gone(Gone::OtherLog));
        }
        let key = ChunkKey { stream: StreamKey::Derived(stream.clone(), version), start, head: None };
        let load = async {
            let builder = ChunkBuilder::new(stream.wording(), epoch, start, reader.limits);
            let (filled, ReadLosses { version, horizon, lost, spans, gap }) =
                reader.log.fill(stream, builder).await?;
            if version.epoch != epoch {
                return Err(FeedReadError::Gone(Gone::OtherLog));
            }
            if lost {
                return Err(FeedReadError::Gone(Gone::Lost));
            }
            let chunk = filled.finish();
            // At the tail the reader lacks nothing, so its place may be given as one past the horizon.
            let next = if chunk.sealed { chunk.next } else { chunk.next.max(horizon) };
            let since = since(next, horizon, gap);
            let mut fingerprint = stream.fingerprint();
            if version.removals > 0 {
                fingerprint += &format!(".{}", version.removals);
            }
            Ok::<_, FeedReadError>(CachedChunk {
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
}

impl Session for LogSession {
    type Error = FeedReadError;

    fn place(&self) -> Place {
        self.offset().into()
    }

    fn content_type(&self) -> ContentType {
        ContentType::json()
    }

    fn form(&self) -> Form {
        Form::Json
    }

    fn lifetime_left(&self) -> Option<Duration> {
        None
    }

    fn is_complete(&self) -> bool {
        let mut entities = self.stream.types.names().unwrap_or_default().iter();
        entities.all(|name| self.reader.catalog.by_name(name).is_none_or(|entity| entity.complete().is_ok()))
    }

    fn entity_tag(&self, batch: &Batch) -> String {
        let start = match batch {
            Batch::Chunk(chunk) => return chunk.etag.clone(),
            Batch::Live { batch, .. } => batch.first,
            Batch::Nothing { .. } => Seq::ZERO,
        };
        let stream = self.stream.fingerprint();
        // A batch from the tail has the tag of the chunk that a reader at its start got, whatever followed since.
        let sealed = !batch.up_to_date() && !matches!(batch, Batch::Live { .. });
        bourn_protocol::cache::entity_tag(self.epoch, &stream, start, self.position, sealed)
    }

    async fn read(&mut self) -> Result<Batch, FeedReadError> {
        if let Some(follower) = &mut self.follower {
            // From here on only new rings count.
            follower.bell.mark_unchanged();
            match follower.channel.after(self.covered) {
                ChannelRead::Next { batch, last } => {
                    self.position = batch.next;
                    self.covered = batch.next;
                    self.since = None;
                    return Ok(Batch::Live { batch, last });
                }
                // The tail may be behind the log when the session begins: it does not have that part yet.
                ChannelRead::CaughtUp { .. }
                    if !std::mem::replace(&mut self.begun, true)
                        && self.covered < self.reader.head.borrow().seq
                        && self.reader.tail.head() < self.reader.head.borrow().seq => {}
                ChannelRead::CaughtUp { more } => return Ok(Batch::Nothing { closed: false, more }),
                ChannelRead::Gone => return Err(FeedReadError::Gone(Gone::OtherLog)),
                ChannelRead::Behind => {}
            }
        }
        // The tail may have come further than this server knew when it looked at the log's head.
        let rung = self.follower.as_ref().map_or(Seq::ZERO, |follower| *follower.bell.borrow());
        let known = self.reader.head.borrow().seq.max(rung);
        // Boxed: an event stream is in memory for a minute and reads the log once or twice.
        let chunk = Box::pin(self.chunk(known)).await?;
        // Deletions after this place were removed, so it is gone; unless the reader started when they were removed
        // already.
        let (start, horizon) = (self.position, chunk.horizon);
        if start != Seq::ZERO && start < horizon && self.since != Some(horizon) {
            return Err(FeedReadError::Gone(Gone::BehindHorizon));
        }
        let next = chunk.next;
        self.position = next;
        self.since = since(next, horizon, chunk.gap);
        self.covered = if chunk.sealed { next } else { self.covered.max(known).max(next) };
        Ok(Batch::Chunk(chunk))
    }

    async fn changed(&mut self) {
        let rung = match &mut self.follower {
            Some(follower) => follower.bell.changed().await.is_ok(),
            None => false,
        };
        if !rung {
            std::future::pending::<()>().await;
        }
    }
}

/// What a token carries beside its place: the horizon where that lies ahead, else the end of the newest lost part of
/// the log, if that lies ahead. Reads in front of a lost part have URLs of their own: under the plain ones a cache may
/// still have chunks that lead into the lost part.
fn since(next: Seq, horizon: Seq, gap: Option<Seq>) -> Option<Seq> {
    if next < horizon { Some(horizon) } else { gap.filter(|gap| next < *gap) }
}
