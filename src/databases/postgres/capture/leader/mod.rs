//! The leader: takes the slot, follows the stream, and appends its changes, batch by batch. A batch leaves when it is
//! full or when nothing more is waiting, so a single change leaves at once and a flood in large pieces; while many
//! transactions come, batches gather for a moment.

mod attend;
mod link;
mod pace;
mod reconcile;
mod stops;
mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::Seq;
use pgwire_replication::{Lsn, ReplicationEvent};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::append::{AppendInParts, Appender};
use super::change::{Change, Ids, Source};
use super::new_activity::{CommitMark, activities};
use super::prior::{self, Prior};
use super::settle::{RowName, Settler};
use super::{Lost, slot};
use crate::databases::postgres::connections::scalar;
use crate::databases::postgres::log::history;
use crate::databases::postgres::pgoutput::Relation;
use crate::databases::postgres::tables::value::Form;
use crate::databases::postgres::writes::ledger;
use crate::databases::postgres::{Inner, follow, refresh};
use link::ReplicationLink;
use pace::Pace;
use reconcile::Reconciler;
use stops::Stops;

/// Changes that are appended together, at most.
const PART_ROWS: usize = 4_096;
/// Bytes of changes that are appended together, roughly at most.
const PART_BYTES: usize = 4 << 20;
/// How far the position may lag behind an idle database before it is moved, in bytes.
const IDLE_LAG: u64 = 64 << 10;
const IDLE_EVERY: Duration = Duration::from_secs(5);
/// A transaction that is appended in parts is used this many times within the time after which the database ends it.
const KEEP_PARTS: u32 = 4;
/// The shortest wait for the stream while a look at the catalogue is due but cannot be taken.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// One item that waits to be appended, in the order of the stream.
pub(super) enum StreamItem {
    Change(Box<Change>),
    /// A transaction ends; with the transaction and the client that it named, if any.
    End(Option<Arc<Ids>>),
}

/// The transaction that the stream is sending.
pub(super) struct Open {
    pub(super) commit: CommitMark,
    pub(super) ids: Option<Arc<Ids>>,
    /// The log has it already.
    pub(super) covered: bool,
    /// It is appended in parts.
    pub(super) long: Option<AppendInParts>,
}

pub(super) struct Leader<'a> {
    pub(super) inner: &'a Inner,
    stop: &'a CancellationToken,
    client: ReplicationLink,
    pub(super) appender: Appender,
    /// The tables by the numbers the stream gives them; `None` for those that are not streamed.
    pub(super) sources: HashMap<u32, Option<Arc<Source>>>,
    /// The tables as the stream described them.
    pub(super) relations: HashMap<u32, Relation>,
    pub(super) forms: HashMap<u32, Form>,
    pub(super) settler: Settler,
    pub(super) items: Vec<StreamItem>,
    pub(super) bytes: usize,
    pub(super) open: Option<Open>,
    /// The end of the last transaction that the stream has sent.
    pub(super) told: Lsn,
    /// A full transaction number that the stream's short ones lie near.
    pub(super) near: i64,
    /// The stream describes a table otherwise than the catalogue did.
    pub(super) recheck: bool,
    pub(super) reconciler: Reconciler,
    pub(super) stops: Stops,
    /// The version of the tables that the sources were made from.
    tables_version: u64,
    idle_since: Instant,
    pace: Pace,
    /// No batch leaves before this time, unless it is full.
    gathers_until: Instant,
    ticked: Instant,
    /// When the database last sent something, without the time that the server itself was busy.
    heard: Instant,
    /// The database's process that sends the stream.
    sender: Option<i32>,
}

