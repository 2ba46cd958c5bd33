//! Noticing that the database is not the one that was served. A file can be restored from a backup, replaced, removed
//! or truncated, while the server runs or while it is stopped; then offsets that clients and caches hold may name other
//! changes. The log that was served last is known here and kept in the [witness](super::beside). Every read checks in
//! its own snapshot, and every write in its own transaction, that the log still contains it; if it does not, the
//! request fails, and the writer thread gives the log a new epoch before anything of it is served: old offsets are then
//! gone. Stored streams go on as forks of what they were, so that later appends have offsets of their own. (Reading
//! them needs no check: servers alone append to them, each under the check, so a restored file has the first of the
//! bytes that were served.)
//!
//! A log is not the one that was served if its epoch is another, its head is lower, the activity at the served head is
//! another, fewer commits have touched stored streams, or the file has another inode. In doubt it is not.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bourn_protocol::{Epoch, Seq};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use sha2::{Digest, Sha256};

use super::beside::{Beside, Witness, beside_path};
use super::sequencer::{self, UnnumberedActivities};
use super::versions;
use crate::databases::sqlite::error;

/// How long the database is left to other processes between two commits that only fold marks.
const FOLD_PAUSE: Duration = Duration::from_millis(1);

/// What all connections to one database share to know whether it is the one that was served.
#[derive(Debug)]
pub(in super::super) struct History {
    pub(in super::super) path: PathBuf,
    pub(in super::super) beside: Beside,
    /// The log as this process has served it.
    served: ArcSwap<Witness>,
    /// Counts the files that were opened at the path; a connection to an earlier one is dropped.
    file: AtomicU64,
    /// The log may not be the one that was served: the writer thread has to look.
    doubt: AtomicBool,
    /// The file is not at its path any more.
    gone: AtomicBool,
    /// The inode of the write-ahead log that belongs to the file; zero where it is not known.
    log_inode: AtomicU64,
}

/// The inode of the file at a path.
///
/// # Errors
/// When there is none, or it was cut to nothing.
pub(in super::super) fn inode(path: &Path) -> io::Result<u64> {
    let found = std::fs::metadata(path)?;
    if found.len() == 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(found.ino()) }
}

impl History {
    /// The history of a database that was just opened for writing; `new` when its log was made just now. Gives it a new
    /// epoch where the log is not the one that was served last.
    pub(in super::super) fn begin(
        path: &Path,
        connection: &Connection,
        new: bool,
    ) -> rusqlite::Result<History> {
        let beside = Beside::of(path);
        let served = arrive(path, &beside, connection, new)?;
        Ok(History {
            path: path.to_owned(),
            beside,
            served: ArcSwap::from_pointee(served),
            file: AtomicU64::new(0),
            doubt: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            log_inode: AtomicU64::new(0),
        })
    }

    /// The same for another file, which is at the path now.
    pub(in super::super) fn begin_again(
        &self,
        connection: &Connection,
        new: bool,
    ) -> rusqlite::Result<Witness> {
        self.beside.reopen();
        let served = arrive(&self.path, &self.beside, connection, new)?;
        self.served.store(Arc::new(served));
        self.file.fetch_add(1, Ordering::Release);
        self.doubt.store(false, Ordering::Release);
        Ok(served)
    }

    /// The log as this process has served it.
    pub(in super::super) fn served(&self) -> Arc<Witness> {
        self.served.load_full()
    }

    /// The number of the file that a connection opened now belongs to.
    pub(in super::super) fn file(&self) -> u64 {
        self.file.load(Ordering::Acquire)
    }

    /// Whether the file at the path is the one that is open.
    pub(in super::super) fn in_place(&self) -> bool {
        inode(&self.path).is_ok_and(|inode| inode == self.served().inode)
    }

