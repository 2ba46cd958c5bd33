//! Creating streams: new ones, and forks of others.

use rusqlite::{Connection, params};

use super::{Outcome, StreamWriter, collect, insert};
use crate::databases::sqlite::streams::reading::append_at;
use crate::streams::beginning::{Beginning, NewStream, leaves_at};
use crate::streams::rules::{lifetime_columns, matches};
use crate::streams::state::StreamState;
use crate::streams::{CreateError, CreateStream, Created, Fork};

impl StreamWriter {
    /// Creates a stream, or finds it there as asked.
    pub(in super::super) fn create(
        &mut self,
        transaction: &Connection,
        create: &CreateStream,
        now: i64,
        outcome: &mut Outcome,
    ) -> rusqlite::Result<Result<Created, CreateError>> {
        let there = match self.stream_state(transaction, &create.path)? {
            None => None,
            Some(state) if state.deleted => return Ok(Err(CreateError::Blocked)),
            Some(state) => Some((state.expired(now), state.configuration(), state.info(now))),
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
            None => Ok(Beginning::without_source(create)),
            Some(fork) => self.leave(transaction, create, fork, now)?,
        };
        let new_stream = match beginning.and_then(|beginning| beginning.with_body(create, self.most_bytes)) {
            Ok(new_stream) => new_stream,
            Err(refused) => return Ok(Err(refused)),
        };
        let state = begin(transaction, create, &new_stream, now)?;
        for (start, part) in &new_stream.parts {
            if part.messages > 0 {
                insert(transaction, state.id, start.as_i64(), part.messages, &part.data)?;
            }
        }
        transaction.prepare_cached("UPDATE bourn_stream_totals SET streams = streams + 1")?.execute([])?;
        let stream = state.info(now);
        self.heads.insert(create.path.clone(), state);
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
        let source = self.stream_state(transaction, &fork.source)?;
        let at = match leaves_at(create, fork, source.as_deref(), now) {
            Ok(at) => at,
            Err(refused) => return Ok(Err(refused)),
        };
        let Some(source) = source else { return Ok(Err(CreateError::SourceMissing)) };
        let next = append_at(transaction, &source.lineage, at.position)?;
        Ok(Beginning::fork(create, fork, source, at, next.as_ref()))
    }
}

/// Makes the stream's row.
fn begin(
    transaction: &Connection,
    create: &CreateStream,
    new_stream: &NewStream,
    now: i64,
) -> rusqlite::Result<StreamState> {
    let Beginning { content_type, lifetime, base, source_id, .. } = &new_stream.beginning;
    let (ttl, expires_at) = lifetime_columns(*lifetime);
    let fork = create.fork.as_ref();
    transaction
        .prepare_cached(
            "INSERT INTO bourn_streams (path, content_type, tail, closed, ttl, expires_at, deadline, source_id, \
             source_path, base, fork_offset, fork_sub) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            create.path.as_str(),
            content_type.as_str(),
            new_stream.tail.as_i64(),
            create.closed,
            ttl,
            expires_at,
            lifetime.deadline(now),
            source_id.map(u64::cast_signed),
            fork.map(|fork| fork.source.as_str()),
            base.as_i64(),
            new_stream.fork_offset.map(|offset| offset.to_string()),
            fork.map_or(0, |fork| fork.sub).cast_signed(),
        ])?;
    Ok(new_stream.numbered(create, transaction.last_insert_rowid().cast_unsigned(), now))
}
