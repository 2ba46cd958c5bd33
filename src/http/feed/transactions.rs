//! `/v1/transactions`: what became of a transaction, and undoing it.

use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::{ErrorCode, TransactionId, limits};
use http::{Request, StatusCode};
use serde::Serialize;
use tokio::time::Instant;

use super::{FeedContext, entities};
use crate::access::Rights;
use crate::feed::{Operation, TransactionState, Undone, WriteError};
use crate::http::respond::Build;
use crate::http::{ApiError, Reply, RequestBody, intake};

/// About how often a waiting request asks the log without having been woken.
const LOOK_AGAIN: Duration = Duration::from_secs(4);

fn id(text: &str) -> Result<TransactionId, ApiError> {
    TransactionId::new(text).map_err(|error| ApiError::new(ErrorCode::InvalidId, &error.to_string()))
}

/// `GET /v1/transactions/{id}`: its state; with `wait` not before it is confirmed or the wait is over.
pub(in crate::http) async fn state<B>(
    feed: &FeedContext,
    rights: &Rights,
    text: &str,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    query.only(&["wait"])?;
    let most = usize::try_from(limits::TRANSACTION_WAIT_MAX_SECS).unwrap_or(usize::MAX);
    let wait = query.number("wait", 0, 0, most)?;
    let deadline = Instant::now() + Duration::from_secs(u64::try_from(wait).unwrap_or(0));
    let id = id(text)?;
    let state = loop {
        // In this order: what reaches the log after it was asked wakes the wait.
        let awaited = (wait > 0).then(|| feed.tail.awaited(&id));
        let state = feed.log.transaction(&id, !rights.is_everything()).await?.state_for(rights);
        let Some(awaited) = awaited else { break state };
        let now = Instant::now();
        if matches!(state, TransactionState::Confirmed(_)) || now >= deadline {
            break state;
        }
        let look_again = now + LOOK_AGAIN.mul_f64(rand::random_range(0.75..=1.25));
        tokio::select! {
            () = awaited.seen() => {}
            () = tokio::time::sleep_until(deadline.min(look_again)) => {}
            () = feed.render.stopping.wait() => break state,
        }
    };
    if state == TransactionState::Unknown && feed.access.is_controlled() {
        // Another caller's transaction is not told from one that is not there.
        return Err(WriteError::UnknownTransaction(id.to_string()).into());
    }
    let (name, offset) = match state {
        TransactionState::Unknown => ("unknown", None),
        TransactionState::Accepted => ("accepted", None),
        TransactionState::Confirmed(seq) => ("confirmed", Some(feed.reader.offset(seq).to_string())),
    };
    let body = StateBody { transaction_id: id.as_str(), state: name, offset };
    Ok(Build::new(StatusCode::OK).no_store().json(to_json(&body)))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateBody<'a> {
    transaction_id: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RollbackBody<'a> {
    transaction_id: &'a str,
    undone: &'a [Undone],
}

fn to_json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

/// `POST /v1/transactions/{id}/rollback`: undoes it, as a transaction of its own.
pub(in crate::http) async fn rollback(
    feed: &FeedContext,
    rights: &Arc<Rights>,
    text: &str,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    let permit = rights.undo()?;
    let query = intake::query(&request)?;
    query.only(&["cascade"])?;
    let cascade = match query.get("cascade")? {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::new(ErrorCode::InvalidParameter, "`cascade` must be true or false")),
    };
    let target = id(text)?;
    let operation = Operation::Rollback { target, cascade };
    let mut headers = request.headers().clone();
    let (transaction_id, _) = intake::identity(&headers)?;
    if let Ok(value) = http::HeaderValue::from_str(transaction_id.as_str()) {
        // The same id for the mutation and the body, also where it was made here.
        headers.insert(bourn_protocol::headers::TRANSACTION_ID, value);
    }
    let (written, build) = entities::write(feed, rights, permit, &headers, operation, StatusCode::OK).await?;
    Ok(build
        .json(to_json(&RollbackBody { transaction_id: transaction_id.as_str(), undone: &written.undone })))
}
