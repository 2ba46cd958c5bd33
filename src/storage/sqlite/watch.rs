//! Watching the file for other processes: a cheap look every few milliseconds tells whether any of them has
//! committed, and whether the schema has changed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, watch};

use bourn_protocol::Seq;

use super::writer::Job;
use super::{Shared, error, sequencer};

pub(super) struct Watcher {
    pub(super) connection: Connection,
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) head: watch::Sender<Seq>,
    pub(super) shared: Arc<Shared>,
    pub(super) interval: Duration,
    /// Closed when the storage is.
    pub(super) stop: Receiver<()>,
}

impl Watcher {
    /// Looks at the file until the storage is closed.
    pub(super) fn run(mut self) {
        // Both are impossible values, so that the first look sees a change.
        let (mut data_version, mut schema_version) = (-1, -1);
        let mut unsealed = false;
        while self.stop.recv_timeout(self.interval) == Err(RecvTimeoutError::Timeout) {
            match self.look(&mut data_version, &mut schema_version, unsealed) {
                Ok(found) => unsealed = found,
                Err(failure) => {
                    let failure = error::storage(&failure);
                    self.shared.stalled(Some(failure.to_string()));
                }
            }
        }
    }

    /// One look; says whether something waits to be sealed.
    fn look(
        &mut self,
        data_version: &mut i64,
        schema_version: &mut i64,
        unsealed: bool,
    ) -> rusqlite::Result<bool> {
        let data: i64 =
            self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if data == *data_version && !unsealed {
            return Ok(false);
        }
        let schema: i64 =
            self.connection.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?;
        if schema != *schema_version {
            // The first look finds what the writer has just looked at itself.
            let first = *schema_version == -1;
            if !first && self.jobs.try_send(Job::Refresh).is_err() {
                return Ok(unsealed);
            }
            *schema_version = schema;
        }
        let lag = sequencer::unsealed(&self.connection)?;
        self.shared.lag(lag);
        if lag > 0 {
            // A full queue is as good: every batch seals what it finds.
            let _ = self.jobs.try_send(Job::Seal);
        } else {
            // Another server on the same file may have sealed.
            let sealed = sequencer::sealed_head(&self.connection)?;
            self.head.send_if_modified(|known| {
                let newer = sealed > *known;
                *known = sealed.max(*known);
                newer
            });
        }
        *data_version = data;
        Ok(lag > 0)
    }
}

impl Shared {
    pub(super) fn lag(&self, lag: u64) {
        self.with(|status| status.lag = lag);
    }
}
