//! Stored streams on SQLite. The one writer thread makes all changes of them, many appends to a commit ([`writer`]);
//! reads go through the pool ([`reading`]); the current state of streams is kept in memory, as of the last commit
//! ([`directory`]), so that most requests ask the database for bytes alone.

mod directory;
mod heads;
mod reading;
mod writer;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bourn_protocol::StreamPath;
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::SqliteStorage;
use super::jobs::{StreamJob, WriterJob};
use crate::storage_error::StorageError;
use crate::streams::{
    AppendError, AppendStream, Appended, CreateError, CreateStream, Created, FillError, FindError,
    StreamChange, StreamInfo, Streams, unix_millis,
};
use directory::Directory;
pub(super) use reading::wants_collecting;
pub(super) use writer::StreamWriter;

/// Commits whose changes are kept for listeners; a listener that falls further behind has to assume that any stream has
/// changed.
const CHANGES_KEPT: usize = 1_024;

/// What the storage and its threads share of stored streams.
#[derive(Debug)]
pub(super) struct StreamsState {
    pub(super) directory: Directory,
    pub(super) changes: broadcast::Sender<Arc<[StreamChange]>>,
}

impl StreamsState {
    pub(super) fn new() -> StreamsState {
        StreamsState { directory: Directory::default(), changes: broadcast::Sender::new(CHANGES_KEPT) }
    }

    /// Another process has written to streams.
    pub(super) fn foreign_commit(&self) {
        self.directory.clear();
        // There may be no receiver.
        let _ = self.changes.send(Arc::new([StreamChange::Unknown]));
    }
}

impl SqliteStorage {
    fn stream_job(&self, job: StreamJob) -> Result<(), StorageError> {
        self.jobs.try_send(WriterJob::Stream(job)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StorageError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StorageError::Closed,
        })
    }
}

#[async_trait]
impl Streams for SqliteStorage {
    async fn create_stream(&self, create: CreateStream) -> Result<Created, CreateError> {
        let (answer, answered) = oneshot::channel();
        self.stream_job(StreamJob::Create(Box::new(create), answer))?;
        answered.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn append(&self, append: AppendStream) -> Result<Appended, AppendError> {
        let (answer, answered) = oneshot::channel();
        self.stream_job(StreamJob::Append(Box::new(append), answer))?;
        answered.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn delete_stream(&self, path: &StreamPath) -> Result<(), FindError> {
        let (answer, answered) = oneshot::channel();
        self.stream_job(StreamJob::Delete(path.clone(), answer))?;
        answered.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn find_stream(&self, path: &StreamPath) -> Result<Arc<StreamInfo>, FindError> {
        let now = unix_millis();
        let directory = &self.streams.directory;
        let (found, removals) = directory.get(path);
        let stream = match found {
            Some(stream) => stream,
            None => {
                let path = path.clone();
                let read = self.pool.read(move |connection| {
                    let snapshot = connection.transaction()?;
                    reading::find(&snapshot, &path)
                });
                match read.await? {
                    None => return Err(FindError::Missing),
                    Some(reading::FoundStream::Deleted) => return Err(FindError::Gone),
                    Some(reading::FoundStream::Live(stream)) => directory.put(stream, removals),
                }
            }
        };
        if !stream.expired(now) {
            return Ok(stream);
        }
        let id = stream.id;
        match self.pool.read(move |connection| reading::has_forks(connection, id)).await? {
            true => Err(FindError::Gone),
            false => Err(FindError::Missing),
        }
    }

    fn touch_stream(&self, stream: &StreamInfo) {
        let Some((saved, wanted)) = stream.read_at(unix_millis()) else { return };
        if self.stream_job(StreamJob::Touch(stream.path.clone(), wanted)).is_err() {
            stream.saved_deadline.store(saved, Ordering::Relaxed);
        }
    }

    async fn fill_stream(
        &self,
        stream: &StreamInfo,
        chunk: StoredChunkBuilder,
    ) -> Result<(StoredChunkBuilder, bool), FillError> {
        let (id, lineage) = (stream.id, stream.lineage.clone());
        let read = self.pool.read(move |connection| {
            let snapshot = connection.transaction()?;
            reading::fill(&snapshot, id, &lineage, chunk)
        });
        read.await?
    }

    async fn list_streams(
        &self,
        after: Option<&StreamPath>,
        limit: usize,
    ) -> Result<Vec<StreamPath>, StorageError> {
        let after = after.cloned();
        self.pool
            .read(move |connection| reading::list(connection, after.as_ref(), limit, unix_millis()))
            .await
    }

    fn stream_changes(&self) -> broadcast::Receiver<Arc<[StreamChange]>> {
        self.streams.changes.subscribe()
    }
}
