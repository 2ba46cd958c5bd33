//! The leader: takes the slot, follows the stream, and appends its changes, batch by batch. A batch leaves when it is
//! full or when nothing more is waiting, so a single change leaves at once and a flood in large pieces; while many
//! transactions come, batches gather for a moment.

mod attend;
mod comparisons;
mod link;
mod pace;
mod pending;
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
use super::change::Source;
use super::new_activity::in_the_log;
use super::prior::{self, Prior};
use super::settle::{RowName, Settler};
use super::{CaptureError, slot};
use crate::databases::postgres::connections::scalar;
use crate::databases::postgres::log::history;
use crate::databases::postgres::writes::ledger;
use crate::databases::postgres::{Inner, follow, refresh};
use attend::WalSender;
use comparisons::Reconciler;
use link::ReplicationLink;
use pace::Pace;
use pending::{PendingChanges, StreamItem, StreamedTransaction};
use stops::Stops;
use stream::StreamedTables;

/// How far the position may lag behind an idle database before it is moved, in bytes.
const IDLE_LAG: u64 = 64 << 10;
const IDLE_EVERY: Duration = Duration::from_secs(5);
/// A transaction that is appended in parts is used this many times within the time after which the database ends it.
const KEEP_PARTS: u32 = 4;
/// The shortest wait for the stream while a look at the catalogue is due but cannot be taken.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// The server that captures.
pub(super) struct Leader<'a> {
    pub(super) inner: &'a Inner,
    stop: &'a CancellationToken,
    link: ReplicationLink,
    pub(super) tables: StreamedTables,
    pub(super) pending: PendingChanges,
    pub(super) settler: Settler,
    pub(super) appender: Appender,
    pub(super) reconciler: Reconciler,
    pub(super) stops: Stops,
    pace: Pace,
    sender: WalSender,
    /// When the log, or its position, moved last.
    idle_since: Instant,
    /// When the catalogue was looked at last.
    looked: Instant,
}

impl<'a> Leader<'a> {
    /// Tries to become the leader.
    pub(super) async fn begin(
        inner: &'a Inner,
        stop: &'a CancellationToken,
    ) -> Result<Leader<'a>, CaptureError> {
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
            link: ReplicationLink::begin(
                client,
                usize::try_from(inner.limits.capture_memory.get()).unwrap_or(usize::MAX),
            ),
            tables: StreamedTables::default(),
            pending: PendingChanges::new(standing.position, near),
            settler: Settler::new(near),
            appender: Appender::new(inner.db.clone(), standing.fence, head, standing.position),
            reconciler: Reconciler::new(near, standing.foreign_until),
            stops: Stops::default(),
            pace: Pace::new(),
            sender: WalSender::new(slot::sender(&mut connection, &inner.limits.slot).await?),
            idle_since: Instant::now(),
            looked: Instant::now(),
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
    pub(super) async fn run(&mut self) -> CaptureError {
        loop {
            let (inner, sender) = (self.inner, self.sender.process);
            if let Err(lost) = attend::attended(inner, sender, self.step()).await {
                return lost;
            }
        }
    }

    /// Drops the slot at once, so that another server need not wait for it.
    pub(super) async fn release(self) {
        self.link.shutdown().await;
    }

    async fn step(&mut self) -> Result<(), CaptureError> {
        if self.stop.is_cancelled() {
            return Err(CaptureError::Stopped);
        }
        let patience = self.inner.limits.leader_timeout.get();
        let transaction = self.pending.transaction.as_mut();
        if let Some(parts) = transaction.and_then(|transaction| transaction.in_parts.as_mut()) {
            parts.keep(patience / KEEP_PARTS).await?;
        }
        let worked = Instant::now();
        let mut event = ready_now(self.link.recv()).await;
        let gathers_until = self.pace.gathers_until;
        if event.is_none() && !self.pending.is_empty() && Instant::now() < gathers_until {
            event = tokio::select! {
                event = self.link.recv() => Some(event),
                () = tokio::time::sleep_until(gathers_until) => None,
                () = self.stop.cancelled() => return Err(CaptureError::Stopped),
            };
        }
        let event = match event {
            Some(event) => event?,
            None => {
                self.flush().await?;
                self.look_after().await?;
                // The time that the server itself took is not the database's silence.
                self.sender.heard += worked.elapsed();
                let silent = self.sender.heard + attend::silence(self.inner);
                let due = (self.looked + self.look_every()).max(Instant::now() + IDLE_WAIT);
                let due = due.min(Instant::now() + patience / KEEP_PARTS).min(silent);
                tokio::select! {
                    biased;
                    event = self.link.recv() => event?,
                    () = self.reconciler.wait() => return Ok(()),
                    () = tokio::time::sleep_until(due) => {
                        return if Instant::now() >= silent { self.silence().await } else { Ok(()) };
                    }
                    () = self.stop.cancelled() => return Err(CaptureError::Stopped),
                }
            }
        };
        self.sender.heard = Instant::now();
        self.take(event.ok_or(CaptureError::Ended)?).await?;
        if self.pending.is_full() {
            self.flush().await?;
            self.flush_part().await?;
            self.look_after().await?;
        }
        Ok(())
    }

