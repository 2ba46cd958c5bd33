//! `/v1/session`: a token as a cookie, for browsers whose `EventSource` can send no header. The cookie is for reads alone, is
//! sent to this host alone and not from other sites' pages, and no script can read it.

use std::time::{SystemTime, UNIX_EPOCH};

use bourn_protocol::ErrorCode;
use http::header::{AUTHORIZATION, SET_COOKIE};
use http::{Method, Request, StatusCode};

use super::layers::access::bearer;
use super::respond::Build;
use super::{ApiError, App, Reply, ReplyBody};
use crate::access::Rights;

/// The path.
pub(super) const PATH: &str = "/v1/session";

/// `POST` makes a cookie of the token that the request shows, until the token expires; `DELETE` takes it back.
pub(super) fn dispatch<B>(app: &App, rights: &Rights, request: &Request<B>) -> Result<Reply, ApiError> {
    let name = app.access.cookie();
    if name.is_empty() || !app.access.is_controlled() {
        let message = "there are no sessions: name a `cookie` in [access] to allow them";
        return Err(ApiError::new(ErrorCode::UnknownPath, message));
    }
    match *request.method() {
        Method::POST => {
            // The layer before has verified it; a role for requests without a token needs no cookie.
            let token = request.headers().get(AUTHORIZATION).and_then(|value| bearer(value.to_str().ok()?));
            let (Some(token), Some(expires)) = (token, rights.expires()) else {
                let message = "show the token that is to become a cookie, as Authorization: Bearer TOKEN";
                return Err(ApiError::new(ErrorCode::TokenMissing, message));
            };
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            Ok(answer(&cookie(name, token, expires.saturating_sub(now))))
        }
        Method::DELETE => Ok(answer(&cookie(name, "", 0))),
        _ => Err(ApiError::method("POST, DELETE")),
    }
}

/// `__Host-` in its name has browsers insist on `Secure`, `Path=/` and no `Domain`; they take it from localhost without TLS.
fn cookie(name: &str, value: &str, max_age: u64) -> String {
    format!("{name}={value}; Max-Age={max_age}; Path=/; Secure; HttpOnly; SameSite=Strict")
}

fn answer(cookie: &str) -> Reply {
    Build::new(StatusCode::NO_CONTENT).no_store().text(SET_COOKIE, cookie).body(ReplyBody::empty())
}
