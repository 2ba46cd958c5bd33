//! What the tasks of one server share, and show its operator: how far the log reaches, what the tables look like, and
//! what stands in the way.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bourn_protocol::{Epoch, Seq};
use pgwire_replication::Lsn;
use tokio::sync::watch;
use tokio::time::Instant;

use super::lag::Lag;
use super::log::recent::Recent;
use super::log::stops::{self, Stop};
use super::tables::catalog::Table;
use crate::feed::entity::Catalog;
use crate::feed::{CaptureStatus, Condition, SlotStatus};
use crate::head::{Head, Version};

/// The tables that can be served, by the names of their entity types.
pub(super) type Tables = HashMap<Arc<str>, Arc<Table>>;

#[derive(Debug)]
pub(super) struct ServerState {
    head: watch::Sender<Head>,
    log_version: watch::Sender<Version>,
    status: Mutex<Status>,
    tables: ArcSwap<Tables>,
    /// What this server has appended to the log of late.
    pub(super) recent: Recent,
    /// Grows whenever the tables look different.
    tables_version: AtomicU64,
    /// What the catalogue looked like when the tables were last looked at, and when that was.
    pub(super) looked: tokio::sync::Mutex<Option<(String, Instant)>>,
}

#[derive(Debug, Default)]
struct Status {
    capture: Option<String>,
    database: Option<String>,
    lag: Lag,
    slot: SlotStatus,
    /// A server holds the slot.
    captured: bool,
    /// This server captures: it knows better than the database's tables which tables are being compared.
    leads: bool,
    reconciling: BTreeMap<String, u64>,
    /// Entity types whose tables cannot be compared now, and why.
    failing: Vec<(Arc<str>, String)>,
    /// Entity types whose capture has stopped until an operator acts.
    stops: Vec<Stop>,
    /// The log's epoch and the end of its newest gap, as they were seen last.
    history: Option<(Epoch, Option<i64>)>,
}

/// The condition of a table that cannot be compared, for an operator.
fn condition((name, reason): &(Arc<str>, String)) -> Condition {
    Condition {
        entity_type: name.to_string(),
        stopped: false,
        key: None,
        reason: reason.clone(),
        remedy: "it is tried again by itself; see the server's log for the database's own words".into(),
    }
}

impl ServerState {
    pub(super) fn new(head: Head) -> ServerState {
        ServerState {
            head: watch::Sender::new(head),
            log_version: watch::Sender::new(Version { epoch: head.epoch, removals: 0 }),
            status: Mutex::new(Status { capture: Some("it has not begun yet".into()), ..Status::default() }),
            tables: ArcSwap::default(),
            recent: Recent::default(),
            tables_version: AtomicU64::new(0),
            looked: tokio::sync::Mutex::default(),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes that the log reaches this far; within an epoch it never goes back.
    pub(super) fn advance(&self, to: Seq) {
        self.head.send_if_modified(|known| known.advance(Head { seq: to, ..*known }));
    }

    /// Publishes the head as the database has it: of another log, or further in the same.
    pub(super) fn publish(&self, to: Head) {
        self.head.send_if_modified(|known| known.advance(to));
    }

    /// Whether the log, which reaches this far, has all that this server has published of it.
    pub(super) fn reaches_published(&self, head: Head) -> bool {
        let published = *self.head.borrow();
        head.epoch != published.epoch || head.seq >= published.seq
    }

    pub(super) fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    pub(super) fn version_of_log(&self) -> watch::Receiver<Version> {
        self.log_version.subscribe()
    }

    /// Takes the log's version: it changes when activities may have left the log.
    pub(super) fn set_version_of_log(&self, version: Version) {
        self.log_version.send_if_modified(|known| std::mem::replace(known, version) != version);
    }

    /// Whether the log has got another epoch or another gap since the last call.
    pub(super) fn history_changed(&self, epoch: Epoch, gap: Option<i64>) -> bool {
        let changed = self.with(|status| status.history.replace((epoch, gap)) != Some((epoch, gap)));
        if changed {
            self.recent.clear();
        }
        changed
    }

    pub(super) fn capture_stands(&self, reason: Option<String>) {
        self.with(|status| status.capture = reason);
    }

    pub(super) fn database_stands(&self, reason: Option<String>) {
        self.with(|status| status.database = reason);
    }

    /// Takes how far the log and the database's own log reach now; `None` for the database's where it cannot be
    /// written.
    pub(super) fn saw(&self, position: Option<Lsn>, written: Option<Lsn>, captured: bool, slot: SlotStatus) {
        self.with(|status| {
            status.captured = captured;
            status.lag.saw(position, written, Instant::now());
            status.slot = SlotStatus { connects: status.slot.connects, leader: status.leads, ..slot };
        });
    }

    /// The database has sent everything up to here, and nothing of it is for the log.
    pub(super) fn nothing_before(&self, place: Lsn) {
        self.with(|status| status.lag.nothing_before(place));
    }

    /// Counts a connection of this server to the replication stream.
    pub(super) fn connects(&self) {
        self.with(|status| status.slot.connects += 1);
    }

    pub(super) fn leading(&self, leads: bool) {
        self.recent.clear();
        self.with(|status| {
            status.leads = leads;
            status.failing.clear();
        });
    }

    /// Sets which tables are being compared, as the leader knows it.
    pub(super) fn reconciling(&self, progress: BTreeMap<String, u64>) {
        self.with(|status| status.reconciling = progress);
    }

    /// Sets which tables the leader cannot read to compare them, and why.
    pub(super) fn comparing_fails(&self, failing: Vec<(Arc<str>, String)>) {
        self.with(|status| status.failing = failing);
    }

    /// Sets which entity types have stopped, as the leader knows it.
    pub(super) fn set_stops(&self, catalog: &Catalog, stops: Vec<Stop>) {
        self.with(|status| {
            stops::mark(catalog, &stops);
            status.stops = stops;
        });
    }

    /// Sets which entity types have stopped, as the database's tables have it.
    pub(super) fn others_stop(&self, catalog: &Catalog, stops: Vec<Stop>) {
        self.with(|status| {
            if !status.leads {
                stops::mark(catalog, &stops);
                status.stops = stops;
            }
        });
    }

    /// Sets which tables are being compared, as the database's tables have it.
    pub(super) fn others_reconcile(&self, progress: BTreeMap<String, u64>) {
        self.with(|status| {
            if !status.leads {
                status.reconciling = progress;
            }
        });
    }

    pub(super) fn status(&self) -> CaptureStatus {
        self.with(|status| CaptureStatus {
            stalled: status.database.clone().or_else(|| status.capture.clone()),
            lag_bytes: status.lag.bytes(),
            // Only the leader knows whether what was written is for the log.
            lag_seconds: status.lag.seconds(Instant::now()).filter(|_| status.leads || !status.captured),
            slot: Some(SlotStatus { leader: status.leads, ..status.slot.clone() }),
            reconciling: status.reconciling.clone(),
            conditions: status
                .stops
                .iter()
                .map(Stop::condition)
                .chain(status.failing.iter().map(condition))
                .collect(),
            ..CaptureStatus::default()
        })
    }

    pub(super) fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    pub(super) fn tables_version(&self) -> u64 {
        self.tables_version.load(Ordering::Acquire)
    }

    pub(super) fn set_tables(&self, tables: Tables) {
        self.tables.store(Arc::new(tables));
        self.tables_version.fetch_add(1, Ordering::AcqRel);
    }
}
