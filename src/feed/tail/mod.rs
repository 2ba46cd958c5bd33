//! The live tail: the newest changes in memory, encoded once and shared by every reader.
//!
//! One task, [`Tail::run`], reads what the log has gained and gives each followed stream its share as one
//! [`LiveBatch`]. The tail is an optimisation of the log and guarantees nothing: what does not fit is dropped,
//! and a reader that finds its place dropped reads the log again.

mod awaited;
mod batches;
mod channel;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bourn_protocol::chunk::ChunkLimits;
use bourn_protocol::{Selector, Seq, TransactionId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Capture, Gained, Log};
use crate::head::Head;
use crate::storage_error::StorageError;
pub use awaited::Awaited;
use awaited::AwaitedIds;
pub use channel::{Channel, ChannelRead};

/// Most activities taken from the log at once. Readers fetch from the log what the tail had to skip.
const FOLLOW_ROWS: usize = 4_096;
/// Number of channels up to which unused ones are not looked for.
const PRUNE_LEAST: usize = 64;
/// Entries of `held` up to which it is not searched for batches that were dropped.
const HELD_LEAST: usize = 1_024;
/// How many deliveries may leave at once, each a sweep's time ahead, before the sweep holds them back: changes that come at a
/// pace just below it wait for nothing.
const BURST: u32 = 16;
/// How long to wait before the log is tried again after it failed.
const RETRY: Duration = Duration::from_millis(250);

/// The live tail of one log.
pub struct Tail {
    log: Arc<dyn Log>,
    head: watch::Receiver<Head>,
    chunk: ChunkLimits,
    sweep: Duration,
    memory: Arc<Memory>,
    registry: Mutex<Channels>,
}

/// The bytes that all channels hold together, and how many they may.
#[derive(Debug)]
struct Memory {
    used: AtomicUsize,
    most: usize,
}

struct Channels {
    /// Every channel has what its stream gained up to here.
    head: Head,
    channels: HashMap<Selector, Weak<Channel>>,
    /// Number of channels at which unused ones are looked for.
    prune_at: usize,
    /// The batches that the channels hold, the oldest first: the channel, and where its batch ends. Entries of dropped
    /// batches may remain.
    held: VecDeque<(Weak<Channel>, Seq)>,
    /// Number of entries of `held` at which those of dropped batches are removed.
    sift_at: usize,
    /// Channels whose readers do not know yet whether more follows.
    in_doubt: Vec<Weak<Channel>>,
    /// Transactions that requests wait for.
    awaited: AwaitedIds,
}

impl Tail {
    /// A tail that begins at the head of the log that `capture` fills, as it is known now.
    #[must_use]
    pub fn new(
        log: Arc<dyn Log>,
        capture: &dyn Capture,
        chunk: ChunkLimits,
        memory: usize,
        sweep: Duration,
    ) -> Tail {
        let watched = capture.head();
        let head = *watched.borrow();
        let registry = Mutex::new(Channels::new(head));
        let memory = Arc::new(Memory { used: AtomicUsize::new(0), most: memory });
        Tail { log, head: watched, chunk, sweep, memory, registry }
    }

    /// The channel of a stream, created for its first reader.
    #[must_use]
    pub fn channel(&self, stream: &Selector) -> Arc<Channel> {
        let mut registry = self.lock();
        if let Some(channel) = registry.channels.get(stream).and_then(Weak::upgrade) {
            return channel;
        }
        if registry.channels.len() >= registry.prune_at {
            registry.prune();
        }
        let channel = Arc::new(Channel::new(registry.head, self.memory.clone()));
        registry.channels.insert(stream.clone(), Arc::downgrade(&channel));
        channel
    }

    /// Waits for a transaction to reach the log, from here on. A caller that asks the log after this misses nothing.
    #[must_use]
    pub fn awaited(&self, id: &TransactionId) -> Awaited {
        self.lock().awaited.wait_for(id)
    }

