//! The one thread that writes. Mutations that wait while a commit is on its way share the next one: each is done under
//! its own savepoint and gets its own answer, and none is answered before the commit is on the disk. The same thread
//! reconciles tables and does the other background writes, so that all of them are in one queue; and it alone opens the
//! file again or gives the log a new epoch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bourn_protocol::Seq;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, watch};

use super::file::history::History;
use super::file::sequencer;
use super::jobs::{AnswerSender, StreamJob, WriterJob};
use super::streams::StreamWriter;
use super::tables::introspect;
use super::tables::reconcile::Reconcile;
use super::triggers::{self, installed};
use super::writes::mutate;
use super::{StorageState, advance, error};
use crate::feed::entity::{Catalog, EntityType, TableSchema, TableState};
use crate::feed::retention::Retention;
use crate::feed::{Mutation, WriteError, Written};
use crate::head::{Head, Version};
use crate::storage_error::StorageError;

/// How often expired rows of the ledger are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// How long a table is left alone after a step of comparing it, as a multiple of the step's own time: other processes
/// can take the write lock in between.
const GAP: u32 = 1;
/// The same while other processes write.
const GAP_AMONG_WRITERS: u32 = 3;

/// How long after another process's commit it counts as writing.
pub(super) const WRITING_FOR: Duration = Duration::from_secs(2);
/// How long the thread sleeps at a time while nothing is to be done yet.
pub(super) const TICK: Duration = Duration::from_millis(1);

pub(super) const GONE: &str =
    "the database's file was removed from its path; put it back, or another one in its place";

type Waiting = VecDeque<(Box<Mutation>, AnswerSender)>;
type MutationAnswer = (Box<Mutation>, AnswerSender, Result<Written, WriteError>);

/// Why nothing of a batch was written.
enum BatchFailure {
    /// The database could not do it.
    Storage(StorageError),
    /// The last mutation tried made SQLite roll everything back (a trigger may order that); the others are not to
    /// blame.
    Undone,
}

pub(super) struct WriterThread {
    pub(super) connection: Connection,
    pub(super) catalog: Arc<Catalog>,
    pub(super) history: Arc<History>,
    pub(super) jobs: mpsc::Receiver<WriterJob>,
    pub(super) shared: Arc<StorageState>,
    pub(super) head: watch::Sender<Head>,
    pub(super) version: watch::Sender<Version>,
    /// Most mutations of one commit.
    pub(super) batch: usize,
    pub(super) ledger_retention: Duration,
    /// When old activities may leave; `None` where all are kept.
    pub(super) retention: Option<Retention>,
    /// How long a mutation waits for another process that holds the database.
    pub(super) busy: Duration,
    /// Stored streams as this thread knows them.
    pub(super) streams: StreamWriter,
}

