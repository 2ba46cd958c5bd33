//! Removing streams. A stream that forks still need stays, hidden; one that is not needed any more loses its path at
//! once and its bytes little by little, so that a large stream does not hold up the writers.

use bourn_protocol::StreamPath;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Outcome, StreamWriter};
use crate::databases::sqlite::streams::reading::has_forks;

/// Expired streams that are removed in one step.
const EXPIRED_AT_ONCE: i64 = 100;
/// Appends that are removed in one step.
const ROWS_AT_ONCE: i64 = 1_000;
/// Bytes of appends that are removed in one step; a single append may have more.
const BYTES_AT_ONCE: i64 = 8 << 20;

/// Removes a stream that exists; returns false if it is kept for its forks.
pub(in super::super) fn remove(
    writer: &mut StreamWriter,
    transaction: &Connection,
    path: &StreamPath,
    outcome: &mut Outcome,
) -> rusqlite::Result<bool> {
    let Some(stream) = writer.heads.remove(path) else { return Ok(true) };
    outcome.deleted.push((stream.id, path.clone()));
    if has_forks(transaction, stream.id)? {
        transaction
            .prepare_cached("UPDATE bourn_streams SET state = 1, deadline = NULL WHERE id = ?1")?
            .execute([stream.id.cast_signed()])?;
        return Ok(false);
    }
    let mut next = Some(stream.id.cast_signed());
    while let Some(id) = next {
        let source: Option<i64> = transaction
            .prepare_cached(
                "UPDATE bourn_streams SET state = 2, path = NULL, deadline = NULL WHERE id = ?1 RETURNING source_id",
            )?
            .query_row([id], |row| row.get(0))?;
        transaction.prepare_cached("UPDATE bourn_stream_totals SET streams = streams - 1")?.execute([])?;
        // The source may have been kept for this stream alone.
        next = match source {
            Some(source) if !has_forks(transaction, source.cast_unsigned())? => {
                // A stream without a path holds what another one was before the log's epoch changed.
                let kept: Option<Option<String>> = transaction
                    .prepare_cached("SELECT path FROM bourn_streams WHERE id = ?1 AND state = 1")?
                    .query_row([source], |row| row.get(0))
                    .optional()?;
                if let Some(path) = kept.as_ref().and_then(|path| StreamPath::new(path.as_deref()?).ok()) {
                    writer.heads.remove(&path);
                }
                kept.map(|_| source)
            }
            _ => None,
        };
    }
    Ok(true)
}

/// Removes some of what is to be removed; returns whether there is more.
pub(in super::super) fn step(
    writer: &mut StreamWriter,
    transaction: &Connection,
    now: i64,
    outcome: &mut Outcome,
) -> rusqlite::Result<bool> {
    let expired: Vec<String> = transaction
        .prepare_cached("SELECT path FROM bourn_streams WHERE deadline <= ?1 AND state = 0 LIMIT ?2")?
        .query_map(params![now, EXPIRED_AT_ONCE], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for path in expired.iter().filter_map(|path| StreamPath::new(path).ok()) {
        // Checked again: it may have been used in this very transaction.
        if writer.stream_state(transaction, &path)?.is_some_and(|stream| stream.expired(now)) {
            remove(writer, transaction, &path, outcome)?;
        }
    }
    let dead: Option<i64> = transaction
        .prepare_cached("SELECT id FROM bourn_streams WHERE state = 2 LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let Some(dead) = dead else { return Ok(!expired.is_empty()) };
    let removed = transaction
        .prepare_cached(
            "DELETE FROM bourn_stream_data WHERE stream_id = ?1 AND start IN \
             (SELECT start FROM bourn_stream_data WHERE stream_id = ?1 AND \
             start < ?3 + (SELECT min(start) FROM bourn_stream_data WHERE stream_id = ?1) ORDER BY start LIMIT ?2)",
        )?
        .execute([dead, ROWS_AT_ONCE, BYTES_AT_ONCE])?;
    if removed == 0 {
        transaction
            .prepare_cached("DELETE FROM bourn_stream_producers WHERE stream_id = ?1")?
            .execute([dead])?;
        transaction.prepare_cached("DELETE FROM bourn_streams WHERE id = ?1")?.execute([dead])?;
    }
    Ok(true)
}
