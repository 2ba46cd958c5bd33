//! The sequencer gives each activity the number of its transaction. A trigger cannot see where a transaction ends; the
//! writer can, for its own. For another process's writes, any moment at which the log is looked at is between two
//! transactions. What has no number yet is not served.
//!
//! Numbering what other processes wrote must not be a commit to their database: it would fail each of their
//! transactions that began with a read and writes afterwards (`SQLITE_BUSY_SNAPSHOT`, whatever their busy timeout).
//! Holding the write lock alone fails them too. So [`number`] writes a mark into the file [beside](crate::databases::sqlite::file::beside) the
//! database, after it has synced the database's write-ahead log, and readers take the number from there. A rule on
//! the data alone would need no second file, but no trigger can tell two transactions of one connection apart.
//!
//! [`UnnumberedActivities::fold`] copies marks into the database: in commits of our own that happen anyway, and, where there are none,
//! once in [`FOLD_ROWS`] activities, so that a transaction of another process meets that less often than once in a thousand.
//! A fold changes no number, so it may be cut off anywhere and be repeated.
//!
//! Another server may add marks, fold and remove them at any time, so the marks that a process knows may be old. They are never
//! wrong, only short, because of two rules. What has its number in the database is a prefix of the log: marks are folded in
//! order, and a commit that adds activities of ours first folds everything before them. And a number is the seq of its
//! transaction's last activity, so the last number in the database says where that transaction ends, even if
//! only a part of it is folded yet.

use std::path::Path;
use std::sync::Arc;

use bourn_protocol::{Epoch, Seq};
use rusqlite::{Connection, OptionalExtension, Transaction};

use super::beside::{Beside, Locked, Marks, TransactionMark};
use crate::databases::sqlite::error;

/// Most activities that are folded into the database in one commit, unless others come faster; and how many must wait
/// before they are folded in a commit of their own.
pub(in super::super) const FOLD_ROWS: u64 = 2_000;

/// How far the log has numbers, in a snapshot, and the marks by which readers find those that the database lacks.
/// `known` must be from before the snapshot; they may be older.
pub(in super::super) fn sealed(
    connection: &Connection,
    known: Arc<Marks>,
) -> rusqlite::Result<(Seq, Arc<Marks>)> {
    let Some((seq, end)) = last_number(connection, known.end())? else { return Ok((known.end(), known)) };
    if end == seq {
        return Ok((end, known));
    }
    // Another server has folded a part of a transaction whose mark is not known here.
    let mut marks = Marks::clone(&known);
    marks.0.push(TransactionMark { from: seq, to: end });
    Ok((end, Arc::new(marks)))
}

/// The last activity after a place that has its number in the database, and its number.
fn last_number(connection: &Connection, after: Seq) -> rusqlite::Result<Option<(Seq, Seq)>> {
    // Only the newest activities can lack it, so this steps over those and no more.
    let found: Option<(i64, i64)> = connection
        .prepare_cached(
            "SELECT seq, commit_id FROM activities WHERE seq > ?1 AND commit_id IS NOT NULL ORDER BY seq DESC LIMIT 1",
        )?
        .query_row([after.as_i64()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.and_then(|(seq, end)| Some((Seq::from_i64(seq)?, Seq::from_i64(seq.max(end))?))))
}

/// The last activity, whether it has its number or not.
pub(in super::super) fn head(connection: &Connection) -> rusqlite::Result<Seq> {
    let seq: Option<i64> =
        connection.prepare_cached("SELECT max(seq) FROM activities")?.query_row([], |row| row.get(0))?;
    Ok(seq.and_then(Seq::from_i64).unwrap_or_default())
}

/// Marks everything in a snapshot that lacks a number as one transaction, without writing to the database; returns the
/// head of the numbered log.
pub(in super::super) fn number(
    snapshot: Transaction<'_>,
    path: &Path,
    locked: &Locked<'_>,
) -> rusqlite::Result<Seq> {
    let io = |failure: std::io::Error| error::of_io(&failure);
    let ((sealed, _), head) = (sealed(&snapshot, locked.marks())?, head(&snapshot)?);
    drop(snapshot);
    if head <= sealed {
        return Ok(sealed);
    }
    // A numbered activity is on the disk, also where its writer does not sync.
    sync_log(path).map_err(io)?;
    locked.add(TransactionMark { from: sealed, to: head }).map_err(io)?;
    Ok(head)
}

/// Syncs the database's write-ahead log. SQLite has no locks on that file that closing it could drop.
fn sync_log(path: &Path) -> std::io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    match std::fs::File::open(log) {
        Ok(file) => file.sync_data(),
        // Without that file all of it is in the database.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The activities of other processes that have no numbers in the database, in a write transaction of ours.
pub(in super::super) struct UnnumberedActivities<'a> {
    beside: &'a Beside,
    /// Held until the commit, so that no other server numbers what this transaction writes.
    locked: Option<Locked<'a>>,
    /// How far marks will be in the database with the commit.
    folded: Seq,
    /// How many activities will still lack their number in the database. Ours may follow only after all others have it.
    pub(in super::super) left: u64,
    /// The head of the log when the transaction began.
    pub(in super::super) head: Seq,
}

impl<'a> UnnumberedActivities<'a> {
    /// Numbers what lacks a number, as one transaction, inside the caller's write transaction, and folds marks into at most
    /// `room` activities.
    pub(in super::super) fn fold(
        connection: &Connection,
        path: &Path,
        beside: &'a Beside,
        epoch: Epoch,
        mut room: u64,
    ) -> rusqlite::Result<UnnumberedActivities<'a>> {
        let io = |failure: std::io::Error| error::of_io(&failure);
        let head = head(connection)?;
        let numbered = last_number(connection, Seq::ZERO)?.map_or(Seq::ZERO, |(seq, _)| seq);
        if beside.marks().0.is_empty() && head <= numbered {
            return Ok(UnnumberedActivities { beside, locked: None, folded: Seq::ZERO, left: 0, head });
        }
        let locked = beside.lock(epoch).map_err(io)?;
        let (sealed, _) = sealed(connection, locked.marks())?;
        if head > sealed {
            let mark = TransactionMark { from: sealed, to: head };
            if locked.marks().0.is_empty() && head.get() - sealed.get() <= room {
                fold(connection, mark, sealed, room)?;
            } else {
                sync_log(path).map_err(io)?;
                locked.add(mark).map_err(io)?;
            }
        }
        let mut folded = beside.folded();
        for mark in &locked.marks().0 {
            let (count, to) = fold(connection, *mark, folded, room)?;
            folded = folded.max(to);
            room = room.saturating_sub(count);
            if room == 0 {
                break;
            }
        }
        let left = locked.marks().end().get().saturating_sub(folded.get());
        Ok(UnnumberedActivities { beside, locked: Some(locked), folded, left, head })
    }

    /// The caller's transaction is committed: the marks that it has folded are not needed any more.
    pub(in super::super) fn committed(self) {
        let Some(locked) = self.locked else { return };
        self.beside.set_folded(self.folded);
        if self.left == 0
            && let Err(failure) = locked.clear()
        {
            // They stay, and are folded again, to the same numbers.
            tracing::debug!(%failure, "cannot remove marks from the file beside the database");
        }
    }
}

