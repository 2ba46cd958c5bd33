//! The one thread that writes. Mutations that wait while a commit is on its way share the next one: each is
//! done under its own savepoint and gets its own answer, and none is answered before the commit is on the disk.
//! The same thread seals other processes' transactions and reconciles tables, so that all of that is in line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bourn_protocol::Seq;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use super::reconcile::Reconcile;
use super::streams::{StreamJob, StreamWriter};
use super::subscriptions::SubscriptionJob;
use super::{Shared, advance, error, introspect, mutate, retention, sequencer, triggers};
use crate::entity::{Catalog, TableState};
use crate::storage::retention::Retention;
use crate::storage::{Head, Mutation, StorageError, WriteError, Written};

/// How long sealing and reconciling wait for another process that holds the database. Both are tried again, and
/// mutations must not wait behind them.
const BACKGROUND_PATIENCE: Duration = Duration::from_millis(100);
/// How often expired rows of the ledger are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// What the thread is asked to do.
pub(super) enum Job {
    /// Do a mutation and answer.
    Write(Box<Mutation>, Sender),
    /// Something about stored streams.
    Stream(StreamJob),
    /// Something about subscriptions to them.
    Subscription(SubscriptionJob),
    /// Another process has committed.
    Seal,
    /// The database's schema has changed.
    Refresh,
    /// It is time to look for what is old.
    Retain,
    /// Do what is queued, then stop.
    Close(oneshot::Sender<()>),
}

type Sender = oneshot::Sender<Result<Written, WriteError>>;
type Waiting = VecDeque<(Box<Mutation>, Sender)>;
type Answer = (Box<Mutation>, Sender, Result<Written, WriteError>);

/// Why nothing of a batch was written.
enum Failed {
    /// The database could not do it.
    Storage(StorageError),
    /// The last mutation tried made SQLite roll everything back (a trigger may say so); the others are innocent.
    Undone,
}

pub(super) struct WriterThread {
    pub(super) connection: Connection,
    pub(super) catalog: Arc<Catalog>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) shared: Arc<Shared>,
    pub(super) head: watch::Sender<Head>,
    /// Most mutations of one commit.
    pub(super) batch: usize,
    pub(super) ledger_retention: Duration,
    /// When old activities may go; nothing where all are kept.
    pub(super) retention: Option<Retention>,
    /// How long a mutation waits for another process that holds the database.
    pub(super) busy: Duration,
    /// Stored streams as this thread knows them.
    pub(super) streams: StreamWriter,
}

