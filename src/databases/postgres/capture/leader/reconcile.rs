//! Comparing tables with the log: wherever the log's last state of a row differs from the row, the difference is appended as an
//! ordinary activity. Against an empty log that is the first backfill; after a slot was lost it is the repair. A task reads
//! the table in steps; the leader appends each step's differences between its batches, so that other tables go on.
//!
//! A step is compared once the log has all that its snapshot saw. Where the log has something newer of a row than the
//! snapshot, the row as it was read says nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::Seq;
use sqlx::{AssertSqlSafe, Row};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Leader;
use super::comparisons::{Comparison, RunningComparison};
use crate::databases::postgres::Inner;
use crate::databases::postgres::capture::differences::differences;
use crate::databases::postgres::capture::new_activity::{CommitMark, mark_last};
use crate::databases::postgres::capture::scan::{self, ScanPosition, ScanStep, Unread};
use crate::databases::postgres::capture::settle::RowName;
use crate::databases::postgres::capture::{CaptureError, append, prior};
use crate::databases::postgres::connections::{scalar, statement};
use crate::databases::postgres::log::walk::{END, Walk};
use crate::databases::postgres::tables::catalog::Table;
use crate::feed::entity::EntityType;

/// How long to wait between looks at transactions that must end first.
const WAIT: Duration = Duration::from_millis(100);

