//! Creating, appending to, closing and deleting stored streams: headers and bodies become the storage's types, and what the
//! storage says becomes headers.

use bourn_protocol::limits::{PRODUCER_NUMBER_MAX, STREAM_HEADER_MAX_BYTES};
use bourn_protocol::stored::lifetime::whole_number;
use bourn_protocol::stored::{Lifetime, Payload, Refused};
use bourn_protocol::{ContentType, ErrorCode, StreamPath, headers};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, LOCATION};
use http::{HeaderMap, Request, StatusCode};
use hyper::body::Body;

use super::{StreamsContext, describe};
use crate::access::{Rights, StreamRight};
use crate::http::intake::{self, Room};
use crate::http::respond::Build;
use crate::http::{ApiError, Reply, ReplyBody, RequestBody};
use crate::streams::{AppendStream, CreateStream, Fork, Producer};

/// Bodies of at most so many bytes are received before anything is looked up.
const SMALL_BODY: u64 = 64 << 10;

/// `PUT`: creates a stream, or makes sure that it is there.
pub(super) async fn create(
    context: &StreamsContext,
    rights: &Rights,
    path: StreamPath,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    rights.check_stream(StreamRight::Create, &path)?;
    let given = request.headers();
    let content_type = content_type(given)?;
    let lifetime = Lifetime::parse(
        intake::header(given, headers::STREAM_TTL)?,
        intake::header(given, headers::STREAM_EXPIRES_AT)?,
    )?;
    let (closed, fork) = (closes(given)?, fork(given)?);
    if let Some(fork) = &fork {
        rights.check_stream(StreamRight::Read, &fork.source)?;
    }
    let (body, _room) = receive(context, request).await?;
    let create = CreateStream { path, content_type, lifetime, closed, fork, body };
    let created = context.streams.create_stream(create).await?;
    let stream = &created.stream;
    let status = if created.new { StatusCode::CREATED } else { StatusCode::OK };
    let mut build = describe(Build::new(status).no_store(), stream);
    if created.new {
        build = build.text(LOCATION, &format!("{}{}", context.public_url, stream.path.url_path()));
    }
    Ok(build.body(ReplyBody::empty()))
}

/// `POST`: appends, closes, or both.
pub(super) async fn append(
    context: &StreamsContext,
    rights: &Rights,
    path: StreamPath,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    rights.check_stream(StreamRight::Append, &path)?;
    let given = request.headers();
    let (producer, close) = (producer(given)?, closes(given)?);
    let seq = short(given, headers::STREAM_SEQ)?.map(str::to_owned);
    let declared = given.get(CONTENT_TYPE).cloned();
    // A large body, or one of unknown size, is not received for a stream that is not there.
    if request.body().size_hint().exact().is_none_or(|size| size > SMALL_BODY)
        && let Err(error) = context.streams.find_stream(&path).await
    {
        return Err(intake::refuse_early(request, context.render.limits.append_limit, error.into()).await);
    }
    let (body, _room) = receive(context, request).await?;
    let empty = |message| Err(ApiError::new(ErrorCode::EmptyBody, message));
    let (content_type, payload) = match (body.is_empty(), declared) {
        (true, _) if close => (None, Payload::default()),
        (true, _) => {
            return empty("there is nothing to append; to close the stream send Stream-Closed: true");
        }
        (false, None) => {
            let message = "send Content-Type with what is appended, the same as the stream's";
            return Err(ApiError::new(ErrorCode::InvalidHeader, message));
        }
        (false, Some(declared)) => {
            let content_type = ContentType::new(declared.to_str().unwrap_or_default())?;
            let payload = Payload::take(content_type.form(), body)?;
            if payload.messages == 0 {
                return empty("an empty array appends nothing; send at least one message");
            }
            (Some(content_type), payload)
        }
    };
    let epoch = producer.as_ref().map(|producer| producer.epoch);
    let append = AppendStream { path, content_type, payload, close, seq, producer };
    let closes_alone = append.payload.messages == 0;
    let appended = context.streams.append(append).await?;
    // The status says whether the producer's append was done now.
    let news = epoch.is_some() && !appended.duplicate && !closes_alone;
    let status = if news { StatusCode::OK } else { StatusCode::NO_CONTENT };
    let mut build = Build::new(status).no_store().next_offset(appended.tail).closed_if(appended.closed);
    if let (Some(epoch), Some(seq)) = (epoch, appended.producer_seq) {
        build = build
            .text(HeaderName::from_static(headers::PRODUCER_EPOCH), &epoch.to_string())
            .text(HeaderName::from_static(headers::PRODUCER_SEQ), &seq.to_string());
    }
    Ok(build.body(ReplyBody::empty()))
}

