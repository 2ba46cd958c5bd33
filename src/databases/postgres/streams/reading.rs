//! Reading stored streams. A stream's row is read from the database each time, because another server may have written
//! to it a moment ago; its bytes are read in statements that each see one moment.

use bourn_protocol::StreamPath;
use bourn_protocol::chunk::Feed;
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use sqlx::{PgConnection, Row};

use super::news::Stored;
use super::rows::{broken, columns, seq, stream_state};
use crate::databases::postgres::connections::{scalar, statement};
use crate::streams::rules::after;
use crate::streams::state::StreamState;
use crate::streams::{FillError, StreamInfo};

/// Maximum size in bytes of the appends that one statement gives; the last of them may cross it.
const BYTES_AT_ONCE: usize = 1 << 20;
/// Most appends that one statement gives.
const APPENDS_AT_ONCE: i64 = 4_096;

/// The stream at a path.
pub(super) async fn find(
    connection: &mut PgConnection,
    stored: &Stored,
    path: &StreamPath,
) -> Result<Option<StreamState>, sqlx::Error> {
    let row = statement(concat!("SELECT ", columns!(), " FROM bourn.streams WHERE path = $1"))
        .bind(path.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    match row {
        Some(row) => stream_state(connection, stored, &row).await.map(Some),
        None => Ok(None),
    }
}

/// Fills the chunk with what follows its position; returns whether the stream is closed.
pub(super) async fn fill(
    connection: &mut PgConnection,
    stream: &StreamInfo,
    mut chunk: StoredChunkBuilder,
) -> Result<Result<(StoredChunkBuilder, bool), FillError>, sqlx::Error> {
    loop {
        let position = chunk.position();
        let segment = stream.lineage.iter().find(|segment| position < segment.to);
        let Some(segment) = segment else { return Ok(Err(FillError::Misplaced)) };
        let end = after(position, BYTES_AT_ONCE).map_or(segment.to, |end| end.min(segment.to));
        let rows = statement(
            "SELECT s.tail, s.closed, d.start, d.messages, d.data FROM bourn.streams s LEFT JOIN LATERAL (\
             SELECT start, messages, data FROM bourn.stream_data \
             WHERE stream_id = $2 AND start >= $3 AND start < least($4, s.tail) ORDER BY start LIMIT $5) d ON true \
             WHERE s.id = $1 AND s.state = 0",
        )
        .bind(stream.id.cast_signed())
        .bind(segment.stream.cast_signed())
        .bind(position.as_i64())
        .bind(end.as_i64())
        .bind(APPENDS_AT_ONCE)
        .fetch_all(&mut *connection)
        .await?;
        let Some(first) = rows.first() else { return Ok(Err(FillError::Missing)) };
        let (tail, closed) = (seq(first, "tail")?, first.try_get("closed")?);
        for row in &rows {
            let Some(start) = row.try_get::<Option<i64>, _>("start")? else { break };
            if start != chunk.position().as_i64() {
                return Ok(Err(FillError::Misplaced));
            }
            let data: &[u8] = row.try_get("data")?;
            let messages =
                usize::try_from(row.try_get::<i32, _>("messages")?).map_err(|_| broken("messages"))?;
            let after = after(chunk.position(), data.len()).ok_or_else(|| broken("start"))?;
            if chunk.push(data, messages, after) == Feed::Done {
                return Ok(Ok((chunk, closed)));
            }
        }
        if chunk.position() >= tail {
            return Ok(Ok((chunk, closed)));
        }
        if chunk.position() == position {
            return Ok(Err(FillError::Misplaced));
        }
    }
}

/// Paths of streams in order.
pub(super) async fn list(
    connection: &mut PgConnection,
    after: Option<&StreamPath>,
    limit: usize,
    now: i64,
) -> Result<Vec<StreamPath>, sqlx::Error> {
    let paths: Vec<String> = scalar(
        "SELECT path FROM bourn.streams WHERE path > $1 AND state = 0 AND coalesce(deadline > $2, true) \
         ORDER BY path LIMIT $3",
    )
    .bind(after.map_or("", StreamPath::as_str))
    .bind(now)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    paths.iter().map(|path| StreamPath::new(path).map_err(|_| broken("path"))).collect()
}