impl Leader<'_> {
    /// Finds out which tables are to be compared with the log.
    pub(in super::super) async fn queue_reconciles(&mut self) -> Result<(), CaptureError> {
        self.note_unavailable().await?;
        self.read_stops().await?;
        let (later, again): (HashSet<_>, HashSet<_>) = std::mem::take(&mut self.reconciler.again)
            .into_iter()
            .partition(|name| self.reconciler.pauses(name));
        self.reconciler.again = later;
        let tables = self.inner.shared.tables();
        let mut reading = self.inner.db.single().await?;
        let rows = statement(
            "SELECT entity_type, signature, reconciled, wait_for, from_empty, after_key, after_seq, compared FROM bourn.entities",
        )
        .fetch_all(reading.connection())
        .await?;
        drop(reading);
        let mut known = HashMap::new();
        for row in &rows {
            known.insert(row.try_get::<String, _>(0)?, row);
        }
        for (name, table) in tables.iter() {
            let Some(entity) = self.inner.catalog.by_name(name) else { continue };
            if self.stops.has(name) {
                continue;
            }
            let row = known.get(&**name);
            let same = match row {
                Some(row) => row.try_get::<String, _>(1)? == table.signature,
                None => false,
            } && !again.contains(name);
            let busy = self.reconciler.compares(name);
            if self.reconciler.pauses(name) {
                continue;
            }
            let work = match row {
                Some(row) if same => {
                    if row.try_get(2)? || busy {
                        continue;
                    }
                    let seq = row.try_get::<Option<i64>, _>(6)?.and_then(Seq::from_i64);
                    let place = match (seq, row.try_get(5)?) {
                        (Some(seq), _) => ScanPosition::Activities(seq),
                        (None, after) => ScanPosition::Rows(after),
                    };
                    let (wait_for, from_empty, compared) =
                        (row.try_get(3)?, row.try_get(4)?, row.try_get(7)?);
                    Comparison {
                        entity: entity.clone(),
                        table: table.clone(),
                        place,
                        from_empty,
                        begun_here: false,
                        wait_for,
                        compared,
                    }
                }
                _ => self.start_over(entity, table).await?,
            };
            tracing::info!(entity = &**name, table = table.sql, "comparing the table with the log");
            // If it was being compared, it starts over.
            self.reconciler.waiting.retain(|waiting| waiting.entity.name != *name);
            if self.reconciler.running.as_ref().is_some_and(|running| running.work.entity.name == *name) {
                self.reconciler.let_go();
            }
            self.reconciler.waiting.push_back(work);
        }
        let served = |work: &Comparison| tables.contains_key(&work.entity.name);
        self.reconciler.waiting.retain(served);
        if self.reconciler.running.as_ref().is_some_and(|running| !served(&running.work)) {
            self.reconciler.let_go();
        }
        self.begin_next();
        self.inner.shared.reconciling(self.reconciler.progress());
        Ok(())
    }

    /// Notes durably that the entity types whose tables cannot be served now are to be compared when they can.
    pub(in super::super) async fn note_unavailable(&mut self) -> Result<(), CaptureError> {
        let tables = self.inner.shared.tables();
        let missing = self.inner.catalog.iter().filter(|entity| !tables.contains_key(&entity.name));
        let missing: Vec<String> = missing.map(|entity| entity.name.to_string()).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => self.note_to_compare(missing, true).await,
        }
    }

    /// Notes durably that these entity types are to be compared from their beginning; `missed`: the stream lacks
    /// changes of theirs, so the log may lack rows.
    pub(in super::super) async fn note_to_compare(
        &mut self,
        names: Vec<String>,
        missed: bool,
    ) -> Result<(), CaptureError> {
        let mut transaction = self.inner.db.begin().await?;
        statement(
            "UPDATE bourn.entities SET reconciled = false, signature = '', whole = whole AND NOT $2 \
             WHERE entity_type = ANY ($1) AND (signature <> '' OR (whole AND $2))",
        )
        .bind(names)
        .bind(missed)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Notes that a table is to be compared from its beginning.
    async fn start_over(
        &mut self,
        entity: &Arc<EntityType>,
        table: &Arc<Table>,
    ) -> Result<Comparison, CaptureError> {
        let mut transaction = self.inner.db.begin().await?;
        let sql = format!(
            "INSERT INTO bourn.entities AS e (entity_type, signature, wait_for, from_empty) \
             SELECT $1, $2, pg_snapshot_xmax(pg_current_snapshot())::text::int8, \
                    ({}) IS NULL \
             ON CONFLICT (entity_type) DO UPDATE SET signature = $2, reconciled = false, wait_for = excluded.wait_for, \
             from_empty = excluded.from_empty, after_key = NULL, after_seq = NULL, compared = 0, \
             whole = e.whole AND (e.signature = '' OR right(e.signature, length($3)) = $3) RETURNING wait_for, from_empty",
            Walk::of_type("a", "$1").newest("a.seq", END)
        );
        let row = statement(AssertSqlSafe(sql))
            .bind(&*entity.name)
            .bind(&table.signature)
            .bind(table.published_as())
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Comparison {
            entity: entity.clone(),
            table: table.clone(),
            place: ScanPosition::Rows(None),
            wait_for: row.try_get(0)?,
            from_empty: row.try_get(1)?,
            begun_here: true,
            compared: 0,
        })
    }

    fn begin_next(&mut self) {
        if self.reconciler.running.is_some() {
            return;
        }
        let Some(work) = self.reconciler.waiting.pop_front() else { return };
        // Changes from before this server led are missing from its list of unseen ones.
        let work = Comparison { wait_for: work.wait_for.max(self.reconciler.since), ..work };
        // One step ahead of the leader.
        let (sender, steps) = mpsc::channel(1);
        let task = read_steps(self.inner.clone(), work.clone(), sender);
        let task = tokio::spawn(self.inner.supervisor.guard("scan", task));
        self.reconciler.running =
            Some(RunningComparison { work, steps, _task: AbortOnDropHandle::new(task) });
    }

    /// Appends the differences of a step, if one is there and the log has come past its mark.
    pub(in super::super) async fn compare(&mut self) -> Result<(), CaptureError> {
        if let Some(running) = self.reconciler.running.as_mut().filter(|_| self.reconciler.step.is_none())
            && let Ok(read) = running.steps.try_recv()
        {
            match read {
                Ok(step) => self.reconciler.step = Some(step),
                Err(unread) => self.reconciler.not_read(unread),
            }
        }
        if let Some(stop) = self.reconciler.refused.take() {
            self.stop_type(stop);
            self.note_stops().await?;
        }
        self.inner.shared.comparing_fails(self.reconciler.failing());
        if self.reconciler.step.as_ref().is_none_or(|step| step.mark >= self.appender.position) {
            return Ok(());
        }
        let (Some(step), Some(running)) = (self.reconciler.step.take(), self.reconciler.running.as_mut())
        else {
            return Ok(());
        };
        running.work.compared += i64::try_from(step.looked_at).unwrap_or_default();
        running.work.place = step.next.clone();
        let work = running.work.clone();
        // Without anything in the log there is nothing to compare with.
        let fresh =
            work.from_empty && work.begun_here && !self.reconciler.touched.contains(&work.entity.name);
        let mut parts = self.appender.begin(self.inner.limits.leader_timeout.get()).await?;
        let commit: i64 =
            scalar("SELECT pg_current_xact_id()::text::int8").fetch_one(&mut *parts.transaction).await?;
        let micros = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let commit = CommitMark { id: commit, micros: i64::try_from(micros.as_micros()).unwrap_or(i64::MAX) };
        let priors = match fresh {
            true => HashMap::new(),
            false => {
                let keys = step.rows.iter().map(|row| &row.key).chain(&step.missing);
                let names: Vec<RowName> = keys.map(|key| (work.entity.name.clone(), key.clone())).collect();
                prior::look_up(&mut parts.transaction, &names).await?
            }
        };
        let mut activities = {
            let reconciler = &self.reconciler;
            let unseen = |name: &RowName| reconciler.changed_unseen(name, &step.snapshot);
            differences(&work.entity, &step, &priors, commit, reconciler.foreign_until, unseen)
        };
        // Later snapshots see what this one sees.
        self.reconciler.unseen.retain(|_, transaction| !step.snapshot.sees(*transaction));
        mark_last(&mut activities);
        self.append_part(&mut parts, activities).await?;
        if self.stops.has(&work.entity.name) {
            // The part of this step that was appended is rolled back with the transaction.
            return self.note_stops().await;
        }
        note_progress(&mut parts, &work).await?;
        let position = self.appender.position;
        self.appender.commit(parts, position).await?;
        self.appended();
        if work.place == ScanPosition::Done {
            tracing::info!(
                entity = &*work.entity.name,
                keys = work.compared,
                "the log has the table as it is"
            );
            self.reconciler.running = None;
            self.reconciler.failures.remove(&work.entity.name);
            self.inner.shared.comparing_fails(self.reconciler.failing());
            self.begin_next();
        }
        self.inner.shared.reconciling(self.reconciler.progress());
        Ok(())
    }
}

