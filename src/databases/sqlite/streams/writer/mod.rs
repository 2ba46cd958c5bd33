//! The writer thread's work on stored streams. Requests that wait while a commit is on its way share the next one; none
//! is answered before that commit is on the disk. A request that is refused has written nothing, so there is nothing to
//! roll back; if the database itself fails, nothing of the commit was done.

mod collect;
mod create;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bourn_protocol::StreamPath;
use bourn_protocol::stored::Payload;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::{StreamsState, heads};
use crate::config::Limits;
use crate::databases::sqlite::error;
use crate::databases::sqlite::file::history::History;
use crate::databases::sqlite::file::versions;
use crate::databases::sqlite::jobs::StreamJob;
use crate::storage_error::StorageError;
use crate::streams::state::{FRESH_ROOM_BYTES, StreamState};
use crate::streams::{
    AppendError, AppendStream, Appended, CreateError, Created, FindError, StreamChange, unix_millis,
};

/// Most streams that the writer keeps in memory.
const MOST_HEADS: usize = 10_000;
/// How long one commit goes on removing streams.
const COLLECT_SLICE: Duration = Duration::from_millis(5);
/// Maximum size in bytes of an append that its row holds itself. With the row's other columns they must fit into a page, of whose 4 KiB
/// SQLite gives a row of such a table a quarter.
const IN_PLACE_BYTES: usize = 900;

/// The streams as the writer knows them, and the limits that they must keep.
pub(in super::super) struct StreamWriter {
    pub(super) heads: HashMap<StreamPath, StreamState, foldhash::fast::RandomState>,
    /// The version of the last commit of ours; if the database has another one, another process has written.
    version: i64,
    /// The same version for the watcher.
    published: Arc<AtomicI64>,
    history: Arc<History>,
    shared: Arc<StreamsState>,
    pub(super) most_bytes: u64,
    pub(super) most_streams: i64,
}

/// An answer that waits for the commit.
enum StreamAnswer {
    Create(oneshot::Sender<Result<Created, CreateError>>, Result<Created, CreateError>),
    Append(oneshot::Sender<Result<Appended, AppendError>>, Result<Appended, AppendError>),
    Delete(oneshot::Sender<Result<(), FindError>>, Result<(), FindError>),
}

impl StreamAnswer {
    /// Sends the answer, or the failure of the commit.
    fn give(self, failure: Option<&StorageError>) {
        // The caller may have gone.
        match (self, failure.cloned()) {
            (StreamAnswer::Create(to, result), None) => drop(to.send(result)),
            (StreamAnswer::Append(to, result), None) => drop(to.send(result)),
            (StreamAnswer::Delete(to, result), None) => drop(to.send(result)),
            (StreamAnswer::Create(to, _), Some(failure)) => drop(to.send(Err(failure.into()))),
            (StreamAnswer::Append(to, _), Some(failure)) => drop(to.send(Err(failure.into()))),
            (StreamAnswer::Delete(to, _), Some(failure)) => drop(to.send(Err(failure.into()))),
        }
    }
}

/// The results of a commit.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) deleted: Vec<(u64, StreamPath)>,
    /// Streams that were used, some of them more than once.
    pub(super) used: Vec<StreamPath>,
    /// A deadline was moved that other servers must see.
    touched: bool,
    /// There is more to collect.
    pub(super) more: bool,
}

impl StreamWriter {
    pub(in super::super) fn new(
        limits: &Limits,
        history: Arc<History>,
        shared: Arc<StreamsState>,
        published: Arc<AtomicI64>,
    ) -> StreamWriter {
        StreamWriter {
            heads: HashMap::default(),
            version: -1,
            published,
            history,
            shared,
            most_bytes: limits.stream_limit.get(),
            most_streams: i64::try_from(limits.streams).unwrap_or(i64::MAX),
        }
    }

    /// The log has another epoch, and every stream another number.
    pub(in super::super) fn epoch_changed(&mut self, connection: &Connection) {
        self.heads.clear();
        self.version = -1;
        // If it cannot be read now, the next commit reads it.
        self.published.store(versions::of_streams(connection).unwrap_or(-1), Ordering::Relaxed);
        self.shared.foreign_commit();
    }

    /// Commits these jobs together; returns whether more is to be collected.
    pub(in super::super) fn commit(
        &mut self,
        connection: &Connection,
        jobs: Vec<StreamJob>,
    ) -> Result<bool, StorageError> {
        let mut answers = Vec::with_capacity(jobs.len());
        match self.try_commit(connection, jobs, &mut answers) {
            Ok(more) => {
                for answer in answers {
                    answer.give(None);
                }
                Ok(more)
            }
            Err(failed) => {
                // The changes in memory were not committed.
                self.heads.clear();
                let failure = error::storage(&failed);
                for answer in answers {
                    answer.give(Some(&failure));
                }
                Err(failure)
            }
        }
    }