    /// How far the tail has come.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.lock().head.seq
    }

    /// Bytes that the tail holds.
    #[must_use]
    pub fn memory_used(&self) -> usize {
        self.memory.used.load(Ordering::Relaxed)
    }

    /// Follows the log until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let mut log = self.head.clone();
        // When the deliveries so far would all have left if each had waited for a sweep.
        let mut spent = Instant::now();
        loop {
            let target = *log.borrow_and_update();
            let wait_for_more = async {
                // The sender lives as long as the storage, which this holds.
                let _ = log.changed().await;
            };
            match self.advance(target).await {
                Ok(true) => {
                    // More changes may be waiting already: they are sent in one batch after the sweep.
                    let now = Instant::now();
                    spent = spent.max(now) + self.sweep;
                    let ahead = spent - now;
                    tokio::select! {
                        () = tokio::time::sleep(ahead.saturating_sub(BURST * self.sweep)) => {}
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
    async fn advance(&self, target: Head) -> Result<bool, StorageError> {
        let (head, followed) = {
            let mut registry = self.lock();
            if registry.head.epoch != target.epoch {
                registry.start_over(target);
                return Ok(false);
            }
            if registry.head.seq >= target.seq {
                return Ok(false);
            }
            registry.prune();
            if registry.channels.is_empty() && registry.awaited.is_empty() {
                // No readers: the next one begins here.
                registry.head = target;
                return Ok(false);
            }
            (registry.head, registry.channels.keys().cloned().collect::<HashSet<_>>())
        };
        let Gained { mut activities, cut, epoch, lost } =
            self.log.follow(head.seq, FOLLOW_ROWS, self.chunk.transaction_bytes).await?;
        if epoch != head.epoch {
            // The storage publishes the new log's head in a moment.
            return Err(StorageError::Unavailable);
        }
        if cut {
            // The last transaction may go on: it is left for the next round.
            let unfinished = activities.last().map(|activity| activity.commit_id);
            let whole = activities.iter().rposition(|activity| Some(activity.commit_id) != unfinished);
            activities.truncate(whole.map_or(0, |last| last + 1));
        }
        // Readers go to the log for a transaction that is larger than the tail takes at once; and where the database
        // has lost a part of the log, which only a read of the log reports.
        let skips = activities.is_empty() || lost;
        let end = activities.last().filter(|_| !lost).map_or(target.seq, |activity| activity.seq);
        let batches = batches::of_streams(&activities, &followed, epoch, self.chunk);
        let more = end < target.seq;
        let mut registry = self.lock();
        let Channels { channels, held, in_doubt, awaited, .. } = &mut *registry;
        for (stream, channel) in channels {
            let weak = channel;
            let Some(channel) = weak.upgrade() else { continue };
            // A channel that was made meanwhile has no share of what was read before it was known.
            if skips || !followed.contains(stream) {
                channel.skip_to(end);
            } else if let Some(batches) = batches.get(stream) {
                held.extend(batches.iter().map(|batch| (weak.clone(), batch.next)));
                channel.publish(batches, more);
                if more {
                    in_doubt.push(weak.clone());
                }
            }
        }
        if !more {
            for channel in std::mem::take(in_doubt).iter().filter_map(Weak::upgrade) {
                channel.settle();
            }
        }
        if skips {
            awaited.wake_all();
        } else {
            awaited.wake(activities.iter().filter_map(|activity| activity.transaction_id.as_deref()));
        }
        registry.head.seq = end;
        registry.drop_oldest(&self.memory);
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channels {
    fn new(head: Head) -> Channels {
        Channels {
            head,
            channels: HashMap::new(),
            prune_at: PRUNE_LEAST,
            held: VecDeque::new(),
            sift_at: HELD_LEAST,
            in_doubt: Vec::new(),
            awaited: AwaitedIds::default(),
        }
    }

    /// The log was replaced by another one: readers of the old one end.
    fn start_over(&mut self, head: Head) {
        for channel in
            std::mem::take(&mut self.channels).into_values().filter_map(|channel| channel.upgrade())
        {
            channel.end();
        }
        self.held.clear();
        self.in_doubt.clear();
        self.awaited.wake_all();
        self.head = head;
    }

    /// Drops the oldest batches of all channels, until these hold no more than they may together.
    fn drop_oldest(&mut self, memory: &Memory) {
        while memory.used.load(Ordering::Relaxed) > memory.most {
            let Some((channel, place)) = self.held.pop_front() else { return };
            if let Some(channel) = channel.upgrade() {
                channel.drop_to(place);
            }
        }
        if self.held.len() >= self.sift_at {
            self.held.retain(|(channel, _)| channel.strong_count() > 0);
            self.sift_at = HELD_LEAST.max(2 * self.held.len());
        }
    }

    /// Drops the channels that have no readers any more.
    fn prune(&mut self) {
        self.channels.retain(|_, channel| channel.strong_count() > 0);
        self.prune_at = PRUNE_LEAST.max(2 * self.channels.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::LiveBatch;
    use bourn_protocol::{EntityTypes, Epoch, MessageKind};
    use bytes::Bytes;

    #[test]
    fn the_oldest_batch_goes_first_whichever_channel_holds_it() {
        let seq = |n| Seq::new(n).unwrap();
        let batch = |n| Arc::new(LiveBatch::new(seq(n), seq(n), 1, Bytes::from(vec![b'x'; 1_000])));
        let memory = Arc::new(Memory { used: AtomicUsize::new(0), most: 10_000 });
        let head = Head { epoch: Epoch::draw(), seq: Seq::ZERO };
        let mut registry = Channels::new(head);
        let stream = |name: &str| Selector {
            kind: MessageKind::Activity,
            types: EntityTypes::One(name.into()),
            scope: None,
            old_values: true,
        };
        let channel = |registry: &mut Channels, name: &str| {
            let channel = Arc::new(Channel::new(head, memory.clone()));
            registry.channels.insert(stream(name), Arc::downgrade(&channel));
            channel
        };
        let (quiet, busy) = (channel(&mut registry, "quiet"), channel(&mut registry, "busy"));
        for place in 1..=30 {
            let to = if place <= 4 { &quiet } else { &busy };
            to.publish(&[batch(place)], false);
            registry.held.push_back((Arc::downgrade(to), seq(place)));
            registry.drop_oldest(&memory);
            assert!(memory.used.load(Ordering::Relaxed) <= memory.most);
        }
        // The quiet channel has given up all of it; the busy one's readers have the newest.
        assert!(matches!(quiet.after(seq(1)), ChannelRead::Behind));
        assert!(matches!(busy.after(seq(27)), ChannelRead::Next { .. }));
        drop((quiet, busy));
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
    }
}