    /// Whether the file is not at its path any more; nothing is read or written then.
    pub(in super::super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(in super::super) fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Release);
    }

    /// Notes which write-ahead log belongs to the file, as long as the file is in place.
    pub(in super::super) fn note_log(&self) {
        let inode = inode(&self.log_path()).unwrap_or_default();
        self.log_inode.store(inode, Ordering::Release);
    }

    /// Renames the write-ahead log of a file that is not at the path any more: SQLite would apply it to the file that
    /// is there now, and damage that.
    pub(in super::super) fn set_log_aside(&self) {
        let log = self.log_path();
        let known = self.log_inode.load(Ordering::Acquire);
        if known != 0 && inode(&log).is_ok_and(|found| found == known) {
            let aside = beside_path(&self.path, "-wal.removed");
            tracing::warn!(from = %log.display(), to = %aside.display(), "the write-ahead log of the removed file is set aside");
            let moved = std::fs::rename(&log, aside);
            let removed = std::fs::remove_file(beside_path(&self.path, "-shm"));
            if let Err(failure) = moved.and(removed) {
                tracing::warn!(%failure, "it could not be set aside whole");
            }
        }
    }

    fn log_path(&self) -> PathBuf {
        beside_path(&self.path, "-wal")
    }

    /// Whether the log may not be the one that was served.
    pub(in super::super) fn in_doubt(&self) -> bool {
        self.doubt.load(Ordering::Acquire)
    }

    /// Checks in the caller's transaction that the log contains what was served; `served` as it was before that
    /// transaction began.
    pub(in super::super) fn verify(&self, connection: &Connection, served: &Witness) -> rusqlite::Result<()> {
        if contains(connection, served)? {
            return Ok(());
        }
        self.doubt.store(true, Ordering::Release);
        Err(error::not_the_log_served())
    }

    /// Numbers the activities of other processes without writing to the database; returns how far the log is numbered.
    pub(in super::super) fn number(&self, connection: &Connection) -> rusqlite::Result<Seq> {
        let served = self.served();
        let locked = self.beside.lock(served.epoch).map_err(|e| error::of_io(&e))?;
        let snapshot = connection.unchecked_transaction()?;
        self.verify(&snapshot, &served)?;
        sequencer::number(snapshot, &self.path, &locked)
    }

    /// Begins a write transaction of ours. The activities that other processes wrote before have their numbers in the
    /// database then, so that activities of our own may follow.
    pub(in super::super) fn begin_numbered<'c>(
        &self,
        connection: &'c Connection,
    ) -> rusqlite::Result<(Transaction<'c>, UnnumberedActivities<'_>)> {
        let (mut room, mut left) = (sequencer::FOLD_ROWS, u64::MAX);
        loop {
            let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
            let pending = self.fold(&transaction, room)?;
            if pending.left == 0 {
                return Ok((transaction, pending));
            }
            // Where others write faster than this folds, it folds more at a time, so that it comes to an end.
            if pending.left >= std::mem::replace(&mut left, pending.left) {
                room = room.saturating_mul(2);
            }
            transaction.commit()?;
            pending.committed();
            std::thread::park_timeout(FOLD_PAUSE);
        }
    }

    /// Inside a write transaction of ours, numbers the activities of other processes, and folds marks into at most
    /// `room` activities of the database.
    pub(in super::super) fn fold(
        &self,
        connection: &Connection,
        room: u64,
    ) -> rusqlite::Result<UnnumberedActivities<'_>> {
        let served = self.served();
        self.verify(connection, &served)?;
        UnnumberedActivities::fold(connection, &self.path, &self.beside, served.epoch, room)
    }

    /// Notes that the log is about to be served up to here.
    pub(in super::super) fn note(&self, connection: &Connection, seq: Seq) -> rusqlite::Result<()> {
        let served = self.served();
        let streams = versions::of_streams(connection)?;
        if seq <= served.seq && streams <= served.streams {
            return Ok(());
        }
        let (seq, fingerprint) = match fingerprint(connection, seq)?.filter(|_| seq > served.seq) {
            Some(fingerprint) => (seq, fingerprint),
            None => (served.seq, served.fingerprint),
        };
        let now = Witness { seq, fingerprint, streams: streams.max(served.streams), ..*served };
        self.served.rcu(|known| {
            let older = known.epoch == now.epoch && (known.seq < now.seq || known.streams < now.streams);
            if older { Arc::new(now) } else { known.clone() }
        });
        // Without it a restart may have to take a new epoch, which is safe.
        if let Err(failure) = self.beside.advance(&now) {
            tracing::debug!(%failure, "cannot write the file beside the database");
        }
        Ok(())
    }

    /// Finds out in the writer thread what is wrong with the log: another server has given it a new epoch, or it is not
    /// the log that was served and gets one now. Returns the log that is served from here on.
    pub(in super::super) fn settle(&self, connection: &Connection) -> rusqlite::Result<Witness> {
        let served = self.served();
        let now = loop {
            let now = standing(connection, served.inode)?;
            if now.epoch == served.epoch && contains(connection, &served)? {
                break *served;
            }
            let witness = self.beside.witness().map_err(|e| error::of_io(&e))?;
            let adopted = now.epoch != served.epoch
                && witness.is_some_and(|witness| {
                    witness.epoch == now.epoch && contains(connection, &witness).unwrap_or(false)
                });
            if adopted {
                break now;
            }
            let renewed = renew(connection, &self.beside, &now, served.streams)?;
            if let Some(renewed) = renewed {
                tracing::warn!(
                    served = served.seq.get(),
                    found = now.seq.get(),
                    "the database is not the one that was served: its log gets a new epoch, and clients start again"
                );
                break renewed;
            }
        };
        self.beside.begin(now.epoch).map_err(|e| error::of_io(&e))?;
        self.served.store(Arc::new(now));
        self.doubt.store(false, Ordering::Release);
        Ok(now)
    }
}

/// Compares a database that was just opened with the witness.
fn arrive(path: &Path, beside: &Beside, connection: &Connection, new: bool) -> rusqlite::Result<Witness> {
    let io = |failure: io::Error| error::of_io(&failure);
    let inode = inode(path).map_err(io)?;
    if new {
        let now = standing(connection, inode)?;
        beside.begin(now.epoch).map_err(io)?;
        beside.replace(&now).map_err(io)?;
        return Ok(now);
    }
    loop {
        let now = standing(connection, inode)?;
        let witness = beside.witness().map_err(io)?;
        if let Some(witness) = witness
            && witness.inode == inode
            && contains(connection, &witness)?
        {
            beside.begin(now.epoch).map_err(io)?;
            return Ok(now);
        }
        let renewed = renew(connection, beside, &now, witness.map_or(0, |witness| witness.streams))?;
        if let Some(renewed) = renewed {
            tracing::warn!(
                "the database is not the one that was served last, or nothing is known of that: its log gets a new epoch, \
                 and clients start again"
            );
            return Ok(renewed);
        }
    }
}