impl WriterThread {
    /// Works until it gets [`WriterJob::Close`] or all senders are gone.
    pub(super) fn run(mut self, mut reconciles: VecDeque<Reconcile>) {
        let mut expired_at = Instant::now();
        // Whether there may be old activities to remove.
        let mut retaining = false;
        // The job that ended a batch of mutations.
        let mut next = None;
        // When the next step of comparing may be done, and the data version at the last one.
        let (mut step_at, mut seen, mut foreign_at) = (Instant::now(), -1, None);
        loop {
            let job = match next.take() {
                Some(job) => Some(job),
                None if reconciles.is_empty() && !retaining => self.jobs.blocking_recv(),
                None => match self.jobs.try_recv() {
                    Ok(job) => Some(job),
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                    Err(mpsc::error::TryRecvError::Empty) if Instant::now() < step_at => {
                        std::thread::park_timeout(TICK);
                        continue;
                    }
                    Err(mpsc::error::TryRecvError::Empty) => {
                        let content = data_version(&self.connection).unwrap_or(seen);
                        if std::mem::replace(&mut seen, content) != content {
                            foreign_at = Some(Instant::now());
                        }
                        let among_writers = foreign_at.is_some_and(|at| at.elapsed() < WRITING_FOR);
                        let started = Instant::now();
                        self.reconcile_step(&mut reconciles);
                        retaining = retaining && self.retention_step();
                        let gap = if among_writers { GAP_AMONG_WRITERS } else { GAP };
                        step_at = Instant::now() + started.elapsed() * gap;
                        self.settle_if_in_doubt(&mut reconciles);
                        continue;
                    }
                },
            };
            crate::failpoint!("bourn-writer", |_| ());
            match job {
                None => return,
                Some(WriterJob::Close(done)) => {
                    let _ = done.send(());
                    return;
                }
                Some(WriterJob::Fold) => self.fold(),
                Some(WriterJob::Reopen) => self.reopen(&mut reconciles),
                Some(WriterJob::Settle) => {}
                Some(WriterJob::Probe) => self.probe(),
                Some(WriterJob::Retain) => retaining = true,
                Some(WriterJob::Refresh) => reconciles = self.refresh(reconciles),
                Some(WriterJob::Subscription(job)) => job.run(&self.connection, &self.history),
                Some(WriterJob::Stream(job)) => next = self.stream_batch(job),
                Some(WriterJob::Write(mutation, answer)) => next = self.write_batch(mutation, answer),
            }
            if expired_at.elapsed() >= EXPIRE_EVERY {
                expired_at = Instant::now();
                if let Err(error) = self.expire_ledger() {
                    tracing::warn!(%error, "cannot remove expired rows of the ledger");
                }
            }
            self.settle_if_in_doubt(&mut reconciles);
        }
    }

    /// Does a mutation and those that wait behind it, up to the batch's size or the first job of another kind, which it
    /// returns.
    fn write_batch(&mut self, first: Box<Mutation>, answer: AnswerSender) -> Option<WriterJob> {
        let mut waiting = VecDeque::from([(first, answer)]);
        let mut other = None;
        while waiting.len() < self.batch {
            match self.jobs.try_recv() {
                Ok(WriterJob::Write(mutation, answer)) => waiting.push_back((mutation, answer)),
                Ok(job) => {
                    other = Some(job);
                    break;
                }
                Err(_) => break,
            }
        }
        metrics::histogram!("bourn_write_batch_size")
            .record(f64::from(u32::try_from(waiting.len()).unwrap_or(u32::MAX)));
        self.commit(waiting);
        other
    }

    /// The same for stored streams.
    fn stream_batch(&mut self, first: StreamJob) -> Option<WriterJob> {
        let mut waiting = vec![first];
        let mut other = None;
        while waiting.len() < self.batch {
            match self.jobs.try_recv() {
                Ok(WriterJob::Stream(job)) => waiting.push(job),
                Ok(job) => {
                    other = Some(job);
                    break;
                }
                Err(_) => break,
            }
        }
        metrics::histogram!("bourn_write_batch_size")
            .record(f64::from(u32::try_from(waiting.len()).unwrap_or(u32::MAX)));
        let started = Instant::now();
        let committed = self.streams.commit(&self.connection, waiting);
        self.shared.committed(committed.as_ref());
        let more = committed.unwrap_or(false);
        metrics::histogram!("bourn_commit_seconds").record(started.elapsed().as_secs_f64());
        // The rest is queued behind other jobs, so that other writers are not held up.
        if more && other.is_none() {
            other = self.jobs.try_recv().ok().or(Some(WriterJob::Stream(StreamJob::Collect)));
        }
        other
    }

