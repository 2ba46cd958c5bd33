//! Removing streams. A stream that forks still need stays, hidden; one that is not needed any more loses its path at
//! once and its bytes little by little. Every server removes expired streams; every step may be done twice.

use std::time::Duration;

use bourn_protocol::StreamPath;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tokio_util::sync::CancellationToken;

use super::rows::{broken, has_forks, number};
use super::worker::Worker;
use crate::databases::postgres::connections::{Session, scalar, statement};
use crate::streams::StreamChange;

/// How often streams are checked for expiry.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Expired streams that are removed in one step.
const EXPIRED_AT_ONCE: i64 = 100;
/// Appends that are removed in one step.
const ROWS_AT_ONCE: i64 = 1_000;
/// The advisory lock of the server that removes streams.
const LOCK: i64 = 0x626f_7572_6e01;
/// After how long without a commit a writer is taken for gone.
const WRITER_GONE: &str = "1 day";

/// The result of removing a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    /// There was no such stream.
    Missing,
    /// It had been deleted, and is kept for its forks.
    Kept,
    /// It has not expired, and was to be removed only if it had.
    InUse,
    /// It is removed.
    Now {
        /// It had expired before.
        expired: bool,
        /// It is kept for its forks.
        kept: bool,
    },
}

/// A stream that is locked.
struct LockedStream {
    id: u64,
    source: Option<u64>,
    state: i16,
}

/// Removes the stream at a path. Its source is locked with it, in the order of the numbers as everywhere: it may be
/// waiting for this removal alone.
pub(super) async fn remove(
    worker: &mut Worker,
    path: &StreamPath,
    expired_only: bool,
) -> Result<Removed, sqlx::Error> {
    let mut transaction = worker.inner.db.begin().await?;
    let rows = lock_with_ancestors(&mut transaction, path).await?;
    let mut links = Vec::with_capacity(rows.len());
    let mut found = None;
    for row in &rows {
        let source = row.try_get::<Option<i64>, _>("source_id")?.map(i64::cast_unsigned);
        let link = LockedStream { id: number(row, "id")?, source, state: row.try_get("state")? };
        if row.try_get::<Option<&str>, _>("path")? == Some(path.as_str()) {
            found = Some((link.id, link.state, row.try_get::<Option<i64>, _>("deadline")?));
        }
        links.push(link);
    }
    let Some((id, state, deadline)) = found else { return Ok(Removed::Missing) };
    if state != 0 {
        return Ok(Removed::Kept);
    }
    let expired = deadline.is_some_and(|deadline| deadline <= worker.inner.stored.now());
    if expired_only && !expired {
        return Ok(Removed::InUse);
    }
    let kept = has_forks(&mut transaction, id).await?;
    let mut gone = 0;
    if kept {
        statement("UPDATE bourn.streams SET state = 1, deadline = NULL WHERE id = $1")
            .bind(id.cast_signed())
            .execute(&mut *transaction)
            .await?;
    }
    let mut next = (!kept).then_some(id);
    while let Some(id) = next {
        statement("UPDATE bourn.streams SET state = 2, path = NULL, deadline = NULL WHERE id = $1")
            .bind(id.cast_signed())
            .execute(&mut *transaction)
            .await?;
        gone += 1;
        let source = links.iter().find(|link| link.id == id).and_then(|link| link.source);
        let source = links.iter().find(|link| Some(link.id) == source && link.state == 1);
        // The source may have been kept for this stream alone.
        next = match source {
            Some(source) if !has_forks(&mut transaction, source.id).await? => Some(source.id),
            _ => None,
        };
    }
    statement(
        "INSERT INTO bourn.stream_writers AS w (id, commits, streams) VALUES ($1, $2, -$3) \
         ON CONFLICT (id) DO UPDATE SET commits = excluded.commits, streams = w.streams - $3, seen_at = excluded.seen_at",
    )
    .bind(worker.counter.writer)
    .bind(worker.counter.next())
    .bind(gone)
    .execute(&mut *transaction)
    .await?;
    worker.commit(transaction, vec![StreamChange::Deleted { id, path: path.clone() }]).await?;
    Ok(Removed::Now { expired, kept })
}

