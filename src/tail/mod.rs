//! The live tail: the newest changes in memory, encoded once and shared by every reader.
//!
//! One task, [`Tail::run`], reads what the log has gained and gives each followed stream its share as one
//! [`LiveBatch`]. The tail is an optimisation of the log and owes nobody anything: what does not fit is dropped,
//! and a reader that finds its place dropped reads the log again.

mod channel;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bourn_protocol::chunk::ChunkLimits;
use bourn_protocol::{Epoch, MessageKind, Scope, Selector, Seq};
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::storage::{Activity, Storage, StorageError};
pub use channel::{Channel, LiveBatch, Place};

/// Most activities taken from the log at once. What comes faster is left to the readers.
const FOLLOW_ROWS: usize = 4_096;
/// How long to wait before the log is tried again after it failed.
const RETRY: Duration = Duration::from_millis(250);

/// The live tail of one log.
pub struct Tail {
    storage: Arc<dyn Storage>,
    epoch: Epoch,
    chunk: ChunkLimits,
    sweep: Duration,
    memory: Arc<Memory>,
    registry: Mutex<Registry>,
}

/// The bytes that all channels hold together, and how many they may.
#[derive(Debug)]
struct Memory {
    used: AtomicUsize,
    most: usize,
}

#[derive(Default)]
struct Registry {
    /// Every channel has what its stream gained up to here.
    head: Seq,
    channels: HashMap<Selector, Weak<Channel>>,
}

impl Tail {
    /// A tail that begins at the log's head as the storage knows it now.
    #[must_use]
    pub fn new(
        storage: Arc<dyn Storage>,
        epoch: Epoch,
        chunk: ChunkLimits,
        memory: usize,
        sweep: Duration,
    ) -> Tail {
        let head = *storage.head().borrow();
        let registry = Mutex::new(Registry { head, channels: HashMap::new() });
        let memory = Arc::new(Memory { used: AtomicUsize::new(0), most: memory });
        Tail { storage, epoch, chunk, sweep, memory, registry }
    }

