//! Bells for stored streams: each stream with live readers has one, which says how far the stream reaches. The changes
//! that the storage reports after its commits ring the bells of their streams, and carry small appends along; a change
//! of unknown streams rings all bells, so that every reader looks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bourn_protocol::Seq;
use bourn_protocol::stored::Payload;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{StreamChange, StreamInfo};

/// Number of bells up to which unused ones are not looked for.
const PRUNE_LEAST: usize = 64;
/// Maximum size in bytes of the fresh appends that all bells hold together.
const FRESH_MOST: usize = 8 << 20;

/// What a bell says of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BellState {
    /// How far the stream reaches, at least.
    pub tail: Seq,
    /// It is closed.
    pub closed: bool,
    /// It was deleted.
    pub gone: bool,
    /// Counts how often another server may have written: a reader that sees a new count looks again.
    pub doubts: u64,
    /// The last appends, up to the tail.
    pub fresh: Arc<[Payload]>,
}

impl BellState {
    /// The appends from a place up to the tail, if the bell has them.
    #[must_use]
    pub fn since(&self, position: Seq) -> Option<&[Payload]> {
        let bytes = Payload::bytes_of(&self.fresh);
        let begins = self.tail.get().checked_sub(u64::try_from(bytes).ok()?)?;
        (bytes > 0 && begins == position.get()).then_some(&self.fresh)
    }
}

/// The bells of the streams that are followed.
pub struct Bells {
    registry: Mutex<RungBells>,
}

#[derive(Default)]
struct RungBells {
    bells: HashMap<u64, watch::Sender<BellState>, foldhash::fast::RandomState>,
    prune_at: usize,
    /// The bells that hold fresh appends, in the order they got them, with the bytes; a bell may stand here more than
    /// once.
    fresh: VecDeque<(u64, usize)>,
    fresh_bytes: usize,
}

impl RungBells {
    /// Notes that a bell holds so many bytes. Past the limit, the bells that have held theirs for longest drop them:
    /// the database has them, too.
    fn hold(&mut self, id: u64, bytes: usize) {
        // An empty append takes a place in the queue, too.
        let bytes = bytes + size_of::<(u64, usize)>();
        self.fresh.push_back((id, bytes));
        self.fresh_bytes += bytes;
        while self.fresh_bytes > FRESH_MOST {
            let Some((oldest, bytes)) = self.fresh.pop_front() else { return };
            self.fresh_bytes -= bytes;
            // Where the bell has rung since, this drops its newer appends, and the count is corrected when their turn
            // comes.
            if let Some(bell) = self.bells.get(&oldest) {
                bell.send_if_modified(|mark| {
                    mark.fresh = Arc::default();
                    false
                });
            }
        }
    }

    /// Drops the bells that have no listeners.
    fn prune(&mut self) {
        self.bells.retain(|_, bell| bell.receiver_count() > 0);
        self.prune_at = PRUNE_LEAST.max(2 * self.bells.len());
    }
}

impl Default for Bells {
    fn default() -> Bells {
        Bells { registry: Mutex::new(RungBells { prune_at: PRUNE_LEAST, ..RungBells::default() }) }
    }
}

impl Bells {
    fn lock(&self) -> MutexGuard<'_, RungBells> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bell of a stream, created for its first live reader.
    #[must_use]
    pub fn bell(&self, stream: &StreamInfo) -> watch::Receiver<BellState> {
        let mut registry = self.lock();
        if registry.bells.len() >= registry.prune_at {
            registry.prune();
        }
        let (tail, closed) = (stream.tail, stream.closed);
        let mark = || BellState { tail, closed, gone: false, doubts: 0, fresh: Arc::default() };
        registry.bells.entry(stream.id).or_insert_with(|| watch::Sender::new(mark())).subscribe()
    }

    /// Rings the bells for changes until `stop` is cancelled. `changes` was subscribed to before the first reader was
    /// served.
    pub async fn run(&self, mut changes: broadcast::Receiver<Arc<[StreamChange]>>, stop: CancellationToken) {
        loop {
            let changes = tokio::select! {
                changes = changes.recv() => changes,
                () = stop.cancelled() => return,
            };
            match changes {
                Ok(changes) => self.ring(&changes),
                Err(broadcast::error::RecvError::Lagged(_)) => self.ring(&[StreamChange::Unknown]),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn ring(&self, changes: &[StreamChange]) {
        let mut registry = self.lock();
        for change in changes {
            match change {
                StreamChange::Moved { id, tail, closed, fresh, .. } => {
                    let Some(bell) = registry.bells.get(id) else { continue };
                    bell.send_modify(|mark| {
                        if *tail >= mark.tail {
                            mark.tail = *tail;
                            mark.fresh = fresh.clone();
                        }
                        mark.closed |= closed;
                    });
                    registry.hold(*id, Payload::bytes_of(fresh));
                }
                StreamChange::Deleted { id, .. } => {
                    let Some(bell) = registry.bells.get(id) else { continue };
                    bell.send_modify(|mark| mark.gone = true);
                }
                StreamChange::Unknown => {
                    for bell in registry.bells.values() {
                        bell.send_modify(|mark| mark.doubts += 1);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(text: &str) -> Payload {
        Payload { data: text.to_owned().into(), messages: 1 }
    }

    #[test]
    fn a_bell_has_what_was_appended_for_whoever_waits_where_it_begins() {
        let at = |place| Seq::new(place).unwrap();
        let fresh = [payload("one"), payload("three")].into();
        let mark = BellState { tail: at(20), closed: false, gone: false, doubts: 0, fresh };
        assert_eq!(mark.since(at(12)).unwrap(), [payload("one"), payload("three")]);
        assert_eq!(mark.since(at(15)), None, "there, a part of it is known already");
        assert_eq!(mark.since(at(11)), None, "there, something is missing");
        let nothing = BellState { fresh: Arc::default(), ..mark };
        assert_eq!(nothing.since(at(20)), None);
    }

    #[test]
    fn all_bells_together_hold_a_bounded_number_of_bytes() {
        let bells = Bells::default();
        let listeners: Vec<_> = (0..400).map(|id| bells.bell(&stream(id))).collect();
        let large = Payload { data: vec![b'x'; 60_000].into(), messages: 1 };
        for id in 0..400 {
            let (tail, fresh) = (Seq::new(60_000).unwrap(), [large.clone()].into());
            bells.ring(&[StreamChange::Moved { id, path: stream(id).path, tail, closed: false, fresh }]);
        }
        let held: usize = listeners.iter().map(|bell| Payload::bytes_of(&bell.borrow().fresh)).sum();
        assert!(held <= FRESH_MOST && held > FRESH_MOST / 2, "{held}");
        assert!(listeners.iter().all(|bell| bell.has_changed().unwrap()), "each has rung");
        assert!(!listeners[399].borrow().fresh.is_empty() && listeners[0].borrow().fresh.is_empty());
    }

    fn stream(id: u64) -> StreamInfo {
        StreamInfo {
            id,
            path: bourn_protocol::StreamPath::new(&format!("s{id}")).unwrap(),
            content_type: bourn_protocol::ContentType::octets(),
            lineage: Arc::new([]),
            tail: Seq::ZERO,
            closed: false,
            lifetime: bourn_protocol::stored::Lifetime::Endless,
            deadline: i64::MAX.into(),
            saved_deadline: i64::MAX.into(),
        }
    }
}
