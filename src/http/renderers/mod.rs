//! One read session, three renderings (Durable Streams protocol, sections 5.6 to 5.8), whatever the session reads.

mod sse;

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bourn_protocol::cache::{Freshness, matches_tag};
use bourn_protocol::cursor::Cursor;
use bourn_protocol::offset::InvalidOffset;
use bourn_protocol::query::{Live, StreamRead};
use bourn_protocol::{ContentType, ErrorCode, ReadFrom, headers};
use http::header::{CONTENT_TYPE, HeaderName, IF_NONE_MATCH};
use http::{HeaderValue, Request, StatusCode};
use tokio::time::Instant;

use super::respond::{Build, Final, JSON};
use super::{ApiError, Reply, ReplyBody, intake};
use crate::config::Limits;
use crate::reading::{Batch, Session};
use crate::tasks::stopping::Stopping;
use crate::telemetry::{Metrics, ReadMode};

const CURSOR: HeaderName = HeaderName::from_static(headers::STREAM_CURSOR);

/// What delivering takes beside a session.
#[derive(Clone)]
pub struct RenderContext {
    /// Limits and durations.
    pub limits: Arc<Limits>,
    /// The server's figures.
    pub metrics: Metrics,
    /// Fires when the server is to stop: live readers end.
    pub stopping: Stopping,
}

/// The same read from where a browser's event stream left off: its URL still says where it first began.
pub(super) fn resumed<T: FromStr<Err = InvalidOffset>, B>(
    read: StreamRead<T>,
    request: &Request<B>,
) -> Result<StreamRead<T>, ApiError> {
    if read.live != Some(Live::Sse) {
        return Ok(read);
    }
    match intake::header(request.headers(), headers::LAST_EVENT_ID)? {
        Some(id) if !id.is_empty() => {
            let from = id.parse().map_err(|error: InvalidOffset| {
                ApiError::new(ErrorCode::InvalidOffset, &format!("Last-Event-ID: {error}"))
            })?;
            Ok(StreamRead { from, ..read })
        }
        _ => Ok(read),
    }
}

/// Renders a session in the way the parameters ask for; live no longer than the reader may read it.
pub(super) async fn session<S: Session, T, B>(
    context: &RenderContext,
    session: S,
    read: StreamRead<T>,
    time_left: Option<Duration>,
    request: &Request<B>,
) -> Result<Reply, ApiError>
where
    ApiError: From<S::Error>,
{
    match read.live {
        None => catch_up(context, session, matches!(read.from, ReadFrom::Start), request).await,
        Some(Live::LongPoll) => {
            let wait = context.limits.long_poll_timeout.get();
            let wait = time_left.map_or(wait, |left| left.min(wait));
            long_poll(context, session, matches!(read.from, ReadFrom::Now), read.cursor, wait).await
        }
        Some(Live::Sse) => Ok(sse::reply(context, session, read.cursor, time_left)),
    }
}

/// The header for a content type.
pub(super) fn content_type(of: &ContentType) -> HeaderValue {
    HeaderValue::from_str(of.as_str()).unwrap_or(JSON)
}

/// How long caches may keep a part of what a session reads: no longer than the stream lives.
fn cache_control(context: &RenderContext, session: &impl Session, freshness: Freshness) -> String {
    let sealed = context.limits.sealed_max_age.get();
    match (session.lifetime_left(), freshness) {
        (None, _) | (_, Freshness::Never) => freshness.cache_control(sealed),
        (Some(left), Freshness::Sealed) => freshness.cache_control(sealed.min(left)),
        (Some(left), _) => format!("public, max-age={}", left.min(Duration::from_secs(5)).as_secs()),
    }
}

async fn catch_up<S: Session, B>(
    context: &RenderContext,
    mut session: S,
    from_start: bool,
    request: &Request<B>,
) -> Result<Reply, ApiError>
where
    ApiError: From<S::Error>,
{
    let Batch::Chunk(chunk) = session.read().await? else {
        return Err(ApiError::new(ErrorCode::Internal, "a catch-up read gave no chunk"));
    };
    let freshness = match chunk.sealed {
        true if chunk.spans_gap => Freshness::Tail,
        true if from_start => Freshness::SealedFromStart,
        true => Freshness::Sealed,
        false if chunk.messages > 0 => Freshness::Tail,
        false => Freshness::Never,
    };
    let seen = request
        .headers()
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|tags| matches_tag(tags, &chunk.etag));
    let status = if seen { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut build = Build::new(status)
        .cache(&cache_control(context, &session, freshness))
        .etag(&chunk.etag)
        .next_offset(chunk.offset)
        .closed_if(chunk.closed);
    if !chunk.sealed {
        build = build.up_to_date();
    }
    if seen {
        return Ok(build.body(ReplyBody::empty()));
    }
    context.metrics.mode(ReadMode::CatchUp).count(chunk.messages, chunk.body.len());
    let mut reply =
        build.header(CONTENT_TYPE, content_type(&session.content_type())).body(chunk.body.clone().into());
    // A stored stream may be deleted, and what is at hand as an answer is asked for nowhere.
    if chunk.sealed && !chunk.spans_gap && chunk.version.is_some() {
        reply.extensions_mut().insert(Final(chunk));
    }
    Ok(reply)
}

async fn long_poll<S: Session>(
    context: &RenderContext,
    mut session: S,
    from_now: bool,
    cursor: Option<Cursor>,
    wait: Duration,
) -> Result<Reply, ApiError>
where
    ApiError: From<S::Error>,
{
    let _reading = context.metrics.reader(ReadMode::LongPoll);
    let deadline = Instant::now() + wait;
    let batch = next_batch(context, &mut session, deadline).await?;
    let closed = batch.closed();
    let build = |status, freshness: &str| {
        let build = Build::new(status).cache(freshness).next_offset(session.place()).closed_if(closed);
        match closed {
            // There is nothing to come back for.
            true => build,
            false => build.text(CURSOR, &Cursor::next(unix_secs(), cursor).get().to_string()),
        }
    };
    if batch.messages() == 0 {
        let age = context.limits.long_poll_empty_max_age.get().as_secs();
        let lasting = age > 0 && !from_now && !closed;
        let freshness = if lasting { format!("public, max-age={age}") } else { "no-store".to_owned() };
        return Ok(build(StatusCode::NO_CONTENT, &freshness).up_to_date().body(ReplyBody::empty()));
    }
    context.metrics.mode(ReadMode::LongPoll).count(batch.messages(), batch.body().len());
    let freshness = if from_now { Freshness::Never } else { Freshness::Tail };
    let freshness = cache_control(context, &session, freshness);
    let mut build = build(StatusCode::OK, &freshness).etag(&session.entity_tag(&batch));
    if batch.up_to_date() {
        build = build.up_to_date();
    }
    let media = content_type(&session.content_type());
    Ok(build.header(CONTENT_TYPE, media).body(batch.body().into()))
}

/// Waits for a batch with something in it; an empty one when the wait is over, the stream closed or the server stops.
async fn next_batch<S: Session>(
    context: &RenderContext,
    session: &mut S,
    deadline: Instant,
) -> Result<Batch, ApiError>
where
    ApiError: From<S::Error>,
{
    loop {
        let batch = session.read().await?;
        if batch.messages() > 0 || batch.closed() {
            return Ok(batch);
        }
        tokio::select! {
            () = session.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(batch),
            () = context.stopping.wait() => return Ok(batch),
        }
    }
}

/// The time by which cursors count.
fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
