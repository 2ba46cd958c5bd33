//! Creating streams: anew, or as forks of others.

use std::collections::HashMap;
use std::sync::Arc;

use bourn_protocol::limits::FORK_DEPTH_MAX;
use bourn_protocol::stored::{Lifetime, Payload};
use bourn_protocol::{ContentType, Seq, StreamOffset, StreamPath};
use rusqlite::{Connection, params};

use super::collect;
use super::heads::Entry;
use super::reading::{after, append_at};
use super::writer::{Outcome, StreamWriter, insert};
use crate::storage::streams::rules::{Head, fork_lineage, matches, offset};
use crate::storage::streams::{CreateError, CreateStream, Created, Fork, Segment};

/// What a new stream begins with.
struct Beginning {
    content_type: ContentType,
    lifetime: Lifetime,
    lineage: Arc<[Segment]>,
    base: Seq,
    source_id: Option<u64>,
    /// The part of the source's next append that the fork goes on to.
    prefix: Payload,
}

impl StreamWriter {
    /// Creates a stream, or finds it there as asked.
    pub(super) fn create(
        &mut self,
        transaction: &Connection,
        create: &CreateStream,
        now: i64,
        outcome: &mut Outcome,
    ) -> rusqlite::Result<Result<Created, CreateError>> {
        let there = match self.entry(transaction, &create.path)? {
            None => None,
            Some(entry) if entry.deleted => return Ok(Err(CreateError::Blocked)),
            Some(entry) => Some((entry.expired(now), entry.configuration(), entry.info(now))),
        };
        match there {
            Some((false, configuration, stream)) => {
                return Ok(matches(&configuration, create).map(|()| Created { stream, new: false }));
            }
            Some((true, ..)) if !collect::remove(self, transaction, &create.path, outcome)? => {
                return Ok(Err(CreateError::Blocked));
            }
            Some(_) => {}
            None => {}
        }
        let total: i64 = transaction
            .prepare_cached("SELECT streams FROM bourn_stream_totals")?
            .query_row([], |row| row.get(0))?;
        if total >= self.most_streams {
            return Ok(Err(CreateError::TooMany));
        }
        let beginning = match &create.fork {
            None => Beginning {
                content_type: create.content_type.clone().unwrap_or_else(ContentType::octets),
                lifetime: create.lifetime,
                lineage: Arc::new([]),
                base: Seq::ZERO,
                source_id: None,
                prefix: Payload::default(),
            },
            Some(fork) => match self.leave(transaction, create, fork, now)? {
                Ok(beginning) => beginning,
                Err(refused) => return Ok(Err(refused)),
            },
        };
        let body = match Payload::take(beginning.content_type.form(), create.body.clone()) {
            Ok(body) => body,
            Err(refused) => return Ok(Err(refused.into())),
        };
        let middle = after(beginning.base, beginning.prefix.data.len());
        let tail = middle.and_then(|middle| after(middle, body.data.len()));
        let (Some(middle), Some(tail)) = (middle, tail.filter(|tail| tail.get() <= self.most_bytes)) else {
            return Ok(Err(CreateError::TooLarge(self.most_bytes)));
        };
        let entry = begin(transaction, create, beginning, tail, now)?;
        let base = entry.1;
        for (start, part) in [(base, &entry.2), (middle, &body)] {
            if part.messages > 0 {
                insert(transaction, entry.0.id, start.as_i64(), part.messages, &part.data)?;
            }
        }
        transaction.prepare_cached("UPDATE bourn_stream_totals SET streams = streams + 1")?.execute([])?;
        let stream = entry.0.info(now);
        self.heads.insert(create.path.clone(), entry.0);
        outcome.used.push(create.path.clone());
        Ok(Ok(Created { stream, new: true }))
    }

