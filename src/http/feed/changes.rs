//! Derived streams: what the log says of a table, or all of it, read like any other stream.

use std::sync::Arc;

use bourn_protocol::query::{Query, StreamRead};
use bourn_protocol::{EntityTypes, ErrorCode, MessageKind, ReadFrom, Selector, headers};
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};

use super::{FeedContext, entities};
use crate::access::{Guarded, Permitted, Rights};
use crate::feed::entity::EntityType;
use crate::http::layers::caching::ForEverybody;
use crate::http::respond::{self, Build, Final, JSON};
use crate::http::{ApiError, Reply, ReplyBody, intake, renderers};
use crate::reading::Session;
use crate::storage_error::StorageError;

/// `GET /v1/entities/{table}`: the list, or with an offset the stream, which may be of several tables.
pub(in crate::http) async fn entities<B>(
    feed: &FeedContext,
    rights: &Rights,
    entities: &[Arc<EntityType>],
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    let Some((stream, read)) = stream_of(feed, entities, &query)? else {
        return entities::list(feed, rights, one(entities)?, &query, request).await;
    };
    let stream = rights.read(stream)?;
    let to_the_tail = read.live.is_some() || read.from == ReadFrom::Now;
    if to_the_tail {
        are_complete(entities)?;
    }
    let reply = serve(feed, stream, read, request).await?;
    if reply.headers().contains_key(headers::STREAM_UP_TO_DATE) {
        are_complete(entities)?;
    }
    Ok(reply)
}

/// The table that a list is of.
pub(in crate::http) fn one(entities: &[Arc<EntityType>]) -> Result<&Arc<EntityType>, ApiError> {
    match entities {
        [entity] => Ok(entity),
        _ => {
            let message = "several tables are read as one stream: add `offset`, -1 for all of it; lists and writes are of one table";
            Err(ApiError::new(ErrorCode::InvalidParameter, message))
        }
    }
}

/// Whether the list or the stream that a request asks for may be read.
pub(in crate::http) fn may_read<B>(
    feed: &FeedContext,
    rights: &Rights,
    entities: &[Arc<EntityType>],
    request: &Request<B>,
) -> Result<(), ApiError> {
    let query = intake::query(request)?;
    match stream_of(feed, entities, &query)? {
        Some((stream, _)) => rights.read(stream).map(|_| ())?,
        None => rights.read(entities::list_query(one(entities)?, &query)?).map(|_| ())?,
    }
    Ok(())
}

/// What reaches the tail of a table that is not captured would look complete and not be. History is, whatever the table's
/// state.
fn are_complete(entities: &[Arc<EntityType>]) -> Result<(), ApiError> {
    entities.iter().try_for_each(|entity| entity.complete().map_err(StorageError::Entity))?;
    Ok(())
}

/// `HEAD /v1/entities/{table}`: where the stream's tail is.
pub(in crate::http) async fn entities_head<B>(
    feed: &FeedContext,
    rights: &Rights,
    entities: &[Arc<EntityType>],
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    match stream_of(feed, entities, &query)? {
        Some((stream, read)) => metadata(feed, &rights.read(stream)?, Some(read), request).await,
        None => {
            let entity = one(entities)?;
            let wanted = entities::list_query(entity, &query)?;
            let stream = rights.read(entity.stream(wanted.scope))?;
            entities::schema_of(entity)?;
            metadata(feed, &stream, None, request).await
        }
    }
}

/// The stream that the parameters ask for, and how it is to be read; none where they ask for the list.
fn stream_of(
    feed: &FeedContext,
    entities: &[Arc<EntityType>],
    query: &Query,
) -> Result<Option<(Selector, StreamRead)>, ApiError> {
    let Some(read) = StreamRead::parse(query)? else { return Ok(None) };
    query.only(&["offset", "live", "cursor", "organizationId", "oldValues"])?;
    // They take a right of their own where there are rights, so there they are asked for.
    let old_values = match query.get("oldValues")? {
        None => !feed.access.is_controlled(),
        Some("true") => true,
        Some("false") => false,
        Some(_) => {
            return Err(ApiError::new(ErrorCode::InvalidParameter, "`oldValues` must be true or false"));
        }
    };
    let mut scope = None;
    for entity in entities {
        scope = entities::scope(entity, query)?;
    }
    let types = EntityTypes::of(entities.iter().map(|entity| entity.name.clone()).collect());
    Ok(Some((Selector { kind: MessageKind::Change, types, scope, old_values }, read)))
}

/// A stream's metadata (section 5.5); refused where the read that it stands for would be.
pub(in crate::http) async fn metadata<B>(
    feed: &FeedContext,
    stream: &Permitted<Selector>,
    read: Option<StreamRead>,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    if let Some(read) = read {
        let read = renderers::resumed(read, request)?;
        if matches!(read.from, ReadFrom::At(_)) {
            feed.reader.open(stream.clone(), read.from, false).await?.read().await?;
        }
    }
    let tail = feed.reader.tail(stream).await?;
    let build = Build::new(StatusCode::OK).no_store().next_offset(tail.offset());
    Ok(build.header(CONTENT_TYPE, JSON).body(ReplyBody::empty()))
}

/// Reads a stream in the way the parameters ask for.
pub(in crate::http) async fn serve<B>(
    feed: &FeedContext,
    stream: Permitted<Selector>,
    read: StreamRead,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let read = renderers::resumed(read, request)?;
    if read.live.is_none() && read.from == ReadFrom::Now {
        return tail_only(feed, &stream).await;
    }
    let (selector, time_left) = ((*stream).clone(), stream.time_left());
    let session = feed.reader.open(stream, read.from, read.live.is_some()).await?;
    let mut reply = renderers::session(&feed.render, session, read, time_left, request).await?;
    let everybody = || feed.access.without_token().is_ok_and(|rights| selector.check(rights).is_ok());
    if feed.access.is_controlled() && everybody() {
        reply.extensions_mut().insert(ForEverybody);
    }
    if reply.extensions().get::<Final>().is_some() {
        reply.extensions_mut().insert(respond::SelectorRead(selector));
    }
    Ok(reply)
}

/// `offset=now` without following: nothing, and where the tail is.
async fn tail_only(feed: &FeedContext, stream: &Permitted<Selector>) -> Result<Reply, ApiError> {
    let tail = feed.reader.tail(stream).await?;
    let build = Build::new(StatusCode::OK).no_store().next_offset(tail.offset()).up_to_date();
    Ok(build.json(&b"[]"[..]))
}
