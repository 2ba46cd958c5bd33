//! Streams: one read session, three renderings (Durable Streams protocol, sections 5.6 to 5.8).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bourn_protocol::cache::{Freshness, matches_tag};
use bourn_protocol::cursor::Cursor;
use bourn_protocol::query::{Live, StreamRead};
use bourn_protocol::{ErrorCode, ReadFrom, Selector, Seq, headers};
use http::header::{CONTENT_TYPE, HeaderName, IF_NONE_MATCH};
use http::{Request, StatusCode};
use tokio::time::Instant;

use super::respond::{Build, JSON};
use super::{ApiError, App, Reply, ReplyBody, entities, intake, sse};
use crate::entity::EntityType;
use crate::read::{Batch, Session};
use crate::telemetry::ReadMode;

const CURSOR: HeaderName = HeaderName::from_static(headers::STREAM_CURSOR);

/// `GET /v1/entities/{table}`: the list, or with an offset the stream.
pub(super) async fn entity<B>(
    app: &Arc<App>,
    entity: &Arc<EntityType>,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    let Some(read) = StreamRead::parse(&query)? else {
        return entities::list(app, entity, &query, request).await;
    };
    query.only(&["offset", "live", "cursor", "organizationId"])?;
    let stream = entity.stream(entities::scope(entity, &query)?);
    serve(app, stream, read, request).await
}

/// `HEAD /v1/entities/{table}`: where the stream's tail is.
pub(super) async fn entity_head<B>(
    app: &Arc<App>,
    entity: &Arc<EntityType>,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    let stream = entity.stream(entities::scope(entity, &query)?);
    metadata(app, &stream).await
}

/// A stream's metadata (section 5.5).
pub(super) async fn metadata(app: &Arc<App>, stream: &Selector) -> Result<Reply, ApiError> {
    let tail = app.reader.stream_tail(stream).await?;
    let build = Build::new(StatusCode::OK).no_store().next_offset(app.reader.offset(tail));
    Ok(build.header(CONTENT_TYPE, JSON).body(ReplyBody::empty()))
}

/// Reads a stream in the way the parameters ask for.
pub(super) async fn serve<B>(
    app: &Arc<App>,
    stream: Selector,
    read: StreamRead,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    match read.live {
        None if read.from == ReadFrom::Now => tail_only(app, &stream).await,
        None => catch_up(app, stream, read.from, request).await,
        Some(Live::LongPoll) => long_poll(app, stream, read).await,
        Some(Live::Sse) => {
            // A browser that reconnects says where it left off; its URL still says where it first began.
            let from = match intake::header(request.headers(), headers::LAST_EVENT_ID)? {
                Some(id) if !id.is_empty() => {
                    id.parse().map_err(|error: bourn_protocol::offset::InvalidOffset| {
                        ApiError::new(ErrorCode::InvalidOffset, &format!("Last-Event-ID: {error}"))
                    })?
                }
                _ => read.from,
            };
            let session = app.reader.open(stream, from, true).await?;
            Ok(sse::reply(app, session, read.cursor))
        }
    }
}

/// `offset=now` without following: nothing, and where the tail is.
async fn tail_only(app: &Arc<App>, stream: &Selector) -> Result<Reply, ApiError> {
    let tail = app.reader.stream_tail(stream).await?;
    let build = Build::new(StatusCode::OK).no_store().next_offset(app.reader.offset(tail)).up_to_date();
    Ok(build.json(&b"[]"[..]))
}

async fn catch_up<B>(
    app: &Arc<App>,
    stream: Selector,
    from: ReadFrom,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let mut session = app.reader.open(stream, from, false).await?;
    let start = session.position();
    let Batch::Chunk(chunk) = session.read().await? else {
        return Err(ApiError::new(ErrorCode::Internal, "a catch-up read gave no chunk"));
    };
    let freshness = match chunk.sealed {
        true if from == ReadFrom::Start => Freshness::SealedFromStart,
        true => Freshness::Sealed,
        false if chunk.messages > 0 => Freshness::Tail,
        false => Freshness::Never,
    };
    debug_assert_eq!(start, chunk.start);
    let seen = request
        .headers()
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|tags| matches_tag(tags, &chunk.etag));
    let status = if seen { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut build = Build::new(status)
        .cache(&freshness.cache_control(app.limits.sealed_max_age.get()))
        .etag(&chunk.etag)
        .next_offset(session.offset());
    if !chunk.sealed {
        build = build.up_to_date();
    }
    if seen {
        return Ok(build.body(ReplyBody::empty()));
    }
    app.metrics.mode(ReadMode::CatchUp).count(chunk.messages, chunk.body.len());
    let mut reply = build.json(chunk.body.clone());
    if chunk.sealed {
        super::respond::add_common_headers(reply.headers_mut());
        app.hot.put(request, reply.headers().clone(), chunk.body.clone(), chunk.messages);
    }
    Ok(reply)
}

async fn long_poll(app: &Arc<App>, stream: Selector, read: StreamRead) -> Result<Reply, ApiError> {
    let mut session = app.reader.open(stream, read.from, true).await?;
    let _reading = app.metrics.reader(ReadMode::LongPoll);
    let deadline = Instant::now() + app.limits.long_poll_timeout.get();
    let batch = next_batch(app, &mut session, deadline).await?;
    let cursor = Cursor::next(unix_secs(), read.cursor);
    let build = |status, freshness: &str| {
        let build = Build::new(status).cache(freshness).next_offset(session.offset());
        build.text(CURSOR, &cursor.get().to_string())
    };
    Ok(match batch {
        Some(batch) => {
            app.metrics.mode(ReadMode::LongPoll).count(batch.messages(), batch.body().len());
            let freshness = if read.from == ReadFrom::Now { Freshness::Never } else { Freshness::Tail };
            let freshness = freshness.cache_control(app.limits.sealed_max_age.get());
            let tag = bourn_protocol::cache::entity_tag(
                app.reader.epoch(),
                &session.stream().fingerprint(),
                batch.start(),
                session.position(),
                !batch.up_to_date(),
            );
            let mut build = build(StatusCode::OK, &freshness).etag(&tag);
            if batch.up_to_date() {
                build = build.up_to_date();
            }
            build.json(batch.body())
        }
        None => {
            let age = app.limits.long_poll_empty_max_age.get().as_secs();
            let lasting = age > 0 && read.from != ReadFrom::Now;
            let freshness = if !lasting { "no-store".to_owned() } else { format!("public, max-age={age}") };
            build(StatusCode::NO_CONTENT, &freshness).up_to_date().body(ReplyBody::empty())
        }
    })
}

/// Waits for a batch with something in it; none when the wait is over or the server stops.
async fn next_batch(app: &App, session: &mut Session, deadline: Instant) -> Result<Option<Batch>, ApiError> {
    loop {
        let batch = session.read().await?;
        if batch.messages() > 0 {
            return Ok(Some(batch));
        }
        tokio::select! {
            () = session.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(None),
            () = app.stopping.wait() => return Ok(None),
        }
    }
}

/// The time by which cursors count.
pub(super) fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Batch {
    /// The place the batch is told apart by, where entity tags name one.
    fn start(&self) -> Seq {
        match self {
            Batch::Chunk(chunk) => chunk.start,
            Batch::Live(batch) => batch.first,
            Batch::Nothing => Seq::ZERO,
        }
    }
}
