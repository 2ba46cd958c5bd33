//! The comparing of tables with the log, as the leader knows it: which tables wait, how far the current one has come, and
//! which rows changed meanwhile without a trace in the log. Without SQL: [`reconcile`](super::reconcile) reads and
//! appends.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::databases::postgres::capture::failure;
use crate::databases::postgres::capture::scan::{self, ScanPosition, ScanStep, Snapshot, Unread};
use crate::databases::postgres::capture::settle::RowName;
use crate::databases::postgres::error;
use crate::databases::postgres::log::stops::Stop;
use crate::databases::postgres::tables::catalog::Table;
use crate::feed::entity::EntityType;

/// Most rows that may change without a trace in the log while their tables are compared; with more, comparing begins
/// again.
const UNSEEN_MAX: usize = 200_000;
/// How long to wait before a table that cannot be read is tried again: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(60);
/// The tables to compare, and how far that has come.
#[derive(Default)]
pub(in super::super) struct Reconciler {
    pub(super) waiting: VecDeque<Comparison>,
    pub(super) running: Option<RunningComparison>,
    /// A step that waits for the log to come past its mark.
    pub(super) step: Option<ScanStep>,
    /// Entity types that must be compared again from the beginning.
    pub(super) again: HashSet<Arc<str>>,
    /// Entity types that the stream has sent changes of since this server leads.
    pub(super) touched: HashSet<Arc<str>>,
    /// Rows of tables that are compared whose changes left nothing in the log, by the transactions that made them: an
    /// earlier snapshot that has such a row, or lacks it, proves nothing.
    pub(super) unseen: HashMap<RowName, i64>,
    /// The same for whole tables that were truncated.
    truncated: HashMap<Arc<str>, i64>,
    /// Tables that could not be read: how often in a row, when to try again, and why.
    pub(super) failures: HashMap<Arc<str>, (u32, Instant, String)>,
    /// A row of the table that is being compared cannot be read.
    pub(super) refused: Option<Stop>,
    /// Every transaction that the stream did not send to this server is before this one.
    pub(super) since: i64,
    /// Transactions of activities up to here were another source's.
    pub(in super::super) foreign_until: i64,
}

/// A table to compare.
#[derive(Clone)]
pub(super) struct Comparison {
    pub(super) entity: Arc<EntityType>,
    pub(super) table: Arc<Table>,
    pub(super) place: ScanPosition,
    pub(super) from_empty: bool,
    /// It was begun by this server, which has got every change since.
    pub(super) begun_here: bool,
    pub(super) wait_for: i64,
    pub(super) compared: i64,
}

/// The table that is being compared, and the task that reads it.
pub(super) struct RunningComparison {
    pub(super) work: Comparison,
    pub(super) steps: mpsc::Receiver<Result<ScanStep, Unread>>,
    /// Aborted with this.
    pub(super) _task: AbortOnDropHandle<()>,
}

impl Reconciler {
    pub(in super::super) fn new(since: i64, foreign_until: i64) -> Reconciler {
        Reconciler { since, foreign_until, ..Reconciler::default() }
    }

    /// The table that is being compared, and those that wait.
    pub(super) fn works(&self) -> impl Iterator<Item = &Comparison> {
        self.waiting.iter().chain(self.running.as_ref().map(|running| &running.work))
    }

    /// Stops reading the table that is being compared.
    pub(super) fn let_go(&mut self) {
        self.running = None;
        self.step = None;
    }

    /// Stops comparing a table: its entity type has stopped, and an operator must end that first.
    pub(in super::super) fn leave(&mut self, name: &str) {
        self.waiting.retain(|waiting| *waiting.entity.name != *name);
        self.again.remove(name);
        self.failures.remove(name);
        if self.running.as_ref().is_some_and(|running| *running.work.entity.name == *name) {
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
        let Some(running) = self.running.as_mut().filter(|_| self.step.is_none()) else {
            return std::future::pending().await;
        };
        match running.steps.recv().await {
            Some(Ok(step)) => self.step = Some(step),
            Some(Err(unread)) => self.not_read(unread),
            None => {
                self.running = None;
            }
        }
    }

    /// A step of the table that is being compared could not be read.
    pub(super) fn not_read(&mut self, unread: Unread) {
        match (unread, &self.running) {
            (Unread::Failed(failure), _) => self.failed(&failure),
            (Unread::Row(key, code), Some(running)) => {
                let entity_type = running.work.entity.name.clone();
                self.refused = Some(Stop { entity_type, key, reason: failure::why_unreadable(&code) });
            }
            (Unread::Row(..), None) => {}
        }
    }

    /// The table that is being compared cannot be read: it is tried again after a while, from its beginning.
    fn failed(&mut self, failure: &sqlx::Error) {
        let Some(running) = self.running.take() else { return };
        let name = running.work.entity.name.clone();
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
    pub(super) fn failing(&self) -> Vec<(Arc<str>, String)> {
        let failing = self.failures.iter().map(|(name, (_, _, reason))| (name.clone(), reason.clone()));
        failing.collect()
    }

    /// Whether a table that could not be read is to be left alone for now.
    pub(super) fn pauses(&self, name: &str) -> bool {
        self.failures.get(name).is_some_and(|(_, until, _)| Instant::now() < *until)
    }

    pub(super) fn progress(&self) -> BTreeMap<String, u64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &str) -> RowName {
        ("page".into(), key.into())
    }

    #[test]
    fn a_row_that_changed_after_a_snapshot_without_a_trace_is_remembered() {
        let mut reconciler = Reconciler::new(0, 0);
        reconciler.unseen([(name("k"), 15)].into_iter());
        let snapshot = |text| Snapshot::read(text).unwrap();
        assert!(reconciler.changed_unseen(&name("k"), &snapshot("10:10:")));
        assert!(!reconciler.changed_unseen(&name("k"), &snapshot("20:20:")), "the snapshot sees the change");
        assert!(!reconciler.changed_unseen(&name("other"), &snapshot("10:10:")));
        reconciler.truncated(&"page".into(), 15);
        assert!(reconciler.changed_unseen(&name("other"), &snapshot("10:10:")));
    }

    #[test]
    fn a_table_that_cannot_be_read_waits_longer_each_time() {
        let mut reconciler = Reconciler::new(0, 0);
        let page: Arc<str> = "page".into();
        assert!(!reconciler.pauses(&page));
        let until = Instant::now() + AGAIN_FIRST;
        reconciler.failures.insert(page.clone(), (1, until, "locked".into()));
        assert!(reconciler.pauses(&page));
        assert_eq!(reconciler.failing(), [(page.clone(), "locked".to_owned())]);
        reconciler.compare_again(&page);
        assert!(reconciler.compares(&page));
        reconciler.leave(&page);
        assert!(!reconciler.pauses(&page) && !reconciler.compares(&page));
    }
}
