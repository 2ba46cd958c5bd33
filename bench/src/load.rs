//! Sources of requests: closed loops of so many clients, and a steady rate.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::measure::{Latencies, now_nanos};
use crate::publish::Publisher;
use crate::wire::{Connection, SMALL};

/// Connections that a steady rate is spread over.
const PACED_CLIENTS: usize = 16;
/// Requests of a steady rate that may wait for a free connection; more are left out, and the rate shows it.
const PACED_BACKLOG: usize = 64;

/// What a source has done.
pub(crate) struct Done {
    /// Requests that succeeded.
    pub(crate) sent: u64,
    /// Requests that were refused.
    pub(crate) failed: u64,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// From request to answer.
    pub(crate) latencies: Latencies,
}

impl Done {
    pub(crate) fn per_second(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

struct Worker {
    connection: Connection,
    publisher: Arc<Publisher>,
    sent: u64,
    failed: u64,
    latencies: Latencies,
}

impl Worker {
    async fn open(publisher: &Arc<Publisher>) -> Result<Worker> {
        let connection = Connection::open(publisher.address(), SMALL).await?;
        let publisher = publisher.clone();
        Ok(Worker { connection, publisher, sent: 0, failed: 0, latencies: Latencies::new()? })
    }

    async fn publish(&mut self) -> Result<()> {
        let request = self.publisher.request();
        let begun = now_nanos();
        let answer = self.connection.exchange(&request).await?;
        match answer.status {
            200..300 => {
                self.sent += 1;
                self.latencies.record(now_nanos().saturating_sub(begun));
            }
            _ => self.failed += 1,
        }
        Ok(())
    }
}

/// So many clients, each of which sends its next request when the last is answered, until the time is over or
/// `most` requests are done.
pub(crate) async fn closed_loop(
    publisher: &Arc<Publisher>,
    clients: usize,
    duration: Duration,
    most: Option<u64>,
) -> Result<Done> {
    let mut workers = JoinSet::new();
    let opened: Vec<Worker> = open(publisher, clients).await?;
    let begun = Instant::now();
    let share = most.map(|most| most.div_ceil(u64::try_from(clients).unwrap_or(1).max(1)));
    for mut worker in opened {
        workers.spawn(async move {
            while begun.elapsed() < duration && share.is_none_or(|share| worker.sent + worker.failed < share)
            {
                worker.publish().await?;
            }
            Ok(worker)
        });
    }
    gather(workers, begun).await
}

/// So many requests a second, as far as the server keeps up.
pub(crate) async fn paced(publisher: &Arc<Publisher>, rate: f64, duration: Duration) -> Result<Done> {
    let due = Arc::new(Semaphore::new(0));
    let mut workers = JoinSet::new();
    for mut worker in open(publisher, PACED_CLIENTS).await? {
        let due = due.clone();
        workers.spawn(async move {
            while let Ok(permit) = due.acquire().await {
                permit.forget();
                worker.publish().await?;
            }
            Ok(worker)
        });
    }
    let begun = Instant::now();
    let gap = Duration::from_secs_f64(1.0 / rate.max(0.01));
    let mut next = begun;
    while next < begun + duration {
        tokio::time::sleep_until(next).await;
        next += gap;
        if due.available_permits() < PACED_BACKLOG {
            due.add_permits(1);
        }
    }
    tokio::time::sleep_until(begun + duration).await;
    due.close();
    gather(workers, begun).await
}

async fn open(publisher: &Arc<Publisher>, clients: usize) -> Result<Vec<Worker>> {
    let mut opened = Vec::with_capacity(clients);
    for _ in 0..clients {
        opened.push(Worker::open(publisher).await?);
    }
    Ok(opened)
}

async fn gather(mut workers: JoinSet<Result<Worker>>, begun: Instant) -> Result<Done> {
    let mut done = Done { sent: 0, failed: 0, elapsed: Duration::ZERO, latencies: Latencies::new()? };
    while let Some(worker) = workers.join_next().await {
        let worker = worker??;
        done.sent += worker.sent;
        done.failed += worker.failed;
        done.latencies.add(&worker.latencies)?;
    }
    done.elapsed = begun.elapsed();
    Ok(done)
}
