//! Reading stored streams: their rows, and their bytes, segment by segment through the lineage.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use bourn_protocol::chunk::Feed;
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use bourn_protocol::stored::{Lifetime, Payload};
use bourn_protocol::{ContentType, Seq, StreamPath};
use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::streams::rules::{after, lifetime, lineage};
use crate::streams::{FillError, Segment, StreamInfo};

/// The stream that is found at a path.
pub(super) enum FoundStream {
    Live(Arc<StreamInfo>),
    /// Deleted, and kept for its forks.
    Deleted,
}

/// The columns that [`StreamRow::read`] takes.
pub(super) const COLUMNS: &str =
    "id, path, state, content_type, tail, closed, ttl, expires_at, deadline, source_id, base";

/// A stream's row, as far as readers and writers both need it.
pub(super) struct StreamRow {
    pub(super) id: u64,
    pub(super) path: StreamPath,
    pub(super) deleted: bool,
    pub(super) content_type: ContentType,
    pub(super) tail: Seq,
    pub(super) closed: bool,
    pub(super) lifetime: Lifetime,
    pub(super) deadline: Option<i64>,
    source_id: Option<i64>,
    base: Seq,
}

fn broken(i: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(i, "bourn_streams".into(), Type::Null)
}

pub(super) fn seq(row: &Row<'_>, i: usize) -> rusqlite::Result<Seq> {
    Seq::from_i64(row.get(i)?).ok_or_else(|| broken(i))
}

pub(super) fn number(row: &Row<'_>, i: usize) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(i)?).map_err(|_| broken(i))
}

impl StreamRow {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<StreamRow> {
        let path: String = row.get(1)?;
        let content_type: String = row.get(3)?;
        let lifetime = lifetime(row.get(6)?, row.get(7)?).ok_or_else(|| broken(6))?;
        Ok(StreamRow {
            id: number(row, 0)?,
            path: StreamPath::new(&path).map_err(|_| broken(1))?,
            deleted: row.get::<_, i64>(2)? != 0,
            content_type: ContentType::new(&content_type).map_err(|_| broken(3))?,
            tail: seq(row, 4)?,
            closed: row.get(5)?,
            lifetime,
            deadline: row.get(8)?,
            source_id: row.get(9)?,
            base: seq(row, 10)?,
        })
    }

    /// The stretches of bytes that the stream is made of, from its root.
    pub(super) fn lineage(&self, connection: &Connection) -> rusqlite::Result<Arc<[Segment]>> {
        let mut ancestors = Vec::new();
        let mut next = self.source_id;
        while let Some(id) = next {
            let sql = "SELECT id, base, source_id FROM bourn_streams WHERE id = ?1";
            let (stream, from, source) = connection
                .prepare_cached(sql)?
                .query_row([id], |row| Ok((number(row, 0)?, seq(row, 1)?, row.get(2)?)))?;
            ancestors.push((stream, from));
            next = source;
        }
        Ok(lineage(self.id, self.base, ancestors))
    }
}

/// The stream at a path.
pub(super) fn find(connection: &Connection, path: &StreamPath) -> rusqlite::Result<Option<FoundStream>> {
    let sql = format!("SELECT {COLUMNS} FROM bourn_streams WHERE path = ?1");
    let base = connection.prepare_cached(&sql)?.query_row([path.as_str()], StreamRow::read).optional()?;
    let Some(base) = base else { return Ok(None) };
    if base.deleted {
        return Ok(Some(FoundStream::Deleted));
    }
    let lineage = base.lineage(connection)?;
    let deadline = base.deadline.unwrap_or(i64::MAX);
    Ok(Some(FoundStream::Live(Arc::new(StreamInfo {
        id: base.id,
        path: base.path,
        content_type: base.content_type,
        lineage,
        tail: base.tail,
        closed: base.closed,
        lifetime: base.lifetime,
        deadline: AtomicI64::new(deadline),
        saved_deadline: AtomicI64::new(deadline),
    }))))
}

/// Whether any stream was forked from this one and is still there.
pub(super) fn has_forks(connection: &Connection, id: u64) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM bourn_streams WHERE source_id = ?1 AND state < 2 LIMIT 1";
    connection.prepare_cached(sql)?.exists([id.cast_signed()])
}