async fn note_progress(parts: &mut append::AppendInParts, work: &Comparison) -> Result<(), CaptureError> {
    let (after_key, after_seq) = match &work.place {
        ScanPosition::Rows(key) => (key.clone(), None),
        ScanPosition::Activities(seq) => (None, Some(seq.as_i64())),
        ScanPosition::Done => (None, None),
    };
    statement(
        "UPDATE bourn.entities SET after_key = $2, after_seq = $3, compared = $4, reconciled = $5, whole = whole OR $5 WHERE entity_type = $1",
    )
    .bind(&*work.entity.name)
    .bind(after_key)
    .bind(after_seq)
    .bind(work.compared)
    .bind(work.place == ScanPosition::Done)
    .execute(&mut *parts.transaction)
    .await?;
    Ok(())
}

/// Reads the table step by step, after every transaction that began before it was published has ended.
async fn read_steps(inner: Inner, work: Comparison, steps: mpsc::Sender<Result<ScanStep, Unread>>) {
    let mut place = work.place.clone();
    let result = async {
        wait_for(&inner, work.wait_for).await?;
        while place != ScanPosition::Done {
            let step = scan::step(&inner.db, &work.entity.name, &work.table, &place, work.from_empty).await?;
            place = step.next.clone();
            if steps.send(Ok(step)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    if let Err(error) = result.await {
        let _ = steps.send(Err(error)).await;
    }
    // The receiver of the steps drops this task after the last one.
    steps.closed().await;
}

/// Waits until every transaction before this one has ended: one that had written to the table before the publication
/// named it is not in the replication stream, and must be in the snapshot.
async fn wait_for(inner: &Inner, transaction: i64) -> Result<(), sqlx::Error> {
    loop {
        let mut reading = inner.db.single().await?;
        let ended: bool = scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::int8 >= $1")
            .bind(transaction)
            .fetch_one(reading.connection())
            .await?;
        drop(reading);
        if ended {
            return Ok(());
        }
        tokio::time::sleep(WAIT).await;
    }
}
