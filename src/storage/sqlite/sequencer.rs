//! The sequencer gives each activity the number of its transaction. A trigger cannot see where a transaction
//! ends; the writer can, for its own, and for another process's writes any moment at which the log is looked
//! at is between two transactions. What has no number yet is not served: with the number, which is written
//! under `synchronous=FULL`, everything before it in the write-ahead log is on the disk, too.

use bourn_protocol::Seq;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

/// The last activity that has its transaction's number; zero when none has.
pub(super) fn sealed_head(connection: &Connection) -> rusqlite::Result<Seq> {
    // Only the newest activities can lack it, so this steps over those and no more.
    let seq: Option<i64> = connection
        .prepare_cached("SELECT seq FROM activities WHERE commit_id IS NOT NULL ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(seq.and_then(Seq::from_i64).unwrap_or_default())
}

/// The last activity, whether it has its number or not.
pub(super) fn head(connection: &Connection) -> rusqlite::Result<Seq> {
    let seq: Option<i64> =
        connection.prepare_cached("SELECT max(seq) FROM activities")?.query_row([], |row| row.get(0))?;
    Ok(seq.and_then(Seq::from_i64).unwrap_or_default())
}

/// How many activities lack their number.
pub(super) fn unsealed(connection: &Connection) -> rusqlite::Result<u64> {
    let (head, sealed) = (head(connection)?, sealed_head(connection)?);
    Ok(head.get().saturating_sub(sealed.get()))
}

/// Takes everything that lacks a number as one transaction. Inside the caller's write transaction; gives the
/// head of the log.
pub(super) fn seal_pending(connection: &Connection) -> rusqlite::Result<Seq> {
    let (head, sealed) = (head(connection)?, sealed_head(connection)?);
    if head > sealed {
        seal(connection, sealed, head)?;
    }
    Ok(head)
}

/// Does [`seal_pending`] in a transaction of its own.
pub(super) fn seal_now(connection: &Connection) -> rusqlite::Result<Seq> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let head = seal_pending(&transaction)?;
    transaction.commit()?;
    Ok(head)
}

/// Takes what lies after `from`, up to `to`, as one transaction.
pub(super) fn seal(connection: &Connection, from: Seq, to: Seq) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE activities SET commit_id = ?2, last = \
             (seq IN (SELECT max(seq) FROM activities WHERE seq > ?1 AND seq <= ?2 GROUP BY feed_id)) + \
             2 * (seq IN (SELECT max(seq) FROM activities WHERE seq > ?1 AND seq <= ?2 GROUP BY entity_type)) \
             WHERE seq > ?1 AND seq <= ?2",
        )?
        .execute([from.as_i64(), to.as_i64()])?;
    Ok(())
}

/// Takes each of what lies after `from`, up to `to`, as a transaction of its own.
pub(super) fn seal_each(connection: &Connection, from: Seq, to: Seq) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE activities SET commit_id = seq, last = 3 WHERE seq > ?1 AND seq <= ?2")?
        .execute([from.as_i64(), to.as_i64()])?;
    Ok(())
}
