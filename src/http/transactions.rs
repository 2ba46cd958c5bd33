//! `/v1/transactions`: what became of a transaction, and undoing it.

use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::{ErrorCode, TransactionId, limits};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use tokio::time::Instant;

use super::respond::Build;
use super::{ApiError, App, Reply, entities, intake};
use crate::storage::{Operation, TransactionState};

fn id(text: &str) -> Result<TransactionId, ApiError> {
    TransactionId::new(text).map_err(|error| ApiError::new(ErrorCode::InvalidId, &error.to_string()))
}

/// `GET /v1/transactions/{id}`: its state; with `wait` not before it is confirmed or the wait is over.
pub(super) async fn state<B>(app: &Arc<App>, text: &str, request: &Request<B>) -> Result<Reply, ApiError> {
    let query = intake::query(request)?;
    query.only(&["wait"])?;
    let most = usize::try_from(limits::TRANSACTION_WAIT_MAX_SECS).unwrap_or(usize::MAX);
    let wait = query.number("wait", 0, 0, most)?;
    let deadline = Instant::now() + Duration::from_secs(u64::try_from(wait).unwrap_or(0));
    let id = id(text)?;
    let mut head = app.storage.head();
    let state = loop {
        head.mark_unchanged();
        let state = app.storage.transaction(&id).await?;
        if matches!(state, TransactionState::Confirmed(_)) || Instant::now() >= deadline {
            break state;
        }
        tokio::select! {
            changed = head.changed() => if changed.is_err() { break state },
            () = tokio::time::sleep_until(deadline) => {}
            () = app.stopping.cancelled() => break state,
        }
    };
    let body = match state {
        TransactionState::Unknown => json!({ "transactionId": id.as_str(), "state": "unknown" }),
        TransactionState::Accepted => json!({ "transactionId": id.as_str(), "state": "accepted" }),
        TransactionState::Confirmed(seq) => {
            json!({ "transactionId": id.as_str(), "state": "confirmed", "offset": app.reader.offset(seq).to_string() })
        }
    };
    Ok(Build::new(StatusCode::OK).no_store().json(body.to_string()))
}

/// `POST /v1/transactions/{id}/rollback`: undoes it, as a transaction of its own.
pub(super) async fn rollback(
    app: &Arc<App>,
    text: &str,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
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
    let (written, build) = entities::write(app, &headers, operation, StatusCode::OK).await?;
    let body = json!({ "transactionId": transaction_id.as_str(), "undone": written.undone });
    Ok(build.json(body.to_string()))
}
