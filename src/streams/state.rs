//! The state of a stream as its writers hold it, for any database: what its row says, and what an append changes. No
//! I/O: the database loads the state, applies appends to it, and saves it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use bourn_protocol::stored::{Lifetime, Payload};
use bourn_protocol::{Seq, StreamOffset, StreamPath};
use bytes::BytesMut;

use super::rules::{ProducerState, StreamConfiguration, StreamHead, Verdict, after, judge, offset};
use super::{AppendError, AppendStream, Appended, Segment, StreamChange, StreamInfo};

/// Maximum size in bytes of the appends that the change of one stream carries.
const FRESH_MOST_BYTES: usize = 16 << 10;
/// Maximum size in bytes of the appends that the changes of one commit carry, which are kept for the slowest listener.
pub const FRESH_ROOM_BYTES: usize = 64 << 10;

/// The state of a stream as a writer holds it.
#[derive(Debug, Clone)]
pub struct StreamState {
    /// Its number.
    pub id: u64,
    /// Its path.
    pub path: StreamPath,
    /// It is deleted, and kept for its forks.
    pub deleted: bool,
    /// What appends are judged by.
    pub head: StreamHead,
    /// The stretches of bytes that it is made of.
    pub lineage: Arc<[Segment]>,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// When it expires, as it is saved.
    pub deadline: Option<i64>,
    /// What it was forked from, as far as a repeated request needs it.
    pub source: Option<StreamPath>,
    /// The place of the fork, as the request gave it.
    pub fork_offset: Option<StreamOffset>,
    /// How far past that place, as the request gave it.
    pub fork_sub: u64,
    /// The producers that were looked up so far; `None` for one that has not appended to the stream.
    pub producers: HashMap<String, Option<ProducerState>>,
    /// It has changed since it was saved.
    pub dirty: bool,
    /// What was appended since its last change was reported, unless it was much.
    pub fresh: Vec<Payload>,
}

/// What the database must do for an accepted append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedAppend {
    /// The answer.
    pub appended: Appended,
    /// Where its bytes go, if it has any.
    pub start: Option<Seq>,
    /// The producer's state has changed.
    pub producer: bool,
}

impl StreamState {
    /// Moves its tail.
    pub fn move_tail(&mut self, to: Seq) {
        self.head.tail = offset(&self.lineage, to);
    }

    /// Whether it has expired.
    #[must_use]
    pub fn expired(&self, now: i64) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Notes that it was used, which extends its lifetime.
    pub fn used(&mut self, now: i64) {
        if matches!(self.lifetime, Lifetime::Idle(_)) {
            // For the sake of readers, a later deadline than needed may have been saved.
            self.deadline = self.deadline.max(self.lifetime.deadline(now));
        }
        self.dirty = true;
    }

    /// Judges an append to a stream that has not expired and applies it in memory. What is known of its producer must
    /// be in [`StreamState::producers`].
    ///
    /// # Errors
    /// With the reason to refuse it; nothing has changed then.
    pub fn append(
        &mut self,
        append: &AppendStream,
        now: i64,
        most_bytes: u64,
    ) -> Result<AcceptedAppend, AppendError> {
        let known = append.producer.as_ref().and_then(|producer| self.producers.get(&producer.id));
        let new_producer = match judge(&self.head, append, known.copied().flatten(), most_bytes)? {
            Verdict::Take { new_producer } => new_producer,
            Verdict::Done(appended) => {
                if matches!(self.lifetime, Lifetime::Idle(_)) {
                    self.used(now);
                }
                return Ok(AcceptedAppend { appended, start: None, producer: false });
            }
        };
        let begin = self.head.tail.position;
        let start = (append.payload.messages > 0).then_some(begin);
        if start.is_some() {
            let end = after(begin, append.payload.data.len()).ok_or(AppendError::TooLarge(most_bytes))?;
            self.move_tail(end);
            self.note(&append.payload);
        }
        if let Some(producer) = &append.producer {
            let state = ProducerState { epoch: producer.epoch, seq: producer.seq };
            self.producers.insert(producer.id.clone(), Some(state));
            self.head.producers += u32::from(new_producer);
        }
        if append.seq.is_some() {
            self.head.writer_seq.clone_from(&append.seq);
        }
        if append.close {
            self.head.closed = true;
            self.head.closed_by.clone_from(&append.producer);
        }
        self.used(now);
        let appended = Appended {
            tail: self.head.tail,
            closed: self.head.closed,
            duplicate: false,
            producer_seq: append.producer.as_ref().map(|producer| producer.seq),
        };
        Ok(AcceptedAppend { appended, start, producer: append.producer.is_some() })
    }

    /// What readers see of it, used at this moment.
    #[must_use]
    pub fn info(&self, now: i64) -> Arc<StreamInfo> {
        let saved = self.deadline.unwrap_or(i64::MAX);
        // The saved deadline may be later than needed.
        self.with_deadline(match self.lifetime {
            Lifetime::Idle(_) => self.lifetime.deadline(now).unwrap_or(saved),
            _ => saved,
        })
    }

    /// What readers see of it, as it was found at this moment.
    #[must_use]
    pub fn found(&self, now: i64) -> Arc<StreamInfo> {
        let saved = self.deadline.unwrap_or(i64::MAX);
        self.with_deadline(match self.lifetime {
            Lifetime::Idle(_) => self.lifetime.deadline(now).unwrap_or(saved).min(saved),
            _ => saved,
        })
    }

    fn with_deadline(&self, exact: i64) -> Arc<StreamInfo> {
        Arc::new(StreamInfo {
            id: self.id,
            path: self.path.clone(),
            content_type: self.head.content_type.clone(),
            lineage: self.lineage.clone(),
            tail: self.head.tail.position,
            closed: self.head.closed,
            lifetime: self.lifetime,
            deadline: AtomicI64::new(exact),
            saved_deadline: AtomicI64::new(self.deadline.unwrap_or(i64::MAX)),
        })
    }

    fn note(&mut self, payload: &Payload) {
        if Payload::bytes_of(&self.fresh) + payload.data.len() > FRESH_MOST_BYTES {
            self.fresh.clear();
        } else {
            self.fresh.push(payload.clone());
        }
    }

    /// Its change as reported after a commit; with what was appended, as long as there is room.
    #[must_use]
    pub fn moved(&mut self, room: &mut usize) -> StreamChange {
        let (tail, closed) = (self.head.tail.position, self.head.closed);
        let fresh = std::mem::take(&mut self.fresh);
        let fresh = match room.checked_sub(Payload::bytes_of(&fresh)) {
            Some(left) => {
                *room = left;
                compact(&fresh)
            }
            None => Arc::default(),
        };
        StreamChange::Moved { id: self.id, path: self.path.clone(), tail, closed, fresh }
    }

    /// What it was created as.
    #[must_use]
    pub fn configuration(&self) -> StreamConfiguration {
        StreamConfiguration {
            content_type: self.head.content_type.clone(),
            lifetime: self.lifetime,
            closed: self.head.closed,
            source: self.source.clone(),
            fork_offset: self.fork_offset,
            fork_sub: self.fork_sub,
        }
    }
}

/// The appends in memory of their own: what arrived may be a part of something much larger.
fn compact(fresh: &[Payload]) -> Arc<[Payload]> {
    let mut bytes = BytesMut::with_capacity(Payload::bytes_of(fresh));
    let copies = fresh.iter().map(|payload| {
        bytes.extend_from_slice(&payload.data);
        Payload { data: bytes.split().freeze(), messages: payload.messages }
    });
    copies.collect()
}
