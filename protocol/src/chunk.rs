//! Where catch-up reads are cut. A chunk is what one GET returns; where it ends depends on the log and the
//! start offset alone, so that every server gives the same bytes and caches are shared.
//!
//! The rule: the window is the longest run of messages within [`ChunkLimits`]. If the log ends inside it, the
//! chunk is *unsealed*: it reaches the tail and may grow. Otherwise it is *sealed*, and cut at the end of a
//! transaction in the window's second half, at the seq with the most trailing zero bits: readers that start at
//! different offsets fall onto the same cuts after one read. A transaction larger than the window is
//! delivered whole up to the hard cap; past that it is cut inside, and no message before the cut is its last.

use crate::activity::{ActivityRef, Wording};
use crate::offset::{Epoch, Seq};

/// The limits of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Most messages in the window.
    pub messages: usize,
    /// Maximum size of the window in bytes, separators included.
    pub bytes: usize,
    /// Maximum size in bytes of one transaction before it is cut inside.
    pub transaction_bytes: usize,
}

/// Whether a chunk wants more messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// It takes the next message of the stream.
    More,
    /// The cut is known; later messages change nothing.
    Done,
}

/// A finished chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// A JSON array of messages.
    pub body: Vec<u8>,
    /// How many messages it holds.
    pub messages: usize,
    /// The place after its last message, or the start if it is empty.
    pub next: Seq,
    /// It does not reach the tail: what lies between its two offsets is final.
    pub sealed: bool,
}

struct MessageEnd {
    seq: Seq,
    commit_id: i64,
    /// Length of the body up to and with this message.
    end: usize,
}

/// Takes a stream's messages in order and cuts the chunk.
pub struct ChunkBuilder {
    wording: Wording,
    epoch: Epoch,
    start: Seq,
    limits: ChunkLimits,
    body: Vec<u8>,
    marks: Vec<MessageEnd>,
    cut: Option<usize>,
    /// The window is full with one unfinished transaction; waiting for its end.
    overflowing: bool,
}

impl ChunkBuilder {
    /// Begins the chunk that follows `start`.
    #[must_use]
    pub fn new(wording: Wording, epoch: Epoch, start: Seq, limits: ChunkLimits) -> ChunkBuilder {
        ChunkBuilder {
            wording,
            epoch,
            start,
            limits,
            body: vec![b'['],
            marks: Vec::new(),
            cut: None,
            overflowing: false,
        }
    }