async fn lock_with_ancestors(
    transaction: &mut Session,
    path: &StreamPath,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let ids: Vec<i64> = scalar(
        "WITH RECURSIVE up AS (\
         SELECT id, source_id FROM bourn.streams WHERE path = $1 \
         UNION ALL SELECT s.id, s.source_id FROM up JOIN bourn.streams s ON s.id = up.source_id) SELECT id FROM up",
    )
    .bind(path.as_str())
    .fetch_all(&mut **transaction)
    .await?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    statement(
        "SELECT id, path, state, deadline, source_id FROM bourn.streams WHERE id = ANY($1) ORDER BY id FOR UPDATE",
    )
    .bind(ids)
    .fetch_all(&mut **transaction)
    .await
}

/// Removes what is to be removed until the server stops.
pub(super) async fn run(mut worker: Worker, stop: CancellationToken) {
    while tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
        loop {
            match Box::pin(step(&mut worker)).await {
                Ok(true) if !stop.is_cancelled() => {}
                Ok(_) => break,
                Err(failure) => {
                    // The next round tries again.
                    tracing::debug!(%failure, "streams cannot be removed now");
                    break;
                }
            }
        }
    }
}

/// Removes some streams; returns whether there may be more. A stream's removal is a transaction of its own, and never
/// begins while another connection is held.
async fn step(worker: &mut Worker) -> Result<bool, sqlx::Error> {
    let db = worker.inner.db.clone();
    let Some(expired) = db.within(wanted(worker)).await? else { return Ok(false) };
    for path in &expired {
        let path = StreamPath::new(path).map_err(|_| broken("path"))?;
        worker.remove_in_time(&path, true).await?;
    }
    let remove_dead = async {
        let mut transaction = db.begin().await?;
        let mine: bool =
            scalar("SELECT pg_try_advisory_xact_lock($1)").bind(LOCK).fetch_one(&mut *transaction).await?;
        let mut some = false;
        if mine {
            some = remove_rows(&mut transaction).await?;
            forget_writers(&mut transaction).await?;
        }
        transaction.commit().await?;
        Ok(some)
    };
    Ok(db.within(remove_dead).await? || !expired.is_empty())
}

/// Paths of streams that have expired; `None` if there is nothing to do at all.
async fn wanted(worker: &Worker) -> Result<Option<Vec<String>>, sqlx::Error> {
    let now = worker.inner.stored.now();
    let mut reading = worker.inner.db.single().await?;
    let wanted: bool = scalar(
        "SELECT EXISTS (SELECT 1 FROM bourn.streams WHERE deadline <= $1) \
         OR EXISTS (SELECT 1 FROM bourn.streams WHERE state = 2) \
         OR EXISTS (SELECT 1 FROM bourn.stream_writers WHERE id <> 0 AND seen_at < now() - $2::interval)",
    )
    .bind(now)
    .bind(WRITER_GONE)
    .fetch_one(reading.connection())
    .await?;
    let mut expired = None;
    if wanted {
        let paths = scalar("SELECT path FROM bourn.streams WHERE deadline <= $1 AND state = 0 LIMIT $2")
            .bind(now)
            .bind(EXPIRED_AT_ONCE)
            .fetch_all(reading.connection())
            .await?;
        expired = Some(paths);
    }
    reading.commit().await?;
    Ok(expired)
}

/// Removes some rows of a stream that is to be removed; returns whether there was one.
async fn remove_rows(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let dead: Option<i64> = scalar("SELECT id FROM bourn.streams WHERE state = 2 LIMIT 1")
        .fetch_optional(&mut *connection)
        .await?;
    let Some(dead) = dead else { return Ok(false) };
    let removed = statement(
        "DELETE FROM bourn.stream_data WHERE stream_id = $1 AND start = ANY (ARRAY(\
         SELECT start FROM bourn.stream_data WHERE stream_id = $1 ORDER BY start LIMIT $2))",
    )
    .bind(dead)
    .bind(ROWS_AT_ONCE)
    .execute(&mut *connection)
    .await?;
    if removed.rows_affected() == 0 {
        statement(
            "WITH producers AS (DELETE FROM bourn.stream_producers WHERE stream_id = $1) \
             DELETE FROM bourn.streams WHERE id = $1",
        )
        .bind(dead)
        .execute(connection)
        .await?;
    }
    Ok(true)
}

/// Removes the writers that are gone from the table, but not their counts of streams.
async fn forget_writers(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    statement(
        "WITH gone AS (DELETE FROM bourn.stream_writers WHERE id <> 0 AND seen_at < now() - $1::interval RETURNING streams) \
         UPDATE bourn.stream_writers SET streams = streams + (SELECT sum(streams) FROM gone) \
         WHERE id = 0 AND EXISTS (SELECT 1 FROM gone)",
    )
    .bind(WRITER_GONE)
    .execute(connection)
    .await
    .map(|_| ())
}
