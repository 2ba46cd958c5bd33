//! Appending. A server has a few lanes, and a stream always the same one; appends that wait in a lane while a commit is
//! on its way share the next one. The streams' rows are locked in the order of their numbers, which makes appends by
//! different servers wait for one another without ever waiting in a circle; places are given under the lock, which is
//! kept until the commit, so that a stream's order is the order of its commits. Nothing is answered before the commit
//! is durable.

use std::collections::{HashMap, HashSet};

use bourn_protocol::StreamPath;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::news::Counter;
use super::rows::{columns, forked_from, number, stream_state};
use crate::databases::postgres::connections::{Session, statement};
use crate::databases::postgres::log::history::settled;
use crate::databases::postgres::{Inner, error};
use crate::storage_error::StorageError;
use crate::streams::rules::ProducerState;
use crate::streams::state::{FRESH_ROOM_BYTES, StreamState};
use crate::streams::{AppendError, AppendStream, Appended, StreamChange};

/// Maximum size in bytes of appends that share a commit; the last of them may cross it.
const BATCH_BYTES: usize = 16 << 20;
/// How often a commit is tried that the database aborted in favour of another one.
const ATTEMPTS: usize = 3;

/// A job of a lane.
pub(super) enum LaneJob {
    /// Append to a stream.
    Append(Box<AppendStream>, oneshot::Sender<Result<Appended, AppendError>>),
    /// Note that a stream was read: it lives until this time.
    Touch(StreamPath, i64),
}

impl LaneJob {
    fn path(&self) -> &StreamPath {
        match self {
            LaneJob::Append(append, _) => &append.path,
            LaneJob::Touch(path, _) => path,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            LaneJob::Append(append, _) => append.payload.data.len(),
            LaneJob::Touch(..) => 0,
        }
    }
}

/// One lane.
pub(super) struct AppendLane {
    inner: Inner,
    counter: Counter,
}

/// The rows that a batch writes, as the arrays of one statement.
#[derive(Default)]
struct AppendBatch<'a> {
    streams: Vec<i64>,
    starts: Vec<i64>,
    messages: Vec<i32>,
    data: Vec<&'a [u8]>,
    producers: HashMap<(u64, &'a str), ProducerState>,
    /// Streams that were appended to or closed.
    moved: HashSet<u64>,
}

type Answers = Vec<Option<Result<Appended, AppendError>>>;

/// Why a batch failed.
struct CommitFailure {
    error: sqlx::Error,
    /// Whether the commit may have been done all the same.
    unsure: bool,
}

impl From<sqlx::Error> for CommitFailure {
    fn from(error: sqlx::Error) -> CommitFailure {
        CommitFailure { error, unsure: false }
    }
}

impl AppendLane {
    pub(super) fn new(inner: Inner) -> AppendLane {
        let counter = inner.stored.writer();
        AppendLane { inner, counter }
    }