/// Copies a mark's number to at most `most` of its activities that lack it, from a place on; returns how many those
/// were, and up to where none lacks it now.
fn fold(
    connection: &Connection,
    mark: TransactionMark,
    from: Seq,
    most: u64,
) -> rusqlite::Result<(u64, Seq)> {
    let from = from.max(mark.from).as_i64();
    let end: Option<i64> = connection
        .prepare_cached(
            "SELECT max(seq) FROM (SELECT seq FROM activities \
             WHERE seq > ?1 AND seq <= ?2 AND commit_id IS NULL ORDER BY seq LIMIT ?3)",
        )?
        .query_row([from, mark.to.as_i64(), most.cast_signed()], |row| row.get(0))?;
    let Some(end) = end else { return Ok((0, mark.to)) };
    let folded = connection
        .prepare_cached(&format!(
            "UPDATE activities SET commit_id = ?2, last = {} WHERE seq > ?1 AND seq <= ?3 AND commit_id IS NULL",
            last_of("activities", "?2")
        ))?
        .execute([from, mark.to.as_i64(), end])?;
    Ok((folded as u64, Seq::from_i64(end).unwrap_or_default()))
}

/// Whether an activity is the last one, up to a place, in its feed (1) and in its entity type (2).
pub(in super::super) fn last_of(alias: &str, end: &str) -> String {
    format!(
        "({alias}.seq = (SELECT max(b.seq) FROM activities b WHERE b.feed_id = {alias}.feed_id AND b.seq <= {end})) + \
         2 * ({alias}.seq = (SELECT max(b.seq) FROM activities b WHERE b.entity_type = {alias}.entity_type AND b.seq <= {end}))"
    )
}

/// Numbers the activities after `from`, up to `to`, as one transaction.
pub(in super::super) fn seal(connection: &Connection, from: Seq, to: Seq) -> rusqlite::Result<()> {
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

/// Numbers each stretch of activities that lack a number as one transaction. It looks at the whole log.
pub(in super::super) fn seal_gaps(connection: &Connection) -> rusqlite::Result<()> {
    let head = head(connection)?;
    let first = |after: Seq, lacking: &str| -> rusqlite::Result<Option<Seq>> {
        let sql = format!(
            "SELECT seq FROM activities WHERE seq > ?1 AND commit_id IS {lacking} ORDER BY seq LIMIT 1"
        );
        let seq: Option<i64> =
            connection.prepare_cached(&sql)?.query_row([after.as_i64()], |row| row.get(0)).optional()?;
        Ok(seq.and_then(Seq::from_i64))
    };
    let before = |seq: Seq| Seq::new(seq.get().saturating_sub(1)).unwrap_or_default();
    let mut at = Seq::ZERO;
    while let Some(gap) = first(at, "NULL")? {
        let end = first(gap, "NOT NULL")?.map_or(head, before);
        seal(connection, before(gap), end)?;
        at = end;
    }
    Ok(())
}

/// Numbers each of the activities after `from`, up to `to`, as a transaction of its own.
pub(in super::super) fn seal_each(connection: &Connection, from: Seq, to: Seq) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE activities SET commit_id = seq, last = 3 WHERE seq > ?1 AND seq <= ?2")?
        .execute([from.as_i64(), to.as_i64()])?;
    Ok(())
}
