//! Taking in what requests carry: bodies within limits, headers by their rules.

use std::time::Duration;

use bourn_protocol::query::Query;
use bourn_protocol::{ClientId, ErrorCode, TransactionId, headers};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use serde_json::{Map, Value};

use super::{ApiError, App};
use crate::config::Size;

/// How much of a body that is too large is read and thrown away, in multiples of the limit.
const DISCARD_LIMITS: u64 = 4;
/// How long that may take.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// The parameters of a request.
pub(super) fn query<B>(request: &Request<B>) -> Result<Query, ApiError> {
    Ok(Query::parse(request.uri().query())?)
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

/// The body as a JSON object.
pub(super) async fn json_object(
    app: &App,
    request: Request<Incoming>,
) -> Result<Map<String, Value>, ApiError> {
    let media_type = header(request.headers(), CONTENT_TYPE.as_str())?.unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "the body must be JSON: send Content-Type: application/json";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    let body = collect(app, request, app.limits.body_limit).await?;
    match serde_json::from_slice(&body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => {
            Err(ApiError::new(ErrorCode::InvalidJson, "the body must be a JSON object of columns and values"))
        }
        // The parser tells place and kind, and nothing of the content.
        Err(error) => Err(ApiError::new(ErrorCode::InvalidJson, &format!("the body is not JSON: {error}"))),
    }
}

/// The whole body, if it has no more bytes than `limit` and comes in time.
pub(super) async fn collect(app: &App, request: Request<Incoming>, limit: Size) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body has more than {} bytes", limit.get());
        ApiError::new(ErrorCode::BodyTooLarge, &message)
    };
    let timeout = app.limits.body_timeout.get();
    let declared = request.body().size_hint().lower();
    let mut body = request.into_body();
    if declared > limit.get() {
        discard(&mut body, limit).await;
        return Err(too_large());
    }
    let collected = tokio::time::timeout(timeout, Limited::new(&mut body, limit.bytes()).collect()).await;
    match collected {
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(&mut body, limit).await;
            Err(too_large())
        }
        Err(_) => Err(ApiError::new(ErrorCode::RequestTimeout, "the body took too long to arrive")),
        Ok(Err(_)) => Err(ApiError::new(ErrorCode::InvalidRequest, "the body could not be read to its end")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

/// Reads on for a while and keeps nothing: a client that is still sending would find its connection broken, and not
/// the answer.
async fn discard(body: &mut Incoming, limit: Size) {
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