    /// Works until the server stops, and then does the jobs that wait.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<LaneJob>, stop: CancellationToken) {
        let most = self.inner.limits.write_batch;
        let mut waiting = Vec::with_capacity(most);
        loop {
            let received = tokio::select! {
                received = jobs.recv_many(&mut waiting, most) => received,
                () = stop.cancelled(), if !jobs.is_closed() => {
                    jobs.close();
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            while !waiting.is_empty() {
                let mut bytes = 0;
                let fit = waiting.iter().take_while(|job| {
                    let fits = bytes < BATCH_BYTES;
                    bytes += job.bytes();
                    fits
                });
                let fit = fit.count();
                let batch = waiting.drain(..fit).collect();
                Box::pin(self.commit(batch)).await;
            }
        }
    }

    /// Commits these jobs together and answers them.
    async fn commit(&mut self, jobs: Vec<LaneJob>) {
        let mut attempts = 0;
        let done = loop {
            attempts += 1;
            let db = self.inner.db.clone();
            let tried = db.in_time(self.try_commit(&jobs)).await;
            // A commit that was given up may have been done all the same.
            match tried.unwrap_or_else(|error| Err(CommitFailure { error, unsure: true })) {
                Ok(answers) => break Ok(answers),
                Err(failed) => {
                    if failed.unsure {
                        self.inner.stored.unsure(&mut self.counter);
                    }
                    let given_up = matches!(error::code(&failed.error).as_deref(), Some("40001" | "40P01"));
                    if !given_up || failed.unsure || attempts >= ATTEMPTS {
                        break Err(error::storage(&failed.error));
                    }
                }
            }
        };
        let (answers, failure) = match done {
            Ok(answers) => (answers, StorageError::Unavailable),
            Err(failure) => (Vec::new(), failure),
        };
        let mut answers = answers.into_iter();
        for job in jobs {
            let answer = answers.next().flatten();
            if let LaneJob::Append(_, to) = job {
                // The caller may have gone.
                let _ = to.send(answer.unwrap_or_else(|| Err(failure.clone().into())));
            }
        }
    }

    async fn try_commit(&mut self, jobs: &[LaneJob]) -> Result<Answers, CommitFailure> {
        let now = self.inner.stored.now();
        let mut transaction = self.inner.db.begin().await?;
        let mut loaded = self.lock(&mut transaction, jobs).await?;
        know_producers(&mut transaction, jobs, &mut loaded).await?;
        let expired: Vec<u64> =
            loaded.values().filter(|stream| stream.expired(now)).map(|stream| stream.id).collect();
        let forked = match expired.is_empty() {
            true => Vec::new(),
            false => forked_from(&mut transaction, &expired).await?,
        };
        let most_bytes = self.inner.limits.stream_limit.get();
        let mut batch = AppendBatch::default();
        let mut answers = Answers::with_capacity(jobs.len());
        for job in jobs {
            let stream = loaded.get_mut(job.path());
            answers.push(match job {
                LaneJob::Append(append, _) => Some(match stream {
                    None => Err(AppendError::Missing),
                    Some(stream) if stream.deleted || forked.contains(&stream.id) => Err(AppendError::Gone),
                    Some(stream) if stream.expired(now) => Err(AppendError::Missing),
                    Some(stream) => batch.append(stream, append, now, most_bytes),
                }),
                LaneJob::Touch(_, deadline) => {
                    if let Some(stream) = stream.filter(|stream| !stream.deleted && !stream.expired(now)) {
                        stream.dirty |= stream.deadline < Some(*deadline);
                        stream.deadline = stream.deadline.max(Some(*deadline));
                    }
                    None
                }
            });
        }
        let dirty: Vec<&StreamState> = loaded.values().filter(|stream| stream.dirty).collect();
        if dirty.is_empty() {
            transaction.commit().await?;
            return Ok(answers);
        }
        batch.write(&mut transaction, &dirty, &self.counter).await?;
        transaction.commit().await.map_err(|error| {
            // An error of the database means that it was not done; any other failure leaves that open.
            let unsure = error.as_database_error().is_none();
            CommitFailure { error, unsure }
        })?;
        let moved = loaded.values_mut().filter(|stream| batch.moved.contains(&stream.id));
        let mut room = FRESH_ROOM_BYTES;
        let changes: Vec<StreamChange> = moved.map(|stream| stream.moved(&mut room)).collect();
        self.inner.stored.committed(&mut self.counter, changes);
        Ok(answers)
    }

    /// The streams as they are, and will be until the transaction ends.
    async fn lock(
        &self,
        transaction: &mut Session,
        jobs: &[LaneJob],
    ) -> Result<HashMap<StreamPath, StreamState>, sqlx::Error> {
        let mut paths: Vec<&str> = jobs.iter().map(|job| job.path().as_str()).collect();
        paths.sort_unstable();
        paths.dedup();
        let rows: Vec<PgRow> = statement(concat!(
            "SELECT ",
            columns!(),
            ", (SELECT ",
            settled!(),
            " FROM bourn.log l) AS settled FROM bourn.streams WHERE path = ANY($1) ORDER BY id FOR UPDATE"
        ))
        .bind(paths)
        .fetch_all(&mut **transaction)
        .await?;
        let mut loaded = HashMap::with_capacity(rows.len());
        for row in &rows {
            if !row.try_get::<bool, _>("settled")? {
                // Lost bytes may have had these places.
                return Err(error::Unsettled.into());
            }
            let stream = stream_state(transaction, &self.inner.stored, row).await?;
            loaded.insert(stream.path.clone(), stream);
        }
        Ok(loaded)
    }
}

/// Loads the state of the producers into the states of their streams.
async fn know_producers(
    connection: &mut PgConnection,
    jobs: &[LaneJob],
    loaded: &mut HashMap<StreamPath, StreamState>,
) -> Result<(), sqlx::Error> {
    let (mut streams, mut producers) = (Vec::new(), Vec::new());
    let mut paths = HashMap::new();
    for job in jobs {
        let LaneJob::Append(append, _) = job else { continue };
        let (Some(producer), Some(stream)) = (&append.producer, loaded.get_mut(&append.path)) else {
            continue;
        };
        if stream.producers.insert(producer.id.clone(), None).is_none() {
            streams.push(stream.id.cast_signed());
            producers.push(producer.id.as_str());
            paths.insert(stream.id, &append.path);
        }
    }
    if streams.is_empty() {
        return Ok(());
    }
    let rows = statement(
        "SELECT p.stream_id, p.producer_id, p.epoch, p.seq FROM unnest($1::bigint[], $2::text[]) k (stream_id, producer_id) \
         JOIN bourn.stream_producers p USING (stream_id, producer_id)",
    )
    .bind(streams)
    .bind(producers)
    .fetch_all(connection)
    .await?;
    for row in rows {
        let state = ProducerState { epoch: number(&row, "epoch")?, seq: number(&row, "seq")? };
        let path = paths.get(&number(&row, "stream_id")?);
        if let Some(stream) = path.and_then(|path| loaded.get_mut(*path)) {
            stream.producers.insert(row.try_get("producer_id")?, Some(state));
        }
    }
    Ok(())
}

impl<'a> AppendBatch<'a> {
    fn append(
        &mut self,
        stream: &mut StreamState,
        append: &'a AppendStream,
        now: i64,
        most_bytes: u64,
    ) -> Result<Appended, AppendError> {
        let taken = stream.append(append, now, most_bytes)?;
        if let Some(start) = taken.start {
            self.streams.push(stream.id.cast_signed());
            self.starts.push(start.as_i64());
            self.messages.push(i32::try_from(append.payload.messages).unwrap_or(i32::MAX));
            self.data.push(&append.payload.data);
        }
        if let Some(producer) = append.producer.as_ref().filter(|_| taken.producer) {
            let state = ProducerState { epoch: producer.epoch, seq: producer.seq };
            self.producers.insert((stream.id, &producer.id), state);
        }
        if !taken.appended.duplicate {
            self.moved.insert(stream.id);
        }
        Ok(taken.appended)
    }

