//! Watching the file for other processes: a cheap look every few milliseconds tells whether any of them has
//! committed, and whether the schema has changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc, watch};

use super::writer::Job;
use super::{Shared, advance, connect, error, log, sequencer, streams};
use crate::storage::streams::unix_millis;
use crate::storage::{Head, Version};

/// How often it is looked whether stored streams have expired.
const COLLECT_EVERY: Duration = Duration::from_millis(500);

pub(super) struct Watcher {
    pub(super) connection: Connection,
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) head: watch::Sender<Head>,
    pub(super) version: watch::Sender<Version>,
    pub(super) shared: Arc<Shared>,
    pub(super) streams: Arc<streams::Shared>,
    /// The last commit that is known to have touched streams.
    pub(super) stream_version: Arc<AtomicI64>,
    /// The schema as it was before the writer first looked at the tables.
    pub(super) schema_version: i64,
    pub(super) interval: Duration,
    /// How often old activities are looked for; nothing where all are kept.
    pub(super) retain_every: Option<Duration>,
    /// Closed when the storage is.
    pub(super) stop: Receiver<()>,
}

impl Watcher {
    /// Looks at the file until the storage is closed.
    pub(super) fn run(mut self) {
        // An impossible value, so that the first look sees a change.
        let mut data_version = -1;
        let mut unsealed = false;
        let (mut collected_at, mut retained_at) = (Instant::now(), Instant::now());
        while self.stop.recv_timeout(self.interval) == Err(RecvTimeoutError::Timeout) {
            // A full queue is as good as none: it is tried again at the next look.
            if self.retain_every.is_some_and(|every| retained_at.elapsed() >= every)
                && self.jobs.try_send(Job::Retain).is_ok()
            {
                retained_at = Instant::now();
            }
            if collected_at.elapsed() >= COLLECT_EVERY {
                collected_at = Instant::now();
                self.collect();
            }
            crate::failpoint!("bourn-watcher", |_| ());
            match self.look(&mut data_version, unsealed) {
                Ok(found) => {
                    unsealed = found;
                    self.shared.watcher_stands(None);
                }
                Err(failure) => {
                    let failure = error::storage(&failure);
                    self.shared.watcher_stands(Some(failure.to_string()));
                }
            }
        }
    }

    /// Has removed what stored streams leave behind.
    fn collect(&self) {
        let wanted = streams::wants_collecting(&self.connection, unix_millis());
        // A full queue, or a failure, and it is asked for again later.
        if wanted.is_ok_and(|wanted| wanted) {
            let _ = self.jobs.try_send(Job::Stream(streams::StreamJob::Collect));
        }
    }

    /// One look; says whether something waits to be sealed.
    fn look(&mut self, data_version: &mut i64, unsealed: bool) -> rusqlite::Result<bool> {
        let owed = self.shared.refresh_owed.load(Ordering::Relaxed);
        let data: i64 =
            self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if data == *data_version && !unsealed && !owed {
            return Ok(false);
        }
        let version = streams::version(&self.connection)?;
        if self.stream_version.fetch_max(version, Ordering::Relaxed) < version {
            self.streams.foreign_commit();
        }
        let schema = connect::schema_version(&self.connection)?;
        if schema != self.schema_version || owed {
            if self.jobs.try_send(Job::Refresh).is_err() {
                return Ok(unsealed);
            }
            self.shared.refresh_owed.store(false, Ordering::Relaxed);
            self.schema_version = schema;
        }
        let version = log::version(&self.connection)?;
        self.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        let lag = sequencer::unsealed(&self.connection)?;
        self.shared.lag(lag);
        if lag > 0 {
            // A full queue is as good: every batch seals what it finds.
            let asked = self.shared.seal_asked.swap(true, Ordering::Relaxed);
            if !asked && self.jobs.try_send(Job::Seal).is_err() {
                self.shared.seal_asked.store(false, Ordering::Relaxed);
            }
        } else {
            // Another server on the same file may have sealed.
            let sealed = sequencer::sealed_head(&self.connection)?;
            advance(&self.head, sealed);
        }
        *data_version = data;
        Ok(lag > 0)
    }
}
