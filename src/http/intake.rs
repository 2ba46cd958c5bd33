//! Taking in what requests carry: bodies within limits, headers by their rules.

use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::query::Query;
use bourn_protocol::{ClientId, ErrorCode, TransactionId, headers};
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{ApiError, RequestBody};
use crate::config::{Limits, Size};
use crate::feed::entity::Columns;

/// How much of a body that is too large is read and thrown away, in multiples of the limit.
const DISCARD_LIMITS: u64 = 4;
/// The unit in which memory for bodies is counted.
const ROOM_UNIT: usize = 1 << 10;
/// How often the text of a body is in memory while it is written: as it came, by column, and as the database is given it.
const COPIES: usize = 3;
/// How long that may take.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Goes with a request whose path names a scope: it means the same as the parameter `organizationId`.
#[derive(Debug, Clone)]
pub(super) struct PathScope(pub(super) String);

/// The parameters of a request.
pub(super) fn query<B>(request: &Request<B>) -> Result<Query, ApiError> {
    let mut query = Query::parse(request.uri().query())?;
    if let Some(PathScope(scope)) = request.extensions().get() {
        if query.get("organizationId")?.is_some() {
            let message = "the path names the scope; leave out `organizationId`";
            return Err(ApiError::new(ErrorCode::InvalidParameter, message));
        }
        query.set("organizationId", scope);
    }
    Ok(query)
}

/// A header's text, if the header is there once.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let invalid = |rule: &str| ApiError::new(ErrorCode::InvalidHeader, &format!("`{name}` {rule}"));
    if values.next().is_some() {
        return Err(invalid("is there more than once; send it once"));
    }
    value.to_str().map(Some).map_err(|_| invalid("must be visible ASCII"))
}

/// A transaction id from a header.
pub(super) fn transaction_id(headers: &HeaderMap, name: &str) -> Result<Option<TransactionId>, ApiError> {
    let invalid = |error: bourn_protocol::ids::InvalidId| {
        ApiError::new(ErrorCode::InvalidHeader, &format!("`{name}`: {error}"))
    };
    header(headers, name)?.map(|text| TransactionId::new(text).map_err(invalid)).transpose()
}

/// Who mutates, and under which id; one is made where the client gave none.
pub(super) fn identity(headers: &HeaderMap) -> Result<(TransactionId, Option<ClientId>), ApiError> {
    let transaction = transaction_id(headers, headers::TRANSACTION_ID)?.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        TransactionId::generate(u64::try_from(now.as_millis()).unwrap_or(0))
    });
    let invalid = |error: bourn_protocol::ids::InvalidId| {
        ApiError::new(ErrorCode::InvalidHeader, &format!("`{}`: {error}", headers::CLIENT_ID))
    };
    let client =
        header(headers, headers::CLIENT_ID)?.map(|text| ClientId::new(text).map_err(invalid)).transpose()?;
    Ok((transaction, client))
}

/// The body as an object of columns, and the memory it takes until what it says is done.
pub(super) async fn json_object(
    limits: &Limits,
    memory: &BodyMemory,
    request: Request<RequestBody>,
) -> Result<(Columns, Room), ApiError> {
    let media_type = header(request.headers(), CONTENT_TYPE.as_str())?.unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "the body must be JSON: send Content-Type: application/json";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    let (body, mut room) = collect(limits, request, limits.body_limit, memory).await?;
    // A body that takes more than half of the memory is not refused for that: it is handled alone, or beside one other.
    let wanted = body.len().saturating_mul(COPIES);
    if !room.hold(wanted.min(limits.body_memory.bytes() / 2).max(body.len())) {
        return Err(no_room());
    }
    match Columns::parse(&body) {
        Ok(columns) => Ok((columns, room)),
        Err(error) if error.is_data() => Err(ApiError::new(
            ErrorCode::InvalidJson,
            &format!("the body must be a JSON object of columns: {error}"),
        )),
        // The parser tells place and kind, and nothing of the content.
        Err(error) => Err(ApiError::new(ErrorCode::InvalidJson, &format!("the body is not JSON: {error}"))),
    }
}

/// Memory for bodies of requests, all together.
#[derive(Debug, Clone)]
pub struct BodyMemory(Arc<Semaphore>);

impl BodyMemory {
    /// So many bytes.
    #[must_use]
    pub fn new(size: Size) -> BodyMemory {
        BodyMemory(Arc::new(Semaphore::new((size.bytes() / ROOM_UNIT).min(Semaphore::MAX_PERMITS))))
    }

