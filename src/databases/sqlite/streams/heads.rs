//! The streams that are being written to, as the writer thread knows them: read once, kept as long as no other process
//! writes to the file, and saved once per commit however often they were appended to.

use std::collections::HashMap;
use std::sync::Arc;

use bourn_protocol::{StreamOffset, StreamPath};
use rusqlite::{Connection, OptionalExtension, params};

use super::reading::{COLUMNS, StreamRow, number};
use crate::streams::Producer;
use crate::streams::rules::{ProducerState, StreamHead};
use crate::streams::state::StreamState;

/// Reads the stream at a path.
pub(super) fn load(connection: &Connection, path: &StreamPath) -> rusqlite::Result<Option<StreamState>> {
    let sql = format!(
        "SELECT {COLUMNS}, closed_by, closed_epoch, closed_seq, writer_seq, producers, source_path, fork_offset, \
             fork_sub FROM bourn_streams WHERE path = ?1"
    );
    let found = connection
        .prepare_cached(&sql)?
        .query_row([path.as_str()], |row| {
            let base = StreamRow::read(row)?;
            let closed_by = match row.get::<_, Option<String>>(11)? {
                Some(id) => Some(Producer { id, epoch: number(row, 12)?, seq: number(row, 13)? }),
                None => None,
            };
            let source: Option<String> = row.get(16)?;
            let fork_offset: Option<String> = row.get(17)?;
            let stream = StreamState {
                id: base.id,
                path: base.path.clone(),
                deleted: base.deleted,
                head: StreamHead {
                    content_type: base.content_type.clone(),
                    tail: StreamOffset { position: base.tail, owner: 0 },
                    closed: base.closed,
                    closed_by,
                    writer_seq: row.get(14)?,
                    producers: row.get(15)?,
                },
                lineage: Arc::new([]),
                lifetime: base.lifetime,
                deadline: base.deadline,
                source: source.and_then(|path| StreamPath::new(&path).ok()),
                fork_offset: fork_offset.and_then(|text| text.parse().ok()),
                fork_sub: number(row, 18)?,
                producers: HashMap::new(),
                dirty: false,
                fresh: Vec::new(),
            };
            Ok((base, stream))
        })
        .optional()?;
    let Some((base, mut stream)) = found else { return Ok(None) };
    stream.lineage = base.lineage(connection)?;
    stream.move_tail(base.tail);
    Ok(Some(stream))
}

/// Loads the state of a producer into the stream's state.
pub(super) fn know_producer(
    connection: &Connection,
    stream: &mut StreamState,
    id: &str,
) -> rusqlite::Result<()> {
    if stream.producers.contains_key(id) {
        return Ok(());
    }
    let found = connection
        .prepare_cached(
            "SELECT epoch, seq FROM bourn_stream_producers WHERE stream_id = ?1 AND producer_id = ?2",
        )?
        .query_row(params![stream.id.cast_signed(), id], |row| {
            Ok(ProducerState { epoch: number(row, 0)?, seq: number(row, 1)? })
        })
        .optional()?;
    stream.producers.insert(id.to_owned(), found);
    Ok(())
}

/// Saves what has changed.
pub(super) fn save(connection: &Connection, stream: &mut StreamState) -> rusqlite::Result<()> {
    let closed_by = stream.head.closed_by.as_ref();
    connection
        .prepare_cached(
            "UPDATE bourn_streams SET tail = ?2, closed = ?3, closed_by = ?4, closed_epoch = ?5, closed_seq = ?6, \
             writer_seq = ?7, deadline = ?8, producers = ?9 WHERE id = ?1",
        )?
        .execute(params![
            stream.id.cast_signed(),
            stream.head.tail.position.as_i64(),
            stream.head.closed,
            closed_by.map(|producer| producer.id.as_str()),
            closed_by.map(|producer| producer.epoch.cast_signed()),
            closed_by.map(|producer| producer.seq.cast_signed()),
            stream.head.writer_seq,
            stream.deadline,
            stream.head.producers,
        ])?;
    stream.dirty = false;
    Ok(())
}
