//! The reader of the replication stream: a task that takes events from the client into a queue that is bounded in
//! bytes, so that large rows wait in the database and not in memory while the log cannot be appended to.

use std::sync::Arc;
use std::time::Duration;

use pgwire_replication::{Lsn, PgWireError, ReplicationClient, ReplicationEvent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Most events that wait, however small they are.
const EVENTS_MAX: usize = 4_096;
/// Bytes that an event takes beside its data.
const EVENT_BYTES: usize = 256;
/// How long the database may take to end the stream in order.
const END_TIMEOUT: Duration = Duration::from_secs(1);

type Read = Result<Option<ReplicationEvent>, PgWireError>;

/// The replication stream.
pub(in super::super) struct ReplicationLink {
    events: mpsc::Receiver<(Read, Option<OwnedSemaphorePermit>)>,
    applied: watch::Sender<Lsn>,
    end: CancellationToken,
    reader: AbortOnDropHandle<()>,
}

impl ReplicationLink {
    /// Begins to read a stream that has started, with this much memory for events that wait.
    pub(in super::super) fn begin(client: ReplicationClient, memory: usize) -> ReplicationLink {
        // One event is always let in, however large it is.
        let memory = u32::try_from(memory).unwrap_or(u32::MAX).max(1);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (applied, position) = watch::channel(Lsn::ZERO);
        let end = CancellationToken::new();
        let reader = tokio::spawn(read(client, memory, sender, position, end.clone()));
        ReplicationLink { events, applied, end, reader: AbortOnDropHandle::new(reader) }
    }

    /// The next event; `None` once the stream has ended.
    pub(in super::super) async fn recv(&mut self) -> Read {
        match self.events.recv().await {
            Some((read, _permit)) => read,
            None => Ok(None),
        }
    }

    /// Allows the database to discard the write-ahead log before this place.
    pub(in super::super) fn update_applied_lsn(&self, position: Lsn) {
        self.applied.send_replace(position);
    }

    /// Ends the stream, so that another server can have the slot at once.
    pub(in super::super) async fn shutdown(self) {
        self.end.cancel();
        drop(self.events);
        let _ = tokio::time::timeout(END_TIMEOUT, self.reader).await;
    }
}

async fn read(
    mut client: ReplicationClient,
    memory: u32,
    events: mpsc::Sender<(Read, Option<OwnedSemaphorePermit>)>,
    mut position: watch::Receiver<Lsn>,
    end: CancellationToken,
) {
    let free = Arc::new(Semaphore::new(usize::try_from(memory).unwrap_or(usize::MAX)));
    let queueing = async {
        loop {
            let read = tokio::select! {
                read = client.recv() => read,
                Ok(()) = position.changed() => {
                    let applied = *position.borrow_and_update();
                    client.update_applied_lsn(applied);
                    continue;
                }
            };
            let last = !matches!(read, Ok(Some(_)));
            let bytes = u32::try_from(size(&read)).unwrap_or(u32::MAX).min(memory);
            let permit = loop {
                tokio::select! {
                    permit = free.clone().acquire_many_owned(bytes) => break permit.ok(),
                    Ok(()) = position.changed() => {
                        let applied = *position.borrow_and_update();
                        client.update_applied_lsn(applied);
                    }
                }
            };
            if events.send((read, permit)).await.is_err() || last {
                return;
            }
        }
    };
    tokio::select! {
        () = queueing => {}
        () = end.cancelled() => {}
    }
    let _ = tokio::time::timeout(END_TIMEOUT, client.shutdown()).await;
}

/// How much memory an event takes.
fn size(read: &Read) -> usize {
    let data = match read {
        Ok(Some(ReplicationEvent::XLogData { data, .. })) => data.len(),
        Ok(Some(ReplicationEvent::Message { content, prefix, .. })) => content.len() + prefix.len(),
        _ => 0,
    };
    data + EVENT_BYTES
}