    fn try_commit(
        &mut self,
        connection: &Connection,
        jobs: Vec<StreamJob>,
        answers: &mut Vec<StreamAnswer>,
    ) -> rusqlite::Result<bool> {
        let mut waiting = jobs.into_iter();
        let done = self.in_transaction(connection, &mut waiting, answers);
        // Requests that were not tried get the same answer.
        for job in waiting {
            answers.extend(match job {
                StreamJob::Create(_, to) => Some(StreamAnswer::Create(to, Err(StorageError::Closed.into()))),
                StreamJob::Append(_, to) => Some(StreamAnswer::Append(to, Err(StorageError::Closed.into()))),
                StreamJob::Delete(_, to) => Some(StreamAnswer::Delete(to, Err(StorageError::Closed.into()))),
                StreamJob::Touch(..) | StreamJob::Collect => None,
            });
        }
        done
    }

    fn in_transaction(
        &mut self,
        connection: &Connection,
        jobs: &mut impl Iterator<Item = StreamJob>,
        answers: &mut Vec<StreamAnswer>,
    ) -> rusqlite::Result<bool> {
        if !self.history.in_place() {
            return Err(error::gone());
        }
        let served = self.history.served();
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        // Read in the transaction: no other process can write from here on.
        let found = versions::of_streams(&transaction)?;
        self.history.verify(&transaction, &served)?;
        if found != self.version || self.heads.len() > MOST_HEADS {
            self.heads.clear();
        }
        let now = unix_millis();
        let mut outcome = Outcome::default();
        for job in jobs {
            self.apply(&transaction, job, now, answers, &mut outcome)?;
        }
        let (mut moved, mut changes, mut room) = (Vec::new(), Vec::new(), FRESH_ROOM_BYTES);
        for path in &outcome.used {
            let Some(stream) = self.heads.get_mut(path).filter(|stream| stream.dirty) else { continue };
            heads::save(&transaction, stream)?;
            changes.push(stream.moved(&mut room));
            moved.push(stream.info(now));
        }
        let deleted: Vec<StreamPath> = outcome.deleted.iter().map(|(_, path)| path.clone()).collect();
        changes.extend(outcome.deleted.into_iter().map(|(id, path)| StreamChange::Deleted { id, path }));
        let counts = !changes.is_empty() || outcome.touched;
        if counts {
            transaction.prepare_cached("UPDATE bourn_stream_totals SET version = version + 1")?.execute([])?;
        }
        transaction.commit()?;
        // A file that was removed takes the commit with it.
        if !self.history.in_place() {
            return Err(error::gone());
        }
        self.history.note(connection, served.seq)?;
        self.version = found + i64::from(counts);
        if self.published.swap(self.version, Ordering::Relaxed) != found {
            self.shared.foreign_commit();
        }
        self.shared.directory.committed(moved, &deleted);
        if !changes.is_empty() {
            // There may be no receiver.
            let _ = self.shared.changes.send(changes.into());
        }
        Ok(outcome.more)
    }

    fn apply(
        &mut self,
        transaction: &Connection,
        job: StreamJob,
        now: i64,
        answers: &mut Vec<StreamAnswer>,
        outcome: &mut Outcome,
    ) -> rusqlite::Result<()> {
        // The answer is registered before anything is tried, so that a failure finds it.
        let unanswered = StorageError::Unavailable;
        match job {
            StreamJob::Create(create, to) => {
                answers.push(StreamAnswer::Create(to, Err(unanswered.into())));
                let result = self.create(transaction, &create, now, outcome)?;
                if let Some(StreamAnswer::Create(_, answer)) = answers.last_mut() {
                    *answer = result;
                }
            }
            StreamJob::Append(append, to) => {
                answers.push(StreamAnswer::Append(to, Err(unanswered.into())));
                let result = self.append(transaction, &append, now, outcome)?;
                if let Some(StreamAnswer::Append(_, answer)) = answers.last_mut() {
                    *answer = result;
                }
            }
            StreamJob::Delete(path, to) => {
                answers.push(StreamAnswer::Delete(to, Err(unanswered.into())));
                let result = self.delete(transaction, &path, now, outcome)?;
                if let Some(StreamAnswer::Delete(_, answer)) = answers.last_mut() {
                    *answer = result;
                }
            }
            StreamJob::Touch(path, deadline) => {
                if let Some(stream) = self.stream_state(transaction, &path)?.filter(|stream| !stream.deleted)
                {
                    stream.deadline = stream.deadline.max(Some(deadline));
                    heads::save(transaction, stream)?;
                    outcome.touched = true;
                }
            }
            StreamJob::Collect => {
                // Several steps in one commit: each commit can fail a transaction of another process.
                let started = Instant::now();
                let mut more = true;
                while more && started.elapsed() < COLLECT_SLICE {
                    more = collect::step(self, transaction, now, outcome)?;
                }
                outcome.more |= more;
            }
        }
        Ok(())
    }

    /// The stream at a path, read if it is not known.
    pub(super) fn stream_state(
        &mut self,
        connection: &Connection,
        path: &StreamPath,
    ) -> rusqlite::Result<Option<&mut StreamState>> {
        if !self.heads.contains_key(path) {
            match heads::load(connection, path)? {
                Some(stream) => self.heads.insert(path.clone(), stream),
                None => return Ok(None),
            };
        }
        Ok(self.heads.get_mut(path))
    }

