//! One followed stream's part of the tail: its newest batches, and a bell for its waiting readers.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bourn_protocol::{Epoch, Seq};
use tokio::sync::watch;

use super::Memory;
use crate::head::Head;
use crate::reading::LiveBatch;

/// What a channel has for a reader.
#[derive(Debug)]
pub enum ChannelRead {
    /// What follows the reader's place.
    Next {
        /// The next batch.
        batch: Arc<LiveBatch>,
        /// The tail has nothing more of the stream, and has reached the log's end as it knows it.
        last: bool,
    },
    /// Nothing: the reader has all that the tail has.
    CaughtUp {
        /// The tail has not reached the log's end as it knows it.
        more: bool,
    },
    /// Nothing will follow: the log was replaced by another one.
    Gone,
    /// The reader's place is not in memory: it must read the log.
    Behind,
}

/// The newest batches of one stream.
#[derive(Debug)]
pub struct Channel {
    epoch: Epoch,
    ring: Mutex<BatchRing>,
    bell: watch::Sender<Seq>,
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct BatchRing {
    /// The log was replaced by another one.
    gone: bool,
    /// The ring holds all that the stream gained after this place.
    base: Seq,
    batches: VecDeque<Arc<LiveBatch>>,
    bytes: usize,
    /// When the stream last gained something, the tail knew that the log goes on: more of the stream may follow.
    more: bool,
}

impl Channel {
    pub(super) fn new(base: Head, memory: Arc<Memory>) -> Channel {
        let Head { epoch, seq: base } = base;
        let ring =
            Mutex::new(BatchRing { gone: false, base, batches: VecDeque::new(), bytes: 0, more: false });
        Channel { epoch, ring, bell: watch::Sender::new(base), memory }
    }

    /// The log that the stream is a part of.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What follows a place.
    #[must_use]
    pub fn after(&self, place: Seq) -> ChannelRead {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.gone {
            return ChannelRead::Gone;
        }
        if place < ring.base {
            return ChannelRead::Behind;
        }
        let index = ring.batches.partition_point(|batch| batch.next <= place);
        match ring.batches.get(index) {
            None => ChannelRead::CaughtUp { more: ring.more },
            Some(batch) if batch.first > place => {
                let last = index + 1 == ring.batches.len() && !ring.more;
                ChannelRead::Next { batch: batch.clone(), last }
            }
            // The reader was further in the log than the tail: it already has a part of this batch.
            Some(_) => ChannelRead::Behind,
        }
    }

    /// Rings whenever the stream has gained something.
    #[must_use]
    pub fn bell(&self) -> watch::Receiver<Seq> {
        self.bell.subscribe()
    }

    /// Takes what the stream has gained; `more`: the log is known to go on.
    pub(super) fn publish(&self, batches: &[Arc<LiveBatch>], more: bool) {
        let Some(newest) = batches.last() else { return };
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            for batch in batches {
                ring.bytes += batch.cost();
                self.memory.used.fetch_add(batch.cost(), Ordering::Relaxed);
                ring.batches.push_back(batch.clone());
            }
            ring.more = more;
        }
        self.bell.send_replace(newest.next);
    }

    /// The tail has reached the log's end as it knows it: rings for the readers that were left in doubt.
    pub(super) fn settle(&self) {
        let in_doubt = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut ring.more)
        };
        if in_doubt {
            self.bell.send_modify(|_| {});
        }
    }

    /// Drops what is held up to a place: readers find it in the log.
    pub(super) fn drop_to(&self, place: Seq) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = ring.batches.pop_front_if(|oldest| oldest.next <= place) {
            ring.base = oldest.next;
            ring.bytes -= oldest.cost();
            self.memory.used.fetch_sub(oldest.cost(), Ordering::Relaxed);
        }
    }

    /// Gives up what is held: readers find what lies before `place` in the log.
    pub(super) fn skip_to(&self, place: Seq) {
        self.clear(place, false);
    }

    /// Ends it: the log was replaced by another one.
    pub(super) fn end(&self) {
        self.clear(Seq::ZERO, true);
    }

    fn clear(&self, base: Seq, gone: bool) {
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            self.memory.used.fetch_sub(ring.bytes, Ordering::Relaxed);
            *ring = BatchRing { gone, base, batches: VecDeque::new(), bytes: 0, more: false };
        }
        self.bell.send_replace(base);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let bytes = self.ring.get_mut().unwrap_or_else(PoisonError::into_inner).bytes;
        self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::atomic::AtomicUsize;

    fn batch(first: u64, next: u64) -> Arc<LiveBatch> {
        let seq = |n| Seq::new(n).unwrap();
        Arc::new(LiveBatch::new(seq(first), seq(next), 1, Bytes::from_static(b"[{}]")))
    }

    fn channel() -> Channel {
        let base = Head { epoch: Epoch::draw(), seq: Seq::new(10).unwrap() };
        Channel::new(base, Arc::new(Memory { used: AtomicUsize::new(0), most: 1 << 20 }))
    }

    fn is_last(channel: &Channel, place: u64) -> bool {
        match channel.after(Seq::new(place).unwrap()) {
            ChannelRead::Next { last, .. } => last,
            ChannelRead::CaughtUp { more } => !more,
            ChannelRead::Gone | ChannelRead::Behind => panic!("nothing is here"),
        }
    }

    #[test]
    fn only_the_last_batch_is_said_to_be_the_last() {
        let channel = channel();
        channel.publish(&[batch(11, 11), batch(12, 12)], false);
        assert!(!is_last(&channel, 10) && is_last(&channel, 11) && is_last(&channel, 12));
        channel.publish(&[batch(13, 13)], true);
        let bell = channel.bell();
        assert!(!is_last(&channel, 12) && !is_last(&channel, 13), "the log is known to go on");
        channel.settle();
        assert!(bell.has_changed().unwrap() && is_last(&channel, 12) && is_last(&channel, 13));
    }

    fn found(channel: &Channel, place: u64) -> String {
        match channel.after(Seq::new(place).unwrap()) {
            ChannelRead::Next { batch, .. } => batch.next.to_string(),
            ChannelRead::CaughtUp { .. } => "caught up".into(),
            ChannelRead::Gone => "gone".into(),
            ChannelRead::Behind => "behind".into(),
        }
    }

    #[test]
    fn a_reader_is_given_what_follows_its_place() {
        let channel = channel();
        assert_eq!(found(&channel, 10), "caught up");
        channel.publish(&[batch(12, 14), batch(15, 15)], false);
        assert_eq!(found(&channel, 9), "behind");
        assert_eq!(found(&channel, 10), "14");
        assert_eq!(found(&channel, 11), "14");
        assert_eq!(found(&channel, 14), "15");
        assert_eq!(found(&channel, 15), "caught up");
        assert_eq!(found(&channel, 13), "behind", "half a batch is read from the log");
    }

    #[test]
    fn a_channel_of_a_replaced_log_gives_nothing_more() {
        let channel = channel();
        channel.publish(&[batch(11, 12)], false);
        channel.end();
        assert_eq!(found(&channel, 10), "gone");
        assert_eq!(channel.memory.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_dropped_is_read_from_the_log_and_memory_is_given_back() {
        let channel = channel();
        for seq in 11..20 {
            channel.publish(&[batch(seq, seq)], false);
        }
        channel.drop_to(Seq::new(17).unwrap());
        assert_eq!(found(&channel, 16), "behind");
        assert_eq!(found(&channel, 17), "18");
        let memory = channel.memory.clone();
        drop(channel);
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
    }
}
