//! The versions of the log and of the stored streams in the database, by which it is recognised; and what is done to
//! the streams when it is not the one that was served.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

use crate::head::Version;

/// The log's epoch, and how often activities have left it.
pub(in super::super) fn of_log(connection: &Connection) -> rusqlite::Result<Version> {
    connection.prepare_cached("SELECT epoch, generation FROM bourn_log")?.query_row([], |row| {
        let (epoch, removals): (String, i64) = (row.get(0)?, row.get(1)?);
        let epoch = epoch
            .parse()
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))?;
        Ok(Version { epoch, removals: u64::try_from(removals).unwrap_or_default() })
    })
}

/// How many commits have touched streams, and whether streams wait to be collected.
pub(in super::super) fn of_streams(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT version FROM bourn_stream_totals")?
        .query_row([], |row| row.get(0))
        .optional()
        .map(Option::unwrap_or_default)
}

/// Lets every stream go on as a fork of what it is: the log has lost its end, and perhaps streams have, so later
/// appends must have other offsets and entity tags than the lost ones. `served` is how many commits were known to have
/// touched streams.
pub(in super::super) fn renumber_streams(transaction: &Connection, served: i64) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "CREATE TEMP TABLE bourn_renewed (id INTEGER PRIMARY KEY, path TEXT NOT NULL, deadline INTEGER);
         INSERT INTO bourn_renewed SELECT id, path, deadline FROM main.bourn_streams WHERE state = 0;
         UPDATE sqlite_sequence SET seq = seq + 1 + abs(random() % 1000000000000) WHERE name = 'bourn_streams';
         UPDATE bourn_streams SET state = 1, path = NULL, deadline = NULL WHERE state = 0;
         INSERT INTO bourn_streams (path, content_type, tail, closed, closed_by, closed_epoch, closed_seq, writer_seq, ttl, \
         expires_at, deadline, source_id, source_path, base, fork_offset, fork_sub, producers) \
         SELECT r.path, s.content_type, s.tail, s.closed, s.closed_by, s.closed_epoch, s.closed_seq, s.writer_seq, s.ttl, \
         s.expires_at, r.deadline, s.id, s.source_path, s.tail, s.fork_offset, s.fork_sub, s.producers \
         FROM temp.bourn_renewed r JOIN main.bourn_streams s ON s.id = r.id;
         UPDATE bourn_stream_producers SET stream_id = (SELECT s.id FROM main.bourn_streams s \
         WHERE s.source_id = bourn_stream_producers.stream_id AND s.path = \
         (SELECT path FROM temp.bourn_renewed r WHERE r.id = bourn_stream_producers.stream_id)) \
         WHERE stream_id IN (SELECT id FROM temp.bourn_renewed);",
    )?;
    transaction.execute(
        "UPDATE bourn_stream_totals SET version = max(version, ?1) + 1, \
         streams = streams + (SELECT count(*) FROM temp.bourn_renewed)",
        [served],
    )?;
    transaction.execute_batch("DROP TABLE temp.bourn_renewed")
}
