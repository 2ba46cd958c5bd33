//! Creating and deleting streams. Each is a transaction of its own, a few of which are under way at once: the database
//! makes them durable together.

use std::sync::Arc;

use bourn_protocol::StreamPath;
use sqlx::Row;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::collect::{Removed, remove};
use super::rows::{append_at, columns, stream_state};
use super::worker::Worker;
use crate::databases::postgres::connections::{Session, scalar, statement};
use crate::databases::postgres::error;
use crate::databases::postgres::log::history::must_be_settled;
use crate::storage_error::StorageError;
use crate::streams::beginning::{Beginning, NewStream, leaves_at};
use crate::streams::rules::{lifetime_columns, matches};
use crate::streams::state::StreamState;
use crate::streams::{CreateError, CreateStream, Created, FindError};

/// How often an attempt that another server anticipated is repeated.
const ATTEMPTS: usize = 8;

/// A job of the workers.
pub(super) enum WorkerJob {
    /// Create a stream.
    Create(Box<CreateStream>, oneshot::Sender<Result<Created, CreateError>>),
    /// Delete one.
    Delete(StreamPath, oneshot::Sender<Result<(), FindError>>),
}

/// The result of an attempt to create a stream.
enum Attempt {
    Done(Result<Created, CreateError>),
    /// An expired stream is at the path, and must be removed first.
    Expired,
    /// Another server came first.
    Again,
}

impl Worker {
    /// Works until the server stops, and then does the jobs that wait.
    pub(super) async fn run(mut self, jobs: Arc<Mutex<mpsc::Receiver<WorkerJob>>>, stop: CancellationToken) {
        loop {
            let job = {
                let mut jobs = jobs.lock().await;
                tokio::select! {
                    job = jobs.recv() => job,
                    () = stop.cancelled() => {
                        jobs.close();
                        jobs.recv().await
                    }
                }
            };
            // The caller may have gone.
            match job {
                None => return,
                Some(WorkerJob::Create(create, to)) => drop(to.send(Box::pin(self.create(&create)).await)),
                Some(WorkerJob::Delete(path, to)) => drop(to.send(Box::pin(self.delete(&path)).await)),
            }
        }
    }

    async fn delete(&mut self, path: &StreamPath) -> Result<(), FindError> {
        let removed = self.remove_in_time(path, false).await.map_err(|e| error::storage(&e))?;
        match removed {
            Removed::Missing => Err(FindError::Missing),
            Removed::Kept => Err(FindError::Gone),
            Removed::Now { expired: true, kept: false } => Err(FindError::Missing),
            Removed::Now { expired: true, kept: true } => Err(FindError::Gone),
            Removed::Now { expired: false, .. } | Removed::InUse => Ok(()),
        }
    }

    /// Removes the stream at a path within the time that a request has.
    pub(super) async fn remove_in_time(
        &mut self,
        path: &StreamPath,
        expired_only: bool,
    ) -> Result<Removed, sqlx::Error> {
        let db = self.inner.db.clone();
        let tried = db.in_time(remove(self, path, expired_only)).await;
        self.known(tried)
    }

    async fn create(&mut self, create: &CreateStream) -> Result<Created, CreateError> {
        for _ in 0..ATTEMPTS {
            let db = self.inner.db.clone();
            let tried = db.in_time(self.try_create(create)).await;
            let attempt = match self.known(tried) {
                // A deadlock: the database aborted this transaction in favour of another one.
                Err(failure) if matches!(error::code(&failure).as_deref(), Some("40001" | "40P01")) => {
                    Attempt::Again
                }
                attempt => attempt.map_err(|e| error::storage(&e))?,
            };
            match attempt {
                Attempt::Done(result) => return result,
                Attempt::Again => {}
                Attempt::Expired => {
                    self.remove_in_time(&create.path, true).await.map_err(|e| error::storage(&e))?;
                }
            }
        }
        Err(StorageError::Busy.into())
    }