    /// Commits these mutations together and answers each.
    fn commit(&self, mut waiting: Waiting) {
        let mut answers = Vec::with_capacity(waiting.len());
        let started = Instant::now();
        match self.commit_batch(&mut waiting, &mut answers) {
            Ok(head) => {
                metrics::histogram!("bourn_commit_seconds").record(started.elapsed().as_secs_f64());
                self.shared.writer_stands(None);
                self.shared.committed(Ok(&head));
                self.publish(head);
                for (_, answer, result) in answers {
                    let _ = answer.send(result);
                }
            }
            Err(BatchFailure::Storage(failure)) => {
                self.shared.committed(Err::<&(), _>(&failure));
                // Nothing of the batch was written, whatever the answers to its mutations were.
                let tried = answers.into_iter().map(|(_, answer, _)| answer);
                for answer in tried.chain(waiting.into_iter().map(|(_, answer)| answer)) {
                    let _ = answer.send(Err(WriteError::Storage(failure.clone())));
                }
            }
            Err(BatchFailure::Undone) => {
                if let Some((_, answer, result)) = answers.pop() {
                    let _ = answer.send(result);
                }
                let innocent = answers.into_iter().map(|(mutation, answer, _)| (mutation, answer));
                for alone in innocent.chain(waiting) {
                    self.commit(VecDeque::from([alone]));
                }
            }
        }
    }

    fn commit_batch(
        &self,
        waiting: &mut Waiting,
        answers: &mut Vec<MutationAnswer>,
    ) -> Result<Seq, BatchFailure> {
        let storage = |e: rusqlite::Error| BatchFailure::Storage(error::storage(&e));
        let gone = || {
            self.shared.file_stands(Some(GONE));
            Err(BatchFailure::Storage(StorageError::Unavailable))
        };
        if !self.history.in_place() {
            return gone();
        }
        // A mutation may ask which transaction last changed a row, so the number of that must be in the database, too.
        let (transaction, pending) = self.history.begin_numbered(&self.connection).map_err(storage)?;
        let start = pending.head;
        let expires_at =
            unix_secs().saturating_add(i64::try_from(self.ledger_retention.as_secs()).unwrap_or(i64::MAX));
        let mut head = start;
        // Where the activities of a mutation begin and end, for mutations of more than one.
        let mut wide = Vec::new();
        while let Some((mutation, answer)) = waiting.pop_front() {
            run(&transaction, "SAVEPOINT mutation").map_err(storage)?;
            let result = mutate::apply(&transaction, &self.catalog, &mutation, head, expires_at);
            if transaction.is_autocommit() {
                // SQLite has rolled the whole transaction back by itself: because of a full disk or worse, or a
                // trigger.
                let failed = match &result {
                    Err(WriteError::Storage(failure)) => BatchFailure::Storage(failure.clone()),
                    Err(_) => BatchFailure::Undone,
                    Ok(_) => BatchFailure::Storage(StorageError::Unavailable),
                };
                answers.push((mutation, answer, result.map(|(written, _)| written)));
                return Err(failed);
            }
            if result.is_err() {
                run(&transaction, "ROLLBACK TO mutation").map_err(storage)?;
            }
            run(&transaction, "RELEASE mutation").map_err(storage)?;
            let result = result.map(|(written, after)| {
                if after.get() > head.get() + 1 {
                    wide.push((head, after));
                }
                head = after;
                written
            });
            answers.push((mutation, answer, result));
        }
        if head > start {
            sequencer::seal_each(&transaction, start, head).map_err(storage)?;
            for (from, to) in wide {
                sequencer::seal(&transaction, from, to).map_err(storage)?;
            }
        }
        transaction.commit().map_err(storage)?;
        pending.committed();
        // A file that was removed takes the commit with it.
        if !self.history.in_place() {
            return gone();
        }
        Ok(head)
    }

    /// Publishes that the log reaches this far.
    pub(super) fn publish(&self, head: Seq) {
        if let Err(failure) = self.history.note(&self.connection, head) {
            tracing::debug!(%failure, "cannot note what is served");
        }
        advance(&self.head, Head { epoch: self.history.served().epoch, seq: head });
    }

