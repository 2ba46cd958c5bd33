//! `/v1/activities`: the history as queries, and as a stream.

use bourn_protocol::query::{InvalidQuery, Query, StreamRead};
use bourn_protocol::{
    ClientId, EntityKey, EntityTypes, ErrorCode, MessageKind, Offset, Scope, Selector, TransactionId,
    Wording, limits,
};
use http::{Request, StatusCode};

use super::{FeedContext, changes};
use crate::access::{Permitted, Rights};
use crate::feed::ActivityQuery;
use crate::http::respond::Build;
use crate::http::{ApiError, Reply, intake};

/// `GET /v1/activities`: a query, or with an offset the stream.
pub(in crate::http) async fn read<B>(
    feed: &FeedContext,
    rights: &Rights,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    match stream_of(feed, rights, &query)? {
        Some((stream, read)) => changes::serve(feed, rights.read(stream)?, read, request).await,
        None => history(feed, &rights.read(history_query(feed, rights, &query)?)?).await,
    }
}

/// Whether the history or the stream that a request asks for may be read.
pub(in crate::http) fn may_read<B>(
    feed: &FeedContext,
    rights: &Rights,
    request: &Request<B>,
) -> Result<(), ApiError> {
    let query = intake::query(request)?;
    match stream_of(feed, rights, &query)? {
        Some((stream, _)) => rights.read(stream).map(|_| ())?,
        None => rights.read(history_query(feed, rights, &query)?).map(|_| ())?,
    }
    Ok(())
}

/// `HEAD /v1/activities`: where the stream's tail is.
pub(in crate::http) async fn head<B>(
    feed: &FeedContext,
    rights: &Rights,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    match stream_of(feed, rights, &query)? {
        Some((stream, read)) => changes::metadata(feed, &rights.read(stream)?, Some(read), request).await,
        None => {
            history_query(feed, rights, &query)?;
            let stream = rights.read(selector(feed, rights, &query)?)?;
            changes::metadata(feed, &stream, None, request).await
        }
    }
}

/// The stream that the parameters ask for, and how it is to be read; none where they ask for a query.
fn stream_of(
    feed: &FeedContext,
    rights: &Rights,
    query: &Query,
) -> Result<Option<(Selector, StreamRead)>, ApiError> {
    let Some(read) = StreamRead::parse(query)? else { return Ok(None) };
    query.only(&["offset", "live", "cursor", "entityType", "organizationId"])?;
    Ok(Some((selector(feed, rights, query)?, read)))
}

fn selector(feed: &FeedContext, rights: &Rights, query: &Query) -> Result<Selector, ApiError> {
    let types = match query.get("entityType")? {
        None => EntityTypes::All,
        Some(name) => EntityTypes::One(entity_type(feed, rights, name)?.into()),
    };
    let scope = query.get("organizationId")?.map(Scope::new).transpose()?;
    Ok(Selector { kind: MessageKind::Activity, types, scope, old_values: true })
}

/// What the parameters ask the history for.
fn history_query(feed: &FeedContext, rights: &Rights, query: &Query) -> Result<ActivityQuery, ApiError> {
    query.only(&[
        "transactionId",
        "clientId",
        "entityType",
        "entityId",
        "organizationId",
        "before",
        "limit",
        "offset",
        "live",
    ])?;
    let before = query.get("before")?.map(|text| {
        let offset: Offset =
            text.parse().map_err(|_| InvalidQuery::parameter("`before` must be the id of an activity"))?;
        Ok::<_, InvalidQuery>(offset.seq)
    });
    let wanted = ActivityQuery {
        transaction_id: query.get("transactionId")?.map(TransactionId::new).transpose()?,
        client_id: query.get("clientId")?.map(ClientId::new).transpose()?,
        entity_type: query
            .get("entityType")?
            .map(|name| entity_type(feed, rights, name).map(str::to_owned))
            .transpose()?,
        entity_id: query.get("entityId")?.map(EntityKey::new).transpose()?,
        organization_id: query.get("organizationId")?.map(Scope::new).transpose()?,
        before: before.transpose()?,
        limit: query.number("limit", limits::ACTIVITIES_DEFAULT, 1, limits::ACTIVITIES_MAX)?,
    };
    if wanted.entity_id.is_some() && wanted.entity_type.is_none() {
        let message = "`entityId` needs `entityType`: ids of different types may be the same";
        return Err(ApiError::new(ErrorCode::InvalidParameter, message));
    }
    Ok(wanted)
}

async fn history(feed: &FeedContext, wanted: &Permitted<ActivityQuery>) -> Result<Reply, ApiError> {
    let found = feed.log.activities(wanted).await?;
    let mut body = vec![b'['];
    for (i, activity) in found.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        activity.as_ref().encode(
            Wording { kind: MessageKind::Activity, scoped: false, old_values: true },
            feed.reader.epoch(),
            &mut body,
        );
    }
    body.push(b']');
    Ok(Build::new(StatusCode::OK).no_store().json(body))
}

fn entity_type<'a>(feed: &'a FeedContext, rights: &Rights, name: &str) -> Result<&'a str, ApiError> {
    feed.catalog.by_name(name).map(|entity| &*entity.name).ok_or_else(|| {
        let known: Vec<&str> = feed.readable(rights).map(|entity| &*entity.name).collect();
        let message = format!("there is no such `entityType`; the types are {}", known.join(", "));
        ApiError::new(ErrorCode::InvalidParameter, &message)
    })
}
