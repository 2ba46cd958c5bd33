//! Stored streams on PostgreSQL, served by any number of servers at once. Appends go through [`append`]'s lanes, many
//! to a commit; [`control`] creates and deletes streams; [`collect`] removes those that are not needed any more;
//! [`reading`] asks the database; by [`news`] the servers notify each other.

mod append;
mod clock;
mod collect;
mod control;
mod news;
mod reading;
mod rows;
mod worker;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bourn_protocol::StreamPath;
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Inner, PostgresStorage};
use crate::storage_error::StorageError;
use crate::streams::{
    AppendError, AppendStream, Appended, CreateError, CreateStream, Created, FillError, FindError,
    StreamChange, StreamInfo, Streams,
};
use append::AppendLane;
pub(super) use news::{CHANNEL, Stored};
use worker::Worker;

/// Commits of appends that a server has under way at once.
const LANES: usize = 2;
/// Streams that a server creates or deletes at once.
const WORKERS: usize = 4;

/// The queues of jobs.
pub(super) struct Queues {
    lanes: Vec<mpsc::Sender<append::LaneJob>>,
    control: mpsc::Sender<control::WorkerJob>,
    hasher: foldhash::fast::FixedState,
}

impl Queues {
    /// Starts the tasks that do the jobs; they end when the server stops.
    pub(super) fn start(inner: &Inner, stop: &CancellationToken, tasks: &TaskTracker) -> Queues {
        let writers = TaskTracker::new();
        let waiting = inner.limits.write_queue;
        let lanes = (0..LANES).map(|_| {
            let (sender, jobs) = mpsc::channel(waiting);
            writers.spawn(
                inner.supervisor.watch("stream lane", AppendLane::new(inner.clone()).run(jobs, stop.clone())),
            );
            sender
        });
        let lanes = lanes.collect();
        let (control, jobs) = mpsc::channel(waiting);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..WORKERS {
            writers.spawn(
                inner
                    .supervisor
                    .watch("stream worker", Worker::new(inner.clone()).run(jobs.clone(), stop.clone())),
            );
        }
        writers.spawn(
            inner
                .supervisor
                .watch("stream collector", collect::run(Worker::new(inner.clone()), stop.clone())),
        );
        writers.close();
        let (telling, stop) = (inner.clone(), stop.clone());
        let news = async move { telling.stored.run(&telling, &stop, &writers).await };
        tasks.spawn(inner.supervisor.watch("stream news", news));
        Queues { lanes, control, hasher: foldhash::fast::FixedState::default() }
    }

    /// The lane of a stream.
    fn lane(&self, path: &StreamPath, job: append::LaneJob) -> Result<(), StorageError> {
        let lanes = u64::try_from(self.lanes.len()).unwrap_or(1).max(1);
        let lane = usize::try_from(self.hasher.hash_one(path) % lanes).unwrap_or(0);
        let lane = self.lanes.get(lane).ok_or(StorageError::Closed)?;
        lane.try_send(job).map_err(|refused| full(&refused))
    }
}

fn full<T>(refused: &TrySendError<T>) -> StorageError {
    match refused {
        TrySendError::Full(_) => StorageError::Overloaded,
        TrySendError::Closed(_) => StorageError::Closed,
    }
}

#[async_trait]
impl Streams for PostgresStorage {
    async fn create_stream(&self, create: CreateStream) -> Result<Created, CreateError> {
        let (answer, answered) = oneshot::channel();
        let job = control::WorkerJob::Create(Box::new(create), answer);
        self.queues.control.try_send(job).map_err(|refused| full(&refused))?;
        answered.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn append(&self, append: AppendStream) -> Result<Appended, AppendError> {
        let (answer, answered) = oneshot::channel();
        let path = append.path.clone();
        self.queues.lane(&path, append::LaneJob::Append(Box::new(append), answer))?;
        answered.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn delete_stream(&self, path: &StreamPath) -> Result<(), FindError> {
        let (answer, answered) = oneshot::channel();
        let job = control::WorkerJob::Delete(path.clone(), answer);
        self.queues.control.try_send(job).map_err(|refused| full(&refused))?;
        answered.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn find_stream(&self, path: &StreamPath) -> Result<Arc<StreamInfo>, FindError> {
        let now = self.inner.stored.now();
        let find = async {
            let mut reading = self.inner.db.single().await?;
            let found = reading::find(reading.connection(), &self.inner.stored, path).await?;
            let forked = match &found {
                Some(stream) if !stream.deleted && stream.expired(now) => {
                    Some(rows::has_forks(reading.connection(), stream.id).await?)
                }
                _ => None,
            };
            reading.commit().await?;
            Ok((found, forked))
        };
        match self.serve(find).await? {
            (None, _) | (_, Some(false)) => Err(FindError::Missing),
            (_, Some(true)) => Err(FindError::Gone),
            (Some(stream), None) if stream.deleted => Err(FindError::Gone),
            (Some(stream), None) => Ok(stream.found(now)),
        }
    }

    fn touch_stream(&self, stream: &StreamInfo) {
        let Some((saved, wanted)) = stream.read_at(self.inner.stored.now()) else { return };
        if self.queues.lane(&stream.path, append::LaneJob::Touch(stream.path.clone(), wanted)).is_err() {
            stream.saved_deadline.store(saved, Ordering::Relaxed);
        }
    }

    async fn fill_stream(
        &self,
        stream: &StreamInfo,
        chunk: StoredChunkBuilder,
    ) -> Result<(StoredChunkBuilder, bool), FillError> {
        let fill = async {
            let mut reading = self.inner.db.single().await?;
            let filled = reading::fill(reading.connection(), stream, chunk).await?;
            reading.commit().await?;
            Ok(filled)
        };
        self.serve(fill).await?
    }

    async fn list_streams(
        &self,
        after: Option<&StreamPath>,
        limit: usize,
    ) -> Result<Vec<StreamPath>, StorageError> {
        let list = async {
            let mut reading = self.inner.db.single().await?;
            let listed = reading::list(reading.connection(), after, limit, self.inner.stored.now()).await?;
            reading.commit().await?;
            Ok(listed)
        };
        self.serve(list).await
    }

    fn stream_changes(&self) -> broadcast::Receiver<Arc<[StreamChange]>> {
        self.inner.stored.subscribe()
    }
}