    /// Looks at every table again, and makes sure the triggers fit it; returns the tables to reconcile. A comparison
    /// that is under way goes on, where the table is still the same.
    pub(super) fn refresh(&self, mut under_way: VecDeque<Reconcile>) -> VecDeque<Reconcile> {
        let mut reconciles = VecDeque::new();
        for entity in self.catalog.iter() {
            let looked = self.look_at(entity);
            match looked {
                Ok((Ok(schema), compare)) => {
                    self.count_left_out(entity, &schema);
                    let schema = Arc::new(schema);
                    entity.set_state(TableState::Ready(schema.clone()));
                    let same = |reconcile: &Reconcile| {
                        Arc::ptr_eq(&reconcile.entity, entity) && reconcile.schema == schema
                    };
                    if let Some(current) = under_way.iter().position(same).and_then(|at| under_way.remove(at))
                    {
                        reconciles.push_back(current);
                    } else if compare {
                        tracing::info!(
                            entity = &*entity.name,
                            table = entity.table,
                            "comparing the table with the log"
                        );
                        self.shared.reconciling(&entity.name, Some(0));
                        reconciles.push_back(Reconcile::new(entity.clone(), schema));
                    }
                }
                Ok((Err(reason), _)) => {
                    tracing::warn!(entity = &*entity.name, reason, "the entity type cannot be served");
                    self.shared.reconciling(&entity.name, None);
                    entity.set_state(TableState::Unavailable(reason));
                }
                Err(failure) => {
                    let reason = error::storage(&failure).to_string();
                    tracing::warn!(entity = &*entity.name, reason, "cannot look at the table now");
                    self.shared.writer_stands(Some(reason.clone()));
                    self.shared.refresh_owed.store(true, Ordering::Relaxed);
                    if entity.schema().is_err() {
                        entity.set_state(TableState::Unavailable(reason));
                    }
                    let this = |reconcile: &Reconcile| Arc::ptr_eq(&reconcile.entity, entity);
                    reconciles.extend(under_way.iter().position(this).and_then(|at| under_way.remove(at)));
                }
            }
        }
        reconciles
    }

    /// Counts rows whose keys cannot be written as text.
    pub(super) fn count_left_out(&self, entity: &EntityType, schema: &TableSchema) {
        match introspect::left_out(&self.connection, entity, schema) {
            Ok(reason) => self.shared.left_out(&entity.name, reason),
            Err(error) => {
                tracing::warn!(entity = &*entity.name, %error, "cannot count the rows that are left out");
            }
        }
    }

    /// Looks at a table, and makes sure the triggers fit it; returns its columns, or why it cannot be streamed, and
    /// whether it is to be compared with the log. Takes no lock where the triggers fit.
    fn look_at(&self, entity: &EntityType) -> rusqlite::Result<(Result<TableSchema, String>, bool)> {
        let plan = |connection: &Connection| {
            let schema = introspect::table(connection, entity)?;
            let wanted = schema.as_ref().map(|schema| triggers::all(entity, schema)).unwrap_or_default();
            let found = installed::look(connection, entity, &wanted)?;
            Ok::<_, rusqlite::Error>((schema, wanted, found))
        };
        {
            let snapshot = self.connection.unchecked_transaction()?;
            let (schema, _, found) = plan(&snapshot)?;
            if found.fit {
                self.shared.shared_differently(&entity.name, false);
                return Ok((schema, found.compare));
            }
        }
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let (schema, wanted, found) = plan(&transaction)?;
        // The server that started last wins, and so does the first one to notice that the table has changed: if every
        // server insisted, they would replace each other's triggers for ever.
        let unchanged = matches!((&schema, entity.schema()), (Ok(now), Ok(known)) if *now == *known);
        let yields = found.others && unchanged;
        self.shared.shared_differently(&entity.name, yields);
        if yields {
            return Ok((schema, false));
        }
        let compare = installed::install(&transaction, entity, &wanted)?;
        transaction.commit()?;
        Ok((schema, compare))
    }
}

/// A number that changes when another connection commits.
fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

pub(super) fn unix_secs() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}
