//! What stands before every endpoint: which requests are answered at all, who asks, answers that are at hand, event streams that a
//! browser resumes, and what every answer carries.

pub(super) mod access;
pub(super) mod caching;
pub(super) mod cors;
pub(super) mod gate;
pub(super) mod hot;
pub(super) mod resuming;

use http::header::X_CONTENT_TYPE_OPTIONS;
use http::{HeaderMap, HeaderValue};

use super::respond::CORP;

/// Adds what every answer carries (Durable Streams protocol, section 12.7, and CORS).
pub(super) fn add_common_headers(headers: &mut HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CORP, HeaderValue::from_static("cross-origin"));
    cors::add_headers(headers);
}