/// `DELETE`.
pub(super) async fn delete(
    context: &StreamsContext,
    rights: &Rights,
    path: &StreamPath,
) -> Result<Reply, ApiError> {
    rights.check_stream(StreamRight::Delete, path)?;
    context.streams.delete_stream(path).await?;
    Ok(Build::new(StatusCode::NO_CONTENT).no_store().body(ReplyBody::empty()))
}

/// The body, and the memory it takes until what it says is done.
async fn receive(context: &StreamsContext, request: Request<RequestBody>) -> Result<(Bytes, Room), ApiError> {
    intake::collect(&context.render.limits, request, context.render.limits.append_limit, &context.uploads)
        .await
}

fn content_type(given: &HeaderMap) -> Result<Option<ContentType>, ApiError> {
    match intake::header(given, CONTENT_TYPE.as_str())? {
        None | Some("") => Ok(None),
        Some(text) => Ok(Some(ContentType::new(text)?)),
    }
}

/// Whether the request closes the stream. Any value but `true` is ignored.
fn closes(given: &HeaderMap) -> Result<bool, ApiError> {
    Ok(intake::header(given, headers::STREAM_CLOSED)?.is_some_and(|text| text.eq_ignore_ascii_case("true")))
}

fn short<'a>(given: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let text = intake::header(given, name)?;
    if text.is_some_and(|text| text.is_empty() || text.len() > STREAM_HEADER_MAX_BYTES) {
        let message = format!("`{name}` must have 1 to {STREAM_HEADER_MAX_BYTES} characters");
        return Err(ApiError::new(ErrorCode::InvalidHeader, &message));
    }
    Ok(text)
}

fn producer(given: &HeaderMap) -> Result<Option<Producer>, ApiError> {
    let id = short(given, headers::PRODUCER_ID)?;
    let number = |name: &str| -> Result<Option<u64>, ApiError> {
        let Some(text) = intake::header(given, name)? else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number =
            digits.then(|| text.parse().ok()).flatten().filter(|number| *number <= PRODUCER_NUMBER_MAX);
        number.map(Some).ok_or_else(|| {
            let message = format!("`{name}` must be a whole number of at most {PRODUCER_NUMBER_MAX}");
            ApiError::new(ErrorCode::InvalidHeader, &message)
        })
    };
    match (id, number(headers::PRODUCER_EPOCH)?, number(headers::PRODUCER_SEQ)?) {
        (None, None, None) => Ok(None),
        (Some(id), Some(epoch), Some(seq)) => Ok(Some(Producer { id: id.to_owned(), epoch, seq })),
        _ => {
            let message = "send Producer-Id, Producer-Epoch and Producer-Seq together, or none of them";
            Err(ApiError::new(ErrorCode::InvalidHeader, message))
        }
    }
}

fn fork(given: &HeaderMap) -> Result<Option<Fork>, ApiError> {
    let source = intake::header(given, headers::STREAM_FORKED_FROM)?;
    let offset = intake::header(given, headers::STREAM_FORK_OFFSET)?;
    let sub = intake::header(given, headers::STREAM_FORK_SUB_OFFSET)?;
    let Some(source) = source else {
        return match (offset, sub) {
            (None, None) => Ok(None),
            _ => Err(Refused("Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From").into()),
        };
    };
    let offset = offset
        .map(|text| {
            text.parse().map_err(|_| Refused("Stream-Fork-Offset must be a Stream-Next-Offset of the source"))
        })
        .transpose()?;
    let sub = sub.map_or(Some(0), |text| whole_number(text, PRODUCER_NUMBER_MAX));
    let sub =
        sub.ok_or(Refused("Stream-Fork-Sub-Offset must be a whole number without sign or zeros before it"))?;
    Ok(Some(Fork { source: StreamPath::of_url_path(source)?, offset, sub }))
}
