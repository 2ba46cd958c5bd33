//! What every database must decide the same way: which stream owns a byte, whether an append is accepted, whether an
//! existing stream is the one that a request asks for. No I/O, so that a transaction can ask while it holds its locks.

use std::sync::Arc;

use bourn_protocol::limits::PRODUCERS_MAX;
use bourn_protocol::stored::Lifetime;
use bourn_protocol::{ContentType, Seq, StreamOffset, StreamPath};

use super::{AppendError, AppendStream, Appended, CreateError, CreateStream, Producer, Segment};

/// The token of a place in a stream of this lineage.
#[must_use]
pub fn offset(lineage: &[Segment], position: Seq) -> StreamOffset {
    let owner = lineage.iter().find(|segment| segment.from < position && position <= segment.to);
    match owner {
        Some(segment) => StreamOffset { position, owner: segment.stream },
        None => StreamOffset::START,
    }
}

/// The lineage of a fork.
#[must_use]
pub fn fork_lineage(source: &[Segment], base: Seq, stream: u64) -> Arc<[Segment]> {
    let inherited = source.iter().filter(|segment| segment.from < base);
    inherited
        .map(|segment| Segment { to: segment.to.min(base), ..*segment })
        .chain([Segment { stream, from: base, to: Seq::MAX }])
        .collect()
}

/// The lineage of a stream whose row is read, with its ancestors' numbers and bases from the nearest to the root.
#[must_use]
pub fn lineage(id: u64, base: Seq, ancestors: impl IntoIterator<Item = (u64, Seq)>) -> Arc<[Segment]> {
    let mut segments = vec![Segment { stream: id, from: base, to: Seq::MAX }];
    let mut end = base;
    for (stream, from) in ancestors {
        if from < end {
            segments.push(Segment { stream, from, to: end });
            end = from;
        }
    }
    segments.reverse();
    segments.into()
}

/// The place so many bytes further.
#[must_use]
pub fn after(position: Seq, bytes: usize) -> Option<Seq> {
    Seq::new(position.get().checked_add(u64::try_from(bytes).ok()?)?)
}

/// A lifetime as the columns `ttl`, in seconds, and `expires_at` have it.
#[must_use]
pub fn lifetime_columns(lifetime: Lifetime) -> (Option<i64>, Option<i64>) {
    match lifetime {
        Lifetime::Endless => (None, None),
        Lifetime::Idle(secs) => (Some(secs.cast_signed()), None),
        Lifetime::Until(time) => (None, Some(time)),
    }
}

/// The lifetime that these columns have; `None` where they make no sense.
#[must_use]
pub fn lifetime(ttl: Option<i64>, expires_at: Option<i64>) -> Option<Lifetime> {
    match (ttl, expires_at) {
        (Some(ttl), _) => u64::try_from(ttl).ok().map(Lifetime::Idle),
        (None, Some(time)) => Some(Lifetime::Until(time)),
        (None, None) => Some(Lifetime::Endless),
    }
}

/// What an append is judged by.
#[derive(Debug, Clone)]
pub struct StreamHead {
    /// The stream's content type.
    pub content_type: ContentType,
    /// The token of its tail.
    pub tail: StreamOffset,
    /// It is closed.
    pub closed: bool,
    /// The append that closed it.
    pub closed_by: Option<Producer>,
    /// The last `Stream-Seq`.
    pub writer_seq: Option<String>,
    /// How many producers it remembers.
    pub producers: u32,
}

/// How far a producer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerState {
    /// Its latest epoch.
    pub epoch: u64,
    /// Its last append of that epoch.
    pub seq: u64,
}

/// What to do with an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Take {
        /// The producer, if there is one, is new to the stream.
        new_producer: bool,
    },
    /// Nothing: it is done already.
    Done(Appended),
}

