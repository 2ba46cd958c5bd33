//! A stream's row, read whole, for readers and writers.

use std::collections::HashMap;

use bourn_protocol::stored::Payload;
use bourn_protocol::{ContentType, Seq, StreamOffset, StreamPath};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::news::Stored;
use crate::databases::postgres::connections::{scalar, statement};
use crate::streams::rules::{StreamHead, lifetime, lineage};
use crate::streams::state::StreamState;
use crate::streams::{Producer, Segment};

/// The columns that [`stream_state`] takes, as a literal.
macro_rules! columns {
    () => {
        "id, path, state, content_type, tail, closed, closed_by, closed_epoch, closed_seq, writer_seq, ttl, expires_at, \
         deadline, source_id, source_path, base, fork_offset, fork_sub, producers"
    };
}
pub(super) use columns;

/// The error for a number that makes no sense in its column.
pub(super) fn broken(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("bourn.streams: {what} makes no sense").into())
}

pub(super) fn seq(row: &PgRow, column: &'static str) -> Result<Seq, sqlx::Error> {
    Seq::from_i64(row.try_get(column)?).ok_or_else(|| broken(column))
}

pub(super) fn number(row: &PgRow, column: &'static str) -> Result<u64, sqlx::Error> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|_| broken(column))
}

/// A stream's state from its row.
pub(super) async fn stream_state(
    connection: &mut PgConnection,
    stored: &Stored,
    row: &PgRow,
) -> Result<StreamState, sqlx::Error> {
    let id = number(row, "id")?;
    let closed_by = match row.try_get::<Option<String>, _>("closed_by")? {
        Some(id) => {
            Some(Producer { id, epoch: number(row, "closed_epoch")?, seq: number(row, "closed_seq")? })
        }
        None => None,
    };
    let head = StreamHead {
        content_type: ContentType::new(row.try_get("content_type")?).map_err(|_| broken("content_type"))?,
        tail: StreamOffset::START,
        closed: row.try_get("closed")?,
        closed_by,
        writer_seq: row.try_get("writer_seq")?,
        producers: u32::try_from(row.try_get::<i32, _>("producers")?).map_err(|_| broken("producers"))?,
    };
    let path = |text: &str| StreamPath::new(text).map_err(|_| broken("path"));
    let source: Option<&str> = row.try_get("source_path")?;
    let fork_offset: Option<&str> = row.try_get("fork_offset")?;
    let base = seq(row, "base")?;
    let lineage = match row.try_get::<Option<i64>, _>("source_id")? {
        None => lineage(id, base, []),
        Some(source) => stored.lineage(id, async || forked(connection, id, base, source).await).await?,
    };
    let mut stream = StreamState {
        id,
        path: path(row.try_get("path")?)?,
        deleted: row.try_get::<i16, _>("state")? != 0,
        head,
        lineage,
        lifetime: lifetime(row.try_get("ttl")?, row.try_get("expires_at")?).ok_or_else(|| broken("ttl"))?,
        deadline: row.try_get("deadline")?,
        source: source.map(path).transpose()?,
        fork_offset: fork_offset.and_then(|text| text.parse().ok()),
        fork_sub: number(row, "fork_sub")?,
        producers: HashMap::new(),
        dirty: false,
        fresh: Vec::new(),
    };
    stream.move_tail(seq(row, "tail")?);
    Ok(stream)
}

/// The lineage of a fork. It never changes.
async fn forked(
    connection: &mut PgConnection,
    id: u64,
    base: Seq,
    source: i64,
) -> Result<std::sync::Arc<[Segment]>, sqlx::Error> {
    let rows = statement(
        "WITH RECURSIVE up AS (\
         SELECT id, base, source_id, 0 AS depth FROM bourn.streams WHERE id = $1 \
         UNION ALL SELECT s.id, s.base, s.source_id, up.depth + 1 FROM up JOIN bourn.streams s ON s.id = up.source_id) \
         SELECT id, base FROM up ORDER BY depth",
    )
    .bind(source)
    .fetch_all(connection)
    .await?;
    let ancestors: Result<Vec<_>, sqlx::Error> =
        rows.iter().map(|row| Ok((number(row, "id")?, seq(row, "base")?))).collect();
    Ok(lineage(id, base, ancestors?))
}

/// Those of these streams that still have forks.
pub(super) async fn forked_from(connection: &mut PgConnection, ids: &[u64]) -> Result<Vec<u64>, sqlx::Error> {
    let ids: Vec<i64> = ids.iter().map(|id| id.cast_signed()).collect();
    let found: Vec<i64> = scalar(
        "SELECT asked FROM unnest($1::bigint[]) asked \
         WHERE EXISTS (SELECT 1 FROM bourn.streams WHERE source_id = asked AND state < 2)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(i64::cast_unsigned).collect())
}

/// Whether the stream still has forks.
pub(super) async fn has_forks(connection: &mut PgConnection, id: u64) -> Result<bool, sqlx::Error> {
    Ok(!forked_from(connection, &[id]).await?.is_empty())
}

/// The append that begins at a place.
pub(super) async fn append_at(
    connection: &mut PgConnection,
    lineage: &[Segment],
    position: Seq,
) -> Result<Option<Payload>, sqlx::Error> {
    let Some(segment) = lineage.iter().find(|segment| segment.from <= position && position < segment.to)
    else {
        return Ok(None);
    };
    let row = statement("SELECT messages, data FROM bourn.stream_data WHERE stream_id = $1 AND start = $2")
        .bind(segment.stream.cast_signed())
        .bind(position.as_i64())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let messages = usize::try_from(row.try_get::<i32, _>("messages")?).map_err(|_| broken("messages"))?;
    Ok(Some(Payload { data: Bytes::from(row.try_get::<Vec<u8>, _>("data")?), messages }))
}
