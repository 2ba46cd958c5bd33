//! Derived streams: what the log says of a table, or all of it, read like any other stream.

use std::sync::Arc;

use bourn_protocol::query::{Query, StreamRead};
use bourn_protocol::{ErrorCode, ReadFrom, Selector, headers};
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

/// `GET /v1/entities/{table}`: the list, or with an offset the stream.
pub(in crate::http) async fn entity<B>(
    feed: &FeedContext,
    rights: &Rights,
    entity: &Arc<EntityType>,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    let Some((stream, read)) = stream_of(feed, entity, &query)? else {
        return entities::list(feed, rights, entity, &query, request).await;
    };
    let stream = rights.read(stream)?;
    let to_the_tail = read.live.is_some() || read.from == ReadFrom::Now;
    if to_the_tail {
        is_complete(entity)?;
    }
    let reply = serve(feed, stream, read, request).await?;
    if reply.headers().contains_key(headers::STREAM_UP_TO_DATE) {
        is_complete(entity)?;
    }
    Ok(reply)
}

/// Whether the list or the stream that a request asks for may be read.
pub(in crate::http) fn may_read<B>(
    feed: &FeedContext,
    rights: &Rights,
    entity: &Arc<EntityType>,
    request: &Request<B>,
) -> Result<(), ApiError> {
    let query = intake::query(request)?;
    match stream_of(feed, entity, &query)? {
        Some((stream, _)) => rights.read(stream).map(|_| ())?,
        None => rights.read(entities::list_query(entity, &query)?).map(|_| ())?,
    }
    Ok(())
}

/// What reaches the tail of a table that is not captured would look complete and not be. History is, whatever the table's
/// state.
fn is_complete(entity: &EntityType) -> Result<(), ApiError> {
    entity.complete().map_err(|reason| StorageError::Entity(reason).into())
}

/// `HEAD /v1/entities/{table}`: where the stream's tail is.
pub(in crate::http) async fn entity_head<B>(
    feed: &FeedContext,
    rights: &Rights,
    entity: &Arc<EntityType>,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    match stream_of(feed, entity, &query)? {
        Some((stream, read)) => metadata(feed, &rights.read(stream)?, Some(read), request).await,
        None => {
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
    entity: &EntityType,
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
    Ok(Some((Selector { old_values, ..entity.stream(entities::scope(entity, query)?) }, read)))
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
