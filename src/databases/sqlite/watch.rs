//! Watching the file for other processes: a file event says that one of them may have committed, and a slow poll is the
//! safety net. A look then finds out whether it did, numbers what it wrote, and publishes how far the log reaches. The
//! watcher also notices that the file was removed or replaced, and that the log is not the one that was served; the
//! writer thread deals with that.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc, watch};

use super::file::events::{Events, WaitResult};
use super::file::history::History;
use super::file::{sequencer, versions};
use super::jobs::{StreamJob, WriterJob};
use super::log::read;
use super::writer::WRITING_FOR;
use super::{StorageState, advance, connect, error, streams};
use crate::head::{Head, Version};
use crate::streams::unix_millis;

/// How often stored streams are checked for expiry.
const COLLECT_EVERY: Duration = Duration::from_secs(1);
/// The same while other processes write: expired streams are hidden already, and removing them can fail a transaction
/// of another process.
const COLLECT_AMONG_WRITERS: Duration = Duration::from_secs(60);
/// How long the next look waits after one that found another process's commit: more are likely to follow.
const AFTER_NEWS: Duration = Duration::from_micros(500);
/// The same after one that found a commit of our own, or failed.
const AFTER_OTHERS: Duration = Duration::from_millis(3);
/// The same after one that found nothing: the pages of a commit are in the file before the commit is visible, and no
/// event reports that it became visible. The next looks come soon, and later and later; as long as there are more
/// events, this late at most.
const AFTER_NOTHING: Duration = Duration::from_micros(150);
const AFTER_NOTHING_YET: Duration = Duration::from_millis(3);
const AFTER_NOTHING_MOST: Duration = Duration::from_millis(25);
/// How long after the last event a look expects its commit; a disk that is slower is left to the poll.
const COMMIT_PATIENCE: Duration = Duration::from_millis(250);

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookResult {
    /// No commit.
    Nothing,
    /// Commits of this process, or ones that changed nothing that is streamed.
    Others,
    /// Another process's commit.
    News,
}

/// The looks for a commit that events have announced.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// The first event.
    since: Instant,
    /// The last one.
    until: Instant,
}

impl Expected {
    fn now() -> Expected {
        let now = Instant::now();
        Expected { since: now, until: now }
    }

    /// How long to wait before the next look; `None` when no commit is expected any more.
    fn pause(self, now: Instant, event: bool) -> Option<Duration> {
        let most = if event { AFTER_NOTHING_YET } else { AFTER_NOTHING_MOST };
        let pause = (now.saturating_duration_since(self.since) / 2).clamp(AFTER_NOTHING, most);
        (now.saturating_duration_since(self.until) < COMMIT_PATIENCE).then_some(pause)
    }
}

pub(super) struct Watcher {
    pub(super) connection: Connection,
    /// The number of the file that the connection was opened on.
    pub(super) file: u64,
    pub(super) busy: Duration,
    pub(super) history: Arc<History>,
    pub(super) jobs: mpsc::Sender<WriterJob>,
    pub(super) head: watch::Sender<Head>,
    pub(super) version: watch::Sender<Version>,
    pub(super) shared: Arc<StorageState>,
    pub(super) streams: Arc<streams::StreamsState>,
    /// The last commit that is known to have touched streams.
    pub(super) stream_version: Arc<AtomicI64>,
    /// The schema as it was before the writer first looked at the tables.
    pub(super) schema_version: i64,
    /// The database's data version at the last look; below zero before the first.
    pub(super) data_version: i64,
    /// How often the file is looked at without any event.
    pub(super) interval: Duration,
    /// How often old activities are looked for; `None` where all are kept.
    pub(super) retain_every: Option<Duration>,
    pub(super) events: Events,
}

impl Watcher {
    /// Looks at the file until the storage is closed.
    pub(super) fn run(mut self) {
        let (mut collected_at, mut probed_at, mut retained_at) =
            (Instant::now(), Instant::now(), Instant::now());
        let mut news_at: Option<Instant> = None;
        // The first look is at once; one that failed is repeated at the next poll.
        let mut again = true;
        let mut expected: Option<Expected> = None;
        loop {
            crate::failpoint!("bourn-watcher", |_| ());
            let patience = if again { Duration::ZERO } else { self.interval.min(COLLECT_EVERY) };
            let waited = self.events.wait(patience);
            if waited == WaitResult::Stopped {
                return;
            }
            let event = waited == WaitResult::Event;
            if event {
                expected.get_or_insert_with(Expected::now).until = Instant::now();
            }
            // If the queue is full, it is tried again at the next look.
            if self.retain_every.is_some_and(|every| retained_at.elapsed() >= every)
                && self.jobs.try_send(WriterJob::Retain).is_ok()
            {
                retained_at = Instant::now();
            }
            let among_writers = news_at.is_some_and(|at| at.elapsed() < WRITING_FOR);
            if collected_at.elapsed() >= if among_writers { COLLECT_AMONG_WRITERS } else { COLLECT_EVERY } {
                collected_at = Instant::now();
                self.collect();
            }
            if probed_at.elapsed() >= COLLECT_EVERY {
                probed_at = Instant::now();
                self.probe();
            }
            again = false;
            match self.look() {
                Ok(found) => {
                    self.shared.watcher_stands(None);
                    let pause = match found {
                        LookResult::Nothing => {
                            expected.and_then(|expected| expected.pause(Instant::now(), event))
                        }
                        LookResult::Others => event.then_some(AFTER_OTHERS),
                        LookResult::News => event.then_some(AFTER_NEWS),
                    };
                    if found == LookResult::News {
                        news_at = Some(Instant::now());
                    }
                    // The events may have been those of two commits, of which only the first counts yet.
                    if found != LookResult::Nothing {
                        expected = event.then(Expected::now);
                    }
                    again = pause.is_some();
                    match pause {
                        Some(pause) => std::thread::park_timeout(pause),
                        None => expected = None,
                    }
                }
                Err(failure) => {
                    let failure = error::storage(&failure);
                    self.shared.watcher_stands(Some(failure.to_string()));
                    // Forces the next look to read the log, even if the data version is the same.
                    self.data_version = -1;
                    std::thread::park_timeout(AFTER_OTHERS);
                }
            }
        }
    }