impl<'a> Leader<'a> {
    /// Tries to become the leader.
    pub(super) async fn begin(inner: &'a Inner, stop: &'a CancellationToken) -> Result<Leader<'a>, Lost> {
        inner.db.in_time(slot::prepare(inner)).await??;
        let client = attend::connect(inner).await?;
        let mut connection = inner.db.connect_directly().await?;
        let standing = inner.db.in_time(slot::take_over(inner, &mut connection)).await??;
        // Published before this server appends: the log may have another epoch, and a gap behind its former head.
        follow::look(inner).await?;
        let near = scalar("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8")
            .fetch_one(&mut connection)
            .await?;
        let head = Seq::from_i64(standing.head).unwrap_or_default();
        let mut leader = Leader {
            inner,
            stop,
            client: ReplicationLink::begin(
                client,
                usize::try_from(inner.limits.capture_memory.get()).unwrap_or(usize::MAX),
            ),
            appender: Appender::new(inner.db.clone(), standing.fence, head, standing.position),
            sources: HashMap::new(),
            relations: HashMap::new(),
            forms: HashMap::new(),
            settler: Settler::new(near),
            items: Vec::new(),
            bytes: 0,
            open: None,
            told: standing.position,
            near,
            recheck: false,
            reconciler: Reconciler::new(near, standing.foreign_until),
            stops: Stops::default(),
            tables_version: 0,
            idle_since: Instant::now(),
            pace: Pace::new(),
            gathers_until: Instant::now(),
            ticked: Instant::now(),
            heard: Instant::now(),
            sender: slot::sender(&mut connection, &inner.limits.slot).await?,
        };
        leader.look_around().await?;
        inner.shared.leading(true);
        inner.shared.capture_stands(None);
        inner.shared.advance(head);
        Ok(leader)
    }

    /// The fence that the log must have for this server to append.
    pub(super) fn fence(&self) -> i64 {
        self.appender.fence
    }

    /// The log has everything that was committed before this place.
    pub(super) fn position(&self) -> Lsn {
        self.appender.position
    }

    /// Leads until it cannot go on; returns why.
    pub(super) async fn run(&mut self) -> Lost {
        loop {
            let (inner, sender) = (self.inner, self.sender);
            if let Err(lost) = attend::attended(inner, sender, self.step()).await {
                return lost;
            }
        }
    }

    /// Drops the slot at once, so that another server need not wait for it.
    pub(super) async fn release(self) {
        self.client.shutdown().await;
    }

    async fn step(&mut self) -> Result<(), Lost> {
        if self.stop.is_cancelled() {
            return Err(Lost::Stopped);
        }
        let patience = self.inner.limits.leader_timeout.get();
        if let Some(long) = self.open.as_mut().and_then(|open| open.long.as_mut()) {
            long.keep(patience / KEEP_PARTS).await?;
        }
        let worked = Instant::now();
        let mut event = ready_now(self.client.recv()).await;
        if event.is_none() && !self.items.is_empty() && Instant::now() < self.gathers_until {
            event = tokio::select! {
                event = self.client.recv() => Some(event),
                () = tokio::time::sleep_until(self.gathers_until) => None,
                () = self.stop.cancelled() => return Err(Lost::Stopped),
            };
        }
        let event = match event {
            Some(event) => event?,
            None => {
                self.flush().await?;
                self.look_after().await?;
                // The time that the server itself took is not the database's silence.
                self.heard += worked.elapsed();
                let silent = self.heard + attend::silence(self.inner);
                let due = (self.ticked + self.tick_every()).max(Instant::now() + IDLE_WAIT);
                let due = due.min(Instant::now() + patience / KEEP_PARTS).min(silent);
                tokio::select! {
                    biased;
                    event = self.client.recv() => event?,
                    () = self.reconciler.wait() => return Ok(()),
                    () = tokio::time::sleep_until(due) => {
                        return if Instant::now() >= silent { self.silence().await } else { Ok(()) };
                    }
                    () = self.stop.cancelled() => return Err(Lost::Stopped),
                }
            }
        };
        self.heard = Instant::now();
        self.take(event.ok_or(Lost::Ended)?).await?;
        if self.items.len() >= PART_ROWS || self.bytes >= PART_BYTES {
            self.flush().await?;
            self.flush_part().await?;
            self.look_after().await?;
        }
        Ok(())
    }

    /// Called when the database has sent nothing for long. Its sender may be busy with a large transaction that does
    /// not concern this server, or be gone with the connection half open.
    async fn silence(&mut self) -> Result<(), Lost> {
        if !attend::still_sends(self.inner, self.sender).await {
            return Err(Lost::Silent(attend::silence(self.inner)));
        }
        self.heard = Instant::now();
        Ok(())
    }

    fn tick_every(&self) -> Duration {
        self.inner.limits.follow_interval.get()
    }

    async fn take(&mut self, event: ReplicationEvent) -> Result<(), Lost> {
        match event {
            ReplicationEvent::Begin { final_lsn, xid, commit_time_micros } => {
                let commit = self.mark(xid, commit_time_micros);
                let covered = final_lsn < self.appender.position;
                self.open = Some(Open { commit, ids: None, covered, long: None });
            }
            ReplicationEvent::XLogData { data, .. } => {
                self.bytes += data.len();
                self.message(data).await?;
            }
            ReplicationEvent::Message { transactional: true, prefix, content, .. } => {
                self.named(&prefix, &content);
            }
            ReplicationEvent::Commit { end_lsn, .. } => self.end(end_lsn).await?,
            ReplicationEvent::KeepAlive { wal_end, .. } => self.idle(wal_end).await?,
            ReplicationEvent::Message { .. } => {}
            ReplicationEvent::StoppedAt { .. } => return Err(Lost::Ended),
        }
        Ok(())
    }

    /// Called when the transaction that the stream was sending has ended.
    async fn end(&mut self, end: Lsn) -> Result<(), Lost> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.told = self.told.max(end);
        if open.covered {
            return Ok(());
        }
        let Some(mut long) = open.long else {
            self.items.push(StreamItem::End(open.ids));
            return Ok(());
        };
        self.append_waiting(&mut long, true).await?;
        self.note_unknown().await?;
        self.note_stops().await?;
        self.appender.commit(long, end).await?;
        self.appended();
        Ok(())
    }

    /// Appends the transactions that have ended.
    pub(super) async fn flush(&mut self) -> Result<(), Lost> {
        let Some(last) = self.items.iter().rposition(|item| matches!(item, StreamItem::End(_))) else {
            if self.open.is_none() && self.told > self.appender.position {
                self.appender.move_position(self.told).await?;
                self.appended();
            }
            return Ok(());
        };
        let rest = self.items.split_off(last + 1);
        let batch = std::mem::replace(&mut self.items, rest);
        self.bytes = 0;
        let ended = batch.iter().filter(|item| matches!(item, StreamItem::End(_))).count();
        if self.pace.ended(ended) {
            self.gathers_until = Instant::now() + self.inner.limits.capture_gather.get();
        }
        self.learn(&batch, None).await?;
        // Mutations that made no activity.
        let mut quiet = Vec::new();
        for item in &batch {
            match item {
                StreamItem::Change(change) => self.settler.take(change),
                StreamItem::End(ids) => {
                    let told = self.settler.end_transaction();
                    let id = ids.as_ref().and_then(|ids| ids.transaction_id.clone());
                    quiet.extend(
                        id.filter(|id| !told.iter().any(|entry| entry.transaction.as_ref() == Some(id))),
                    );
                }
            }
        }
        let entries = self.settler.finish();
        if !quiet.is_empty() {
            // Before the position moves past them: after a crash in between they are confirmed again.
            self.appender.confirm(&quiet).await?;
        }
        self.note_unknown().await?;
        let before = self.appender.head;
        let entries = self.append_batch(entries).await?;
        self.inner.shared.recent.push(activities(before, entries));
        self.appended();
        Ok(())
    }

    /// Appends the changes that have come of a transaction that is too large to wait for its end.
    async fn flush_part(&mut self) -> Result<(), Lost> {
        if self.items.is_empty() {
            return Ok(());
        }
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let mut long = self.long_of(&mut open).await?;
        self.append_waiting(&mut long, false).await?;
        open.long = Some(long);
        self.open = Some(open);
        Ok(())
    }

    /// Logs the deletion of every row of these tables.
    pub(super) async fn truncate(&mut self, sources: Vec<Arc<Source>>) -> Result<(), Lost> {
        self.flush().await?;
        let Some(mut open) = self.open.take().filter(|open| !open.covered) else { return Ok(()) };
        let mut long = self.long_of(&mut open).await?;
        self.append_waiting(&mut long, true).await?;
        let ids = open.ids.as_deref();
        let ids =
            (ids.and_then(|ids| ids.transaction_id.as_deref()), ids.and_then(|ids| ids.client_id.as_deref()));
        for source in sources {
            self.reconciler.touched(&source.entity.name);
            self.reconciler.truncated(&source.entity.name, open.commit.id);
            self.appender.append_truncation(&mut long, &source.entity, ids, open.commit).await?;
            history::truncated(&mut long.transaction, &source.entity.name).await?;
        }
        open.long = Some(long);
        self.open = Some(open);
        Ok(())
    }

    /// The database transaction that appends the open one in parts; begun now, if this is the first part.
    async fn long_of(&self, open: &mut Open) -> Result<AppendInParts, Lost> {
        match open.long.take() {
            Some(long) => Ok(long),
            None => self.appender.begin(self.inner.limits.leader_timeout.get()).await,
        }
    }

    /// Appends what waits as a part of the open transaction; including updates that were held back, if no delete that
    /// they wait for can follow.
    async fn append_waiting(&mut self, long: &mut AppendInParts, held_back_too: bool) -> Result<(), Lost> {
        let batch = std::mem::take(&mut self.items);
        self.bytes = 0;
        self.learn(&batch, Some(long)).await?;
        for item in &batch {
            if let StreamItem::Change(change) = item {
                self.settler.take(change);
            }
        }
        if held_back_too {
            self.settler.end_part();
        }
        let entries = self.settler.finish();
        self.append_part(long, entries).await
    }

    /// Asks the log for the rows of which the stream does not send enough; in the transaction `within`, if any.
    async fn learn(&mut self, batch: &[StreamItem], within: Option<&mut AppendInParts>) -> Result<(), Lost> {
        let rows = self.unknown(batch);
        let mut priors = match within {
            _ if rows.is_empty() => HashMap::new(),
            Some(long) => prior::look_up(&mut long.transaction, &rows).await?,
            None => prior::look_up(self.inner.db.single().await?.connection(), &rows).await?,
        };
        // That the log has nothing of a row is remembered, too.
        let known = rows.into_iter().map(|name| {
            let logged = priors.remove(&name).map(|Prior { logged, .. }| logged).unwrap_or_default();
            (name, logged)
        });
        self.settler.know(known.collect());
        Ok(())
    }

    /// The rows of which the stream does not send enough.
    fn unknown(&mut self, batch: &[StreamItem]) -> Vec<RowName> {
        let mut rows: HashSet<RowName> = HashSet::new();
        for item in batch {
            let StreamItem::Change(change) = item else { continue };
            self.reconciler.touched(&change.source.entity.name);
            if change.needs_log() {
                let name = &change.source.entity.name;
                rows.extend(
                    change.key().into_iter().chain(change.former_key()).map(|key| (name.clone(), key.into())),
                );
            }
        }
        rows.into_iter().collect()
    }

    /// Notes durably, before the position moves past them, the types that had a change with too little data.
    async fn note_unknown(&mut self) -> Result<(), Lost> {
        let unknown = std::mem::take(&mut self.settler.unknown);
        if unknown.is_empty() {
            return Ok(());
        }
        self.note_to_compare(unknown.iter().map(ToString::to_string).collect(), false).await?;
        for name in unknown {
            tracing::warn!(
                entity = &*name,
                "the stream did not send enough of a change; the table is compared with the log"
            );
            self.reconciler.compare_again(&name);
        }
        Ok(())
    }

    /// Called when the log has grown, or its position moved.
    pub(super) fn appended(&mut self) {
        self.reconciler.unseen(self.settler.unseen.drain(..));
        self.client.update_applied_lsn(self.appender.position);
        self.inner.shared.advance(self.appender.head);
        self.idle_since = Instant::now();
    }

    /// Called when the database has come this far without a change for the log.
    async fn idle(&mut self, wal_end: Lsn) -> Result<(), Lost> {
        let quiet = self.items.is_empty() && self.open.is_none();
        if quiet {
            self.inner.shared.nothing_before(wal_end);
        }
        let behind = wal_end.as_u64().saturating_sub(self.appender.position.as_u64());
        if quiet && behind > IDLE_LAG && self.idle_since.elapsed() >= IDLE_EVERY {
            self.told = self.told.max(wal_end);
            self.appender.move_position(wal_end).await?;
            self.appended();
        }
        Ok(())
    }

    /// Does the work between batches: comparing tables, and now and then a look at the catalogue.
    async fn look_after(&mut self) -> Result<(), Lost> {
        if self.open.as_ref().is_some_and(|open| open.long.is_some()) {
            return Ok(());
        }
        self.compare().await?;
        if self.ticked.elapsed() >= self.tick_every() || (self.recheck && self.open.is_none()) {
            self.look_around().await?;
        }
        Ok(())
    }

    async fn look_around(&mut self) -> Result<(), Lost> {
        self.ticked = Instant::now();
        let forced = std::mem::take(&mut self.recheck);
        refresh::look(self.inner, forced).await?;
        let tables_version = self.inner.shared.tables_version();
        if tables_version != self.tables_version {
            self.tables_version = tables_version;
            // The numbers of types and tables may stand for others now.
            self.forms.clear();
            self.tell_tables_again().await?;
        }
        self.queue_reconciles().await?;
        ledger::expire(self.inner.db.single().await?.connection()).await?;
        Ok(())
    }

    /// A transaction by its short number.
    fn mark(&mut self, xid: u32, micros_since_2000: i64) -> CommitMark {
        const MICROS_TO_2000: i64 = 946_684_800_000_000;
        let low = u32::try_from(self.near & i64::from(u32::MAX)).unwrap_or_default();
        let step = xid.wrapping_sub(low).cast_signed();
        let id = self.near + i64::from(step);
        self.near = self.near.max(id);
        CommitMark { id, micros: micros_since_2000 + MICROS_TO_2000 }
    }
}

/// The output of a future that is ready; does not wait.
async fn ready_now<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}