/// Judges an append (Durable Streams protocol, section 5.2).
///
/// # Errors
/// With the reason to refuse it.
pub fn judge(
    head: &StreamHead,
    append: &AppendStream,
    known: Option<ProducerState>,
    most_bytes: u64,
) -> Result<Verdict, AppendError> {
    let done = |producer_seq| {
        Ok(Verdict::Done(Appended { tail: head.tail, closed: head.closed, duplicate: true, producer_seq }))
    };
    if head.closed {
        return match &append.producer {
            None if append.payload.messages == 0 => done(None),
            Some(producer) if head.closed_by.as_ref() == Some(producer) => done(Some(producer.seq)),
            Some(producer) if known.is_some_and(|known| producer.epoch < known.epoch) => {
                Err(AppendError::StaleEpoch(known.map_or(0, |known| known.epoch)))
            }
            _ => Err(AppendError::Closed(head.tail)),
        };
    }
    if append.content_type.as_ref().is_some_and(|given| *given != head.content_type) {
        return Err(AppendError::ContentType(head.content_type.to_string()));
    }
    if let Some(producer) = &append.producer {
        match known {
            None if producer.seq > 0 => return Err(AppendError::Gap { expected: 0, received: producer.seq }),
            None if head.producers >= PRODUCERS_MAX => return Err(AppendError::TooManyProducers),
            None => {}
            Some(known) if producer.epoch < known.epoch => return Err(AppendError::StaleEpoch(known.epoch)),
            Some(known) if producer.epoch > known.epoch && producer.seq > 0 => {
                return Err(AppendError::EpochSeq);
            }
            Some(known) if producer.epoch > known.epoch => {}
            Some(known) if producer.seq <= known.seq => return done(Some(known.seq)),
            Some(known) if producer.seq > known.seq + 1 => {
                return Err(AppendError::Gap { expected: known.seq + 1, received: producer.seq });
            }
            Some(_) => {}
        }
    }
    if let (Some(seq), Some(last)) = (&append.seq, &head.writer_seq)
        && seq.as_bytes() <= last.as_bytes()
    {
        return Err(AppendError::Sequence);
    }
    let bytes = u64::try_from(append.payload.data.len()).unwrap_or(u64::MAX);
    if head.tail.position.get().saturating_add(bytes) > most_bytes {
        return Err(AppendError::TooLarge(most_bytes));
    }
    Ok(Verdict::Take { new_producer: append.producer.is_some() && known.is_none() })
}

/// What a stream was created as.
#[derive(Debug, Clone)]
pub struct StreamConfiguration {
    /// What it holds.
    pub content_type: ContentType,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// It is closed.
    pub closed: bool,
    /// What it was forked from.
    pub source: Option<StreamPath>,
    /// The place of the fork, as the request gave it.
    pub fork_offset: Option<StreamOffset>,
    /// How far past that place, as the request gave it.
    pub fork_sub: u64,
}

/// Checks that an existing stream is the one that a request asks for (section 5.1).
///
/// # Errors
/// With what differs.
pub fn matches(there: &StreamConfiguration, asked: &CreateStream) -> Result<(), CreateError> {
    let fork = asked.fork.as_ref();
    let inherits = fork.is_some();
    // What the request for a fork leaves out comes from the source.
    let content_type = match &asked.content_type {
        Some(given) => *given == there.content_type,
        None => inherits || there.content_type == ContentType::octets(),
    };
    let lifetime = asked.lifetime == there.lifetime || (inherits && asked.lifetime == Lifetime::Endless);
    let differs = [
        (content_type, "the content type"),
        (lifetime, "the lifetime"),
        (asked.closed == there.closed, "whether it is closed"),
        (fork.map(|fork| &fork.source) == there.source.as_ref(), "what it was forked from"),
        (
            fork.and_then(|fork| fork.offset).is_none_or(|offset| Some(offset) == there.fork_offset),
            "where it was forked",
        ),
        (fork.map_or(0, |fork| fork.sub) == there.fork_sub, "where it was forked"),
    ];
    match differs.into_iter().find(|(same, _)| !same) {
        None => Ok(()),
        Some((_, what)) => Err(CreateError::Exists(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Seq {
        Seq::new(n).unwrap()
    }

    #[test]
    fn a_place_belongs_to_who_appended_the_byte_before_it() {
        let root: Arc<[Segment]> = fork_lineage(&[], Seq::ZERO, 1);
        let fork = fork_lineage(&root, seq(10), 2);
        let again = fork_lineage(&fork, seq(10), 3);
        let inside = fork_lineage(&fork, seq(4), 4);
        let owner = |lineage: &[Segment], n| offset(lineage, seq(n)).owner;
        assert_eq!([0, 1, 10, 11].map(|n| owner(&root, n)), [0, 1, 1, 1]);
        assert_eq!([0, 1, 10, 11].map(|n| owner(&fork, n)), [0, 1, 1, 2]);
        assert_eq!([0, 1, 10, 11].map(|n| owner(&again, n)), [0, 1, 1, 3]);
        assert_eq!([0, 4, 5].map(|n| owner(&inside, n)), [0, 1, 4]);
        let read = [
            (1, &[][..], &root),
            (2, &[(1, 0)], &fork),
            (3, &[(2, 10), (1, 0)], &again),
            (4, &[(2, 10), (1, 0)], &inside),
        ];
        for (id, ancestors, made) in read {
            let base = made.last().unwrap().from;
            let ancestors = ancestors.iter().map(|&(id, from)| (id, seq(from)));
            assert_eq!(lineage(id, base, ancestors), *made, "a lineage reads back as it was made");
        }
    }
}