    /// Where a fork leaves its source.
    fn leave(
        &mut self,
        transaction: &Connection,
        create: &CreateStream,
        fork: &Fork,
        now: i64,
    ) -> rusqlite::Result<Result<Beginning, CreateError>> {
        const NOT_THERE: CreateError = CreateError::ForkOffset(
            "Stream-Fork-Offset must be a Stream-Next-Offset of the source, not past its tail",
        );
        const TOO_FAR: CreateError = CreateError::ForkOffset(
            "Stream-Fork-Sub-Offset reaches past the end of the append that follows the fork's offset",
        );
        let source = match self.entry(transaction, &fork.source)? {
            None => return Ok(Err(CreateError::SourceMissing)),
            Some(source) if source.deleted => return Ok(Err(CreateError::SourceGone)),
            Some(source) if source.expired(now) => return Ok(Err(CreateError::SourceMissing)),
            Some(source) => source,
        };
        let has = &source.head.content_type;
        if create.content_type.as_ref().is_some_and(|wanted| wanted != has) {
            return Ok(Err(CreateError::ContentType(has.to_string())));
        }
        if source.lineage.len() > FORK_DEPTH_MAX {
            return Ok(Err(CreateError::TooDeep));
        }
        let tail = source.head.tail;
        let at = fork.offset.unwrap_or(tail);
        if at.position > tail.position || offset(&source.lineage, at.position) != at {
            return Ok(Err(NOT_THERE));
        }
        let next = append_at(transaction, &source.lineage, at.position)?;
        if next.is_none() && at.position != tail.position {
            return Ok(Err(NOT_THERE));
        }
        let prefix = match (fork.sub, next) {
            (0, _) => Payload::default(),
            (_, None) => return Ok(Err(TOO_FAR)),
            (sub, Some(next)) => match Payload::prefix(has.form(), &next.data, sub) {
                None => return Ok(Err(TOO_FAR)),
                Some(prefix) => prefix,
            },
        };
        let lifetime = match create.lifetime {
            Lifetime::Endless => source.lifetime,
            own => own,
        };
        Ok(Ok(Beginning {
            content_type: create.content_type.clone().unwrap_or_else(|| has.clone()),
            lifetime,
            lineage: source.lineage.clone(),
            base: at.position,
            source_id: Some(source.id),
            prefix,
        }))
    }
}

/// Makes the stream's row; gives the stream with its base and what it inherits in part.
fn begin(
    transaction: &Connection,
    create: &CreateStream,
    beginning: Beginning,
    tail: Seq,
    now: i64,
) -> rusqlite::Result<(Entry, Seq, Payload)> {
    let Beginning { content_type, lifetime, lineage, base, source_id, prefix } = beginning;
    let (ttl, expires_at) = match lifetime {
        Lifetime::Endless => (None, None),
        Lifetime::Idle(secs) => (Some(secs.cast_signed()), None),
        Lifetime::Until(time) => (None, Some(time)),
    };
    let fork = create.fork.as_ref();
    let fork_offset = fork.map(|_| offset(&lineage, base));
    let deadline = lifetime.deadline(now);
    transaction
        .prepare_cached(
            "INSERT INTO bourn_streams (path, content_type, tail, closed, ttl, expires_at, deadline, source_id, \
             source_path, base, fork_offset, fork_sub) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            create.path.as_str(),
            content_type.as_str(),
            tail.as_i64(),
            create.closed,
            ttl,
            expires_at,
            deadline,
            source_id.map(u64::cast_signed),
            fork.map(|fork| fork.source.as_str()),
            base.as_i64(),
            fork_offset.map(|offset| offset.to_string()),
            fork.map_or(0, |fork| fork.sub).cast_signed(),
        ])?;
    let id = transaction.last_insert_rowid().cast_unsigned();
    let head = Head {
        content_type,
        tail: StreamOffset::START,
        closed: create.closed,
        closed_by: None,
        writer_seq: None,
        producers: 0,
    };
    let source: Option<StreamPath> = fork.map(|fork| fork.source.clone());
    let mut entry = Entry {
        id,
        path: create.path.clone(),
        deleted: false,
        head,
        lineage: fork_lineage(&lineage, base, id),
        lifetime,
        deadline,
        source,
        fork_offset,
        fork_sub: fork.map_or(0, |fork| fork.sub),
        producers: HashMap::new(),
        dirty: true,
    };
    entry.move_tail(tail);
    Ok((entry, base, prefix))
}
