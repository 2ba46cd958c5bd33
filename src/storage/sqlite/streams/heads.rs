//! The streams that are being written to, as the writer thread knows them: read once, kept as long as nobody else
//! writes to the file, and saved once a commit however often they were appended to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use bourn_protocol::stored::Lifetime;
use bourn_protocol::{Seq, StreamOffset, StreamPath};
use rusqlite::{Connection, OptionalExtension, params};

use super::reading::{Base, COLUMNS, number};
use crate::storage::streams::rules::{Configuration, Head, ProducerState, offset};
use crate::storage::streams::{Producer, Segment, StreamInfo};

/// A stream as the writer knows it.
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) path: StreamPath,
    /// It is deleted, and kept for its forks.
    pub(super) deleted: bool,
    pub(super) head: Head,
    pub(super) lineage: Arc<[Segment]>,
    pub(super) lifetime: Lifetime,
    /// As it is saved.
    pub(super) deadline: Option<i64>,
    /// What it was forked from, as far as a repeated request needs it.
    pub(super) source: Option<StreamPath>,
    pub(super) fork_offset: Option<StreamOffset>,
    pub(super) fork_sub: u64,
    pub(super) producers: HashMap<String, Option<ProducerState>>,
    /// It has changed since it was saved.
    pub(super) dirty: bool,
}

impl Entry {
    /// Reads the stream at a path.
    pub(super) fn load(connection: &Connection, path: &StreamPath) -> rusqlite::Result<Option<Entry>> {
        let sql = format!(
            "SELECT {COLUMNS}, closed_by, closed_epoch, closed_seq, writer_seq, producers, source_path, fork_offset, \
             fork_sub FROM bourn_streams WHERE path = ?1"
        );
        let found = connection
            .prepare_cached(&sql)?
            .query_row([path.as_str()], |row| {
                let base = Base::read(row)?;
                let closed_by = match row.get::<_, Option<String>>(11)? {
                    Some(id) => Some(Producer { id, epoch: number(row, 12)?, seq: number(row, 13)? }),
                    None => None,
                };
                let source: Option<String> = row.get(16)?;
                let fork_offset: Option<String> = row.get(17)?;
                let entry = Entry {
                    id: base.id,
                    path: base.path.clone(),
                    deleted: base.deleted,
                    head: Head {
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
                };
                Ok((base, entry))
            })
            .optional()?;
        let Some((base, mut entry)) = found else { return Ok(None) };
        entry.lineage = base.lineage(connection)?;
        entry.move_tail(base.tail);
        Ok(Some(entry))
    }

    /// Its tail is here now.
    pub(super) fn move_tail(&mut self, to: Seq) {
        self.head.tail = offset(&self.lineage, to);
    }

    /// Whether it has expired.
    pub(super) fn expired(&self, now: i64) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// It was used: it lives on.
    pub(super) fn used(&mut self, now: i64) {
        if matches!(self.lifetime, Lifetime::Idle(_)) {
            // It may have been saved as later than it need be, for a reader's sake.
            self.deadline = self.deadline.max(self.lifetime.deadline(now));
        }
        self.dirty = true;
    }

    /// What it is to everybody else.
    pub(super) fn info(&self, now: i64) -> Arc<StreamInfo> {
        let saved = self.deadline.unwrap_or(i64::MAX);
        // What is saved may be later than it need be.
        let exact = match self.lifetime {
            Lifetime::Idle(_) => self.lifetime.deadline(now).unwrap_or(saved),
            _ => saved,
        };
        Arc::new(StreamInfo {
            id: self.id,
            path: self.path.clone(),
            content_type: self.head.content_type.clone(),
            lineage: self.lineage.clone(),
            tail: self.head.tail.position,
            closed: self.head.closed,
            lifetime: self.lifetime,
            deadline: AtomicI64::new(exact),
            saved_deadline: AtomicI64::new(saved),
        })
    }

    /// What it was created as.
    pub(super) fn configuration(&self) -> Configuration {
        Configuration {
            content_type: self.head.content_type.clone(),
            lifetime: self.lifetime,
            closed: self.head.closed,
            source: self.source.clone(),
            fork_offset: self.fork_offset,
            fork_sub: self.fork_sub,
        }
    }

    /// What is known of a producer.
    pub(super) fn producer(
        &mut self,
        connection: &Connection,
        id: &str,
    ) -> rusqlite::Result<Option<ProducerState>> {
        if let Some(known) = self.producers.get(id) {
            return Ok(*known);
        }
        let found = connection
            .prepare_cached(
                "SELECT epoch, seq FROM bourn_stream_producers WHERE stream_id = ?1 AND producer_id = ?2",
            )?
            .query_row(params![self.id.cast_signed(), id], |row| {
                Ok(ProducerState { epoch: number(row, 0)?, seq: number(row, 1)? })
            })
            .optional()?;
        self.producers.insert(id.to_owned(), found);
        Ok(found)
    }

    /// Saves what has changed.
    pub(super) fn save(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let closed_by = self.head.closed_by.as_ref();
        connection
            .prepare_cached(
                "UPDATE bourn_streams SET tail = ?2, closed = ?3, closed_by = ?4, closed_epoch = ?5, closed_seq = ?6, \
                 writer_seq = ?7, deadline = ?8, producers = ?9 WHERE id = ?1",
            )?
            .execute(params![
                self.id.cast_signed(),
                self.head.tail.position.as_i64(),
                self.head.closed,
                closed_by.map(|producer| producer.id.as_str()),
                closed_by.map(|producer| producer.epoch.cast_signed()),
                closed_by.map(|producer| producer.seq.cast_signed()),
                self.head.writer_seq,
                self.deadline,
                self.head.producers,
            ])?;
        self.dirty = false;
        Ok(())
    }
}