    async fn try_create(&mut self, create: &CreateStream) -> Result<Attempt, sqlx::Error> {
        let now = self.inner.stored.now();
        let mut transaction = self.inner.db.begin().await?;
        let source = create.fork.as_ref().map(|fork| &fork.source);
        let (there, source) = self.lock(&mut transaction, &create.path, source).await?;
        match there {
            Some(stream) if stream.deleted => return Ok(Attempt::Done(Err(CreateError::Blocked))),
            Some(stream) if stream.expired(now) => return Ok(Attempt::Expired),
            Some(stream) => {
                let same = matches(&stream.configuration(), create);
                return Ok(Attempt::Done(same.map(|()| Created { stream: stream.info(now), new: false })));
            }
            None => {}
        }
        let beginning = match &create.fork {
            None => Ok(Beginning::without_source(create)),
            Some(fork) => match (leaves_at(create, fork, source.as_ref(), now), &source) {
                (Ok(at), Some(source)) => {
                    let next = append_at(&mut transaction, &source.lineage, at.position).await?;
                    Beginning::fork(create, fork, source, at, next.as_ref())
                }
                (Ok(_), None) => Err(CreateError::SourceMissing),
                (Err(refused), _) => Err(refused),
            },
        };
        let most_bytes = self.inner.limits.stream_limit.get();
        let new_stream = match beginning.and_then(|beginning| beginning.with_body(create, most_bytes)) {
            Ok(new_stream) => new_stream,
            Err(refused) => return Ok(Attempt::Done(Err(refused))),
        };
        let most = i64::try_from(self.inner.limits.streams).unwrap_or(i64::MAX);
        // The new stream's number may have been given to a stream that was lost.
        must_be_settled(&mut transaction).await?;
        let Some(id) = insert(&mut transaction, create, &new_stream, most, now).await? else {
            let total: i64 = scalar(TOTAL).fetch_one(&mut *transaction).await?;
            return Ok(match total >= most {
                true => Attempt::Done(Err(CreateError::TooMany)),
                false => Attempt::Again,
            });
        };
        let mut stream = new_stream.numbered(create, id.cast_unsigned(), now);
        let parts = || new_stream.parts.iter().filter(|(_, part)| part.messages > 0);
        statement(
            "WITH data AS (\
             INSERT INTO bourn.stream_data (stream_id, start, messages, data) \
             SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bytea[])) \
             INSERT INTO bourn.stream_writers AS w (id, commits, streams) VALUES ($5, $6, 1) \
             ON CONFLICT (id) DO UPDATE SET commits = excluded.commits, streams = w.streams + 1, seen_at = excluded.seen_at",
        )
        .bind(id)
        .bind(parts().map(|(start, _)| start.as_i64()).collect::<Vec<_>>())
        .bind(parts().map(|(_, part)| i64::try_from(part.messages).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .bind(parts().map(|(_, part)| &part.data[..]).collect::<Vec<_>>())
        .bind(self.counter.writer)
        .bind(self.counter.next())
        .execute(&mut *transaction)
        .await?;
        self.commit(transaction, vec![stream.moved(&mut 0)]).await?;
        Ok(Attempt::Done(Ok(Created { stream: stream.info(now), new: true })))
    }

    /// The stream at the path and the source, locked in the order of their numbers.
    async fn lock(
        &self,
        transaction: &mut Session,
        path: &StreamPath,
        source: Option<&StreamPath>,
    ) -> Result<(Option<StreamState>, Option<StreamState>), sqlx::Error> {
        let paths: Vec<&str> = std::iter::once(path).chain(source).map(StreamPath::as_str).collect();
        let rows = statement(concat!(
            "SELECT ",
            columns!(),
            " FROM bourn.streams WHERE path = ANY($1) ORDER BY id FOR UPDATE"
        ))
        .bind(paths)
        .fetch_all(&mut **transaction)
        .await?;
        let (mut there, mut from) = (None, None);
        for row in &rows {
            let found = stream_state(transaction, &self.inner.stored, row).await?;
            if Some(&found.path) == source {
                from = Some(found.clone());
            }
            if found.path == *path {
                there = Some(found);
            }
        }
        Ok((there, from))
    }
}

/// How many streams there are.
const TOTAL: &str = "SELECT coalesce(sum(streams), 0)::bigint FROM bourn.stream_writers";

/// Makes the stream's row, unless the limit of streams is reached, or another server has made one there.
async fn insert(
    transaction: &mut Session,
    create: &CreateStream,
    new_stream: &NewStream,
    most: i64,
    now: i64,
) -> Result<Option<i64>, sqlx::Error> {
    let Beginning { content_type, lifetime, base, source_id, .. } = &new_stream.beginning;
    let (ttl, expires_at) = lifetime_columns(*lifetime);
    let fork = create.fork.as_ref();
    let row = statement(
        "INSERT INTO bourn.streams (path, content_type, tail, closed, ttl, expires_at, deadline, source_id, source_path, \
         base, fork_offset, fork_sub) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 \
         WHERE (SELECT coalesce(sum(streams), 0) FROM bourn.stream_writers) < $13 \
         ON CONFLICT (path) DO NOTHING RETURNING id",
    )
    .bind(create.path.as_str())
    .bind(content_type.as_str())
    .bind(new_stream.tail.as_i64())
    .bind(create.closed)
    .bind(ttl)
    .bind(expires_at)
    .bind(lifetime.deadline(now))
    .bind(source_id.map(u64::cast_signed))
    .bind(fork.map(|fork| fork.source.as_str()))
    .bind(base.as_i64())
    .bind(new_stream.fork_offset.map(|offset| offset.to_string()))
    .bind(fork.map_or(0, |fork| fork.sub).cast_signed())
    .bind(most)
    .fetch_optional(&mut **transaction)
    .await?;
    row.map(|row| row.try_get(0)).transpose()
}
