//! CORS: any page may read and write, as far as access control (which stands before routing) lets it; no
//! cookies are involved.

use bourn_protocol::headers::{ALLOWED, EXPOSED};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::http::respond::Build;
use crate::http::{Reply, ReplyBody};

/// Every method of the contract.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// How long a browser may keep the answer to a preflight, in seconds.
const PREFLIGHT_AGE: &str = "86400";

/// Adds what every answer carries. It does not depend on the request, so that caches need not tell origins apart.
pub(in crate::http) fn add_headers(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}

/// Answers a preflight.
pub(in crate::http) fn preflight() -> Reply {
    Build::new(StatusCode::NO_CONTENT)
        .header(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS))
        .header(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED))
        .header(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_AGE))
        .body(ReplyBody::empty())
}