    async fn write(
        &mut self,
        connection: &mut PgConnection,
        dirty: &[&StreamState],
        counter: &Counter,
    ) -> Result<(), sqlx::Error> {
        let producers = self.producers.iter();
        let mut known: (Vec<i64>, Vec<&str>, Vec<i64>, Vec<i64>) = Default::default();
        for ((stream, id), state) in producers {
            known.0.push(stream.cast_signed());
            known.1.push(id);
            known.2.push(state.epoch.cast_signed());
            known.3.push(state.seq.cast_signed());
        }
        let closers: Vec<_> = dirty.iter().map(|stream| stream.head.closed_by.as_ref()).collect();
        let all = |column: fn(&StreamState) -> i64| -> Vec<i64> {
            dirty.iter().map(|stream| column(stream)).collect()
        };
        statement(
            "WITH data AS (\
             INSERT INTO bourn.stream_data (stream_id, start, messages, data) \
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bytea[])), \
             known AS (\
             INSERT INTO bourn.stream_producers (stream_id, producer_id, epoch, seq) \
             SELECT * FROM unnest($5::bigint[], $6::text[], $7::bigint[], $8::bigint[]) \
             ON CONFLICT (stream_id, producer_id) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq), \
             counted AS (\
             INSERT INTO bourn.stream_writers (id, commits) VALUES ($9, $10) \
             ON CONFLICT (id) DO UPDATE SET commits = excluded.commits, seen_at = excluded.seen_at) \
             UPDATE bourn.streams s SET tail = u.tail, closed = u.closed, closed_by = u.closed_by, \
             closed_epoch = u.closed_epoch, closed_seq = u.closed_seq, writer_seq = u.writer_seq, \
             deadline = u.deadline, producers = u.producers \
             FROM unnest($11::bigint[], $12::bigint[], $13::boolean[], $14::text[], $15::bigint[], $16::bigint[], \
             $17::text[], $18::bigint[], $19::bigint[]) \
             AS u (id, tail, closed, closed_by, closed_epoch, closed_seq, writer_seq, deadline, producers) \
             WHERE s.id = u.id",
        )
        .bind(&self.streams)
        .bind(&self.starts)
        .bind(&self.messages)
        .bind(&self.data)
        .bind(known.0)
        .bind(known.1)
        .bind(known.2)
        .bind(known.3)
        .bind(counter.writer)
        .bind(counter.next())
        .bind(all(|stream| stream.id.cast_signed()))
        .bind(all(|stream| stream.head.tail.position.as_i64()))
        .bind(dirty.iter().map(|stream| stream.head.closed).collect::<Vec<bool>>())
        .bind(closers.iter().map(|by| by.map(|by| by.id.as_str())).collect::<Vec<_>>())
        .bind(closers.iter().map(|by| by.map(|by| by.epoch.cast_signed())).collect::<Vec<_>>())
        .bind(closers.iter().map(|by| by.map(|by| by.seq.cast_signed())).collect::<Vec<_>>())
        .bind(dirty.iter().map(|stream| stream.head.writer_seq.as_deref()).collect::<Vec<_>>())
        .bind(dirty.iter().map(|stream| stream.deadline).collect::<Vec<_>>())
        .bind(all(|stream| i64::from(stream.head.producers)))
        .execute(connection)
        .await
        .map(|_| ())
    }
}