    /// Called when the database has sent nothing for long. Its sender may be busy with a large transaction that does
    /// not concern this server, or be gone with the connection half open.
    async fn silence(&mut self) -> Result<(), CaptureError> {
        if !attend::still_sends(self.inner, self.sender.process).await {
            return Err(CaptureError::Silent(attend::silence(self.inner)));
        }
        self.sender.heard = Instant::now();
        Ok(())
    }

    fn look_every(&self) -> Duration {
        self.inner.limits.follow_interval.get()
    }

    async fn take(&mut self, event: ReplicationEvent) -> Result<(), CaptureError> {
        match event {
            ReplicationEvent::Begin { final_lsn, xid, commit_time_micros } => {
                let covered = final_lsn < self.appender.position;
                self.pending.begin(xid, commit_time_micros, covered);
            }
            ReplicationEvent::XLogData { data, .. } => {
                self.pending.count_bytes(data.len());
                self.message(data).await?;
            }
            ReplicationEvent::Message { transactional: true, prefix, content, .. } => {
                self.named(&prefix, &content);
            }
            ReplicationEvent::Commit { end_lsn, .. } => self.end(end_lsn).await?,
            ReplicationEvent::KeepAlive { wal_end, .. } => self.idle(wal_end).await?,
            ReplicationEvent::Message { .. } => {}
            ReplicationEvent::StoppedAt { .. } => return Err(CaptureError::Ended),
        }
        Ok(())
    }

    /// Called when the transaction that the stream was sending has ended.
    async fn end(&mut self, end: Lsn) -> Result<(), CaptureError> {
        let Some(mut parts) = self.pending.end(end) else { return Ok(()) };
        self.append_waiting(&mut parts, true).await?;
        self.note_unknown().await?;
        self.note_stops().await?;
        self.appender.commit(parts, end).await?;
        self.appended();
        Ok(())
    }

