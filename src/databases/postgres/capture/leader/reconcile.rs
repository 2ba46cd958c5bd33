//! Comparing tables with the log: wherever the log's last state of a row differs from the row, the difference is appended as an
//! ordinary activity. Against an empty log that is the first backfill; after a slot was lost it is the repair. A task reads
//! the table in steps; the leader appends each step's differences between its batches, so that other tables go on.
//!
//! A step is compared once the log has all that its snapshot saw. Where the log has something newer of a row than the
//! snapshot, the row as it was read says nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Row};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Leader;
use crate::databases::postgres::capture::differences::differences;
use crate::databases::postgres::capture::new_activity::{CommitMark, mark_last};
use crate::databases::postgres::capture::scan::{self, ScanPosition, Snapshot, Step, Unread};
use crate::databases::postgres::capture::settle::RowName;
use crate::databases::postgres::capture::{Lost, append, failure, prior};
use crate::databases::postgres::connections::{scalar, statement};
use crate::databases::postgres::log::stops::Stop;
use crate::databases::postgres::log::walk::{END, Walk};
use crate::databases::postgres::tables::catalog::Table;
use crate::databases::postgres::{Inner, error};
use crate::feed::entity::EntityType;

/// Most rows that may change without a trace in the log while their tables are compared; with more, comparing begins
/// again.
const UNSEEN_MAX: usize = 200_000;
/// How long to wait before a table that cannot be read is tried again: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(60);
/// How long to wait between looks at transactions that must end first.
const WAIT: Duration = Duration::from_millis(100);

/// The tables to compare, and how far that has come.
#[derive(Default)]
pub(in super::super) struct Reconciler {
    waiting: VecDeque<Comparison>,
    current: Option<Current>,
    /// A step that waits for the log to come past its mark.
    step: Option<Step>,
    /// Entity types that must be compared again from the beginning.
    again: HashSet<Arc<str>>,
    /// Entity types that the stream has sent changes of since this server leads.
    touched: HashSet<Arc<str>>,
    /// Rows of tables that are compared whose changes left nothing in the log, by the transactions that made them: an
    /// earlier snapshot that has such a row, or lacks it, proves nothing.
    unseen: HashMap<RowName, i64>,
    /// The same for whole tables that were truncated.
    truncated: HashMap<Arc<str>, i64>,
    /// Tables that could not be read: how often in a row, when to try again, and why.
    failures: HashMap<Arc<str>, (u32, Instant, String)>,
    /// A row of the table that is being compared cannot be read.
    refused: Option<Stop>,
    /// Every transaction that the stream did not send to this server is before this one.
    since: i64,
    /// Transactions of activities up to here were another source's.
    pub(in super::super) foreign_until: i64,
}

/// A table to compare.
#[derive(Clone)]
struct Comparison {
    entity: Arc<EntityType>,
    table: Arc<Table>,
    place: ScanPosition,
    from_empty: bool,
    /// It was begun by this server, which has got every change since.
    begun_here: bool,
    wait_for: i64,
    compared: i64,
}

struct Current {
    work: Comparison,
    steps: mpsc::Receiver<Result<Step, Unread>>,
    /// Aborted with this.
    _task: AbortOnDropHandle<()>,
}

impl Reconciler {
    pub(in super::super) fn new(since: i64, foreign_until: i64) -> Reconciler {
        Reconciler { since, foreign_until, ..Reconciler::default() }
    }

    /// The table that is being compared, and those that wait.
    fn works(&self) -> impl Iterator<Item = &Comparison> {
        self.waiting.iter().chain(self.current.as_ref().map(|current| &current.work))
    }

    /// Stops reading the table that is being compared.
    fn let_go(&mut self) {
        self.current = None;
        self.step = None;
    }

    /// Stops comparing a table: its entity type has stopped, and an operator must end that first.
    pub(in super::super) fn leave(&mut self, name: &str) {
        self.waiting.retain(|waiting| *waiting.entity.name != *name);
        self.again.remove(name);
        self.failures.remove(name);
        if self.current.as_ref().is_some_and(|current| *current.work.entity.name == *name) {
            self.let_go();
        }
    }

    /// Notes that rows of tables that are being compared changed, and that the log has nothing of it: it had them so
    /// already.
    pub(in super::super) fn unseen(&mut self, rows: impl Iterator<Item = (RowName, i64)>) {
        self.unseen.extend(rows);
        if self.unseen.len() > UNSEEN_MAX {
            self.unseen.clear();
            self.compare_all_again();
        }
    }