    /// The channel of a stream, made if nobody follows the stream yet.
    #[must_use]
    pub fn channel(&self, stream: &Selector) -> Arc<Channel> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = registry.channels.get(stream).and_then(Weak::upgrade) {
            return channel;
        }
        let channel = Arc::new(Channel::new(registry.head, self.memory.clone()));
        registry.channels.insert(stream.clone(), Arc::downgrade(&channel));
        channel
    }

    /// How far the tail has come.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).head
    }

    /// Bytes that the tail holds.
    #[must_use]
    pub fn memory_used(&self) -> usize {
        self.memory.used.load(Ordering::Relaxed)
    }

    /// Follows the log until it is told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let mut log = self.storage.head();
        loop {
            let target = *log.borrow_and_update();
            let swept_at = Instant::now();
            let wait_for_more = async {
                // The sender lives as long as the storage, which this holds.
                let _ = log.changed().await;
            };
            match self.advance(target).await {
                Ok(true) => {
                    // More changes may be waiting already: they leave together after the sweep.
                    tokio::select! {
                        () = tokio::time::sleep_until(swept_at + self.sweep) => {}
                        () = stop.cancelled() => return,
                    }
                }
                Ok(false) => tokio::select! {
                    () = wait_for_more => {}
                    () = stop.cancelled() => return,
                },
                Err(error) => {
                    tracing::warn!(%error, "the live tail cannot read the log");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Takes what the log has gained, up to `target` or a little further; says whether there was anything.
    async fn advance(&self, target: Seq) -> Result<bool, StorageError> {
        let head = {
            let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
            if registry.head >= target {
                return Ok(false);
            }
            registry.channels.retain(|_, channel| channel.strong_count() > 0);
            if registry.channels.is_empty() {
                // Nobody follows: whoever comes begins here.
                registry.head = target;
                return Ok(false);
            }
            registry.head
        };
        let mut rows = self.storage.follow(head, FOLLOW_ROWS).await?;
        if rows.len() == FOLLOW_ROWS {
            // The last transaction may go on: it is left for the next round.
            let unfinished = rows.last().map(|row| row.commit_id);
            let whole =
                rows.iter().rposition(|row| Some(row.commit_id) != unfinished).map_or(0, |last| last + 1);
            rows.truncate(whole);
        }
        let end = rows.last().map_or(target, |row| row.seq);
        let batches = self.encode(&rows);
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = rows.is_empty();
        for (stream, channel) in &registry.channels {
            let Some(channel) = channel.upgrade() else { continue };
            match batches.get(stream) {
                _ if skipped => channel.skip_to(end),
                Some(batches) => channel.publish(batches),
                None => {}
            }
        }
        registry.head = end;
        Ok(true)
    }

    /// The share of each stream that any of these activities belongs to.
    fn encode(&self, rows: &[Activity]) -> HashMap<Selector, Vec<Arc<LiveBatch>>> {
        let mut building: HashMap<Selector, BatchBuilder> = HashMap::new();
        let followed: Vec<Selector> = {
            let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.channels.keys().cloned().collect()
        };
        let followed: std::collections::HashSet<Selector> = followed.into_iter().collect();
        for row in rows {
            let scope = row.organization_id.as_deref().and_then(|scope| Scope::new(scope).ok());
            let name: Arc<str> = row.entity_type.as_str().into();
            for kind in [MessageKind::Change, MessageKind::Activity] {
                let mut message: Option<Bytes> = None;
                for entity_type in [Some(name.clone()), None] {
                    for scope in [None, scope.clone()] {
                        let stream = Selector { kind, entity_type: entity_type.clone(), scope };
                        if !followed.contains(&stream) {
                            continue;
                        }
                        let message = message.get_or_insert_with(|| {
                            let mut bytes =
                                Vec::with_capacity(256 + row.value.as_ref().map_or(0, String::len));
                            row.as_ref().encode(kind, self.epoch, &mut bytes);
                            bytes.into()
                        });
                        let builder = building.entry(stream).or_insert_with(|| BatchBuilder::new(self.chunk));
                        builder.push(row, message);
                    }
                    if scope.is_none() && entity_type.is_none() {
                        break;
                    }
                }
            }
        }
        building.into_iter().map(|(stream, builder)| (stream, builder.finish())).collect()
    }
}

/// Gathers a stream's messages into batches: whole transactions, as large as a chunk at most.
struct BatchBuilder {
    limits: ChunkLimits,
    done: Vec<Arc<LiveBatch>>,
    body: Vec<u8>,
    first: Seq,
    next: Seq,
    messages: usize,
    commit_id: i64,
}

impl BatchBuilder {
    fn new(limits: ChunkLimits) -> BatchBuilder {
        BatchBuilder {
            limits,
            done: Vec::new(),
            body: Vec::new(),
            first: Seq::ZERO,
            next: Seq::ZERO,
            messages: 0,
            commit_id: 0,
        }
    }

    fn push(&mut self, row: &Activity, message: &Bytes) {
        if row.seq == self.next {
            // The same stream twice: a row without a scope.
            return;
        }
        let full =
            self.messages >= self.limits.messages || self.body.len() + message.len() > self.limits.bytes;
        if self.messages > 0 && full && row.commit_id != self.commit_id {
            self.flush();
        }
        if self.messages == 0 {
            self.first = row.seq;
        }
        self.body.push(if self.messages == 0 { b'[' } else { b',' });
        self.body.extend_from_slice(message);
        self.messages += 1;
        self.next = row.seq;
        self.commit_id = row.commit_id;
    }

    fn flush(&mut self) {
        if self.messages == 0 {
            return;
        }
        self.body.push(b']');
        let body = std::mem::take(&mut self.body).into();
        self.done.push(Arc::new(LiveBatch::new(self.first, self.next, self.messages, body)));
        self.messages = 0;
    }

    fn finish(mut self) -> Vec<Arc<LiveBatch>> {
        self.flush();
        self.done
    }
}
