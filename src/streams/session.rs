//! Sessions on stored streams. The first reader that is woken at a place reads what follows into the chunk cache, for
//! all readers at that place; a bell says how far the stream reaches, so that no reader asks the database in vain.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bourn_protocol::chunk::{ChunkLimits, Feed};
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use bourn_protocol::stored::{Form, Payload};
use bourn_protocol::{ContentType, Place, ReadFrom, Seq, StreamOffset, StreamPath};
use tokio::sync::watch;

use super::bells::{BellState, Bells};
use super::error::{FillError, FindError};
use super::rules::after;
use super::{StreamInfo, Streams, unix_millis};
use crate::access::Permitted;
use crate::reading::{Batch, CachedChunk, ChunkCache, ChunkKey, Session, StreamKey};
use crate::storage_error::StorageError;

/// Why a stored stream cannot be read from a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamReadError {
    /// The stream cannot be found.
    #[error(transparent)]
    Find(FindError),
    /// The offset belongs to another stream.
    #[error(
        "the offset belongs to an earlier stream at this path: the stream was recreated; start again from -1"
    )]
    OtherStream,
    /// The offset lies past the end of the stream.
    #[error(
        "the offset lies past the end of the log: the database has lost changes; start again from -1 or from the list"
    )]
    PastTail,
    /// The offset was made up.
    #[error("{}", bourn_protocol::offset::InvalidOffset)]
    Misplaced,
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<FindError> for StreamReadError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Storage(error) => StreamReadError::Storage(error),
            other => StreamReadError::Find(other),
        }
    }
}

impl From<FillError> for StreamReadError {
    fn from(error: FillError) -> Self {
        match error {
            FillError::Missing => StreamReadError::Find(FindError::Missing),
            FillError::Misplaced => StreamReadError::Misplaced,
            FillError::Storage(error) => StreamReadError::Storage(error),
        }
    }
}

/// Reads stored streams.
pub struct StreamReader {
    streams: Arc<dyn Streams>,
    chunks: Arc<ChunkCache>,
    limits: ChunkLimits,
    bells: Arc<Bells>,
}

impl StreamReader {
    /// A reader of these streams; the bells report their changes.
    #[must_use]
    pub fn new(
        streams: Arc<dyn Streams>,
        bells: Arc<Bells>,
        chunks: Arc<ChunkCache>,
        limits: ChunkLimits,
    ) -> StreamReader {
        StreamReader { streams, chunks, limits, bells }
    }

    /// Opens a session; `live` when it is to be followed past the tail. A read counts as a use of the stream.
    ///
    /// # Errors
    /// When there is no such stream, the offset is none of its own, or the database cannot be asked.
    pub async fn open(
        self: &Arc<Self>,
        path: &Permitted<StreamPath>,
        from: ReadFrom<StreamOffset>,
        live: bool,
    ) -> Result<StreamSession, StreamReadError> {
        StreamSession::open(self.clone(), path, from, live).await
    }
}

/// A place in a stored stream that moves as batches are taken.
pub struct StreamSession {
    reader: Arc<StreamReader>,
    stream: Arc<StreamInfo>,
    position: StreamOffset,
    bell: Option<watch::Receiver<BellState>>,
    /// The bell's count of doubts at the last look at the database.
    doubts: u64,
}

impl StreamSession {
    async fn open(
        reader: Arc<StreamReader>,
        path: &StreamPath,
        from: ReadFrom<StreamOffset>,
        live: bool,
    ) -> Result<StreamSession, StreamReadError> {
        let mut stream = reader.streams.find_stream(path).await?;
        let bell = live.then(|| reader.bells.bell(&stream));
        let doubts = bell.as_ref().map_or(0, |bell| bell.borrow().doubts);
        if live {
            // Commits from before the bell was hung are known to the directory by now.
            stream = reader.streams.find_stream(path).await?;
        }
        reader.streams.touch_stream(&stream);
        let position = match from {
            ReadFrom::Start => StreamOffset::START,
            ReadFrom::Now => stream.offset(stream.tail),
            ReadFrom::At(offset) => {
                if stream.offset(offset.position) != offset {
                    return Err(StreamReadError::OtherStream);
                }
                if offset.position > stream.tail {
                    return Err(StreamReadError::PastTail);
                }
                offset
            }
        };
        Ok(StreamSession { reader, stream, position, bell, doubts })
    }

    /// How far the stream is known to reach and whether it is closed; with what the bell says, if it says as much.
    async fn mark(&mut self) -> Result<(Seq, bool, Option<BellState>), StreamReadError> {
        loop {
            let Some(bell) = &mut self.bell else { return Ok((self.stream.tail, self.stream.closed, None)) };
            let mark = bell.borrow_and_update().clone();
            if mark.gone || mark.doubts != self.doubts {
                self.doubts = mark.doubts;
                if self.find_again().await? {
                    continue;
                }
                if mark.gone {
                    return Err(StreamReadError::Find(FindError::Missing));
                }
            }
            let (tail, closed) = (self.stream.tail.max(mark.tail), self.stream.closed || mark.closed);
            return Ok((tail, closed, Some(mark).filter(|mark| mark.tail == tail)));
        }
    }