    /// Notes that every row of a table was removed.
    pub(in super::super) fn truncated(&mut self, name: &Arc<str>, transaction: i64) {
        self.truncated.insert(name.clone(), transaction);
    }

    fn compare_all_again(&mut self) {
        let names: Vec<_> = self.works().map(|work| work.entity.name.clone()).collect();
        self.again.extend(names);
    }

    /// Whether a row is known to have changed after a snapshot, though the log does not show it.
    pub(in super::super) fn changed_unseen(&self, name: &RowName, snapshot: &Snapshot) -> bool {
        let unseen = |transaction: &i64| !snapshot.sees(*transaction);
        self.unseen.get(name).is_some_and(unseen) || self.truncated.get(&name.0).is_some_and(unseen)
    }

    /// Whether the table of this entity type is being compared, or is to be.
    pub(in super::super) fn compares(&self, name: &str) -> bool {
        self.works().any(|work| &*work.entity.name == name) || self.again.contains(name)
    }

    /// Has the table compared from the beginning, as soon as that can be.
    pub(in super::super) fn compare_again(&mut self, name: &Arc<str>) {
        if !self.waiting.iter().any(|work| work.entity.name == *name) {
            self.again.insert(name.clone());
        }
    }

    /// Notes that the stream has sent a change of this entity type.
    pub(in super::super) fn touched(&mut self, name: &Arc<str>) {
        if !self.touched.contains(name) {
            self.touched.insert(name.clone());
        }
    }

    /// Waits for the next step; for ever where no table is compared.
    pub(in super::super) async fn wait(&mut self) {
        let Some(current) = self.current.as_mut().filter(|_| self.step.is_none()) else {
            return std::future::pending().await;
        };
        match current.steps.recv().await {
            Some(Ok(step)) => self.step = Some(step),
            Some(Err(unread)) => self.not_read(unread),
            None => {
                self.current = None;
            }
        }
    }

    /// A step of the table that is being compared could not be read.
    fn not_read(&mut self, unread: Unread) {
        match (unread, &self.current) {
            (Unread::Failed(failure), _) => self.failed(&failure),
            (Unread::Row(key, code), Some(current)) => {
                let entity_type = current.work.entity.name.clone();
                self.refused = Some(Stop { entity_type, key, reason: failure::why_unreadable(&code) });
            }
            (Unread::Row(..), None) => {}
        }
    }

    /// The table that is being compared cannot be read: it is tried again after a while, from its beginning.
    fn failed(&mut self, failure: &sqlx::Error) {
        let Some(current) = self.current.take() else { return };
        let name = current.work.entity.name.clone();
        let (times, _, _) = self.failures.get(&name).cloned().unwrap_or((0, Instant::now(), String::new()));
        let pause = (AGAIN_FIRST * 2_u32.saturating_pow(times)).min(AGAIN_MOST);
        let code = error::code(failure).unwrap_or_default();
        tracing::warn!(error = %failure, code, entity = &*name, ?pause, "the table cannot be read to be compared; it is tried again");
        let reason = scan::in_words(&code);
        self.failures.insert(name.clone(), (times.saturating_add(1), Instant::now() + pause, reason));
        self.step = None;
        self.again.insert(name);
    }

    /// The entity types whose tables could not be read to be compared, and why.
    fn failing(&self) -> Vec<(Arc<str>, String)> {
        let failing = self.failures.iter().map(|(name, (_, _, reason))| (name.clone(), reason.clone()));
        failing.collect()
    }

    /// Whether a table that could not be read is to be left alone for now.
    fn pauses(&self, name: &str) -> bool {
        self.failures.get(name).is_some_and(|(_, until, _)| Instant::now() < *until)
    }

    fn progress(&self) -> BTreeMap<String, u64> {
        let mut progress: BTreeMap<String, u64> = self
            .works()
            .map(|work| (work.entity.name.to_string(), u64::try_from(work.compared).unwrap_or_default()))
            .collect();
        for name in &self.again {
            progress.entry(name.to_string()).or_default();
        }
        progress
    }
}