    fn append(
        &mut self,
        transaction: &Connection,
        append: &AppendStream,
        now: i64,
        outcome: &mut Outcome,
    ) -> rusqlite::Result<Result<Appended, AppendError>> {
        let most_bytes = self.most_bytes;
        let expired = match self.stream_state(transaction, &append.path)? {
            None => return Ok(Err(AppendError::Missing)),
            Some(stream) if stream.deleted => return Ok(Err(AppendError::Gone)),
            Some(stream) => stream.expired(now),
        };
        if expired {
            return Ok(Err(match collect::remove(self, transaction, &append.path, outcome)? {
                true => AppendError::Missing,
                false => AppendError::Gone,
            }));
        }
        let Some(stream) = self.heads.get_mut(&append.path) else { return Ok(Err(AppendError::Missing)) };
        outcome.used.push(append.path.clone());
        if let Some(producer) = &append.producer {
            heads::know_producer(transaction, stream, &producer.id)?;
        }
        let taken = match stream.append(append, now, most_bytes) {
            Err(refused) => {
                // A producer that the stream has not heard of is not remembered only because it was looked up.
                if let Some(producer) = &append.producer
                    && stream.producers.get(&producer.id).is_some_and(Option::is_none)
                {
                    stream.producers.remove(&producer.id);
                }
                return Ok(Err(refused));
            }
            Ok(taken) => taken,
        };
        if let Some(start) = taken.start {
            let Payload { data, messages } = &append.payload;
            insert(transaction, stream.id, start.as_i64(), *messages, data)?;
        }
        if let Some(producer) = append.producer.as_ref().filter(|_| taken.producer) {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO bourn_stream_producers VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![
                    stream.id.cast_signed(),
                    producer.id,
                    producer.epoch.cast_signed(),
                    producer.seq.cast_signed()
                ])?;
        }
        Ok(Ok(taken.appended))
    }

    fn delete(
        &mut self,
        transaction: &Connection,
        path: &StreamPath,
        now: i64,
        outcome: &mut Outcome,
    ) -> rusqlite::Result<Result<(), FindError>> {
        let expired = match self.stream_state(transaction, path)? {
            None => return Ok(Err(FindError::Missing)),
            Some(stream) if stream.deleted => return Ok(Err(FindError::Gone)),
            Some(stream) => stream.expired(now),
        };
        let removed = collect::remove(self, transaction, path, outcome)?;
        Ok(match (expired, removed) {
            (false, _) => Ok(()),
            (true, true) => Err(FindError::Missing),
            (true, false) => Err(FindError::Gone),
        })
    }
}

/// Stores what is appended at a place.
pub(super) fn insert(
    connection: &Connection,
    stream: u64,
    start: i64,
    messages: usize,
    data: &[u8],
) -> rusqlite::Result<()> {
    let large = match data.len() > IN_PLACE_BYTES {
        true => Some(
            connection.prepare_cached("INSERT INTO bourn_stream_large (data) VALUES (?1)")?.insert([data])?,
        ),
        false => None,
    };
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "INSERT INTO bourn_stream_data (stream_id, start, messages, bytes, data, large) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            stream.cast_signed(),
            start,
            number(messages),
            number(data.len()),
            large.is_none().then_some(data),
            large
        ])
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use bourn_protocol::ContentType;
    use bourn_protocol::stored::Lifetime;
    use bytes::Bytes;

    use super::*;
    use crate::config::{Config, SettingsLayer};
    use crate::databases::sqlite::admin;
    use crate::streams::{CreateStream, Producer};

    #[test]
    fn producers_that_are_refused_are_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let (connection, new) = admin::open(&path, Duration::from_secs(1), true).unwrap();
        let history = Arc::new(History::begin(&path, &connection, new).unwrap());
        let limits = Config::load(SettingsLayer::default(), None).unwrap().limits;
        let mut writer = StreamWriter::new(&limits, history, Arc::new(StreamsState::new()), Arc::default());
        let path = StreamPath::new("s").unwrap();
        let create = CreateStream {
            path: path.clone(),
            content_type: Some(ContentType::json()),
            lifetime: Lifetime::Endless,
            closed: false,
            fork: None,
            body: Bytes::new(),
        };
        let mut jobs = vec![StreamJob::Create(Box::new(create), oneshot::channel().0)];
        let mut answers = Vec::new();
        for i in 0..100 {
            let (to, answer) = oneshot::channel();
            answers.push(answer);
            // The producer's first append has a later number: a gap.
            let producer = Some(Producer { id: format!("p{i}"), epoch: 0, seq: 5 });
            let payload = Payload { data: Bytes::from_static(b"1"), messages: 1 };
            let content_type = Some(ContentType::json());
            let append =
                AppendStream { path: path.clone(), content_type, payload, close: false, seq: None, producer };
            jobs.push(StreamJob::Append(Box::new(append), to));
        }
        writer.commit(&connection, jobs).unwrap();
        assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap().is_err()));
        assert!(writer.heads[&path].producers.is_empty());
    }
}
