//! `GET /v1/authorize`, on listeners of the role `edge`: whether the request that an edge has before it may have what the edge
//! keeps. It is parsed and checked by the same code as a request for the thing itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bourn_protocol::ErrorCode;
use http::{HeaderMap, Method, Request, StatusCode, Uri};

use super::layers::edge::is_canonical;
use super::respond::Build;
use super::{ApiError, App, Reply, ReplyBody, intake};
use crate::access::Rights;

/// The path.
pub(super) const PATH: &str = "/v1/authorize";
/// How long the edge may keep a permission.
const PERMISSION_AGE: Duration = Duration::from_secs(10);

/// The request that the edge asks about: nginx names it by `X-Original-…`, Caddy and Traefik by `X-Forwarded-…`.
pub(super) fn original(headers: &HeaderMap) -> Result<Request<()>, ApiError> {
    let one = |names: [&'static str; 2]| -> Result<Option<&str>, ApiError> {
        let [first, second] = names.map(|name| intake::header(headers, name));
        match (first?, second?) {
            (Some(one), Some(other)) if one != other => {
                let message =
                    format!("`{}` and `{}` name different requests; send one of them", names[0], names[1]);
                Err(ApiError::new(ErrorCode::InvalidHeader, &message))
            }
            (one, other) => Ok(one.or(other)),
        }
    };
    let invalid = |message| ApiError::new(ErrorCode::InvalidHeader, message);
    let uri = one(["x-original-uri", "x-forwarded-uri"])?.ok_or_else(|| {
        invalid("name the request that is asked about: X-Original-URI: /v1/entities/pages?offset=-1")
    })?;
    let uri = uri.parse::<Uri>().ok().filter(|uri| uri.authority().is_none());
    let uri = uri.ok_or_else(|| invalid("`X-Original-URI` must be a path with its parameters"))?;
    let method = one(["x-original-method", "x-forwarded-method"])?.unwrap_or("GET");
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| invalid("`X-Original-Method` must be a method"))?;
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    *request.method_mut() = method;
    Ok(request)
}

/// 204 where the request may have what is kept under its address; 401 or 403 where it may not, for any reason: an edge
/// may take any other status for a failure of its own.
pub(super) fn authorize(
    app: &App,
    rights: &Rights,
    headers: &HeaderMap,
    may_read: fn(&App, &Rights, Request<()>) -> Result<(), ApiError>,
) -> Result<Reply, ApiError> {
    let checked = original(headers).and_then(|request| {
        if !request.uri().path_and_query().is_some_and(is_canonical) {
            return Err(ApiError::new(ErrorCode::UrlNotCanonical, "the address is not spelled canonically"));
        }
        may_read(app, rights, request)
    });
    if let Err(error) = checked {
        let told = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].map(|status| status.as_u16());
        return Err(match told.contains(&error.code().status()) {
            true => error,
            false => ApiError::new(
                ErrorCode::NothingToRead,
                "there is nothing that may be kept under this address",
            ),
        });
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let left = rights.expires().map_or(u64::MAX, |expires| expires.saturating_sub(now));
    let age = left.min(PERMISSION_AGE.as_secs());
    let build = Build::new(StatusCode::NO_CONTENT).cache(&format!("private, max-age={age}"));
    Ok(build.body(ReplyBody::empty()))
}