impl Leader<'_> {
    /// Finds out which tables are to be compared with the log.
    pub(in super::super) async fn queue_reconciles(&mut self) -> Result<(), Lost> {
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
                    let place = match (row.try_get::<Option<i64>, _>(6)?, row.try_get(5)?) {
                        (Some(seq), _) => ScanPosition::Keys(seq),
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
            if self.reconciler.current.as_ref().is_some_and(|current| current.work.entity.name == *name) {
                self.reconciler.let_go();
            }
            self.reconciler.waiting.push_back(work);
        }
        let served = |work: &Comparison| tables.contains_key(&work.entity.name);
        self.reconciler.waiting.retain(served);
        if self.reconciler.current.as_ref().is_some_and(|current| !served(&current.work)) {
            self.reconciler.let_go();
        }
        self.begin_next();
        self.inner.shared.reconciling(self.reconciler.progress());
        Ok(())
    }

    /// Notes durably that the entity types whose tables cannot be served now are to be compared when they can.
    pub(in super::super) async fn note_unavailable(&mut self) -> Result<(), Lost> {
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
    ) -> Result<(), Lost> {
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
    async fn start_over(&mut self, entity: &Arc<EntityType>, table: &Arc<Table>) -> Result<Comparison, Lost> {
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
        if self.reconciler.current.is_some() {
            return;
        }
        let Some(work) = self.reconciler.waiting.pop_front() else { return };
        // Changes from before this server led are missing from its list of unseen ones.
        let work = Comparison { wait_for: work.wait_for.max(self.reconciler.since), ..work };
        // One step ahead of the leader.
        let (sender, steps) = mpsc::channel(1);
        let task = read_steps(self.inner.clone(), work.clone(), sender);
        let task = tokio::spawn(self.inner.supervisor.guard("scan", task));
        self.reconciler.current = Some(Current { work, steps, _task: AbortOnDropHandle::new(task) });
    }

    /// Appends the differences of a step, if one is there and the log has come past its mark.
    pub(in super::super) async fn compare(&mut self) -> Result<(), Lost> {
        if let Some(current) = self.reconciler.current.as_mut().filter(|_| self.reconciler.step.is_none())
            && let Ok(read) = current.steps.try_recv()
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
        let (Some(step), Some(current)) = (self.reconciler.step.take(), self.reconciler.current.as_mut())
        else {
            return Ok(());
        };
        current.work.compared += i64::try_from(step.looked_at).unwrap_or_default();
        current.work.place = step.next.clone();
        let work = current.work.clone();
        // Without anything in the log there is nothing to compare with.
        let fresh =
            work.from_empty && work.begun_here && !self.reconciler.touched.contains(&work.entity.name);
        let mut long = self.appender.begin(self.inner.limits.leader_timeout.get()).await?;
        let commit: i64 =
            scalar("SELECT pg_current_xact_id()::text::int8").fetch_one(&mut *long.transaction).await?;
        let micros = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let commit = CommitMark { id: commit, micros: i64::try_from(micros.as_micros()).unwrap_or(i64::MAX) };
        let priors = match fresh {
            true => HashMap::new(),
            false => {
                let keys = step.rows.iter().map(|row| &row.key).chain(&step.missing);
                let names: Vec<RowName> = keys.map(|key| (work.entity.name.clone(), key.clone())).collect();
                prior::look_up(&mut long.transaction, &names).await?
            }
        };
        let mut entries = {
            let reconciler = &self.reconciler;
            let unseen = |name: &RowName| reconciler.changed_unseen(name, &step.snapshot);
            differences(&work.entity, &step, &priors, commit, reconciler.foreign_until, unseen)
        };
        // Later snapshots see what this one sees.
        self.reconciler.unseen.retain(|_, transaction| !step.snapshot.sees(*transaction));
        mark_last(&mut entries);
        self.append_part(&mut long, entries).await?;
        if self.stops.has(&work.entity.name) {
            // The part of this step that was appended is rolled back with the transaction.
            return self.note_stops().await;
        }
        note_progress(&mut long, &work).await?;
        let position = self.appender.position;
        self.appender.commit(long, position).await?;
        self.appended();
        if work.place == ScanPosition::Done {
            tracing::info!(
                entity = &*work.entity.name,
                keys = work.compared,
                "the log has the table as it is"
            );
            self.reconciler.current = None;
            self.reconciler.failures.remove(&work.entity.name);
            self.inner.shared.comparing_fails(self.reconciler.failing());
            self.begin_next();
        }
        self.inner.shared.reconciling(self.reconciler.progress());
        Ok(())
    }
}

async fn note_progress(long: &mut append::AppendInParts, work: &Comparison) -> Result<(), Lost> {
    let (after_key, after_seq) = match &work.place {
        ScanPosition::Rows(key) => (key.clone(), None),
        ScanPosition::Keys(seq) => (None, Some(*seq)),
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
    .execute(&mut *long.transaction)
    .await?;
    Ok(())
}

/// Reads the table step by step, after every transaction that began before it was published has ended.
async fn read_steps(inner: Inner, work: Comparison, steps: mpsc::Sender<Result<Step, Unread>>) {
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