/// The log as the database has it.
fn standing(connection: &Connection, inode: u64) -> rusqlite::Result<Witness> {
    standing_in(&*connection.unchecked_transaction()?, inode)
}

fn standing_in(snapshot: &Connection, inode: u64) -> rusqlite::Result<Witness> {
    let seq = sequencer::head(snapshot)?;
    Ok(Witness {
        epoch: versions::of_log(snapshot)?.epoch,
        inode,
        seq,
        fingerprint: fingerprint(snapshot, seq)?.unwrap_or_default(),
        streams: versions::of_streams(snapshot)?,
    })
}

/// Whether the log contains what was served.
fn contains(connection: &Connection, served: &Witness) -> rusqlite::Result<bool> {
    if versions::of_log(connection)?.epoch != served.epoch
        || versions::of_streams(connection)? < served.streams
        || sequencer::head(connection)? < served.seq
    {
        return Ok(false);
    }
    match fingerprint(connection, served.seq)? {
        Some(found) => Ok(found == served.fingerprint),
        None if served.seq == Seq::ZERO => Ok(true),
        // Retention may have taken it out.
        None => connection
            .prepare_cached("SELECT pruned >= ?1 FROM bourn_log")?
            .query_row([served.seq.as_i64()], |row| row.get(0)),
    }
}

/// The hash that distinguishes an activity from another one at the same place.
fn fingerprint(connection: &Connection, seq: Seq) -> rusqlite::Result<Option<u64>> {
    let mut statement = connection.prepare_cached(
        "SELECT action, entity_type, entity_id, created_at, transaction_id, changed_keys, octet_length(value), \
         octet_length(previous_values) FROM activities WHERE seq = ?1",
    )?;
    statement
        .query_row([seq.as_i64()], |row| {
            let mut hash = Sha256::new();
            for i in 0..8 {
                match row.get_ref(i)? {
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                        hash.update((bytes.len() as u64).to_le_bytes());
                        hash.update(bytes);
                    }
                    ValueRef::Integer(number) => hash.update(number.to_le_bytes()),
                    ValueRef::Real(number) => hash.update(number.to_le_bytes()),
                    ValueRef::Null => hash.update(b"-"),
                }
            }
            let mut first = [0; 8];
            first.copy_from_slice(&hash.finalize()[..8]);
            Ok(u64::from_le_bytes(first))
        })
        .optional()
}

/// Gives the log a new epoch: its content stays, and all older offsets are gone. Does nothing where the log is not the
/// one that was `found` any more: another server has just done it.
pub(in super::super) fn renew(
    connection: &Connection,
    beside: &Beside,
    found: &Witness,
    streams_served: i64,
) -> rusqlite::Result<Option<Witness>> {
    let io = |failure: io::Error| error::of_io(&failure);
    let epoch = Epoch::draw();
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    if versions::of_log(&transaction)?.epoch != found.epoch {
        return Ok(None);
    }
    sequencer::seal_gaps(&transaction)?;
    transaction.execute("UPDATE bourn_log SET epoch = ?1", [epoch.as_str()])?;
    // The tables may have changed without the log, too.
    transaction.execute("UPDATE bourn_entities SET reconciled = 0", [])?;
    versions::renumber_streams(&transaction, streams_served)?;
    rename_ids(&transaction, epoch)?;
    let now = standing_in(&transaction, found.inode)?;
    // Before the commit: another server that sees the new epoch must find it here, or it would draw one itself. If
    // the commit fails, one more epoch is drawn.
    beside.replace(&now).map_err(io)?;
    transaction.commit()?;
    // Marks belong to their epoch: older ones do not count from here on.
    beside.begin(epoch).map_err(io)?;
    Ok(Some(now))
}

/// Activities show their id with the epoch in it, for people who read the table; the column is made for one epoch.
fn rename_ids(transaction: &Connection, epoch: Epoch) -> rusqlite::Result<()> {
    let remade = transaction.execute_batch(&format!(
        "SAVEPOINT ids; ALTER TABLE activities DROP COLUMN id; \
         ALTER TABLE activities ADD COLUMN id TEXT GENERATED ALWAYS AS ('{epoch}_' || printf('%016d', seq)) VIRTUAL; \
         RELEASE ids",
        epoch = epoch.as_str()
    ));
    // A view or trigger of the application's that does not fit its table keeps SQLite from altering any table; nothing of
    // ours reads the column.
    match remade {
        Ok(()) => Ok(()),
        Err(failure) if transaction.is_autocommit() => Err(failure),
        Err(_) => transaction.execute_batch("ROLLBACK TO ids; RELEASE ids"),
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
