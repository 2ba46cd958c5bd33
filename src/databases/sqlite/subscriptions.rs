//! Subscriptions on SQLite: one row each, replaced only if it is still the one that was read. They change seldom
//! compared with streams, so each change is a job of the writer of its own.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::SqliteStorage;
use super::file::history::History;
use super::jobs::{SubscriptionJob, WriterJob};
use crate::storage_error::StorageError;
use crate::streams::{Secrets, StoredSubscription, SubscriptionStore};

impl SubscriptionJob {
    /// Runs the job.
    pub(super) fn run(self, connection: &Connection, history: &History) {
        // The caller may have gone.
        match self {
            SubscriptionJob::Save(subscription, answer) => {
                let _ =
                    answer.send(commit(connection, history, |connection| save(connection, &subscription)));
            }
            SubscriptionJob::Delete(id, answer) => {
                let sql = "DELETE FROM bourn_subscriptions WHERE id = ?1";
                let _ = answer.send(commit(connection, history, |connection| {
                    connection.execute(sql, [id]).map(|removed| removed > 0)
                }));
            }
            SubscriptionJob::Secrets(answer) => {
                let _ = answer.send(commit(connection, history, secrets));
            }
        }
    }
}

/// Runs a change in a transaction, if the database is still the one that is served: what is saved may hold places of
/// the streams that were read.
fn commit<T>(
    connection: &Connection,
    history: &History,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, StorageError> {
    let served = history.served();
    let committed =
        Transaction::new_unchecked(connection, TransactionBehavior::Immediate).and_then(|transaction| {
            history.verify(&transaction, &served)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        });
    // A file that was removed takes the commit with it.
    match history.in_place() {
        true => committed.map_err(|error| super::error::storage(&error)),
        false => Err(StorageError::Unavailable),
    }
}

fn save(connection: &Connection, subscription: &StoredSubscription) -> rusqlite::Result<bool> {
    let StoredSubscription { id, version, due_at, state } = subscription;
    let changed = match *version {
        0 => connection
            .prepare_cached("INSERT OR IGNORE INTO bourn_subscriptions VALUES (?1, 1, ?2, ?3)")?
            .execute(params![id, due_at, state])?,
        version => connection
            .prepare_cached(
                "UPDATE bourn_subscriptions SET version = version + 1, due_at = ?3, state = ?4 WHERE id = ?1 AND version = ?2",
            )?
            .execute(params![id, version, due_at, state])?,
    };
    Ok(changed > 0)
}

fn secrets(connection: &Connection) -> rusqlite::Result<Secrets> {
    let key = |name: &str| -> rusqlite::Result<[u8; 32]> {
        let drawn: [u8; 32] = rand::random();
        connection.execute("INSERT OR IGNORE INTO bourn_secrets VALUES (?1, ?2)", params![name, drawn])?;
        connection.query_row("SELECT value FROM bourn_secrets WHERE name = ?1", [name], |row| row.get(0))
    };
    Ok(Secrets { webhook: key("webhook")?, token: key("token")? })
}

const COLUMNS: &str = "id, version, due_at, state";

fn read(row: &Row<'_>) -> rusqlite::Result<StoredSubscription> {
    Ok(StoredSubscription { id: row.get(0)?, version: row.get(1)?, due_at: row.get(2)?, state: row.get(3)? })
}

impl SqliteStorage {
    async fn subscription_job<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StorageError>>) -> SubscriptionJob,
    ) -> Result<T, StorageError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(WriterJob::Subscription(job(answer))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StorageError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StorageError::Closed,
        })?;
        answered.await.unwrap_or(Err(StorageError::Closed))
    }
}

#[async_trait]
impl SubscriptionStore for SqliteStorage {
    async fn secrets(&self) -> Result<Secrets, StorageError> {
        self.subscription_job(SubscriptionJob::Secrets).await
    }

    async fn subscription(&self, id: &str) -> Result<Option<StoredSubscription>, StorageError> {
        let id = id.to_owned();
        let sql = format!("SELECT {COLUMNS} FROM bourn_subscriptions WHERE id = ?1");
        self.pool
            .read(move |connection| connection.prepare_cached(&sql)?.query_row([id], read).optional())
            .await
    }

    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StorageError> {
        let sql = format!("SELECT {COLUMNS} FROM bourn_subscriptions ORDER BY id");
        self.pool
            .read(move |connection| connection.prepare_cached(&sql)?.query_map([], read)?.collect())
            .await
    }

    async fn due_subscriptions(
        &self,
        by: i64,
        limit: usize,
    ) -> Result<Vec<StoredSubscription>, StorageError> {
        let sql =
            format!("SELECT {COLUMNS} FROM bourn_subscriptions WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.pool
            .read(move |connection| connection.prepare_cached(&sql)?.query_map([by, limit], read)?.collect())
            .await
    }

    async fn next_due_subscription(&self) -> Result<Option<i64>, StorageError> {
        let sql = "SELECT min(due_at) FROM bourn_subscriptions";
        self.pool.read(move |connection| connection.query_row(sql, [], |row| row.get(0))).await
    }

    async fn save_subscription(&self, subscription: StoredSubscription) -> Result<bool, StorageError> {
        self.subscription_job(|answer| SubscriptionJob::Save(Box::new(subscription), answer)).await
    }

    async fn delete_subscription(&self, id: &str) -> Result<bool, StorageError> {
        let id = id.to_owned();
        self.subscription_job(|answer| SubscriptionJob::Delete(id, answer)).await
    }
}