impl WriterThread {
    /// Works until it is told to stop or nobody can ask any more.
    pub(super) fn run(mut self, mut reconciles: VecDeque<Reconcile>) {
        let mut expired_at = Instant::now();
        // There may be something old to take out.
        let mut retaining = false;
        // What a batch of mutations was followed by.
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => Some(job),
                None if reconciles.is_empty() && !retaining => self.jobs.blocking_recv(),
                None => match self.jobs.try_recv() {
                    Ok(job) => Some(job),
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                    Err(mpsc::error::TryRecvError::Empty) => {
                        self.reconcile_step(&mut reconciles);
                        retaining = retaining && self.retention_step();
                        continue;
                    }
                },
            };
            crate::failpoint!("bourn-writer", |_| ());
            match job {
                None => return,
                Some(Job::Close(done)) => {
                    let _ = done.send(());
                    return;
                }
                Some(Job::Seal) => self.seal(),
                Some(Job::Retain) => retaining = true,
                Some(Job::Refresh) => reconciles = self.refresh(reconciles),
                Some(Job::Subscription(job)) => job.run(&self.connection),
                Some(Job::Stream(job)) => next = self.stream_batch(job),
                Some(Job::Write(mutation, answer)) => next = self.write_batch(mutation, answer),
            }
            if expired_at.elapsed() >= EXPIRE_EVERY {
                expired_at = Instant::now();
                if let Err(error) = super::ledger::expire(&self.connection, unix_secs()) {
                    tracing::warn!(%error, "cannot remove expired rows of the ledger");
                }
            }
        }
    }

    /// Does a mutation and those that wait behind it, up to the batch's size or the first job of another kind,
    /// which it gives back.
    fn write_batch(&mut self, first: Box<Mutation>, answer: Sender) -> Option<Job> {
        let mut waiting = VecDeque::from([(first, answer)]);
        let mut other = None;
        while waiting.len() < self.batch {
            match self.jobs.try_recv() {
                Ok(Job::Write(mutation, answer)) => waiting.push_back((mutation, answer)),
                // The batch seals what it finds before it writes.
                Ok(Job::Seal) => self.shared.seal_asked.store(false, Ordering::Relaxed),
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
    fn stream_batch(&mut self, first: StreamJob) -> Option<Job> {
        let mut waiting = vec![first];
        let mut other = None;
        while waiting.len() < self.batch {
            match self.jobs.try_recv() {
                Ok(Job::Stream(job)) => waiting.push(job),
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
        let more = self.streams.commit(&self.connection, waiting);
        metrics::histogram!("bourn_commit_seconds").record(started.elapsed().as_secs_f64());
        // What is left to remove waits for whoever writes meanwhile.
        if more && other.is_none() {
            other = self.jobs.try_recv().ok().or(Some(Job::Stream(StreamJob::Collect)));
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
                advance(&self.head, head);
                for (_, answer, result) in answers {
                    let _ = answer.send(result);
                }
            }
            Err(Failed::Storage(failure)) => {
                // Nothing of the batch was written, whatever its single mutations had come to.
                let tried = answers.into_iter().map(|(_, answer, _)| answer);
                for answer in tried.chain(waiting.into_iter().map(|(_, answer)| answer)) {
                    let _ = answer.send(Err(WriteError::Storage(failure.clone())));
                }
            }
            Err(Failed::Undone) => {
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

    fn commit_batch(&self, waiting: &mut Waiting, answers: &mut Vec<Answer>) -> Result<Seq, Failed> {
        let storage = |e: rusqlite::Error| Failed::Storage(error::storage(&e));
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate).map_err(storage)?;
        let start = sequencer::seal_pending(&transaction).map_err(storage)?;
        let expires_at =
            unix_secs().saturating_add(i64::try_from(self.ledger_retention.as_secs()).unwrap_or(i64::MAX));
        let mut head = start;
        // Where mutations of more than one activity begin and end.
        let mut wide = Vec::new();
        while let Some((mutation, answer)) = waiting.pop_front() {
            run(&transaction, "SAVEPOINT mutation").map_err(storage)?;
            let result = mutate::apply(&transaction, &self.catalog, &mutation, head, expires_at);
            if transaction.is_autocommit() {
                // SQLite has rolled the whole transaction back by itself: a full disk or worse, or a trigger.
                let failed = match &result {
                    Err(WriteError::Storage(failure)) => Failed::Storage(failure.clone()),
                    Err(_) => Failed::Undone,
                    Ok(_) => Failed::Storage(StorageError::Unavailable),
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
        Ok(head)
    }

    fn seal(&self) {
        self.shared.seal_asked.store(false, Ordering::Relaxed);
        match self.in_background(|| sequencer::seal_now(&self.connection)) {
            Ok(head) => {
                self.shared.writer_stands(None);
                advance(&self.head, head);
            }
            // The next look at the file asks again.
            Err(failure) => self.shared.writer_stands(Some(error::storage(&failure).to_string())),
        }
    }

    /// Does what can be done again later, without waiting long for another process.
    fn in_background<T>(&self, work: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.connection.busy_timeout(BACKGROUND_PATIENCE.min(self.busy))?;
        let result = work();
        self.connection.busy_timeout(self.busy)?;
        result
    }

    /// Looks at every table anew, and makes sure the triggers fit it; gives the tables to reconcile. Those that
    /// are under way go on, where the table is still the same.
    pub(super) fn refresh(&self, mut under_way: VecDeque<Reconcile>) -> VecDeque<Reconcile> {
        let mut reconciles = VecDeque::new();
        for entity in self.catalog.iter() {
            let looked = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
                .and_then(|transaction| {
                    let schema = introspect::table(&transaction, entity)?;
                    let wanted =
                        schema.as_ref().map(|schema| triggers::all(entity, schema)).unwrap_or_default();
                    let compare = triggers::install(&transaction, entity, &wanted)?;
                    transaction.commit()?;
                    Ok((schema, compare))
                });
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

    /// Looks for rows whose keys cannot be told.
    fn count_left_out(&self, entity: &crate::entity::EntityType, schema: &crate::entity::TableSchema) {
        match introspect::left_out(&self.connection, entity, schema) {
            Ok(reason) => self.shared.left_out(&entity.name, reason),
            Err(error) => {
                tracing::warn!(entity = &*entity.name, %error, "cannot count the rows that are left out")
            }
        }
    }

    /// Takes out some of what is old; says whether there may be more.
    fn retention_step(&self) -> bool {
        let Some(retention) = self.retention else { return false };
        let stepped = self.in_background(|| {
            let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let text = |millis: i64| {
                transaction
                    .prepare_cached("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ?1 / 1000.0, 'unixepoch')")?
                    .query_row([millis], |row| row.get(0))
            };
            let history = text(retention.history_bound())?;
            let audit = retention.audit_bound().map(text).transpose()?;
            let more = retention::step(&transaction, &retention::Bounds { history, audit })?;
            transaction.commit()?;
            Ok(more)
        });
        stepped.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "old activities cannot be taken out now");
            false
        })
    }

    fn reconcile_step(&self, reconciles: &mut VecDeque<Reconcile>) {
        let Some(current) = reconciles.front_mut() else { return };
        let stepped = self.in_background(|| {
            let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            sequencer::seal_pending(&transaction)?;
            let finished = current.step(&transaction)?;
            if finished {
                triggers::set_reconciled(&transaction, &current.entity, true)?;
            }
            let head = sequencer::seal_pending(&transaction)?;
            transaction.commit()?;
            Ok((finished, head))
        });
        match stepped {
            Ok((finished, head)) => {
                advance(&self.head, head);
                self.shared.writer_stands(None);
                self.shared.reconciling(&current.entity.name, (!finished).then_some(current.looked_at));
                if finished {
                    tracing::info!(
                        entity = &*current.entity.name,
                        keys = current.looked_at,
                        "the log has the table as it is"
                    );
                    self.count_left_out(&current.entity, &current.schema);
                    reconciles.pop_front();
                }
            }
            Err(failure) => {
                let reason = error::storage(&failure).to_string();
                tracing::warn!(
                    entity = &*current.entity.name,
                    reason,
                    "cannot compare the table with the log now"
                );
                self.shared.writer_stands(Some(reason));
                // Busy has waited already; anything else is left for the next look at the tables.
                if !matches!(failure.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy)) {
                    reconciles.pop_front();
                    self.shared.refresh_owed.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

fn unix_secs() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}
