//! `/v1/stream/{path…}`: stored streams, the whole Durable Streams protocol. Reading is the same as of any other stream;
//! this finds the stream and opens the session.

mod control;
mod write;

use std::sync::Arc;

use bourn_protocol::query::{Live, StreamRead};
use bourn_protocol::stored::lifetime::rfc3339;
use bourn_protocol::stored::{Form, Lifetime, RESERVED};
use bourn_protocol::{ErrorCode, ReadFrom, StreamOffset, StreamPath, headers};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{Method, Request, StatusCode};

use super::intake::{self, BodyMemory};
use super::renderers::{self, RenderContext};
use super::respond::Build;
use super::{ApiError, Reply, ReplyBody, RequestBody};
use crate::access::{Permitted, Rights};
use crate::reading::Session;
use crate::streams::session::{StreamReader, StreamSession};
use crate::streams::subscriptions::Subscriptions;
use crate::streams::{StreamInfo, Streams};

/// What the endpoints of stored streams work with.
pub struct StreamsContext {
    /// The streams.
    pub streams: Arc<dyn Streams>,
    /// Reads them.
    pub reader: Arc<StreamReader>,
    /// Subscriptions to them.
    pub subscriptions: Arc<Subscriptions>,
    /// Memory for what is being received to be appended.
    pub uploads: BodyMemory,
    /// Memory for all other bodies.
    pub bodies: BodyMemory,
    /// Where the server is reached.
    pub public_url: String,
    /// How what is read is delivered.
    pub render: RenderContext,
}

/// Whether what follows `/v1/stream/__ds/` is for everybody, or is asked for a token that a subscription gave.
pub(super) fn has_tokens_of_its_own(rest: &str) -> bool {
    let parts: Vec<&str> = rest.split('/').collect();
    matches!(*parts, ["jwks.json"] | ["subscriptions", _, "callback" | "ack" | "release"])
}

/// Answers a request for what follows `/v1/stream/`.
pub(super) async fn dispatch(
    context: &StreamsContext,
    rights: &Rights,
    raw: &str,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    if let Some(rest) = raw.strip_prefix(RESERVED)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        return control::dispatch(context, rights, rest.trim_start_matches('/'), request).await;
    }
    let path = StreamPath::decode(raw).map_err(|refused| ApiError::new(ErrorCode::InvalidPath, refused.0))?;
    match *request.method() {
        Method::GET => read(context, &rights.read(path)?, &request).await,
        Method::HEAD => metadata(context, &rights.read(path)?, &request).await,
        Method::PUT => write::create(context, rights, path, request).await,
        Method::POST => write::append(context, rights, path, request).await,
        Method::DELETE => write::delete(context, rights, &path).await,
        _ => Err(ApiError::method("GET, HEAD, PUT, POST, DELETE")),
    }
}

/// Whether the stream of what follows `/v1/stream/` may be read; what is kept of subscriptions is nothing.
pub(super) fn may_read(rights: &Rights, raw: &str) -> Result<(), ApiError> {
    if raw.strip_prefix(RESERVED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Ok(());
    }
    let path = StreamPath::decode(raw).map_err(|refused| ApiError::new(ErrorCode::InvalidPath, refused.0))?;
    rights.read(path)?;
    Ok(())
}

/// `HEAD`: what the stream is, and where its tail is; refused where the read that it stands for would be.
async fn metadata<B>(
    context: &StreamsContext,
    path: &Permitted<StreamPath>,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let read = how(request)?;
    if matches!(read.from, ReadFrom::At(_)) {
        context.reader.open(path, read.from, false).await?.read().await?;
    }
    let stream = context.streams.find_stream(path).await?;
    Ok(describe(Build::new(StatusCode::OK).no_store(), &stream).body(ReplyBody::empty()))
}

/// What every answer about a whole stream says.
fn describe(build: Build, stream: &StreamInfo) -> Build {
    let build = build
        .header(CONTENT_TYPE, renderers::content_type(&stream.content_type))
        .next_offset(stream.offset(stream.tail))
        .closed_if(stream.closed);
    match stream.lifetime {
        Lifetime::Endless => build,
        Lifetime::Idle(secs) => build.text(HeaderName::from_static(headers::STREAM_TTL), &secs.to_string()),
        Lifetime::Until(time) => {
            build.text(HeaderName::from_static(headers::STREAM_EXPIRES_AT), &rfc3339(time))
        }
    }
}

/// How a stream is to be read.
fn how<B>(request: &Request<B>) -> Result<StreamRead<StreamOffset>, ApiError> {
    let query = intake::query(request)?;
    let whole = StreamRead { from: ReadFrom::Start, live: None, cursor: None };
    renderers::resumed(StreamRead::parse(&query)?.unwrap_or(whole), request)
}

async fn read<B>(
    context: &StreamsContext,
    path: &Permitted<StreamPath>,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let read = how(request)?;
    let session = context.reader.open(path, read.from, read.live.is_some()).await?;
    match (read.live, read.from) {
        (None, ReadFrom::Now) => tail_only(context, path, &session).await,
        (None | Some(Live::LongPoll | Live::Sse), _) => {
            renderers::session(&context.render, session, read, path.time_left(), request).await
        }
    }
}

/// `offset=now` without following: nothing, and where the tail is.
async fn tail_only(
    context: &StreamsContext,
    path: &Permitted<StreamPath>,
    session: &StreamSession,
) -> Result<Reply, ApiError> {
    let stream = context.streams.find_stream(path).await?;
    let body = if session.form() == Form::Json { &b"[]"[..] } else { b"" };
    let build = Build::new(StatusCode::OK).no_store().up_to_date();
    Ok(describe(build, &stream).body(body.into()))
}