    /// The last place taken so far: where the next read of the log continues.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.marks.last().map_or(self.start, |mark| mark.seq)
    }

    /// Takes the next message of the stream.
    pub fn push(&mut self, activity: &ActivityRef<'_>) -> Feed {
        if self.cut.is_some() {
            return Feed::Done;
        }
        let before = self.body.len();
        if !self.marks.is_empty() {
            self.body.push(b',');
        }
        activity.encode(self.wording, self.epoch, &mut self.body);
        if let Some(cut) = self.decide(activity.commit_id) {
            self.body.truncate(before);
            self.cut = Some(cut);
            return Feed::Done;
        }
        self.marks.push(MessageEnd {
            seq: activity.seq,
            commit_id: activity.commit_id,
            end: self.body.len(),
        });
        Feed::More
    }

    /// Called with one message more encoded but not yet marked; returns where to cut, if the cut is known.
    fn decide(&mut self, next_commit: i64) -> Option<usize> {
        let last = self.marks.last()?;
        if self.overflowing {
            let ended = last.commit_id != next_commit;
            let too_large = self.body.len() > self.limits.transaction_bytes;
            return (ended || too_large).then_some(self.marks.len());
        }
        if self.marks.len() < self.limits.messages && self.body.len() <= self.limits.bytes {
            return None;
        }
        let cut = self.best_cut(next_commit);
        self.overflowing = cut.is_none();
        if self.overflowing && self.body.len() > self.limits.transaction_bytes {
            return Some(self.marks.len());
        }
        cut
    }

    /// The number of messages before the best cut, if any transaction ends in the window.
    fn best_cut(&self, next_commit: i64) -> Option<usize> {
        let ends = |i: usize| {
            self.marks.get(i).map_or(next_commit, |mark| mark.commit_id) != self.marks[i - 1].commit_id
        };
        let count = self.marks.len();
        let half = count.div_ceil(2);
        (half..=count)
            .filter(|&i| ends(i))
            .max_by_key(|&i| (self.marks[i - 1].seq.alignment(), i))
            .or_else(|| (1..half).rev().find(|&i| ends(i)))
    }

    /// Ends the chunk where it was cut, or where the log ended.
    #[must_use]
    pub fn finish(mut self) -> Chunk {
        let sealed = self.cut.is_some();
        self.marks.truncate(self.cut.unwrap_or(self.marks.len()));
        self.body.truncate(self.marks.last().map_or(1, |mark| mark.end));
        self.body.push(b']');
        Chunk { messages: self.marks.len(), next: self.position(), sealed, body: self.body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::{Action, Last, MessageKind};
    use proptest::prelude::*;

    const LIMITS: ChunkLimits = ChunkLimits { messages: 10, bytes: 4_000, transaction_bytes: 9_000 };

    fn activity(seq: u64, commit_id: i64, value: &str) -> ActivityRef<'_> {
        ActivityRef {
            seq: Seq::new(seq).unwrap(),
            action: Action::Create,
            entity_type: "page",
            entity_id: "p1",
            organization_id: None,
            transaction_id: None,
            client_id: None,
            changed_keys: None,
            value: Some(value),
            previous_values: None,
            commit_id,
            last: Last::default(),
            created_at: "2026-01-15T10:30:00.123Z",
            subject: None,
        }
    }

    /// The chunk after `start` of a log given as the commit of each seq, from 1.
    fn chunk(log: &[i64], start: u64, value: &str, limits: ChunkLimits) -> Chunk {
        let start = Seq::new(start).unwrap();
        let mut builder = ChunkBuilder::new(
            Wording { kind: MessageKind::Change, scoped: false, old_values: true },
            "k3f9".parse().unwrap(),
            start,
            limits,
        );
        for (seq, &commit) in (1..).zip(log) {
            if seq > start.get() && builder.push(&activity(seq, commit, value)) == Feed::Done {
                break;
            }
        }
        builder.finish()
    }

    #[test]
    fn a_log_that_ends_inside_the_window_is_unsealed() {
        let chunk = chunk(&[1, 2, 3], 0, "{}", LIMITS);
        assert_eq!((chunk.messages, chunk.next.get(), chunk.sealed), (3, 3, false));
        assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&chunk.body).unwrap().len() == 3);
    }

    #[test]
    fn an_empty_chunk_stays_where_it_started() {
        let chunk = chunk(&[1, 2], 2, "{}", LIMITS);
        assert_eq!((chunk.body.as_slice(), chunk.next.get(), chunk.sealed), (&b"[]"[..], 2, false));
    }

    #[test]
    fn the_cut_falls_on_the_roundest_seq_of_the_second_half() {
        let log: Vec<i64> = (1..=100).collect();
        assert_eq!(chunk(&log, 0, "{}", LIMITS).next.get(), 8);
        assert_eq!(chunk(&log, 3, "{}", LIMITS).next.get(), 8);
        assert_eq!(chunk(&log, 8, "{}", LIMITS).next.get(), 16);
        assert_eq!(chunk(&log, 13, "{}", LIMITS).next.get(), 20);
    }

    #[test]
    fn a_transaction_is_not_split_below_the_hard_cap() {
        let log = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 14];
        let whole = chunk(&log, 0, "{}", LIMITS);
        assert_eq!((whole.messages, whole.sealed), (13, true));
        let value = format!("\"{}\"", "x".repeat(1_000));
        let cut = chunk(&log, 0, &value, LIMITS);
        assert!(cut.sealed && cut.messages > 1 && cut.messages < 13, "cut after {}", cut.messages);
        assert!(cut.body.len() <= LIMITS.transaction_bytes);
    }

    proptest! {
        /// Cuts depend on the log and the start alone: a longer log moves no sealed cut, chunks tile the log
        /// without gap or overlap, and no transaction is split.
        #[test]
        fn sealed_chunks_are_final_and_tile_the_log(sizes in prop::collection::vec(1_usize..6, 1..60), extra in 0_usize..40) {
            let commits = |sizes: &[usize]| -> Vec<i64> {
                (1_i64..).zip(sizes).flat_map(|(commit, &size)| std::iter::repeat_n(commit, size)).collect()
            };
            let log = commits(&sizes);
            let longer = commits(&sizes.iter().copied().chain(std::iter::repeat_n(1, extra)).collect::<Vec<_>>());
            let mut at = 0;
            loop {
                let here = chunk(&log, at, "{}", LIMITS);
                let later = chunk(&longer, at, "{}", LIMITS);
                if !here.sealed {
                    prop_assert_eq!(here.next.get(), u64::try_from(log.len()).unwrap());
                    break;
                }
                prop_assert_eq!(&here, &later);
                prop_assert!(here.messages >= 1 && here.messages <= LIMITS.messages);
                let end = usize::try_from(here.next.get()).unwrap();
                prop_assert!(log[end - 1] != log[end], "a transaction was split");
                at = here.next.get();
            }
        }
    }
}