    /// Appends the transactions that have ended.
    pub(super) async fn flush(&mut self) -> Result<(), CaptureError> {
        let Some(batch) = self.pending.take_ended() else {
            let received = self.pending.received;
            if self.pending.transaction.is_none() && received > self.appender.position {
                self.appender.move_position(received).await?;
                self.appended();
            }
            return Ok(());
        };
        let ended = batch.iter().filter(|item| item.ends_transaction()).count();
        self.pace.ended(ended, self.inner.limits.capture_gather.get());
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
                        id.filter(|id| {
                            !told.iter().any(|activity| activity.transaction.as_ref() == Some(id))
                        }),
                    );
                }
            }
        }
        let activities = self.settler.finish();
        if !quiet.is_empty() {
            // Before the position moves past them: after a crash in between they are confirmed again.
            self.appender.confirm(&quiet).await?;
        }
        self.note_unknown().await?;
        let before = self.appender.head;
        let activities = self.append_batch(activities).await?;
        self.inner.shared.recent.push(in_the_log(before, activities));
        self.appended();
        Ok(())
    }

    /// Appends the changes that have come of a transaction that is too large to wait for its end.
    async fn flush_part(&mut self) -> Result<(), CaptureError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let Some(mut transaction) = self.pending.transaction.take() else { return Ok(()) };
        let mut parts = self.parts_of(&mut transaction).await?;
        self.append_waiting(&mut parts, false).await?;
        transaction.in_parts = Some(parts);
        self.pending.transaction = Some(transaction);
        Ok(())
    }

    /// Logs the deletion of every row of these tables.
    pub(super) async fn truncate(&mut self, sources: Vec<Arc<Source>>) -> Result<(), CaptureError> {
        self.flush().await?;
        let Some(mut transaction) = self.pending.transaction.take().filter(|open| !open.covered) else {
            return Ok(());
        };
        let mut parts = self.parts_of(&mut transaction).await?;
        self.append_waiting(&mut parts, true).await?;
        let ids = transaction.ids.as_deref();
        let ids =
            (ids.and_then(|ids| ids.transaction_id.as_deref()), ids.and_then(|ids| ids.client_id.as_deref()));
        for source in sources {
            self.reconciler.touched(&source.entity.name);
            self.reconciler.truncated(&source.entity.name, transaction.commit.id);
            self.appender.append_truncation(&mut parts, &source.entity, ids, transaction.commit).await?;
            history::truncated(&mut parts.transaction, &source.entity.name).await?;
        }
        transaction.in_parts = Some(parts);
        self.pending.transaction = Some(transaction);
        Ok(())
    }

    /// The database transaction that appends a streamed one in parts; begun now, if this is the first part.
    async fn parts_of(&self, transaction: &mut StreamedTransaction) -> Result<AppendInParts, CaptureError> {
        match transaction.in_parts.take() {
            Some(parts) => Ok(parts),
            None => self.appender.begin(self.inner.limits.leader_timeout.get()).await,
        }
    }

    /// Appends what waits as a part of the open transaction; including updates that were held back, if no delete that
    /// they wait for can follow.
    async fn append_waiting(
        &mut self,
        parts: &mut AppendInParts,
        held_back_too: bool,
    ) -> Result<(), CaptureError> {
        let batch = self.pending.take_all();
        self.learn(&batch, Some(parts)).await?;
        for item in &batch {
            if let StreamItem::Change(change) = item {
                self.settler.take(change);
            }
        }
        if held_back_too {
            self.settler.end_part();
        }
        let activities = self.settler.finish();
        self.append_part(parts, activities).await
    }

    /// Asks the log for the rows of which the stream does not send enough; in the transaction `within`, if any.
    async fn learn(
        &mut self,
        batch: &[StreamItem],
        within: Option<&mut AppendInParts>,
    ) -> Result<(), CaptureError> {
        let rows = self.unknown(batch);
        let mut priors = match within {
            _ if rows.is_empty() => HashMap::new(),
            Some(parts) => prior::look_up(&mut parts.transaction, &rows).await?,
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
    async fn note_unknown(&mut self) -> Result<(), CaptureError> {
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
        self.link.update_applied_lsn(self.appender.position);
        self.inner.shared.advance(self.appender.head);
        self.idle_since = Instant::now();
    }

    /// Called when the database has come this far without a change for the log.
    async fn idle(&mut self, wal_end: Lsn) -> Result<(), CaptureError> {
        let idle = self.pending.is_idle();
        if idle {
            self.inner.shared.nothing_before(wal_end);
        }
        let behind = wal_end.as_u64().saturating_sub(self.appender.position.as_u64());
        if idle && behind > IDLE_LAG && self.idle_since.elapsed() >= IDLE_EVERY {
            self.pending.received = self.pending.received.max(wal_end);
            self.appender.move_position(wal_end).await?;
            self.appended();
        }
        Ok(())
    }

    /// Does the work between batches: comparing tables, and now and then a look at the catalogue.
    async fn look_after(&mut self) -> Result<(), CaptureError> {
        if self.pending.transaction.as_ref().is_some_and(|transaction| transaction.in_parts.is_some()) {
            return Ok(());
        }
        self.compare().await?;
        if self.looked.elapsed() >= self.look_every()
            || (self.tables.recheck && self.pending.transaction.is_none())
        {
            self.look_around().await?;
        }
        Ok(())
    }

    async fn look_around(&mut self) -> Result<(), CaptureError> {
        self.looked = Instant::now();
        let forced = std::mem::take(&mut self.tables.recheck);
        refresh::look(self.inner, forced).await?;
        let tables_version = self.inner.shared.tables_version();
        if tables_version != self.tables.version {
            self.tables.version = tables_version;
            // The numbers of types and tables may stand for others now.
            self.tables.forms.clear();
            self.tell_tables_again().await?;
        }
        self.queue_reconciles().await?;
        ledger::expire(self.inner.db.single().await?.connection()).await?;
        Ok(())
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
