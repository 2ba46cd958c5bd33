//! What a new stream begins with: nothing, or the content of the stream it is forked from. The rules are the same for
//! every database, which only answers their queries.

use std::collections::HashMap;
use std::sync::Arc;

use bourn_protocol::limits::FORK_DEPTH_MAX;
use bourn_protocol::stored::{Lifetime, Payload};
use bourn_protocol::{ContentType, Seq, StreamOffset};

use super::rules::{StreamHead, after, fork_lineage, offset};
use super::state::StreamState;
use super::{CreateError, CreateStream, Fork, Segment};

/// What a new stream begins with.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// What it holds.
    pub content_type: ContentType,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// The place where it leaves its source.
    pub base: Seq,
    /// Its source.
    pub source_id: Option<u64>,
    /// The source's lineage.
    lineage: Arc<[Segment]>,
    /// The part of the source's next append that the fork includes.
    prefix: Payload,
}

/// A stream to be created, complete but for its number.
#[derive(Debug, Clone)]
pub struct NewStream {
    /// What it begins with.
    pub beginning: Beginning,
    /// Its first appends and where they begin; a part without messages is no append.
    pub parts: [(Seq, Payload); 2],
    /// How many bytes it has.
    pub tail: Seq,
    /// The place where it leaves its source, as the source gives it.
    pub fork_offset: Option<StreamOffset>,
}

/// Where a fork leaves its source; the database must check whether an append begins there.
///
/// # Errors
/// When it cannot be forked, or not there.
pub fn leaves_at(
    create: &CreateStream,
    fork: &Fork,
    source: Option<&StreamState>,
    now: i64,
) -> Result<StreamOffset, CreateError> {
    let source = match source {
        None => return Err(CreateError::SourceMissing),
        Some(source) if source.deleted => return Err(CreateError::SourceGone),
        Some(source) if source.expired(now) => return Err(CreateError::SourceMissing),
        Some(source) => source,
    };
    let has = &source.head.content_type;
    if create.content_type.as_ref().is_some_and(|wanted| wanted != has) {
        return Err(CreateError::ContentType(has.to_string()));
    }
    if source.lineage.len() > FORK_DEPTH_MAX {
        return Err(CreateError::TooDeep);
    }
    let tail = source.head.tail;
    let at = fork.offset.unwrap_or(tail);
    if at.position > tail.position || offset(&source.lineage, at.position) != at {
        return Err(NOT_THERE);
    }
    Ok(at)
}

const NOT_THERE: CreateError = CreateError::ForkOffset(
    "Stream-Fork-Offset must be a Stream-Next-Offset of the source, not past its tail",
);
const TOO_FAR: CreateError = CreateError::ForkOffset(
    "Stream-Fork-Sub-Offset reaches past the end of the append that follows the fork's offset",
);

impl Beginning {
    /// The beginning of a stream that is no fork.
    #[must_use]
    pub fn without_source(create: &CreateStream) -> Beginning {
        Beginning {
            content_type: create.content_type.clone().unwrap_or_else(ContentType::octets),
            lifetime: create.lifetime,
            base: Seq::ZERO,
            source_id: None,
            lineage: Arc::new([]),
            prefix: Payload::default(),
        }
    }

    /// The beginning of a fork that leaves its source at a place that [`leaves_at`] gave; `next` is the append that
    /// begins there.
    ///
    /// # Errors
    /// When that is no place to leave it.
    pub fn fork(
        create: &CreateStream,
        fork: &Fork,
        source: &StreamState,
        at: StreamOffset,
        next: Option<&Payload>,
    ) -> Result<Beginning, CreateError> {
        if next.is_none() && at.position != source.head.tail.position {
            return Err(NOT_THERE);
        }
        let has = &source.head.content_type;
        let prefix = match (fork.sub, next) {
            (0, _) => Payload::default(),
            (_, None) => return Err(TOO_FAR),
            (sub, Some(next)) => Payload::prefix(has.form(), &next.data, sub).ok_or(TOO_FAR)?,
        };
        let lifetime = match create.lifetime {
            Lifetime::Endless => source.lifetime,
            own => own,
        };
        Ok(Beginning {
            content_type: create.content_type.clone().unwrap_or_else(|| has.clone()),
            lifetime,
            base: at.position,
            source_id: Some(source.id),
            lineage: source.lineage.clone(),
            prefix,
        })
    }

    /// Adds the body of the request.
    ///
    /// # Errors
    /// When the body does not fit.
    pub fn with_body(mut self, create: &CreateStream, most_bytes: u64) -> Result<NewStream, CreateError> {
        let body = Payload::take(self.content_type.form(), create.body.clone())?;
        let prefix = std::mem::take(&mut self.prefix);
        let middle = after(self.base, prefix.data.len());
        let tail = middle.and_then(|middle| after(middle, body.data.len()));
        let (Some(middle), Some(tail)) = (middle, tail.filter(|tail| tail.get() <= most_bytes)) else {
            return Err(CreateError::TooLarge(most_bytes));
        };
        let fork_offset = create.fork.as_ref().map(|_| offset(&self.lineage, self.base));
        Ok(NewStream { parts: [(self.base, prefix), (middle, body)], tail, fork_offset, beginning: self })
    }
}

impl NewStream {
    /// The stream, under the number that the database has given it.
    #[must_use]
    pub fn numbered(&self, create: &CreateStream, id: u64, now: i64) -> StreamState {
        let Beginning { content_type, lifetime, base, lineage, .. } = &self.beginning;
        let head = StreamHead {
            content_type: content_type.clone(),
            tail: StreamOffset::START,
            closed: create.closed,
            closed_by: None,
            writer_seq: None,
            producers: 0,
        };
        let mut stream = StreamState {
            id,
            path: create.path.clone(),
            deleted: false,
            head,
            lineage: fork_lineage(lineage, *base, id),
            lifetime: *lifetime,
            deadline: lifetime.deadline(now),
            source: create.fork.as_ref().map(|fork| fork.source.clone()),
            fork_offset: self.fork_offset,
            fork_sub: create.fork.as_ref().map_or(0, |fork| fork.sub),
            producers: HashMap::new(),
            dirty: true,
            fresh: Vec::new(),
        };
        stream.move_tail(self.tail);
        stream
    }
}
