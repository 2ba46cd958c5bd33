//! The bare consumer: the replication client that Bourn uses, and a decoder, and nothing behind them. It shows
//! what PostgreSQL and the client leave for a server to lose.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bourn_testkit::Database;
use pgwire_replication::{ReplicationClient, ReplicationConfig, ReplicationEvent};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::decode;
use super::site;
use crate::commit_to_event::{Arrivals, QUEUE};
use crate::measure::now_nanos;
use crate::publish::MARK;

const PUBLICATION: &str = "bare";
/// How soon what was consumed is confirmed.
const CONFIRM: Duration = Duration::from_secs(1);
/// Digits of a stamp, behind its mark.
const STAMP: std::ops::Range<usize> = 1..20;

/// A consumer at work.
pub(super) struct Bare {
    rows: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
}

/// Makes the publication and the slot. Slots are the cluster's, so each database's has its own name.
pub(super) fn prepare(database: &Database) {
    database.psql(&format!(
        "CREATE PUBLICATION {PUBLICATION} FOR TABLE tasks, edits;
         SELECT pg_create_logical_replication_slot('{}', 'pgoutput');",
        slot(database)
    ));
}

fn slot(database: &Database) -> String {
    format!("bare_{}", database.name())
}

impl Bare {
    /// Begins to consume; the stamps of what was committed go where they are wanted, with the time at which the
    /// commit was decoded.
    pub(super) async fn start(database: &Database) -> Result<(Bare, Arrivals)> {
        let slot = slot(database);
        let config = ReplicationConfig::new("127.0.0.1", "postgres", "", database.name(), slot, PUBLICATION)
            .with_port(database.cluster().port())
            .with_status_interval(CONFIRM)
            .with_wakeup_interval(CONFIRM);
        let client = ReplicationClient::connect(config).await.context("the bare consumer cannot connect")?;
        let rows = Arc::new(AtomicU64::new(0));
        let (sender, arrivals) = mpsc::channel(QUEUE);
        let task = tokio::spawn(consume(client, rows.clone(), sender));
        Ok((Bare { rows, task }, arrivals))
    }

    /// Rows that have been decoded.
    pub(super) fn rows(&self) -> Result<u64> {
        if self.task.is_finished() {
            bail!("the bare consumer has ended");
        }
        Ok(self.rows.load(Ordering::Relaxed))
    }

    /// Ends it and waits until its slot is free.
    pub(super) async fn end(self, database: &Database) -> Result<()> {
        self.task.abort();
        if let Ok(ended) = self.task.await {
            ended?;
        }
        site::released(database).await
    }
}

async fn consume(
    mut client: ReplicationClient,
    rows: Arc<AtomicU64>,
    arrivals: mpsc::Sender<(u64, u64)>,
) -> Result<()> {
    let mut stamps: Vec<u64> = Vec::new();
    while let Some(event) = client.recv().await? {
        match event {
            ReplicationEvent::XLogData { data, .. } => {
                let row = decode::change(&data, |text| {
                    let digits = text.as_bytes().first().filter(|&&first| first == MARK);
                    let digits = digits.and_then(|_| text.get(STAMP));
                    stamps.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
                });
                rows.fetch_add(u64::from(row.is_some()), Ordering::Relaxed);
            }
            ReplicationEvent::Commit { end_lsn, .. } => {
                let received = now_nanos();
                for stamp in stamps.drain(..) {
                    // Without a reader nobody wants them; one that is so far behind sees that some are missing.
                    let _ = arrivals.try_send((stamp, received));
                }
                client.update_applied_lsn(end_lsn);
            }
            ReplicationEvent::KeepAlive { wal_end, .. } => client.update_applied_lsn(wal_end),
            _ => {}
        }
    }
    bail!("PostgreSQL ended the bare consumer's stream")
}