    /// Asks the writer to remove expired and deleted streams.
    fn collect(&self) {
        let wanted = streams::wants_collecting(&self.connection, unix_millis());
        // If the queue is full or this fails, the next round asks again.
        if wanted.is_ok_and(|wanted| wanted) {
            let _ = self.jobs.try_send(WriterJob::Stream(StreamJob::Collect));
        }
    }

    /// Asks the writer whether the database can be written again, after the last write was refused.
    fn probe(&self) {
        if self.shared.with(|status| status.refused.is_some()) {
            let _ = self.jobs.try_send(WriterJob::Probe);
        }
    }

    /// Takes one look; returns what it found.
    fn look(&mut self) -> rusqlite::Result<LookResult> {
        if !self.history.in_place() || self.history.is_gone() {
            // The same file may be back in its place.
            let _ = self.jobs.try_send(WriterJob::Reopen);
            return Ok(LookResult::Others);
        }
        if self.file != self.history.file() {
            self.file = self.history.file();
            self.connection = connect::reader(&self.history.path, self.busy)?;
            (self.data_version, self.schema_version) = (-1, connect::schema_version(&self.connection)?);
            self.events.watch();
        }
        if self.history.in_doubt() {
            let _ = self.jobs.try_send(WriterJob::Settle);
        }
        let owed = self.shared.refresh_owed.load(Ordering::Relaxed);
        let data: i64 =
            self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if data == self.data_version && !owed {
            return Ok(LookResult::Nothing);
        }
        let schema = connect::schema_version(&self.connection)?;
        if schema != self.schema_version || owed {
            if self.jobs.try_send(WriterJob::Refresh).is_err() {
                self.shared.refresh_owed.store(true, Ordering::Relaxed);
            } else {
                self.shared.refresh_owed.store(false, Ordering::Relaxed);
            }
            self.schema_version = schema;
        }
        let news = self.follow()?;
        self.history.note_log();
        self.data_version = data;
        Ok(if news { LookResult::News } else { LookResult::Others })
    }

    /// Numbers and publishes all activities; returns whether any of them is another process's.
    fn follow(&self) -> rusqlite::Result<bool> {
        let (head, version, stream_version, unnumbered) = {
            let snapshot = self.connection.unchecked_transaction()?;
            let view = read::LogSnapshot::of(&snapshot, &self.history)?;
            let all = sequencer::head(&snapshot)?;
            (
                view.head(),
                view.version,
                versions::of_streams(&snapshot)?,
                all.get().saturating_sub(view.sealed.get()),
            )
        };
        self.shared.lag(unnumbered);
        let sealed = if unnumbered > 0 { self.history.number(&self.connection)? } else { head.seq };
        self.history.note(&self.connection, sealed)?;
        if self.head.borrow().epoch == version.epoch {
            self.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        }
        advance(&self.head, Head { seq: sealed, ..head });
        self.shared.lag(0);
        if self.stream_version.fetch_max(stream_version, Ordering::Relaxed) < stream_version {
            self.streams.foreign_commit();
        }
        if self.history.beside.unfolded() >= sequencer::FOLD_ROWS {
            let asked = self.shared.fold_asked.swap(true, Ordering::Relaxed);
            if !asked && self.jobs.try_send(WriterJob::Fold).is_err() {
                self.shared.fold_asked.store(false, Ordering::Relaxed);
            }
        }
        Ok(unnumbered > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_counts_long_after_its_last_event_is_looked_for() {
        let expected = Expected::now();
        let (mut now, mut looks) = (expected.since, 0);
        while let Some(pause) = expected.pause(now, false) {
            // Late by half of the time that the commit took, and no more.
            let taken = now - expected.since;
            assert!(
                pause <= (taken / 2).max(AFTER_NOTHING) && pause <= AFTER_NOTHING_MOST,
                "{taken:?}: {pause:?}"
            );
            (now, looks) = (now + pause, looks + 1);
        }
        assert!(now - expected.since >= COMMIT_PATIENCE, "a disk may be slow");
        assert!(looks < 40, "{looks} looks for a commit that does not come");
        assert_eq!(expected.pause(expected.until + COMMIT_PATIENCE / 2, true), Some(AFTER_NOTHING_YET));
    }
}