/// Fills the chunk with what follows its position; returns whether the stream is closed. The end of the chunk is found
/// by the lengths alone, which are read without the bytes; then no more bytes are read than needed.
pub(super) fn fill(
    connection: &Connection,
    id: u64,
    lineage: &[Segment],
    mut chunk: StoredChunkBuilder,
) -> rusqlite::Result<Result<(StoredChunkBuilder, bool), FillError>> {
    let sql = "SELECT tail, closed FROM bourn_streams WHERE id = ?1 AND state = 0";
    let now = connection
        .prepare_cached(sql)?
        .query_row([id.cast_signed()], |row| Ok((seq(row, 0)?, row.get(1)?)))
        .optional()?;
    let Some((tail, closed)) = now else { return Ok(Err(FillError::Missing)) };
    let start = chunk.position();
    for part in parts(lineage, start, tail) {
        let sql = "SELECT start, messages, bytes FROM bourn_stream_data \
                   WHERE stream_id = ?1 AND start >= ?2 AND start < ?3 ORDER BY start";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query(part)?;
        while let Some(row) = rows.next()? {
            if seq(row, 0)? != chunk.position() {
                return Ok(Err(FillError::Misplaced));
            }
            let count = |i| usize::try_from(number(row, i)?).map_err(|_| broken(i));
            let (messages, length) = (count(1)?, count(2)?);
            let after = after(chunk.position(), length).ok_or_else(|| broken(2))?;
            if chunk.plan(length, messages, after) == Feed::Done {
                break;
            }
        }
        if chunk.is_cut() {
            break;
        }
    }
    if !chunk.is_cut() && chunk.position() < tail {
        return Ok(Err(FillError::Misplaced));
    }
    chunk.reserve();
    for part in parts(lineage, start, chunk.end()) {
        let sql = "SELECT coalesce(d.data, l.data) \
                   FROM bourn_stream_data d LEFT JOIN bourn_stream_large l ON l.id = d.large \
                   WHERE d.stream_id = ?1 AND d.start >= ?2 AND d.start < ?3 ORDER BY d.start";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query(part)?;
        while let Some(row) = rows.next()? {
            chunk.write(row.get_ref(0)?.as_blob()?);
        }
    }
    Ok(Ok((chunk, closed)))
}

/// The appends between two places: the stream that owns them, and where they begin and end.
fn parts(lineage: &[Segment], start: Seq, end: Seq) -> impl Iterator<Item = [i64; 3]> {
    let owned = lineage.iter().filter(move |segment| start < segment.to && segment.from < end);
    owned.map(move |segment| {
        [segment.stream.cast_signed(), segment.from.max(start).as_i64(), segment.to.min(end).as_i64()]
    })
}

/// The append that begins at a place.
pub(super) fn append_at(
    connection: &Connection,
    lineage: &[Segment],
    position: Seq,
) -> rusqlite::Result<Option<Payload>> {
    let Some(segment) = lineage.iter().find(|segment| segment.from <= position && position < segment.to)
    else {
        return Ok(None);
    };
    connection
        .prepare_cached(
            "SELECT d.messages, coalesce(d.data, l.data) \
             FROM bourn_stream_data d LEFT JOIN bourn_stream_large l ON l.id = d.large \
             WHERE d.stream_id = ?1 AND d.start = ?2",
        )?
        .query_row(params![segment.stream.cast_signed(), position.as_i64()], |row| {
            let messages = usize::try_from(number(row, 0)?).map_err(|_| broken(0))?;
            Ok(Payload { data: Bytes::from(row.get::<_, Vec<u8>>(1)?), messages })
        })
        .optional()
}

/// Paths of streams in order.
pub(super) fn list(
    connection: &Connection,
    after: Option<&StreamPath>,
    limit: usize,
    now: i64,
) -> rusqlite::Result<Vec<StreamPath>> {
    let sql = "SELECT path FROM bourn_streams WHERE path > ?1 AND state = 0 AND coalesce(deadline > ?2, 1) \
               ORDER BY path LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![after.map_or("", StreamPath::as_str), now, limit], |row| {
        StreamPath::new(&row.get::<_, String>(0)?).map_err(|_| broken(0))
    })?;
    rows.collect()
}

/// Whether a stream has expired or a deleted one is not fully removed.
pub(in super::super) fn wants_collecting(connection: &Connection, now: i64) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM bourn_streams WHERE deadline <= ?1) \
               OR EXISTS (SELECT 1 FROM bourn_streams WHERE state = 2)";
    connection.prepare_cached(sql)?.query_row([now], |row| row.get(0))
}