    /// Looks the stream up again; returns whether it goes on under another number, as streams do where the database may
    /// have lost appends. The session then goes on with it if all that it has read is there.
    async fn find_again(&mut self) -> Result<bool, StreamReadError> {
        let (reader, path) = (&self.reader, &self.stream.path);
        let mut found = reader.streams.find_stream(path).await?;
        let renumbered = found.id != self.stream.id;
        if renumbered {
            if self.bell.is_some() {
                let bell = reader.bells.bell(&found);
                self.doubts = bell.borrow().doubts;
                self.bell = Some(bell);
                // This finds commits from before the bell was hung.
                found = reader.streams.find_stream(path).await?;
            }
            let read = self.position.position;
            if found.content_type != self.stream.content_type
                || found.offset(read) != self.position
                || read > found.tail
            {
                return Err(StreamReadError::Find(FindError::Missing));
            }
        }
        self.stream = found;
        Ok(renumbered)
    }

    async fn read_once(&mut self) -> Result<Batch, StreamReadError> {
        let (tail, known_closed, mark) = self.mark().await?;
        if self.bell.is_some() && self.position.position >= tail {
            return Ok(Batch::Nothing { closed: known_closed, more: false });
        }
        let (stream, reader, start) = (&self.stream, &self.reader, self.position.position);
        let fresh = mark.as_ref().and_then(|mark| mark.since(start));
        let load = load(reader, stream, start, fresh.map(|fresh| (fresh, known_closed)));
        // Boxed: an event stream is in memory for a minute and reads seldom.
        let chunk = Box::pin(reader.chunks.get(key(stream, start), (tail, known_closed), load)).await?;
        self.position = self.stream.offset(chunk.next);
        Ok(Batch::Chunk(chunk))
    }
}

impl Session for StreamSession {
    type Error = StreamReadError;

    fn place(&self) -> Place {
        self.position.into()
    }

    fn content_type(&self) -> ContentType {
        self.stream.content_type.clone()
    }

    fn form(&self) -> Form {
        self.stream.content_type.form()
    }

    fn lifetime_left(&self) -> Option<Duration> {
        let deadline = self.stream.deadline.load(Ordering::Relaxed);
        let left = || deadline.saturating_sub(unix_millis()).max(0).unsigned_abs();
        (deadline != i64::MAX).then(|| Duration::from_millis(left()))
    }

    fn is_complete(&self) -> bool {
        true
    }

    fn entity_tag(&self, batch: &Batch) -> String {
        match batch {
            Batch::Chunk(chunk) => chunk.etag.clone(),
            // A read of a stored stream gives a chunk, or nothing.
            Batch::Live { .. } | Batch::Nothing { .. } => String::new(),
        }
    }

    async fn read(&mut self) -> Result<Batch, StreamReadError> {
        match self.read_once().await {
            // It may have been renumbered since it was found.
            Err(StreamReadError::Find(FindError::Missing)) if self.find_again().await? => {
                self.read_once().await
            }
            read => read,
        }
    }

    async fn changed(&mut self) {
        let rung = match &mut self.bell {
            Some(bell) => bell.changed().await.is_ok(),
            None => false,
        };
        if !rung {
            std::future::pending::<()>().await;
        }
    }
}

fn key(stream: &StreamInfo, start: Seq) -> ChunkKey {
    ChunkKey { stream: StreamKey::Stored(stream.id), start, head: None }
}

/// Reads the chunk that begins at a place: from the appends of the bell, which reach the tail, together with whether
/// the stream is closed there; else from the database.
async fn load(
    reader: &StreamReader,
    stream: &StreamInfo,
    start: Seq,
    fresh: Option<(&[Payload], bool)>,
) -> Result<CachedChunk, FillError> {
    let mut builder = StoredChunkBuilder::new(stream.content_type.form(), start, reader.limits.bytes);
    let (builder, closed) = match fresh {
        Some((fresh, closed)) => {
            for Payload { data, messages } in fresh {
                let Some(end) = after(builder.position(), data.len()) else { break };
                if builder.push(data, *messages, end) == Feed::Done {
                    break;
                }
            }
            (builder, closed)
        }
        None => reader.streams.fill_stream(stream, builder).await?,
    };
    let chunk = builder.finish();
    let closed = closed && !chunk.sealed;
    let (first, next) = (stream.offset(start), stream.offset(chunk.next));
    let state = if chunk.sealed { "s" } else { "t" };
    let end = if closed { ":c" } else { "" };
    Ok(CachedChunk {
        version: None,
        horizon: Seq::ZERO,
        gap: None,
        spans_gap: false,
        body: chunk.body.into_boxed_slice().into(),
        messages: chunk.messages,
        start,
        next: chunk.next,
        offset: next.into(),
        sealed: chunk.sealed,
        closed,
        etag: format!("\"{}:{first}:{next}:{state}{end}\"", stream.id),
        frame: OnceLock::new(),
    })
}