    /// None of it, to begin with: what a client has not sent takes nothing.
    fn room(&self) -> Room {
        Room { memory: self.0.clone(), held: None }
    }
}

/// The part of the memory that one body takes; given back when the value is dropped.
#[derive(Debug)]
pub(super) struct Room {
    memory: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Makes it so many bytes at least, if there is memory left.
    fn hold(&mut self, bytes: usize) -> bool {
        let has = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let lacks = bytes.div_ceil(ROOM_UNIT).saturating_sub(has);
        if lacks == 0 {
            return true;
        }
        let Ok(lacks) = u32::try_from(lacks) else { return false };
        let Ok(more) = self.memory.clone().try_acquire_many_owned(lacks) else { return false };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        true
    }
}

/// Who wants to know when the last byte of a request has come.
pub trait WatchBody: Send + Sync {
    /// It has.
    fn received(&self);
}

/// Goes with a request whose body is still to come.
#[derive(Clone)]
pub struct Received(pub Arc<dyn WatchBody>);

enum Unreceived {
    TooLarge,
    NoRoom,
    Broken,
}

fn no_room() -> ApiError {
    let message = "more is being uploaded than the server holds at once; try again";
    ApiError::new(ErrorCode::TooManyUploads, message)
}

/// The whole body, if it has no more bytes than `limit`, comes in time, and there is memory for it; with the memory it
/// takes.
pub(super) async fn collect(
    limits: &Limits,
    request: Request<RequestBody>,
    limit: Size,
    memory: &BodyMemory,
) -> Result<(Bytes, Room), ApiError> {
    let declared = request.body().size_hint().lower();
    let (head, mut body) = request.into_parts();
    let mut room = memory.room();
    let received = if declared > limit.get() {
        Ok(Err(Unreceived::TooLarge))
    } else {
        let receiving = receive(&mut body, limit.bytes(), &mut room);
        tokio::time::timeout(limits.body_timeout.get(), receiving).await
    };
    let refused = match received {
        Ok(Ok(bytes)) => {
            if let Some(Received(by)) = head.extensions.get() {
                by.received();
            }
            return Ok((bytes, room));
        }
        Err(_) => {
            return Err(ApiError::new(ErrorCode::RequestTimeout, "the body took too long to arrive"));
        }
        Ok(Err(Unreceived::Broken)) => {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "the body could not be read to its end"));
        }
        Ok(Err(Unreceived::TooLarge)) => {
            let message = format!("the body has more than {} bytes", limit.get());
            ApiError::new(ErrorCode::BodyTooLarge, &message)
        }
        Ok(Err(Unreceived::NoRoom)) => no_room(),
    };
    drop(room);
    discard(&mut body, limit).await;
    Err(refused)
}

/// Takes a body in, and memory for it as it comes.
async fn receive(body: &mut RequestBody, most: usize, room: &mut Room) -> Result<Bytes, Unreceived> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unreceived::Broken)?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > most {
            return Err(Unreceived::TooLarge);
        }
        if whole.is_empty() && body.is_end_stream() {
            // All of it in one piece.
            return if room.hold(data.len()) { Ok(data) } else { Err(Unreceived::NoRoom) };
        }
        if !room.hold(whole.len() + data.len()) {
            return Err(Unreceived::NoRoom);
        }
        // Copied: a piece may be a small part of a large buffer, which it would keep.
        whole.extend_from_slice(&data);
        if !room.hold(whole.capacity()) {
            return Err(Unreceived::NoRoom);
        }
    }
    Ok(whole.freeze())
}

/// Answers that a body need not be sent for; what of it is under way is read, so that the client gets the answer.
pub(super) async fn refuse_early(request: Request<RequestBody>, limit: Size, error: ApiError) -> ApiError {
    discard(&mut request.into_body(), limit).await;
    error
}

/// Reads on for a while and keeps nothing: a client that is still sending would find its connection broken, and not
/// the answer.
async fn discard(body: &mut RequestBody, limit: Size) {
    let mut left = limit.get().saturating_mul(DISCARD_LIMITS);
    let read_on = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            left = left.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX));
            if left == 0 {
                return;
            }
        }
    };
    // Either way the answer is the same.
    let _ = tokio::time::timeout(DISCARD_TIME, read_on).await;
}
